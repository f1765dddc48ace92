"""MULT18X18D: the multiplier block of ECP5, with registers at its operands and behind its product."""

from __future__ import annotations

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Signal, Value

__all__ = ["LATENCY", "OPERAND_BITS", "mult18x18d"]

OPERAND_BITS = 18
LATENCY = 2


def mult18x18d(a: Value, b: Value, product: Value) -> Instance:
    """``product = a · b``, ``LATENCY`` cycles later.

    *Shapes* operands of up to 18 bits, each signed or not (without a sign 17 bits); ``product`` takes as many of the 36 bits
    of the result as it has.
    *Source* Lattice FPGA-TN-02205, "ECP5 and ECP5-5G sysDSP Usage Guide". It needs no pipeline register: from operands to
    product nextpnr counts 3.93 ns without any register, in the slowest speed grade.
    """
    ports: dict[str, object] = {
        "i_CLK0": ClockSignal(),
        "i_CE0": Const(1),
        "i_RST0": Const(0),
        "i_SIGNEDA": Const(1),
        "i_SIGNEDB": Const(1),
        "i_SOURCEA": Const(0),
        "i_SOURCEB": Const(0),
    }
    a_bits, b_bits = _extended(a), _extended(b)
    ports |= {f"i_A{n}": a_bits[n] for n in range(OPERAND_BITS)}
    ports |= {f"i_B{n}": b_bits[n] for n in range(OPERAND_BITS)}
    product_bits = Cat(product, Signal(36 - len(product), name="unused")) if len(product) < 36 else product
    ports |= {f"o_P{n}": product_bits[n] for n in range(36)}
    return Instance(
        "MULT18X18D",
        p_REG_INPUTA_CLK="CLK0",
        p_REG_INPUTB_CLK="CLK0",
        p_REG_OUTPUT_CLK="CLK0",
        **ports,
    )


def _extended(value: Value) -> Value:
    top = value[-1] if value.shape().signed else Const(0)
    return Cat(value, top.replicate(OPERAND_BITS - len(value)))
