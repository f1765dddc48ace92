"""The numbers, against exact fractions: exhaustively where that is small, at the corners where it is not."""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction

import numpy as np
import pytest

from convfold.compiler.numbers import (
    MAX_ACCUMULATOR,
    MAX_SHIFT,
    MULTIPLIER_BITS,
    Format,
    Range,
    accumulator_range,
    bits_for_range,
    choose_multipliers,
    format_for_range,
    requantize,
    round_half_up,
)


def nearest(value: Fraction) -> int:
    """The nearest integer, ties upwards."""
    return math.floor(value + Fraction(1, 2))


# ---------------------------------------------------------------------------------------------------- formats


def holds(bits: int, signed: bool, value: int) -> bool:
    least = -(1 << (bits - 1)) if signed else 0
    return least <= value < least + (1 << bits)


@pytest.mark.parametrize("low", range(-40, 41))
def test_bits_for_range_is_the_narrowest_that_holds_the_range(low: int) -> None:
    for high in range(low, 41):
        bits, signed = bits_for_range(low, high)
        assert signed == (low < 0)
        assert holds(bits, signed, low) and holds(bits, signed, high)
        assert bits == 1 or not (holds(bits - 1, signed, low) and holds(bits - 1, signed, high))


def test_bits_for_range_at_large_numbers() -> None:
    assert bits_for_range(0, 2**53 - 1) == (53, False)
    assert bits_for_range(0, 2**53) == (54, False)
    assert bits_for_range(-(2**53), 2**53 - 1) == (54, True)
    assert bits_for_range(-(2**53) - 1, 0) == (55, True)
    with pytest.raises(ValueError, match=r"^range must have low <= high, not \(1, 0\)$"):
        bits_for_range(1, 0)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(2, 17))
def test_a_format_holds_what_its_bits_hold(bits: int, signed: bool) -> None:
    form = Format(bits, signed, 1.0)
    assert bits_for_range(form.min_raw, form.max_raw) == (bits, signed)
    assert form.max_raw - form.min_raw == 2**bits - 1


def test_a_format_prints_its_type_step_and_zero_point() -> None:
    assert str(Format(8, False, 1 / 255)) == "uint8 × 0.00392157"
    assert str(Format(4, True, 0.5, -3)) == "int4 × 0.5 zero -3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, True, 1.0), "bits must be 2 to 16, not 1"),
        ((17, True, 1.0), "bits must be 2 to 16, not 17"),
        ((8, True, 0.0), "scale must be finite and positive, not 0.0"),
        ((8, True, -1.0), "scale must be finite and positive, not -1.0"),
        ((8, True, math.inf), "scale must be finite and positive, not inf"),
        ((8, True, math.nan), "scale must be finite and positive, not nan"),
        ((8, True, 1.0, 128), "zero_point must be -128 to 127, not 128"),
        ((8, False, 1.0, -1), "zero_point must be 0 to 255, not -1"),
    ],
)
def test_an_impossible_format_is_refused(arguments: tuple[int, bool, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Format(*arguments)


# --------------------------------------------------------------------------------------------------- rounding


def test_round_half_up_is_exact() -> None:
    before_half = math.nextafter(0.5, 0)
    values = [n / 8 for n in range(-40, 41)]
    values += [sign * value for sign in (1, -1) for value in (before_half, 1e-20, 2.0**52 + 0.5, 2.0**60)]
    values += [math.nextafter(n + 0.5, n) for n in range(-4, 4)]
    for value, rounded in zip(values, round_half_up(np.array(values)).tolist(), strict=True):
        assert rounded == nearest(Fraction(value))


@pytest.mark.parametrize("form", [Format(4, True, 0.25), Format(4, False, 0.5, 5), Format(3, True, 2.0, -4)])
def test_quantize_rounds_to_the_nearest_step_and_clamps(form: Format) -> None:
    values = [n / 64 for n in range(-64 * 20, 64 * 20 + 1)]  # every tie, and 15 values or more between two
    for value, raw in zip(values, form.quantize(np.array(values)).tolist(), strict=True):
        step = nearest(Fraction(value) / Fraction(form.scale)) + form.zero_point
        assert raw == min(max(step, form.min_raw), form.max_raw)


def test_quantize_takes_values_far_outside_and_infinities() -> None:
    form = Format(8, True, 1e-3, 7)
    assert form.quantize(np.array([-math.inf, -1e300, 1e300, math.inf])).tolist() == [-128, -128, 127, 127]


@pytest.mark.parametrize("bits", range(2, 17))
def test_every_raw_integer_survives_the_way_to_its_real_value_and_back(bits: int) -> None:
    for form in (Format(bits, True, 0.1), Format(bits, False, 1 / 3, 2)):
        raw = np.arange(form.min_raw, form.max_raw + 1)
        assert form.quantize(form.dequantize(raw)).tolist() == raw.tolist()


@pytest.mark.parametrize(
    ("low", "high", "signed", "largest"),
    [(0.0, 1.0, False, 1.0), (0.5, 2.0, False, 2.0), (-1.0, 0.5, True, 1.0), (-1.0, 3.0, True, 3.0)],
)
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_format_for_range_spends_its_steps_on_the_range(
    low: float, high: float, signed: bool, largest: float, bits: int
) -> None:
    form = format_for_range(low, high, bits)
    assert (form.bits, form.signed, form.zero_point) == (bits, signed, 0)
    assert form.scale * form.max_raw == pytest.approx(largest, rel=1e-15)


def test_format_for_an_empty_range_is_usable() -> None:
    assert format_for_range(0.0, 0.0, 8) == Format(8, False, 1.0)


# ----------------------------------------------------------------------------------------------- requantizing


def exact_requantize(acc: int, multiplier: int, shift: int, zero_point: int, low: int, high: int) -> int:
    return min(max(nearest(Fraction(acc * multiplier, 2**shift)) + zero_point, low), high)


@pytest.mark.parametrize("shift", range(1, 7))
def test_requantize_is_the_clamped_nearest_fraction(shift: int) -> None:
    accumulators = range(-70, 71)
    multipliers = [0, 1, 2, 3, 5, 8, 31, 64, 2**17 - 1]
    for zero_point, low, high in ((0, -(10**9), 10**9), (3, -8, 7), (-1, -1, 14)):
        acc = np.array(accumulators)[:, None].repeat(len(multipliers), axis=1)
        y_raw = requantize(acc, np.array(multipliers), shift, zero_point, low, high)
        pairs = itertools.product(accumulators, multipliers)
        for (a, m), raw in zip(pairs, y_raw.ravel().tolist(), strict=True):
            assert raw == exact_requantize(a, m, shift, zero_point, low, high)


def test_requantize_rounds_ties_upwards_on_both_sides_of_zero() -> None:
    acc = np.array([-7, -6, -5, -3, -2, -1, 1, 2, 3, 5, 6, 7])[:, None]
    y_raw = requantize(acc, np.array([1]), 2, 0, -100, 100)
    assert y_raw[:, 0].tolist() == [-2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("shift", [1, 17, 45, MAX_SHIFT])
@pytest.mark.parametrize("acc", [MAX_ACCUMULATOR, -MAX_ACCUMULATOR])
def test_requantize_does_not_overflow_at_its_limits(acc: int, shift: int) -> None:
    greatest = 2**MULTIPLIER_BITS - 1
    (raw,) = requantize(np.array([acc]), np.array([greatest]), shift, 0, -(2**62), 2**62).tolist()
    assert raw == exact_requantize(acc, greatest, shift, 0, -(2**62), 2**62)


def test_multipliers_are_the_nearest_with_17_bits(rng: np.random.Generator) -> None:
    for _ in range(500):
        ratios = np.exp2(rng.uniform(-30, 15.9) - rng.uniform(0, 12, size=5))
        multipliers, shift = choose_multipliers(ratios)
        assert 2 ** (MULTIPLIER_BITS - 1) <= multipliers.max() < 2**MULTIPLIER_BITS
        for multiplier, ratio in zip(multipliers.tolist(), ratios.tolist(), strict=True):
            assert abs(Fraction(multiplier, 2**shift) - Fraction(ratio)) <= Fraction(1, 2 ** (shift + 1))


@pytest.mark.parametrize(
    ("ratio", "multiplier", "shift"),
    [
        (1.0, 2**16, 16),
        (math.nextafter(1.0, 0), 2**16, 16),  # 17 bits would round up to 2**17
        ((2**17 - 1) / 2**17, 2**17 - 1, 17),
        ((2**17 - 0.5) / 2**17, 2**16, 16),
        (math.nextafter((2**17 - 0.5) / 2**17, 0), 2**17 - 1, 17),
        (2.0**15, 2**16, 1),
        (2.0 ** (16 - MAX_SHIFT), 2**16, MAX_SHIFT),
    ],
)
def test_multipliers_at_the_powers_of_two(ratio: float, multiplier: int, shift: int) -> None:
    multipliers, chosen = choose_multipliers(np.array([ratio]))
    assert (multipliers.tolist(), chosen) == ([multiplier], shift)


def test_a_ratio_below_the_common_step_becomes_zero() -> None:
    multipliers, shift = choose_multipliers(np.array([1.0, 2.0**-17, math.nextafter(2.0**-17, 0)]))
    assert (multipliers.tolist(), shift) == ([2**16, 1, 0], 16)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ([1.0, 0.0], r"ratios must be finite and positive, not array\(\[1., 0.\]\)"),
        ([-1.0], r"ratios must be finite and positive, not array\(\[-1.\]\)"),
        ([math.nan], r"ratios must be finite and positive, not array\(\[nan\]\)"),
        ([2.0**16], r"the greatest ratio must be 2\*\*-46 to 2\*\*16, not 65536.0"),
        ([2.0**-47], r"the greatest ratio must be 2\*\*-46 to 2\*\*16, not 7.105427357601002e-15"),
    ],
)
def test_ratios_without_a_multiplier_are_refused(ratios: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        choose_multipliers(np.array(ratios))


# ----------------------------------------------------------------------------------------------- accumulators


@pytest.mark.parametrize(("low", "high"), [(0, 15), (-8, 7), (3, 9), (-9, -3)])
def test_no_order_of_summation_leaves_the_accumulator_range(
    low: int, high: int, rng: np.random.Generator
) -> None:
    for _ in range(20):
        w_rcohwi = rng.integers(-7, 8, size=(1, 1, 1, 2, 1, 2))
        b_rco = rng.integers(-60, 61, size=(1, 1, 1))
        limits = accumulator_range(w_rcohwi, b_rco, low, high)
        x = rng.integers(low, high + 1, size=(30, 4))
        x[0], x[1] = low, high
        terms = np.concatenate([w_rcohwi.ravel() * x, np.broadcast_to(b_rco.ravel(), (30, 1))], axis=1)
        for order in itertools.permutations(range(5)):
            partial = terms[:, order].cumsum(axis=1)
            assert limits.low <= partial.min() and partial.max() <= limits.high


@pytest.mark.parametrize(("low", "high"), [(0, 15), (-8, 7), (-128, 127)])
def test_the_accumulator_range_is_attained(low: int, high: int, rng: np.random.Generator) -> None:
    w_rcohwi = rng.integers(-7, 8, size=(2, 2, 3, 2, 2, 3))
    sums: list[int] = []
    for kernel in w_rcohwi.reshape(12, 12):
        sums += (int(np.where(kernel * way > 0, high, low) @ kernel) for way in (1, -1))
    no_bias = np.zeros((2, 2, 3), dtype=np.int64)
    assert accumulator_range(w_rcohwi, no_bias, low, high) == Range(min(sums), max(sums))


def test_the_bias_counts_alone_and_with_the_products() -> None:
    w_rcohwi = np.array([[5, -3], [1, 1]]).reshape(1, 1, 2, 1, 1, 2)
    assert accumulator_range(w_rcohwi, np.array([[[100, 0]]]), 0, 10) == Range(-30, 150)
    assert accumulator_range(w_rcohwi, np.array([[[-100, 0]]]), 0, 10) == Range(-130, 50)


def test_a_range_knows_its_width() -> None:
    assert (Range(-130, 50).bits, Range(-130, 50).signed, Range(-130, 50).magnitude) == (9, True, 130)
    assert (Range(0, 150).bits, Range(0, 150).signed, Range(0, 150).magnitude) == (8, False, 150)
