"""Lookup: any function of one sample, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from .pipe import Piped, PipeParams, count_beats, join
from .rom import RomParams
from .streams import beat_layout, beat_stream, beats

__all__ = ["Lookup", "LookupParams", "table_words"]

ADDRESS_CYCLES = 1


def table_words(values: Sequence[int], in_signed: bool, out_bits: int) -> list[int]:
    """A table whose entry 0 is that of the least sample, as ROM words: addressed by the sample's bits, in two's complement."""
    half = len(values) // 2 if in_signed else 0
    mask = (1 << out_bits) - 1
    return [int(value) & mask for value in [*values[half:], *values[:half]]]


@dataclass(frozen=True, slots=True)
class LookupParams(Piped):
    """``y = table[c, x_raw - least raw]``, where ``c`` is the channel, or 0 of a table for all of them (``tables`` is 1).

    Each lane has its own ROM of kind ``memory``, see `RomParams`.

    *Shapes* ``table`` is ``(tables, 2**in_bits)``; input and output have ``lanes`` lanes, and a pixel ``channels`` samples.

    *Timing* `PipeTiming` (``timing``), one input; ``latency`` 5 cycles, ``ii`` 1 cycle.
    *Raises* ``ValueError`` for another number of tables than 1 or ``channels``.
    """

    channels: int
    lanes: int
    in_bits: int
    in_signed: bool
    out_bits: int
    out_signed: bool
    tables: int = 1
    memory: str = "behavioural"

    def __post_init__(self) -> None:
        if self.tables not in (1, self.channels):
            raise ValueError(f"tables must be 1 or {self.channels}, not {self.tables!r}")

    @property
    def pages(self) -> int:
        """Tables a lane."""
        return beats(self.tables, self.lanes)

    @property
    def rom(self) -> RomParams:
        return RomParams(self.out_bits, self.pages << self.in_bits, self.memory)

    @property
    def blocks(self) -> int:
        """How many DP16KD the "ecp5" form takes."""
        return self.lanes * self.rom.blocks

    @property
    def pipe(self) -> PipeParams:
        layout = beat_layout(self.out_bits, self.out_signed, self.lanes)
        return PipeParams(layout, ADDRESS_CYCLES + self.rom.latency)

    def reference(self, pixels: Sequence[Sequence[int]], table: NDArray[np.int64]) -> Iterator[list[int]]:
        """Output beats for pixels of ``channels`` samples; fillers are left out."""
        least = -(1 << (self.in_bits - 1)) if self.in_signed else 0
        for pixel in pixels:
            values = [int(table[c % self.tables, x - least]) for c, x in enumerate(pixel)]
            for n in range(0, self.channels, self.lanes):
                yield values[n : n + self.lanes]

    def create(self, table: NDArray[np.int64]) -> Lookup:
        if table.shape != (self.tables, 1 << self.in_bits):
            raise ValueError(f"table must be {self.tables}×{1 << self.in_bits}, not {table.shape!r}")
        return Lookup(self, table)


class Lookup(wiring.Component):
    """See `LookupParams`."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: LookupParams, table: NDArray[np.int64]) -> None:
        self.params = params
        self.tables = [table_words(line, params.in_signed, params.out_bits) for line in table.tolist()]
        super().__init__(
            {
                "i": In(beat_stream(params.in_bits, params.in_signed, params.lanes)),
                "o": Out(beat_stream(params.out_bits, params.out_signed, params.lanes)),
            }
        )

    def _words_of(self, lane: int) -> list[int]:
        """The tables of the channels of one lane, those of all beats one after the other; the last is repeated as a filler."""
        p = self.params
        channels = (beat * p.lanes + lane for beat in range(p.pages))
        return [word for channel in channels for word in self.tables[min(channel, p.tables - 1)]]

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        m.submodules.pipe = pipe = p.pipe.create()
        take = join(m, [self.i], pipe.o_grant)
        page = count_beats(m, take, p.pages)
        results = []
        for n in range(p.lanes):
            m.submodules[f"table{n}"] = table = p.rom.create(self._words_of(n))
            address = Signal(range(p.rom.depth_words), name=f"address_{n}", reset_less=True)
            m.d.sync += address.eq(Cat(self.i.payload[n], page))
            m.d.comb += table.i_addr.eq(address)
            results.append(table.o)
        m.d.comb += [pipe.i_take.eq(take), Value.cast(pipe.i).eq(Cat(*results))]
        wiring.connect(m, pipe.o, wiring.flipped(self.o))
        return m
