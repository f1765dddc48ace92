"""MAC row: a systolic row of processing elements and the chain that drains it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Instance, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .multiplier import FAMILIES, MultiplierParams, hard_share
from .multiplier_pair import MultiplierPairParams
from .rom import RomParams
from .sb_mac16 import SbMac16Params
from .streams import beat_layout, delay

__all__ = ["DotParams", "MacRow", "MacRowParams", "pace"]

Term = tuple[Value, Value | None]
"""A number to be added, and a carry to be added with it."""


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
        terms = self.products(m, samples, weights, name) if self.w_bits else list(samples)
        return self.total(m, [(term, None) for term in terms], first, name)

    def total(self, m: Module, terms: Sequence[Term], first: Value, name: str = "") -> Signal:
        """The adder tree and the accumulator. Each of them takes one carry, so there are as many as terms."""
        level = 0
        while len(terms) > 1:
            sums: list[Term] = []
            for n in range(0, len(terms), 2):
                value, carry = _sum(*terms[n : n + 2])
                register = Signal(value.shape(), name=f"{name}sum_{level}_{n // 2}", reset_less=True)
                m.d.sync += register.eq(value)
                if carry is not None:
                    carry = delay(m, carry, 1, f"{name}carry_{level}_{n // 2}", reset_less=True)
                sums.append((register, carry))
            terms = sums
            level += 1
        acc = Signal(signed(self.acc_bits), name=f"{name}acc", reset_less=True)
        last, carry = terms[0]
        total: Value = Mux(first, 0, acc) + last + (0 if carry is None else carry)
        if self.multiplier == "ecp5":  # with the AND gates in the carry chain's own tables
            total = Signal(signed(self.acc_bits), name=f"{name}total")
            shape = last.shape()
            term = Signal(signed(min(shape.width + (not shape.signed), self.acc_bits)), name=f"{name}term")
            m.d.comb += term.eq(last)
            m.submodules[f"{name}accumulate"] = Instance(
                "carry_accumulate",
                p_BITS=self.acc_bits,
                p_TERM_BITS=len(term),
                i_a=acc,
                i_first=first,
                i_term=term,
                i_one=Const(0) if carry is None else carry,
                o_o=total,
            )
        m.d.sync += acc.eq(total)
        return acc

    def products(
        self, m: Module, samples: Sequence[Value], weights: Value, name: str = "", begin: int = 0
    ) -> list[Value]:
        """One a tap, from tap ``begin`` on; a block of iCE40 makes those of two neighbouring taps."""
        products: list[Value] = []
        blocks = []
        for n, sample in enumerate(samples[begin:], begin):
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


def _sum(a: Term, b: Term | None = None) -> Term:
    """Both numbers and one of their carries; the other one is left over."""
    if b is None:
        return a
    carries = [carry for carry in (a[1], b[1]) if carry is not None]
    if not carries:
        return a[0] + b[0], None
    total = Cat(1, a[0]).as_signed() + Cat(carries[0], b[0]).as_signed()  # 1 + carry carries over into the rest
    return total[1:].as_signed(), carries[1] if len(carries) > 1 else None


@dataclass(frozen=True, slots=True)
class MacRowParams:
    """``pes`` dot products at once, ``taps`` multiplies each a cycle.

    For every pass, processing element ``e`` computes ``acc[e] = Σ_steps Σ_taps x · w[e]`` and the row sends the sums out one
    every ``word_cycles``, the last element first. Samples, weight address and flags hop from element to element, one register
    each, so no net fans out far: a hop may reach ``together`` elements. Two that are reached together share multipliers of
    ECP5 where their weights are narrow enough, see `MultiplierPairParams`; these weights must be symmetric.

    *Timing* ``ii`` 1 cycle a step; the steps of a pass must come in consecutive cycles, at least ``pes · word_cycles`` of them.
    The first sum of a pass leaves ``latency`` cycles after its last step enters, the others ``word_cycles`` apart.
    ``i_address`` runs ``address_lead`` cycles ahead.

    *Parameters* ``x_bits``, ``x_signed``: samples; ``w_bits``: signed weights; ``acc_bits``: signed sums, wide enough for every
    partial sum; ``depth_words``: weight words an element; ``multiplier`` and ``memory``: families of leaf cells; ``hard``: how
    many multipliers are hard ones, counted hop by hop, tap by tap, element by element; ``together``: 1 or 2;
    ``block_roms``: how many elements, the first ones, have their weights in block RAM even where look-up tables would hold
    them (``memory`` "ecp5"), those of a hop only together.
    *Raises* ``ValueError`` for another ``together``, and at `create` for weights that are not symmetric and must be.
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
    together: int = 1
    block_roms: int = 0

    def __post_init__(self) -> None:
        if self.together not in (1, 2):
            raise ValueError(f"together must be 1 or 2, not {self.together!r}")

    @property
    def dot(self) -> DotParams:
        return self.dot_of(0)

    def dot_of(self, element: int) -> DotParams:
        hop, place = divmod(element, self.together)
        hard = max(hard_share(self.hard, hop, self.together * self.taps) - place, 0)
        hard = -(-hard // len(self.elements(hop)))
        return DotParams(self.taps, self.x_bits, self.x_signed, self.w_bits, self.acc_bits, self.multiplier, hard)

    @property
    def hops(self) -> int:
        return -(-self.pes // self.together)

    def elements(self, hop: int) -> range:
        """Which elements a hop reaches."""
        return range(hop * self.together, min((hop + 1) * self.together, self.pes))

    @property
    def pair_params(self) -> MultiplierPairParams:
        """A block that two elements share."""
        return MultiplierPairParams(self.x_bits, self.x_signed, self.w_bits, self.dot.multiplier_params(0).latency)

    def pairs(self, hop: int) -> int:
        """How many blocks the elements of a hop share, those of the first taps."""
        narrow = self.multiplier == "ecp5" and MultiplierPairParams.fits(self.x_bits, self.x_signed, self.w_bits)
        return self.dot_of(self.elements(hop)[-1]).hard if narrow and len(self.elements(hop)) == 2 else 0

    @property
    def blocks(self) -> int:
        """How many hard blocks hold the ``hard`` multipliers."""
        return sum(self.dot_of(e).blocks for e in range(self.pes)) - sum(map(self.pairs, range(self.hops)))

    def rom_of(self, hop: int) -> RomParams:
        """The weights of all elements of a hop, tap by tap."""
        elements = self.elements(hop)
        kind = "ecp5_block" if elements[-1] < self.block_roms else self.memory
        return RomParams(len(elements) * self.taps * self.w_bits, self.depth_words, kind)

    @property
    def address_lead(self) -> int:
        return self.rom_of(0).latency

    @property
    def ii(self) -> int:
        return 1

    @property
    def latency(self) -> int:
        """Hop, sum, then the way to the last element, and the register or two that its sum leaves through."""
        return 1 + self.dot.latency + self.hops + (self.word_cycles == 1)

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
        least = 1 - (1 << self.w_bits - 1)
        for e, table in enumerate(words):
            shared = self.pairs(e // self.together)
            lowest = min((int(weight) for word in table for weight in word[:shared]), default=0)
            if lowest < least:
                raise ValueError(f"words of elements that share blocks must be at least {least}, not {lowest!r}")
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
        hops = [_Hop(p, n, self.words) for n in range(p.hops)]
        chain: Value = Signal(signed(p.acc_bits), name="chain_begin")
        marked: Value = Signal(name="chain_begin_marked")
        for n, hop in enumerate(hops):
            m.submodules[f"pe{p.elements(n)[0]}"] = hop
            m.d.comb += [
                hop.i_address.eq(address),
                Value.cast(hop.i_taps).eq(taps),
                hop.i_first.eq(first),
                hop.i_done.eq(done),
                hop.i_chain.eq(chain),
                hop.i_marked.eq(marked),
            ]
            address, taps, first, done = hop.o_address, Value.cast(hop.o_taps), hop.o_first, hop.o_done
            if n and p.word_cycles > 1:
                m.d.comb += hops[n - 1].i_move.eq(hop.o_move)
            chain, marked = hop.o_chain, hop.o_marked
        m.d.comb += self.o.eq(chain)
        if p.word_cycles == 1:
            m.d.comb += self.o_valid.eq(marked)
        else:
            finished = Signal()
            m.d.sync += finished.eq(done)
            move = pace(m, finished, hops[-1].o_coming, p.pes, p.word_cycles)
            m.d.comb += hops[-1].i_move.eq(move)
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


class _Hop(wiring.Component):
    """The processing elements that a hop reaches, one or two: each has ``taps`` multipliers, an adder tree, an accumulator,
    and its place in the drain chain.

    Sums are finished one cycle apart from hop to hop. If they are to leave one a cycle, the chain takes one register an
    element and another one a hop, while samples take one a hop, so that sums queue up behind each other without gaps or
    collisions.

    Otherwise one register an element will do: the signal to move travels from the end of the chain to its beginning, so that
    each sum makes room before the next one comes; the sum of the first element is marked, and stops it.
    """

    def __init__(self, params: MacRowParams, hop: int, words: Sequence[Sequence[Sequence[int]]]) -> None:
        self.params = params
        self.hop = hop
        self.words = _packed(params, hop, words)
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
                "o_coming": Out(1),
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
        finished = Signal()
        m.d.sync += [
            address.eq(self.i_address),
            taps.eq(self.i_taps),
            first.eq(self.i_first),
            done.eq(self.i_done),
            finished.eq(done),
        ]
        m.d.comb += [
            self.o_address.eq(address),
            self.o_taps.eq(taps),
            self.o_first.eq(first),
            self.o_done.eq(done),
        ]

        m.submodules.weights = weights = p.rom_of(self.hop).create(self.words)
        m.d.comb += weights.i_addr.eq(address)
        elements = p.elements(self.hop)
        names = [f"e{e}_" if len(elements) > 1 else "" for e in elements]
        terms = self._terms(m, [taps[n] for n in range(p.taps)], weights.o, names)
        accs = [
            p.dot_of(e).total(m, terms_of_e, first, name)
            for e, terms_of_e, name in zip(elements, terms, names, strict=True)
        ]
        if p.word_cycles == 1:
            self._drain_at_once(m, accs, finished, names)
        else:
            self._drain_slowly(m, accs, finished, names)
        return m

    def _terms(self, m: Module, samples: Sequence[Value], weights: Value, names: Sequence[str]) -> list[list[Term]]:
        """Of each element one a tap."""
        p = self.params
        count, pairs = len(names), p.pairs(self.hop)
        fields = [weights[n : n + p.w_bits] for n in range(0, count * p.taps * p.w_bits, p.w_bits)]
        terms: list[list[Term]] = [[] for _ in names]
        for n in range(pairs):
            m.submodules[f"pair{n}"] = pair = p.pair_params.create()
            m.d.comb += pair.i_a.eq(samples[n])
            m.d.comb += [pair.i_b[k].eq(fields[count * n + k]) for k in range(2)]
            terms[0].append((pair.o[0], None))
            terms[1].append((pair.o[1], pair.o_carry))
        for k, (e, name) in enumerate(zip(p.elements(self.hop), names, strict=True)):
            products = p.dot_of(e).products(m, samples, Cat(fields[k::count]), name, pairs)
            terms[k] += [(product, None) for product in products]
        return terms

    def _drain_at_once(self, m: Module, accs: Sequence[Value], finished: Value, names: Sequence[str]) -> None:
        chain, marked = self.i_chain, self.i_marked
        for acc, name in zip(accs, names, strict=True):
            enter = Signal(signed(self.params.acc_bits), name=f"{name}enter", reset_less=True)
            entered = Signal(name=f"{name}entered")
            m.d.sync += [enter.eq(Mux(finished, acc, chain)), entered.eq(finished | marked)]
            chain, marked = enter, entered
        leave = Signal.like(chain, name="leave", reset_less=True)
        m.d.sync += [leave.eq(chain), self.o_marked.eq(marked)]
        m.d.comb += self.o_chain.eq(leave)

    def _drain_slowly(self, m: Module, accs: Sequence[Value], finished: Value, names: Sequence[str]) -> None:
        chain, coming, marked = self.i_chain, self.i_marked, self.i_marked
        moves = [Signal(name=f"{name}move") for name in names]
        later = [*moves[1:], self.i_move]
        for n, (acc, name) in enumerate(zip(accs, names, strict=True)):
            enter = Signal(signed(self.params.acc_bits), name=f"{name}enter", reset_less=True)
            entered = Signal(name=f"{name}entered")
            with m.If(finished):
                m.d.sync += [enter.eq(acc), entered.eq(self.hop == n == 0)]
            with m.Elif(later[n]):
                m.d.sync += [enter.eq(chain), entered.eq(marked)]
            m.d.sync += moves[n].eq(later[n] & ~marked)
            coming, chain, marked = marked, enter, entered
        m.d.comb += [self.o_move.eq(moves[0]), self.o_coming.eq(coming), self.o_chain.eq(chain), self.o_marked.eq(marked)]


def _packed(p: MacRowParams, hop: int, words: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """The words of a hop's table: weights, or fields of a pair."""
    mask = (1 << p.w_bits) - 1
    shared = p.pairs(hop)
    packed = []
    for address in range(p.depth_words):
        fields: list[int] = []
        for tap in range(p.taps):
            weights = [int(words[e][address][tap]) for e in p.elements(hop)]
            fields += MultiplierPairParams.fields(*weights) if tap < shared else weights
        packed.append(sum((field & mask) << (n * p.w_bits) for n, field in enumerate(fields)))
    return packed
