"""The golden model against loops over Python integers, written once more from the definitions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convfold.compiler.graph import (
    ArgMax,
    Array,
    BorderClasses,
    ChannelShuffle,
    Clip,
    Concat,
    Crop,
    DepthToSpace,
    Flatten,
    Graph,
    Input,
    MaxPool,
    Node,
    Pad,
    Pair,
    QAdd,
    QAveragePool,
    QConv2D,
    QMultiply,
    QTable,
    Reshape,
    Slice,
    SpaceToDepth,
    Upsample,
    window_extent,
    window_size,
)
from convfold.compiler.numbers import MAX_ACCUMULATOR, Format, IntArray, Range, accumulator_range
from convfold.compiler.rounding import requantizer_of
from convfold.sim import golden

# ------------------------------------------------------------------------------------------- the definitions


def loop_accumulators(graph: Graph, node: QConv2D, x_raw: IntArray) -> Iterator[tuple[int, int, int, int]]:
    """``(i, j, m, b[m] + Σ w[m,u,v,c] · x[i·s+u·d−p, j·s+v·d−p, c])`` of one frame, one multiplication at a time."""
    height, width, channels = x_raw.shape
    reads, makes = channels // node.groups, graph.shapes[node.name][2] // node.groups
    (top, _), (left, _) = node.padding
    zero = graph.format_of(node.inputs[0]).zero_point
    kernels, biases = graph.weights[f"{node.name}.w"].tolist(), graph.weights[f"{node.name}.b"].tolist()
    x = x_raw.tolist()
    for i, j, m in product(*map(range, graph.shapes[node.name])):
        row_class = max(n for n, start in enumerate(node.classes.rows) if start <= i)
        col_class = max(n for n, start in enumerate(node.classes.cols) if start <= j)
        kernel = kernels[row_class][col_class][m]
        acc = biases[row_class][col_class][m]
        for u, v, c in product(range(len(kernel)), range(len(kernel[0])), range(reads)):
            row, col = i * node.stride[0] + u * node.dilation[0] - top, j * node.stride[1] + v * node.dilation[1] - left
            inside = 0 <= row < height and 0 <= col < width
            acc += kernel[u][v][c] * (x[row][col][m // makes * reads + c] if inside else zero)
        yield i, j, m, acc


def loop_qconv2d(graph: Graph, node: QConv2D, x_raw: IntArray) -> IntArray:
    y_raw = np.empty(graph.shapes[node.name], dtype=np.int64)
    requantizer = None if node.rounding == "native" else requantizer_of(graph, node)  # tests/compiler/test_rounding.py
    for i, j, m, acc in loop_accumulators(graph, node, x_raw):
        if requantizer is None:
            nearest = math.floor(Fraction(acc * int(graph.weights[f"{node.name}.m"][m]), 2**node.shift) + Fraction(1, 2))
        else:
            nearest = int(requantizer(np.array(acc))[m])
        y_raw[i, j, m] = min(max(nearest + node.format.zero_point, node.low), node.high)
    return y_raw


def loop_max_pool(graph: Graph, node: MaxPool, x_raw: IntArray) -> IntArray:
    height, width, _ = x_raw.shape
    y_raw = np.empty(graph.shapes[node.name], dtype=np.int64)
    for i, j, c in np.ndindex(y_raw.shape):
        rows = (i * node.stride[0] + u - node.padding[0][0] for u in range(node.kernel[0]))
        cols = [j * node.stride[1] + v - node.padding[1][0] for v in range(node.kernel[1])]
        y_raw[i, j, c] = max(x_raw[r, q, c] for r in rows for q in cols if 0 <= r < height and 0 <= q < width)
    return y_raw


def loop_trace(graph: Graph, x_raw: IntArray) -> dict[str, IntArray]:
    """Every tensor of a batch."""
    tensors = {graph.input.name: x_raw}
    for node in graph.nodes:
        if isinstance(node, QConv2D):
            batch = [loop_qconv2d(graph, node, frame) for frame in tensors[node.inputs[0]]]
            tensors[node.name] = np.stack(batch)
        elif isinstance(node, MaxPool):
            batch = [loop_max_pool(graph, node, frame) for frame in tensors[node.inputs[0]]]
            tensors[node.name] = np.stack(batch)
    return tensors


def assert_same(graph: Graph, x_raw: IntArray) -> None:
    computed, expected = golden.trace(graph, x_raw), loop_trace(graph, x_raw)
    assert list(computed) == [node.name for node in graph.nodes]
    for name, tensor in expected.items():
        assert computed[name].dtype == np.int64
        assert np.array_equal(computed[name], tensor), name


# --------------------------------------------------------------------------------------------- random graphs


def network(nodes: list[Input | QConv2D | MaxPool], weights: dict[str, IntArray], *outputs: str) -> Graph:
    return Graph("net", tuple(nodes), outputs, weights)


def frames(graph: Graph, count: int, rng: np.random.Generator) -> IntArray:
    form = graph.format_of(graph.input.name)
    x_raw = rng.integers(form.min_raw, form.max_raw + 1, size=(count, *graph.input.shape))
    x_raw[0] = rng.choice([form.min_raw, form.max_raw], size=graph.input.shape)
    return x_raw


def conv_arrays(
    name: str, counts: tuple[int, ...], weight_bits: int, rng: np.random.Generator
) -> dict[str, IntArray]:
    """Weights ``(R,C,O,kh,kw,I)`` anywhere in their range, biases as great as the products."""
    largest = 2 ** (weight_bits - 1) - 1
    reach = largest * 200
    return {
        f"{name}.w": rng.integers(-largest, largest + 1, size=counts),
        f"{name}.b": rng.integers(-reach, reach + 1, size=counts[:3]),
        f"{name}.m": rng.integers(0, 2**17, size=counts[2]),
    }


formats = st.builds(
    lambda bits, signed, share: Format(
        bits, signed, 1.0, round(share * (2**bits - 1)) - signed * 2 ** (bits - 1)
    ),
    st.integers(2, 16),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1),
)
seeds = st.integers(0, 2**32 - 1)
"""Of the arrays: a failing geometry shrinks, its numbers do not."""


def starts(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Where border classes begin; the last may be behind the end, and then nothing is in it."""
    return st.sets(st.integers(1, size), max_size=2).map(lambda later: (0, *sorted(later)))


@st.composite
def window(draw: st.DrawFn, more: int) -> tuple[int, int, int, Pair]:
    """Size, kernel, stride and padding along one axis, with at least one output; padding below ``kernel + more``."""
    kernel = draw(st.integers(1, 3))
    padding = draw(st.tuples(*[st.integers(0, kernel - 1 + more)] * 2))
    size = draw(st.integers(max(1, kernel - sum(padding)), 6))
    return size, kernel, draw(st.integers(1, 3)), padding


@st.composite
def qconv_graphs(draw: st.DrawFn) -> Graph:
    (height, kh, down, vertical), (width, kw, across, horizontal) = draw(st.tuples(window(1), window(1)))
    groups, reads, makes = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
    inputs, outputs = groups * reads, groups * makes
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    tall, wide = window_extent(kh, dilation[0]), window_extent(kw, dilation[1])
    height, width = height + tall - kh, width + wide - kw
    rows = draw(starts(window_size(height, tall, down, vertical)))
    cols = draw(starts(window_size(width, wide, across, horizontal)))
    source, form = draw(st.tuples(formats, formats))
    low, high = sorted(draw(st.tuples(*[st.integers(form.min_raw, form.max_raw)] * 2)))
    weight_bits = draw(st.integers(2, 16))
    conv = QConv2D(
        name="conv",
        inputs=("x",),
        source="conv",
        stride=(down, across),
        padding=(vertical, horizontal),
        classes=BorderClasses(rows, cols),
        shift=draw(st.integers(1, 40)),
        low=low,
        high=high,
        format=form,
        weight_bits=weight_bits,
        dilation=dilation,
        groups=groups,
    )
    counts = (len(rows), len(cols), outputs, kh, kw, reads)
    weights = conv_arrays("conv", counts, weight_bits, np.random.default_rng(draw(seeds)))
    image = Input(
        name="x", inputs=(), source="x", shape=(height, width, inputs), low=0, high=1, format=source
    )
    return network([image, conv], weights, "conv")


@settings(max_examples=250)
@given(qconv_graphs(), seeds)
def test_convolution(graph: Graph, seed: int) -> None:
    assert_same(graph, frames(graph, 2, np.random.default_rng(seed)))


@settings(max_examples=200)
@given(window(0), window(0), formats, seeds)
def test_max_pool(
    vertical: tuple[int, int, int, Pair], horizontal: tuple[int, int, int, Pair], form: Format, seed: int
) -> None:
    (height, kh, down, rows), (width, kw, across, cols) = vertical, horizontal
    image = Input(name="x", inputs=(), source="x", shape=(height, width, 2), low=0, high=1, format=form)
    pool = MaxPool(
        name="y", inputs=("x",), source="y", kernel=(kh, kw), stride=(down, across), padding=(rows, cols)
    )
    graph = network([image, pool], {}, "y")
    assert_same(graph, frames(graph, 2, np.random.default_rng(seed)))
    assert_same(graph, np.full((1, height, width, 2), form.min_raw))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rounding", ["tflite", "float32", "float64"])
def test_convolutions_of_other_roundings(rounding: Any, groups: int, rng: np.random.Generator) -> None:
    form = Format(8, True, 1.0, 7)
    x = Input(name="x", inputs=(), source="x", shape=(4, 5, 4), low=0, high=1, format=form)
    conv = QConv2D(
        name="conv",
        inputs=("x",),
        source="conv",
        stride=(1, 2),
        padding=((1, 1), (0, 1)),
        classes=BorderClasses(),
        low=-100,
        high=127,
        format=Format(8, True, 1.0, -3),
        weight_bits=8,
        groups=groups,
        rounding=rounding,
    )
    weights: dict[str, Array] = {
        "conv.w": rng.integers(-127, 128, size=(1, 1, 8, 3, 2, 4 // groups)),
        "conv.b": rng.integers(-9000, 9000, size=(1, 1, 8)),
    }
    if rounding == "tflite":
        weights |= {"conv.m": rng.integers(2**30, 2**31, 8), "conv.s": rng.integers(-10, -5, 8)}
    else:
        weights["conv.scale"] = rng.uniform(2.0**-10, 2.0**-7, 8)
    graph = Graph("net", (x, conv), ("conv",), weights)
    assert_same(graph, frames(graph, 2, rng))


# ------------------------------------------------------------------------------- pools, sums, products and tables


def one_node(node: Node, shape: tuple[int, int, int], form: Format, **arrays: IntArray) -> Graph:
    x = Input(name="x", inputs=(), source="x", shape=shape, low=0, high=1, format=form)
    return Graph("net", (x, node), ("y",), {f"y.{name}": array for name, array in arrays.items()})


def named(*inputs: str, **fields: Any) -> Any:
    return {"name": "y", "inputs": inputs or ("x",), "source": "y"} | fields


def rounded(rounding: str, value: Fraction) -> int:
    """Of an exact quotient; even a float32 is off by less than a tie where these tests have none."""
    if rounding == "native":
        return math.floor(value + Fraction(1, 2))
    if rounding == "tflite":
        return int(math.copysign(math.floor(abs(value) + Fraction(1, 2)), value))
    return round(value)


@settings(max_examples=200)
@given(window(0), window(0), st.booleans(), st.sampled_from(["native", "tflite", "float32", "float64"]), seeds)
def test_average_pool(
    vertical: tuple[int, int, int, Pair], horizontal: tuple[int, int, int, Pair], counts: bool, rounding: Any, seed: int
) -> None:
    (height, kh, down, rows), (width, kw, across, cols) = vertical, horizontal
    source = Format(8, True, 1.0, -9)
    floats = rounding.startswith("float")
    form = Format(8, True, 1.0, 4) if floats else source
    ratio = 0.5 if floats else 1.0
    pool = QAveragePool(
        **named(low=-120, high=100, format=form, rounding=rounding, ratio=ratio),
        kernel=(kh, kw),
        stride=(down, across),
        padding=(rows, cols),
        count_include_pad=counts,
    )
    graph = one_node(pool, (height, width, 2), source)
    x_raw = frames(graph, 2, np.random.default_rng(seed))
    y_raw = golden.run(graph, x_raw)["y"]
    for n, i, j, c in np.ndindex(y_raw.shape):
        taps = product((i * down + u - rows[0] for u in range(kh)), (j * across + v - cols[0] for v in range(kw)))
        inside = [int(x_raw[n, r, q, c]) for r, q in taps if 0 <= r < height and 0 <= q < width]
        padded = [source.zero_point] * (kh * kw - len(inside)) if counts else []
        samples = inside + padded
        if floats:
            ratio_n = np.float32(0.5 / len(samples)) if rounding == "float32" else np.float64(0.5 / len(samples))
            steps = round(float((sum(samples) + 9 * len(samples)) * ratio_n)) + 4
        else:
            steps = rounded(rounding, Fraction(sum(samples), len(samples)))
        assert y_raw[n, i, j, c] == min(max(steps, -120), 100)


def test_sums_and_products_take_the_zero_points_off(rng: np.random.Generator) -> None:
    source, form = Format(8, False, 1.0, 9), Format(8, True, 1.0, -5)
    add = QAdd(**named("x", "x", low=-100, high=120, format=form, multipliers=((3, 0), (-1, 0)), shift=2))
    graph = one_node(add, (2, 3, 2), source)
    x_raw = frames(graph, 3, rng)
    exact = [rounded("native", Fraction(2 * (int(x) - 9), 4)) - 5 for x in x_raw.ravel()]
    assert golden.run(graph, x_raw)["y"].ravel().tolist() == [min(max(y, -100), 120) for y in exact]
    multiply = QMultiply(**named("x", "x", low=-100, high=120, format=form, multiplier=(3, 0), shift=9))
    graph = one_node(multiply, (2, 3, 2), source)
    exact = [rounded("native", Fraction(3 * (int(x) - 9) ** 2, 512)) - 5 for x in x_raw.ravel()]
    assert golden.run(graph, x_raw)["y"].ravel().tolist() == [min(max(y, -100), 120) for y in exact]


@pytest.mark.parametrize("rows", [1, 3])
def test_tables(rows: int, rng: np.random.Generator) -> None:
    source = Format(4, True, 1.0)
    table = rng.integers(-128, 128, size=(rows, 16))
    graph = one_node(QTable(**named(format=Format(8, True, 1.0), function="relu")), (2, 2, 3), source, table=table)
    x_raw = frames(graph, 5, rng)
    y_raw = golden.run(graph, x_raw)["y"]
    for at in np.ndindex(x_raw.shape):
        assert y_raw[at] == table[at[3] % rows, x_raw[at] + 8]


# ------------------------------------------------------------------------------------------------------- movers

FORM = Format(8, True, 0.5, 3)
MOVES: dict[str, tuple[Node, tuple[int, int, int], Any]] = {
    "concat": (Concat(**named("x", "x")), (2, 3, 2), lambda x, i, j, c: x[i, j, c % 2]),
    "slice": (Slice(**named(start=1, stop=3)), (2, 3, 4), lambda x, i, j, c: x[i, j, c + 1]),
    "shuffle": (ChannelShuffle(**named(groups=3)), (2, 2, 6), lambda x, i, j, c: x[i, j, c % 3 * 2 + c // 3]),
    "depth to space, DCR": (
        DepthToSpace(**named(block=(2, 3))),
        (2, 2, 12),
        lambda x, i, j, c: x[i // 2, j // 3, (i % 2 * 3 + j % 3) * 2 + c],
    ),
    "depth to space, CRD": (
        DepthToSpace(**named(block=(2, 3), order="CRD")),
        (2, 2, 12),
        lambda x, i, j, c: x[i // 2, j // 3, (c * 2 + i % 2) * 3 + j % 3],
    ),
    "space to depth, DCR": (
        SpaceToDepth(**named(block=(2, 3))),
        (4, 6, 2),
        lambda x, i, j, c: x[i * 2 + c // 6, j * 3 + c // 2 % 3, c % 2],
    ),
    "space to depth, CRD": (
        SpaceToDepth(**named(block=(2, 3), order="CRD")),
        (4, 6, 2),
        lambda x, i, j, c: x[i * 2 + c // 3 % 2, j * 3 + c % 3, c // 6],
    ),
    "upsample": (Upsample(**named(factor=(2, 3))), (2, 2, 2), lambda x, i, j, c: x[i // 2, j // 3, c]),
    "pad": (
        Pad(**named(padding=((1, 2), (0, 3)), value=-1.0)),
        (2, 2, 2),
        lambda x, i, j, c: x[i - 1, j, c] if 1 <= i < 3 and j < 2 else 1,
    ),
    "crop": (Crop(**named(cropping=((1, 2), (0, 3)))), (5, 4, 2), lambda x, i, j, c: x[i + 1, j, c]),
    "reshape": (Reshape(**named(shape=(3, 2, 4))), (2, 3, 4), lambda x, i, j, c: x.ravel()[(i * 2 + j) * 4 + c]),
    "flatten": (Flatten(**named()), (2, 3, 4), lambda x, i, j, c: x.ravel()[c]),
    "argmax": (
        ArgMax(**named()),
        (3, 4, 5),
        lambda x, i, j, c: min(n for n in range(5) if x[i, j, n] == max(x[i, j].tolist())),
    ),
}


@pytest.mark.parametrize("case", MOVES)
def test_samples_are_moved(case: str, rng: np.random.Generator) -> None:
    """Where each sample of the output comes from."""
    node, shape, origin = MOVES[case]
    graph = one_node(node, shape, FORM)
    x_raw = frames(graph, 3, rng)
    x_raw[1] //= 100  # many equals
    y_raw = golden.run(graph, x_raw)["y"]
    assert y_raw.shape == (3, *graph.shapes["y"])
    for n, i, j, c in np.ndindex(y_raw.shape):
        assert y_raw[n, i, j, c] == origin(x_raw[n], i, j, c)


# ------------------------------------------------------------------------------------------------- one network


def small_net(rng: np.random.Generator) -> Graph:
    """Two branches behind one convolution: border classes, zero points, a pool, a dense layer, two outputs."""
    x = Input(
        name="x", inputs=(), source="x", shape=(7, 6, 2), low=0, high=1, format=Format(8, False, 1.0, 9)
    )
    edges = QConv2D(
        name="edges",
        inputs=("x",),
        source="edges",
        stride=(1, 2),
        padding=((2, 1), (0, 1)),
        classes=BorderClasses((0, 2, 7), (0, 2)),
        shift=25,
        low=-100,
        high=90,
        format=Format(8, True, 1.0, -5),
        weight_bits=8,
    )
    whole = replace(edges, stride=(1, 1), classes=BorderClasses(), low=-128, high=127)
    side = replace(whole, name="side", inputs=("edges",), padding=((1, 1), (1, 1)))
    pool = MaxPool(
        name="pool", inputs=("edges",), source="pool", kernel=(2, 3), stride=(2, 1), padding=((1, 0), (1, 1))
    )
    scores = replace(whole, name="scores", inputs=("pool",), padding=((0, 0), (0, 0)), kind="dense")
    weights = {
        **conv_arrays("edges", (3, 2, 4, 3, 2, 2), 8, rng),
        **conv_arrays("side", (1, 1, 2, 3, 3, 4), 8, rng),
        **conv_arrays("scores", (1, 1, 5, 4, 3, 4), 8, rng),
    }
    return network([x, edges, side, pool, scores], weights, "scores", "side")


def test_every_tensor_of_a_network(rng: np.random.Generator) -> None:
    for _ in range(5):
        graph = small_net(rng)
        assert_same(graph, frames(graph, 2, rng))


def test_run_gives_the_outputs_and_what_else_is_asked_for(rng: np.random.Generator) -> None:
    graph = small_net(rng)
    x_raw = frames(graph, 3, rng)
    every = golden.trace(graph, x_raw)
    assert list(golden.run(graph, x_raw)) == ["side", "scores"]
    assert list(golden.run(graph, x_raw, keep=("pool", "x"))) == ["x", "side", "pool", "scores"]
    for name, tensor in golden.run(graph, x_raw, keep=["pool"]).items():
        assert np.array_equal(tensor, every[name])
    assert np.array_equal(every["x"], x_raw)


@pytest.mark.parametrize("words", [1, 300, 1000, 2000])
def test_a_long_batch_is_cut(words: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame has tensors of 96 words at most, and tables of windows of 864."""
    graph = small_net(rng)
    x_raw = frames(graph, 25, rng)
    expected = golden.trace(graph, x_raw)
    monkeypatch.setattr(golden, "_WORDS", words)
    computed = golden.trace(graph, x_raw)
    assert all(np.array_equal(computed[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, ">i4"])
def test_any_integers_are_taken_and_left_unchanged(dtype: str, rng: np.random.Generator) -> None:
    graph = small_net(rng)
    x_raw = np.abs(frames(graph, 2, rng))
    given_raw = x_raw.astype(dtype)
    result = golden.run(graph, given_raw)
    assert np.array_equal(given_raw, x_raw)
    assert all(np.array_equal(tensor, result[name]) for name, tensor in golden.run(graph, x_raw).items())


# ---------------------------------------------------------------------------------------------------- extremes


def reach(graph: Graph, node: QConv2D) -> Range:
    source = graph.format_of(node.inputs[0])
    w_rcohwi, b_rco = (np.asarray(graph.weights[f"{node.name}.{part}"], dtype=np.int64) for part in "wb")
    return accumulator_range(w_rcohwi, b_rco, source.min_raw, source.max_raw)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "weight_bits"), [(2, 2), (8, 8), (4, 16), (16, 16)])
def test_extreme_weights_and_inputs_attain_the_accumulator_range(
    bits: int, weight_bits: int, signed: bool
) -> None:
    """The six channels' weights: all greatest, all least, alternating; each with the greatest and the least bias."""
    largest = 2 ** (weight_bits - 1) - 1
    kernel = np.ones((3, 3, 2), dtype=np.int64)
    signs = np.stack([kernel, -kernel, np.where(np.indices(kernel.shape).sum(axis=0) % 2, 1, -1)])
    form = Format(bits, signed, 1.0)
    graph = network(
        [
            Input(name="x", inputs=(), source="x", shape=(3, 3, 2), low=0, high=1, format=form),
            QConv2D(
                name="y",
                inputs=("x",),
                source="y",
                stride=(1, 1),
                padding=((0, 0), (0, 0)),
                classes=BorderClasses(),
                shift=weight_bits + bits,
                low=-32768,
                high=32767,
                format=Format(16, True, 1.0),
                weight_bits=weight_bits,
            ),
        ],
        {
            "y.w": (signs * largest).repeat(2, axis=0)[None, None],
            "y.b": np.array([1, -1] * 3)[None, None] * largest * 2**bits,
            "y.m": np.full(6, 2**14),
        },
        "y",
    )
    least, most = form.min_raw, form.max_raw
    x_raw = np.stack([np.where(sign * way > 0, most, least) for sign in signs for way in (1, -1)])
    assert_same(graph, x_raw)
    node = graph.node("y")
    assert isinstance(node, QConv2D)
    reached = [acc for frame in x_raw for *_, acc in loop_accumulators(graph, node, frame)]
    assert Range(min(reached), max(reached)) == reach(graph, node)


@settings(max_examples=50)
@given(qconv_graphs(), seeds)
def test_no_accumulator_leaves_its_range(graph: Graph, seed: int) -> None:
    node = graph.node("conv")
    assert isinstance(node, QConv2D)
    limits = reach(graph, node)
    for frame in frames(graph, 2, np.random.default_rng(seed)):
        for *_, acc in loop_accumulators(graph, node, frame):
            assert limits.low <= acc <= limits.high


def test_the_lowest_bit_of_wide_sums_is_exact(rng: np.random.Generator) -> None:
    """16-bit products in 36-bit sums, which the biases bring back to a few units; the multiplier is one."""
    node = one_tap(0).node("y")
    assert isinstance(node, QConv2D)
    form = Format(16, False, 1.0)
    pixel = Input(name="x", inputs=(), source="x", shape=(1, 1, 32), low=0, high=1, format=form)
    x_raw = rng.integers(2**15, 2**16, size=(1, 1, 1, 32))
    w_rcohwi = rng.integers(-(2**15) + 1, 2**15, size=(1, 1, 500, 1, 1, 32))
    sums = [
        sum(w * x for w, x in zip(row, x_raw.ravel().tolist(), strict=True))
        for row in w_rcohwi[0, 0, :, 0, 0].tolist()
    ]
    units = rng.integers(-5, 6, size=500)
    arrays = {"y.w": w_rcohwi, "y.b": (units - sums)[None, None], "y.m": np.full(500, 2)}
    assert np.array_equal(
        golden.run(network([pixel, replace(node, shift=1)], arrays, "y"), x_raw)["y"].ravel(), units
    )


def one_tap(bias: int) -> Graph:
    """``y = (1·x + bias)`` of one pixel."""
    form = Format(2, False, 1.0)
    pixel = Input(name="x", inputs=(), source="x", shape=(1, 1, 1), low=0, high=1, format=form)
    conv = QConv2D(
        name="y",
        inputs=("x",),
        source="y",
        stride=(1, 1),
        padding=((0, 0), (0, 0)),
        classes=BorderClasses(),
        shift=46,
        low=-32768,
        high=32767,
        format=Format(16, True, 1.0),
        weight_bits=8,
    )
    one = np.ones((1, 1, 1, 1, 1, 1), dtype=np.int64)
    arrays = {"y.w": one, "y.b": np.full((1, 1, 1), bias), "y.m": np.array([2**16 + 1])}
    return network([pixel, conv], arrays, "y")


@pytest.mark.parametrize("bias", [MAX_ACCUMULATOR - 3, -MAX_ACCUMULATOR])
def test_the_greatest_accumulator_is_exact(bias: int) -> None:
    assert_same(one_tap(bias), np.array([0, 1, 3]).reshape(3, 1, 1, 1))


# ------------------------------------------------------------------------------------------------------ errors


def refused(kind: type[Exception], message: str) -> AbstractContextManager[object]:
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def test_bad_frames_are_refused(rng: np.random.Generator) -> None:
    graph = small_net(rng)
    x_raw = frames(graph, 2, rng)
    not_integers: list[Any] = [x_raw.astype(np.float64), x_raw > 0]
    for array, kind in zip(not_integers, ("float64", "bool"), strict=True):
        with refused(TypeError, f"x_raw must hold integers, not {kind}"):
            golden.run(graph, array)
    with refused(ValueError, "x_raw must have the shape (images, 7, 6, 2), not (7, 6, 2)"):
        golden.run(graph, x_raw[0])
    with refused(ValueError, "x_raw must have the shape (images, 7, 6, 2), not (2, 6, 7, 2)"):
        golden.run(graph, x_raw.swapaxes(1, 2))
    with refused(ValueError, "x_raw must have the shape (images, 7, 6, 2), not (0, 7, 6, 2)"):
        golden.run(graph, x_raw[:0])
    with refused(ValueError, "x_raw must be 0 to 255, not 256"):
        golden.run(graph, x_raw + 256 - x_raw.max())
    with refused(ValueError, "x_raw must be 0 to 255, not -1"):
        golden.run(graph, x_raw - 1 - x_raw.min())


def test_bad_graphs_are_refused(rng: np.random.Generator) -> None:
    graph = small_net(rng)
    x_raw = frames(graph, 1, rng)
    with refused(ValueError, "keep must name tensors of the graph, not 'relu'"):
        golden.run(graph, x_raw, keep=["scores", "relu"])
    relu = Clip(name="relu", inputs=("scores",), source="relu")
    with refused(TypeError, "graph must be quantized, not hold clip 'relu'"):
        golden.run(replace(graph, nodes=(*graph.nodes, relu)), x_raw)
    real = graph.weights["edges.w"].astype(np.float64)
    with refused(TypeError, "weights 'edges.w' must hold integers, not float64"):
        golden.run(replace(graph, weights={**graph.weights, "edges.w": real}), x_raw)
    with refused(ValueError, "tensor must be quantized, not 'x'"):
        golden.run(replace(graph, nodes=(replace(graph.input, format=None), *graph.nodes[1:])), x_raw)
    with refused(
        ValueError, f"accumulators of 'y' must be at most {MAX_ACCUMULATOR}, not {MAX_ACCUMULATOR + 1}"
    ):
        golden.run(one_tap(MAX_ACCUMULATOR - 2), np.zeros((1, 1, 1, 1), dtype=np.int64))
