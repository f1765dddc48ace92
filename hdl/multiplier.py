"""Multiplier: one product a cycle, some cycles later."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, Shape, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .carry_multiplier import digit_rows, multiply_in_carries
from .mult18x18d import LATENCY, OPERAND_BITS, mult18x18d
from .sb_mac16 import SbMac16Params
from .streams import delay

__all__ = ["FAMILIES", "Multiplier", "MultiplierParams", "hard_share"]

KINDS = ("behavioural", "ecp5", "ecp5_fabric", "ice40")
FAMILIES = {
    "behavioural": ("behavioural", "behavioural"),
    "ecp5": ("ecp5_fabric", "ecp5"),
    "ice40": ("behavioural", "ice40"),
}
"""The kinds of a family's multipliers: of soft ones and of hard ones."""


def hard_share(hard: int, part: int, size: int) -> int:
    """How many of the first ``hard`` multipliers are in a part, where every part has ``size``."""
    return min(max(hard - part * size, 0), size)


@dataclass(frozen=True, slots=True)
class MultiplierParams:
    """``o = i_a · i_b``, ``latency`` cycles later; ``i_b`` is signed, ``i_a`` if ``a_signed``.

    ``kind`` "behavioural" is plain logic that synthesis may map as it likes; "ecp5" is one MULT18X18D between its own
    registers, see `mult18x18d`, and where there is a third cycle, a register in fabric on the long way to what adds its
    product; "ecp5_fabric" is made of look-up tables and carry chains, see `multiply_in_carries`; "ice40" is one SB_MAC16 of
    which half may be idle, see `SbMac16Params`. All have the same latency.

    *Timing* ``latency`` 2 cycles, or as many more as the rows of "ecp5_fabric" need to be added in pairs (3 for 8×8 bits);
    ``ii`` 1 cycle.
    """

    a_bits: int
    b_bits: int
    kind: str = "behavioural"
    a_signed: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, not {self.kind!r}")
        if self.kind == "ecp5" and max(self.a_bits + (not self.a_signed), self.b_bits) > OPERAND_BITS:
            raise ValueError(f"operands must have at most 18 bits, not {(self.a_bits, self.b_bits)!r}")
        if self.kind == "ice40":
            _ = self.block_params

    @property
    def latency(self) -> int:
        rows = digit_rows(Shape(self.a_bits, self.a_signed), signed(self.b_bits))
        return 1 + max((rows - 1).bit_length(), 1)

    @property
    def block_params(self) -> SbMac16Params:
        """The block of the kind "ice40"."""
        return SbMac16Params(self.a_bits, self.a_signed, self.b_bits, self.latency)

    @property
    def ii(self) -> int:
        return 1

    def reference(self, a: int, b: int) -> int:
        return a * b

    def create(self) -> Multiplier:
        return Multiplier(self)


class Multiplier(wiring.Component):
    """See `MultiplierParams`. There is no enable: the pipeline runs freely."""

    def __init__(self, params: MultiplierParams) -> None:
        self.params = params
        super().__init__(
            {
                "i_a": In(Shape(params.a_bits, params.a_signed)),
                "i_b": In(signed(params.b_bits)),
                "o": Out(signed(params.a_bits + params.b_bits)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        if p.kind == "ecp5_fabric":
            m.d.comb += self.o.eq(multiply_in_carries(m, self.i_a, self.i_b, p.latency))
        elif p.kind == "ecp5":
            behind = min(p.latency - LATENCY, 1)
            ahead = p.latency - LATENCY - behind
            a, b = (delay(m, value, ahead, name, reset_less=True) for value, name in ((self.i_a, "a"), (self.i_b, "b")))
            product = Signal.like(self.o)
            m.submodules.dsp = mult18x18d(a, b, product)
            m.d.comb += self.o.eq(delay(m, product, behind, "product", reset_less=True))
        elif p.kind == "ice40":
            m.submodules.block = block = p.block_params.create()
            m.d.comb += [block.i_a[0].eq(self.i_a), block.i_b[0].eq(self.i_b), self.o.eq(block.o[0])]
        else:
            a = Signal.like(self.i_a, reset_less=True)
            b = Signal.like(self.i_b, reset_less=True)
            product = Signal.like(self.o, reset_less=True)
            m.d.sync += [a.eq(self.i_a), b.eq(self.i_b), product.eq(a * b)]
            m.d.comb += self.o.eq(delay(m, product, p.latency - 2, "product", reset_less=True))
        return m
