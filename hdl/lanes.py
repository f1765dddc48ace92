"""Lane adapter: the same pixels in beats of another width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .streams import beat_stream, beats

__all__ = ["LaneAdapter", "LaneAdapterParams"]


@dataclass(frozen=True, slots=True)
class LaneAdapterParams:
    """Beats of ``in_lanes`` become beats of ``out_lanes``; one must divide the other. A pixel always begins a new beat.

    *Timing* ``latency`` 1 cycle from the beat that completes an output beat. ``ii`` cycles a pixel: as many as the longer of
    its two forms has beats.
    *Raises* ``ValueError`` where neither width divides the other.
    """

    channels: int
    bits: int
    signed: bool
    in_lanes: int
    out_lanes: int

    def __post_init__(self) -> None:
        if self.in_lanes % self.out_lanes and self.out_lanes % self.in_lanes:
            raise ValueError(f"lanes must divide each other, not {(self.in_lanes, self.out_lanes)!r}")

    @property
    def latency(self) -> int:
        return 1

    @property
    def ii(self) -> int:
        return max(beats(self.channels, self.in_lanes), beats(self.channels, self.out_lanes))

    def reference(self, pixels: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Output beats for pixels of ``channels`` values; the last beat of a pixel may be short."""
        for pixel in pixels:
            for n in range(0, self.channels, self.out_lanes):
                yield list(pixel[n : n + self.out_lanes])

    def create(self) -> LaneAdapter:
        return LaneAdapter(self)


class LaneAdapter(wiring.Component):
    """See `LaneAdapterParams`."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: LaneAdapterParams) -> None:
        self.params = params
        super().__init__(
            {
                "i": In(beat_stream(params.bits, params.signed, params.in_lanes)),
                "o": Out(beat_stream(params.bits, params.signed, params.out_lanes)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        if self.params.out_lanes > self.params.in_lanes:
            self._gather(m)
        else:
            self._spread(m)
        return m

    def _gather(self, m: Module) -> None:
        """Collect narrow beats; the last of a group, or of a pixel, completes an output beat."""
        p = self.params
        count = beats(p.channels, p.in_lanes)
        group = p.out_lanes // p.in_lanes
        width = p.in_lanes * p.bits
        beat = Signal(range(count))
        place = Signal(range(group))
        held = Signal(width * (group - 1), reset_less=True)
        whole = Signal(width * group, name="whole", reset_less=True)
        valid = Signal()
        word = Value.cast(self.i.payload)

        closes = (place == group - 1) | (beat == count - 1)
        m.d.comb += [
            self.i.ready.eq(~closes | ~valid | self.o.ready),
            self.o.valid.eq(valid),
            Value.cast(self.o.payload).eq(whole),
        ]
        accept = self.i.valid & self.i.ready
        with m.If(self.o.ready):
            m.d.sync += valid.eq(0)
        with m.If(accept):
            m.d.sync += beat.eq(Mux(beat == count - 1, 0, beat + 1))
            m.d.sync += place.eq(Mux(closes, 0, place + 1))
            with m.Switch(place):
                for n in range(group):
                    with m.Case(n):
                        if n < group - 1:
                            m.d.sync += held[n * width : (n + 1) * width].eq(word)
                        with m.If(closes):
                            m.d.sync += whole.eq(Cat(held[: n * width], word))
            with m.If(closes):
                m.d.sync += valid.eq(1)

    def _spread(self, m: Module) -> None:
        """Hold a wide beat and send its parts; parts beyond the last channel are skipped."""
        p = self.params
        count = beats(p.channels, p.in_lanes)
        group = p.in_lanes // p.out_lanes
        tail = beats(p.channels - (count - 1) * p.in_lanes, p.out_lanes)
        width = p.out_lanes * p.bits
        beat = Signal(range(count))
        left = Signal(range(group))
        held = Signal(p.in_lanes * p.bits, reset_less=True)
        valid = Signal()
        m.d.comb += [
            self.i.ready.eq(~valid | (self.o.ready & (left == 0))),
            self.o.valid.eq(valid),
            Value.cast(self.o.payload).eq(held[:width]),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                held.eq(Value.cast(self.i.payload)),
                valid.eq(1),
                left.eq(Mux(beat == count - 1, tail - 1, group - 1)),
                beat.eq(Mux(beat == count - 1, 0, beat + 1)),
            ]
        with m.Elif(self.o.ready & valid):
            m.d.sync += [held.eq(held[width:]), left.eq(left - 1), valid.eq(left != 0)]
