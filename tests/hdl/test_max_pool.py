"""Max pooling stage: the greatest sample, at its stated pace, and its queue never overflows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.window import WindowParams
from tests.hdl.bench import PROFILES, Run, look_inside, pack, run_blocked, run_profiles, unpack

Padding = tuple[tuple[int, int], tuple[int, int]]


def pool(
    size: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding = ((0, 0), (0, 0)),
    lanes: int = 1,
    bits: int = 8,
    signed: bool = True,
    smallest: bool = False,
    dilation: tuple[int, int] = (1, 1),
) -> MaxPoolParams:
    window = WindowParams(
        *size, lanes, bits, signed, kernel, stride, padding, rows=99,
        channelwise=True, pad_raw=-(1 << bits - 1) if signed else 0, dilation=dilation,
    )  # fmt: skip
    return MaxPoolParams(replace(window, rows=window.min_rows if smallest else window.full_rows))


CASES = {
    "2×2": pool((6, 6, 3), (2, 2), (2, 2), lanes=2),
    "2×2, smallest ring": pool((6, 6, 3), (2, 2), (2, 2), lanes=2, smallest=True),
    "3×3, overlapping": pool((6, 7, 2), (3, 3), (2, 2), ((1, 0), (0, 1)), lanes=2, signed=False),
    "3×3 everywhere": pool((4, 5, 2), (3, 3), (1, 1), ((1, 1), (1, 1)), bits=5),
    "padding beyond the kernel": pool((3, 3, 2), (2, 2), (1, 1), ((2, 3), (3, 2)), bits=3),
    "a row between padding": pool((1, 1, 3), (4, 1), (2, 3), ((1, 2), (0, 0))),
    "a column between padding": pool((2, 1, 2), (2, 3), (1, 1), ((0, 0), (1, 1))),
    "a column": pool((9, 1, 4), (3, 1), (2, 1), lanes=3),
    "stride beyond the kernel": pool((7, 8, 1), (2, 2), (3, 3), bits=16),
    "1×1": pool((3, 4, 3), (1, 1), (1, 1), lanes=3),
    "dilated": pool((7, 6, 3), (3, 2), (2, 1), ((1, 2), (0, 3)), lanes=2, dilation=(2, 3)),
    "global": pool((4, 3, 5), (4, 3), (1, 1), lanes=2, signed=False),
}


def definition(params: MaxPoolParams, x_hwc: NDArray[np.int64]) -> NDArray[np.int64]:
    window = params.window
    padding = (*window.padding, (0, 0))
    padded = np.pad(x_hwc.astype(float), padding, constant_values=-np.inf)
    y_hwc = np.zeros((window.out_height, window.out_width, window.channels))
    for i in range(window.out_height):
        for j in range(window.out_width):
            y, x = i * window.stride[0], j * window.stride[1]
            below, beside = ((window.kernel[n] - 1) * window.dilation[n] + 1 for n in range(2))
            taps = padded[y : y + below : window.dilation[0], x : x + beside : window.dilation[1]]
            y_hwc[i, j] = taps.max(axis=(0, 1))
    return np.maximum(y_hwc, window.pad_raw).astype(np.int64)


def beats_of(params: MaxPoolParams, images: list[NDArray[np.int64]]) -> list[list[int]]:
    lanes = params.window.lanes
    pixels = [pixel for image in images for row in image.tolist() for pixel in row]
    return [pixel[n : n + lanes] for pixel in pixels for n in range(0, len(pixel), lanes)]


def random_images(params: MaxPoolParams, count: int) -> list[NDArray[np.int64]]:
    window = params.window
    rng = np.random.default_rng(3)
    shape = (window.height, window.width, window.channels)
    return [rng.integers(window.pad_raw, window.pad_raw + (1 << window.bits), shape) for _ in range(count)]


def drive(params: MaxPoolParams, count: int) -> dict[str, Run]:
    window = params.window
    images = random_images(params, count)
    expected = beats_of(params, [definition(params, image) for image in images])
    dut = params.create()
    queue = look_inside(dut).queue
    overflow = queue.i.valid & ~queue.i.ready
    sent = [pack(part, window.bits) for part in beats_of(params, images)]
    runs = run_profiles(dut, sent, len(expected), watch=dut.o_issue, never=overflow)
    for profile in PROFILES:
        seen = [unpack(payload, window.bits, window.signed, window.lanes) for payload in runs[profile].payloads]
        beats = [values[: len(part)] for values, part in zip(seen, expected, strict=True)]
        assert beats == expected, profile
    return runs


@pytest.mark.parametrize("name", CASES)
def test_frames_and_latency(name: str) -> None:
    """With the output always taken, a beat comes ``latency`` cycles after the last tap of its pass."""
    params = CASES[name]
    run = drive(params, 2)["none"]
    steps = params.window.steps
    assert run.cycles == [cycle + params.latency for cycle in run.watched[steps - 1 :: steps]]


PACED = {
    name: params
    for name, params in CASES.items()
    for window in [params.window]
    if window.frame_cycles >= window.pixels * window.beats and window.rows >= window.full_rows
}


@pytest.mark.parametrize("name", PACED)
def test_ii_and_frame_cycles(name: str) -> None:
    params = PACED[name]
    run = drive(params, 3)["none"]
    assert {after - before for before, after in pairwise(run.cycles)} == {params.ii}
    per_frame = len(run.cycles) // 3
    assert run.cycles[per_frame] - run.cycles[0] == params.frame_cycles
    assert run.watched == list(range(run.watched[0], run.watched[0] + 3 * params.frame_cycles))


@pytest.mark.parametrize("name", ["2×2", "3×3 everywhere", "1×1"])
def test_an_output_that_waits_long(name: str) -> None:
    """The stage fills its queue to the last place, stops, and goes on as if nothing had happened."""
    params = CASES[name]
    window = params.window
    images = random_images(params, 3)
    expected = beats_of(params, [definition(params, image) for image in images])
    sent = [pack(part, window.bits) for part in beats_of(params, images)]
    dut = params.create()
    patience = window.out_width * window.ii + params.latency + 10
    stored, payloads = run_blocked(dut, look_inside(dut).queue, sent, len(expected), patience)
    assert stored == params.queue.depth_words
    seen = [unpack(payload, window.bits, window.signed, window.lanes) for payload in payloads]
    assert [values[: len(part)] for values, part in zip(seen, expected, strict=True)] == expected


def test_enough_stages_are_paced() -> None:
    assert len(PACED) >= 3


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_the_definition(name: str) -> None:
    """Lanes beyond the last channel are the reference's own business."""
    params = CASES[name]
    for image in random_images(params, 2):
        expected = beats_of(params, [definition(params, image)])
        beats = list(params.reference(image.tolist()))
        assert [values[: len(part)] for values, part in zip(beats, expected, strict=True)] == expected


def test_what_is_refused() -> None:
    window = CASES["2×2"].window
    with pytest.raises(ValueError, match=r"^window must be channelwise and not parallel$"):
        MaxPoolParams(replace(window, channelwise=False))
    with pytest.raises(ValueError, match=r"^window must be channelwise and not parallel$"):
        MaxPoolParams(replace(window, parallel=(2, 1), rows=4))
    with pytest.raises(ValueError, match=r"^pad_raw must be -128, not 0$"):
        MaxPoolParams(replace(window, pad_raw=0))
    with pytest.raises(ValueError, match=r"^pad_raw must be 0, not -128$"):
        MaxPoolParams(replace(window, signed=False))
