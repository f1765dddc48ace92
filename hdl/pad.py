"""Pad: rows and columns of one value around a stream's frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .crop import within
from .streams import beat_stream, beats

__all__ = ["Pad", "PadParams"]


@dataclass(frozen=True, slots=True)
class PadParams:
    """``y[i + top, j + left] = x[i, j]``, and ``value_raw`` elsewhere; ``padding`` is ``((top, bottom), (left, right))``.

    *Shapes* input ``(height, width, channels)``, output ``(out_height, out_width, channels)``, ``lanes`` channels a beat.

    *Timing* ``ii`` 1 cycle a beat out; ``latency`` 1 cycle from a beat in to the same beat out. The padding before a frame
    waits until the frame's first beat is offered, the padding behind it does not wait for the next frame: what a
    frame's beats do is the same whatever stood still before it.
    *Raises* ``ValueError`` for a negative padding, or lanes that do not fit the channels.
    """

    height: int
    width: int
    channels: int
    lanes: int
    bits: int
    signed: bool
    padding: tuple[tuple[int, int], tuple[int, int]]
    value_raw: int

    def __post_init__(self) -> None:
        if min(*self.padding[0], *self.padding[1]) < 0:
            raise ValueError(f"padding must be at least 0, not {self.padding!r}")
        if not 1 <= self.lanes <= self.channels:
            raise ValueError(f"lanes must be 1 to {self.channels}, not {self.lanes!r}")
        low = -(1 << (self.bits - 1)) if self.signed else 0
        if not low <= self.value_raw < low + (1 << self.bits):
            raise ValueError(f"value_raw must fit {self.bits} bits, not {self.value_raw!r}")

    @property
    def out_height(self) -> int:
        return self.height + sum(self.padding[0])

    @property
    def out_width(self) -> int:
        return self.width + sum(self.padding[1])

    @property
    def in_beats(self) -> int:
        """Input beats a frame."""
        return self.height * self.width * beats(self.channels, self.lanes)

    @property
    def out_beats(self) -> int:
        """Output beats a frame."""
        return self.out_height * self.out_width * beats(self.channels, self.lanes)

    @property
    def inside(self) -> tuple[range, range]:
        """The output rows and columns that come from the input."""
        (top, _bottom), (left, _right) = self.padding
        return range(top, top + self.height), range(left, left + self.width)

    @property
    def latency(self) -> int:
        return 1

    @property
    def ii(self) -> int:
        return 1

    def copies(self) -> Iterator[bool]:
        """Of every output beat of a frame, whether it comes from the input."""
        rows, cols = self.inside
        for row in range(self.out_height):
            for col in range(self.out_width):
                for _beat in range(beats(self.channels, self.lanes)):
                    yield row in rows and col in cols

    def reference(self, frame_hwc: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[int]]:
        """Output beats of one frame; the last beat of a pixel may be short."""
        (top, bottom), (left, right) = self.padding
        blank = [self.value_raw] * self.channels
        empty = [blank] * self.out_width
        rows = [[blank] * left + [list(pixel) for pixel in row] + [blank] * right for row in frame_hwc]
        for row in [empty] * top + rows + [empty] * bottom:
            for pixel in row:
                for n in range(0, self.channels, self.lanes):
                    yield pixel[n : n + self.lanes]

    def create(self) -> Pad:
        return Pad(self)


class Pad(wiring.Component):
    """See `PadParams`."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: PadParams) -> None:
        self.params = params
        beat = beat_stream(params.bits, params.signed, params.lanes)
        super().__init__({"i": In(beat), "o": Out(beat)})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        sizes = p.out_height, p.out_width, beats(p.channels, p.lanes)
        row, col, beat = (Signal(range(size), name=name) for size, name in zip(sizes, ("row", "col", "beat"), strict=True))
        copy = within(row, p.inside[0], sizes[0]) & within(col, p.inside[1], sizes[1])
        opens = Signal(init=1)  # at the first beat of a frame
        valid = Signal()
        held = Signal.like(Value.cast(self.i.payload), name="held", reset_less=True)
        padding = Cat(Const(p.value_raw & ((1 << p.bits) - 1), p.bits).replicate(p.lanes))

        free = ~valid | self.o.ready
        load = free & (self.i.valid | ~(copy | opens))
        m.d.comb += [
            self.i.ready.eq(free & copy),
            self.o.valid.eq(valid),
            Value.cast(self.o.payload).eq(held),
        ]
        with m.If(self.o.ready):
            m.d.sync += valid.eq(0)
        with m.If(load):
            m.d.sync += [held.eq(Mux(copy, Value.cast(self.i.payload), padding)), valid.eq(1)]
            last_beat, last_col, last_row = beat == sizes[2] - 1, col == sizes[1] - 1, row == sizes[0] - 1
            m.d.sync += [beat.eq(Mux(last_beat, 0, beat + 1)), opens.eq(last_beat & last_col & last_row)]
            with m.If(last_beat):
                m.d.sync += col.eq(Mux(last_col, 0, col + 1))
            with m.If(last_beat & last_col):
                m.d.sync += row.eq(Mux(last_row, 0, row + 1))
        return m
