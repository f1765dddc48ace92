"""Fork: one stream to several readers, each at its own pace."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .register_slice import RegisterSliceParams
from .streams import beat_layout, beat_stream

__all__ = ["Fork", "ForkParams"]


@dataclass(frozen=True, slots=True)
class ForkParams:
    """Every beat of ``i`` goes to each of ``o0``, ``o1``, …; the next one is offered when all have taken it.

    *Timing* ``latency`` 1 cycle, ``ii`` 1 cycle: a register slice parts the branches from the source, for the fork's ``ready``
    is made of all of theirs. With ``taken_k(n)`` the cycle in which branch ``k`` takes beat ``n``, no branch waiting for
    another, and ``last(n)`` the latest of these::

        take(n)  = max(offered(n) by the source, take(n-1) + 1, last(n-2) + 1)
        offer(n) = max(take(n) + latency, last(n-1) + 1)                on every branch

    *Raises* ``ValueError`` for less than two outputs.
    """

    bits: int
    signed: bool
    lanes: int
    outputs: int

    def __post_init__(self) -> None:
        if self.outputs < 2:
            raise ValueError(f"outputs must be at least 2, not {self.outputs!r}")

    @property
    def slice(self) -> RegisterSliceParams:
        return RegisterSliceParams(beat_layout(self.bits, self.signed, self.lanes))

    @property
    def latency(self) -> int:
        return self.slice.latency

    @property
    def ii(self) -> int:
        return 1

    def create(self) -> Fork:
        return Fork(self)


class Fork(wiring.Component):
    """See `ForkParams`."""

    i: stream.Interface

    def __init__(self, params: ForkParams) -> None:
        self.params = params
        beat = beat_stream(params.bits, params.signed, params.lanes)
        super().__init__({"i": In(beat), **{f"o{n}": Out(beat) for n in range(params.outputs)}})

    @property
    def outputs(self) -> list[stream.Interface]:
        return [getattr(self, f"o{n}") for n in range(self.params.outputs)]

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        m.submodules.slice = source = self.params.slice.create()
        wiring.connect(m, wiring.flipped(self.i), source.i)
        had = []
        for n, output in enumerate(self.outputs):
            has = Signal(name=f"has_{n}")
            had.append(has | output.ready)
            m.d.comb += [
                Value.cast(output.payload).eq(Value.cast(source.o.payload)),
                output.valid.eq(source.o.valid & ~has),
            ]
            with m.If(source.o.valid):
                m.d.sync += has.eq(had[n] & ~source.o.ready)
        m.d.comb += source.o.ready.eq(Cat(*had).all())
        return m
