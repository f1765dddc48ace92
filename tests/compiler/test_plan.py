"""The plan: small where it may be, fast where it must be, and refused with a hint that holds."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from convfold.api import compile
from convfold.compiler.errors import CompileError
from convfold.compiler.graph import Graph
from convfold.compiler.plan import Plan, make_plan
from convfold.compiler.quantize import quantize
from convfold.compiler.schedule import SOURCE
from convfold.compiler.solver import amount
from convfold.compiler.spec import load_spec
from convfold.compiler.targets import get_target
from convfold.hdl.conv import ConvParams
from convfold.hdl.dense import DenseParams
from convfold.hdl.global_pool import GlobalPoolParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.max_pool import MaxPoolParams
from tests.compiler.passes.nets import Net
from tests.networks import Network, compile_network, random_case

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"

SEEDS = range(25)
RATES = (1e3, 1e4, 5e4, 2e5, 4e5, 8e5, 1.6e6, 5e6)
GENERIC = get_target("generic")


@cache
def integers(seed: int) -> Graph:
    """A random network, quantized."""
    with TemporaryDirectory() as folder:
        return replace(random_case(seed, most_macs=1500), target="generic", fps=None).compile(Path(folder)).integers


@cache
def digits() -> Graph:
    return compile(DIGITS / "digits.toml", calibration=DIGITS / "calibration.npz").integers


def multipliers(plan: Plan) -> int:
    return sum(stage.multipliers for stage in plan.stages)


def compiles(graph: Graph, target: str, fps: float | None) -> bool:
    try:
        make_plan(graph, get_target(target), fps)
    except CompileError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------------- the smallest


def test_without_a_device_nothing_is_parallel() -> None:
    plan = make_plan(digits(), GENERIC)
    assert [stage.node.name for stage in plan.stages] == ["project", "norm", "pool", "classify"]
    for stage in plan.stages:
        assert stage.window is not None
        assert (stage.window.lanes, stage.window.parallel, stage.out_lanes) == (1, (1, 1), 1)
        if isinstance(stage.core, ConvParams):
            assert (stage.core.rows, stage.core.pes, stage.multipliers) == (1, 1, 1)
    assert [part.name for part in plan.pipeline.components] == [stage.node.name for stage in plan.stages]


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_rate_every_layer_has_one_multiplier(seed: int) -> None:
    plan = make_plan(integers(seed), GENERIC)
    assert all(stage.multipliers == (not isinstance(stage.engine, MaxPoolParams)) for stage in plan.stages)


# --------------------------------------------------------------------------------------------------------------- the rate


@pytest.mark.parametrize("seed", SEEDS)
def test_every_rate_is_met_or_refused(seed: int) -> None:
    """All stages meet the interval; a higher rate never takes fewer multipliers; a refused rate stays refused."""
    graph = integers(seed)
    before, refused = multipliers(make_plan(graph, GENERIC)), False
    for rate in RATES:
        wanted = GENERIC.plan_mhz * 1e6 / rate
        try:
            plan = make_plan(graph, GENERIC, rate)
        except CompileError as error:
            refused = True
            told = r"generic: [\d,]+ frames/s at 100 MHz leave \d+ cycles a frame; net\d+ needs \d+ at its"
            assert re.match(told, str(error))
            continue
        assert not refused
        assert plan.interval_cycles <= wanted
        assert all(stage.cycles <= wanted for stage in plan.stages)
        assert plan.pipeline.edge_in.frame_beats <= wanted
        assert multipliers(plan) >= before
        before = multipliers(plan)


@pytest.mark.parametrize("rate", [None, 1e4, 2e4, 1e5])
def test_the_slowest_layer_of_digits_never_waits(rate: float | None) -> None:
    """In the steady state it issues a step in every cycle."""
    plan = make_plan(digits(), GENERIC, rate)
    slowest = plan.bottleneck
    assert slowest.window is not None
    starts = plan.timetable.starts[slowest.node.name]
    passes = slowest.cycles // slowest.window.steps
    for frame in range(1, len(starts) // passes - 1):
        first, after = starts[frame * passes], starts[(frame + 1) * passes]
        assert slowest.cycles / (after - first) >= 0.95
    assert plan.interval_cycles == slowest.cycles


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), (1, 1)), ((4, 2), (3, 1)), ((2, 3), (2, 2)), ((1, 1), (2, 1))])
def test_no_cycle_is_lost_between_frames(
    kernel: tuple[int, int], stride: tuple[int, int], padding: str, tmp_path: Path
) -> None:
    """The ring has room for the next frame's first rows, whatever the window."""
    network = Network((7, 6, 2)).conv("edges", 9, kernel, stride, padding)
    plan = compile_network(network, tmp_path).plan
    assert plan.interval_cycles == plan.stages[0].cycles


@pytest.mark.parametrize("shape", [(1, 2, 1), (5, 5, 1), (7, 7, 3), (4, 4, 12)])
def test_a_global_pool_takes_a_pixel_a_cycle(shape: tuple[int, int, int]) -> None:
    """No sum has to come round first."""
    pixels = shape[0] * shape[1]
    plan = make_plan(quantize(Net(shape).global_average("mean").graph()), GENERIC, 1e8 / pixels)
    assert [type(stage.engine) for stage in plan.stages] == [GlobalPoolParams]
    assert plan.interval_cycles == plan.stages[0].cycles == pixels


def test_stages_that_hinder_each_other_are_made_faster(tmp_path: Path) -> None:
    """Two layers of the same speed lose some cycles to each other; the wanted interval still holds."""
    network = Network((6, 6, 1)).conv("one", 4, (3, 3), padding="same").relu("live").conv("two", 4, (3, 3), padding="same")
    graph = compile_network(network, tmp_path).integers
    for cycles in range(300, 1400, 7):
        try:
            plan = make_plan(graph, GENERIC, 1e8 / cycles)
        except CompileError:
            continue
        assert plan.interval_cycles <= cycles


def test_adapters_go_through_a_common_divisor(tmp_path: Path) -> None:
    """Every stream between two stages has the width that its reader wants."""
    found = set()
    for seed in SEEDS:
        for rate in RATES:
            try:
                plan = make_plan(integers(seed), GENERIC, rate)
            except CompileError:
                continue
            lanes = {SOURCE: plan.pipeline.edge_in.lanes} | {stage.node.name: stage.out_lanes for stage in plan.stages}
            wanted = {stage.node.name: stage.in_lanes for stage in plan.stages}
            adapters = 0
            for part in plan.pipeline.components:
                (before,) = part.inputs
                if isinstance(part.params, LaneAdapterParams):
                    assert part.params.in_lanes == lanes[before]
                    lanes[part.name] = part.params.out_lanes
                    adapters += 1
                else:
                    assert wanted[part.name] == lanes[before]
            ((last, edge),) = plan.pipeline.outputs
            assert edge.lanes == lanes[last]
            found.add(adapters)
    assert len(found) > 1 and 0 in found


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_no_rate_at_all(rate: float) -> None:
    with pytest.raises(CompileError, match=rf"^--fps: {rate:g} frames/s is no rate\n  fix: give a number above 0$"):
        make_plan(digits(), GENERIC, rate)


# ---------------------------------------------------------------------------------------------------------- refused plans


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("target", ["ice40-up5k", "ice40-hx8k", "ecp5-25k"])
def test_a_hint_is_true(target: str, seed: int) -> None:
    """What a refusal suggests compiles."""
    graph = integers(seed)
    for rate in (None, *RATES):
        try:
            plan = make_plan(graph, get_target(target), rate)
        except CompileError as error:
            assert error.source == target
            if error.hint == "use fewer channels, or fewer bits":
                assert not compiles(graph, target, 1.0)
                continue
            for hint in error.hint.split(", or "):
                if found := re.fullmatch(r"--fps (\d+) fits", hint):
                    assert rate is not None and int(found[1]) <= rate
                    assert compiles(graph, target, int(found[1]))
                else:
                    found = re.fullmatch(r"--target (\S+) fits", hint)
                    assert found is not None and compiles(graph, found[1], rate)
            continue
        assert not plan.resources.lacking(get_target(target))


def test_a_refusal_says_what_is_needed_what_there_is_and_what_fits() -> None:
    with pytest.raises(
        CompileError,
        match=r"^ice40-up5k: digits needs (\d+) LUTs, and 4224 of 5280 may be used \(--fill 0.8\)\n"
        r"  fix: --fps \d+ fits, or --target ecp5-25k fits$",
    ):
        make_plan(digits(), get_target("ice40-up5k"), 6000)


def test_a_rate_out_of_reach_names_the_slowest_layer() -> None:
    with pytest.raises(
        CompileError,
        match=r"^generic: 10,000,000 frames/s at 100 MHz leave 10 cycles a frame; digits needs \d+ at its most parallel, and "
        r"its slowest layer is '\w+'\n  fix: --fps \d+ fits$",
    ):
        make_plan(digits(), GENERIC, 1e7)


def test_a_network_that_fits_nowhere(tmp_path: Path) -> None:
    network = Network((2, 2, 64)).conv("wide", 1000, (2, 2))
    graph = compile_network(network, tmp_path).integers
    with pytest.raises(
        CompileError,
        match=r"^ice40-up5k: net needs \d+ block RAMs, and there are 30\n  fix: use fewer channels, or fewer bits$",
    ):
        make_plan(graph, replace(get_target("ice40-up5k"), luts=10**6))


def test_a_tensor_that_is_read_twice_gets_a_fork(tmp_path: Path) -> None:
    path = Network((4, 4, 1)).conv("one", 2).relu("live").conv("two", 2, (1, 1)).write(tmp_path)
    path.write_text(path.read_text().replace('"name": "net"', '"name": "net", "outputs": ["live", "two"]', 1))
    pipeline = compile(path).plan.pipeline
    assert [(part.name, part.inputs) for part in pipeline.components] == [
        ("one", (SOURCE,)),
        ("one_fork", ("one",)),
        ("two", ("one_fork.0",)),
    ]
    assert [name for name, _ in pipeline.outputs] == ["one_fork.1", "two"]


# ----------------------------------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize("seed", SEEDS)
def test_accumulators_hold_every_sum(seed: int) -> None:
    """The worst input of every output channel, with its bias and without."""
    graph = integers(seed)
    for stage in make_plan(graph, GENERIC).stages:
        if not isinstance(stage.core, ConvParams):
            continue
        form = graph.format_of(stage.node.inputs[0])
        w, b = (graph.weights[f"{stage.node.name}.{part}"] for part in "wb")
        most = np.where(w > 0, w * form.max_raw, w * form.min_raw).sum(axis=(3, 4, 5))
        least = np.where(w > 0, w * form.min_raw, w * form.max_raw).sum(axis=(3, 4, 5))
        limit = 1 << (stage.core.acc_bits - 1)
        assert max(most.max(), (most + b).max()) < limit
        assert min(least.min(), (least + b).min()) >= -limit


def test_hard_multipliers_go_to_the_greatest_layers() -> None:
    plan = make_plan(digits(), get_target("ecp5-25k"), 50_000)
    ranked = sorted((stage for stage in plan.stages if stage.multipliers), key=lambda stage: -stage.multipliers)
    counts = [(stage.multipliers, getattr(stage.core, "hard", 0)) for stage in ranked]
    assert sum(hard for _, hard in counts) == plan.resources.dsps == 28
    assert sum(0 < hard < count for count, hard in counts) == 1
    full = [hard == count for count, hard in counts]
    assert full == sorted(full, reverse=True)


def test_every_stage_has_the_engine_of_its_layer() -> None:
    plan = make_plan(digits(), GENERIC)
    assert [type(stage.engine) for stage in plan.stages] == [ConvParams, ConvParams, MaxPoolParams, DenseParams]


def test_an_output_that_is_the_input_is_refused() -> None:
    net = Net((3, 4, 4)).reshape("turned", (4, 3, 4)).behind("image").conv("made", 2)
    graph = quantize(net.graph("made", "turned"))
    with pytest.raises(CompileError, match=r"^turned: no layer computes this output: it is the input\n  fix: leave it out, "):
        make_plan(graph, GENERIC)


def test_the_same_graph_gives_the_same_plan() -> None:
    graph = load_spec(DIGITS / "digits.toml")
    assert graph == load_spec(DIGITS / "digits.toml")
    assert make_plan(digits(), GENERIC, 2e4) == make_plan(digits(), GENERIC, 2e4)


# --------------------------------------------------------------------------------------------------------------- branches


def test_a_slow_layer_between_two_joins_does_not_stop_the_pipeline() -> None:
    """It holds back the first join and with it the input, which the second join's other branch needs nearly whole."""
    net = Net((8, 8, 2), low=-1.0).relu("live").add("first", "image").conv("slow", 2, (5, 5), padding=((2, 2), (2, 2)))
    net.behind("image").pool("late", (8, 1), (1, 1), ((0, 7), (0, 0))).add("second", "slow")
    plan = make_plan(quantize(net.graph()), GENERIC)
    assert plan.bottleneck.node.name == "slow"
    assert plan.interval_cycles == plan.bottleneck.cycles


@pytest.mark.parametrize("fps", [None, 1e6])
def test_a_narrow_input_at_the_end_of_two_wide_stacks(fps: float | None) -> None:
    """Beats of a stack may be wider than the input has channels; those of the input itself are not."""
    net = Net((4, 4, 1)).conv("one", 6, (1, 1)).concat("wide", "image").conv("two", 4, (1, 1)).concat("narrow", "image")
    plan = make_plan(quantize(net.graph()), GENERIC, fps)
    lanes = {stage.node.name: stage.in_lanes for stage in plan.stages}
    assert plan.pipeline.edge_in.lanes == 1
    assert (max(lanes["wide"], lanes["narrow"]) > 1) == (fps is not None)


# ---------------------------------------------------------------------------------------------- latency, fill, one optimisation


@pytest.mark.parametrize("target", ["generic", "ecp5-25k"])
def test_a_latency_is_met_and_costs(target: str) -> None:
    """By the timetable, not by the solver's account; less time never takes less area."""
    chip = get_target(target)
    before = 0
    for time in (200.0, 100.0, 60.0, 40.0):
        plan = make_plan(digits(), chip, latency_us=time)
        assert plan.latency_cycles <= time * chip.plan_mhz
        area = plan.planner.area(plan.resources)
        assert area >= 0.99 * before
        before = area
    both = make_plan(digits(), chip, 30_000, 60.0)
    assert both.latency_cycles <= 60 * chip.plan_mhz and both.interval_cycles <= chip.plan_mhz * 1e6 / 30_000


def test_a_latency_out_of_reach_says_what_fits() -> None:
    with pytest.raises(
        CompileError,
        match=r"^generic: 0\.5 µs at 100 MHz are 50 cycles from first beat in to last beat out; digits needs \d+ at its most "
        r"parallel\n  fix: --latency \d+ fits$",
    ) as caught:
        make_plan(digits(), GENERIC, latency_us=0.5)
    time = int(re.findall(r"\d+", caught.value.hint)[0])
    assert make_plan(digits(), GENERIC, latency_us=time).latency_cycles <= time * GENERIC.plan_mhz


@pytest.mark.parametrize("time", [math.nan, math.inf, 0.0, -1.0])
def test_no_latency_at_all(time: float) -> None:
    with pytest.raises(CompileError, match=rf"^--latency: {time:g} µs is no time\n  fix: give a number above 0$"):
        make_plan(digits(), GENERIC, latency_us=time)


@pytest.mark.parametrize("fill", [0.0, -0.5, 1.01, math.nan])
def test_no_share_at_all(fill: float) -> None:
    told = rf"^--fill: {fill:g} is no share of a device\n  fix: give a number above 0 and up to 1$"
    with pytest.raises(CompileError, match=told):
        make_plan(digits(), GENERIC, fill=fill)


@pytest.mark.parametrize("target", ["ecp5-25k", "ice40-up5k"])
def test_a_device_is_filled_and_not_more(target: str) -> None:
    """A larger share is never slower, and no share is exceeded."""
    chip = get_target(target)
    before = math.inf
    for fill in (0.6, 0.8, 1.0):
        plan = make_plan(digits(), chip, fill=fill)
        have, need = chip.resources(), plan.resources
        assert all(amount(need, kind) <= fill * (have[kind] or 0) for kind in ("luts", "ffs", "brams"))
        assert need.dsps <= (chip.dsps or 0)
        assert plan.interval_cycles <= before
        before = plan.interval_cycles


def test_a_share_that_is_too_small_is_named() -> None:
    told = r"^ecp5-25k: digits needs \d+ (LUTs|flip-flops|block RAMs), and \d+ of \d+ may be used \(--fill 0\.02\)\n"
    with pytest.raises(CompileError, match=told):
        make_plan(digits(), get_target("ecp5-25k"), 1000, fill=0.02)


def test_plans_are_the_same_in_another_process() -> None:
    code = (
        "from tests.compiler.test_plan import *\n"
        "print(make_plan(digits(), get_target('ecp5-25k'), latency_us=60.0).pipeline)\n"
        "print(make_plan(digits(), get_target('ecp5-25k')).pipeline)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=300,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1 and runs.pop().count(b"ConvParams") >= 4
