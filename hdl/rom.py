"""ROM: a table of constants with a registered output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Const, Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .dp16kd import WORDS_OF_WIDTH, BlockPort, dp16kd
from .streams import delay

__all__ = ["Rom", "RomParams"]

KINDS = ("behavioural", "ecp5", "ecp5_block")
BLOCK_RAM_FROM_WORDS = 64
"""Below this depth look-up tables are cheaper than a block RAM (measured on ECP5)."""


@dataclass(frozen=True, slots=True)
class RomParams:
    """``o = words[i_addr]``, two cycles later.

    ``kind`` "behavioural" lets synthesis choose look-up tables or block RAM; "ecp5" instantiates DP16KD with output registers
    from 64 words on, "ecp5_block" always.

    *Timing* ``latency`` 2 cycles, ``ii`` 1 cycle.
    """

    width_bits: int
    depth_words: int
    kind: str = "behavioural"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, not {self.kind!r}")
        if self.width_bits < 1 or self.depth_words < 1:
            raise ValueError(f"size must be at least 1×1, not {(self.depth_words, self.width_bits)!r}")

    @property
    def latency(self) -> int:
        return 2

    @property
    def ii(self) -> int:
        return 1

    @property
    def in_blocks(self) -> bool:
        return self.kind == "ecp5_block" or (self.kind == "ecp5" and self.depth_words >= BLOCK_RAM_FROM_WORDS)

    @property
    def blocks(self) -> int:
        """How many DP16KD the "ecp5" form takes."""
        return sum(1 for _ in self._tiles()) if self.in_blocks else 0

    def _tiles(self) -> Iterator[tuple[int, int, int]]:
        """(first word, first bit, block width) of each block; width 36 is one block read by both its ports."""
        shape = 36 if self.depth_words <= 512 and self.width_bits > 18 else 18 if self.depth_words <= 1024 else 9
        depth = {36: 512, **WORDS_OF_WIDTH}[shape]
        for word in range(0, self.depth_words, depth):
            for bit in range(0, self.width_bits, shape):
                yield word, bit, shape if self.width_bits - bit > 18 or shape < 36 else 18

    def reference(self, words: Sequence[int], address: int) -> int:
        return words[address]

    def create(self, words: Sequence[int]) -> Rom:
        if len(words) != self.depth_words:
            raise ValueError(f"words must number {self.depth_words}, not {len(words)!r}")
        return Rom(self, words)


class Rom(wiring.Component):
    """See `RomParams`. ``words`` are unsigned, ``width_bits`` wide."""

    def __init__(self, params: RomParams, words: Sequence[int]) -> None:
        self.params = params
        self.words = tuple(int(word) for word in words)
        super().__init__(
            {"i_addr": In(range(params.depth_words)), "o": Out(unsigned(params.width_bits))}
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        if self.params.in_blocks:
            self._blocks(m)
            return m
        m.submodules.table = table = Memory(
            shape=unsigned(self.params.width_bits), depth=self.params.depth_words, init=self.words
        )
        output = Signal.like(self.o, reset_less=True)
        m.d.comb += self.o.eq(output)
        if 1 < self.params.depth_words < BLOCK_RAM_FROM_WORDS:  # in look-up tables: a register less where it is narrow
            port = table.read_port(domain="comb")
            m.d.comb += port.addr.eq(delay(m, self.i_addr, 1, "address", reset_less=True))
        else:
            port = table.read_port(domain="sync")
            m.d.comb += [port.addr.eq(self.i_addr), port.en.eq(1)]
        m.d.sync += output.eq(port.data)
        return m

    def _blocks(self, m: Module) -> None:
        pages: dict[int, list[Signal]] = {}
        for word, bit, shape in self.params._tiles():
            width = min(shape, 18)
            depth = 512 if shape == 36 else WORDS_OF_WIDTH[width]
            rows = [row >> bit & ((1 << shape) - 1) for row in self.words[word : word + depth]]
            address = Signal(range(depth), name=f"address_{word}_{bit}")
            m.d.comb += address.eq(self.i_addr)
            low = Signal(width, name=f"low_{word}_{bit}")
            if shape == 36:
                high = Signal(width, name=f"high_{word}_{bit}")
                init = [row & 0x3FFFF for row in rows] + [0] * (512 - len(rows)) + [row >> 18 for row in rows]
                block = dp16kd(
                    18,
                    BlockPort(Cat(address, Const(0, 1)), read_data=low),
                    BlockPort(Cat(address, Const(1, 1)), read_data=high),
                    init,
                )
                pages.setdefault(word, []).extend([low, high])
            else:
                block = dp16kd(width, BlockPort(address, read_data=low), BlockPort(address), rows)
                pages.setdefault(word, []).append(low)
            m.submodules[f"block_{word}_{bit}"] = block
        outputs = [Cat(*parts)[: self.params.width_bits] for parts in pages.values()]
        if len(outputs) == 1:
            m.d.comb += self.o.eq(outputs[0])
        else:
            page = delay(m, self.i_addr[11:], self.params.latency, "page")
            m.d.comb += self.o.eq(Array(outputs)[page])
