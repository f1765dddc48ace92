"""A small accelerator for the tool tests: the dot product of each frame with weights in a ROM."""

from __future__ import annotations

from amaranth.back import rtlil
from amaranth.hdl import Cat, ClockSignal, Instance, Module, Mux, Signal, Value, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

TOP = "accelerator"
DEPTH = 64
WEIGHTS = tuple((index * 37 + 11) % 255 - 127 for index in range(DEPTH))


class Multiplier(wiring.Component):
    """``o = a · b``, two cycles later. ``hard`` takes an ECP5 MULT18X18D instead of look-up tables."""

    def __init__(self, hard: bool) -> None:
        self.hard = hard
        super().__init__({"i_a": In(signed(8)), "i_b": In(signed(8)), "o": Out(signed(16))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self.hard:
            product = Signal(36)
            m.submodules.dsp = _mult18x18d(self.i_a, self.i_b, product)
            m.d.sync += self.o.eq(product[:16])
        else:
            a = Signal(signed(8))
            b = Signal(signed(8))
            m.d.sync += [a.eq(self.i_a), b.eq(self.i_b), self.o.eq(a * b)]
        return m


class DotProduct(wiring.Component):
    """One 24-bit sum, sign-extended to 32 bits, for each frame of ``DEPTH`` signed bytes."""

    def __init__(self, hard: bool) -> None:
        self.hard = hard
        stream_in = {
            "s_axis_tdata": In(8),
            "s_axis_tvalid": In(1),
            "s_axis_tready": Out(1),
            "s_axis_tlast": In(1),
        }
        stream_out = {
            "m_axis_tdata": Out(32),
            "m_axis_tvalid": Out(1),
            "m_axis_tready": In(1),
            "m_axis_tlast": Out(1),
        }
        super().__init__({**stream_in, **stream_out, "error": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.weights = weights = memory.Memory(shape=signed(8), depth=DEPTH, init=WEIGHTS)
        read = weights.read_port()
        m.submodules.multiplier = multiplier = Multiplier(self.hard)
        index = Signal(range(DEPTH))
        busy = Signal()
        pixel = Signal(signed(8))
        total = Signal(signed(24))
        valid_pipe = Signal(3)
        last_pipe = Signal(3)
        taken = self.s_axis_tvalid & self.s_axis_tready
        last = index == DEPTH - 1
        m.d.comb += [
            self.s_axis_tready.eq(~busy),
            self.m_axis_tdata.eq(total),
            self.m_axis_tlast.eq(1),
            read.addr.eq(index),
            multiplier.i_a.eq(pixel),
            multiplier.i_b.eq(read.data),
        ]
        m.d.sync += [
            pixel.eq(self.s_axis_tdata),
            valid_pipe.eq(Cat(taken, valid_pipe)),
            last_pipe.eq(Cat(taken & last, last_pipe)),
        ]
        with m.If(taken):
            m.d.sync += index.eq(Mux(last, 0, index + 1))
            with m.If(last):
                m.d.sync += busy.eq(1)
            with m.If(last != self.s_axis_tlast):
                m.d.sync += self.error.eq(1)
        with m.If(valid_pipe[2]):
            m.d.sync += total.eq(total + multiplier.o)
        with m.FSM():
            with m.State("adding"), m.If(last_pipe[2]):
                m.next = "waiting"
            with m.State("waiting"):
                m.d.comb += self.m_axis_tvalid.eq(1)
                with m.If(self.m_axis_tready):
                    m.d.sync += [total.eq(0), busy.eq(0)]
                    m.next = "adding"
        return m


def dot_product_rtlil(*, hard: bool = False) -> str:
    """The design as Amaranth hands it to Yosys."""
    return str(rtlil.convert(DotProduct(hard), name=TOP))


def _mult18x18d(a: Value, b: Value, product: Signal) -> Instance:
    """A MULT18X18D with its input registers in use."""
    wide_a, wide_b = a.as_signed(), b.as_signed()
    ports: dict[str, object] = {f"o_P{bit}": product[bit] for bit in range(36)}
    for name, operand in (("A", wide_a), ("B", wide_b)):
        ports.update({f"i_{name}{bit}": operand[min(bit, len(operand) - 1)] for bit in range(18)})
        ports[f"i_SIGNED{name}"] = 1
        ports[f"p_REG_INPUT{name}_CLK"] = "CLK0"
        ports[f"p_REG_INPUT{name}_CE"] = "CE0"
        ports[f"p_REG_INPUT{name}_RST"] = "RST0"
    return Instance("MULT18X18D", i_CLK0=ClockSignal(), i_CE0=1, i_RST0=0, p_GSR="DISABLED", **ports)
