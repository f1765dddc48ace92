"""Add: every pair of small samples, the tables' order, and the pace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from amaranth.back import rtlil
from numpy.typing import NDArray

from convfold.hdl.add import AddParams
from tests.hdl.bench import PROFILES, pack, unpack
from tests.hdl.port_bench import check_full_rate, check_timing, fill, run_ports

NATIVE = AddParams(
    lanes=2, a_bits=4, a_signed=True, b_bits=4, b_signed=True, table_bits=22, m=1, positive=1 << 17, negative=1 << 17,
    shift=18, low=-128, high=127, zero_point=0, out_bits=8, out_signed=True,
)  # fmt: skip
CASES = {
    "native": NATIVE,
    "another rounding below zero": replace(
        NATIVE, lanes=1, m=99991, positive=1 << 33, negative=-(1 << 33), shift=34, zero_point=-7, low=-20, high=99
    ),
    "ties": replace(
        NATIVE, table_bits=10, positive=1 << 4, negative=1 << 4, shift=5, zero_point=3, low=-9, high=9, ties="even", tie_bits=5
    ),
    "of two formats": replace(NATIVE, lanes=3, a_signed=False, b_bits=3, out_signed=False, low=0, high=255, zero_point=128),
}


def random_tables(params: AddParams) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    half = 1 << (params.table_bits - 1)
    rng = np.random.default_rng(7)
    a, b = (rng.integers(-half, half, 1 << bits) for bits in (params.a_bits, params.b_bits))
    a[0], b[0], a[-1], b[-1] = -half, -half, half - 1, half - 1
    return a, b


def every_pair(params: AddParams) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All raw pairs in a random order, as beats of ``lanes``."""
    least_a = -(1 << (params.a_bits - 1)) if params.a_signed else 0
    least_b = -(1 << (params.b_bits - 1)) if params.b_signed else 0
    count = 1 << (params.a_bits + params.b_bits)
    words = np.resize(np.random.default_rng(8).permutation(count), -(-count // params.lanes) * params.lanes)
    shape = (-1, params.lanes)
    return (words % (1 << params.a_bits) + least_a).reshape(shape), (words // (1 << params.a_bits) + least_b).reshape(shape)


@pytest.mark.parametrize("name", CASES)
def test_sums_and_the_timing_rule(name: str) -> None:
    params = CASES[name]
    table_a, table_b = random_tables(params)
    a, b = every_pair(params)
    total = table_a[a - a.min()] + table_b[b - b.min()]
    rounding = np.where(total >= 0, params.positive, params.negative)
    scaled = (total * params.m + rounding) >> params.shift
    if params.ties == "even":
        scaled = np.rint(total / 2**params.shift).astype(int)
    expected = np.clip(scaled + params.zero_point, params.low, params.high).tolist()
    sent = {
        "i0": [pack(line, params.a_bits) for line in a.tolist()],
        "i1": [pack(line, params.b_bits) for line in b.tolist()],
    }
    runs = run_ports(params.create(table_a, table_b), sent, {"o": len(expected)})
    for profile in PROFILES:
        run = runs[profile]
        seen = [unpack(payload, params.out_bits, params.out_signed, params.lanes) for payload in run["o"].payloads]
        assert seen == expected, profile
        check_timing(params.timing, [run["i0"], run["i1"]], run["o"])
    check_full_rate(params.timing, runs["none"], ("i0", "i1"))
    assert (params.latency, params.ii) == (6 + params.scale.latency, 1)
    assert list(params.reference(a.tolist(), b.tolist(), table_a, table_b)) == expected


def test_its_capacity() -> None:
    dut = NATIVE.create(*random_tables(NATIVE))
    assert fill(dut, {"i0": [0] * 40, "i1": [0] * 40}) == NATIVE.timing.depth_words


def test_how_many_blocks_the_ecp5_form_takes() -> None:
    params = replace(NATIVE, a_bits=8, memory="ecp5")
    assert params.blocks == 2
    assert rtlil.convert(params.create(*random_tables(params))).count("cell \\DP16KD ") == 2


def test_what_is_refused() -> None:
    a, b = random_tables(NATIVE)
    with pytest.raises(ValueError, match=r"^table must have 16 entries, not \(15,\)$"):
        NATIVE.create(a, b[:-1])
    with pytest.raises(ValueError, match=r"^entries must have 21 bits, not \(-2097152, 2097151\)$"):
        replace(NATIVE, table_bits=21).create(a, b)
    with pytest.raises(ValueError, match=r"^shift must be at least 0, not -1$"):
        replace(NATIVE, shift=-1)
