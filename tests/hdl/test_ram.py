"""RAM, behavioural form; the ECP5 form is compared with it in test_ecp5_forms."""

from __future__ import annotations

import random

import pytest
from amaranth.back import rtlil

from convfold.hdl.ram import RamParams
from tests.hdl.bench import measured_lags, run_clocked


@pytest.mark.parametrize(("width", "depth"), [(1, 2), (8, 5), (20, 64), (9, 300)])
def test_traffic_latency_and_ii(width: int, depth: int) -> None:
    """A read and, most cycles, a write; reading the word written the cycle before is the commonest case."""
    params = RamParams(width, depth)
    dut = params.create()
    store = [0] * depth
    traffic, expected = [], []
    written = 0
    for _ in range(400):
        read = written if random.random() < 0.5 else random.randrange(depth)
        expected.append(store[read])
        written, data, enable = random.randrange(depth), random.getrandbits(width), random.random() < 0.7
        enable = enable and written != read
        traffic.append((read, written, data, enable))
        if enable:
            store[written] = data
    seen = run_clocked(dut, [dut.i_addr, dut.i_write_addr, dut.i_write_data, dut.i_write_en], traffic, [dut.o])
    assert measured_lags(expected, [o for (o,) in seen]) == [params.latency]
    assert params.ii == 1


@pytest.mark.parametrize(
    ("width", "depth", "blocks"),
    [(8, 63, 0), (8, 64, 1), (18, 1024, 1), (19, 1024, 2), (18, 1025, 2), (9, 2048, 1), (10, 2049, 4), (9, 4097, 3)],
)
def test_how_many_blocks_the_ecp5_form_takes(width: int, depth: int, blocks: int) -> None:
    params = RamParams(width, depth, "ecp5")
    assert params.blocks == blocks
    assert rtlil.convert(params.create()).count("cell \\DP16KD ") == blocks
    assert RamParams(width, depth).blocks == 0


@pytest.mark.parametrize(
    ("width", "depth", "kind", "message"),
    [
        (8, 8, "gowin", r"^kind must be one of \('behavioural', 'ecp5'\), not 'gowin'$"),
        (0, 8, "ecp5", r"^size must be at least 1×1, not \(8, 0\)$"),
        (8, 0, "ecp5", r"^size must be at least 1×1, not \(0, 8\)$"),
    ],
)
def test_what_is_refused(width: int, depth: int, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RamParams(width, depth, kind)
