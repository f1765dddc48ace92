"""Batch norms, projections, what is lowered and what is hoisted: what each rule takes and what it leaves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA

from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import Conv2D, Graph
from convfold.compiler.passes import fold
from convfold.compiler.passes.drop_identities import drop_identities
from convfold.compiler.passes.fold_batchnorm import fold_batchnorm
from convfold.compiler.passes.fold_cascades import fold_cascades
from convfold.compiler.passes.fold_pca import fold_pca
from convfold.compiler.passes.hoist_clip import hoist_clip
from convfold.compiler.passes.lower_linear import lower_linear
from convfold.compiler.passes.options import Options
from convfold.compiler.passes.rewrite import fresh_name, relative_error
from tests.compiler.passes.nets import SAME, Net
from tests.oracle import difference, toeplitz

EXACT = 1e-9


def names(graph: Graph) -> list[str]:
    return [f"{node.name}:{node.op}" for node in graph.nodes[1:]]


def same(before: Graph, after: Graph) -> bool:
    reference, found = toeplitz(before), toeplitz(after)
    return all(difference(reference[name], found[name]) < EXACT for name in before.outputs)


# ----------------------------------------------------------------------------------------------- batch norm


def test_a_run_of_norms_folds_at_once() -> None:
    graph = Net((4, 4, 2)).conv("conv", 3).norm("n1").norm("n2").graph()
    folded = fold_batchnorm(graph)
    assert names(folded) == ["n2:conv2d"]
    assert folded.decisions[0].layers == ("conv", "n1", "n2")
    assert folded.node("n2").source == "conv + n1 + n2"
    assert same(graph, folded)


def test_a_norm_folds_into_a_dense_layer() -> None:
    graph = Net((2, 3, 2)).dense("dense", 3).norm("norm").graph()
    folded = fold_batchnorm(graph)
    assert names(folded) == ["norm:dense"]
    assert same(graph, folded)


def test_a_norm_folds_into_every_border_class() -> None:
    net = Net((6, 6, 2)).conv("a", 2, padding=SAME).conv("b", 2, padding=SAME).norm("norm")
    graph = fold_cascades(net.graph(), Options(force=True))
    folded = fold_batchnorm(graph)
    node = folded.node("norm")
    assert isinstance(node, Conv2D) and node.classes.count == 9
    assert same(graph, folded)


def test_a_norm_behind_a_shared_convolution_is_left() -> None:
    net = Net((4, 4, 2)).conv("conv", 3).norm("norm").behind("conv").relu("relu")
    graph = net.graph("norm", "relu")
    assert fold_batchnorm(graph) is graph


def test_a_norm_behind_an_output_is_left() -> None:
    graph = Net((4, 4, 2)).conv("conv", 3).norm("norm").graph("norm", "conv")
    assert fold_batchnorm(graph) is graph


def test_the_users_widths_stay_with_the_convolution() -> None:
    graph = Net((4, 4, 2)).conv("conv", 3).norm("norm").graph()
    conv = graph.node("conv")
    assert isinstance(conv, Conv2D)
    wide = replace(graph, nodes=(graph.nodes[0], replace(conv, bits=5, weight_bits=3), graph.nodes[2]))
    node = fold_batchnorm(wide).node("norm")
    assert isinstance(node, Conv2D) and (node.bits, node.weight_bits) == (5, 3)


def test_a_scale_with_a_bias_folds_like_a_norm() -> None:
    graph = Net((4, 4, 2)).conv("conv", 4, groups=2).scale("scale").norm("norm").graph()
    folded = fold_batchnorm(graph)
    assert names(folded) == ["norm:conv2d"]
    (decision,) = folded.decisions
    assert (decision.rule, decision.reason) == ("scale_bias", "W' = s·W and b' = s·b + β, per channel")
    assert same(graph, folded)


# ----------------------------------------------------------------------------------------------- identities


def test_dropout_is_dropped_wherever_it_stands() -> None:
    graph = Net((4, 4, 2)).dropout("d1").conv("conv", 3).dropout("d2").dropout("d3").relu("relu").graph()
    dropped = drop_identities(graph)
    assert [(node.name, node.inputs) for node in dropped.nodes[1:]] == [("conv", ("image",)), ("relu", ("conv",))]
    assert [decision.layers for decision in dropped.decisions] == [("d1",), ("d2",), ("d3",)]


def test_dropout_that_is_an_output_keeps_its_name() -> None:
    graph = Net((4, 4, 2)).conv("conv", 3).dropout("drop").graph()
    assert drop_identities(graph) is graph
    folded = fold(graph)
    assert names(folded) == ["drop:conv2d"]
    assert same(graph, folded)


def test_flattening_goes_where_a_dense_layer_does_it() -> None:
    graph = Net((3, 3, 2)).flatten("flat").relu("relu").dropout("drop").dense("dense", 2).graph()
    assert names(drop_identities(graph)) == ["relu:clip", "dense:dense"]
    graph = Net((3, 3, 2)).dense("first", 4).flatten("flat").norm("norm").graph()
    assert names(drop_identities(graph)) == ["first:dense", "norm:batch_norm"]


def test_flattening_in_front_of_a_norm_becomes_a_part_of_the_dense_layer() -> None:
    """A norm behind flattening is one of samples, not of channels."""
    graph = Net((3, 3, 2)).flatten("flat").norm("norm").dense("dense", 2).graph()
    assert drop_identities(graph) is graph
    folded = fold(graph)
    assert names(folded) == ["dense:dense"]
    assert same(graph, folded)


def equal(before: Graph, after: Graph) -> bool:
    """On random inputs, for what no matrix computes."""
    x_bhwc = np.random.default_rng(0).normal(size=(9, *before.input.shape))
    one, other = evaluate(before, x_bhwc), evaluate(after, x_bhwc)
    return all(np.abs(one[name] - other[name]).max() <= 1e-12 * np.abs(one[name]).max() for name in one)


def test_reshaping_in_front_of_a_dense_layer_is_dropped() -> None:
    net = Net((3, 4, 2), low=-1.0).reshape("r", (4, 3, 2)).pointwise("f", "tanh").flatten("flat").relu("relu")
    graph = net.dense("dense", 2).graph()
    assert names(drop_identities(graph)) == ["f:pointwise", "relu:clip", "dense:dense"]
    assert equal(graph, drop_identities(graph))
    net = Net((3, 4, 2)).reshape("r", (3, 4, 2)).pad("p", ((0, 0), (0, 0)), 3.0).crop("c", ((0, 0), (0, 0)))
    graph = net.conv("d", 1).graph()
    assert names(drop_identities(graph)) == ["d:conv2d"]


def test_a_norm_in_front_of_a_dense_layer_is_a_part_of_it() -> None:
    graph = Net((2, 3, 2), low=-1.0).relu("r").norm("n").scale("s").dense("d", 3).graph()
    folded = fold_batchnorm(graph)
    assert names(folded) == ["r:clip", "d:dense"]
    assert [decision.rule for decision in folded.decisions] == ["scale_bias", "batch_norm"]
    assert equal(graph, folded) and fold_batchnorm(folded) is folded


# ------------------------------------------------------------------------------------------------------ pca


def test_a_projection_behind_groups_is_left_to_the_cascades() -> None:
    graph = Net((4, 4, 4)).conv("conv", 4, groups=2).pca("project", 2).graph()
    assert fold_pca(graph) is graph
    folded = fold(graph)
    assert names(folded) == ["project:conv2d"]
    assert same(graph, folded)


def test_a_projection_folds_into_a_dense_layer() -> None:
    graph = Net((2, 3, 2)).dense("dense", 4).pca("project", 2).graph()
    folded = fold_pca(graph)
    assert names(folded) == ["project:dense"]
    assert same(graph, folded)


def test_a_projection_onto_more_channels_is_left_to_the_cascades() -> None:
    graph = Net((6, 6, 1)).conv("thin", 1, (5, 5)).pca("widen", 6).graph()
    assert fold_pca(graph) is graph
    folded = fold(graph)
    assert names(folded) == ["thin:conv2d", "widen:conv2d"]
    assert "it would not pay" in folded.decisions[-1].reason


def test_a_projection_is_a_layer_when_folding_is_off() -> None:
    graph = Net((6, 6, 1)).conv("conv", 4).pca("project", 2).graph()
    folded = fold(graph, Options(fold="off"))
    assert names(folded) == ["conv:conv2d", "project:conv2d"]
    lowered, refused = folded.decisions
    assert lowered.reason == "it is not folded into 'conv' in front of it, so it becomes a 1×1 convolution"
    assert refused.reason.startswith("folding is off: ")


def test_a_projection_in_front_of_a_padded_convolution_needs_its_border_classes() -> None:
    graph = Net((6, 6, 3)).pca("project", 2).conv("conv", 4, padding=SAME).graph()
    folded = fold(graph, Options(force=True))
    node = folded.node("conv")
    assert isinstance(node, Conv2D) and node.classes.count == 9
    assert same(graph, folded)


@pytest.mark.parametrize("whiten", [False, True])
def test_the_projection_of_scikit_learn_is_folded(whiten: bool) -> None:
    """``y = components · (x − mean)``; a whitening scale is part of the components."""
    graph = Net((6, 6, 2)).conv("conv", 5).graph()
    x_bhwc = np.random.default_rng(3).normal(size=(40, 6, 6, 2))
    y_bhwc = evaluate(graph, x_bhwc)["conv"]
    pca = PCA(3, whiten=whiten).fit(y_bhwc.reshape(-1, 5))
    net = Net((6, 6, 2)).conv("conv", 5).pca("project", 3)
    scale = np.sqrt(pca.explained_variance_)[:, None] if whiten else 1.0
    net.weights |= {"project.components": pca.components_ / scale, "project.mean": pca.mean_}
    expected = pca.transform(y_bhwc.reshape(-1, 5)).reshape(40, 4, 4, 3)
    assert relative_error(expected, evaluate(fold(net.graph()), x_bhwc)["project"]) < EXACT


def test_the_trap_of_projecting_the_filters_differs_by_the_stated_residue() -> None:
    """PCA.transform on the filters subtracts their mean m: that adds ``(1 − Σ patch)·mᵀQ`` to every pixel."""
    rng = np.random.default_rng(4)
    w_kc = rng.normal(size=(27, 8))
    pca = PCA(3).fit(w_kc)
    patches_nk = rng.normal(size=(50, 27))
    projected = pca.transform(patches_nk @ w_kc)
    trapped = patches_nk @ pca.transform(w_kc)
    residue = (1 - patches_nk.sum(axis=1, keepdims=True)) * (pca.mean_ @ pca.components_.T)
    assert np.abs(trapped - projected - residue).max() < 1e-12
    assert np.abs(trapped - projected).max() > 0.1


# ---------------------------------------------------------------------------------------------------- lower


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Net((4, 4, 2)).pca("n", 2), "'image' in front of it (input) has no weights to fold into"),
        (
            Net((4, 4, 2)).conv("c", 2).pool("p", (2, 2), (1, 1)).pca("n", 1),
            "'p' in front of it (max_pool) has no weights to fold into",
        ),
        (Net((4, 4, 2)).conv("c", 2).pca("n", 2), "it is not folded into 'c' in front of it"),
    ],
)
def test_what_is_lowered_says_why(net: Net, reason: str) -> None:
    lowered = lower_linear(net.graph())
    assert names(lowered)[-1] == "n:conv2d"
    assert lowered.decisions[0].reason == f"{reason}, so it becomes a 1×1 convolution"


def test_a_projection_behind_a_shared_convolution_is_lowered() -> None:
    graph = Net((4, 4, 2)).conv("c", 2).pca("n", 2).behind("c").relu("r").graph("n", "r")
    lowered = lower_linear(graph)
    assert lowered.decisions[0].reason.startswith("'c' in front of it is needed elsewhere too, so ")


# ---------------------------------------------------------------------------------------------------- hoist


def test_rectifiers_pass_any_number_of_pools_and_keep_the_name_of_the_result() -> None:
    net = (
        Net((9, 9, 1), low=-1.0)
        .conv("c", 2)
        .pool("p1")
        .pool("p2", (2, 2), (1, 1))
        .relu("r")
        .relu("r6", 0.0, 0.5)
    )
    graph = net.graph()
    hoisted = hoist_clip(graph)
    assert names(hoisted) == ["c:conv2d", "c_r:clip", "c_r_r6:clip", "p1_r6:max_pool", "r6:max_pool"]
    x_bhwc = np.random.default_rng(0).normal(size=(9, 9, 9, 1))
    assert np.array_equal(evaluate(graph, x_bhwc)["r6"], evaluate(hoisted, x_bhwc)["r6"])
    assert hoisted.decisions[0].error == 0.0


@pytest.mark.parametrize(
    "graph",
    [
        Net((8, 8, 1)).pool("p").relu("r").graph(),
        Net((8, 8, 1)).conv("c", 1).relu("r").pool("p").graph(),
        Net((8, 8, 1)).conv("c", 1).pool("p").relu("r").graph("p", "r"),
        Net((8, 8, 1)).conv("c", 1).pool("p").relu("r").behind("c").relu("s").graph("r", "s"),
    ],
    ids=["no convolution", "in front already", "pool is an output", "convolution is shared"],
)
def test_what_is_not_hoisted(graph: Graph) -> None:
    assert hoist_clip(graph) is graph


def test_new_names_are_legal_and_unique_whatever_the_case() -> None:
    taken = {"a_b", "A_C", "x" * 64}
    assert fresh_name("a_b", taken) == "a_b_2"
    assert fresh_name("a_b", taken) == "a_b_3"
    assert fresh_name("a_c", taken) == "a_c_2"
    assert fresh_name("x" * 99, taken) == "x" * 62 + "_2"
    assert fresh_name("wire", taken) == "wire_"
    assert {"a_b_2", "a_b_3", "a_c_2", "wire_"} <= taken


# ------------------------------------------------------------------------------------------------- measuring


def test_errors_are_parts_of_the_greatest_value() -> None:
    before = np.array([0.0, -4.0, 1.0])
    assert relative_error(before, before) == 0.0
    assert relative_error(before, np.array([0.0, -4.0, 2.0])) == 0.25
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_error(np.zeros(3), np.array([0.0, 0.5, 0.0])) == 0.5
    assert math.isnan(relative_error(before, np.array([0.0, math.nan, 0.0])))
