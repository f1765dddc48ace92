"""Crop: what is left of a frame, one beat in a cycle."""

from __future__ import annotations

import random

import pytest

from convfold.hdl.crop import CropParams
from tests.hdl.bench import PROFILES, pack, run_profiles, unpack

NONE = ((0, 0), (0, 0))
CASES = [
    CropParams(4, 5, 6, 2, 5, True, ((1, 1), (2, 1)), 0, 6),
    CropParams(3, 3, 7, 2, 5, False, ((0, 2), (0, 1)), 0, 7),
    CropParams(3, 2, 5, 1, 5, True, ((2, 0), (1, 0)), 2, 4),
    CropParams(2, 3, 9, 3, 5, True, NONE, 3, 8),
    CropParams(2, 3, 9, 3, 5, True, NONE, 6, 9),
    CropParams(2, 2, 4, 4, 5, True, NONE, 0, 4),
    CropParams(5, 1, 1, 1, 5, True, ((2, 2), (0, 0)), 0, 1),
]
FRAMES = 3


@pytest.mark.parametrize("params", CASES, ids=str)
def test_what_is_left(params: CropParams) -> None:
    rng = random.Random(1)
    p = params
    low = -16 if p.signed else 0
    frames = [
        [[[low + rng.getrandbits(5) for _ in range(p.channels)] for _ in range(p.width)] for _ in range(p.height)]
        for _ in range(FRAMES)
    ]
    pixels = [pixel for frame in frames for row in frame for pixel in row]
    beats = [pack(pixel[n : n + p.lanes], 5) for pixel in pixels for n in range(0, p.channels, p.lanes)]
    (top, _), (left, _) = p.cropping
    expected = [
        [frame[i + top][j + left][c] for c in range(n, min(n + p.lanes, p.stop))]
        for frame in frames
        for i in range(p.out_height)
        for j in range(p.out_width)
        for n in range(p.start, p.stop, p.lanes)
    ]
    assert [beat for frame in frames for beat in p.reference(frame)] == expected
    assert len(expected) == FRAMES * p.out_beats
    assert len(beats) == FRAMES * p.in_beats
    kept = list(p.keeps()) * FRAMES
    runs = run_profiles(p.create(), beats, len(expected))
    for profile in PROFILES:
        seen = [unpack(payload, 5, p.signed, p.lanes) for payload in runs[profile].payloads]
        assert [part[: len(beat)] for part, beat in zip(seen, expected, strict=True)] == expected
    run = runs["none"]
    assert run.sent == list(range(len(run.sent)))
    assert run.cycles == [n + p.latency for n, keeps in enumerate(kept) if keeps]


@pytest.mark.parametrize(
    ("cropping", "lanes", "start", "stop", "message"),
    [
        (((2, 2), (0, 0)), 1, 0, 8, r"cropping must leave a part of 4×4, not \(\(2, 2\), \(0, 0\)\)"),
        (((0, 0), (-1, 0)), 1, 0, 8, r"cropping must leave a part of 4×4, not \(\(0, 0\), \(-1, 0\)\)"),
        (NONE, 1, 4, 4, r"start and stop must be within 8 channels, not \(4, 4\)"),
        (NONE, 1, 4, 9, r"start and stop must be within 8 channels, not \(4, 9\)"),
        (NONE, 4, 2, 8, r"lanes must divide start and be 1 to 6, not 4 for 2"),
        (NONE, 4, 4, 6, r"lanes must divide start and be 1 to 2, not 4 for 4"),
    ],
)
def test_what_cannot_be(
    cropping: tuple[tuple[int, int], tuple[int, int]], lanes: int, start: int, stop: int, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        CropParams(4, 4, 8, lanes, 8, True, cropping, start, stop)
