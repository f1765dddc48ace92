"""Depthwise stage: every channel is convolved, or averaged, by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .lane_row import LaneRowParams
from .mac_stage import MacStageParams
from .window import WindowParams

__all__ = ["DepthwiseParams"]


@dataclass(frozen=True, slots=True)
class DepthwiseParams(MacStageParams):
    """One integer depthwise convolution: ``y[c] = requantize(Σ w[c]·x[c] + b[c])``, see `RequantizerParams`.

    A pass takes one beat of ``window.lanes`` channels, each with as many multipliers as the window has parallel taps. Channel
    ``beat·lanes + place·rows + row`` is made by row ``row``; the sums of a row share one requantizer, so output beats have
    ``rows`` lanes, and where ``channels`` is no multiple of ``rows`` the last of a pixel has fillers, like `ConvParams`.

    With ``weight_bits`` 0 it is a pooling: taps are added, all channels have the same constants, and border classes may have
    multipliers and offsets of their own (the mean of what lies inside the image).

    *Shapes* input ``(height, width, channels)``; output ``(out_height, out_width, channels)``, ``rows`` lanes. Weights
    ``(R, C, channels, kh, kw, 1)``, biases ``(R, C, channels)``, other constants ``(channels,)``. A pooling has no weights
    (``None``), and its constants are all ``(R, C, 1)``.

    *Timing* as `ConvParams`.

    *Raises* ``ValueError`` where ``rows`` does not divide the lanes, a pass has fewer steps than a row needs to drain its sums.
    """

    window: WindowParams
    rows: int
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
    multiplier_bits: int = 17
    split: bool = False
    offset_bits: int = 0
    offset_shift: int = 0
    positive: int | None = None
    negative: int | None = None
    ties: str = "none"
    tie_bits: int = 0

    def __post_init__(self) -> None:
        if not self.window.channelwise:
            raise ValueError("window must be channelwise")
        if self.window.lanes % self.rows:
            raise ValueError(f"rows must divide the {self.window.lanes} lanes, not {self.rows!r}")
        self.check_hard()
        self.check_pace()

    @property
    def filters(self) -> int:
        return self.window.channels

    @property
    def pes(self) -> int:
        """Elements a row."""
        return self.window.lanes // self.rows

    @property
    def out_channels(self) -> int:
        return self.filters

    @property
    def pass_words(self) -> int:
        return self.pes

    @property
    def uniform(self) -> bool:
        return self.weight_bits == 0

    @property
    def multipliers(self) -> int:
        return self.window.taps if self.weight_bits else 0

    @property
    def mac_row(self) -> LaneRowParams:
        return LaneRowParams(
            pes=self.pes,
            taps=self.window.taps // self.window.lanes,
            x_bits=self.window.bits,
            x_signed=self.window.signed,
            w_bits=self.weight_bits,
            acc_bits=self.acc_bits,
            depth_words=self.depth_words if self.weight_bits else 1,
            multiplier=self.multiplier,
            memory=self.memory,
            word_cycles=self.word_cycles,
        )

    def mac_row_of(self, row: int) -> LaneRowParams:
        return replace(self.mac_row, hard=self.hard_in(row))

    def taps_of(self, row: int, place: int) -> Sequence[int]:
        return range(place * self.rows + row, self.window.taps, self.window.lanes)

    def row_taps(self, row: int) -> Sequence[int]:
        return [tap for place in reversed(range(self.pes)) for tap in self.taps_of(row, place)]

    def words_of(self, w_rcohwi: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Address runs over class, pass, kernel row, column; a pooling's weights are not given, and all 1."""
        win = self.window
        (kh, kw), (banks_r, banks_c) = win.kernel, win.parallel
        padded = np.full((self.walk.count, win.beats * win.lanes, kh, kw), w_rcohwi is None, np.int64)
        if w_rcohwi is not None:
            padded[:, : win.channels] = w_rcohwi.reshape(-1, win.channels, kh, kw)
        split = padded.reshape(
            self.walk.count, win.beats, self.pes, self.rows, kh // banks_r, banks_r, kw // banks_c, banks_c
        )
        ordered = split.transpose(3, 2, 0, 1, 4, 6, 5, 7)[:, ::-1]
        return ordered.reshape(self.rows, self.pes, self.depth_words, banks_r * banks_c)

    def constants_of(self, values_o: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.uniform:
            return MacStageParams.constants_of(self, values_o)
        return np.broadcast_to(values_o.reshape(1, -1, 1), (self.rows, values_o.size, 1))
