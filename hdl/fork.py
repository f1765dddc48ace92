"""Fork: one stream to several readers, each at its own pace."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .streams import beat_stream

__all__ = ["Fork", "ForkParams"]


@dataclass(frozen=True, slots=True)
class ForkParams:
    """Every beat of ``i`` goes to each of ``o0``, ``o1``, …; the next one is offered when all have taken it.

    *Timing* ``latency`` 0 cycles, ``ii`` 1 cycle. Nothing is stored but who has had the present beat. With ``taken_k(n)`` the
    cycle in which branch ``k`` takes beat ``n``, no branch waiting for another::

        offer(n) = max(offered(n) by the source, take(n-1) + 1)         on every branch
        take(n)  = max(taken_k(n) over all branches)                    from the source

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
    def latency(self) -> int:
        return 0

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
        had = []
        for n, output in enumerate(self.outputs):
            has = Signal(name=f"has_{n}")
            had.append(has | output.ready)
            m.d.comb += [
                Value.cast(output.payload).eq(Value.cast(self.i.payload)),
                output.valid.eq(self.i.valid & ~has),
            ]
            with m.If(self.i.valid):
                m.d.sync += has.eq(had[n] & ~self.i.ready)
        m.d.comb += self.i.ready.eq(Cat(*had).all())
        return m
