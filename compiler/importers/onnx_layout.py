"""Where the samples of an ONNX tensor stand in the stream: reshapes and transpositions become bookkeeping.

A tensor of the graph is a stream of samples in (H, W, C) order. An ONNX tensor has axes in any order. Both are cut into
*factors*: runs of samples that stay together. The stream is a list of factors, outermost first, and every ONNX axis is a list
of the same factors: ``N,C,H,W`` on a stream of H, W, C is ``axes ((), (c,), (h,), (w,))`` on ``stream (h, w, c)``. An axis of
size 1 has no factors. A transposition permutes axes, a reshape cuts and joins factors, and neither builds anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..graph import Softmax

Dims = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """A run of ``size`` ≥ 2 steps; two factors are the same only if they are one object."""

    size: int


Factors = tuple[Factor, ...]


class Refusal(Exception):
    """A node cannot be imported: ``what`` is wrong, and the ``nearest`` thing that works."""

    def __init__(self, what: str, nearest: str) -> None:
        super().__init__(what, nearest)
        self.what = what
        self.nearest = nearest


@dataclass(frozen=True, slots=True)
class Value:
    """An ONNX tensor: the graph's ``tensor`` that holds its samples, and where they stand; ``head`` once a softmax is due."""

    tensor: str
    stream: Factors
    axes: tuple[Factors, ...]
    head: Softmax | None = None

    @property
    def dims(self) -> Dims:
        return tuple(product(axis) for axis in self.axes)

    @property
    def size(self) -> int:
        return product(self.stream)


def product(factors: Sequence[Factor]) -> int:
    return math.prod(factor.size for factor in factors)


def value_of(tensor: str, dims: Sequence[int], order: Sequence[int]) -> Value:
    """A value of ``dims`` whose stream goes through the axes in ``order``, outermost first."""
    axes = tuple((Factor(size),) if size > 1 else () for size in dims)
    return Value(tensor, tuple(factor for axis in order for factor in axes[axis]), axes)


def image_order(rank: int) -> Dims:
    """The axes of an ``N,C,H,W`` tensor (or ``N,C,L``, ``N,C``, ``C``) in the order of the stream: channels innermost."""
    return (0, *range(2, rank), 1) if rank >= 2 else tuple(range(rank))


def in_order(value: Value, order: Sequence[int]) -> bool:
    """Whether the stream goes through the axes in this order."""
    return value.stream == tuple(factor for axis in order for factor in value.axes[axis])


def transposed(value: Value, order: Sequence[int]) -> Value:
    if sorted(order) != list(range(len(value.axes))):
        raise Refusal(f"{list(order)} is no order of its {len(value.axes)} axes", "export the model again")
    return replace(value, axes=tuple(value.axes[axis] for axis in order))


def reshaped(value: Value, dims: Sequence[int]) -> Value:
    """The same samples as a tensor of other sizes.

    *Raises* ``Refusal`` where it would cut what does not lie together in the stream.
    """
    if math.prod(dims) != value.size:
        raise Refusal(f"{value.size} samples cannot be {list(dims)}", "keep the number of samples, and a batch of 1")
    stream = list(value.stream)
    queue = _joined([factor for axis in value.axes for factor in axis], stream)
    queue.reverse()
    axes = []
    for size in dims:
        axis: list[Factor] = []
        while size > 1:
            factor = queue.pop()
            if factor.size > size and factor.size % size == 0:
                outer, inner = Factor(size), Factor(factor.size // size)
                at = stream.index(factor)
                stream[at : at + 1] = [outer, inner]
                queue.append(inner)
                factor = outer
            if size % factor.size:
                raise Refusal(
                    f"reshaping {list(value.dims)} to {list(dims)} tears apart what lies together in the stream",
                    "reshape whole axes, or flatten into a dense layer",
                )
            axis.append(factor)
            size //= factor.size
        axes.append(tuple(axis))
    return replace(value, stream=tuple(stream), axes=tuple(axes))


def merged(value: Value) -> Value:
    """The same value in the fewest factors: neighbours in one axis and in the stream are one."""
    stream = list(value.stream)
    axes = tuple(tuple(_joined(axis, stream)) for axis in value.axes)
    return replace(value, stream=tuple(stream), axes=axes)


def same_layout(a: Value, b: Value) -> bool:
    """Whether two values of the same sizes hold each sample at the same place of their streams."""
    return a.dims == b.dims and _pattern(merged(a)) == _pattern(merged(b))


def _pattern(value: Value) -> list[tuple[int, int, int]]:
    places = {factor: (number, at) for number, axis in enumerate(value.axes) for at, factor in enumerate(axis)}
    return [(*places[factor], factor.size) for factor in value.stream]


def _joined(axis: Sequence[Factor], stream: list[Factor]) -> list[Factor]:
    """The factors of an axis, those joined that follow each other in the stream too. Changes ``stream`` alike."""
    joined: list[Factor] = []
    for factor in axis:
        at = stream.index(factor)
        if joined and at and stream[at - 1] is joined[-1]:
            both = Factor(joined[-1].size * factor.size)
            stream[at - 1 : at + 1] = [both]
            joined[-1] = both
        else:
            joined.append(factor)
    return joined
