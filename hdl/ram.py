"""RAM: one write port, one read port with a registered output."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .dp16kd import WORDS_OF_WIDTH, BlockPort, dp16kd
from .rom import BLOCK_RAM_FROM_WORDS
from .streams import delay

__all__ = ["Ram", "RamParams"]

KINDS = ("behavioural", "ecp5")


@dataclass(frozen=True, slots=True)
class RamParams:
    """``o = store[i_addr]`` two cycles later; ``i_write_en`` stores ``i_write_data`` at ``i_write_addr``.

    A word may be read from the cycle after its write on; reading an address in the very cycle of its write is undefined, as in
    the silicon. ``kind`` as in `RomParams`.

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
        return self.kind == "ecp5" and self.depth_words >= BLOCK_RAM_FROM_WORDS

    @property
    def block_width_bits(self) -> int:
        return 18 if self.depth_words <= 1024 else 9

    @property
    def blocks(self) -> int:
        """How many DP16KD the "ecp5" form takes."""
        if not self.in_blocks:
            return 0
        pages = -(-self.depth_words // WORDS_OF_WIDTH[self.block_width_bits])
        return pages * -(-self.width_bits // self.block_width_bits)

    def create(self) -> Ram:
        return Ram(self)


class Ram(wiring.Component):
    """See `RamParams`."""

    def __init__(self, params: RamParams) -> None:
        self.params = params
        super().__init__(
            {
                "i_write_addr": In(range(params.depth_words)),
                "i_write_data": In(unsigned(params.width_bits)),
                "i_write_en": In(1),
                "i_addr": In(range(params.depth_words)),
                "o": Out(unsigned(params.width_bits)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        if self.params.in_blocks:
            self._blocks(m)
            return m
        m.submodules.store = store = Memory(
            shape=unsigned(self.params.width_bits), depth=self.params.depth_words, init=[]
        )
        writer = store.write_port()
        reader = store.read_port(domain="sync")
        output = Signal.like(self.o, reset_less=True)
        m.d.comb += [
            writer.addr.eq(self.i_write_addr),
            writer.data.eq(self.i_write_data),
            writer.en.eq(self.i_write_en),
            reader.addr.eq(self.i_addr),
            reader.en.eq(1),
            self.o.eq(output),
        ]
        m.d.sync += output.eq(reader.data)
        return m

    def _blocks(self, m: Module) -> None:
        width = self.params.block_width_bits
        depth = WORDS_OF_WIDTH[width]
        address_bits = (depth - 1).bit_length()
        outputs = []
        for page in range(-(-self.params.depth_words // depth)):
            write_en = self.i_write_en & (self.i_write_addr[address_bits:] == page)
            parts = []
            for bit in range(0, self.params.width_bits, width):
                word = Signal(width, name=f"word_{page}_{bit}")
                m.submodules[f"block_{page}_{bit}"] = dp16kd(
                    width,
                    BlockPort(
                        self.i_write_addr[:address_bits],
                        write_data=self.i_write_data[bit : bit + width],
                        write_enable=write_en,
                    ),
                    BlockPort(self.i_addr[:address_bits], read_data=word),
                )
                parts.append(word)
            outputs.append(Cat(*parts)[: self.params.width_bits])
        if len(outputs) == 1:
            m.d.comb += self.o.eq(outputs[0])
        else:
            page_read = delay(m, self.i_addr[address_bits:], self.params.latency, "page")
            m.d.comb += self.o.eq(Array(outputs)[page_read])
