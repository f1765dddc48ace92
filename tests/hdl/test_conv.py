"""Convolution stage: bit-exact to the definition under every stall, at its stated pace, and its queue never overflows."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import ResetInserter, Signal, Value

from convfold.hdl.conv import ConvParams
from convfold.hdl.credits import Credits
from convfold.hdl.requantizer import TABLE_CYCLES
from tests.hdl.bench import (
    Bench,
    StreamBench,
    look_inside,
    run_blocked,
    simulate,
    unpack,
)
from tests.hdl.conv_cases import (
    CASES,
    CHOSEN,
    SAME,
    ConvCase,
    ConvStage,
    assert_latency,
    assert_pace,
    drive,
    make_depthwise,
    make_stage,
)


@pytest.mark.parametrize("name", CASES)
def test_frames_back_to_back_under_every_profile(name: str) -> None:
    """... and with the output always taken, the first beat of a pass comes ``latency`` cycles after its last step."""
    stage = make_stage(CASES[name])
    assert_latency(stage, drive(stage, 2)["none"])


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_the_definition(name: str) -> None:
    stage = make_stage(CASES[name])
    for image in stage.random_frames(2):
        beats = list(stage.params.reference(image.tolist(), *stage.constants))
        assert beats == stage.output_beats([image])


def test_the_definition_by_hand() -> None:
    """One filter of ones over a 2×2 image in padding of 5, worked out on paper; halves are rounded up."""
    stage = make_stage(ConvCase((2, 2, 1), 1, (2, 2), padding=((1, 0), (0, 1)), pad_raw=5, bits=8, class_cols=(0, 1)))
    params = replace(stage.params, shift=17, low=-100, high=100, zero_point=-3)
    weights, biases = stage.w_rcohwi * 0 + 1, stage.b_rco * 0
    weights[0, 1] = 2
    biases[0, 1] = -1
    by_hand = ConvStage(params, weights, biases, stage.m_o * 0 + (1 << 16))
    image = stage.random_frames(1)[0]
    image[:, :, 0] = [[1, 2], [3, 4]]
    # sums: 13, 2·(5 + 5 + 2 + 5) − 1 = 33; 10, 2·(2 + 5 + 4 + 5) − 1 = 31; halved, rounded, less 3
    assert by_hand.definition(image)[:, :, 0].tolist() == [[4, 14], [2, 13]]


PACED = {
    name: replace(case, ring=0)
    for name, case in CASES.items()
    for window in [make_stage(replace(case, ring=0)).params.window]
    if window.frame_cycles >= window.pixels * window.beats and window.frame_cycles < 500
} | {
    "10×4 kernel, stride 2": ConvCase((5, 10, 1), 4, (10, 4), (2, 2), ((4, 5), (1, 1)), rows=2, pes=2),
    "10×4 kernel, stride 2, at once": ConvCase((5, 10, 1), 4, (10, 4), (2, 2), ((4, 5), (1, 1)), parallel=(10, 4)),
    "64 channels, pointwise": ConvCase((2, 3, 64), 3, (1, 1), lanes=64, rows=3, bits=2, weight_bits=2),
    "64 channels, pointwise, in passes": ConvCase((2, 2, 64), 8, (1, 1), lanes=16, rows=2, pes=4, bits=2, weight_bits=2),
    "one dimension": ConvCase((12, 1, 4), 6, (5, 1), padding=((2, 2), (0, 0)), lanes=4, rows=3, pes=2, parallel=(1, 1)),
    "one dimension at once": ConvCase((12, 1, 4), 4, (3, 1), padding=((1, 1), (0, 0)), lanes=2, rows=4, parallel=(3, 1)),
}


@pytest.mark.parametrize("name", PACED)
def test_ii_frame_cycles_and_full_utilisation(name: str) -> None:
    assert_pace(make_stage(PACED[name]))


def test_enough_stages_are_paced() -> None:
    assert len(PACED) >= 12
    assert {len(case.class_rows) > 1 for case in PACED.values()} == {True, False}
    assert len({case.requantizer_ii for case in PACED.values()}) >= 4
    assert {case.parallel == (1, 1) for case in PACED.values()} == {True, False}


@pytest.mark.parametrize("name", ["one multiplier", "kernel at once", "dense", "one step a pass"])
@pytest.mark.parametrize("extra", [0, 2])
def test_every_ring_works(name: str, extra: int) -> None:
    case = CHOSEN[name]
    least = make_stage(replace(case, ring=None)).params.window.min_rows
    drive(make_stage(replace(case, ring=least + extra * case.parallel[0])), 2, ["none", "output stalls"])


@pytest.mark.parametrize("name", ["kernel rows at once", "pointwise", "as many elements as steps", "two bits"])
def test_a_shallower_queue_would_cost_cycles(name: str) -> None:
    """The queue's depth is what full utilisation needs, not more: one pass less and issue has gaps."""
    stage = make_stage(replace(CHOSEN[name], ring=0))
    params = stage.params
    in_flight = params.window.steps + params.latency + (params.pes - 1) * params.word_cycles + Credits.RETURN_CYCLES
    assert params.queue.depth_words % params.pes == 0
    passes = params.queue.depth_words // params.pes
    assert (passes - 1) * params.window.steps < in_flight <= passes * params.window.steps


@pytest.mark.parametrize(
    "name", ["one multiplier", "kernel rows at once", "pointwise", "more elements than the last pass needs", "one step a pass"]
)
def test_an_output_that_waits_long(name: str) -> None:
    """The stage fills its queue until no pass fits in, stops, and goes on as if nothing had happened."""
    stage = make_stage(CHOSEN[name])
    params = stage.params
    images = stage.random_frames(2)
    expected = stage.output_beats(images)
    beats = stage.beats(images)
    dut = stage.create()
    patience = params.window.out_width * params.ii + params.latency + params.pes
    stored, payloads = run_blocked(dut, look_inside(dut).queue, beats, len(expected), patience)
    assert params.queue.depth_words - params.pes < stored <= params.queue.depth_words
    seen = [unpack(payload, params.out_bits, params.out_signed, params.rows) for payload in payloads]
    assert [values[: len(part)] for values, part in zip(seen, expected, strict=True)] == expected


@pytest.mark.parametrize("name", ["slow requantizer", "kernel at once", "classes", "dense, two frames in the ring"])
def test_a_reset_forgets_everything(name: str) -> None:
    """Wherever it comes in a frame, one cycle of it; only memories and data keep what they held."""
    stage = make_stage(CHOSEN[name])
    images = stage.random_frames(1)
    expected = stage.output_beats(images)
    dut = stage.create()
    reset = Signal()

    def bench(cycles: int) -> Bench:
        async def run(ctx: Any) -> None:
            ctx.set(dut.i.valid, 1)
            for n in range(cycles):
                ctx.set(Value.cast(dut.i.payload), random.getrandbits(8))
                ctx.set(dut.o.ready, n % 3 == 0)
                await ctx.tick()
            ctx.set(reset, 1)
            await ctx.tick()
            ctx.set(reset, 0)
            await stream(ctx)
            seen = [unpack(p, stage.params.out_bits, stage.params.out_signed, stage.params.rows) for p in stream.run.payloads]
            assert [values[: len(part)] for values, part in zip(seen, expected, strict=True)] == expected

        stream = StreamBench(dut, stage.beats(images), len(expected))
        return run

    simulate(ResetInserter(reset)(dut), *(bench(cycles) for cycles in (17, 60, 111)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": make_depthwise(CHOSEN["dilated"]).params.window}, r"^window must not be channelwise$"),
        ({"filters": 9}, r"^window\.replays must be 9, not 3$"),
        ({"pes": 19, "filters": 57}, r"^pes must be at most the 18 steps of a pass, not 19$"),
        ({"requantizer_ii": 7, "pes": 3, "filters": 9}, r"^pes must be at most the 18 steps of a pass / 7, not 3$"),
    ],
)
def test_what_is_refused(change: Mapping[str, Any], message: str) -> None:
    stage = make_stage(CHOSEN["one multiplier"])
    with pytest.raises(ValueError, match=message):
        replace(stage.params, **change)


@pytest.mark.parametrize(("filters", "rows", "pes"), [(7, 2, 1), (10, 3, 1), (6, 1, 4)])
def test_passes_belong_to_one_group(filters: int, rows: int, pes: int) -> None:
    message = rf"^filters must be made {rows * pes} at once in each of 2 groups, not {filters}$"
    with pytest.raises(ValueError, match=message):
        make_stage(ConvCase((4, 4, 4), filters, (3, 3), rows=rows, pes=pes, groups=2))


def test_weights_must_be_given() -> None:
    stage = make_stage(CHOSEN["smallest"])
    with pytest.raises(TypeError, match=r"^weights must be given$"):
        stage.params.create(None, stage.b_rco, stage.m_o)


def test_a_slow_requantizer_needs_long_passes() -> None:
    with pytest.raises(ValueError, match=r"^pes must be at most the 9 steps of a pass / 10, not 1$"):
        make_stage(ConvCase((4, 4, 1), 3, (3, 3), padding=SAME, requantizer_ii=10))


def test_no_sum_comes_before_its_constants() -> None:
    """Even without the rows' latency, and the time that the input takes."""
    assert min(make_stage(case).params.window.latency for case in CHOSEN.values()) > TABLE_CYCLES


def test_counts() -> None:
    params: ConvParams = make_stage(CHOSEN["kernel at once"]).params
    assert (params.words, params.passes, params.multipliers) == (3, 1, 2 * 3 * 9)


def test_fillers_have_constants_of_a_channel() -> None:
    """Offsets far from 0 in tables of few bits: 0 would not fit."""
    stage = make_stage(ConvCase((3, 3, 2), 5, (2, 2), rows=2, pes=1, split=True))
    params = replace(stage.params, shift=20, offset_bits=10)
    half = 1 << 19
    offsets = np.arange(5) + half
    assert params.constants_of(offsets).tolist() == [[half, half + 2, half + 4], [half + 1, half + 3, half + 4]]
    w, b, m, _, _ = stage.constants
    rtlil.convert(params.create(w, b, m, offsets, offsets))


def test_hard_multipliers_are_counted_row_by_row() -> None:
    params = replace(make_stage(ConvCase((4, 4, 4), 6, (3, 3), rows=2, pes=3, lanes=4)).params, multiplier="ecp5")
    hard = replace(params, hard=13 + 4)
    assert params.multipliers == 24
    assert [hard.mac_row_of(row).hard for row in range(2)] == [12, 5]
    assert [[hard.mac_row_of(row).dot_of(e).hard for e in range(3)] for row in range(2)] == [[4, 4, 4], [4, 1, 0]]
    kinds = [hard.mac_row_of(1).dot_of(1).multiplier_params(tap).kind for tap in range(4)]
    assert kinds == ["ecp5", *["ecp5_fabric"] * 3]


def test_weights_in_blocks_are_counted_row_by_row() -> None:
    params = replace(make_stage(ConvCase((4, 4, 4), 6, (3, 3), rows=2, pes=3, lanes=4)).params, memory="ecp5")
    some = replace(params, block_roms=4)
    in_blocks = [[some.mac_row_of(row).rom_of(e).in_blocks for e in range(3)] for row in range(2)]
    assert in_blocks == [[True] * 3, [True, False, False]]
    with pytest.raises(ValueError, match=r"^block_roms must be 0 to 6 in ecp5 memory, not 7$"):
        replace(params, block_roms=7)
    with pytest.raises(ValueError, match=r"^block_roms must be 0 to 0 in behavioural memory, not 1$"):
        replace(params, memory="behavioural", block_roms=1)


@pytest.mark.parametrize(("multiplier", "hard", "most"), [("ecp5", 2, 1), ("ecp5", -1, 1), ("behavioural", 1, 0)])
def test_no_more_hard_multipliers_than_there_are(multiplier: str, hard: int, most: int) -> None:
    with pytest.raises(ValueError, match=rf"^hard must be 0 to {most} {multiplier} multipliers, not {hard}$"):
        replace(make_stage(CHOSEN["one multiplier"]).params, multiplier=multiplier, hard=hard)
