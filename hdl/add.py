"""Add: the sum of two tensors, each sample through a table of its own first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from .lookup import ADDRESS_CYCLES, table_words
from .pipe import Piped, PipeParams, join
from .rom import RomParams
from .scale import ScaleParams
from .streams import beat_layout, beat_stream

__all__ = ["Add", "AddParams"]


@dataclass(frozen=True, slots=True)
class AddParams(Piped):
    """``y = scale(A[a_raw - least raw] + B[b_raw - least raw])``, see `ScaleParams`.

    The tables bring both operands to one scale; each lane has both, in ROMs of kind ``memory`` (see `RomParams`).

    *Shapes* ``table_a`` is ``(2**a_bits,)``, ``table_b`` ``(2**b_bits,)``; all streams have ``lanes`` lanes.

    *Timing* `PipeTiming` (``timing``), both inputs in the same cycle; ``latency`` 6 cycles and those of the scale, ``ii`` 1.
    *Parameters* ``table_bits``: signed width of the tables' entries.
    *Raises* ``ValueError`` for entries wider than that, and as `ScaleParams`.
    """

    lanes: int
    a_bits: int
    a_signed: bool
    b_bits: int
    b_signed: bool
    table_bits: int
    m: int
    positive: int
    negative: int
    shift: int
    low: int
    high: int
    zero_point: int
    out_bits: int
    out_signed: bool
    memory: str = "behavioural"
    ties: str = "none"
    tie_bits: int = 0

    def __post_init__(self) -> None:
        _ = self.pipe  # whose parts refuse what they cannot do

    @property
    def roms(self) -> tuple[RomParams, RomParams]:
        a, b = (RomParams(self.table_bits, 1 << bits, self.memory) for bits in (self.a_bits, self.b_bits))
        return a, b

    @property
    def blocks(self) -> int:
        """How many DP16KD the "ecp5" form takes."""
        return self.lanes * sum(rom.blocks for rom in self.roms)

    @property
    def scale(self) -> ScaleParams:
        return ScaleParams(
            in_bits=self.table_bits + 1,
            m=self.m,
            positive=self.positive,
            negative=self.negative,
            shift=self.shift,
            low=self.low,
            high=self.high,
            zero_point=self.zero_point,
            out_bits=self.out_bits,
            out_signed=self.out_signed,
            ties=self.ties,
            tie_bits=self.tie_bits,
        )

    @property
    def pipe(self) -> PipeParams:
        layout = beat_layout(self.out_bits, self.out_signed, self.lanes)
        return PipeParams(layout, ADDRESS_CYCLES + self.roms[0].latency + 1 + self.scale.latency)

    def reference(
        self,
        a_beats: Sequence[Sequence[int]],
        b_beats: Sequence[Sequence[int]],
        table_a: NDArray[np.int64],
        table_b: NDArray[np.int64],
    ) -> Iterator[list[int]]:
        """Output beats."""
        least_a = -(1 << (self.a_bits - 1)) if self.a_signed else 0
        least_b = -(1 << (self.b_bits - 1)) if self.b_signed else 0
        for pair in zip(a_beats, b_beats, strict=True):
            totals = (int(table_a[a - least_a] + table_b[b - least_b]) for a, b in zip(*pair, strict=True))
            yield [self.scale.reference(total) for total in totals]

    def create(self, table_a: NDArray[np.int64], table_b: NDArray[np.int64]) -> Add:
        half = 1 << (self.table_bits - 1)
        for table, bits in ((table_a, self.a_bits), (table_b, self.b_bits)):
            if table.shape != (1 << bits,):
                raise ValueError(f"table must have {1 << bits} entries, not {table.shape!r}")
            if not all(-half <= entry < half for entry in table.tolist()):
                raise ValueError(f"entries must have {self.table_bits} bits, not {(int(table.min()), int(table.max()))!r}")
        return Add(self, table_a, table_b)


class Add(wiring.Component):
    """See `AddParams`."""

    i0: stream.Interface
    i1: stream.Interface
    o: stream.Interface

    def __init__(self, params: AddParams, table_a: NDArray[np.int64], table_b: NDArray[np.int64]) -> None:
        self.params = params
        self.tables = (
            table_words(table_a.tolist(), params.a_signed, params.table_bits),
            table_words(table_b.tolist(), params.b_signed, params.table_bits),
        )
        super().__init__(
            {
                "i0": In(beat_stream(params.a_bits, params.a_signed, params.lanes)),
                "i1": In(beat_stream(params.b_bits, params.b_signed, params.lanes)),
                "o": Out(beat_stream(params.out_bits, params.out_signed, params.lanes)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        m.submodules.pipe = pipe = p.pipe.create()
        inputs = (self.i0, self.i1)
        m.d.comb += pipe.i_take.eq(join(m, inputs, pipe.o_grant))
        results = []
        for n in range(p.lanes):
            terms = []
            for name, port, rom, words in zip("ab", inputs, p.roms, self.tables, strict=True):
                m.submodules[f"table_{name}{n}"] = table = rom.create(words)
                address = Signal(range(rom.depth_words), name=f"address_{name}{n}", reset_less=True)
                m.d.sync += address.eq(Cat(port.payload[n]))
                m.d.comb += table.i_addr.eq(address)
                terms.append(table.o.as_signed())
            total = Signal(signed(p.table_bits + 1), name=f"total_{n}", reset_less=True)
            m.d.sync += total.eq(terms[0] + terms[1])
            m.submodules[f"scale{n}"] = scale = p.scale.create()
            m.d.comb += scale.i.eq(total)
            results.append(scale.o)
        m.d.comb += Value.cast(pipe.i).eq(Cat(*results))
        wiring.connect(m, pipe.o, wiring.flipped(self.o))
        return m
