"""Buffer: where the beats of a short branch wait for those of a long one."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .pipe import PipeParams, PipeTiming
from .queue import QueueParams
from .ram import RamParams
from .register_slice import RegisterSliceParams
from .rom import BLOCK_RAM_FROM_WORDS
from .streams import add_mod, beat_layout, beat_stream

__all__ = ["Buffer", "BufferParams"]

WRITE_CYCLES = 2  # from a beat's arrival to the first cycle in which it may be read


@dataclass(frozen=True, slots=True)
class BufferParams:
    """``o`` repeats ``i`` in order; exactly ``depth_words`` beats fit.

    Two registers for a depth of two, a queue in look-up tables up to 63, a RAM of kind ``memory`` (see `RamParams`) with
    registers on both sides from 64 on. The depth alone decides, so timing is the same on every target.

    *Timing* `PipeTiming` with a ``latency`` of 1, 2 or 6 cycles, a place free again 1 cycle after its beat was taken, and
    ``ii`` 1 cycle.
    *Raises* ``ValueError`` for a depth below two (a single register cannot take a beat every cycle).
    """

    bits: int
    signed: bool
    lanes: int
    depth_words: int
    memory: str = "behavioural"

    def __post_init__(self) -> None:
        if self.depth_words < 2:
            raise ValueError(f"depth_words must be at least 2, not {self.depth_words!r}")

    @property
    def deep(self) -> bool:
        return self.depth_words >= BLOCK_RAM_FROM_WORDS

    @property
    def ram(self) -> RamParams:
        """The store of a deep buffer."""
        return RamParams(self.bits * self.lanes, self.depth_words, self.memory)

    @property
    def blocks(self) -> int:
        """How many DP16KD the "ecp5" form takes."""
        return self.ram.blocks if self.deep else 0

    @property
    def reader(self) -> PipeParams:
        """From the store of a deep buffer to the output."""
        return PipeParams(unsigned(self.bits * self.lanes), self.ram.latency)

    @property
    def latency(self) -> int:
        if self.deep:
            return WRITE_CYCLES + self.reader.latency
        return 1 if self.depth_words == 2 else 2

    @property
    def ii(self) -> int:
        return 1

    @property
    def timing(self) -> PipeTiming:
        return PipeTiming(self.latency, self.depth_words, return_cycles=1)

    def create(self) -> Buffer:
        return Buffer(self)


class Buffer(wiring.Component):
    """See `BufferParams`."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: BufferParams) -> None:
        self.params = params
        beat = beat_stream(params.bits, params.signed, params.lanes)
        super().__init__({"i": In(beat), "o": Out(beat)})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        if self.params.deep:
            self._store(m)
            return m
        layout = beat_layout(self.params.bits, self.params.signed, self.params.lanes)
        depth = self.params.depth_words
        queue = RegisterSliceParams(layout).create() if depth == 2 else QueueParams(layout, depth).create()
        m.submodules.queue = queue
        wiring.connect(m, wiring.flipped(self.i), queue.i)
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        return m

    def _store(self, m: Module) -> None:
        """A ring in the RAM, and a pipe that reads ahead.

        Invariants: (1) ``level`` beats, those in the pipe included, are between the two ports, and ``full`` is
        ``level == depth``; (2) the next ``written`` words from ``read_at`` on are in the RAM and were not read yet.
        A beat's word is kept until the beat has left, so no word is written while it is read.
        """
        p = self.params
        level = Signal(range(p.depth_words + 1))
        full = Signal()
        written = Signal(range(p.depth_words + 1))
        write_at = Signal(range(p.depth_words))
        read_at = Signal(range(p.depth_words))
        m.submodules.ram = ram = p.ram.create()
        m.submodules.reader = reader = p.reader.create()

        accept = self.i.valid & ~full
        leave = self.o.valid & self.o.ready
        m.d.comb += self.i.ready.eq(~full)
        with m.If(accept & ~leave):
            m.d.sync += [level.eq(level + 1), full.eq(level == p.depth_words - 1)]
        with m.Elif(leave & ~accept):
            m.d.sync += [level.eq(level - 1), full.eq(0)]

        write_en = Signal()
        write_data = Signal(p.bits * p.lanes, reset_less=True)
        m.d.sync += [write_en.eq(accept), write_data.eq(Value.cast(self.i.payload))]
        m.d.comb += [ram.i_write_en.eq(write_en), ram.i_write_data.eq(write_data), ram.i_write_addr.eq(write_at)]
        with m.If(write_en):
            m.d.sync += write_at.eq(add_mod(write_at, 1, p.depth_words))

        read = reader.o_grant & (written != 0)
        m.d.comb += [ram.i_addr.eq(read_at), reader.i_take.eq(read), reader.i.eq(ram.o)]
        with m.If(write_en & ~read):
            m.d.sync += written.eq(written + 1)
        with m.Elif(read & ~write_en):
            m.d.sync += written.eq(written - 1)
        with m.If(read):
            m.d.sync += read_at.eq(add_mod(read_at, 1, p.depth_words))
        m.d.comb += [
            self.o.valid.eq(reader.o.valid),
            Value.cast(self.o.payload).eq(reader.o.payload),
            reader.o.ready.eq(self.o.ready),
        ]
