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
TABLE_CYCLES = 3
"""From reset to the constants of the first sum: address register and ROM."""


@dataclass(frozen=True, slots=True)
class RequantizerParams:
    """``y = clamp((((acc + b)·m + offset) >> shift) + zero_point, low, high)`` with an unsigned ``m`` per channel.

    ``offset`` is ``2**(shift−1)``: half up. ``split`` gives every channel two of its own, ``positive`` for ``acc + b >= 0`` and
    ``negative`` for the rest: other roundings, ties and scales than ``m / 2**shift`` come down to them. All but ties to even,
    which are left to `TiesParams`: of the kind ``ties``, known by ``tie_bits``.

    Sums arrive ``slots`` a pixel, of which the first ``words`` are channels and the rest fill the last pass: those are dropped.
    The constants follow the order of arrival, so no index comes with the sums; ``walk`` chooses the bias of each pixel's
    border class, and with ``by_class`` the multiplier and its offsets, too. A rectifier is ``low`` and ``high``.

    The product is made of the ``digits`` of ``acc + b`` in base 4, which are −1, 0, 1 and 2, so that a multiple of ``m`` is one
    look-up table a bit: ``unit_digits`` at a time, least significant first, and a tree of adders brings them together. They are
    the plain digits of the sum, less 1, after 1 is added to each: that is ``(4**digits − 1) / 3``, and part of the bias.

    *Timing* ``ii`` cycles from sum to sum; the first one comes `TABLE_CYCLES` after the reset, or later. ``latency`` cycles
    from sum to result: one a step, one a level of the tree, and 5 to 9.
    *Parameters* ``acc_bits``: signed width that holds every sum with and without its bias; ``offset_bits``: signed width of
    the offsets in tables less ``2**(shift−1)``, of which the lowest ``offset_shift`` bits are 0 and not stored; ``positive``,
    ``negative``: offsets that all channels have in common, and in no table (the first only with the second); ``uniform``: the
    channels have all constants in common, one word a class.
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
    ii: int = 1
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
        if self.ii < 1:
            raise ValueError(f"ii must be at least 1, not {self.ii!r}")
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
        span = self.high - self.low
        in_bits = max(self._total_bits, self.shift + 1) + 1
        return TiesParams(in_bits, self.shift, self.ties, self.tie_bits, 0, span, self.zero_point - self.low)

    @property
    def digits(self) -> int:
        """Of any sum: the least such that ``−(4**digits − 1) / 3`` is no greater than the least sum."""
        return self.acc_bits // 2 + 1

    @property
    def unit_digits(self) -> int:
        """Digits a step."""
        return -(-self.digits // self.ii)

    @property
    def steps(self) -> int:
        return -(-self.digits // self.unit_digits)

    @property
    def levels(self) -> int:
        """Registers from the digits of a step to the sum of their multiples: the multiples, and a tree of adders.

        ``m`` goes to every digit: its wires are long, so nothing but the look-up tables comes behind them.
        """
        return 1 + (self.unit_digits - 1).bit_length()

    @property
    def latency(self) -> int:
        """Wait for tables, bias, (choice of digits,) tree, a step each, rounding, (ties,) clamping."""
        rounding = self.rounding.latency if self.rounding else 0
        return self._wait + 1 + self._picks + self.levels + self.steps + 1 + rounding + 1

    # Cycles: a sum comes in cycle 0, its bias is added in cycle `wait`, its first digits are ready `1 + picks` cycles later.
    # In cycle `moves` the index of the next sum's constants is on its way; TABLE_CYCLES + 1 later its bias is at hand, and the
    # other constants `lag` cycles after that, when the last digits of this sum are done with theirs.

    @property
    def _wait(self) -> int:
        return max(TABLE_CYCLES + 1 - self.ii, 0)

    @property
    def _picks(self) -> int:
        return int(self.steps > 1)

    @property
    def _moves(self) -> int:
        return max(self._wait + self.steps - TABLE_CYCLES - 1, 0)

    @property
    def _lag(self) -> int:
        return max(self._wait + self._picks + self.steps - TABLE_CYCLES - self._moves, 0)

    @property
    def _preloads(self) -> bool:
        """Whether the accumulator has a cycle to itself before the first step."""
        return 1 < self.steps < self.ii

    @property
    def _half(self) -> int:
        return 1 << self.shift >> 1

    @property
    def _offset_range(self) -> tuple[int, int]:
        """Offsets less one half, the least and the most."""
        reach = [offset - self._half for offset in (self.positive, self.negative) if offset is not None]
        if self.offset_tables:
            bound = 1 << self.offset_bits + self.offset_shift - 1
            reach += [-bound, bound - (1 << self.offset_shift)]
        return min(reach, default=0), max(reach, default=0)

    @property
    def _acc_range(self) -> tuple[int, int]:
        """What the accumulator holds after any step."""
        most = ((1 << self.multiplier_bits) - 1) * (4**self.unit_digits)
        low, high = self._offset_range
        ranges = [(min(low, 0) - most // 3 - 1, max(high, 0) + 2 * most // 3 + 1)]
        if self._preloads:
            ranges.append((low << 2 * self.unit_digits, high << 2 * self.unit_digits))
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    @property
    def _total_bits(self) -> int:
        """Signed width of the accumulator after the last step, and what was shifted out of it."""
        return _signed_bits(*self._acc_range) + 2 * self.unit_digits * (self.steps - 1)

    @property
    def one_sided(self) -> bool:
        """Whether sums below zero come out as ``low`` with either offset, so that they need none of their own."""
        most = self._half + self._offset_range[1]
        return not self.split or (self.ties == "none" and self.zero_point <= self.low and most < 1 << self.shift)

    @property
    def class_words(self) -> int:
        """Constants a border class."""
        return 1 if self.uniform else self.words

    @property
    def offset_tables(self) -> int:
        """How many offsets each multiplier comes with."""
        return [self.positive, self.negative].count(None) if self.split else 0

    @property
    def factor_table(self) -> RomParams:
        """Multipliers, each with its offsets."""
        depth = self.class_words * (self.walk.count if self.by_class else 1)
        return RomParams(self.multiplier_bits + self.offset_tables * self.offset_bits, depth, self.memory)

    @property
    def bias_table(self) -> RomParams:
        return RomParams(2 * self.digits, self.class_words * self.walk.count, self.memory)

    def reference(
        self, acc: int, bias: int, multiplier: int, positive: int | None = None, negative: int | None = None
    ) -> int:
        table, constant = (positive, self.positive) if acc + bias >= 0 else (negative, self.negative)
        given = [offset for offset in (table, constant) if offset is not None]
        offset = given[0] if given else 1 << (self.shift - 1)
        total = (acc + bias) * multiplier + offset
        scaled = self.rounding.reference(total) + self.low if self.rounding else (total >> self.shift) + self.zero_point
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
            words = _words(name, offsets, depth, range(self._half - bound, self._half + bound, step))
            stored = [(word - self._half) // step & (1 << self.offset_bits) - 1 for word in words]
            factors = [factor | word << place for factor, word in zip(factors, stored, strict=True)]
            place += self.offset_bits
        ones = (4**self.digits - 1) // 3
        return Requantizer(self, factors, [(int(bias) + ones) % 4**self.digits for bias in np.ravel(biases)])


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
        came = delay(m, self.i_valid, p._wait, "came")
        acc = delay(m, self.i, p._wait, "acc", reset_less=True).as_signed()

        step = Signal(range(max(p.steps, 2)))
        busy = Signal()
        last = step == p.steps - 1
        with m.If(came):
            m.d.sync += [busy.eq(1), step.eq(0)]
        with m.Elif(last | (p.steps == 1)):
            m.d.sync += busy.eq(0)
        with m.Else():
            m.d.sync += step.eq(step + 1)
        moves = busy & (step == p._moves - 1) if p._moves else self.i_valid
        bias, factor, offsets, keep = self._look_up(m, moves)

        total = Signal(2 * p.digits, reset_less=True)
        keep = delay(m, keep, p._wait, "keep")
        kept = Signal()
        with m.If(came):
            m.d.sync += [total.eq(acc + bias), kept.eq(keep)]
        product, owed = self._multiply(m, self._pick(m, total, step), factor)
        to_add = p._picks + p.levels

        to_start = to_add - p._preloads
        start: Value = offsets[0]
        if not p.one_sided:
            below = delay(m, total < (4**p.digits - 1) // 3, to_start, "below", reset_less=True)
            start = Mux(below, offsets[1], offsets[0])

        result = Signal(signed(_signed_bits(*p._acc_range)), reset_less=True)
        before = result >> 2 * p.unit_digits
        if p._preloads:
            with m.If(delay(m, busy, to_add, "adds")):
                m.d.sync += result.eq(_sum(before, product, owed))
            with m.Else():
                m.d.sync += result.eq(start << 2 * p.unit_digits)
        elif p.steps > 1:
            first = delay(m, step == 0, to_add, "first", reset_less=True)
            m.d.sync += result.eq(_sum(Mux(first, start, before), product, owed))
        else:
            m.d.sync += result.eq(_sum(start, product, owed))

        out_bits = 2 * p.unit_digits * (p.steps - 1)
        out = Signal(out_bits, reset_less=True)
        if out_bits:
            m.d.sync += out.eq(Cat(out, result)[2 * p.unit_digits :])
        self._round(m, Cat(out, result).as_signed())
        rounding = p.rounding.latency if p.rounding else 0
        done = delay(m, busy & last & kept if p.steps > 1 else busy & kept, to_add + 1 + 1 + rounding + 1, "valid")
        m.d.comb += self.o_valid.eq(done)
        return m

    def _look_up(self, m: Module, moves: Value) -> tuple[Value, Value, list[Value], Value]:
        """The constants of the sum at hand: bias, multiplier, offsets less one half; and whether it is a channel's."""
        p = self.params
        slot = Signal(range(p.slots))
        m.submodules.walk = walk = replace(p.walk, scale=p.class_words).create()
        m.d.comb += walk.i_next.eq(moves & (slot == p.slots - 1))
        with m.If(moves):
            m.d.sync += slot.eq(add_mod(slot, 1, p.slots))

        m.submodules.factors = factors = p.factor_table.create(self.factors)
        m.submodules.biases = biases = p.bias_table.create(self.biases)
        word = Const(0, 0) if p.uniform else slot
        for name, table, by_class, lag in (("factor", factors, p.by_class, p._lag), ("bias", biases, True, 0)):
            address = Signal.like(table.i_addr, name=f"{name}_address", reset_less=True)
            m.d.sync += address.eq(walk.o + word if by_class else word)
            m.d.comb += table.i_addr.eq(delay(m, address, lag, f"{name}_address", reset_less=True))

        late = p._wait + p._picks + p.levels - p._preloads - (TABLE_CYCLES - 1) - p._moves - p._lag
        stored = delay(m, factors.o[p.multiplier_bits :], max(late, 0), "offsets", reset_less=True)
        offsets: list[Value] = []
        for constant in (p.positive, p.negative) if p.split else (p._half, p._half):
            if constant is None:
                offsets.append(Cat(Const(0, p.offset_shift), stored[: p.offset_bits]).as_signed())
                stored = stored[p.offset_bits :]
            else:
                less = constant - p._half
                offsets.append(Const(less, signed(_signed_bits(less, less))))
        return biases.o, factors.o[: p.multiplier_bits], offsets, slot < p.words

    def _pick(self, m: Module, total: Value, step: Value) -> list[Value]:
        """The digits of each step, plus 1."""
        p = self.params
        count = p.unit_digits * p.steps
        digits = [total[2 * n : 2 * n + 2] for n in range(p.digits)] + [Const(1, 2)] * (count - p.digits)
        if p.steps == 1:
            return digits
        picked = [Signal(2, name=f"digit_{n}", reset_less=True) for n in range(p.unit_digits)]
        with m.Switch(step):
            for n in range(p.steps):
                with m.Case(n) if n < p.steps - 1 else m.Default():
                    m.d.sync += Cat(picked).eq(Cat(digits[n * p.unit_digits : (n + 1) * p.unit_digits]))
        return list(picked)

    def _multiply(self, m: Module, digits: list[Value], factor: Value) -> tuple[Value, Value]:
        """``factor`` times the digits, less a 1 that is owed; a complement is one less than the negative."""
        p = self.params
        terms = []
        for n, digit in enumerate(digits):
            value = Signal(signed(p.multiplier_bits + 2), name=f"multiple_{n}", reset_less=True)
            owed = Signal(name=f"owed_{n}", reset_less=True)
            with m.Switch(digit):
                with m.Case(0):
                    m.d.sync += value.eq(~Cat(factor, Const(0)).as_signed())
                with m.Case(1):
                    m.d.sync += value.eq(0)
                with m.Case(2):
                    m.d.sync += value.eq(factor)
                with m.Case(3):
                    m.d.sync += value.eq(factor << 1)
            m.d.sync += owed.eq(digit == 0)
            terms.append((value, owed))
        places, level = 2, 0
        while len(terms) > 1:
            sums = []
            for n in range(0, len(terms), 2):
                value, owed = terms[n]
                if n + 1 < len(terms):
                    higher, higher_owed = terms[n + 1]
                    shifted = Cat(higher_owed.replicate(places), higher).as_signed()
                    value = _sum(value, shifted, higher_owed)
                    count = min(len(digits) - n * places // 2, places)
                    value = value[: p.multiplier_bits + 2 * count + 1].as_signed()
                registers = (
                    Signal(value.shape(), name=f"sum_{level}_{n // 2}", reset_less=True),
                    Signal(name=f"owed_{level}_{n // 2}", reset_less=True),
                )
                m.d.sync += [registers[0].eq(value), registers[1].eq(owed)]
                sums.append(registers)
            terms, places, level = sums, 2 * places, level + 1
        return terms[0]

    def _round(self, m: Module, total: Value) -> None:
        """One half, the zero point and the limits; in place of these 0 and their distance: less to compare with."""
        p = self.params
        place = max(p.shift - 1, 0)
        zero_point = 0 if p.rounding else p.zero_point - p.low
        constant = (p._half >> place) + (zero_point << p.shift - place)
        high = total.shift_right(place) + constant
        rounded = Signal(signed(place + len(high)), reset_less=True)
        m.d.sync += rounded.eq(Cat(total[:place], high))
        if p.rounding:
            m.submodules.ties = ties = p.rounding.create()
            m.d.comb += ties.i.eq(rounded)
            above: Value = ties.o
        else:
            above = rounded.shift_right(p.shift)
        span = p.high - p.low
        bits = span.bit_length()
        missing = max(bits + 1 - len(above), 0)  # where all that can come is within the limits
        above = Cat(above, above[-1].replicate(missing))
        over = above[bits:-1].any()
        if span + 1 < 1 << bits:
            over |= above[:bits] > span
        inside = Mux(above[-1], 0, Mux(over, span, above[:bits]))
        clamped = Signal(Shape(p.out_bits, p.out_signed), reset_less=True)
        m.d.sync += clamped.eq(inside ^ p.low if bits == p.out_bits and p.low == -(1 << bits - 1) else inside + p.low)
        m.d.comb += self.o.eq(clamped)


def _sum(a: Value, b: Value, carry: Value) -> Value:
    """``a + b + carry``, all in one adder."""
    return (Cat(Const(1, 1), a).as_signed() + Cat(carry, b).as_signed())[1:].as_signed()


def _signed_bits(low: int, high: int) -> int:
    return max((~low if low < 0 else 0).bit_length(), max(high, 0).bit_length()) + 1
