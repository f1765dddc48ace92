"""Remove the limits that are proven never to be touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf

import numpy as np

from ..bounds import Bounds, certify, find_bounds
from ..evaluate import evaluate
from ..graph import Certificate, Clip, Decision, Graph, Input
from .options import DEFAULT, Options
from .rewrite import PROBES, record, relative_error


def drop_clips(graph: Graph, options: Options = DEFAULT) -> Graph:
    """``min(max(x, low), high)`` is ``x`` where ``x`` is proven to lie within ``low … high``.

    *Before*::

        relu: 6×6×2 = clip(dark, 0 … inf)
        edges: 4×4×4 = conv2d(relu, 3×3)

    *After*::

        edges: 4×4×4 = conv2d(dark, 3×3)

    *Requires* nothing. *Leaves* clips that some channel needs, with a decision where others do not, and less a
    limit that none of them needs. Does nothing when folding is off.
    """
    if options.fold == "off" or not any(isinstance(node, Clip) for node in graph.nodes):
        return graph
    bounds = find_bounds(graph)
    clips = [node for node in graph.nodes if isinstance(node, Clip)]
    kept = {clip.name: _kept(graph, clip, bounds[clip.inputs[0]]) for clip in clips}
    changes = [(clip, kept[clip.name]) for clip in clips if kept[clip.name] is not clip]
    if changes:
        decisions = list(_decisions(graph, changes, bounds))
        graph = replace(_rewired(graph, kept), decisions=(*graph.decisions, *decisions))
    return record(graph, list(_mixtures(graph, bounds)))


def _kept(graph: Graph, clip: Clip, box: Bounds) -> Clip | None:
    """A clip with the limits that it needs; none if it needs none, the same object if all."""
    low = -inf if (box.low_hwc >= clip.low).all() else clip.low
    high = inf if (box.high_hwc <= clip.high).all() else clip.high
    if (low, high) == (clip.low, clip.high):
        return clip
    if (low, high) != (-inf, inf):
        return replace(clip, low=low, high=high)
    source = graph.node(clip.inputs[0])
    leaves = clip.name in graph.outputs and (isinstance(source, Input) or source.name in graph.outputs)
    return clip if leaves else None


def _rewired(graph: Graph, kept: Mapping[str, Clip | None]) -> Graph:
    """The graph with the clips that are kept; who read one that is not reads what it read."""
    stands_for: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(stands_for.get(name, name) for name in node.inputs))
        if isinstance(node, Clip):
            clip = kept[node.name]
            if clip is None:
                stands_for[node.name] = node.inputs[0]
                continue
            node = replace(node, low=clip.low, high=clip.high)
        nodes.append(node)
    outputs = tuple(stands_for.get(name, name) for name in graph.outputs)
    heads = tuple((stands_for.get(name, name), head) for name, head in graph.heads)
    return replace(graph, nodes=tuple(nodes), outputs=outputs, heads=heads)


def _decisions(
    graph: Graph, changes: list[tuple[Clip, Clip | None]], bounds: Mapping[str, Bounds]
) -> Iterator[Decision]:
    source = graph.input
    x_bhwc = np.random.default_rng(0).uniform(source.low, source.high, (PROBES, *source.shape))
    tensors = evaluate(graph, x_bhwc, {name for clip, _ in changes for name in (clip.name, clip.inputs[0])})
    for clip, kept in changes:
        box = bounds[clip.inputs[0]]
        rule = "identity" if kept is None else "floor" if kept.low == -inf else "ceiling"
        certificate = certify(clip, box, rule, range(len(box.low_c)))
        y_bhwc = tensors[clip.inputs[0]]
        if kept is not None:
            y_bhwc = np.clip(y_bhwc, kept.low, kept.high)
        error = relative_error(tensors[clip.name], y_bhwc)
        reason = f"{proven(graph, certificate)}, so {_consequence(clip, kept)}"
        name = "drop_clip" if kept is None else "loosen_clip"
        yield Decision(name, (clip.name,), True, reason, 0, 0, error, certificate)


def _consequence(clip: Clip, kept: Clip | None) -> str:
    if kept is None:
        return f"{describe(clip)} changes nothing"
    return f"{describe(clip)} never acts on that side: {describe(kept)} is left"


def describe(clip: Clip) -> str:
    """A clip in words."""
    if (clip.low, clip.high) == (0.0, inf):
        return "the rectifier"
    if clip.low == -inf or clip.high == inf:
        return f"the limit to at least {clip.low:g}" if clip.high == inf else f"the limit to at most {clip.high:g}"
    return f"the limit to {clip.low:g} … {clip.high:g}"


METHODS = {
    "exact": "exact, some input attains each bound",
    "affine forms": "by affine forms from layer to layer",
    "intervals": "by intervals from layer to layer",
}


def proven(graph: Graph, certificate: Certificate) -> str:
    """What a certificate says of its channels, in words."""
    source = graph.input
    low = min(certificate.low[c] for c in certificate.channels)
    high = max(certificate.high[c] for c in certificate.channels)
    return (
        f"with inputs in {source.low:g} … {source.high:g}, '{certificate.tensor}' is proven to lie within "
        f"{low:.4g} … {high:.4g} ({METHODS[certificate.method]})"
    )


def _mixtures(graph: Graph, bounds: Mapping[str, Bounds]) -> Iterator[Decision]:
    """Clips that do nothing to some channels but act, for all that is proven, on others."""
    known = {decision.layers for decision in graph.decisions if decision.rule == "drop_clip" and not decision.taken}
    for clip in graph.nodes:
        if not isinstance(clip, Clip) or (clip.name,) in known:
            continue
        box = bounds[clip.inputs[0]]
        idle = np.flatnonzero((box.low_c >= clip.low) & (box.high_c <= clip.high))
        live = len(box.low_c) - len(idle)
        if len(idle) and live:
            certificate = certify(clip, box, "identity", idle.tolist())
            reason = (
                f"{describe(clip)} is proven to change nothing in {len(idle)} of {len(box.low_c)} channels, but it may "
                f"act on the other {live}, so it stays. A larger bias or a narrower input range could settle those"
            )
            yield Decision("drop_clip", (clip.name,), False, reason, 0, 0, None, certificate)
