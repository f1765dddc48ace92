"""Pipe: a pipeline that runs freely between streams, kept from overflowing by credits for the queue at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, Module, ShapeLike, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .credits import Credits
from .queue import QueueParams
from .streams import add_mod, delay

__all__ = ["Pipe", "PipeParams", "PipeTiming", "Piped", "count_beats", "join"]


@dataclass(frozen=True, slots=True)
class PipeTiming:
    """When a component that takes one beat of each of its inputs at once does so, exactly; it has one output.

    Input beat ``n`` is part of output beat ``k = n // beats``. With ``taken(k)`` the cycle in which the sink takes that::

        take(n)  = max(offered(n) by every input, take(n-1) + 1, taken(k-depth_words) + return_cycles)
        offer(k) = max(take(k·beats + beats-1) + latency, taken(k-1) + 1)

    No more than ``depth_words`` output beats are ever inside, and nothing is taken in the first cycle after reset.
    """

    latency: int
    depth_words: int
    return_cycles: int
    beats: int = 1


@dataclass(frozen=True, slots=True)
class PipeParams:
    """``cycles`` registers of somebody else's logic and a queue; every ``beats`` input beats make one output beat.

    *Timing* `PipeTiming`; the queue is as deep as the beats in flight, so with the output always taken ``ii`` is 1 cycle.
    *Raises* ``ValueError`` for less than one cycle: then the queue would be too small for its own latency.
    """

    shape: ShapeLike
    cycles: int
    beats: int = 1

    def __post_init__(self) -> None:
        if self.cycles < 1 or self.beats < 1:
            raise ValueError(f"cycles and beats must be at least 1, not {(self.cycles, self.beats)!r}")

    @property
    def queue(self) -> QueueParams:
        in_flight = self.beats - 1 + self.latency + Credits.RETURN_CYCLES
        return QueueParams(self.shape, max(-(-in_flight // self.beats), 3))

    @property
    def latency(self) -> int:
        return self.cycles + 2

    @property
    def ii(self) -> int:
        return 1

    @property
    def timing(self) -> PipeTiming:
        return PipeTiming(self.latency, self.queue.depth_words, Credits.RETURN_CYCLES, self.beats)

    def create(self) -> Pipe:
        return Pipe(self)


class Piped:
    """Parameters of a component that is one pipe."""

    __slots__ = ()

    @property
    def pipe(self) -> PipeParams:
        raise NotImplementedError

    @property
    def queue(self) -> QueueParams:
        return self.pipe.queue

    @property
    def timing(self) -> PipeTiming:
        return self.pipe.timing

    @property
    def latency(self) -> int:
        return self.pipe.latency

    @property
    def ii(self) -> int:
        return self.pipe.ii


class Pipe(wiring.Component):
    """Both ends of the pipeline. Beats may be taken while ``o_grant`` is high; ``i_take`` tells that they were, and ``i_last``
    that an output beat is complete with them. That one is expected at ``i``, ``cycles`` cycles later.
    """

    o: stream.Interface

    def __init__(self, params: PipeParams) -> None:
        self.params = params
        super().__init__(
            {
                "o_grant": Out(1),
                "i_take": In(1),
                "i_last": In(1, init=1),
                "i": In(params.shape),
                "o": Out(stream.Signature(params.shape)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        start = self.i_take & self.i_last
        m.submodules.queue = queue = self.params.queue.create()
        m.d.comb += [
            Value.cast(queue.i.payload).eq(Value.cast(self.i)),
            queue.i.valid.eq(delay(m, start, self.params.cycles, "valid")),
        ]
        wiring.connect(m, queue.o, wiring.flipped(self.o))

        m.submodules.credits = credits_ = Credits(self.params.queue.depth_words, 1)
        m.d.comb += [
            credits_.i_start.eq(start),
            credits_.i_taken.eq(self.o.valid & self.o.ready),
            self.o_grant.eq(credits_.o_grant),
        ]
        return m


def join(m: Module, inputs: Sequence[stream.Interface], grant: Value) -> Value:
    """Take one beat of every input in the same cycle, once all offer one and it is granted; returns when."""
    for port in inputs:
        others = [other.valid for other in inputs if other is not port]
        m.d.comb += port.ready.eq(Cat(grant, *others).all())
    return Cat(grant, *(port.valid for port in inputs)).all()


def count_beats(m: Module, step: Value, beats: int) -> Signal:
    """The number, within its pixel, of the beat that is taken at the next ``step``."""
    beat = Signal(range(beats))
    with m.If(step):
        m.d.sync += beat.eq(add_mod(beat, 1, beats))
    return beat
