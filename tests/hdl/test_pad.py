"""Pad: frames in a border of one value, one beat out a cycle."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from amaranth.hdl import Value

from convfold.hdl.pad import PadParams
from tests.hdl.bench import PROFILES, pack, run_profiles, simulate, unpack

CASES = [
    PadParams(2, 3, 4, 2, 5, True, ((1, 2), (2, 1)), -3),
    PadParams(3, 2, 5, 2, 5, False, ((0, 1), (1, 0)), 31),
    PadParams(1, 1, 1, 1, 5, True, ((1, 0), (0, 0)), 0),
    PadParams(2, 2, 3, 3, 5, True, ((0, 0), (0, 2)), -16),
    PadParams(2, 2, 3, 1, 5, True, ((0, 0), (0, 0)), 1),
]
FRAMES = 3


@pytest.mark.parametrize("params", CASES, ids=str)
def test_a_border(params: PadParams) -> None:
    rng = random.Random(1)
    p = params
    low = -16 if p.signed else 0
    frames = [
        [[[low + rng.getrandbits(5) for _ in range(p.channels)] for _ in range(p.width)] for _ in range(p.height)]
        for _ in range(FRAMES)
    ]
    pixels = [pixel for frame in frames for row in frame for pixel in row]
    beats = [pack(pixel[n : n + p.lanes], 5) for pixel in pixels for n in range(0, p.channels, p.lanes)]

    def sample(frame: list[list[list[int]]], i: int, j: int, c: int) -> int:
        return frame[i][j][c] if 0 <= i < p.height and 0 <= j < p.width else p.value_raw

    (top, _), (left, _) = p.padding
    expected = [
        [sample(frame, i - top, j - left, c) for c in range(n, min(n + p.lanes, p.channels))]
        for frame in frames
        for i in range(p.out_height)
        for j in range(p.out_width)
        for n in range(0, p.channels, p.lanes)
    ]
    assert [beat for frame in frames for beat in p.reference(frame)] == expected
    assert len(expected) == FRAMES * p.out_beats
    assert len(beats) == FRAMES * p.in_beats
    runs = run_profiles(p.create(), beats, len(expected))
    for profile in PROFILES:
        seen = [unpack(payload, 5, p.signed, p.lanes) for payload in runs[profile].payloads]
        assert [part[: len(beat)] for part, beat in zip(seen, expected, strict=True)] == expected
    run = runs["none"]
    assert run.cycles[0] == p.latency
    assert {after - before for before, after in pairwise(run.cycles)} == {p.ii}
    copies = list(p.copies()) * FRAMES
    assert run.sent == [cycle - p.latency for cycle, copy in zip(run.cycles, copies, strict=True) if copy]


def test_padding_waits_for_its_frame_but_not_for_the_next() -> None:
    dut = PadParams(1, 1, 1, 1, 5, False, ((1, 1), (1, 1)), 3).create()
    seen: list[tuple[int, int]] = []

    async def bench(ctx: Any) -> None:
        ctx.set(dut.o.ready, 1)
        for cycle in range(60):
            ctx.set(dut.i.valid, 20 <= cycle < 25)  # the sample is taken in cycle 24: four beats are before it
            if ctx.get(dut.o.valid):
                seen.append((cycle, int(ctx.get(Value.cast(dut.o.payload)))))
            await ctx.tick()

    simulate(dut, bench)
    assert seen == [(21 + n, 0 if n == 4 else 3) for n in range(9)]


@pytest.mark.parametrize(
    ("lanes", "padding", "value", "message"),
    [
        (1, ((0, -1), (0, 0)), 0, r"padding must be at least 0, not \(\(0, -1\), \(0, 0\)\)"),
        (3, ((0, 0), (0, 0)), 0, r"lanes must be 1 to 2, not 3"),
        (1, ((0, 0), (0, 0)), 16, r"value_raw must fit 5 bits, not 16"),
    ],
)
def test_what_cannot_be(lanes: int, padding: tuple[tuple[int, int], tuple[int, int]], value: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        PadParams(2, 2, 2, lanes, 5, True, padding, value)
