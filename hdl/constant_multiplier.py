"""Constant multiplier: a tree of adders, one for each digit of the constant but the first."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["ConstantMultiplier", "ConstantMultiplierParams"]


@dataclass(frozen=True, slots=True)
class ConstantMultiplierParams:
    """``o = factor · i`` for a constant ``factor`` of at least 0.

    The factor is written with the digits −1, 0 and 1, never two nonzero ones side by side: no other such form has fewer, at
    most half its bits. The samples times its digits are added in pairs, one adder between two registers.

    *Timing* ``latency`` 1 cycle for each level of the tree, ``ceil(log2(digits))``, so 0 for a power of two; ``ii`` 1 cycle.
    *Parameters* ``in_bits``: signed width of ``i``.
    *Raises* ``ValueError`` for a negative factor.
    *Source* G. W. Reitwiesner, "Binary Arithmetic", Advances in Computers 1 (1960): the nonadjacent form.
    """

    in_bits: int
    factor: int

    def __post_init__(self) -> None:
        if self.factor < 0:
            raise ValueError(f"factor must be at least 0, not {self.factor!r}")

    @property
    def digits(self) -> tuple[tuple[int, int], ...]:
        """(place, sign) of the nonzero digits, least significant first; the last sign is 1."""
        found = []
        place, left = 0, self.factor
        while left:
            if left & 1:
                sign = 2 - (left & 3)
                found.append((place, sign))
                left -= sign
            place, left = place + 1, left >> 1
        return tuple(found)

    def product_bits(self, factor: int) -> int:
        """Signed width of every product of a sample with ``factor`` or a smaller one."""
        return ((factor << (self.in_bits - 1)) - 1).bit_length() + 1 if factor else 1

    @property
    def out_bits(self) -> int:
        return self.product_bits(self.factor)

    @property
    def latency(self) -> int:
        return max(len(self.digits) - 1, 0).bit_length()

    @property
    def ii(self) -> int:
        return 1

    def reference(self, sample: int) -> int:
        return self.factor * sample

    def create(self) -> ConstantMultiplier:
        return ConstantMultiplier(self)


@dataclass(frozen=True, slots=True)
class _Term:
    """``sign · (value << place)``, where ``value`` is ``factor`` times the sample, and ``factor`` positive."""

    value: Value
    factor: int
    place: int
    sign: int


class ConstantMultiplier(wiring.Component):
    """See `ConstantMultiplierParams`. There is no enable: the pipeline runs freely."""

    def __init__(self, params: ConstantMultiplierParams) -> None:
        self.params = params
        super().__init__({"i": In(signed(params.in_bits)), "o": Out(signed(params.out_bits))})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        terms = [_Term(self.i, 1, place, sign) for place, sign in self.params.digits]
        if not terms:
            return m
        for level in range(self.params.latency):
            pairs = [terms[n : n + 2] for n in range(0, len(terms), 2)]
            terms = [self._registered(m, pair, f"sum_{level}_{n}") for n, pair in enumerate(pairs)]
        (product,) = terms
        m.d.comb += self.o.eq(Cat(Const(0, product.place), product.value).as_signed())
        return m

    def _registered(self, m: Module, pair: list[_Term], name: str) -> _Term:
        """The sum of two neighbours, or what has no neighbour, one cycle later; the sign is that of the higher one."""
        low, high = pair[0], pair[-1]
        factor, value = low.factor, low.value
        if len(pair) == 2:
            places = high.place - low.place
            factor = (high.factor << places) + low.sign * high.sign * low.factor
            if low.sign == high.sign:
                extended = Cat(low.value, low.value[-1].replicate(max(places - len(low.value), 0)))
                value = Cat(extended[:places], high.value + (low.value >> places)).as_signed()
            else:
                value = Cat(Const(0, places), high.value).as_signed() - low.value
        register = Signal(signed(self.params.product_bits(factor)), name=name, reset_less=True)
        m.d.sync += register.eq(value)
        return _Term(register, factor, low.place, high.sign)
