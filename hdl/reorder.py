"""Reorder: a band of the stream is stored and sent again in another order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from amaranth.hdl import Module, Mux, Shape, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .pipe import PipeParams
from .queue import QueueParams
from .ram import RamParams
from .streams import beat_layout, beat_stream, beats

__all__ = ["Reorder", "ReorderParams"]

Loop = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ReorderParams:
    """Band by band, ``y[k] = x[Σ index·stride]``, the indices counting through ``loops`` while ``k`` goes up.

    ``loops`` are pairs ``(count, stride)``, the outermost first; strides are in beats. A band of ``band_words`` beats is
    written to one half of a memory while the band before it is read from the other half, each beat any number of times.

    The class methods choose band and loops for the layers that move samples, see `convfold.compiler.graph`, and hand on
    ``bits``, ``signed`` and ``memory``. Beats are moved whole, so the ``lanes`` channels of a beat of the input must stand
    together in the output; one lane always does.

    *Timing* ``ii`` 1 cycle a beat out, and in where no more come out than go in, without a gap between bands and frames.
    ``latency`` cycles from the last beat of a band to its first beat out. The queue is as deep as the beats in flight, so
    reading never waits for credits while the output is taken.
    *Raises* ``ValueError`` for loops that leave the band, and lanes that would have to be cut.
    """

    band_words: int
    loops: tuple[Loop, ...]
    lanes: int
    bits: int
    signed: bool
    memory: str = "behavioural"

    STORED_TO_READ: ClassVar[int] = 1  # from the last beat of a band to the first cycle in which it can be read
    READ_TO_OPEN: ClassVar[int] = 1  # from the last reading of a band to the first beat of the one that takes its place

    def __post_init__(self) -> None:
        if not self.loops or any(count < 1 or stride < 0 for count, stride in self.loops):
            raise ValueError(f"loops must be counts from 1 and strides from 0, not {self.loops!r}")
        reach = 1 + sum((count - 1) * stride for count, stride in self.loops)
        if reach > self.band_words:
            raise ValueError(f"loops must stay within the {self.band_words} beats of a band, not reach {reach}")

    @classmethod
    def for_depth_to_space(
        cls, *, height: int, width: int, channels: int, block: tuple[int, int], order: str, lanes: int, **rest: Any
    ) -> ReorderParams:
        """``DepthToSpace``: a band is a row, and is read once for each row that it becomes.

        ``lanes`` must divide the channels of the output; in order ``CRD`` they stood apart, and ``lanes`` must be 1.
        """
        rows, cols = block
        if channels % (rows * cols):
            raise ValueError(f"channels must be a multiple of {rows * cols}, not {channels!r}")
        count = channels // (rows * cols)
        part, step = (1, rows * cols) if order == "CRD" else (count, 1)
        loops = ((rows, cols * part), (width, channels), (cols, part), (count, step))
        return cls(*_in_beats(width * channels, loops, lanes), lanes, **rest)

    @classmethod
    def for_space_to_depth(
        cls, *, height: int, width: int, channels: int, block: tuple[int, int], order: str, lanes: int, **rest: Any
    ) -> ReorderParams:
        """``SpaceToDepth``: a band is the rows that become one.

        ``lanes`` must divide the channels of the input; in order ``CRD`` they are parted, and ``lanes`` must be 1.
        """
        rows, cols = block
        if height % rows or width % cols:
            raise ValueError(f"block must divide {height}×{width}, not {block!r}")
        row = width * channels
        pixels = ((rows, row), (cols, channels))
        inner = ((channels, 1), *pixels) if order == "CRD" and channels > 1 else (*pixels, (channels, 1))
        return cls(*_in_beats(rows * row, ((width // cols, cols * channels), *inner), lanes), lanes, **rest)

    @classmethod
    def for_upsample(
        cls, *, height: int, width: int, channels: int, factor: tuple[int, int], lanes: int, **rest: Any
    ) -> ReorderParams:
        """``Upsample``: a band is a row, and is read ``factor[0]`` times. Pixels are moved whole: any ``lanes`` do."""
        count = beats(channels, lanes)
        return cls(width * count, ((factor[0], 0), (width, count), (factor[1], 0), (count, 1)), lanes, **rest)

    @classmethod
    def for_channel_shuffle(
        cls, *, height: int, width: int, channels: int, groups: int, lanes: int, **rest: Any
    ) -> ReorderParams:
        """``ChannelShuffle``: a band is a pixel. Neighbours are parted, so ``lanes`` must be 1."""
        if channels % groups:
            raise ValueError(f"groups must divide {channels}, not {groups!r}")
        size = channels // groups
        return cls(*_in_beats(channels, ((size, 1), (groups, size)), lanes), lanes, **rest)

    @property
    def out_words(self) -> int:
        """Output beats of a band."""
        return prod(count for count, _stride in self.loops)

    @property
    def ram(self) -> RamParams:
        return RamParams(self.lanes * self.bits, 2 * self.band_words, self.memory)

    @property
    def reader(self) -> PipeParams:
        """From the memory to the output."""
        return PipeParams(beat_layout(self.bits, self.signed, self.lanes), self.ram.latency)

    @property
    def queue(self) -> QueueParams:
        return self.reader.queue

    @property
    def latency(self) -> int:
        return self.STORED_TO_READ + self.reader.latency

    @property
    def ii(self) -> int:
        return 1

    def addresses(self) -> Iterator[int]:
        """Which beat of a band is read, for each beat out."""
        addresses = [0]
        for count, stride in self.loops:
            addresses = [address + n * stride for address in addresses for n in range(count)]
        yield from addresses

    def reference(self, beats_in: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Output beats of some bands."""
        for first in range(0, len(beats_in), self.band_words):
            for address in self.addresses():
                yield list(beats_in[first + address])

    def create(self) -> Reorder:
        return Reorder(self)


def _in_beats(samples: int, loops: Sequence[Loop], lanes: int) -> tuple[int, tuple[Loop, ...]]:
    """A band and loops over samples as a band and loops over beats; the samples of the last loop fill them."""
    *outer, (count, stride) = loops
    if stride > 1 and lanes != 1:
        raise ValueError(f"lanes must be 1, for channels that part, not {lanes!r}")
    if stride == 1 and count % lanes:
        raise ValueError(f"lanes must divide {count}, not {lanes!r}")
    return samples // lanes, (*((times, step // lanes) for times, step in outer), (count // lanes, stride))


class Reorder(wiring.Component):
    """See `ReorderParams`.

    Invariants: (1) a band is read only after its last beat was stored; (2) a half is written only after its band was read for
    the last time.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: ReorderParams) -> None:
        self.params = params
        beat = beat_stream(params.bits, params.signed, params.lanes)
        super().__init__({"i": In(beat), "o": Out(beat)})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        m.submodules.ram = ram = p.ram.create()
        m.submodules.reader = reader = p.reader.create()

        # The writer: beats in order, half after half. `free` halves have been read.
        free = Signal(range(3), init=2)
        opens = Signal(init=1)
        write = Signal(range(2 * p.band_words))
        accept = self.i.valid & self.i.ready
        closes = (write == p.band_words - 1) | (write == 2 * p.band_words - 1)
        m.d.comb += [
            self.i.ready.eq(~opens | (free != 0)),
            ram.i_write_addr.eq(write),
            ram.i_write_data.eq(Value.cast(self.i.payload)),
            ram.i_write_en.eq(accept),
        ]
        with m.If(accept):
            m.d.sync += [opens.eq(closes), write.eq(Mux(write == 2 * p.band_words - 1, 0, write + 1))]

        # The reader: one beat a cycle while a half is full and the queue has room.
        full = Signal(range(3))
        read = (full != 0) & reader.o_grant
        address, last = _walk(m, p, read)
        m.d.comb += [ram.i_addr.eq(address), reader.i_take.eq(read), Value.cast(reader.i).eq(ram.o)]
        m.d.sync += [
            free.eq(free - (accept & opens) + (read & last)),
            full.eq(full + (accept & closes) - (read & last)),
        ]
        wiring.connect(m, reader.o, wiring.flipped(self.o))
        return m


def _walk(m: Module, p: ReorderParams, step: Value) -> tuple[Value, Value]:
    """Nested counters: the address of the beat to be read, and whether it is the last of its band."""
    address = Signal(range(2 * p.band_words))
    half = Signal()
    way = Signal(Shape.cast(range(-p.band_words, p.band_words)))  # to the next beat of the band
    inner = Signal(name="inner_end")  # all loops further in stand at their ends
    m.d.comb += inner.eq(1)
    back = 0  # the way that they have come
    for n, (count, stride) in reversed(list(enumerate(p.loops))):
        if count == 1:
            continue
        index = Signal(range(count), name=f"index_{n}")
        end = Signal(name=f"end_{n}")
        with m.If(step & inner):
            m.d.sync += [index.eq(Mux(end, 0, index + 1)), end.eq(index == count - 2)]
        with m.If(inner & ~end):
            m.d.comb += way.eq(stride - back)
        outer = Signal(name=f"end_from_{n}")
        m.d.comb += outer.eq(inner & end)
        inner, back = outer, back + (count - 1) * stride
    with m.If(step):
        with m.If(inner):
            m.d.sync += [address.eq(Mux(half, 0, p.band_words)), half.eq(~half)]
        with m.Else():
            m.d.sync += address.eq(address + way)
    return address, inner
