"""Quantization: what the integers mean, how far their net may be from the real one, and what is refused."""

from __future__ import annotations

import math
import re
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import evaluate
from convfold.compiler.functions import apply_function
from convfold.compiler.graph import (
    ArgMax,
    BorderClasses,
    Clip,
    Conv2D,
    Dense,
    Graph,
    Input,
    MaxPool,
    Node,
    QAdd,
    QAveragePool,
    QConv2D,
    QMultiply,
    QTable,
    Softmax,
)
from convfold.compiler.numbers import MAX_ACCUMULATOR, Format, IntArray, RealArray, accumulator_range
from convfold.compiler.passes import fold
from convfold.compiler.quantize import QuantizeOptions, interval_bounds, quantize
from convfold.compiler.verify import verify
from convfold.sim import golden
from tests.compiler.passes.nets import FUNCTIONS, SAME, random_graph
from tests.compiler.passes.nets import Net as Build

# ---------------------------------------------------------------------------------------------------- networks


class Net:
    """A real network in the making; every layer reads the one before."""

    def __init__(self, shape: tuple[int, int, int], low: float = 0.0, high: float = 1.0) -> None:
        self.nodes: list[Node] = [
            Input(name="x", inputs=(), source="net: input 'x'", shape=shape, low=low, high=high)
        ]
        self.weights: dict[str, RealArray] = {}

    def add(self, node: type[Node], name: str, inputs: str | None = None, **attributes: Any) -> Net:
        source = f"net: layer '{name}'"
        self.nodes.append(
            node(name=name, inputs=(inputs or self.nodes[-1].name,), source=source, **attributes)
        )
        return self

    def conv(self, name: str, w_rcohwi: RealArray, b_rco: RealArray, **attributes: Any) -> Net:
        self.weights |= {f"{name}.w": w_rcohwi, f"{name}.b": b_rco}
        return self.add(Conv2D, name, **attributes)

    def point(self, name: str, w_oi: Any, b_o: Any, **attributes: Any) -> Net:
        """A 1×1 convolution."""
        w_oi, b_o = np.array(w_oi, dtype=np.float64), np.array(b_o, dtype=np.float64)
        return self.conv(name, w_oi[None, None, :, None, None, :], b_o[None, None], **attributes)

    def graph(self, *outputs: str) -> Graph:
        return Graph("net", tuple(self.nodes), outputs or (self.nodes[-1].name,), self.weights)


POOL: dict[str, Any] = {"kernel": (2, 2), "stride": (1, 1), "padding": ((1, 0), (0, 1))}
CLIPS: list[dict[str, Any]] = [
    {},
    {"low": 0.0, "high": 0.7},
    {"low": -0.33, "high": 0.21},
    {"low": -math.inf, "high": 0.1},
]
RANGES = [(0.0, 1.0), (-1.0, 1.0), (-3.0, 0.5), (10.0, 20.0), (-20.0, -10.0), (0.0, 255.0)]


def random_net(rng: np.random.Generator, low: float, high: float) -> Graph:
    """Convolutions with border classes, clips of all kinds before and behind pools, a dense layer at the end."""
    net = Net((7, 6, 2), low, high)
    channels = 2
    for index in range(rng.integers(1, 4)):
        classes = BorderClasses((0, 2), (0, 1, 3)) if rng.random() < 0.5 else BorderClasses()
        outputs, kh, kw = (int(n) for n in rng.integers(1, 4, size=3))
        counts = (len(classes.rows), len(classes.cols), outputs, kh, kw, channels)
        spread = np.exp2(rng.uniform(-3, 0, size=(outputs, 1, 1, 1)))
        net.conv(
            f"conv{index}",
            rng.normal(size=counts)
            * spread
            / math.sqrt(kh * kw * channels)
            / max(1.0, high if index == 0 else 1),
            rng.normal(size=counts[:3]) * 0.2,
            padding=((kh // 2, kh // 2), (kw - 1, 0)),
            classes=classes,
        )
        clip = CLIPS[rng.integers(len(CLIPS))]
        match rng.integers(4):
            case 0:
                net.add(Clip, f"clip{index}", **clip)
            case 1:
                net.add(Clip, f"clip{index}", **clip).add(MaxPool, f"pool{index}", **POOL)
            case 2:
                net.add(MaxPool, f"pool{index}", **POOL).add(Clip, f"clip{index}", **clip)
        channels = outputs
    size = math.prod(net.graph().shapes[net.nodes[-1].name])
    net.weights |= {
        "scores.w": rng.normal(size=(3, size)) / math.sqrt(size),
        "scores.b": rng.normal(size=3) * 0.1,
    }
    return net.add(Dense, "scores").graph()


def images(graph: Graph, count: int, rng: np.random.Generator) -> RealArray:
    source = graph.input
    x_bhwc = rng.uniform(source.low, source.high, size=(count, *source.shape))
    x_bhwc[0], x_bhwc[1] = source.low, source.high
    return x_bhwc


def layer(graph: Graph, name: str) -> QConv2D:
    node = graph.node(name)
    assert isinstance(node, QConv2D)
    return node


def integers(graph: Graph, name: str) -> IntArray:
    return np.asarray(graph.weights[name], dtype=np.int64)


def real_outputs(graph: Graph, x_bhwc: RealArray) -> dict[str, RealArray]:
    """All tensors of an integer graph for real frames, as reals again."""
    tensors = golden.trace(graph, graph.format_of(graph.input.name).quantize(x_bhwc))
    return {name: graph.format_of(name).dequantize(x_raw) for name, x_raw in tensors.items()}


# --------------------------------------------------------------------------------------------- what integers mean


def meaning(graph: Graph, name: str) -> tuple[RealArray, RealArray]:
    """The real weights and biases that the integers of a layer stand for, multiplier included."""
    node = layer(graph, name)
    source = graph.format_of(node.inputs[0])
    w_raw, b_raw, m = (integers(graph, f"{name}.{part}") for part in "wbm")
    gain = m * 2.0**-node.shift * node.format.scale
    unshifted = b_raw + source.zero_point * w_raw.sum(axis=(3, 4, 5))
    return w_raw * (gain / source.scale)[:, None, None, None], unshifted * gain


def real_weights(graph: Graph, node: Conv2D | Dense) -> tuple[RealArray, RealArray]:
    w, b = (np.asarray(graph.weights[f"{node.name}.{part}"], dtype=np.float64) for part in "wb")
    if isinstance(node, Conv2D):
        return w, b
    return w.reshape(1, 1, len(w), *graph.shapes[node.inputs[0]]), b[None, None]


def error_bounds(real: Graph, quantized: Graph) -> dict[str, float]:
    """How far each tensor may be from the real one, where nothing saturates that would not in the real graph.

    A layer adds to its input's error ``e``, times ``Σ|w|``: what its integers miss of its weights, times the greatest
    input, what they miss of its bias, half an output step for rounding, and half a step for limits between two steps.
    """
    bounds: dict[str, float] = {}
    for node in quantized.nodes:
        if isinstance(node, Input):
            bounds[node.name] = quantized.format_of(node.name).scale / 2
        elif isinstance(node, MaxPool):
            bounds[node.name] = bounds[node.inputs[0]]
        else:
            original = real.node(node.name)
            assert isinstance(original, Conv2D | Dense)
            source, form = quantized.format_of(node.inputs[0]), quantized.format_of(node.name)
            greatest = (
                max(source.max_raw - source.zero_point, source.zero_point - source.min_raw) * source.scale
            )
            (w, b), (w_meant, b_meant) = real_weights(real, original), meaning(quantized, node.name)
            error = np.abs(w).sum(axis=(3, 4, 5)) * bounds[node.inputs[0]] + np.abs(b_meant - b)
            error += np.abs(w_meant - w).sum(axis=(3, 4, 5)) * greatest
            bounds[node.name] = float(error.max()) + form.scale
    return bounds


def clipped_tensors(real: Graph, x_bhwc: RealArray) -> dict[str, RealArray]:
    """All tensors of a real graph, those in front of a clip with its limits: where the integer layers have them."""
    tensors = evaluate(real, x_bhwc, keep=real.shapes)
    for clip in real.nodes:
        if isinstance(clip, Clip):
            behind: Node = clip
            while not isinstance(behind, Conv2D | Dense):
                behind = real.node(behind.inputs[0])
                tensors[behind.name] = np.clip(tensors[behind.name], clip.low, clip.high)
    return tensors


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(("bits", "weight_bits"), [(8, 8), (2, 2), (3, 6), (12, 4), (16, 16)])
def test_the_integer_net_is_as_close_to_the_real_one_as_its_steps_allow(
    bits: int, weight_bits: int, calibrated: bool, rng: np.random.Generator
) -> None:
    for low, high in RANGES * 3:
        real = random_net(rng, low, high)
        x_bhwc = images(real, 8, rng)
        options = QuantizeOptions(bits=bits, weight_bits=weight_bits)
        quantized = verify(quantize(verify(real, "fold"), options, x_bhwc if calibrated else None), "integer")
        bounds = error_bounds(real, quantized)
        expected = clipped_tensors(real, x_bhwc)
        for name, tensor in real_outputs(quantized, x_bhwc).items():
            assert np.abs(tensor - expected[name]).max() <= bounds[name] * (1 + 1e-9)


@pytest.mark.parametrize("weight_bits", range(2, 17))
def test_the_integers_stand_for_the_real_weights(weight_bits: int, rng: np.random.Generator) -> None:
    largest = (1 << (weight_bits - 1)) - 1
    for _ in range(10):
        w_rcohwi = rng.normal(size=(2, 1, 4, 3, 3, 2)) * np.exp2(rng.uniform(-2, 0, size=(4, 1, 1, 1)))
        b_rco = rng.normal(size=(2, 1, 4)) * 0.3
        classes = BorderClasses((0, 1), (0,))
        graph = Net((5, 4, 2)).conv("y", w_rcohwi, b_rco, classes=classes).graph()
        quantized = quantize(graph, QuantizeOptions(bits=16, weight_bits=weight_bits))
        w_raw, m_o = integers(quantized, "y.w"), integers(quantized, "y.m")
        assert (np.abs(w_raw).max(axis=(0, 1, 3, 4, 5)) == largest).all()
        w_meant, b_meant = meaning(quantized, "y")
        step_o = np.abs(w_rcohwi).max(axis=(0, 1, 3, 4, 5)) / largest
        gain_o = 1 / (2 * m_o)  # how far the multiplier may be off, relative
        w_error, b_error = np.abs(w_meant - w_rcohwi), np.abs(b_meant - b_rco)
        assert (w_error.max(axis=(0, 1, 3, 4, 5)) <= (step_o / 2 + largest * step_o * gain_o) * 1.001).all()
        half_o = quantized.format_of("x").scale * step_o / 2
        assert (b_error <= (half_o + np.abs(b_rco) * gain_o) * 1.001).all()


def test_more_bits_are_closer(rng: np.random.Generator) -> None:
    real = random_net(rng, -1, 1)
    x_bhwc = images(real, 50, rng)
    expected = evaluate(real, x_bhwc)["scores"]
    errors = []
    for bits in (4, 6, 8, 10, 12, 14):
        quantized = quantize(real, QuantizeOptions(bits=bits, weight_bits=bits), x_bhwc)
        errors.append(float(np.abs(real_outputs(quantized, x_bhwc)["scores"] - expected).mean()))
    assert all(later < sooner / 2 for sooner, later in pairwise(errors))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_an_identity_returns_its_input_bit_for_bit(low: float, high: float, bits: int) -> None:
    real = Net((1, 1, 2), low, high).point("same", np.eye(2), [0, 0]).graph()
    quantized = quantize(real, QuantizeOptions(bits=bits))
    assert quantized.format_of("same") == quantized.format_of("x")
    form = quantized.format_of("x")
    steps = np.arange(-form.max_raw if form.signed else 0, form.max_raw + 1)
    x_raw = np.stack([steps, steps[::-1]], axis=1)[:, None, None]
    assert np.array_equal(golden.run(quantized, x_raw)["same"], x_raw)


def test_the_same_graph_gives_the_same_integers_and_stays_as_it_is(rng: np.random.Generator) -> None:
    real = random_net(rng, 0, 1)
    text, before = str(real), {name: array.copy() for name, array in real.weights.items()}
    x_bhwc = images(real, 70, rng)
    first, second = quantize(real, None, x_bhwc), quantize(real, None, x_bhwc)
    assert first == second and str(first) == str(second)
    assert all(np.array_equal(array, second.weights[name]) for name, array in first.weights.items())
    assert str(real) == text
    assert all(np.array_equal(array, before[name]) for name, array in real.weights.items())


# ----------------------------------------------------------------------------------------------- ranges, formats


def test_interval_bounds_hold_on_random_inputs_and_are_attained_by_one_layer(
    rng: np.random.Generator,
) -> None:
    for low, high in RANGES * 2:
        real = random_net(rng, low, high)
        bounds = interval_bounds(real)
        for name, tensor in evaluate(real, images(real, 20, rng), keep=real.shapes).items():
            least, most = bounds[name]
            assert (tensor >= least - 1e-9 * (abs(least) + 1)).all()
            assert (tensor <= most + 1e-9 * (abs(most) + 1)).all()
    w_oi = rng.normal(size=(3, 4))
    bounds = interval_bounds(Net((1, 1, 4), -1, 2).point("y", w_oi, [1, 0, -1]).graph())
    corners = np.stack(np.meshgrid(*[[-1.0, 2.0]] * 4)).reshape(4, -1)
    reached = w_oi @ corners + np.array([[1], [0], [-1]])
    assert bounds["y"][0] == pytest.approx(reached.min(axis=1), rel=1e-12)
    assert bounds["y"][1] == pytest.approx(reached.max(axis=1), rel=1e-12)


def test_a_tensor_that_proofs_freed_of_its_rectifier_is_unsigned_all_the_same() -> None:
    """What intervals cannot see, and affine forms can: opposite slopes cancel, so nothing is negative."""
    graph = Net((2, 2, 1)).point("two", [[3.0], [-3.0]], [0, 0]).point("mix", [[1.0, 1.0]], [0.5]).graph()
    assert not quantize(graph).format_of("mix").signed


def test_formats_are_unsigned_where_proven_and_signed_elsewhere(rng: np.random.Generator) -> None:
    graph = (
        Net((2, 2, 1))
        .point("sum", [[1.0]], [0.25])
        .point("difference", [[1.0], [-1.0]], [0, 0])
        .add(Clip, "relu")
        .point("scores", [[1.0, -1.0]], [5.0])
        .graph()
    )
    calibration = np.full((1, 2, 2, 1), 0.5)
    for quantized in (quantize(graph), quantize(graph, None, calibration)):
        signs = [quantized.format_of(name).signed for name in ("x", "sum", "difference", "scores")]
        assert signs == [False, False, False, False]
    unclipped = replace(
        graph,
        nodes=tuple(
            replace(node, inputs=("difference",)) if node.name == "scores" else node
            for node in graph.nodes
            if node.name != "relu"
        ),
    )
    observed = quantize(unclipped, None, np.zeros((1, 2, 2, 1)))
    assert observed.format_of("difference").signed  # never negative in the data, but not proven so


def test_ranges_come_from_the_calibration_data(rng: np.random.Generator) -> None:
    graph = Net((3, 3, 1), -1, 1).point("y", [[1.0]], [0.0]).graph()
    x_bhwc = rng.uniform(-0.5, 0.9, size=(200, 3, 3, 1))
    assert quantize(graph).format_of("y") == Format(8, True, 1 / 127)
    exact = Format(8, True, max(-x_bhwc.min(), x_bhwc.max()) / 127)
    assert quantize(graph, None, x_bhwc).format_of("y") == exact
    assert (
        quantize(graph, QuantizeOptions(method="percentile", percentile=100), x_bhwc).format_of("y") == exact
    )


@pytest.mark.parametrize("percentile", [99.9, 99.0, 90.0, 60.0])
def test_the_percentile_leaves_out_its_share_at_both_ends(
    percentile: float, rng: np.random.Generator
) -> None:
    graph = Net((3, 3, 1), -1, 1).point("y", [[1.0]], [0.0]).graph()
    x_bhwc = rng.uniform(-1, 1, size=(150, 3, 3, 1)) ** 3
    values = np.sort(x_bhwc.ravel())
    dropped = math.floor(len(values) * (100 - percentile) / 100)
    low, high = values[dropped], values[-1 - dropped]
    quantized = quantize(graph, QuantizeOptions(method="percentile", percentile=percentile), x_bhwc)
    assert quantized.format_of("y") == Format(8, True, max(-low, high) / 127)


def test_the_mean_square_weighs_rounding_against_saturation(rng: np.random.Generator) -> None:
    """Of a hundred formats none errs less on the data, and a few far values are given up for the many."""
    graph = Net((8, 8, 1), -20, 20).point("y", [[1.0]], [0.0]).graph()
    x_bhwc = np.clip(rng.laplace(size=(50, 8, 8, 1)), -20, 20)
    for bits in (4, 6, 8):
        form = quantize(graph, QuantizeOptions(bits, 8, "mean-square"), x_bhwc).format_of("y")
        tops = np.abs(x_bhwc).max() * np.arange(1, 101) / 100

        def error(scale: float, form: Format = form) -> float:
            other = replace(form, scale=scale)
            return float(np.mean((other.dequantize(np.maximum(other.quantize(x_bhwc), -other.max_raw)) - x_bhwc) ** 2))

        assert error(form.scale) <= 1.01 * min(error(top / form.max_raw) for top in tops)
        assert form.scale * form.max_raw < 0.9 * np.abs(x_bhwc).max() or bits == 8


INTERVALS = "ranges proven from the declared input range -1 … 1"


@pytest.mark.parametrize(
    ("options", "count", "reason"),
    [
        (
            QuantizeOptions(),
            0,
            f"{INTERVALS}; nothing saturates, but steps are coarser than with calibration data",
        ),
        (QuantizeOptions(), 3, "ranges observed on 3 calibration images, min-max"),
        (
            QuantizeOptions(method="percentile"),
            3,
            "ranges observed on 3 calibration images, percentile 99.99",
        ),
    ],
)
def test_the_decision_tells_where_the_ranges_come_from(
    options: QuantizeOptions, count: int, reason: str
) -> None:
    graph = Net((3, 3, 1), -1, 1).point("first", [[1.0]], [0.0]).point("second", [[1.0]], [0.0]).graph()
    (decision,) = quantize(graph, options, np.zeros((count, 3, 3, 1)) if count else None).decisions
    assert (decision.rule, decision.layers, decision.taken) == ("quantize", ("first", "second"), True)
    assert (decision.macs_before, decision.macs_after, decision.error) == (18, 18, None)
    assert decision.reason == reason


def test_an_input_that_has_a_format_keeps_it_and_its_zero_point_goes_into_the_biases(
    rng: np.random.Generator,
) -> None:
    form = Format(8, True, 1 / 64, 31)
    low, high = (float(form.dequantize(np.array(raw))) for raw in (form.min_raw, form.max_raw))
    net = Net((4, 5, 2), low, high)
    net.conv("y", rng.normal(size=(1, 1, 3, 3, 3, 2)), rng.normal(size=(1, 1, 3)), padding=((2, 1), (0, 1)))
    real = net.graph()
    real = replace(real, nodes=(replace(real.input, format=form), *real.nodes[1:]))
    x_bhwc = form.dequantize(rng.integers(form.min_raw, form.max_raw + 1, size=(20, 4, 5, 2)))
    quantized = quantize(real, QuantizeOptions(weight_bits=16), x_bhwc)
    assert quantized.format_of("x") == form
    # The input is exact and so, nearly, are the weights: what is left is the rounding of the output.
    error = np.abs(real_outputs(quantized, x_bhwc)["y"] - evaluate(real, x_bhwc)["y"]).max()
    assert error <= 0.51 * quantized.format_of("y").scale


# ------------------------------------------------------------------------------------------------ layers, clips


def test_layers_keep_their_names_and_clips_become_limits() -> None:
    net = Net((4, 4, 1), -1, 1).point("edges", [[1.0], [-2.0]], [0, 0]).add(Clip, "relu", high=1.0)
    net.add(MaxPool, "pool", kernel=(2, 2), stride=(2, 2)).point("mix", [[1.0, 1.0]], [0]).add(
        Clip, "end", low=-2.0
    )
    quantized = quantize(net.graph("end", "pool"))
    assert [(node.name, node.inputs, node.op) for node in quantized.nodes] == [
        ("x", (), "input"),
        ("edges", ("x",), "qconv2d"),
        ("pool", ("edges",), "max_pool"),
        ("mix", ("pool",), "qconv2d"),
    ]
    assert quantized.outputs == ("mix", "pool")
    assert sorted(quantized.weights) == ["edges.b", "edges.m", "edges.w", "mix.b", "mix.m", "mix.w"]
    edges, mix = layer(quantized, "edges"), layer(quantized, "mix")
    assert (edges.format, edges.low, edges.high) == (Format(8, False, 1 / 255), 0, 255)
    assert (mix.format, mix.low, mix.high) == (Format(8, False, 2 / 255), 0, 255)  # proven in 0 … 2


@pytest.mark.parametrize(
    ("low", "high", "raw"),
    [
        (0.0, math.inf, (0, 255)),
        (0.0, 2.0, (0, 255)),
        (-math.inf, 1.0, (-128, 42)),  # the range is -3 … 1
        (-1.0, 2.0, (-63, 127)),  # -63.5 is a tie
        (1.0, 2.0, (128, 255)),  # so is 127.5
        (-math.inf, math.inf, (-128, 127)),
        (5.0, 6.0, (255, 255)),  # everything is below: the constant 5
        (-6.0, -5.0, (-128, -127)),
    ],
)
def test_limits_of_a_clip_in_raw_steps(low: float, high: float, raw: tuple[int, int]) -> None:
    graph = Net((1, 1, 1), -1, 1).point("y", [[3.0]], [0.0]).add(Clip, "clip", low=low, high=high).graph()
    node = layer(quantize(graph), "y")
    assert (node.low, node.high) == raw


def test_clips_in_a_row_work_together() -> None:
    net = Net((1, 1, 1), -1, 1).point("y", [[3.0]], [0.0]).add(Clip, "high", low=-math.inf, high=2.0)
    net.add(Clip, "low", low=1.0)
    quantized = quantize(net.graph())
    node = layer(quantized, "y")
    assert quantized.outputs == ("y",)
    assert (node.low, node.high, node.format) == (128, 255, Format(8, False, 2 / 255))


def test_a_dense_layer_is_a_convolution_as_large_as_its_input(rng: np.random.Generator) -> None:
    real = random_net(rng, 0, 1)
    quantized = quantize(real)
    node = layer(quantized, "scores")
    assert (node.kind, node.padding, node.stride, node.classes) == (
        "dense",
        ((0, 0), (0, 0)),
        (1, 1),
        BorderClasses(),
    )
    assert quantized.weights["scores.w"].shape[3:] == quantized.shapes[node.inputs[0]]
    assert layer(quantized, "conv0").kind == "conv2d"


def test_border_classes_share_the_step_of_their_channel(rng: np.random.Generator) -> None:
    w_rcohwi = np.array([1.0, 0.5, -0.25, 2.0]).reshape(2, 2, 1, 1, 1, 1)
    b_rco = np.array([0.1, 0.2, 0.3, 0.4]).reshape(2, 2, 1)
    classes = BorderClasses((0, 1), (0, 2))
    graph = Net((3, 3, 1)).conv("y", w_rcohwi, b_rco, classes=classes).graph()
    quantized = quantize(graph)
    assert layer(quantized, "y").classes == classes
    assert integers(quantized, "y.w").ravel().tolist() == [64, 32, -16, 127]  # 63.5, 31.75, -15.875, 127
    assert integers(quantized, "y.b").ravel().tolist() == [1619, 3239, 4858, 6477]  # in steps of 2/(255·127)


def test_a_layer_may_have_its_own_widths() -> None:
    net = Net((2, 2, 1), -1, 1).point("a", [[1.0]], [0.0]).point("b", [[1.0]], [0.0], bits=4, weight_bits=3)
    net.weights |= {"c.w": np.full((1, 4), 0.5), "c.b": np.zeros(1)}
    graph = net.add(Dense, "c", bits=16, weight_bits=2).graph()
    quantized = quantize(graph, QuantizeOptions(bits=6, weight_bits=5))
    assert [(quantized.format_of(name).bits) for name in "xabc"] == [6, 6, 4, 16]
    assert [layer(quantized, name).weight_bits for name in "abc"] == [5, 3, 2]
    assert [int(integers(quantized, f"{name}.w").max()) for name in "abc"] == [15, 3, 1]


# ------------------------------------------------------------------------------------------------- other operators


def raw_outputs(quantized: Graph, x_bhwc: RealArray) -> dict[str, IntArray]:
    return golden.run(quantized, quantized.format_of(quantized.input.name).quantize(x_bhwc))


def ops(quantized: Graph) -> list[str]:
    return [f"{node.name}:{node.op}" for node in quantized.nodes[1:]]


def steps_off(real: Graph, quantized: Graph, x_bhwc: RealArray) -> float:
    """How far the only output is from the real one at most, in its steps."""
    (before,), (after,) = real.outputs, quantized.outputs
    found = quantized.format_of(after).dequantize(raw_outputs(quantized, x_bhwc)[after])
    error = np.abs(found - evaluate(real, x_bhwc)[before]).max()
    return float(error / quantized.format_of(after).scale)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_clip_of_the_input_is_a_table(pooled: bool, rng: np.random.Generator) -> None:
    net = Net((2, 2, 1), -1.0, 1.0)
    if pooled:
        net.add(MaxPool, "pool", kernel=(2, 2), stride=(2, 2))
    graph = net.add(Clip, "relu", high=0.5).graph()
    quantized = quantize(graph)
    assert ops(quantized) == ["pool:max_pool"] * pooled + ["relu:qtable"]
    assert quantized.format_of("relu") == Format(8, False, 0.5 / 255)
    assert steps_off(graph, quantized, rng.uniform(-1, 1, (50, 2, 2, 1))) <= 2.51  # the input's step is four of these


def test_a_clip_of_a_tensor_with_other_readers_is_a_table() -> None:
    net = Net((2, 2, 1)).point("y", [[1.0]], [0.0]).add(Clip, "relu").point("z", [[1.0]], [0.0], inputs="y")
    assert ops(quantize(net.graph("relu", "z"))) == ["y:qconv2d", "relu:qtable", "z:qconv2d"]
    net = Net((2, 2, 1)).point("y", [[1.0]], [0.0]).add(Clip, "relu")
    quantized = quantize(net.graph("relu", "y"))
    assert quantized.outputs == ("relu", "y")


def test_a_clip_passes_all_that_moves_samples_and_both_branches_of_a_stack() -> None:
    net = Build((4, 4, 2), low=-1.0).conv("a", 2).behind("image").conv("b", 2).concat("stack", "a")
    graph = net.pad("pad", SAME, 0.0).relu("relu", 0.0, 0.5).upsample("up").graph()
    quantized = quantize(graph)
    assert ops(quantized) == ["a:qconv2d", "b:qconv2d", "stack:concat", "pad:pad", "up:upsample"]
    assert [layer(quantized, name).low for name in "ab"] == [0, 0]
    assert quantized.format_of("up") == Format(8, False, 0.5 / 255)


def test_a_clip_that_padding_would_feel_stays_behind_it() -> None:
    graph = Build((4, 4, 2)).conv("a", 2).pad("pad", SAME, -1.0).relu("relu").graph()
    assert ops(quantize(graph)) == ["a:qconv2d", "pad:pad", "relu:qtable"]


@pytest.mark.parametrize("field", [{"groups": 2}, {"dilation": (2, 1)}, {"groups": 2, "dilation": (1, 2)}])
def test_groups_and_dilation_stay(field: dict[str, Any], rng: np.random.Generator) -> None:
    graph = Build((6, 6, 4)).conv("conv", 4, (2, 2), padding=SAME, **field).graph()
    quantized = quantize(graph, QuantizeOptions(weight_bits=16))
    node = layer(quantized, "conv")
    assert (node.groups, node.dilation) == (field.get("groups", 1), field.get("dilation", (1, 1)))
    assert quantized.weights["conv.w"].shape == graph.weights["conv.w"].shape
    # Of four inputs a tap, each is off by half a step of the input; the span is as wide as all weights together.
    assert steps_off(graph, quantized, rng.uniform(size=(50, 6, 6, 4))) <= 1.1


def test_a_sum_of_three_is_two_sums_with_factors(rng: np.random.Generator) -> None:
    net = Build((3, 3, 2), low=-1.0).conv("a", 2, (1, 1)).behind("image").conv("b", 2, (1, 1))
    graph = net.add("sum", "a", "image").relu("relu").graph()
    x_bhwc = rng.uniform(-1, 1, (100, 3, 3, 2))
    quantized = quantize(graph, None, x_bhwc)
    assert ops(quantized) == ["a:qconv2d", "b:qconv2d", "sum_part:qadd", "sum:qadd"]
    node = quantized.node("sum")
    assert isinstance(node, QAdd) and (node.low, node.high, node.rounding) == (0, 255, "native")
    for name, (m, _) in zip(node.inputs, node.multipliers, strict=True):
        ratio = quantized.format_of(name).scale / node.format.scale
        assert m * 2.0**-node.shift == pytest.approx(ratio, rel=2**-15)
    assert steps_off(graph, quantized, x_bhwc) <= 6  # three tensors, each in steps of up to four of these


def test_a_difference_has_a_negative_factor(rng: np.random.Generator) -> None:
    net = Build((3, 3, 2), low=-1.0).conv("a", 2, (1, 1)).behind("image").scale("minus")
    net.weights |= {"minus.scale": np.full(2, -1.0), "minus.bias": np.zeros(2)}
    graph = net.add("difference", "a").graph()
    x_bhwc = rng.uniform(-1, 1, (100, 3, 3, 2))
    quantized = quantize(graph, None, x_bhwc)
    assert ops(quantized) == ["a:qconv2d", "difference:qadd"]
    node = quantized.node("difference")
    assert isinstance(node, QAdd) and node.inputs == ("image", "a")
    assert node.multipliers[0][0] < 0 < node.multipliers[1][0]
    assert steps_off(graph, quantized, x_bhwc) <= 2


def test_a_product_is_requantized(rng: np.random.Generator) -> None:
    graph = Build((3, 3, 2), low=-1.0).conv("a", 2, (1, 1)).multiply("square", "a").graph()
    x_bhwc = rng.uniform(-1, 1, (100, 3, 3, 2))
    quantized = quantize(graph, None, x_bhwc)
    node = quantized.node("square")
    assert isinstance(node, QMultiply) and not node.format.signed  # proven: a tensor times itself
    assert steps_off(graph, quantized, x_bhwc) <= 5


@pytest.mark.parametrize(("function", "parameters"), FUNCTIONS)
def test_a_function_is_a_table_of_all_its_values(function: str, parameters: tuple[float, ...]) -> None:
    graph = Build((4, 4, 1), low=-3.0, high=2.0).pointwise("f", function, *parameters).graph()
    quantized = quantize(graph)
    source, form, node = quantized.format_of("image"), quantized.format_of("f"), quantized.node("f")
    x_raw = np.arange(-128, 128).reshape(-1, 4, 4, 1)
    expected = form.quantize(apply_function(function, source.dequantize(x_raw), parameters))
    assert np.array_equal(golden.run(quantized, x_raw)["f"], expected)
    assert isinstance(node, QTable) and node.function == function
    assert form.signed == bool(apply_function(function, np.linspace(-3, 2, 99), parameters).min() < 0)


def test_a_run_of_functions_is_one_table_with_a_row_for_each_channel(rng: np.random.Generator) -> None:
    net = Build((3, 3, 2), low=-1.0).scale("scale").pointwise("tanh", "tanh").relu("relu").prelu("prelu").norm("norm")
    graph = net.graph()
    quantized = quantize(graph)
    assert ops(quantized) == ["norm:qtable"]
    node = quantized.node("norm")
    assert isinstance(node, QTable) and node.function == "scale_bias → tanh → prelu → batch_norm"
    assert quantized.weights["norm.table"].shape == (2, 256)
    x_bhwc = quantized.format_of("image").dequantize(rng.integers(-127, 128, (50, 3, 3, 2)))
    assert steps_off(graph, quantized, x_bhwc) <= 0.5 + 1e-9


def test_scales_and_clips_of_more_than_8_bits_are_convolutions(rng: np.random.Generator) -> None:
    graph = Build((3, 3, 2), low=-1.0).norm("norm").relu("relu").scale("scale").graph()
    quantized = quantize(graph, QuantizeOptions(12, 16))
    assert ops(quantized) == ["norm:qconv2d", "scale:qconv2d"]
    assert layer(quantized, "norm").groups == 2 and layer(quantized, "norm").low == 0
    x_bhwc = quantized.format_of("image").dequantize(rng.integers(-2047, 2048, (50, 3, 3, 2)))
    assert steps_off(graph, quantized, x_bhwc) <= 1.5
    clipped = quantize(Build((3, 3, 2), low=-1.0).relu("relu", -0.25, 0.5).graph(), QuantizeOptions(12, 8))
    assert ops(clipped) == ["relu:qconv2d"]
    assert (layer(clipped, "relu").low, layer(clipped, "relu").high) == (-1023, 2047)


def test_a_function_of_more_than_8_bits_is_refused() -> None:
    graph = Build((3, 3, 2)).pointwise("f", "tanh").graph()
    with refused("f", "'f' looks up its input, which may have 8 bits at most, not 9", "give what it reads bits = 8"):
        quantize(graph, QuantizeOptions(9, 8))


def test_a_function_that_is_not_defined_is_refused() -> None:
    graph = Build((3, 3, 2), low=-1.0).pointwise("root", "sqrt").graph()
    with refused(
        "root",
        "sqrt is not defined for -1.00787 … -0.00787402, which int8 × 0.00787402 can hold",
        "clip what it reads to where it is defined",
    ):
        quantize(graph, None, np.zeros((1, 3, 3, 2)))
    graph = Build((3, 3, 2), low=-1.0).relu("relu", 0.01).pointwise("log", "log").graph()
    assert ops(quantize(graph)) == ["log:qtable"]


def test_values_without_a_range_are_refused() -> None:
    graph = Build((3, 3, 2)).pointwise("log", "log").graph()
    message = "the values of 'log' have no finite range: -inf … 3.55271e-15"
    with refused("log", message, "give calibration data, or clip what it reads"):
        quantize(graph)


def test_an_average_keeps_the_format_of_its_input(rng: np.random.Generator) -> None:
    net = Build((6, 6, 2), low=-1.0).conv("a", 2).average("mean", (3, 3), (1, 1), SAME).relu("relu")
    quantized = quantize(net.graph())
    node = quantized.node("mean")
    assert isinstance(node, QAveragePool) and node.format == quantized.format_of("a")
    assert (node.low, node.high, node.count_include_pad) == (0, 127, False)


def test_what_is_stacked_shares_a_format(rng: np.random.Generator) -> None:
    net = Build((4, 4, 2), low=-1.0).conv("a", 2, padding=SAME).pool("p", (3, 3), (1, 1), SAME).behind("image")
    net.conv("b", 3, padding=SAME).relu("relu").shuffle("s", 3).concat("stack", "p")
    quantized = quantize(net.graph())
    assert len({quantized.format_of(name) for name in ("a", "b", "stack")}) == 1
    assert layer(quantized, "b").low == 0
    assert quantized.format_of("stack").signed


def test_what_others_read_is_requantized_in_front_of_a_stack(rng: np.random.Generator) -> None:
    net = Build((4, 4, 2), low=-1.0).conv("a", 2, padding=SAME).conv("b", 2, padding=SAME).concat("stack", "a", "image")
    graph = net.graph()
    quantized = quantize(graph)
    assert ops(quantized) == ["a:qconv2d", "b:qconv2d", "stack_a:qtable", "stack_image:qtable", "stack:concat"]
    wide = quantize(graph, QuantizeOptions(12, 12))
    assert ops(wide)[2:4] == ["stack_a:qconv2d", "stack_image:qconv2d"]


def test_padding_is_within_the_format() -> None:
    graph = Build((4, 4, 2)).conv("a", 2).relu("relu").pad("pad", SAME, -9.0).graph()
    quantized = quantize(graph)
    form = quantized.format_of("pad")
    assert form.signed and form.scale * 127 >= 9
    graph = Build((4, 4, 2)).pad("pad", SAME, 2.0).graph()
    assert ops(quantize(graph)) == ["pad_image:qtable", "pad:pad"]


def test_heads_and_outputs_keep_to_their_tensors() -> None:
    net = Build((4, 4, 2), low=-1.0).conv("a", 2).relu("relu").dropout("drop").behind("a").dense("d", 3).argmax("best")
    graph = replace(net.graph("d", "best", "drop"), heads=(("d", Softmax()),))
    quantized = quantize(graph)
    assert quantized.outputs == ("d", "best", "drop") and quantized.heads == graph.heads
    assert quantized.node("drop").op == "reshape"  # nothing, by the output's own name
    fused = Build((4, 4, 2), low=-1.0).conv("a", 2).relu("relu").graph()
    fused = quantize(replace(fused, heads=(("relu", Softmax(2.0)),)))
    assert fused.outputs == ("a",) and fused.heads == (("a", Softmax(2.0)),)


SEEDS, BATCH = 220, 20


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_random_graphs_of_all_operators_are_quantized(first: int) -> None:
    """Folding keeps what they compute; golden runs them, near to the real ones, and nearer with more bits."""
    for seed in range(first, first + BATCH):
        tables = seed % 2 == 0
        real = random_graph(seed, tables=tables)
        folded = fold(real)
        x_bhwc = images(real, 24, np.random.default_rng(seed))
        expected, same = evaluate(real, x_bhwc), evaluate(folded, x_bhwc)
        picks = any(isinstance(node, ArgMax) for node in real.nodes)  # a step decides which is greatest
        errors = []
        for bits in (5, 8) if tables else (8, 12):
            quantized = quantize(folded, QuantizeOptions(bits, bits), x_bhwc)
            raw = raw_outputs(quantized, x_bhwc)
            error = 0.0
            for before, between, after in zip(real.outputs, folded.outputs, quantized.outputs, strict=True):
                scale = float(np.abs(expected[before]).max()) or 1.0
                assert np.abs(expected[before] - same[between]).max() <= 1e-9 * scale or picks, seed
                found = quantized.format_of(after).dequantize(raw[after])
                error = max(error, float(np.sqrt(np.mean((found - expected[before]) ** 2))) / scale)
            errors.append(error)
        assert picks or errors[1] <= (0.03 if tables else 0.003), seed
        assert picks or errors[1] <= errors[0] / 2 or errors[1] < 1e-4, seed


def test_the_random_graphs_cover_what_they_claim() -> None:
    graphs = [random_graph(seed, tables=seed % 2 == 0) for seed in range(SEEDS)]
    found = {node.op for graph in graphs for node in graph.nodes}
    assert found >= {
        "add", "argmax", "average_pool", "batch_norm", "channel_shuffle", "clip", "concat", "conv2d", "crop", "dense",
        "depth_to_space", "dropout", "max_pool", "multiply", "pad", "pca", "pointwise", "prelu", "reshape", "scale_bias",
        "slice", "space_to_depth", "upsample",
    }  # fmt: skip
    assert sum(len(graph.outputs) > 1 for graph in graphs) > SEEDS / 4
    assert sum(any(len(graph.consumers(node.name)) > 1 for node in graph.nodes) for graph in graphs) > SEEDS / 3


# -------------------------------------------------------------------------------------------------- hard weights


def worst_error(graph: Graph, rng: np.random.Generator, options: QuantizeOptions | None = None) -> float:
    """Of the last tensor, in its steps; on the calibration data, so that nothing saturates."""
    x_bhwc = images(graph, 100, rng)
    quantized = quantize(graph, options, x_bhwc)
    (output,) = quantized.outputs
    (expected,) = evaluate(graph, x_bhwc).values()
    for node in quantized.nodes:
        if isinstance(node, QConv2D):
            form = quantized.format_of(node.inputs[0])
            w_raw, b_raw = integers(quantized, f"{node.name}.w"), integers(quantized, f"{node.name}.b")
            reach = accumulator_range(w_raw, b_raw, form.min_raw, form.max_raw)
            assert reach.magnitude <= MAX_ACCUMULATOR
    error = np.abs(real_outputs(quantized, x_bhwc)[output] - expected).max()
    return float(error / quantized.format_of(output).scale)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize(
    ("weights", "bias"),
    [
        ([0.0, 0.0], [0.0, 0.0]),  # a dead layer
        ([0.0, 0.0], [0.3, -0.2]),  # a constant one
        ([1.0, 0.0], [0.0, 0.0]),  # a dead channel
        ([1.0, 0.0], [0.0, 0.7]),  # a constant channel
        ([1.0, 1e-3], [0.1, 0.7]),
        ([1.0, 1e-6], [0.1, 0.7]),
        ([1.0, 1e-38], [0.1, 0.7]),  # what weight decay leaves behind
        ([1e-38, 1e-38], [0.1, 0.7]),
        ([1e-38, 1e-38], [0.0, 0.0]),
        ([1e-9, 1e-12], [0.0, 1e-9]),
        ([1e6, 1.0], [0.0, 1.0]),
    ],
)
def test_weights_and_biases_of_any_size(
    weights: list[float], bias: list[float], bits: int, rng: np.random.Generator
) -> None:
    graph = Net((2, 2, 1)).point("y", [[weight] for weight in weights], bias).graph()
    # The input is off by half a step, and its steps are at most an output step each; then come the roundings.
    assert worst_error(graph, rng, QuantizeOptions(bits=bits, weight_bits=bits)) <= 1.6


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6, 1e-12])
def test_a_channel_of_small_weights_keeps_its_bias(size: float, bits: int, rng: np.random.Generator) -> None:
    """All channels share a shift: with 144 taps and no care, the multiplier of the second would be a few bits."""
    w_rcohwi = rng.normal(size=(1, 1, 2, 3, 3, 16)) / 12 * np.array([1, size])[:, None, None, None]
    graph = Net((3, 3, 16)).conv("y", w_rcohwi, np.array([[[0.1, 0.7]]])).graph()
    assert worst_error(graph, rng, QuantizeOptions(bits=bits, weight_bits=bits)) <= 3.0


def test_a_channel_that_its_bias_has_killed_does_not_harm_the_others(rng: np.random.Generator) -> None:
    graph = Net((2, 2, 1)).point("y", [[1.0], [1.0]], [0.0, -1e4]).add(Clip, "relu").graph()
    assert worst_error(graph, rng, QuantizeOptions(bits=16, weight_bits=16)) <= 1.6


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_constant_input(value: float, rng: np.random.Generator) -> None:
    graph = Net((2, 2, 1), value, value).point("y", [[1.0], [-1.0]], [0.0, 0.5]).graph()
    assert worst_error(graph, rng) <= 1.6


def test_calibration_data_without_contrast_still_give_a_multiplier() -> None:
    graph = Net((1, 1, 1)).point("y", [[1.0]], [0.0]).graph()
    quantized = quantize(graph, None, np.full((1, 1, 1, 1), 1e-12))
    assert integers(quantized, "y.m").tolist() == [2**16]
    assert layer(quantized, "y").shift == 1


# ------------------------------------------------------------------------------------------------------- errors


def refused(source: str, message: str, hint: str) -> AbstractContextManager[object]:
    text = str(CompileError(source, message, hint))
    return pytest.raises(CompileError, match=f"^{re.escape(text)}$")


def test_a_bias_beyond_every_accumulator_is_refused() -> None:
    graph = Net((2, 2, 1)).point("y", [[1.0]], [1e20]).add(Clip, "relu", high=6.0).graph()
    with refused(
        "net: layer 'y'",
        "'y' needs an accumulator of more than 46 bits",
        "use fewer bits or weight_bits, or look for an excessive bias",
    ):
        quantize(graph)


@pytest.mark.parametrize("shape", [(2, 2, 1), (0, 2, 2, 1), (3, 2, 2, 2), (3, 1, 2, 2)])
def test_calibration_data_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    graph = Net((2, 2, 1)).point("y", [[1.0]], [0.0]).graph()
    with refused(
        "calibration data",
        f"the shape is {shape}, but 'x' takes (images, 2, 2, 1)",
        "give an array of the shape (images, height, width, channels)",
    ):
        quantize(graph, None, np.zeros(shape))


@pytest.mark.parametrize(
    ("values", "reach"), [((0, 255), "0 to 255"), ((-0.5, 1), "-0.5 to 1"), ((0, math.nan), "nan to nan")]
)
def test_calibration_data_outside_the_declared_range_are_refused(
    values: tuple[float, float], reach: str
) -> None:
    graph = Net((1, 2, 1)).point("y", [[1.0]], [0.0]).graph()
    with refused(
        "calibration data",
        f"values reach from {reach}, but the input 'x' is declared 0 … 1",
        "scale the data as the network expects them, or declare their true range",
    ):
        quantize(graph, None, np.array(values).reshape(1, 1, 2, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, "bits must be 2 to 16, not 1"),
        ({"weight_bits": 17}, "weight_bits must be 2 to 16, not 17"),
        ({"method": "mean"}, "method must be 'min-max', 'percentile' or 'mean-square', not 'mean'"),
        ({"percentile": 50}, "percentile must be above 50 and at most 100, not 50"),
        ({"percentile": 101}, "percentile must be above 50 and at most 100, not 101"),
    ],
)
def test_impossible_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        QuantizeOptions(**arguments)
