"""MAC row: a systolic row of processing elements and the chain that drains it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from amaranth.hdl import Const, Instance, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .multiplier import FAMILIES, MultiplierParams, hard_share
from .rom import RomParams
from .sb_mac16 import SbMac16Params
from .streams import beat_layout, delay

__all__ = ["DotParams", "MacRow", "MacRowParams", "pace"]


@dataclass(frozen=True, slots=True)
class DotParams:
    """``acc = Σ_steps Σ_taps x · w``: multipliers, an adder tree and an accumulator; without weights (``w_bits`` 0) ``Σ Σ x``.

    *Timing* ``ii`` 1 cycle; ``latency`` cycles from a step's samples to the sum that includes them.
    *Parameters* as `MacRowParams`; ``hard`` are the taps whose multipliers are hard, the first ones.
    """

    taps: int
    x_bits: int
    x_signed: bool
    w_bits: int
    acc_bits: int
    multiplier: str = "behavioural"
    hard: int = 0

    def multiplier_params(self, tap: int) -> MultiplierParams:
        return MultiplierParams(self.x_bits, self.w_bits, FAMILIES[self.multiplier][tap < self.hard], self.x_signed)

    @property
    def pair_params(self) -> SbMac16Params:
        return SbMac16Params(self.x_bits, self.x_signed, self.w_bits, self.multiplier_params(0).latency)

    @property
    def blocks(self) -> int:
        """How many hard blocks hold the ``hard`` multipliers."""
        return self.pair_params.blocks(self.hard) if self.multiplier == "ice40" else self.hard

    @property
    def tree_levels(self) -> int:
        return (self.taps - 1).bit_length()

    @property
    def latency(self) -> int:
        """Multiply, tree, accumulate."""
        return (self.multiplier_params(0).latency if self.w_bits else 0) + self.tree_levels + 1

    def build(self, m: Module, samples: Sequence[Value], weights: Value, first: Value, name: str = "") -> Signal:
        """Make it in ``m``. ``first`` comes one cycle before the sum that it opens, ``weights`` with the samples."""
        terms = self._products(m, samples, weights, name) if self.w_bits else list(samples)
        level = 0
        while len(terms) > 1:
            sums: list[Value] = []
            for n in range(0, len(terms), 2):
                pair = terms[n] + terms[n + 1] if n + 1 < len(terms) else terms[n]
                register = Signal(pair.shape(), name=f"{name}sum_{level}_{n // 2}", reset_less=True)
                m.d.sync += register.eq(pair)
                sums.append(register)
            terms = sums
            level += 1
        acc = Signal(signed(self.acc_bits), name=f"{name}acc", reset_less=True)
        total: Value = Mux(first, 0, acc) + terms[0]
        if self.multiplier == "ecp5":  # with the AND gates in the carry chain's own tables
            total = Signal(signed(self.acc_bits), name=f"{name}total")
            shape = terms[0].shape()
            term = Signal(signed(min(shape.width + (not shape.signed), self.acc_bits)), name=f"{name}term")
            m.d.comb += term.eq(terms[0])
            m.submodules[f"{name}accumulate"] = Instance(
                "carry_accumulate",
                p_BITS=self.acc_bits,
                p_TERM_BITS=len(term),
                i_a=acc,
                i_first=first,
                i_term=term,
                o_o=total,
            )
        m.d.sync += acc.eq(total)
        return acc

    def _products(self, m: Module, samples: Sequence[Value], weights: Value, name: str) -> list[Value]:
        """One a tap; a block of iCE40 makes those of two neighbouring taps."""
        products: list[Value] = []
        blocks = []
        for n, sample in enumerate(samples):
            weight = weights[n * self.w_bits : (n + 1) * self.w_bits].as_signed()
            if self.multiplier == "ice40" and n < self.hard:
                place = n % self.pair_params.products
                if place == 0:
                    blocks.append(self.pair_params.create())
                    m.submodules[f"{name}multiplier{n}"] = blocks[-1]
                m.d.comb += [blocks[-1].i_a[place].eq(sample), blocks[-1].i_b[place].eq(weight)]
                products.append(blocks[-1].o[place])
            else:
                m.submodules[f"{name}multiplier{n}"] = multiplier = self.multiplier_params(n).create()
                m.d.comb += [multiplier.i_a.eq(sample), multiplier.i_b.eq(weight)]
                products.append(multiplier.o)
        return products


@dataclass(frozen=True, slots=True)
class MacRowParams:
    """``pes`` dot products at once, ``taps`` multiplies each a cycle.

    For every pass, processing element ``e`` computes ``acc[e] = Σ_steps Σ_taps x · w[e]`` and the row sends the sums out one
    every ``word_cycles``, the last element first. Samples, weight address and flags hop from element to element, one register
    each, so no net fans out.

    *Timing* ``ii`` 1 cycle a step; the steps of a pass must come in consecutive cycles, at least ``pes · word_cycles`` of them.
    The first sum of a pass leaves ``latency`` cycles after its last step enters, the others ``word_cycles`` apart.
    ``i_address`` runs ``address_lead`` cycles ahead.

    *Parameters* ``x_bits``, ``x_signed``: samples; ``w_bits``: signed weights; ``acc_bits``: signed sums, wide enough for every
    partial sum; ``depth_words``: weight words an element; ``multiplier`` and ``memory``: families of leaf cells; ``hard``: how
    many multipliers are hard ones, counted element by element; ``block_roms``: how many elements, the first ones, have their
    weights in block RAM even where look-up tables would hold them (``memory`` "ecp5").
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
    block_roms: int = 0

    @property
    def dot(self) -> DotParams:
        return self.dot_of(0)

    def dot_of(self, element: int) -> DotParams:
        hard = hard_share(self.hard, element, self.taps)
        return DotParams(self.taps, self.x_bits, self.x_signed, self.w_bits, self.acc_bits, self.multiplier, hard)

    def rom_of(self, element: int) -> RomParams:
        kind = "ecp5_block" if element < self.block_roms else self.memory
        return RomParams(self.taps * self.w_bits, self.depth_words, kind)

    @property
    def address_lead(self) -> int:
        return self.rom_of(0).latency

    @property
    def ii(self) -> int:
        return 1

    @property
    def latency(self) -> int:
        """Hop, sum, then the way to the last element, and the register or two that its sum leaves through."""
        return 1 + self.dot.latency + self.pes + (self.word_cycles == 1)

    def reference(
        self, steps: Iterable[tuple[Sequence[int], int, bool, bool]], words: Sequence[Sequence[Sequence[int]]]
    ) -> Iterator[int]:
        """Sums in the order they leave, for steps of ``(samples, address, first, last)``; ``words[element][address][tap]``."""
        sums = [0] * self.pes
        for samples, address, first, last in steps:
            for e in range(self.pes):
                product = sum(x * w for x, w in zip(samples, words[e][address], strict=True))
                sums[e] = product if first else sums[e] + product
            if last:
                yield from reversed(sums)

    def create(self, words: Sequence[Sequence[Sequence[int]]]) -> MacRow:
        if len(words) != self.pes:
            raise ValueError(f"words must be given for {self.pes} elements, not {len(words)!r}")
        return MacRow(self, words)


class MacRow(wiring.Component):
    """See `MacRowParams`; ``words[element][address]`` holds ``taps`` weights."""

    def __init__(self, params: MacRowParams, words: Sequence[Sequence[Sequence[int]]]) -> None:
        self.params = params
        self.words = words
        super().__init__(
            {
                "i_address": In(range(params.depth_words)),
                "i_taps": In(beat_layout(params.x_bits, params.x_signed, params.taps)),
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
        to_sum = p.dot.latency - 1
        address = self.i_address
        taps = Value.cast(self.i_taps)
        first = delay(m, self.i_first, to_sum, "first", reset_less=True)
        done = delay(m, self.i_valid & self.i_last, to_sum, "done")
        elements = [_ProcessingElement(p, e, self.words[e]) for e in range(p.pes)]
        chain: Value = Signal(signed(p.acc_bits), name="chain_begin")
        marked: Value = Signal(name="chain_begin_marked")
        for e, pe in enumerate(elements):
            m.submodules[f"pe{e}"] = pe
            m.d.comb += [
                pe.i_address.eq(address),
                Value.cast(pe.i_taps).eq(taps),
                pe.i_first.eq(first),
                pe.i_done.eq(done),
                pe.i_chain.eq(chain),
                pe.i_marked.eq(marked),
            ]
            address, taps, first, done = pe.o_address, Value.cast(pe.o_taps), pe.o_first, pe.o_done
            if e and p.word_cycles > 1:
                m.d.comb += elements[e - 1].i_move.eq(pe.o_move)
            chain, marked = pe.o_chain, pe.o_marked
        m.d.comb += self.o.eq(chain)
        if p.word_cycles == 1:
            m.d.comb += self.o_valid.eq(marked)
        else:
            finished = Signal()
            m.d.sync += finished.eq(done)
            move = pace(m, finished, elements[-2].o_marked if p.pes > 1 else Const(1), p.pes, p.word_cycles)
            m.d.comb += elements[-1].i_move.eq(move)
            m.d.sync += self.o_valid.eq(finished | move)
        return m


def pace(m: Module, load: Value, last: Value, words: int, cycles: int) -> Value:
    """When words loaded at once move on, ``cycles`` apart; ``last`` says whether the last of them moves up next."""
    if words == 1:
        return Const(0)
    left = Signal(range(cycles))
    moving = Signal()
    move = moving & (left == 0)
    with m.If(load):
        m.d.sync += [moving.eq(1), left.eq(cycles - 1)]
    with m.Elif(move):
        m.d.sync += [moving.eq(~last), left.eq(cycles - 1)]
    with m.Else():
        m.d.sync += left.eq(left - 1)
    return move


class _ProcessingElement(wiring.Component):
    """``taps`` multipliers, an adder tree, an accumulator, and this element's place in the drain chain.

    Sums are finished one cycle apart from element to element. If they are to leave one a cycle, the chain takes two registers
    a hop while samples take one, so that they queue up behind each other without gaps or collisions.

    Otherwise one register a hop will do: the signal to move travels from the end of the chain to its beginning, so that each
    sum makes room before the next one comes; the sum of the first element is marked, and stops it.
    """

    def __init__(self, params: MacRowParams, element: int, words: Sequence[Sequence[int]]) -> None:
        self.params = params
        self.element = element
        mask = (1 << params.w_bits) - 1
        self.words = [
            sum((int(weight) & mask) << (n * params.w_bits) for n, weight in enumerate(word)) for word in words
        ]
        taps = beat_layout(params.x_bits, params.x_signed, params.taps)
        address = range(params.depth_words)
        super().__init__(
            {
                "i_address": In(address),
                "i_taps": In(taps),
                "i_first": In(1),
                "i_done": In(1),
                "i_chain": In(signed(params.acc_bits)),
                "i_marked": In(1),
                "i_move": In(1),
                "o_address": Out(address),
                "o_taps": Out(taps),
                "o_first": Out(1),
                "o_done": Out(1),
                "o_chain": Out(signed(params.acc_bits)),
                "o_marked": Out(1),
                "o_move": Out(1),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        address = Signal.like(self.i_address, reset_less=True)
        taps = Signal(data.ArrayLayout(Shape(p.x_bits, p.x_signed), p.taps), reset_less=True)
        first = Signal(reset_less=True)
        done = Signal()
        m.d.sync += [address.eq(self.i_address), taps.eq(self.i_taps), first.eq(self.i_first), done.eq(self.i_done)]
        m.d.comb += [
            self.o_address.eq(address),
            self.o_taps.eq(taps),
            self.o_first.eq(first),
            self.o_done.eq(done),
        ]

        m.submodules.weights = weights = p.rom_of(self.element).create(self.words)
        m.d.comb += weights.i_addr.eq(address)
        acc = p.dot_of(self.element).build(m, [taps[n] for n in range(p.taps)], weights.o, first)
        finished = Signal()
        m.d.sync += finished.eq(done)

        enter = Signal(signed(p.acc_bits), reset_less=True)
        entered = Signal()
        if p.word_cycles > 1:
            with m.If(finished):
                m.d.sync += [enter.eq(acc), entered.eq(self.element == 0)]
            with m.Elif(self.i_move):
                m.d.sync += [enter.eq(self.i_chain), entered.eq(self.i_marked)]
            m.d.sync += self.o_move.eq(self.i_move & ~self.i_marked)
            m.d.comb += [self.o_chain.eq(enter), self.o_marked.eq(entered)]
            return m
        leave = Signal.like(enter, reset_less=True)
        m.d.sync += [
            enter.eq(Mux(finished, acc, self.i_chain)),
            entered.eq(finished | self.i_marked),
            leave.eq(enter),
            self.o_marked.eq(entered),
        ]
        m.d.comb += self.o_chain.eq(leave)
        return m
