"""Padding goes into what reads it, where that computes the same; heads go through every pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import AveragePool, Conv2D, Graph, MaxPool, Softmax
from convfold.compiler.passes import Options, fold
from convfold.compiler.passes.fold_pad import fold_pad
from tests.compiler.passes.nets import NONE, SAME, Net
from tests.compiler.passes.proven import bias

CORNER = ((0, 1), (2, 0))


def same(before: Graph, after: Graph) -> bool:
    """On every output, by position."""
    source = before.input
    x_bhwc = np.random.default_rng(1).uniform(source.low, source.high, (20, *source.shape))
    one, other = evaluate(before, x_bhwc), evaluate(after, x_bhwc)
    pairs = zip(before.outputs, after.outputs, strict=True)
    return all(np.abs(one[a] - other[b]).max() <= 1e-12 * np.abs(one[a]).max() for a, b in pairs)


@pytest.mark.parametrize("field", [{}, {"groups": 2}, {"dilation": (2, 1)}, {"stride": (2, 3)}, {"padding": SAME}])
def test_any_convolution_takes_zeros(field: dict[str, Any]) -> None:
    graph = Net((6, 7, 4)).pad("p", CORNER).pad("q", SAME).conv("c", 2, (3, 2), **field).graph()
    folded = fold_pad(graph)
    (node,) = folded.nodes[1:]
    own = int("padding" in field)
    assert isinstance(node, Conv2D) and node.source == "p + q + c"
    assert node.padding == ((1 + own, 2 + own), (3 + own, 1 + own))
    assert same(graph, folded)


def test_a_convolution_with_border_classes_takes_zeros() -> None:
    inner = Net((5, 5, 2)).conv("a", 2, (1, 1)).conv("b", 2, padding=SAME).graph()
    merged = fold(inner, Options(force=True))
    pad = Net((4, 4, 2)).pad("p", ((1, 0), (0, 1))).nodes
    conv = replace(merged.node("b"), inputs=("p",))
    graph = replace(merged, nodes=(*pad, conv))
    folded = fold_pad(graph)
    assert len(folded.nodes) == 2 and same(graph, folded)


@pytest.mark.parametrize(("padding", "count", "takes"), [(NONE, False, True), (SAME, True, True), (SAME, False, False)])
def test_an_average_takes_zeros_that_count(padding: tuple[tuple[int, int], tuple[int, int]], count: bool, takes: bool) -> None:
    graph = Net((6, 6, 2)).pad("p", ((1, 0), (0, 1))).average("m", (3, 3), (2, 1), padding, count).graph()
    folded = fold_pad(graph)
    assert (folded is not graph) == takes and same(graph, folded)
    if takes:
        assert isinstance(node := folded.nodes[1], AveragePool) and node.count_include_pad


def test_a_max_pool_takes_what_never_wins() -> None:
    graph = Net((6, 6, 2)).pad("p", ((1, 0), (0, 1))).pool("m", (3, 3)).graph()
    folded = fold_pad(graph)
    assert isinstance(folded.nodes[1], MaxPool) and same(graph, folded)
    live = Net((6, 6, 2), low=-1.0).pad("p", ((1, 0), (0, 1))).pool("m", (3, 3)).graph()
    assert fold_pad(live) is live
    low = Net((6, 6, 2), low=-1.0).pad("p", ((1, 0), (0, 1)), -1.0).pool("m", (3, 3)).graph()
    assert len(fold_pad(low).nodes) == 2 and same(low, fold_pad(low))


@pytest.mark.parametrize(
    "net",
    [
        Net((6, 6, 2)).pad("p", SAME, 0.5).conv("c", 2),
        Net((6, 6, 2)).pad("p").conv("c", 2, fold="forbid"),
        Net((6, 6, 2)).pad("p", ((2, 0), (0, 0))).pool("c"),  # a window would hold padding alone
        Net((6, 6, 2)).pad("p", ((2, 0), (0, 0))).average("c"),
        Net((6, 6, 2)).pad("p").relu("c"),
    ],
)
def test_what_is_left(net: Net) -> None:
    graph = net.graph()
    assert fold_pad(graph) is graph


def test_padding_that_others_read_is_left() -> None:
    graph = Net((6, 6, 2)).pad("p").conv("c", 2).behind("p").conv("d", 2).graph("c", "d")
    assert fold_pad(graph) is graph
    alone = Net((6, 6, 2)).pad("p").conv("c", 2).graph()
    assert fold_pad(alone, Options(fold="off")) is alone


def test_heads_follow_their_outputs_through_all_passes() -> None:
    net = bias(Net((8, 8, 2)).pad("p").conv("a", 2), 99.0, 99.0).relu("idle").behind("a").norm("n").pool("m").relu("r")
    graph = replace(net.dense("d", 3).graph("idle", "d"), heads=(("idle", Softmax(2.0)), ("d", Softmax())))
    folded = fold(graph)
    assert folded.outputs == ("a", "d") and folded.heads == (("a", Softmax(2.0)), ("d", Softmax()))
    assert same(graph, folded)
