"""What was folded, what was not and why, in sentences that each carry their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from .bounds import Bounds, find_bounds
from .evaluate import evaluate
from .graph import AveragePool, Certificate, Clip, Conv2D, Decision, Dense, Graph, Node, Pca, graph_macs
from .numbers import RealArray
from .passes.drop_clips import describe
from .passes.fold_cascades import layers_between
from .passes.rewrite import PROBES, relative_error

EXACT_ERROR = 1e-9
"""The greatest relative difference that rounding may leave in a fold that is exact on paper."""

KEEPS_LAYERS = ("drop_clip", "hoist", "loosen_clip", "prune")
"""Rules that merge no layers, so that each goes by its own name afterwards."""
LOSSY = ("approximate", "low_rank")
"""Rules that lose something, each within a budget of the user's."""
IMAGES = 256
"""Images of the user's on which folds are measured; more are left out."""
BATCH = 4
"""Images at a time: every tensor of both networks stands in memory."""
SHOWN_CHANNELS = 8
"""Channels of a certificate that are printed; the manifest has them all."""

RANDOM = f"{PROBES} random inputs"
"""What folds are measured on by themselves, with a fixed seed."""

PCA_TRAP = (
    "PCA is affine: the mean μ of the responses goes into the bias. The trap is to run sklearn's PCA.transform "
    "on the filters instead: it subtracts the mean filter m from them, and a convolution with those differs "
    "from the projection by exactly (1 − Σ patch)·mᵀQ at every pixel. If that is what you trained, set residue = true"
)
PCA_PADDING = (
    "A zero padded onto a projection is not the projection of a zero pixel, which is −Q·μ: to fold it "
    "forward into a padded convolution takes border classes"
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision in words; any but ``title`` and ``reason`` may be empty. ``str`` is the paragraph to print."""

    decision: Decision
    title: str
    reason: str
    multiplies: str
    check: str
    note: str
    proof: str = ""

    def __str__(self) -> str:
        details = (self.reason, self.proof, self.multiplies, self.check, self.note)
        return "\n".join([f"{self.title}.", *(f"  {detail}." for detail in details if detail)])


@dataclass(frozen=True, slots=True, eq=False)
class _Facts:
    """What is measured and proven for the explanations.

    ``written`` are the nodes of the graph before, ``left`` those of the graph ``after``. Of each clip that is left,
    ``acts`` is the share of values that it changes, and ``bounds`` are what is proven of the tensor that it reads.
    ``errors`` are the relative differences of tensors that both graphs have.
    """

    written: Mapping[str, Node]
    left: Mapping[str, Node]
    after: Graph
    data: str
    acts: Mapping[str, float]
    bounds: Mapping[str, Bounds]
    errors: Mapping[str, float]


def explain(before: Graph, after: Graph, images: RealArray | None = None) -> tuple[Explanation, ...]:
    """Every decision between two graphs, in order, told in the names of the layers ``before``.

    Folds are measured on ``images (N, H, W, C)``, if there are any: each from the input to the tensor where it ends,
    which takes in all that was folded before. One whose tensor is not left has the error on random inputs.
    """
    facts = _find_facts(before, after, images)
    made_of: dict[str, tuple[str, ...]] = {}
    explanations = []
    for decision in after.decisions[len(before.decisions) :]:
        parts = [made_of.get(layer, (layer,)) for layer in decision.layers]
        explanations.append(_explanation(facts, decision, parts))
        if decision.taken and decision.rule not in KEEPS_LAYERS:
            made_of[decision.layers[-1]] = tuple(name for names in parts for name in names)
    return tuple(explanations)


def summarize(before: Graph, after: Graph) -> str:
    """The whole in one sentence."""
    taken = sum(decision.taken for decision in after.decisions)
    refused = len(after.decisions) - taken
    return (
        f"{before.name}: {len(before.nodes) - 1} layers became {len(after.nodes) - 1}, "
        f"{_change(graph_macs(before), graph_macs(after))} multiplies a frame; {taken} folds, {refused} refused"
    )


def compare(before: Graph, after: Graph, images: RealArray | None = None) -> str:
    """How far the outputs of two networks are apart on images, or on random inputs, in one sentence."""
    x_bhwc, data = _inputs(before, images)
    apart = []
    for start in range(0, len(x_bhwc), BATCH):
        expected, found = (evaluate(graph, x_bhwc[start : start + BATCH]) for graph in (before, after))
        pairs = zip(before.outputs, after.outputs, strict=True)
        apart += [relative_error(expected[one], found[other]) for one, other in pairs]
    return f"The network as a whole, {_exactness(max(apart), data)}"


# ------------------------------------------------------------------------------------------------------------ measuring


def _inputs(graph: Graph, images: RealArray | None) -> tuple[RealArray, str]:
    """The inputs to measure on, and what to call them."""
    if images is not None:
        return images[:IMAGES], f"{min(len(images), IMAGES)} images"
    source = graph.input
    return np.random.default_rng(0).uniform(source.low, source.high, (PROBES, *source.shape)), RANDOM


def _find_facts(before: Graph, after: Graph, images: RealArray | None) -> _Facts:
    x_bhwc, data = _inputs(before, images)
    shared = {name for name, shape in before.shapes.items() if after.shapes.get(name) == shape}
    errors, acts = _measure(before, after, x_bhwc, frozenset() if images is None else frozenset(shared))
    wanted = {node.inputs[0] for node in after.nodes if isinstance(node, Clip)}
    written, left = ({node.name: node for node in graph.nodes} for graph in (before, after))
    return _Facts(written, left, after, data, acts, find_bounds(after, wanted) if wanted else {}, errors)


def _measure(
    before: Graph, after: Graph, x_bhwc: RealArray, shared: frozenset[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """The relative difference of each shared tensor, and the share of its input that each clip of ``after`` changes."""
    clips = [node for node in after.nodes if isinstance(node, Clip)]
    apart, greatest = dict.fromkeys(shared, 0.0), dict.fromkeys(shared, 0.0)
    acts = {clip.name: 0.0 for clip in clips}
    for start in range(0, len(x_bhwc), BATCH):
        batch = x_bhwc[start : start + BATCH]
        expected = evaluate(before, batch, shared)
        found = evaluate(after, batch, {*shared, *(clip.inputs[0] for clip in clips)})
        for name in shared:
            apart[name] = max(apart[name], float(np.abs(found[name] - expected[name]).max()))
            greatest[name] = max(greatest[name], float(np.abs(expected[name]).max()))
        for clip in clips:
            y_bhwc = found[clip.inputs[0]]
            changed = float(np.mean((y_bhwc < clip.low) | (y_bhwc > clip.high)))
            acts[clip.name] += changed * len(batch) / len(x_bhwc)
    return {name: apart[name] / (greatest[name] or 1.0) for name in shared}, acts


# -------------------------------------------------------------------------------------------------------------- telling


def _explanation(facts: _Facts, decision: Decision, parts: list[tuple[str, ...]]) -> Explanation:
    names = [" + ".join(part) for part in parts]
    reason = decision.reason[:1].upper() + decision.reason[1:]
    multiplies = f"Multiplies a frame: {_change(decision.macs_before, decision.macs_after)}"
    if not decision.taken:
        if decision.macs_before == decision.macs_after:
            multiplies = f"Multiplies a frame: {decision.macs_before:,}"
        else:
            multiplies = f"Multiplies a frame: {decision.macs_before:,} apart, {decision.macs_after:,} as one"
    if decision.macs_before == decision.macs_after == 0:
        multiplies = ""
    title, check, note = _title(decision, names), _check(facts, decision), _note(facts, decision, parts)
    return Explanation(decision, title, reason, multiplies, check, note, _proof(decision.certificate))


def _proof(certificate: Certificate | None) -> str:
    """The bounds of the first channels that a certificate speaks of."""
    if certificate is None:
        return ""
    shown = [
        f"channel {c} {certificate.low[c]:.4g} … {certificate.high[c]:.4g}"
        for c in certificate.channels[:SHOWN_CHANNELS]
    ]
    more = len(certificate.channels) - len(shown)
    shown += [f"and {more} more in the manifest"] * (more > 0)
    return f"Certificate for '{certificate.tensor}', {certificate.method}: {', '.join(shown)}"


def _title(decision: Decision, names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    listed = " and ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)
    if not decision.taken:
        return {"drop_clip": f"Kept {listed}", "prune": f"Pruned no channels of {quoted[0]}"}.get(
            decision.rule, f"Kept {listed} apart"
        )
    match decision.rule:
        case "low_rank":
            return f"Split {listed} into two layers of low rank"
        case "approximate":
            return f"Approximated {listed} by one layer"
        case "lower":
            return f"Rewrote {listed} as a convolution"
        case "hoist":
            return f"Moved {quoted[-1]} in front of {' and '.join(quoted[:-1])}"
        case "batch_norm" | "scale_bias" | "pca":
            return f"Folded {' and '.join(quoted[1:])} into {quoted[0]}"
        case "drop_clip":
            return f"Removed {listed}, which is proven to change nothing"
        case "loosen_clip":
            return f"Removed a limit of {listed} that is proven never to act"
        case "prune":
            return f"Pruned channels of {quoted[0]} that tell {quoted[-1]} nothing"
        case "cascade" | "branches":
            return f"Merged {listed} into one layer"
        case "identity":
            return f"Dropped {listed}"
    return f"Changed {listed} ({decision.rule})"


def _check(facts: _Facts, decision: Decision) -> str:
    if decision.error is None:
        return ""
    if decision.rule in LOSSY:
        share = f"{100 * decision.error:.3g} % of the spread of its responses"
        return f"Measured on images that were not fitted: differs by {share}"
    if decision.taken and decision.layers[-1] in facts.errors:
        return f"Checked {_exactness(facts.errors[decision.layers[-1]], facts.data)}"
    return f"Checked {_exactness(decision.error, RANDOM)}"


def _exactness(error: float, data: str) -> str:
    if error == 0:
        return f"on {data}: equal to the last bit"
    if error <= EXACT_ERROR:
        return f"on {data}: exact, but for rounding of {error:.1e} of the greatest value"
    return f"on {data}: NOT exact, differs by up to {100 * error:.3g} % of the greatest value"


def _note(facts: _Facts, decision: Decision, parts: list[tuple[str, ...]]) -> str:
    """What one has to know beside the reason, and what the user could change."""
    if not decision.taken:
        return _live(facts, decision) if decision.rule == "cascade" else ""
    written = [facts.written[name] for part in parts for name in part if name in facts.written]
    match decision.rule:
        case "pca":
            return PCA_TRAP
        case "lower" if any(isinstance(node, Pca) for node in written):
            return PCA_PADDING
        case "cascade" | "branches":
            return _border(facts, decision, written)
    return ""


def _live(facts: _Facts, decision: Decision) -> str:
    """How far the clip between two layers is from doing nothing, and what would open the way."""
    second = facts.left.get(decision.layers[-1])
    if not isinstance(second, Conv2D | Dense):
        return ""
    between = layers_between(facts.after, second)[1]
    clip = next((node for node in between if isinstance(node, Clip)), None)
    if clip is None:
        return ""
    box, tensor = facts.bounds[clip.inputs[0]], clip.inputs[0]
    low, high = float(box.low_c.min()), float(box.high_c.max())
    if clip.low <= low and high <= clip.high:
        return ""
    share = facts.acts[clip.name]
    seen = f"changes {_percent(share)} of the values" if share else "changes nothing, but that is only seen"
    wish = "never negative" if (clip.low, clip.high) == (0.0, inf) else "to lie within its limits"
    student = ", or let --approximate fit one layer to data" * (between == (clip,))
    return (
        f"On {facts.data} {describe(clip)} {seen}: '{tensor}' is proven to lie within {low:.4g} … {high:.4g}. Were it "
        f"proven {wish}, {describe(clip)} would vanish: narrow the input's range or shift the biases. Or train "
        f"with it behind '{second.name}'{student}"
    )


def _percent(share: float) -> str:
    """A share that is not rounded to nothing, nor to all."""
    percent = 100 * share
    return "less than 1 %" if 0 < percent < 1 else "more than 99 %" if 99 < percent < 100 else f"{percent:.0f} %"


def _border(facts: _Facts, decision: Decision, written: list[Node]) -> str:
    """How to do without border classes."""
    node = facts.left.get(decision.layers[-1])
    if not isinstance(node, Conv2D) or node.classes.count == 1:
        return ""
    padded = [
        f"'{layer.name}'"
        for layer in written[1:]
        if isinstance(layer, Conv2D | AveragePool) and layer.padding != ((0, 0), (0, 0))
    ]
    ways = [f"drop the padding of {' and '.join(padded)}"] * bool(padded)
    ways.append("choose --fold interior, where the border differs")
    return f"To store one kernel in place of {node.classes.count}, {' or '.join(ways)}"


def _change(before: int, after: int) -> str:
    """Two counts and the change in percent."""
    if before == after:
        return f"{before:,} → {after:,} (as before)"
    percent = f"{round(100 * (after - before) / before):+d} %" if before else "from none"
    return f"{before:,} → {after:,} ({percent.replace('-', '−')})"
