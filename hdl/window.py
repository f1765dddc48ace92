"""Window: a banked ring of image rows, and the schedule that reads it.

Incoming pixels fill a ring of rows; the reader walks over the output pixels and fetches, step by step, the samples under the
kernel. Reading is random access, so any kernel, stride and padding cost no beats: padded taps are masked, and the next frame
fills the ring while the last rows of this one are being read. Writer and reader meet only in two counters of pixels: those
that have come and are not claimed by an output pixel, and those that are free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_

import numpy as np
from amaranth.hdl import Array, Cat, Const, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from .ram import Ram, RamParams
from .streams import add_mod, beat_layout, beat_stream, beats, delay

__all__ = ["STEP_LAYOUT", "Window", "WindowParams"]

STEP_LAYOUT = data.StructLayout({"valid": 1, "first": 1, "last": 1, "pixel": 1})
"""A step of the schedule: is there one, does it open its pass, close its pass, open its pixel."""


_Axis = tuple[int, int, tuple[int, int], int, int]

STORED_TO_START = 2
"""Cycles from the last beat of an input pixel to the start of an output pixel that needs it."""

RELEASED_TO_OPEN = 2
"""Cycles from the last step that reads an input pixel to the first beat of the one that takes its place."""

START_TO_STEP = 1
"""Cycles from the start of a pass to its first step."""


@dataclass(frozen=True, slots=True)
class WindowParams:
    """The schedule over one image.

    Every output pixel is read in *passes*, every pass in *steps*; a step delivers ``taps = parallel rows × parallel columns ×
    lanes`` samples at once. Order of steps, outermost first:

    * reducing (convolution): pixel, pass, kernel row, kernel column, beat of channels; ``replays`` passes a pixel. They are
      alike, but with ``groups`` the channels are dealt out: each group is read by its own ``replays / groups`` passes;
    * ``channelwise`` (pooling): pixel, beat of channels (one pass each), kernel row, kernel column.

    Taps of the kernel lie ``dilation`` rows and columns apart. ``parallel`` is ``(1, 1)``, ``(kh, 1)`` or ``(kh, kw)``: that
    direction of the kernel is read at once from as many banks, and is not dilated. ``rows`` is the capacity of the ring, in
    image rows.

    *Shapes* input ``(height, width, channels)`` in raster order, ``lanes`` channels a beat; tap order is kernel row, kernel
    column, lane.

    *Timing* one step a cycle while input and grants last: a frame takes ``frame_cycles``. ``latency`` cycles lie between
    a step and its samples. The first step of an output pixel comes 3 cycles or more after the last beat of the input
    pixels that it waits for: of the last one under its kernel, or under an earlier output pixel's. The first beat of an
    input pixel comes 2 cycles or more after the last step that reads the pixel whose place it takes. With ``full_rows``
    rows no cycle is lost within or between frames, once the ring has filled: a frame takes ``frame_cycles``, or as many
    cycles as it has input beats.

    *Raises* ``ValueError`` for impossible sizes.
    """

    height: int
    width: int
    channels: int
    lanes: int
    bits: int
    signed: bool
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    rows: int
    replays: int = 1
    parallel: tuple[int, int] = (1, 1)
    channelwise: bool = False
    pad_raw: int = 0
    memory: str = "behavioural"
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        if self.parallel not in ((1, 1), (self.kernel[0], 1), self.kernel):
            raise ValueError(f"parallel must be (1, 1), (kh, 1) or (kh, kw), not {self.parallel!r}")
        if not 1 <= self.lanes <= self.channels:
            raise ValueError(f"lanes must be 1 to {self.channels}, not {self.lanes!r}")
        if self.channelwise and self.replays != 1:
            raise ValueError(f"replays must be 1 for a channelwise window, not {self.replays!r}")
        if any(apart > 1 and banks > 1 for apart, banks in zip(self.dilation, self.parallel, strict=True)):
            raise ValueError(f"dilation must be 1 where the kernel is parallel, not {self.dilation!r}")
        if self.groups > 1 and self.channelwise:
            raise ValueError(f"groups must be 1 for a channelwise window, not {self.groups!r}")
        if self.replays % self.groups or (self.groups > 1 and self.channels % (self.groups * self.lanes)):
            raise ValueError(f"groups must divide replays, and channels into whole beats, not {self.groups!r}")
        if self.out_height < 1 or self.out_width < 1:
            raise ValueError(f"kernel must fit into the padded input, not {self.kernel!r}")
        if self.rows < self.min_rows or self.rows % self.parallel[0]:
            raise ValueError(f"rows must be a multiple of {self.parallel[0]} from {self.min_rows} on, not {self.rows!r}")

    # The schedule, in numbers.

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns from the kernel's first tap to its last."""
        return (self.kernel[0] - 1) * self.dilation[0] + 1, (self.kernel[1] - 1) * self.dilation[1] + 1

    @property
    def out_height(self) -> int:
        return (self.height + sum(self.padding[0]) - self.extent[0]) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        return (self.width + sum(self.padding[1]) - self.extent[1]) // self.stride[1] + 1

    @property
    def beats(self) -> int:
        """Input beats a pixel."""
        return beats(self.channels, self.lanes)

    @property
    def taps(self) -> int:
        """Samples a step."""
        return self.parallel[0] * self.parallel[1] * self.lanes

    @property
    def steps(self) -> int:
        """Steps a pass."""
        return (self.kernel[0] // self.parallel[0]) * (self.kernel[1] // self.parallel[1]) * self.pass_beats

    @property
    def shares(self) -> int:
        """Parts that the channels are dealt out into: groups, or single beats."""
        return self.beats if self.channelwise else self.groups

    @property
    def pass_beats(self) -> int:
        """Beats of channels that a pass reads at each tap."""
        return self.beats // self.shares

    @property
    def passes(self) -> int:
        """Passes a pixel."""
        return self.beats if self.channelwise else self.replays

    @property
    def frame_cycles(self) -> int:
        """Cycles a frame: the least interval between frames."""
        return self.out_height * self.out_width * self.ii

    @property
    def ii(self) -> int:
        """Cycles between output pixels."""
        return self.passes * self.steps

    @property
    def latency(self) -> int:
        """Cycles from a step (`Window.o_step`) to its samples (`Window.o_taps`)."""
        return 5 + (self.parallel[0] > 1) + (self.parallel[1] > 1)

    # The pixels, counted in raster order: which have come when an output pixel may start, which are free when it is done.

    @property
    def pixels(self) -> int:
        """Pixels of a frame."""
        return self.height * self.width

    @property
    def needed(self) -> NDArray[np.int64]:
        """Pixels of the frame that must have come before each output pixel starts: at least one, also if all is padding."""
        rows, cols = (
            np.clip(np.arange(count) * stride - pads[0] + extent, 1, size) for count, stride, pads, extent, size in self._axes
        )
        return np.maximum.accumulate(((rows[:, None] - 1) * self.width + cols).ravel())

    @property
    def first(self) -> NDArray[np.int64]:
        """The first pixel that each output pixel, or a later one, still reads; and behind them ``pixels``."""
        rows, cols = (
            np.clip(np.arange(count) * stride - pads[0], 0, size) for count, stride, pads, _extent, size in self._axes
        )
        corners = np.append(rows[:, None] * self.width + cols, self.pixels)
        return np.minimum.accumulate(corners[::-1])[::-1]

    @property
    def _axes(self) -> tuple[_Axis, _Axis]:
        """Output size, stride, padding, extent and input size of rows and columns."""
        return (
            (self.out_height, self.stride[0], self.padding[0], self.extent[0], self.height),
            (self.out_width, self.stride[1], self.padding[1], self.extent[1], self.width),
        )

    @property
    def unread_pixels(self) -> int:
        """Pixels at the end of a frame for which no output pixel waits."""
        return self.pixels - int(self.needed[-1])

    @property
    def skipped_pixels(self) -> int:
        """The most pixels that are free before they have come: between windows, or behind the last."""
        return max(int(np.max(self.first[1:] - self.needed)), 0)

    @property
    def claims(self) -> NDArray[np.int64]:
        """Pixels that must newly have come for each output pixel; the unread ones of the last frame count to the first."""
        return np.diff(self.needed, prepend=-self.unread_pixels)

    @property
    def releases(self) -> NDArray[np.int64]:
        """Pixels that become free with the end of each output pixel."""
        return np.diff(self.first)

    def _whole_rows(self, pixels: int) -> int:
        """So many pixels in rows, the same number in every bank."""
        in_banks = self.width * self.parallel[0]
        return max(-(-pixels // in_banks), 1) * self.parallel[0]

    @property
    def min_rows(self) -> int:
        """The smallest ring that works at all."""
        return self._whole_rows(int(np.max(self.needed - self.first[:-1])))

    @property
    def full_rows(self) -> int:
        """A ring that costs no cycle: a frame takes as long as its steps or its input beats.

        Let a frame take ``period`` cycles, and let input pixels come and output pixels start evenly over it; output pixels
        as early as the input allows. So much room as that takes is enough for whoever comes or starts earlier too: all that
        happens waits for the latest of what it needs, so that if something is earlier, nothing comes later. The same holds for
        a chain of such windows: none of them keeps another from its pace.
        """
        period, count = max(self.frame_cycles, self.pixels * self.beats), len(self.needed)
        arrived = self.needed * period // self.pixels - 1  # the last beat that each output pixel waits for
        starts = np.arange(count) * period // count
        starts += np.max(arrived + STORED_TO_START - starts)
        opens = starts + START_TO_STEP + self.ii - 1 + RELEASED_TO_OPEN  # the places that each output pixel releases
        releaser = np.searchsorted(self.first[1:], np.arange(self.pixels), side="right")
        successor = -(-opens[releaser] * self.pixels // period)  # the first pixel that comes so late
        return max(self._whole_rows(int(np.max(successor - np.arange(self.pixels)))), self.min_rows)

    # The reference.

    def reference(self, frame_hwc: Sequence[Sequence[Sequence[int]]]) -> Iterator[tuple[list[int], bool, bool, bool]]:
        """``(samples, first, last, pixel)`` of every step of one frame."""
        kernel_steps = [
            (u, v) for u in range(0, self.kernel[0], self.parallel[0]) for v in range(0, self.kernel[1], self.parallel[1])
        ]
        for i in range(self.out_height):
            for j in range(self.out_width):
                for a_pass in range(self.passes):
                    share = a_pass * self.shares // self.passes
                    beats_here = range(share * self.pass_beats, (share + 1) * self.pass_beats)
                    steps = [(u, v, d) for u, v in kernel_steps for d in beats_here]
                    for n, (u, v, d) in enumerate(steps):
                        samples = [
                            self._sample(frame_hwc, i, j, u + du, v + dv, d * self.lanes + lane)
                            for du in range(self.parallel[0])
                            for dv in range(self.parallel[1])
                            for lane in range(self.lanes)
                        ]
                        yield samples, n == 0, n == len(steps) - 1, n == 0 and a_pass == 0

    def _sample(self, frame_hwc: Sequence[Sequence[Sequence[int]]], i: int, j: int, u: int, v: int, c: int) -> int:
        row = i * self.stride[0] + u * self.dilation[0] - self.padding[0][0]
        col = j * self.stride[1] + v * self.dilation[1] - self.padding[1][0]
        if not (0 <= row < self.height and 0 <= col < self.width):
            return self.pad_raw
        return frame_hwc[row][col][c] if c < self.channels else 0

    def create(self) -> Window:
        return Window(self)


class _Pixels:
    """What the writer and the reader tell each other about pixels."""

    def __init__(self, p: WindowParams) -> None:
        self.opened = Signal(name="pixel_opened")  # the writer begins a pixel
        self.stored = Signal(name="pixel_stored")  # the writer has ended a pixel, a cycle ago
        self.released = Signal(range(int(np.max(p.releases)) + 1), name="pixels_released")
        # Free places less one, and pixels that have come less those that the next pass needs: if below 0, who waits for them.
        ring = p.rows * p.width
        self.room = Signal(range(-1, ring + p.skipped_pixels), init=ring - 1, name="room")
        most = int(np.max(p.claims))
        self.spare = Signal(range(-most, ring + p.skipped_pixels + 1), init=-int(p.needed[0]), name="spare")


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a step reads: image row and column, ring row, word in the row, and the column bank of the window's left edge."""

    row: Signal
    ring: Signal
    col: Signal
    word: Signal
    phase: Signal


_Banks = dict[tuple[int, int], Ram]


class Window(wiring.Component):
    """See `WindowParams`.

    ``i_grant`` permits the next pass to start; ``o_start`` tells, one cycle before its first step, that one does.
    ``o_step`` is the step being issued, ``o_taps`` its samples ``latency`` cycles later. Nothing here can be stalled: whoever
    grants a pass has room for its results.

    Invariants: (1) a pixel is read only after its last beat was stored; (2) a slot is written only after the last step of the
    last output pixel that reads it was issued; (3) ``o_start`` implies ``i_grant``.
    """

    i: stream.Interface
    i_grant: Signal
    o_start: Signal

    def __init__(self, params: WindowParams) -> None:
        self.params = params
        super().__init__(
            {
                "i": In(beat_stream(params.bits, params.signed, params.lanes)),
                "i_grant": In(1),
                "o_start": Out(1),
                "o_step": Out(STEP_LAYOUT),
                "o_taps": Out(beat_layout(params.bits, params.signed, params.taps)),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        banks_r, banks_c = p.parallel
        row_words = -(-p.width // banks_c) * p.beats  # words of one row in one bank
        slots = p.rows // banks_r  # rows in one bank
        ram = RamParams(p.lanes * p.bits, slots * row_words, p.memory)
        banks = {}
        for r in range(banks_r):
            for c in range(banks_c):
                m.submodules[f"bank_{r}_{c}"] = banks[r, c] = ram.create()

        pixels = _Pixels(p)
        self._write(m, pixels, banks, row_words)
        position = self._schedule(m, pixels, row_words)
        self._fetch(m, banks, row_words, position)
        return m

    # ------------------------------------------------------------------------------------------------------------ writer

    def _write(self, m: Module, pixels: _Pixels, banks: _Banks, row_words: int) -> None:
        """Store beats while there is a free pixel."""
        p = self.params
        banks_r, banks_c = p.parallel
        beat = Signal(range(p.beats))
        col = Signal(range(p.width))
        col_bank = Signal(range(banks_c))
        row_bank = Signal(range(banks_r))
        group = Signal(range(row_words))  # word of this column's first beat
        slot = Signal(range(p.rows // banks_r * row_words))  # word of this row's first column

        opens = Signal(init=1)
        accept = self.i.valid & self.i.ready
        last_beat = beat == p.beats - 1
        last_col = col == p.width - 1
        m.d.comb += [
            self.i.ready.eq(~opens | (~pixels.room[-1])),
            pixels.opened.eq(accept & opens),
        ]
        m.d.sync += [
            pixels.stored.eq(accept & last_beat),
            pixels.room.eq(pixels.room + pixels.released - pixels.opened),
        ]
        with m.If(accept):
            m.d.sync += [opens.eq(last_beat), beat.eq(Mux(last_beat, 0, beat + 1))]
            with m.If(last_beat):
                m.d.sync += [
                    col.eq(Mux(last_col, 0, col + 1)),
                    col_bank.eq(Mux(last_col, 0, add_mod(col_bank, 1, banks_c))),
                ]
                with m.If(last_col):
                    m.d.sync += [group.eq(0), row_bank.eq(add_mod(row_bank, 1, banks_r))]
                    with m.If(row_bank == banks_r - 1):
                        m.d.sync += slot.eq(add_mod(slot, row_words, p.rows // banks_r * row_words))
                with m.Elif(col_bank == banks_c - 1):
                    m.d.sync += group.eq(group + p.beats)

        address = Signal(range(p.rows // banks_r * row_words), reset_less=True)
        word = Signal(p.lanes * p.bits, reset_less=True)
        m.d.sync += [address.eq(slot + group + beat), word.eq(Cat(*self.i.payload))]
        for (r, c), bank in banks.items():
            write = Signal(name=f"write_{r}_{c}")
            m.d.sync += write.eq(accept & (row_bank == r) & (col_bank == c))
            m.d.comb += [bank.i_write_addr.eq(address), bank.i_write_data.eq(word), bank.i_write_en.eq(write)]

    # ------------------------------------------------------------------------------------------------------------ reader

    def _schedule(self, m: Module, pixels: _Pixels, row_words: int) -> _Position:
        """Issue steps; returns where the sample of each step lies."""
        p = self.params
        banks_c = p.parallel[1]
        serial_c = p.kernel[1] // banks_c
        top, left = p.padding[0][0], p.padding[1][0]

        # The pass that starts next, and what it ends if it is the last of it.
        start = self.o_start
        _, last_pass = _counter(m, "pass", p.passes // p.shares, start)
        _, last_share = _counter(m, "share", p.shares, start & last_pass)
        ends_pixel = _all(last_pass, last_share)
        next_col, last_col = _counter(m, "out_col", p.out_width, start & ends_pixel)
        ends_row = _all(ends_pixel, last_col)
        next_row, last_row = _counter(m, "out_row", p.out_height, start & ends_row)

        # The pass that runs: the same one cycle after its start, until the next one starts.
        run = Signal()
        opens_pass = Signal(init=1)
        opens_pixel = Signal(init=1)
        tap_col = Signal(range(serial_c))
        beat = Signal(range(p.pass_beats))
        last_beat = beat == p.pass_beats - 1
        last_tap_col = last_beat & (tap_col == serial_c - 1)
        _, last_step = _counter(m, "step", p.steps, run)
        last_of_share = _all(last_step, _held(m, "ends_share", last_pass, start))
        last_of_pixel = _all(last_step, _held(m, "ends_pixel", ends_pixel, start))
        last_of_row = _all(last_step, _held(m, "ends_row", ends_row, start))
        last_of_frame = _all(last_step, _held(m, "ends_frame", _all(ends_row, last_row), start))

        # Start of passes. `spare` and `i_grant` are registers that already count the start before.
        m.d.comb += start.eq((~run | last_step) & self.i_grant & ~pixels.spare[-1])
        m.d.sync += run.eq(start | (run & ~last_step))

        # What the pass after the next one claims: nothing but for the first of a pixel. Where a pass has more than one step,
        # there is time to look it up.
        shape = p.out_height, p.out_width
        claims = np.roll(p.claims, -1).reshape(shape)
        claim: Value = Mux(ends_pixel, _raster_table(m, "claim", (next_row, next_col), last_col, claims, p.out_width - 1), 0)
        claims_now: Value = start
        if p.steps > 1:
            claim = delay(m, claim, 1, "claim", reset_less=True)
            claims_now = delay(m, start, 1, "started")
        with m.If(claims_now):
            m.d.sync += pixels.spare.eq(pixels.spare - claim + pixels.stored)
        with m.Else():
            m.d.sync += pixels.spare.eq(pixels.spare + pixels.stored)

        # While the last pass of an output pixel runs, the counters stand at the next one.
        releases = np.roll(p.releases, 1).reshape(shape)
        release = _raster_table(m, "release", (next_row, next_col), next_col == 0, releases, 0)
        m.d.sync += pixels.released.eq(Mux(run & last_of_pixel, release, 0))

        # Position of the window: ring row and word of its first tap, and where the tap being fetched lies.
        c_range = range(min(-left, 0), p.out_width * p.stride[1] + p.extent[1] + 1)
        r_range = range(min(-top, 0), p.out_height * p.stride[0] + p.extent[0] + 1)
        words = (row_words - 1).bit_length() + 1
        first_word = (-left // banks_c) * p.beats
        base_row = Signal(Shape.cast(r_range), init=-top)
        base_ring = Signal(range(p.rows), init=-top % p.rows)
        base_col = Signal(Shape.cast(c_range), init=-left)
        base_phase = Signal(range(banks_c), init=-left % banks_c)
        base_word = Signal(words, init=first_word % (1 << words))
        row = Signal.like(base_row)
        ring = Signal.like(base_ring)
        col = Signal.like(base_col)
        word = Signal.like(base_word)

        next_base_row, next_base_ring = Signal.like(base_row), Signal.like(base_ring)
        next_base_col, next_base_word = Signal.like(base_col), Signal.like(base_word)
        next_base_phase = Signal.like(base_phase)
        frame_step = p.height - (p.out_height - 1) * p.stride[0]
        m.d.comb += [
            next_base_row.eq(base_row),
            next_base_ring.eq(base_ring),
            next_base_col.eq(base_col),
            next_base_word.eq(base_word),
            next_base_phase.eq(base_phase),
        ]
        with m.If(last_of_frame):
            m.d.comb += [next_base_row.eq(-top), next_base_ring.eq(add_mod(base_ring, frame_step, p.rows))]
        with m.Elif(last_of_row):
            m.d.comb += [
                next_base_row.eq(base_row + p.stride[0]),
                next_base_ring.eq(add_mod(base_ring, p.stride[0], p.rows)),
            ]
        odd_cols = p.stride[1] % banks_c
        carry_phase = base_phase >= banks_c - odd_cols if odd_cols else Const(0)
        groups = p.stride[1] // banks_c
        pixel_words = Mux(carry_phase, (groups + 1) * p.beats, groups * p.beats)
        passed_words = p.beats - p.pass_beats  # words by which the passes of a pixel have moved on
        with m.If(last_of_row):
            m.d.comb += [
                next_base_col.eq(-left),
                next_base_word.eq(first_word),
                next_base_phase.eq(-left % banks_c),
            ]
        with m.Elif(last_of_pixel):
            m.d.comb += [
                next_base_col.eq(base_col + p.stride[1]),
                next_base_word.eq(base_word + pixel_words - passed_words),
                next_base_phase.eq(add_mod(base_phase, p.stride[1], banks_c)),
            ]
        if p.shares > 1:
            with m.Elif(last_of_share):
                m.d.comb += next_base_word.eq(base_word + p.pass_beats)

        with m.If(run):
            m.d.sync += [opens_pass.eq(last_step), opens_pixel.eq(last_of_pixel)]
            m.d.sync += beat.eq(Mux(last_beat, 0, beat + 1))
            with m.If(last_step):
                m.d.sync += [
                    tap_col.eq(0),
                    base_row.eq(next_base_row),
                    base_ring.eq(next_base_ring),
                    base_col.eq(next_base_col),
                    base_word.eq(next_base_word),
                    base_phase.eq(next_base_phase),
                    row.eq(next_base_row),
                    ring.eq(next_base_ring),
                    col.eq(next_base_col),
                    word.eq(next_base_word),
                ]
            with m.Elif(last_tap_col):
                m.d.sync += [
                    tap_col.eq(0),
                    row.eq(row + p.dilation[0]),
                    ring.eq(add_mod(ring, p.dilation[0], p.rows)),
                    col.eq(base_col),
                    word.eq(base_word),
                ]
            with m.Elif(last_beat):
                m.d.sync += [
                    tap_col.eq(tap_col + 1),
                    col.eq(col + p.dilation[1]),
                    word.eq(word + p.dilation[1] * p.beats - (p.pass_beats - 1)),
                ]
            with m.Else():
                m.d.sync += word.eq(word + 1)

        m.d.comb += [
            self.o_step.valid.eq(run),
            self.o_step.first.eq(opens_pass),
            self.o_step.last.eq(last_step),
            self.o_step.pixel.eq(opens_pixel),
        ]
        return _Position(row, ring, col, word, base_phase)

    def _fetch(self, m: Module, banks: _Banks, row_words: int, at: _Position) -> None:
        """The pipeline from a position to samples: slot and masks, address, memory (2), rotations, mask."""
        p = self.params
        banks_r, banks_c = p.parallel
        slots = p.rows // banks_r
        depth = slots * row_words

        def slot_of(ring_row: int) -> int:
            return ring_row // banks_r % slots * row_words

        # Cycle 1: look up where each bank's row and column start, and which taps lie on the image.
        row_phase = _table(m, "row_phase", at.ring, [n % banks_r for n in range(p.rows)])
        here = _table(m, "slot_here", at.ring, [slot_of(n) for n in range(p.rows)])
        after = _table(m, "slot_after", at.ring, [slot_of(n + banks_r) for n in range(p.rows)])
        slot_words = []
        for r in range(banks_r):
            slot = Signal(range(depth), name=f"slot_{r}", reset_less=True)
            m.d.sync += slot.eq(Mux(row_phase > r, after, here))
            slot_words.append(slot)
        column_words = []
        for c in range(banks_c):
            column = Signal(len(at.word), name=f"column_{c}", reset_less=True)
            m.d.sync += column.eq(Mux(at.phase > c, at.word + p.beats, at.word))
            column_words.append(column)
        rows_inside = [_inside(at.row + u, p.height) for u in range(banks_r)]
        cols_inside = [_inside(at.col + v, p.width) for v in range(banks_c)]
        inside = delay(m, Cat(*rows_inside, *cols_inside), p.latency - 1, "inside", reset_less=True)
        row_turn = delay(m, row_phase, 4, "row_turn", reset_less=True)
        col_turn = delay(m, at.phase, 4 + (banks_r > 1), "col_turn", reset_less=True)

        # Cycle 2: addresses; cycles 3 and 4: memory.
        for (r, c), bank in banks.items():
            address = Signal(range(depth), name=f"address_{r}_{c}", reset_less=True)
            m.d.sync += address.eq(slot_words[r] + column_words[c])
            m.d.comb += bank.i_addr.eq(address)
        taps = [[banks[r, c].o for c in range(banks_c)] for r in range(banks_r)]

        # Turn the banks so that the window's first row, then its first column, comes first.
        if banks_r > 1:
            taps = _turn(m, taps, row_turn, "turned_row")
        if banks_c > 1:
            columns = [list(column) for column in zip(*taps, strict=True)]
            taps = [list(line) for line in zip(*_turn(m, columns, col_turn, "turned_col"), strict=True)]

        # Last cycle: padding.
        shape = Shape(p.bits, p.signed)
        padding = Const(p.pad_raw & ((1 << p.bits) - 1), p.bits)
        for u in range(banks_r):
            for v in range(banks_c):
                for lane in range(p.lanes):
                    n = (u * banks_c + v) * p.lanes + lane
                    sample = Signal(shape, name=f"sample_{n}", reset_less=True)
                    stored = taps[u][v][lane * p.bits : (lane + 1) * p.bits]
                    m.d.sync += sample.eq(Mux(inside[u] & inside[banks_r + v], stored, padding))
                    m.d.comb += self.o_taps[n].eq(sample)


def _counter(m: Module, name: str, size: int, step: Value) -> tuple[Value, Value]:
    """Counts 0 to ``size - 1``, on every ``step``; and a register that tells whether it stands at the last."""
    if size == 1:
        return Const(0), Const(1)
    count = Signal(range(size), name=name)
    last = Signal(name=f"{name}_last")
    with m.If(step):
        m.d.sync += [count.eq(Mux(last, 0, count + 1)), last.eq(count == size - 2)]
    return count, last


def _all(*flags: Value) -> Value:
    """The conjunction, where constants among them are 1."""
    return reduce(and_, [flag for flag in flags if not isinstance(flag, Const)] or [Const(1)])


def _held(m: Module, name: str, flag: Value, take: Value) -> Value:
    """``flag`` as it was at the last ``take``."""
    if isinstance(flag, Const):
        return flag
    held = Signal(name=name, reset_less=True)
    with m.If(take):
        m.d.sync += held.eq(flag)
    return held


def _inside(position: Value, size: int) -> Value:
    """Whether a row or column lies on the image."""
    return (position >= 0) & (position < size) if position.shape().signed else position < size


def _turn(m: Module, lines: list[list[Value]], phase: Value, name: str) -> list[list[Value]]:
    """Rotate ``lines`` so that line ``phase`` comes first, into registers."""
    turned = []
    for n in range(len(lines)):
        line = []
        for k in range(len(lines[0])):
            register = Signal(len(lines[0][k]), name=f"{name}_{n}_{k}", reset_less=True)
            choice = Array(lines[(n + turn) % len(lines)][k] for turn in range(len(lines)))
            m.d.sync += register.eq(choice[phase])
            line.append(register)
        turned.append(line)
    return turned


def _raster_table(
    m: Module, name: str, place: tuple[Value, Value], apart: Value, entries: NDArray[np.int64], column: int
) -> Value:
    """``entries[row, col]`` at ``place``; but for ``column``, where ``apart`` is 1, every row that is not zero is the same."""
    row, col = place
    rest = np.delete(entries, column, axis=1)
    alone = _table(m, f"{name}_apart", row, entries[:, column].tolist())
    if not rest.any():
        return Mux(apart, alone, 0)
    others = rest[np.flatnonzero(rest.any(axis=1))[0]]
    inner = _table(m, f"{name}_inner", col, np.insert(others, column, np.bincount(others).argmax()).tolist())
    like = _table(m, f"{name}_row", row, rest.any(axis=1).astype(int).tolist())
    return Mux(apart, alone, Mux(like[0], inner, 0))


def _table(m: Module, name: str, index: Value, entries: Sequence[int]) -> Signal:
    """``entries[index]`` as logic, with the commonest entry as the default."""
    entry = Signal(range(max(entries) + 1), name=name)
    common = max(set(entries), key=lambda value: (list(entries).count(value), -value))
    with m.Switch(index):
        for value in sorted(set(entries) - {common}):
            with m.Case(*(n for n, this in enumerate(entries) if this == value)):
                m.d.comb += entry.eq(value)
        with m.Default():
            m.d.comb += entry.eq(common)
    return entry
