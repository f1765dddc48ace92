"""What onnxruntime computes in float32 between two tensors of 8 bits, operation by operation, on a CPU with AVX2.

Each function here is equal to onnxruntime in every bit (tests: all inputs of many formats), or is checked against its own
ambiguity: `quantize_surely` and `average_is_sure` refuse what another order of float32 sums could round to another integer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..functions import FUNCTIONS
from ..numbers import Format, IntArray, RealArray

Floats = NDArray[np.float32]
Function = Callable[[Floats], Floats]

__all__ = [
    "add_raw",
    "average_is_sure",
    "clip_raw",
    "dequantize",
    "exact_function",
    "multiply_raw",
    "quantize",
    "quantize_surely",
    "smooth_function",
]

LARGEST_WINDOW = 1 << 12
"""Samples of a window whose sums are looked at, each of them."""

SLACK = 16
"""Last places of float32 by which a smooth function, as somebody computes it, may be off."""


def every_raw(form: Format) -> IntArray:
    """All integers of a format, in order."""
    return np.arange(form.min_raw, form.max_raw + 1, dtype=np.int64)


def clip_raw(raw: NDArray[np.floating], form: Format) -> IntArray:
    """Rounded reals as integers of a format."""
    return np.asarray(np.clip(raw, form.min_raw, form.max_raw), dtype=np.int64)


def dequantize(x_raw: IntArray, form: Format) -> Floats:
    """``(x_raw − zero point) · scale``, rounded once."""
    return np.asarray((x_raw - form.zero_point).astype(np.float32) * np.float32(form.scale), dtype=np.float32)


def quantize(x: Floats, form: Format) -> IntArray:
    """``half_even(x / scale) + zero point`` within the format; infinities are welcome."""
    return clip_raw(np.rint(x / np.float32(form.scale)) + np.float32(form.zero_point), form)


def quantize_surely(x_real: RealArray, form: Format) -> IntArray | None:
    """The same of reals that are known to `SLACK` last places of float32; ``None`` when that leaves two integers."""
    wide = np.float64(np.finfo(np.float32).eps) * SLACK
    near = [np.rint(x_real * factor / np.float64(form.scale)) for factor in (1.0 - wide, 1.0 + wide)]
    low, high = (clip_raw(steps + form.zero_point, form) for steps in near)
    return low if np.array_equal(low, high) else None


# ----------------------------------------------------------------------------------------------------- functions


def _fused(x: Floats, y: Floats, z: np.float32) -> Floats:
    """``x·y + z`` rounded once."""
    return np.asarray(x.astype(np.float64) * y.astype(np.float64) + np.float64(z), dtype=np.float64).astype(np.float32)


def _polynomial(x: Floats, coefficients: tuple[float, ...]) -> Floats:
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = _fused(total, x, np.float32(coefficient))
    return total


def _sigmoid(x: Floats) -> Floats:
    v = np.clip(x, np.float32(-18), np.float32(18))
    above = (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01)
    below = (
        *(6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06),
        *(1.70198817374094e-03, 1.16817656904453e-01, 9.93151921023180e-01),
    )
    ratio = _polynomial(v * v, above) * v / _polynomial(v * v, below)
    return np.asarray(np.clip(ratio + np.float32(0.5), np.float32(0), np.float32(1)))


def _tanh(x: Floats) -> Floats:
    v = np.clip(x, np.float32(-9), np.float32(9))
    above = (
        *(-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08),
        *(1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
    )
    below = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
    return _polynomial(v * v, above) * v / _polynomial(v * v, below)


def _hard_sigmoid(x: Floats, alpha: float, beta: float) -> Floats:
    return np.asarray(np.clip(np.float32(alpha) * x + np.float32(beta), np.float32(0), np.float32(1)))


_EXACT: Mapping[str, Callable[..., Floats]] = {
    "leaky_relu": lambda x, alpha: np.where(x >= 0, x, np.float32(alpha) * x),
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5),
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "abs": np.abs,
    "sqrt": np.sqrt,
}
"""Sigmoid and tanh: MLAS logistic.cpp and tanh.cpp, whose coefficients are Eigen's, with fused multiply-adds."""


def exact_function(name: str, parameters: tuple[float, ...]) -> Function | None:
    """The function by its name in `convfold.compiler.functions`, as onnxruntime rounds it; ``None`` if that is not known."""
    if name not in _EXACT:
        return None
    function = _EXACT[name]
    return lambda x: np.asarray(function(x, *parameters), dtype=np.float32)


def smooth_function(name: str, parameters: tuple[float, ...]) -> Callable[[RealArray], RealArray] | None:
    """The function in float64, if convfold knows it."""
    if name not in FUNCTIONS:
        return None
    function = FUNCTIONS[name][1]
    return lambda x: np.asarray(function(x, *parameters), dtype=np.float64)


# -------------------------------------------------------------------------------------------------- two operands


def add_raw(a_raw: IntArray, b_raw: IntArray, a: Format, b: Format, y: Format) -> IntArray:
    """QLinearAdd: with ``ra = sa / sy``, ``rb = sb / sy`` and ``f = zy − (ra·za + rb·zb)``, ``half_even(ra·a + (rb·b + f))``.

    Each parenthesis is one fused multiply-add.

    *Source*: MLAS qladd_avx2.cpp.
    """
    ra, rb = (np.float32(form.scale) / np.float32(y.scale) for form in (a, b))
    zeros = _fused(np.asarray(ra), np.asarray(np.float32(a.zero_point)), rb * np.float32(b.zero_point))
    fixed = np.float32(y.zero_point) - np.float32(zeros)
    partial = _fused(b_raw.astype(np.float32), np.asarray(rb), fixed).astype(np.float64)
    total = (a_raw.astype(np.float64) * np.float64(ra) + partial).astype(np.float32)
    return clip_raw(np.rint(total), y)


def multiply_raw(a_raw: IntArray, b_raw: IntArray, a: Format, b: Format, y: Format) -> IntArray:
    """QLinearMul: ``half_even((a − za)·(b − zb)·(sa·sb / sy) + zy)``, every operation rounded.

    *Source*: MLAS qlmul.cpp.
    """
    ratio = np.float32(a.scale) * np.float32(b.scale) / np.float32(y.scale)
    product = ((a_raw - a.zero_point) * (b_raw - b.zero_point)).astype(np.float32)
    return clip_raw(np.rint(product * ratio + np.float32(y.zero_point)), y)


# ------------------------------------------------------------------------------------------------------ averages


def average_is_sure(x: Format, y: Format, counts: set[int], divisors: Mapping[int, int]) -> bool:
    """Whether every order of float32 sums rounds every mean of a window to the same integer as exact arithmetic.

    QLinearAveragePool dequantizes, sums in float32, divides by ``n``, divides by the scale, adds the zero point and rounds half
    to even. Its error is at most ``count + 3`` half last places of the window's greatest sum; each of the sums a window of
    ``count`` samples can have must be farther than that from a tie. ``divisors`` gives ``n`` by the count.

    *Source*: onnxruntime qlinear_pool.cc.
    """
    low, high = x.min_raw - x.zero_point, x.max_raw - x.zero_point
    if max(counts) > LARGEST_WINDOW:
        return False
    for count in counts:
        ratio = np.float64(x.scale) / np.float64(y.scale) / divisors[count]
        steps = np.arange(count * low, count * high + 1, dtype=np.float64) * ratio + y.zero_point
        inside = steps[(steps > y.min_raw - 1) & (steps < y.max_raw + 1)]
        reach = count * max(-low, high) * ratio
        error = ((count + 3) * reach + 512.0) * 2.0**-24
        if np.any(np.abs(inside - np.floor(inside) - 0.5) <= error):
            return False
    return True
