from __future__ import annotations

import math
import re

import numpy as np
import pytest

from convfold.compiler import evaluate as module
from convfold.compiler.evaluate import accuracy, evaluate
from convfold.compiler.graph import BorderClasses, Conv2D, Graph, Input, MaxPool, Node
from convfold.compiler.numbers import RealArray
from tests.compiler.passes.nets import SAME, Net, random_chain
from tests.oracle import toeplitz


def batch(graph: Graph, size: int = 3) -> RealArray:
    return np.random.default_rng(1).normal(size=(size, *graph.input.shape))


@pytest.mark.parametrize("seed", range(40))
def test_every_tensor_equals_the_oracle(seed: int) -> None:
    graph = random_chain(seed)
    x_bhwc = batch(graph)
    tensors = evaluate(graph, x_bhwc, graph.shapes)
    for name, (matrix, offset) in toeplitz(graph).items():
        expected = x_bhwc.reshape(3, -1) @ matrix.T + offset
        assert np.abs(tensors[name].reshape(3, -1) - expected).max() <= 1e-12 * max(1, np.abs(expected).max())
        assert tensors[name].shape == (3, *graph.shapes[name])


@pytest.mark.parametrize(
    "net",
    [
        Net((3, 4, 2)).pad("a", ((1, 0), (2, 3)), -0.5),
        Net((3, 4, 2)).crop("a", ((1, 0), (1, 2))),
        Net((4, 6, 3)).space_to_depth("a", (2, 3)),
        Net((4, 6, 3)).space_to_depth("a", (2, 3), "CRD"),
        Net((4, 6, 3)).reshape("a", (3, 2, 12)),
        Net((4, 6, 4)).space_to_depth("b", (2, 3), "CRD").depth_to_space("c", (2, 3), "CRD").pad("a", SAME, 2.0),
    ],
)
def test_movers_equal_the_oracle(net: Net) -> None:
    graph = net.graph()
    x_bhwc = batch(graph)
    matrix, offset = toeplitz(graph)["a"]
    y_bhwc = evaluate(graph, x_bhwc)["a"]
    assert y_bhwc.shape == (3, *graph.shapes["a"])
    assert np.array_equal(y_bhwc.reshape(3, -1), x_bhwc.reshape(3, -1) @ matrix.T + offset)


def test_space_to_depth_is_the_inverse_of_depth_to_space() -> None:
    for order in ("DCR", "CRD"):
        graph = Net((4, 6, 3)).space_to_depth("b", (2, 3), order).depth_to_space("a", (2, 3), order).graph()
        x_bhwc = batch(graph)
        assert np.array_equal(evaluate(graph, x_bhwc)["a"], x_bhwc)


def test_what_bends_is_computed_sample_by_sample() -> None:
    net = Net((2, 2, 2)).prelu("prelu").behind("image").pointwise("leaky", "leaky_relu", 0.5).multiply("product", "prelu")
    graph = net.argmax("best").graph("prelu", "leaky", "product", "best")
    x_bhwc = np.array([[-1.0, 2.0], [3.0, 3.0], [0.0, -4.0], [-2.0, -1.0]]).reshape(1, 2, 2, 2)
    found = evaluate(graph, x_bhwc)
    for (h, w, c), x in np.ndenumerate(x_bhwc[0]):
        prelu = x if x > 0 else x * graph.weights["prelu.slope"][c]
        leaky = x if x >= 0 else x / 2
        assert [found[name][0, h, w, c] for name in ("prelu", "leaky", "product")] == [prelu, leaky, leaky * prelu]
    first = [[np.argmax(row) for row in rows] for rows in found["product"][0]]
    assert found["best"][0, :, :, 0].tolist() == first
    assert found["best"].dtype == np.float64
    equal = evaluate(Net((1, 1, 3)).argmax("best").graph(), np.array([1.0, 7.0, 7.0]).reshape(1, 1, 1, 3))
    assert equal["best"].item() == 1.0  # the first of equals


def classed_conv() -> Graph:
    """A convolution with three row classes and two column classes."""
    rng = np.random.default_rng(0)
    image = Input(name="image", inputs=(), source="image", shape=(6, 5, 2), low=-1.0, high=1.0)
    conv = Conv2D(
        name="conv",
        inputs=("image",),
        source="conv",
        padding=((1, 1), (1, 0)),
        classes=BorderClasses((0, 1, 5), (0, 3)),
    )
    weights = {"conv.w": rng.normal(size=(3, 2, 4, 3, 2, 2)), "conv.b": rng.normal(size=(3, 2, 4))}
    return Graph(name="net", nodes=(image, conv), outputs=("conv",), weights=weights)


def test_border_classes_equal_the_oracle() -> None:
    graph = classed_conv()
    x_bhwc = batch(graph)
    matrix, offset = toeplitz(graph)["conv"]
    y_bhwc = evaluate(graph, x_bhwc)["conv"]
    assert np.abs(y_bhwc.reshape(3, -1) - (x_bhwc.reshape(3, -1) @ matrix.T + offset)).max() < 1e-12


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((2, 2), (2, 2), ((0, 0), (0, 0))),
        ((3, 2), (2, 1), ((1, 2), (0, 1))),
        ((1, 1), (1, 1), ((0, 0), (0, 0))),
    ],
)
def test_max_pool_takes_the_greatest_sample_that_is_there(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    graph = Net((5, 6, 2)).pool("pool", kernel, stride, padding).graph()
    x_bhwc = batch(graph) - 10.0  # a padded zero would win
    y_bhwc = evaluate(graph, x_bhwc)["pool"]
    for i, j in np.ndindex(*graph.shapes["pool"][:2]):
        top, left = i * stride[0] - padding[0][0], j * stride[1] - padding[1][0]
        window = x_bhwc[:, max(0, top) : top + kernel[0], max(0, left) : left + kernel[1]]
        assert np.array_equal(y_bhwc[:, i, j], window.max(axis=(1, 2)))


def test_clip_limits_both_ways() -> None:
    graph = Net((1, 3, 1)).relu("relu6", 0.0, 6.0).graph()
    y_bhwc = evaluate(graph, np.array([-1.0, 5.0, math.inf]).reshape(1, 1, 3, 1))["relu6"]
    assert y_bhwc.ravel().tolist() == [0.0, 5.0, 6.0]


def test_a_batch_is_cut_into_parts_that_fit_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Net((6, 6, 3)).conv("conv", 4).graph()
    x_bhwc = batch(graph, 7)
    whole = evaluate(graph, x_bhwc)["conv"]
    monkeypatch.setattr(module, "PATCH_VALUES", 3 * 4 * 4 * 27)  # three images at a time
    assert np.abs(evaluate(graph, x_bhwc)["conv"] - whole).max() < 1e-12


def test_keep_gives_inner_tensors_in_the_order_of_the_graph() -> None:
    graph = Net((4, 4, 1)).conv("a", 2).relu("b").dense("c", 3).graph()
    x_bhwc = batch(graph)
    assert list(evaluate(graph, x_bhwc)) == ["c"]
    tensors = evaluate(graph, x_bhwc, ["c", "image", "a"])
    assert list(tensors) == ["image", "a", "c"]
    assert np.array_equal(tensors["image"], x_bhwc)


def test_a_batch_of_another_shape_is_refused() -> None:
    graph = Net((4, 5, 1)).conv("conv", 2).graph()
    message = "inputs must be of shape (batch, 4, 5, 1), not (2, 5, 4, 1)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate(graph, np.zeros((2, 5, 4, 1)))


def test_a_tensor_that_is_not_there_is_refused() -> None:
    graph = Net((4, 5, 1)).conv("conv", 2).graph()
    with pytest.raises(ValueError, match=r"^keep must name tensors of the graph, not \['edges'\]$"):
        evaluate(graph, batch(graph), ["conv", "edges"])


def test_an_operator_that_is_not_real_is_refused() -> None:
    node = Node(name="odd", inputs=("image",), source="odd")
    pool = MaxPool(name="pool", inputs=("image",), source="pool", kernel=(1, 1), stride=(1, 1))
    graph = Net((1, 1, 1)).graph()
    assert module.apply_node(graph, pool, (np.zeros((1, 1, 1, 1)),)).shape == (1, 1, 1, 1)
    with pytest.raises(TypeError, match=r"^node must be an operator on reals, not Node\("):
        module.apply_node(graph, node, (np.zeros((1, 1, 1, 1)),))


def test_accuracy_is_the_share_of_greatest_outputs() -> None:
    outputs = np.array([[0.0, 1.0], [3.0, 2.0], [0.5, 0.4], [1.0, 7.0]]).reshape(4, 1, 1, 2)
    assert accuracy(outputs, np.array([1, 0, 1, 1])) == 0.75
    assert accuracy(outputs.astype(np.int64), np.array([1, 0, 0, 1])) == 1.0
    with pytest.raises(ValueError, match=r"^there must be one label an output, not 3 for 4$"):
        accuracy(outputs, np.array([1, 0, 1]))
