"""The example network: it is what its training made it, and keeps what README and issue promise of it."""

from __future__ import annotations

import json
import resource
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convfold.api import Compiled, compile
from convfold.compiler.evaluate import accuracy, evaluate
from convfold.compiler.explain import explain, summarize
from convfold.compiler.graph import Graph, graph_macs
from convfold.compiler.passes import fold
from convfold.compiler.spec import load_spec
from convfold.compiler.tools.simulators import find_simulator, run_cocotb
from convfold.sim import golden
from convfold.sim.cosimulate import cosimulate
from tests.networks import small_simulator

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits"
BENCHES = ROOT / "tests" / "sim"

compile_digits = partial(compile, DIGITS / "digits.toml", calibration=DIGITS / "calibration.npz", test=DIGITS / "test.npz")


@pytest.fixture(scope="module")
def network() -> Graph:
    return load_spec(DIGITS / "digits.toml")


@pytest.fixture(scope="module")
def images() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    with np.load(DIGITS / "test.npz", allow_pickle=False) as data:
        return data["x"].astype(np.float64), data["y"].astype(np.int64)


# --------------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def train() -> dict[str, Any]:
    """What ``train.py`` defines."""
    pytest.importorskip("sklearn")
    pytest.importorskip("threadpoolctl")
    return runpy.run_path(str(DIGITS / "train.py"))


def test_the_images_are_the_split_of_the_training(train: dict[str, Any]) -> None:
    x_train, x_test, y_train, y_test = train["load_split"]()
    with np.load(DIGITS / "test.npz", allow_pickle=False) as data:
        assert np.array_equal(data["x"], x_test)
        assert np.array_equal(data["y"], y_test)
    with np.load(DIGITS / "calibration.npz", allow_pickle=False) as data:
        assert len(data["x"]) == train["CALIBRATION_IMAGES"]
        rows = {image.tobytes() for image in x_train}
        assert all(image.tobytes() in rows for image in data["x"])
        assert not any(image.tobytes() in rows for image in x_test)
    assert len(y_train) == 1347


def test_the_weights_are_those_that_train_writes(train: dict[str, Any], network: Graph) -> None:
    """The layers, the shapes, the accuracy that its README names; not the training itself, which takes too long."""
    params = train["initial_params"](np.random.default_rng(0))
    with np.load(DIGITS / "digits.npz", allow_pickle=False) as data:
        stored = {name: data[name] for name in data.files}
    assert set(stored) == {*params, "norm.mean", "norm.var"}
    assert all(array.dtype == np.float32 for array in stored.values())
    assert all(stored[name].shape == params[name].shape for name in params)
    assert [name for name, _ in train["LAYERS"]] == [node.name for node in network.nodes[1:]]
    x_train, x_test, y_train, y_test = train["load_split"]()
    assert f"{train['accuracy'](stored, x_test, y_test):.2%}" == "99.11%"
    assert f"{train['accuracy'](stored, x_train, y_train):.2%}" == "98.89%"


def test_the_projection_is_scikit_learns_pca_of_the_responses(train: dict[str, Any], network: Graph) -> None:
    from sklearn.decomposition import PCA

    x_train = train["load_split"]()[0]
    responses = evaluate(network, x_train.astype(np.float64), keep=["blend"])["blend"].reshape(-1, 24)
    fitted = PCA(n_components=8, svd_solver="full").fit(responses)
    components, mean = network.weights["project.components"], network.weights["project.mean"]
    assert np.max(np.abs(mean - fitted.mean_)) < 1e-6
    assert np.max(np.abs(components - fitted.components_)) < 1e-5


# ---------------------------------------------------------------------------------------------------------------- folding


def test_folded_equals_unfolded_on_all_test_images(
    network: Graph, images: tuple[NDArray[np.float64], NDArray[np.int64]]
) -> None:
    folded = fold(network)
    before, after = (evaluate(net, images[0])[net.outputs[0]] for net in (network, folded))
    assert len(before) == 450
    assert np.max(np.abs(before - after)) <= 1e-9 * np.max(np.abs(before))
    assert [node.op for node in folded.nodes].count("conv2d") == 2
    assert {decision.rule for decision in folded.decisions if decision.taken} >= {"batch_norm", "pca", "cascade"}


def test_explain_shows_what_was_folded_with_both_counts(network: Graph) -> None:
    folded = fold(network)
    texts = [str(entry) for entry in explain(network, folded)]
    assert f"{graph_macs(network):,} → {graph_macs(folded):,}" in summarize(network, folded)
    assert graph_macs(folded) < graph_macs(network)
    for title in ("Folded 'project' into 'blend'.", "Merged 'edges' and 'blend + project' into one layer."):
        (text,) = (text for text in texts if text.startswith(title))
        assert "Multiplies a frame: " in text and " → " in text
        assert "inputs: exact" in text or "inputs: equal to the last bit" in text or "images: exact" in text


# --------------------------------------------------------------------------------------------------------------- accuracy


def test_accuracy_in_float_and_in_integers(network: Graph, images: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    """At least 97 % in floating point, and within half a point of that in 8-bit integers."""
    x, y = images
    found = accuracy(evaluate(network, x)["classify"], y)
    assert found >= 0.97
    for target, fps in (("generic", None), ("ecp5-25k", 20_000.0)):
        compiled = compile_digits(target, fps=fps)
        raw = golden.run(compiled.integers, compiled.integers.format_of("input").quantize(x))["classify"]
        assert accuracy(raw, y) >= found - 0.005
        assert compiled.accuracy is not None
        assert (compiled.accuracy["samples"], compiled.accuracy["float"]) == (450, found)
        assert compiled.accuracy["integer"] == accuracy(raw, y)
        assert compiled.accuracy["folding_difference"] <= 1e-9


# --------------------------------------------------------------------------------------------------------------- hardware


def test_the_smallest_engine_for_up5k() -> None:
    compiled = compile_digits("ice40-up5k", fps=100)
    assert [stage.multipliers for stage in compiled.plan.stages] == [1, 1, 0, 1]
    assert compiled.plan.resources.lacking(compiled.plan.target) == []


def seconds() -> float:
    """Of the processor, programs started from here included."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


@pytest.mark.parametrize(("target", "fps"), [("generic", None), ("ecp5-25k", 20_000.0), ("ice40-up5k", 100.0)])
def test_from_specification_to_verilog_in_five_seconds(target: str, fps: float | None, tmp_path: Path) -> None:
    began = seconds()
    compile_digits(target, fps=fps).write(tmp_path / "build")
    assert seconds() - began < 5


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compiled, Path]:
    """The network at a rate at which it is simulated in seconds."""
    compiled = compile_digits("generic", fps=100_000)
    return compiled, compiled.write(tmp_path_factory.mktemp("digits") / "build")


def test_simulated_cycles_are_those_of_the_manifest(fast: tuple[Compiled, Path]) -> None:
    compiled, build = fast
    run = cosimulate(build, frames=1, simulator=small_simulator())
    assert run.passed, run.summary()
    manifest = json.loads((build / "manifest.json").read_text(encoding="utf-8"))
    for name in ("latency_cycles", "interval_cycles"):
        assert run.record[name] == manifest[name] == getattr(compiled.plan, name)


def test_the_slowest_layer_is_busy(fast: tuple[Compiled, Path]) -> None:
    """In 95 % of its cycles over frames back to back, seen in the Verilog."""
    _, build = fast
    run = run_cocotb(
        find_simulator(small_simulator()),
        [build / "accelerator.v"],
        "digits",
        "issue_bench",
        build,
        python_path=[BENCHES],
        env={"BUILD": str(build)},
        name="issue",
    )
    assert run.passed, [result.message for result in run.results]
