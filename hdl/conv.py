"""Convolution stage: window, systolic MAC rows, requantizers and the output queue, tied together by credits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from .border import BorderWalkParams
from .mac_row import MacRowParams
from .queue import QueueParams
from .requantizer import RequantizerParams
from .streams import add_mod, beat_layout, beat_stream, delay
from .window import WindowParams

__all__ = ["Conv", "ConvParams", "Credits"]


@dataclass(frozen=True, slots=True)
class ConvParams:
    """One integer convolution: ``y = requantize(Σ w·x + b)`` at every output pixel, see `RequantizerParams`.

    ``rows · pes`` output channels are computed at once, ``window.taps`` multiplies each: channel ``(n·pes + k)·rows + r`` is
    made by row ``r`` in pass ``n``. The sums of a row share one requantizer, so output beats have ``rows`` lanes. Border
    classes (``class_rows``, ``class_cols``: first output row and column of each) choose weights and biases.

    *Shapes* input ``(height, width, channels)``; output ``(out_height, out_width, filters)``, raster order, ``rows`` lanes.

    *Timing* ``ii`` cycles a pixel, ``frame_cycles`` a frame, with no gap between frames. ``latency`` cycles from a pixel's last
    step to its first beat of that pass on an empty output. The queue is as deep as the passes in flight, so issue never waits
    for credits while the output is taken.

    *Raises* ``ValueError`` where a pass has fewer steps than ``pes`` (the chain drains one sum a cycle), or a serial
    requantizer would be too slow.
    """

    window: WindowParams
    filters: int
    rows: int
    pes: int
    weight_bits: int
    acc_bits: int
    out_bits: int
    out_signed: bool
    shift: int
    low: int
    high: int
    zero_point: int = 0
    class_rows: tuple[int, ...] = (0,)
    class_cols: tuple[int, ...] = (0,)
    serial: bool = False
    multiplier: str = "behavioural"
    memory: str = "behavioural"

    def __post_init__(self) -> None:
        if self.window.replays != self.passes:
            raise ValueError(f"window.replays must be {self.passes}, not {self.window.replays!r}")
        if self.pes > self.window.steps:
            raise ValueError(f"pes must be at most the {self.window.steps} steps of a pass, not {self.pes!r}")
        if self.serial and (self.pes > 1 or self.window.steps < self.requantizer.ii):
            raise ValueError(f"serial requantizer needs one element and {self.requantizer.ii} steps a pass")

    @property
    def words(self) -> int:
        """Output beats a pixel."""
        return -(-self.filters // self.rows)

    @property
    def passes(self) -> int:
        return -(-self.words // self.pes)

    @property
    def multipliers(self) -> int:
        return self.rows * self.pes * self.window.taps

    @property
    def walk(self) -> BorderWalkParams:
        return BorderWalkParams(self.window.out_height, self.window.out_width, self.class_rows, self.class_cols)

    @property
    def mac_row(self) -> MacRowParams:
        return MacRowParams(
            pes=self.pes,
            taps=self.window.taps,
            x_bits=self.window.bits,
            x_signed=self.window.signed,
            w_bits=self.weight_bits,
            acc_bits=self.acc_bits,
            depth_words=self.walk.count * self.passes * self.window.steps,
            multiplier=self.multiplier,
            memory=self.memory,
        )

    @property
    def requantizer(self) -> RequantizerParams:
        return RequantizerParams(
            slots=self.passes * self.pes,
            words=self.words,
            walk=self.walk,
            acc_bits=self.acc_bits,
            out_bits=self.out_bits,
            out_signed=self.out_signed,
            shift=self.shift,
            low=self.low,
            high=self.high,
            zero_point=self.zero_point,
            serial=self.serial,
            memory=self.memory,
        )

    @property
    def queue(self) -> QueueParams:
        in_flight = self.window.steps + self.latency + self.pes - 1 + Credits.RETURN_CYCLES
        depth = self.pes * -(-in_flight // self.window.steps)
        return QueueParams(beat_layout(self.out_bits, self.out_signed, self.rows), max(depth, 2))

    @property
    def latency(self) -> int:
        """Cycles from the last step of a pass to its first beat at the output."""
        return self.window.latency + self.mac_row.latency + self.requantizer.latency + 2

    @property
    def ii(self) -> int:
        return self.window.ii

    @property
    def frame_cycles(self) -> int:
        return self.window.frame_cycles

    def words_of(self, w_rcohwi: NDArray[np.int64]) -> NDArray[np.int64]:
        """The weight words ``(rows, pes, address, tap)``: address runs over class, pass, kernel row, column, beat."""
        win = self.window
        row_classes, col_classes, filters, kh, kw, channels = w_rcohwi.shape
        banks_r, banks_c = win.parallel
        padded = np.zeros(
            (row_classes * col_classes, self.passes * self.pes * self.rows, kh, kw, win.beats * win.lanes), np.int64
        )
        padded[:, :filters, :, :, :channels] = w_rcohwi.reshape(-1, filters, kh, kw, channels)
        split = padded.reshape(
            row_classes * col_classes, self.passes, self.pes, self.rows,
            kh // banks_r, banks_r, kw // banks_c, banks_c, win.beats, win.lanes,
        )  # fmt: skip
        ordered = split.transpose(3, 2, 0, 1, 4, 6, 8, 5, 7, 9)[:, ::-1]
        return ordered.reshape(self.rows, self.pes, self.mac_row.depth_words, win.taps)

    def constants_of(self, values_o: NDArray[np.int64]) -> NDArray[np.int64]:
        """Per-channel constants ``(..., filters)`` in the order a row needs them: ``(rows, ..., words)``; fillers are 0."""
        padded = np.zeros((*values_o.shape[:-1], self.words * self.rows), np.int64)
        padded[..., : self.filters] = values_o
        return np.moveaxis(padded.reshape(*values_o.shape[:-1], self.words, self.rows), -1, 0)

    def reference(
        self,
        frame_hwc: Sequence[Sequence[Sequence[int]]],
        w_rcohwi: NDArray[np.int64],
        b_rco: NDArray[np.int64],
        m_o: NDArray[np.int64],
    ) -> Iterator[list[int]]:
        """Output beats of one frame, from the components' own references; fillers are left out."""
        classes = list(self.walk.reference())
        pixels: list[list[int]] = []
        for samples, _first, _last, pixel in self.window.reference(frame_hwc):
            if pixel:
                pixels.append([])
            pixels[-1].extend(samples)
        words = self.words_of(w_rcohwi)
        per_pass = self.window.steps * self.window.taps
        span = self.passes * self.window.steps
        for class_, pixel_samples in zip(classes, pixels, strict=True):
            beat_values: list[int] = []
            for channel in range(self.filters):
                word, row = divmod(channel, self.rows)
                a_pass, place = divmod(word, self.pes)
                samples = pixel_samples[a_pass * per_pass : (a_pass + 1) * per_pass]
                first = class_ * span + a_pass * self.window.steps
                weights = words[row, self.pes - 1 - place, first : first + self.window.steps].reshape(-1)
                acc = sum(int(w) * x for w, x in zip(weights, samples, strict=True))
                row_class, col_class = divmod(class_, len(self.class_cols))
                bias = int(b_rco[row_class, col_class, channel])
                beat_values.append(self.requantizer.reference(acc, bias, int(m_o[channel])))
            for n in range(0, self.filters, self.rows):
                yield beat_values[n : n + self.rows]

    def create(self, w_rcohwi: NDArray[np.int64], b_rco: NDArray[np.int64], m_o: NDArray[np.int64]) -> Conv:
        return Conv(self, w_rcohwi, b_rco, m_o)


class Credits(wiring.Component):
    """Counts free places in an output queue and grants passes of ``pass_words`` words; every ``passes``-th has ``tail_words``.

    *Timing* a grant reflects every start before it; a place counts again `RETURN_CYCLES` after its word was taken.
    """

    RETURN_CYCLES = 2

    def __init__(self, depth_words: int, pass_words: int, passes: int = 1, tail_words: int | None = None) -> None:
        self.depth_words = depth_words
        self.pass_words = pass_words
        self.passes = passes
        self.tail_words = pass_words if tail_words is None else tail_words
        super().__init__({"i_start": In(1), "i_taken": In(1), "o_grant": Out(1)})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        places = Signal(range(self.depth_words + 1), init=self.depth_words)
        pass_ = Signal(range(self.passes))
        words = Mux(pass_ == self.passes - 1, self.tail_words, self.pass_words)
        spent = Mux(self.i_start, words, 0)
        with m.If(self.i_start):
            m.d.sync += pass_.eq(add_mod(pass_, 1, self.passes))
        m.d.sync += [
            places.eq(places - spent + self.i_taken),
            self.o_grant.eq(places >= spent + self.pass_words),
        ]
        return m


class Conv(wiring.Component):
    """See `ConvParams`. ``o_issue`` is high in the cycles in which the multipliers are fed: the measure of utilisation."""

    i: stream.Interface
    o: stream.Interface

    def __init__(
        self, params: ConvParams, w_rcohwi: NDArray[np.int64], b_rco: NDArray[np.int64], m_o: NDArray[np.int64]
    ) -> None:
        self.params = params
        self.words = params.words_of(w_rcohwi)
        self.multipliers = params.constants_of(m_o)
        self.biases = params.constants_of(b_rco.reshape(-1, params.filters))
        window = params.window
        super().__init__(
            {
                "i": In(beat_stream(window.bits, window.signed, window.lanes)),
                "o": Out(beat_stream(params.out_bits, params.out_signed, params.rows)),
                "o_issue": Out(1),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        m.submodules.window = window = p.window.create()
        wiring.connect(m, wiring.flipped(self.i), window.i)
        step = window.o_step
        m.d.comb += self.o_issue.eq(step.valid)

        # The weight address runs ahead of the samples by the latency of the ROM.
        ahead = p.window.latency - p.mac_row.address_lead - 1
        valid = delay(m, step.valid, ahead, "ahead_valid")
        opens_pixel = delay(m, step.pixel, ahead, "ahead_pixel", reset_less=True)
        m.submodules.walk = walk = replace(p.walk, scale=p.passes * p.window.steps).create()
        address = Signal(range(p.mac_row.depth_words))
        m.d.comb += walk.i_next.eq(valid & opens_pixel)
        with m.If(valid):
            m.d.sync += address.eq(Mux(opens_pixel, walk.o, address + 1))

        taps_valid = delay(m, step.valid, p.window.latency, "taps_valid")
        first = delay(m, step.first, p.window.latency, "taps_first", reset_less=True)
        last = delay(m, step.last, p.window.latency, "taps_last", reset_less=True)

        results: list[Value] = []
        ready: list[Value] = []
        for r in range(p.rows):
            m.submodules[f"row{r}"] = row = p.mac_row.create(self.words[r].tolist())
            m.submodules[f"requantizer{r}"] = requantizer = p.requantizer.create(
                self.multipliers[r].tolist(), self.biases[r].tolist()
            )
            m.d.comb += [
                row.i_address.eq(address),
                Value.cast(row.i_taps).eq(Value.cast(window.o_taps)),
                row.i_valid.eq(taps_valid),
                row.i_first.eq(first),
                row.i_last.eq(last),
                requantizer.i_valid.eq(row.o_valid),
                requantizer.i.eq(row.o),
            ]
            results.append(requantizer.o)
            ready.append(requantizer.o_valid)

        m.submodules.queue = queue = p.queue.create()
        m.d.comb += [Value.cast(queue.i.payload).eq(Cat(*results)), queue.i.valid.eq(ready[0])]
        wiring.connect(m, queue.o, wiring.flipped(self.o))

        m.submodules.credits = credits_ = Credits(p.queue.depth_words, p.pes, p.passes, p.words - (p.passes - 1) * p.pes)
        m.d.comb += [
            credits_.i_start.eq(window.o_start),
            credits_.i_taken.eq(self.o.valid & self.o.ready),
            window.i_grant.eq(credits_.o_grant),
        ]
        return m
