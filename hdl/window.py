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

    def inside(self, axis: int) -> list[list[bool]]:
        """Whether each tap of the kernel's rows (``axis`` 0) or columns (1) lies on the image, at each output row or column."""
        count, stride, pads, _extent, size = self._axes[axis]
        apart = self.dilation[axis]
        return [[0 <= n * stride + tap * apart - pads[0] < size for n in range(count)] for tap in range(self.kernel[axis])]

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
        ring, most = p.rows * p.width + p.skipped_pixels, int(np.max(p.claims))
        self.stored = Signal(name="pixel_stored")  # the writer has ended a pixel, a cycle ago
        self.released_less_one = Signal(range(-1, int(np.max(p.releases))), init=-1, name="released_less_one")
        # Free places less one, and pixels that have come less those that the next pass needs: below 0, somebody waits.
        self.room = Signal(range(-1, ring), init=p.rows * p.width - 1, name="room")
        self.spare = Signal(range(-most, ring + 1), init=-int(p.needed[0]), name="spare")


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a step reads: ring row, word in the row, column bank of the window's left edge; which rows and columns exist."""

    ring: Signal
    word: Signal
    phase: Signal
    rows_inside: Sequence[Value]
    cols_inside: Sequence[Value]


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
        slots = p.rows // banks_r
        depth = slots * row_words

        # A beat is taken. `room` need not count a pixel before the next one opens.
        accept = self.i.valid & self.i.ready
        _, last_beat = _counter(m, "beat", p.beats, accept)
        opens = Signal(init=1)
        opened: Value = accept
        if p.beats > 1:
            with m.If(accept):
                m.d.sync += opens.eq(last_beat)
            opened = delay(m, accept & opens, 1, "opened")
        m.d.comb += self.i.ready.eq(~pixels.room[-1] | ~opens)
        m.d.sync += pixels.room.eq(_add(pixels.room, pixels.released_less_one, ~opened))

        # In the next cycle it is written, and the address moves on: to the next word, or back, for the next bank.
        write = delay(m, accept, 1, "write")
        word = delay(m, Cat(*self.i.payload), 1, "write_word", reset_less=True)
        m.d.sync += pixels.stored.eq(accept & last_beat)
        _, last_col = _counter(m, "col", p.width, pixels.stored)
        ends_row = pixels.stored & last_col
        row_bank, last_row_bank = _counter(m, "row_bank", banks_r, ends_row)
        _, last_slot = _counter(m, "slot", slots, ends_row & last_row_bank)
        col_bank = Signal(range(banks_c))
        with m.If(pixels.stored):
            m.d.sync += col_bank.eq(Mux(last_col, 0, add_mod(col_bank, 1, banks_c)))
        address = Signal(range(depth), name="write_address")
        to_slot = Mux(last_row_bank, Mux(last_slot, 1 - depth, 1), 1 - row_words)
        to_pixel = Mux(last_col, to_slot, Mux(col_bank == banks_c - 1, 1, 1 - p.beats))
        with m.If(write):
            m.d.sync += address.eq(address + _fit(Mux(pixels.stored, to_pixel, 1), len(address)))
        for (r, c), bank in banks.items():
            m.d.comb += [
                bank.i_write_addr.eq(address),
                bank.i_write_data.eq(word),
                bank.i_write_en.eq(write & (row_bank == r) & (col_bank == c)),
            ]

    # ------------------------------------------------------------------------------------------------------------ reader

    def _schedule(self, m: Module, pixels: _Pixels, row_words: int) -> _Position:
        """Issue steps; returns where the sample of each step lies."""
        p = self.params
        banks_c = p.parallel[1]
        serial_r, serial_c = p.kernel[0] // p.parallel[0], p.kernel[1] // banks_c
        top, left = p.padding[0][0], p.padding[1][0]

        # The pass that starts next, and what it ends if it is the last of it.
        start = self.o_start
        _, last_pass = _counter(m, "pass", p.passes // p.shares, start)
        _, last_share = _counter(m, "share", p.shares, start & last_pass)
        ends_pixel = _all(last_pass, last_share)
        next_col, last_col = _counter(m, "out_col", p.out_width, start & ends_pixel)
        ends_row = _all(ends_pixel, last_col)
        next_row, last_row = _counter(m, "out_row", p.out_height, start & ends_row)

        # The pass that runs, step by step.
        run = Signal()
        _, last_beat = _counter(m, "step_beat", p.pass_beats, run)
        tap_col, last_tap_col = _counter(m, "tap_col", serial_c, run & last_beat)
        ends_line = _all(last_beat, last_tap_col)
        tap_row, last_tap_row = _counter(m, "tap_row", serial_r, run & ends_line)
        last_step = _all(ends_line, last_tap_row)
        free = ~run | last_step

        def of_pass(name: str, value: Value) -> Value:
            """A property of the next pass, while that one runs."""
            if isinstance(value, Const):
                return value
            held = Signal.like(value, name=name, reset_less=True)
            with m.If(free):
                m.d.sync += held.eq(value)
            return held

        last_of_share = _all(last_step, of_pass("ends_share", last_pass))
        last_of_pixel = _all(last_step, of_pass("ends_pixel", ends_pixel))
        last_of_row = _all(last_step, of_pass("ends_row", ends_row))
        last_of_frame = _all(last_step, of_pass("ends_frame", _all(ends_row, last_row)))

        # Start of passes. `spare` and `i_grant` are registers that already count the start before.
        m.d.comb += start.eq(free & self.i_grant & ~pixels.spare[-1])
        m.d.sync += run.eq(start | (run & ~last_step))

        # What the pass after the next one claims: nothing but for the first of a pixel. Where a pass has more than one step,
        # there is time to look it up.
        shape = p.out_height, p.out_width
        claims = np.roll(p.claims, -1).reshape(shape)
        claim = _raster_table(m, "claim", (next_row, next_col), last_col, -claims, p.out_width - 1, idle=0)
        claim = Mux(start & ends_pixel, claim, 0)
        if p.steps > 1:
            claim = delay(m, claim, 1, "claim")
        m.d.sync += pixels.spare.eq(_add(pixels.spare, claim, pixels.stored))

        # While the last pass of an output pixel runs, the counters stand at the next one.
        releases = np.roll(p.releases, 1).reshape(shape)
        release = _raster_table(m, "release", (next_row, next_col), next_col == 0, releases - 1, 0, idle=-1)
        m.d.sync += pixels.released_less_one.eq(Mux(run & last_of_pixel, release, -1))

        # Which taps of the kernel lie on the image: those that are read at once, or the one at hand.
        rows_inside, cols_inside = (
            [of_pass(f"{name}_inside_{n}", _flag(m, f"{name}_has_{n}", place, taps)) for n, taps in enumerate(p.inside(axis))]
            for axis, (name, place) in enumerate([("row", next_row), ("col", next_col)])
        )
        if serial_r > 1:
            rows_inside = _at(rows_inside, tap_row)
        if serial_c > 1:
            cols_inside = _at(cols_inside, tap_col)

        # Ring row of the window, and of the tap being fetched.
        base_ring = Signal(range(p.rows), init=-top % p.rows)
        ring = Signal.like(base_ring)
        next_base_ring = Mux(
            last_of_frame,
            add_mod(base_ring, p.height - (p.out_height - 1) * p.stride[0], p.rows),
            Mux(last_of_row, add_mod(base_ring, p.stride[0], p.rows), base_ring),
        )
        with m.If(run & last_step):
            m.d.sync += [base_ring.eq(next_base_ring), ring.eq(next_base_ring)]
        with m.Elif(run & ends_line):
            m.d.sync += ring.eq(add_mod(ring, p.dilation[0], p.rows))

        # Column bank of the window's left edge, and the word of the tap being fetched. It moves by constants, and back.
        def word_of(column: int) -> int:
            return column // banks_c * p.beats

        phase = Signal(range(banks_c), init=-left % banks_c)
        with m.If(run & last_of_row):
            m.d.sync += phase.eq(-left % banks_c)
        with m.Elif(run & last_of_pixel):
            m.d.sync += phase.eq(add_mod(phase, p.stride[1], banks_c))
        carry = phase >= banks_c - p.stride[1] % banks_c if p.stride[1] % banks_c else Const(0)
        last_place = (p.out_width - 1) * p.stride[1] - left
        to_start = -(serial_c - 1) * p.dilation[1] * p.beats - (p.pass_beats - 1)  # of the kernel's row
        to_share = to_start + p.pass_beats
        to_pixel = to_share - p.beats + word_of(p.stride[1])
        to_row = to_share - p.beats + word_of(-left) - word_of(last_place)
        move: Value = Mux(last_beat, p.dilation[1] * p.beats - (p.pass_beats - 1), 1)
        for flag, words in (
            (ends_line, Const(to_start)),
            (last_of_share, Const(to_share if p.shares > 1 else to_start)),
            (last_of_pixel, Mux(carry, to_pixel + p.beats, to_pixel)),
            (last_of_row, Const(to_row)),
        ):
            move = Mux(flag, words, move)
        bits = (row_words - 1).bit_length()
        word = Signal(bits, init=word_of(-left) % (1 << bits))
        with m.If(run):
            m.d.sync += word.eq(word + _fit(move, len(word)))

        opens_pass, opens_pixel = Signal(init=1), Signal(init=1)
        with m.If(run):
            m.d.sync += [opens_pass.eq(last_step), opens_pixel.eq(last_of_pixel)]
        m.d.comb += [
            self.o_step.valid.eq(run),
            self.o_step.first.eq(opens_pass),
            self.o_step.last.eq(last_step),
            self.o_step.pixel.eq(opens_pixel),
        ]
        return _Position(ring, word, phase, rows_inside, cols_inside)

    def _fetch(self, m: Module, banks: _Banks, row_words: int, at: _Position) -> None:
        """The pipeline from a position to samples: slot, address, memory (2), rotations, mask."""
        p = self.params
        banks_r, banks_c = p.parallel
        slots = p.rows // banks_r
        depth = slots * row_words

        def slot_of(ring_row: int) -> int:
            return ring_row // banks_r % slots * row_words

        # Cycle 1: look up where each bank's row and column start.
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
        rows_inside, cols_inside = (
            [
                value if isinstance(value, Const) else delay(m, value, p.latency - 1, f"{name}_here_{n}", reset_less=True)
                for n, value in enumerate(values)
            ]
            for name, values in (("row", at.rows_inside), ("col", at.cols_inside))
        )
        shape = Shape(p.bits, p.signed)
        padding = Const(p.pad_raw & ((1 << p.bits) - 1), p.bits)
        for u in range(banks_r):
            for v in range(banks_c):
                for lane in range(p.lanes):
                    n = (u * banks_c + v) * p.lanes + lane
                    sample = Signal(shape, name=f"sample_{n}", reset_less=True)
                    stored = taps[u][v][lane * p.bits : (lane + 1) * p.bits]
                    m.d.sync += sample.eq(Mux(_all(rows_inside[u], cols_inside[v]), stored, padding))
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
    """The conjunction; what is always 1 leaves no trace."""
    return reduce(and_, [flag for flag in flags if not (isinstance(flag, Const) and flag.value)] or [Const(1)])


def _add(value: Value, step: Value, carry: Value) -> Value:
    """``value + step + carry`` of signed numbers, on one carry chain, as wide as ``value``."""
    return (Cat(Const(1, 1), value).as_signed() + Cat(carry, step).as_signed())[1 : len(value) + 1]


def _fit(step: Value, bits: int) -> Value:
    """A step of either sign, for a position that is right modulo ``2**bits``."""
    return step[:bits] if len(step) >= bits else step


def _at(values: Sequence[Value], place: Value) -> list[Value]:
    """The flag at ``place``."""
    if all(isinstance(value, Const) and value.value for value in values):
        return [Const(1)]
    return [Array(values)[place]]


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
    m: Module, name: str, place: tuple[Value, Value], apart: Value, entries: NDArray[np.int64], column: int, idle: int
) -> Value:
    """``entries[row, col]`` at ``place``; but for ``column``, where ``apart`` is 1, every row is ``idle`` or as all others."""
    row, col = place
    rest = np.delete(entries, column, axis=1)
    moves = (rest != idle).any(axis=1)
    alone = _table(m, f"{name}_apart", row, entries[:, column].tolist())
    if not moves.any():
        return Mux(apart, alone, idle)
    others = rest[np.argmax(moves)]
    values, counts = np.unique(others, return_counts=True)
    inner = _table(m, f"{name}_inner", col, np.insert(others, column, values[np.argmax(counts)]).tolist())
    return Mux(apart, alone, Mux(_flag(m, f"{name}_moves", row, moves.tolist()), inner, idle))


def _flag(m: Module, name: str, index: Value, entries: Sequence[bool]) -> Value:
    """``entries[index]`` as logic, or as a constant."""
    return Const(int(entries[0])) if len(set(entries)) == 1 else _table(m, name, index, entries)


def _table(m: Module, name: str, index: Value, entries: Sequence[int]) -> Signal:
    """``entries[index]`` as logic, with the commonest entry as the default."""
    entry = Signal(range(min(*entries, 0), max(*entries, 0) + 1), name=name)
    common = max(set(entries), key=lambda value: (list(entries).count(value), -value))
    with m.Switch(index):
        for value in sorted(set(entries) - {common}):
            with m.Case(*(n for n, this in enumerate(entries) if this == value)):
                m.d.comb += entry.eq(value)
        with m.Default():
            m.d.comb += entry.eq(common)
    return entry
