"""Global pool: the mean of each channel over a whole image, summed while the image comes in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import ArrayLike

from .pipe import PipeParams, PipeTiming
from .queue import QueueParams
from .requantizer import TABLE_CYCLES, RequantizerParams
from .streams import add_mod, beat_layout, beat_stream, delay

__all__ = ["GlobalPool", "GlobalPoolParams"]


@dataclass(frozen=True, slots=True)
class GlobalPoolParams:
    """``y[c] = requantize(Σ_pixels x[c] + b)``, see `RequantizerParams`: the pooling of `DepthwiseParams` whose window is the
    image, but with a sum a channel, so that the last results leave soon after the last pixel, and no pixel is stored.

    *Shapes* input ``(height, width, channels)`` of ``pixels = height · width``, output ``(1, 1, channels)``; streams of
    ``lanes`` lanes. The constants are the same for all channels: any shape of one element.

    *Timing* with ``taken`` as in `PipeTiming`, for beat ``n``::

        take(n)  = max(offered(n), take(n-1) + 1)
        offer(k) = max(take(n) + latency, taken(k-1) + 1)

    where ``n`` is the beat of a last pixel that makes output beat ``k``; it is also taken no earlier than ``requantizer.ii``
    cycles after the one that made ``k-1``, and than ``taken(k-depth_words) + return_cycles``.
    *Raises* ``ValueError`` for a requantizer of other sums, and for fewer than `LEAST_PIXELS`.
    """

    SUM_CYCLES = 2
    """From a beat to its sum."""
    RING_CYCLES = 3
    """From a beat's sum to the next beat's of the same channels, by way of the queue."""
    LEAST_PIXELS = 1 + TABLE_CYCLES - SUM_CYCLES
    """So many that no sum comes before the requantizers' first constants."""

    pixels: int
    channels: int
    lanes: int
    bits: int
    signed: bool
    requantizer: RequantizerParams

    def __post_init__(self) -> None:
        if self.pixels < self.LEAST_PIXELS:
            raise ValueError(f"pixels must be at least {self.LEAST_PIXELS}, not {self.pixels!r}")
        if self.channels % self.lanes:
            raise ValueError(f"lanes must divide the {self.channels} channels, not {self.lanes!r}")
        if (self.requantizer.slots, self.requantizer.words) != (self.words, self.words):
            raise ValueError(f"requantizer must have {self.words} slots and words, not {self.requantizer!r}")
        if not self.requantizer.uniform or self.requantizer.walk.count > 1:
            raise ValueError("requantizer must have one word of constants")

    @property
    def words(self) -> int:
        """Beats a pixel."""
        return self.channels // self.lanes

    @property
    def ring(self) -> QueueParams | None:
        """The sums of a pixel's beats, none of which may have to wait for another to move up; few stand in registers."""
        if self.words < self.RING_CYCLES:
            return None
        return QueueParams(self.requantizer.acc_bits * self.lanes, self.words + 1)

    @property
    def pipe(self) -> PipeParams:
        layout = beat_layout(self.requantizer.out_bits, self.requantizer.out_signed, self.lanes)
        return PipeParams(layout, self.SUM_CYCLES + self.requantizer.latency)

    @property
    def timing(self) -> PipeTiming:
        return self.pipe.timing

    @property
    def latency(self) -> int:
        """Cycles from a beat of the last pixel to its mean at the output."""
        return self.pipe.latency

    @property
    def ii(self) -> int:
        """Cycles a beat."""
        return 1

    @property
    def frame_cycles(self) -> int:
        """The least that frames back to back take each."""
        sums = (self.pixels - 1) * self.words
        return sums + max((self.words - 1) * self.requantizer.ii + 1, self.requantizer.ii - sums)

    def reference(
        self,
        frame_hwc: Sequence[Sequence[Sequence[int]]],
        b: ArrayLike,
        m: ArrayLike,
        positive: ArrayLike | None = None,
        negative: ArrayLike | None = None,
    ) -> Iterator[list[int]]:
        """Output beats of one frame."""
        sums = [sum(samples) for samples in zip(*(pixel for row in frame_hwc for pixel in row), strict=True)]
        bias, factor, *offsets = (int(np.ravel(value)[0]) for value in (b, m, positive, negative) if value is not None)
        means = [self.requantizer.reference(acc, bias, factor, *offsets) for acc in sums]
        for n in range(0, self.channels, self.lanes):
            yield means[n : n + self.lanes]

    def create(
        self, b: ArrayLike, m: ArrayLike, positive: ArrayLike | None = None, negative: ArrayLike | None = None
    ) -> GlobalPool:
        """The hardware; ``positive`` and ``negative`` are the offsets of a split requantizer that are in tables."""
        return GlobalPool(self, b, m, positive, negative)


class GlobalPool(wiring.Component):
    """See `GlobalPoolParams`. The sums go round in a ring: each beat takes its own, and puts it back or hands it on.

    Invariant: (1) no beat waits for its sum: a queue is only where a pixel has as many beats as the way through it takes.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(
        self, params: GlobalPoolParams, b: ArrayLike, m: ArrayLike, positive: ArrayLike | None, negative: ArrayLike | None
    ) -> None:
        self.params = params
        self.b, self.m, self.positive, self.negative = b, m, positive, negative
        requantizer = params.requantizer
        super().__init__(
            {
                "i": In(beat_stream(params.bits, params.signed, params.lanes)),
                "o": Out(beat_stream(requantizer.out_bits, requantizer.out_signed, params.lanes)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        m.submodules.pipe = pipe = p.pipe.create()
        word = Signal(range(p.words))
        pixel = Signal(range(p.pixels))
        first = Signal(init=1)  # pixel == 0
        last = Signal()  # pixel == p.pixels - 1
        wait = Signal(range(p.requantizer.ii))
        take = self.i.valid & self.i.ready
        m.d.comb += [self.i.ready.eq(~last | (pipe.o_grant & (wait == 0))), pipe.i_take.eq(take & last)]
        with m.If(take & (word == p.words - 1)):
            m.d.sync += [pixel.eq(add_mod(pixel, 1, p.pixels)), first.eq(last), last.eq(pixel == p.pixels - 2)]
        with m.If(take):
            m.d.sync += word.eq(add_mod(word, 1, p.words))
        if p.requantizer.ii > 1:
            with m.If(take & last):
                m.d.sync += wait.eq(p.requantizer.ii - 1)
            with m.Elif(wait != 0):
                m.d.sync += wait.eq(wait - 1)

        acc_bits = p.requantizer.acc_bits
        sums = [Signal(signed(acc_bits), name=f"sum_{n}", reset_less=True) for n in range(p.lanes)]
        adds = delay(m, take, 1, "adds")
        opens = delay(m, first, 1, "opens", reset_less=True)
        came_round = self._ring(m, Cat(*sums), adds & ~opens, adds, delay(m, take & ~last, p.SUM_CYCLES, "back"))
        for n, total in enumerate(sums):
            sample = Signal.like(self.i.payload[n], name=f"sample_{n}", reset_less=True)
            before = came_round[n * acc_bits : (n + 1) * acc_bits].as_signed()
            m.d.sync += sample.eq(self.i.payload[n])
            with m.If(adds):
                m.d.sync += total.eq(Mux(opens, 0, before) + sample)

        done = delay(m, take & last, p.SUM_CYCLES, "done")
        results = []
        for n, total in enumerate(sums):
            requantizer = p.requantizer.create(self.m, self.b, self.positive, self.negative)
            m.submodules[f"requantizer{n}"] = requantizer
            m.d.comb += [requantizer.i_valid.eq(done), requantizer.i.eq(total)]
            results.append(requantizer.o)
        m.d.comb += Value.cast(pipe.i).eq(Cat(*results))
        wiring.connect(m, pipe.o, wiring.flipped(self.o))
        return m

    def _ring(self, m: Module, sums: Value, takes: Value, adds: Value, back: Value) -> Value:
        """The sums of the beat that comes: out of a queue, or of registers that move with every beat."""
        if self.params.ring is None:
            for n in range(self.params.words - 1):
                later = Signal(len(sums), name=f"sums_{n + 1}", reset_less=True)
                with m.If(adds):
                    m.d.sync += later.eq(sums)
                sums = later
            return sums
        m.submodules.ring = ring = self.params.ring.create()
        m.d.comb += [ring.o.ready.eq(takes), ring.i.payload.eq(sums), ring.i.valid.eq(back)]
        return Value.cast(ring.o.payload)
