"""Lookup: every entry of every table, in lanes and beats, at its stated pace."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.back import rtlil
from numpy.typing import NDArray

from convfold.hdl.lookup import LookupParams, table_words
from tests.hdl.bench import PROFILES, pack, unpack
from tests.hdl.port_bench import check_full_rate, check_timing, fill, run_ports

CASES = {
    "one table": LookupParams(4, 2, 8, True, 8, True),
    "one table, unsigned": LookupParams(3, 3, 4, False, 7, False),
    "wider than it was": LookupParams(1, 1, 3, True, 16, True),
    "a table each, one lane": LookupParams(5, 1, 4, True, 8, True, tables=5),
    "a table each, full beats": LookupParams(6, 3, 5, False, 4, True, tables=6),
    "a table each, a short beat": LookupParams(5, 2, 4, True, 8, False, tables=5),
    "a table each, all at once": LookupParams(3, 3, 2, False, 8, True, tables=3),
    "lanes beyond the channels": LookupParams(2, 4, 4, True, 8, True, tables=2),
    "a channel alone": LookupParams(1, 1, 8, False, 8, True, tables=1),
}


def random_table(params: LookupParams) -> NDArray[np.int64]:
    least = -(1 << (params.out_bits - 1)) if params.out_signed else 0
    return np.random.default_rng(5).integers(least, least + (1 << params.out_bits), (params.tables, 1 << params.in_bits))


def pixels_of(params: LookupParams) -> NDArray[np.int64]:
    """Every sample in every channel once, each channel in its own order."""
    least = -(1 << (params.in_bits - 1)) if params.in_signed else 0
    rng = np.random.default_rng(6)
    return np.stack([rng.permutation(1 << params.in_bits) + least for _ in range(params.channels)], axis=1)


@pytest.mark.parametrize("name", CASES)
def test_samples_and_the_timing_rule(name: str) -> None:
    params = CASES[name]
    table_ci = random_table(params)
    pixels = pixels_of(params)
    least = -(1 << (params.in_bits - 1)) if params.in_signed else 0
    table_of = range(params.channels) if params.tables > 1 else [0] * params.channels
    y = np.stack([table_ci[t, pixels[:, c] - least] for c, t in enumerate(table_of)], axis=1)
    expected = [line[n : n + params.lanes] for line in y.tolist() for n in range(0, params.channels, params.lanes)]
    sent = [
        pack(line[n : n + params.lanes], params.in_bits)
        for line in pixels.tolist()
        for n in range(0, params.channels, params.lanes)
    ]
    runs = run_ports(params.create(table_ci), {"i": sent}, {"o": len(expected)})
    for profile in PROFILES:
        seen = [unpack(payload, params.out_bits, params.out_signed, params.lanes) for payload in runs[profile]["o"].payloads]
        assert [line[: len(part)] for line, part in zip(seen, expected, strict=True)] == expected, profile
        check_timing(params.timing, [runs[profile]["i"]], runs[profile]["o"])
    check_full_rate(params.timing, runs["none"])
    assert (params.latency, params.ii) == (5, 1)
    assert list(params.reference(pixels.tolist(), table_ci)) == expected


def test_its_capacity() -> None:
    params = CASES["one table"]
    assert fill(params.create(random_table(params)), {"i": [0] * 40}) == params.timing.depth_words


def test_words_are_addressed_by_the_bits_of_the_sample() -> None:
    assert table_words([-2, -1, 0, 1], in_signed=True, out_bits=3) == [0, 1, 6, 7]
    assert table_words([-2, -1, 0, 1], in_signed=False, out_bits=3) == [6, 7, 0, 1]


@pytest.mark.parametrize(("tables", "lanes", "blocks"), [(1, 4, 4), (6, 3, 3), (6, 1, 1), (16, 1, 2)])
def test_how_many_blocks_the_ecp5_form_takes(tables: int, lanes: int, blocks: int) -> None:
    params = LookupParams(max(tables, 2), lanes, 8, True, 8, True, tables, "ecp5")
    assert params.blocks == blocks
    assert rtlil.convert(params.create(random_table(params))).count("cell \\DP16KD ") == blocks


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^tables must be 1 or 4, not 2$"):
        LookupParams(4, 2, 8, True, 8, True, tables=2)
    with pytest.raises(ValueError, match=r"^table must be 1×256, not \(256,\)$"):
        CASES["one table"].create(np.zeros(256, np.int64))
