"""Convolution stage: every output channel is made of all input channels, or of those of its group."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .mac_row import MacRowParams
from .mac_stage import MacStageParams
from .multiplier import hard_share
from .window import WindowParams

__all__ = ["ConvParams"]


@dataclass(frozen=True, slots=True)
class ConvParams(MacStageParams):
    """One integer convolution: ``y = requantize(Σ w·x + b)`` at every output pixel, see `RequantizerParams`.

    ``rows · pes`` output channels are computed at once, ``window.taps`` multiplies each: channel ``(n·pes + k)·rows + r`` is
    made by row ``r`` in pass ``n``. The sums of a row share one requantizer, so output beats have ``rows`` lanes. Border
    classes (``class_rows``, ``class_cols``: first output row and column of each) choose weights and biases. With
    ``window.groups`` the output channels are dealt out evenly over the groups, like the input channels; a pass belongs to one.
    ``block_roms`` elements, counted row by row, have their weights in block RAM whatever their number. Samples reach
    ``together`` elements of a row at once; two of them share multipliers of ECP5 where that can be, see `MacRowParams`.

    *Shapes* input ``(height, width, channels)``; output ``(out_height, out_width, filters)``, raster order, ``rows`` lanes.

    *Timing* ``ii`` cycles a pixel, ``frame_cycles`` a frame, with no gap between frames. ``latency`` cycles from a pixel's last
    step to its first beat of that pass on an empty output. The queue is as deep as the passes in flight, so issue never waits
    for credits while the output is taken.

    *Raises* ``ValueError`` where a pass would make channels of two groups or has fewer steps than ``pes · requantizer_ii`` (the
    chain drains one sum every ``requantizer_ii`` cycles).
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
    requantizer_ii: int = 1
    multiplier: str = "behavioural"
    hard: int = 0
    memory: str = "behavioural"
    block_roms: int = 0
    together: int = 1
    multiplier_bits: int = 17
    split: bool = False
    offset_bits: int = 0
    offset_shift: int = 0
    positive: int | None = None
    negative: int | None = None
    ties: str = "none"
    tie_bits: int = 0

    def __post_init__(self) -> None:
        if self.window.channelwise:
            raise ValueError("window must not be channelwise")
        passes = -(-self.words // self.pes)
        if self.window.replays != passes:
            raise ValueError(f"window.replays must be {passes}, not {self.window.replays!r}")
        together, groups = self.rows * self.pes, self.window.groups
        if groups > 1 and self.filters % (groups * together):
            raise ValueError(f"filters must be made {together} at once in each of {groups} groups, not {self.filters!r}")
        self.check_hard()
        self.check_pace()
        most = self.rows * self.pes if self.memory == "ecp5" else 0
        if not 0 <= self.block_roms <= most:
            raise ValueError(f"block_roms must be 0 to {most} in {self.memory} memory, not {self.block_roms!r}")

    @property
    def out_channels(self) -> int:
        return self.filters

    @property
    def pass_words(self) -> int:
        return self.pes

    @property
    def multipliers(self) -> int:
        return self.rows * self.pes * self.window.taps

    @property
    def mac_row(self) -> MacRowParams:
        return MacRowParams(
            pes=self.pes,
            taps=self.window.taps,
            x_bits=self.window.bits,
            x_signed=self.window.signed,
            w_bits=self.weight_bits,
            acc_bits=self.acc_bits,
            depth_words=self.depth_words,
            multiplier=self.multiplier,
            memory=self.memory,
            word_cycles=self.word_cycles,
            together=self.together,
        )

    def mac_row_of(self, row: int) -> MacRowParams:
        return replace(self.mac_row, hard=self.hard_in(row), block_roms=hard_share(self.block_roms, row, self.pes))

    def words_of(self, w_rcohwi: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Address runs over class, pass, kernel row, column, beat."""
        if w_rcohwi is None:
            raise TypeError("weights must be given")
        win = self.window
        row_classes, col_classes, filters, kh, kw, channels = w_rcohwi.shape
        banks_r, banks_c = win.parallel
        padded = np.zeros(
            (row_classes * col_classes, self.passes * self.pes * self.rows, kh, kw, win.pass_beats * win.lanes), np.int64
        )
        padded[:, :filters, :, :, :channels] = w_rcohwi.reshape(-1, filters, kh, kw, channels)
        split = padded.reshape(
            row_classes * col_classes, self.passes, self.pes, self.rows,
            kh // banks_r, banks_r, kw // banks_c, banks_c, win.pass_beats, win.lanes,
        )  # fmt: skip
        ordered = split.transpose(3, 2, 0, 1, 4, 6, 8, 5, 7, 9)[:, ::-1]
        return ordered.reshape(self.rows, self.pes, self.depth_words, win.taps)
