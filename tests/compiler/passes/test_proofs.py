"""What is proven idle goes, what is proven constant is pruned, and what that opens is folded."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convfold.compiler.certificates import check
from convfold.compiler.evaluate import evaluate
from convfold.compiler.explain import explain
from convfold.compiler.graph import Clip, Conv2D, Decision, Graph
from convfold.compiler.passes import Options, fold
from convfold.compiler.passes.drop_clips import drop_clips
from convfold.compiler.passes.prune_channels import prune_channels
from convfold.compiler.passes.rewrite import relative_error
from convfold.compiler.spec import load_spec
from tests.compiler.passes.nets import NONE, SAME, Net
from tests.compiler.passes.proven import bias

EXACT = 1e-9


def names(graph: Graph) -> list[str]:
    return [f"{node.name}:{node.op}" for node in graph.nodes[1:]]


def decisions(graph: Graph, rule: str) -> list[Decision]:
    return [decision for decision in graph.decisions if decision.rule == rule]


def assert_same(before: Graph, after: Graph) -> None:
    """On random inputs in the declared range and on its corners, at every pixel."""
    source, rng = before.input, np.random.default_rng(7)
    x_bhwc = rng.uniform(source.low, source.high, (60, *source.shape))
    x_bhwc[30:] = np.where(rng.random((30, *source.shape)) < 0.5, source.low, source.high)
    expected, found = evaluate(before, x_bhwc), evaluate(after, x_bhwc)
    for one, other in zip(before.outputs, after.outputs, strict=True):
        assert relative_error(expected[one], found[other]) < EXACT


# ----------------------------------------------------------------------------------------------- what a proof opens

SPEC = """
[network]
name = "glass"
weights = "glass.npz"
input = {{ shape = [10, 10, 3], range = {range} }}
[[layer]]
name = "thin"
op = "conv2d"
padding = "valid"
[[layer]]
name = "relu"
op = "relu"
[[layer]]
name = "edges"
op = "conv2d"
padding = "same"
[[layer]]
name = "late"
op = "relu"
"""


def glass(folder: Path, limits: str) -> Graph:
    """A 1×1 convolution that lifts every pixel above zero as long as pixels are within 0 … 1, and a 3×3 behind it."""
    rng = np.random.default_rng(5)
    arrays: dict[str, Any] = {
        "thin.w": rng.uniform(-1, 1, (6, 1, 1, 3)),
        "thin.b": np.full(6, 2.5),
        "edges.w": rng.normal(size=(4, 3, 3, 6)),
        "edges.b": rng.normal(size=4),
    }
    (folder / "net.toml").write_text(SPEC.format(range=limits), encoding="utf-8")
    np.savez(folder / "glass.npz", **arrays)
    return load_spec(folder / "net.toml")


def test_a_proof_merges_two_convolutions_that_no_rule_would_merge_without_it(tmp_path: Path) -> None:
    graph = glass(tmp_path, "[0.0, 1.0]")
    folded = fold(graph)
    assert names(folded) == ["edges:conv2d", "late:clip"]
    node = folded.node("edges")
    assert isinstance(node, Conv2D) and node.classes.count == 9
    assert_same(graph, folded)

    dropped, merged = explain(graph, folded)[:2]
    (decision,) = decisions(folded, "drop_clip")
    certificate = decision.certificate
    assert certificate is not None and (certificate.method, certificate.rule) == ("exact", "identity")
    found = check(graph, certificate, 2000)
    assert found.justified and found.confirmed and not found.beaten
    bounds = ", ".join(
        f"channel {c} {low:.4g} … {high:.4g}"
        for c, (low, high) in enumerate(zip(certificate.low, certificate.high, strict=True))
    )
    within = f"{min(certificate.low):.4g} … {max(certificate.high):.4g}"
    assert str(dropped).splitlines() == [
        "Removed 'relu', which is proven to change nothing.",
        (
            f"  With inputs in 0 … 1, 'thin' is proven to lie within {within} "
            "(exact, some input attains each bound), so the rectifier changes nothing."
        ),
        f"  Certificate for 'thin', exact: {bounds}.",
        "  Checked on 4 random inputs: equal to the last bit.",
    ]
    assert merged.title == "Merged 'thin' and 'edges' into one layer"


def test_without_the_declared_range_there_is_no_proof_and_no_merging(tmp_path: Path) -> None:
    graph = glass(tmp_path, "[-4.0, 4.0]")
    folded = fold(graph)
    assert names(folded) == ["thin:conv2d", "relu:clip", "edges:conv2d", "late:clip"]
    assert not decisions(folded, "drop_clip")
    assert "a live rectifier stands between" in folded.decisions[-1].reason


def test_what_is_only_observed_is_not_proven() -> None:
    """Negative in one corner of 2²⁵ alone, so no sample ever sees it; the rectifier stays."""
    net = Net((5, 5, 1)).conv("conv", 1, (5, 5))
    signs = np.random.default_rng(3).choice([-1.0, 1.0], (1, 1, 1, 5, 5, 1))
    net.weights |= {"conv.w": signs, "conv.b": np.full((1, 1, 1), float((signs < 0).sum()) - 1e-6)}
    graph = net.relu("relu").graph()
    assert drop_clips(graph) is graph
    net.weights["conv.b"] = net.weights["conv.b"] + 2e-6
    assert names(drop_clips(net.graph())) == ["conv:conv2d"]


def test_a_proof_that_intervals_cannot_give() -> None:
    """Opposite slopes cancel behind the second layer: bounds by affine forms, the third layer folds in too."""
    net = Net((6, 6, 1), low=-1.0).conv("two", 2, (1, 1)).conv("mix", 1, (1, 1)).relu("relu").conv("last", 2)
    net.weights |= {"two.w": np.array([3.0, -3.0]).reshape(1, 1, 2, 1, 1, 1), "two.b": np.ones((1, 1, 2))}
    net.weights |= {"mix.w": np.ones((1, 1, 1, 1, 1, 2)), "mix.b": np.full((1, 1, 1), -1.5)}
    graph = net.graph()
    folded = fold(graph)
    assert names(folded) == ["last:conv2d"]
    assert_same(graph, folded)


def test_an_idle_rectifier_in_a_branch_lets_the_branch_fold() -> None:
    net = bias(Net((6, 6, 2)).conv("a", 2, padding=SAME), 30, 30).relu("relu").behind("image").conv("b", 2, (1, 1))
    graph = net.add("sum", "relu").graph()
    folded = fold(graph)
    assert len(folded.nodes) == 2
    assert_same(graph, folded)


# ---------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("b", "low", "high", "left", "rule"),
    [
        (3.0, 0.0, 6.0, None, "drop_clip"),
        (0.0, 0.0, 6.0, (0.0, math.inf), "loosen_clip"),
        (5.0, 0.0, 6.0, (-math.inf, 6.0), "loosen_clip"),
        (0.0, -3.0, 3.0, None, "drop_clip"),
        (0.0, -1.0, 1.0, (-1.0, 1.0), None),
    ],
)
def test_limits_that_are_never_touched_go_one_by_one(
    b: float, low: float, high: float, left: tuple[float, float] | None, rule: str | None
) -> None:
    """``conv`` is within ``b − 2 … b + 2`` exactly."""
    net = bias(Net((4, 4, 1), low=-1.0).conv("conv", 1, (1, 2)), b)
    net.weights["conv.w"] = np.ones((1, 1, 1, 1, 2, 1))
    graph = net.relu("clip", low, high).conv("last", 2).graph()
    dropped = drop_clips(graph)
    clips = [(node.low, node.high) for node in dropped.nodes if isinstance(node, Clip)]
    assert clips == ([] if left is None else [left])
    assert [decision.rule for decision in dropped.decisions] == ([] if rule is None else [rule])
    assert_same(graph, dropped)


def test_a_limit_left_on_one_side_is_told() -> None:
    net = bias(Net((4, 4, 1), low=-1.0).conv("conv", 1, (1, 1)), 0).relu("clip", 0.0, 6.0)
    (entry,) = explain(net.graph(), drop_clips(net.graph()))
    assert entry.title == "Removed a limit of 'clip' that is proven never to act"
    assert entry.reason.endswith("so the limit to 0 … 6 never acts on that side: the rectifier is left")


def test_a_rectifier_of_the_input_goes() -> None:
    graph = Net((4, 4, 1)).relu("relu").conv("conv", 2).graph()
    assert names(drop_clips(graph)) == ["conv:conv2d"]


def test_a_clip_that_is_the_output_hands_its_place_over() -> None:
    graph = bias(Net((4, 4, 1)).conv("conv", 2), 99, 99).relu("relu").graph()
    dropped = drop_clips(graph)
    assert dropped.outputs == ("conv",)
    assert_same(graph, dropped)


def test_two_outputs_do_not_become_one() -> None:
    graph = bias(Net((4, 4, 1)).conv("conv", 2), 99, 99).relu("relu").graph("conv", "relu")
    assert drop_clips(graph) is graph
    graph = Net((4, 4, 1)).relu("relu").graph()
    assert drop_clips(graph) is graph


def test_channels_that_are_idle_beside_live_ones_are_told() -> None:
    graph = bias(Net((5, 5, 1)).conv("conv", 3), 99, 0, 99).relu("relu").graph()
    kept = drop_clips(graph)
    assert kept.nodes == graph.nodes
    (decision,) = kept.decisions
    assert decision.certificate is not None and decision.certificate.channels == (0, 2)
    (entry,) = explain(graph, kept)
    assert entry.title == "Kept 'relu'"
    assert entry.reason.startswith("The rectifier is proven to change nothing in 2 of 3 channels, but it may act on ")


# --------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize("padding", [NONE, SAME, ((2, 0), (1, 2))])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_dead_channels_go_from_both_sides(
    padding: tuple[tuple[int, int], tuple[int, int]], stride: tuple[int, int]
) -> None:
    net = bias(Net((7, 7, 2), low=-1.0).conv("a", 4, padding=SAME), 0, -99, 1, -99).relu("relu")
    graph = net.conv("b", 3, stride=stride, padding=padding).relu("out").graph()
    pruned = prune_channels(graph)
    assert names(pruned) == ["a_kept:conv2d", "relu_kept:clip", "b:conv2d", "out:clip"]
    assert pruned.shapes["a_kept"][2] == 2
    node = pruned.node("b")
    assert isinstance(node, Conv2D) and node.classes.count == 1
    assert_same(graph, pruned)
    (decision,) = pruned.decisions
    assert decision.reason.startswith("2 of 4 channels (1, 3) of 'relu' are always 0: with inputs in -1 … 1, 'a' is ")
    assert decision.certificate is not None
    found = check(graph, decision.certificate, 1000)
    assert found.confirmed and not found.beaten


def stuck(padding: tuple[tuple[int, int], tuple[int, int]], outputs: int = 1) -> Graph:
    """A wide layer whose channels all but one are stuck at 6, and a thin one behind it."""
    net = bias(Net((7, 7, 9), low=-1.0).conv("a", 8, padding=SAME), 0, *[500] * 7).relu("relu6", 0.0, 6.0)
    return net.conv("b", outputs, padding=padding).relu("out").graph()


def test_a_constant_in_front_of_zero_padding_takes_border_classes() -> None:
    """A padded zero is not the constant: exact at every pixel of the border."""
    graph = stuck(SAME)
    pruned = prune_channels(graph)
    node = pruned.node("b")
    assert pruned.shapes["a_kept"][2] == 1
    assert isinstance(node, Conv2D) and node.classes.count == 9
    assert_same(graph, pruned)
    assert pruned.decisions[0].reason.endswith("with 3×3 border classes, since a padded zero is not that constant")

    plain = {key: array[1:2, 1:2] if key.startswith("b.") else array for key, array in pruned.weights.items()}
    broken = replace(node, classes=replace(node.classes, rows=(0,), cols=(0,)))
    nodes = tuple(broken if each is node else each for each in pruned.nodes)
    x_bhwc = np.random.default_rng(0).uniform(-1, 1, (5, 7, 7, 9))
    expected = evaluate(graph, x_bhwc, {"b"})["b"]
    wrong = evaluate(replace(pruned, nodes=nodes, weights=plain), x_bhwc, {"b"})["b"]
    assert relative_error(expected[:, 1:-1, 1:-1], wrong[:, 1:-1, 1:-1]) < EXACT
    assert relative_error(expected, wrong) > 0.01


def test_a_constant_without_padding_is_a_bias() -> None:
    graph = stuck(NONE)
    pruned = prune_channels(graph)
    node = pruned.node("b")
    assert isinstance(node, Conv2D) and node.classes.count == 1
    assert pruned.decisions[0].reason.endswith("what that adds to 'b' is part of its bias now")
    assert_same(graph, pruned)


def test_border_classes_that_cost_more_than_they_save_are_refused_unless_forced() -> None:
    graph = stuck(SAME, outputs=64)
    kept = prune_channels(graph)
    assert kept.nodes == graph.nodes
    (decision,) = kept.decisions
    assert not decision.taken and "it would not pay: the border classes take 5," in decision.reason
    (entry,) = explain(graph, kept)
    assert entry.title == "Pruned no channels of 'a'"
    forced = prune_channels(graph, Options(force=True))
    assert forced.shapes["a_kept"][2] == 1
    assert_same(graph, forced)


def test_constants_pass_pools_into_a_dense_layer() -> None:
    net = bias(Net((6, 6, 1)).conv("a", 3), -99, 0, 99).relu("relu", 0.0, 2.0).pool("pool")
    graph = net.dense("scores", 4).graph()
    pruned = prune_channels(graph)
    assert names(pruned) == ["a_kept:conv2d", "relu_kept:clip", "pool_kept:max_pool", "scores:dense"]
    assert pruned.shapes["pool_kept"] == (2, 2, 1)
    assert_same(graph, pruned)


def test_a_dense_layer_is_pruned_too() -> None:
    net = bias(Net((2, 2, 1)).dense("hidden", 3), -99, 0, 99).relu("relu", 0.0, 2.0)
    graph = net.dense("scores", 4).graph()
    pruned = prune_channels(graph)
    assert pruned.shapes["hidden_kept"] == (1, 1, 1)
    assert_same(graph, pruned)


def test_unread_channels_go_backward() -> None:
    """Without those that are dead, nothing reads what only they read."""
    net = bias(Net((8, 8, 1)).conv("a", 3), 0, 1, 2).relu("r1").conv("b", 2)
    net.weights["b.w"][..., 0, :, :, 2] = 0.0
    bias(net, 0, -999).relu("r2").conv("c", 2)
    graph = net.graph()
    pruned = prune_channels(graph)
    assert (pruned.shapes["a_kept"][2], pruned.shapes["r2_kept"][2]) == (2, 1)
    assert "1 of 3 channels (2) of 'r1' meets only weights of zero" in pruned.decisions[1].reason
    assert_same(graph, pruned)


def test_one_channel_is_left_where_all_could_go() -> None:
    graph = bias(Net((6, 6, 1)).conv("a", 3), -99, -99, -99).relu("relu").conv("b", 2).graph()
    pruned = prune_channels(graph)
    assert pruned.shapes["a_kept"][2] == 1
    assert prune_channels(pruned) is pruned
    assert_same(graph, pruned)


def test_channels_that_others_read_too_are_left() -> None:
    net = bias(Net((6, 6, 1)).conv("a", 3), -99, 0, 0).relu("relu").conv("b", 2)
    graph = net.behind("relu").conv("c", 2).graph("b", "c")
    assert prune_channels(graph) is graph


def test_dead_channels_gone_and_the_rest_idle_the_pair_is_one_layer() -> None:
    """Dead and idle channels in one rectifier: pruning opens the fold, in the second round."""
    net = bias(Net((8, 8, 2)).conv("a", 4, (1, 1)), 30, -30, 30, -30).relu("relu")
    graph = net.conv("b", 3, padding=SAME).graph()
    folded = fold(graph)
    assert names(folded) == ["b:conv2d"]
    assert [decision.rule for decision in folded.decisions] == ["prune", "drop_clip", "cascade"]
    assert_same(graph, folded)


def test_what_is_refused_is_final() -> None:
    """A refusal of an early round does not stay when a later round takes what it refused."""
    net = bias(Net((8, 8, 2)).conv("a", 4, (1, 1)), 30, -30, 30, -30).relu("relu")
    folded = fold(net.conv("b", 3, padding=SAME).graph())
    assert all(decision.taken for decision in folded.decisions)
    assert fold(folded) is folded


def test_nothing_is_proven_away_when_folding_is_off() -> None:
    graph = bias(Net((6, 6, 1)).conv("a", 3), -99, 99, 99).relu("relu").conv("b", 2).graph()
    off = Options(fold="off")
    assert drop_clips(graph, off) is graph
    assert prune_channels(graph, off) is graph
