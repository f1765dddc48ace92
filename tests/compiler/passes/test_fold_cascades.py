from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convfold.compiler.graph import Conv2D, Dense, Graph, Pair, node_macs
from convfold.compiler.passes.fold_cascades import fold_cascades
from convfold.compiler.passes.options import Cost, Options
from convfold.compiler.passes.rewrite import PROBES
from tests.compiler.passes.nets import NONE, SAME, Net
from tests.oracle import difference, toeplitz

EXACT = 1e-9
FORCE = Options(force=True)
INTERIOR = Options(fold="interior", force=True)


def conv(graph: Graph, name: str) -> Conv2D:
    node = graph.node(name)
    assert isinstance(node, Conv2D)
    return node


# ------------------------------------------------------------------------------------------------- geometry


def test_two_convolutions_are_one_with_the_sum_of_their_kernels_strides_and_padding() -> None:
    graph = Net((15, 16, 1)).conv("a", 2, (3, 2), (2, 1), SAME).conv("b", 2, (2, 3), (3, 2), SAME).graph()
    node = conv(folded := fold_cascades(graph, FORCE), "b")
    assert folded.weights["b.w"].shape[2:] == (2, 3 + 1 * 2, 2 + 2 * 1, 1)
    assert node.stride == (6, 2)
    assert (node.padding[0][0], node.padding[1][0]) == (1 + 1 * 2, 1 + 1 * 1)
    assert folded.shapes["b"] == graph.shapes["b"]


@pytest.mark.parametrize("height", range(5, 14))
def test_padding_at_the_end_is_what_the_last_window_needs(height: int) -> None:
    graph = Net((height, 1, 1)).conv("a", 1, (2, 1), (2, 1), ((0, 1), (0, 0)))
    folded = fold_cascades(graph.conv("b", 1, (2, 1), (2, 1), ((0, 1), (0, 0))).graph(), FORCE)
    (_, after), _ = conv(folded, "b").padding
    last_row_read = (folded.shapes["b"][0] - 1) * 4 + 4
    assert after == max(0, last_row_read - height)


@pytest.mark.parametrize(
    ("kernel", "padding", "starts"),
    [
        ((3, 3), SAME, (0, 1, 7)),
        ((5, 5), ((2, 2), (2, 2)), (0, 1, 2, 6, 7)),
        ((3, 3), ((1, 0), (1, 0)), (0, 1)),
        ((3, 3), NONE, (0,)),
    ],
)
def test_classes_are_the_sets_of_taps_inside_the_map_between(
    kernel: Pair, padding: tuple[Pair, Pair], starts: tuple[int, ...]
) -> None:
    graph = Net((8, 8, 1)).conv("a", 2, padding=SAME).conv("b", 2, kernel, padding=padding).graph()
    assert conv(fold_cascades(graph, FORCE), "b").classes.rows == starts
    assert conv(fold_cascades(graph, FORCE), "b").classes.cols == starts


def test_three_convolutions_nest_their_classes() -> None:
    net = Net((9, 9, 1)).conv("a", 2, padding=SAME).conv("b", 2, padding=SAME).conv("c", 2, padding=SAME)
    folded = fold_cascades(net.graph(), FORCE)
    assert conv(folded, "c").classes.rows == (0, 1, 2, 7, 8)
    assert difference(toeplitz(net.graph())["c"], toeplitz(folded)["c"]) < EXACT


def test_a_padded_zero_is_no_border_when_nothing_is_added_to_it() -> None:
    """A 1×1 convolution without bias maps zero to zero, so all classes have one kernel and one bias."""
    graph = Net((8, 8, 2)).conv("mix", 2, (1, 1), bias=False).conv("edges", 4, padding=SAME).graph()
    folded = fold_cascades(graph)
    assert conv(folded, "edges").classes.count == 1
    assert difference(toeplitz(graph)["edges"], toeplitz(folded)["edges"]) < EXACT


def test_with_a_bias_the_classes_differ_in_nothing_else() -> None:
    graph = Net((8, 8, 2)).conv("mix", 2, (1, 1)).conv("edges", 4, padding=SAME).graph()
    folded = fold_cascades(graph)
    w_rcohwi = folded.weights["edges.w"]
    assert conv(folded, "edges").classes.count == 9
    assert np.all(w_rcohwi == w_rcohwi[1, 1])


# ------------------------------------------------------------------------------------------------- choosing


def test_a_chain_is_cut_where_it_multiplies_least() -> None:
    """Channels 8, 8, 1, 8: the thin middle wants the first two as one and the last apart."""
    net = Net((9, 9, 8)).conv("a", 8, (1, 1)).conv("thin", 1, padding=SAME).conv("wide", 8, padding=SAME)
    folded = fold_cascades(net.graph())
    assert [node.name for node in folded.nodes] == ["image", "thin", "wide"]
    merged, kept = folded.decisions
    assert (merged.layers, merged.taken) == (("a", "thin"), True)
    assert (kept.layers, kept.taken) == (("thin", "wide"), False)
    apart, one = 2 * 81 * 9 * 8, 81 * 25 * 64
    assert (kept.macs_before, kept.macs_after) == (apart, one)
    assert kept.reason == (
        "it would not pay: 3×3 and then 3×3 are one larger kernel, which takes 129,600 multiplies "
        "instead of 11,664. Force it if fewer layers matter more"
    )


def test_of_two_ways_that_cost_the_same_the_one_with_fewer_layers_is_taken() -> None:
    after = ((0, 1), (0, 1))
    net = Net((4, 4, 1)).conv("a", 2, (2, 2), padding=after).conv("b", 8, (2, 2), padding=after)
    (decision,) = fold_cascades(net.graph(), Options(cost=Cost(1, 0, 0, 0))).decisions
    assert decision.taken
    assert decision.macs_before == decision.macs_after == 16 * 9 * 8


def test_weights_before_and_after_are_in_the_reason() -> None:
    graph = Net((8, 8, 1)).conv("a", 1, (1, 1)).conv("b", 1, padding=SAME).graph()
    (decision,) = fold_cascades(graph).decisions
    assert decision.reason == (
        "1×1 and then 3×3 are one 3×3: taps at u1 + u2·s1, bias b2 + Σ w2·b1; zero padding stands between, so "
        "3×3 border classes keep it exact; 10 weights become 81"
    )


def test_dense_layers_fold_like_convolutions() -> None:
    net = Net((6, 5, 2)).conv("a", 3, stride=(2, 1), padding=((2, 1), (0, 2))).conv("b", 4, (2, 2))
    graph = net.dense("c", 3).dense("d", 2).graph()
    folded = fold_cascades(graph)
    assert isinstance(folded.nodes[1], Dense) and len(folded.nodes) == 2
    assert difference(toeplitz(graph)["d"], toeplitz(folded)["d"]) < EXACT


def test_a_convolution_behind_a_dense_layer_folds_too() -> None:
    graph = Net((3, 3, 2)).dense("a", 2).conv("b", 3, padding=((2, 2), (2, 2))).graph()
    folded = fold_cascades(graph, FORCE)
    assert folded.shapes["b"] == graph.shapes["b"] == (3, 3, 3)
    assert difference(toeplitz(graph)["b"], toeplitz(folded)["b"]) < EXACT


def test_the_users_widths_stay_with_the_tensor_and_the_widest_weights() -> None:
    graph = Net((5, 5, 1)).conv("a", 2).conv("b", 2).graph()
    a, b = conv(graph, "a"), conv(graph, "b")
    a, b = replace(a, bits=4, weight_bits=6), replace(b, bits=8, weight_bits=3)
    node = conv(fold_cascades(replace(graph, nodes=(graph.nodes[0], a, b)), FORCE), "b")
    assert (node.bits, node.weight_bits) == (8, 6)


def test_sources_of_merged_layers_are_joined() -> None:
    graph = Net((7, 7, 1)).conv("a", 2).conv("b", 2).conv("c", 1).graph()
    assert fold_cascades(graph, FORCE).node("c").source == "a + b + c"


# ------------------------------------------------------------------------------------------------- refusing


def refusal(graph: Graph, options: Options = FORCE) -> str:
    folded = fold_cascades(graph, options)
    assert folded.nodes == graph.nodes
    (decision,) = folded.decisions
    assert not decision.taken and decision.rule == "cascade" and decision.error is None
    return decision.reason


NOT_AFFINE = "so the pair is not one affine map, and no single convolution equals it on every input."


def test_a_rectifier_between_is_named() -> None:
    graph = Net((8, 8, 1)).conv("a", 2).relu("relu").conv("b", 2).graph()
    assert refusal(graph) == (
        f"a live rectifier stands between (relu): it bends, {NOT_AFFINE} Train without it to have one layer"
    )


def test_a_limit_between_is_named() -> None:
    graph = Net((8, 8, 1)).conv("a", 2).pool("pool").relu("relu6", 0.0, 6.0).dense("b", 2).graph()
    assert refusal(graph).startswith("a live limit to 0 … 6 stands between (relu6): it bends, ")


def test_a_pool_between_is_named() -> None:
    graph = Net((8, 8, 1)).conv("a", 2).pool("pool").conv("b", 2).graph()
    assert refusal(graph) == (
        f"max pooling stands between (pool): which sample passes depends on the data, {NOT_AFFINE} "
        "A stride in its place would be linear"
    )


def test_a_second_reader_is_named() -> None:
    net = Net((8, 8, 1)).conv("a", 2).conv("b", 2, (1, 1)).behind("a").relu("relu")
    folded = fold_cascades(graph := net.graph("b", "relu"), FORCE)
    (decision,) = folded.decisions
    assert decision.reason == (
        "'a' is also needed by 'relu', so it would be computed all the same. "
        "Let one layer alone read it to merge the two"
    )
    apart = node_macs(graph, graph.node("a"))
    assert decision.macs_before == apart + 6 * 6 * 4
    assert decision.macs_after == apart + 6 * 6 * 2 * 9


def test_an_output_is_needed_apart() -> None:
    graph = Net((8, 8, 1)).conv("a", 2).conv("b", 2).graph("a", "b")
    assert refusal(graph).startswith("'a' is also needed by the network's output, so it would be")


def test_folding_that_is_off_says_what_it_would_bring() -> None:
    graph = Net((8, 8, 2)).conv("a", 2, (1, 1)).conv("b", 2, padding=SAME).graph()
    assert refusal(graph, Options(fold="off")) == (
        "folding is off: one layer would take 2,304 multiplies instead of 2,560. "
        "Choose 'exact' or 'interior' to have one"
    )


# ------------------------------------------------------------------------------------------------- interior


@pytest.mark.parametrize("seed", range(12))
def test_interior_differs_at_the_border_alone_and_says_by_how_much(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (k1, s1), (k2, s2) = ((int(rng.choice((2, 3))), int(rng.choice((1, 1, 2)))) for _ in range(2))
    top, left = (int(rng.integers(0, k2)), int(rng.integers(0, k2))), (int(rng.integers(0, k2)), 1)
    net = Net((11, 12, 2), seed, -1.0, 2.0).conv("a", 2, (k1, k1), (s1, s1), SAME)
    graph = net.conv("b", 3, (k2, k2), (s2, s2), (top, left)).graph()
    folded = fold_cascades(graph, INTERIOR)
    assert conv(folded, "b").classes.count == 1

    reference, found = toeplitz(graph)["b"], toeplitz(folded)["b"]
    height, width, channels = graph.shapes["b"]
    between = graph.shapes["a"]
    inside = np.zeros((height, width, channels), dtype=bool)
    for i, j in np.ndindex(height, width):
        first_row, first_col = i * s2 - top[0], j * s2 - left[0]
        inside[i, j] = (
            first_row >= 0
            and first_col >= 0
            and first_row + k2 <= between[0]
            and first_col + k2 <= between[1]
        )
    rows = inside.ravel()
    assert rows.any() and not rows.all()
    assert difference((reference[0][rows], reference[1][rows]), (found[0][rows], found[1][rows])) < EXACT
    assert difference(reference, found) > 1e-3

    x_bn = np.random.default_rng(0).uniform(-1.0, 2.0, (PROBES, *graph.input.shape)).reshape(PROBES, -1)
    y_bn, z_bn = (x_bn @ matrix.T + offset for matrix, offset in (reference, found))
    (decision,) = folded.decisions
    assert decision.error == pytest.approx(np.abs(y_bn - z_bn).max() / np.abs(y_bn).max(), rel=1e-9)
    assert (
        "zero padding stands between, but the interior's kernel is used everywhere, as asked"
        in decision.reason
    )


def test_interior_is_exact_where_nothing_is_padded() -> None:
    graph = Net((8, 8, 1)).conv("a", 2, padding=SAME).conv("b", 2).graph()
    folded = fold_cascades(graph, INTERIOR)
    (decision,) = folded.decisions
    assert decision.error is not None and decision.error < EXACT
    assert "as asked" not in decision.reason
    assert difference(toeplitz(graph)["b"], toeplitz(folded)["b"]) < EXACT
