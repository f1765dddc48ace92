"""Convolutions as affine maps, and their composition.

Two convolutions in a row, each ``y[i] = b + Σ_u w[u] · x[i·s + u − p]`` along an axis, compose to one::

    y[i] = b2 + Σ_u2 w2[u2] · (b1 + Σ_u1 w1[u1] · x[(i·s2 + u2 − p2)·s1 + u1 − p1])
    kernel k1 + (k2−1)·s1     stride s1·s2     padding p1 + p2·s1     w[u2·s1 + u1] += w2[u2]·w1[u1]

The sum over ``u2`` runs only over the taps that land inside the map between the two: a padded tap there is
zero, and not the first convolution of a padded input. Which taps land inside changes only near the border, so
output rows (and columns) fall into a few contiguous *border classes*, each with a kernel and a bias of its
own, and the composition is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..evaluate import real_array
from ..graph import BorderClasses, Conv2D, Dense, Graph, Padding, Pair, Shape
from ..numbers import RealArray

_Multiply = Callable[[int, int, int, int, int, int], tuple[RealArray, RealArray]]


@dataclass(frozen=True, slots=True, eq=False)
class ConvMap:
    """A convolution on inputs of one size; ``w (R,C,O,kh,kw,I)``, ``b (R,C,O)``.

    It is not ``exact`` when one kernel stands in for the classes of a composition.
    """

    w_rcohwi: RealArray
    b_rco: RealArray
    stride: Pair
    padding: Padding
    classes: BorderClasses
    in_shape: Shape
    out_shape: Shape
    exact: bool = True

    @property
    def kernel(self) -> Pair:
        return self.w_rcohwi.shape[3], self.w_rcohwi.shape[4]


def layer_map(graph: Graph, layer: Conv2D | Dense) -> ConvMap:
    """A layer as a convolution; a dense layer is one whose kernel covers its whole input."""
    w, b = real_array(graph, f"{layer.name}.w"), real_array(graph, f"{layer.name}.b")
    in_shape, out_shape = graph.shapes[layer.inputs[0]], graph.shapes[layer.name]
    if isinstance(layer, Dense):
        w, b = w.reshape(1, 1, len(w), *in_shape), b.reshape(1, 1, -1)
        return ConvMap(w, b, (1, 1), ((0, 0), (0, 0)), BorderClasses(), in_shape, out_shape)
    return ConvMap(w, b, layer.stride, layer.padding, layer.classes, in_shape, out_shape)


def dense_weights(conv: ConvMap) -> RealArray:
    """The matrix ``(O, H·W·C)`` of a convolution with a single output pixel: what its one window reads."""
    height, width, channels = conv.in_shape
    (top, _), (left, _) = conv.padding
    kh, kw = conv.kernel
    w_ohwi = np.zeros((conv.out_shape[2], top + max(height, kh), left + max(width, kw), channels))
    w_ohwi[:, :kh, :kw] = conv.w_rcohwi[0, 0]
    return w_ohwi[:, top : top + height, left : left + width].reshape(len(w_ohwi), -1)


@dataclass(frozen=True, slots=True)
class _Meets:
    """The second convolution's class at an output row, and the first one's at the row each tap lands on.

    A tap that lands outside the map between the two meets nothing.
    """

    second: int
    first: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """One axis of a composition: geometry, where each class starts, what its taps meet.

    ``sees (N, K)`` are the taps of the composed kernel that ever read the input, and not padding only.
    ``plain`` is what the taps would meet far from every border, whether or not there is such a place.
    """

    kernel: int
    stride: int
    padding: Pair
    starts: list[int]
    meets: list[_Meets]
    sees: NDArray[np.bool_]
    plain: _Meets


def _compose_axis(first: ConvMap, second: ConvMap, axis: int) -> _Axis:
    (k1, s1, p1), (k2, s2, p2) = ((m.kernel[axis], m.stride[axis], m.padding[axis]) for m in (first, second))
    size, middle, out = first.in_shape[axis], first.out_shape[axis], second.out_shape[axis]
    kernel, stride, before = k1 + (k2 - 1) * s1, s1 * s2, p1[0] + p2[0] * s1
    after = max(0, (out - 1) * stride + kernel - size - before)  # no more than the last window needs
    class_of = (BorderClasses.row_class, BorderClasses.col_class)[axis]
    class1, class2 = class_of(first.classes, middle).tolist(), class_of(second.classes, out).tolist()

    starts: list[int] = []
    meets: list[_Meets] = []
    for position in range(out):
        lands = (position * s2 + tap - p2[0] for tap in range(k2))
        here = _Meets(class2[position], tuple(class1[row] if 0 <= row < middle else None for row in lands))
        if not meets or here != meets[-1]:
            starts.append(position)
            meets.append(here)
    reads = np.arange(out)[:, None] * stride + np.arange(kernel) - before
    sees = np.logical_or.reduceat((0 <= reads) & (reads < size), starts, axis=0)
    plain = _Meets(class2[out // 2], (class1[middle // 2],) * k2)
    return _Axis(kernel, stride, (before, after), starts, meets, sees, plain)


def compose(first: ConvMap, second: ConvMap, *, interior: bool = False) -> ConvMap:
    """One convolution for ``second`` behind ``first``; with ``interior``, one kernel everywhere."""
    rows, cols = _compose_axis(first, second, 0), _compose_axis(first, second, 1)
    multiply = _products(first, second)
    plain_w, plain_b = _kernel(first, second, rows.plain, cols.plain, multiply)
    w_rcohwi = np.tile(plain_w, (len(rows.meets), len(cols.meets), 1, 1, 1, 1))
    b_rco = np.tile(plain_b, (len(rows.meets), len(cols.meets), 1))
    for r, row in enumerate(rows.meets):
        for c, col in enumerate(cols.meets):
            w_ohwi, b_rco[r, c] = _kernel(first, second, row, col, multiply)
            # A tap that only ever reads padding keeps the plain weight: classes differ only where it shows.
            sees = rows.sees[r][:, None] & cols.sees[c]
            w_rcohwi[r, c][:, sees] = w_ohwi[:, sees]

    row_ids, col_ids = _distinct(w_rcohwi, b_rco, axis=0), _distinct(w_rcohwi, b_rco, axis=1)
    classes = BorderClasses(tuple(rows.starts[n] for n in row_ids), tuple(cols.starts[n] for n in col_ids))
    w_rcohwi, b_rco = w_rcohwi[row_ids][:, col_ids], b_rco[row_ids][:, col_ids]
    exact = first.exact and second.exact
    if interior and classes.count > 1:
        classes, w_rcohwi, b_rco, exact = BorderClasses(), plain_w[None, None], plain_b[None, None], False
    stride, padding = (rows.stride, cols.stride), (rows.padding, cols.padding)
    return ConvMap(w_rcohwi, b_rco, stride, padding, classes, first.in_shape, second.out_shape, exact)


def _kernel(
    first: ConvMap, second: ConvMap, row: _Meets, col: _Meets, multiply: _Multiply
) -> tuple[RealArray, RealArray]:
    """The kernel and the bias of one class."""
    (kh, kw), (sh, sw) = first.kernel, first.stride
    height, width = kh + (len(row.first) - 1) * sh, kw + (len(col.first) - 1) * sw
    w_ohwi = np.zeros((second.out_shape[2], height, width, first.in_shape[2]))
    b_o = second.b_rco[row.second, col.second].copy()
    for u, row1 in enumerate(row.first):
        for v, col1 in enumerate(col.first):
            if row1 is not None and col1 is not None:
                w_part, b_part = multiply(row.second, col.second, u, v, row1, col1)
                w_ohwi[:, u * sh : u * sh + kh, v * sw : v * sw + kw] += w_part
                b_o += b_part
    return w_ohwi, b_o


def _products(first: ConvMap, second: ConvMap) -> _Multiply:
    """One tap of the second kernel times the first kernel; classes share most of these, so each is kept."""

    @cache
    def multiply(row2: int, col2: int, u: int, v: int, row1: int, col1: int) -> tuple[RealArray, RealArray]:
        w_om = second.w_rcohwi[row2, col2, :, u, v]
        return np.tensordot(w_om, first.w_rcohwi[row1, col1], axes=1), w_om @ first.b_rco[row1, col1]

    return multiply


def _distinct(w_rcohwi: RealArray, b_rco: RealArray, axis: int) -> list[int]:
    """The classes along an axis that differ from the one before."""
    w, b = np.moveaxis(w_rcohwi, axis, 0), np.moveaxis(b_rco, axis, 0)
    return [n for n in range(len(w)) if n == 0 or np.any(w[n] != w[n - 1]) or np.any(b[n] != b[n - 1])]
