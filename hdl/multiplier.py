"""Multiplier: one signed product a cycle, registered on both sides."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Multiplier", "MultiplierParams"]

KINDS = ("behavioural", "ecp5")


@dataclass(frozen=True, slots=True)
class MultiplierParams:
    """``o = i_a · i_b``, both signed, two cycles later.

    ``kind`` "behavioural" is plain logic that synthesis may map as it likes; "ecp5" is one MULT18X18D with its own input and
    output registers. Both have the same latency.

    *Timing* ``latency`` 2 cycles, ``ii`` 1 cycle.
    *Source* Lattice FPGA-TN-02205, "ECP5 and ECP5-5G sysDSP Usage Guide", for MULT18X18D.
    """

    a_bits: int
    b_bits: int
    kind: str = "behavioural"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, not {self.kind!r}")
        if self.kind == "ecp5" and max(self.a_bits, self.b_bits) > 18:
            raise ValueError(f"operands must have at most 18 bits, not {(self.a_bits, self.b_bits)!r}")

    @property
    def latency(self) -> int:
        return 2

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
                "i_a": In(signed(params.a_bits)),
                "i_b": In(signed(params.b_bits)),
                "o": Out(signed(params.a_bits + params.b_bits)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        if self.params.kind == "ecp5":
            m.submodules.dsp = self._mult18x18d()
            return m
        a = Signal.like(self.i_a, reset_less=True)
        b = Signal.like(self.i_b, reset_less=True)
        product = Signal.like(self.o, reset_less=True)
        m.d.sync += [a.eq(self.i_a), b.eq(self.i_b), product.eq(a * b)]
        m.d.comb += self.o.eq(product)
        return m

    def _mult18x18d(self) -> Instance:
        ports: dict[str, object] = {
            "i_CLK0": ClockSignal(),
            "i_CE0": Const(1),
            "i_RST0": Const(0),
            "i_SIGNEDA": Const(1),
            "i_SIGNEDB": Const(1),
            "i_SOURCEA": Const(0),
            "i_SOURCEB": Const(0),
        }
        a_bits = Cat(self.i_a, self.i_a[-1].replicate(18 - len(self.i_a)))
        b_bits = Cat(self.i_b, self.i_b[-1].replicate(18 - len(self.i_b)))
        ports |= {f"i_A{n}": a_bits[n] for n in range(18)}
        ports |= {f"i_B{n}": b_bits[n] for n in range(18)}
        product_bits = Cat(self.o, Signal(36 - len(self.o), name="unused")) if len(self.o) < 36 else self.o
        ports |= {f"o_P{n}": product_bits[n] for n in range(36)}
        return Instance(
            "MULT18X18D",
            p_REG_INPUTA_CLK="CLK0",
            p_REG_INPUTB_CLK="CLK0",
            p_REG_OUTPUT_CLK="CLK0",
            **ports,
        )
