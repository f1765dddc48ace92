"""Buffer: order, rate, capacity and timing at every kind of depth."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from amaranth.back import rtlil

from convfold.hdl.buffer import BufferParams
from convfold.hdl.ram import RamParams
from tests.hdl.bench import PROFILES, pack, simulate, unpack
from tests.hdl.port_bench import PortBench, check_full_rate, check_timing, run_ports
from tests.hdl.test_ecp5_forms import stream_bench

DEPTHS = (2, 3, 4, 5, 16, 63, 64, 65, 100, 128)


@pytest.mark.parametrize("depth", DEPTHS)
def test_beats_keep_their_order_and_the_timing_rule(depth: int) -> None:
    params = BufferParams(5, True, 3, depth)
    beats = [random.getrandbits(15) for _ in range(3 * depth + 40)]
    runs = run_ports(params.create(), {"i": beats}, {"o": len(beats)})
    for profile in PROFILES:
        assert runs[profile]["o"].payloads == beats, profile
        check_timing(params.timing, [runs[profile]["i"]], runs[profile]["o"])
    check_full_rate(params.timing, runs["none"])
    assert params.latency == params.timing.latency
    assert params.ii == 1


@pytest.mark.parametrize("depth", DEPTHS)
def test_it_holds_exactly_its_depth_and_drains_at_full_rate(depth: int) -> None:
    params = BufferParams(8, False, 1, depth)
    beats = [random.randrange(256) for _ in range(400)]
    bench = PortBench(params.create(), {"i": beats}, {"o": 400}, blocked=200)
    simulate(bench.dut, bench)
    i, o = bench.run["i"], bench.run["o"]
    assert sum(time < 200 for time in i.taken) == depth
    assert o.taken == list(range(200, 600))
    assert o.payloads == beats
    check_timing(params.timing, [i], o)


def test_shallow_ones_have_no_ram_of_their_own() -> None:
    assert [depth for depth in DEPTHS if BufferParams(8, False, 1, depth).deep] == [64, 65, 100, 128]


@pytest.mark.parametrize(("depth", "lanes", "blocks"), [(63, 4, 0), (64, 4, 2), (1024, 2, 1), (1025, 2, 2), (3000, 1, 2)])
def test_how_many_blocks_the_ecp5_form_takes(depth: int, lanes: int, blocks: int) -> None:
    params = BufferParams(8, False, lanes, depth, "ecp5")
    assert params.blocks == blocks
    assert rtlil.convert(params.create()).count("cell \\DP16KD ") == blocks
    assert BufferParams(8, False, lanes, depth).blocks == 0


def test_the_ecp5_form(tmp_path: Path) -> None:
    """With the model of the cells, where a word that is read while it is written would be unknown."""
    params = BufferParams(8, False, 2, 64, "ecp5")
    assert isinstance(params.ram, RamParams)
    assert params.ram.in_blocks
    beats = [pack((n & 255, n * 7 & 255), 8) for n in range(400)]
    stream_bench(params.create(), beats, 16, [unpack(beat, 8, False, 2) for beat in beats], 8, 2, tmp_path)


def test_a_buffer_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^depth_words must be at least 2, not 1$"):
        BufferParams(8, False, 1, 1)
