"""Credits: permission to start a pass, given while the output queue has room for all its words."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .streams import add_mod

__all__ = ["Credits"]


class Credits(wiring.Component):
    """Counts free places in an output queue and grants passes of ``pass_words`` words; every ``passes``-th has ``tail_words``.

    *Timing* a grant reflects every start before it; a place counts again `RETURN_CYCLES` after its word was taken.
    """

    RETURN_CYCLES = 3

    def __init__(self, depth_words: int, pass_words: int, passes: int = 1, tail_words: int | None = None) -> None:
        self.depth_words = depth_words
        self.pass_words = pass_words
        self.passes = passes
        self.tail_words = pass_words if tail_words is None else tail_words
        super().__init__({"i_start": In(1), "i_taken": In(1), "o_grant": Out(1)})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        places = Signal(range(self.depth_words + 1), init=self.depth_words)
        pass_ = Signal(range(self.passes))
        taken = Signal()  # a register, for the consumer's ready comes from far away
        m.d.sync += taken.eq(self.i_taken)
        words = Mux(pass_ == self.passes - 1, self.tail_words, self.pass_words)
        with m.If(self.i_start):  # it comes late: everything else is ready for either case
            m.d.sync += [
                pass_.eq(add_mod(pass_, 1, self.passes)),
                places.eq(places - words + taken),
                self.o_grant.eq(places >= words + self.pass_words),
            ]
        with m.Else():
            m.d.sync += [
                places.eq(places + taken),
                self.o_grant.eq(places >= self.pass_words),
            ]
        return m
