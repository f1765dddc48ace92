"""DP16KD, the 18-kbit block RAM of ECP5, with its output registers on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Signal, Value

__all__ = ["WORDS_OF_WIDTH", "BlockPort", "dp16kd"]

WORDS_OF_WIDTH = {9: 2048, 18: 1024}
"""Depth of one block for each word width used here; both keep the parity bits."""


@dataclass(frozen=True, slots=True)
class BlockPort:
    """One of the two ports: a word address, and either data to write or a signal that receives the word read."""

    address: Value
    write_data: Value | None = None
    write_enable: Value | None = None
    read_data: Signal | None = None


def dp16kd(width: int, a: BlockPort, b: BlockPort, init: Sequence[int] = ()) -> Instance:
    """A block of ``width``-bit words, initialised with ``init``; a read appears two cycles after its address.

    *Raises* ``ValueError`` for a width other than 9 or 18, or too many words.
    *Source* Lattice FPGA-TN-02204, "ECP5 and ECP5-5G Memory Usage Guide"; the INITVAL packing is yosys's
    ``lattice/brams_map_16kd.v`` (sixteen 18-bit words in 320 bits, 20 bits apart).
    """
    if width not in WORDS_OF_WIDTH:
        raise ValueError(f"width must be 9 or 18, not {width!r}")
    if len(init) > WORDS_OF_WIDTH[width]:
        raise ValueError(f"init must have at most {WORDS_OF_WIDTH[width]} words, not {len(init)!r}")
    bits = sum(word << (n * width) for n, word in enumerate(init))
    ports: dict[str, object] = {}
    for side, port in (("A", a), ("B", b)):
        ports |= _port(side, width, port)
        ports |= {f"p_DATA_WIDTH_{side}": width, f"p_REGMODE_{side}": "OUTREG", f"p_CSDECODE_{side}": "0b000"}
        ports |= {f"p_WRITEMODE_{side}": "NORMAL"}
    for line in range(64):
        words = [bits >> ((line * 16 + n) * 18) & 0x3FFFF for n in range(16)]
        ports[f"p_INITVAL_{line:02X}"] = Const(sum(word << (20 * n) for n, word in enumerate(words)), 320)
    return Instance("DP16KD", p_RESETMODE="SYNC", p_ASYNC_RESET_RELEASE="SYNC", p_GSR="AUTO", **ports)


def _port(side: str, width: int, port: BlockPort) -> dict[str, object]:
    low = 14 - (WORDS_OF_WIDTH[width] - 1).bit_length()
    byte_enables = Const(0b11, 2) if width == 18 else Const(0, 2)
    address = Cat(byte_enables, Const(0, low - 2), port.address)
    write = port.write_data if port.write_data is not None else Const(0, 18)
    wanted = Signal(0) if port.read_data is None else port.read_data
    read = Cat(wanted, Signal(18 - len(wanted), name=f"unread_{side.lower()}"))
    ports: dict[str, object] = {
        f"i_CLK{side}": ClockSignal(),
        f"i_CE{side}": Const(1),
        f"i_OCE{side}": Const(1),
        f"i_RST{side}": Const(0),
        f"i_WE{side}": port.write_enable if port.write_enable is not None else Const(0),
    }
    ports |= {f"i_CS{side}{n}": Const(0) for n in range(3)}
    ports |= {f"i_AD{side}{n}": address[n] if n < len(address) else Const(0) for n in range(14)}
    ports |= {f"i_DI{side}{n}": write[n] if n < len(write) else Const(0) for n in range(18)}
    ports |= {f"o_DO{side}{n}": read[n] for n in range(len(read))}
    return ports
