"""The arithmetic of tflite-micro's reference kernels: multipliers, limits and the tables of functions, to the last bit.

*Source* tensorflow/lite/kernels/internal (quantization_util.cc, reference/…), tensorflow/lite/micro/kernels, and gemmlowp's
fixedpoint/fixedpoint.h. Raw samples are int8; a table has one entry for each of -128 … 127.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ..graph import Pair
from ..numbers import Format, IntArray
from ..rounding import TfliteRequantizer

__all__ = [
    "Limits",
    "Unrepresentable",
    "activation_limits",
    "add_multipliers",
    "hard_swish",
    "leaky_relu",
    "logistic",
    "mean_multiplier",
    "prelu",
    "quantize_multiplier",
    "relu",
    "relu6",
    "requantize",
    "rescaled",
    "sum_of",
    "tanh",
]

NONE, RELU, RELU_N1_TO_1, RELU6 = 0, 1, 2, 3
"""The fused activations that integer kernels know."""

Limits = tuple[int, int]


class Unrepresentable(Exception):
    """The kernel itself would stop or overflow at these scales; ``args[0]`` says how."""


# ------------------------------------------------------------------------------------------------------- multipliers


def quantize_multiplier(ratio: float) -> Pair:
    """``(m, s)`` with ``m / 2**31 · 2**s`` nearest to a ratio, ``2**30 <= |m| < 2**31``; all zero below ``2**-32``."""
    if ratio == 0 or not math.isfinite(ratio):
        if ratio == 0:
            return 0, 0
        raise Unrepresentable("its scales overflow")
    fraction, s = math.frexp(ratio)
    m = _round_away(fraction * (1 << 31))
    if abs(m) == 1 << 31:
        m, s = m // 2, s + 1
    return (0, 0) if s < -31 else (m, s)


def smaller_than_one(ratio: float) -> Pair:
    """`quantize_multiplier` of a ratio that the kernel requires to lie between 0 and 1."""
    m, s = quantize_multiplier(ratio)
    if not 0 < ratio < 1 or s > 0:
        raise Unrepresentable(f"its scales give the factor {ratio:g}, which must lie between 0 and 1")
    return m, s


def rescaled(x: IntArray, multiplier: Pair) -> IntArray:
    """``MultiplyByQuantizedMultiplier``.

    *Raises* `Unrepresentable` where the kernel's 32 bits would overflow.
    """
    m, s = multiplier
    reach = int(np.abs(x).max(initial=0)) << max(s, 0)
    if reach >= 1 << 31:
        raise Unrepresentable(f"its scales give the factor {m / 2**31 * 2.0**s:g}, too great for 32 bits")
    return TfliteRequantizer(np.array([m]), np.array([s]))(x)


def add_multipliers(a: float, b: float, y: float) -> tuple[Pair, Pair, Pair]:
    """The factors of both operands and of their sum, for a left shift of 20, of ADD and of SUB."""
    twice = 2 * max(a, b)
    return smaller_than_one(a / twice), smaller_than_one(b / twice), smaller_than_one(twice / ((1 << 20) * y))


def sum_of(a: IntArray, b: IntArray, factors: tuple[Pair, Pair, Pair], sign: int) -> IntArray:
    """What ADD (``sign`` 1) and SUB (-1) make of two operands, both less their zero points."""
    first, second = rescaled(a << 20, factors[0]), rescaled(b << 20, factors[1])
    return rescaled(first + sign * second, factors[2])


def mean_multiplier(ratio: float, count: int) -> Pair:
    """The factor of a sum of ``count`` samples that makes it their mean."""
    m, s = quantize_multiplier(ratio)
    shift = min(count.bit_length() - 1, 32, 31 + s)
    return (m << shift) // count, s - shift


def activation_limits(activation: int, form: Format) -> Limits:
    """The limits of an output in raw steps, with its fused activation (``CalculateActivationRangeQuantized``)."""

    def step(real: float) -> int:
        return form.zero_point + _round_away(float(_quotient(real, form.scale)))

    low, high = form.min_raw, form.max_raw
    if activation in (RELU, RELU6):
        low = max(low, step(0.0))
    if activation == RELU6:
        high = min(high, step(6.0))
    if activation == RELU_N1_TO_1:
        low, high = max(low, step(-1.0)), min(high, step(1.0))
    return low, high


# ------------------------------------------------------------------------------------------------------------ tables


def requantize(x: Format, y: Format) -> IntArray:
    """QUANTIZE from integers to integers."""
    return _clamped(rescaled(_steps(x), quantize_multiplier(x.scale / y.scale)) + y.zero_point, y)


def relu(x: Format, y: Format) -> IntArray:
    """RELU: rescaled, and limited from below by zero."""
    scaled = rescaled(_steps(x), quantize_multiplier(x.scale / y.scale)) + y.zero_point
    return np.clip(scaled, max(y.min_raw, y.zero_point), y.max_raw)


def relu6(x: Format) -> IntArray:
    """RELU6: the input's own steps between zero and six."""
    six = x.zero_point + _round_away(float(_quotient(6.0, x.scale)))
    return np.clip(_steps(x) + x.zero_point, x.zero_point, min(max(six, x.min_raw), x.max_raw))


def leaky_relu(x: Format, y: Format, alpha: float) -> IntArray:
    """LEAKY_RELU: one factor for samples from zero, one for those below."""
    steps = _steps(x)
    positive = rescaled(np.maximum(steps, 0), quantize_multiplier(x.scale / y.scale))
    negative = rescaled(np.minimum(steps, 0), quantize_multiplier(x.scale * alpha / y.scale))
    return _clamped(np.where(steps >= 0, positive, negative) + y.zero_point, y)


def prelu(x: Format, y: Format, alpha: int, alpha_scale: float) -> IntArray:
    """PRELU of one channel; ``alpha`` is less its zero point."""
    steps = _steps(x)
    positive = rescaled(np.maximum(steps, 0), quantize_multiplier(x.scale / y.scale))
    negative = rescaled(np.minimum(steps, 0) * alpha, quantize_multiplier(x.scale * alpha_scale / y.scale))
    return _clamped(np.where(steps >= 0, positive, negative) + y.zero_point, y)


def hard_swish(x: Format, y: Format) -> IntArray:
    """HARD_SWISH, computed in 16-bit fixed point."""
    fine = x.scale / 128
    output, output_s = quantize_multiplier(fine / y.scale)
    relu_like, relu_s = quantize_multiplier(fine / (3 / 32768))
    if output_s > 0:
        raise Unrepresentable("its output's scale is too small for its input's")
    return np.array([_hard_swish(int(n), _high_half(output), output_s, _high_half(relu_like), relu_s, y) for n in _steps(x)])


def _hard_swish(steps: int, output: int, output_s: int, relu_like: int, relu_s: int, y: Format) -> int:
    fine = steps << 7
    unshifted = _high_mul(fine, output, 16)
    gate = _saturated(fine << (relu_s - 1), 16) if relu_s > 0 else fine
    gate = _high_mul(gate, relu_like, 16)
    gate = _saturated(gate << 1, 16) if relu_s > 0 else _rounding_shift(gate, -relu_s)
    gate = (gate + (1 << 15)) >> 1
    product = gate * unshifted
    toward_zero = -(-product >> 15) if product < 0 else product >> 15
    return min(max(_rounding_shift(toward_zero, -output_s) + y.zero_point, y.min_raw), y.max_raw)


def logistic(x: Format) -> IntArray:
    """LOGISTIC: the output is ``(raw + 128) / 256`` whatever its declared scale."""
    return _saturating_function(x, (_rounding_shift(_logistic(value), 23) - 128 for value in _inputs_q4(x)))


def tanh(x: Format) -> IntArray:
    """TANH: the output is ``raw / 128`` whatever its declared scale."""
    return _saturating_function(x, (_rounding_shift(_tanh(value), 24) for value in _inputs_q4(x)))


def _inputs_q4(x: Format) -> list[int]:
    """The samples as fixed point with 4 integer bits, those beyond its range as zeros."""
    m, s, radius = _input_scaling(x)
    steps = _steps(x)
    return [int(value) for value in rescaled(np.where(abs(steps) < radius, steps, 0), (m, s if radius else 0))]


def _input_scaling(x: Format) -> tuple[int, int, int]:
    """The factor to 4 integer bits, and the sample that is the first out of their range."""
    m, s = quantize_multiplier(x.scale * (1 << 27))
    if s < 0:
        raise Unrepresentable("its input's scale is below the kernel's range")
    return m, s, (15 << 27) >> s


def _saturating_function(x: Format, inside: Iterable[int]) -> IntArray:
    steps, radius = _steps(x), _input_scaling(x)[2]
    table = np.clip(np.fromiter(inside, np.int64, len(steps)), -128, 127)
    return np.where(steps <= -radius, -128, np.where(steps >= radius, 127, table))


# ------------------------------------------------------------------------------------------------------- fixed point

_ONE = (1 << 31) - 1
"""One with no integer bits: the greatest there is."""

_EXP_OF_POWERS = ((-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308), (2, 39332535), (3, 720401), (4, 242))
"""``exp(-2**n)`` for each ``n``, with no integer bits."""


def _logistic(value: int) -> int:
    """``1 / (1 + exp(-x))`` of a value with 4 integer bits."""
    if value == 0:
        return 1 << 30
    positive = _saturated(_reciprocal(_exp_of_negative(-abs(value), 4)) << 1, 32)
    return positive if value > 0 else _ONE - positive


def _tanh(value: int) -> int:
    """The hyperbolic tangent of a value with 4 integer bits."""
    if value == 0:
        return 0
    size = _saturated((_reciprocal(_exp_of_negative(-abs(value), 5)) - (1 << 29)) << 2, 32)
    return size if value > 0 else -size


def _reciprocal(value: int) -> int:
    """``2 / (1 + x)`` with 2 integer bits, of ``x`` in 0 … 1 with none, by Newton's method."""
    half = (value + _ONE + 1) // 2
    result = 1515870810 + _high_mul(half, -1010580540)
    for _ in range(3):
        rest = (1 << 29) - _high_mul(half, result)
        result += _saturated(_high_mul(result, rest) << 2, 32)
    return result


def _exp_of_negative(value: int, integer_bits: int) -> int:
    """``exp(x)`` with no integer bits, of ``x <= 0`` with ``integer_bits``."""
    if value == 0:
        return _ONE
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    part = (value & (quarter - 1)) - quarter
    result = _exp_of_part(_saturated(part << integer_bits, 32))
    for exponent, factor in _EXP_OF_POWERS:
        if integer_bits > exponent and (part - value) >> (fraction_bits + exponent) & 1:
            result = _high_mul(result, factor)
    return result


def _exp_of_part(value: int) -> int:
    """``exp(x)`` of ``x`` in -1/4 … 0: a Taylor series about -1/8."""
    x = value + (1 << 28)
    square = _high_mul(x, x)
    cube, fourth = _high_mul(square, x), _high_mul(square, square)
    tail = _rounding_shift(_high_mul(_rounding_shift(fourth, 2) + cube, 715827883) + square, 1)
    return 1895147668 + _high_mul(1895147668, x + tail)


def _high_mul(a: int, b: int, bits: int = 32) -> int:
    """``SaturatingRoundingDoublingHighMul``: half up."""
    return _saturated((a * b + (1 << (bits - 2))) >> (bits - 1), bits)


def _high_half(m: int) -> int:
    """``DownScaleInt32ToInt16Multiplier``."""
    return min((m + (1 << 15)) >> 16, (1 << 15) - 1)


def _rounding_shift(value: int, shift: int) -> int:
    """``RoundingDivideByPOT``: ties away from zero."""
    mask = (1 << shift) - 1
    return (value >> shift) + ((value & mask) > (mask >> 1) + (value < 0))


def _saturated(value: int, bits: int) -> int:
    largest = (1 << (bits - 1)) - 1
    return min(max(value, -largest - 1), largest)


def _steps(x: Format) -> IntArray:
    """Every raw sample less the zero point."""
    return np.arange(x.min_raw, x.max_raw + 1) - x.zero_point


def _clamped(raw: IntArray, y: Format) -> IntArray:
    return np.clip(raw, y.min_raw, y.max_raw)


def _round_away(value: float) -> int:
    """``std::round``: ties away from zero."""
    whole = math.floor(abs(value))
    return int(math.copysign(whole + (abs(value) - whole >= 0.5), value))


def _quotient(a: float, b: float) -> np.float32:
    """A quotient in single precision, at most what 31 bits hold."""
    with np.errstate(over="ignore", under="ignore"):
        return min(max(np.float32(a) / np.float32(b), np.float32(-(2.0**31))), np.float32(2.0**31))
