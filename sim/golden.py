"""The golden model: what a quantized graph computes, on integers only, one function for each operator.

Written from the definitions in `convfold.compiler.graph` and `convfold.compiler.numbers`, knowing nothing of
the hardware that is checked against it. Tensors are batches, ``(B, H, W, C)`` of int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from convfold.compiler.graph import (
    ArgMax,
    ChannelShuffle,
    Concat,
    Crop,
    DepthToSpace,
    Flatten,
    Graph,
    Input,
    MaxPool,
    Node,
    Pad,
    Padding,
    Pair,
    QAdd,
    QAveragePool,
    QConv2D,
    QMultiply,
    QTable,
    Reshape,
    Slice,
    SpaceToDepth,
    Upsample,
    window_extent,
)
from convfold.compiler.numbers import MAX_ACCUMULATOR, IntArray, accumulator_range
from convfold.compiler.rounding import add_requantizer, mean_requantizer, requantizer_of

FloatArray = NDArray[np.floating]
AnyArray = TypeVar("AnyArray", IntArray, FloatArray)
Rule = Callable[..., IntArray]
"""``rule(graph, node, *inputs)`` makes the node's tensor."""

_WORDS = 1 << 18
"""The size to which batches are cut, for every tensor and every table of windows: it stays in the cache."""

# -------------------------------------------------------------------------------------------------- operators


def input_(graph: Graph, node: Input, x_raw: IntArray) -> IntArray:
    """The frame itself."""
    return x_raw


def qconv2d(graph: Graph, node: QConv2D, x_raw: IntArray) -> IntArray:
    """``clamp(round(b + Σ w·x) + zero point, low, high)``; padded taps read the input's zero point.

    The sums of products run in floating point, for its fast matrix product, and are exact: every operand, product
    and partial sum, in whatever order it is taken, is an integer within ``accumulator_range``. Up to ``2**24`` float32
    holds them all; greater ones are required to stay within ``MAX_ACCUMULATOR < 2**45``, and float64 holds ``2**53``.

    *Raises* ``ValueError`` when an accumulator could be greater than that.
    """
    source = graph.format_of(node.inputs[0])
    w_rcohwi, b_rco = (_integers(graph, f"{node.name}.{part}") for part in "wb")
    reach = accumulator_range(w_rcohwi, b_rco, source.min_raw, source.max_raw).magnitude
    if reach > MAX_ACCUMULATOR:
        raise ValueError(f"accumulators of {node.name!r} must be at most {MAX_ACCUMULATOR}, not {reach!r}")

    exact = np.float32 if max(reach, -source.min_raw, source.max_raw) <= 1 << 24 else np.float64
    w_real = w_rcohwi.astype(exact)
    *_, kh, kw, reads = w_rcohwi.shape
    height, width, channels = graph.shapes[node.name]
    sums_of = _channel_sums if reads == 1 else _matrix_sums
    requantizer = requantizer_of(graph, node)
    regions = [
        (rows, cols, w_real[r, c], b_rco[r, c])
        for r, rows in enumerate(_spans(node.classes.rows, height))
        for c, cols in enumerate(_spans(node.classes.cols, width))
    ]
    y_raw = np.empty((len(x_raw), height, width, channels), dtype=np.int64)
    for images in _slices(len(x_raw), _WORDS // (height * width * kh * kw * reads * node.groups)):
        x_real: FloatArray = x_raw[images].astype(exact)
        windows = _windows(x_real, (kh, kw), node.stride, node.padding, source.zero_point, node.dilation)
        for rows, cols, w_ohwi, b_o in regions:
            acc = sums_of(windows[:, rows, cols], w_ohwi, node.groups).astype(np.int64) + b_o
            y_raw[images, rows, cols] = _limited(node, requantizer(acc))
    return y_raw


def _matrix_sums(windows: FloatArray, w_ohwi: FloatArray, groups: int) -> FloatArray:
    """``Σ w·x`` of each window, ``(B, rows, cols, O)``: one matrix product a group."""
    batch, rows, cols, kh, kw, channels = windows.shape
    taps = math.prod(w_ohwi.shape[1:])
    grouped = windows.reshape(batch, rows, cols, kh, kw, groups, channels // groups)
    x_gnk = grouped.transpose(5, 0, 1, 2, 3, 4, 6).reshape(groups, batch * rows * cols, taps)
    w_gko = w_ohwi.reshape(groups, -1, taps).swapaxes(1, 2)
    sums: FloatArray = (x_gnk @ w_gko).transpose(1, 0, 2).reshape(batch, rows, cols, len(w_ohwi))
    return sums


def _channel_sums(windows: FloatArray, w_ohwi: FloatArray, groups: int) -> FloatArray:
    """The same where a group is one channel: a multiplication and an addition of whole maps for each tap."""
    kernels = w_ohwi.reshape(groups, -1, *w_ohwi.shape[1:3])
    batch, rows, cols, kh, kw, _ = windows.shape
    sums = np.zeros((batch, rows, cols, *kernels.shape[:2]), dtype=windows.dtype)
    for u, v in np.ndindex(kh, kw):
        sums += windows[:, :, :, u, v, :, None] * kernels[:, :, u, v]
    return sums.reshape(batch, rows, cols, len(w_ohwi))


def max_pool(graph: Graph, node: MaxPool, x_raw: IntArray) -> IntArray:
    """The greatest of each window; the padding holds the format's least integer, so it wins against none."""
    least = graph.format_of(node.name).min_raw
    y_raw: IntArray = _windows(x_raw, node.kernel, node.stride, node.padding, least).max(axis=(3, 4))
    return y_raw


def qaverage_pool(graph: Graph, node: QAveragePool, x_raw: IntArray) -> IntArray:
    """``round(Σ x / n)``: the sum of what each window counts, by the rounding of so many samples."""
    source = graph.format_of(node.inputs[0])
    geometry = node.kernel, node.stride, node.padding
    ones = np.ones((1, *x_raw.shape[1:3], 1), dtype=np.int64)
    counts = _windows(ones, *geometry, fill=int(node.count_include_pad)).sum(axis=(3, 4))
    sums = _windows(x_raw - source.zero_point, *geometry, fill=0).sum(axis=(3, 4))
    if node.rounding in ("native", "tflite"):
        sums += counts * source.zero_point
    zero_point = 0 if node.rounding in ("native", "tflite") else node.format.zero_point
    return _limited(node, mean_requantizer(node, counts)(sums), zero_point)


def qadd(graph: Graph, node: QAdd, a_raw: IntArray, b_raw: IntArray) -> IntArray:
    """``round(a·m0 + b·m1)`` of the samples less their zero points."""
    a, b = (x - graph.format_of(name).zero_point for x, name in zip((a_raw, b_raw), node.inputs, strict=True))
    return _limited(node, add_requantizer(graph, node)(a, b))


def qmultiply(graph: Graph, node: QMultiply, a_raw: IntArray, b_raw: IntArray) -> IntArray:
    """``round(a·b·m)`` of the samples less their zero points."""
    a, b = (x - graph.format_of(name).zero_point for x, name in zip((a_raw, b_raw), node.inputs, strict=True))
    return _limited(node, requantizer_of(graph, node)(a * b))


def qtable(graph: Graph, node: QTable, x_raw: IntArray) -> IntArray:
    """``table[c or 0, x - min_raw]``."""
    table = _integers(graph, f"{node.name}.table")
    row = np.arange(x_raw.shape[3]) if len(table) > 1 else 0
    y_raw: IntArray = table[row, x_raw - graph.format_of(node.inputs[0]).min_raw]
    return y_raw


def concat(graph: Graph, node: Concat, *x_raw: IntArray) -> IntArray:
    """All channels of the first, then those of the next."""
    return np.concatenate(x_raw, axis=3)


def slice_(graph: Graph, node: Slice, x_raw: IntArray) -> IntArray:
    """The channels ``start … stop - 1``."""
    return x_raw[..., node.start : node.stop]


def channel_shuffle(graph: Graph, node: ChannelShuffle, x_raw: IntArray) -> IntArray:
    """Channel ``g·(C/groups) + n`` becomes channel ``n·groups + g``."""
    grouped = x_raw.reshape(*x_raw.shape[:3], node.groups, -1)
    return grouped.swapaxes(3, 4).reshape(x_raw.shape)


def depth_to_space(graph: Graph, node: DepthToSpace, x_raw: IntArray) -> IntArray:
    """``y[i·bh+r, j·bw+s, c] = x[i, j, n]``, ``n`` as the order has it."""
    (batch, height, width, _), (bh, bw) = x_raw.shape, node.block
    if node.order == "DCR":
        x_bijrsc = x_raw.reshape(batch, height, width, bh, bw, -1)
    else:
        x_bijrsc = x_raw.reshape(batch, height, width, -1, bh, bw).transpose(0, 1, 2, 4, 5, 3)
    return x_bijrsc.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * bh, width * bw, -1)


def space_to_depth(graph: Graph, node: SpaceToDepth, x_raw: IntArray) -> IntArray:
    """``y[i, j, n] = x[i·bh+r, j·bw+s, c]``, ``n`` as the order has it."""
    (batch, height, width, channels), (bh, bw) = x_raw.shape, node.block
    x_birjsc = x_raw.reshape(batch, height // bh, bh, width // bw, bw, channels)
    axes = (0, 1, 3, 2, 4, 5) if node.order == "DCR" else (0, 1, 3, 5, 2, 4)
    return x_birjsc.transpose(axes).reshape(batch, height // bh, width // bw, -1)


def upsample(graph: Graph, node: Upsample, x_raw: IntArray) -> IntArray:
    """``y[i, j] = x[⌊i/fh⌋, ⌊j/fw⌋]``."""
    return x_raw.repeat(node.factor[0], axis=1).repeat(node.factor[1], axis=2)


def pad(graph: Graph, node: Pad, x_raw: IntArray) -> IntArray:
    """The map with the integer that stands for ``value`` all round."""
    value_raw = int(graph.format_of(node.name).quantize(np.array(node.value)))
    return np.pad(x_raw, ((0, 0), *node.padding, (0, 0)), constant_values=value_raw)


def crop(graph: Graph, node: Crop, x_raw: IntArray) -> IntArray:
    """The map without its outer rows and columns."""
    (top, bottom), (left, right) = node.cropping
    return x_raw[:, top : x_raw.shape[1] - bottom, left : x_raw.shape[2] - right]


def reshape(graph: Graph, node: Reshape | Flatten, x_raw: IntArray) -> IntArray:
    """The same samples in the same (H, W, C) order."""
    return x_raw.reshape(len(x_raw), *graph.shapes[node.name])


def argmax(graph: Graph, node: ArgMax, x_raw: IntArray) -> IntArray:
    """The number of the greatest channel, the first among equals."""
    y_raw: IntArray = x_raw.argmax(axis=3, keepdims=True)
    return y_raw


RULES: Mapping[type[Node], Rule] = {
    Input: input_,
    QConv2D: qconv2d,
    MaxPool: max_pool,
    QAveragePool: qaverage_pool,
    QAdd: qadd,
    QMultiply: qmultiply,
    QTable: qtable,
    Concat: concat,
    Slice: slice_,
    ChannelShuffle: channel_shuffle,
    DepthToSpace: depth_to_space,
    SpaceToDepth: space_to_depth,
    Upsample: upsample,
    Pad: pad,
    Crop: crop,
    Reshape: reshape,
    Flatten: reshape,
    ArgMax: argmax,
}

# ---------------------------------------------------------------------------------------------------- running


def run(graph: Graph, x_raw: NDArray[np.integer], keep: Collection[str] | None = None) -> dict[str, IntArray]:
    """The outputs of a quantized graph and the tensors named in ``keep``, in the graph's order.

    *Shapes* ``x_raw`` is ``(B, H, W, C)``, and so is every result.

    *Raises* ``TypeError`` when ``x_raw`` is not of integers or the graph is not quantized; ``ValueError``
    when ``x_raw`` has another shape or leaves the input's format, or when ``keep`` names no tensor of the
    graph.
    """
    for node in graph.nodes:
        if type(node) not in RULES:
            raise TypeError(f"graph must be quantized, not hold {node.op} {node.name!r}")
    unknown = sorted(set(keep or ()) - graph.shapes.keys())
    if unknown:
        raise ValueError(f"keep must name tensors of the graph, not {unknown[0]!r}")
    frames = _checked_frames(graph, x_raw)
    kept = [name for name in graph.shapes if name in graph.outputs or name in (keep or ())]
    together = _WORDS // max(math.prod(shape) for shape in graph.shapes.values())
    runs = [_run(graph, frames[images], kept) for images in _slices(len(frames), together)]
    return {name: np.concatenate([tensors[name] for tensors in runs]) for name in kept}


def trace(graph: Graph, x_raw: NDArray[np.integer]) -> dict[str, IntArray]:
    """Every tensor of the graph, in its order, the input first."""
    return run(graph, x_raw, keep=graph.shapes.keys())


def _run(graph: Graph, frames: IntArray, kept: Sequence[str]) -> dict[str, IntArray]:
    tensors: dict[str, IntArray] = {}
    for node in graph.nodes:
        inputs = (frames,) if isinstance(node, Input) else tuple(tensors[name] for name in node.inputs)
        tensors[node.name] = RULES[type(node)](graph, node, *inputs)
    return {name: tensors[name] for name in kept}


def _checked_frames(graph: Graph, x_raw: NDArray[np.integer]) -> IntArray:
    if not np.issubdtype(x_raw.dtype, np.integer):
        raise TypeError(f"x_raw must hold integers, not {x_raw.dtype}")
    shape, form = graph.input.shape, graph.format_of(graph.input.name)
    if x_raw.ndim != 4 or x_raw.shape[1:] != shape or len(x_raw) == 0:
        raise ValueError(f"x_raw must have the shape (images, {str(shape)[1:]}, not {x_raw.shape!r}")
    for value in (int(x_raw.min()), int(x_raw.max())):
        if not form.min_raw <= value <= form.max_raw:
            raise ValueError(f"x_raw must be {form.min_raw} to {form.max_raw}, not {value!r}")
    return x_raw.astype(np.int64)


# ---------------------------------------------------------------------------------------------------- helpers


def _integers(graph: Graph, name: str) -> IntArray:
    array = graph.weights[name]
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"weights {name!r} must hold integers, not {array.dtype}")
    return array.astype(np.int64, copy=False)


def _slices(count: int, step: int) -> Iterator[slice]:
    step = max(step, 1)
    return (slice(first, first + step) for first in range(0, count, step))


def _spans(starts: Sequence[int], size: int) -> Iterator[slice]:
    """The positions of each border class among ``size``; empty for a class that starts behind the last."""
    return (slice(first, end) for first, end in zip(starts, (*starts[1:], size), strict=True))


def _windows(
    x_bhwc: AnyArray, kernel: Pair, stride: Pair, padding: Padding, fill: int, dilation: Pair = (1, 1)
) -> AnyArray:
    """Every window of the padded batch: a view of ``(B, rows, cols, kh, kw, C)``."""
    x_padded = np.pad(x_bhwc, ((0, 0), *padding, (0, 0)), constant_values=fill)
    extent = window_extent(kernel[0], dilation[0]), window_extent(kernel[1], dilation[1])
    windows: AnyArray = sliding_window_view(x_padded, extent, axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    return windows[:, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _limited(node: QConv2D | QAveragePool | QAdd | QMultiply, y: IntArray, zero_point: int | None = None) -> IntArray:
    """Raw values from steps: the output's zero point (or another) added, within the node's limits."""
    zero_point = node.format.zero_point if zero_point is None else zero_point
    y_raw: IntArray = np.clip(y + zero_point, node.low, node.high)
    return y_raw
