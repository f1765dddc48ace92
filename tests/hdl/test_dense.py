"""Dense stage: a matrix times the flattened frame."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from convfold.hdl.dense import DenseParams
from tests.hdl.bench import PROFILES, run_profiles, unpack
from tests.hdl.conv_cases import VALID, ConvCase, make_stage

CASES = {
    "whole": ConvCase((2, 3, 4), 7, (2, 3), lanes=2, pes=3),
    "a vector": ConvCase((1, 1, 10), 5, (1, 1), lanes=5, pes=2, rows=2, signed=True),
    "kernel rows at once": ConvCase((3, 2, 3), 4, (3, 2), lanes=1, pes=2, parallel=(3, 1)),
    "slow": ConvCase((3, 3, 2), 3, (3, 3), requantizer_ii=18),
}


@pytest.mark.parametrize("name", CASES)
def test_products_latency_and_ii(name: str) -> None:
    stage = make_stage(CASES[name])
    conv = stage.params
    params = DenseParams(conv)
    w_oi = stage.w_rcohwi.reshape(conv.filters, -1)
    images = stage.random_frames(4)
    expected = []
    for image in images:
        sums = w_oi @ image.reshape(-1) + stage.b_rco[0, 0]
        scaled = [(int(s) * int(m) + (1 << conv.shift - 1)) >> conv.shift for s, m in zip(sums, stage.m_o, strict=True)]
        values = np.clip(scaled, conv.low, conv.high).tolist()
        expected += [values[n : n + conv.rows] for n in range(0, conv.filters, conv.rows)]
    dut = params.create(stage.w_rcohwi, stage.b_rco, stage.m_o)
    runs = run_profiles(dut, stage.beats(images), len(expected), watch=dut.o_issue)
    for profile in PROFILES:
        seen = [unpack(payload, conv.out_bits, conv.out_signed, conv.rows) for payload in runs[profile].payloads]
        assert [values[: len(part)] for values, part in zip(seen, expected, strict=True)] == expected, profile

    run = runs["none"]
    assert run.cycles[0] - run.watched[conv.window.steps - 1] == params.latency
    assert params.ii == conv.frame_cycles
    firsts = run.cycles[:: conv.words]
    input_cycles = conv.window.height * conv.window.width * conv.window.beats
    if params.ii >= input_cycles + 3:  # else the input is what the frames wait for
        assert {after - before for before, after in pairwise(firsts)} == {params.ii}


def test_what_is_refused() -> None:
    conv = make_stage(CASES["whole"]).params
    message = r"^kernel must cover the 2×3 input, not \(2, 2\)$"
    with pytest.raises(ValueError, match=message):
        DenseParams(replace(conv, window=replace(conv.window, kernel=(2, 2))))
    padded = replace(conv.window, padding=((1, 0), (0, 0)))
    assert padded.padding != VALID
    with pytest.raises(ValueError, match=r"^kernel must cover the 2×3 input, not \(2, 3\)$"):
        DenseParams(replace(conv, window=padded))
