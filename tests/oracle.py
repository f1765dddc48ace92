"""The Toeplitz oracle: any linear network on a fixed input size is one matrix and one offset.

Written from the definitions as explicit loops over output positions and taps, sharing no code with the
evaluator or the folds. A tensor is flattened in (H, W, C) order, and ``y = T·x + t``. Only for small sizes:
``T`` is dense.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convfold.compiler.graph import BatchNorm, Conv2D, Dense, Graph, Input, Node, Pca

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
            before, offset = maps[node.inputs[0]]
            matrix, constant = node_map(graph, node)
            maps[node.name] = matrix @ before, matrix @ offset + constant
    return maps


def node_map(graph: Graph, node: Node) -> Affine:
    """``(T, t)`` of one node, as an affine map of its own input."""
    height, width, channels = graph.shapes[node.inputs[0]]
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
            for i in range(rows):
                row_class = sum(start <= i for start in node.classes.rows) - 1
                for j in range(cols):
                    col_class = sum(start <= j for start in node.classes.cols) - 1
                    kernel = weight["w"][row_class, col_class]
                    constant[i, j] = weight["b"][row_class, col_class]
                    for u in range(kernel.shape[1]):
                        for v in range(kernel.shape[2]):
                            y, x = i * node.stride[0] + u - top, j * node.stride[1] + v - left
                            if 0 <= y < height and 0 <= x < width:
                                matrix[i, j, :, y, x] += kernel[:, u, v]
        case Dense():
            matrix[0, 0] = weight["w"].reshape(outputs, height, width, channels)
            constant[0, 0] = weight["b"]
        case BatchNorm():
            for i, j, c in np.ndindex(rows, cols, channels):
                slope = weight["gamma"][c] / (weight["var"][c] + node.epsilon) ** 0.5
                matrix[i, j, c, i, j, c] = slope
                constant[i, j, c] = weight["beta"][c] - slope * weight["mean"][c]
        case Pca():
            for i, j in np.ndindex(rows, cols):
                matrix[i, j, :, i, j] = weight["components"]
                constant[i, j] = -weight["components"] @ weight["mean"]
        case _:
            raise TypeError(f"node must be linear, not {node!r}")
    return matrix.reshape(rows * cols * outputs, -1), constant.reshape(-1)


def difference(reference: Affine, other: Affine) -> float:
    """The greatest difference between two affine maps, relative to the greatest entry of the first."""
    (matrix, offset), (other_matrix, other_offset) = reference, other
    scale = max(float(np.abs(matrix).max()), float(np.abs(offset).max()), 1e-300)
    return max(float(np.abs(matrix - other_matrix).max()), float(np.abs(offset - other_offset).max())) / scale
