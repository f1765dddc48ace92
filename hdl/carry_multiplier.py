"""Multiplication in the carry chains of ECP5: two bits of one operand a row, rows added in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, Instance, Module, Shape, Signal, Value

from .streams import delay

__all__ = ["digit_rows", "multiply_in_carries"]


def digit_rows(a: Shape, b: Shape) -> int:
    """How many rows a product of such operands has: one for each two bits of the narrower operand."""
    width = min(_signed_width(a), _signed_width(b))
    return -(-width // 2)


def _signed_width(shape: Shape) -> int:
    return int(shape.width) + (not shape.signed)


@dataclass(frozen=True, slots=True)
class _Term:
    """A part of the product, ``value · 2**shift``, and the least and greatest value that it takes."""

    value: Value
    shift: int
    low: int
    high: int

    @property
    def shape(self) -> Shape:
        return Shape.cast(range(self.low, self.high + 1))


def multiply_in_carries(m: Module, a: Value, b: Value, latency: int) -> Value:
    """``a · b``, registered ``latency`` times: once behind the rows ``a · digit``, then behind each level of adders.

    A row is one carry chain, with the AND gates of both its bits in the chain's own tables (``carry_row`` in
    ``ecp5_carries.v``). An 8×8-bit product takes 79 LUTs and 80 flip-flops.
    """
    if _signed_width(a.shape()) < _signed_width(b.shape()):
        a, b = b, a
    terms = _rows(m, a, b)
    level = 0
    while len(terms) > 1:
        terms = [_add(m, terms[n : n + 2], f"sum_{level}_{n // 2}") for n in range(0, len(terms), 2)]
        level += 1
    return delay(m, terms[0].value, latency - 1 - level, "product", reset_less=True)


def _rows(m: Module, a: Value, b: Value) -> list[_Term]:
    count = digit_rows(a.shape(), b.shape())
    top = b[-1] if b.shape().signed else 0
    digits = Cat(b, *[top] * (2 * count - len(b)))
    ends = _ends(a.shape())
    terms = []
    for n in range(count):
        negative = n == count - 1
        products = [end * digit for end in ends for digit in ((-2, 1) if negative else (0, 3))]
        row = _Term(Signal(len(a) + 2, name=f"row_{n}_bits"), 2 * n, min(products), max(products))
        m.submodules[f"row{n}"] = Instance(
            "carry_row",
            p_BITS=len(a),
            p_SIGNED=int(a.shape().signed),
            p_NEGATIVE=int(negative),
            i_a=a,
            i_digit=digits[2 * n : 2 * n + 2],
            o_o=row.value,
        )
        terms.append(_registered(m, row, f"row_{n}"))
    return terms


def _ends(shape: Shape) -> tuple[int, int]:
    values = range(-(1 << shape.width - 1), 1 << shape.width - 1) if shape.signed else range(1 << shape.width)
    return values[0], values[-1]


def _add(m: Module, pair: Sequence[_Term], name: str) -> _Term:
    if len(pair) == 1:
        return _registered(m, pair[0], name)
    low, high = pair
    gap = high.shift - low.shift
    total = Cat(low.value[:gap], high.value + (low.value >> gap))
    return _registered(m, _Term(total, low.shift, low.low + (high.low << gap), low.high + (high.high << gap)), name)


def _registered(m: Module, term: _Term, name: str) -> _Term:
    register = Signal(term.shape, name=name, reset_less=True)
    m.d.sync += register.eq(term.value)
    return _Term(register, term.shift, term.low, term.high)
