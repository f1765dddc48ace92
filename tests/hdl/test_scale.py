"""Scale: rounding, zero point and limits, for totals of either sign."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from convfold.hdl.scale import ScaleParams
from tests.hdl.bench import measured_lags, run_clocked

PLAIN = ScaleParams(12, 77777, 1 << 23, 1 << 23, 24, -128, 127, 0, 8, True)
CASES = {
    "half up": PLAIN,
    "half away from zero": replace(PLAIN, negative=(1 << 23) - 1, zero_point=-3),
    "a shift alone": ScaleParams(10, 1, 4, 3, 3, -20, 50, 7, 8, True),
    "unsigned": ScaleParams(12, 1431655765, 5, -9, 36, 0, 255, 128, 8, False),
    "a power of two, no shift": ScaleParams(6, 4, 0, 0, 0, -128, 127, -1, 8, True),
    "shifted out": ScaleParams(5, 3, 0, 0, 40, -5, 5, 1, 8, True),
    "nothing but rounding": ScaleParams(5, 0, 12, -12, 2, -8, 7, 1, 4, True),
    "offsets beyond the product": ScaleParams(4, 3, 1 << 20, -(1 << 20), 16, -100, 100, 2, 8, True),
    "sixteen bits": ScaleParams(26, 46341, 1 << 18, 1 << 18, 19, -32768, 32767, 11, 16, True),
}


@pytest.mark.parametrize("name", CASES)
def test_results_latency_and_ii(name: str) -> None:
    params = CASES[name]
    half = 1 << (params.in_bits - 1)
    totals = [-half, half - 1, 0, -1, 1, *(random.randrange(-half, half) for _ in range(150))]
    totals += range(-min(half, 150), min(half, 150))
    dut = params.create()
    seen = [o for (o,) in run_clocked(dut, [dut.i], [(total,) for total in totals], [dut.o])]
    expected = []
    for total in totals:
        rounding = params.positive if total >= 0 else params.negative
        scaled = (total * params.m + rounding) // 2**params.shift + params.zero_point
        expected.append(max(params.low, min(params.high, scaled)))
    assert measured_lags(expected, seen) == [params.latency]
    assert params.ii == 1
    assert [params.reference(total) for total in totals] == expected


@pytest.mark.parametrize("m", [1 << 23, 3 << 22, 11_184_811])
@pytest.mark.parametrize("zero_point", [0, -7])
def test_ties_to_even(m: int, zero_point: int) -> None:
    """As float32 does it: products are rounded to 24 bits, and halves to even."""
    params = replace(PLAIN, in_bits=18, m=m, positive=1 << 32, negative=1 << 32, shift=33, zero_point=zero_point)
    nearest = [((2 * k + 1) << 32) // m + up for k in range(-128 - zero_point, 128 - zero_point) for up in (0, 1)]
    totals = [total for total in (*nearest, *range(-100, 100)) if -(1 << 17) <= total < 1 << 17]
    real = np.array(totals).astype(np.float32) * np.float32(m / 2**33)
    expected = np.clip(np.rint(real).astype(int) + zero_point, -128, 127).tolist()
    kinds = [("float32", 24)] + [("even", 33)] * (m % 256 == 0)
    for ties, tie_bits in kinds:
        even = replace(params, ties=ties, tie_bits=tie_bits)
        dut = even.create()
        seen = [o for (o,) in run_clocked(dut, [dut.i], [(total,) for total in totals], [dut.o])]
        assert [even.reference(total) for total in totals] == expected
        assert measured_lags(expected, seen) == [even.latency] == [params.latency + 2]
    if m % 256 == 0:
        assert [params.reference(total) for total in totals] != expected


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^m must be at least 0, not -1$"):
        replace(PLAIN, m=-1)
    with pytest.raises(ValueError, match=r"^shift must be at least 0, not -1$"):
        replace(PLAIN, shift=-1)
    with pytest.raises(ValueError, match=r"^tie_bits must be 0 without ties, not 3$"):
        replace(PLAIN, tie_bits=3)
    with pytest.raises(ValueError, match=r"^bits must be 1 to 24, not 25$"):
        replace(PLAIN, ties="even", tie_bits=25)
    with pytest.raises(ValueError, match=r"^low must not exceed high, not \(128, 127\)$"):
        replace(PLAIN, low=128)
