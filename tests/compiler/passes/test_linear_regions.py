"""Chains and branches of every linear operator, against the Toeplitz oracle; broken rules, which it must reject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import Conv2D, FoldRule, Graph, Linear, Node
from convfold.compiler.passes import Options, fold
from convfold.compiler.passes.algebra import ConvMap
from convfold.compiler.passes.fold_branches import fold_branches
from convfold.compiler.quantize import quantize
from tests.compiler.passes.nets import NONE, SAME, Net, random_linear
from tests.oracle import Affine, difference, toeplitz

EXACT = 1e-9
FORCE = Options(force=True)
SEEDS, BATCH = 2100, 50
OPERATORS = {
    "add", "average_pool", "batch_norm", "channel_shuffle", "concat", "conv2d", "dense", "depth_to_space", "dropout",
    "flatten", "pca", "scale_bias", "slice", "upsample",
}  # fmt: skip


def with_word(node: Node, word: FoldRule) -> Node:
    assert isinstance(node, Linear)
    return replace(node, fold=word)


def end(graph: Graph) -> Affine:
    return toeplitz(graph)[graph.outputs[0]]


def error(graph: Graph, options: Options = FORCE) -> float:
    return difference(end(graph), end(fold(graph, options)))


# ------------------------------------------------------------------------------------------------- every linear graph


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_random_linear_graphs_equal_the_oracle(first: int) -> None:
    for seed in range(first, first + BATCH):
        graph = random_linear(seed)
        reference = end(graph)
        x_bhwc = np.random.default_rng(seed).normal(size=(2, *graph.input.shape))
        found = evaluate(graph, x_bhwc)[graph.outputs[0]].reshape(2, -1)
        expected = x_bhwc.reshape(2, -1) @ reference[0].T + reference[1]
        assert np.abs(found - expected).max() < 1e-11 * max(1.0, np.abs(expected).max()), seed

        forced = seed % 2 == 1
        folded = fold(graph, Options(force=forced))
        assert difference(reference, end(folded)) < EXACT, seed
        assert not forced or len(folded.nodes) == 2, seed
        assert all(decision.error is None or decision.error < EXACT for decision in folded.decisions), seed


@pytest.mark.parametrize("seed", range(40))
def test_a_folded_graph_is_stable_and_can_be_quantized(seed: int) -> None:
    folded = fold(random_linear(seed))
    assert fold(folded) is folded
    quantize(folded)


def test_the_random_graphs_cover_what_they_claim() -> None:
    graphs = [random_linear(seed) for seed in range(SEEDS)]
    convs = [node for graph in graphs for node in graph.nodes if isinstance(node, Conv2D)]
    assert {node.op for graph in graphs for node in graph.nodes} == {"input", *OPERATORS}
    assert sum(any(len(graph.consumers(node.name)) > 1 for node in graph.nodes) for graph in graphs) > SEEDS / 3
    assert sum(padded_inside(graph) for graph in graphs) >= 200
    assert sum(node.groups > 1 for node in convs) > 200
    assert sum(node.groups == graph.shapes[node.inputs[0]][2] > 1 for graph in graphs for node in graph.nodes
               if isinstance(node, Conv2D)) > 100  # fmt: skip
    assert {step for node in convs for step in node.dilation} == {1, 2, 3}
    assert {step for node in convs for step in node.stride} >= {1, 2, 3, 4}
    assert sum(graph.input.shape[1] == 1 for graph in graphs) > 100  # 1-D


def padded_inside(graph: Graph) -> bool:
    """Whether a layer pads a tensor that another layer made."""
    inner = (node for node in graph.nodes if graph.input.name not in node.inputs)
    return any(getattr(node, "padding", NONE) != NONE for node in inner)


# ----------------------------------------------------------------------------------------------------- broken rules

Rule = Callable[..., ConvMap]


def keep_bias(rule: Rule) -> Rule:
    return lambda conv: conv


def shift_branch(rule: Rule) -> Rule:
    """Lay the kernels over each other at their first taps, not at the samples they read."""

    def broken(first: ConvMap, second: ConvMap) -> ConvMap:
        small, large = sorted((first, second), key=lambda conv: conv.kernel)
        return rule(large, replace(small, padding=large.padding))

    return broken


def one_class(rule: Rule) -> Rule:
    """Use the interior's kernel everywhere."""
    return lambda first, second, *, interior=False: rule(first, second, interior=True)


def first_channels(rule: Rule) -> Rule:
    """Let every tensor of a stack read the weights of the first."""
    return lambda conv, start, stop: rule(conv, 0, stop - start)


def swapped_order(rule: Rule) -> Rule:
    return lambda conv, node, shape, block, *, crd: rule(conv, node, shape, block, crd=not crd)


def no_zeros(rule: Rule) -> Rule:
    """Forget that groups read their own channels."""

    def broken(graph: Graph, node: Node) -> ConvMap:
        conv = rule(graph, node)
        if isinstance(node, Conv2D) and node.groups > 1:
            return replace(conv, w_rcohwi=conv.w_rcohwi + np.flip(conv.w_rcohwi, axis=5))
        return conv

    return broken


def counted_padding(rule: Rule) -> Rule:
    """Divide every average by the whole window."""
    return lambda graph, node: rule(graph, replace(node, count_include_pad=True) if node.op == "average_pool" else node)


def shuffled_back(rule: Rule) -> Rule:
    def broken(graph: Graph, node: Node) -> ConvMap:
        conv = rule(graph, node)
        return replace(conv, w_rcohwi=conv.w_rcohwi.swapaxes(2, 5)) if node.op == "channel_shuffle" else conv

    return broken


BROKEN: dict[str, tuple[str, str, Callable[[Rule], Rule], Graph]] = {
    "a join gives its bias to every branch": (
        "fold_branches",
        "unbiased",
        keep_bias,
        Net((4, 4, 2)).conv("a", 2, (1, 1)).add("sum", "image").norm("n").add("outer", "image").graph(),
    ),
    "kernels are laid corner on corner": (
        "fold_branches",
        "add",
        shift_branch,
        Net((5, 5, 2)).conv("a", 2, padding=SAME).behind("image").conv("b", 2, (1, 1)).add("sum", "a").graph(),
    ),
    "no border classes": (
        "algebra",
        "compose",
        one_class,
        Net((5, 5, 2)).conv("a", 2, (1, 1)).conv("b", 2, padding=SAME).add("sum", "image").graph(),
    ),
    "a stack is read from its start": (
        "fold_branches",
        "reads",
        first_channels,
        Net((5, 5, 2)).conv("a", 2).behind("image").conv("b", 2).concat("both", "a").conv("c", 3).graph(),
    ),
    "blocks in the other order": (
        "algebra",
        "_unblock",
        swapped_order,
        Net((3, 3, 8)).depth_to_space("d").conv("c", 2, (2, 2), (2, 2)).graph(),
    ),
    "groups without zeros": (
        "algebra",
        "node_map",
        no_zeros,
        Net((4, 4, 4)).conv("a", 4, padding=SAME, groups=2).add("sum", "image").graph(),
    ),
    "padding counts in every average": (
        "algebra",
        "node_map",
        counted_padding,
        Net((4, 4, 2)).average("a", (3, 3), (1, 1), SAME).add("sum", "image").graph(),
    ),
    "a shuffle the other way round": (
        "algebra",
        "node_map",
        shuffled_back,
        Net((3, 3, 6)).shuffle("s", 2).add("sum", "image").graph(),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_oracle_rejects_a_broken_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home, rule, wrong, graph = BROKEN[name]
    module = import_module(f"convfold.compiler.passes.{home}")
    assert error(graph) < EXACT
    monkeypatch.setattr(module, rule, wrong(getattr(module, rule)))
    assert error(graph) > 1e-3


# --------------------------------------------------------------------------------------------------------- one by one


def test_upsampling_is_folded_into_a_convolution_that_steps_over_whole_blocks() -> None:
    graph = Net((4, 4, 3)).upsample("up").norm("n").conv("c", 2, padding=((1, 0), (1, 0)), stride=(2, 2)).graph()
    folded = fold(graph)
    assert [node.op for node in folded.nodes[1:]] == ["conv2d"]
    assert error(graph, Options()) < EXACT


def test_a_dense_layer_reads_any_blocks() -> None:
    graph = Net((2, 3, 4)).depth_to_space("d", order="CRD").upsample("up", (3, 2)).dense("scores", 3).graph()
    folded = fold(graph)
    assert str(folded).splitlines()[1:] == ["scores: 1×1×3 = dense(image)", "return scores"]
    assert error(graph) < EXACT


def test_a_1d_network_is_one_of_width_1() -> None:
    net = Net((40, 1, 2)).conv("a", 4, (5, 1), (2, 1), ((2, 2), (0, 0)), dilation=(2, 1)).norm("n")
    graph = net.average("p", (2, 1), (2, 1)).conv("b", 3, (3, 1), padding=((1, 1), (0, 0))).graph()
    folded = fold(graph, FORCE)
    (node,) = folded.nodes[1:]
    assert isinstance(node, Conv2D) and node.stride == (4, 1)
    assert folded.weights["b.w"].shape[4] == 1
    assert error(graph) < EXACT


def test_a_depthwise_separable_pair_stays_one_where_it_multiplies_less() -> None:
    graph = Net((6, 6, 8)).conv("depth", 8, padding=SAME, groups=8).norm("n").conv("point", 4, (1, 1)).graph()
    folded = fold(graph)
    depth = folded.node("n")
    assert isinstance(depth, Conv2D) and depth.groups == 8
    assert folded.weights["n.w"].shape == (1, 1, 8, 3, 3, 1)
    assert folded.decisions[-1].reason == (
        "it would not pay: 3×3 in 8 groups and then 1×1 are one larger kernel, which takes 10,368 multiplies instead of "
        "3,744. Force it if fewer layers matter more"
    )
    assert [node.name for node in fold(graph, FORCE).nodes] == ["image", "point"]
    assert error(graph) < EXACT


def test_a_depthwise_layer_folds_into_a_thin_one() -> None:
    """One output channel has no use for eight of its own."""
    graph = Net((6, 6, 8)).conv("depth", 8, padding=SAME, groups=8).conv("point", 1, (1, 1)).graph()
    folded = fold(graph)
    assert [node.name for node in folded.nodes] == ["image", "point"]
    assert error(graph, Options()) < EXACT


def test_branches_of_groups_stay_where_they_multiply_less() -> None:
    net = Net((6, 6, 8)).conv("a", 8, padding=SAME, groups=8).behind("image").conv("b", 8, padding=SAME, groups=8)
    graph = net.add("sum", "a").graph()
    folded = fold(graph)
    assert [node.op for node in folded.nodes[1:]] == ["conv2d", "conv2d", "add"]
    assert folded.decisions[-1].reason == (
        "it would not pay: the branches that meet in 'sum' as one kernel with all its zeros take 20,736 multiplies instead "
        "of 5,184. Force it if fewer layers matter more"
    )
    assert len(fold(graph, FORCE).nodes) == 2
    assert error(graph) < EXACT


def test_what_only_moves_samples_stays_where_no_neighbour_takes_it() -> None:
    net = Net((4, 4, 4)).shuffle("s", 2).slice("cut", 1, 3).crop("crop", ((1, 0), (0, 1))).space_to_depth("d", (3, 3))
    graph = net.pad("p", SAME, 0.5).reshape("r", (9, 1, 18)).graph()
    folded = fold(graph)
    ops = ["channel_shuffle", "slice", "crop", "space_to_depth", "pad", "reshape"]
    assert [node.op for node in folded.nodes[1:]] == ops
    assert fold(folded) is folded
    assert [node.op for node in fold(graph, FORCE).nodes[1:]] == ["conv2d", "reshape"]
    assert error(graph) < EXACT


def test_nested_branches_are_folded_as_a_whole() -> None:
    net = Net((5, 5, 2)).conv("a", 2, padding=SAME).behind("image").conv("b", 2, (1, 1)).add("inner", "a").norm("n")
    graph = net.conv("c", 2, padding=SAME).add("outer", "inner", "image").graph()
    folded = fold_branches(graph)
    (decision,) = folded.decisions
    assert decision.layers == ("a", "b", "inner", "n", "c", "outer")
    assert decision.reason == (
        "all between 'image' and 'outer' is linear: 3 branches add up to one 5×5 kernel; "
        "zero padding stands inside, so 3×3 border classes keep it exact"
    )
    assert difference(end(graph), end(folded)) < EXACT


def test_a_tensor_added_to_itself_is_its_double() -> None:
    net = Net((3, 3, 2)).conv("a", 2)
    graph = net.add("sum", "a").graph()
    folded = fold(graph)
    assert [node.op for node in folded.nodes[1:]] == ["conv2d"]
    assert error(graph) < EXACT


def test_a_join_whose_inner_branch_is_needed_later_is_folded_with_the_later_one() -> None:
    """As in dense nets: the first sum is read by the second as well."""
    net = Net((4, 4, 2)).conv("a", 2, padding=SAME).add("first", "image").conv("b", 2, padding=SAME)
    graph = net.concat("all", "first", "a").graph()
    assert len(fold(graph, FORCE).nodes) == 2
    assert error(graph) < EXACT


def test_branches_in_interior_mode_have_one_kernel_and_say_so() -> None:
    graph = Net((6, 6, 2)).conv("a", 2, padding=SAME).conv("b", 2, padding=SAME).add("sum", "image").graph()
    folded = fold(graph, Options(fold="interior"))
    (node,) = folded.nodes[1:]
    assert isinstance(node, Conv2D) and node.classes.count == 1
    (decision,) = folded.decisions
    assert "zero padding stands inside, but the interior's kernel is used everywhere, as asked" in decision.reason
    assert decision.error is not None and decision.error > 1e-3


# ----------------------------------------------------------------------------------------------------------- refused


def kept(graph: Graph, options: Options = FORCE) -> str:
    """Why the branches of a network are still there."""
    folded = fold(graph, options)
    (reason,) = (decision.reason for decision in folded.decisions if decision.rule == "branches")
    assert any(len(node.inputs) > 1 for node in folded.nodes)
    assert fold(folded, options) is folded
    return reason


def test_a_rectifier_in_a_branch_is_named() -> None:
    graph = Net((4, 4, 2), low=-1.0).conv("a", 2, padding=SAME).relu("r").add("sum", "image").graph()
    assert kept(graph) == (
        "clip (r) stands in the branches that meet in 'sum': it bends, so they are not one affine map"
    )


def test_a_reader_outside_is_named() -> None:
    net = Net((4, 4, 2), low=-1.0).conv("a", 2, padding=SAME).add("sum", "image").relu("r").behind("a").relu("s")
    assert kept(net.graph("r", "s")) == "'a' in the branches that meet in 'sum' is also needed by 's'"
    net = Net((4, 4, 2)).conv("a", 2, padding=SAME).add("sum", "image")
    assert kept(net.graph("sum", "a")).endswith("is also needed by the network's output")


def test_branches_of_different_steps_are_refused() -> None:
    pad = ((0, 3), (0, 0))
    net = Net((5, 1, 2)).conv("a", 2, (1, 1), (2, 1)).behind("image").conv("b", 2, (1, 1), (3, 1), pad)
    assert kept(net.add("sum", "a").graph()) == (
        "the branches that meet in 'sum' are no convolution together: its branches read every 3. and every 2. sample "
        "of the same input"
    )


def test_blocks_that_are_read_in_parts_are_refused() -> None:
    net = Net((4, 4, 2)).upsample("up").conv("a", 2, padding=SAME).add("sum", "up")
    folded = fold(net.graph(), FORCE)
    assert [node.op for node in folded.nodes[1:]] == ["upsample", "conv2d"]
    graph = Net((4, 4, 2)).conv("f", 2, (1, 1)).upsample("up").conv("a", 2, padding=SAME).graph()
    (decision,) = fold(graph, FORCE).decisions
    assert decision.reason == (
        "upsample (up) writes blocks of 2×2 pixels, and what reads them steps by 1×1: no stride in the input equals "
        "that. Give the reader a stride that is a multiple of the block to have one layer"
    )


def test_branches_are_kept_when_folding_is_off() -> None:
    graph = Net((4, 4, 2)).conv("a", 2, padding=SAME).add("sum", "image").graph()
    assert kept(graph, Options(fold="off")).startswith("folding is off: the branches that meet in 'sum' are linear.")


# ---------------------------------------------------------------------------------------------------- the user's word


def test_a_layer_forbids_to_be_merged_with_the_one_in_front() -> None:
    net = Net((6, 6, 2)).conv("a", 2, (1, 1)).conv("b", 2, (1, 1), fold="forbid").conv("c", 2, (1, 1))
    folded = fold(net.graph(), FORCE)
    assert [node.name for node in folded.nodes[1:]] == ["a", "c"]
    assert folded.decisions[-1].reason == "'c' forbids it: one layer would take 144 multiplies instead of 288"
    assert fold(folded, FORCE) is folded


def test_a_layer_forces_a_fold_that_does_not_pay() -> None:
    def chain(word: FoldRule) -> Graph:
        net = Net((9, 9, 8)).conv("thin", 1, padding=SAME).conv("wide", 8, padding=SAME)
        nodes = (*net.nodes[:-1], with_word(net.nodes[-1], word))
        return replace(net.graph(), nodes=nodes)

    assert len(fold(chain("auto")).nodes) == 3
    assert len(fold(chain("force")).nodes) == 2


def test_a_norm_and_a_projection_that_forbid_it_stay_apart() -> None:
    net = Net((6, 6, 2)).conv("a", 3).norm("n").pca("p", 2)
    for index, expected in ((2, ["a", "p"]), (3, ["n", "p"])):
        nodes = list(net.nodes)
        nodes[index] = with_word(nodes[index], "forbid")
        folded = fold(replace(net.graph(), nodes=tuple(nodes)), FORCE)
        assert [node.name for node in folded.nodes[1:]] == expected
        assert difference(end(net.graph()), end(folded)) < EXACT


def test_a_branch_that_forbids_it_keeps_the_join() -> None:
    net = Net((4, 4, 2)).conv("a", 2, (1, 1)).conv("b", 2, padding=SAME, fold="forbid").add("sum", "image")
    assert kept(net.graph()) == "'b' in the branches that meet in 'sum' forbids it"


def test_the_first_layer_of_a_branch_speaks_for_the_whole() -> None:
    net = Net((4, 4, 2)).conv("front", 2, (1, 1)).conv("a", 2, padding=SAME, fold="forbid").add("sum", "front")
    folded = fold(net.graph(), FORCE)
    assert [node.name for node in folded.nodes[1:]] == ["front", "sum"]
