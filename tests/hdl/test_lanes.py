"""Lane adapter: the same pixels, at its stated pace."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from convfold.hdl.lanes import LaneAdapterParams
from tests.hdl.bench import PROFILES, Run, pack, run_stream, unpack

CASES = [
    LaneAdapterParams(channels, bits, signed, in_lanes, out_lanes)
    for channels, bits, signed, in_lanes, out_lanes in [
        (4, 8, True, 1, 4),
        (4, 8, False, 4, 1),
        (5, 8, True, 1, 4),
        (5, 8, True, 4, 1),
        (7, 3, True, 2, 4),
        (7, 3, False, 4, 2),
        (3, 8, True, 1, 4),
        (3, 8, True, 4, 2),
        (3, 8, True, 3, 3),
        (9, 2, True, 2, 8),
        (9, 2, True, 8, 2),
        (1, 16, True, 1, 2),
        (6, 5, False, 6, 2),
        (8, 8, True, 2, 1),
    ]
]


def drive(params: LaneAdapterParams, pixels: list[list[int]], profile: str = "none") -> tuple[Run, list[list[int]]]:
    """Lanes beyond the last channel are given noise on the way in, and are not looked at on the way out."""
    beats = []
    for pixel in pixels:
        for n in range(0, params.channels, params.in_lanes):
            part = pixel[n : n + params.in_lanes]
            part = part + [random.getrandbits(params.bits) for _ in range(params.in_lanes - len(part))]
            beats.append(pack(part, params.bits))
    expected = list(params.reference(pixels))
    run = run_stream(params.create(), beats, len(expected), profile)
    seen = [unpack(payload, params.bits, params.signed, params.out_lanes) for payload in run.payloads]
    return run, [values[: len(part)] for values, part in zip(seen, expected, strict=True)]


def random_pixels(params: LaneAdapterParams, count: int) -> list[list[int]]:
    low = -(1 << params.bits - 1) if params.signed else 0
    return [[low + random.getrandbits(params.bits) for _ in range(params.channels)] for _ in range(count)]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("params", CASES, ids=str)
def test_the_same_pixels(params: LaneAdapterParams, profile: str) -> None:
    pixels = random_pixels(params, 20)
    _, seen = drive(params, pixels, profile)
    assert seen == list(params.reference(pixels))
    joined = [value for part in seen for value in part]
    assert joined == [value for pixel in pixels for value in pixel]


@pytest.mark.parametrize("params", CASES, ids=str)
def test_latency_and_ii(params: LaneAdapterParams) -> None:
    pixels = random_pixels(params, 10)
    run, _ = drive(params, pixels)
    in_beats = -(-params.channels // params.in_lanes)
    out_beats = -(-params.channels // params.out_lanes)
    gather = params.out_lanes // params.in_lanes
    for pixel in range(len(pixels)):
        sent = run.sent[pixel * in_beats : (pixel + 1) * in_beats]
        out = run.cycles[pixel * out_beats : (pixel + 1) * out_beats]
        if gather:  # each beat out is completed by the last beat of a group in, or of the pixel
            completed = [sent[min((n + 1) * gather, in_beats) - 1] for n in range(out_beats)]
            assert [after - before for before, after in zip(completed, out, strict=True)] == [params.latency] * out_beats
        else:
            assert out[0] - sent[0] == params.latency
    starts = run.cycles[::out_beats]
    assert {after - before for before, after in pairwise(starts)} == {params.ii}


def test_neither_width_divides_the_other() -> None:
    with pytest.raises(ValueError, match=r"^lanes must divide each other, not \(2, 3\)$"):
        LaneAdapterParams(6, 8, True, 2, 3)
