"""Fewer multiplies for a loss that the user has allowed: which layers are split, and to which rank.

Every layer offers the splits of `low_rank`, each with the multiplies it saves and the loss it causes on its own. Choosing one
or none a layer is a knapsack with a choice an item, solved exactly by the front of choices that nothing beats: joining the
layers one by one, only those are kept for which no other has both fewer multiplies and less loss. Losses of several layers
are added there, which is a guess; what the network then really loses is measured, and only that decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .errors import CompileError
from .evaluate import evaluate
from .graph import Conv2D, Decision, Dense, Graph, Linear, graph_macs, node_macs
from .lossy import Budget, Evidence, output_error
from .low_rank import Layer, Pair, Split, apply_splits, break_even, splits
from .numbers import RealArray
from .passes import Options, fold
from .passes.fold_cascades import fold_cascades
from .passes.options import DEFAULT
from .verify import MAX_NAME, legal_name

POINTS = 24
"""How many networks along the front are measured."""

WIDTH = 1 << 12
"""How many choices the front may hold; beyond that it is thinned."""

SUFFIX = "_compressed"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Offer:
    """One split of one layer, alone in the network: the multiplies of a frame of the whole network, and what it loses.

    ``error`` is that of the layer's responses, ``output_error`` that of the network's outputs; ``None`` without data.
    """

    split: Split
    macs: int
    error: float
    output_error: float | None
    accuracy: float | None

    @property
    def loss(self) -> float:
        return (self.error if self.output_error is None else self.output_error) ** 2


@dataclass(frozen=True, slots=True)
class Point:
    """A network with some layers split, measured; ``graph`` is folded again, and has no decisions of the splits."""

    offers: tuple[Offer, ...]
    graph: Graph
    macs: int
    output_error: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Compressed:
    """What was found: ``offers`` by layer, the measured ``curve`` of the whole network, and the ``chosen`` point.

    ``before`` is the folded network that is compressed; ``graph`` the compressed one with all decisions.
    """

    budget: Budget
    before: Point
    offers: Mapping[str, tuple[Offer, ...]]
    curve: tuple[Point, ...]
    chosen: Point
    graph: Graph


def compress(
    network: Graph,
    budget: Budget,
    evidence: Evidence,
    options: Options = DEFAULT,
    progress: Progress = lambda step: None,
) -> Compressed:
    """The network folded, and its layers split as far as the budget allows.

    *Raises* ``CompileError`` for a budget that cannot be measured with the evidence, or not be met.
    """
    if budget.accuracy_drop is not None and evidence.labels is None:
        raise CompileError("--accuracy-drop", "needs labelled images", "give them with --test")
    progress("fold")
    graph = fold(network, options)
    meter = _Meter(graph, evidence, options)
    offers = {}
    for layer in _layers(graph):
        progress(f"split {layer.name}")
        offers[layer.name] = meter.offers(layer)
    front = choices(list(offers.values()), meter.before.macs)
    progress("measure")
    if budget.error is not None:
        chosen = meter.measure(_within(offers, budget.error, meter.before.macs))
    elif budget.macs is not None:
        chosen = _reach(meter, front, budget.macs)
    else:
        chosen = _hold(meter, front, budget.accuracy_drop or 0.0)
    measured = [meter.measure(choice.offers) for choice in _thinned(front, POINTS)]
    points = {id(point): point for point in (*measured, chosen)}
    curve = tuple(sorted(points.values(), key=lambda point: point.macs))
    count = len(graph.decisions)
    later = chosen.graph.decisions[count:]
    marked = replace(
        chosen.graph,
        name=legal_name(f"{graph.name[: MAX_NAME - len(SUFFIX)]}{SUFFIX}"),
        decisions=(*graph.decisions, *_decisions(meter, offers, chosen, budget), *later),
    )
    return Compressed(budget, meter.before, offers, curve, chosen, marked)


def rest_behind(graph: Graph, name: str) -> Graph:
    """What a network does behind a tensor, as a network of that.

    The same object where it needs other tensors too, and behind a linear layer, into which a split may fold.
    """
    if name == graph.input.name or isinstance(graph.node(name), Linear):
        return graph
    at = next(n for n, node in enumerate(graph.nodes) if node.name == name)
    behind = graph.nodes[at + 1 :]
    made = {name, *(node.name for node in behind)}
    if not {*graph.outputs}.union(*(node.inputs for node in behind)) <= made or name in graph.outputs:
        return graph
    source = replace(graph.input, name=name, shape=graph.shapes[name])
    weights = {key: array for key, array in graph.weights.items() if key.rpartition(".")[0] in made - {name}}
    return replace(graph, nodes=(source, *behind), weights=weights)


def _layers(graph: Graph) -> list[Layer]:
    return [node for node in graph.nodes if isinstance(node, Conv2D | Dense)]


# ----------------------------------------------------------------------------------------------------------- measuring


class _Meter:
    """What a folded network answers, and what it answers with layers split."""

    def __init__(self, graph: Graph, evidence: Evidence, options: Options) -> None:
        self.evidence = evidence
        self.options = options
        self.before = Point((), graph, graph_macs(graph), None if evidence.judge is None else 0.0, evidence.accuracy(graph))
        self._outputs = None if evidence.judge is None else evaluate(graph, evidence.judge)
        self._known: dict[tuple[int, ...], Point] = {}

    def offers(self, layer: Layer) -> tuple[Offer, ...]:
        """Every split of a layer, each measured as the only one."""
        fit, judge = (self._seen(layer, images) for images in (self.evidence.fit, self.evidence.judge))
        graph = self.before.graph
        rest = rest_behind(graph, layer.inputs[0])
        base, part = graph_macs(graph) - graph_macs(rest), self if rest is graph else self._behind(rest)
        found = []
        for split in splits(graph, layer, fit, judge):
            point = part.measure((Offer(split, 0, split.error, None, None),))
            found.append(Offer(split, base + point.macs, split.error, point.output_error, point.accuracy))
        return tuple(found)

    def _behind(self, rest: Graph) -> _Meter:
        """The meter of the rest of a network, whose images are what its front makes of the images."""

        def seen(images: RealArray | None) -> RealArray | None:
            name = rest.input.name
            return None if images is None else evaluate(self.before.graph, images, (name,))[name]

        judge, test = seen(self.evidence.judge), seen(self.evidence.test)
        return _Meter(rest, replace(self.evidence, fit=None, judge=judge, test=test), self.options)

    def _seen(self, layer: Layer, images: RealArray | None) -> Pair | None:
        if images is None:
            return None
        entrance = layer.inputs[0]
        tensors = evaluate(self.before.graph, images, (entrance, layer.name))
        return tensors[entrance], tensors[layer.name]

    def measure(self, offers: tuple[Offer, ...]) -> Point:
        """The network with these splits, folded where an expansion and a linear layer behind it are cheaper as one."""
        key = tuple(id(offer.split) for offer in offers)
        if key not in self._known:
            self._known[key] = self._measure(offers)
        return self._known[key]

    def _measure(self, offers: tuple[Offer, ...]) -> Point:
        if not offers:
            return self.before
        graph = fold_cascades(apply_splits(self.before.graph, [offer.split for offer in offers]), self.options)
        judge = self.evidence.judge
        error = None
        if judge is not None and self._outputs is not None:
            error = output_error(self._outputs, evaluate(graph, judge))
        return Point(offers, graph, graph_macs(graph), error, self.evidence.accuracy(graph))


# ------------------------------------------------------------------------------------------------------------ choosing


@dataclass(frozen=True, slots=True)
class Choice:
    """Splits of different layers, the multiplies a frame and the loss that they should add up to."""

    macs: int
    loss: float
    offers: tuple[Offer, ...]


def choices(layers: Sequence[Sequence[Offer]], whole: int) -> list[Choice]:
    """The choices that no other beats in multiplies and in loss, by rising multiplies."""
    front = [Choice(whole, 0.0, ())]
    for offers in layers:
        joined = front + [
            Choice(choice.macs - whole + offer.macs, choice.loss + offer.loss, (*choice.offers, offer))
            for choice in front
            for offer in offers
            if offer.macs < whole
        ]
        joined.sort(key=lambda choice: (choice.macs, choice.loss))
        front = []
        for choice in joined:
            if not front or choice.loss < front[-1].loss:
                front.append(choice)
        front = _thinned(front, WIDTH)
    return front


def _thinned(front: Sequence[Choice], most: int) -> list[Choice]:
    """At most so many choices, evenly spread, the first and the last among them."""
    if len(front) <= most:
        return list(front)
    return [front[round(n * (len(front) - 1) / (most - 1))] for n in range(most)]


def _within(offers: Mapping[str, Sequence[Offer]], error: float, whole: int) -> tuple[Offer, ...]:
    """For each layer the split of fewest multiplies whose responses stay within an error."""
    good = ([offer for offer in some if offer.error <= error and offer.macs < whole] for some in offers.values())
    return tuple(min(some, key=lambda offer: (offer.macs, offer.error)) for some in good if some)


def _reach(meter: _Meter, front: Sequence[Choice], macs: int) -> Point:
    """The network of least expected loss within so many multiplies."""
    for choice in sorted(front, key=lambda choice: choice.loss):
        if choice.macs <= macs and (point := meter.measure(choice.offers)).macs <= macs:
            return point
    least = meter.measure(front[0].offers).macs
    message = f"cannot be reached: rank 1 wherever it pays leaves {least} multiplies a frame"
    raise CompileError(f"--macs {macs}", message, f"ask for {least} or more")


def _hold(meter: _Meter, front: Sequence[Choice], drop: float) -> Point:
    """The cheapest network that loses so many points of accuracy at most: among those measured, then among their neighbours."""
    measured = _thinned(front, POINTS)
    at = next(n for n, choice in enumerate(measured) if _drop(meter, choice) <= drop)  # the last is the whole network
    start = front.index(measured[at - 1]) + 1 if at else 0
    between = _thinned(front[start : front.index(measured[at]) + 1], POINTS)
    return meter.measure(next(choice for choice in between if _drop(meter, choice) <= drop).offers)


def _drop(meter: _Meter, choice: Choice) -> float:
    """The points of accuracy that a network loses."""
    before, after = meter.before.accuracy, meter.measure(choice.offers).accuracy
    if before is None or after is None:
        raise ValueError("accuracy must be measured on labelled images")
    return round(100 * (before - after), 9)


# ----------------------------------------------------------------------------------------------------------- decisions


def _decisions(meter: _Meter, offers: Mapping[str, Sequence[Offer]], chosen: Point, budget: Budget) -> list[Decision]:
    taken = {offer.split.name: offer for offer in chosen.offers}
    return [
        _taken(meter, layer, taken[layer.name]) if layer.name in taken else _refused(meter, layer, offers[layer.name], budget)
        for layer in _layers(meter.before.graph)
    ]


def _taken(meter: _Meter, layer: Layer, offer: Offer) -> Decision:
    split, graph = offer.split, meter.before.graph
    reason = (
        f"{_kernels(graph, split)} give its responses with {_error(meter, offer)}; {_pays(graph, layer)}"
        if split.scheme == "channel"
        else f"{_kernels(graph, split)} give its responses with {_error(meter, offer)}"
    )
    return Decision("low_rank", (layer.name,), True, reason, node_macs(graph, layer), split.macs, offer.error)


def _refused(meter: _Meter, layer: Layer, offers: Sequence[Offer], budget: Budget) -> Decision:
    graph = meter.before.graph
    macs = node_macs(graph, layer)
    paying = [offer for offer in offers if offer.macs < meter.before.macs]
    if not paying:
        return Decision("low_rank", (layer.name,), False, f"no rank saves a multiply: {_pays(graph, layer)}", macs, macs)
    best = min(paying, key=lambda offer: (offer.error, offer.macs))
    saved = meter.before.macs - best.macs
    reason = f"{_kernels(graph, best.split)} would save {saved:,} multiplies, with {_error(meter, best)}"
    if best.output_error is not None:
        reason += f" and {100 * best.output_error:.3g} % of the network's output"
    reason += f": not within {budget}" if budget.error is not None else f": within {budget} other layers give more for less"
    return Decision("low_rank", (layer.name,), False, f"{reason}; {_pays(graph, layer)}", macs, best.split.macs, best.error)


def _kernels(graph: Graph, split: Split) -> str:
    """The two layers of a split in words."""
    shape = split.arrays[f"{split.first.name}.w"].shape, split.arrays[f"{split.second.name}.w"].shape
    outputs = graph.shapes[split.name][2]
    if isinstance(split.first, Dense):
        return f"a dense layer to {split.rank} channels and one to {outputs}"
    (h1, w1), (h2, w2) = shape[0][3:5], shape[1][3:5]
    return f"{h1}×{w1} to {split.rank} channels and {h2}×{w2} to {outputs}"


def _error(meter: _Meter, offer: Offer) -> str:
    if meter.evidence.judge is None:
        return f"an error of {100 * offer.error:.3g} % of the weights"
    return f"an error of {100 * offer.error:.3g} % of their spread on images not fitted"


def _pays(graph: Graph, layer: Layer) -> str:
    taps, outputs, rank = break_even(graph, layer)
    return f"with K = {taps} taps and M = {outputs} outputs a split of channels pays below rank K·M/(K + M) = {rank:.1f}"


# -------------------------------------------------------------------------------------------------------------- record


def record(found: Compressed) -> dict[str, Any]:
    """All that was measured, for JSON."""
    return {
        "name": found.graph.name,
        "budget": str(found.budget),
        "before": _point(found.before),
        "after": _point(found.chosen),
        "curve": [_point(point) for point in found.curve],
        "layers": [
            {
                "name": layer.name,
                "source": layer.source,
                "macs": node_macs(found.before.graph, layer),
                **dict(zip(("taps", "outputs", "break_even"), break_even(found.before.graph, layer), strict=True)),
                "curve": [_offer(offer) for offer in found.offers[layer.name]],
            }
            for layer in _layers(found.before.graph)
        ],
        "decisions": [asdict(decision) for decision in found.graph.decisions if decision.rule == "low_rank"],
    }


def _point(point: Point) -> dict[str, Any]:
    ranks = {offer.split.name: {"scheme": offer.split.scheme, "rank": offer.split.rank} for offer in point.offers}
    return {"macs": point.macs, "output_error": point.output_error, "accuracy": point.accuracy, "splits": ranks}


def _offer(offer: Offer) -> dict[str, Any]:
    return {
        "scheme": offer.split.scheme,
        "rank": offer.split.rank,
        "layer_macs": offer.split.macs,
        "macs": offer.macs,
        "error": offer.error,
        "output_error": offer.output_error,
        "accuracy": offer.accuracy,
    }
