"""Requantizer: from accumulators to the next layer's integers, rectifier included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import ArrayLike

from .border import BorderWalkParams
from .rom import RomParams
from .streams import add_mod, delay
from .ties import TiesParams

__all__ = ["Requantizer", "RequantizerParams"]

MULTIPLIER_BITS = 17
MOST_MULTIPLIER_BITS = 40
TABLE_CYCLES = 3  # address register and ROM


@dataclass(frozen=True, slots=True)
class RequantizerParams:
    """``y = clamp((((acc + b)·m + offset) >> shift) + zero_point, low, high)`` with an unsigned ``m`` per channel.

    ``offset`` is ``2**(shift−1)``: half up. ``split`` gives every channel two of its own, ``positive`` for ``acc + b >= 0`` and
    ``negative`` for the rest: other roundings, ties and scales than ``m / 2**shift`` come down to them. All but ties to even,
    which are left to `TiesParams`: of the kind ``ties``, known by ``tie_bits``.

    Sums arrive ``slots`` a pixel, of which the first ``words`` are channels and the rest fill the last pass: those are dropped.
    The constants follow the order of arrival, so no index comes with the sums; ``walk`` chooses the bias of each pixel's
    border class, and with ``by_class`` the multiplier and its offsets, too. A rectifier is ``low`` and ``high``.

    The product is made by shift and add, least significant digit first: ``serial`` reuses one adder for a cycle a bit,
    otherwise every stage takes two bits and a sum is accepted every cycle.

    *Timing* ``ii`` 1 cycle, or ``multiplier_bits + 1`` (serial). ``latency`` from sum to result: 6 cycles, one a digit, and one
    more if serial or split, and one more for ties; for 17 bits 15 cycles, or 24 (serial).
    *Parameters* ``acc_bits``: signed width that holds every sum with and without its bias; ``offset_bits``: signed width of
    the offsets in tables, of which the lowest ``offset_shift`` bits are 0 and not stored; ``positive``, ``negative``: offsets
    that all channels have in common, and in no table (the first only with the second); ``uniform``: the channels have all
    constants in common, one word a class.
    *Raises* ``ValueError`` for impossible sizes, and for constants that do not fit them.
    """

    slots: int
    words: int
    walk: BorderWalkParams
    acc_bits: int
    out_bits: int
    out_signed: bool
    shift: int
    low: int
    high: int
    zero_point: int = 0
    serial: bool = False
    memory: str = "behavioural"
    multiplier_bits: int = MULTIPLIER_BITS
    split: bool = False
    offset_bits: int = 0
    by_class: bool = False
    offset_shift: int = 0
    positive: int | None = None
    negative: int | None = None
    uniform: bool = False
    ties: str = "none"
    tie_bits: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.words <= self.slots:
            raise ValueError(f"words must be 1 to {self.slots}, not {self.words!r}")
        if self.shift < (not self.split):
            raise ValueError(f"shift must be at least {int(not self.split)}, not {self.shift!r}")
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, not {(self.low, self.high)!r}")
        if not 1 <= self.multiplier_bits <= MOST_MULTIPLIER_BITS:
            raise ValueError(f"multiplier_bits must be 1 to {MOST_MULTIPLIER_BITS}, not {self.multiplier_bits!r}")
        if not self.split and (self.positive, self.negative) != (None, None):
            raise ValueError(f"positive and negative must be None unless split, not {(self.positive, self.negative)!r}")
        if self.positive is not None and self.negative is None:
            raise ValueError(f"positive must be None if negative is, not {self.positive!r}")
        if (self.offset_bits > 0) != (self.offset_tables > 0):
            raise ValueError(f"offset_bits must be positive if offsets are in tables and 0 if not, not {self.offset_bits!r}")
        _ = self.rounding

    @property
    def rounding(self) -> TiesParams | None:
        """What makes ties even; *raises* ``ValueError`` for bits without it."""
        if self.ties == "none":
            if self.tie_bits:
                raise ValueError(f"tie_bits must be 0 without ties, not {self.tie_bits!r}")
            return None
        total_bits = max(self.acc_bits + self.multiplier_bits, self.start_bits, self.shift + 1) + 1
        return TiesParams(total_bits, self.shift, self.ties, self.tie_bits, self.low, self.high, self.zero_point)

    @property
    def digit_bits(self) -> int:
        return 1 if self.serial else 2

    @property
    def digits(self) -> int:
        return -(-self.multiplier_bits // self.digit_bits)

    @property
    def ii(self) -> int:
        return self.digits + 1 if self.serial else 1

    @property
    def latency(self) -> int:
        """Table, bias, (load, or choice of the offset,) digits, rounding (and ties), clamping."""
        rounding = self.rounding.latency if self.rounding else 1
        return TABLE_CYCLES + 1 + (self.serial or self.split) + self.digits + rounding + 1

    @property
    def class_words(self) -> int:
        """Constants a border class."""
        return 1 if self.uniform else self.words

    @property
    def offset_tables(self) -> int:
        """How many offsets each multiplier comes with."""
        return [self.positive, self.negative].count(None) if self.split else 0

    @property
    def start_bits(self) -> int:
        """Signed width of the offsets where split."""
        constants = (offset.bit_length() + 1 for offset in (self.positive, self.negative) if offset is not None)
        return max(self.offset_bits + self.offset_shift, *constants, 1) if self.split else 0

    @property
    def factor_table(self) -> RomParams:
        """Multipliers, each with its offsets."""
        depth = self.class_words * (self.walk.count if self.by_class else 1)
        return RomParams(self.multiplier_bits + self.offset_tables * self.offset_bits, depth, self.memory)

    @property
    def bias_table(self) -> RomParams:
        return RomParams(self.acc_bits, self.class_words * self.walk.count, self.memory)

    def reference(
        self, acc: int, bias: int, multiplier: int, positive: int | None = None, negative: int | None = None
    ) -> int:
        table, constant = (positive, self.positive) if acc + bias >= 0 else (negative, self.negative)
        given = [offset for offset in (table, constant) if offset is not None]
        offset = given[0] if given else 1 << (self.shift - 1)
        total = (acc + bias) * multiplier + offset
        scaled = self.rounding.reference(total) if self.rounding else (total >> self.shift) + self.zero_point
        return min(max(scaled, self.low), self.high)

    def create(
        self,
        multipliers: ArrayLike,
        biases: ArrayLike,
        positive: ArrayLike | None = None,
        negative: ArrayLike | None = None,
    ) -> Requantizer:
        """Constants are ``biases[class][word]``, the others ``[word]``, or ``[class][word]`` with ``by_class``."""
        tables = [("positive", positive), ("negative", negative)]
        if [offsets is not None for _, offsets in tables] != [n < self.offset_tables for n in range(2)]:
            raise ValueError("positive and negative must be given if in tables, and only then")
        depth, place = self.factor_table.depth_words, self.multiplier_bits
        factors = _words("multipliers", multipliers, depth, range(1 << self.multiplier_bits))
        for name, offsets in tables[: self.offset_tables]:
            bound, step = 1 << self.offset_bits + self.offset_shift - 1, 1 << self.offset_shift
            words = _words(name, offsets, depth, range(-bound, bound, step))
            stored = [word // step & (1 << self.offset_bits) - 1 for word in words]
            factors = [factor | word << place for factor, word in zip(factors, stored, strict=True)]
            place += self.offset_bits
        mask = (1 << self.acc_bits) - 1  # a bias may be wider than the sums with and without it
        return Requantizer(self, factors, [int(bias) & mask for bias in np.ravel(biases)])


def _words(name: str, values: ArrayLike | None, count: int, limits: range) -> list[int]:
    words: list[int] = np.ravel(np.asarray(values, dtype=np.int64)).tolist()
    if len(words) != count or not all(word in limits for word in words):
        every = f"every {limits.step} " if limits.step > 1 else ""
        raise ValueError(f"{name} must be {count} integers {every}from {limits[0]} to {limits[-1]}, not {words!r}")
    return words


class Requantizer(wiring.Component):
    """See `RequantizerParams`; the words of its two tables, unsigned."""

    def __init__(self, params: RequantizerParams, factors: Sequence[int], biases: Sequence[int]) -> None:
        self.params = params
        self.factors = factors
        self.biases = biases
        super().__init__(
            {
                "i_valid": In(1),
                "i": In(signed(params.acc_bits)),
                "o_valid": Out(1),
                "o": Out(Shape(params.out_bits, params.out_signed)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        total, multiplier, start, valid = self._look_up(m)
        multiply = self._serial if p.serial else self._pipelined
        high, low, done = multiply(m, total, multiplier, start, valid)

        taken = p.digits * p.digit_bits
        if p.rounding:
            m.submodules.ties = ties = p.rounding.create()
            m.d.comb += ties.i.eq(Cat(low, high).as_signed())
            scaled: Value = ties.o
        elif p.split:
            scaled = delay(m, Cat(low, high).as_signed().shift_right(p.shift) + p.zero_point, 1, "rounded", reset_less=True)
        elif self._rounds_late:
            constant = self._rounding >> taken
            rounded = Signal(signed(max(len(high), constant.bit_length() + 1) + 1), name="rounded", reset_less=True)
            m.d.sync += rounded.eq(high + constant)
            scaled = rounded[p.shift - taken :].as_signed()
        else:
            rounded = Signal(signed(len(high) + taken), name="rounded", reset_less=True)
            m.d.sync += rounded.eq(Cat(low, high).as_signed())
            scaled = rounded[p.shift :].as_signed()
        clamped = Signal(Shape(p.out_bits, p.out_signed), reset_less=True)
        with m.If(scaled < p.low):
            m.d.sync += clamped.eq(p.low)
        with m.Elif(scaled > p.high):
            m.d.sync += clamped.eq(p.high)
        with m.Else():
            m.d.sync += clamped.eq(scaled)
        m.d.comb += [self.o.eq(clamped), self.o_valid.eq(delay(m, done, p.rounding.latency + 1 if p.rounding else 2, "valid"))]
        return m

    @property
    def _rounding(self) -> int:
        """What is added before the shift: one half, and the zero point if nothing else is to be made of them."""
        zero_point = 0 if self.params.rounding else self.params.zero_point
        return (1 << (self.params.shift - 1)) + (zero_point << self.params.shift)

    @property
    def _rounds_late(self) -> bool:
        """Whether all product bits below the rounding constant are gone when the digits are done (the usual case)."""
        return self.params.digits * self.params.digit_bits <= self.params.shift - 1 and not self.params.rounding

    @property
    def _start(self) -> int:
        """What the product begins from, unless split."""
        return 0 if self._rounds_late else self._rounding

    def _high_bits(self, digits: int) -> int:
        """Width of what the digits yet to come are added to, the offset included."""
        p = self.params
        start_bits = p.start_bits if p.split else self._start.bit_length() + 1
        return max(p.acc_bits, start_bits - digits * p.digit_bits) + 1

    def _look_up(self, m: Module) -> tuple[Signal, Value, Value, Value]:
        """Look up the constants of each sum; returns sum plus bias, multiplier, what the product begins from, valid."""
        p = self.params
        slot = Signal(range(p.slots))
        m.submodules.walk = walk = replace(p.walk, scale=p.class_words).create()
        m.d.comb += walk.i_next.eq(self.i_valid & (slot == p.slots - 1))
        with m.If(self.i_valid):
            m.d.sync += slot.eq(add_mod(slot, 1, p.slots))
        keep = self.i_valid & (slot < p.words)

        m.submodules.factors = factors = p.factor_table.create(self.factors)
        m.submodules.biases = biases = p.bias_table.create(self.biases)
        word = Const(0, 0) if p.uniform else slot
        for table, by_class in ((factors, p.by_class), (biases, True)):
            address = Signal.like(table.i_addr, name="address", reset_less=True)
            m.d.sync += address.eq(walk.o + word if by_class else word)
            m.d.comb += table.i_addr.eq(address)

        acc = delay(m, self.i, TABLE_CYCLES, "acc", reset_less=True).as_signed()
        total = Signal(signed(p.acc_bits), reset_less=True)
        constants = delay(m, factors.o, 1, "constants", reset_less=True)
        m.d.sync += total.eq(acc + biases.o.as_signed())
        if p.split:
            offsets: list[Value] = []
            place = p.multiplier_bits
            for constant in (p.positive, p.negative):
                if constant is None:
                    offsets.append(Cat(Const(0, p.offset_shift), constants[place : place + p.offset_bits]).as_signed())
                    place += p.offset_bits
                else:
                    offsets.append(Const(constant, signed(p.start_bits)))
            positive, negative = offsets
            start: Value = Mux(total < 0, negative, positive)
        else:
            start = Const(self._start, signed(self._high_bits(0)))
        return total, constants[: p.multiplier_bits], start, delay(m, keep, TABLE_CYCLES + 1, "keep")

    def _pipelined(
        self, m: Module, total: Value, multiplier: Value, start: Value, valid: Value
    ) -> tuple[Value, Value, Value]:
        p = self.params
        if p.split:  # the choice of the offset takes a stage
            start = delay(m, start, 1, "start", reset_less=True)
            total = delay(m, total, 1, "total", reset_less=True)
            multiplier = delay(m, multiplier, 1, "multiplier", reset_less=True)
            valid = delay(m, valid, 1, "chosen")
        high = start
        low: Value = Const(0, 0)
        term: Value = total
        for n in range(p.digits):
            digit = multiplier[: p.digit_bits]
            added = high + sum((Mux(digit[k], term << k, 0) for k in range(len(digit))), Const(0))
            next_high = Signal(signed(self._high_bits(n + 1)), name=f"high_{n}", reset_less=True)
            next_low = Signal((n + 1) * p.digit_bits, name=f"low_{n}", reset_less=True)
            next_term = Signal(signed(p.acc_bits), name=f"term_{n}", reset_less=True)
            next_multiplier = Signal(max(p.multiplier_bits - (n + 1) * p.digit_bits, 0), name=f"factor_{n}", reset_less=True)
            m.d.sync += [
                next_high.eq(added[p.digit_bits :].as_signed()),
                next_low.eq(Cat(low, added[: p.digit_bits])),
                next_term.eq(term),
                next_multiplier.eq(multiplier[p.digit_bits :]),
            ]
            high, low, term, multiplier = next_high, next_low, next_term, next_multiplier
        return high, low, delay(m, valid, p.digits, "multiplied")

    def _serial(
        self, m: Module, total: Value, multiplier: Value, start: Value, valid: Value
    ) -> tuple[Value, Value, Value]:
        p = self.params
        high = Signal(signed(self._high_bits(0)), reset_less=True)
        low = Signal(p.multiplier_bits, reset_less=True)
        term = Signal(signed(p.acc_bits), reset_less=True)
        factor = Signal(p.multiplier_bits, reset_less=True)
        left = Signal(range(p.digits + 1))
        done = Signal()
        added = high + Mux(factor[0], term, 0)
        with m.If(valid):
            m.d.sync += [high.eq(start), term.eq(total), factor.eq(multiplier)]
        with m.Else():
            m.d.sync += [high.eq(added[1:].as_signed()), low.eq(Cat(low[1:], added[0])), factor.eq(factor[1:])]
        m.d.sync += done.eq(left == 1)
        with m.If(valid):
            m.d.sync += left.eq(p.digits)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        return high, low, done
