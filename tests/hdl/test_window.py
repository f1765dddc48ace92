"""Window: every sample of every step, its schedule, its pace, and that no slot is overwritten while it is read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Value

from convfold.hdl.window import WindowParams
from tests.hdl.bench import Bench, look_inside, pack, simulate, unpack

Frame = list[list[list[int]]]


def window(
    size: tuple[int, int, int] = (5, 6, 3),
    lanes: int = 2,
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    rows: int | None = None,
    parallel: tuple[int, int] = (1, 1),
    bits: int = 8,
    signed: bool = False,
    replays: int = 1,
    channelwise: bool = False,
    pad_raw: int = 0,
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> WindowParams:
    """A window with the smallest ring, unless ``rows`` names one (0: ``full_rows``)."""
    generous = (size[0] + sum(padding[0])) * parallel[0] + kernel[0]
    params = WindowParams(
        *size, lanes, bits, signed, kernel, stride, padding, generous * parallel[0], replays, parallel, channelwise, pad_raw,
        dilation=dilation, groups=groups,
    )  # fmt: skip
    return replace(params, rows=params.min_rows if rows is None else rows or params.full_rows)


SAME = ((1, 1), (1, 1))
CASES = {
    "valid": window(),
    "same": window(padding=SAME, pad_raw=-7, signed=True),
    "same, replayed": window((3, 4, 3), padding=SAME, replays=3),
    "rows at once": window(padding=SAME, parallel=(3, 1), replays=2),
    "all at once": window(padding=SAME, parallel=(3, 3), pad_raw=255),
    "all at once, odd strides": window((7, 8, 2), 1, stride=(2, 2), padding=((0, 1), (1, 1)), parallel=(3, 3)),
    "rows at once, tall": window((9, 3, 3), 3, (4, 2), (3, 1), ((2, 1), (0, 1)), parallel=(4, 1)),
    "even kernel, all at once": window((5, 7, 2), 2, (2, 4), (1, 3), ((1, 0), (2, 3)), parallel=(2, 4)),
    "stride beyond kernel": window((8, 7, 2), 2, (2, 2), (3, 3)),
    "stride beyond kernel, all at once": window((8, 7, 2), 2, (2, 2), (3, 3), parallel=(2, 2)),
    "unread rows below": window((9, 4, 1), 1, (2, 2), (4, 2)),
    "padding beyond the kernel": window((2, 3, 2), 1, (2, 2), (1, 1), ((3, 4), (5, 2)), pad_raw=9),
    "padding beyond the kernel, all at once": window((2, 3, 2), 1, (2, 2), (1, 1), ((3, 4), (5, 2)), parallel=(2, 2)),
    "padding far beyond the image": window((1, 1, 1), 1, (2, 3), (2, 2), ((4, 5), (7, 6)), parallel=(2, 3), pad_raw=3),
    "one pixel": window((1, 1, 4), 4, (1, 1)),
    "one column": window((6, 1, 3), 2, (3, 1), padding=((1, 1), (0, 0)), parallel=(3, 1)),
    "one row": window((1, 9, 2), 1, (1, 3), (1, 2), ((0, 0), (1, 1)), parallel=(1, 3)),
    "kernel as large as the image": window((4, 3, 2), 2, (4, 3), replays=2),
    "kernel as large as the image, all at once": window((4, 3, 2), 2, (4, 3), parallel=(4, 3)),
    "sixteen bits": window((3, 3, 5), 2, (2, 2), bits=16, signed=True),
    "two bits": window((4, 4, 5), 4, padding=SAME, bits=2, parallel=(3, 1)),
    "pooling": window((6, 6, 3), 2, (2, 2), (2, 2), channelwise=True),
    "pooling, overlapping": window((6, 5, 5), 2, (3, 3), (2, 2), SAME, channelwise=True, pad_raw=-128, signed=True),
    "pooling, stride beyond kernel": window((7, 7, 3), 1, (2, 1), (3, 2), channelwise=True),
    "depthwise, all at once": window((5, 6, 5), 2, padding=SAME, parallel=(3, 3), channelwise=True, pad_raw=7),
    "depthwise, all at once, strides": window((7, 8, 3), 1, (3, 2), (2, 3), SAME, parallel=(3, 2), channelwise=True),
    "depthwise, rows at once": window((6, 5, 4), 2, (3, 3), (2, 2), SAME, parallel=(3, 1), channelwise=True),
    "dilated": window((5, 6, 3), padding=((2, 1), (3, 2)), dilation=(2, 3), pad_raw=-3, signed=True),
    "dilated, strides": window((8, 9, 2), 1, (2, 3), (2, 3), ((1, 3), (0, 4)), dilation=(3, 2)),
    "dilated columns, rows at once": window((5, 9, 3), 2, (3, 3), (2, 1), SAME, parallel=(3, 1), dilation=(1, 2)),
    "dilated columns of one row at once": window((2, 9, 2), 1, (1, 3), (1, 2), parallel=(1, 3), dilation=(4, 1)),
    "dilated pooling": window((7, 7, 5), 2, (3, 2), (2, 1), SAME, dilation=(2, 3), channelwise=True),
    "dilated and causal in one dimension": window((9, 1, 2), 1, (3, 1), padding=((8, 0), (0, 0)), dilation=(4, 1)),
    "groups": window((3, 3, 6), 1, (3, 2), padding=SAME, replays=3, groups=3, pad_raw=5),
    "groups, replayed": window((4, 4, 8), 2, (2, 2), (2, 2), replays=4, groups=2),
    "groups, rows at once": window((4, 3, 4), 2, (3, 2), padding=SAME, replays=4, groups=2, parallel=(3, 1)),
    "groups, all at once": window((5, 7, 4), 1, (2, 3), (1, 2), SAME, replays=4, groups=2, parallel=(2, 3)),
    "groups of one beat, dilated": window((6, 6, 3), 1, (2, 3), replays=6, groups=3, dilation=(3, 2)),
    "groups, pointwise": window((3, 3, 6), 2, (1, 1), replays=3, groups=3),
    "large ring": window(padding=SAME, rows=11),
    "large ring, all at once": window(padding=SAME, rows=9, parallel=(3, 3)),
}
GROUND = [name for name, params in CASES.items() if params.padding == ((0, 0), (0, 0))]


@dataclass(slots=True)
class Seen:
    """What a window did: cycles of accepted beats and of starts, ``(cycle, first, last, pixel)`` of every step."""

    sent: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    steps: list[tuple[int, bool, bool, bool]] = field(default_factory=list)
    taps: list[int] = field(default_factory=list)
    conflicts: list[int] = field(default_factory=list)


def random_frames(params: WindowParams, count: int) -> list[Frame]:
    low = -(1 << params.bits - 1) if params.signed else 0
    shape = (params.height, params.width, params.channels)
    rng = np.random.default_rng(count)
    return [rng.integers(low, low + (1 << params.bits), shape).tolist() for _ in range(count)]


def beats_of(params: WindowParams, frames: Sequence[Frame]) -> list[int]:
    """Lanes beyond the last channel hold zeros, as in the reference."""
    pixels = [pixel for frame in frames for row in frame for pixel in row]
    return [pack(pixel[n : n + params.lanes], params.bits) for pixel in pixels for n in range(0, params.channels, params.lanes)]


def drive(params: WindowParams, beats: list[int], steps: int, *hindrances: tuple[float, float]) -> list[Seen]:
    """Send beats with gaps, refuse grants at random, and stop after ``steps`` steps and some cycles more.

    Once for each hindrance, ``(share of gaps, share of refusals)``. A conflict is a cycle in which a bank writes the
    word it reads for a step: undefined in the silicon.
    """
    dut = params.create()
    inside = look_inside(dut)
    banks = [getattr(inside, f"bank_{r}_{c}") for r in range(params.parallel[0]) for c in range(params.parallel[1])]
    conflict = Value.cast(0)
    for bank in banks:
        conflict = conflict | (bank.i_write_en & (bank.i_write_addr == bank.i_addr))
    runs = [Seen() for _ in hindrances or [None]]

    async def run(ctx: Any, seen: Seen, gaps: float, refusals: float) -> None:
        left = list(reversed(beats))
        offered = False
        extra = 60
        issued: list[bool] = []
        for cycle in range(30_000):
            if left and not offered and random.random() >= gaps:
                ctx.set(Value.cast(dut.i.payload), left[-1])
                offered = True
            ctx.set(dut.i.valid, offered)
            grant = random.random() >= refusals
            ctx.set(dut.i_grant, grant)
            if offered and ctx.get(dut.i.ready):
                seen.sent.append(cycle)
                left.pop()
                offered = False
            if ctx.get(dut.o_start):
                assert grant, "a pass may start only when it is granted"
                seen.starts.append(cycle)
            step = ctx.get(dut.o_step)
            issued.append(bool(step.valid))
            if step.valid:
                seen.steps.append((cycle, bool(step.first), bool(step.last), bool(step.pixel)))
            seen.taps.append(int(ctx.get(Value.cast(dut.o_taps))))
            if cycle >= 2 and issued[cycle - 2] and ctx.get(conflict):
                seen.conflicts.append(cycle)
            extra -= len(seen.steps) >= steps
            if not extra:
                return
            await ctx.tick()
        raise AssertionError(f"{len(seen.steps)} of {steps} steps after {cycle + 1} cycles")

    def bench(seen: Seen, gaps: float, refusals: float) -> Bench:
        return lambda ctx: run(ctx, seen, gaps, refusals)

    plan = zip(runs, hindrances or [(0.0, 0.0)], strict=True)
    simulate(dut, *(bench(seen, gaps, refusals) for seen, (gaps, refusals) in plan))
    for seen in runs:
        assert len(seen.steps) == steps, f"{len(seen.steps)} steps instead of {steps}"
    return runs


def check(params: WindowParams, seen: Seen, frames: Sequence[Frame]) -> None:
    """Samples, flags and the order of steps are those of the reference, samples ``latency`` cycles after their step."""
    expected = [step for frame in frames for step in params.reference(frame)]
    assert [step[1:] for step in seen.steps] == [step[1:] for step in expected]
    samples = [pack(step[0], params.bits) for step in expected]
    assert [seen.taps[cycle + params.latency] for cycle, *_ in seen.steps] == samples
    firsts = [cycle for cycle, first, *_ in seen.steps if first]
    assert seen.starts[: len(firsts)] == [cycle - 1 for cycle in firsts]
    for n, (cycle, first, *_) in enumerate(seen.steps):
        assert first or cycle == seen.steps[n - 1][0] + 1, "the steps of a pass are consecutive"


@pytest.mark.parametrize("name", CASES)
def test_every_sample_and_latency(name: str) -> None:
    """Under every hindrance; and over all of them, ``latency`` is the last lag that fits."""
    params = CASES[name]
    frames = random_frames(params, 2)
    runs = drive(params, beats_of(params, frames), 2 * params.frame_cycles, (0.0, 0.0), (0.6, 0.0), (0.2, 0.6))
    samples = [pack(step[0], params.bits) for frame in frames for step in params.reference(frame)]
    lags = set(range(12))
    for seen in runs:
        check(params, seen, frames)
        assert params.padding != ((0, 0), (0, 0)) or seen.conflicts == []
        lags = {lag for lag in lags if [seen.taps[cycle + lag] for cycle, *_ in seen.steps] == samples}
    still = params.frame_cycles == 1  # one step a frame: its samples stay where they are until the next
    assert params.latency in lags and (still or max(lags) == params.latency)


@pytest.mark.parametrize("name", GROUND)
def test_no_slot_is_written_while_it_is_read(name: str) -> None:
    """With a writer that never pauses, in rings from the smallest on; a reader that pauses lets the writer catch up."""
    for extra in range(2):
        params = replace(CASES[name], rows=CASES[name].min_rows + extra * CASES[name].parallel[0])
        frames = random_frames(params, 3)
        for seen in drive(params, beats_of(params, frames), 3 * params.frame_cycles, (0.0, 0.0), (0.0, 0.5)):
            assert seen.conflicts == []


PACED = {
    "a step a beat": window((4, 3, 4), 4, (1, 1)),
    "serial": window((6, 6, 2), 1, padding=SAME),
    "rows at once": window((6, 6, 2), 1, padding=SAME, parallel=(3, 1), replays=2),
    "all at once": window((6, 6, 2), 1, padding=SAME, parallel=(3, 3), replays=3),
    "as fast as its input": window((5, 7, 3), 1, padding=SAME, parallel=(3, 3)),
    "without padding": window((6, 6, 2), 1),
    "without padding, all at once": window((6, 6, 2), 1, parallel=(3, 3), replays=3),
    "replayed pooling": window((7, 6, 2), 2, (2, 2), (2, 2), replays=5),
    "unread rows": window((9, 4, 1), 1, (2, 2), (4, 2), replays=7),
    "unread columns": window((4, 9, 1), 1, (2, 2), (2, 4), replays=8),
    "far below the image": window((5, 4, 2), 2, (3, 3), (1, 1), ((4, 3), (1, 1))),
    "the whole image": window((4, 3, 2), 2, (4, 3), replays=3),
    "the whole image, channel by channel": window((4, 3, 2), 2, (4, 3), channelwise=True),
    "strides": window((6, 6, 3), 1, (3, 3), (2, 2), SAME, channelwise=True),
    "one pixel, many frames of padding": window((3, 2, 1), 1, (1, 1), (1, 1), ((0, 3), (0, 0)), replays=3),
    "rows of one step": window((1, 1, 1), 1, (1, 1), padding=((0, 7), (0, 0))),
    "one step a frame": window((1, 1, 1), 1, (1, 1)),
    "depthwise, a step a beat": window((6, 4, 2), 1, padding=SAME, parallel=(3, 3), channelwise=True),
    "depthwise, a step a pixel": window((6, 4, 2), 2, padding=SAME, parallel=(3, 3), channelwise=True),
    "pooling, a step a beat": window((4, 6, 2), 2, (2, 2), (2, 2), channelwise=True),
    "one column": window((9, 1, 2), 2, (3, 1), (1, 1), ((1, 1), (0, 0)), parallel=(3, 1)),
    "one column, far strides": window((9, 1, 1), 1, (3, 1), (2, 1)),
    "rows that claim nothing": window((3, 4, 1), 1, (1, 1), (3, 1), ((0, 3), (0, 0))),
    "a frame a row": window((2, 1, 2), 2, (4, 3), (3, 2), ((2, 0), (3, 3)), parallel=(4, 3), channelwise=True),
    "slower than its input in some rows": window((5, 3, 1), 1, (2, 3), (1, 2), ((0, 4), (0, 0)), parallel=(2, 3)),
    "input bound": window((6, 5, 3), 1, (2, 2), (2, 2), parallel=(2, 2), channelwise=True),
    "dilated": window((7, 6, 1), 1, padding=((2, 2), (2, 2)), dilation=(2, 2), replays=2),
}


def settled(params: WindowParams) -> tuple[Seen, list[int]]:
    """A run of 8 frames without a pause, and the cycle in which each of them opens."""
    frames = random_frames(params, 8)
    [seen] = drive(params, beats_of(params, frames), 8 * params.frame_cycles)
    check(params, seen, frames)
    per_frame = params.out_height * params.out_width
    return seen, [cycle for cycle, *_, pixel in seen.steps if pixel][::per_frame]


@pytest.mark.parametrize("name", PACED)
def test_ii_and_frame_cycles(name: str) -> None:
    """Once the ring has filled, frames follow as fast as their steps or the input allow, and not one cycle is lost."""
    params = replace(PACED[name], rows=PACED[name].full_rows)
    in_beats = params.pixels * params.beats
    seen, opened = settled(params)
    assert opened[-1] - opened[-5] == 4 * max(params.frame_cycles, in_beats)
    if params.frame_cycles >= in_beats:
        cycles = [cycle for cycle, *_ in seen.steps[-4 * params.frame_cycles :]]
        assert cycles == list(range(cycles[0], cycles[0] + 4 * params.frame_cycles))


@pytest.mark.parametrize(
    ("name", "less"),
    [
        ("a step a beat", 1), ("without padding", 2), ("without padding, all at once", 3), ("replayed pooling", 1),
        ("unread rows", 2), ("unread columns", 1), ("the whole image, channel by channel", 1),
    ],
)  # fmt: skip
def test_a_smaller_ring_loses_cycles(name: str, less: int) -> None:
    params = replace(PACED[name], rows=PACED[name].full_rows - less)
    _seen, opened = settled(params)
    assert opened[-1] - opened[-5] > 4 * max(params.frame_cycles, params.pixels * params.beats)


@pytest.mark.parametrize("name", CASES)
def test_an_output_pixel_starts_three_cycles_after_its_input(name: str) -> None:
    """... if it has waited for it."""
    params = CASES[name]
    [seen] = drive(params, beats_of(params, random_frames(params, 1)), params.frame_cycles, (0.9, 0.0))
    opened = [cycle for cycle, *_, pixel in seen.steps if pixel]
    arrived = [seen.sent[reach * params.beats - 1] for reach in reaches(params)]
    idle = [0, *(cycle + params.ii for cycle in opened)]
    assert opened == [max(came + 3, free) for came, free in zip(arrived, idle, strict=False)]


def reaches(params: WindowParams) -> list[int]:
    """How many pixels of a frame each output pixel, or one before it, reaches: counted tap by tap."""
    most, counts = 1, []
    for i in range(params.out_height):
        for j in range(params.out_width):
            rows = [i * params.stride[0] + u * params.dilation[0] - params.padding[0][0] for u in range(params.kernel[0])]
            cols = [j * params.stride[1] + v * params.dilation[1] - params.padding[1][0] for v in range(params.kernel[1])]
            row, col = (min(max([0, *at]), size - 1) for at, size in ((rows, params.height), (cols, params.width)))
            most = max(most, row * params.width + col + 1)
            counts.append(most)
    return counts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parallel": (1, 3)}, r"^parallel must be \(1, 1\), \(kh, 1\) or \(kh, kw\), not \(1, 3\)$"),
        ({"lanes": 4}, r"^lanes must be 1 to 3, not 4$"),
        ({"lanes": 0}, r"^lanes must be 1 to 3, not 0$"),
        ({"channelwise": True, "replays": 2}, r"^replays must be 1 for a channelwise window, not 2$"),
        ({"rows": 2}, r"^rows must be a multiple of 1 from 3 on, not 2$"),
        ({"rows": 4, "parallel": (3, 3)}, r"^rows must be a multiple of 3 from 3 on, not 4$"),
        ({"dilation": (1, 2), "parallel": (3, 3)}, r"^dilation must be 1 where the kernel is parallel, not \(1, 2\)$"),
        ({"dilation": (2, 1), "parallel": (3, 1)}, r"^dilation must be 1 where the kernel is parallel, not \(2, 1\)$"),
        ({"groups": 3, "channelwise": True}, r"^groups must be 1 for a channelwise window, not 3$"),
        ({"groups": 3}, r"^groups must divide replays, and channels into whole beats, not 3$"),
        ({"groups": 3, "replays": 3}, r"^groups must divide replays, and channels into whole beats, not 3$"),
        ({"dilation": (1, 4)}, r"^kernel must fit into the padded input, not \(3, 3\)$"),
        ({"kernel": (3, 7), "padding": ((0, 0), (0, 0))}, r"^kernel must fit into the padded input, not \(3, 7\)$"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CASES["same"], **change)


def test_the_reference_by_hand() -> None:
    """A 2×2 image under a 2×1 kernel, one row of padding above: the numbers were worked out on paper."""
    params = window((2, 2, 3), 2, (2, 1), padding=((1, 0), (0, 0)), pad_raw=9, parallel=(2, 1), replays=2)
    frame = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 10], [11, 12, 13]]]
    one_pass = [
        [[9, 9, 1, 2], [9, 9, 3, 0]],
        [[9, 9, 4, 5], [9, 9, 6, 0]],
        [[1, 2, 7, 8], [3, 0, 10, 0]],
        [[4, 5, 11, 12], [6, 0, 13, 0]],
    ]
    flags = [(True, False, True), (False, True, False), (True, False, False), (False, True, False)]
    expected = [(samples, *flag) for pixel in one_pass for samples, flag in zip(pixel * 2, flags, strict=True)]
    assert list(params.reference(frame)) == expected
    grouped = replace(params, channels=2, lanes=1, replays=4, groups=2, parallel=(1, 1))
    samples = [step[0] for step in grouped.reference([[pixel[:2] for pixel in row] for row in frame])]
    assert samples[:8] == [[9], [1], [9], [1], [9], [2], [9], [2]]
    dilated = replace(params, padding=((1, 1), (0, 0)), dilation=(2, 1), parallel=(1, 1), replays=1, lanes=3)
    assert [step[0] for step in dilated.reference(frame)][:4] == [[9, 9, 9], [7, 8, 10], [9, 9, 9], [11, 12, 13]]
    pooling = replace(params, parallel=(1, 1), replays=1, channelwise=True)
    first = [step[0] for step in pooling.reference(frame)][:4]
    assert first == [[9, 9], [1, 2], [9, 9], [3, 0]]
    assert unpack(pack([1, -2, 3], 4), 4, True, 3) == [1, -2, 3]
