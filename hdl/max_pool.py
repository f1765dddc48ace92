"""Max pooling stage: the greatest sample under each window, channel by channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .credits import Credits
from .queue import QueueParams
from .streams import beat_layout, beat_stream, delay
from .window import WindowParams

__all__ = ["MaxPool", "MaxPoolParams"]


@dataclass(frozen=True, slots=True)
class MaxPoolParams:
    """``y[i,j,c] = max x[i·s+u−p, j·s+v−p, c]``; padding never wins, since ``window.pad_raw`` is the format's least value.

    *Shapes* input and output have ``window.lanes`` lanes.

    *Timing* ``ii`` cycles a beat (one a tap), ``frame_cycles`` a frame. ``latency`` cycles from the last tap of a beat to that
    beat at the output.
    *Raises* ``ValueError`` for a window that is not channelwise or whose padding could win.
    """

    window: WindowParams

    def __post_init__(self) -> None:
        least = -(1 << (self.window.bits - 1)) if self.window.signed else 0
        if not self.window.channelwise or self.window.parallel != (1, 1):
            raise ValueError("window must be channelwise and not parallel")
        if self.window.pad_raw != least:
            raise ValueError(f"pad_raw must be {least}, not {self.window.pad_raw!r}")

    @property
    def queue(self) -> QueueParams:
        in_flight = self.window.steps + self.latency + Credits.RETURN_CYCLES
        layout = beat_layout(self.window.bits, self.window.signed, self.window.lanes)
        return QueueParams(layout, max(-(-in_flight // self.window.steps), 2))

    @property
    def latency(self) -> int:
        return self.window.latency + 1 + 2

    @property
    def ii(self) -> int:
        return self.window.steps

    @property
    def word_cycles(self) -> int:
        """As `MacStageParams`, but that a pass has only one word."""
        return 1

    @property
    def frame_cycles(self) -> int:
        return self.window.frame_cycles

    def reference(self, frame_hwc: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[int]]:
        """Output beats of one frame."""
        best: list[int] = []
        for samples, first, last, _pixel in self.window.reference(frame_hwc):
            best = samples if first else [max(pair) for pair in zip(best, samples, strict=True)]
            if last:
                yield best

    def create(self) -> MaxPool:
        return MaxPool(self)


class MaxPool(wiring.Component):
    """See `MaxPoolParams`. ``o_issue`` as in `MacStage`."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: MaxPoolParams) -> None:
        self.params = params
        window = params.window
        beat = beat_stream(window.bits, window.signed, window.lanes)
        super().__init__({"i": In(beat), "o": Out(beat), "o_issue": Out(1)})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        m.submodules.window = window = p.window.create()
        wiring.connect(m, wiring.flipped(self.i), window.i)
        step = window.o_step
        m.d.comb += self.o_issue.eq(step.valid)

        first = delay(m, step.first, p.window.latency, "taps_first", reset_less=True)
        last = delay(m, step.valid & step.last, p.window.latency, "taps_last")
        best = []
        for n in range(p.window.lanes):
            lane = Signal(Shape(p.window.bits, p.window.signed), name=f"best_{n}", reset_less=True)
            sample = window.o_taps[n]
            m.d.sync += lane.eq(Mux(first | (sample > lane), sample, lane))
            best.append(lane)

        m.submodules.queue = queue = p.queue.create()
        m.d.comb += [Value.cast(queue.i.payload).eq(Cat(*best)), queue.i.valid.eq(delay(m, last, 1, "found"))]
        wiring.connect(m, queue.o, wiring.flipped(self.o))

        m.submodules.credits = credits_ = Credits(p.queue.depth_words, 1)
        m.d.comb += [
            credits_.i_start.eq(window.o_start),
            credits_.i_taken.eq(self.o.valid & self.o.ready),
            window.i_grant.eq(credits_.o_grant),
        ]
        return m
