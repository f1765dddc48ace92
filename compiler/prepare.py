"""A real graph in the form that quantization takes, and who shares a format with whom."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .calibrate import Limits, clip_limits
from .evaluate import real_array
from .graph import (
    Add,
    ArgMax,
    Array,
    AveragePool,
    BatchNorm,
    ChannelShuffle,
    Clip,
    Concat,
    Conv2D,
    Crop,
    Dense,
    DepthToSpace,
    Dropout,
    Flatten,
    Graph,
    Input,
    MaxPool,
    Multiply,
    Node,
    Pad,
    Pointwise,
    Prelu,
    Reshape,
    ScaleBias,
    Slice,
    SpaceToDepth,
    Upsample,
)
from .passes.lower_linear import lower_linear
from .passes.rewrite import fresh_name, sole_consumer

Mover = Slice | ChannelShuffle | DepthToSpace | SpaceToDepth | Upsample | Pad | Crop | Reshape | Flatten
Elementwise = BatchNorm | ScaleBias | Pointwise | Prelu | Clip
"""What a table can hold."""
Keeper = Mover | MaxPool | AveragePool | Dropout
"""What has its input's format."""
Maker = Conv2D | Dense | Add | Multiply | Elementwise
"""What has a format of its own."""


def prepare(graph: Graph) -> Graph:
    """The graph with two inputs a sum, and a scale of 1 where a tensor cannot have the format of what reads it.

    In front of a concat that is the network's input, and a tensor that others read: they would have its format too,
    however coarse. In front of padding it is the network's input where that cannot hold the value.
    """
    return _requantized(_pairwise(lower_linear(graph)))


def _pairwise(graph: Graph) -> Graph:
    """A sum of many as sums of two, one behind the other."""
    nodes: list[Node] = []
    taken = set(graph.shapes)
    for node in graph.nodes:
        first, *others = node.inputs or ("",)
        while isinstance(node, Add) and len(others) > 1:
            nodes.append(replace(node, name=fresh_name(f"{node.name}_part", taken), inputs=(first, others.pop(0))))
            first = nodes[-1].name
        nodes.append(replace(node, inputs=(first, *others)) if isinstance(node, Add) else node)
    return replace(graph, nodes=tuple(nodes)) if len(nodes) > len(graph.nodes) else graph


def _requantized(graph: Graph) -> Graph:
    nodes: list[Node] = []
    weights: dict[str, Array] = {}
    taken = set(graph.shapes)
    fused = fuse_clips(graph).fused
    for node in graph.nodes:
        inputs = list(node.inputs)
        for number, name in enumerate(node.inputs):
            if _needs_own_format(graph, node, name, fused):
                scale = ScaleBias(name=fresh_name(f"{node.name}_{name}", taken), inputs=(name,), source=node.source)
                channels = graph.shapes[name][2]
                weights |= {f"{scale.name}.scale": np.ones(channels), f"{scale.name}.bias": np.zeros(channels)}
                nodes.append(scale)
                inputs[number] = scale.name
        nodes.append(replace(node, inputs=tuple(inputs)))
    return replace(graph, nodes=tuple(nodes), weights={**graph.weights, **weights}) if weights else graph


def _needs_own_format(graph: Graph, node: Node, name: str, fused: frozenset[str]) -> bool:
    if isinstance(node, Concat):
        return not _can_share(graph, name, fused)
    if isinstance(node, Pad):  # with what the network's input cannot hold
        source = graph.node(name)
        while isinstance(source, Keeper):
            source = graph.node(source.inputs[0])
        return isinstance(source, Input) and not min(source.low, 0.0) <= node.value <= max(source.high, 0.0)
    return False


def _can_share(graph: Graph, name: str, fused: frozenset[str]) -> bool:
    """Whether nothing but one reader needs the format of a tensor, nor that of those it is moved from."""
    node = graph.node(name)
    if sole_consumer(graph, name) is None or isinstance(node, Input | ArgMax):
        return False
    passes = isinstance(node, Keeper | Concat) or name in fused
    return not passes or all(_can_share(graph, one, fused) for one in node.inputs)


# ---------------------------------------------------------------------------------------------------------------- clips


@dataclass(frozen=True, slots=True)
class Fused:
    """``limits`` of each tensor that an operator makes anew, clips taken over included; and the clips that are ``fused``."""

    limits: dict[str, Limits]
    fused: frozenset[str]


def fuse_clips(graph: Graph) -> Fused:
    """Clips become limits of what feeds them, through all that only moves samples, if nothing else reads it."""
    limits: dict[str, Limits] = {}
    fused: set[str] = set()
    for node in graph.nodes:
        if isinstance(node, Clip):
            takers = list(_takers(graph, node, fused))
            if None not in takers:
                fused.add(node.name)
                for name in filter(None, takers):
                    limits[name] = clip_limits(limits[name], (node.low, node.high))
                continue
        if isinstance(node, Maker | AveragePool):
            limits[node.name] = (-math.inf, math.inf)
    return Fused(limits, frozenset(fused))


def _takers(graph: Graph, clip: Clip, fused: set[str]) -> Iterator[str | None]:
    """The operators that have to take over a clip; ``None`` among them if one cannot."""
    names = list(clip.inputs)
    while names:
        node = graph.node(names.pop())
        keeps = not isinstance(node, Pad) or clip.low <= node.value <= clip.high
        if sole_consumer(graph, node.name) is None or isinstance(node, Input | ArgMax) or not keeps:
            yield None
        elif isinstance(node, Mover | MaxPool | Dropout | Concat) or node.name in fused:
            names += node.inputs
        else:
            yield node.name


# -------------------------------------------------------------------------------------------------------------- formats


class Families:
    """Tensors that share one format: a family has the name of one of its makers, and knows them all."""

    def __init__(self, graph: Graph, fused: frozenset[str]) -> None:
        self._parent: dict[str, str] = {}
        self.makers: dict[str, list[Node]] = {}
        self.pads: dict[str, list[float]] = {}
        for node in graph.nodes:
            if isinstance(node, Keeper | Concat) or node.name in fused:
                first, *others = (self.of(name) for name in node.inputs)
                for other in others:
                    self._merge(first, other)
                self._parent[node.name] = first
                if isinstance(node, Pad):
                    self.pads[first].append(node.value)
            else:
                self._parent[node.name] = node.name
                self.makers[node.name], self.pads[node.name] = [node], []

    def of(self, name: str) -> str:
        """The family of a tensor."""
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def _merge(self, one: str, other: str) -> None:
        one, other = self.of(one), self.of(other)
        if one != other:
            self._parent[other] = one
            self.makers[one] += self.makers.pop(other)
            self.pads[one] += self.pads.pop(other)


# --------------------------------------------------------------------------------------------------------------- tables


def absorbed_nodes(graph: Graph, fused: frozenset[str]) -> frozenset[str]:
    """The pointwise operators that another one behind them takes into its own table."""
    names = set()
    for node in graph.nodes:
        if isinstance(node, Elementwise) and node.name not in fused:
            reader = sole_consumer(graph, node.name)
            while reader is not None and reader.name in fused:
                reader = sole_consumer(graph, reader.name)
            if isinstance(reader, Elementwise):
                names.add(node.name)
    return frozenset(names)


def add_factor(graph: Graph, name: str) -> tuple[str, float]:
    """What a sum reads in the place of one of its inputs, and the factor: a scale of all channels alike is a part of it."""
    node = graph.node(name)
    if isinstance(node, ScaleBias) and sole_consumer(graph, name) is not None:
        scale, bias = real_array(graph, f"{name}.scale"), real_array(graph, f"{name}.bias")
        if not bias.any() and (scale == scale[0]).all() and scale[0]:
            return node.inputs[0], float(scale[0])
    return name, 1.0
