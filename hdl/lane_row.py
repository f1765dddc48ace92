"""Lane row: dot products of one lane each, side by side, and the register chain that drains them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Const, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .mac_row import DotParams, pace
from .multiplier import hard_share
from .rom import RomParams
from .streams import beat_layout, delay

__all__ = ["LaneRow", "LaneRowParams"]


@dataclass(frozen=True, slots=True)
class LaneRowParams:
    """``pes`` dot products at once, each of ``taps`` samples of its own a cycle: `MacRowParams` without sharing.

    For every pass, element ``e`` computes ``acc[e] = Σ_steps Σ_taps x[e] · w[e]`` and the row sends the sums out one every
    ``word_cycles``, the last element first. As no element waits for another, all sums of a pass are done in one cycle.
    Without weights (``w_bits`` 0) the samples are only added.

    *Timing* ``ii`` 1 cycle a step; passes have at least ``pes · word_cycles`` steps. The first sum of a pass leaves
    ``latency`` cycles after its last step enters, the others ``word_cycles`` apart. ``i_address`` runs ``address_lead``
    cycles ahead.

    *Parameters* as `MacRowParams`; the words of all elements lie side by side in one table.
    """

    pes: int
    taps: int
    x_bits: int
    x_signed: bool
    w_bits: int
    acc_bits: int
    depth_words: int
    multiplier: str = "behavioural"
    memory: str = "behavioural"
    hard: int = 0
    word_cycles: int = 1

    @property
    def dot(self) -> DotParams:
        return self.dot_of(0)

    def dot_of(self, element: int) -> DotParams:
        hard = hard_share(self.hard, element, self.taps)
        return DotParams(self.taps, self.x_bits, self.x_signed, self.w_bits, self.acc_bits, self.multiplier, hard)

    @property
    def rom_params(self) -> RomParams:
        """The weights, where there are any."""
        return RomParams(self.pes * self.taps * self.w_bits, self.depth_words, self.memory)

    @property
    def address_lead(self) -> int:
        return 1 + self.rom_params.latency if self.w_bits else 0

    @property
    def ii(self) -> int:
        return 1

    @property
    def latency(self) -> int:
        """Sum, and a register to drain it from."""
        return self.dot.latency + 1

    def reference(
        self, steps: Iterable[tuple[Sequence[int], int, bool, bool]], words: Sequence[Sequence[Sequence[int]]]
    ) -> Iterator[int]:
        """Sums in the order they leave, for steps of ``(samples, address, first, last)``; ``words[element][address][tap]``."""
        sums = [0] * self.pes
        for samples, address, first, last in steps:
            for e in range(self.pes):
                own = samples[e * self.taps : (e + 1) * self.taps]
                product = sum(x * w for x, w in zip(own, words[e][address], strict=True)) if self.w_bits else sum(own)
                sums[e] = product if first else sums[e] + product
            if last:
                yield from reversed(sums)

    def create(self, words: Sequence[Sequence[Sequence[int]]]) -> LaneRow:
        if len(words) != self.pes:
            raise ValueError(f"words must be given for {self.pes} elements, not {len(words)!r}")
        return LaneRow(self, words)


class LaneRow(wiring.Component):
    """See `LaneRowParams`; ``words[element][address]`` holds ``taps`` weights, ``i_taps`` the samples element by element."""

    def __init__(self, params: LaneRowParams, words: Sequence[Sequence[Sequence[int]]]) -> None:
        self.params = params
        mask = (1 << params.w_bits) - 1
        side_by_side = np.asarray(words).swapaxes(0, 1).reshape(params.depth_words, -1)
        self.words = [
            sum((int(weight) & mask) << (n * params.w_bits) for n, weight in enumerate(line)) for line in side_by_side
        ]
        super().__init__(
            {
                "i_address": In(range(params.depth_words)),
                "i_taps": In(beat_layout(params.x_bits, params.x_signed, params.pes * params.taps)),
                "i_valid": In(1),
                "i_first": In(1),
                "i_last": In(1),
                "o_valid": Out(1),
                "o": Out(signed(params.acc_bits)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        weights: Value = Const(0, 0)
        if p.w_bits:
            m.submodules.weights = rom = p.rom_params.create(self.words)
            m.d.comb += rom.i_addr.eq(delay(m, self.i_address, 1, "address", reset_less=True))
            weights = rom.o
        first = delay(m, self.i_first, p.dot.latency - 1, "first", reset_less=True)
        done = delay(m, self.i_valid & self.i_last, p.dot.latency, "done")
        left: Value = Const(0)
        marked: Value = Const(0)
        marks = [Signal(name=f"pe{e}_marked", reset_less=True) for e in range(p.pes)]
        move = pace(m, done, marks[-2] if p.pes > 1 else Const(0), p.pes, p.word_cycles)
        word_bits = p.taps * p.w_bits
        for e in range(p.pes):
            samples = [self.i_taps[e * p.taps + n] for n in range(p.taps)]
            acc = p.dot_of(e).build(m, samples, weights[e * word_bits : (e + 1) * word_bits], first, f"pe{e}_")
            drain = Signal(signed(p.acc_bits), name=f"pe{e}_drain", reset_less=True)
            with m.If(done):
                m.d.sync += [drain.eq(acc), marks[e].eq(e == 0)]
            with m.Elif(move):
                m.d.sync += [drain.eq(left), marks[e].eq(marked)]
            left, marked = drain, marks[e]
        m.d.comb += self.o.eq(left)
        m.d.sync += self.o_valid.eq(done | move)
        return m
