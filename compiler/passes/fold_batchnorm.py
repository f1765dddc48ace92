"""Fold batch norms, and scales with biases, into the layer in front of them, or into the dense layer behind."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile

import numpy as np

from ..evaluate import real_array, scale_and_shift
from ..graph import BatchNorm, Conv2D, Dense, Graph, ScaleBias
from .rewrite import Fold, apply_folds, merged_source, run_behind, sole_consumer

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

    In front of a dense layer alone it is as free: ``W·(s·x + t) + b`` is ``(W·s)·x + (b + W·t)``.

    *Requires* a real graph. *Leaves* batch norms that stand elsewhere, or beside others that read the same layer, and
    those that forbid it.
    """
    return _fold_forward(_fold_back(graph))


def _fold_back(graph: Graph) -> Graph:
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
            scale, shift = scale_and_shift(graph, norm)
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


def _fold_forward(graph: Graph) -> Graph:
    folds = []
    for dense in graph.nodes:
        if not isinstance(dense, Dense) or dense.fold == "forbid":
            continue
        norm = graph.node(dense.inputs[0])
        if not isinstance(norm, BatchNorm | ScaleBias) or sole_consumer(graph, norm.name) is None:
            continue
        scale, shift = scale_and_shift(graph, norm)
        w_oi, pixels = real_array(graph, f"{dense.name}.w"), graph.shapes[norm.name][0] * graph.shapes[norm.name][1]
        layers, b_o = (norm, dense), real_array(graph, f"{dense.name}.b") + w_oi @ np.tile(shift, pixels)
        folds.append(
            Fold(
                rule=norm.op,
                layers=layers,
                nodes=(replace(dense, inputs=norm.inputs, source=merged_source(layers)),),
                arrays={f"{dense.name}.w": w_oi * np.tile(scale, pixels), f"{dense.name}.b": b_o},
                reason="W' = W·s and b' = b + W·t, where the layer in front of it makes s·x + t",
            )
        )
    return _fold_forward(apply_folds(graph, folds)) if folds else graph
