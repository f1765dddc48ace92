"""How a pass changes a graph: it collects folds; `apply_folds` replaces, counts, measures and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TypeVar

import numpy as np

from ..evaluate import apply_node, evaluate
from ..graph import Array, Certificate, Decision, Graph, Node, node_macs
from ..numbers import RealArray
from ..verify import MAX_NAME, legal_name

AnyNode = TypeVar("AnyNode", bound=Node)

PROBES = 4
"""Random inputs on which every fold is measured. The seed is fixed: the same network, the same error."""


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Replace a run of layers, each the sole consumer of the one before, by a run that ends in its name."""

    rule: str
    layers: tuple[Node, ...]
    nodes: tuple[Node, ...]
    arrays: Mapping[str, Array]
    reason: str
    certificate: Certificate | None = None


def sole_consumer(graph: Graph, name: str) -> Node | None:
    """The node that alone reads this tensor; none when others do, or when it leaves the network."""
    consumers = graph.consumers(name)
    return consumers[0] if len(consumers) == 1 and name not in graph.outputs else None


def run_behind(graph: Graph, node: Node, *kinds: type[AnyNode]) -> tuple[AnyNode, ...]:
    """The longest run of some kinds of node behind one, each the only consumer of the one before."""
    run: list[AnyNode] = []
    following = sole_consumer(graph, node.name)
    while isinstance(following, kinds):
        run.append(following)
        following = sole_consumer(graph, following.name)
    return tuple(run)


def merged_source(layers: Sequence[Node]) -> str:
    """Where the user wrote all of the layers, each part once."""
    parts = dict.fromkeys(part for layer in layers for part in layer.source.split(" + "))
    return " + ".join(parts)


def fresh_name(text: str, taken: set[str]) -> str:
    """A legal name for a new tensor, near to a text, unlike all in ``taken``; it is then taken too."""
    used = {name.lower() for name in taken}
    tried = (
        legal_name(f"{text[: MAX_NAME - len(end)]}{end}") for end in chain([""], map("_{}".format, count(2)))
    )
    name = next(name for name in tried if name.lower() not in used)
    taken.add(name)
    return name


def apply_folds(graph: Graph, folds: Sequence[Fold]) -> Graph:
    """The graph with every fold applied and a measured decision for each; without folds, the same object."""
    if not folds:
        return graph
    at = {fold.layers[-1].name: fold for fold in folds}
    dropped = {layer.name for fold in folds for layer in fold.layers}
    nodes: list[Node] = []
    for node in graph.nodes:
        if fold := at.get(node.name):
            nodes += fold.nodes
        elif node.name not in dropped:
            nodes.append(node)
    weights = {key: array for key, array in graph.weights.items() if key.rpartition(".")[0] not in dropped}
    for fold in folds:
        weights |= fold.arrays
    folded = replace(graph, nodes=tuple(nodes), weights=weights)
    decisions = (
        Decision(
            rule=fold.rule,
            layers=tuple(layer.name for layer in fold.layers),
            taken=True,
            reason=fold.reason,
            macs_before=sum(node_macs(graph, layer) for layer in fold.layers),
            macs_after=sum(node_macs(folded, node) for node in fold.nodes),
            error=error,
            certificate=fold.certificate,
        )
        for fold, error in zip(folds, _errors(graph, folded, folds), strict=True)
    )
    return replace(folded, decisions=(*graph.decisions, *decisions))


def record(graph: Graph, decisions: Sequence[Decision]) -> Graph:
    """The graph with the decisions that it does not hold yet; the same object when it holds them all."""
    fresh = tuple(decision for decision in dict.fromkeys(decisions) if decision not in graph.decisions)
    return replace(graph, decisions=(*graph.decisions, *fresh)) if fresh else graph


def relative_error(before: RealArray, after: RealArray) -> float:
    """The greatest difference, in parts of the greatest magnitude of ``before``."""
    difference = float(np.max(np.abs(after - before)))
    return difference / (float(np.max(np.abs(before))) or 1.0) if difference else 0.0


def _errors(before: Graph, after: Graph, folds: Sequence[Fold]) -> list[float]:
    """What each fold alone changes, with the tensors of ``before`` at its entrance."""
    source = before.input
    x_bhwc = np.random.default_rng(0).uniform(source.low, source.high, (PROBES, *source.shape))
    entrances = {fold.layers[0].inputs[0] for fold in folds}
    tensors = evaluate(before, x_bhwc, entrances | {fold.layers[-1].name for fold in folds})
    errors = []
    for fold in folds:
        y_bhwc = tensors[fold.layers[0].inputs[0]]
        for node in fold.nodes:
            y_bhwc = apply_node(after, node, (y_bhwc,))
        errors.append(relative_error(tensors[fold.layers[-1].name], y_bhwc))
    return errors
