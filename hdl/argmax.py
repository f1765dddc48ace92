"""ArgMax: the number of the greatest channel, pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amaranth.hdl import Const, Module, Mux, Shape, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .pipe import Piped, PipeParams, count_beats, join
from .streams import beat_layout, beat_stream, beats, delay

__all__ = ["ArgMax", "ArgMaxParams"]


@dataclass(frozen=True, slots=True)
class ArgMaxParams(Piped):
    """``y = min{c : x[c] = max x}``, the first of equals.

    *Shapes* input with ``lanes`` lanes, ``beats`` beats a pixel; output one unsigned lane of ``out_bits``, one beat a pixel.

    *Timing* `PipeTiming` (``timing``), one input, all the beats of a pixel to one of the output; ``latency`` 5 cycles and one
    for each level of the tree over the lanes, from a pixel's last beat to its result; ``ii`` 1 cycle a beat.
    *Raises* ``ValueError`` for too few output bits.
    """

    channels: int
    lanes: int
    bits: int
    signed: bool
    out_bits: int

    def __post_init__(self) -> None:
        if (self.channels - 1).bit_length() > self.out_bits:
            raise ValueError(f"out_bits must hold {self.channels - 1}, not {self.out_bits!r}")

    @property
    def beats(self) -> int:
        return beats(self.channels, self.lanes)

    @property
    def tree_levels(self) -> int:
        return (self.lanes - 1).bit_length()

    @property
    def pipe(self) -> PipeParams:
        """Fillers, the lanes of a beat, the beats of a pixel, the sum of beat and lane."""
        return PipeParams(beat_layout(self.out_bits, False, 1), 1 + self.tree_levels + 1 + 1, self.beats)

    def reference(self, pixels: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Output beats."""
        for pixel in pixels:
            yield [list(pixel).index(max(pixel))]

    def create(self) -> ArgMax:
        return ArgMax(self)


class ArgMax(wiring.Component):
    """See `ArgMaxParams`.

    Fillers are set to the least sample: being last, they cannot win.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: ArgMaxParams) -> None:
        self.params = params
        super().__init__(
            {
                "i": In(beat_stream(params.bits, params.signed, params.lanes)),
                "o": Out(beat_stream(params.out_bits, False, 1)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        sample = Shape(p.bits, p.signed)
        m.submodules.pipe = pipe = p.pipe.create()
        take = join(m, [self.i], pipe.o_grant)
        beat = count_beats(m, take, p.beats)
        last = beat == p.beats - 1
        m.d.comb += [pipe.i_take.eq(take), pipe.i_last.eq(last)]
        base = Signal(range(p.channels))
        with m.If(take):
            m.d.sync += base.eq(Mux(last, 0, base + p.lanes))

        least = -(1 << (p.bits - 1)) if p.signed else 0
        tail = p.channels - (p.beats - 1) * p.lanes
        terms: list[tuple[Value, Value]] = []
        for n in range(p.lanes):
            value = Signal(sample, name=f"sample_{n}", reset_less=True)
            m.d.sync += value.eq(Mux(last, least, self.i.payload[n]) if n >= tail else self.i.payload[n])
            terms.append((value, Value.cast(n)))
        for level in range(p.tree_levels):
            pairs = [terms[n : n + 2] for n in range(0, len(terms), 2)]
            terms = [self._greatest(m, pair, f"{level}_{n}") for n, pair in enumerate(pairs)]
        ((value, lane),) = terms

        ahead = 1 + p.tree_levels
        taken = delay(m, take, ahead, "taken")
        first = delay(m, beat == 0, ahead, "first", reset_less=True)
        beat_base = delay(m, base, ahead, "base", reset_less=True)
        best = Signal(sample, reset_less=True)
        best_base = Signal.like(base, reset_less=True)
        best_lane = Signal(range(p.lanes), reset_less=True)
        with m.If(taken & (first | (value > best))):
            m.d.sync += [best.eq(value), best_base.eq(beat_base), best_lane.eq(lane)]
        m.d.sync += pipe.i[0].eq(best_base + best_lane)
        wiring.connect(m, pipe.o, wiring.flipped(self.o))
        return m

    @staticmethod
    def _greatest(m: Module, pair: list[tuple[Value, Value]], name: str) -> tuple[Value, Value]:
        """The greater of two samples and its number, the first of equals, one cycle later."""
        (value, lane), (other, other_lane) = pair[0], pair[-1]
        other_wins = other > value if len(pair) == 2 else Const(0)
        greatest = Signal.like(value, name=f"greatest_{name}", reset_less=True)
        where = Signal(max(len(lane), len(other_lane)), name=f"where_{name}", reset_less=True)
        m.d.sync += [greatest.eq(Mux(other_wins, other, value)), where.eq(Mux(other_wins, other_lane, lane))]
        return greatest, where
