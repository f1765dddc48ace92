"""The plan: how parallel each layer's engine is, which multipliers are blocks, and whether it all fits.

One optimisation over all layers (`convfold.compiler.solver`) takes of every layer one of the foldings that are possible, and
decides how many of its multipliers are hard blocks. The timetable of the whole pipeline then says exactly what latency and
interval come out; where they miss what was asked for, the solver is asked for a little more.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from .engines import WIRES, Choice, Stage
from .errors import CompileError
from .estimate import Resources, estimate
from .foldings import Foldings
from .graph import Graph, Input
from .pipeline import Pipeline, with_queues
from .schedule import Timetable, timetable
from .solver import KINDS, Goal, Problem, Solution, amount, solve
from .targets import TARGETS, Target

__all__ = ["FILL", "NAMES", "Plan", "Planner", "Stage", "Wish", "make_plan"]

FRAMES = 6
"""Frames in the timetable. The gaps between them already repeat: in one of some hundred networks with a period of five."""

FILL = 0.8
"""The share of a device's look-up tables, flip-flops and block RAMs that may be used: a fuller chip hardly routes."""

ROUNDS = 8
"""How often the solver is asked for more where the timetable misses a wish; after that the fastest there is must do."""

STEP = 0.005
"""The least interval is found to this part of it."""

UNIT = 10**9
"""What the whole of one resource weighs."""

NAMES = {"dsps": "multipliers (DSP)", "brams": "block RAMs", "luts": "LUTs", "ffs": "flip-flops"}


@dataclass(frozen=True)
class Plan:
    """A pipeline for one target: a stage a layer, in order, wired between AXI4-Stream edges."""

    graph: Graph
    target: Target
    stages: tuple[Stage, ...]
    pipeline: Pipeline
    planner: Planner = field(repr=False, compare=False)
    wish: Wish
    counted: Solution | None = field(repr=False, compare=False)
    """The solver's account of it; there is none of the most parallel plan, which is built when the solver knows no other."""

    @cached_property
    def timetable(self) -> Timetable:
        pipeline = self.pipeline
        return timetable(pipeline.edge_in, pipeline.components, pipeline.outputs, FRAMES)

    @cached_property
    def latency_cycles(self) -> int:
        """Of the first frame, which those behind it do not hold up."""
        pipeline = self.pipeline
        return timetable(pipeline.edge_in, pipeline.components, pipeline.outputs, 1).latency_cycles

    @property
    def interval_cycles(self) -> int:
        return self.timetable.interval_cycles

    @cached_property
    def resources(self) -> Resources:
        return estimate(self.pipeline, self.target)

    @property
    def bottleneck(self) -> Stage:
        return max(self.stages, key=lambda stage: stage.cycles)


def make_plan(
    graph: Graph, target: Target, fps: float | None = None, latency_us: float | None = None, fill: float = FILL
) -> Plan:
    """The smallest pipeline that reaches ``fps`` frames a second and answers within ``latency_us``, both at the target's
    planning clock; if neither is asked for, the fastest that the device holds. Without a device it is the smallest of all.

    Of look-up tables, flip-flops and block RAMs the share ``fill`` may be used, of multipliers all. Small is what takes the
    least sum of shares of the device: see `Planner.weights`. Fast is the least interval; among equals a percent of latency is
    worth a percent of one resource of the device.

    *Raises* ``CompileError`` for a graph without layers, for a speed that cannot be reached, and for a pipeline that does
    not fit, with the resource, what it needs, what there is, and what would fit.
    """
    for option, value, unit in (("--fps", fps, " frames/s is no rate"), ("--latency", latency_us, " µs is no time")):
        if value is not None and not 0 < value < math.inf:
            raise CompileError(option, f"{value:g}{unit}", "give a number above 0")
    if not 0 < fill <= 1:
        raise CompileError("--fill", f"{fill:g} is no share of a device", "give a number above 0 and up to 1")
    _check_layers(graph)
    planner = Planner(Foldings(graph, target), fill)
    wish = Wish(target, fps, latency_us)
    plan = planner.plan(wish)
    if plan is None:
        raise planner.refusal(wish)
    return plan


def _check_layers(graph: Graph) -> None:
    for name in graph.outputs:
        source = node = graph.node(name)
        while isinstance(source, WIRES):
            source = graph.node(source.inputs[0])
        if isinstance(source, Input):
            hint = "leave it out, or give the network a layer that computes"
            raise CompileError(node.source, "no layer computes this output: it is the input", hint)
    for node in graph.nodes:
        if not graph.consumers(node.name) and node.name not in graph.outputs:
            raise CompileError(node.source, "nothing reads its output", "leave it out, or make it an output")


@dataclass(frozen=True, slots=True)
class Wish:
    """How many frames a second and how long from first beat in to last beat out, each if it matters, on a target."""

    target: Target
    fps: float | None
    latency_us: float | None

    @property
    def interval(self) -> int | None:
        """Cycles a frame at the planning clock."""
        return None if self.fps is None else math.floor(self.target.plan_mhz * 1e6 / self.fps)

    @property
    def latency(self) -> int | None:
        """Cycles at the planning clock."""
        return None if self.latency_us is None else math.floor(self.target.plan_mhz * self.latency_us)

    def met(self, plan: Plan) -> bool:
        if self.latency is not None and plan.latency_cycles > self.latency:
            return False
        return self.interval is None or plan.interval_cycles <= self.interval


# ---------------------------------------------------------------------------------------------------------------- planner


@dataclass(frozen=True, slots=True)
class _Found:
    """What the solver chose: the folding and the blocks of each layer, and what follows by its own account."""

    chosen: Mapping[str, tuple[Choice, int, int]]
    solution: Solution


@dataclass(frozen=True)
class Planner:
    """The solver and the timetable in turns, for one graph on one target."""

    foldings: Foldings
    fill: float

    @property
    def target(self) -> Target:
        return self.foldings.target

    @cached_property
    def limits(self) -> dict[str, int]:
        """The most that may be used of each kind of cell that the device has."""
        have = self.target.resources()
        return {
            kind: count if kind == "dsps" else math.floor(self.fill * count)
            for kind in KINDS
            if (count := have[kind]) is not None
        }

    @cached_property
    def weights(self) -> dict[str, int]:
        """What one cell of each kind weighs: the share of the device that it is.

        A multiplier weighs an eighth of its share: it can do nothing else, so it should weigh less than the look-up tables and
        flip-flops that would multiply in its place. A block RAM weighs a quarter: its wires stay inside, while look-up tables
        and flip-flops make a chip hard to route. Without a device cells weigh as on an ECP5-85F.
        """
        have = (self.target if self.target.luts is not None else TARGETS["ecp5-85k"]).resources()
        return {kind: UNIT // (count * {"dsps": 8, "brams": 4}.get(kind, 1)) for kind in KINDS if (count := have[kind])}

    def area(self, resources: Resources) -> int:
        """What cells weigh together."""
        return sum(weight * amount(resources, kind) for kind, weight in self.weights.items())

    def plan(self, wish: Wish) -> Plan | None:
        """The smallest plan that holds a wish, or the fastest where there is none; ``None`` where the limits forbid it."""
        if wish.fps is None and wish.latency_us is None and self.target.luts is not None:
            return self._fastest(wish)
        return self._smallest(wish)

    def _smallest(self, wish: Wish) -> Plan | None:
        """As small as the solver knows, and made faster until the timetable agrees."""
        interval = self._most_cycles(wish)
        latency, rest = wish.latency, Resources()
        for _ in range(ROUNDS):
            found = self.solve("area", interval, latency, rest)
            if found is None:
                break
            plan = self.assemble(wish, found.chosen, found.solution)
            if wish.met(plan) and not self._lacking(plan):
                return plan
            if wish.latency is not None and plan.latency_cycles > wish.latency:
                late = plan.latency_cycles - found.solution.latency
                latency = wish.latency - late - late // 2  # the solver likes what it does not see, and will find more of it
            elif wish.interval is not None and plan.interval_cycles > wish.interval:
                interval = min(interval * wish.interval // plan.interval_cycles, found.solution.interval - 1)
            rest = _beside(plan, found)
        plan = self._most_parallel(wish)
        return plan if wish.met(plan) and not self._lacking(plan) else None

    def _most_cycles(self, wish: Wish) -> int:
        """The most that a layer may take for a frame: it is never busy for longer than the frame is on its way."""
        return min(cycles for cycles in (self.foldings.slowest, wish.interval, wish.latency) if cycles is not None)

    def _most_parallel(self, wish: Wish) -> Plan:
        """Every layer as fast as it can be."""
        quickest = {
            name: min(menu, key=lambda choice: (choice.cycles, choice.cost)) for name, menu in self.foldings.menus.items()
        }
        return self.assemble(wish, {name: (choice, 0, 0) for name, choice in quickest.items()}, None)

    def _fastest(self, wish: Wish) -> Plan | None:
        """The least interval that the limits and the wished latency allow."""
        latency, rest, interval = wish.latency, Resources(), self.plain_interval()
        for _ in range(ROUNDS):
            least = self._least_interval(latency, rest, interval)
            if least is None:
                return None
            interval = least
            # Where time counts options are compared by their area alone, and the one that would just fit may be missing.
            found = self.solve("area", interval, latency, rest, latency_weight=UNIT // interval)
            found = found or self.solve("area", interval, latency, rest)
            if found is None:
                return None
            plan = self.assemble(wish, found.chosen, found.solution)
            if not self._lacking(plan):
                return plan
            rest = _beside(plan, found)
        return None

    def _least_interval(self, latency: int | None, rest: Resources, guess: int) -> int | None:
        """The least interval at which something fits, to the part `STEP`."""
        paces = self.foldings.paces
        low, high = 0, bisect_left(paces, guess)
        while self.solve("any", paces[high], latency, rest) is None:
            if high == len(paces) - 1:
                return None
            low, high = high + 1, min(bisect_left(paces, paces[high] * 5 // 4), len(paces) - 1)
        middle = max(low, bisect_left(paces, paces[high] * 9 // 10))  # rarely less
        while low < high and paces[high] > paces[low] * (1 + STEP):
            if self.solve("any", paces[middle], latency, rest) is None:
                low = middle + 1
            else:
                high = middle
            middle = (low + high) // 2
        return paces[high]

    def plain_interval(self) -> int:
        """An interval at which the plainest foldings fit, those with the fewest multipliers, if there is one."""
        foldings = self.foldings

        def fits(interval: int) -> bool:
            options = foldings.plainest(interval)
            total = sum((option.cells for option in options), Resources())
            left = self.limits.get("dsps", 0) - total.dsps
            for option in sorted(options, key=lambda option: option.blocks, reverse=True):
                count = min(left, option.blocks)
                total += option.block * count
                left -= count
            return all(amount(total, kind) <= limit for kind, limit in self.limits.items())

        return foldings.paces[min(bisect_left(foldings.paces, True, key=fits), len(foldings.paces) - 1)]

    def solve(
        self,
        goal: Goal,
        interval: int,
        latency: int | None = None,
        rest: Resources | None = None,
        *,
        latency_weight: int = 0,
    ) -> _Found | None:
        """The solver's choice for a goal, with limits less what ``rest`` takes; ``None`` where there is none."""
        foldings = self.foldings
        if interval < foldings.fastest:
            return None
        listed = foldings.layers(interval, timed=latency is not None or latency_weight > 0)
        layers = tuple(layer for layer, _ in listed)
        taken = rest or Resources()
        problem = Problem(
            layers=layers,
            edges=tuple(foldings.edges(layers)),
            outputs=foldings.outputs,
            limits={kind: limit - amount(taken, kind) for kind, limit in self.limits.items()},
            weights=self.weights,
            interval=interval,
            latency=latency,
            latency_weight=latency_weight,
        )
        solution = solve(problem, goal)
        if solution is None:
            return None
        return _Found(
            {
                layer.name: (menu[pick.number], pick.blocks, pick.tables)
                for (layer, menu), pick in zip(listed, solution.picks, strict=True)
            },
            solution,
        )

    def assemble(self, wish: Wish, chosen: Mapping[str, tuple[Choice, int, int]], counted: Solution | None) -> Plan:
        """The plan of given foldings, each with its counts of blocks that multiply and of tables in block RAM."""
        foldings = self.foldings
        stages = {node.name: foldings.stage(node, *chosen[node.name]) for node in foldings.nodes}
        pipeline = with_queues(foldings.graph, stages, foldings.memory)
        return Plan(foldings.graph, self.target, tuple(stages.values()), pipeline, self, wish, counted)

    def _lacking(self, plan: Plan) -> list[str]:
        """The kinds of cells that a plan takes more of than it may, the scarcest first."""
        over = {
            kind: amount(plan.resources, kind) / max(limit, 1)
            for kind, limit in self.limits.items()
            if amount(plan.resources, kind) > limit
        }
        return sorted(over, key=lambda kind: over[kind], reverse=True)

    # Refusals.

    def refusal(self, wish: Wish) -> CompileError:
        """Why a wish cannot be met, and what can."""
        target, name = self.target, self.foldings.graph.name
        found = self.solve("share", self._most_cycles(wish), wish.latency)
        plan = None if found is None else self.assemble(wish, found.chosen, found.solution)
        lacking = [] if plan is None else self._lacking(plan)
        if plan is None or not lacking:
            return CompileError(target.name, self._too_slow(wish), self._what_fits(wish))
        kind = lacking[0]
        need, have = amount(plan.resources, kind), target.resources()[kind] or 0
        there = f"there are {have}" if need > have else f"{self.limits[kind]} of {have} may be used (--fill {self.fill:g})"
        return CompileError(target.name, f"{name} needs {need} {NAMES[kind]}, and {there}", self._what_fits(wish))

    def _too_slow(self, wish: Wish) -> str:
        """That a wish cannot be met whatever it costs."""
        name, clock, plan = self.foldings.graph.name, f"at {self.target.plan_mhz:g} MHz", self._most_parallel(wish)
        if wish.interval is not None and (wish.latency is None or plan.interval_cycles > wish.interval):
            return (
                f"{wish.fps:,.10g} frames/s {clock} leave {wish.interval} cycles a frame; {name} needs "
                f"{plan.interval_cycles} at its most parallel, and its slowest layer is '{plan.bottleneck.node.name}'"
            )
        return (
            f"{wish.latency_us:,.10g} µs {clock} are {wish.latency} cycles from first beat in to last beat out; {name} needs "
            f"{plan.latency_cycles} at its most parallel"
        )

    def _what_fits(self, wish: Wish) -> str:
        """The highest rate or the least latency that fits this target, and the smallest target that fits the wish."""
        hints = []
        if wish.fps is not None and (rate := self._highest_rate(wish)):
            hints.append(f"--fps {rate} fits")
        if wish.latency_us is not None and (time := self._least_latency(wish)):
            hints.append(f"--latency {time} fits")
        for other in TARGETS.values():
            larger = other.luts is not None and self.target.luts is not None and other.luts > self.target.luts
            if larger and Planner(Foldings(self.foldings.graph, other), self.fill).plan(replace(wish, target=other)):
                hints.append(f"--target {other.name} fits")
                break
        return ", or ".join(hints) or "use fewer channels, or fewer bits"

    def _highest_rate(self, wish: Wish) -> int:
        """A whole rate that fits, as high as the fastest plan's or little lower; 0 if there is none."""
        plan = self._fastest(wish)
        rate = 0 if plan is None else math.floor(min(wish.fps or 0, self.target.plan_mhz * 1e6 / plan.interval_cycles))
        while rate and self._smallest(replace(wish, fps=rate)) is None:
            rate = rate * 9 // 10
        return rate

    def _least_latency(self, wish: Wish) -> int:
        """A whole number of microseconds that fits, little more than the least; 0 if there is none."""
        interval = wish.interval or self._least_interval(None, Resources(), self.plain_interval())
        found = None if interval is None else self.solve("area", interval, latency_weight=1000 * UNIT)
        if found is None:
            return 0
        plan = self.assemble(wish, found.chosen, found.solution)
        time = math.ceil(max(wish.latency_us or 0, plan.latency_cycles / self.target.plan_mhz))
        for _ in range(ROUNDS):
            if self._smallest(replace(wish, latency_us=time)) is not None:
                return time
            time = math.ceil(time * 1.1)
        return 0


def _beside(plan: Plan, found: _Found) -> Resources:
    """What a plan takes beside what the solver counted: edges, forks and the queues in front of joins."""
    counted = found.solution.resources
    return Resources(**{kind: max(0, amount(plan.resources, kind) - amount(counted, kind)) for kind in KINDS})
