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

from convfold.compiler.graph import Graph, Input, MaxPool, Node, Padding, Pair, QConv2D
from convfold.compiler.numbers import MAX_ACCUMULATOR, IntArray, RealArray, accumulator_range, requantize

AnyArray = TypeVar("AnyArray", IntArray, RealArray)
Rule = Callable[..., IntArray]
"""``rule(graph, node, *inputs)`` makes the node's tensor."""

_WORDS = 1 << 18
"""The size to which batches are cut, for every tensor and every table of windows: it stays in the cache."""

# -------------------------------------------------------------------------------------------------- operators


def input_(graph: Graph, node: Input, x_raw: IntArray) -> IntArray:
    """The frame itself."""
    return x_raw


def qconv2d(graph: Graph, node: QConv2D, x_raw: IntArray) -> IntArray:
    """``requantize(b + Σ w·x, m, shift, zero point, low, high)``; padded taps read the input's zero point.

    The sums of products run in float64, for its fast matrix product, and are exact: every operand, product
    and partial sum, in whatever order it is taken, is an integer within ``accumulator_range``; that is
    required to stay within ``MAX_ACCUMULATOR < 2**45``, and float64 holds every integer up to ``2**53``.

    *Raises* ``ValueError`` when an accumulator could be greater than that.
    """
    source = graph.format_of(node.inputs[0])
    w_rcohwi, b_rco, m_o = (_integers(graph, f"{node.name}.{part}") for part in "wbm")
    reach = accumulator_range(w_rcohwi, b_rco, source.min_raw, source.max_raw).magnitude
    if reach > MAX_ACCUMULATOR:
        raise ValueError(f"accumulators of {node.name!r} must be at most {MAX_ACCUMULATOR}, not {reach!r}")

    *_, kh, kw, inputs = w_rcohwi.shape
    taps = kh * kw * inputs
    w_rcko = w_rcohwi.reshape(*w_rcohwi.shape[:3], taps).swapaxes(2, 3).astype(np.float64)
    height, width, channels = graph.shapes[node.name]
    regions = [
        (rows, cols, w_rcko[r, c], b_rco[r, c])
        for r, rows in enumerate(_spans(node.classes.rows, height))
        for c, cols in enumerate(_spans(node.classes.cols, width))
    ]
    y_raw = np.empty((len(x_raw), height, width, channels), dtype=np.int64)
    for images in _slices(len(x_raw), _WORDS // (height * width * taps)):
        x_real = x_raw[images].astype(np.float64)
        windows = _windows(x_real, (kh, kw), node.stride, node.padding, source.zero_point)
        for rows, cols, w_ko, b_o in regions:
            patches = windows[:, rows, cols]
            acc = (patches.reshape(-1, taps) @ w_ko).astype(np.int64) + b_o
            raw = requantize(acc, m_o, node.shift, node.format.zero_point, node.low, node.high)
            y_raw[images, rows, cols] = raw.reshape(*patches.shape[:3], channels)
    return y_raw


def max_pool(graph: Graph, node: MaxPool, x_raw: IntArray) -> IntArray:
    """The greatest of each window; the padding holds the format's least integer, so it wins against none."""
    least = graph.format_of(node.name).min_raw
    y_raw: IntArray = _windows(x_raw, node.kernel, node.stride, node.padding, least).max(axis=(3, 4))
    return y_raw


RULES: Mapping[type[Node], Rule] = {Input: input_, QConv2D: qconv2d, MaxPool: max_pool}

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


def _windows(x_bhwc: AnyArray, kernel: Pair, stride: Pair, padding: Padding, fill: int) -> AnyArray:
    """Every window of the padded batch: a view of ``(B, rows, cols, kh, kw, C)``."""
    x_padded = np.pad(x_bhwc, ((0, 0), *padding, (0, 0)), constant_values=fill)
    windows: AnyArray = sliding_window_view(x_padded, kernel, axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    return windows[:, :: stride[0], :: stride[1]]
