"""Product: two tensors multiplied sample by sample, and requantized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .multiplier import FAMILIES, MultiplierParams
from .pipe import Piped, PipeParams, join
from .scale import ScaleParams
from .streams import beat_layout, beat_stream

__all__ = ["Product", "ProductParams"]

OPERAND_CYCLES = 1  # less the zero points
RESULT_CYCLES = 1  # for the way from a hard multiplier into the fabric


def _difference_bits(bits: int, is_signed: bool, zero: int) -> int:
    """Signed width of every sample less the zero point."""
    least = -(1 << (bits - 1)) if is_signed else 0
    low, high = least - zero, least + (1 << bits) - 1 - zero
    return max((~low if low < 0 else low).bit_length(), (~high if high < 0 else high).bit_length()) + 1


@dataclass(frozen=True, slots=True)
class ProductParams(Piped):
    """``y = scale((a - a_zero)·(b - b_zero))``, see `ScaleParams`; one multiplier a lane, the first ``hard`` of them hard ones.

    *Shapes* all streams have ``lanes`` lanes.

    *Timing* `PipeTiming` (``timing``), both inputs in the same cycle; ``latency`` 4 cycles and those of the
    multiplier and the scale, ``ii`` 1.
    *Raises* ``ValueError`` for operands too wide for a hard multiplier, for more hard ones than lanes, and as `ScaleParams`.
    """

    lanes: int
    a_bits: int
    a_signed: bool
    a_zero: int
    b_bits: int
    b_signed: bool
    b_zero: int
    m: int
    positive: int
    negative: int
    shift: int
    low: int
    high: int
    zero_point: int
    out_bits: int
    out_signed: bool
    multiplier: str = "behavioural"
    hard: int = 0
    ties: str = "none"
    tie_bits: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.hard <= self.lanes:
            raise ValueError(f"hard must be 0 to {self.lanes} multipliers, not {self.hard!r}")
        _ = self.pipe  # whose parts refuse what they cannot do

    def multiplier_params(self, lane: int) -> MultiplierParams:
        return MultiplierParams(
            _difference_bits(self.a_bits, self.a_signed, self.a_zero),
            _difference_bits(self.b_bits, self.b_signed, self.b_zero),
            FAMILIES[self.multiplier][lane < self.hard],
        )

    @property
    def multipliers(self) -> int:
        return self.lanes

    @property
    def scale(self) -> ScaleParams:
        return ScaleParams(
            in_bits=self.multiplier_params(0).a_bits + self.multiplier_params(0).b_bits,
            m=self.m,
            positive=self.positive,
            negative=self.negative,
            shift=self.shift,
            low=self.low,
            high=self.high,
            zero_point=self.zero_point,
            out_bits=self.out_bits,
            out_signed=self.out_signed,
            ties=self.ties,
            tie_bits=self.tie_bits,
        )

    @property
    def pipe(self) -> PipeParams:
        layout = beat_layout(self.out_bits, self.out_signed, self.lanes)
        return PipeParams(layout, OPERAND_CYCLES + self.multiplier_params(0).latency + RESULT_CYCLES + self.scale.latency)

    def reference(self, a_beats: Sequence[Sequence[int]], b_beats: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Output beats."""
        for pair in zip(a_beats, b_beats, strict=True):
            yield [self.scale.reference((a - self.a_zero) * (b - self.b_zero)) for a, b in zip(*pair, strict=True)]

    def create(self) -> Product:
        return Product(self)


class Product(wiring.Component):
    """See `ProductParams`."""

    i0: stream.Interface
    i1: stream.Interface
    o: stream.Interface

    def __init__(self, params: ProductParams) -> None:
        self.params = params
        super().__init__(
            {
                "i0": In(beat_stream(params.a_bits, params.a_signed, params.lanes)),
                "i1": In(beat_stream(params.b_bits, params.b_signed, params.lanes)),
                "o": Out(beat_stream(params.out_bits, params.out_signed, params.lanes)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        m.submodules.pipe = pipe = p.pipe.create()
        m.d.comb += pipe.i_take.eq(join(m, (self.i0, self.i1), pipe.o_grant))
        results = []
        for n in range(p.lanes):
            m.submodules[f"multiplier{n}"] = multiplier = p.multiplier_params(n).create()
            m.submodules[f"scale{n}"] = scale = p.scale.create()
            a = Signal(signed(p.multiplier_params(n).a_bits), name=f"a_{n}", reset_less=True)
            b = Signal(signed(p.multiplier_params(n).b_bits), name=f"b_{n}", reset_less=True)
            product = Signal(signed(p.scale.in_bits), name=f"product_{n}", reset_less=True)
            m.d.sync += [
                a.eq(self.i0.payload[n] - p.a_zero),
                b.eq(self.i1.payload[n] - p.b_zero),
                product.eq(multiplier.o),
            ]
            m.d.comb += [multiplier.i_a.eq(a), multiplier.i_b.eq(b), scale.i.eq(product)]
            results.append(scale.o)
        m.d.comb += Value.cast(pipe.i).eq(Cat(*results))
        wiring.connect(m, pipe.o, wiring.flipped(self.o))
        return m
