"""Ties: what a shift does not round as it should, halfway between two integers or next to it."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["TIES", "Ties", "TiesParams"]

TIES = ("none", "even", "float32")
CHUNK_BITS = 4
"""What one look-up table compares."""


@dataclass(frozen=True, slots=True)
class TiesParams:
    """``o = h + zero_point``, where ``h = i >> shift`` if that is even, or if the bits shifted out, ``r``, are not near a tie.

    An odd ``h`` becomes an even one:

    - ``kind`` "even": ``h - 1`` where the ``bits`` highest of ``r`` are all zero.
    - ``kind`` "float32": ``h - 1`` where the ``bits - j`` highest of ``r`` are all zero, ``h + 1`` where they are all one.
      ``2**j`` is the power of two next below ``|h - 1/2|`` or ``|h + 1/2|``, whichever is the tie. So with half added before
      the shift, numbers are first rounded to ``bits`` significant bits, and then half to even.

    *Timing* ``latency`` 2 cycles, the comparisons and their outcome; ``ii`` 1 cycle.
    *Parameters* ``in_bits``: signed width of ``i``; ``low`` and ``high``: of outputs beyond them only that is right.
    *Raises* ``ValueError`` for more bits than are shifted out, or fewer than the limits take.
    """

    in_bits: int
    shift: int
    kind: str
    bits: int
    low: int
    high: int
    zero_point: int = 0

    def __post_init__(self) -> None:
        if self.kind not in TIES[1:]:
            raise ValueError(f"kind must be one of {TIES[1:]}, not {self.kind!r}")
        least, most = (self.top_exponent + 1, self.shift - 1) if self.kind == "float32" else (1, self.shift)
        if not least <= self.bits <= most:
            raise ValueError(f"bits must be {least} to {most}, not {self.bits!r}")

    @property
    def top_exponent(self) -> int:
        """The greatest ``j``."""
        return (max(abs(self.low - self.zero_point), abs(self.high - self.zero_point)) + 1).bit_length() - 1

    @property
    def out_bits(self) -> int:
        return max(self.in_bits - self.shift, self.zero_point.bit_length() + 1) + 2

    @property
    def latency(self) -> int:
        return 2

    @property
    def ii(self) -> int:
        return 1

    def reference(self, total: int) -> int:
        h, out = total >> self.shift, total % (1 << self.shift)
        if h % 2:
            up = self.kind == "float32" and out >> (self.shift - 1)
            twice = 2 * h + 1 if up else 2 * h - 1
            bits = self.bits - (abs(twice).bit_length() - 2) if self.kind == "float32" else self.bits
            if (~out if up else out) % (1 << self.shift) >> (self.shift - max(bits, 1)) == 0:
                h += 1 if up else -1
        return h + self.zero_point

    def create(self) -> Ties:
        return Ties(self)


class Ties(wiring.Component):
    """See `TiesParams`. There is no enable: the pipeline runs freely."""

    def __init__(self, params: TiesParams) -> None:
        self.params = params
        super().__init__({"i": In(signed(params.in_bits)), "o": Out(signed(params.out_bits))})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        h = Signal(signed(max(p.in_bits - p.shift, p.top_exponent + 2)))
        out = Signal(p.shift)
        m.d.comb += [h.eq(self.i.shift_right(p.shift)), out.eq(self.i)]
        up = out[-1] if p.kind == "float32" else Const(0, 1)
        needed = [h[0], *(self._float32(h, out) if p.kind == "float32" else self._even(out))]

        conditions = Signal(len(needed), reset_less=True)
        moves_up = Signal(reset_less=True)
        plain = Signal(signed(p.out_bits - 1), reset_less=True)
        m.d.sync += [conditions.eq(Cat(needed)), moves_up.eq(up), plain.eq(h + p.zero_point)]
        near = conditions.all()
        m.d.sync += self.o.eq(plain + Cat(near, near & ~moves_up).as_signed())
        return m

    def _even(self, out: Value) -> list[Value]:
        top = out[len(out) - self.params.bits :]
        return [~top[n : n + CHUNK_BITS].any() for n in range(0, len(top), CHUNK_BITS)]

    def _float32(self, h: Value, out: Value) -> list[Value]:
        """The bits that every ``j`` needs are alike; each other one is like the first, or ``j`` is too great to need it."""
        p = self.params
        common = p.bits - p.top_exponent
        top = out[len(out) - common :]
        alike = [top[n : n + CHUNK_BITS] for n in range(0, max(common - 1, 1), CHUNK_BITS - 1)]
        conditions: list[Value] = [chunk.all() | ~chunk.any() for chunk in alike]
        up, sign = out[-1], h[-1]
        magnitude = h[: p.top_exponent + 1] ^ sign.replicate(p.top_exponent + 1)  # of odd numbers; 1 less where negative
        for j in range(-1, p.top_exponent):
            greater = magnitude[j + 1 :].any() if j >= 0 else magnitude[1:].any() | (up ^ sign)  # |h| = 1 has two of its own
            conditions.append(greater | ~(out[len(out) - (p.bits - j)] ^ up))
        return conditions
