"""Scale: the requantizer of sums that all share one multiplier, known when the hardware is made."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .constant_multiplier import ConstantMultiplierParams
from .ties import TiesParams

__all__ = ["Scale", "ScaleParams"]


@dataclass(frozen=True, slots=True)
class ScaleParams:
    """``o = clamp(((i·m + (positive if i >= 0 else negative)) >> shift) + zero_point, low, high)``.

    Ties to even are left to `TiesParams`: of the kind ``ties``, known by ``tie_bits``.

    *Timing* ``latency`` 2 cycles, rounding and clamping, after those of the `ConstantMultiplierParams`, and 2 more for ties;
    ``ii`` 1 cycle.
    *Parameters* ``in_bits``: signed width of ``i``.
    *Raises* ``ValueError`` for a negative ``m`` or ``shift``, or limits the wrong way round.
    """

    in_bits: int
    m: int
    positive: int
    negative: int
    shift: int
    low: int
    high: int
    zero_point: int
    out_bits: int
    out_signed: bool
    ties: str = "none"
    tie_bits: int = 0

    def __post_init__(self) -> None:
        if self.m < 0:
            raise ValueError(f"m must be at least 0, not {self.m!r}")
        if self.shift < 0:
            raise ValueError(f"shift must be at least 0, not {self.shift!r}")
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, not {(self.low, self.high)!r}")
        _ = self.rounding

    @property
    def rounding(self) -> TiesParams | None:
        """What makes ties even; *raises* ``ValueError`` for bits without it."""
        if self.ties == "none":
            if self.tie_bits:
                raise ValueError(f"tie_bits must be 0 without ties, not {self.tie_bits!r}")
            return None
        widest = max(self.multiplier.out_bits, self.positive.bit_length() + 1, self.negative.bit_length() + 1)
        return TiesParams(widest + 1, self.shift, self.ties, self.tie_bits, self.low, self.high, self.zero_point)

    @property
    def multiplier(self) -> ConstantMultiplierParams:
        return ConstantMultiplierParams(self.in_bits, self.m)

    @property
    def latency(self) -> int:
        return self.multiplier.latency + 2 + (self.rounding.latency if self.rounding else 0)

    @property
    def ii(self) -> int:
        return 1

    def reference(self, total: int) -> int:
        offset = self.positive if total >= 0 else self.negative
        rounded = total * self.m + offset
        scaled = self.rounding.reference(rounded) if self.rounding else (rounded >> self.shift) + self.zero_point
        return min(max(scaled, self.low), self.high)

    def create(self) -> Scale:
        return Scale(self)


class Scale(wiring.Component):
    """See `ScaleParams`. There is no enable: the pipeline runs freely."""

    def __init__(self, params: ScaleParams) -> None:
        self.params = params
        super().__init__({"i": In(signed(params.in_bits)), "o": Out(Shape(params.out_bits, params.out_signed))})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        m.submodules.multiplier = multiplier = p.multiplier.create()
        m.d.comb += multiplier.i.eq(self.i)
        product = multiplier.o
        below_zero = product[-1] if p.m else self.i[-1]

        # The zero point is added before the shift, together with the rounding, unless ties come in between.
        zero = 0 if p.rounding else p.zero_point << p.shift
        positive, negative = (offset + zero for offset in (p.positive, p.negative))
        widest = max(len(product), positive.bit_length() + 1, negative.bit_length() + 1)
        rounded = Signal(signed(widest + 1), reset_less=True)
        m.d.sync += rounded.eq(product + Mux(below_zero, negative, positive))

        scaled: Value = rounded.shift_right(p.shift)
        if p.rounding:
            m.submodules.ties = ties = p.rounding.create()
            m.d.comb += ties.i.eq(rounded)
            scaled = ties.o
        m.d.sync += self.o.eq(Mux(scaled < p.low, p.low, Mux(scaled > p.high, p.high, scaled)))
        return m
