"""When everything happens: an exact timetable of the pipeline, without simulating it.

Every component follows a few max-plus rules (a thing happens at the latest of the times it waits for), stated with the
components in `convfold.hdl`. Here each rule is a process: a generator that appends times to lists, and pauses where a time that
it needs is not known yet. All rules look backwards in time only, so the times of all beats follow one by one, and in whatever
order they become known they are the same. A pipeline in which nothing more becomes known while beats are missing is deadlocked.

*Why a timetable that ends rules out deadlock, under every pattern of stalls and for any number of frames.* Which event comes
next in each process depends neither on time nor on samples, only when it comes does; and what an event waits for is that others
*have* happened ("beat ``n`` is taken once beat ``n - depth`` has left"). More time, or more events elsewhere, never take
a permission back. So take the events in the order of the timetable, let sources pause and sinks stall as they like but not for
ever, and suppose that some event never happens: of these, the first in that order waits for earlier ones only, all of which do
happen, and then it can. Stalls change when things happen, never whether. A frame that has left all components leaves them as
it found them, but for the places where their rings stand; so if one frame passes, the next one passes after it, and not to wait
for the one before takes no permission back either.

Times are clock cycles; cycle 0 is the first input beat at the chip's edge.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise

from convfold.hdl.add import AddParams
from convfold.hdl.argmax import ArgMaxParams
from convfold.hdl.axi_stream import AxiStreamParams
from convfold.hdl.buffer import BufferParams
from convfold.hdl.concat import ConcatParams
from convfold.hdl.conv import ConvParams
from convfold.hdl.credits import Credits
from convfold.hdl.crop import CropParams
from convfold.hdl.dense import DenseParams
from convfold.hdl.depthwise import DepthwiseParams
from convfold.hdl.fork import ForkParams
from convfold.hdl.global_pool import GlobalPoolParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.lookup import LookupParams
from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.pad import PadParams
from convfold.hdl.pipe import PipeTiming
from convfold.hdl.product import ProductParams
from convfold.hdl.reorder import ReorderParams
from convfold.hdl.streams import beats
from convfold.hdl.window import RELEASED_TO_OPEN, START_TO_STEP, STORED_TO_START

__all__ = ["SOURCE", "Component", "StageParams", "Stopped", "Timetable", "timetable"]

EngineParams = ConvParams | DepthwiseParams | MaxPoolParams
StageParams = (
    EngineParams
    | DenseParams
    | LaneAdapterParams
    | ForkParams
    | BufferParams
    | LookupParams
    | AddParams
    | ProductParams
    | GlobalPoolParams
    | ConcatParams
    | ArgMaxParams
    | ReorderParams
    | CropParams
    | PadParams
)

SOURCE = "input edge"
"""The stream that enters at the chip's edge: no layer can be called so."""

Times = list[int]
Process = Generator[tuple[Times, int], None, None]
"""Appends times to lists; yields ``(times, n)`` where it cannot go on before ``times[n]`` is known."""


@dataclass(frozen=True, slots=True)
class Component:
    """One component of the pipeline, and whose outputs its inputs are.

    An input is ``"NAME"``, the output ``o`` of that component, or ``"NAME.k"``, the output ``ok`` of a fork; `SOURCE` is the
    chip's input edge.
    """

    name: str
    params: StageParams
    inputs: tuple[str, ...]


class Stopped(RuntimeError):
    """A pipeline that stops. ``held`` are the ports whose beats wait at a join for another input that has none."""

    def __init__(self, message: str, held: frozenset[str]) -> None:
        super().__init__(message)
        self.held = held


@dataclass(frozen=True, slots=True)
class Timetable:
    """Cycles of a run without stalls.

    ``first_in`` and ``last_out`` are each frame's first beat in and its last beat out, over all outputs; ``starts`` are the
    starts of all passes of each component with a window, and ``occupancy`` is the least depth with which each buffer would
    never have refused a beat; ``arrivals`` are the times of the beats that entered each buffer.
    """

    first_in: tuple[int, ...]
    last_out: tuple[int, ...]
    starts: Mapping[str, tuple[int, ...]]
    occupancy: Mapping[str, int]
    arrivals: Mapping[str, Sequence[int]]

    @property
    def latency_cycles(self) -> int:
        """First input beat to last output beat of the first frame."""
        return self.last_out[0] - self.first_in[0]

    @property
    def interval_cycles(self) -> int:
        """Last output beat to last output beat, the longest of all frames: rings of two frames can make them take turns."""
        return max(after - before for before, after in pairwise(self.last_out))


def timetable(
    edge_in: AxiStreamParams,
    components: Sequence[Component],
    outputs: Sequence[tuple[str, AxiStreamParams]],
    frames: int,
    *,
    unbounded: bool = False,
) -> Timetable:
    """The exact times of ``frames`` frames sent and taken without a pause; ``components`` in topological order.

    With ``unbounded`` every buffer is as deep as it needs to be, its latency still that of its ``depth_words``. With depths
    equal to the ``occupancy`` that this tells, and latencies no longer, nothing comes later.

    *Raises* ``Stopped`` for a pipeline that stops, with the components that did: that would be a deadlock in hardware.
    ``ValueError`` for outputs that are not read exactly once, and where components do not agree on the beats of a frame.
    """
    run = _Run(frames, unbounded)
    source = run.link(SOURCE, edge_in.frame_beats)
    source.offered.extend(n + edge_in.latency for n in range(source.total))
    for component in components:
        run.add(component)
    sinks = []
    for name, edge in outputs:
        sink = run.read(name)
        if sink.beats != edge.frame_beats:
            raise ValueError(f"the edge of {name} must take {sink.beats} beats a frame, not {edge.frame_beats}")
        run.start(f"the edge of {name}", _drain(sink), sink.taken)
        sinks.append(sink)
    if run.unread:
        raise ValueError(f"every output must be read once, and nothing reads {', '.join(run.unread)}")

    stopped = run.finish()
    if stopped:
        ended, wanted = sum(len(sink.taken) for sink in sinks), sum(sink.total for sink in sinks)
        message = f"the pipeline stops after {ended} of {wanted} beats: {', '.join(stopped)} wait for ever"
        raise Stopped(message, run.held())
    accepted = _accepted(source.taken)
    return Timetable(
        first_in=tuple(accepted[:: edge_in.frame_beats]),
        last_out=tuple(
            max(
                sink.taken[(n + 1) * edge.frame_beats - 1] + edge.latency
                for sink, (_name, edge) in zip(sinks, outputs, strict=True)
            )
            for n in range(frames)
        ),
        starts={name: tuple(times) for name, times in run.starts.items()},
        occupancy={name: depth() for name, depth in run.occupancy.items()},
        arrivals=run.arrivals,
    )


def _accepted(taken: Sequence[int]) -> list[int]:
    """When the chip's edge, a slice that holds two beats, took each beat that the first component takes at the given times."""
    accepted: list[int] = []
    for n in range(len(taken)):
        accepted.append(max(accepted[-1] + 1 if n else 0, taken[n - 2] + 1 if n > 1 else 0))
    return accepted


# ------------------------------------------------------------------------------------------------------------- the processes


@dataclass(slots=True)
class _Link:
    """A stream: when each beat could be taken at the earliest, and when it was; one is taken a cycle."""

    beats: int  # a frame
    total: int  # of all frames
    offered: Times = field(default_factory=list)
    taken: Times = field(default_factory=list)


_Started = tuple[str, Process, list[tuple[int, Times]]]
"""A process, its component, and the lists that it writes."""


class _Run:
    """All links and processes of one timetable."""

    def __init__(self, frames: int, unbounded: bool) -> None:
        self.frames = frames
        self.unbounded = unbounded
        self.unread: dict[str, _Link] = {}
        self.starts: dict[str, Times] = {}
        self.occupancy: dict[str, Callable[[], int]] = {}
        self.arrivals: dict[str, Times] = {}
        self._joins: list[Mapping[str, _Link]] = []
        self._started: list[_Started] = []

    def link(self, name: str, frame_beats: int) -> _Link:
        """The stream that leaves ``name``."""
        self.unread[name] = link = _Link(frame_beats, self.frames * frame_beats)
        return link

    def read(self, name: str) -> _Link:
        if name not in self.unread:
            raise ValueError(f"an input must be an output that nothing else reads, not {name!r}")
        return self.unread.pop(name)

    def start(self, name: str, process: Process, *writes: Times) -> None:
        """Let a process of component ``name`` run; it alone appends to the lists that it ``writes``."""
        self._started.append((name, process, [(id(times), times) for times in writes]))

    def finish(self) -> list[str]:
        """Run all processes; returns the names of those that wait for what never comes."""
        ready = list(reversed(self._started))
        waiting: dict[int, tuple[int, _Started]] = {}  # by the list they wait for
        while ready:
            entry = ready.pop()
            _name, process, writes = entry
            wait = next(process, None)
            if wait:
                waiting[id(wait[0])] = wait[1], entry
            for key, times in writes:
                reader = waiting.get(key)
                if reader and len(times) > reader[0]:
                    del waiting[key]
                    ready.append(reader[1])
        stopped = {name for _n, (name, _process, _writes) in waiting.values()}
        return [name for name in dict.fromkeys(name for name, _process, _writes in self._started) if name in stopped]

    def held(self) -> frozenset[str]:
        """The inputs of joins that offer a beat while another input offers none."""
        held: set[str] = set()
        for links in self._joins:
            offers = {name for name, link in links.items() if len(link.offered) > len(link.taken)}
            held |= offers if len(offers) < len(links) else set()
        return frozenset(held)

    def add(self, component: Component) -> None:
        """The processes and output links of one component."""
        name, params, frames = component.name, component.params, self.frames
        sources = [self.read(tensor) for tensor in component.inputs]
        source = sources[0]
        if len(sources) > 1:
            self._joins.append(dict(zip(component.inputs, sources, strict=True)))

        def expect(link: _Link, frame_beats: int) -> None:
            if link.beats != frame_beats:
                raise ValueError(f"{name} must be given {frame_beats} beats a frame, not {link.beats}")

        match params:
            case ConvParams() | DepthwiseParams() | DenseParams() | MaxPoolParams():
                engine = params.conv if isinstance(params, DenseParams) else params
                window = engine.window
                expect(source, window.pixels * window.beats)
                words = _pass_words(engine)
                sink = self.link(name, window.out_height * window.out_width * sum(words))
                stored: Times = []  # when the last beat of each input pixel came
                freed: Times = []  # when each input pixel was read for the last time
                starts: Times = []  # of all passes
                self.starts[name] = starts
                store = _store(source, window.beats, window.rows * window.width, RELEASED_TO_OPEN, stored, freed)
                self.start(name, store, source.taken, stored)
                self.start(name, _issue(engine, words, stored, freed, starts, sink, frames), starts, freed, sink.offered)
            case ForkParams():
                branches = [self.link(f"{name}.{n}", source.beats) for n in range(params.outputs)]
                inside = _Link(source.beats, source.total)
                timing = PipeTiming(params.latency, depth_words=2, return_cycles=1)  # that of a register slice
                self.start(name, _pipe(timing, [[source]], inside), source.taken, inside.offered)
                self.start(name, _fork(inside, branches), inside.taken, *(branch.offered for branch in branches))
            case LaneAdapterParams():
                parts = _adapter_parts(params)
                pixels = source.beats // len(parts)
                expect(source, pixels * len(parts))
                sink = self.link(name, pixels * sum(parts))
                self.start(name, _register(source, sink, parts), source.taken, sink.offered)
            case CropParams():
                expect(source, params.in_beats)
                sink = self.link(name, params.out_beats)
                kept = [int(keeps) for keeps in params.keeps()]
                self.start(name, _register(source, sink, kept), source.taken, sink.offered)
            case PadParams():
                expect(source, params.in_beats)
                sink = self.link(name, params.out_beats)
                self.start(name, _pad(source, sink, list(params.copies())), source.taken, sink.offered)
            case ReorderParams():
                bands = source.beats // params.band_words
                expect(source, bands * params.band_words)
                sink = self.link(name, bands * params.out_words)
                stored, freed = [], []
                store = _store(source, params.band_words, 2, params.READ_TO_OPEN, stored, freed)
                self.start(name, store, source.taken, stored)
                self.start(name, _read_band(params, sink, stored, freed), freed, sink.offered)
            case GlobalPoolParams():
                expect(source, params.pixels * params.words)
                sink = self.link(name, params.words)
                self.start(name, _global_pool(params, source, sink), source.taken, sink.offered)
            case ConcatParams():
                turns = [[sources[n]] for n in params.order]
                for n, link in enumerate(sources):
                    expect(link, source.beats // params.order.count(0) * params.order.count(n))
                sink = self.link(name, sum(link.beats for link in sources))
                process = _pipe(params.timing, turns, sink)
                self.start(name, process, *(link.taken for link in sources), sink.offered)
            case _:
                timing, bounded = params.timing, True
                sink = self.link(name, source.beats // timing.beats)
                for link in sources:
                    expect(link, sink.beats * timing.beats)
                if isinstance(params, BufferParams):
                    bounded = not self.unbounded
                    self.arrivals[name] = source.taken
                    self.occupancy[name] = lambda: _occupancy(source.taken, sink.taken, timing.return_cycles)
                process = _pipe(timing, [sources], sink, bounded=bounded)
                self.start(name, process, *(link.taken for link in sources), sink.offered)


def _occupancy(entered: Times, left: Times, return_cycles: int) -> int:
    """The least depth at which a place was free for every beat when it came."""
    return max(n - bisect_right(left, time - return_cycles, hi=n) for n, time in enumerate(entered)) + 1


# ----------------------------------------------------------------------------------------------------------------- the rules
#
# The loops are written out, for they run a million times: `last` is when the last beat was taken, `n` the number of the next.


def _drain(source: _Link) -> Process:
    """A sink that always takes."""
    offered, taken = source.offered, source.taken
    last = -1
    while len(taken) < source.total:
        if len(offered) == len(taken):
            yield offered, len(taken)
        for time in offered[len(taken) :]:
            last = time if time > last else last + 1
            taken.append(last)


def _store(source: _Link, part_beats: int, places: int, to_open: int, stored: Times, freed: Times) -> Process:
    """Parts (pixels, bands) come into a memory with room for ``places``; one opens ``to_open`` cycles after it was freed."""
    offered, taken = source.offered, source.taken
    last = -1
    for part in range(source.total // part_beats):
        if part >= places:
            if part - places >= len(freed):
                yield freed, part - places
            last = max(last, freed[part - places] + to_open - 1)
        n, end = len(taken), (part + 1) * part_beats
        while n < end:
            if n >= len(offered):
                yield offered, n
            for time in offered[n:end]:
                last = time if time > last else last + 1
                taken.append(last)
            n = len(taken)
        stored.append(last)


def _pass_words(params: EngineParams) -> list[int]:
    """Output beats of each pass of a pixel."""
    if isinstance(params, MaxPoolParams):
        return [1] * params.window.passes
    return [params.pass_words] * (params.passes - 1) + [params.tail_words]


def _issue(
    params: EngineParams,
    pass_words: Sequence[int],
    stored: Times,
    freed: Times,
    starts: Times,
    sink: _Link,
    frames: int,
) -> Process:
    """Passes start with pixels and credits, and their words leave through a queue."""
    window = params.window
    offered, taken = sink.offered, sink.taken
    steps, spacing = window.steps, params.word_cycles
    start_to_word = START_TO_STEP + steps - 1 + params.latency
    owed = max(pass_words) - params.queue.depth_words  # words that must have left before the next pass starts
    awaited = (window.needed - 1).tolist()  # the last pixel of the frame that each output pixel waits for
    releases = window.releases.tolist()
    time = 1 - steps  # grants are low in the first cycle
    for frame in range(frames):
        for pixel, release in zip(awaited, releases, strict=True):
            pixel += frame * window.pixels
            if pixel >= len(stored):
                yield stored, pixel
            earliest = stored[pixel] + STORED_TO_START
            for words in pass_words:
                time += steps
                if time < earliest:
                    time = earliest
                if owed > 0:
                    if owed > len(taken):
                        yield taken, owed - 1
                    if time < taken[owed - 1] + Credits.RETURN_CYCLES:
                        time = taken[owed - 1] + Credits.RETURN_CYCLES
                starts.append(time)
                owed += words
                word = time + start_to_word
                if words == 1:
                    offered.append(word)
                else:
                    offered.extend(range(word, word + words * spacing, spacing))
            if release:
                freed.extend([time + steps - 1 + START_TO_STEP] * release)


def _adapter_parts(params: LaneAdapterParams) -> list[int]:
    """How many beats each beat of a pixel completes."""
    count = beats(params.channels, params.in_lanes)
    if params.out_lanes > params.in_lanes:
        group = params.out_lanes // params.in_lanes
        return [int(n % group == group - 1 or n == count - 1) for n in range(count)]
    tail = beats(params.channels - (count - 1) * params.in_lanes, params.out_lanes)
    return [params.in_lanes // params.out_lanes] * (count - 1) + [tail]


def _register(source: _Link, sink: _Link, parts: Sequence[int]) -> Process:
    """A register at the output; each beat in makes ``parts`` beats, and one that makes none need not wait for the register."""
    offered, taken = source.offered, source.taken
    given, left = sink.offered, sink.taken
    last = -1
    for n, count in enumerate(islice(cycle(parts), source.total)):
        if n >= len(offered):
            yield offered, n
        last += 1
        if last < offered[n]:
            last = offered[n]
        if count:
            if given:
                if len(left) < len(given):
                    yield left, len(given) - 1
                if last < left[-1]:
                    last = left[-1]
            given.extend([last + 1] * count)
        taken.append(last)


def _pad(source: _Link, sink: _Link, copies: Sequence[bool]) -> Process:
    """A register at the output, with beats that come from nowhere; the first of a frame waits for the frame."""
    offered, taken = source.offered, source.taken
    given, left = sink.offered, sink.taken
    last = -1
    for _frame in range(sink.total // sink.beats):
        opens = True
        for copy in copies:
            last += 1
            if copy or opens:
                n = len(taken)
                if n >= len(offered):
                    yield offered, n
                last = max(last, offered[n])
                opens = False
            if given:
                if len(left) < len(given):
                    yield left, len(given) - 1
                if last < left[-1]:
                    last = left[-1]
            given.append(last + 1)
            if copy:
                taken.append(last)


def _fork(source: _Link, branches: Sequence[_Link]) -> Process:
    """Every branch takes a beat when it likes, and the last of them lets the next one come."""
    offered, taken = source.offered, source.taken
    last = -1
    for n in range(source.total):
        if n >= len(offered):
            yield offered, n
        last += 1
        if last < offered[n]:
            last = offered[n]
        for branch in branches:
            branch.offered.append(last)
        for branch in branches:
            if n >= len(branch.taken):
                yield branch.taken, n
            if last < branch.taken[n]:
                last = branch.taken[n]
        taken.append(last)


def _pipe(timing: PipeTiming, turns: Sequence[Sequence[_Link]], sink: _Link, *, bounded: bool = True) -> Process:
    """One beat of every input whose turn it is is taken at once, when there is a place in the queue at the end."""
    given, left = sink.offered, sink.taken
    group, latency, depth, back = timing.beats, timing.latency, timing.depth_words, timing.return_cycles
    last = 0  # nothing is taken in the first cycle
    for n, sources in enumerate(islice(cycle(turns), group * sink.total)):
        last += 1
        for source in sources:
            offered, place = source.offered, len(source.taken)
            if place >= len(offered):
                yield offered, place
            if last < offered[place]:
                last = offered[place]
        word = n // group
        if bounded and word >= depth:
            if word - depth >= len(left):
                yield left, word - depth
            if last < left[word - depth] + back:
                last = left[word - depth] + back
        for source in sources:
            source.taken.append(last)
        if n % group == group - 1:
            given.append(last + latency)


def _global_pool(params: GlobalPoolParams, source: _Link, sink: _Link) -> Process:
    """The beats of the last pixel wait for the requantizers and for a place in the queue."""
    offered, taken = source.offered, source.taken
    given, left = sink.offered, sink.taken
    timing, words = params.timing, params.words
    last, before = -1, -params.requantizer.ii
    for _frame in range(sink.total // words):
        for pixel in range(params.pixels):
            for _word in range(words):
                n = len(taken)
                if n >= len(offered):
                    yield offered, n
                last = max(last + 1, offered[n])
                if pixel == params.pixels - 1:
                    last = max(last, before + params.requantizer.ii)
                    place = len(given) - timing.depth_words
                    if place >= 0:
                        if place >= len(left):
                            yield left, place
                        last = max(last, left[place] + timing.return_cycles)
                    before = last
                    given.append(last + timing.latency)
                taken.append(last)


def _read_band(params: ReorderParams, sink: _Link, stored: Times, freed: Times) -> Process:
    """Bands are read when they are whole, and their words leave through a queue."""
    offered, taken = sink.offered, sink.taken
    timing = params.reader.timing
    depth, latency, back = timing.depth_words, timing.latency, timing.return_cycles
    last = 0  # grants are low in the first cycle
    for band in range(sink.total // params.out_words):
        if band >= len(stored):
            yield stored, band
        last = max(last, stored[band] + params.STORED_TO_READ - 1)
        for n in range(band * params.out_words, (band + 1) * params.out_words):
            last += 1
            if n >= depth:
                if n - depth >= len(taken):
                    yield taken, n - depth
                if last < taken[n - depth] + back:
                    last = taken[n - depth] + back
            offered.append(last + latency)
        freed.append(last)
