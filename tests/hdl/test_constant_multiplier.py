"""Constant multiplier: every product, for factors of every form."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from amaranth.hdl import Module, Signal

from convfold.hdl.constant_multiplier import ConstantMultiplier, ConstantMultiplierParams
from tests.hdl.bench import measured_lags, run_clocked

FACTORS = (0, 1, 2, 3, 5, 7, 11, 64, 85, 0x55, 0xAB, 99991, 77777, 131071, 0x2AAAAAAB, 0x7FFFFFFF, 1431655765)


def clocked(dut: ConstantMultiplier) -> Module:
    """A power of two needs no register, but the simulator a clock."""
    m = Module()
    m.submodules.dut = dut
    m.d.sync += Signal(name="clocked").eq(dut.o[0])
    return m


@pytest.mark.parametrize("bits", [1, 4, 9, 25])
@pytest.mark.parametrize("factor", FACTORS)
def test_products_latency_and_ii(factor: int, bits: int) -> None:
    params = ConstantMultiplierParams(bits, factor)
    half = 1 << (bits - 1)
    samples = [-half, half - 1, 0, *(random.randrange(-half, half) for _ in range(60))]
    dut = params.create()
    seen = [o for (o,) in run_clocked(clocked(dut), [dut.i], [(sample,) for sample in samples], [dut.o])]
    expected = [sample * factor for sample in samples]
    lags = measured_lags(expected, seen)
    assert params.latency in lags
    assert lags == [params.latency] or factor == 0
    assert params.ii == 1


def test_digits() -> None:
    """They make the factor, no two are neighbours, the tree is as high as it must be and a product as wide."""
    for factor in [*range(1, 200), *FACTORS[10:]]:
        params = ConstantMultiplierParams(8, factor)
        places = [place for place, _ in params.digits]
        assert sum(sign << place for place, sign in params.digits) == factor
        assert all(after - before > 1 for before, after in pairwise(places))
        assert params.digits[-1][1] == 1
        assert 2**params.latency >= len(places) > 2 ** (params.latency - 1)
        assert -(1 << (params.out_bits - 1)) <= -128 * factor < -(1 << (params.out_bits - 2))
        assert params.reference(-128) == -128 * factor


def test_a_negative_factor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^factor must be at least 0, not -1$"):
        ConstantMultiplierParams(8, -1)
