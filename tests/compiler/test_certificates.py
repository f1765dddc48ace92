"""Certificates against the checker: never beaten when they are right, always when they are wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convfold.compiler.bounds import certify, find_bounds
from convfold.compiler.certificates import MATRIX_VALUES, attack, check, justifies, recompute
from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import Certificate, Clip, Graph
from convfold.compiler.passes import fold
from tests.compiler.passes.nets import NONE, SAME, Net
from tests.compiler.passes.proven import bias, random_net

NETS = 500
GROUPS = 25
"""The networks of one test."""
TRIES = 10_000


def certificate_of(graph: Graph, clip: Clip, rule: str = "identity") -> Certificate:
    box = find_bounds(graph, {clip.inputs[0]})[clip.inputs[0]]
    return certify(clip, box, rule, range(len(box.low_c)))


def clips_of(graph: Graph) -> list[Clip]:
    return [node for node in graph.nodes if isinstance(node, Clip)]


def upstream(graph: Graph, clip: Clip) -> Graph:
    """What a clip's input is made of, which is all that has to be computed to attack it."""
    wanted = {clip.name}
    for node in reversed(graph.nodes):
        wanted |= set(node.inputs) if node.name in wanted else set()
    nodes = tuple(node for node in graph.nodes if node.name in wanted)
    return replace(graph, nodes=nodes, outputs=(clip.name,))


# --------------------------------------------------------------------------------------------------------- never beaten


@pytest.mark.parametrize("group", range(NETS // GROUPS))
def test_no_certificate_of_a_random_network_is_beaten(group: int) -> None:
    """The attack is on one of the first clips: there a certificate is tight, and a mistake would show."""
    for seed in range(group * GROUPS, (group + 1) * GROUPS):
        graph = random_net(seed)
        if not (clips := clips_of(graph)):
            continue
        clip = clips[seed % min(3, len(clips))]
        graph = upstream(graph, clip)
        certificate = certificate_of(graph, clip)
        low, high = attack(graph, clip.inputs[0], TRIES, seed)
        assert (low >= certificate.low).all() and (high <= certificate.high).all(), seed
        if (recomputed := recompute(graph, clip.inputs[0])) is not None:
            slack = 1e-9 * max(np.abs(low).max(), np.abs(high).max(), 1.0)
            assert (recomputed[0] <= low + slack).all() and (high - slack <= recomputed[1]).all(), seed
            if certificate.method == "exact":
                assert np.abs(recomputed[0] - certificate.low).max() <= slack, seed
                assert np.abs(recomputed[1] - certificate.high).max() <= slack, seed


@pytest.mark.parametrize("seed", range(12))
def test_every_certificate_of_a_fold_holds_in_the_network_as_written(seed: int) -> None:
    """A tensor keeps its name and, but for rounding, its value through the folds: so do proofs."""
    net = Net((5, 5, 2), seed, low=-1.0).conv("a", 4, padding=SAME).norm("norm").relu("r1")
    rng = np.random.default_rng(seed)
    bias(net.pool("pool", (2, 2), (1, 1)).conv("b", 3), *rng.choice([-40, 0, 40], 3)).relu("r2", 0.0, 6.0)
    graph = bias(net.conv("c", 2, (1, 1)), *rng.choice([-30, 30], 2)).relu("r3").dense("scores", 3).graph()
    certificates = [d.certificate for d in fold(graph).decisions if d.certificate is not None]
    assert certificates
    for certificate in certificates:
        if certificate.tensor in graph.shapes:
            found = check(graph, certificate, 2000)
            low, high = found.found
            least, most = np.array(certificate.low), np.array(certificate.high)
            slack = 1e-9 * max(np.abs(least).max(), np.abs(most).max())
            assert found.justified and found.confirmed
            assert (low >= least - slack).all() and (high <= most + slack).all()


# -------------------------------------------------------------------------------------------------------------- exactly


@pytest.mark.parametrize("padding", [NONE, SAME], ids=["valid", "same"])
def test_the_attack_attains_the_bound_of_one_affine_map(padding: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """At a corner, to rounding; with few tries, since the gradient points to it."""
    graph = Net((6, 6, 2), low=0.5, high=2.0).conv("conv", 4, padding=padding).relu("relu").graph()
    certificate = certificate_of(graph, clips_of(graph)[0])
    low, high = attack(graph, "conv", tries=600)
    assert certificate.method == "exact"
    assert np.abs(low - certificate.low).max() < 1e-12 * np.abs(low).max()
    assert np.abs(high - certificate.high).max() < 1e-12 * np.abs(high).max()


def test_an_attack_uses_no_more_tries_than_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Net((4, 4, 1)).conv("a", 2).relu("r").conv("b", 2, (1, 1)).graph()
    tried = []

    def spy(graph: Graph, x_bhwc: np.ndarray, keep: set[str]) -> dict[str, np.ndarray]:
        tried.append(len(x_bhwc))
        return evaluate(graph, x_bhwc, keep)

    monkeypatch.setattr("convfold.compiler.certificates.evaluate", spy)
    for tries in (1, 5, 999, 3000):
        tried.clear()
        attack(graph, "b", tries)
        assert sum(tried) == tries


# ----------------------------------------------------------------------------------------------- wrong ones are refuted


def test_a_bound_that_forgets_the_padded_zeros_is_beaten() -> None:
    """On 1 … 2 with positive weights the least value stands in the corner, where most of a window is padding."""
    net = Net((5, 5, 1), low=1.0, high=2.0).conv("conv", 2, padding=SAME)
    net.weights["conv.w"] = np.abs(net.weights["conv.w"])
    graph = net.relu("relu").graph()
    right = certificate_of(graph, clips_of(graph)[0])
    unpadded = graph.weights["conv.w"].reshape(2, -1).sum(axis=1) + graph.weights["conv.b"].ravel()
    wrong = replace(right, low=tuple(unpadded.tolist()))
    assert not check(graph, right, 500).beaten
    assert check(graph, wrong, 500).beaten


@pytest.mark.parametrize("end", ["low", "high"])
def test_a_bound_that_is_a_little_too_tight_is_beaten(end: str) -> None:
    graph = Net((5, 5, 1), low=-1.0).conv("a", 2).conv("b", 2, (2, 2)).relu("relu").graph()
    right = certificate_of(graph, clips_of(graph)[0])
    inward = 1 if end == "low" else -1
    closer: Any = {end: tuple(value + inward * 1e-9 for value in getattr(right, end))}
    wrong = replace(right, **closer)
    assert not check(graph, right, 500).beaten
    assert check(graph, wrong, 500).beaten


def test_the_search_finds_what_is_hidden_from_random_inputs() -> None:
    """The rectifier acts in one corner of 2²⁵ alone, so no proof may say that it does not."""
    net = Net((5, 5, 1)).conv("conv", 1, (5, 5))
    signs = np.random.default_rng(3).choice([-1.0, 1.0], (1, 1, 1, 5, 5, 1))
    net.weights |= {"conv.w": signs, "conv.b": np.full((1, 1, 1), float((signs < 0).sum()) - 1e-6)}
    graph = net.relu("relu").graph()
    x_bhwc = np.random.default_rng(4).uniform(size=(5000, 5, 5, 1))
    assert evaluate(graph, x_bhwc, {"conv"})["conv"].min() > 0
    wrong = replace(certificate_of(graph, clips_of(graph)[0]), low=(0.0,))
    assert check(graph, wrong, 500).beaten


# ------------------------------------------------------------------------------------------------------- recomputing it


def test_back_substitution_confirms_what_affine_forms_prove() -> None:
    net = bias(Net((6, 6, 1)).conv("a", 3, padding=SAME), 1, 0, -1).relu("r1").pool("pool", (2, 2), (1, 1))
    graph = bias(net.conv("b", 2), 60, 70).relu("r2").graph()
    found = check(graph, certificate_of(graph, clips_of(graph)[1]), 500)
    assert found.justified and found.confirmed and not found.beaten


def test_a_certificate_whose_numbers_do_not_justify_its_rule_is_found_out() -> None:
    graph = Net((4, 4, 1), low=-1.0).conv("conv", 2).relu("relu").graph()
    found = check(graph, certificate_of(graph, clips_of(graph)[0]), 200)
    assert not found.justified and not found.confirmed and not found.beaten


def test_a_big_network_is_attacked_only() -> None:
    graph = Net((65, 64, 1)).conv("conv", 1).relu("relu").graph()
    assert (65 * 64) ** 2 > MATRIX_VALUES
    found = check(graph, certificate_of(graph, clips_of(graph)[0]), 50)
    assert found.recomputed is None and not found.confirmed and not found.beaten


@pytest.mark.parametrize(
    ("rule", "limits", "low", "high", "holds"),
    [
        ("identity", (0.0, None), 0.0, 9.0, True),
        ("identity", (0.0, 6.0), 0.0, 6.5, False),
        ("floor", (0.0, 6.0), 0.0, 9.0, True),
        ("floor", (0.0, 6.0), -0.1, 9.0, False),
        ("ceiling", (0.0, 6.0), -9.0, 6.0, True),
        ("constant", (0.0, None), -9.0, 0.0, True),
        ("constant", (0.0, 6.0), 6.0, 9.0, True),
        ("constant", (0.0, 6.0), -1.0, 1.0, False),
    ],
)
def test_what_bounds_justify(
    rule: str, limits: tuple[float | None, float | None], low: float, high: float, holds: bool
) -> None:
    """Only the channels that a rule speaks of count."""
    certificate = Certificate("relu", "conv", limits, rule, (1,), (-99.0, low), (99.0, high), "exact")
    assert justifies(certificate, (np.array(certificate.low), np.array(certificate.high))) is holds


def test_an_unknown_rule_is_refused() -> None:
    certificate = Certificate("relu", "conv", (0.0, None), "likely", (0,), (0.0,), (1.0,), "exact")
    message = "rule must be identity, floor, ceiling or constant, not 'likely'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        justifies(certificate, (np.zeros(1), np.ones(1)))
