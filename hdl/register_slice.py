"""Register slice: cuts every combinational path between two streams."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, ShapeLike, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["RegisterSlice", "RegisterSliceParams"]


@dataclass(frozen=True, slots=True)
class RegisterSliceParams:
    """A full-throughput slice (skid buffer) for payloads of one shape.

    *Timing* ``latency`` 1 cycle, ``ii`` 1 cycle; holds two beats, so neither ``valid`` nor ``ready`` passes through.
    """

    shape: ShapeLike

    @property
    def latency(self) -> int:
        return 1

    @property
    def ii(self) -> int:
        return 1

    def create(self) -> RegisterSlice:
        return RegisterSlice(self)


class RegisterSlice(wiring.Component):
    """``o`` repeats ``i``, one cycle later, with registered ``valid``, ``payload`` and ``ready``.

    Invariants: (1) a beat waits in the skid register only while the output register is occupied;
    (2) ``i.ready`` is low exactly while the skid register is occupied.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: RegisterSliceParams) -> None:
        self.params = params
        super().__init__({"i": In(stream.Signature(params.shape)), "o": Out(stream.Signature(params.shape))})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        head = Signal.like(Value.cast(self.i.payload), name="head", reset_less=True)
        skid = Signal.like(Value.cast(self.i.payload), name="skid", reset_less=True)
        head_valid = Signal()
        skid_valid = Signal()
        m.d.comb += [
            self.i.ready.eq(~skid_valid),
            self.o.valid.eq(head_valid),
            Value.cast(self.o.payload).eq(head),
        ]
        with m.If(self.o.ready | ~head_valid):
            m.d.sync += [
                head_valid.eq(self.i.valid | skid_valid),
                skid_valid.eq(0),
            ]
            with m.If(skid_valid):
                m.d.sync += head.eq(skid)
            with m.Else():
                m.d.sync += head.eq(Value.cast(self.i.payload))
        with m.Elif(self.i.valid & ~skid_valid):
            m.d.sync += [skid.eq(Value.cast(self.i.payload)), skid_valid.eq(1)]
        return m
