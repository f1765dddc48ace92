"""Move rectifiers from behind a max pool to in front of it."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Clip, Conv2D, Graph, MaxPool, Node
from .rewrite import Fold, apply_folds, fresh_name, run_behind


def hoist_clip(graph: Graph) -> Graph:
    """``clip(max(x))`` is ``max(clip(x))``, since clipping never turns two samples round.

    Directly behind its convolution a rectifier is two limits of the requantizer; behind a pool it would be a
    stage of its own.

    *Before*::

        pool: 4×4×4 = max_pool(edges, 2×2, stride 2×2)
        relu: 4×4×4 = clip(pool, 0 … inf)

    *After*::

        edges_relu: 8×8×4 = clip(edges, 0 … inf)
        relu: 4×4×4 = max_pool(edges_relu, 2×2, stride 2×2)

    *Requires* a convolution in front of the pool with no other consumer. *Leaves* every other rectifier where
    it is.
    """
    folds = []
    taken = set(graph.shapes)
    for node in graph.nodes:
        if isinstance(node, Conv2D) and (pools := run_behind(graph, node, MaxPool)):
            if clips := run_behind(graph, pools[-1], Clip):
                folds.append(_hoist(node, pools, clips, taken))
    return apply_folds(graph, folds)


def _hoist(conv: Conv2D, pools: tuple[MaxPool, ...], clips: tuple[Clip, ...], taken: set[str]) -> Fold:
    """The clips, then the pools: every tensor is a new one and gets a new name, but the last."""
    nodes: list[Node] = []
    tensor, last = conv.name, clips[-1].name
    for clip in clips:
        nodes.append(replace(clip, name=fresh_name(f"{tensor}_{clip.name}", taken), inputs=(tensor,)))
        tensor = nodes[-1].name
    for pool in pools:
        name = last if pool is pools[-1] else fresh_name(f"{pool.name}_{last}", taken)
        nodes.append(replace(pool, name=name, inputs=(tensor,)))
        tensor = name
    return Fold(
        rule="hoist",
        layers=(*pools, *clips),
        nodes=tuple(nodes),
        arrays={},
        reason="clipping keeps the order of samples, so it may come first, as a part of the convolution",
    )
