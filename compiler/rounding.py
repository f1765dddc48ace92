"""The requantizers: how accumulators become the next layer's integers, one definition for each format that networks come in.

Every one of them is a monotone step function of the accumulator; `convfold.compiler.narrow` gives each the hardware's form,
and proves the two equal on every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .graph import Graph, QConv2D
from .numbers import IntArray, RealArray

__all__ = ["FloatRequantizer", "NativeRequantizer", "Requantizer", "TfliteRequantizer", "requantizer_of"]


class Requantizer(Protocol):
    """``acc (..., C)`` to raw steps before zero point and limits, ``(..., C)``; never decreasing in ``acc``."""

    def __call__(self, acc: IntArray) -> IntArray: ...

    def channel(self, index: int) -> Requantizer:
        """That of one channel alone, ``C = 1``."""


@dataclass(frozen=True, slots=True, eq=False)
class NativeRequantizer:
    """``(acc·m + 2**(shift-1)) >> shift``: half up."""

    m_o: IntArray
    shift: int

    def __call__(self, acc: IntArray) -> IntArray:
        return (np.asarray(acc, dtype=np.int64) * self.m_o + (1 << (self.shift - 1))) >> self.shift

    def channel(self, index: int) -> NativeRequantizer:
        return NativeRequantizer(self.m_o[index : index + 1], self.shift)


@dataclass(frozen=True, slots=True, eq=False)
class TfliteRequantizer:
    """``MultiplyByQuantizedMultiplier`` of the tflite-micro reference kernels, with its two roundings.

    ``m`` has 31 bits and stands for ``m / 2**31``; a positive exponent ``s`` shifts the accumulator to the left first, a
    negative one shifts the product to the right last. First ``(acc·2**max(s,0)·m + 2**30) >> 31`` (half up), then a rounding
    shift with ties away from zero.

    *Source* tensorflow/lite/kernels/internal/common.h and gemmlowp fixedpoint.h.
    """

    m_o: IntArray
    s_o: IntArray

    def __call__(self, acc: IntArray) -> IntArray:
        shifted = np.asarray(acc, dtype=np.int64) << np.maximum(self.s_o, 0)
        high = (shifted * self.m_o + (1 << 30)) >> 31
        right = np.maximum(-self.s_o, 0)
        mask = (np.int64(1) << right) - 1
        rest = high & mask
        result: IntArray = (high >> right) + (rest > (mask >> 1) + (high < 0))
        return result

    def channel(self, index: int) -> TfliteRequantizer:
        return TfliteRequantizer(self.m_o[index : index + 1], self.s_o[index : index + 1])


@dataclass(frozen=True, slots=True, eq=False)
class FloatRequantizer:
    """``half_even(acc · scale)``, the product rounded to ``dtype``: float32 is what onnxruntime computes."""

    scale_o: RealArray
    dtype: type[np.float32] | type[np.float64]

    def __call__(self, acc: IntArray) -> IntArray:
        product = np.asarray(acc, dtype=np.int64).astype(self.dtype) * self.scale_o.astype(self.dtype)
        result: IntArray = np.rint(product).astype(np.int64)
        return result

    def channel(self, index: int) -> FloatRequantizer:
        return FloatRequantizer(self.scale_o[index : index + 1], self.dtype)


def requantizer_of(graph: Graph, node: QConv2D) -> Requantizer:
    """The requantizer of a convolution."""
    match node.rounding:
        case "native":
            return NativeRequantizer(graph.integers(f"{node.name}.m"), node.shift)
        case "tflite":
            return TfliteRequantizer(graph.integers(f"{node.name}.m"), graph.integers(f"{node.name}.s"))
        case "float32":
            return FloatRequantizer(graph.weights[f"{node.name}.scale"].astype(np.float64), np.float32)
        case "float64":
            return FloatRequantizer(graph.weights[f"{node.name}.scale"].astype(np.float64), np.float64)
