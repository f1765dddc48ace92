"""Pipe: its timing rule, its capacity, and the queue that is never given too much."""

from __future__ import annotations

from typing import Any

import pytest
from amaranth.hdl import Cat, Module, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from convfold.hdl.pipe import PipeParams, count_beats, join
from convfold.hdl.streams import delay
from tests.hdl.bench import PROFILES, simulate
from tests.hdl.port_bench import PortBench, check_full_rate, check_timing

CASES = [(1, 1), (2, 1), (7, 1), (1, 2), (3, 2), (1, 5), (5, 3)]


class Tie(wiring.Component):
    """Two streams tied together, ``cycles`` later; of several beats the last one counts."""

    def __init__(self, cycles: int, beats: int) -> None:
        self.params = PipeParams(unsigned(16), cycles, beats)
        half = stream.Signature(unsigned(8))
        super().__init__({"i0": In(half), "i1": In(half), "o": Out(stream.Signature(unsigned(16)))})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        m.submodules.pipe = self.pipe = pipe = self.params.create()
        take = join(m, (self.i0, self.i1), pipe.o_grant)
        beat = count_beats(m, take, self.params.beats)
        m.d.comb += [pipe.i_take.eq(take), pipe.i_last.eq(beat == self.params.beats - 1)]
        m.d.comb += pipe.i.eq(delay(m, Cat(self.i0.payload, self.i1.payload), self.params.cycles, "tied"))
        wiring.connect(m, pipe.o, wiring.flipped(self.o))
        return m


@pytest.mark.parametrize(("cycles", "beats"), CASES)
def test_the_timing_rule(cycles: int, beats: int) -> None:
    dut = Tie(cycles, beats)
    sent = {"i0": [n * 7 & 255 for n in range(60 * beats)], "i1": [n & 255 for n in range(60 * beats)]}
    benches = [PortBench(dut, sent, {"o": 60}, profile) for profile in PROFILES]
    simulate(dut, *benches)
    pairs = [a | b << 8 for a, b in zip(sent["i0"], sent["i1"], strict=True)]
    for bench in benches:
        assert bench.run["o"].payloads == pairs[beats - 1 :: beats], bench.profile
        check_timing(dut.params.timing, [bench.run["i0"], bench.run["i1"]], bench.run["o"])
    check_full_rate(dut.params.timing, benches[0].run, ("i0", "i1"))
    assert dut.params.ii == 1


@pytest.mark.parametrize(("cycles", "beats"), CASES)
def test_it_fills_and_never_overflows(cycles: int, beats: int) -> None:
    """Blocked until nothing moves, then drained: a beat for which the queue had no place would be missing."""
    dut = Tie(cycles, beats)
    sent = {"i0": [n & 255 for n in range(60 * beats)], "i1": [n * 3 & 255 for n in range(60 * beats)]}
    bench = PortBench(dut, sent, {"o": 60}, blocked=100)
    simulate(dut, bench)
    pairs = [a | b << 8 for a, b in zip(sent["i0"], sent["i1"], strict=True)]
    assert bench.run["o"].payloads == pairs[beats - 1 :: beats]
    assert sum(time < 100 for time in bench.run["i0"].taken) == dut.params.timing.depth_words * beats
    check_timing(dut.params.timing, [bench.run["i0"], bench.run["i1"]], bench.run["o"])


@pytest.mark.parametrize(("cycles", "beats"), CASES)
def test_one_place_less_would_be_too_few(cycles: int, beats: int) -> None:
    """The depth is the least that keeps the rate, where it is not that of the smallest queue."""
    params = PipeParams(unsigned(8), cycles, beats)
    needed = params.latency + params.timing.return_cycles + beats - 1
    depth = params.timing.depth_words
    assert depth * beats >= needed
    assert (depth - 1) * beats < needed or depth == 3


class Wire(wiring.Component):
    """Inputs taken together and dropped, for the rules of `join` alone."""

    def __init__(self, inputs: int) -> None:
        self.count = inputs
        super().__init__({**{f"i{n}": In(stream.Signature(1)) for n in range(inputs)}, "grant": In(1), "take": Out(1)})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        m.d.comb += self.take.eq(join(m, [getattr(self, f"i{n}") for n in range(self.count)], self.grant))
        return m


@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_a_join_takes_all_or_none(inputs: int) -> None:
    dut = Wire(inputs)

    async def bench(ctx: Any) -> None:
        for word in range(1 << (inputs + 1)):
            ctx.set(dut.grant, word & 1)
            ports = [getattr(dut, f"i{n}") for n in range(inputs)]
            for n, port in enumerate(ports):
                ctx.set(port.valid, word >> (n + 1) & 1)
            taken = [ctx.get(port.valid) and ctx.get(Value.cast(port.ready)) for port in ports]
            everything = word + 1 == 1 << (inputs + 1)
            assert [bool(one) for one in taken] == [everything] * inputs
            assert ctx.get(dut.take) == everything
            await ctx.tick()

    m = Module()
    m.submodules.dut = dut
    m.d.sync += Signal(name="clocked").eq(dut.take)
    simulate(m, bench)


@pytest.mark.parametrize(("cycles", "beats"), [(0, 1), (1, 0)])
def test_what_is_refused(cycles: int, beats: int) -> None:
    with pytest.raises(ValueError, match=rf"^cycles and beats must be at least 1, not \({cycles}, {beats}\)$"):
        PipeParams(unsigned(8), cycles, beats)
