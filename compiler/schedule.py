"""When everything happens: an exact timetable of the pipeline, without simulating it.

Every stage follows a few max-plus rules (a thing happens at the latest of the times it waits for), stated with the components
in `convfold.hdl`. All of them look backwards in time only, so the times of all beats follow one by one, in whatever order they
become known. A pipeline in which nothing more becomes known while beats are missing would be deadlocked.

Times are clock cycles; cycle 0 is the first input beat at the chip's edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from convfold.hdl.axi_stream import AxiStreamParams
from convfold.hdl.conv import ConvParams, Credits
from convfold.hdl.dense import DenseParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.streams import beats

__all__ = ["StageParams", "Timetable", "timetable"]

StageParams = ConvParams | DenseParams | MaxPoolParams | LaneAdapterParams

STORED_TO_START = 2  # from the last beat of a row to the start of an output row that needs it
RELEASED_TO_OPEN = 2  # from the last step that reads a row to the first beat of the row that takes its place
ROW_TO_ROW = 2  # from the start of an output row to that of the next, at the least
START_TO_STEP = 1  # from the start of a pass to its first step


@dataclass(slots=True)
class _Link:
    """The beats between two stages: when each could be taken at the earliest, and when it was."""

    offered: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    def take(self, earliest: int = 0) -> int:
        """Take the next beat, not before ``earliest``; one a cycle."""
        n = len(self.taken)
        time = max(self.offered[n], earliest, self.taken[-1] + 1 if n else 0)
        self.taken.append(time)
        return time

    @property
    def waiting(self) -> bool:
        return len(self.offered) > len(self.taken)


class _WindowStage:
    """A stage with a window: rows come in, passes start, words leave through a queue with credits."""

    def __init__(self, params: ConvParams | MaxPoolParams, source: _Link, sink: _Link, frames: int) -> None:
        window = params.window
        self.source, self.sink = source, sink
        self.row_beats = window.width * window.beats
        self.rows = window.rows
        self.steps = window.steps
        self.latency = params.latency
        self.depth = params.queue.depth_words
        self.claims, self.releases = window.claims, window.releases
        if isinstance(params, ConvParams):
            tail = params.words - (params.passes - 1) * params.pes
            self.words = [params.pes] * (params.passes - 1) + [tail]
        else:
            self.words = [1] * window.passes
        self.most_words = max(self.words)
        self.row_passes = window.out_width * window.passes
        self.total_passes = frames * window.out_height * self.row_passes
        self.needed = -window.unread_rows  # rows that must have been stored before the output row at hand may start
        self.stored: list[int] = []  # when the last beat of each input row came
        self.freed: list[int] = []  # when each input row was read for the last time
        self.starts: list[int] = []  # when each pass started
        self.spent = 0  # words of the passes started so far

    def advance(self) -> bool:
        return any([self._take(), self._start()])

    def _take(self) -> bool:
        moved = False
        while self.source.waiting:
            row, beat = divmod(len(self.source.taken), self.row_beats)
            earliest = 0
            if beat == 0 and row >= self.rows:
                if row - self.rows >= len(self.freed):
                    break
                earliest = self.freed[row - self.rows] + RELEASED_TO_OPEN
            time = self.source.take(earliest)
            if beat == self.row_beats - 1:
                self.stored.append(time)
            moved = True
        return moved

    def _start(self) -> bool:
        moved = False
        while len(self.starts) < self.total_passes:
            number = len(self.starts)
            opens_row = number % self.row_passes == 0
            time = 1  # grants are low in the first cycle
            needed = self.needed
            if number:
                time = self.starts[-1] + self.steps
            if opens_row:
                row = number // self.row_passes % len(self.claims)
                needed += self.claims[row]
                if needed > len(self.stored):
                    break
                if needed > 0:
                    time = max(time, self.stored[needed - 1] + STORED_TO_START)
                if number:
                    time = max(time, self.starts[number - self.row_passes] + ROW_TO_ROW)
            returned = self.spent + self.most_words - self.depth
            if returned > len(self.sink.taken):
                break
            if returned > 0:
                time = max(time, self.sink.taken[returned - 1] + Credits.RETURN_CYCLES)
            self.starts.append(time)
            self.needed = needed
            words = self.words[number % len(self.words)]
            self.spent += words
            last_step = time + self.steps - 1 + START_TO_STEP
            self.sink.offered.extend(last_step + self.latency + n for n in range(words))
            if (number + 1) % self.row_passes == 0:
                row = number // self.row_passes % len(self.releases)
                self.freed.extend([last_step] * self.releases[row])
            moved = True
        return moved


class _AdapterStage:
    """A lane adapter: gathers narrow beats or spreads wide ones."""

    def __init__(self, params: LaneAdapterParams, source: _Link, sink: _Link) -> None:
        self.source, self.sink = source, sink
        self.pixel_in = beats(params.channels, params.in_lanes)
        if params.out_lanes > params.in_lanes:
            group = params.out_lanes // params.in_lanes
            closes = [n % group == group - 1 or n == self.pixel_in - 1 for n in range(self.pixel_in)]
            self.parts = [int(close) for close in closes]
        else:
            group = params.in_lanes // params.out_lanes
            tail = beats(params.channels - (self.pixel_in - 1) * params.in_lanes, params.out_lanes)
            self.parts = [group] * (self.pixel_in - 1) + [tail]

    def advance(self) -> bool:
        moved = False
        while self.source.waiting:
            parts = self.parts[len(self.source.taken) % self.pixel_in]
            earliest = 0
            if parts:
                if len(self.sink.taken) < len(self.sink.offered):
                    break
                earliest = self.sink.taken[-1] if self.sink.taken else 0
            time = self.source.take(earliest)
            self.sink.offered.extend([time + 1] * parts)
            moved = True
        return moved


@dataclass(frozen=True, slots=True)
class Timetable:
    """Cycles of a run without stalls: the first beat in of each frame, its last beat out, and each stage's pass starts."""

    first_in: tuple[int, ...]
    last_out: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]

    @property
    def latency_cycles(self) -> int:
        """First input beat to last output beat of the first frame."""
        return self.last_out[0] - self.first_in[0]

    @property
    def interval_cycles(self) -> int:
        """Last output beat to last output beat, the longest of all frames: rings of two frames can make them take turns."""
        return max(after - before for before, after in pairwise(self.last_out))


def timetable(
    edge_in: AxiStreamParams, stages: Sequence[StageParams], edge_out: AxiStreamParams, frames: int
) -> Timetable:
    """The exact times of ``frames`` frames sent and taken without a pause.

    *Raises* ``RuntimeError`` for a pipeline that stops: that would be a deadlock in hardware.
    """
    links = [_Link() for _ in range(len(stages) + 1)]
    links[0].offered = [n + edge_in.latency for n in range(frames * edge_in.frame_beats)]
    models: list[_WindowStage | _AdapterStage] = []
    for n, params in enumerate(stages):
        if isinstance(params, LaneAdapterParams):
            models.append(_AdapterStage(params, links[n], links[n + 1]))
        else:
            engine = params.conv if isinstance(params, DenseParams) else params
            models.append(_WindowStage(engine, links[n], links[n + 1], frames))
    moving = True
    while moving:
        moving = any([model.advance() for model in models])
        while links[-1].waiting:
            links[-1].take()
            moving = True
    taken = links[-1].taken
    if len(taken) < frames * edge_out.frame_beats:
        raise RuntimeError(f"the pipeline stops after {len(taken)} of {frames * edge_out.frame_beats} beats")
    accepted = _accepted(links[0].taken)
    return Timetable(
        first_in=tuple(accepted[:: edge_in.frame_beats]),
        last_out=tuple(taken[(n + 1) * edge_out.frame_beats - 1] + edge_out.latency for n in range(frames)),
        starts=tuple(tuple(model.starts) for model in models if isinstance(model, _WindowStage)),
    )


def _accepted(taken: Sequence[int]) -> list[int]:
    """When the chip's edge, a slice that holds two beats, took each beat that the first stage takes at the given times."""
    accepted: list[int] = []
    for n in range(len(taken)):
        accepted.append(max(accepted[-1] + 1 if n else 0, taken[n - 2] + 1 if n > 1 else 0))
    return accepted
