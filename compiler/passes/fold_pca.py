"""Fold a PCA projection into the convolution or dense layer in front of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile

import numpy as np

from ..evaluate import projection, real_array
from ..graph import Conv2D, Dense, Graph, Pca
from .options import DEFAULT, Options
from .rewrite import Fold, apply_folds, merged_source, run_behind


def fold_pca(graph: Graph, options: Options = DEFAULT) -> Graph:
    """``Q·(W·x + b − μ)`` is ``(Q·W)·x + Q·(b − μ)``, since matrix products associate.

    *Before*::

        edges: 8×8×4 = conv2d(image, 3×3, padding ((1, 1), (1, 1)))
        project: 8×8×2 = pca(edges)

    *After*::

        project: 8×8×2 = conv2d(image, 3×3, padding ((1, 1), (1, 1)))

    *Requires* a real graph. *Leaves* projections behind anything else or behind a layer that others read too,
    and those onto more channels than they read or behind groups, which ``fold_cascades`` weighs. Does nothing when
    folding is off.
    """
    if options.fold == "off":
        return graph
    folds = []
    for node in graph.nodes:
        if not isinstance(node, Conv2D | Dense) or (isinstance(node, Conv2D) and node.groups > 1):
            continue
        pcas = tuple(takewhile(lambda pca: _folds_back(graph, pca), run_behind(graph, node, Pca)))
        if not pcas:
            continue
        w, b = real_array(graph, f"{node.name}.w"), real_array(graph, f"{node.name}.b")
        for pca in pcas:
            q_rc = projection(graph, pca)
            w = (
                q_rc @ w
                if isinstance(node, Dense)
                else np.einsum("qo,rcohwi->rcqhwi", q_rc, w, optimize=True)
            )
            b = (b - real_array(graph, f"{pca.name}.mean")) @ q_rc.T
        layers, name = (node, *pcas), pcas[-1].name
        folds.append(
            Fold(
                rule="pca",
                layers=layers,
                nodes=(replace(node, name=name, source=merged_source(layers)),),
                arrays={f"{name}.w": w, f"{name}.b": b},
                reason="W' = Q·W and b' = Q·(b − μ): the mean is taken from the bias, never from the filters",
            )
        )
    return apply_folds(graph, folds)


def _folds_back(graph: Graph, pca: Pca) -> bool:
    return pca.fold != "forbid" and graph.shapes[pca.name][2] <= graph.shapes[pca.inputs[0]][2]
