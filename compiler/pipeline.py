"""The pipeline: stages wired into a graph of streams, with forks, lane adapters and queues of computed depth.

Every reader of a tensor gets a branch of its own; a fork feeds them. Where branches meet again, the early ones wait in a
queue. How deep it must be follows from the timetable of all branches running freely: as deep as the most beats that have come
before the latest branch has theirs. So a run without any wait for room exists, and the pipeline cannot stop: see
`convfold.compiler.schedule` for why what runs once runs under every stall pattern.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, pairwise

import numpy as np
from numpy.typing import NDArray

from convfold.hdl.axi_stream import AxiStreamParams
from convfold.hdl.buffer import BufferParams
from convfold.hdl.fork import ForkParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.streams import beats

from .engines import WIRES, Stage
from .graph import Concat, Graph, Input, Node
from .numbers import Format
from .schedule import SOURCE, Component, Stopped, timetable

__all__ = ["Pipeline", "adapters", "assemble", "recounted_lanes", "with_queues"]

ENDLESS = 1 << 30
"""The depth of a queue that never fills, to see how deep it must be."""

_SIZING_FRAMES = 3
_SLACK = 2


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Components between the chip's edges, in topological order, and the streams that leave."""

    edge_in: AxiStreamParams
    components: tuple[Component, ...]
    outputs: tuple[tuple[str, AxiStreamParams], ...]


@dataclass(frozen=True, slots=True)
class _Stream:
    """Where a tensor comes from, in beats of how many lanes, and how many channels its pixels have."""

    port: str
    lanes: int
    channels: int


def adapters(form: Format, channels: int, before: int, after: int) -> list[LaneAdapterParams]:
    """What turns pixels in beats of ``before`` lanes into beats of ``after``: nothing, one adapter or two."""
    common = math.gcd(before, after)
    widths = [before] + [common] * (common not in (before, after)) + [after]
    return [LaneAdapterParams(channels, form.bits, form.signed, *pair) for pair in pairwise(widths) if pair[0] != pair[1]]


def recounted_lanes(lanes: int, channels: int, recounted: int) -> int:
    """The lanes of beats that can be read as beats of pixels of another number of channels."""
    return math.gcd(lanes, channels, recounted)


class _Wiring:
    """Components as they are added, and the branches that still have no reader."""

    def __init__(self, graph: Graph, stages: Mapping[str, Stage], memory: str) -> None:
        self.graph = graph
        self.stages = stages
        self.memory = memory
        self.components: list[Component] = []
        self.branches: dict[str, list[_Stream]] = {}
        self.names = {SOURCE, *stages}

    def fresh(self, name: str) -> str:
        numbered = (f"{name}{n}" for n in count(2))
        free = next(other for other in chain([name], numbered) if other not in self.names)
        self.names.add(free)
        return free

    def publish(self, tensor: str, stream: _Stream) -> None:
        """Make a tensor's stream, one branch a reader."""
        readers = sum(node.inputs.count(tensor) for node in self.graph.consumers(tensor)) + self.graph.outputs.count(tensor)
        if readers > 1:
            form = self.graph.format_of(tensor)
            name = self.fresh(f"{tensor}_fork")
            self.components.append(Component(name, ForkParams(form.bits, form.signed, stream.lanes, readers), (stream.port,)))
            self.branches[tensor] = [replace(stream, port=f"{name}.{n}") for n in range(readers)]
        else:
            self.branches[tensor] = [stream]

    def read(self, tensor: str, lanes: int, reader: str) -> _Stream:
        """A branch of a tensor in beats of ``lanes``: as it is, or through one adapter or, by a common divisor, two."""
        stream = self.branches[tensor].pop(0)
        for adapter in adapters(self.graph.format_of(tensor), stream.channels, stream.lanes, lanes):
            name = self.fresh(f"{reader}_lanes")
            self.components.append(Component(name, adapter, (stream.port,)))
            stream = _Stream(name, adapter.out_lanes, stream.channels)
        return stream

    def recount(self, node: Node) -> None:
        """Read the same beats as pixels of another number of channels."""
        (tensor,) = node.inputs
        channels = self.graph.shapes[node.name][2]
        held = self.branches[tensor][0]
        lanes = recounted_lanes(held.lanes, held.channels, channels)
        stream = self.read(tensor, lanes, node.name)
        self.publish(node.name, _Stream(stream.port, lanes, channels))

    def join(self, node: Node, stage: Stage, queued: Mapping[str, int]) -> tuple[str, ...]:
        """The ports of a layer's inputs, behind queues where ``queued`` gives them a depth."""
        ports = []
        for n, tensor in enumerate(node.inputs):
            stream = self.read(tensor, stage.in_lanes, node.name)
            name = f"{node.name}_queue{n}"
            if name in queued:
                form = self.graph.format_of(tensor)
                name = self.fresh(name)
                queue = BufferParams(form.bits, form.signed, stream.lanes, queued[name], self.memory)
                self.components.append(Component(name, queue, (stream.port,)))
                stream = replace(stream, port=name)
            ports.append(stream.port)
        return tuple(ports)


def _entry_lanes(graph: Graph, stages: Mapping[str, Stage], tensor: str) -> int:
    """The widest beats that a reader of the network's input takes, and no wider than its channels."""
    channels = graph.shapes[tensor][2]
    lanes = 1
    for node in graph.consumers(tensor):
        if isinstance(node, WIRES):
            wanted = _entry_lanes(graph, stages, node.name)
            whole = graph.shapes[node.name][2] % wanted == 0 and channels % wanted == 0
            lanes = max(lanes, wanted if whole else 1)
        else:
            lanes = max(lanes, stages[node.name].in_lanes)
    return min(lanes, channels)


def assemble(graph: Graph, stages: Mapping[str, Stage], memory: str, queued: Mapping[str, int]) -> Pipeline:
    """The pipeline of all ``stages``; ``queued`` gives the depths of queues in front of joins, by name."""
    wiring = _Wiring(graph, stages, memory)
    entry = graph.input.name
    edge_in = _edge(graph, entry, _entry_lanes(graph, stages, entry))
    for node in graph.nodes:
        if isinstance(node, Input):
            wiring.publish(entry, _Stream(SOURCE, edge_in.lanes, node.shape[2]))
        elif isinstance(node, WIRES):
            wiring.recount(node)
        else:
            stage = stages[node.name]
            ports = wiring.join(node, stage, queued)
            wiring.components.append(Component(node.name, stage.engine, ports))
            wiring.publish(node.name, _Stream(node.name, stage.out_lanes, graph.shapes[node.name][2]))
    outputs = []
    for tensor in graph.outputs:
        stream = wiring.branches[tensor].pop(0)
        outputs.append((stream.port, _edge(graph, tensor, stream.lanes)))
    return Pipeline(edge_in, tuple(wiring.components), tuple(outputs))


def _edge(graph: Graph, tensor: str, lanes: int) -> AxiStreamParams:
    height, width, channels = graph.shapes[tensor]
    form = graph.format_of(tensor)
    return AxiStreamParams(height * width, channels, lanes, form.bits, form.signed)


# ---------------------------------------------------------------------------------------------------------------- queues


def with_queues(graph: Graph, stages: Mapping[str, Stage], memory: str) -> Pipeline:
    """The pipeline with queues of computed depth in front of its joins.

    With endless queues every branch runs freely, and the timetable tells when its beats arrive. A join could take pixel ``n``
    once the latest branch has it: what has arrived by then on another branch, less what was taken before, must have had room.
    With so much room the slowest stage alone sets the pace. `_SLACK` covers the registers of queue and join.

    That can be too little where a slow stage is between two joins: it holds back the first, and so the second's latest branch,
    while its own beats go on coming. If so the timetable stops, and the queues of beats that wait there become as deep as they
    are ever full.
    """
    joins = [node for node in graph.nodes if len(node.inputs) > 1]
    if not joins:
        return assemble(graph, stages, memory, {})
    inputs = {node.name: [f"{node.name}_queue{n}" for n in range(len(node.inputs))] for node in joins}
    endless = {name: ENDLESS for names in inputs.values() for name in names}
    free = assemble(graph, stages, memory, endless)
    arrivals = timetable(free.edge_in, free.components, free.outputs, _SIZING_FRAMES).arrivals
    room: dict[str, int] = {}
    for node in joins:
        lanes = stages[node.name].in_lanes
        # A concatenation takes the beats of a pixel in turn, the others take one of each input at a time.
        whole = [beats(graph.shapes[name][2], lanes) if isinstance(node, Concat) else 1 for name in node.inputs]
        times = [np.asarray(arrivals[name]) for name in inputs[node.name]]
        room |= zip(inputs[node.name], _room(times, whole), strict=True)
    depths = {name: depth + _SLACK for name, depth in room.items() if depth > 1}
    while True:
        pipeline = assemble(graph, stages, memory, depths)
        frames = _SIZING_FRAMES if ENDLESS in depths.values() else 1  # where one frame passes, all do
        try:
            occupancy = timetable(pipeline.edge_in, pipeline.components, pipeline.outputs, frames).occupancy
        except Stopped as stopped:
            ports = {part.name: part.inputs for part in pipeline.components}
            pairs = (pair for name, queues in inputs.items() for pair in zip(ports[name], queues, strict=True))
            held = {queue for port, queue in pairs if port in stopped.held and depths.get(queue) != ENDLESS}
            if not held:
                raise
            depths |= dict.fromkeys(held, ENDLESS)
        else:
            if frames == 1:
                return pipeline
            enough = {name: max(occupancy[name], 2) for name, depth in depths.items() if depth == ENDLESS}
            return assemble(graph, stages, memory, depths | enough)


def _room(arrivals: Sequence[NDArray[np.int64]], whole: Sequence[int]) -> list[int]:
    """The most beats that wait on each input of a join which takes ``whole`` beats of each as soon as all are there."""
    taken = np.max([times[size - 1 :: size] for times, size in zip(arrivals, whole, strict=True)], axis=0)
    before = np.arange(len(taken))
    return [
        int(np.max(np.searchsorted(times, taken, side="right") - size * before))
        for times, size in zip(arrivals, whole, strict=True)
    ]
