"""Global pool: the mean of each channel under every stall, exactly when the rule says."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest

from convfold.hdl.border import BorderWalkParams
from convfold.hdl.global_pool import GlobalPoolParams
from convfold.hdl.requantizer import RequantizerParams
from tests.hdl.bench import PROFILES, look_inside, pack, run_profiles, unpack
from tests.hdl.port_bench import Traffic, run_ports

FRAMES = 3


def pool(
    pixels: int, channels: int, lanes: int, *, ii: int = 1, bits: int = 8, signed: bool = True, **more: Any
) -> GlobalPoolParams:
    words = channels // lanes
    acc_bits = bits + (pixels - 1).bit_length() + 2
    out = {"out_bits": 8, "out_signed": True, "shift": 16, "low": -128, "high": 127, "zero_point": 3} | more
    walk = BorderWalkParams(1, 1)
    requantizer = RequantizerParams(words, words, walk, acc_bits, ii=ii, by_class=True, uniform=True, **out)
    return GlobalPoolParams(pixels, channels, lanes, bits, signed, requantizer)


CASES = {
    "smallest": pool(2, 1, 1),
    "one beat a pixel": pool(9, 4, 4),
    "two beats a pixel": pool(5, 4, 2, signed=False),
    "three beats a pixel": pool(4, 6, 2),
    "one lane": pool(6, 8, 1, signed=False),
    "a slow requantizer": pool(12, 5, 1, ii=6),
    "a requantizer slower than a frame": pool(2, 1, 1, ii=11),
    "lanes, slow": pool(16, 12, 4, ii=3, bits=5),
    "offsets for either sign": pool(7, 6, 3, split=True, positive=1 << 14, negative=(1 << 15) + 5, ii=2),
    "offsets in tables": pool(7, 6, 3, split=True, offset_bits=18, ii=4),
}


def constants(params: GlobalPoolParams) -> list[int]:
    """Bias, multiplier, and the offsets that are in tables."""
    return [-7, round((1 << 16) * 0.9 / params.pixels), *[1 << 15, (1 << 15) - 9][: params.requantizer.offset_tables]]


def frames_of(params: GlobalPoolParams) -> np.ndarray:
    low = -(1 << params.bits - 1) if params.signed else 0
    frames = np.random.default_rng(4).integers(low, low + (1 << params.bits), (FRAMES, params.pixels, params.channels))
    frames[1] = low  # as far out as a sum can be
    frames[2, :, ::2] = low + (1 << params.bits) - 1
    return frames


def means(params: GlobalPoolParams, frame_pc: np.ndarray) -> list[int]:
    """The definition, in Python's integers."""
    rounding = params.requantizer
    bias, factor, *tables = constants(params)
    found = []
    for total in frame_pc.sum(axis=0).tolist():
        offset = 1 << (rounding.shift - 1)
        if rounding.split:
            given = [*tables, rounding.positive, rounding.negative]
            offset = [value for value in given if value is not None][int(total + bias < 0)]
        scaled = ((total + bias) * factor + offset) // (1 << rounding.shift) + rounding.zero_point
        found.append(min(max(scaled, rounding.low), rounding.high))
    return found


def assert_the_rule(params: GlobalPoolParams, source: Traffic, sink: Traffic) -> None:
    """Every beat was taken and offered in the cycle that `GlobalPoolParams` says, and in no other."""
    takes: list[int] = []
    closing: list[int] = []
    timing, words = params.timing, params.words
    for n, offered in enumerate(source.offered):
        pixel = n // words % params.pixels
        time = max(offered, takes[-1] + 1 if n else 0)
        if pixel == params.pixels - 1:
            k = len(closing)
            time = max(time, closing[-1] + params.requantizer.ii if k else 0)
            time = max(time, sink.taken[k - timing.depth_words] + timing.return_cycles if k >= timing.depth_words else 0)
            closing.append(time)
        takes.append(time)
    assert source.taken == takes
    offers: list[int] = []
    for k, time in enumerate(closing):
        offers.append(max(time + timing.latency, sink.taken[k - 1] + 1 if k else 0))
    assert sink.offered == offers


@pytest.mark.parametrize("name", CASES)
def test_numbers_and_the_timing_rule(name: str) -> None:
    params = CASES[name]
    frames = frames_of(params)
    lanes = frames.reshape(-1, params.lanes)
    beats = [pack(line, params.bits) for line in lanes.tolist()]
    expected = [means(params, frame) for frame in frames]
    for frame, by_definition in zip(frames, expected, strict=True):
        assert list(chain.from_iterable(params.reference([frame.tolist()], *constants(params)))) == by_definition
    runs = run_ports(params.create(*constants(params)), {"i": beats}, {"o": FRAMES * params.words})
    for profile in PROFILES:
        payloads = runs[profile]["o"].payloads
        seen = [value for payload in payloads for value in unpack(payload, 8, True, params.lanes)]
        assert seen == [value for frame in expected for value in frame], profile
        assert_the_rule(params, runs[profile]["i"], runs[profile]["o"])
    starts = runs["none"]["i"].taken[:: params.pixels * params.words]
    assert starts[2] - starts[1] <= params.frame_cycles
    ends = runs["none"]["o"].taken[params.words - 1 :: params.words]
    assert [after - before for before, after in pairwise(ends)] == [params.frame_cycles] * (FRAMES - 1)


@pytest.mark.parametrize("name", [name for name, params in CASES.items() if params.ring])
def test_a_sum_is_there_when_its_beat_comes_and_has_room(name: str) -> None:
    params = CASES[name]
    dut = params.create(*constants(params))
    ring = look_inside(dut).ring
    beats = [pack(line, params.bits) for line in frames_of(params).reshape(-1, params.lanes).tolist()]
    refused, missed = ring.i.valid & ~ring.i.ready, ring.o.ready & ~ring.o.valid
    run_profiles(dut, beats, FRAMES * params.words, never=refused | missed)


def test_what_is_refused() -> None:
    good = CASES["lanes, slow"]
    with pytest.raises(ValueError, match=r"^pixels must be at least 2, not 1$"):
        replace(good, pixels=1)
    with pytest.raises(ValueError, match=r"^lanes must divide the 12 channels, not 5$"):
        replace(good, lanes=5)
    with pytest.raises(ValueError, match=r"^requantizer must have 6 slots and words, not RequantizerParams"):
        replace(good, lanes=2)
    with pytest.raises(ValueError, match=r"^requantizer must have one word of constants$"):
        replace(good, requantizer=replace(good.requantizer, uniform=False))
