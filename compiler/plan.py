"""The plan: how parallel each layer's engine is, and whether it all fits.

For every layer the planner lists the engines that are possible (lanes, parallel taps, rows and elements) and takes the
cheapest one whose frame takes no longer than the wanted interval. The timetable of the whole pipeline then says exactly what
latency and interval come out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from convfold.hdl.multiplier import FAMILIES

from .engines import WIRES, Choice, Forms, Stage, block_products, choices, hardware_forms, make_stage
from .errors import CompileError
from .estimate import Resources, estimate
from .graph import Graph, Input, Node
from .pipeline import Pipeline, with_queues
from .schedule import Timetable, timetable
from .targets import TARGETS, Target

__all__ = ["Plan", "Stage", "make_plan"]

FRAMES = 6
"""Frames in the timetable. The gaps between them already repeat: in one of some hundred networks with a period of five."""


@dataclass(frozen=True)
class Plan:
    """A pipeline for one target: a stage a layer, in order, wired between AXI4-Stream edges."""

    graph: Graph
    target: Target
    stages: tuple[Stage, ...]
    pipeline: Pipeline

    @cached_property
    def timetable(self) -> Timetable:
        pipeline = self.pipeline
        return timetable(pipeline.edge_in, pipeline.components, pipeline.outputs, FRAMES)

    @property
    def latency_cycles(self) -> int:
        return self.timetable.latency_cycles

    @property
    def interval_cycles(self) -> int:
        return self.timetable.interval_cycles

    @cached_property
    def resources(self) -> Resources:
        return estimate(self.pipeline, self.target)

    @property
    def bottleneck(self) -> Stage:
        return max(self.stages, key=lambda stage: stage.cycles)


def _choose(menu: Sequence[Choice], interval: float) -> Choice:
    """The cheapest choice within ``interval`` cycles a frame, or the fastest if there is none."""
    within = [choice for choice in menu if choice.cycles <= interval]
    if within:
        return min(within, key=lambda choice: (choice.cost, choice.cycles))
    return min(menu, key=lambda choice: (choice.cycles, choice.cost))


@dataclass(frozen=True)
class _Layers:
    """What planning needs of a graph, found once: the layers, their menus, and their constants."""

    graph: Graph
    target: Target

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for node in self.graph.nodes if not isinstance(node, (Input, *WIRES)))

    @cached_property
    def menus(self) -> Mapping[str, Sequence[Choice]]:
        return {node.name: list(choices(self.graph, node)) for node in self.nodes}

    @cached_property
    def forms(self) -> Forms:
        return hardware_forms(self.graph)

    def assemble(self, chosen: Mapping[str, Choice]) -> Plan:
        multiplier = self.target.family if self.target.family in FAMILIES else "behavioural"
        memory = "ecp5" if self.target.family == "ecp5" else "behavioural"
        hard = self._hard_multipliers(chosen)
        stages = {
            node.name: make_stage(
                self.graph, node, chosen[node.name], self.forms, multiplier, hard.get(node.name, 0), memory
            )
            for node in self.nodes
        }
        pipeline = with_queues(self.graph, stages, memory)
        return Plan(self.graph, self.target, tuple(stages.values()), pipeline)

    def _hard_multipliers(self, chosen: Mapping[str, Choice]) -> dict[str, int]:
        """How many of each layer's multipliers are hard: all of the greatest layers, and what is left for the next one's.

        Layers that would leave a part of a block idle come last.
        """
        left, hard = self.target.dsps or 0, {}
        products = {node.name: block_products(self.graph, node, self.target.family) for node in self.nodes}
        wanting = [name for name, choice in chosen.items() if choice.multipliers and products[name]]
        for name in sorted(wanting, key=lambda name: (chosen[name].element_taps % products[name], -chosen[name].multipliers)):
            hard[name] = _hard_within(left, chosen[name], products[name])
            left -= _blocks(hard[name], chosen[name], products[name])
        return hard


def _blocks(hard: int, choice: Choice, products: int) -> int:
    """How many blocks hold the first ``hard`` multipliers, where a block makes ``products`` of one element's."""
    whole, rest = divmod(hard, choice.element_taps)
    return whole * -(-choice.element_taps // products) + -(-rest // products)


def _hard_within(blocks: int, choice: Choice, products: int) -> int:
    """The most multipliers that so many blocks hold, element by element."""
    return max(n for n in range(choice.multipliers + 1) if _blocks(n, choice, products) <= blocks)


# ------------------------------------------------------------------------------------------------------------------ plan


def make_plan(graph: Graph, target: Target, fps: float | None = None) -> Plan:
    """The smallest pipeline that reaches ``fps`` frames a second at the target's planning clock, or the smallest at all.

    *Raises* ``CompileError`` for a graph without layers, for a rate that cannot be reached, and for a pipeline that does
    not fit, with the resource, what it needs, what there is, and what would fit.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise CompileError("--fps", f"{fps:g} frames/s is no rate", "give a number above 0")
    _check_layers(graph)
    layers = _Layers(graph, target)
    wanted = _interval(target, fps)
    plan = _plan_for_interval(layers, wanted)
    if plan.interval_cycles > wanted:
        raise CompileError(
            target.name,
            f"{fps:,.10g} frames/s at {target.plan_mhz:g} MHz leave {math.floor(wanted)} cycles a frame; {graph.name} needs "
            f"{plan.interval_cycles} at its most parallel, and its slowest layer is '{plan.bottleneck.node.name}'",
            _what_fits(layers, fps, plan),
        )
    lacking = plan.resources.lacking(target)
    if lacking:
        resource, need, have = lacking[0]
        raise CompileError(
            target.name,
            f"{graph.name} needs {need} {resource}, and there are {have}",
            _what_fits(layers, fps, plan),
        )
    return plan


def _interval(target: Target, fps: float | None) -> float:
    """Cycles a frame at the planning clock."""
    return math.inf if fps is None else target.plan_mhz * 1e6 / fps


def _plan_for_interval(layers: _Layers, interval: float) -> Plan:
    """The cheapest choice of every layer, or the fastest pipeline if none is fast enough.

    Where stages hinder each other, those that are slowest are made faster.
    """
    menus = layers.menus
    fastest = {name: min(choice.cycles for choice in menu) for name, menu in menus.items()}
    # Where one layer alone is too slow, nothing between the cheapest with that interval and the fastest is of interest.
    least = max(fastest.values())
    limits: Iterator[float] = iter((least, 0) if least > interval else ())
    limit = next(limits, interval)
    plans: list[Plan] = []
    while True:
        chosen = {name: _choose(menu, limit) for name, menu in menus.items()}
        plans.append(layers.assemble(chosen))
        if plans[-1].interval_cycles <= interval:
            return plans[-1]
        slower = [choice.cycles for name, choice in chosen.items() if choice.cycles > fastest[name]]
        if not slower:
            return min(plans, key=lambda plan: plan.interval_cycles)
        limit = next(limits, max(slower) - 1)


def _check_layers(graph: Graph) -> None:
    for name in graph.outputs:
        node = graph.node(name)
        while isinstance(node, WIRES):
            node = graph.node(node.inputs[0])
        if isinstance(node, Input):
            raise CompileError(node.source, "the network has no layer", "give it at least one layer")
    for node in graph.nodes:
        if not graph.consumers(node.name) and node.name not in graph.outputs:
            raise CompileError(node.source, "nothing reads its output", "leave it out, or make it an output")


def _what_fits(layers: _Layers, fps: float | None, plan: Plan) -> str:
    """The highest rate that fits this target, and the smallest target that fits this rate."""
    hints = []
    graph, target = layers.graph, layers.target
    if fps is not None:
        rate = _highest_rate(layers, min(fps, target.plan_mhz * 1e6 / plan.interval_cycles))
        if rate:
            hints.append(f"--fps {rate} fits")
    for other in TARGETS.values():
        larger = other.luts is not None and target.luts is not None and other.luts > target.luts
        if larger and _fits(_Layers(graph, other), fps):
            hints.append(f"--target {other.name} fits")
            break
    return ", or ".join(hints) or "use fewer channels, or fewer bits"


def _fits(layers: _Layers, fps: float | None) -> bool:
    wanted = _interval(layers.target, fps)
    plan = _plan_for_interval(layers, wanted)
    return plan.interval_cycles <= wanted and not plan.resources.lacking(layers.target)


def _highest_rate(layers: _Layers, most: float) -> int:
    """The highest whole rate up to ``most`` that was found to fit, to one part in a hundred; 0 if there is none."""
    target = layers.target
    smallest = _plan_for_interval(layers, math.inf)
    low, high = math.floor(target.plan_mhz * 1e6 / smallest.interval_cycles), math.floor(most)
    if smallest.resources.lacking(target) or low > high:
        return 0
    if _fits(layers, high):
        return high
    while high - low > max(1, low // 100):  # `low` fits, `high` does not
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(layers, middle) else (low, middle)
    return low
