"""Compression keeps its budget, says what it did and why not more, and chooses as an exhaustive search would."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convfold.compiler.compress import Compressed, Offer, choices, compress, record, rest_behind
from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import accuracy, evaluate
from convfold.compiler.explain import explain
from convfold.compiler.graph import Conv2D, Graph, graph_macs
from convfold.compiler.lossy import Budget, Evidence, spread_error
from convfold.compiler.low_rank import Split
from convfold.compiler.numbers import IntArray, RealArray
from convfold.compiler.passes import fold
from convfold.compiler.spec import load_spec
from convfold.compiler.verify import verify
from convfold.compiler.write_spec import write_spec
from tests.compiler.passes.nets import SAME, Net
from tests.mnist import read_images, read_network

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"


def samples(name: str) -> tuple[RealArray, IntArray]:
    with np.load(DIGITS / name, allow_pickle=False) as arrays:
        x = arrays["x"].astype(np.float64)
        return x, arrays["y"].astype(np.int64) if "y" in arrays.files else np.zeros(len(x), np.int64)


@pytest.fixture(scope="module")
def digits() -> Graph:
    return load_spec(DIGITS / "digits.toml")


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return Evidence.of(samples("calibration.npz")[0], *samples("test.npz"))


@pytest.fixture(scope="module")
def within_half_a_point(digits: Graph, evidence: Evidence) -> Compressed:
    return compress(digits, Budget(accuracy_drop=0.5), evidence)


def reasons(found: Compressed) -> Mapping[str, str]:
    return {decision.layers[0]: decision.reason for decision in found.graph.decisions if decision.rule == "low_rank"}


# ------------------------------------------------------------------------------------------------------------- budgets


def test_an_accuracy_budget_holds_on_labelled_images(within_half_a_point: Compressed, digits: Graph) -> None:
    x, y = samples("test.npz")
    before, after = (
        accuracy(evaluate(graph, x)[graph.outputs[0]], y) for graph in (digits, within_half_a_point.graph)
    )
    assert 100 * (before - after) <= 0.5
    assert (within_half_a_point.before.accuracy, within_half_a_point.chosen.accuracy) == (before, after)
    assert graph_macs(within_half_a_point.graph) == within_half_a_point.chosen.macs < 0.85 * graph_macs(fold(digits))


def test_no_measured_network_is_cheaper_within_the_budget(within_half_a_point: Compressed) -> None:
    best = within_half_a_point.before.accuracy
    assert best is not None
    held = [point for point in within_half_a_point.curve if point.accuracy is not None and best - point.accuracy <= 0.005]
    assert min(point.macs for point in held) == within_half_a_point.chosen.macs


@pytest.mark.parametrize("error", [0.05, 0.2, 0.4])
def test_an_error_budget_holds_for_every_layer_on_images_not_fitted(error: float, digits: Graph) -> None:
    x = samples("calibration.npz")[0]
    found = compress(digits, Budget(error=error), Evidence.of(x))
    fresh = x[3::4]  # one in four is held out
    folded = fold(digits)
    layers = [offer.split.name for offer in found.chosen.offers]
    assert bool(layers) == (error > 0.07)
    for offer in found.chosen.offers:
        name, entrance = offer.split.name, folded.node(offer.split.name).inputs[0]
        tensors = evaluate(folded, fresh, (entrance, name))
        thin = evaluate(replace_layer(folded, offer.split), fresh, (name,))
        assert spread_error(tensors[name], thin[name]) == pytest.approx(offer.error, rel=1e-9)
        assert offer.error <= error


def replace_layer(graph: Graph, split: Split) -> Graph:
    nodes = [(split.first, split.second) if node.name == split.name else (node,) for node in graph.nodes]
    weights = {key: array for key, array in graph.weights.items() if key.rpartition(".")[0] != split.name}
    return replace(graph, nodes=tuple(itertools.chain(*nodes)), weights=weights | dict(split.arrays))


@pytest.mark.parametrize("macs", [10_000, 40_000, 88_000, 100_000])
def test_a_budget_of_multiplies_holds(macs: int, digits: Graph) -> None:
    found = compress(digits, Budget(macs=macs), Evidence.of(samples("calibration.npz")[0]))
    assert found.chosen.macs == graph_macs(found.graph) <= macs
    if macs > 89_088:
        assert found.chosen is found.before


def test_a_budget_of_multiplies_that_cannot_be_met_names_the_least(digits: Graph) -> None:
    with pytest.raises(CompileError, match=r"^--macs 99: cannot be reached: rank 1 wherever it pays leaves (\d+)") as error:
        compress(digits, Budget(macs=99), Evidence())
    least = int(error.value.message.split("leaves ")[1].split()[0])
    assert compress(digits, Budget(macs=least), Evidence()).chosen.macs == least


def test_accuracy_needs_labels(digits: Graph) -> None:
    with pytest.raises(CompileError, match=r"^--accuracy-drop: needs labelled images\n  fix: give them with --test$"):
        compress(digits, Budget(accuracy_drop=1.0), Evidence.of(samples("calibration.npz")[0]))


@pytest.mark.parametrize("arguments", [(), (None, None, None), (0.1, 0.5), (-0.1,), (np.nan,), (np.inf,)])
def test_a_budget_is_one_number(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"^a budget must be one number from 0 on, not "):
        Budget(*arguments)


def test_one_image_cannot_be_held_out() -> None:
    with pytest.raises(CompileError, match=r"^calibration: must have 2 images or more: one of them is held out"):
        Evidence.of(np.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize("count", [2, 3, 4, 9, 128])
def test_no_image_is_fitted_and_judged(count: int) -> None:
    found = Evidence.of(np.arange(count, dtype=np.float64).reshape(-1, 1, 1, 1))
    assert found.fit is not None and found.judge is not None
    assert len(found.judge) == max(1, count // 4)
    assert sorted([*found.fit.ravel(), *found.judge.ravel()]) == list(range(count))


# ------------------------------------------------------------------------------------------------------------ choosing


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_of_splits_beats_the_front(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = [
        [offer(f"layer{n}", 1000 - int(rng.integers(1, 250)), float(rng.uniform(0.1, 1.0))) for _ in range(4)]
        for n in range(4)
    ]
    found = [(choice.macs, choice.loss) for choice in choices(layers, 1000)]
    every = []
    for picked in itertools.product(*([None, *offers] for offers in layers)):
        taken = [one for one in picked if one is not None]
        every.append((1000 - sum(1000 - one.macs for one in taken), sum(one.loss for one in taken)))
    best = [point for point in every if not any(beats(other, point) for other in every)]
    assert np.array(found) == pytest.approx(np.array(sorted(set(best))))


def beats(one: tuple[int, float], other: tuple[int, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1] + 1e-12


def offer(name: str, macs: int, error: float) -> Offer:
    first, second = (Conv2D(name=f"{name}{part}", inputs=("x",), source=name) for part in ("_reduce", ""))
    return Offer(Split("channel", 1, first, second, {}, macs, error), macs, error, None, None)


# -------------------------------------------------------------------------------------------------- what comes out of it


def test_the_compressed_network_is_written_and_read_as_it_is(within_half_a_point: Compressed, tmp_path: Path) -> None:
    graph = within_half_a_point.graph
    found = load_spec(write_spec(graph, tmp_path))
    assert found.name == "digits_compressed"
    assert str(found) == str(graph)
    assert str(fold(found)) == str(graph)  # compiling it does not undo it
    x = samples("test.npz")[0]
    assert np.array_equal(evaluate(found, x)["classify"], evaluate(graph, x)["classify"])


def test_every_layer_has_a_decision_with_its_measured_error(within_half_a_point: Compressed) -> None:
    decisions = [decision for decision in within_half_a_point.graph.decisions if decision.rule == "low_rank"]
    assert {decision.layers[0]: decision.taken for decision in decisions} == {
        "project": False,
        "norm": True,
        "classify": True,
    }
    assert all(decision.error is not None and 0 < decision.error < 1 for decision in decisions)
    assert all(decision.macs_after < decision.macs_before for decision in decisions)
    found = reasons(within_half_a_point)
    assert found["project"].startswith("5×5 to 6 channels and 1×1 to 8 would save 128 multiplies, with an error of ")
    assert "K = 25 taps and M = 8 outputs a split of channels pays below rank K·M/(K + M) = 6.1" in found["project"]
    texts = [str(entry) for entry in explain(within_half_a_point.before.graph, within_half_a_point.graph)]
    assert any(text.startswith("Split 'norm' into two layers of low rank.") for text in texts)
    assert any("Measured on images that were not fitted: differs by " in text for text in texts)


def test_what_can_save_nothing_is_refused_with_the_bound() -> None:
    graph = Net((8, 8, 3)).conv("thin", 1, (1, 1)).relu("relu").graph()
    found = compress(graph, Budget(error=1.0), Evidence())
    assert found.chosen is found.before
    assert reasons(found) == {
        "thin": "no rank saves a multiply: with K = 3 taps and M = 1 outputs a split of channels pays below rank "
        "K·M/(K + M) = 0.8"
    }


def test_a_split_beyond_the_error_is_refused_with_its_error() -> None:
    graph = Net((8, 8, 4)).conv("layer", 8, padding=SAME).graph()
    found = compress(graph, Budget(error=0.001), Evidence())
    assert found.chosen is found.before
    assert " of the weights: not within --error 0.001; with K = 36 taps" in reasons(found)["layer"]


def test_without_data_weights_alone_decide(digits: Graph) -> None:
    found = compress(digits, Budget(macs=60_000), Evidence())
    assert found.chosen.macs <= 60_000
    assert (found.chosen.accuracy, found.chosen.output_error) == (None, None)
    assert " of the weights" in reasons(found)["norm"]


def test_test_images_judge_where_there_are_no_others(digits: Graph) -> None:
    found = compress(digits, Budget(macs=60_000), Evidence.of(None, *samples("test.npz")))
    assert found.chosen.output_error is not None and found.chosen.accuracy is not None


def test_the_record_has_the_curve_of_every_layer_and_of_the_network(within_half_a_point: Compressed) -> None:
    found = json.loads(json.dumps(record(within_half_a_point)))
    assert found["budget"] == "--accuracy-drop 0.5"
    assert found["after"] in found["curve"] and found["before"] in found["curve"]
    assert [point["macs"] for point in found["curve"]] == sorted(point["macs"] for point in found["curve"])
    assert [layer["name"] for layer in found["layers"]] == ["project", "norm", "classify"]
    norm = found["layers"][1]
    assert (norm["taps"], norm["outputs"], norm["break_even"]) == (72, 16, 72 * 16 / 88)
    for scheme in ("channel", "spatial"):
        curve = [entry for entry in norm["curve"] if entry["scheme"] == scheme]
        assert [entry["rank"] for entry in curve] == list(range(1, len(curve) + 1))
        assert all(0 <= entry["accuracy"] <= 1 for entry in curve)


def test_the_result_is_sound_and_the_same_every_time(digits: Graph) -> None:
    evidence = Evidence.of(samples("calibration.npz")[0])
    one, other = (compress(digits, Budget(error=0.3), evidence) for _ in range(2))
    assert verify(one.graph, "compress") is one.graph
    assert record(one) == record(other)


def test_a_trained_network_for_mnist_halves(models_dir: Path) -> None:
    graph = read_network(models_dir)
    images, _ = read_images(models_dir, 0, 32)
    found = compress(graph, Budget(accuracy_drop=0.5), Evidence.of(images, *read_images(models_dir, 2000, 2400)))
    before, after = found.before, found.chosen
    assert before.accuracy is not None and after.accuracy is not None and before.accuracy > 0.97
    assert before.accuracy - after.accuracy <= 0.005
    assert (before.macs, graph_macs(found.graph)) == (786_560, after.macs)
    assert after.macs < 0.55 * before.macs


def test_a_layer_is_measured_on_the_rest_of_the_network_alone() -> None:
    net = Net((8, 8, 2)).conv("a", 2, padding=SAME).relu("r").conv("b", 2, padding=SAME).relu("r2")
    chain = net.graph()
    x = np.random.default_rng(0).uniform(0.0, 1.0, (3, 8, 8, 2))
    rest = rest_behind(chain, "r")
    assert [node.name for node in rest.nodes] == ["r", "b", "r2"]
    tensors = evaluate(chain, x, ("r", "r2"))
    assert np.array_equal(evaluate(rest, tensors["r"])["r2"], tensors["r2"])
    assert rest_behind(chain, "image") is chain
    assert rest_behind(chain, "a") is chain
    branched = net.add("sum", "a", "r2").graph()
    assert rest_behind(branched, "r") is branched
    assert rest_behind(net.graph("r", "sum"), "r").outputs == ("r", "sum")
