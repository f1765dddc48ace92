"""Check certificates by another route, and try to beat them.

*Recomputed*: every operator as an explicit matrix, read off its answers to impulses, and bounds by back substitution: a
linear function of a tensor becomes one of the tensors before it, until it is one of the input, where its least value
over a box is plain to see. A clip is replaced by a line that keeps below it, or by one that keeps above, as the sign of
its weight demands. Only for small networks: the matrices are dense.

*Attacked*: a search for inputs in the declared range that leave the certified bounds. Random values, random corners,
the corners that the gradient points to (for one affine map, the very corner where the bound is attained), then single
values changed where that helps. Nothing here knows how a certificate was made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .evaluate import apply_node, evaluate
from .graph import Certificate, Clip, Graph, Input, Linear, MaxPool, Node
from .numbers import RealArray

TRIES = 10_000
"""Inputs on which a certificate is attacked."""
MATRIX_VALUES = 1 << 24
"""Values of the greatest matrix that is written out (128 MiB)."""

Range = tuple[RealArray, RealArray]


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """What a check of a certificate found, each channel by channel.

    ``found`` is the range of the values that the attack reached, ``recomputed`` the bounds by back substitution; none
    for a network that is too big for it.
    """

    certificate: Certificate
    found: Range
    recomputed: Range | None

    @property
    def beaten(self) -> bool:
        """Whether an input was found that leaves the certified bounds."""
        low, high = self.found
        return bool((low < self.certificate.low).any() or (high > self.certificate.high).any())

    @property
    def justified(self) -> bool:
        """Whether the certificate's own numbers justify its rule."""
        return justifies(self.certificate, (np.array(self.certificate.low), np.array(self.certificate.high)))

    @property
    def confirmed(self) -> bool:
        """Whether the recomputed numbers justify it too."""
        return self.recomputed is not None and justifies(self.certificate, self.recomputed)


def check(graph: Graph, certificate: Certificate, tries: int = TRIES, seed: int = 0) -> Check:
    """Recompute and attack a certificate on any graph that has its tensor."""
    found = attack(graph, certificate.tensor, tries, seed)
    return Check(certificate, found, recompute(graph, certificate.tensor))


def justifies(certificate: Certificate, bounds: Range) -> bool:
    """Whether bounds of a clip's input are enough for a certificate's rule.

    *Raises* ``ValueError`` for an unknown rule.
    """
    channels = list(certificate.channels)
    low, high = bounds[0][channels], bounds[1][channels]
    floor, ceiling = certificate.limits
    floor, ceiling = -math.inf if floor is None else floor, math.inf if ceiling is None else ceiling
    above, below = bool((low >= floor).all()), bool((high <= ceiling).all())
    match certificate.rule:
        case "identity":
            return above and below
        case "floor":
            return above
        case "ceiling":
            return below
        case "constant":
            return bool(((high <= floor) | (low >= ceiling)).all())
    raise ValueError(f"rule must be identity, floor, ceiling or constant, not {certificate.rule!r}")


# ------------------------------------------------------------------------------------------------------------ attacking


def attack(graph: Graph, tensor: str, tries: int = TRIES, seed: int = 0) -> Range:
    """The least and the greatest value found in each channel of a tensor, with at most ``tries`` inputs."""
    return _Attack(graph, tensor, tries, seed).run()


class _Attack:
    """The extremes so far: for each channel, least first, the value and the input that gives it."""

    def __init__(self, graph: Graph, tensor: str, tries: int, seed: int) -> None:
        self.graph, self.tensor, self.left = graph, tensor, tries
        self.rng = np.random.default_rng(seed)
        self.low, self.high = graph.input.low, graph.input.high
        self.size = math.prod(graph.input.shape)
        channels = graph.shapes[tensor][2]
        self.best = np.full(2 * channels, -math.inf)  # least values with their signs changed, then greatest values
        self.at = np.empty((2 * channels, self.size))

    def run(self) -> Range:
        ends = np.array([[(self.low + self.high) / 2], [self.low], [self.high]])
        self._try(np.tile(ends, self.size))
        self._follow_gradients(np.tile(ends, self.size))
        self._try(self._random(self.left // 4))
        before = np.full_like(self.best, -math.inf)
        while self.left and (self.best > before).any():
            before = self.best
            self._follow_gradients(np.unique(self.at, axis=0))
            self._change_single_values()
        self._try(self._mutants(self.left))
        channels = len(self.best) // 2
        return -self.best[:channels], self.best[channels:]

    def _try(self, x_bn: RealArray) -> RealArray:
        """The tensor's values for as many of these inputs as may still be tried, ``(B, positions, C)``."""
        x_bn = x_bn[: self.left]
        self.left -= len(x_bn)
        channels = len(self.best) // 2
        if not len(x_bn):
            return np.empty((0, 1, channels))
        y_bhwc = evaluate(self.graph, x_bn.reshape(-1, *self.graph.input.shape), {self.tensor})[self.tensor]
        y_bpc = y_bhwc.reshape(len(x_bn), -1, channels)
        reached = np.concatenate([-y_bpc.min(axis=1), y_bpc.max(axis=1)], axis=1)
        winner = reached.argmax(axis=0)
        better = reached.max(axis=0) > self.best
        self.best = np.where(better, reached.max(axis=0), self.best)
        self.at = np.where(better[:, None], x_bn[winner], self.at)
        return y_bpc

    def _random(self, count: int) -> RealArray:
        x_bn = self.rng.uniform(self.low, self.high, (count, self.size))
        corners = np.where(self.rng.random(x_bn.shape) < self.rng.random((count, 1)), self.high, self.low)
        return np.where(self.rng.random((count, 1)) < 0.5, x_bn, corners)

    def _follow_gradients(self, x_pn: RealArray) -> None:
        """From some inputs, the corners where each element of the tensor would be least, and greatest, if linear."""
        x_pn = x_pn[: self.left // (self.size + 1)]
        if not len(x_pn):
            return
        step = np.where(x_pn < (self.low + self.high) / 2, 1, -1) * (self.high - self.low) / 1024
        moved = np.concatenate([x_pn[:, None], x_pn[:, None] + step[:, :, None] * np.eye(self.size)], axis=1)
        y_pns = self._try(moved.reshape(-1, self.size)).reshape(len(x_pn), self.size + 1, -1)
        slopes = (y_pns[:, 1:] - y_pns[:, :1]) / step[:, :, None]
        corners = np.where(slopes.swapaxes(1, 2).reshape(-1, self.size) > 0, self.high, self.low)
        self._try(np.unique(np.concatenate([corners, self.low + self.high - corners]), axis=0))

    def _change_single_values(self) -> None:
        """From every extreme, one value after the other to the other end."""
        other = np.where(self.at < (self.low + self.high) / 2, self.high, self.low)
        changed = np.where(np.eye(self.size, dtype=bool), other[:, None], self.at[:, None])
        self._try(changed.reshape(-1, self.size))

    def _mutants(self, count: int) -> RealArray:
        """Extremes with a few values changed at random."""
        x_bn = self.at[self.rng.integers(len(self.at), size=count)]
        changed = self.rng.random(x_bn.shape) < self.rng.uniform(0, 0.5, (count, 1))
        return np.where(changed, self._random(count), x_bn)


# ---------------------------------------------------------------------------------------------------------- recomputing


@dataclass(frozen=True, slots=True, eq=False)
class _Lines:
    """``slope·x[pick] + offset`` below and above each value of a node that is not linear."""

    pick: NDArray[np.int64]
    below: Range
    above: Range


def recompute(graph: Graph, tensor: str) -> Range | None:
    """Bounds of each channel of a tensor by back substitution; none where a matrix would be too big."""
    needed = _ancestors(graph, tensor)
    if max(math.prod(graph.shapes[node.name]) for node in needed) ** 2 > MATRIX_VALUES:
        return None
    low, high = (end.reshape(graph.shapes[tensor]) for end in _Substitution(graph, needed).ranges[tensor])
    return low.min(axis=(0, 1)), high.max(axis=(0, 1))


def _ancestors(graph: Graph, tensor: str) -> list[Node]:
    wanted = {tensor}
    for node in reversed(graph.nodes):
        if node.name in wanted:
            wanted.update(node.inputs)
    return [node for node in graph.nodes if node.name in wanted]


class _Substitution:
    """Every node written out: offset and matrices of the linear ones, lines for the others; and a range for each."""

    def __init__(self, graph: Graph, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.sizes = {node.name: math.prod(graph.shapes[node.name]) for node in nodes}
        self.offsets: dict[str, RealArray] = {}
        self.matrices: dict[str, list[RealArray]] = {}
        self.lines: dict[str, _Lines] = {}
        self.ranges: dict[str, Range] = {}
        for node in nodes:
            before = [self.ranges[name] for name in node.inputs]
            match node:
                case Input():
                    everything = np.ones(self.sizes[node.name])
                    self.ranges[node.name] = node.low * everything, node.high * everything
                    continue
                case Linear():
                    self.offsets[node.name], self.matrices[node.name] = _matrices(graph, node)
                case Clip():
                    self.lines[node.name] = _clip_lines(node, before[0])
                case MaxPool():
                    self.lines[node.name] = _pool_lines(graph, node, before[0])
            near, far = self._step(node, before), self._substitute(node.name)
            self.ranges[node.name] = np.maximum(near[0], far[0]), np.minimum(near[1], far[1])

    def _step(self, node: Node, before: Sequence[Range]) -> Range:
        """What follows from the ranges of a node's inputs alone."""
        if isinstance(node, Clip):
            low, high = before[0]
            return np.clip(low, node.low, node.high), np.clip(high, node.low, node.high)
        if isinstance(node, MaxPool):
            (low, high), line = before[0], self.lines[node.name]
            return low[line.pick], line.above[0] * high[line.pick] + line.above[1]
        least = most = self.offsets[node.name]
        for (low, high), matrix in zip(before, self.matrices[node.name], strict=True):
            up, down = np.maximum(matrix, 0), np.minimum(matrix, 0)
            least, most = least + up @ low + down @ high, most + up @ high + down @ low
        return least, most

    def _substitute(self, tensor: str) -> Range:
        rows = np.eye(self.sizes[tensor])
        return self._least(tensor, rows), -self._least(tensor, -rows)

    def _least(self, tensor: str, rows: RealArray) -> RealArray:
        """A bound below ``rows · tensor``, each node's part of it replaced by parts of the nodes it reads."""
        parts = {tensor: rows}
        total: RealArray = np.zeros(len(rows))
        for node in reversed(self.nodes):
            if node.name not in parts:
                continue
            part = parts.pop(node.name)
            up, down = np.maximum(part, 0), np.minimum(part, 0)
            if isinstance(node, Input):
                return np.asarray(total + (up * node.low + down * node.high).sum(axis=1))
            if isinstance(node, Linear):
                total = total + part @ self.offsets[node.name]
                before = [part @ matrix for matrix in self.matrices[node.name]]
            else:
                line = self.lines[node.name]
                total = total + up @ line.below[1] + down @ line.above[1]
                through = np.eye(self.sizes[node.inputs[0]])[line.pick]
                before = [(up * line.below[0] + down * line.above[0]) @ through]
            for name, new in zip(node.inputs, before, strict=True):
                parts[name] = parts.get(name, 0.0) + new
        return total


def _matrices(graph: Graph, node: Linear) -> tuple[RealArray, list[RealArray]]:
    """A linear operator's offset, and its matrix for each input."""
    shapes = [graph.shapes[name] for name in node.inputs]
    offset = apply_node(graph, node, tuple(np.zeros((1, *shape)) for shape in shapes)).ravel()
    matrices = []
    for n, shape in enumerate(shapes):
        count = math.prod(shape)
        impulses = [np.zeros((count, *other)) for other in shapes]
        impulses[n] = np.eye(count).reshape(count, *shape)
        matrices.append((apply_node(graph, node, tuple(impulses)).reshape(count, -1) - offset).T)
    return offset, matrices


def _clip_lines(node: Clip, bounds: Range) -> _Lines:
    """Of three lines on each side, with slopes 0, 1 and the chord's, the one that keeps closest to the clip."""
    low, high = bounds
    corners = np.stack([low, high, np.clip(node.low, low, high), np.clip(node.high, low, high)])
    clipped = np.clip(corners, node.low, node.high)
    chord = (clipped[1] - clipped[0]) / np.where(high > low, high - low, 1.0)
    slopes = np.stack([np.zeros_like(low), np.ones_like(low), chord])[:, None]
    apart = clipped - slopes * corners
    chosen = []
    for offset in (apart.min(axis=1), apart.max(axis=1)):
        gap = np.abs(apart[:, :2].mean(axis=1) - offset)
        best = gap.argmin(axis=0)[None]
        chosen.append((np.take_along_axis(slopes[:, 0], best, 0)[0], np.take_along_axis(offset, best, 0)[0]))
    return _Lines(np.arange(len(low)), chosen[0], chosen[1])


def _pool_lines(graph: Graph, node: MaxPool, bounds: Range) -> _Lines:
    """Below, the sample of each window with the greatest lower bound; above, that one too if it always wins."""
    (height, width, channels), (rows, cols, _) = graph.shapes[node.inputs[0]], graph.shapes[node.name]
    low, high = bounds
    pick, slopes, tops = [], [], []
    for i, j, c in np.ndindex(rows, cols, channels):
        window = [
            (y * width + x) * channels + c
            for y in range(i * node.stride[0] - node.padding[0][0], height)
            for x in range(j * node.stride[1] - node.padding[1][0], width)
            if y >= 0 <= x and y < i * node.stride[0] - node.padding[0][0] + node.kernel[0]
            if x < j * node.stride[1] - node.padding[1][0] + node.kernel[1]
        ]
        best = max(window, key=lambda at: float(low[at]))
        wins = all(high[at] <= low[best] for at in window if at != best)
        pick.append(best)
        slopes.append(float(wins))
        tops.append(0.0 if wins else max(float(high[at]) for at in window))
    size = len(pick)
    return _Lines(np.array(pick), (np.ones(size), np.zeros(size)), (np.array(slopes), np.array(tops)))
