"""The plan: which engine computes each layer, how parallel it is, and whether it all fits.

For every layer the planner lists the engines that are possible (lanes, parallel taps, rows and elements) and takes the
cheapest one whose frame takes no longer than the wanted interval. The timetable of the whole pipeline then says exactly what
latency and interval come out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from convfold.hdl.axi_stream import AxiStreamParams
from convfold.hdl.conv import ConvParams
from convfold.hdl.dense import DenseParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.streams import beats
from convfold.hdl.window import WindowParams

from .errors import CompileError
from .estimate import Resources, estimate
from .graph import Graph, MaxPool, Node, QConv2D
from .numbers import Range, accumulator_range
from .schedule import StageParams, Timetable, timetable
from .targets import TARGETS, Target

__all__ = ["Plan", "Stage", "make_plan"]

FRAMES = 6
"""Frames in the timetable. The gaps between them already repeat: in one of some hundred networks with a period of five."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One layer and its engine; ``adapters`` stand in front and bring beats to the engine's width."""

    node: Node
    engine: ConvParams | DenseParams | MaxPoolParams
    adapters: tuple[LaneAdapterParams, ...] = ()

    @property
    def core(self) -> ConvParams | MaxPoolParams:
        """The engine proper: a dense layer's is a convolution."""
        return self.engine.conv if isinstance(self.engine, DenseParams) else self.engine

    @property
    def window(self) -> WindowParams:
        return self.core.window

    @property
    def cycles(self) -> int:
        """Steps a frame: what the interval cannot go below."""
        return self.window.frame_cycles

    @property
    def multipliers(self) -> int:
        return self.core.multipliers if isinstance(self.core, ConvParams) else 0

    @property
    def out_lanes(self) -> int:
        return self.core.rows if isinstance(self.core, ConvParams) else self.window.lanes


@dataclass(frozen=True)
class Plan:
    """A pipeline for one target: the stages in order between two AXI4-Stream edges."""

    graph: Graph
    target: Target
    edge_in: AxiStreamParams
    stages: tuple[Stage, ...]
    edge_out: AxiStreamParams

    @property
    def pipeline(self) -> tuple[StageParams, ...]:
        """Every component between the edges, in order."""
        return tuple(params for stage in self.stages for params in (*stage.adapters, stage.engine))

    @cached_property
    def timetable(self) -> Timetable:
        return timetable(self.edge_in, self.pipeline, self.edge_out, FRAMES)

    @property
    def latency_cycles(self) -> int:
        return self.timetable.latency_cycles

    @property
    def interval_cycles(self) -> int:
        return self.timetable.interval_cycles

    @cached_property
    def resources(self) -> Resources:
        return estimate(self.pipeline, self.edge_in, self.edge_out, self.target)

    @property
    def bottleneck(self) -> Stage:
        return max(self.stages, key=lambda stage: stage.cycles)


# ------------------------------------------------------------------------------------------------------------ candidates


@dataclass(frozen=True, slots=True)
class _Choice:
    """One way to fold a layer: how many lanes, taps, rows and elements work at once, and what it costs."""

    lanes: int
    parallel: tuple[int, int]
    rows: int
    pes: int
    cycles: int

    @property
    def cost(self) -> tuple[int, int, int, int]:
        """Multipliers first; among equals few requantizers, then few banks, then narrow words."""
        taps = self.parallel[0] * self.parallel[1] * self.lanes
        return self.rows * self.pes * taps, self.rows, self.parallel[0] * self.parallel[1], self.lanes


def _folds(size: int) -> list[int]:
    """The useful ways to split ``size`` things: the smallest part of each number of rounds."""
    return sorted({-(-size // rounds) for rounds in range(1, size + 1)})


def _choices(graph: Graph, node: QConv2D | MaxPool) -> Iterator[_Choice]:
    """Every folding of a layer that differs in speed."""
    height, width, channels = graph.shapes[node.inputs[0]]
    out_height, out_width, filters = graph.shapes[node.name]
    pixels = out_height * out_width
    if isinstance(node, MaxPool):
        for lanes in _folds(channels):
            cycles = pixels * beats(channels, lanes) * node.kernel[0] * node.kernel[1]
            yield _Choice(lanes, (1, 1), 1, 1, max(cycles, height * width * beats(channels, lanes)))
        return
    kh, kw = graph.kernel(node)
    for parallel in sorted({(1, 1), (kh, 1), (kh, kw)}):
        for lanes in _folds(channels):
            steps = (kh // parallel[0]) * (kw // parallel[1]) * beats(channels, lanes)
            for rows in _folds(filters):
                words = beats(filters, rows)
                for pes in _folds(words):
                    if pes <= steps:
                        cycles = pixels * steps * beats(words, pes)
                        yield _Choice(lanes, parallel, rows, pes, max(cycles, height * width * beats(channels, lanes)))


def _choose(choices: Sequence[_Choice], interval: float) -> _Choice:
    """The cheapest choice within ``interval`` cycles a frame, or the fastest if there is none."""
    within = [choice for choice in choices if choice.cycles <= interval]
    if within:
        return min(within, key=lambda choice: (choice.cost, choice.cycles))
    return min(choices, key=lambda choice: (choice.cycles, choice.cost))


# ---------------------------------------------------------------------------------------------------------------- stages


def _stage(graph: Graph, node: QConv2D | MaxPool, choice: _Choice, kinds: Mapping[str, str], memory: str) -> Stage:
    height, width, channels = graph.shapes[node.inputs[0]]
    form = graph.format_of(node.inputs[0])
    conv = isinstance(node, QConv2D)
    kernel = graph.kernel(node)
    filters = graph.shapes[node.name][2]
    words = beats(filters, choice.rows)
    window = WindowParams(
        height=height,
        width=width,
        channels=channels,
        lanes=choice.lanes,
        bits=form.bits,
        signed=form.signed,
        kernel=kernel,
        stride=node.stride,
        padding=node.padding,
        rows=height * choice.parallel[0],  # more than enough, until it is known what is enough
        replays=beats(words, choice.pes) if conv else 1,
        parallel=choice.parallel,
        channelwise=not conv,
        pad_raw=form.zero_point if conv else form.min_raw,
        memory=memory,
    )
    window = replace(window, rows=window.full_rows)
    if not isinstance(node, QConv2D):
        return Stage(node, MaxPoolParams(window))
    engine = ConvParams(
        window=window,
        filters=filters,
        rows=choice.rows,
        pes=choice.pes,
        weight_bits=node.weight_bits,
        acc_bits=accumulator_bits(graph, node).bits,
        out_bits=node.format.bits,
        out_signed=node.format.signed,
        shift=node.shift,
        low=node.low,
        high=node.high,
        zero_point=node.format.zero_point,
        class_rows=node.classes.rows,
        class_cols=node.classes.cols,
        serial=False,
        multiplier=kinds.get(node.name, "behavioural"),
        memory=memory,
    )
    serial = replace(engine.requantizer, serial=True)
    if choice.pes == 1 and window.steps >= serial.ii:
        engine = replace(engine, serial=True)
    return Stage(node, DenseParams(engine) if node.kind == "dense" else engine)


def accumulator_bits(graph: Graph, node: QConv2D) -> Range:
    """The range of a layer's accumulators, made signed: the hardware adds two's complement numbers."""
    form = graph.format_of(node.inputs[0])
    low, high = form.min_raw, form.max_raw
    reach = accumulator_range(graph.integers(f"{node.name}.w"), graph.integers(f"{node.name}.b"), low, high)
    return Range(min(reach.low, -1), reach.high)


def _adapters(graph: Graph, tensor: str, in_lanes: int, out_lanes: int) -> tuple[LaneAdapterParams, ...]:
    """What turns beats of ``in_lanes`` into beats of ``out_lanes``: nothing, one adapter, or two through a common divisor."""
    channels, form = graph.shapes[tensor][2], graph.format_of(tensor)
    common = math.gcd(in_lanes, out_lanes)
    widths = [in_lanes] + [common] * (common not in (in_lanes, out_lanes)) + [out_lanes]
    return tuple(
        LaneAdapterParams(channels, form.bits, form.signed, before, after)
        for before, after in pairwise(widths)
        if before != after
    )


def _assemble(graph: Graph, target: Target, choices: Mapping[str, _Choice]) -> Plan:
    memory = "ecp5" if target.family == "ecp5" else "behavioural"
    layers = [node for node in graph.nodes if isinstance(node, QConv2D | MaxPool)]
    kinds = _multiplier_kinds(target, {node.name: choices[node.name] for node in layers if isinstance(node, QConv2D)})
    stages: list[Stage] = []
    for node in layers:
        stage = _stage(graph, node, choices[node.name], kinds, memory)
        if stages:
            adapters = _adapters(graph, node.inputs[0], stages[-1].out_lanes, stage.window.lanes)
            stage = replace(stage, adapters=adapters)
        stages.append(stage)
    return Plan(
        graph=graph,
        target=target,
        edge_in=_edge(graph, graph.input.name, stages[0].window.lanes),
        stages=tuple(stages),
        edge_out=_edge(graph, graph.outputs[0], stages[-1].out_lanes),
    )


def _edge(graph: Graph, tensor: str, lanes: int) -> AxiStreamParams:
    height, width, channels = graph.shapes[tensor]
    form = graph.format_of(tensor)
    return AxiStreamParams(height * width, channels, lanes, form.bits, form.signed)


def _multiplier_kinds(target: Target, choices: Mapping[str, _Choice]) -> dict[str, str]:
    """Which layers get hard multipliers: on ECP5 the greatest that still fit, one after the other; the rest is fabric."""
    if target.family != "ecp5" or target.dsps is None:
        return {}
    left, kinds = target.dsps, {}
    for name, choice in sorted(choices.items(), key=lambda item: -item[1].cost[0]):
        if choice.cost[0] <= left:
            left -= choice.cost[0]
            kinds[name] = "ecp5"
    return kinds


# ------------------------------------------------------------------------------------------------------------------ plan


def make_plan(graph: Graph, target: Target, fps: float | None = None) -> Plan:
    """The smallest pipeline that reaches ``fps`` frames a second at the target's planning clock, or the smallest at all.

    *Raises* ``CompileError`` for a graph that is no chain, for a rate that cannot be reached, and for a pipeline that
    does not fit, with the resource, what it needs, what there is, and what would fit.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise CompileError("--fps", f"{fps:g} frames/s is no rate", "give a number above 0")
    _check_chain(graph)
    wanted = _interval(target, fps)
    plan = _plan_for_interval(graph, target, wanted)
    if plan.interval_cycles > wanted:
        raise CompileError(
            target.name,
            f"{fps:,.10g} frames/s at {target.plan_mhz:g} MHz leave {math.floor(wanted)} cycles a frame; {graph.name} needs "
            f"{plan.interval_cycles} at its most parallel, and its slowest layer is '{plan.bottleneck.node.name}'",
            _what_fits(graph, target, fps, plan),
        )
    lacking = plan.resources.lacking(target)
    if lacking:
        resource, need, have = lacking[0]
        raise CompileError(
            target.name,
            f"{graph.name} needs {need} {resource}, and there are {have}",
            _what_fits(graph, target, fps, plan),
        )
    return plan


def _interval(target: Target, fps: float | None) -> float:
    """Cycles a frame at the planning clock."""
    return math.inf if fps is None else target.plan_mhz * 1e6 / fps


def _plan_for_interval(graph: Graph, target: Target, interval: float) -> Plan:
    """The cheapest choice of every layer, or the fastest pipeline if none is fast enough.

    Where stages hinder each other, those that are slowest are made faster.
    """
    menus = {
        node.name: list(_choices(graph, node)) for node in graph.nodes if isinstance(node, QConv2D | MaxPool)
    }
    fastest = {name: min(choice.cycles for choice in menu) for name, menu in menus.items()}
    # Where one layer alone is too slow, nothing between the cheapest with that interval and the fastest is of interest.
    least = max(fastest.values())
    limits: Iterator[float] = iter((least, 0) if least > interval else ())
    limit = next(limits, interval)
    plans: list[Plan] = []
    while True:
        chosen = {name: _choose(menu, limit) for name, menu in menus.items()}
        plans.append(_assemble(graph, target, chosen))
        if plans[-1].interval_cycles <= interval:
            return plans[-1]
        slower = [choice.cycles for name, choice in chosen.items() if choice.cycles > fastest[name]]
        if not slower:
            return min(plans, key=lambda plan: plan.interval_cycles)
        limit = next(limits, max(slower) - 1)


def _check_chain(graph: Graph) -> None:
    for node in graph.nodes:
        readers = len(graph.consumers(node.name)) + graph.outputs.count(node.name)
        if readers != 1:
            raise CompileError(node.source, f"its output is read {readers} times", "the engine takes chains of layers only")
    if isinstance(graph.node(graph.outputs[0]), type(graph.input)):
        raise CompileError(graph.input.source, "the network has no layer", "give it at least one layer")


def _what_fits(graph: Graph, target: Target, fps: float | None, plan: Plan) -> str:
    """The highest rate that fits this target, and the smallest target that fits this rate."""
    hints = []
    if fps is not None:
        rate = _highest_rate(graph, target, min(fps, target.plan_mhz * 1e6 / plan.interval_cycles))
        if rate:
            hints.append(f"--fps {rate} fits")
    for other in TARGETS.values():
        larger = other.luts is not None and target.luts is not None and other.luts > target.luts
        if larger and _fits(graph, other, fps):
            hints.append(f"--target {other.name} fits")
            break
    return ", or ".join(hints) or "use fewer channels, or fewer bits"


def _fits(graph: Graph, target: Target, fps: float | None) -> bool:
    wanted = _interval(target, fps)
    plan = _plan_for_interval(graph, target, wanted)
    return plan.interval_cycles <= wanted and not plan.resources.lacking(target)


def _highest_rate(graph: Graph, target: Target, most: float) -> int:
    """The highest whole rate up to ``most`` that was found to fit, to one part in a hundred; 0 if there is none."""
    smallest = _plan_for_interval(graph, target, math.inf)
    low, high = math.floor(target.plan_mhz * 1e6 / smallest.interval_cycles), math.floor(most)
    if smallest.resources.lacking(target) or low > high:
        return 0
    if _fits(graph, target, high):
        return high
    while high - low > max(1, low // 100):  # `low` fits, `high` does not
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(graph, target, middle) else (low, middle)
    return low
