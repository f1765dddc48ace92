"""Scale: the requantizer of sums that all share one multiplier, known when the hardware is made."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, Mux, Shape, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .constant_multiplier import ConstantMultiplierParams

__all__ = ["Scale", "ScaleParams"]


@dataclass(frozen=True, slots=True)
class ScaleParams:
    """``o = clamp(((i·m + (positive if i >= 0 else negative)) >> shift) + zero_point, low, high)``.

    *Timing* ``latency`` 2 cycles, rounding and clamping, after those of the `ConstantMultiplierParams`; ``ii`` 1 cycle.
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

    def __post_init__(self) -> None:
        if self.m < 0:
            raise ValueError(f"m must be at least 0, not {self.m!r}")
        if self.shift < 0:
            raise ValueError(f"shift must be at least 0, not {self.shift!r}")
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, not {(self.low, self.high)!r}")

    @property
    def multiplier(self) -> ConstantMultiplierParams:
        return ConstantMultiplierParams(self.in_bits, self.m)

    @property
    def latency(self) -> int:
        return self.multiplier.latency + 2

    @property
    def ii(self) -> int:
        return 1

    def reference(self, total: int) -> int:
        rounding = self.positive if total >= 0 else self.negative
        return min(max(((total * self.m + rounding) >> self.shift) + self.zero_point, self.low), self.high)

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

        # The zero point is added before the shift, together with the rounding.
        positive, negative = (rounding + (p.zero_point << p.shift) for rounding in (p.positive, p.negative))
        widest = max(len(product), positive.bit_length() + 1, negative.bit_length() + 1)
        rounded = Signal(signed(widest + 1), reset_less=True)
        m.d.sync += rounded.eq(product + Mux(below_zero, negative, positive))

        scaled = rounded.shift_right(p.shift)
        m.d.sync += self.o.eq(Mux(scaled < p.low, p.low, Mux(scaled > p.high, p.high, scaled)))
        return m
