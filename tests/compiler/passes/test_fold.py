"""The folds as a whole, on random networks, against the Toeplitz oracle."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convfold.compiler.errors import InternalError
from convfold.compiler.graph import BatchNorm, BorderClasses, Conv2D, Dense, Graph, graph_macs
from convfold.compiler.passes import Options, fold, fold_order, pass_name
from tests.compiler.passes.nets import SAME, Net, random_chain
from tests.oracle import difference, toeplitz

SEEDS = range(240)
EXACT = 1e-9
PAIR = Net((7, 7, 2)).conv("first", 3, padding=SAME).conv("second", 2, padding=SAME)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_folded_network_equals_the_composed_affine_map(seed: int) -> None:
    graph = random_chain(seed)
    reference = toeplitz(graph)
    options = Options(force=seed % 2 == 1)
    folded = fold(graph, options)
    assert all(isinstance(node, Conv2D | Dense | BatchNorm) for node in folded.nodes[1:])
    for name, affine in toeplitz(folded).items():
        assert difference(reference[name], affine) < EXACT
    taken = [decision for decision in folded.decisions if decision.taken]
    assert all(decision.error is not None and decision.error < EXACT for decision in taken)
    saved = sum(decision.macs_before - decision.macs_after for decision in taken)
    assert saved == graph_macs(graph) - graph_macs(folded)
    assert fold(folded, options) is folded


def test_the_random_networks_cover_what_they_claim() -> None:
    graphs = [random_chain(seed) for seed in SEEDS]
    convs = [(graph, node) for graph in graphs for node in graph.nodes if isinstance(node, Conv2D)]
    kernels = [graph.weights[f"{node.name}.w"].shape[3:5] for graph, node in convs]
    assert {size for kernel in kernels for size in kernel} == {1, 2, 3, 4, 5}
    assert any(kh != kw for kh, kw in kernels)
    assert {step for _, node in convs for step in node.stride} == {1, 2, 3}
    assert any(before != after for _, node in convs for before, after in node.padding)
    assert any(2 * node.padding[0][0] > kh + 1 for (_, node), (kh, _) in zip(convs, kernels, strict=True))
    assert {node.op for graph in graphs for node in graph.nodes} == {
        "input",
        "conv2d",
        "dense",
        "batch_norm",
        "pca",
    }
    forced = [fold(graph, Options(force=True)) for graph in graphs[1::2]]
    folds = [node for graph in forced for node in graph.nodes if isinstance(node, Conv2D)]
    assert sum(node.classes.count > 1 for node in folds) > len(forced) / 3
    assert max(node.classes.count for node in folds) >= 20


def test_the_oracle_rejects_the_plain_fold_without_border_classes() -> None:
    graph = PAIR.graph()
    folded = fold(graph, Options(force=True))
    node = folded.node("second")
    assert isinstance(node, Conv2D) and node.classes.count == 9
    plain = {key: array[1:2, 1:2] for key, array in folded.weights.items()}
    broken = replace(folded, nodes=(folded.nodes[0], replace(node, classes=BorderClasses())), weights=plain)
    assert difference(toeplitz(graph)["second"], toeplitz(folded)["second"]) < EXACT
    assert difference(toeplitz(graph)["second"], toeplitz(broken)["second"]) > 0.1


@pytest.mark.parametrize(("part", "index"), [("second.w", (1, 1, 0, 2, 2, 0)), ("second.b", (1, 1, 0))])
def test_the_oracle_rejects_one_wrong_weight(part: str, index: tuple[int, ...]) -> None:
    graph = PAIR.graph()
    folded = fold(graph, Options(force=True))
    array = folded.weights[part].copy()
    array[index] += 1e-6 * np.abs(array).max()
    broken = replace(folded, weights={**folded.weights, part: array})
    assert difference(toeplitz(graph)["second"], toeplitz(broken)["second"]) > EXACT


def test_the_oracle_rejects_padding_on_the_wrong_side() -> None:
    graph = Net((6, 6, 1)).conv("first", 2, (4, 4)).conv("second", 2, padding=((1, 0), (1, 0))).graph()
    node = graph.node("second")
    assert isinstance(node, Conv2D)
    moved = replace(graph, nodes=(*graph.nodes[:-1], replace(node, padding=((0, 1), (0, 1)))))
    assert difference(toeplitz(graph)["second"], toeplitz(moved)["second"]) > 0.1


def test_what_is_nothing_but_linear_becomes_one_layer() -> None:
    net = Net((6, 6, 2)).pca("p0", 2).norm("n0").conv("c1", 4, padding=SAME).norm("n1").pca("p1", 2)
    graph = net.norm("n2").conv("c2", 3, padding=SAME).dense("scores", 3).norm("n3").graph()
    folded = fold(graph)
    assert str(folded).splitlines()[1:] == ["n3: 1×1×3 = dense(image)", "return n3"]
    assert difference(toeplitz(graph)["n3"], toeplitz(folded)["n3"]) < EXACT


def test_every_pass_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = []

    def spy(graph: Graph, stage: str) -> Graph:
        stages.append(stage)
        return graph

    monkeypatch.setattr("convfold.compiler.passes.verify", spy)
    fold(PAIR.graph())
    assert stages == [pass_name(step) for step in fold_order()]


def test_a_pass_that_breaks_the_graph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def stray_array(graph: Graph) -> Graph:
        return replace(graph, weights={**graph.weights, "stray.w": np.zeros(1)})

    monkeypatch.setattr("convfold.compiler.passes.fold_order", lambda _options: (stray_array,))
    with pytest.raises(InternalError, match=r"^bug in convfold: after stray_array: "):
        fold(PAIR.graph())


def test_an_unknown_mode_is_refused() -> None:
    mode: Any = "none"
    message = "fold must be one of exact, interior, off, not 'none'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Options(fold=mode)
