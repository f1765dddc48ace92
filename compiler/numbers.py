"""The numbers: integer formats, accumulator widths and the one definition of the ``native`` requantizer.

A quantized tensor holds integers ``x_raw``; the real value is ``(x_raw - zero_point) * scale``. Everything
here is exact on integers. Widths follow from ranges through ``int.bit_length``, never from a floating-point
logarithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_BITS, MAX_BITS = 2, 16
MULTIPLIER_BITS = 17
"""The native multiplier is unsigned, so it fits one signed 18-bit operand of an FPGA multiplier."""
ACCUMULATOR_BITS = 46
MAX_ACCUMULATOR = (1 << (ACCUMULATOR_BITS - 1)) - 1
MAX_SHIFT = 62
"""Within these ``|acc·m| < 2**62`` and ``2**(s-1) <= 2**61``: the requantizer is exact in 64-bit integers."""

IntArray = NDArray[np.int64]
RealArray = NDArray[np.float64]


def round_half_up(x_real: RealArray) -> RealArray:
    """The nearest integer, ties upwards. Exact; ``floor(x + 0.5)`` turns the number just below 0.5 into 1."""
    whole = np.floor(x_real)
    return whole + (x_real - whole >= 0.5)


def bits_for_range(low: int, high: int) -> tuple[int, bool]:
    """The narrowest ``(bits, signed)`` that holds every integer of ``low … high`` (at least one bit)."""
    if low > high:
        raise ValueError(f"range must have low <= high, not {(low, high)!r}")
    if low >= 0:
        return max(1, high.bit_length()), False
    return max((-low - 1).bit_length(), max(high, 0).bit_length()) + 1, True


@dataclass(frozen=True, slots=True)
class Format:
    """How a tensor of integers stands for real numbers: ``real = (raw - zero_point) * scale``."""

    bits: int
    signed: bool
    scale: float
    zero_point: int = 0

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits must be {MIN_BITS} to {MAX_BITS}, not {self.bits!r}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be finite and positive, not {self.scale!r}")
        if not self.min_raw <= self.zero_point <= self.max_raw:
            raise ValueError(f"zero_point must be {self.min_raw} to {self.max_raw}, not {self.zero_point!r}")

    @property
    def min_raw(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def max_raw(self) -> int:
        return (1 << (self.bits - self.signed)) - 1

    def __str__(self) -> str:
        zero = f" zero {self.zero_point}" if self.zero_point else ""
        return f"{'int' if self.signed else 'uint'}{self.bits} × {self.scale:.6g}{zero}"

    def quantize(self, x_real: RealArray) -> IntArray:
        """Clamp to the format and round to the nearest step, ties upwards; infinities are welcome."""
        steps = np.asarray(x_real, dtype=np.float64) / self.scale
        within = np.clip(steps, self.min_raw - self.zero_point, self.max_raw - self.zero_point)
        return round_half_up(within).astype(np.int64) + self.zero_point

    def dequantize(self, x_raw: IntArray) -> RealArray:
        return (np.asarray(x_raw, dtype=np.float64) - self.zero_point) * self.scale


def format_for_range(low: float, high: float, bits: int) -> Format:
    """The zero-point-free format of ``bits`` bits that covers ``low … high``: unsigned when ``low >= 0``."""
    if low >= 0:
        largest, steps, signed = high, (1 << bits) - 1, False
    else:
        largest, steps, signed = max(-low, high), (1 << (bits - 1)) - 1, True
    return Format(bits, signed, (largest / steps) or 1.0)


def choose_multipliers(ratios: RealArray) -> tuple[IntArray, int]:
    """Integers ``(m, s)`` with ``m / 2**s`` nearest to each ratio: one shift for all, ``m`` below ``2**17``.

    The shift is the largest for which the greatest multiplier still has 17 bits. The others share its unit, so
    a ratio 17 powers of two below the greatest becomes zero.

    *Raises* ``ValueError`` when a ratio is not positive and finite, or when no shift of ``1 … MAX_SHIFT``
    fits the greatest.
    """
    if not (np.all(np.isfinite(ratios)) and np.all(ratios > 0)):
        raise ValueError(f"ratios must be finite and positive, not {ratios!r}")
    greatest = np.max(ratios)
    shift = MULTIPLIER_BITS - math.frexp(greatest)[1]
    if round_half_up(np.ldexp(greatest, shift)) >= 1 << MULTIPLIER_BITS:
        shift -= 1
    if not 1 <= shift <= MAX_SHIFT:
        limits = f"2**{MULTIPLIER_BITS - 1 - MAX_SHIFT} to 2**{MULTIPLIER_BITS - 1}"
        raise ValueError(f"the greatest ratio must be {limits}, not {float(greatest)!r}")
    return round_half_up(np.ldexp(ratios, shift)).astype(np.int64), shift


def requantize(
    acc: IntArray, multiplier: IntArray, shift: int, zero_point: int, low: int, high: int
) -> IntArray:
    """The ``native`` requantizer: ``clamp(((acc·m + 2**(s-1)) >> s) + zero_point, low, high)``.

    The shift is arithmetic (towards minus infinity), so ties round upwards.

    *Shapes* ``acc`` is ``(..., C)`` and ``multiplier`` is ``(C,)``.
    """
    scaled = (np.asarray(acc, dtype=np.int64) * multiplier + (1 << (shift - 1))) >> shift
    y_raw: IntArray = np.clip(scaled + zero_point, low, high)
    return y_raw


@dataclass(frozen=True, slots=True)
class Range:
    """An inclusive range of integers; a proof that a value never leaves it gives its width."""

    low: int
    high: int

    @property
    def bits(self) -> int:
        return bits_for_range(self.low, self.high)[0]

    @property
    def signed(self) -> bool:
        return self.low < 0

    @property
    def magnitude(self) -> int:
        return max(-self.low, self.high)


def accumulator_range(w_rcohwi: IntArray, b_rco: IntArray, low: int, high: int) -> Range:
    """The range that no accumulator of a convolution can leave, at any step and in any order of summation.

    Every product ``w·x`` with ``low <= x <= high`` lies between its two corner values. A partial sum holds
    each product either wholly or not at all, so hulling each with zero bounds them all. The bias may come at
    any time.
    """
    at_low, at_high = w_rcohwi * low, w_rcohwi * high
    least = np.minimum(np.minimum(at_low, at_high), 0).sum(axis=(3, 4, 5))
    most = np.maximum(np.maximum(at_low, at_high), 0).sum(axis=(3, 4, 5))
    return Range(int(min(least.min(), (least + b_rco).min())), int(max(most.max(), (most + b_rco).max())))
