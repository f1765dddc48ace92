"""Reorder: every layer that moves samples, against its definition; and its stated pace."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convfold.hdl.reorder import ReorderParams
from tests.hdl.bench import PROFILES, Run, pack, run_profiles, unpack

BITS = 7
FRAMES = 3


def depth_to_space(x: NDArray[Any], block: tuple[int, int], order: str) -> NDArray[Any]:
    """Sample by sample, as the graph defines it."""
    bh, bw = block
    height, width, depth = x.shape
    channels = depth // (bh * bw)
    y = np.zeros((height * bh, width * bw, channels), x.dtype)
    for i, j, c in np.ndindex(y.shape):
        r, s = i % bh, j % bw
        n = (r * bw + s) * channels + c if order == "DCR" else (c * bh + r) * bw + s
        y[i, j, c] = x[i // bh, j // bw, n]
    return y


def space_to_depth(x: NDArray[Any], block: tuple[int, int], order: str) -> NDArray[Any]:
    """The inverse, for a map in which every sample is another number."""
    height, width, channels = x.shape
    shape = (height // block[0], width // block[1], channels * block[0] * block[1])
    where = depth_to_space(np.arange(x.size).reshape(shape), block, order).reshape(-1)
    y = np.zeros(x.size, x.dtype)
    y[where] = x.reshape(-1)
    return y.reshape(shape)


def upsample(x: NDArray[Any], factor: tuple[int, int]) -> NDArray[Any]:
    return x.repeat(factor[0], axis=0).repeat(factor[1], axis=1)


def channel_shuffle(x: NDArray[Any], groups: int) -> NDArray[Any]:
    y = np.zeros_like(x)
    channels = x.shape[2]
    for g in range(groups):
        for n in range(channels // groups):
            y[:, :, n * groups + g] = x[:, :, g * (channels // groups) + n]
    return y


CASES = [
    ("depth_to_space", depth_to_space, (2, 3, 8), {"block": (2, 2), "order": "DCR"}, 2),
    ("depth_to_space", depth_to_space, (2, 2, 12), {"block": (3, 2), "order": "DCR"}, 1),
    ("depth_to_space", depth_to_space, (3, 2, 12), {"block": (2, 3), "order": "CRD"}, 1),
    ("depth_to_space", depth_to_space, (2, 3, 4), {"block": (2, 2), "order": "CRD"}, 1),
    ("space_to_depth", space_to_depth, (4, 6, 4), {"block": (2, 3), "order": "DCR"}, 4),
    ("space_to_depth", space_to_depth, (6, 4, 3), {"block": (3, 2), "order": "DCR"}, 1),
    ("space_to_depth", space_to_depth, (4, 4, 3), {"block": (2, 2), "order": "CRD"}, 1),
    ("space_to_depth", space_to_depth, (4, 4, 1), {"block": (2, 4), "order": "CRD"}, 1),
    ("upsample", upsample, (2, 3, 5), {"factor": (2, 3)}, 2),
    ("upsample", upsample, (2, 1, 1), {"factor": (3, 1)}, 1),
    ("upsample", upsample, (3, 4, 2), {"factor": (1, 1)}, 2),
    ("channel_shuffle", channel_shuffle, (2, 3, 6), {"groups": 2}, 1),
    ("channel_shuffle", channel_shuffle, (2, 3, 6), {"groups": 6}, 3),
    ("channel_shuffle", channel_shuffle, (4, 3, 1), {"groups": 1}, 1),
]


def make(kind: str, shape: tuple[int, int, int], fields: Any, lanes: int) -> ReorderParams:
    height, width, channels = shape
    size = {"height": height, "width": width, "channels": channels, "lanes": lanes, "bits": BITS, "signed": True}
    params: ReorderParams = getattr(ReorderParams, f"for_{kind}")(**size, **fields)
    return params


def beats_of(frames: list[NDArray[Any]], lanes: int) -> list[list[int]]:
    """The beats of some frames; short ones at the ends of pixels."""
    pixels = [pixel for frame in frames for pixel in frame.reshape(-1, frame.shape[2]).tolist()]
    return [pixel[n : n + lanes] for pixel in pixels for n in range(0, len(pixel), lanes)]


def drive(params: ReorderParams, beats: list[list[int]], expected: list[list[int]]) -> dict[str, Run]:
    runs = run_profiles(params.create(), [pack(beat, BITS) for beat in beats], len(expected))
    for profile in PROFILES:
        seen = [unpack(payload, BITS, True, params.lanes) for payload in runs[profile].payloads]
        assert [part[: len(beat)] for part, beat in zip(seen, expected, strict=True)] == expected
    return runs


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}-{case[3]}-{case[4]}")
def test_a_layer(case: Any) -> None:
    kind, definition, shape, fields, lanes = case
    params = make(kind, shape, fields, lanes)
    frames = list(np.random.default_rng(1).integers(-64, 64, (FRAMES, *shape)))
    beats = beats_of(frames, lanes)
    expected = beats_of([definition(frame, **fields) for frame in frames], lanes)
    assert list(params.reference(beats)) == expected
    run = drive(params, beats, expected)["none"]
    # The first band out follows its last beat in; then there is one beat a cycle, as long as there is one.
    assert run.cycles[0] - run.sent[params.band_words - 1] == params.latency
    assert {after - before for before, after in pairwise(run.cycles)} == {params.ii}
    if params.out_words == params.band_words:
        assert run.sent == list(range(len(beats)))


def test_loops_of_any_kind() -> None:
    """Beats may be skipped, repeated and turned about; then the input waits, or the output."""
    params = ReorderParams(10, ((2, 1), (2, 0), (3, 4), (1, 5)), 1, BITS, True)
    assert list(params.addresses()) == [0, 4, 8, 0, 4, 8, 1, 5, 9, 1, 5, 9]
    beats = [[n] for n in range(60)]
    drive(params, beats, [[10 * band + n] for band in range(6) for n in params.addresses()])
    few = ReorderParams(5, ((1, 1),), 1, BITS, True)
    drive(few, beats, [[n] for n in range(0, 60, 5)])


def test_bands_of_one_beat_pass_at_full_rate() -> None:
    params = ReorderParams(1, ((1, 0),), 1, BITS, True)
    beats = [[n] for n in range(40)]
    run = drive(params, beats, beats)["none"]
    assert run.cycles == [sent + params.latency for sent in run.sent] == list(range(params.latency, 40 + params.latency))


@pytest.mark.parametrize(
    ("kind", "shape", "fields", "lanes", "message"),
    [
        ("depth_to_space", (2, 2, 8), {"block": (2, 2), "order": "DCR"}, 4, "lanes must divide 2, not 4"),
        ("depth_to_space", (2, 2, 8), {"block": (2, 2), "order": "CRD"}, 2, "lanes must be 1, for channels that part, not 2"),
        ("depth_to_space", (2, 2, 6), {"block": (2, 2), "order": "DCR"}, 1, "channels must be a multiple of 4, not 6"),
        ("space_to_depth", (4, 4, 3), {"block": (2, 2), "order": "DCR"}, 2, "lanes must divide 3, not 2"),
        ("space_to_depth", (4, 4, 2), {"block": (2, 2), "order": "CRD"}, 2, "lanes must be 1, for channels that part, not 2"),
        ("space_to_depth", (4, 4, 1), {"block": (2, 2), "order": "CRD"}, 2, "lanes must divide 1, not 2"),
        ("space_to_depth", (4, 3, 2), {"block": (2, 2), "order": "DCR"}, 1, "block must divide 4×3, not (2, 2)"),
        ("channel_shuffle", (2, 2, 8), {"groups": 2}, 2, "lanes must be 1, for channels that part, not 2"),
        ("channel_shuffle", (2, 2, 8), {"groups": 3}, 1, "groups must divide 8, not 3"),
    ],
)
def test_beats_are_never_cut(kind: str, shape: tuple[int, int, int], fields: Any, lanes: int, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(").replace(")", r"\)") + "$"):
        make(kind, shape, fields, lanes)


def test_impossible_loops() -> None:
    with pytest.raises(ValueError, match=r"^loops must stay within the 4 beats of a band, not reach 5$"):
        ReorderParams(4, ((3, 2),), 1, 8, True)
    with pytest.raises(ValueError, match=r"^loops must be counts from 1 and strides from 0, not \(\(0, 1\),\)$"):
        ReorderParams(4, ((0, 1),), 1, 8, True)
