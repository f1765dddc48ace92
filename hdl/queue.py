"""Queue: first in, first out, of any depth from two."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, Shape, ShapeLike, Value
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out

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
    """``o`` repeats ``i`` in order; up to ``depth_words`` beats wait inside."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: QueueParams) -> None:
        self.params = params
        super().__init__({"i": In(stream.Signature(params.shape)), "o": Out(stream.Signature(params.shape))})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        width = Shape.cast(self.params.shape).width
        m.submodules.fifo = store = fifo.SyncFIFOBuffered(width=width, depth=self.params.depth_words)
        m.d.comb += [
            store.w_data.eq(Value.cast(self.i.payload)),
            store.w_en.eq(self.i.valid),
            self.i.ready.eq(store.w_rdy),
            Value.cast(self.o.payload).eq(store.r_data),
            self.o.valid.eq(store.r_rdy),
            store.r_en.eq(self.o.ready),
        ]
        return m
