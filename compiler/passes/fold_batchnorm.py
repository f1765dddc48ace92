"""Fold batch norms, and scales with biases, into the convolution or dense layer in front of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile

from ..evaluate import normalization, real_array
from ..graph import BatchNorm, Conv2D, Dense, Graph, ScaleBias
from ..numbers import RealArray
from .rewrite import Fold, apply_folds, merged_source, run_behind

REASONS = {
    "batch_norm": "W' = s·W and b' = s·b + β − s·μ with s = γ/√(σ² + ε), per channel",
    "scale_bias": "W' = s·W and b' = s·b + β, per channel",
}


def fold_batchnorm(graph: Graph) -> Graph:
    """``γ·(W·x + b − μ)/√(σ² + ε) + β`` is ``(s·W)·x + (s·b + β − s·μ)`` with ``s = γ/√(σ² + ε)``.

    *Before*::

        edges: 8×8×4 = conv2d(image, 3×3, padding ((1, 1), (1, 1)))
        norm: 8×8×4 = batch_norm(edges)

    *After*::

        norm: 8×8×4 = conv2d(image, 3×3, padding ((1, 1), (1, 1)))

    *Requires* a real graph. *Leaves* batch norms that stand behind anything else, or behind a layer that
    others read too, and those that forbid it.
    """
    folds = []
    for node in graph.nodes:
        if not isinstance(node, Conv2D | Dense):
            continue
        run: tuple[BatchNorm | ScaleBias, ...] = run_behind(graph, node, BatchNorm, ScaleBias)
        norms = tuple(takewhile(lambda norm: norm.fold != "forbid", run))
        if not norms:
            continue
        w, b = real_array(graph, f"{node.name}.w"), real_array(graph, f"{node.name}.b")
        for norm in norms:
            scale, shift = _scale(graph, norm)
            w = w * (scale[:, None] if isinstance(node, Dense) else scale[:, None, None, None])
            b = b * scale + shift
        layers = (node, *norms)
        name = norms[-1].name
        folds.append(
            Fold(
                rule=norms[0].op,
                layers=layers,
                nodes=(replace(node, name=name, source=merged_source(layers)),),
                arrays={f"{name}.w": w, f"{name}.b": b},
                reason=REASONS[norms[0].op],
            )
        )
    return apply_folds(graph, folds)


def _scale(graph: Graph, norm: BatchNorm | ScaleBias) -> tuple[RealArray, RealArray]:
    if isinstance(norm, BatchNorm):
        return normalization(graph, norm)
    return real_array(graph, f"{norm.name}.scale"), real_array(graph, f"{norm.name}.bias")
