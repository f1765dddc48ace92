"""SB_MAC16: the multiplier block of iCE40 UltraPlus, as two multipliers of 8×8 bits or as one of 16×16."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import ClockSignal, Const, Instance, Module, Shape, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .streams import delay

__all__ = ["SbMac16", "SbMac16Params"]

HALF_BITS = 8
WHOLE_BITS = 16


@dataclass(frozen=True, slots=True)
class SbMac16Params:
    """``o[n] = i_a[n] · i_b[n]`` for the ``products`` of one block; ``b`` is signed, ``a`` may be either.

    Operands of at most 8 bits give two independent products a block, wider ones a single product. A sample without a sign
    keeps its 8 bits: the block multiplies unsigned by signed.

    *Timing* ``latency`` cycles, from 2 on: registers at the operands, behind the products, behind the block's adder, which
    adds nothing, and, for more than 3, before the block; ``ii`` 1 cycle.
    *Raises* ``ValueError`` for operands of more than 16 bits and for a shorter latency.
    *Source* Lattice FPGA-TN-02007, "DSP Function Usage Guide for iCE40 Devices"; "iCE Technology Library", SB_MAC16.
    """

    a_bits: int
    a_signed: bool
    b_bits: int
    latency: int = 2

    def __post_init__(self) -> None:
        if max(self.a_bits, self.b_bits) > WHOLE_BITS:
            raise ValueError(f"operands must have at most {WHOLE_BITS} bits, not {(self.a_bits, self.b_bits)!r}")
        if self.latency < 2:
            raise ValueError(f"latency must be at least 2, not {self.latency!r}")

    @property
    def products(self) -> int:
        """How many multipliers a block is."""
        return 2 if max(self.a_bits, self.b_bits) <= HALF_BITS else 1

    @property
    def ii(self) -> int:
        return 1

    def blocks(self, multipliers: int) -> int:
        """How many blocks hold so many multipliers."""
        return -(-multipliers // self.products)

    def create(self) -> SbMac16:
        return SbMac16(self)


class SbMac16(wiring.Component):
    """See `SbMac16Params`. There is no enable: the pipeline runs freely."""

    def __init__(self, params: SbMac16Params) -> None:
        self.params = params
        super().__init__(
            {
                "i_a": In(data.ArrayLayout(Shape(params.a_bits, params.a_signed), params.products)),
                "i_b": In(data.ArrayLayout(signed(params.b_bits), params.products)),
                "o": Out(data.ArrayLayout(signed(params.a_bits + params.b_bits), params.products)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        operand_bits = WHOLE_BITS // p.products
        a, b, products = Signal(WHOLE_BITS), Signal(WHOLE_BITS), Signal(2 * WHOLE_BITS)
        for n in range(p.products):
            operand = slice(n * operand_bits, (n + 1) * operand_bits)
            product = products[2 * operand.start : 2 * operand.stop]
            m.d.comb += [a[operand].eq(self.i_a[n]), b[operand].eq(self.i_b[n]), self.o[n].eq(product)]
        a = delay(m, a, max(p.latency - 3, 0), "a", reset_less=True)
        b = delay(m, b, max(p.latency - 3, 0), "b", reset_less=True)
        if p.latency == 2:
            select, lower, upper = (2 if p.products == 2 else 3), 0, 0
        else:  # through the adder and its register: the products plus C and D, which are 0
            select, lower, upper = 1, (1 if p.products == 2 else 2), 1
        m.submodules.block = Instance(
            "SB_MAC16",
            p_A_REG=Const(1, 1),
            p_B_REG=Const(1, 1),
            p_TOP_8x8_MULT_REG=Const(int(p.products == 2), 1),
            p_BOT_8x8_MULT_REG=Const(int(p.products == 2), 1),
            p_PIPELINE_16x16_MULT_REG2=Const(int(p.products == 1), 1),
            p_TOPOUTPUT_SELECT=Const(select, 2),
            p_BOTOUTPUT_SELECT=Const(select, 2),
            p_TOPADDSUB_LOWERINPUT=Const(lower, 2),
            p_BOTADDSUB_LOWERINPUT=Const(lower, 2),
            p_TOPADDSUB_UPPERINPUT=Const(upper, 1),
            p_BOTADDSUB_UPPERINPUT=Const(upper, 1),
            p_MODE_8x8=Const(int(p.products == 2), 1),
            p_A_SIGNED=Const(int(p.a_signed), 1),
            p_B_SIGNED=Const(1, 1),
            i_CLK=ClockSignal(),
            i_CE=Const(1),
            i_A=a,
            i_B=b,
            **{f"i_{name}": Const(0, bits) for name, bits in UNUSED.items()},
            o_O=products,
        )
        return m


UNUSED = {
    "C": 16,
    "D": 16,
    **dict.fromkeys(("AHOLD", "BHOLD", "CHOLD", "DHOLD", "IRSTTOP", "IRSTBOT", "ORSTTOP", "ORSTBOT"), 1),
    **dict.fromkeys(("OLOADTOP", "OLOADBOT", "ADDSUBTOP", "ADDSUBBOT", "OHOLDTOP", "OHOLDBOT"), 1),
    **dict.fromkeys(("CI", "ACCUMCI", "SIGNEXTIN"), 1),
}
"""Inputs of the block's adder and resets, by width; all are tied low."""

