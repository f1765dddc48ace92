"""Requantizer: from accumulators to the next layer's integers, rectifier included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .border import BorderWalkParams
from .rom import RomParams
from .streams import add_mod, delay

__all__ = ["Requantizer", "RequantizerParams"]

MULTIPLIER_BITS = 17
TABLE_CYCLES = 3  # address register and ROM


@dataclass(frozen=True, slots=True)
class RequantizerParams:
    """``y = clamp(((acc + b)·m + 2**(s−1)) >> s) + zero_point, low, high)`` with an unsigned 17-bit ``m`` per channel.

    Sums arrive ``slots`` a pixel, of which the first ``words`` are channels and the rest fill the last pass: those are dropped.
    The constants follow the order of arrival, so no index comes with the sums; ``walk`` chooses the bias of each pixel's
    border class. A rectifier is ``low`` and ``high``.

    The product is made by shift and add, least significant digit first: ``serial`` reuses one adder for 17 cycles, otherwise
    nine stages take two bits each and a sum is accepted every cycle.

    *Timing* ``ii`` 18 cycles (serial) or 1; ``latency`` 24 or 15 cycles from sum to result.
    *Parameters* ``acc_bits``: signed width that holds every sum with and without its bias.
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

    def __post_init__(self) -> None:
        if not 1 <= self.words <= self.slots:
            raise ValueError(f"words must be 1 to {self.slots}, not {self.words!r}")
        if self.shift < 1:
            raise ValueError(f"shift must be at least 1, not {self.shift!r}")
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, not {(self.low, self.high)!r}")

    @property
    def digit_bits(self) -> int:
        return 1 if self.serial else 2

    @property
    def digits(self) -> int:
        return -(-MULTIPLIER_BITS // self.digit_bits)

    @property
    def ii(self) -> int:
        return self.digits + 1 if self.serial else 1

    @property
    def latency(self) -> int:
        """Table, bias, (load,) digits, rounding, clamping."""
        return TABLE_CYCLES + 1 + self.serial + self.digits + 2

    def reference(self, acc: int, bias: int, multiplier: int) -> int:
        scaled = ((acc + bias) * multiplier + (1 << (self.shift - 1))) >> self.shift
        return min(max(scaled + self.zero_point, self.low), self.high)

    def create(self, multipliers: Sequence[int], biases: Sequence[Sequence[int]]) -> Requantizer:
        return Requantizer(self, multipliers, biases)


class Requantizer(wiring.Component):
    """See `RequantizerParams`; ``multipliers[word]`` and ``biases[class][word]``."""

    def __init__(
        self, params: RequantizerParams, multipliers: Sequence[int], biases: Sequence[Sequence[int]]
    ) -> None:
        self.params = params
        self.multipliers = [int(multiplier) for multiplier in multipliers]
        self.biases = [int(bias) for line in biases for bias in line]
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
        total, multiplier, valid = self._constants(m)
        if p.serial:
            high, low, done = self._serial(m, total, multiplier, valid)
        else:
            high, low, done = self._pipelined(m, total, multiplier, valid)

        taken = p.digits * p.digit_bits
        if self._rounds_late:
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
        m.d.comb += [self.o.eq(clamped), self.o_valid.eq(delay(m, done, 2, "valid"))]
        return m

    @property
    def _rounding(self) -> int:
        """What is added before the shift: one half, and the zero point."""
        return (1 << (self.params.shift - 1)) + (self.params.zero_point << self.params.shift)

    @property
    def _rounds_late(self) -> bool:
        """Whether all product bits below the rounding constant are gone when the digits are done (the usual case)."""
        return self.params.digits * self.params.digit_bits <= self.params.shift - 1

    @property
    def _start(self) -> int:
        return 0 if self._rounds_late else self._rounding

    @property
    def _high_bits(self) -> int:
        return max(self.params.acc_bits, self._start.bit_length() + 1) + 1

    def _constants(self, m: Module) -> tuple[Signal, Value, Value]:
        """Look up the constants of each sum; returns sum plus bias, multiplier, valid."""
        p = self.params
        slot = Signal(range(p.slots))
        m.submodules.walk = walk = replace(p.walk, scale=p.words).create()
        m.d.comb += walk.i_next.eq(self.i_valid & (slot == p.slots - 1))
        with m.If(self.i_valid):
            m.d.sync += slot.eq(add_mod(slot, 1, p.slots))
        keep = self.i_valid & (slot < p.words)

        factor_table = RomParams(MULTIPLIER_BITS, p.words, p.memory)
        bias_table = RomParams(p.acc_bits, p.words * p.walk.count, p.memory)
        mask = (1 << p.acc_bits) - 1
        m.submodules.factors = factors = factor_table.create(self.multipliers)
        m.submodules.biases = biases = bias_table.create([bias & mask for bias in self.biases])
        factor_address = Signal(range(p.words), reset_less=True)
        bias_address = Signal(range(p.words * p.walk.count), reset_less=True)
        m.d.sync += [factor_address.eq(slot), bias_address.eq(walk.o + slot)]
        m.d.comb += [factors.i_addr.eq(factor_address), biases.i_addr.eq(bias_address)]

        acc = delay(m, self.i, TABLE_CYCLES, "acc", reset_less=True).as_signed()
        total = Signal(signed(p.acc_bits), reset_less=True)
        multiplier = Signal(MULTIPLIER_BITS, reset_less=True)
        m.d.sync += [total.eq(acc + biases.o.as_signed()), multiplier.eq(factors.o)]
        return total, multiplier, delay(m, keep, TABLE_CYCLES + 1, "keep")

    def _pipelined(self, m: Module, total: Signal, multiplier: Value, valid: Value) -> tuple[Value, Value, Value]:
        p = self.params
        high: Value = Const(self._start, signed(self._high_bits))
        low: Value = Const(0, 0)
        term: Value = total
        for n in range(p.digits):
            digit = multiplier[: p.digit_bits]
            added = high + sum((Mux(digit[k], term << k, 0) for k in range(len(digit))), Const(0))
            next_high = Signal(signed(self._high_bits), name=f"high_{n}", reset_less=True)
            next_low = Signal((n + 1) * p.digit_bits, name=f"low_{n}", reset_less=True)
            next_term = Signal(signed(p.acc_bits), name=f"term_{n}", reset_less=True)
            next_multiplier = Signal(max(MULTIPLIER_BITS - (n + 1) * p.digit_bits, 0), name=f"factor_{n}", reset_less=True)
            m.d.sync += [
                next_high.eq(added[p.digit_bits :].as_signed()),
                next_low.eq(Cat(low, added[: p.digit_bits])),
                next_term.eq(term),
                next_multiplier.eq(multiplier[p.digit_bits :]),
            ]
            high, low, term, multiplier = next_high, next_low, next_term, next_multiplier
        return high, low, delay(m, valid, p.digits, "multiplied")

    def _serial(self, m: Module, total: Signal, multiplier: Value, valid: Value) -> tuple[Value, Value, Value]:
        p = self.params
        high = Signal(signed(self._high_bits), reset_less=True)
        low = Signal(MULTIPLIER_BITS, reset_less=True)
        term = Signal(signed(p.acc_bits), reset_less=True)
        factor = Signal(MULTIPLIER_BITS, reset_less=True)
        left = Signal(range(p.digits + 1))
        done = Signal()
        added = high + Mux(factor[0], term, 0)
        with m.If(valid):
            m.d.sync += [high.eq(self._start), term.eq(total), factor.eq(multiplier)]
        with m.Else():
            m.d.sync += [high.eq(added[1:].as_signed()), low.eq(Cat(low[1:], added[0])), factor.eq(factor[1:])]
        m.d.sync += done.eq(left == 1)
        with m.If(valid):
            m.d.sync += left.eq(p.digits)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        return high, low, done
