"""Ties: every total of small numbers against the definition in fractions, and those next to a tie of float32's."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from convfold.hdl.ties import TiesParams
from tests.hdl.bench import measured_lags, run_clocked

EVEN = TiesParams(9, 4, "even", 4, -8, 7)
FLOAT = TiesParams(12, 7, "float32", 6, -16, 15)
CASES = {
    "even": EVEN,
    "even, by the highest bits": replace(EVEN, in_bits=11, shift=6, bits=3, zero_point=-3),
    "even, one bit": replace(EVEN, bits=1, shift=1, zero_point=5),
    "floating point": FLOAT,
    "floating point, shorter": replace(FLOAT, bits=5, zero_point=-2, high=13),
    "floating point, unsigned": replace(FLOAT, low=0, high=31, zero_point=16),
    "floating point, a zero point above all": replace(FLOAT, bits=6, low=0, high=31, zero_point=31),
    "floating point, longer than the totals": TiesParams(7, 8, "float32", 6, -16, 15, 1),
    "floating point, one bit apart": TiesParams(12, 6, "float32", 3, -2, 2),
}


def by_definition(params: TiesParams, total: int) -> int:
    """The nearest integer to the real number of which half is in ``total`` already; the even one next to a tie."""
    real = Fraction(total, 1 << params.shift) - Fraction(1, 2)
    tie = real.__floor__() + Fraction(1, 2)
    if params.kind == "even":
        near = [(tie + up, Fraction(0), Fraction(1, 1 << params.bits)) for up in (0, 1, -1)]
    else:
        near = []
        for place in (tie, tie + 1, tie - 1):
            size = abs(place)
            top = max(e for e in range(-1, params.shift + 8) if Fraction(2) ** e <= size)
            half_a_unit = Fraction(2) ** (top - params.bits)
            near.append((place, -half_a_unit, half_a_unit))
    for place, least, most in near:
        if least <= real - place < most:
            return round(place) + params.zero_point
    return (real + Fraction(1, 2)).__floor__() + params.zero_point


@pytest.mark.parametrize("name", CASES)
def test_every_total(name: str) -> None:
    params = CASES[name]
    totals = list(range(-(1 << params.in_bits - 1), 1 << params.in_bits - 1))
    random.shuffle(totals)
    dut = params.create()
    seen = [min(max(o, params.low), params.high) for (o,) in run_clocked(dut, [dut.i], [(i,) for i in totals], [dut.o])]
    expected = [min(max(by_definition(params, total), params.low), params.high) for total in totals]
    assert [min(max(params.reference(total), params.low), params.high) for total in totals] == expected
    assert measured_lags(expected, seen) == [params.latency] == [2]
    assert params.ii == 1


@pytest.mark.parametrize("bits", [8, 16])
def test_the_rounding_of_float32_products(bits: int, rng: np.random.Generator) -> None:
    """With a float32's own 24 bits as the multiplier; the products nearest to a tie of every size are all there."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    moved = 0
    for m in (1 << 23, (1 << 24) - 1, 0xAAAAAB, *(int(m) for m in rng.integers(1 << 23, 1 << 24, 20))):
        shift = int(rng.integers(33, 36, endpoint=True)) if bits == 8 else 32
        ties = rng.integers(low, high, 200) if bits == 16 else np.arange(low, high)
        nearest = ((2 * ties + 1) << (shift - 1)) // m
        acc = np.concatenate([nearest, nearest + 1, -nearest, [0, 1, -1]])
        expected = np.clip(np.rint(acc.astype(np.float32) * np.float32(m / 2**shift)), low, high).astype(int)
        totals = [int(a) * m + (1 << shift - 1) for a in acc]
        params = TiesParams(max(abs(t) for t in totals).bit_length() + 1, shift, "float32", 24, low, high)
        results = [min(max(params.reference(total), low), high) for total in totals]
        assert results == expected.tolist()
        moved += sum(result != min(max(total >> shift, low), high) for result, total in zip(results, totals, strict=True))
        if m == 0xAAAAAB:
            dut = params.create()
            seen = run_clocked(dut, [dut.i], [(total,) for total in totals] + [(0,)] * 2, [dut.o])
            assert [min(max(o, low), high) for (o,) in seen[2:]] == results
    assert moved > 40


@pytest.mark.parametrize(
    ("params", "change", "message"),
    [
        (EVEN, {"kind": "odd"}, r"^kind must be one of \('even', 'float32'\), not 'odd'$"),
        (EVEN, {"kind": "none"}, r"^kind must be one of \('even', 'float32'\), not 'none'$"),
        (EVEN, {"bits": 0}, r"^bits must be 1 to 4, not 0$"),
        (EVEN, {"bits": 5}, r"^bits must be 1 to 4, not 5$"),
        (FLOAT, {"bits": 7}, r"^bits must be 5 to 6, not 7$"),
        (FLOAT, {"bits": 4}, r"^bits must be 5 to 6, not 4$"),
    ],
)
def test_what_is_refused(params: TiesParams, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(params, **change)
