"""MAC stage: window, MAC rows, requantizers and the output queue, tied together by credits; convolutions of either kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from .border import BorderWalkParams
from .credits import Credits
from .multiplier import hard_share
from .queue import QueueParams
from .requantizer import RequantizerParams
from .streams import beat_layout, beat_stream, delay
from .window import WindowParams

__all__ = ["MacStage", "MacStageParams", "RowParams"]


class RowParams(Protocol):
    """What a stage asks of its rows: `MacRowParams` or `LaneRowParams`."""

    @property
    def depth_words(self) -> int: ...

    @property
    def address_lead(self) -> int: ...

    @property
    def latency(self) -> int: ...

    def create(self, words: Sequence[Sequence[Sequence[int]]]) -> wiring.Component: ...


class MacStageParams:
    """What `ConvParams` and `DepthwiseParams` have in common, derived from the fields that both have.

    A pass makes ``pass_words`` sums in each of the ``rows`` rows; row ``r`` makes channel ``word·rows + r`` of every ``word``.
    """

    __slots__ = ()

    window: WindowParams
    rows: int
    weight_bits: int
    acc_bits: int
    out_bits: int
    out_signed: bool
    shift: int
    low: int
    high: int
    zero_point: int
    class_rows: tuple[int, ...]
    class_cols: tuple[int, ...]
    requantizer_ii: int
    multiplier: str
    hard: int
    memory: str
    multiplier_bits: int
    split: bool
    offset_bits: int
    offset_shift: int
    positive: int | None
    negative: int | None
    ties: str
    tie_bits: int

    @property
    def out_channels(self) -> int:
        raise NotImplementedError

    @property
    def pass_words(self) -> int:
        """Output beats a pass; the last pass of a pixel may have fewer."""
        raise NotImplementedError

    @property
    def multipliers(self) -> int:
        raise NotImplementedError

    @property
    def mac_row(self) -> RowParams:
        """Any row; they differ in nothing but in the leaf cells that their elements are made of."""
        raise NotImplementedError

    def mac_row_of(self, row: int) -> RowParams:
        raise NotImplementedError

    def hard_in(self, row: int) -> int:
        """How many multipliers of a row are hard, where ``hard`` are taken row by row; their order in a row is the row's."""
        return hard_share(self.hard, row, self.multipliers // self.rows)

    @property
    def requantizer(self) -> RequantizerParams:
        return RequantizerParams(
            slots=self.passes * self.pass_words,
            words=self.words,
            walk=self.walk,
            acc_bits=self.acc_bits,
            out_bits=self.out_bits,
            out_signed=self.out_signed,
            shift=self.shift,
            low=self.low,
            high=self.high,
            zero_point=self.zero_point,
            ii=self.requantizer_ii,
            memory=self.memory,
            multiplier_bits=self.multiplier_bits,
            split=self.split,
            offset_bits=self.offset_bits,
            offset_shift=self.offset_shift,
            positive=self.positive,
            negative=self.negative,
            by_class=self.uniform,
            uniform=self.uniform,
            ties=self.ties,
            tie_bits=self.tie_bits,
        )

    @property
    def uniform(self) -> bool:
        """Whether the channels have all constants in common, which then depend on the border class alone."""
        return False

    def taps_of(self, row: int, place: int) -> Sequence[int]:
        """Which of the window's samples go into the sum at a place of a row, in the order of its weights."""
        return range(self.window.taps)

    def row_taps(self, row: int) -> Sequence[int]:
        """Which of the window's samples a row takes."""
        return self.taps_of(row, 0)

    def words_of(self, w_rcohwi: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """The weight words ``(rows, element, address, tap)``, the last place in the first element."""
        raise NotImplementedError

    def check_hard(self) -> None:
        """Whether there are so many multipliers to be hard ones."""
        most = 0 if self.multiplier == "behavioural" else self.multipliers
        if not 0 <= self.hard <= most:
            raise ValueError(f"hard must be 0 to {most} {self.multiplier} multipliers, not {self.hard!r}")

    def check_pace(self) -> None:
        """Whether the rows and the requantizers keep up with the passes."""
        if self.pass_words * self.word_cycles > self.window.steps:
            most = f"{self.window.steps} steps of a pass" + f" / {self.word_cycles}" * (self.word_cycles > 1)
            raise ValueError(f"pes must be at most the {most}, not {self.pass_words!r}")

    @property
    def word_cycles(self) -> int:
        """Cycles from one word of a pass to the next: what the requantizers need for one."""
        return self.requantizer_ii

    @property
    def words(self) -> int:
        """Output beats a pixel."""
        return -(-self.out_channels // self.rows)

    @property
    def passes(self) -> int:
        return self.window.passes

    @property
    def tail_words(self) -> int:
        """Output beats of a pixel's last pass."""
        return self.words - (self.passes - 1) * self.pass_words

    @property
    def walk(self) -> BorderWalkParams:
        return BorderWalkParams(self.window.out_height, self.window.out_width, self.class_rows, self.class_cols)

    @property
    def depth_words(self) -> int:
        """Weight words an element: one for each step of each class."""
        return self.walk.count * self.passes * self.window.steps

    @property
    def queue(self) -> QueueParams:
        in_flight = self.window.steps + self.latency + (self.pass_words - 1) * self.word_cycles + Credits.RETURN_CYCLES
        depth = self.pass_words * -(-in_flight // self.window.steps)
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

    def constants_of(self, values_o: NDArray[np.int64]) -> NDArray[np.int64]:
        """Per-channel constants ``(..., channels)`` in the order a row needs them: ``(rows, ..., words)``.

        Fillers repeat the last channel's: 0 may be no constant that the requantizers can hold.
        """
        fillers = self.words * self.rows - self.out_channels
        padded = np.pad(values_o, [(0, 0)] * (values_o.ndim - 1) + [(0, fillers)], mode="edge")
        return np.moveaxis(padded.reshape(*values_o.shape[:-1], self.words, self.rows), -1, 0)

    def reference(
        self,
        frame_hwc: Sequence[Sequence[Sequence[int]]],
        w_rcohwi: NDArray[np.int64] | None,
        b_rco: NDArray[np.int64],
        m_o: NDArray[np.int64],
        positive_o: NDArray[np.int64] | None = None,
        negative_o: NDArray[np.int64] | None = None,
    ) -> Iterator[list[int]]:
        """Output beats of one frame, from the components' own references; fillers are left out."""
        words = self.words_of(w_rcohwi)
        tables = [self.constants_of(values) for values in (b_rco, m_o, positive_o, negative_o) if values is not None]
        pixels: list[list[list[int]]] = []
        for samples, _first, _last, pixel in self.window.reference(frame_hwc):
            if pixel:
                pixels.append([])
            pixels[-1].append(samples)
        for class_, steps in zip(self.walk.reference(), pixels, strict=True):
            for word in range(self.words):
                a_pass, place = divmod(word, self.pass_words)
                span = range(a_pass * self.window.steps, (a_pass + 1) * self.window.steps)
                beat = []
                for row in range(min(self.rows, self.out_channels - word * self.rows)):
                    weights = words[row, self.pass_words - 1 - place, class_ * len(steps) :]
                    taps = self.taps_of(row, place)
                    acc = sum(int(w) * steps[n][tap] for n in span for w, tap in zip(weights[n], taps, strict=True))
                    bias, m, *offsets = (self._constant(table[row], class_, word) for table in tables)
                    beat.append(self.requantizer.reference(acc, bias, m, *offsets))
                yield beat

    def _constant(self, table: NDArray[np.int64], class_: int, word: int) -> int:
        lines = table.reshape(-1, self.requantizer.class_words)
        return int(lines[class_ % lines.shape[0], word % lines.shape[1]])

    def create(
        self,
        w_rcohwi: NDArray[np.int64] | None,
        b_rco: NDArray[np.int64],
        m_o: NDArray[np.int64],
        positive_o: NDArray[np.int64] | None = None,
        negative_o: NDArray[np.int64] | None = None,
    ) -> MacStage:
        """The hardware; ``positive_o`` and ``negative_o`` are the offsets of a split requantizer that are in tables."""
        scales = [self.constants_of(values) for values in (m_o, b_rco, positive_o, negative_o) if values is not None]
        return MacStage(self, self.words_of(w_rcohwi), scales)


class MacStage(wiring.Component):
    """See `MacStageParams`; ``words`` and ``scales``, tables of constants, are each row's.

    ``o_issue`` is high in the cycles in which the multipliers are fed: the measure of utilisation.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: MacStageParams, words: NDArray[np.int64], scales: Sequence[NDArray[np.int64]]) -> None:
        self.params = params
        self.words = words
        self.scales = scales
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

        address = Signal(range(p.mac_row.depth_words))
        if p.weight_bits:  # a pooling has no weights to address
            self._walk(m, step, address)

        taps_valid = delay(m, step.valid, p.window.latency, "taps_valid")
        first = delay(m, step.first, p.window.latency, "taps_first", reset_less=True)
        last = delay(m, step.last, p.window.latency, "taps_last", reset_less=True)

        # Sums come no earlier than the requantizers' first constants: `TABLE_CYCLES` are less than the latency of any window.
        results: list[Value] = []
        ready: list[Value] = []
        for r in range(p.rows):
            m.submodules[f"row{r}"] = row = p.mac_row_of(r).create(self.words[r].tolist())
            m.submodules[f"requantizer{r}"] = requantizer = p.requantizer.create(*(table[r] for table in self.scales))
            m.d.comb += [
                row.i_address.eq(address),
                Value.cast(row.i_taps).eq(Cat(window.o_taps[n] for n in p.row_taps(r))),
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

        m.submodules.credits = credits_ = Credits(p.queue.depth_words, p.pass_words, p.passes, p.tail_words)
        m.d.comb += [
            credits_.i_start.eq(window.o_start),
            credits_.i_taken.eq(self.o.valid & self.o.ready),
            window.i_grant.eq(credits_.o_grant),
        ]
        return m

    def _walk(self, m: Module, step: Value, address: Signal) -> None:
        """The weight address runs ahead of the samples by the latency of the ROM."""
        p = self.params
        ahead = p.window.latency - p.mac_row.address_lead - 1
        valid = delay(m, step.valid, ahead, "ahead_valid")
        opens_pixel = delay(m, step.pixel, ahead, "ahead_pixel", reset_less=True)
        m.submodules.walk = walk = replace(p.walk, scale=p.passes * p.window.steps).create()
        m.d.comb += walk.i_next.eq(valid & opens_pixel)
        with m.If(valid):
            m.d.sync += address.eq(Mux(opens_pixel, walk.o, address + 1))
