"""The hardware's form of every requantizer: equal on whole ranges, and no wider than it has to be."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convfold.compiler import narrow as narrow_module
from convfold.compiler.errors import CompileError, InternalError
from convfold.compiler.graph import Array, BorderClasses, Graph, Input, Node, QAdd, QAveragePool, QConv2D, QMultiply
from convfold.compiler.narrow import (
    AddForm,
    Form,
    Rounding,
    add_form,
    average_form,
    conv_form,
    multiply_form,
    narrow,
)
from convfold.compiler.numbers import Format, IntArray
from convfold.compiler.rounding import (
    FloatRequantizer,
    MeanRequantizer,
    NativeRequantizer,
    Requantizer,
    TfliteRequantizer,
)
from convfold.hdl.ties import TiesParams
from convfold.sim import golden

INT8 = Format(8, True, 1.0)


def assert_equal(form: Form, requantizer: Requantizer, least: int, most: int, low: int, high: int) -> None:
    acc = np.arange(least, most + 1)[:, None]
    assert np.array_equal(np.clip(form(acc), low, high), np.clip(requantizer(acc), low, high))


def spans(least: int = -3000, most: int = 3000) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most)).map(lambda ends: (min(ends), max(ends)))


limits = st.sampled_from([(-128, 127), (0, 255), (-1, 0), (-300, 77), (-8, 7)])


@settings(max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(-12, 2)), min_size=1, max_size=4), spans(), limits)
def test_tflite(channels: list[tuple[int, int]], span: tuple[int, int], limit: tuple[int, int]) -> None:
    m, s = (np.array(parts) for parts in zip(*channels, strict=True))
    requantizer = TfliteRequantizer(m, s)
    form = narrow(requantizer, np.full(len(m), span[0]), np.full(len(m), span[1]), *limit, "layer")
    assert form.m.shape == form.positive.shape == form.negative.shape == m.shape
    assert_equal(form, requantizer, *span, *limit)


@settings(max_examples=60)
@given(
    st.lists(st.floats(2.0**-12, 2.0), min_size=1, max_size=4) | st.lists(st.sampled_from([0.5, 0.25, 0.125]), min_size=1),
    spans(),
    limits,
    st.sampled_from([np.float32, np.float64]),
)
def test_floats(
    scales: list[float], span: tuple[int, int], limit: tuple[int, int], dtype: type[np.float32] | type[np.float64]
) -> None:
    """Powers of two have ties on every second step or so; those go to the even neighbour."""
    requantizer = FloatRequantizer(np.array(scales), dtype)
    form = narrow(requantizer, np.full(len(scales), span[0]), np.full(len(scales), span[1]), *limit, "layer")
    assert_equal(form, requantizer, *span, *limit)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), spans(), limits, st.booleans())
def test_means(counts: list[int], span: tuple[int, int], limit: tuple[int, int], away: bool) -> None:
    requantizer = MeanRequantizer(np.array(counts), away)
    form = narrow(requantizer, np.full(len(counts), span[0]), np.full(len(counts), span[1]), *limit, "layer")
    assert_equal(form, requantizer, *span, *limit)


def test_native_is_the_form_already() -> None:
    form = narrow(NativeRequantizer(np.array([70000, 0, 131071]), 20), np.arange(3), np.arange(3), -8, 7, "layer")
    assert (form.m.tolist(), form.shift, form.multiplier_bits, form.split) == ([70000, 0, 131071], 20, 17, False)
    assert set(form.positive.tolist()) == set(form.negative.tolist()) == {1 << 19}


def test_channels_have_ranges_of_their_own() -> None:
    """What a channel cannot reach, its multiplier need not get right."""
    requantizer = TfliteRequantizer(np.array([2000000001, 1999999999]), np.array([-7, -7]))
    least, most = np.array([-20000, -3]), np.array([20000, 5])
    form = narrow(requantizer, least, most, -128, 127, "layer")
    for channel in (0, 1):
        acc = np.arange(least[channel], most[channel] + 1)[:, None]
        assert np.array_equal(np.clip(form(acc), -128, 127)[:, channel], np.clip(requantizer(acc), -128, 127)[:, channel])
    short = narrow(requantizer, np.array([-3, -3]), np.array([5, 5]), -128, 127, "layer")
    assert short.multiplier_bits < form.multiplier_bits


def test_ties_to_even_need_the_even_form() -> None:
    requantizer = FloatRequantizer(np.array([0.25]), np.float32)
    form = narrow(requantizer, np.array([-100]), np.array([100]), -128, 127, "layer")
    assert (form.rounding, form.m.tolist(), form.shift, form.split) == (Rounding("even", 2), [1], 2, False)
    assert form(np.array([[2], [6], [10], [-2], [-6]])).ravel().tolist() == [0, 2, 2, 0, -2]


FLOAT_LAYERS = {
    "any": lambda rng: np.exp(rng.uniform(np.log(1e-4), np.log(4e-3), 64)),
    "powers of two among others": lambda rng: np.where(
        rng.random(64) < 0.5, 2.0 ** rng.integers(-13, -7, 64), rng.uniform(1e-4, 4e-3, 64)
    ),
    "thirds": lambda rng: 2.0 ** rng.integers(-12, -7, 64) / rng.choice([3, 5, 7, 1.5], 64),
    "far apart": lambda rng: np.exp(rng.uniform(np.log(1e-7), np.log(1e-1), 64)),
}


@pytest.mark.parametrize("kind", FLOAT_LAYERS)
def test_all_float32_layers_have_a_form(kind: str, rng: np.random.Generator) -> None:
    """512 channels of each kind, every accumulator of two of every layer; most of them take the rounding of float32."""
    roundings = []
    for _ in range(8):
        requantizer = FloatRequantizer(FLOAT_LAYERS[kind](rng), np.float32)
        zero_point = int(rng.integers(-128, 128))
        limit = -128 - zero_point, 127 - zero_point
        form = narrow(requantizer, np.full(64, -300_000), np.full(64, 300_000), *limit, "layer")
        roundings.append(form.rounding)
        for channel in rng.integers(0, 64, 2):
            one, its = slice(channel, channel + 1), FloatRequantizer(requantizer.scale_o[[channel]], np.float32)
            part = replace(form, m=form.m[one], positive=form.positive[one], negative=form.negative[one])
            assert_equal(part, its, -300_000, 300_000, *limit)
    assert sum(rounding.ties == "float32" for rounding in roundings) > 3


def test_float32_beyond_24_bits_is_refused() -> None:
    """Accumulators that float32 cannot hold, on every step of a whole tensor."""
    requantizer = FloatRequantizer(np.array([2.0**-21 * 1.1]), np.float32)
    with pytest.raises(CompileError, match=r"^layer: no multiplier of up to 40 bits rounds its channel 0 as the model does\n"):
        narrow(requantizer, np.array([-(2**28)]), np.array([2**28]), -128, 127, "layer")


def test_offsets_have_few_bits(rng: np.random.Generator) -> None:
    """One for all negative sums, whose outputs are limited away; of the others, bits that make no difference are 0."""
    requantizer = TfliteRequantizer(rng.integers(2**30, 2**31, 32), rng.integers(-9, -7, 32))
    form = narrow(requantizer, np.full(32, -30_000), np.full(32, 30_000), 0, 127, "layer")
    assert form.split and form.constants[0] is None and form.constants[1] is not None
    assert form.tables[0] is form.positive and len(form.tables) == 1
    distances = form.positive - (1 << form.shift - 1)
    assert form.offset_shift > 5 and np.all(distances % (1 << form.offset_shift) == 0)
    words = distances >> form.offset_shift
    assert np.any(words & 1) and form.offset_bits < 12
    assert -(1 << form.offset_bits - 1) <= words.min() and words.max() < 1 << form.offset_bits - 1
    assert_equal(form, requantizer, -30_000, 30_000, 0, 127)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_even_with_an_odd_zero_point(dtype: type[np.float32] | type[np.float64]) -> None:
    requantizer = FloatRequantizer(np.array([0.25]), dtype, zero_point=5)
    form = narrow(requantizer, np.array([-600]), np.array([600]), -133, 122, "layer")
    assert (form.rounding, form.shift) == (Rounding("even", 2, 5), 2)
    assert_equal(form, requantizer, -600, 600, -133, 122)
    assert form(np.array([[2], [6], [-2]])).ravel().tolist() == [1, 1, -1]


@pytest.mark.parametrize(
    "rounding", [Rounding(), Rounding("even", 3, 1), Rounding("float32", 7), Rounding("float32", 6, -3)], ids=str
)
def test_where_a_rounding_reaches_its_steps(rounding: Rounding) -> None:
    shift = 9
    totals = np.arange(-20 << shift, 20 << shift)
    steps = rounding(totals, shift)
    assert np.all(np.diff(steps) >= 0)
    for k in range(-15, 15):
        assert totals[np.argmax(steps >= k)] == rounding.reach(np.array(k), shift) + (rounding.zero_point << shift)
    if rounding.ties != "none":
        params = TiesParams(15, shift, rounding.ties, rounding.bits, -15, 15)
        assert [params.reference(int(total)) - rounding.zero_point for total in totals] == steps.tolist()


def test_ties_away_from_zero_need_two_offsets() -> None:
    form = narrow(MeanRequantizer(np.array([64]), True), np.array([-8192]), np.array([8128]), -128, 127, "layer")
    assert (form.m.tolist(), form.shift, form.positive.tolist(), form.negative.tolist()) == ([1], 6, [32], [31])
    assert (form.split, form.constants, form.tables, form.offset_bits) == (True, (32, 31), [], 0)


@settings(max_examples=10)
@given(st.integers(2**30, 2**31 - 1), st.integers(-7, -4))
def test_no_shorter_shift_has_a_multiplier(m: int, s: int) -> None:
    """All multipliers of the next shift below, with all pairs of offsets that could do."""
    requantizer = TfliteRequantizer(np.array([m]), np.array([s]))
    form, _ = narrow_module._search(
        narrow_module._Steps.of(requantizer, np.array([-300]), np.array([300]), -16, 15), requantizer.slope_o, "split"
    )
    assert form is not None
    shift = form.shift - 1
    acc = np.arange(-300, 301)
    wanted = np.clip(requantizer(acc[:, None])[:, 0], -16, 15)
    for candidate in range((1 << shift) + 1 if shift < 12 else 0):
        sums = acc * candidate
        solved = []
        for side in (acc >= 0, acc < 0):
            up, down = side & (wanted > -16), side & (wanted < 15)
            least = ((wanted[up] << shift) - sums[up]).max()
            most = (((wanted[down] + 1) << shift) - 1 - sums[down]).min()
            solved.append(least <= most)
        assert not all(solved), candidate


def test_what_has_no_form_is_refused_by_its_channel() -> None:
    """Slopes of 1 and of 2**-23, with all steps within reach: no common shift fits 40 bits."""
    requantizer = TfliteRequantizer(np.array([2**31 - 1, 1518500250]), np.array([0, -23]))
    message = "layer 'x': no multiplier of up to 40 bits rounds its channel 1 as the model does\n  fix: "
    with pytest.raises(CompileError, match=f"^{re.escape(message)}"):
        narrow(requantizer, np.array([-100, -(2**31)]), np.array([100, 2**31]), -128, 127, "layer 'x'")


def test_a_wrong_form_is_not_proven() -> None:
    requantizer = TfliteRequantizer(np.array([2**30 + 12345]), np.array([-5]))
    ends = np.array([-5000]), np.array([5000])
    form = narrow(requantizer, *ends, -128, 127, "layer")
    steps = narrow_module._Steps.of(requantizer, *ends, -128, 127)
    narrow_module._prove(form, requantizer, steps, "layer")
    for wrong in (replace(form, positive=form.positive + (1 << form.shift - 1)), replace(form, m=form.m + 1)):
        with pytest.raises(InternalError, match=r"^bug in convfold: after narrow: layer: the multiplier of channel 0 differs"):
            narrow_module._prove(wrong, requantizer, steps, "layer")


# ------------------------------------------------------------------------------------------------------- operators


def graph_of(node: Node, arrays: dict[str, Array], *inputs: tuple[tuple[int, int, int], Format]) -> Graph:
    """A graph of one node; a second input is the same tensor."""
    shape, form = inputs[0]
    image = Input(name="x", inputs=(), source="x", shape=shape, low=0, high=1, format=form)
    return Graph("net", (image, node), (node.name,), {f"y.{name}": array for name, array in arrays.items()})


def fields(*inputs: str, **more: Any) -> Any:
    return {"name": "y", "inputs": inputs, "source": "net: y", "low": -128, "high": 127, "format": INT8} | more


def test_convolutions_reach_what_their_weights_reach(rng: np.random.Generator) -> None:
    w = rng.integers(-127, 128, size=(1, 1, 3, 1, 1, 4))
    w[..., 2, :, :, :] = 0
    node = QConv2D(
        **fields("x", format=Format(8, True, 1.0, -5), rounding="tflite"),
        stride=(1, 1),
        padding=((0, 0), (0, 0)),
        classes=BorderClasses(),
        weight_bits=8,
    )
    arrays: dict[str, Array] = {
        "w": w,
        "b": np.array([[[500, -70000, 123]]]),
        "m": rng.integers(2**30, 2**31, 3),
        "s": np.array([-9, -8, -9]),
    }
    graph = graph_of(node, arrays, ((1, 1, 4), Format(8, True, 1.0, 3)))
    form = conv_form(graph, node)
    x_raw = rng.integers(-128, 128, size=(5000, 1, 1, 4))
    x_raw[:6, 0, 0] = np.concatenate([np.where(w[0, 0, :, 0, 0] * way > 0, 127, -128) for way in (1, -1)])
    acc = x_raw[:, 0, 0] @ w[0, 0, :, 0, 0].T + arrays["b"][0, 0]
    assert np.array_equal(np.clip(form(acc) - 5, -128, 127), golden.run(graph, x_raw)["y"][:, 0, 0])


def run_add(form: AddForm, a: Format, b: Format, node: QAdd) -> IntArray:
    """Every pair of samples."""
    sums = form.table_a[:, None] + form.table_b[None, :]
    assert form.table_a.shape == (1 << a.bits,) and form.table_b.shape == (1 << b.bits,)
    y_raw: IntArray = np.clip(form.form(sums[..., None])[..., 0] + node.format.zero_point, node.low, node.high)
    return y_raw


TFLITE_ADD: dict[str, Any] = {"rounding": "tflite", "shift": 20}
ADDS: dict[str, dict[str, Any]] = {
    "tflite": TFLITE_ADD | {"multipliers": ((2**30, 0), (1623821475, -1), (1623821475, -19))},
    "tflite, ties": TFLITE_ADD | {"multipliers": ((2**30, 0), (2**30, 0), (2**30, -19))},
    "tflite, a difference": TFLITE_ADD | {"multipliers": ((2**30, 0), (-1401981234, -2), (1323821475, -18))},
    "tflite, limits": TFLITE_ADD | {"multipliers": ((2**30, 0), (1401981234, -2), (1323821475, -18)), "low": -5},
    "native": {"multipliers": ((31001, 0), (-12345, 0)), "shift": 16},
    "float64": {"rounding": "float64", "ratios": (0.731, 1.17)},
    "float64, ties": {"rounding": "float64", "ratios": (0.5, 0.25)},
    "float32": {"rounding": "float32", "ratios": (0.731, 0.0617)},
}


@pytest.mark.parametrize("case", ADDS)
def test_sums(case: str) -> None:
    source = Format(8, True, 1.0, -7)
    node = QAdd(**fields("x", "x", format=Format(8, True, 1.0, 4), **ADDS[case]))
    graph = graph_of(node, {}, ((1, 2, 1), source))
    twice = replace(graph, nodes=(graph.nodes[0], replace(node, inputs=("x", "x"))))
    form = add_form(twice, node)
    assert form.form.m.tolist() == [1]
    assert run_add(form, source, source, node).shape == (256, 256)
    a, b = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij")
    expected = golden.qadd(twice, node, a[..., None, None], b[..., None, None])[..., 0, 0]
    assert np.array_equal(run_add(form, source, source, node), expected)
    assert max(np.ptp(form.table_a), np.ptp(form.table_b)) < 1 << 16


def test_wide_sums_are_refused() -> None:
    node = QAdd(**fields("x", "x", multipliers=((1, 0), (1, 0)), shift=1))
    graph = graph_of(node, {}, ((1, 1, 1), Format(12, True, 1.0)))
    text = "net: y: a sum of 12- and 12-bit tensors has no tables that small\n  fix: quantize both tensors to at most 8 bits"
    with pytest.raises(CompileError, match=f"^{re.escape(text)}$"):
        add_form(graph, node)


def test_sums_without_tables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MOST_TABLE_SHIFT", "_MOST_TIE_SHIFT"):
        monkeypatch.setattr(narrow_module, name, 2)
    node = QAdd(**fields("x", "x", rounding="float64", ratios=(0.731, 0.0123)))
    with pytest.raises(CompileError, match=r"^net: y: no tables of the hardware's adder round as this sum does\n  fix: "):
        add_form(graph_of(node, {}, ((1, 1, 1), INT8)), node)


@pytest.mark.parametrize(
    "how",
    [
        {"multiplier": (70001, 0), "shift": 23},
        {"rounding": "tflite", "multiplier": (1518500250, -7)},
        {"rounding": "float32", "ratio": 0.0123},
        {"rounding": "float64", "ratio": 2.0**-7},
    ],
)
def test_products(how: dict[str, Any]) -> None:
    source = Format(8, True, 1.0, -7)
    node = QMultiply(**fields("x", "x", format=Format(8, True, 1.0, 4), **how))
    graph = graph_of(node, {}, ((1, 2, 1), source))
    form = multiply_form(graph, node)
    a, b = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij")
    expected = golden.qmultiply(graph, node, a[..., None, None], b[..., None, None])[..., 0, 0]
    y_raw = np.clip(form(((a + 7) * (b + 7))[..., None])[..., 0] + 4, -128, 127)
    assert np.array_equal(y_raw, expected)


@pytest.mark.parametrize("zero_point", [0, -128, 5])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "counts"),
    [
        ((2, 2), (2, 2), ((0, 0), (0, 0)), False),
        ((3, 2), (1, 1), ((1, 1), (1, 0)), False),
        ((3, 3), (2, 1), ((2, 1), (1, 1)), True),
        ((5, 4), (5, 4), ((0, 0), (0, 0)), False),
    ],
)
@pytest.mark.parametrize("rounding", ["native", "tflite", "float32", "float64"])
def test_averages(
    rounding: str, kernel: Any, stride: Any, padding: Any, counts: bool, zero_point: int, rng: np.random.Generator
) -> None:
    """Computed as the hardware does: all taps of the padded map, the class's bias, multiplier and offsets."""
    source = Format(8, True, 1.0, zero_point)
    form_y = source if rounding in ("native", "tflite") else Format(8, True, 1.0, -9)
    node = QAveragePool(
        **fields("x", format=form_y, rounding=rounding),
        kernel=kernel,
        stride=stride,
        padding=padding,
        count_include_pad=counts,
        ratio=0.5,
    )
    graph = graph_of(node, {}, ((5, 4, 2), source))
    form = average_form(graph, node)
    height, width, _ = graph.shapes["y"]
    x_raw = rng.integers(-128, 128, size=(40, 5, 4, 2))
    x_raw[:2] = np.array([-128, 127])[:, None, None, None]
    expected = golden.run(graph, x_raw)["y"]
    padded = np.pad(x_raw, ((0, 0), *padding, (0, 0)), constant_values=zero_point)
    rows, cols = form.classes.row_class(height), form.classes.col_class(width)
    for i, j in product(range(height), range(width)):
        top, left = i * stride[0], j * stride[1]
        sums = padded[:, top : top + kernel[0], left : left + kernel[1]].sum(axis=(1, 2))
        at = rows[i], cols[j]
        part = replace(form.form, **{name: getattr(form.form, name)[at] for name in ("m", "positive", "negative")})
        assert sums.min() >= form.range.low and sums.max() <= form.range.high
        acc = sums + form.b[at]
        assert acc.min() >= form.range.low and acc.max() <= form.range.high
        y_raw = np.clip(part(acc) + form_y.zero_point, node.low, node.high)
        assert np.array_equal(y_raw, expected[:, i, j]), (i, j)


def test_a_global_average_has_one_class_and_no_multiplier() -> None:
    node = QAveragePool(
        **fields("x", rounding="tflite", format=Format(8, True, 1.0, -128)),
        kernel=(8, 8),
        stride=(8, 8),
        padding=((0, 0), (0, 0)),
        count_include_pad=False,
    )
    form = average_form(graph_of(node, {}, ((8, 8, 4), Format(8, True, 1.0, -128))), node)
    assert form.classes == BorderClasses() and form.form.m.tolist() == [[[1]]] and form.form.shift == 6


def test_the_layers_of_real_networks_have_short_multipliers(models_dir: Path) -> None:
    pytest.importorskip("tflite")
    from convfold.compiler.importers.tflite import read_tflite

    graph = read_tflite(models_dir / "mlperf_resnet8" / "pretrainedResnet_quant.tflite")
    convolutions = [conv_form(graph, node) for node in graph.nodes if isinstance(node, QConv2D)]
    assert max(form.multiplier_bits for form in convolutions) == 25
    sums = [add_form(graph, node) for node in graph.nodes if isinstance(node, QAdd)]
    assert [form.form.shift for form in sums] == [7, 6, 6]
