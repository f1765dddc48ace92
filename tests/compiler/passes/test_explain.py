from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from convfold.compiler.explain import IMAGES, PCA_PADDING, PCA_TRAP, compare, explain, summarize
from convfold.compiler.graph import Decision, Graph
from convfold.compiler.passes import Options, fold
from convfold.compiler.spec import load_spec
from tests.compiler.passes.nets import SAME, Net
from tests.compiler.passes.proven import bias

ROOT = Path(__file__).resolve().parents[3]
ROUNDING = re.compile("equal to the last bit|exact, but for rounding of [^ ]+ of the greatest value")


def digits() -> Graph:
    return load_spec(ROOT / "examples/digits/digits.toml")


def proofs() -> Graph:
    """A channel that is always 0 and two that never are, two limits that never act and one that does."""
    net = bias(Net((6, 6, 1)).conv("first", 3), 20, -20, 20).relu("relu").conv("second", 2, (1, 1))
    return net.relu("late", 0.0, 1e6).conv("third", 2).pool("pool").graph()


def blocks() -> Graph:
    """Three branches, and a tensor with two readers."""
    net = Net((8, 8, 4)).conv("stem", 4).conv("wide", 4, padding=SAME).norm("wide_norm")
    net.behind("stem").conv("point", 4, (1, 1)).behind("stem").norm("norm").add("sum", "wide_norm", "point")
    net.relu("relu").conv("shared", 2, (1, 1)).dropout("drop").conv("left", 2, (1, 1))
    return net.behind("drop").conv("right", 2, (1, 1)).graph("left", "right")


def padded() -> Graph:
    """A projection in front of a padded convolution, an average in front of a dense layer, pixels that are written."""
    net = Net((8, 8, 3)).pca("project", 3, whiten=True).conv("edges", 4, padding=SAME).relu("relu6", 0.0, 6.0)
    return net.upsample("up").conv("mix", 2, (3, 3), padding=SAME).global_average("mean").dense("scores", 3).graph()


@pytest.mark.parametrize("network", [digits, proofs, blocks, padded], ids=lambda network: network.__name__)
def test_every_word_equals_the_expect_file(network: Callable[[], Graph]) -> None:
    before = network()
    after = fold(before)
    told = "\n".join([f"{summarize(before, after)}.", *map(str, explain(before, after)), f"{compare(before, after)}."])
    expected = Path(__file__).parent / "expect" / f"explain_{network.__name__}.expect"
    assert ROUNDING.sub("exact", told) + "\n" == expected.read_text("utf-8")


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
    assert lines[2] == "  Multiplies a frame: 15,104."
    assert lines[3].startswith(
        "  On 4 random inputs the rectifier changes 68 % of the values: 'project' is proven to lie within -14.33 … "
    )
    assert lines[3].endswith("Or train with it behind 'deep', or let --approximate fit one layer to data.")
    assert str(explain(net, fold(net))[6]).endswith("Or train with it behind 'scores'.")  # there is a pool as well


def test_a_fold_that_would_not_pay_shows_both_counts() -> None:
    graph = Net((8, 8, 1)).conv("wide", 8).conv("thin", 1, (1, 1)).conv("last", 8).graph()
    refused = explain(graph, fold(graph))[-1]
    assert refused.title == "Kept 'wide + thin' and 'last' apart"
    assert refused.multiplies == "Multiplies a frame: 1,476 apart, 3,200 as one"


def test_the_trap_stands_beside_every_folded_projection(net: Graph) -> None:
    assert [e.note for e in explain(net, fold(net)) if e.note and e.decision.taken] == [PCA_TRAP]
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


def test_a_rectifier_that_only_data_leave_alone_is_not_called_proven() -> None:
    graph = bias(Net((8, 8, 1)).conv("a", 1), 0.0).relu("relu").conv("b", 1).graph()
    graph = replace(graph, weights={**graph.weights, "a.w": np.array([1, -1, 0] * 3).reshape(1, 1, 1, 3, 3, 1) / 1.0})
    (kept,) = explain(graph, fold(graph), np.zeros((5, 8, 8, 1)))
    assert kept.note.startswith(
        "On 5 images the rectifier changes nothing, but that is only seen: 'a' is proven to lie within -3 … 3"
    )


def test_what_is_proven_needs_no_advice(net: Graph) -> None:
    graph = bias(Net((8, 8, 1)).conv("a", 1), 20.0).relu("relu").conv("b", 1).graph()
    (kept,) = explain(graph, fold(graph, Options(fold="off")))
    assert kept.note == ""


def test_folds_are_measured_on_images(rng: np.random.Generator) -> None:
    graph = Net((8, 8, 2)).conv("a", 2, (1, 1)).conv("b", 2, padding=SAME).pool("pool").graph()
    after = fold(graph, Options(fold="interior"))
    merged = explain(graph, after, rng.uniform(size=(IMAGES + 1, 8, 8, 2)))[0]
    assert merged.check.startswith(f"Checked on {IMAGES} images: NOT exact, differs by up to ")
    assert compare(graph, after, np.zeros((2, 8, 8, 2))).startswith("The network as a whole, on 2 images: NOT exact")
    assert explain(graph, graph, np.zeros((2, 8, 8, 2))) == ()


def test_a_fold_that_was_folded_again_keeps_its_own_check(net: Graph) -> None:
    folded = explain(net, fold(net), np.zeros((1, 8, 8, 1)))
    assert [entry.check.partition(":")[0] for entry in folded if entry.check] == [
        "Checked on 4 random inputs",  # 'norm' is a part of 'project' now
        "Checked on 1 images",
        "Checked on 1 images",
        "Checked on 1 images",
    ]


def test_a_script_can_read_all_of_it(net: Graph) -> None:
    for network in (digits(), proofs(), net):
        (entry, *_) = json.loads(json.dumps([asdict(entry) for entry in explain(network, fold(network))]))
        assert {"title", "reason", "proof", "multiplies", "check", "note", "decision"} == entry.keys()


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
