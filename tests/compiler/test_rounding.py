"""The requantizers against C's own arithmetic and against exact fractions."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from convfold.compiler.graph import Graph, Input, QAdd, QAveragePool, QMultiply
from convfold.compiler.numbers import Format
from convfold.compiler.rounding import (
    FloatRequantizer,
    MeanRequantizer,
    NativeRequantizer,
    Requantizer,
    TfliteRequantizer,
    add_requantizer,
    mean_requantizer,
    requantizer_of,
)


def truncated(a: int, b: int) -> int:
    """Division as C has it."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def c_doubling_high_mul(a: int, b: int) -> int:
    """``SaturatingRoundingDoublingHighMul`` of gemmlowp."""
    if a == b == -(2**31):
        return 2**31 - 1
    nudge = 2**30 if a * b >= 0 else 1 - 2**30
    return truncated(a * b + nudge, 2**31)


def c_divide_by_power(x: int, exponent: int) -> int:
    """``RoundingDivideByPOT`` of gemmlowp."""
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if x & mask > threshold else 0)


def c_scaled(x: int, m: int, s: int) -> int:
    """``MultiplyByQuantizedMultiplier`` of tflite-micro."""
    return c_divide_by_power(c_doubling_high_mul(x * (1 << max(s, 0)), m), max(-s, 0))


words = st.integers(-(2**31), 2**31)
multipliers = st.integers(0, 2**31 - 1) | st.integers(2**30, 2**31 - 1)


@settings(max_examples=600)
@given(words, multipliers, st.integers(-31, 0))
@example(-(2**30), 2**30, -1)
def test_tflite_rounds_as_c_does(acc: int, m: int, s: int) -> None:
    assert TfliteRequantizer(np.array([m]), np.array([s]))(np.array([acc])).tolist() == [c_scaled(acc, m, s)]


@settings(max_examples=500)
@given(st.integers(-(2**16), 2**16), multipliers, st.integers(1, 15))
def test_tflite_shifts_to_the_left_first(acc: int, m: int, s: int) -> None:
    assert TfliteRequantizer(np.array([m]), np.array([s]))(np.array([acc])).tolist() == [c_scaled(acc, m, s)]


@settings(max_examples=600)
@given(words, multipliers, st.integers(0, 31))
def test_two_roundings_are_one_with_other_offsets(acc: int, m: int, e: int) -> None:
    """Why one multiplication, one addition and one shift can do what tflite does in two."""
    offset = 2 ** (e + 30) + (2**30 if acc >= 0 else -(2**30)) if e else 2**30
    assert c_scaled(acc, m, -e) == (acc * m + offset) >> (31 + e)


@given(st.integers(-(2**40), 2**40), st.integers(0, 2**17 - 1), st.integers(1, 62))
def test_native_rounds_half_up(acc: int, m: int, shift: int) -> None:
    expected = math.floor(Fraction(acc * m, 2**shift) + Fraction(1, 2))
    assert NativeRequantizer(np.array([m]), shift)(np.array([acc])).tolist() == [expected]


@settings(max_examples=300)
@given(st.integers(-(2**24), 2**24), st.floats(2.0**-24, 1.0, width=32), st.sampled_from([np.float32, np.float64]))
def test_floats_round_the_product_and_then_to_even(
    acc: int, scale: float, dtype: type[np.float32] | type[np.float64]
) -> None:
    """Up to 2**24 an integer is a float32, and the product of two float32 is exact in float64."""
    exact = Fraction(acc) * Fraction(scale)
    product = Fraction(float(np.float32(float(exact)))) if dtype is np.float32 else exact
    assert FloatRequantizer(np.array([scale]), dtype)(np.array([acc])).tolist() == [round(product)]


@given(st.integers(-(2**20), 2**20), st.integers(1, 2**12))
def test_means_round_to_the_nearest(acc: int, count: int) -> None:
    """Away from zero as C's kernel does: half the count is added to positive sums and taken from negative ones."""
    up = math.floor(Fraction(acc, count) + Fraction(1, 2))
    away = truncated(acc + count // 2, count) if acc > 0 else truncated(acc - count // 2, count)
    counts = np.array([count])
    assert MeanRequantizer(counts, away=False)(np.array([acc])).tolist() == [up]
    assert MeanRequantizer(counts, away=True)(np.array([acc])).tolist() == [away]


REQUANTIZERS: list[Requantizer] = [
    NativeRequantizer(np.array([90001]), 22),
    TfliteRequantizer(np.array([1518500250]), np.array([-5])),
    TfliteRequantizer(np.array([1073741825]), np.array([3])),
    FloatRequantizer(np.array([0.0123]), np.float32),
    FloatRequantizer(np.array([0.5]), np.float64),
    MeanRequantizer(np.array([49]), away=True),
]


@pytest.mark.parametrize("requantizer", REQUANTIZERS)
def test_none_ever_decreases_and_each_has_its_slope(requantizer: Requantizer) -> None:
    acc = np.arange(-3000, 3001)[:, None]
    y = requantizer(acc)
    assert all(now <= then for now, then in pairwise(y.ravel().tolist()))
    assert np.all(np.abs(y - acc * requantizer.slope_o) <= 1)


# ------------------------------------------------------------------------------------------------ sums, products


def where(name: str, *inputs: str) -> dict[str, Any]:
    return {"name": name, "inputs": inputs, "source": name, "low": -128, "high": 127, "format": Format(8, True, 1.0)}


def graph_of(node: QAdd | QMultiply | QAveragePool) -> Graph:
    shape, form = (1, 1, 1), Format(8, True, 1.0)
    pixel = Input(name="x", inputs=(), source="x", shape=shape, low=0, high=1, format=form)
    return Graph("net", (pixel, node), (node.name,), {})


bytes_ = st.integers(-255, 255)
halves = st.tuples(st.integers(2**30, 2**31 - 1), st.integers(-4, 0))


@settings(max_examples=300)
@given(bytes_, bytes_, halves, halves, st.tuples(st.integers(2**30, 2**31 - 1), st.integers(-20, -17)), st.booleans())
def test_sums_of_tflite(
    a: int, b: int, first: tuple[int, int], second: tuple[int, int], last: tuple[int, int], minus: bool
) -> None:
    """Each operand is scaled, and so is the sum; a difference subtracts what it has scaled."""
    sign = -1 if minus else 1
    node = QAdd(
        **where("y", "x", "x"), rounding="tflite", shift=20, multipliers=(first, (sign * second[0], second[1]), last)
    )
    expected = c_scaled(c_scaled(a << 20, *first) + sign * c_scaled(b << 20, *second), *last)
    assert add_requantizer(graph_of(node), node)(np.array([a]), np.array([b])).tolist() == [expected]


def test_sums_of_the_other_roundings() -> None:
    a, b = np.array([3, -3, 5, 1]), np.array([0, 0, -2, 1])
    native = QAdd(**where("y", "x", "x"), multipliers=((2, 0), (-4, 0)), shift=2)
    assert add_requantizer(graph_of(native), native)(a, b).tolist() == [2, -1, 5, 0]  # 1.5, -1.5, 4.5, -0.5
    even = QAdd(**where("y", "x", "x"), rounding="float64", ratios=(0.5, -1.0))
    assert add_requantizer(graph_of(even), even)(a, b).tolist() == [2, -2, 4, 0]  # 1.5, -1.5, 4.5, -0.5


def test_products_and_means_have_the_requantizers_of_their_fields() -> None:
    acc = np.array([6, -6, 10, -10])
    product = QMultiply(**where("y", "x", "x"), multiplier=(1, 0), shift=2)
    assert requantizer_of(graph_of(product), product)(acc).tolist() == [2, -1, 3, -2]  # ±1.5, ±2.5
    for rounding, expected in (("tflite", [2, -2, 3, -3]), ("float32", [2, -2, 2, -2]), ("float64", [2, -2, 2, -2])):
        other: Any = {"rounding": rounding, "multiplier": (2**30, -1), "ratio": 0.25}
        node = replace(product, **other)
        assert requantizer_of(graph_of(node), node)(acc).tolist() == expected
    for rounding, expected in (("native", [2, -1, 3, -2]), ("tflite", [2, -2, 3, -3]), ("float64", [2, -2, 2, -2])):
        fields: Any = {"rounding": rounding, "kernel": (2, 2), "stride": (1, 1), "padding": ((0, 0), (0, 0))}
        pool = QAveragePool(**where("y", "x"), count_include_pad=False, **fields)
        assert mean_requantizer(pool, np.array([4]))(acc).tolist() == expected
