"""The requantizers: how accumulators become the next layer's integers, one definition for each format that networks come in.

Every one of them is a monotone step function of the accumulator; `convfold.compiler.narrow` gives each the hardware's form,
and proves the two equal on every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .graph import Graph, Pair, QAdd, QAveragePool, QConv2D, QMultiply
from .numbers import IntArray, RealArray

__all__ = [
    "FloatRequantizer",
    "MeanRequantizer",
    "NativeRequantizer",
    "Requantizer",
    "TfliteRequantizer",
    "add_requantizer",
    "add_terms",
    "mean_requantizer",
    "requantizer_of",
]


class Requantizer(Protocol):
    """``acc (..., C)`` to raw steps before zero point and limits, ``(..., C)``; never decreasing in ``acc``."""

    def __call__(self, acc: IntArray) -> IntArray: ...

    @property
    def slope_o(self) -> RealArray:
        """Steps a unit of ``acc``, but for the rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class NativeRequantizer:
    """``(acc·m + 2**(shift-1)) >> shift``: half up."""

    m_o: IntArray
    shift: int

    def __call__(self, acc: IntArray) -> IntArray:
        return (np.asarray(acc, dtype=np.int64) * self.m_o + (1 << (self.shift - 1))) >> self.shift

    @property
    def slope_o(self) -> RealArray:
        return np.ldexp(self.m_o.astype(np.float64), -self.shift)


@dataclass(frozen=True, slots=True, eq=False)
class TfliteRequantizer:
    """``MultiplyByQuantizedMultiplier`` of the tflite-micro reference kernels, with its two roundings.

    ``m`` has 31 bits and stands for ``m / 2**31``; a positive exponent ``s`` shifts the accumulator to the left first, a
    negative one shifts the product to the right last. First ``(acc·2**max(s,0)·m + 2**30) >> 31`` (half up), then a rounding
    shift with ties away from zero. Defined while ``|acc|·2**max(s,0) <= 2**31``.

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

    @property
    def slope_o(self) -> RealArray:
        return np.ldexp(self.m_o.astype(np.float64), self.s_o - 31)


@dataclass(frozen=True, slots=True, eq=False)
class FloatRequantizer:
    """``half_even(acc · scale + offset)``, product and sum each rounded to ``dtype``: float32 is what onnxruntime computes.

    With ``zero_point`` that of the output is added before rounding (and taken off again): ties are even with it.
    """

    scale_o: RealArray
    dtype: type[np.float32] | type[np.float64]
    offset_o: RealArray | None = None
    zero_point: int = 0

    def __call__(self, acc: IntArray) -> IntArray:
        product = np.asarray(acc, dtype=np.int64).astype(self.dtype) * self.scale_o.astype(self.dtype)
        if self.offset_o is not None:
            product = product + self.offset_o.astype(self.dtype)
        result: IntArray = np.rint(product + self.dtype(self.zero_point)).astype(np.int64) - self.zero_point
        return result

    @property
    def slope_o(self) -> RealArray:
        return self.scale_o.astype(self.dtype).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class MeanRequantizer:
    """``acc / count`` to the nearest; ties upwards, or with ``away`` those of negative sums downwards."""

    count_o: IntArray
    away: bool

    def __call__(self, acc: IntArray) -> IntArray:
        sums = np.asarray(acc, dtype=np.int64)
        up = (2 * sums + self.count_o) // (2 * self.count_o)
        down = -((self.count_o - 2 * sums) // (2 * self.count_o))
        return np.where(sums < 0, down, up) if self.away else up

    @property
    def slope_o(self) -> RealArray:
        return 1.0 / self.count_o


_FLOATS: dict[str, type[np.float32] | type[np.float64]] = {"float32": np.float32, "float64": np.float64}


def requantizer_of(graph: Graph, node: QConv2D | QMultiply) -> Requantizer:
    """The requantizer of a convolution, for all its channels; that of a product, for one."""
    match node:
        case QMultiply(rounding="native"):
            return NativeRequantizer(np.array(node.multiplier[:1]), node.shift)
        case QMultiply(rounding="tflite"):
            return TfliteRequantizer(np.array(node.multiplier[:1]), np.array(node.multiplier[1:]))
        case QMultiply(rounding="float32"):
            return FloatRequantizer(np.array([node.ratio]), np.float32, zero_point=node.format.zero_point)
        case QMultiply():
            return FloatRequantizer(np.array([node.ratio]), np.float64)
        case QConv2D(rounding="native"):
            return NativeRequantizer(graph.integers(f"{node.name}.m"), node.shift)
        case QConv2D(rounding="tflite"):
            return TfliteRequantizer(graph.integers(f"{node.name}.m"), graph.integers(f"{node.name}.s"))
    scale_o, offset_o = (graph.weights.get(f"{node.name}.{part}") for part in ("scale", "offset"))
    if scale_o is None:
        raise ValueError(f"a float requantizer must have scales, {node.name!r} has none")
    offsets = None if offset_o is None else offset_o.astype(np.float64)
    return FloatRequantizer(scale_o.astype(np.float64), _FLOATS[node.rounding], offsets)


def mean_requantizer(node: QAveragePool, counts: IntArray) -> Requantizer:
    """The requantizer of a pool's windows that count so many samples each; its arrays have the shape of ``counts``.

    It takes the sum of raw samples for ``native`` and ``tflite``, and of those less their zero point for the floats.
    """
    if node.rounding in ("native", "tflite"):
        return MeanRequantizer(counts, away=node.rounding == "tflite")
    return FloatRequantizer(node.ratio / counts, _FLOATS[node.rounding])


def add_requantizer(graph: Graph, node: QAdd) -> Callable[[IntArray, IntArray], IntArray]:
    """What a sum makes of two arrays of samples less their zero points, before its own zero point and limits."""
    if node.rounding == "float32":
        return _onnxruntime_add(graph, node)
    if node.rounding == "float64":
        p, q = node.ratios
        return lambda a, b: np.rint(a * p + b * q).astype(np.int64)
    first, second, last = add_terms(node)
    return lambda a, b: last(first(a) + second(b))


def _onnxruntime_add(graph: Graph, node: QAdd) -> Callable[[IntArray, IntArray], IntArray]:
    """``half_even(p·a + (q·b + (z - (p·za + q·zb))))`` of raw samples in float32, where every ``+`` is a fused multiply-add.

    A product of float32 and 9 bits is exact in float64, and so is its sum in all but the far last places.

    *Source* onnxruntime, mlas/lib/intrinsics/avx2/qladd_avx2.cpp.
    """
    p, q = (np.float64(np.float32(ratio)) for ratio in node.ratios)
    za, zb = (graph.format_of(name).zero_point for name in node.inputs)
    z = node.format.zero_point
    zeros = np.float32(p * za + np.float64(np.float32(q * zb)))
    fixed = np.float64(np.float32(z) - zeros)

    def requantize(a: IntArray, b: IntArray) -> IntArray:
        partial = np.asarray((b + zb) * q + fixed, dtype=np.float32).astype(np.float64)
        total = np.asarray((a + za) * p + partial, dtype=np.float32)
        result: IntArray = np.rint(total).astype(np.int64) - z
        return result

    return requantize


def add_terms(node: QAdd) -> tuple[Callable[[IntArray], IntArray], Callable[[IntArray], IntArray], Requantizer]:
    """The integer that each side of a ``native`` or ``tflite`` sum adds, and the requantizer of their total."""
    if node.rounding == "native":
        (m0, _), (m1, _) = node.multipliers
        return (lambda a: a * m0), (lambda b: b * m1), NativeRequantizer(np.array([1]), node.shift)
    first, second, (m, s) = node.multipliers
    return _shifted(first, node.shift), _shifted(second, node.shift), TfliteRequantizer(np.array([m]), np.array([s]))


def _shifted(multiplier: Pair, shift: int) -> Callable[[IntArray], IntArray]:
    m, s = multiplier
    scaled = TfliteRequantizer(np.array([abs(m)]), np.array([s]))
    return lambda x: np.sign(m) * scaled(x << shift)
