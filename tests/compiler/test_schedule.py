"""The timetable is the hardware's own: every time it states equals the simulated one, cycle for cycle."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator

from convfold.compiler import plan as planner
from convfold.compiler.graph import MaxPool, QConv2D
from convfold.compiler.plan import Plan
from convfold.compiler.schedule import StageParams, Timetable, timetable
from convfold.compiler.targets import get_target
from convfold.hdl.axi_stream import AxiStreamParams
from convfold.hdl.conv import ConvParams
from convfold.hdl.dense import DenseParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.streams import beats
from convfold.hdl.window import WindowParams
from tests.networks import Network, compile_network, random_case

FRAMES = 3


@dataclass(slots=True)
class Seen:
    """Cycles, counted from the first beat in: of every beat in and out, and of the steps of each stage with a window."""

    sent: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)


def hardware(params: StageParams) -> Any:
    """The component, its weights all zero: times do not depend on them."""
    if isinstance(params, ConvParams | DenseParams):
        core = params.conv if isinstance(params, DenseParams) else params
        classes = len(core.class_rows), len(core.class_cols)
        shape = (*classes, core.filters, *core.window.kernel, core.window.channels)
        w, b, m = (np.zeros(size, np.int64) for size in (shape, shape[:3], core.filters))
        return params.create(w, b, m)
    return params.create()


def simulate(
    edge_in: AxiStreamParams, stages: Sequence[StageParams], edge_out: AxiStreamParams, frames: int, limit: int
) -> Seen:
    """Frames back to back through the whole pipeline, both sides always ready."""
    m = Module()
    m.submodules.source = source = edge_in.create_in()
    m.submodules.sink = sink = edge_out.create_out()
    made = [hardware(params) for params in stages]
    for n, stage in enumerate(made):
        m.submodules[f"stage{n}"] = stage
    for before, after in pairwise([source, *made, sink]):
        wiring.connect(m, before.o, after.i)
    engines = [stage for stage in made if hasattr(stage, "o_issue")]
    seen = Seen(steps=[[] for _ in engines])

    async def bench(ctx: Any) -> None:
        await ctx.tick()
        ctx.set(source.i_tvalid, 1)
        ctx.set(sink.i_tready, 1)
        inputs, outputs = frames * edge_in.frame_beats, frames * edge_out.frame_beats
        for cycle in range(limit):
            position = len(seen.sent)
            if position == inputs:
                ctx.set(source.i_tvalid, 0)
            else:
                ctx.set(source.i_tlast, (position + 1) % edge_in.frame_beats == 0)
                if ctx.get(source.o_tready):
                    seen.sent.append(cycle)
            if ctx.get(sink.o_tvalid):
                seen.received.append(cycle)
            for steps, engine in zip(seen.steps, engines, strict=True):
                if ctx.get(engine.o_issue):
                    steps.append(cycle)
            if len(seen.received) == outputs:
                return
            await ctx.tick()
        raise AssertionError(f"{len(seen.received)} of {outputs} outputs after {limit} cycles")

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return seen


def assert_exact(edge_in: AxiStreamParams, stages: Sequence[StageParams], edge_out: AxiStreamParams) -> Timetable:
    times = timetable(edge_in, stages, edge_out, FRAMES)
    seen = simulate(edge_in, stages, edge_out, FRAMES, limit=times.last_out[-1] + 100)
    assert times.first_in == tuple(seen.sent[:: edge_in.frame_beats])
    assert times.last_out == tuple(seen.received[edge_out.frame_beats - 1 :: edge_out.frame_beats])
    engines = [stage for stage in stages if not isinstance(stage, LaneAdapterParams)]
    for engine, starts, steps in zip(engines, times.starts, seen.steps, strict=True):
        core = engine.conv if isinstance(engine, DenseParams) else engine
        issued = [start + 1 + n for start in starts for n in range(core.window.steps)]
        # Steps of the last frame that make none of its outputs (they fill its last pass) may come after it.
        assert issued[: len(steps)] == steps
    return times


# ------------------------------------------------------------------------------------------------------------ one stage


def random_window(rng: random.Random, *, channelwise: bool) -> WindowParams:
    """Any geometry on a small image, with a ring of any legal size."""
    while True:
        kernel = rng.randint(1, 4), rng.randint(1, 4)
        pads = tuple((rng.randint(0, size), rng.randint(0, size)) for size in kernel)
        channels = rng.randint(1, 5)
        parallel = (1, 1) if channelwise else rng.choice([(1, 1), (kernel[0], 1), kernel])
        height, width = rng.randint(1, 7), rng.randint(1, 7)
        try:
            window = WindowParams(
                height=height,
                width=width,
                channels=channels,
                lanes=rng.randint(1, channels),
                bits=8,
                signed=False,
                kernel=kernel,
                stride=(rng.randint(1, 3), rng.randint(1, 3)),
                padding=(pads[0], pads[1]),
                rows=height * parallel[0],
                parallel=parallel,
                channelwise=channelwise,
            )
        except ValueError as error:
            assert re.match(r"kernel must fit into the padded input", str(error))
            continue
        return replace(window, rows=rng.choice([window.min_rows, window.full_rows, window.full_rows + parallel[0]]))


def edges(stage: ConvParams | MaxPoolParams) -> tuple[AxiStreamParams, AxiStreamParams]:
    window = stage.window
    channels, lanes = window.channels, window.lanes
    if isinstance(stage, ConvParams):
        channels, lanes = stage.filters, stage.rows
    return (
        AxiStreamParams(window.height * window.width, window.channels, window.lanes, 8, False),
        AxiStreamParams(window.out_height * window.out_width, channels, lanes, 8, False),
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_convolution(seed: int) -> None:
    rng = random.Random(seed)
    window = random_window(rng, channelwise=False)
    filters = rng.randint(1, 6)
    rows = rng.randint(1, filters)
    words = beats(filters, rows)
    pes = rng.randint(1, min(window.steps, words))
    engine = ConvParams(
        window=replace(window, replays=beats(words, pes)),
        filters=filters,
        rows=rows,
        pes=pes,
        weight_bits=8,
        acc_bits=24,
        out_bits=8,
        out_signed=False,
        shift=24,
        low=0,
        high=255,
    )
    if pes == 1 and window.steps >= replace(engine.requantizer, serial=True).ii:
        engine = replace(engine, serial=rng.choice([True, False]))
    edge_in, edge_out = edges(engine)
    assert_exact(edge_in, [engine], edge_out)


def test_rows_of_one_step() -> None:
    """They take two cycles each: the shortest there are."""
    window = WindowParams(6, 1, 2, 2, 8, False, (1, 1), (1, 1), ((0, 0), (0, 0)), rows=6)
    engine = ConvParams(window, 3, 3, 1, 8, 24, 8, False, 24, 0, 255)
    times = assert_exact(edges(engine)[0], [engine], edges(engine)[1])
    assert times.interval_cycles == 12


@pytest.mark.parametrize("seed", range(6))
def test_a_max_pool(seed: int) -> None:
    engine = MaxPoolParams(random_window(random.Random(100 + seed), channelwise=True))
    edge_in, edge_out = edges(engine)
    assert_exact(edge_in, [engine], edge_out)


# --------------------------------------------------------------------------------------------------------------- chains

CHAINS = (8, 17, 35, 40, 48, 53, 61, 68, 79, 109, 147, 168)


@cache
def chain(seed: int) -> Plan:
    """A random network's pipeline, each layer folded in any of the ways that the planner could choose."""
    case = replace(random_case(seed, most_macs=200), fps=None, target="generic")
    with TemporaryDirectory() as folder:
        graph = case.compile(Path(folder)).integers
    rng = random.Random(seed)
    layers = [node for node in graph.nodes if isinstance(node, QConv2D | MaxPool)]
    choices = {node.name: rng.choice(list(planner._choices(graph, node))) for node in layers}
    return planner._assemble(graph, get_target("generic"), choices)


@pytest.mark.parametrize("seed", CHAINS)
def test_a_chain(seed: int) -> None:
    plan = chain(seed)
    times = assert_exact(plan.edge_in, plan.pipeline, plan.edge_out)
    assert times.latency_cycles == plan.latency_cycles
    assert times.interval_cycles <= plan.interval_cycles


def test_the_chains_hold_what_can_stand_in_one() -> None:
    stages = [params for seed in CHAINS for params in chain(seed).pipeline]
    adapters = [params for params in stages if isinstance(params, LaneAdapterParams)]
    assert any(adapter.in_lanes < adapter.out_lanes for adapter in adapters)
    assert any(adapter.in_lanes > adapter.out_lanes for adapter in adapters)
    assert any(len(stage.adapters) == 2 for seed in CHAINS for stage in chain(seed).stages)
    assert {type(stage) for stage in stages} == {ConvParams, DenseParams, MaxPoolParams, LaneAdapterParams}


# ------------------------------------------------------------------------------------------------------------- interval


def test_frames_may_take_turns(tmp_path: Path) -> None:
    """Two frames share the ring of a dense layer, and not evenly: the interval is that of the slower one."""
    network = Network((2, 3, 7)).dense("scores", 6)
    plan = compile_network(network, tmp_path, fps=2e6).plan
    times = assert_exact(plan.edge_in, plan.pipeline, plan.edge_out)
    gaps = [after - before for before, after in pairwise(times.last_out)]
    assert len(set(gaps)) == 2
    assert times.interval_cycles == plan.interval_cycles == max(gaps)


@pytest.mark.parametrize("seed", range(30))
def test_the_interval_is_that_of_any_number_of_frames(seed: int, tmp_path: Path) -> None:
    plan = replace(random_case(seed, most_macs=500), target="generic").compile(tmp_path).plan
    assert timetable(plan.edge_in, plan.pipeline, plan.edge_out, 25).interval_cycles == plan.interval_cycles


def test_a_pipeline_that_stops_is_an_error(tmp_path: Path) -> None:
    plan = compile_network(Network((3, 3, 1)).conv("edges", 2, (1, 1)), tmp_path).plan
    wrong = replace(plan.edge_out, pixels=10)
    with pytest.raises(RuntimeError, match=r"^the pipeline stops after 36 of 40 beats$"):
        timetable(plan.edge_in, plan.pipeline, wrong, 2)
