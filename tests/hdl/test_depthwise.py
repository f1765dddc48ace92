"""Depthwise stage and pooling: bit-exact to the definition under every stall, at the stated pace, no queue overflows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.hdl.bench import look_inside, run_blocked, unpack
from tests.hdl.conv_cases import SAME, ConvCase, ConvStage, assert_latency, assert_pace, drive, make_depthwise, make_stage


def depthwise(size: tuple[int, int, int], kernel: tuple[int, int], **details: Any) -> ConvCase:
    return ConvCase(size, 0, kernel, **details)


CASES = {
    "smallest": depthwise((1, 1, 1), (1, 1)),
    "one at a time": depthwise((4, 5, 3), (3, 3), padding=SAME, ring=None, pad_raw=11),
    "a slow requantizer": depthwise((3, 4, 3), (4, 5), padding=SAME, requantizer_ii=20, signed=True),
    "a slow requantizer, split": depthwise((3, 3, 2), (5, 5), padding=((2, 2), (2, 2)), requantizer_ii=12, split=True),
    "a slow requantizer, lanes": depthwise((3, 4, 6), (3, 4), padding=SAME, lanes=6, rows=2, requantizer_ii=4, signed=True),
    "lanes drained by one row": depthwise((4, 4, 6), (3, 3), padding=SAME, lanes=3, zero_point=9),
    "as many sums as steps": depthwise((3, 4, 4), (2, 2), lanes=4, signed=True, split=True, multiplier_bits=21),
    "rows of lanes": depthwise((4, 3, 8), (3, 3), stride=(2, 1), padding=SAME, lanes=4, rows=2, ring=None),
    "kernel rows at once": depthwise((5, 5, 4), (3, 3), padding=SAME, lanes=2, parallel=(3, 1), pad_raw=-3, signed=True),
    "kernel at once": depthwise((4, 5, 4), (3, 3), padding=SAME, lanes=2, rows=2, parallel=(3, 3), pad_raw=77),
    "kernel at once, strides": depthwise((7, 8, 3), (3, 2), stride=(2, 2), lanes=1, parallel=(3, 2)),
    "fillers": depthwise((4, 3, 7), (2, 2), lanes=4, rows=2, padding=SAME),
    "fillers in the last beat": depthwise((3, 3, 5), (2, 2), lanes=2, rows=2, rectify=True, zero_point=-4),
    "a last beat with one sum of four": depthwise((3, 3, 5), (3, 3), lanes=4, rows=1, padding=SAME),
    "classes": depthwise((5, 4, 3), (3, 3), padding=SAME, lanes=3, class_rows=(0, 1, 4), class_cols=(0, 3)),
    "dilated": depthwise((7, 8, 4), (3, 2), stride=(1, 2), padding=((2, 2), (3, 0)), lanes=2, dilation=(2, 3), signed=True),
    "one dimension": depthwise((9, 1, 4), (3, 1), padding=((2, 0), (0, 0)), lanes=2, rows=1, parallel=(1, 1)),
    "two bits": depthwise((3, 3, 6), (3, 3), lanes=6, rows=2, bits=2, weight_bits=2, out_bits=2),
    "sixteen bits": depthwise((3, 3, 2), (2, 2), padding=SAME, bits=16, signed=True, weight_bits=16, out_bits=16),
    "ties": depthwise((4, 4, 4), (2, 2), lanes=2, bits=3, weight_bits=2, out_bits=4, even=True, multiplier_bits=2),
    "pooling": depthwise((4, 6, 5), (2, 2), stride=(2, 2), lanes=2, weight_bits=0),
    "pooling, classes": depthwise(
        (5, 4, 4), (3, 3), padding=SAME, lanes=2, weight_bits=0, signed=True, split=True,
        class_rows=(0, 1, 4), class_cols=(0, 1, 3),
    ),
    "pooling, one offset in common": depthwise(
        (5, 4, 4), (3, 3), padding=SAME, lanes=2, weight_bits=0, signed=True, split=True, tables=1, class_rows=(0, 1, 4),
    ),
    "pooling, at once": depthwise((5, 6, 3), (2, 3), lanes=1, weight_bits=0, parallel=(2, 3), split=True, pad_raw=3),
    "pooling, slow": depthwise((4, 5, 2), (4, 5), weight_bits=0, requantizer_ii=17, split=True, multiplier_bits=12),
    "global pooling": depthwise((4, 3, 8), (4, 3), lanes=8, rows=1, weight_bits=0, split=True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_frames_back_to_back_under_every_profile(name: str) -> None:
    stage = make_depthwise(CASES[name])
    assert_latency(stage, drive(stage, 2)["none"])


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_the_definition(name: str) -> None:
    stage = make_depthwise(CASES[name])
    for image in stage.random_frames(2):
        assert list(stage.params.reference(image.tolist(), *stage.constants)) == stage.output_beats([image])


def test_the_definition_by_hand() -> None:
    """Two channels under a 1×2 kernel, then their mean, halves up; worked out on paper."""
    stage = make_depthwise(depthwise((1, 3, 2), (1, 2), lanes=2, signed=True))
    constants = [
        np.array([[[[[[1], [2]]], [[[3], [-1]]]]]]),
        np.array([[[10, -20]]]),
        np.array([1 << 16, 1 << 15]),
    ]
    params = replace(stage.params, shift=16, low=-100, high=100, zero_point=5)
    image = np.array([[[1, 10], [2, 20], [-3, 30]]])
    by_hand = ConvStage(params, *constants)
    # sums 1 + 4 + 10, 30 − 20 − 20; 2 − 6 + 10, 60 − 30 − 20; the second channel is halved
    assert by_hand.definition(image).tolist() == [[[20, 0], [11, 10]]]
    pool = make_depthwise(depthwise((1, 3, 2), (1, 2), lanes=2, signed=True, weight_bits=0))
    mean = ConvStage(
        replace(pool.params, shift=1, low=-100, high=100, multiplier_bits=1),
        pool.w_rcohwi,
        np.zeros((1, 1, 1), np.int64),
        np.ones((1, 1, 1), np.int64),
    )
    assert mean.definition(image).tolist() == [[[2, 15], [0, 25]]]
    assert list(mean.params.reference(image.tolist(), None, *mean.constants[1:])) == [[2], [15], [0], [25]]


PACED = {
    "kernel at once": CASES["kernel at once"],
    "kernel rows at once": CASES["kernel rows at once"],
    "lanes drained by one row": CASES["lanes drained by one row"],
    "as many sums as steps": CASES["as many sums as steps"],
    "rows of lanes": CASES["rows of lanes"],
    "one dimension": CASES["one dimension"],
    "one dimension at once": replace(CASES["one dimension"], rows=2, parallel=(3, 1)),
    "10×4 kernel, stride 2": depthwise((5, 10, 2), (10, 4), stride=(2, 2), padding=((4, 5), (1, 1)), lanes=2),
    "64 channels, pointwise": depthwise((2, 2, 64), (1, 1), lanes=16, rows=16, weight_bits=3, multiplier_bits=5),
    "pooling": CASES["pooling"],
    "pooling, at once": CASES["pooling, at once"],
    "global pooling": CASES["global pooling"],
    "global pooling, every lane": replace(CASES["global pooling"], rows=8),
    "global pooling, at once": replace(CASES["global pooling"], lanes=2, rows=2, parallel=(4, 3)),
}


@pytest.mark.parametrize("name", PACED)
def test_ii_frame_cycles_and_full_utilisation(name: str) -> None:
    assert_pace(make_depthwise(PACED[name]))


@pytest.mark.parametrize("name", ["lanes drained by one row", "a last beat with one sum of four", "kernel at once"])
def test_an_output_that_waits_long(name: str) -> None:
    """The stage fills its queue until no pass fits in, stops, and goes on as if nothing had happened."""
    stage = make_depthwise(CASES[name])
    params = stage.params
    images = stage.random_frames(3)
    expected = stage.output_beats(images)
    dut = stage.create()
    patience = params.window.out_width * params.ii + params.latency + params.pes
    stored, payloads = run_blocked(dut, look_inside(dut).queue, stage.beats(images), len(expected), patience)
    assert params.queue.depth_words - params.pes < stored <= params.queue.depth_words
    seen = [unpack(payload, params.out_bits, params.out_signed, params.rows) for payload in payloads]
    assert [values[: len(part)] for values, part in zip(seen, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 2}, r"^rows must divide the 3 lanes, not 2$"),
        ({"requantizer_ii": 4}, r"^pes must be at most the 9 steps of a pass / 4, not 3$"),
        ({"window": make_stage(ConvCase((4, 4, 6), 6, (3, 3))).params.window}, r"^window must be channelwise$"),
    ],
)
def test_what_is_refused(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make_depthwise(CASES["lanes drained by one row"]).params, **change)


def test_passes_of_enough_steps() -> None:
    with pytest.raises(ValueError, match=r"^pes must be at most the 1 steps of a pass, not 2$"):
        make_depthwise(depthwise((3, 3, 2), (2, 2), lanes=2, parallel=(2, 2)))


def test_counts() -> None:
    params = make_depthwise(CASES["a last beat with one sum of four"]).params
    assert (params.words, params.passes, params.pes, params.tail_words, params.multipliers) == (5, 2, 4, 1, 4)
    assert make_depthwise(CASES["kernel at once"]).params.multipliers == 2 * 9
    assert make_depthwise(CASES["global pooling"]).params.multipliers == 0
