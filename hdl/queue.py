"""Queue: first in, first out, of any depth from two."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, Shape, ShapeLike, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .streams import add_mod

__all__ = ["Queue", "QueueParams"]


@dataclass(frozen=True, slots=True)
class QueueParams:
    """A queue of ``depth_words`` payloads.

    *Timing* ``latency`` 2 cycles through an empty queue; ``ii`` 1 cycle, but 2 for a depth of two, where the next word
    is refused while one moves up.
    *Raises* ``ValueError`` for a depth below two (a single register cannot take a word every cycle).
    """

    shape: ShapeLike
    depth_words: int

    def __post_init__(self) -> None:
        if self.depth_words < 2:
            raise ValueError(f"depth_words must be at least 2, not {self.depth_words!r}")

    @property
    def latency(self) -> int:
        return 2

    @property
    def ii(self) -> int:
        return 2 if self.depth_words == 2 else 1

    def create(self) -> Queue:
        return Queue(self)


class Queue(wiring.Component):
    """``o`` repeats ``i`` in order; up to ``depth_words`` beats wait inside.

    It is the buffered queue of Amaranth's library, cycle for cycle, but "full" and "empty" come from registers.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: QueueParams) -> None:
        self.params = params
        super().__init__({"i": In(stream.Signature(params.shape)), "o": Out(stream.Signature(params.shape))})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        width = Shape.cast(self.params.shape).width
        inside = self.params.depth_words - 1  # one more waits in the output register
        m.submodules.store = store = Memory(shape=unsigned(width), depth=inside, init=[])
        writer, reader = store.write_port(), store.read_port(domain="sync")
        level = Signal(range(inside + 1))
        room = Signal(init=1)  # level < inside
        some = Signal()  # level > 0
        write = room & self.i.valid
        read = some & (~self.o.valid | self.o.ready)
        m.d.comb += [
            self.i.ready.eq(room),
            writer.data.eq(Value.cast(self.i.payload)),
            writer.en.eq(write),
            Value.cast(self.o.payload).eq(reader.data),
            reader.en.eq(read),
        ]
        with m.If(write):
            m.d.sync += writer.addr.eq(add_mod(writer.addr, 1, inside))
        with m.If(read):
            m.d.sync += [reader.addr.eq(add_mod(reader.addr, 1, inside)), self.o.valid.eq(1)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(write & ~read):
            m.d.sync += [level.eq(level + 1), room.eq(level != inside - 1), some.eq(1)]
        with m.If(read & ~write):
            m.d.sync += [level.eq(level - 1), room.eq(1), some.eq(level != 1)]
        return m
