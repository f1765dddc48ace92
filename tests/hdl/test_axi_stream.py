"""The chip edge: whole frames pass unchanged, frames of a wrong length never reach the engine."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from amaranth.hdl import Cat, ResetInserter, Signal, Value

from convfold.hdl.axi_stream import AxiStreamParams
from tests.hdl.bench import PROFILES, Run, pack, run_stream, simulate, unpack

CASES = [
    AxiStreamParams(pixels=6, channels=1, lanes=1, bits=8, signed=True),
    AxiStreamParams(pixels=4, channels=5, lanes=2, bits=8, signed=True),
    AxiStreamParams(pixels=4, channels=5, lanes=4, bits=5, signed=True),
    AxiStreamParams(pixels=3, channels=3, lanes=3, bits=12, signed=False),
    AxiStreamParams(pixels=2, channels=7, lanes=4, bits=16, signed=True),
    AxiStreamParams(pixels=1, channels=2, lanes=1, bits=2, signed=False),
    AxiStreamParams(pixels=1, channels=3, lanes=3, bits=9, signed=True),
]

Frame = list[list[list[int]]]


def random_frame(params: AxiStreamParams) -> Frame:
    """Corners are frequent."""
    low = -(1 << params.bits - 1) if params.signed else 0
    high = low + (1 << params.bits) - 1
    values = [[random.choice((low, high, random.randint(low, high))) for _ in range(params.channels)]]
    values += [[random.randint(low, high) for _ in range(params.channels)] for _ in range(params.pixels - 1)]
    return [values]


def lanes_of(params: AxiStreamParams, frame: Frame) -> list[list[int]]:
    """The beats inside the chip; the last of a pixel may be short."""
    return [
        pixel[n : n + params.lanes]
        for row in frame
        for pixel in row
        for n in range(0, params.channels, params.lanes)
    ]


def edge_in(dut: Any) -> Any:
    return SimpleNamespace(
        i=SimpleNamespace(payload=Cat(dut.i_tdata, dut.i_tlast), valid=dut.i_tvalid, ready=dut.o_tready), o=dut.o
    )


def edge_out(dut: Any) -> Any:
    return SimpleNamespace(
        i=dut.i, o=SimpleNamespace(payload=Cat(dut.o_tdata, dut.o_tlast), valid=dut.o_tvalid, ready=dut.i_tready)
    )


def send(params: AxiStreamParams, beats: list[tuple[int, bool]], count: int, profile: str) -> tuple[Run, list[list[int]]]:
    dut = params.create_in()
    payloads = [tdata | tlast << params.tdata_bits for tdata, tlast in beats]
    run = run_stream(dut, payloads, count, profile, watch=dut.o_error, ports=edge_in(dut))
    return run, [unpack(payload, params.bits, params.signed, params.lanes) for payload in run.payloads]


def assert_lanes(seen: list[list[int]], expected: list[list[int]]) -> None:
    """Lanes beyond the last channel carry no meaning."""
    assert [values[: len(part)] for values, part in zip(seen, expected, strict=True)] == expected


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("params", CASES, ids=str)
def test_whole_frames_in(params: AxiStreamParams, profile: str) -> None:
    frames = [random_frame(params) for _ in range(4)]
    beats = [beat for frame in frames for beat in params.reference(frame)]
    assert len(beats) == 4 * params.frame_beats
    run, seen = send(params, beats, len(beats), profile)
    assert_lanes(seen, [part for frame in frames for part in lanes_of(params, frame)])
    assert run.watched == []


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("params", CASES, ids=str)
def test_frames_out(params: AxiStreamParams, profile: str) -> None:
    """Fillers go in as noise and come out as zero; ``tlast`` stands at the end of each frame and nowhere else."""
    frames = [random_frame(params) for _ in range(4)]
    beats = []
    for part in (part for frame in frames for part in lanes_of(params, frame)):
        noise = [random.getrandbits(params.bits) for _ in range(params.lanes - len(part))]
        beats.append(pack(part + noise, params.bits))
    dut = params.create_out()
    run = run_stream(dut, beats, len(beats), profile, ports=edge_out(dut))
    expected = [beat for frame in frames for beat in params.reference(frame)]
    assert [(seen & ((1 << params.tdata_bits) - 1), seen >> params.tdata_bits) for seen in run.payloads] == expected


@pytest.mark.parametrize("params", CASES, ids=str)
def test_latency_and_ii(params: AxiStreamParams) -> None:
    for dut, edge in ((params.create_in(), edge_in), (params.create_out(), edge_out)):
        last = 0
        beats = []
        for n in range(30):
            last = ((n + 1) % params.frame_beats == 0) << params.tdata_bits if edge is edge_in else 0
            beats.append(last)
        run = run_stream(dut, beats, 30, ports=edge(dut))
        assert {out - sent for sent, out in zip(run.sent, run.cycles, strict=True)} == {params.latency}
        assert run.cycles == list(range(run.cycles[0], run.cycles[0] + 30 * params.ii, params.ii))


def test_the_reference_by_hand() -> None:
    params = AxiStreamParams(pixels=2, channels=3, lanes=2, bits=4, signed=True)
    assert (params.lane_bits, params.tdata_bits, params.frame_beats) == (8, 16, 4)
    frame = [[[1, -1, 7], [-8, 0, 3]]]
    assert list(params.reference(frame)) == [(0xFF01, False), (0x0007, False), (0x00F8, False), (0x0003, True)]
    wide = AxiStreamParams(pixels=1, channels=2, lanes=2, bits=9, signed=False)
    assert list(wide.reference([[[1, 511]]])) == [(0x01FF_0001, True)]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", range(6))
def test_frames_of_wrong_length(seed: int, profile: str) -> None:
    """Early ends are filled with zeros, late ones cut, and the next frame is whole again; the error stays."""
    rng = random.Random(seed)
    params = AxiStreamParams(pixels=rng.choice((1, 3)), channels=4, lanes=rng.choice((1, 2)), bits=8, signed=False)
    whole = params.frame_beats
    lengths = [whole, *(rng.choice((1, whole - 1, whole, whole + 1, rng.randint(1, 3 * whole))) for _ in range(8)), whole]
    lengths[rng.randint(1, 8)] = rng.choice((whole - 1, whole + 1))  # one at least
    lengths = [max(length, 1) for length in lengths]
    beats: list[tuple[int, bool]] = []
    expected: list[list[int]] = []
    wrong_beat = None
    for length in lengths:
        frame = [[rng.randrange(1, 256) for _ in range(params.lanes)] for _ in range(length)]
        beats += [(params.pack(values), n == length - 1) for n, values in enumerate(frame)]
        if wrong_beat is None and length != whole:
            wrong_beat = len(expected) + min(length, whole) - 1
        expected += (frame + [[0] * params.lanes] * whole)[:whole]
    run, seen = send(params, beats, len(expected), profile)
    assert seen == expected
    assert wrong_beat is not None
    first = run.cycles[wrong_beat] + 2
    assert run.watched == list(range(first, run.watched[-1] + 1))
    assert run.watched[-1] > run.cycles[-1] + 40


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 9])
def test_one_wrong_frame_between_two_right_ones(length: int) -> None:
    params = AxiStreamParams(pixels=4, channels=1, lanes=1, bits=8, signed=False)
    values = [list(range(1, 5)), list(range(11, 11 + length)), list(range(101, 105))]
    beats = [(value, value == frame[-1]) for frame in values for value in frame]
    run, seen = send(params, beats, 12, "none")
    middle = (values[1] + [0] * 4)[:4]
    assert [value for (value,) in seen] == [*values[0], *middle, *values[2]]
    assert run.watched[0] == run.cycles[4 + min(length, 4) - 1] + 2


def test_reset_clears_the_error() -> None:
    params = AxiStreamParams(pixels=2, channels=1, lanes=1, bits=8, signed=False)
    dut = params.create_in()
    reset = Signal()

    async def bench(ctx: Any) -> None:
        async def frame(*values: int) -> list[int]:
            taken = []
            ctx.set(dut.o.ready, 1)
            for n, value in enumerate([*values, None, None, None]):
                ctx.set(dut.i_tvalid, value is not None)
                ctx.set(dut.i_tdata, value or 0)
                ctx.set(dut.i_tlast, n == len(values) - 1)
                if ctx.get(dut.o.valid):
                    taken.append(ctx.get(Value.cast(dut.o.payload)))
                await ctx.tick()
            return taken

        assert await frame(5) == [5, 0]
        assert ctx.get(dut.o_error)
        assert await frame(6, 7) == [6, 7]
        assert ctx.get(dut.o_error)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        assert not ctx.get(dut.o_error)
        assert await frame(8, 9) == [8, 9]
        assert not ctx.get(dut.o_error)

    simulate(ResetInserter(reset)(dut), bench)
