"""Convolution stages to test: chosen and random ones, their weights, and the definition to compare them with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from convfold.hdl.conv import ConvParams
from convfold.hdl.depthwise import DepthwiseParams
from convfold.hdl.mac_stage import MacStage, MacStageParams
from convfold.hdl.window import WindowParams
from tests.hdl.bench import PROFILES, Run, look_inside, pack, run_profiles, unpack

Ints = NDArray[np.int64]
Padding = tuple[tuple[int, int], tuple[int, int]]
Params = TypeVar("Params", bound=MacStageParams)
Constants = tuple[Ints, Ints, Ints, Ints | None, Ints | None]

VALID: Padding = ((0, 0), (0, 0))
SAME: Padding = ((1, 1), (1, 1))


@dataclass(frozen=True, slots=True)
class ConvCase:
    """A stage as a user of the field would describe it. ``ring`` 0 is `WindowParams.full_rows`, ``None`` the smallest."""

    size: tuple[int, int, int]
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: Padding = VALID
    lanes: int = 1
    rows: int = 1
    pes: int = 1
    parallel: tuple[int, int] = (1, 1)
    ring: int | None = 0
    bits: int = 8
    signed: bool = False
    weight_bits: int = 8
    out_bits: int = 8
    out_signed: bool = True
    zero_point: int = 0
    rectify: bool = False
    pad_raw: int = 0
    class_rows: tuple[int, ...] = (0,)
    class_cols: tuple[int, ...] = (0,)
    requantizer_ii: int = 1
    kind: str = "behavioural"
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    multiplier_bits: int = 17
    split: bool = False
    even: bool = False
    tables: int = 2


@dataclass(frozen=True, slots=True)
class ConvStage(Generic[Params]):
    """Parameters and constants of a case; the accumulator is exactly as wide as these weights need."""

    params: Params
    w_rcohwi: Ints
    b_rco: Ints
    m_o: Ints
    positive_o: Ints | None = None
    negative_o: Ints | None = None

    @property
    def frame_beats(self) -> int:
        """Output beats a frame."""
        window = self.params.window
        return window.out_height * window.out_width * self.params.words

    def create(self) -> MacStage:
        return self.params.create(*self.constants)

    @property
    def constants(self) -> Constants:
        return self.w_rcohwi, self.b_rco, self.m_o, self.positive_o, self.negative_o

    def random_frames(self, count: int, seed: int = 0) -> list[Ints]:
        window = self.params.window
        low = -(1 << window.bits - 1) if window.signed else 0
        rng = np.random.default_rng(seed)
        return [
            rng.integers(low, low + (1 << window.bits), (window.height, window.width, window.channels))
            for _ in range(count)
        ]

    def beats(self, frames: list[Ints]) -> list[int]:
        """Input payloads; lanes beyond the last channel hold noise."""
        window = self.params.window
        noise = random.Random(1)
        payloads = []
        for pixel in (pixel for frame in frames for row in frame for pixel in row):
            for n in range(0, window.channels, window.lanes):
                part = [int(value) for value in pixel[n : n + window.lanes]]
                part += [noise.getrandbits(window.bits) for _ in range(window.lanes - len(part))]
                payloads.append(pack(part, window.bits))
        return payloads

    def definition(self, x_hwc: Ints) -> Ints:
        """Correlation of the padded image with the weights of each pixel's class, then its requantizer, in integers."""
        params, window = self.params, self.params.window
        (top, bottom), (left, right) = window.padding
        padded = np.pad(x_hwc, ((top, bottom), (left, right), (0, 0)), constant_values=window.pad_raw)
        dy, dx = window.dilation
        high, wide = ((window.kernel[n] - 1) * window.dilation[n] + 1 for n in range(2))
        shape = (padded.shape[0] - high) // window.stride[0] + 1, (padded.shape[1] - wide) // window.stride[1] + 1
        y_hwo = np.zeros((*shape, params.out_channels), np.int64)
        groups = window.channels // self.w_rcohwi.shape[-1]
        group_of = np.repeat(np.arange(groups), params.out_channels // groups)
        for i in range(shape[0]):
            row_class = max(n for n, start in enumerate(params.class_rows) if start <= i)
            for j in range(shape[1]):
                col_class = max(n for n, start in enumerate(params.class_cols) if start <= j)
                y, x = i * window.stride[0], j * window.stride[1]
                patch_hwgc = padded[y : y + high : dy, x : x + wide : dx].reshape(*window.kernel, groups, -1)
                weights_ohwc = self.w_rcohwi[row_class, col_class]
                sums = np.einsum("ohwc,hwoc->o", weights_ohwc, patch_hwgc[:, :, group_of]) + self.b_rco[row_class, col_class]
                y_hwo[i, j] = self.scaled(sums, (row_class, col_class)) + params.zero_point
        return np.clip(y_hwo, params.low, params.high)

    def scaled(self, sums_o: Ints, class_: tuple[int, int]) -> Ints:
        """Times the multiplier; half up, or half to even, or the offsets of either sign."""

        def here(values: Ints) -> Ints:
            return values[class_] if values.ndim == 3 else values

        products = sums_o * here(self.m_o)
        if self.params.ties == "even":  # of reals with few enough bits to be exact
            return np.rint(products / (1 << self.params.shift)).astype(np.int64)
        if not self.params.split:  # half up: floor(v + 1/2) = floor((2 v + 1) / 2)
            return (2 * products + (1 << self.params.shift)) // (1 << (self.params.shift + 1))
        positive, negative = (
            np.array(constant) if table is None else here(table)
            for table, constant in ((self.positive_o, self.params.positive), (self.negative_o, self.params.negative))
        )
        offsets = np.where(sums_o < 0, negative, positive)
        return (products + offsets) // (1 << self.params.shift)

    def output_beats(self, frames: list[Ints]) -> list[list[int]]:
        """Beats of the definition; the last of a pixel may be short."""
        rows = self.params.rows
        pixels = [pixel for frame in frames for row in self.definition(frame).tolist() for pixel in row]
        return [pixel[n : n + rows] for pixel in pixels for n in range(0, self.params.out_channels, rows)]


def make_stage(case: ConvCase, seed: int = 0) -> ConvStage[ConvParams]:
    """A convolution with random constants."""
    rng = np.random.default_rng(seed)
    most = (1 << case.weight_bits - 1) - 1
    shape = len(case.class_rows), len(case.class_cols), case.filters, *case.kernel, case.size[2] // case.groups
    constants, details = _constants(case, rng, rng.integers(-most - 1, most + 1, shape))
    words = -(-case.filters // case.rows)
    window = _window(case, replays=-(-words // case.pes), groups=case.groups)
    return ConvStage(ConvParams(window, case.filters, case.rows, case.pes, case.weight_bits, **details), *constants)


def make_depthwise(case: ConvCase, seed: int = 0) -> ConvStage[DepthwiseParams]:
    """A depthwise convolution with random constants; a pooling if ``weight_bits`` is 0, with constants for each class."""
    rng = np.random.default_rng(seed)
    most = (1 << case.weight_bits - 1) - 1 if case.weight_bits else 0
    shape = len(case.class_rows), len(case.class_cols), case.size[2], *case.kernel, 1
    weights = rng.integers(-most - 1, most + 1, shape) if case.weight_bits else np.ones(shape, np.int64)
    constants, details = _constants(case, rng, weights)
    window = _window(case, channelwise=True)
    return ConvStage(DepthwiseParams(window, case.rows, case.weight_bits, **details), *constants)


def _constants(case: ConvCase, rng: np.random.Generator, w_rcohwi: Ints) -> tuple[Constants, dict[str, Any]]:
    """Weights, biases, multipliers, offsets; and what the parameters say of them."""
    pooling, classes = case.weight_bits == 0, w_rcohwi.shape[:2]
    filters = 1 if pooling else w_rcohwi.shape[2]
    x_low = -(1 << case.bits - 1) if case.signed else 0
    x_most = max(-x_low, x_low + (1 << case.bits) - 1)
    reach = int(np.abs(w_rcohwi).sum(axis=(3, 4, 5)).max()) * x_most
    b_rco = rng.integers(-reach // 4 - 2, reach // 4 + 2, (*classes, filters))
    bound = int((np.abs(w_rcohwi).sum(axis=(3, 4, 5)) * x_most + np.abs(b_rco)).max())
    least, most = 1 << max(case.multiplier_bits - 2, 0), 1 << case.multiplier_bits
    m_o = rng.integers(least, most, (*classes, 1) if pooling else filters)
    low = -(1 << case.out_bits - 1) if case.out_signed else 0
    high = low + (1 << case.out_bits) - 1
    typical = max(int(reach * (1 << case.multiplier_bits) / 8), 1)
    shift = max(typical.bit_length() - case.out_bits + 1, 1)
    positive_o, negative_o = rng.integers(-1 << shift, 1 << shift, (2, *m_o.shape)) if case.split else (None, None)
    common = tuple(int(offset) for offset in rng.integers(-1 << shift, 1 << shift, 2))
    positive_o, negative_o = (None if case.tables <= n else offsets for n, offsets in enumerate((positive_o, negative_o)))
    return (w_rcohwi, b_rco, m_o, positive_o, negative_o), {
        "acc_bits": bound.bit_length() + 1,
        "out_bits": case.out_bits,
        "out_signed": case.out_signed,
        "shift": shift,
        "low": max(low, case.zero_point) if case.rectify else low,
        "high": high,
        "zero_point": case.zero_point,
        "class_rows": case.class_rows,
        "class_cols": case.class_cols,
        "requantizer_ii": case.requantizer_ii,
        "multiplier": case.kind,
        "memory": case.kind,
        "multiplier_bits": case.multiplier_bits,
        "split": case.split,
        "offset_bits": shift + 2 if case.split and case.tables else 0,
        "positive": common[0] if case.tables < 1 else None,
        "negative": common[1] if case.tables < 2 else None,
        "ties": "even" if case.even else "none",
        "tie_bits": shift if case.even else 0,
    }


def _window(case: ConvCase, **details: Any) -> WindowParams:
    generous = (case.size[0] + sum(case.padding[0]) + case.kernel[0]) * case.parallel[0]
    window = WindowParams(
        height=case.size[0],
        width=case.size[1],
        channels=case.size[2],
        lanes=case.lanes,
        bits=case.bits,
        signed=case.signed,
        kernel=case.kernel,
        stride=case.stride,
        padding=case.padding,
        rows=generous,
        parallel=case.parallel,
        pad_raw=case.pad_raw,
        memory=case.kind,
        dilation=case.dilation,
        **details,
    )
    return replace(window, rows=window.min_rows if case.ring is None else case.ring or window.full_rows)


def drive(stage: ConvStage[Any], frames: int, profiles: Sequence[str] = PROFILES) -> dict[str, Run]:
    """Send frames back to back; the results are those of the definition and the queue never has to refuse one."""
    params = stage.params
    images = stage.random_frames(frames)
    expected = stage.output_beats(images)
    dut = stage.create()
    queue = look_inside(dut).queue
    overflow = queue.i.valid & ~queue.i.ready
    runs = run_profiles(dut, stage.beats(images), len(expected), profiles, watch=dut.o_issue, never=overflow)
    for profile, run in runs.items():
        seen = [unpack(payload, params.out_bits, params.out_signed, params.rows) for payload in run.payloads]
        beats = [values[: len(part)] for values, part in zip(seen, expected, strict=True)]
        assert beats == expected, profile
    return runs


def assert_latency(stage: ConvStage[Any], run: Run) -> None:
    """With the output always taken, the first beat of a pass comes ``latency`` cycles after its last step."""
    params = stage.params
    last_steps = run.watched[params.window.steps - 1 :: params.window.steps]
    words = [min(params.pass_words, params.words - n * params.pass_words) for n in range(params.passes)]
    due = [
        cycle + params.latency + n * params.word_cycles
        for k, cycle in enumerate(last_steps)
        for n in range(words[k % params.passes])
    ]
    assert run.cycles == due, f"latency of {params.latency} cycles"


def assert_pace(stage: ConvStage[Any]) -> None:
    """With a full ring the multipliers are fed in every cycle from the first step to the last of three frames.

    Where it has fewer steps than input beats, a frame takes as long as they.
    """
    window = replace(stage.params.window, rows=stage.params.window.full_rows)
    stage = replace(stage, params=replace(stage.params, window=window))
    params = stage.params
    run = drive(stage, 3, ["none"])["none"]
    in_beats = window.pixels * window.beats
    assert run.cycles[2 * stage.frame_beats] - run.cycles[stage.frame_beats] == max(params.frame_cycles, in_beats)
    if params.frame_cycles >= in_beats:
        assert run.watched == list(range(run.watched[0], run.watched[0] + 3 * params.frame_cycles))
        assert {after - before for before, after in pairwise(run.cycles[:: params.words])} == {params.ii}


CHOSEN = {
    "smallest": ConvCase((1, 1, 1), 1, (1, 1)),
    "one multiplier": ConvCase((3, 4, 2), 3, (3, 3), padding=SAME, ring=None),
    "slow requantizer": ConvCase((3, 3, 2), 3, (3, 3), padding=SAME, requantizer_ii=18, bits=5, signed=True),
    "slow, two rows": ConvCase((3, 2, 3), 5, (3, 3), padding=SAME, lanes=1, rows=2, requantizer_ii=13, zero_point=-5),
    "a sum every other cycle": ConvCase((3, 4, 2), 9, (3, 3), padding=SAME, pes=9, requantizer_ii=2),
    "a sum every third cycle": ConvCase(
        (3, 3, 4), 11, (3, 3), padding=SAME, rows=2, pes=3, lanes=3, requantizer_ii=3, signed=True
    ),
    "kernel rows at once": ConvCase((5, 5, 3), 5, (3, 3), padding=SAME, lanes=2, pes=2, parallel=(3, 1)),
    "kernel at once": ConvCase((6, 7, 3), 5, (3, 3), (2, 2), ((0, 1), (1, 1)), 1, 2, 3, (3, 3), signed=True, pad_raw=-9),
    "classes": ConvCase(
        (6, 7, 3), 5, (5, 4), (1, 2), ((2, 2), (1, 2)), 1, 2, 3, (5, 1), class_rows=(0, 1, 5), class_cols=(0, 2)
    ),
    "every pixel its class": ConvCase((2, 3, 1), 2, (2, 2), padding=SAME, class_rows=(0, 1, 2), class_cols=(0, 1, 2, 3)),
    "padding beyond the kernel": ConvCase((2, 3, 2), 3, (2, 2), padding=((3, 2), (2, 4)), pad_raw=77, pes=2, ring=None),
    "stride beyond the kernel": ConvCase((7, 8, 2), 4, (2, 2), (3, 4), lanes=2, rows=3, ring=None),
    "pointwise": ConvCase((3, 3, 7), 9, (1, 1), lanes=3, rows=2, pes=3, out_signed=False, rectify=True, zero_point=3),
    "dense": ConvCase((3, 2, 4), 7, (3, 2), lanes=2, pes=5, ring=None),
    "dense, two frames in the ring": ConvCase((3, 2, 4), 7, (3, 2), lanes=2, pes=5),
    "a column": ConvCase((9, 1, 3), 4, (3, 1), padding=((1, 1), (0, 0)), lanes=2, pes=2, parallel=(3, 1), ring=None),
    "two bits": ConvCase((3, 3, 5), 6, (3, 3), padding=SAME, lanes=4, rows=4, pes=2, bits=2, weight_bits=2, out_bits=2),
    "sixteen bits": ConvCase(
        (3, 3, 2), 2, (2, 2), padding=SAME, pes=2, bits=16, signed=True, weight_bits=16, out_bits=16, pad_raw=-32_768
    ),
    "more elements than the last pass needs": ConvCase((3, 3, 4), 5, (2, 2), rows=1, pes=4, ring=None),
    "as many elements as steps": ConvCase((4, 3, 2), 4, (2, 1), pes=4, lanes=1),
    "one step a pass": ConvCase((4, 4, 2), 3, (2, 2), lanes=2, parallel=(2, 2)),
    "dilated": ConvCase((6, 5, 3), 3, (3, 2), (1, 2), ((2, 2), (3, 1)), 2, pes=3, pad_raw=-7, signed=True, dilation=(2, 3)),
    "dilated and causal": ConvCase((9, 1, 2), 3, (3, 1), padding=((6, 0), (0, 0)), pes=3, dilation=(3, 1), split=True),
    "groups": ConvCase((3, 3, 6), 6, (3, 2), padding=SAME, pes=2, groups=3),
    "groups, rows at once": ConvCase((4, 3, 8), 8, (3, 3), padding=SAME, lanes=2, rows=2, pes=2, parallel=(3, 1), groups=2),
    "groups, classes": ConvCase((4, 4, 4), 4, (2, 2), padding=SAME, rows=2, groups=2, class_rows=(0, 1, 4), class_cols=(0, 4)),
    "groups, a channel each": ConvCase((3, 4, 3), 6, (2, 3), rows=2, groups=3),
    "split": ConvCase((3, 3, 2), 5, (3, 2), padding=SAME, rows=2, pes=2, signed=True, split=True, multiplier_bits=23),
    "split, slow": ConvCase(
        (2, 3, 3), 2, (3, 3), padding=SAME, signed=True, requantizer_ii=13, split=True, multiplier_bits=25, pes=2
    ),
    "split, narrow": ConvCase((3, 3, 5), 6, (1, 1), lanes=5, rows=6, split=True, multiplier_bits=1, zero_point=-5),
    "split, one table": ConvCase((3, 3, 2), 5, (3, 2), rows=2, pes=2, signed=True, split=True, tables=1),
    "split, no tables": ConvCase((3, 3, 2), 3, (3, 2), rows=3, pes=1, signed=True, split=True, tables=0),
    "ties": ConvCase((4, 4, 3), 4, (2, 2), rows=2, bits=3, weight_bits=2, out_bits=4, even=True, multiplier_bits=2),
    "ties, slow": ConvCase(
        (3, 3, 3), 2, (3, 2), bits=3, weight_bits=2, out_bits=5, pes=2, requantizer_ii=9, even=True, multiplier_bits=3
    ),
}


def random_case(seed: int) -> ConvCase:
    """A small stage with anything in it that is allowed."""
    rng = random.Random(seed)
    while True:
        kernel = rng.randint(1, 4), rng.randint(1, 4)
        size = rng.randint(1, 6), rng.randint(1, 6), rng.randint(1, 5)
        stride = rng.randint(1, 3), rng.randint(1, 3)
        padding = tuple((rng.randint(0, k + 1), rng.randint(0, k + 1)) for k in kernel)
        lanes, filters, rows = rng.randint(1, size[2]), rng.randint(1, 7), rng.randint(1, 3)
        parallel = rng.choice(((1, 1), (kernel[0], 1), kernel))
        steps = (kernel[0] // parallel[0]) * (kernel[1] // parallel[1]) * -(-size[2] // lanes)
        out = [(n + sum(p) - k) // s + 1 for n, p, k, s in zip(size[:2], padding, kernel, stride, strict=True)]
        if min(out) < 1 or out[0] * out[1] > 16:
            continue
        pes = rng.randint(1, min(steps, -(-filters // rows)))
        bits, signed = rng.randint(2, 16), rng.random() < 0.5
        out_bits, out_signed = rng.randint(2, 16), rng.random() < 0.5
        starts = [tuple(sorted({0, *rng.sample(range(n), min(n, rng.randint(0, 2)))})) for n in out]
        low = -(1 << bits - 1) if signed else 0
        out_low = -(1 << out_bits - 1) if out_signed else 0
        return ConvCase(
            size, filters, kernel, stride, (padding[0], padding[1]), lanes, rows, pes, parallel,
            ring=rng.choice((None, 0)),
            bits=bits,
            signed=signed,
            weight_bits=rng.randint(2, 12),
            out_bits=out_bits,
            out_signed=out_signed,
            zero_point=rng.choice((0, out_low + rng.randrange(1 << out_bits))),
            rectify=rng.random() < 0.3,
            pad_raw=rng.choice((0, low + rng.randrange(1 << bits))),
            class_rows=starts[0],
            class_cols=starts[1],
            requantizer_ii=rng.randint(1, steps // pes),
            split=seed % 3 == 1,
            multiplier_bits=17 if seed % 4 else 9,
        )  # fmt: skip


RANDOM = {f"random {seed}": random_case(seed) for seed in range(14)}
CASES = CHOSEN | RANDOM
