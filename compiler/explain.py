"""What was folded, what was not and why, in sentences that each carry their numbers."""

from __future__ import annotations

from dataclasses import dataclass

from .graph import Certificate, Decision, Graph, Pca, graph_macs
from .passes.rewrite import PROBES

EXACT_ERROR = 1e-9
"""The greatest relative difference that rounding may leave in a fold that is exact on paper."""

KEEPS_LAYERS = ("drop_clip", "hoist", "loosen_clip", "prune")
"""Rules that merge no layers, so that each goes by its own name afterwards."""
LOSSY = ("approximate", "low_rank")
"""Rules that lose something, each within a budget of the user's."""
SHOWN_CHANNELS = 8
"""Channels of a certificate that are printed; the manifest has them all."""

PCA_TRAP = (
    "PCA is affine: the mean μ of the responses goes into the bias. The trap is to run sklearn's PCA.transform "
    "on the filters instead: it subtracts the mean filter m from them, and a convolution with those differs "
    "from the projection by exactly (1 − Σ patch)·mᵀQ at every pixel"
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


def explain(before: Graph, after: Graph) -> tuple[Explanation, ...]:
    """Every decision between two graphs, in order, told in the names of the layers ``before``."""
    made_of: dict[str, tuple[str, ...]] = {}
    explanations = []
    for decision in after.decisions[len(before.decisions) :]:
        names = [" + ".join(made_of.get(layer, (layer,))) for layer in decision.layers]
        explanations.append(_explanation(before, decision, names))
        if decision.taken and decision.rule not in KEEPS_LAYERS:
            made_of[decision.layers[-1]] = tuple(
                part for layer in decision.layers for part in made_of.get(layer, (layer,))
            )
    return tuple(explanations)


def summarize(before: Graph, after: Graph) -> str:
    """The whole in one sentence."""
    taken = sum(decision.taken for decision in after.decisions)
    refused = len(after.decisions) - taken
    return (
        f"{before.name}: {len(before.nodes) - 1} layers became {len(after.nodes) - 1}, "
        f"{_change(graph_macs(before), graph_macs(after))} multiplies a frame; {taken} folds, {refused} refused"
    )


def _explanation(before: Graph, decision: Decision, names: list[str]) -> Explanation:
    reason = decision.reason[:1].upper() + decision.reason[1:]
    multiplies = f"Multiplies a frame: {_change(decision.macs_before, decision.macs_after)}"
    if not decision.taken:
        if decision.macs_before == decision.macs_after:
            multiplies = f"Multiplies a frame: {decision.macs_before:,}"
        else:
            multiplies = f"Multiplies a frame: {decision.macs_before:,} apart, {decision.macs_after:,} as one"
    if decision.rule in ("drop_clip", "loosen_clip"):
        multiplies = ""  # a limit takes none
    title, check, note = _title(decision, names), _check(decision), _note(before, decision)
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


def _check(decision: Decision) -> str:
    if decision.error is None:
        return ""
    if decision.rule in LOSSY:
        share = f"{100 * decision.error:.3g} % of the spread of its responses"
        return f"Measured on images that were not fitted: differs by {share}"
    checked = f"Checked on {PROBES} random inputs"
    if decision.error == 0:
        return f"{checked}: equal to the last bit"
    if decision.error <= EXACT_ERROR:
        return f"{checked}: exact, but for rounding of {decision.error:.1e} of the greatest value"
    return f"{checked}: NOT exact, differs by up to {100 * decision.error:.3g} % of the greatest value"


def _note(before: Graph, decision: Decision) -> str:
    if decision.taken and decision.rule == "pca":
        return PCA_TRAP
    if decision.rule == "lower" and isinstance(before.node(decision.layers[-1]), Pca):
        return PCA_PADDING
    return ""


def _change(before: int, after: int) -> str:
    """Two counts and the change in percent."""
    if before == after:
        return f"{before:,} → {after:,} (as before)"
    percent = f"{round(100 * (after - before) / before):+d} %" if before else "from none"
    return f"{before:,} → {after:,} ({percent.replace('-', '−')})"
