"""A student is taken where it is nearly right and cheaper, and refused with its measured error elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from convfold.compiler.approximate import approximate
from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import evaluate, real_array
from convfold.compiler.explain import explain
from convfold.compiler.graph import Decision, Dense, Graph, Linear
from convfold.compiler.lossy import Budget, Evidence, spread_error
from convfold.compiler.numbers import IntArray, RealArray
from convfold.compiler.passes import fold
from convfold.compiler.verify import verify
from tests.compiler.passes.nets import SAME, Net


def pair(bias: float, behind: bool = True, spread: float = 0.3) -> Graph:
    """A convolution whose responses lie about ``bias``, a rectifier, a second one and perhaps its rectifier."""
    net = Net((8, 8, 2)).conv("first", 6, padding=SAME).relu("relu").conv("second", 3, (1, 1))
    graph = net.relu("last").graph() if behind else net.graph()
    w = spread * real_array(graph, "first.w")
    return replace(graph, weights={**graph.weights, "first.w": w, "first.b": np.full((1, 1, 6), bias)})


def images(count: int = 64, seed: int = 1) -> RealArray:
    return np.random.default_rng(seed).uniform(0.0, 1.0, (count, 8, 8, 2))


def labels(graph: Graph, x: RealArray) -> IntArray:
    """What the graph itself says, so that it has an accuracy of 100 %."""
    return np.asarray(evaluate(graph, x)[graph.outputs[0]].reshape(len(x), -1).argmax(axis=1), np.int64)


def last(graph: Graph) -> Decision:
    return next(decision for decision in reversed(graph.decisions) if decision.rule == "approximate")


@pytest.mark.parametrize("behind", [False, True])
def test_a_student_is_taken_where_the_rectifier_hardly_bends(behind: bool) -> None:
    graph = pair(1.5, behind)
    found = verify(approximate(graph, Budget(error=0.15), Evidence.of(images())), "approximate")
    assert [node.name for node in found.nodes] == ["image", "second", "last"][: 2 + behind]
    decision = last(found)
    assert (decision.taken, decision.layers) == (True, ("first", "relu", "second"))
    assert (decision.macs_before, decision.macs_after) == (8 * 8 * (6 * 18 + 3 * 6), 8 * 8 * 3 * 18)
    assert decision.error is not None and 1e-3 < decision.error <= 0.15
    assert re.match(
        r"^a 3×3 student takes 3,456 multiplies in place of 8,064 and has an error of [\d.]+ % of the spread of "
        r"'(last|second)' on images not fitted: within --error 0\.15$",
        decision.reason,
    )


def test_the_stated_error_is_that_on_the_images_held_out() -> None:
    graph, x = pair(1.5), images()
    found = approximate(graph, Budget(error=0.5), Evidence.of(x))
    one, other = (evaluate(net, x[3::4])["last"] for net in (graph, found))
    assert last(found).error == spread_error(one, other)


def test_the_error_holds_on_images_nobody_has_seen() -> None:
    graph = pair(1.5)
    found = approximate(graph, Budget(error=0.15), Evidence.of(images()))
    fresh = images(64, seed=9)
    assert spread_error(*(evaluate(net, fresh)["last"] for net in (graph, found))) < 0.16


@pytest.mark.parametrize("behind", [False, True])
def test_a_student_is_refused_where_the_rectifier_bends(behind: bool) -> None:
    graph = pair(-0.5, behind)
    found = approximate(graph, Budget(error=0.15), Evidence.of(images()))
    assert found.nodes == graph.nodes
    decision = last(found)
    assert not decision.taken
    assert decision.error is not None and decision.error > 0.15
    assert decision.reason.endswith(": more than --error 0.15 allows")
    assert f"{100 * decision.error:.3g} % of the spread" in decision.reason


def test_refinement_sees_the_rectifier_behind() -> None:
    """Where the last rectifier cuts most responses off, least squares to what stands in front of it would waste its taps."""
    graph = pair(0.3)
    graph = replace(graph, weights={**graph.weights, "second.b": real_array(graph, "second.b") - 2.0})
    x = images(128)
    through = last(approximate(graph, Budget(error=9.0), Evidence.of(x))).error
    bare = replace(graph, nodes=graph.nodes[:-1], outputs=("second",))
    straight = approximate(bare, Budget(error=9.0), Evidence.of(x))
    answers = (evaluate(net, x[3::4])["second"].clip(0.0) for net in (bare, straight))
    assert through is not None and through < 0.95 * spread_error(*answers)


def test_an_open_rectifier_costs_nothing_and_a_proof_takes_it_first() -> None:
    graph = pair(8.0)
    found = approximate(graph, Budget(error=1e-6), Evidence.of(images()))
    assert last(found).taken
    assert not any(decision.rule == "approximate" for decision in fold(graph).decisions)


def test_a_budget_of_accuracy_is_measured_on_labelled_images() -> None:
    graph, x = pair(0.2), images(200, seed=3)
    evidence = Evidence.of(images(), x, labels(graph, x))
    refused = last(approximate(graph, Budget(accuracy_drop=0.0), evidence))
    assert not refused.taken
    costs = re.search(r"and costs ([\d.]+) points of accuracy: more than --accuracy-drop 0 allows", refused.reason)
    assert costs is not None
    drop = float(costs[1])
    assert 0 < drop < 100
    found = approximate(graph, Budget(accuracy_drop=drop + 0.01), evidence)
    assert last(found).taken
    wrong = np.mean(labels(found, x) != labels(graph, x))
    assert 100 * wrong == pytest.approx(drop, abs=0.05)


def test_a_student_that_saves_nothing_is_refused() -> None:
    """Two 3×3 layers take 18 multiplies a pixel, one 5×5 takes 25."""
    graph = Net((8, 8, 2)).conv("first", 2, padding=SAME).relu("relu").conv("second", 2, padding=SAME).graph()
    decision = last(approximate(graph, Budget(error=9.0), Evidence.of(images())))
    assert not decision.taken and decision.reason.endswith(": that saves nothing")
    assert decision.macs_after > decision.macs_before


def test_a_forbidden_fold_is_forbidden_here_too() -> None:
    graph = pair(8.0)
    second = graph.node("second")
    assert isinstance(second, Linear)
    nodes = tuple(replace(second, fold="forbid") if node is second else node for node in graph.nodes)
    decision = last(approximate(replace(graph, nodes=nodes), Budget(error=9.0), Evidence.of(images())))
    assert decision.reason == "'second' must not be merged with what is in front of it"


def test_a_student_of_too_many_taps_is_not_fitted() -> None:
    graph = Net((8, 8, 90)).conv("first", 4, padding=SAME).relu("relu").conv("second", 4, padding=SAME).graph()
    decision = last(approximate(graph, Budget(error=9.0), Evidence.of(np.zeros((2, 8, 8, 90)))))
    assert decision.reason == "a student of 2,250 taps has more than the 2,048 that are fitted"
    assert decision.error is None


def test_students_of_students_are_measured_against_the_network_as_it_came() -> None:
    net = Net((8, 8, 2)).conv("a", 4, padding=SAME).relu("r1").conv("b", 4, (1, 1)).relu("r2").conv("c", 2, (1, 1))
    graph = net.graph()
    weights = dict(graph.weights)
    for name in "ab":
        weights |= {f"{name}.w": 0.3 * real_array(graph, f"{name}.w"), f"{name}.b": np.full((1, 1, 4), 1.2)}
    graph, x = replace(graph, weights=weights), images()
    found = approximate(graph, Budget(error=0.4), Evidence.of(x))
    taken = [decision for decision in found.decisions if decision.rule == "approximate" and decision.taken]
    assert [decision.layers for decision in taken] == [("a", "r1", "b"), ("b", "r2", "c")]
    one, other = (evaluate(net, x[3::4])["c"] for net in (graph, found))
    assert taken[-1].error == spread_error(one, other) <= 0.4


def test_a_student_has_the_geometry_of_its_pair() -> None:
    net = Net((9, 8, 2)).conv("first", 5, (3, 2), (2, 1), ((1, 0), (1, 1))).relu("relu")
    graph = net.conv("second", 2, (2, 3), (1, 2)).graph()
    graph = replace(graph, weights={**graph.weights, "first.b": np.full((1, 1, 5), 40.0)})
    x = np.random.default_rng(1).uniform(0.0, 1.0, (64, 9, 8, 2))
    found = approximate(graph, Budget(error=1e-6), Evidence.of(x))
    assert len(found.nodes) == 2
    assert found.shapes["second"] == graph.shapes["second"]


def test_a_dense_layer_behind_makes_the_student_dense() -> None:
    graph = Net((3, 3, 2)).conv("first", 8).relu("relu").dense("second", 3).graph()
    graph = replace(graph, weights={**graph.weights, "first.b": np.full((1, 1, 8), 40.0)})
    x = np.random.default_rng(1).uniform(0.0, 1.0, (64, 3, 3, 2))
    found = approximate(graph, Budget(error=1e-6), Evidence.of(x))
    assert isinstance(found.node("second"), Dense) and len(found.nodes) == 2


def test_explain_tells_what_was_measured() -> None:
    graph = pair(1.5)
    found = approximate(graph, Budget(error=0.15), Evidence.of(images()))
    text = str(explain(graph, found)[0])
    assert text.startswith("Approximated 'first', 'relu' and 'second' by one layer.")
    assert "Measured on images that were not fitted: differs by " in text


def test_without_images_or_labels_nothing_is_approximated() -> None:
    with pytest.raises(CompileError, match=r"^--approximate: fits layers to data, and there is none\n  fix: give images"):
        approximate(pair(1.5), Budget(error=0.1), Evidence())
    with pytest.raises(CompileError, match=r"^--accuracy-drop: needs labelled images"):
        approximate(pair(1.5), Budget(accuracy_drop=0.1), Evidence.of(images()))
    with pytest.raises(ValueError, match=r"^a student's budget must be an error or an accuracy drop, not --macs 5$"):
        approximate(pair(1.5), Budget(macs=5), Evidence.of(images()))
