"""What every lossy step shares: the budget it must keep, and the data on which it is fitted and judged.

Nothing lossy happens without a budget of the user's. What is fitted is never judged on the images it was fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .errors import CompileError
from .evaluate import accuracy, evaluate
from .graph import Graph, Padding, Pair
from .numbers import IntArray, RealArray

HOLD_EVERY = 4
"""One calibration image of this many is held out."""

RIDGE = 1e-9
"""Added to the diagonal of normal equations, in parts of its mean: what the data does not tell stays as it is."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What the user gives up, one of three: ``str`` is the option that says so.

    ``error`` bounds the relative error of the responses of every changed layer, ``accuracy_drop`` the points of accuracy that
    the network loses on labelled images, ``macs`` the multiplies of one frame.
    """

    error: float | None = None
    accuracy_drop: float | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.error, self.accuracy_drop, self.macs) if value is not None]
        if len(given) != 1 or not 0 <= given[0] < math.inf:
            raise ValueError(f"a budget must be one number from 0 on, not {given!r}")

    def __str__(self) -> str:
        if self.error is not None:
            return f"--error {self.error:g}"
        return f"--macs {self.macs}" if self.accuracy_drop is None else f"--accuracy-drop {self.accuracy_drop:g}"


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Images by what they are for: ``fit`` to fit on, ``judge`` to measure errors on, ``test`` with ``labels`` for accuracy.

    *Shapes* images ``(N, H, W, C)``, labels ``(N,)``; ``None`` for what the user did not give.
    """

    fit: RealArray | None = None
    judge: RealArray | None = None
    test: RealArray | None = None
    labels: IntArray | None = None

    @classmethod
    def of(cls, calibration: RealArray | None, test: RealArray | None = None, labels: IntArray | None = None) -> Evidence:
        """Every fourth calibration image is held out as a judge; without calibration the test images judge.

        *Raises* ``CompileError`` for a single calibration image.
        """
        if calibration is None:
            return cls(None, test, test, labels)
        if len(calibration) < 2:
            raise CompileError("calibration", "must have 2 images or more: one of them is held out", "give more images")
        held_out = np.arange(len(calibration)) % HOLD_EVERY == min(HOLD_EVERY, len(calibration)) - 1
        return cls(calibration[~held_out], calibration[held_out], test, labels)

    def accuracy(self, graph: Graph) -> float | None:
        """The share of the labelled images that a network classifies rightly; ``None`` without labels."""
        if self.test is None or self.labels is None:
            return None
        return accuracy(evaluate(graph, self.test)[graph.outputs[0]], self.labels)


def spread_error(expected: RealArray, found: RealArray) -> float:
    """``√(Σ(found − expected)² / Σ(expected − mean)²)``, the mean taken channel by channel.

    1 is what the constant mean would reach; a bias that all responses share does not make an error look small.
    """
    difference = float(np.linalg.norm(found - expected))
    rows = expected.reshape(-1, expected.shape[-1])
    spread = float(np.linalg.norm(rows - rows.mean(axis=0)))
    return difference / (spread or float(np.linalg.norm(rows)) or 1.0) if difference else 0.0


def output_error(expected: Mapping[str, RealArray], found: Mapping[str, RealArray]) -> float:
    """The greatest `spread_error` of a network's outputs."""
    return max(spread_error(expected[name], found[name]) for name in expected)


# ------------------------------------------------------------------------------------------------------- least squares


def patches(x_bhwc: RealArray, kernel: Pair, stride: Pair, padding: Padding) -> RealArray:
    """What a kernel reads at each output position, a row each: ``(B·H'·W', kh·kw·C)``, channels fastest."""
    padded = np.pad(x_bhwc, ((0, 0), *padding, (0, 0)))
    windows = sliding_window_view(padded, kernel, axis=(1, 2))[:, :: stride[0], :: stride[1]]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(math.prod(windows.shape[:3]), -1)


def convolve(x_bhwc: RealArray, w_ohwi: RealArray, stride: Pair, padding: Padding) -> RealArray:
    """A convolution without a bias, ``(B, H', W', O)``."""
    outputs, kh, kw, _ = w_ohwi.shape
    sizes = [
        (size + sum(pads) - k) // step + 1
        for size, pads, k, step in zip(x_bhwc.shape[1:3], padding, (kh, kw), stride, strict=True)
    ]
    flat = patches(x_bhwc, (kh, kw), stride, padding) @ w_ohwi.reshape(outputs, -1).T
    return flat.reshape(len(x_bhwc), *sizes, outputs)


def solve(gram: RealArray, moments: RealArray) -> RealArray:
    """The least-squares solution from the Gram matrix of the features and their products with the targets."""
    ridge = RIDGE * float(np.trace(gram)) / len(gram) or 1.0
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(len(gram)), moments))
