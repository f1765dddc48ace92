"""Bounds: exact where the map is affine, sound everywhere, and tight where symbols pay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convfold.compiler import bounds
from convfold.compiler.bounds import find_bounds, open_questions
from convfold.compiler.evaluate import evaluate
from convfold.compiler.functions import apply_function
from convfold.compiler.graph import BorderClasses, Conv2D, Graph, QConv2D
from convfold.compiler.numbers import Format, RealArray
from convfold.compiler.passes import Options, fold
from convfold.compiler.passes.lower_linear import lower_linear
from tests.compiler.passes.nets import FUNCTIONS, NONE, SAME, Net, random_graph, random_linear
from tests.compiler.passes.proven import bias, random_net
from tests.oracle import toeplitz

EXACT = 1e-9


def box_of(graph: Graph, tensor: str) -> tuple[RealArray, RealArray, RealArray, RealArray]:
    """The least and the greatest value of each element of a linear network by its matrix, and inputs that have them."""
    matrix, offset = toeplitz(graph)[tensor]
    low, high = graph.input.low, graph.input.high
    shape = graph.shapes[tensor]
    least, most = (np.where(sign * matrix > 0, low, high) for sign in (1, -1))
    ends = ((matrix * corner).sum(axis=1) + offset for corner in (least, most))
    x_low, x_high = (corner.reshape(-1, *graph.input.shape) for corner in (least, most))
    return next(ends).reshape(shape), next(ends).reshape(shape), x_low, x_high


def assert_exact(graph: Graph, tensor: str) -> None:
    box = find_bounds(graph, {tensor})[tensor]
    low, high, x_low, x_high = box_of(graph, tensor)
    scale = max(float(np.abs(low).max()), float(np.abs(high).max()))
    assert box.method == "exact"
    assert np.abs(box.low_hwc - low).max() <= EXACT * scale
    assert np.abs(box.high_hwc - high).max() <= EXACT * scale
    for x_bhwc, bound, sign in ((x_low, box.low_hwc, 1), (x_high, box.high_hwc, -1)):
        size = len(x_bhwc)
        attained = evaluate(graph, x_bhwc, {tensor})[tensor].reshape(size, size)[range(size), range(size)]
        above = sign * (attained - bound.ravel())
        assert (above >= 0).all() and above.max() <= EXACT * scale


# ---------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("low", [0.0, -1.0, 2.0, -5.0], ids="from {}".format)
@pytest.mark.parametrize(
    ("stride", "padding"), [((1, 1), NONE), ((1, 1), SAME), ((2, 2), SAME), ((3, 1), ((2, 0), (0, 2)))]
)
def test_one_convolution_is_bounded_exactly_at_every_position(
    low: float, stride: tuple[int, int], padding: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    graph = Net((6, 5, 2), low=low, high=low + 1.5).conv("conv", 3, stride=stride, padding=padding).graph()
    assert_exact(graph, "conv")


def test_a_dense_layer_is_bounded_exactly() -> None:
    assert_exact(Net((3, 4, 2), low=-2.0).dense("dense", 5).graph(), "dense")


def test_border_classes_are_bounded_exactly() -> None:
    net = Net((7, 7, 2), low=-0.5).conv("a", 2, padding=SAME).conv("b", 3, padding=SAME)
    graph = fold(net.graph(), Options(force=True))
    node = graph.node("b")
    assert isinstance(node, Conv2D) and node.classes.count > 1
    assert_exact(graph, "b")


@pytest.mark.parametrize("seed", range(120))
def test_a_chain_or_branch_of_linear_layers_is_bounded_exactly(seed: int) -> None:
    """Every linear operator, by affine forms; what two channels have in common cancels."""
    graph = random_linear(seed)
    assert_exact(graph, graph.outputs[0])


def test_symbols_that_share_a_term_never_meet() -> None:
    """On a large image few terms stand for many symbols, and the bounds are as exact as ever."""
    graph = Net((17, 15, 1), low=-1.0).conv("a", 2, padding=SAME).conv("b", 2, (2, 3), (2, 1)).conv("c", 1).graph()
    assert_exact(graph, "c")


def test_what_cancels_is_known_to_cancel() -> None:
    net = Net((4, 4, 1)).conv("plus", 1, (1, 1)).behind("image").conv("minus", 1, (1, 1))
    net.weights |= {"plus.w": np.ones((1, 1, 1, 1, 1, 1)), "minus.w": -np.ones((1, 1, 1, 1, 1, 1))}
    net.weights |= {f"{name}.b": np.full((1, 1, 1), 2.0) for name in ("plus", "minus")}
    graph = net.add("sum", "plus").graph()
    box, interval = (find_bounds(graph, wanted)["sum"] for wanted in ({"sum"}, set[str]()))
    assert np.abs(box.low_c - 4).max() < 1e-12 and np.abs(box.high_c - 4).max() < 1e-12
    assert interval.low_c < 3.01 and interval.high_c > 4.99


# ---------------------------------------------------------------------------------------------------------------- sound


def assert_sound(graph: Graph, wanted: set[str]) -> None:
    boxes = find_bounds(graph, wanted)
    rng = np.random.default_rng(1)
    source = graph.input
    x_bhwc = rng.uniform(source.low, source.high, (400, *source.shape))
    x_bhwc[200:] = np.where(rng.random((200, *source.shape)) < rng.random((200, 1, 1, 1)), source.low, source.high)
    for name, values in evaluate(graph, x_bhwc, graph.shapes).items():
        assert (values >= boxes[name].low_hwc).all() and (values <= boxes[name].high_hwc).all(), name


@pytest.mark.parametrize("seed", range(150))
def test_no_value_of_any_tensor_leaves_its_bounds(seed: int) -> None:
    """Limits, pools and every linear operator, with branches; both methods, and the rounding of the evaluator."""
    graph = random_net(seed)
    assert_sound(graph, set(graph.shapes))


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_no_value_leaves_its_bounds_whatever_the_operators(first: int) -> None:
    for seed in range(first, first + 20):
        graph = random_graph(seed)
        assert_sound(graph, set(graph.shapes))


@pytest.mark.parametrize(("function", "parameters"), FUNCTIONS)
@pytest.mark.parametrize(("low", "high"), [(-4.0, 3.0), (-0.5, 0.25), (-3.0, -1.0), (0.5, 2.0), (-1.6, -1.0)])
def test_functions_are_bounded_by_what_they_attain(
    function: str, parameters: tuple[float, ...], low: float, high: float
) -> None:
    graph = Net((1, 1, 1), low=low, high=high).pointwise("f", function, *parameters).graph()
    box = find_bounds(graph, {"f"})["f"]
    values = apply_function(function, np.linspace(low, high, 100_001), parameters)
    assert box.low_c[0] <= values.min() <= box.low_c[0] + 1e-4
    assert box.high_c[0] - 1e-4 <= values.max() <= box.high_c[0]


def test_what_is_not_finite_is_bounded_by_nothing() -> None:
    net = Net((1, 1, 2)).pointwise("log", "log").conv("c", 2, (1, 1)).relu("r").conv("d", 1, (1, 1))
    box = find_bounds(net.graph(), {"log", "c", "d"})
    assert box["log"].low_c.tolist() == [-np.inf, -np.inf] and 0 <= box["log"].high_c[0] < 1e-9
    assert not np.isnan([box[name].low_c for name in ("c", "r")]).any()


def test_a_tensor_times_itself_is_never_negative() -> None:
    net = Net((2, 2, 2), low=-1.0).conv("a", 2, (1, 1)).multiply("square", "a")
    assert (find_bounds(net.graph(), ())["square"].low_hwc >= 0).all()


def test_padding_and_moving_are_exact() -> None:
    net = Net((4, 4, 2), low=-2.0, high=-1.0).pad("pad", SAME, 0.5).crop("crop", ((1, 0), (0, 1)))
    net.pad("more", ((0, 1), (1, 0))).space_to_depth("space", (2, 2), "CRD").conv("conv", 3, (2, 2), padding=SAME)
    assert_exact(net.graph(), "conv")
    assert_exact(net.behind("space").reshape("flat", (1, 9, 8)).conv("last", 2, (1, 3)).graph("last", "conv"), "last")


@pytest.mark.parametrize("budget", [0, 3000, 100_000])
def test_bounds_hold_whatever_the_budget(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symbols are given up somewhere on the way, and new ones taken."""
    monkeypatch.setattr(bounds, "WORK", budget)
    net = Net((8, 8, 2), low=-1.0).conv("a", 3, padding=SAME).conv("b", 3).relu("r1").conv("c", 3, padding=SAME)
    net.conv("d", 2, stride=(2, 2)).relu("r2").pool("pool", (2, 2), (1, 1)).conv("e", 2, (1, 1)).dense("scores", 3)
    graph = net.graph()
    assert_sound(graph, set(graph.shapes))


def test_symbols_pay_behind_a_live_rectifier() -> None:
    """What a rectifier bends gets a symbol of its own, and cancels like the others."""
    net = Net((6, 6, 1), low=-1.0).conv("a", 2).relu("relu").conv("b", 3, (1, 1)).conv("c", 2, (1, 1))
    graph = net.graph()
    tight, wide = (find_bounds(graph, wanted)["c"] for wanted in ({"c"}, set[str]()))
    assert (tight.method, wide.method) == ("affine forms", "intervals")
    assert (tight.high_c - tight.low_c < 0.9 * (wide.high_c - wide.low_c)).all()


def test_a_pool_with_one_sample_that_always_wins_is_that_sample() -> None:
    net = bias(Net((2, 1, 1)).conv("conv", 1, (1, 1)), 0.0)
    ramp = np.array([[[[[[0.1]]]]], [[[[[0.1]]]]]])
    net.weights |= {"conv.w": ramp, "conv.b": np.array([[[0.0]], [[5.0]]])}
    net.pool("pool", (2, 1), (1, 1)).conv("scale", 1, (1, 1))
    graph = net.graph()
    conv = graph.node("conv")
    assert isinstance(conv, Conv2D)
    classes = replace(conv, classes=BorderClasses((0, 1), (0,)))
    graph = replace(graph, nodes=tuple(classes if node is conv else node for node in graph.nodes))
    box = find_bounds(graph, {"scale"})
    assert box["pool"].method == "exact"
    assert np.abs(box["pool"].low_c - 5.0).max() < 1e-12 and np.abs(box["pool"].high_c - 5.1).max() < 1e-12


# ------------------------------------------------------------------------------------------------------------- rounding


def test_sums_of_nothing_below_zero_are_not_below_zero() -> None:
    """Rounding is added in parts of the terms: where all of them are zero there is none."""
    net = Net((5, 5, 2)).conv("conv", 3, padding=SAME, bias=False)
    net.weights["conv.w"] = np.abs(net.weights["conv.w"])
    box = find_bounds(net.average("mean").graph(), {"conv"})
    assert (box["conv"].low_hwc == 0).all() and (box["mean"].low_hwc == 0).all()


def test_a_bias_alone_is_exact() -> None:
    net = bias(Net((4, 4, 1)).conv("conv", 2), 0.1, -0.3)
    net.weights["conv.w"] = np.zeros_like(net.weights["conv.w"])
    box = find_bounds(net.graph(), {"conv"})["conv"]
    assert (box.low_c == box.high_c).all() and box.low_c.tolist() == [0.1, -0.3]


# ------------------------------------------------------------------------------------------------------------ questions


def test_only_what_a_few_inputs_leave_open_is_worked_on() -> None:
    net = Net((6, 6, 1), low=-1.0).conv("live", 2).relu("r1").behind("image").conv("idle", 2)
    graph = bias(net, 99, 99).relu("r2").behind("image").conv("dead", 2)
    graph = bias(graph, 0, -99).relu("r3")
    assert open_questions(graph.graph("r1", "r2", "r3")) == {"idle", "dead"}
    assert open_questions(Net((4, 4, 1)).conv("conv", 1).graph()) == set()


def test_lowering_does_not_change_bounds() -> None:
    graph = Net((4, 4, 3)).norm("norm").pca("pca", 2, whiten=True).scale("scale").graph()
    one, other = (find_bounds(each, {"scale"})["scale"] for each in (graph, lower_linear(graph)))
    assert np.abs(one.low_hwc - other.low_hwc).max() < 1e-9 * np.abs(one.low_hwc).max()


def test_a_quantized_network_has_no_such_bounds() -> None:
    graph = Net((4, 4, 1)).conv("conv", 1).graph()
    conv = QConv2D(
        name="conv",
        inputs=("image",),
        source="conv",
        stride=(1, 1),
        padding=NONE,
        classes=BorderClasses(),
        shift=1,
        low=0,
        high=255,
        format=Format(8, False, 1.0, 0),
        weight_bits=8,
    )
    with pytest.raises(TypeError, match=r"^node must be an operator on reals, not QConv2D\(name='conv'"):
        find_bounds(replace(graph, nodes=(graph.nodes[0], conv)), set())
