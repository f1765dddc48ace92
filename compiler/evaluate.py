"""What a real graph computes, in float64, for a whole batch at once.

Written for speed, one matrix product a layer; ``tests/oracle.py`` holds the same definitions as explicit
loops. A padded tap of a convolution reads zero, a padded tap of a max pool never wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .functions import apply_function
from .graph import (
    Add,
    ArgMax,
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
    MaxPool,
    Multiply,
    Node,
    Pad,
    Padding,
    Pair,
    Pca,
    Pointwise,
    Prelu,
    Reshape,
    ScaleBias,
    Slice,
    SpaceToDepth,
    Upsample,
    window_extent,
)
from .numbers import RealArray

PATCH_VALUES = 1 << 22
"""How many values of unrolled patches stand in memory at once (32 MiB)."""


def evaluate(graph: Graph, x_bhwc: RealArray, keep: Iterable[str] | None = None) -> dict[str, RealArray]:
    """The tensors named in ``keep`` (by default the outputs) for a batch of inputs, each ``(B, H, W, C)``.

    *Raises* ``ValueError`` when the batch is not of the input's shape or ``keep`` names no tensor of the
    graph.
    """
    source = graph.input
    if x_bhwc.ndim != 4 or x_bhwc.shape[1:] != source.shape:
        raise ValueError(
            f"inputs must be of shape (batch, {', '.join(map(str, source.shape))}), not {x_bhwc.shape!r}"
        )
    wanted = set(graph.outputs if keep is None else keep)
    if unknown := wanted - graph.shapes.keys():
        raise ValueError(f"keep must name tensors of the graph, not {sorted(unknown)!r}")

    last_use = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    tensors: dict[str, RealArray] = {source.name: np.asarray(x_bhwc, dtype=np.float64)}
    for index, node in enumerate(graph.nodes):
        if node is not source:
            tensors[node.name] = apply_node(graph, node, tuple(tensors[name] for name in node.inputs))
        for name in {*node.inputs, node.name}:
            if name not in wanted and last_use.get(name, index) <= index:
                del tensors[name]
        if wanted <= tensors.keys():
            break
    return {name: tensors[name] for name in graph.shapes if name in wanted}


def apply_node(graph: Graph, node: Node, inputs_bhwc: tuple[RealArray, ...]) -> RealArray:
    """What one node makes of its inputs."""
    x_bhwc = inputs_bhwc[0]
    match node:
        case Conv2D():
            return _convolve(graph, node, x_bhwc)
        case Dense():
            flat = x_bhwc.reshape(len(x_bhwc), -1) @ real_array(graph, f"{node.name}.w").T + real_array(
                graph, f"{node.name}.b"
            )
            return flat[:, None, None, :]
        case BatchNorm() | ScaleBias():
            scale, shift = scale_and_shift(graph, node)
            return x_bhwc * scale + shift
        case Pca():
            return (x_bhwc - real_array(graph, f"{node.name}.mean")) @ projection(graph, node).T
        case AveragePool():
            sums = _windows(x_bhwc, node.kernel, node.stride, node.padding, 0.0).sum(axis=(4, 5))
            rows, cols = window_counts(graph, node)
            return np.asarray(sums / np.outer(rows, cols)[:, :, None])
        case Add():
            return np.asarray(sum(inputs_bhwc[1:], start=x_bhwc))
        case Concat():
            return np.concatenate(inputs_bhwc, axis=3)
        case Slice():
            return x_bhwc[..., node.start : node.stop]
        case ChannelShuffle():
            parted = x_bhwc.reshape(*x_bhwc.shape[:3], node.groups, -1)
            return parted.swapaxes(3, 4).reshape(x_bhwc.shape)
        case DepthToSpace():
            height, width, channels = graph.shapes[node.name]
            dcr = node.order == "DCR"
            parts = (*node.block, channels) if dcr else (channels, *node.block)
            parted = x_bhwc.reshape(*x_bhwc.shape[:3], *parts)
            blocks = parted.transpose(0, 1, 3, 2, 4, 5) if dcr else parted.transpose(0, 1, 4, 2, 5, 3)
            return blocks.reshape(len(x_bhwc), height, width, channels)
        case SpaceToDepth():
            (height, width, _), (bh, bw) = graph.shapes[node.name], node.block
            blocks = x_bhwc.reshape(len(x_bhwc), height, bh, width, bw, -1)
            parted = blocks.transpose(0, 1, 3, 2, 4, 5) if node.order == "DCR" else blocks.transpose(0, 1, 3, 5, 2, 4)
            return parted.reshape(len(x_bhwc), height, width, -1)
        case Upsample():
            return x_bhwc.repeat(node.factor[0], axis=1).repeat(node.factor[1], axis=2)
        case Pad():
            return np.pad(x_bhwc, ((0, 0), *node.padding, (0, 0)), constant_values=node.value)
        case Crop():
            (top, bottom), (left, right) = node.cropping
            return x_bhwc[:, top : x_bhwc.shape[1] - bottom, left : x_bhwc.shape[2] - right]
        case Dropout():
            return x_bhwc
        case Reshape() | Flatten():
            return x_bhwc.reshape(len(x_bhwc), *graph.shapes[node.name])
        case Clip():
            return np.clip(x_bhwc, node.low, node.high)
        case Pointwise():
            return apply_function(node.function, x_bhwc, node.parameters)
        case Prelu():
            return np.where(x_bhwc > 0, x_bhwc, x_bhwc * real_array(graph, f"{node.name}.slope"))
        case Multiply():
            return np.asarray(inputs_bhwc[0] * inputs_bhwc[1])
        case ArgMax():
            return np.asarray(x_bhwc.argmax(axis=3)[..., None], dtype=np.float64)
        case MaxPool():
            windows = _windows(x_bhwc, node.kernel, node.stride, node.padding, -math.inf)
            return np.asarray(windows.max(axis=(4, 5)))
    raise TypeError(f"node must be an operator on reals, not {node!r}")


def accuracy(outputs: NDArray[np.float64] | NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """The share of a batch whose greatest output is the labelled one."""
    if len(outputs) != len(labels) or not len(labels):
        raise ValueError(f"there must be one label an output, not {len(labels)!r} for {len(outputs)!r}")
    return float(np.mean(outputs.reshape(len(outputs), -1).argmax(axis=1) == labels))


def normalization(graph: Graph, node: BatchNorm) -> tuple[RealArray, RealArray]:
    """A batch norm as ``y = scale · x + shift``."""
    gamma, beta, mean, var = (
        real_array(graph, f"{node.name}.{part}") for part in ("gamma", "beta", "mean", "var")
    )
    scale = gamma / np.sqrt(var + node.epsilon)
    return scale, beta - mean * scale


def scale_and_shift(graph: Graph, node: BatchNorm | ScaleBias) -> tuple[RealArray, RealArray]:
    """``(C,)`` each: what every sample is multiplied by, and what is added then."""
    if isinstance(node, BatchNorm):
        return normalization(graph, node)
    return real_array(graph, f"{node.name}.scale"), real_array(graph, f"{node.name}.bias")


def projection(graph: Graph, node: Pca) -> RealArray:
    """The matrix ``(r, c)`` of a projection, whitening included.

    As in scikit-learn, no standard deviation is taken for less than float64 resolves.
    """
    q_rc = real_array(graph, f"{node.name}.components")
    if not node.whiten:
        return q_rc
    deviation = np.sqrt(real_array(graph, f"{node.name}.explained_variance"))
    return np.asarray(q_rc / np.maximum(deviation, np.finfo(np.float64).eps)[:, None])


def window_counts(graph: Graph, node: AveragePool) -> tuple[RealArray, RealArray]:
    """How many rows, and how many columns, each window of an average pool divides by."""
    counts = []
    for axis in (0, 1):
        size, windows = graph.shapes[node.inputs[0]][axis], graph.shapes[node.name][axis]
        first = np.arange(windows) * node.stride[axis] - node.padding[axis][0]
        stop = first + node.kernel[axis]
        if not node.count_include_pad:
            first, stop = first.clip(0, size), stop.clip(0, size)
        counts.append((stop - first).astype(np.float64))
    return counts[0], counts[1]


def real_array(graph: Graph, name: str) -> RealArray:
    """One weight array of a real graph."""
    return np.asarray(graph.weights[name], dtype=np.float64)


def _convolve(graph: Graph, node: Conv2D, x_bhwc: RealArray) -> RealArray:
    w_rcohwi, b_rco = real_array(graph, f"{node.name}.w"), real_array(graph, f"{node.name}.b")
    height, width, channels = graph.shapes[node.name]
    _, _, _, kh, kw, inputs = w_rcohwi.shape
    (dh, dw), outputs = node.dilation, channels // node.groups
    w_rcgio = w_rcohwi.reshape(*b_rco.shape[:2], node.groups, outputs, kh, kw, inputs).transpose(0, 1, 2, 6, 4, 5, 3)
    w_rcgio = w_rcgio.reshape(*b_rco.shape[:2], node.groups, inputs * kh * kw, outputs)
    y_bhwo = np.empty((len(x_bhwc), height, width, channels))
    step = max(1, PATCH_VALUES // (height * width * inputs * kh * kw))
    extent = window_extent(kh, dh), window_extent(kw, dw)
    for start in range(0, len(x_bhwc), step):
        batch = slice(start, start + step)
        patches = _windows(x_bhwc[batch], extent, node.stride, node.padding, 0.0)[..., ::dh, ::dw]
        for r, rows in _segments(node.classes.rows, height):
            for c, cols in _segments(node.classes.cols, width):
                for g in range(node.groups):
                    block = patches[:, rows, cols, g * inputs : (g + 1) * inputs]
                    made = slice(g * outputs, (g + 1) * outputs)
                    flat = block.reshape(-1, inputs * kh * kw) @ w_rcgio[r, c, g] + b_rco[r, c, made]
                    y_bhwo[batch, rows, cols, made] = flat.reshape(*block.shape[:3], outputs)
    return y_bhwo


def _segments(starts: tuple[int, ...], size: int) -> Iterator[tuple[int, slice]]:
    """Every border class with the positions it holds."""
    for index, (start, stop) in enumerate(zip(starts, (*starts[1:], size), strict=True)):
        yield index, slice(start, stop)


def _windows(x_bhwc: RealArray, kernel: Pair, stride: Pair, padding: Padding, fill: float) -> RealArray:
    """The windows of each output position, ``(B, H', W', C, kh, kw)``: a view, only padding copies."""
    if padding != ((0, 0), (0, 0)):
        x_bhwc = np.pad(x_bhwc, ((0, 0), *padding, (0, 0)), constant_values=fill)
    return sliding_window_view(x_bhwc, kernel, axis=(1, 2))[:, :: stride[0], :: stride[1]]
