from __future__ import annotations

from dataclasses import replace

import pytest

from convfold.compiler.explain import PCA_PADDING, PCA_TRAP, explain, summarize
from convfold.compiler.graph import Decision, Graph
from convfold.compiler.passes import Options, fold
from tests.compiler.passes.nets import SAME, Net


@pytest.fixture(scope="module")
def net() -> Graph:
    net = Net((8, 8, 1)).conv("edges", 8, padding=SAME).norm("norm").pca("project", 4).relu("relu")
    return net.conv("mid", 8).conv("deep", 8).pool("pool").relu("late").dense("scores", 10).graph()


def test_every_decision_has_a_title_in_the_names_of_the_user(net: Graph) -> None:
    assert [explanation.title for explanation in explain(net, fold(net))] == [
        "Kept 'relu'",
        "Folded 'norm' into 'edges'",
        "Folded 'project' into 'edges + norm'",
        "Moved 'late' in front of 'pool'",
        "Merged 'mid' and 'deep' into one layer",
        "Kept 'edges + norm + project' and 'mid + deep' apart",
        "Kept 'mid + deep' and 'scores' apart",
    ]


def test_a_taken_fold_reads_as_a_paragraph(net: Graph) -> None:
    merged = fold(net)
    decision = replace(merged.decisions[4], error=3e-16)
    (explanation,) = explain(net, replace(merged, decisions=(decision,)))
    assert str(explanation).splitlines() == [
        "Merged 'mid' and 'deep' into one layer.",
        "  3×3 and then 3×3 are one 5×5: taps at u1 + u2·s1, bias b2 + Σ w2·b1; 864 weights become 800.",
        "  Multiplies a frame: 19,584 → 12,800 (−35 %).",
        "  Checked on 4 random inputs: exact, but for rounding of 3.0e-16 of the greatest value.",
    ]


def test_a_refused_fold_says_why_and_what_would_change_it(net: Graph) -> None:
    lines = str(explain(net, fold(net))[5]).splitlines()
    assert lines[1].startswith(
        "  A live rectifier stands between (relu): it bends, so the pair is not one affine map"
    )
    assert lines[1].endswith("Train without it to have one layer.")
    assert lines[2:] == ["  Multiplies a frame: 15,104."]


def test_a_fold_that_would_not_pay_shows_both_counts() -> None:
    graph = Net((8, 8, 1)).conv("wide", 8).conv("thin", 1, (1, 1)).conv("last", 8).graph()
    refused = explain(graph, fold(graph))[-1]
    assert refused.title == "Kept 'wide + thin' and 'last' apart"
    assert refused.multiplies == "Multiplies a frame: 1,476 apart, 3,200 as one"


def test_the_trap_stands_beside_every_folded_projection(net: Graph) -> None:
    assert [e.note for e in explain(net, fold(net)) if e.note] == [PCA_TRAP]
    assert "(1 − Σ patch)·mᵀQ" in PCA_TRAP


def test_a_projection_that_folds_forward_explains_the_padding() -> None:
    graph = Net((8, 8, 3)).pca("project", 2).conv("conv", 2, padding=SAME).graph()
    lowered, merged = explain(graph, fold(graph, Options(force=True)))
    assert lowered.title == "Rewrote 'project' as a convolution"
    assert lowered.note == PCA_PADDING
    assert "3×3 border classes" in merged.reason


def test_a_border_that_differs_is_said_loudly() -> None:
    graph = Net((8, 8, 2)).conv("a", 2, (1, 1)).conv("b", 2, padding=SAME).graph()
    (merged,) = explain(graph, fold(graph, Options(fold="interior")))
    assert merged.check.startswith("Checked on 4 random inputs: NOT exact, differs by up to ")
    assert merged.check.endswith(" % of the greatest value")


def test_only_what_came_after_is_explained(net: Graph) -> None:
    once = fold(net)
    assert explain(once, once) == ()


def test_a_rule_without_words_of_its_own_is_named(net: Graph) -> None:
    decision = Decision("squeeze", ("edges", "norm"), True, "dead", 10, 0)
    (explanation,) = explain(net, replace(net, decisions=(decision,)))
    assert str(explanation).splitlines() == [
        "Changed 'edges' and 'norm' (squeeze).",
        "  Dead.",
        "  Multiplies a frame: 10 → 0 (−100 %).",
    ]


def test_the_summary_is_one_sentence(net: Graph) -> None:
    assert summarize(net, fold(net)) == (
        "net: 9 layers became 6, 27,072 → 15,424 (−43 %) multiplies a frame; 4 folds, 3 refused"
    )
