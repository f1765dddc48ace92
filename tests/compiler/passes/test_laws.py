"""What holds of every pass; `CASES` has one network a pass, whose printed form stands in ``expect/``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import Graph, graph_macs
from convfold.compiler.passes import FoldMode, Options, fold, fold_order, pass_name
from convfold.compiler.passes.drop_clips import drop_clips
from convfold.compiler.passes.drop_identities import drop_identities
from convfold.compiler.passes.fold_batchnorm import fold_batchnorm
from convfold.compiler.passes.fold_branches import fold_branches
from convfold.compiler.passes.fold_cascades import fold_cascades
from convfold.compiler.passes.fold_pad import fold_pad
from convfold.compiler.passes.fold_pca import fold_pca
from convfold.compiler.passes.hoist_clip import hoist_clip
from convfold.compiler.passes.lower_linear import lower_linear
from convfold.compiler.passes.prune_channels import prune_channels
from convfold.compiler.verify import verify
from tests.compiler.passes.nets import SAME, Net
from tests.compiler.passes.proven import bias

BRANCHES = Net((8, 8, 2)).conv("wide", 2, padding=SAME).behind("image").conv("point", 2, (1, 1))
PRUNABLE = bias(Net((8, 8, 1)).conv("dark", 4), 1, -9, 1, 1)

CASES: dict[Callable[[Graph], Graph], Graph] = {
    drop_identities: Net((2, 2, 3)).dropout("drop").dense("scores", 4).graph(),
    fold_pad: Net((8, 8, 2)).pad("border").conv("edges", 4).graph(),
    fold_branches: BRANCHES.behind("wide").add("sum", "point", "image").graph(),
    fold_batchnorm: Net((8, 8, 1)).conv("edges", 4, padding=SAME).norm("norm").graph(),
    fold_pca: Net((8, 8, 1)).conv("edges", 4, padding=SAME).pca("project", 2).graph(),
    lower_linear: Net((8, 8, 4)).pca("project", 2).conv("edges", 4, padding=SAME).graph(),
    hoist_clip: Net((8, 8, 1)).conv("edges", 4, padding=SAME).pool("pool").relu("relu").graph(),
    drop_clips: bias(Net((8, 8, 1)).conv("dark", 2), 9, 9).relu("relu").conv("edges", 4).graph(),
    prune_channels: PRUNABLE.relu("relu").conv("edges", 2, padding=SAME).graph(),
    fold_cascades: Net((8, 8, 2)).conv("reduce", 2, (1, 1)).conv("edges", 4, padding=SAME).graph(),
}
cases = pytest.mark.parametrize("step", CASES, ids=lambda step: step.__name__)


def test_every_pass_has_a_case() -> None:
    assert {pass_name(step) for step in fold_order()} == {step.__name__ for step in CASES}


@cases
def test_a_second_run_gives_the_same_object(step: Callable[[Graph], Graph]) -> None:
    once = step(CASES[step])
    assert once is not CASES[step]
    assert step(once) is once


@cases
def test_a_network_without_a_case_for_it_comes_back_as_the_same_object(
    step: Callable[[Graph], Graph],
) -> None:
    graph = Net((8, 8, 1)).conv("edges", 4).relu("relu").graph()
    assert step(graph) is graph


@cases
def test_the_result_is_sound(step: Callable[[Graph], Graph]) -> None:
    after = step(CASES[step])
    assert verify(after, step.__name__) is after


@cases
def test_tensors_of_the_same_name_have_the_same_value(step: Callable[[Graph], Graph]) -> None:
    before, after = CASES[step], step(CASES[step])
    x_bhwc = np.random.default_rng(5).uniform(0.0, 1.0, (5, *before.input.shape))
    shared = before.shapes.keys() & after.shapes.keys()
    expected, found = evaluate(before, x_bhwc, shared), evaluate(after, x_bhwc, shared)
    assert set(before.outputs) <= shared
    for name in shared:
        assert np.abs(found[name] - expected[name]).max() <= 1e-12 * np.abs(expected[name]).max()


@cases
def test_the_decision_states_the_multiplies_and_the_error(step: Callable[[Graph], Graph]) -> None:
    before, after = CASES[step], step(CASES[step])
    (decision,) = after.decisions
    assert decision.taken
    assert decision.macs_before - decision.macs_after == graph_macs(before) - graph_macs(after)
    assert decision.error is not None and 0 <= decision.error < 1e-9


@cases
def test_the_printed_graphs_equal_the_expect_file(step: Callable[[Graph], Graph]) -> None:
    before, after = CASES[step], step(CASES[step])
    (decision,) = after.decisions
    found = f"{before}\n--- {step.__name__}\n{after}\n--- {decision.rule}\n{decision.reason}\n"
    assert found == (Path(__file__).parent / "expect" / f"{step.__name__}.expect").read_text("utf-8")


@cases
def test_the_docstring_shows_the_graphs_of_the_case(step: Callable[[Graph], Graph]) -> None:
    text = inspect.getdoc(step) or ""
    before, after = re.findall(r"^    \w.*(?:\n    \w.*)*", text, re.MULTILINE)
    for block, graph in ((before, CASES[step]), (after, step(CASES[step]))):
        assert inspect.cleandoc(block) == "\n".join(
            str(graph).splitlines()[-1 - len(block.splitlines()) : -1]
        )
    for section in ("*Before*::", "*After*::", "*Requires*", "*Leaves*"):
        assert section in text


@pytest.mark.parametrize("mode", get_args(FoldMode))
def test_folding_a_folded_network_changes_nothing(mode: FoldMode) -> None:
    net = (
        Net((8, 8, 2)).norm("n0").pca("p0", 2).conv("c1", 4, padding=SAME).norm("n1").pca("p1", 2).norm("n2")
    )
    net.relu("r1").norm("n3").conv("c2", 4, padding=SAME).conv("c3", 4).pool("pool").relu("r2").dense("d", 3)
    options = Options(fold=mode)
    once = fold(net.graph(), options)
    assert fold(once, options) is once
