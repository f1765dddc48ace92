"""Concat: the channels of several tensors, one after the other in every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .pipe import PipeTiming
from .register_slice import RegisterSliceParams
from .streams import add_mod, beat_layout, beat_stream, beats

__all__ = ["Concat", "ConcatParams"]


@dataclass(frozen=True, slots=True)
class ConcatParams:
    """Each pixel is the ``channels[0]`` samples of ``i0``, then the ``channels[1]`` of ``i1``, and so on.

    *Shapes* all streams have ``lanes`` lanes. A beat comes from one input, so all but the last must fill theirs.

    *Timing* `PipeTiming` (``timing``) over the beats in the order of the output, but beat ``n`` is taken from input
    ``order[n % len(order)]`` alone; ``latency`` 1 cycle, ``ii`` 1 cycle, 2 beats stored, as in a register slice.
    *Raises* ``ValueError`` for a single input, or channels that leave a beat unfilled in the middle of a pixel.
    """

    channels: tuple[int, ...]
    lanes: int
    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if len(self.channels) < 2:
            raise ValueError(f"channels must be of two inputs or more, not {self.channels!r}")
        if any(count % self.lanes for count in self.channels[:-1]):
            raise ValueError(f"channels of all inputs but the last must be multiples of {self.lanes}, not {self.channels!r}")

    @property
    def order(self) -> tuple[int, ...]:
        """Which input each beat of a pixel comes from."""
        return tuple(n for n, count in enumerate(self.channels) for _ in range(beats(count, self.lanes)))

    @property
    def slice(self) -> RegisterSliceParams:
        return RegisterSliceParams(beat_layout(self.bits, self.signed, self.lanes))

    @property
    def timing(self) -> PipeTiming:
        return PipeTiming(self.latency, depth_words=2, return_cycles=1)

    @property
    def latency(self) -> int:
        return self.slice.latency

    @property
    def ii(self) -> int:
        return self.slice.ii

    def reference(self, *inputs: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Output beats for the pixels of each input; fillers are left out."""
        for parts in zip(*inputs, strict=True):
            pixel = [sample for part in parts for sample in part]
            for n in range(0, len(pixel), self.lanes):
                yield pixel[n : n + self.lanes]

    def create(self) -> Concat:
        return Concat(self)


class Concat(wiring.Component):
    """See `ConcatParams`."""

    o: stream.Interface

    def __init__(self, params: ConcatParams) -> None:
        self.params = params
        beat = beat_stream(params.bits, params.signed, params.lanes)
        super().__init__({**{f"i{n}": In(beat) for n in range(len(params.channels))}, "o": Out(beat)})

    @property
    def inputs(self) -> list[stream.Interface]:
        return [getattr(self, f"i{n}") for n in range(len(self.params.channels))]

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        counts = [beats(count, self.params.lanes) for count in self.params.channels]
        m.submodules.slice = output = self.params.slice.create()
        wiring.connect(m, output.o, wiring.flipped(self.o))
        turn = Signal(range(len(counts)))
        beat = Signal(range(max(counts)))
        with m.Switch(turn):
            for n, port in enumerate(self.inputs):
                with m.Case(n):
                    m.d.comb += [
                        Value.cast(output.i.payload).eq(Value.cast(port.payload)),
                        output.i.valid.eq(port.valid),
                        port.ready.eq(output.i.ready),
                    ]
                    with m.If(port.valid & output.i.ready):
                        m.d.sync += beat.eq(beat + 1)
                        with m.If(beat == counts[n] - 1):
                            m.d.sync += [beat.eq(0), turn.eq(add_mod(turn, 1, len(counts)))]
        return m
