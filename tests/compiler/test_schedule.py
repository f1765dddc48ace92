"""The timetable is the hardware's own: every time it states equals the simulated one, cycle for cycle."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from convfold.compiler.foldings import Foldings
from convfold.compiler.plan import FILL, Plan, Planner, Wish
from convfold.compiler.schedule import SOURCE, Component, Timetable, timetable
from convfold.compiler.targets import get_target
from convfold.hdl.add import AddParams
from convfold.hdl.argmax import ArgMaxParams
from convfold.hdl.axi_stream import AxiStreamParams
from convfold.hdl.buffer import BufferParams
from convfold.hdl.concat import ConcatParams
from convfold.hdl.conv import ConvParams
from convfold.hdl.crop import CropParams
from convfold.hdl.dense import DenseParams
from convfold.hdl.depthwise import DepthwiseParams
from convfold.hdl.fork import ForkParams
from convfold.hdl.global_pool import GlobalPoolParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.lookup import LookupParams
from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.pad import PadParams
from convfold.hdl.product import ProductParams
from convfold.hdl.reorder import ReorderParams
from convfold.hdl.streams import beats
from convfold.hdl.window import WindowParams
from tests.compiler.pipelines import BITS, Draft, random_pipeline, simulate
from tests.networks import Network, compile_network, random_case

FRAMES = 3
Outputs = Sequence[tuple[str, AxiStreamParams]]


def assert_exact(edge_in: AxiStreamParams, components: Sequence[Component], outputs: Outputs) -> Timetable:
    times = timetable(edge_in, components, outputs, FRAMES)
    seen = simulate(edge_in, components, outputs, FRAMES, limit=times.last_out[-1] + 100)
    edges = [edge for _port, edge in outputs]
    assert [len(received) for received in seen.received] == [FRAMES * edge.frame_beats for edge in edges]
    last = [beats[edge.frame_beats - 1 :: edge.frame_beats] for beats, edge in zip(seen.received, edges, strict=True)]
    assert times.first_in == tuple(seen.sent[:: edge_in.frame_beats])
    assert times.last_out == tuple(map(max, zip(*last, strict=True)))
    windows = {component.name: steps_of(component.params) for component in components if component.name in seen.steps}
    assert set(times.starts) == set(windows)
    for name, steps in seen.steps.items():
        issued = [start + 1 + n for start in times.starts[name] for n in range(windows[name])]
        # Steps of the last frame that make none of its outputs (they fill its last pass) may come after it.
        assert issued[: len(steps)] == steps
    return times


def steps_of(params: Any) -> int:
    """Steps a pass."""
    core = params.conv if isinstance(params, DenseParams) else params
    steps: int = core.window.steps
    return steps


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


def assert_stage_is_exact(stage: ConvParams | MaxPoolParams) -> Timetable:
    window = stage.window
    channels, lanes = window.channels, window.lanes
    if isinstance(stage, ConvParams):
        channels, lanes = stage.filters, stage.rows
    edge_in = AxiStreamParams(window.height * window.width, window.channels, window.lanes, 8, False)
    edge_out = AxiStreamParams(window.out_height * window.out_width, channels, lanes, 8, False)
    return assert_exact(edge_in, [Component("stage", stage, (SOURCE,))], [("stage", edge_out)])


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
    engine = replace(engine, requantizer_ii=rng.randint(1, window.steps // pes))
    assert_stage_is_exact(engine)


def test_rows_of_one_step() -> None:
    """They take one cycle each: the shortest there are."""
    window = WindowParams(6, 1, 2, 2, 8, False, (1, 1), (1, 1), ((0, 0), (0, 0)), rows=6)
    engine = ConvParams(window, 3, 3, 1, 8, 24, 8, False, 24, 0, 255)
    assert assert_stage_is_exact(engine).interval_cycles == 6


@pytest.mark.parametrize("seed", range(6))
def test_a_max_pool(seed: int) -> None:
    assert_stage_is_exact(MaxPoolParams(random_window(random.Random(100 + seed), channelwise=True)))


# --------------------------------------------------------------------------------------------------------------- graphs


SIZED = (0, 1, 3, 8, 18, 37, 47)
SMALL = (6, 13, 14, 33, 44, 49, 50, 56)


def with_depths(draft: Draft, depths: Mapping[str, int]) -> list[Component]:
    """The components, the buffers among them as deep as given."""
    return [
        replace(component, params=replace(component.params, depth_words=depths[component.name]))
        if isinstance(component.params, BufferParams)
        else component
        for component in draft.components
    ]


@pytest.mark.parametrize("seed", SIZED)
def test_a_graph(seed: int) -> None:
    """With queues as deep as the timetable says, it is exact, and not slower than with endless ones."""
    edge_in, draft = random_pipeline(seed)
    endless = timetable(edge_in, draft.components, draft.outputs, FRAMES, unbounded=True)
    depths = {name: max(depth, 2) for name, depth in endless.occupancy.items()}
    times = assert_exact(edge_in, with_depths(draft, depths), draft.outputs)
    assert all(before >= after for before, after in zip(endless.last_out, times.last_out, strict=True))


@pytest.mark.parametrize("seed", SMALL)
def test_a_graph_with_small_queues(seed: int) -> None:
    """It is exact too, also in where it stops: the hardware does at that very beat, and in the first frame."""
    edge_in, draft = random_pipeline(seed)
    endless = timetable(edge_in, draft.components, draft.outputs, FRAMES, unbounded=True)
    components = with_depths(draft, dict.fromkeys(endless.occupancy, 2))
    try:
        timetable(edge_in, components, draft.outputs, FRAMES)
    except RuntimeError as error:
        stopped = re.match(r"the pipeline stops after (\d+) of \d+ beats: .* wait for ever$", str(error))
        assert stopped
        seen = simulate(edge_in, components, draft.outputs, FRAMES, limit=2 * endless.last_out[-1] + 500)
        assert sum(map(len, seen.received)) == int(stopped[1])
        with pytest.raises(RuntimeError, match=r" wait for ever$"):
            timetable(edge_in, components, draft.outputs, 1)
    else:
        assert_exact(edge_in, components, draft.outputs)


def test_the_graphs_hold_what_can_stand_in_one() -> None:
    drafts = [random_pipeline(seed)[1] for seed in {*SIZED, *SMALL}]
    assert {type(component.params) for draft in drafts for component in draft.components} == {
        AddParams, ArgMaxParams, BufferParams, ConcatParams, ConvParams, CropParams, DenseParams, DepthwiseParams, ForkParams,
        GlobalPoolParams, LaneAdapterParams, LookupParams, MaxPoolParams, PadParams, ProductParams, ReorderParams,
    }  # fmt: skip
    assert any(len(draft.outputs) == 2 for draft in drafts)
    joins = (AddParams, ProductParams, ConcatParams)
    assert any(sum(isinstance(component.params, joins) for component in draft.components) == 2 for draft in drafts)


@pytest.mark.parametrize("seed", [14, 50])
def test_what_ends_once_ends_under_any_stalls(seed: int) -> None:
    """Queues that let one frame pass let any number pass, whoever pauses."""
    edge_in, draft = random_pipeline(seed)
    one = timetable(edge_in, draft.components, draft.outputs, 1, unbounded=True)
    components = with_depths(draft, {name: max(depth, 2) for name, depth in one.occupancy.items()})
    frames = 6
    seen = simulate(edge_in, components, draft.outputs, frames, 20_000, stalls=random.Random(seed))
    assert [len(received) for received in seen.received] == [frames * edge.frame_beats for _port, edge in draft.outputs]


def residual(depth_words: int) -> tuple[AxiStreamParams, list[Component], Outputs]:
    """A convolution over 6×8 pixels of four beats, and its input added again."""
    window = WindowParams(6, 8, 4, 1, BITS, False, (3, 3), (1, 1), ((1, 1), (1, 1)), rows=4, parallel=(1, 1), replays=4)
    scale: dict[str, Any] = {"m": 1, "positive": 0, "negative": 0, "shift": 0, "low": 0, "high": 15, "zero_point": 0}
    adder = AddParams(1, BITS, False, BITS, False, 6, **scale, out_bits=BITS, out_signed=False)
    components = [
        Component("fork", ForkParams(BITS, False, 1, 2), (SOURCE,)),
        Component("conv", ConvParams(window, 4, 1, 1, 4, 12, BITS, False, 12, 0, 15), ("fork.0",)),
        Component("queue", BufferParams(BITS, False, 1, depth_words), ("fork.1",)),
        Component("sum", adder, ("conv", "queue")),
    ]
    edge = AxiStreamParams(48, 4, 1, BITS, False)
    return edge, components, [("sum", edge)]


def test_occupancy_is_the_least_depth_that_changes_nothing() -> None:
    endless = timetable(*residual(64), FRAMES, unbounded=True)
    depth = endless.occupancy["queue"]
    assert depth > 64  # so that it is made alike
    assert timetable(*residual(depth), FRAMES) == timetable(*residual(1 << 30), FRAMES) == endless
    less = timetable(*residual(depth - 1), FRAMES)
    assert less.occupancy["queue"] == depth - 1
    assert less != endless


def test_a_pipeline_that_stops_is_an_error() -> None:
    """A row and two pixels must have come before the sum begins; the last of their beats waits in the fork."""
    timetable(*residual(39), 2)
    edge_in, components, outputs = residual(38)
    message = r"^the pipeline stops after 0 of 384 beats: fork, conv, queue, sum, the edge of sum wait for ever$"
    with pytest.raises(RuntimeError, match=message):
        timetable(edge_in, components, outputs, 2)


@pytest.mark.parametrize(
    ("changed", "outputs", "message"),
    [
        ({"conv": (SOURCE,)}, None, "an input must be an output that nothing else reads, not 'input edge'"),
        ({"queue": ("fork.2",)}, None, r"an input must be an output that nothing else reads, not 'fork\.2'"),
        ({}, [], "every output must be read once, and nothing reads sum"),
        ({}, [("sum", AxiStreamParams(47, 4, 1, BITS, False))], "the edge of sum must take 192 beats a frame, not 188"),
        ({"lanes": (SOURCE,), "fork": ("lanes",)}, None, "conv must be given 192 beats a frame, not 96"),
    ],
)
def test_what_is_not_wired(changed: dict[str, tuple[str, ...]], outputs: Outputs | None, message: str) -> None:
    edge_in, components, ends = residual(64)
    adapter = [Component("lanes", LaneAdapterParams(4, BITS, False, 1, 2), (SOURCE,))] if "lanes" in changed else []
    wrong = [replace(component, inputs=changed.get(component.name, component.inputs)) for component in adapter + components]
    with pytest.raises(ValueError, match=f"^{message}$"):
        timetable(edge_in, wrong, ends if outputs is None else outputs, 1)


# -------------------------------------------------------------------------------------------------------------- planned

NETWORKS = (8, 17, 35, 48, 61, 79)


@cache
def planned(seed: int) -> Plan:
    """A random network's pipeline, each layer folded in any of the ways that the planner could choose."""
    case = replace(random_case(seed, most_macs=200), fps=None, target="generic")
    with TemporaryDirectory() as folder:
        graph = case.compile(Path(folder)).integers
    rng = random.Random(seed)
    foldings = Foldings(graph, get_target("generic"))
    chosen = {name: (rng.choice(menu), 0, 0) for name, menu in foldings.menus.items()}
    return Planner(foldings, FILL).assemble(Wish(foldings.target, None, None), chosen, None)


@pytest.mark.parametrize("seed", NETWORKS)
def test_a_network(seed: int) -> None:
    plan = planned(seed)
    times = assert_exact(plan.pipeline.edge_in, plan.pipeline.components, plan.pipeline.outputs)
    assert times.latency_cycles == plan.latency_cycles
    assert times.interval_cycles <= plan.interval_cycles


def test_frames_do_not_take_turns(tmp_path: Path) -> None:
    """A dense layer as fast as its input has a ring in which two frames share evenly."""
    network = Network((2, 3, 7)).dense("scores", 6)
    plan = compile_network(network, tmp_path, fps=2e6).plan
    times = assert_exact(plan.pipeline.edge_in, plan.pipeline.components, plan.pipeline.outputs)
    gaps = [after - before for before, after in pairwise(times.last_out)]
    assert len(set(gaps)) == 1
    assert times.interval_cycles == plan.interval_cycles == max(gaps)


@pytest.mark.parametrize("seed", range(30))
def test_the_interval_is_that_of_any_number_of_frames(seed: int, tmp_path: Path) -> None:
    plan = replace(random_case(seed, most_macs=500), target="generic").compile(tmp_path).plan
    pipeline = plan.pipeline
    assert timetable(pipeline.edge_in, pipeline.components, pipeline.outputs, 25).interval_cycles == plan.interval_cycles
