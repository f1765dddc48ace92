"""The example network: what it promises in its README and ours."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from convfold.api import Compiled, compile
from convfold.compiler.evaluate import accuracy, evaluate
from convfold.compiler.passes import fold
from convfold.compiler.spec import load_spec
from convfold.sim import golden

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile(
        DIGITS / "digits.toml", "ice40-up5k", calibration=DIGITS / "calibration.npz", test=DIGITS / "test.npz"
    )


def test_accuracy_in_float_and_in_integers() -> None:
    graph = load_spec(DIGITS / "digits.toml")
    with np.load(DIGITS / "test.npz", allow_pickle=False) as data:
        x, y = data["x"].astype(np.float64), data["y"].astype(np.int64)
    found = accuracy(evaluate(graph, x)["classify"], y)
    assert len(y) == 450
    assert found >= 0.97
    for target, fps in (("generic", None), ("ecp5-25k", 20_000.0)):
        made = compile(DIGITS / "digits.toml", target, fps=fps, calibration=DIGITS / "calibration.npz")
        form = made.integers.format_of("input")
        raw = golden.run(made.integers, form.quantize(x))["classify"]
        assert accuracy(raw, y) >= found - 0.005


def test_folded_equals_unfolded_on_all_test_images() -> None:
    graph = load_spec(DIGITS / "digits.toml")
    folded = fold(graph)
    x = np.load(DIGITS / "test.npz", allow_pickle=False)["x"].astype(np.float64)
    before, after = (evaluate(net, x)[net.outputs[0]] for net in (graph, folded))
    assert np.max(np.abs(before - after)) <= 1e-9 * np.max(np.abs(before))
    assert [node.op for node in folded.nodes].count("conv2d") == 2
    assert {decision.rule for decision in folded.decisions if decision.taken} >= {"batch_norm", "pca", "cascade"}


def test_smallest_engine_for_up5k(compiled: Compiled) -> None:
    assert [stage.multipliers for stage in compiled.plan.stages] == [1, 1, 0, 1]
    assert compiled.plan.resources.lacking(compiled.plan.target) == []
    assert compiled.accuracy is not None
    assert compiled.accuracy["folding_difference"] < 1e-9


def test_projection_is_scikit_learns_pca_of_the_responses() -> None:
    pytest.importorskip("sklearn")
    from sklearn.decomposition import PCA

    split = runpy.run_path(str(DIGITS / "train.py"))["load_split"]
    x_train, x_test, _, y_test = split()
    with np.load(DIGITS / "test.npz", allow_pickle=False) as data:
        assert np.array_equal(data["x"], x_test.astype(np.float32))
        assert np.array_equal(data["y"], y_test)
    graph = load_spec(DIGITS / "digits.toml")
    responses = evaluate(graph, x_train.astype(np.float64), keep=["blend"])["blend"].reshape(-1, 24)
    fitted = PCA(8).fit(responses)
    components, mean = graph.weights["project.components"], graph.weights["project.mean"]
    assert np.max(np.abs(mean - fitted.mean_)) < 1e-6
    assert np.max(np.abs(np.abs(np.sum(components * fitted.components_, axis=1)) - 1)) < 1e-6
