"""ROM, behavioural form; the ECP5 form is compared with it in test_ecp5_forms."""

from __future__ import annotations

import random

import pytest
from amaranth.back import rtlil

from convfold.hdl.rom import RomParams
from tests.hdl.bench import measured_lags, run_clocked


@pytest.mark.parametrize(("width", "depth"), [(1, 1), (3, 2), (8, 5), (17, 64), (72, 33), (9, 300)])
def test_words_latency_and_ii(width: int, depth: int) -> None:
    """A new address every cycle, so the one lag that fits is the latency and the interval is one."""
    params = RomParams(width, depth)
    words = [random.getrandbits(width) for _ in range(depth)]
    words[0] ^= 1 if depth == 1 and not words[0] else 0  # a lag of zero must not fit by chance
    dut = params.create(words)
    addresses = [*range(depth), *(random.randrange(depth) for _ in range(100))]
    seen = run_clocked(dut, [dut.i_addr], [(address,) for address in addresses], [dut.o])
    expected = [params.reference(words, address) for address in addresses]
    lags = measured_lags(expected, [o for (o,) in seen])
    assert lags[0] == params.latency
    assert lags == [params.latency] or depth == 1
    assert params.ii == 1


@pytest.mark.parametrize(
    ("width", "depth", "blocks"),
    [
        (8, 63, 0),
        (8, 64, 1),
        (18, 512, 1),
        (19, 512, 1),
        (36, 512, 1),
        (37, 512, 2),
        (54, 512, 2),
        (55, 512, 2),
        (72, 64, 2),
        (36, 513, 2),
        (18, 1024, 1),
        (18, 1025, 2),
        (9, 2048, 1),
        (9, 2049, 2),
        (10, 4096, 4),
        (10, 4097, 6),
    ],
)
def test_how_many_blocks_the_ecp5_form_takes(width: int, depth: int, blocks: int) -> None:
    params = RomParams(width, depth, "ecp5")
    assert params.blocks == blocks
    assert rtlil.convert(params.create([0] * depth)).count("cell \\DP16KD ") == blocks
    assert RomParams(width, depth).blocks == 0


@pytest.mark.parametrize(("width", "depth", "blocks"), [(8, 1, 1), (24, 48, 1), (37, 63, 2), (72, 16, 2), (24, 512, 1)])
def test_blocks_for_few_words(width: int, depth: int, blocks: int) -> None:
    params = RomParams(width, depth, "ecp5_block")
    assert params.blocks == blocks
    assert rtlil.convert(params.create([0] * depth)).count("cell \\DP16KD ") == blocks


@pytest.mark.parametrize(
    ("width", "depth", "kind", "message"),
    [
        (8, 8, "gowin", r"^kind must be one of \('behavioural', 'ecp5', 'ecp5_block'\), not 'gowin'$"),
        (0, 8, "ecp5", r"^size must be at least 1×1, not \(8, 0\)$"),
        (8, 0, "ecp5", r"^size must be at least 1×1, not \(0, 8\)$"),
    ],
)
def test_what_is_refused(width: int, depth: int, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RomParams(width, depth, kind)


def test_as_many_words_as_its_depth() -> None:
    with pytest.raises(ValueError, match=r"^words must number 3, not 2$"):
        RomParams(8, 3).create([1, 2])
