"""Multiplier pair: two products of one sample in one multiplier block of ECP5."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Shape, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .mult18x18d import LATENCY, OPERAND_BITS, mult18x18d
from .streams import delay

__all__ = ["MultiplierPair", "MultiplierPairParams"]


@dataclass(frozen=True, slots=True)
class MultiplierPairParams:
    """``x · w0 = o[0]`` and ``x · w1 = o[1] + o_carry``, where ``i_b`` are the `fields` of the weights.

    The weights lie side by side in one operand, ``w1 · 2^s + w0``, and so do their products, of ``s`` bits each. A negative
    lower number borrows one from the higher: of the weights it is taken off before, for they are constants; of the products it
    is left to whoever adds them up, for adders have a carry input.

    *Shapes* ``i_a`` a sample of ``a_bits``; ``i_b`` two fields of ``b_bits``; ``o`` two numbers of `product_bits`.
    *Timing* ``latency`` cycles, from 2 on: the registers of `mult18x18d`, and then some in fabric; ``ii`` 1 cycle.
    *Parameters* as `MultiplierParams`; weights are symmetric, never ``-2^(b_bits-1)``.
    *Raises* ``ValueError`` for weights so wide that two of them do not fit, and for a shorter latency.
    """

    a_bits: int
    a_signed: bool
    b_bits: int
    latency: int = LATENCY

    def __post_init__(self) -> None:
        if not self.fits(self.a_bits, self.a_signed, self.b_bits):
            most = (OPERAND_BITS + 1 - self.a_bits - (not self.a_signed)) // 2
            raise ValueError(f"b_bits must be 2 to {most} for samples like these, not {self.b_bits!r}")
        if self.latency < LATENCY:
            raise ValueError(f"latency must be at least {LATENCY}, not {self.latency!r}")

    @staticmethod
    def fits(a_bits: int, a_signed: bool, b_bits: int) -> bool:
        """Whether both operands are narrow enough: 8-bit samples go with weights of up to 5 bits."""
        a_bits += not a_signed
        return b_bits > 1 and a_bits + 2 * b_bits - 1 <= OPERAND_BITS >= a_bits

    @property
    def product_bits(self) -> int:
        """Signed width of a product with a symmetric weight, also when it is one less."""
        return self.a_bits + (not self.a_signed) + self.b_bits - 1

    @property
    def ii(self) -> int:
        return 1

    @staticmethod
    def fields(w0: int, w1: int) -> tuple[int, int]:
        """What is stored for two weights: signed numbers of ``b_bits``."""
        return w0, w1 - (w0 < 0)

    def reference(self, x: int, fields: tuple[int, int]) -> tuple[int, int, int]:
        """Both outputs and the carry."""
        both = x * ((fields[1] << self.product_bits) + fields[0] % (1 << self.product_bits))
        half = 1 << self.product_bits - 1
        low = (both + half) % (2 * half) - half
        high = (both >> self.product_bits) + half
        return low, high % (2 * half) - half, int(low < 0)

    def create(self) -> MultiplierPair:
        return MultiplierPair(self)


class MultiplierPair(wiring.Component):
    """See `MultiplierPairParams`. There is no enable: the pipeline runs freely."""

    def __init__(self, params: MultiplierPairParams) -> None:
        self.params = params
        super().__init__(
            {
                "i_a": In(Shape(params.a_bits, params.a_signed)),
                "i_b": In(data.ArrayLayout(signed(params.b_bits), 2)),
                "o": Out(data.ArrayLayout(signed(params.product_bits), 2)),
                "o_carry": Out(1),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        low = Signal(signed(p.product_bits))
        product = Signal(2 * p.product_bits)
        m.d.comb += low.eq(self.i_b[0])
        m.submodules.dsp = mult18x18d(self.i_a, Cat(low, self.i_b[1]).as_signed(), product)
        products = delay(m, product, p.latency - LATENCY, "products", reset_less=True)
        m.d.comb += [
            self.o[0].eq(products[: p.product_bits]),
            self.o[1].eq(products[p.product_bits :]),
            self.o_carry.eq(products[p.product_bits - 1]),
        ]
        return m
