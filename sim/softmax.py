"""Softmax: what the host adds to a classifier's scores, in integers as tflite-micro computes it, or in reals.

A number "Q n" is an int32 with n integer bits: it stands for ``raw / 2**(31 - n)``.

*Source* tensorflow/lite/kernels/internal/reference/softmax.h and quantization_util.cc; gemmlowp fixedpoint.h.
"""

from __future__ import annotations

import math

import numpy as np

from convfold.compiler.numbers import IntArray, RealArray

__all__ = ["softmax", "softmax_int8"]

_DIFFERENCE_BITS, _SUM_BITS = 5, 12
"""Integer bits of scaled differences and of the sum of exponentials."""
_ONE, _LEAST = (1 << 31) - 1, -(1 << 31)
_EXP_OF_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
"""``exp(-2**n)`` for ``n`` from -2 to 4, in Q0."""


def softmax(x_real: RealArray, beta: float = 1.0) -> RealArray:
    """``exp(beta·x) / Σ exp(beta·x)`` over the last axis."""
    scaled = beta * np.asarray(x_real, dtype=np.float64)
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    result: RealArray = powers / powers.sum(axis=-1, keepdims=True)
    return result


def softmax_int8(x_raw: IntArray, input_scale: float, beta: float = 1.0) -> IntArray:
    """The same as tflite-micro's reference kernel has it: int8 to int8 of scale 1/256 and zero point -128.

    Differences from the greatest that are too great for 5 integer bits count as nothing.
    """
    multiplier, left_shift = _scaling(beta * input_scale)
    x = np.asarray(x_raw, dtype=np.int64)
    differences = x - x.max(axis=-1, keepdims=True)
    widest = ((1 << _DIFFERENCE_BITS) - 1) << (31 - _DIFFERENCE_BITS)
    counted = differences >= -(widest >> left_shift)
    powers = _exp_of_negative(_times(np.where(counted, differences, 0) << left_shift, multiplier))
    sums = np.where(counted, _shifted_right(powers, _SUM_BITS), 0).sum(axis=-1, keepdims=True)
    spare = 32 - np.frexp(sums.astype(np.float64))[1]  # leading zeros of 32 bits
    inverses = _inverse_of_one_plus((sums << spare) - (1 << 31))
    y = _shifted_right(_times(inverses, powers), _SUM_BITS - spare + 31 - 8) - 128
    y_raw: IntArray = np.where(counted, np.clip(y, -128, 127), -128)
    return y_raw


def _scaling(scale: float) -> tuple[int, int]:
    """The multiplier, 31 bits behind the point, and the left shift that bring differences to Q5."""
    real = min(scale * (1 << (31 - _DIFFERENCE_BITS)), (1 << 31) - 1.0)
    fraction, exponent = math.frexp(real)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    return (multiplier // 2, exponent + 1) if multiplier == 1 << 31 else (multiplier, exponent)


def _times(a: IntArray, b: IntArray | int) -> IntArray:
    """Q m times Q n, in Q m+n, half up: ``SaturatingRoundingDoublingHighMul``."""
    product: IntArray = (a * b + (1 << 30)) >> 31
    return product


def _shifted_right(a: IntArray, shift: IntArray | int) -> IntArray:
    """``a / 2**shift`` to the nearest, ties away from zero: ``RoundingDivideByPOT``."""
    mask = (np.int64(1) << shift) - 1
    result: IntArray = (a >> shift) + ((a & mask) > (mask >> 1) + (a < 0))
    return result


def _shifted_left(a: IntArray, shift: int) -> IntArray:
    result: IntArray = np.clip(a << shift, _LEAST, _ONE)
    return result


def _exp_of_negative(a: IntArray) -> IntArray:
    """``exp(a)`` of Q5 up to 0, in Q0: a polynomial of the part below 1/4, and a factor for each bit of the rest."""
    quarter = 1 << (31 - _DIFFERENCE_BITS - 2)
    part = (a & (quarter - 1)) - quarter
    result = _exp_of_quarter(part << _DIFFERENCE_BITS)
    for bit, factor in enumerate(_EXP_OF_POWERS):
        result = np.where((part - a) & (quarter << bit), _times(result, factor), result)
    return np.where(a == 0, _ONE, result)


def _exp_of_quarter(a: IntArray) -> IntArray:
    """``exp(a)`` for ``-1/4 <= a < 0``, in Q0: four terms of the series about -1/8."""
    exp_of_eighth, third = 1895147668, 715827883
    x = a + (1 << 28)
    x2 = _times(x, x)
    x3, x4 = _times(x2, x), _times(x2, x2)
    rest = _shifted_right(_times(_shifted_right(x4, 2) + x3, third) + x2, 1)
    return exp_of_eighth + _times(x + rest, exp_of_eighth)


def _inverse_of_one_plus(a: IntArray) -> IntArray:
    """``1 / (1 + a)`` for ``0 <= a < 1``, in Q0: three steps of Newton's division in Q2."""
    half_denominator = (a + _ONE + 1) >> 1
    x = 1515870810 + _times(half_denominator, -1010580540)  # 48/17 - 32/17 · denominator / 2
    for _ in range(3):
        x = x + _shifted_left(_times(x, (1 << 29) - _times(half_denominator, x)), 2)
    return _shifted_left(x, 1)
