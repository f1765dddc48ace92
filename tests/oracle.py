"""The Toeplitz oracle: any linear network on a fixed input size is one matrix and one offset.

Written from the definitions as explicit loops over output positions and taps, sharing no code with the
evaluator or the folds. A tensor is flattened in (H, W, C) order, and ``y = T·x + t``. Only for small sizes:
``T`` is dense.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convfold.compiler.graph import (
    Add,
    AveragePool,
    BatchNorm,
    ChannelShuffle,
    Concat,
    Conv2D,
    Crop,
    Dense,
    DepthToSpace,
    Dropout,
    Flatten,
    Graph,
    Input,
    Node,
    Pad,
    Pca,
    Reshape,
    ScaleBias,
    Slice,
    SpaceToDepth,
    Upsample,
)

Real = NDArray[np.float64]
Affine = tuple[Real, Real]


def toeplitz(graph: Graph) -> dict[str, Affine]:
    """``(T, t)`` of every tensor of a graph, as an affine map of the input."""
    maps: dict[str, Affine] = {}
    for node in graph.nodes:
        if isinstance(node, Input):
            size = int(np.prod(node.shape))
            maps[node.name] = np.eye(size), np.zeros(size)
        else:
            parts = [(*node_map(graph, node, n), *maps[name]) for n, name in enumerate(node.inputs)]
            maps[node.name] = (
                np.sum([matrix @ before for matrix, _, before, _ in parts], axis=0),
                np.sum([matrix @ offset + constant for matrix, constant, _, offset in parts], axis=0),
            )
    return maps


def node_map(graph: Graph, node: Node, number: int = 0) -> Affine:
    """``(T, t)`` of one node, as an affine map of one of its inputs; its result is the sum over them."""
    height, width, channels = graph.shapes[node.inputs[number]]
    rows, cols, outputs = graph.shapes[node.name]
    weight = {
        key.rpartition(".")[2]: array
        for key, array in graph.weights.items()
        if key.startswith(f"{node.name}.")
    }
    matrix = np.zeros((rows, cols, outputs, height, width, channels))
    constant = np.zeros((rows, cols, outputs))
    match node:
        case Conv2D():
            (top, _), (left, _) = node.padding
            made, read = outputs // node.groups, channels // node.groups
            for i in range(rows):
                row_class = sum(start <= i for start in node.classes.rows) - 1
                for j in range(cols):
                    col_class = sum(start <= j for start in node.classes.cols) - 1
                    kernel = weight["w"][row_class, col_class]
                    constant[i, j] = weight["b"][row_class, col_class]
                    for u in range(kernel.shape[1]):
                        for v in range(kernel.shape[2]):
                            y = i * node.stride[0] + u * node.dilation[0] - top
                            x = j * node.stride[1] + v * node.dilation[1] - left
                            if 0 <= y < height and 0 <= x < width:
                                for m in range(outputs):
                                    first = m // made * read
                                    matrix[i, j, m, y, x, first : first + read] += kernel[m, u, v]
        case Dense():
            matrix[0, 0] = weight["w"].reshape(outputs, height, width, channels)
            constant[0, 0] = weight["b"]
        case BatchNorm():
            for i, j, c in np.ndindex(rows, cols, channels):
                slope = weight["gamma"][c] / (weight["var"][c] + node.epsilon) ** 0.5
                matrix[i, j, c, i, j, c] = slope
                constant[i, j, c] = weight["beta"][c] - slope * weight["mean"][c]
        case ScaleBias():
            for i, j, c in np.ndindex(rows, cols, channels):
                matrix[i, j, c, i, j, c] = weight["scale"][c]
                constant[i, j, c] = weight["bias"][c]
        case Pca():
            for i, j, r in np.ndindex(rows, cols, outputs):
                deviation = weight["explained_variance"][r] ** 0.5 if node.whiten else 1.0
                matrix[i, j, r, i, j] = weight["components"][r] / deviation
                constant[i, j, r] = -(weight["components"][r] @ weight["mean"]) / deviation
        case AveragePool():
            for i, j in np.ndindex(rows, cols):
                window = [
                    (i * node.stride[0] + u - node.padding[0][0], j * node.stride[1] + v - node.padding[1][0])
                    for u in range(node.kernel[0])
                    for v in range(node.kernel[1])
                ]
                inside = [(y, x) for y, x in window if 0 <= y < height and 0 <= x < width]
                for y, x in inside:
                    share = 1 / len(window if node.count_include_pad else inside)
                    matrix[i, j, range(channels), y, x, range(channels)] = share
        case Add():
            for i, j, c in np.ndindex(rows, cols, channels):
                matrix[i, j, c, i, j, c] = 1
        case Concat():
            first = sum(graph.shapes[name][2] for name in node.inputs[:number])
            for i, j, c in np.ndindex(rows, cols, channels):
                matrix[i, j, first + c, i, j, c] = 1
        case Slice():
            for i, j, c in np.ndindex(rows, cols, outputs):
                matrix[i, j, c, i, j, node.start + c] = 1
        case ChannelShuffle():
            size = channels // node.groups
            for i, j, g, n in np.ndindex(rows, cols, node.groups, size):
                matrix[i, j, n * node.groups + g, i, j, g * size + n] = 1
        case DepthToSpace():
            bh, bw = node.block
            for i, j, c in np.ndindex(rows, cols, outputs):
                r, s = i % bh, j % bw
                n = (r * bw + s) * outputs + c if node.order == "DCR" else (c * bh + r) * bw + s
                matrix[i, j, c, i // bh, j // bw, n] = 1
        case Upsample():
            for i, j, c in np.ndindex(rows, cols, outputs):
                matrix[i, j, c, i // node.factor[0], j // node.factor[1], c] = 1
        case Dropout():
            for i, j, c in np.ndindex(rows, cols, outputs):
                matrix[i, j, c, i, j, c] = 1
        case SpaceToDepth():
            bh, bw = node.block
            for y, x, c in np.ndindex(height, width, channels):
                r, s = y % bh, x % bw
                n = (r * bw + s) * channels + c if node.order == "DCR" else (c * bh + r) * bw + s
                matrix[y // bh, x // bw, n, y, x, c] = 1
        case Pad():
            constant += node.value
            for y, x, c in np.ndindex(height, width, channels):
                i, j = y + node.padding[0][0], x + node.padding[1][0]
                matrix[i, j, c, y, x, c] = 1
                constant[i, j, c] = 0
        case Crop():
            for i, j, c in np.ndindex(rows, cols, outputs):
                matrix[i, j, c, i + node.cropping[0][0], j + node.cropping[1][0], c] = 1
        case Reshape() | Flatten():
            for y, x, c in np.ndindex(height, width, channels):
                pixel, m = divmod((y * width + x) * channels + c, outputs)
                i, j = divmod(pixel, cols)
                matrix[i, j, m, y, x, c] = 1
        case _:
            raise TypeError(f"node must be linear, not {node!r}")
    return matrix.reshape(rows * cols * outputs, -1), constant.reshape(-1)


def difference(reference: Affine, other: Affine) -> float:
    """The greatest difference between two affine maps, relative to the greatest entry of the first."""
    (matrix, offset), (other_matrix, other_offset) = reference, other
    scale = max(float(np.abs(matrix).max()), float(np.abs(offset).max()), 1e-300)
    return max(float(np.abs(matrix - other_matrix).max()), float(np.abs(offset - other_offset).max())) / scale
