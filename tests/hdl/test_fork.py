"""Fork: every branch gets every beat at its own pace; and a loop of branches that needs a buffer."""

from __future__ import annotations

import pytest
from amaranth.hdl import Cat, Module, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from convfold.hdl.buffer import BufferParams
from convfold.hdl.fork import ForkParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.pipe import PipeParams, join
from convfold.hdl.streams import beat_stream, delay
from tests.hdl.bench import pack, simulate
from tests.hdl.port_bench import PortBench, run_ports

BEATS = [pack((n % 16 - 8, 7 - n * 3 % 16), 4) for n in range(80)]


@pytest.mark.parametrize("outputs", [2, 3])
def test_beats_and_the_timing_rule(outputs: int) -> None:
    params = ForkParams(4, True, 2, outputs)
    names = [f"o{n}" for n in range(outputs)]
    runs = run_ports(params.create(), {"i": BEATS}, dict.fromkeys(names, len(BEATS)))
    for profile, run in runs.items():
        source = run["i"]
        last = [max(times) for times in zip(*(run[name].taken for name in names), strict=True)]
        takes: list[int] = []
        for n, time in enumerate(source.offered):
            takes.append(max(time, takes[-1] + 1 if n else 0, last[n - 2] + 1 if n > 1 else 0))
        assert source.taken == takes, profile
        offers = [max(time + params.latency, last[n - 1] + 1 if n else 0) for n, time in enumerate(takes)]
        for name in names:
            assert run[name].payloads == BEATS, profile
            assert run[name].offered == offers, profile
    full = runs["none"]["i"].taken
    assert full == list(range(1, 1 + len(BEATS) * params.ii, params.ii))
    assert runs["none"]["o0"].taken == [time + params.latency for time in full]
    eager = runs["output stalls"]
    assert any(own < other for own, other in zip(eager["o0"].taken, eager["o1"].taken, strict=True))


class Diamond(wiring.Component):
    """A fork; a branch that gathers a whole pixel before it lets go of it, and one that a buffer makes long; a join."""

    def __init__(self, pixel: int, depth_words: int) -> None:
        self.fork = ForkParams(8, False, 1, 2)
        self.buffer = BufferParams(8, False, 1, depth_words)
        self.gather = LaneAdapterParams(pixel, 8, False, 1, pixel)
        self.spread = LaneAdapterParams(pixel, 8, False, pixel, 1)
        self.pipe = PipeParams(unsigned(16), 1)
        super().__init__({"i": In(beat_stream(8, False, 1)), "o": Out(stream.Signature(unsigned(16)))})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        m.submodules.fork = fork = self.fork.create()
        m.submodules.buffer = buffer = self.buffer.create()
        m.submodules.gather = gather = self.gather.create()
        m.submodules.spread = spread = self.spread.create()
        m.submodules.pipe = pipe = self.pipe.create()
        wiring.connect(m, wiring.flipped(self.i), fork.i)
        short, long_ = fork.outputs
        wiring.connect(m, short, buffer.i)
        wiring.connect(m, long_, gather.i)
        wiring.connect(m, gather.o, spread.i)
        tied = Cat(buffer.o.payload[0], spread.o.payload[0])
        m.d.comb += [pipe.i_take.eq(join(m, (buffer.o, spread.o), pipe.o_grant)), pipe.i.eq(delay(m, tied, 1, "tied"))]
        wiring.connect(m, pipe.o, wiring.flipped(self.o))
        return m


def cross(depth_words: int, pixel: int = 16) -> tuple[list[int], list[int]]:
    """The beats that came out of a diamond before it stood still, and those that should have."""
    beats = [n * 5 & 255 for n in range(4 * pixel)]
    bench = PortBench(Diamond(pixel, depth_words), {"i": beats}, {"o": len(beats)}, patience=60)
    simulate(bench.dut, bench)
    return bench.run["o"].payloads, [beat | beat << 8 for beat in beats]


@pytest.mark.parametrize("depth_words", [2, 8, 14])
def test_a_buffer_too_small_for_its_loop_stops_it(depth_words: int) -> None:
    """The join waits for the branch that gathers, that one for beats which the fork cannot hand on: the buffer is full."""
    seen, _ = cross(depth_words)
    assert seen == []


@pytest.mark.parametrize("depth_words", [15, 16, 40, 64])
def test_a_buffer_deep_enough_keeps_it_going(depth_words: int) -> None:
    """One less than a pixel: the fork holds the last beat for the buffer while the gatherer already has it."""
    seen, expected = cross(depth_words)
    assert seen == expected


def test_a_fork_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^outputs must be at least 2, not 1$"):
        ForkParams(8, False, 1, 1)
