"""The solver: one option for every layer, so that a pipeline is as small, or as fast, as a device allows.

A problem in integers with nothing of networks or hardware in it: a `Layer` lists its options with what each takes, an `Edge`
what it takes to connect two of them. OR-tools' CP-SAT solves it. The same problem gives the same answer: it runs in one thread
from one seed, and stops by its own count of work and not by the clock.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .estimate import Resources

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

__all__ = ["KINDS", "STREAMING", "Edge", "Goal", "Layer", "Option", "Pick", "Problem", "Solution", "amount", "solve"]

KINDS = ("luts", "ffs", "dsps", "brams")
Goal = Literal["any", "area", "share"]

WORK = 10.0
"""The most work for one solution, in CP-SAT's own deterministic unit: seconds, more or less."""
GAP = 0.005
"""A solution is good enough when it is proven to be this near the best."""
STREAMING = ((0.0, 1.0), (1.0, 0.0))
"""The needs of a layer that makes each sample of one that has come."""
NONE = Resources()
NOTHING = (0, NONE)
"""Between lanes that meet as they are."""
PARTS = 1 << 10
"""Shares are counted in such parts."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to build a layer.

    ``cycles`` a frame; beats of ``in_lanes`` and ``out_lanes``. With all multipliers in fabric it takes ``cells``; up to
    ``blocks`` hard blocks may make them, and each takes ``block`` more, negative for what it saves; likewise up to ``tables``
    of its tables may be in block RAM, and each takes ``table`` more. ``fill_cycles`` is how long
    the network's input takes to come in at ``in_lanes``, ``delay_cycles`` how long a sample is on its way through the engine.
    """

    cycles: int
    in_lanes: int
    out_lanes: int
    blocks: int
    block: Resources
    cells: Resources
    fill_cycles: int = 0
    delay_cycles: int = 0
    tables: int = 0
    table: Resources = NONE


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's options. ``needs`` are pairs of parts of a frame, of input and of output: until so much of its input has come,
    so much of its output is still to be made. The first pair is what it waits for before it starts.
    """

    name: str
    options: tuple[Option, ...]
    needs: tuple[tuple[float, float], ...] = STREAMING
    reads_input: bool = False


@dataclass(frozen=True, slots=True)
class Edge:
    """A stream from layer ``source`` to layer ``sink``; a frame comes evenly between its first and its last beat.

    ``joints`` tell for lanes ``(out, in)`` how many cycles a frame what stands between takes, and what it costs; a pair that
    is missing meets without anything between.
    """

    source: str
    sink: str
    joints: Mapping[tuple[int, int], tuple[int, Resources]]


@dataclass(frozen=True, slots=True)
class Problem:
    """What to choose from and what to hold; layers in topological order.

    ``limits`` are the most of each of `KINDS` that has one. A frame takes at most ``interval`` cycles, and ``latency`` from the
    first sample in to the last one out of any of the ``outputs``. ``weights`` say what one of each kind counts, and
    ``latency_weight`` what a cycle does.
    """

    layers: tuple[Layer, ...]
    edges: tuple[Edge, ...]
    outputs: tuple[str, ...]
    limits: Mapping[str, int]
    weights: Mapping[str, int]
    interval: int | None = None
    latency: int | None = None
    latency_weight: int = 0

    def area(self, resources: Resources) -> int:
        return sum(weight * amount(resources, kind) for kind, weight in self.weights.items())


@dataclass(frozen=True, slots=True)
class Pick:
    """The option of a layer by its number, and how many of its multipliers' blocks and of its tables in block RAM it has."""

    number: int
    blocks: int
    tables: int = 0


@dataclass(frozen=True, slots=True)
class Solution:
    """A pick for each layer, in their order, what they take with what stands between them, and the cycles that follow."""

    picks: tuple[Pick, ...]
    resources: Resources
    interval: int
    latency: int


def amount(resources: Resources, kind: str) -> int:
    """How many of one of `KINDS`."""
    count: int = getattr(resources, kind)
    return count


# ------------------------------------------------------------------------------------------------------------------ solve


def solve(problem: Problem, goal: Goal, gap: float = GAP) -> Solution | None:
    """The best picks, proven to within ``gap``; ``None`` where nothing holds what is asked for.

    ``area`` is the least sum of what all weighs, ``share`` the least share of the limit that is used most, and only for that
    the limits may be exceeded; ``any`` is whatever is found first.
    """
    kept = [_worthwhile(problem, layer) for layer in problem.layers]
    if not all(kept):
        return None
    layers = (
        replace(layer, options=tuple(layer.options[n] for n in numbers))
        for layer, numbers in zip(problem.layers, kept, strict=True)
    )
    picks = _Model(replace(problem, layers=tuple(layers)), goal, gap).run()
    if picks is None:
        return None
    picks = [replace(pick, number=numbers[pick.number]) for numbers, pick in zip(kept, picks, strict=True)]
    return _settled(problem, evaluate(problem, picks), goal)


def _settled(problem: Problem, solution: Solution, goal: Goal) -> Solution:
    """The same with as many blocks, dealt out to those that save most, among equals to the greatest layers, if that holds."""
    options = [layer.options[pick.number] for layer, pick in zip(problem.layers, solution.picks, strict=True)]
    left = sum(pick.blocks for pick in solution.picks)
    picks = list(solution.picks)
    for n in sorted(range(len(options)), key=lambda n: (problem.area(options[n].block), -options[n].blocks)):
        picks[n] = replace(picks[n], blocks=min(left, options[n].blocks))
        left -= picks[n].blocks
    settled = evaluate(problem, picks)
    holds = all(amount(settled.resources, kind) <= limit for kind, limit in problem.limits.items())
    smaller = problem.area(settled.resources) <= problem.area(solution.resources)
    return settled if holds and smaller and goal != "share" else solution


def evaluate(problem: Problem, picks: Sequence[Pick]) -> Solution:
    """What picks take and how fast they are."""
    options = {layer.name: layer.options[pick.number] for layer, pick in zip(problem.layers, picks, strict=True)}
    total, interval = Resources(), 0
    for layer, pick in zip(problem.layers, picks, strict=True):
        option = options[layer.name]
        total += option.cells + option.block * pick.blocks + option.table * pick.tables
        interval = max(interval, option.cycles)
    for edge in problem.edges:
        cycles, cost = edge.joints.get((options[edge.source].out_lanes, options[edge.sink].in_lanes), NOTHING)
        total += cost
        interval = max(interval, cycles)
    firsts: dict[str, int] = {}
    ends: dict[str, int] = {}
    for layer in problem.layers:
        option = options[layer.name]
        comes = [(0, option.fill_cycles)] if layer.reads_input else []
        comes += [(firsts[edge.source], ends[edge.source]) for edge in problem.edges if edge.sink == layer.name]
        waits = [[-(-_between(begin, end, come) // PARTS) for come, _ in layer.needs] for begin, end in comes]
        rests = [_part(rest, option.cycles) for _, rest in layer.needs]
        firsts[layer.name] = max(times[0] for times in waits) + option.delay_cycles
        ends[layer.name] = option.delay_cycles + max(
            time + rest for times in waits for time, rest in zip(times, rests, strict=True)
        )
    return Solution(tuple(picks), total, interval, max(ends[name] for name in problem.outputs))


def _between(first: Any, last: Any, share: float) -> Any:
    """When a share of what comes evenly between two times has come, times `PARTS`; of numbers, or of the solver's variables."""
    head = round(share * PARTS)
    return (PARTS - head) * first + head * last


def _part(share: float, cycles: int) -> int:
    return math.ceil(share * cycles)


# ---------------------------------------------------------------------------------------------------------------- options


def _worthwhile(problem: Problem, layer: Layer) -> list[int]:
    """The numbers of the options that are fast enough and for which no other one can stand in.

    One stands in for another if it takes no more of anything; with other lanes, also with the costliest joints it can meet.
    """
    options = layer.options
    most = math.inf if problem.interval is None else problem.interval
    numbers = [n for n, option in enumerate(options) if option.cycles <= most]
    timed = problem.latency is not None or problem.latency_weight > 0
    costs = np.array([_costs(problem, options[n], timed) for n in numbers], dtype=np.int64)
    joints = {lanes: _worst_joint(problem, layer.name, lanes) for lanes in {_lanes(options[n]) for n in numbers}}
    extras = {lanes: np.array([*_cells(problem, [extra] * 3, timed), 0, 0, 0]) for lanes, (_, extra) in joints.items()}
    area = {n: problem.area(options[n].cells) for n in numbers}
    kept: list[int] = []  # places in `numbers`
    table = np.empty_like(costs)  # of what is kept; in `worst` with the costliest joints
    worst = np.empty_like(costs)
    lanes_kept = np.empty((len(numbers), 2), np.int64)
    slowest = np.empty(len(numbers), np.int64)
    for place in sorted(range(len(numbers)), key=lambda place: (area[numbers[place]], *costs[place])):
        lanes, size = _lanes(options[numbers[place]]), len(kept)
        same = np.all(lanes_kept[:size] == lanes, axis=1)
        within = slowest[:size] <= most
        if np.any(same & np.all(table[:size] <= costs[place], axis=1)):
            continue
        if np.any(within & np.all(worst[:size] <= costs[place], axis=1)):
            continue
        table[size] = costs[place]
        worst[size] = costs[place] + extras[lanes]
        lanes_kept[size], slowest[size] = lanes, joints[lanes][0]
        kept.append(place)
    return [numbers[place] for place in sorted(kept)]


def _lanes(option: Option) -> tuple[int, int]:
    return option.in_lanes, option.out_lanes


def _costs(problem: Problem, option: Option, timed: bool) -> list[int]:
    """All that an option may take more or less of than another: with no blocks, with all that it can have, of either kind."""
    more = (NONE, option.block * option.blocks, option.table * option.tables)
    cells = _cells(problem, [option.cells + change for change in more], timed)
    return [*cells, option.cycles * timed, option.fill_cycles * timed, option.delay_cycles * timed]


def _cells(problem: Problem, ends: Sequence[Resources], timed: bool) -> list[int]:
    """Cells of each kind, or where time counts, too, their area alone: there would be too many options else."""
    return [*map(problem.area, ends)] if timed else [amount(resources, kind) for resources in ends for kind in KINDS]


def _worst_joint(problem: Problem, name: str, lanes: tuple[int, int]) -> tuple[int, Resources]:
    """The longest and the costliest that can come to stand at both ends of a layer with such lanes."""
    cycles, total = 0, Resources()
    for edge in problem.edges:
        if name in (edge.source, edge.sink):
            side = int(edge.sink == name)  # of the pair
            met = [joint for pair, joint in edge.joints.items() if pair[side] == lanes[1 - side]]
            cycles = max([cycles, *(joint[0] for joint in met)])
            total += Resources(**{kind: max((amount(cost, kind) for _, cost in met), default=0) for kind in KINDS})
    return cycles, total


# ------------------------------------------------------------------------------------------------------------------ model


class _Model:
    """The problem as CP-SAT takes it: a literal an option, one for each pair of lanes that may meet, and counts of blocks."""

    def __init__(self, problem: Problem, goal: Goal, gap: float) -> None:
        from ortools.sat.python import cp_model  # takes a second to import, and only planning needs it

        self.cp = cp_model
        self.problem = problem
        self.gap = gap
        self.model = model = cp_model.CpModel()
        self.used: dict[str, list[cp_model.LinearExprT]] = {kind: [] for kind in KINDS}
        self.chosen: dict[str, list[cp_model.IntVar]] = {}
        self.blocks: dict[str, list[cp_model.IntVar]] = {}
        self.tables: dict[str, list[cp_model.IntVar]] = {}
        self.timed = problem.latency is not None or problem.latency_weight > 0
        for layer in problem.layers:
            self._layer(layer)
        for edge in problem.edges:
            self._edge(edge)
        area = [problem.weights.get(kind, 0) * sum(self.used[kind]) for kind in KINDS]
        if self.timed:
            area.append(problem.latency_weight * self._latency())
        totals = {kind: sum(self.used[kind]) for kind in problem.limits}
        if goal == "share":
            share = model.new_int_var(0, PARTS * PARTS, "share")
            for kind, limit in problem.limits.items():
                model.add(PARTS * totals[kind] <= max(limit, 1) * share)
            model.minimize(share)
            return
        for kind, limit in problem.limits.items():
            model.add(totals[kind] <= limit)
        if goal == "area":
            model.minimize(sum(area))

    def _layer(self, layer: Layer) -> None:
        """One option is chosen, and it has no more blocks than it may, of either kind."""
        chosen = [self.model.new_bool_var(f"{layer.name} {n}") for n in range(len(layer.options))]
        self.chosen[layer.name] = chosen
        self.model.add_exactly_one(chosen)
        for kind in KINDS:
            self.used[kind].append(_sum(chosen, [amount(option.cells, kind) for option in layer.options]))
        self.blocks[layer.name] = self._counts(layer, "blocks", [(option.blocks, option.block) for option in layer.options])
        self.tables[layer.name] = self._counts(layer, "tables", [(option.tables, option.table) for option in layer.options])

    def _counts(self, layer: Layer, name: str, each: Sequence[tuple[int, Resources]]) -> list[cp_model.IntVar]:
        """How many of what an option may have so many of, one count for all that change as much."""
        counts = []
        for change in dict.fromkeys(change for most, change in each if most):
            most = [count * (other == change) for count, other in each]
            counts.append(self.model.new_int_var(0, max(most), f"{layer.name} {name} {change}"))
            self.model.add(counts[-1] <= _sum(self.chosen[layer.name], most))
            for kind in KINDS:
                self.used[kind].append(amount(change, kind) * counts[-1])
        return counts

    def _edge(self, edge: Edge) -> None:
        """What stands between the lanes of two layers counts, and is fast enough."""
        outs, ins = self._by_lanes(edge.source, "out_lanes"), self._by_lanes(edge.sink, "in_lanes")
        most = math.inf if self.problem.interval is None else self.problem.interval
        if not any((before, after) in edge.joints for before in outs for after in ins):
            return
        flows: dict[tuple[int, int], cp_model.IntVar] = {
            (before, after): self.model.new_bool_var(f"{edge.source} {before} {edge.sink} {after}")
            for before in outs
            for after in ins
            if edge.joints.get((before, after), NOTHING)[0] <= most
        }
        for side, lanes in enumerate((outs, ins)):
            for width, chosen in lanes.items():
                self.model.add(sum(flow for pair, flow in flows.items() if pair[side] == width) == sum(chosen))
        costs = [edge.joints.get(pair, NOTHING)[1] for pair in flows]
        for kind in KINDS:
            self.used[kind].append(_sum([*flows.values()], [amount(cost, kind) for cost in costs]))

    def _by_lanes(self, name: str, side: str) -> dict[int, list[cp_model.IntVar]]:
        layer = next(layer for layer in self.problem.layers if layer.name == name)
        found: dict[int, list[cp_model.IntVar]] = defaultdict(list)
        for literal, option in zip(self.chosen[name], layer.options, strict=True):
            found[getattr(option, side)].append(literal)
        return found

    def _latency(self) -> cp_model.IntVar:
        """When the last output beat leaves: see `evaluate`."""
        problem, model = self.problem, self.model
        most = sum(max(o.cycles + o.fill_cycles + o.delay_cycles for o in layer.options) for layer in problem.layers)
        latest = most if problem.latency is None else problem.latency
        options = {layer.name: layer.options for layer in problem.layers}
        firsts = {name: model.new_int_var(0, most, f"{name} starts") for name in options}
        ends = {name: model.new_int_var(0, most, f"{name} ends") for name in options}
        latency = model.new_int_var(0, latest, "latency")
        for layer in problem.layers:
            name, chosen = layer.name, self.chosen[layer.name]
            fill = _sum(chosen, [option.fill_cycles for option in layer.options])
            comes: list[tuple[Any, Any]] = [(0, fill)] if layer.reads_input else []
            comes += [(firsts[edge.source], ends[edge.source]) for edge in problem.edges if edge.sink == name]
            delay = _sum(chosen, [option.delay_cycles for option in layer.options])
            for begin, end in comes:
                model.add(PARTS * firsts[name] >= _between(begin, end, layer.needs[0][0]) + PARTS * delay)
                for come, part in layer.needs:
                    rest = _sum(chosen, [_part(part, o.cycles) + o.delay_cycles for o in layer.options])
                    model.add(PARTS * ends[name] >= _between(begin, end, come) + PARTS * rest)
        for name in problem.outputs:
            model.add(latency >= ends[name])
        return latency

    def run(self) -> list[Pick] | None:
        solver = self.cp.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        solver.parameters.max_deterministic_time = WORK
        solver.parameters.relative_gap_limit = self.gap
        solver.parameters.linearization_level = 2  # the relaxation is tight, so it leads
        solver.parameters.cp_model_probing_level = 0  # and finds out nothing that is worth its time
        if solver.solve(self.model) not in (self.cp.OPTIMAL, self.cp.FEASIBLE):
            return None
        picks = []
        for name, chosen in self.chosen.items():
            number = next(n for n, literal in enumerate(chosen) if solver.boolean_value(literal))
            counted = (sum(map(solver.value, counts[name])) for counts in (self.blocks, self.tables))
            picks.append(Pick(number, *counted))
        return picks


def _sum(literals: Sequence[cp_model.IntVar], amounts: Sequence[int]) -> cp_model.LinearExprT:
    """The amount of the literal that is true."""
    return sum(count * literal for literal, count in zip(literals, amounts, strict=True) if count)
