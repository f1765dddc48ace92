"""Every linear operator as a convolution, and what can be done with convolutions: compose, add, select.

Two convolutions in a row, each ``y[i] = b + Σ_u w[u] · x[i·s + u − p]`` along an axis, compose to one::

    y[i] = b2 + Σ_u2 w2[u2] · (b1 + Σ_u1 w1[u1] · x[(i·s2 + u2 − p2)·s1 + u1 − p1])
    kernel k1 + (k2−1)·s1     stride s1·s2     padding p1 + p2·s1     w[u2·s1 + u1] += w2[u2]·w1[u1]

The sum over ``u2`` runs only over the taps that land inside the map between the two: a padded tap there is
zero, and not the first convolution of a padded input. Which taps land inside changes only near the border, so
output rows (and columns) fall into a few contiguous *border classes*, each with a kernel and a bias of its
own, and the composition is exact.

A convolution has one form here: dilation is zeros between the taps, groups are zeros off the diagonal, a dense layer
is a kernel that covers its input, an average is a kernel of equal weights, what only moves samples has single ones.
What is none, nearest upsampling and depth to space, can still be *read* by one (`behind`): that is a convolution of
its input, if the reader steps by whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..evaluate import projection, real_array, scale_and_shift, window_counts
from ..graph import (
    AveragePool,
    BatchNorm,
    BorderClasses,
    ChannelShuffle,
    Conv2D,
    Crop,
    Dense,
    DepthToSpace,
    Dropout,
    Flatten,
    Graph,
    Linear,
    Pad,
    Padding,
    Pair,
    Pca,
    ScaleBias,
    Shape,
    Slice,
    SpaceToDepth,
    Upsample,
    node_shape,
    window_extent,
)
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


class NotAConvolution(Exception):
    """A linear map that no convolution computes; the text says why."""


# ------------------------------------------------------------------------------------------------------- one operator


def node_map(graph: Graph, node: Linear) -> ConvMap:
    """An operator of one input as a convolution.

    *Raises* ``NotAConvolution`` for upsampling, depth to space and reshaping.
    """
    in_shape, out_shape = graph.shapes[node.inputs[0]], graph.shapes[node.name]
    stride, padding, classes = (1, 1), ((0, 0), (0, 0)), BorderClasses()
    match node:
        case Conv2D():
            w_rcohwi, b_rco = _spread(graph, node), real_array(graph, f"{node.name}.b")
            return ConvMap(w_rcohwi, b_rco, node.stride, node.padding, node.classes, in_shape, out_shape)
        case AveragePool():
            w_rcohwi, classes = _average(graph, node)
            b_rco = np.zeros((*w_rcohwi.shape[:2], in_shape[2]))
            return ConvMap(w_rcohwi, b_rco, node.stride, node.padding, classes, in_shape, out_shape)
        case Pad() | Crop() | SpaceToDepth():
            return _moved(node, in_shape)
        case Dense():
            w_ohwi, b_o = real_array(graph, f"{node.name}.w"), real_array(graph, f"{node.name}.b")
        case Flatten():
            w_ohwi, b_o = np.eye(out_shape[2]), np.zeros(out_shape[2])
        case _:
            w_ohwi, b_o = pointwise(graph, node)
            w_rcohwi = w_ohwi[None, None, :, None, None, :]
            return ConvMap(w_rcohwi, b_o[None, None], stride, padding, classes, in_shape, out_shape)
    w_rcohwi = w_ohwi.reshape(1, 1, out_shape[2], *in_shape)
    return ConvMap(w_rcohwi, b_o[None, None], stride, padding, classes, in_shape, out_shape)


def pointwise(graph: Graph, node: Linear) -> tuple[RealArray, RealArray]:
    """``(A, a)`` of an operator that is ``A·x + a`` at every pixel."""
    channels = graph.shapes[node.inputs[0]][2]
    match node:
        case BatchNorm() | ScaleBias():
            scale, shift = scale_and_shift(graph, node)
            return np.diag(scale), shift
        case Pca():
            q_rc = projection(graph, node)
            return q_rc, -q_rc @ real_array(graph, f"{node.name}.mean")
        case Slice():
            taken = np.arange(node.start, node.stop)
        case ChannelShuffle():
            taken = np.arange(channels).reshape(node.groups, -1).T.ravel()
        case Dropout():
            taken = np.arange(channels)
        case _:
            raise NotAConvolution(f"{node.op} ({node.source}) lays its pixels out anew")
    return np.eye(channels)[taken], np.zeros(len(taken))


def _moved(node: Pad | Crop | SpaceToDepth, in_shape: Shape) -> ConvMap:
    """What only moves whole pixels: single ones among zeros."""
    out_shape = node_shape(node, (in_shape,), {})
    channels, outputs = in_shape[2], out_shape[2]
    stride, padding, classes = (1, 1), ((0, 0), (0, 0)), BorderClasses()
    b_rco, w_ohwi = np.zeros((1, 1, outputs)), np.eye(outputs, channels)[:, None, None, :]
    match node:
        case Pad():
            padding = node.padding
            if node.value:
                rows, cols = (_inside(in_shape[axis], padding[axis]) for axis in (0, 1))
                classes = BorderClasses(tuple(rows), tuple(cols))
                outside = ~np.outer(list(rows.values()), list(cols.values()))
                b_rco = np.repeat(outside[:, :, None] * node.value, outputs, axis=2)
        case Crop():
            (top, bottom), (left, right) = node.cropping
            w_ohwi = np.zeros((outputs, top + bottom + 1, left + right + 1, channels))
            w_ohwi[:, top, left] = np.eye(channels)
        case SpaceToDepth():
            stride = node.block
            eye = np.eye(outputs).reshape(outputs, *_block_axes(node, channels))
            w_ohwi = eye if node.order == "DCR" else np.moveaxis(eye, 1, 3)
    w_rcohwi = np.tile(w_ohwi, (len(classes.rows), len(classes.cols), 1, 1, 1, 1))
    return ConvMap(w_rcohwi, b_rco, stride, padding, classes, in_shape, out_shape)


def _inside(size: int, pads: Pair) -> dict[int, bool]:
    """Where the parts of a padded axis start, and whether they hold its samples."""
    starts = {0: pads[0] == 0, pads[0]: True}
    return starts | {pads[0] + size: False} if pads[1] else starts


def _block_axes(node: SpaceToDepth, channels: int) -> tuple[int, int, int]:
    return (*node.block, channels) if node.order == "DCR" else (channels, *node.block)


def _spread(graph: Graph, node: Conv2D) -> RealArray:
    """The kernels with the zeros that dilation and groups leave out."""
    w_rcohwi = real_array(graph, f"{node.name}.w")
    if node.plain:
        return w_rcohwi
    (dh, dw), channels = node.dilation, graph.shapes[node.inputs[0]][2]
    rows, cols, outputs, kh, kw, inputs = w_rcohwi.shape
    spread = np.zeros((rows, cols, outputs, (kh - 1) * dh + 1, (kw - 1) * dw + 1, channels))
    for g in range(node.groups):
        made = slice(g * outputs // node.groups, (g + 1) * outputs // node.groups)
        spread[:, :, made, ::dh, ::dw, g * inputs : (g + 1) * inputs] = w_rcohwi[:, :, made]
    return spread


def _average(graph: Graph, node: AveragePool) -> tuple[RealArray, BorderClasses]:
    """Equal weights; where padding does not count, windows of fewer samples are classes of their own."""
    weight_rc, classes = _average_classes(graph, node)
    eye_ohwi = np.eye(graph.shapes[node.name][2])[:, None, None, :]
    eye_ohwi = eye_ohwi.repeat(node.kernel[0], axis=1).repeat(node.kernel[1], axis=2)
    return weight_rc[:, :, None, None, None, None] * eye_ohwi, classes


def _average_classes(graph: Graph, node: AveragePool) -> tuple[RealArray, BorderClasses]:
    """The weight of each class of windows, ``(R, C)``."""
    rows, cols = window_counts(graph, node)
    row_starts, col_starts = (np.flatnonzero(np.diff(counts, prepend=0.0)) for counts in (rows, cols))
    weight_rc = 1.0 / np.outer(rows[row_starts], cols[col_starts])
    return weight_rc, BorderClasses(tuple(row_starts.tolist()), tuple(col_starts.tolist()))


def dense_weights(conv: ConvMap) -> RealArray:
    """The matrix ``(O, H·W·C)`` of a convolution with a single output pixel: what its one window reads."""
    height, width, channels = conv.in_shape
    (top, _), (left, _) = conv.padding
    kh, kw = conv.kernel
    w_ohwi = np.zeros((conv.out_shape[2], top + max(height, kh), left + max(width, kw), channels))
    w_ohwi[:, :kh, :kw] = conv.w_rcohwi[0, 0]
    return w_ohwi[:, top : top + height, left : left + width].reshape(len(w_ohwi), -1)


# ------------------------------------------------------------------------------------------------------ one for two


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

    stride, padding = (rows.stride, cols.stride), (rows.padding, cols.padding)
    classes = BorderClasses(tuple(rows.starts), tuple(cols.starts))
    exact = first.exact and second.exact
    conv = _thin(ConvMap(w_rcohwi, b_rco, stride, padding, classes, first.in_shape, second.out_shape, exact))
    if interior and conv.classes.count > 1:
        w_rcohwi, b_rco = plain_w[None, None], plain_b[None, None]
        conv = replace(conv, w_rcohwi=w_rcohwi, b_rco=b_rco, classes=BorderClasses(), exact=False)
    return conv


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


def _thin(conv: ConvMap) -> ConvMap:
    """The same map without the classes that equal the one before."""
    rows, cols = _distinct(conv.w_rcohwi, conv.b_rco, axis=0), _distinct(conv.w_rcohwi, conv.b_rco, axis=1)
    if len(rows) * len(cols) == conv.classes.count:
        return conv
    classes = BorderClasses(tuple(conv.classes.rows[n] for n in rows), tuple(conv.classes.cols[n] for n in cols))
    at = np.ix_(rows, cols)
    return replace(conv, w_rcohwi=conv.w_rcohwi[at], b_rco=conv.b_rco[at], classes=classes)


def _distinct(w_rcohwi: RealArray, b_rco: RealArray, axis: int) -> list[int]:
    """The classes along an axis that differ from the one before."""
    w, b = np.moveaxis(w_rcohwi, axis, 0), np.moveaxis(b_rco, axis, 0)
    return [n for n in range(len(w)) if n == 0 or np.any(w[n] != w[n - 1]) or np.any(b[n] != b[n - 1])]


# ------------------------------------------------------------------------------------------------- branches and blocks


def identity(shape: Shape) -> ConvMap:
    """The 1×1 convolution that changes nothing."""
    channels = shape[2]
    w_rcohwi = np.eye(channels)[None, None, :, None, None, :]
    b_rco = np.zeros((1, 1, channels))
    return ConvMap(w_rcohwi, b_rco, (1, 1), ((0, 0), (0, 0)), BorderClasses(), shape, shape)


def add(first: ConvMap, second: ConvMap) -> ConvMap:
    """The sum of two convolutions of one input: kernels laid over each other where they read the same samples.

    *Raises* ``NotAConvolution`` for two that step differently.
    """
    stride = _common_stride(first, second)
    before = tuple(max(first.padding[axis][0], second.padding[axis][0]) for axis in (0, 1))
    reach = tuple(max(m.kernel[axis] - m.padding[axis][0] for m in (first, second)) for axis in (0, 1))
    kernel = tuple(before[axis] + reach[axis] for axis in (0, 1))
    rows = sorted({*first.classes.rows, *second.classes.rows})
    cols = sorted({*first.classes.cols, *second.classes.cols})
    w_rcohwi = np.zeros((len(rows), len(cols), first.out_shape[2], *kernel, first.in_shape[2]))
    b_rco = np.zeros((len(rows), len(cols), first.out_shape[2]))
    for conv in (first, second):
        at = np.ix_(
            np.searchsorted(conv.classes.rows, rows, side="right") - 1,
            np.searchsorted(conv.classes.cols, cols, side="right") - 1,
        )
        top, left = (before[axis] - conv.padding[axis][0] for axis in (0, 1))
        kh, kw = conv.kernel
        w_rcohwi[:, :, :, top : top + kh, left : left + kw] += conv.w_rcohwi[at]
        b_rco += conv.b_rco[at]
    after = (
        max(0, (first.out_shape[axis] - 1) * stride[axis] + kernel[axis] - first.in_shape[axis] - before[axis])
        for axis in (0, 1)
    )
    top_bottom, left_right = zip(before, after, strict=True)
    classes = BorderClasses(tuple(rows), tuple(cols))
    exact = first.exact and second.exact
    padding = (top_bottom, left_right)
    return _thin(ConvMap(w_rcohwi, b_rco, stride, padding, classes, first.in_shape, first.out_shape, exact))


def _common_stride(first: ConvMap, second: ConvMap) -> Pair:
    """A convolution of one output sample may step by anything that leaves no room for a second."""
    strides = []
    for axis, (one, other) in enumerate(zip(first.stride, second.stride, strict=True)):
        if one != other and first.out_shape[axis] > 1:
            raise NotAConvolution(f"its branches read every {one}. and every {other}. sample of the same input")
        strides.append(max(one, other))
    return strides[0], strides[1]


def reads(conv: ConvMap, start: int, stop: int) -> ConvMap:
    """What a convolution makes of the channels ``start … stop − 1`` of its input; it keeps its bias."""
    in_shape = (*conv.in_shape[:2], stop - start)
    return replace(conv, w_rcohwi=conv.w_rcohwi[..., start:stop], in_shape=in_shape)


def unbiased(conv: ConvMap) -> ConvMap:
    """A convolution without its bias."""
    return _thin(replace(conv, b_rco=np.zeros_like(conv.b_rco)))


def behind(graph: Graph, node: Linear, conv: ConvMap, *, interior: bool = False) -> ConvMap:
    """A convolution of ``node``'s output as one of its input.

    *Raises* ``NotAConvolution`` where ``node`` writes blocks of pixels and the convolution steps by parts of them.
    """
    shape = graph.shapes[node.inputs[0]]
    match node:
        case DepthToSpace():
            return _unblock(conv, node, shape, node.block, crd=node.order == "CRD")
        case Flatten():
            return unflatten(conv, node, shape)
        case Upsample():
            return unblock_nearest(conv, node, shape, node.factor)
    return compose(node_map(graph, node), conv, interior=interior)


def unblock_nearest(conv: ConvMap, node: Linear, shape: Shape, factor: Pair) -> ConvMap:
    """A convolution that reads an upsampled tensor, as one of the tensor of this shape."""
    blocks = _unblock(conv, node, shape, factor, crd=False)
    w_rcohwi = blocks.w_rcohwi.reshape(*blocks.w_rcohwi.shape[:5], -1, shape[2]).sum(axis=5)
    return _thin(replace(blocks, w_rcohwi=w_rcohwi, in_shape=shape))


def unflatten(conv: ConvMap, node: Linear, shape: Shape) -> ConvMap:
    """A convolution that reads a flattened tensor, as one of the tensor of this shape."""
    if conv.kernel != (1, 1) or conv.out_shape[:2] != (1, 1):
        raise NotAConvolution(f"{node.op} ({node.source}) makes one pixel, and what reads it pads that")
    w_rcohwi = conv.w_rcohwi.reshape(*conv.w_rcohwi.shape[:3], *shape)
    return replace(conv, w_rcohwi=w_rcohwi, stride=(1, 1), in_shape=shape)


def block_of(node: DepthToSpace | Upsample) -> Pair:
    """The block of pixels that each pixel of the input becomes."""
    return node.block if isinstance(node, DepthToSpace) else node.factor


def outline(graph: Graph, node: Linear) -> ConvMap:
    """One channel with random weights wherever ``node`` has any: it composes to the same kernels and border classes."""
    taps_rchw, bias_rc, conv = _footprint(graph, node)
    rng = np.random.default_rng(0)
    w_rchw, b_rc = taps_rchw * rng.normal(size=taps_rchw.shape), bias_rc * rng.normal(size=bias_rc.shape)
    return replace(conv, w_rcohwi=w_rchw[:, :, None, :, :, None], b_rco=b_rc[:, :, None])


def _footprint(graph: Graph, node: Linear) -> tuple[NDArray[np.bool_], NDArray[np.bool_], ConvMap]:
    """The taps with weights and the classes with a bias, ``(R,C,kh,kw)`` and ``(R,C)``, and the geometry around them."""
    (height, width, _), (rows, cols, _) = graph.shapes[node.inputs[0]], graph.shapes[node.name]
    in_shape, out_shape = (height, width, 1), (rows, cols, 1)
    stride, padding, classes = (1, 1), ((0, 0), (0, 0)), BorderClasses()
    taps_rchw, bias_rc = np.ones((1, 1, 1, 1), dtype=bool), np.zeros((1, 1), dtype=bool)
    match node:
        case Conv2D():
            (dh, dw), taps = node.dilation, np.any(graph.weights[f"{node.name}.w"], axis=(2, 5))
            kh, kw = window_extent(taps.shape[2], dh), window_extent(taps.shape[3], dw)
            taps_rchw = np.zeros((*taps.shape[:2], kh, kw), dtype=bool)
            taps_rchw[:, :, ::dh, ::dw] = taps
            bias_rc = np.any(graph.weights[f"{node.name}.b"], axis=2)
            stride, padding, classes = node.stride, node.padding, node.classes
        case AveragePool():
            _, classes = _average_classes(graph, node)
            taps_rchw = np.ones((len(classes.rows), len(classes.cols), *node.kernel), dtype=bool)
            bias_rc = np.zeros(taps_rchw.shape[:2], dtype=bool)
            stride, padding = node.stride, node.padding
        case Dense():
            taps = np.any(graph.weights[f"{node.name}.w"], axis=0).reshape(graph.shapes[node.inputs[0]])
            taps_rchw = np.any(taps, axis=2)[None, None]
            bias_rc = np.full((1, 1), np.any(graph.weights[f"{node.name}.b"]))
        case BatchNorm() | ScaleBias():
            bias_rc = np.full((1, 1), np.any(scale_and_shift(graph, node)[1]))
        case Pad() | Crop() | SpaceToDepth():
            conv = _moved(node, in_shape)
            taps_rchw, bias_rc = np.any(conv.w_rcohwi, axis=(2, 5)), np.any(conv.b_rco, axis=2)
            stride, padding, classes = conv.stride, conv.padding, conv.classes
    empty = np.zeros(0)
    return taps_rchw, bias_rc, ConvMap(empty, empty, stride, padding, classes, in_shape, out_shape)


def _unblock(conv: ConvMap, node: Linear, shape: Shape, block: Pair, *, crd: bool) -> ConvMap:
    """A convolution that reads depth to space's output, as one that reads its input.

    Its tap on sample ``t`` of the output reads sample ``⌊t/b⌋`` of the input, in channel ``t mod b`` of the block.
    """
    kernel, stride, padding = [], [], []
    for axis, b in enumerate(block):
        step, (before, _) = conv.stride[axis], conv.padding[axis]
        if conv.out_shape[axis] == 1:
            step = -(-step // b) * b
        if step % b:
            raise NotAConvolution(
                f"{node.op} ({node.source}) writes blocks of {block[0]}×{block[1]} pixels, and what reads them steps "
                f"by {conv.stride[0]}×{conv.stride[1]}: no stride in the input equals that"
            )
        top = -(-before // b)
        size = (conv.kernel[axis] - 1 - before) // b + top + 1
        kernel.append(size)
        stride.append(step // b)
        padding.append((top, max(0, (conv.out_shape[axis] - 1) * (step // b) + size - shape[axis] - top)))
    channels = conv.in_shape[2]
    w = np.zeros((*conv.w_rcohwi.shape[:3], *kernel, *block, channels))
    for u in range(conv.kernel[0]):
        qh, rh = divmod(u - conv.padding[0][0], block[0])
        for v in range(conv.kernel[1]):
            qw, rw = divmod(v - conv.padding[1][0], block[1])
            w[:, :, :, qh + padding[0][0], qw + padding[1][0], rh, rw] = conv.w_rcohwi[:, :, :, u, v]
    if crd:
        w = np.moveaxis(w, -1, -3)
    w_rcohwi = w.reshape(*w.shape[:5], -1)
    in_shape = (*shape[:2], w_rcohwi.shape[5])
    return replace(
        conv,
        w_rcohwi=w_rcohwi,
        stride=(stride[0], stride[1]),
        padding=(padding[0], padding[1]),
        in_shape=in_shape,
    )
