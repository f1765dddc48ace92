"""Multiplier, behavioural form; the ECP5 form is compared with it in test_ecp5_forms."""

from __future__ import annotations

import itertools
import random

import pytest

from convfold.hdl.multiplier import MultiplierParams
from tests.hdl.bench import measured_lags, run_clocked


def corners(bits: int) -> list[int]:
    least, most = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return [value for value in (least, least + 1, -1, 0, 1, most) if least <= value <= most]


@pytest.mark.parametrize(("a_bits", "b_bits"), [(1, 1), (2, 8), (8, 8), (9, 8), (17, 16), (18, 18), (25, 31)])
def test_products_latency_and_ii(a_bits: int, b_bits: int) -> None:
    """A new pair every cycle, so the one lag that fits is the latency and the interval is one."""
    params = MultiplierParams(a_bits, b_bits)
    dut = params.create()
    pairs = list(itertools.product(corners(a_bits), corners(b_bits)))
    for _ in range(200):
        pairs.append((random.getrandbits(a_bits) - (1 << a_bits - 1), random.getrandbits(b_bits) - (1 << b_bits - 1)))
    seen = run_clocked(dut, [dut.i_a, dut.i_b], pairs, [dut.o])
    assert measured_lags([params.reference(a, b) for a, b in pairs], [o for (o,) in seen]) == [params.latency]
    assert params.ii == 1


def test_every_product_of_four_bits() -> None:
    params = MultiplierParams(4, 4)
    dut = params.create()
    pairs = list(itertools.product(range(-8, 8), repeat=2))
    seen = run_clocked(dut, [dut.i_a, dut.i_b], [*pairs, *[(0, 0)] * params.latency], [dut.o])
    assert [o for (o,) in seen[params.latency :]] == [a * b for a, b in pairs]


@pytest.mark.parametrize(
    ("a_bits", "b_bits", "kind", "message"),
    [
        (8, 8, "gowin", r"^kind must be one of \('behavioural', 'ecp5', 'ecp5_fabric', 'ice40'\), not 'gowin'$"),
        (19, 8, "ecp5", r"^operands must have at most 18 bits, not \(19, 8\)$"),
        (8, 19, "ecp5", r"^operands must have at most 18 bits, not \(8, 19\)$"),
    ],
)
def test_what_is_refused(a_bits: int, b_bits: int, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiplierParams(a_bits, b_bits, kind)
