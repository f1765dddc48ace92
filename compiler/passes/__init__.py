"""The folds: everything linear that can be done before the chip exists, exactly and in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ..graph import Add, Clip, Concat, Graph
from ..verify import verify
from .drop_clips import drop_clips
from .drop_identities import drop_identities
from .fold_batchnorm import fold_batchnorm
from .fold_branches import fold_branches
from .fold_cascades import fold_cascades
from .fold_pad import fold_pad
from .fold_pca import fold_pca
from .hoist_clip import hoist_clip
from .lower_linear import lower_linear
from .options import DEFAULT, Cost, FoldMode, Options
from .prune_channels import prune_channels

__all__ = ["DEFAULT", "Cost", "FoldMode", "Options", "Pass", "fold", "fold_order", "pass_name"]

Pass = Callable[[Graph], Graph]


def fold_order(options: Options = DEFAULT) -> tuple[Pass, ...]:
    """The order of the folds: it stands here and nowhere else."""
    return (
        drop_identities,  # first, so that nothing stands in the way of the others
        partial(fold_pad, options=options),  # a part of the layer that reads it, it is in nobody's way either
        partial(drop_clips, options=options),  # an idle clip is part of the linear region around it
        partial(fold_branches, options=options),  # before norms and projections, which then stand behind one layer
        fold_batchnorm,  # it costs nothing and clears the way for the rest
        partial(fold_pca, options=options),  # a projection then stands directly behind its convolution
        fold_batchnorm,  # and a norm behind that projection behind a convolution
        lower_linear,  # a projection that found nothing in front of it can still fold forward
        fold_batchnorm,  # with a norm behind it, as above
        hoist_clip,  # now it is final what stands between two convolutions
        partial(prune_channels, options=options),  # now that rectifiers stand directly behind their layers
        partial(fold_cascades, options=options),  # last: its choice needs every layer as it would stay
    )


def pass_name(step: Pass) -> str:
    """A pass as it is named in the source and in errors."""
    return str((step.func if isinstance(step, partial) else step).__name__)


def fold(graph: Graph, options: Options = DEFAULT) -> Graph:
    """The graph with every fold applied, each decision in ``decisions``; verified after every pass.

    A proof opens the way to more folds, and a fold to more proofs: then all passes take another turn, until nothing is
    left to take. Only then is it final what is refused.
    """
    while True:
        folded = _turn(graph, options)
        news = folded.decisions[len(graph.decisions) :]
        taken = tuple(decision for decision in news if decision.taken)
        proofs = any(decision.certificate for decision in (*taken, *(d for d in news if d.rule == "prune")))
        settled = replace(folded, decisions=(*graph.decisions, *taken))
        if not taken or not (proofs or options.fold == "interior" or _shows_more(settled, folded, options)):
            return folded
        graph = settled


def _turn(graph: Graph, options: Options) -> Graph:
    for step in fold_order(options):
        graph = verify(step(graph), stage=pass_name(step))
    return graph


def _shows_more(settled: Graph, folded: Graph, options: Options) -> bool:
    """Whether another turn finds what the first could not: proofs about clips, or branches that pay now."""
    if not any(isinstance(node, Clip | Add | Concat) for node in folded.nodes):
        return False
    once, again = ({(d.rule, d.layers) for d in graph.decisions} for graph in (folded, _turn(settled, options)))
    return not again <= once
