"""What the planner chooses from: every layer's foldings as options of the solver, and what stands between them.

A folding costs what `estimate.stage_resources` says of the engine that would be built. Engines are costed only where they are
needed, and once: most foldings are too slow for the interval at hand, or clearly too large.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from convfold.hdl.conv import ConvParams
from convfold.hdl.global_pool import GlobalPoolParams
from convfold.hdl.multiplier import FAMILIES
from convfold.hdl.streams import beats

from .engines import WIRES, Choice, Fixed, Stage, block_products, blocks, choices, fixed_parts, make_stage
from .estimate import Resources, part_resources, stage_resources
from .graph import Graph, Input, Node, QAveragePool
from .pipeline import adapters, recounted_lanes
from .solver import KINDS, STREAMING, Edge, Layer, Option, amount
from .targets import Target

__all__ = ["Foldings"]

WASTE = 2
"""A folding is left out if another one as fast has not half as many multipliers."""
SAMPLE = 64
"""Of an engine of up to so many multipliers it is seen what a block saves."""
FEW_LUTS = 16
"""Weights that take no more look-up tables than so many are not worth a block RAM."""
AHEAD, AHEAD_OF_TIME = 2, 4
"""Of layers that are more than so many times faster than the interval only the smallest folding is of interest; the second
where the latency counts, too."""


@dataclass(frozen=True)
class Foldings:
    """The foldings of all layers of a graph on a target, and the streams between them."""

    graph: Graph
    target: Target
    _options: dict[tuple[str, Choice], Option] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for node in self.graph.nodes if not isinstance(node, (Input, *WIRES)))

    @cached_property
    def menus(self) -> Mapping[str, tuple[Choice, ...]]:
        return {node.name: tuple(choices(self.graph, node)) for node in self.nodes}

    @cached_property
    def fixed(self) -> Mapping[str, Fixed]:
        return fixed_parts(self.graph)

    @property
    def memory(self) -> str:
        """The family of the memories."""
        return "ecp5" if self.target.family == "ecp5" else "behavioural"

    def stage(self, node: Node, choice: Choice, count: int, tables: int = 0) -> Stage:
        """The engine of a layer with so many hard blocks that multiply, and weights in so many more of block RAM."""
        family = self.target.family if self.target.family in FAMILIES else "behavioural"
        hard = self._hard_within(count, node, choice) if count else 0
        return make_stage(self.graph, node, choice, self.fixed.get(node.name), family, hard, self.memory, tables)

    @property
    def fastest(self) -> int:
        """Cycles a frame of the slowest layer where all are as parallel as they can be."""
        return max(min(choice.cycles for choice in menu) for menu in self.menus.values())

    @property
    def slowest(self) -> int:
        """Cycles a frame of the slowest layer where none is parallel."""
        return max(max(choice.cycles for choice in menu) for menu in self.menus.values())

    @cached_property
    def paces(self) -> tuple[int, ...]:
        """The cycles a frame that the slowest layer may take."""
        cycles = {choice.cycles for menu in self.menus.values() for choice in menu}
        return tuple(sorted(count for count in cycles if count >= self.fastest))

    # For the solver.

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """The layers that make the network's outputs."""
        makers = (self._origin(name)[0] for name in self.graph.outputs)
        return tuple(dict.fromkeys(node.name for node in makers if node is not None))

    def plainest(self, interval: int) -> list[Option]:
        """Every layer's option with the fewest multipliers that is as fast as an interval."""
        return [
            self._option(node, min((c for c in self.menus[node.name] if c.cycles <= interval), key=lambda choice: choice.cost))
            for node in self.nodes
        ]

    def layers(self, interval: int, *, timed: bool) -> list[tuple[Layer, list[Choice]]]:
        """Every layer with the options that are of interest for an interval, and for a latency if ``timed``; and their choices.

        Where time counts, too, most would be of some interest: then beats have to be whole, if they can.
        """
        found = []
        for node in self.nodes:
            menu: Sequence[Choice] = self.menus[node.name]
            if timed:
                menu = self._whole(node, interval) or menu
            menu = _of_interest(menu, interval, interval // (AHEAD_OF_TIME if timed else AHEAD))
            options = tuple(self._option(node, choice) for choice in menu)
            reads_input = any(self._origin(name)[0] is None for name in node.inputs)
            found.append((Layer(node.name, options, self._needs[node.name], reads_input), menu))
        return found

    def _whole(self, node: Node, interval: int) -> list[Choice]:
        """The foldings that are fast enough and have no beat that is partly empty."""
        shapes = self.graph.shapes
        channels, filters = shapes[node.inputs[0]][2], shapes[node.name][2]
        return [
            choice
            for choice in self.menus[node.name]
            if choice.cycles <= interval and channels % choice.lanes == 0 and filters % choice.rows == 0
        ]

    def edges(self, layers: Sequence[Layer]) -> list[Edge]:
        """The streams between layers, with what stands between the lanes of their options."""
        lanes = {
            layer.name: tuple(sorted({getattr(option, side) for option in layer.options}) for side in ("out_lanes", "in_lanes"))
            for layer in layers
        }
        found = []
        for node in self.nodes:
            for tensor in node.inputs:
                maker, path = self._origin(tensor)
                if maker is not None:
                    pairs = ((before, after) for before in lanes[maker.name][0] for after in lanes[node.name][1])
                    joints = {pair: joint for pair in pairs if (joint := self._joint(path, *pair)) is not None}
                    found.append(Edge(maker.name, node.name, joints))
        return found

    def _origin(self, tensor: str) -> tuple[Node | None, list[str]]:
        """The layer that makes a tensor, None for the input, and the tensors from its own to this one."""
        path, node = [tensor], self.graph.node(tensor)
        while isinstance(node, WIRES):
            path.insert(0, node.inputs[0])
            node = self.graph.node(node.inputs[0])
        return None if isinstance(node, Input) else node, path

    def _joint(self, path: Sequence[str], before: int, after: int) -> tuple[int, Resources] | None:
        """Cycles and cost of what turns beats of some lanes, over tensors that are the same samples, into beats of others."""
        shapes, form = self.graph.shapes, self.graph.format_of(path[0])
        cycles, total, lanes = 0, Resources(), before
        for n, tensor in enumerate(path):
            height, width, channels = shapes[tensor]
            last = n == len(path) - 1
            wanted = after if last else recounted_lanes(lanes, channels, shapes[path[n + 1]][2])
            for adapter in adapters(form, channels, lanes, wanted):
                cycles = max(cycles, height * width * adapter.ii)
                total += stage_resources(adapter, self.target)
            lanes = wanted
        return (cycles, total) if cycles else None

    def _option(self, node: Node, choice: Choice) -> Option:
        key = node.name, choice
        if key not in self._options:
            stage = self.stage(node, choice, 0)
            height, width, channels = self.graph.input.shape
            count, block = self._block(node, choice)
            tables, table = self._tables(stage)
            self._options[key] = Option(
                cycles=choice.cycles,
                in_lanes=stage.in_lanes,
                out_lanes=stage.out_lanes,
                blocks=count,
                block=block,
                cells=stage_resources(stage.engine, self.target),
                fill_cycles=height * width * beats(channels, min(choice.lanes, channels)),
                delay_cycles=stage.engine.latency,
                tables=tables,
                table=table,
            )
        return self._options[key]

    @cached_property
    def _products(self) -> Mapping[str, int]:
        """How many multipliers a block makes, by layer: 0 where there are no blocks for it. A pooling only adds."""
        return {
            node.name: block_products(self.graph, node, self.target.family)
            if self.target.dsps and not isinstance(node, QAveragePool)
            else 0
            for node in self.nodes
        }

    def _blocks(self, node: Node, choice: Choice, hard: int) -> int:
        """How many blocks hold so many of a folding's multipliers."""
        return blocks(choice, hard, self._products[node.name], self.target.family)

    def _hard_within(self, count: int, node: Node, choice: Choice) -> int:
        """The most multipliers that so many blocks hold."""
        return max(n for n in range(choice.multipliers + 1) if self._blocks(node, choice, n) <= count)

    def _block(self, node: Node, choice: Choice) -> tuple[int, Resources]:
        """How many blocks hold a folding's multipliers, and what each of them takes more than those in fabric."""
        if not self._products[node.name] or not choice.multipliers:
            return 0, Resources()
        count = self._blocks(node, choice, choice.multipliers)
        saved = self._savings[node.name]
        more = {kind: -math.floor(saved[kind] * choice.multipliers / count) for kind in KINDS}
        return count, Resources(**more | {"dsps": 1})

    def _tables(self, stage: Stage) -> tuple[int, Resources]:
        """How many elements have weights in look-up tables, and what each takes more with them in block RAM."""
        core = stage.core
        if not isinstance(core, ConvParams) or self.memory != "ecp5" or core.together > 1 or core.mac_row.rom_of(0).in_blocks:
            return 0, Resources()
        table = core.mac_row.rom_of(0)
        few, block = (part_resources(rom, self.target.family) for rom in (table, replace(table, kind="ecp5_block")))
        if few.luts <= FEW_LUTS:
            return 0, Resources()
        return core.rows * core.pes, Resources(**{kind: amount(block, kind) - amount(few, kind) for kind in KINDS})

    @cached_property
    def _savings(self) -> Mapping[str, Mapping[str, float]]:
        """What each multiplier in a block takes less than one in fabric, by layer and kind."""
        found = {}
        for node in self.nodes:
            folded = [choice for choice in self.menus[node.name] if 0 < choice.multipliers <= SAMPLE]
            if self._products[node.name] and folded:
                choice = max(folded, key=lambda choice: choice.multipliers)
                count = self._blocks(node, choice, choice.multipliers)
                hard, soft = (stage_resources(self.stage(node, choice, n).engine, self.target) for n in (count, 0))
                found[node.name] = {kind: (amount(soft, kind) - amount(hard, kind)) / choice.multipliers for kind in KINDS}
        return found

    @cached_property
    def _needs(self) -> Mapping[str, tuple[tuple[float, float], ...]]:
        """How much of its output each layer has still to make when so much of its input has come."""
        found: dict[str, tuple[tuple[float, float], ...]] = {}
        for node in self.nodes:
            stage = self.stage(node, self.menus[node.name][0], 0)
            window = stage.window
            if isinstance(stage.engine, GlobalPoolParams):
                last = 1 / stage.engine.pixels
                found[node.name] = ((1 - last, last), (0.0, 1.0))
            elif window is None:
                found[node.name] = STREAMING
            else:
                outputs, inputs = window.needed.size, window.height * window.width
                corners = _corners(window.needed.tolist())
                found[node.name] = tuple((come / inputs, 1 - made / outputs) for come, made in corners)
        return found


def _corners(needed: Sequence[int]) -> list[tuple[int, int]]:
    """How many inputs must have come when so many outputs are made, where no line between two others asks for as many."""
    kept: list[tuple[int, int]] = []
    for made, come in enumerate(needed):
        if kept and come <= kept[-1][0]:
            continue
        while len(kept) > 1:
            (come0, made0), (come1, made1) = kept[-2:]
            if (come1 - come0) * (made - made0) > (come - come0) * (made1 - made0):
                break
            kept.pop()
        kept.append((come, made))
    return kept


def _of_interest(menu: Sequence[Choice], interval: int, near: int) -> list[Choice]:
    """The foldings that are fast enough, without those that are clearly worse than another one; ``near`` cycles are enough."""
    paces: dict[int, list[Choice]] = defaultdict(list)
    for choice in menu:
        if choice.cycles <= interval:
            paces[max(choice.cycles, near)].append(choice)
    kept: dict[tuple[int, int], list[tuple[tuple[int, int, int], Choice]]] = defaultdict(list)
    fewest = max((choice.multipliers for choice in menu), default=0)
    for pace in sorted(paces):
        fewest = min(fewest, *(choice.multipliers for choice in paces[pace]))
        for choice in sorted(paces[pace], key=_measures):
            same, measures = kept[choice.lanes, choice.rows], _measures(choice)
            worse = any(all(a <= b for a, b in zip(other, measures, strict=True)) for other, _ in same)
            if choice.multipliers <= WASTE * fewest and not worse:
                same.append((measures, choice))
    return [choice for same in kept.values() for _measures, choice in same]


def _measures(choice: Choice) -> tuple[int, int, int]:
    """What makes a folding large, apart from its lanes."""
    return choice.multipliers, choice.rows * choice.pes, choice.parallel[0] * choice.parallel[1]
