"""Images and labels from ``.npz`` files, and frames with their results for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convfold.compiler.errors import CompileError
from convfold.compiler.graph import Graph, Shape
from convfold.compiler.npz import read_npz
from convfold.compiler.numbers import IntArray, RealArray

__all__ = ["Samples", "load_samples", "vectors"]


@dataclass(frozen=True, slots=True)
class Samples:
    """*Shapes* ``images (N, H, W, C)``, ``labels (N,)`` or ``None``."""

    images: RealArray
    labels: NDArray[np.int64] | None = None


def load_samples(path: Path, graph: Graph, *, labels: bool = False) -> Samples:
    """The arrays ``x`` (and ``y``) of an ``.npz``, checked against the network's input.

    ``x`` holds real values. For a network that came in integers ``x_raw`` may hold raw ones instead.

    *Raises* ``CompileError`` for a missing or unreadable file, missing arrays, wrong shapes, NaN, values out of the declared
    range, or labels that no output channel stands for.
    """
    arrays = read_npz(path, path.name)
    source = path.name
    form = graph.input.format
    if "x_raw" in arrays and form is not None:
        raw = np.asarray(arrays["x_raw"])
        if not np.issubdtype(raw.dtype, np.integer):
            raise CompileError(source, f"x_raw has the type {raw.dtype}", "save raw images as integers, real ones as x")
        if raw.size and not form.min_raw <= raw.min() <= raw.max() <= form.max_raw:
            message = f"x_raw has values from {raw.min()} to {raw.max()}, outside {form.min_raw} to {form.max_raw}"
            raise CompileError(source, message, f"the input is {'' if form.signed else 'u'}int{form.bits}")
        arrays["x"] = form.dequantize(raw.astype(np.int64))
    if "x" not in arrays:
        raise CompileError(source, "has no array 'x'", f"save the images as x, shape (N, {str(graph.input.shape)[1:]}")
    x = _frames(np.asarray(arrays["x"], dtype=np.float64), graph.input.shape)
    if x.ndim != 4 or x.shape[1:] != graph.input.shape or not len(x):
        raise CompileError(source, f"x has the shape {x.shape}", f"it must be (N, {str(graph.input.shape)[1:]}")
    low, high = graph.input.low, graph.input.high
    if not np.all((x >= low) & (x <= high)):
        raise CompileError(
            source,
            f"x has values from {x.min():g} to {x.max():g}, outside the input range {low:g} to {high:g}",
            "scale the images, or widen the network's input range" if form is None else "clip or scale the images",
        )
    if not labels:
        return Samples(x)
    if "y" not in arrays:
        raise CompileError(source, "has no array 'y'", "save one integer label an image as y, shape (N,)")
    y = np.asarray(arrays["y"])
    classes = graph.shapes[graph.outputs[0]][2]
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise CompileError(source, f"y has the shape {y.shape} and type {y.dtype}", f"it must be {len(x)} integers")
    if y.min() < 0 or y.max() >= classes:
        raise CompileError(source, f"y has labels {y.min()} to {y.max()}", f"the network has the classes 0 to {classes - 1}")
    return Samples(x, y.astype(np.int64))


def _frames(x: RealArray, shape: Shape) -> RealArray:
    """Images that lack the axes of size 1 in the network's shape."""
    return x.reshape(-1, *shape) if x.ndim and x.shape[1:] == tuple(size for size in shape if size > 1) else x


def vectors(graph: Graph, frames: IntArray, results: Mapping[str, IntArray]) -> dict[str, IntArray]:
    """What the bench reads: frames, and the golden model's ``outputs``, or ``outputs0``, ``outputs1``, … of several."""
    names = ["outputs"] if len(graph.outputs) == 1 else [f"outputs{n}" for n in range(len(graph.outputs))]
    return {"inputs": frames} | {name: results[output] for name, output in zip(names, graph.outputs, strict=True)}
