"""Crop: a stream without its outer rows and columns, and without its outer channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .streams import beat_stream, beats

__all__ = ["Crop", "CropParams", "within"]


@dataclass(frozen=True, slots=True)
class CropParams:
    """``y[i, j, c] = x[i + top, j + left, c + start]``, ``cropping`` being ``((top, bottom), (left, right))``.

    Channels from ``start`` to before ``stop`` stay. Beats stay whole: ``start`` is a multiple of ``lanes``, and at least one
    whole beat of channels is kept, so one lane fits any slice.

    *Shapes* input ``(height, width, channels)``, output ``(out_height, out_width, out_channels)``, ``lanes`` channels a beat.

    *Timing* ``ii`` 1 cycle a beat in; ``latency`` 1 cycle from a beat that is kept to the same beat at the output. Beats that
    are dropped are taken even while the output waits.
    *Raises* ``ValueError`` where nothing would be left, or a beat would have to be cut in two.
    """

    height: int
    width: int
    channels: int
    lanes: int
    bits: int
    signed: bool
    cropping: tuple[tuple[int, int], tuple[int, int]]
    start: int
    stop: int

    def __post_init__(self) -> None:
        if min(*self.cropping[0], *self.cropping[1]) < 0 or self.out_height < 1 or self.out_width < 1:
            raise ValueError(f"cropping must leave a part of {self.height}×{self.width}, not {self.cropping!r}")
        if not 0 <= self.start < self.stop <= self.channels:
            raise ValueError(f"start and stop must be within {self.channels} channels, not {(self.start, self.stop)!r}")
        if self.start % self.lanes or not 1 <= self.lanes <= self.out_channels:
            raise ValueError(
                f"lanes must divide start and be 1 to {self.out_channels}, not {self.lanes!r} for {self.start}"
            )

    @property
    def out_height(self) -> int:
        return self.height - sum(self.cropping[0])

    @property
    def out_width(self) -> int:
        return self.width - sum(self.cropping[1])

    @property
    def out_channels(self) -> int:
        return self.stop - self.start

    @property
    def in_beats(self) -> int:
        """Input beats a frame."""
        return self.height * self.width * beats(self.channels, self.lanes)

    @property
    def out_beats(self) -> int:
        """Output beats a frame."""
        return self.out_height * self.out_width * beats(self.out_channels, self.lanes)

    @property
    def kept(self) -> tuple[range, range, range]:
        """The rows, columns, and beats of a pixel that stay."""
        (top, _bottom), (left, _right) = self.cropping
        first = self.start // self.lanes
        return (
            range(top, top + self.out_height),
            range(left, left + self.out_width),
            range(first, first + beats(self.out_channels, self.lanes)),
        )

    @property
    def latency(self) -> int:
        return 1

    @property
    def ii(self) -> int:
        return 1

    def keeps(self) -> Iterator[bool]:
        """Of every input beat of a frame, whether it stays."""
        for place in product(range(self.height), range(self.width), range(beats(self.channels, self.lanes))):
            yield all(index in kept for index, kept in zip(place, self.kept, strict=True))

    def reference(self, frame_hwc: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[int]]:
        """Output beats of one frame; the last beat of a pixel may be short."""
        (top, bottom), (left, right) = self.cropping
        for row in frame_hwc[top : self.height - bottom]:
            for pixel in row[left : self.width - right]:
                channels = pixel[self.start : self.stop]
                for n in range(0, self.out_channels, self.lanes):
                    yield list(channels[n : n + self.lanes])

    def create(self) -> Crop:
        return Crop(self)


class Crop(wiring.Component):
    """See `CropParams`."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: CropParams) -> None:
        self.params = params
        beat = beat_stream(params.bits, params.signed, params.lanes)
        super().__init__({"i": In(beat), "o": Out(beat)})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        sizes = p.height, p.width, beats(p.channels, p.lanes)
        row, col, beat = (Signal(range(size), name=name) for size, name in zip(sizes, ("row", "col", "beat"), strict=True))
        keep = within(row, p.kept[0], sizes[0]) & within(col, p.kept[1], sizes[1]) & within(beat, p.kept[2], sizes[2])
        valid = Signal()
        held = Signal.like(Value.cast(self.i.payload), name="held", reset_less=True)
        m.d.comb += [
            self.i.ready.eq(~keep | ~valid | self.o.ready),
            self.o.valid.eq(valid),
            Value.cast(self.o.payload).eq(held),
        ]
        with m.If(self.o.ready):
            m.d.sync += valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            with m.If(keep):
                m.d.sync += [held.eq(Value.cast(self.i.payload)), valid.eq(1)]
            last_beat, last_col = beat == sizes[2] - 1, col == sizes[1] - 1
            m.d.sync += beat.eq(Mux(last_beat, 0, beat + 1))
            with m.If(last_beat):
                m.d.sync += col.eq(Mux(last_col, 0, col + 1))
            with m.If(last_beat & last_col):
                m.d.sync += row.eq(Mux(row == sizes[0] - 1, 0, row + 1))
        return m


def within(index: Value, kept: range, size: int) -> Value:
    """Whether ``index``, below ``size``, is in ``kept``; what is always so costs nothing."""
    above = index >= kept.start if kept.start > 0 else Const(1)
    return above & (index < kept.stop) if kept.stop < size else above
