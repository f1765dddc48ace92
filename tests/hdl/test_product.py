"""Product: every pair of small samples, zero points, and the pace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from convfold.hdl.product import ProductParams
from tests.hdl.bench import PROFILES, pack, unpack
from tests.hdl.port_bench import check_full_rate, check_timing, fill, run_ports
from tests.hdl.verilog_bench import write_verilog

NATIVE = ProductParams(
    lanes=2, a_bits=4, a_signed=True, a_zero=-3, b_bits=5, b_signed=True, b_zero=0, m=77777, positive=1 << 17,
    negative=1 << 17, shift=18, low=-128, high=127, zero_point=5, out_bits=8, out_signed=True,
)  # fmt: skip
CASES = {
    "native": NATIVE,
    "unsigned": replace(
        NATIVE, lanes=3, a_signed=False, a_zero=15, b_bits=3, b_signed=False, out_signed=False, low=0, high=200, zero_point=60
    ),
    "zero points out of range": replace(NATIVE, lanes=1, a_bits=3, a_zero=20, b_bits=3, b_zero=-9, m=3, negative=0, shift=2),
    "ties": replace(NATIVE, lanes=1, m=3, positive=4, negative=4, shift=3, zero_point=7, ties="even", tie_bits=3),
    "whole": replace(NATIVE, lanes=1, m=1, positive=0, negative=0, shift=0, low=-32768, high=32767, out_bits=16),
}


def every_pair(params: ProductParams) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All raw pairs in a random order, as beats of ``lanes``."""
    least_a = -(1 << (params.a_bits - 1)) if params.a_signed else 0
    least_b = -(1 << (params.b_bits - 1)) if params.b_signed else 0
    count = 1 << (params.a_bits + params.b_bits)
    words = np.resize(np.random.default_rng(8).permutation(count), -(-count // params.lanes) * params.lanes)
    shape = (-1, params.lanes)
    return (words % (1 << params.a_bits) + least_a).reshape(shape), (words // (1 << params.a_bits) + least_b).reshape(shape)


@pytest.mark.parametrize("name", CASES)
def test_products_and_the_timing_rule(name: str) -> None:
    params = CASES[name]
    a, b = every_pair(params)
    product = (a - params.a_zero) * (b - params.b_zero)
    rounding = np.where(product >= 0, params.positive, params.negative)
    scaled = (product * params.m + rounding) >> params.shift
    if params.ties == "even":
        scaled = np.rint(product * params.m / 2**params.shift).astype(int)
    expected = np.clip(scaled + params.zero_point, params.low, params.high).tolist()
    sent = {
        "i0": [pack(line, params.a_bits) for line in a.tolist()],
        "i1": [pack(line, params.b_bits) for line in b.tolist()],
    }
    runs = run_ports(params.create(), sent, {"o": len(expected)})
    for profile in PROFILES:
        run = runs[profile]
        seen = [unpack(payload, params.out_bits, params.out_signed, params.lanes) for payload in run["o"].payloads]
        assert seen == expected, profile
        check_timing(params.timing, [run["i0"], run["i1"]], run["o"])
    check_full_rate(params.timing, runs["none"], ("i0", "i1"))
    assert (params.latency, params.ii) == (4 + params.multiplier_params(0).latency + params.scale.latency, 1)
    assert list(params.reference(a.tolist(), b.tolist())) == expected


def test_its_capacity() -> None:
    assert fill(NATIVE.create(), {"i0": [0] * 40, "i1": [0] * 40}) == NATIVE.timing.depth_words


@pytest.mark.parametrize(
    ("bits", "is_signed", "zero", "width"),
    [
        (8, True, 0, 8),
        (8, True, 1, 9),
        (8, True, -128, 9),
        (8, False, 0, 9),
        (8, False, 128, 8),
        (4, True, 20, 6),
        (1, False, 0, 2),
    ],
)
def test_how_wide_the_operands_are(bits: int, is_signed: bool, zero: int, width: int) -> None:
    params = replace(NATIVE, a_bits=bits, a_signed=is_signed, a_zero=zero)
    assert params.multiplier_params(0).a_bits == width


def test_the_hard_form_has_a_cell_a_lane(tmp_path: Path) -> None:
    params = replace(NATIVE, multiplier="ecp5", hard=2)
    verilog = write_verilog(params.create(), "product", tmp_path).read_text(encoding="utf-8")
    assert verilog.count("MULT18X18D #(") == params.multipliers == 2
    assert params.latency == NATIVE.latency


def test_half_of_it_in_fabric(tmp_path: Path) -> None:
    params = replace(NATIVE, multiplier="ecp5", hard=1)
    verilog = write_verilog(params.create(), "product", tmp_path).read_text(encoding="utf-8")
    assert verilog.count("MULT18X18D #(") == 1
    assert params.latency == NATIVE.latency


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^operands must have at most 18 bits, not \(19, 5\)$"):
        replace(NATIVE, a_bits=19, a_zero=0, multiplier="ecp5", hard=1)
    with pytest.raises(ValueError, match=r"^hard must be 0 to 2 multipliers, not 3$"):
        replace(NATIVE, multiplier="ecp5", hard=3)
    with pytest.raises(ValueError, match=r"^m must be at least 0, not -1$"):
        replace(NATIVE, m=-1)
