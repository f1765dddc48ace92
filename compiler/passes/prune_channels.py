"""Remove channels that are proven constant, or that nothing reads, from the layers on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..bounds import Bounds, certify, find_bounds
from ..evaluate import real_array
from ..graph import Array, BorderClasses, Certificate, Clip, Conv2D, Decision, Dense, Graph, MaxPool, Node, node_macs
from .algebra import ConvMap, compose, dense_weights, node_map
from .drop_clips import describe, proven
from .options import DEFAULT, Options
from .rewrite import Fold, apply_folds, fresh_name, record, run_behind, sole_consumer

Layer = Conv2D | Dense
Mask = NDArray[np.bool_]


def prune_channels(graph: Graph, options: Options = DEFAULT) -> Graph:
    """A channel that is always ``v`` behind its rectifier adds ``Σ w·v`` to the next layer, at each tap not in padding.

    *Before*::

        dark: 6×6×4 = conv2d(image, 3×3)
        relu: 6×6×4 = clip(dark, 0 … inf)
        edges: 6×6×2 = conv2d(relu, 3×3, padding ((1, 1), (1, 1)))

    *After*::

        dark_kept: 6×6×3 = conv2d(image, 3×3)
        relu_kept: 6×6×3 = clip(dark_kept, 0 … inf)
        edges: 6×6×2 = conv2d(relu_kept, 3×3, padding ((1, 1), (1, 1)))

    *Requires* nothing. *Leaves* layers with groups or dilation, channels that several layers read, one channel where
    all could go, and constants whose going would cost more weights than it saves: behind zero padding, which is not
    that constant, it takes border classes. Does nothing when folding is off.
    """
    if options.fold == "off":
        return graph
    while True:
        bounds = find_bounds(graph)
        prunings = [pruning for run in _runs(graph) if (pruning := _find(graph, run, bounds, options))]
        refused = [_refusal(graph, pruning) for pruning in prunings if not pruning.pays]
        folds: list[Fold] = []
        taken: set[str] = set()
        names = set(graph.shapes)
        for pruning in prunings:
            layers = {node.name for node in pruning.run.nodes}
            if pruning.pays and not layers & taken:  # what overlaps comes next time
                taken |= layers
                folds.append(_fold(graph, pruning, names))
        if not folds:
            return record(graph, refused)
        graph = apply_folds(graph, folds)


# -------------------------------------------------------------------------------------------------------------- finding


@dataclass(frozen=True, slots=True)
class _Run:
    """A layer, what stands between it and the only layer that reads it, and that layer."""

    maker: Layer
    between: tuple[Clip | MaxPool, ...]
    reader: Layer

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.maker, *self.between, self.reader


@dataclass(frozen=True, slots=True, eq=False)
class _Pruning:
    """Which channels of a run stay, what the reader becomes without the others, and why they may go."""

    run: _Run
    kept: Mask
    reader_map: ConvMap
    reason: str
    pays: bool
    certificate: Certificate | None


def _runs(graph: Graph) -> Iterator[_Run]:
    for node in graph.nodes:
        if _is_plain(node):
            between: tuple[Clip | MaxPool, ...] = run_behind(graph, node, Clip, MaxPool)
            reader = sole_consumer(graph, between[-1].name if between else node.name)
            if _is_plain(reader):
                yield _Run(node, between, reader)


def _is_plain(node: Node | None) -> TypeGuard[Layer]:
    return isinstance(node, Dense) or (isinstance(node, Conv2D) and node.plain)


def _find(graph: Graph, run: _Run, bounds: Mapping[str, Bounds], options: Options) -> _Pruning | None:
    reader_map = node_map(graph, run.reader)
    box = bounds[run.reader.inputs[0]]
    unread = ~reader_map.w_rcohwi.any(axis=(0, 1, 2, 3, 4))
    constant = (box.low_c == box.high_c) & ~unread & bool(run.between)  # of two linear layers, fold_cascades makes one
    kept = ~(constant | unread)
    kept[0] |= not kept.any()  # a tensor has at least one channel
    if kept.all():
        return None
    constant, unread = constant & ~kept, unread & ~kept

    shape = graph.shapes[run.reader.inputs[0]]
    expand = np.eye(shape[2])[:, kept][None, None, :, None, None, :]
    values = np.where(constant, box.low_c, 0.0)[None, None]
    in_shape = (*shape[:2], int(kept.sum()))
    channels = ConvMap(expand, values, (1, 1), ((0, 0), (0, 0)), BorderClasses(), in_shape, shape)
    without = compose(channels, reader_map)

    certificate = _certificate(run, bounds, constant)
    reasons = [
        *_constant_reason(graph, run, constant, values[0, 0], certificate, without),
        *_unread_reason(run, unread),
    ]
    before = graph.weights[f"{run.maker.name}.w"].size + reader_map.w_rcohwi.size
    after = graph.weights[f"{run.maker.name}.w"].size * kept.mean() + without.w_rcohwi.size
    pays = options.force or after <= before
    if not pays:
        reasons.append(
            f"it would not pay: the border classes take {round(after):,} weights instead of {before:,}. "
            f"Drop the padding of '{run.reader.name}', or force it if multiplies matter more"
        )
    return _Pruning(run, kept, without, "; ".join(reasons), pays, certificate)


def _certificate(run: _Run, bounds: Mapping[str, Bounds], constant: Mask) -> Certificate | None:
    """The proof at the first clip that makes channels constant; without a clip their weights are all zero."""
    for clip in run.between:
        if isinstance(clip, Clip):
            box = bounds[clip.inputs[0]]
            stuck = constant & ((box.high_c <= clip.low) | (box.low_c >= clip.high))
            if stuck.any():
                return certify(clip, box, "constant", np.flatnonzero(stuck).tolist())
    return None


# -------------------------------------------------------------------------------------------------------------- telling


def _constant_reason(
    graph: Graph, run: _Run, constant: Mask, values: Array, certificate: Certificate | None, without: ConvMap
) -> Iterator[str]:
    if not constant.any():
        return
    found = np.unique(values[constant])
    always = f"{found[0]:.4g}" if len(found) == 1 else f"one value each ({found[0]:.4g} … {found[-1]:.4g})"
    of = run.reader.inputs[0]
    if certificate is None:
        why = "its weights there are zero"
    else:
        (clip,) = (node for node in run.between if isinstance(node, Clip) and node.name == certificate.layer)
        why = f"{proven(graph, certificate)}, where {describe(clip)} is stuck"
    yield f"{_count(constant)} of '{of}' {'is' if constant.sum() == 1 else 'are'} always {always}: {why}"
    if found.any():
        border = without.classes.count > 1
        classes = f"{len(without.classes.rows)}×{len(without.classes.cols)}"
        yield f"what that adds to '{run.reader.name}' is part of its bias now" + (
            f", with {classes} border classes, since a padded zero is not that constant" if border else ""
        )


def _unread_reason(run: _Run, unread: Mask) -> Iterator[str]:
    if unread.any():
        meet = "meets" if unread.sum() == 1 else "meet"
        yield f"{_count(unread)} of '{run.reader.inputs[0]}' {meet} only weights of zero in '{run.reader.name}'"


def _count(mask: Mask) -> str:
    shown = ", ".join(map(str, np.flatnonzero(mask)[:8])) + ("…" if mask.sum() > 8 else "")
    return f"{mask.sum()} of {len(mask)} channels ({shown})"


def _refusal(graph: Graph, pruning: _Pruning) -> Decision:
    macs = sum(node_macs(graph, node) for node in pruning.run.nodes)
    layers = tuple(node.name for node in pruning.run.nodes)
    return Decision("prune", layers, False, pruning.reason, macs, macs, None, pruning.certificate)


# ------------------------------------------------------------------------------------------------------------- changing


def _fold(graph: Graph, pruning: _Pruning, taken: set[str]) -> Fold:
    """Every tensor with fewer channels is a new one, and gets a new name."""
    run, conv = pruning.run, pruning.reader_map
    maker, reader = run.maker, run.reader
    tensor = fresh_name(f"{maker.name.removesuffix('_kept')}_kept", taken)
    axis = 0 if isinstance(maker, Dense) else 2
    arrays: dict[str, Array] = {
        f"{tensor}.{part}": real_array(graph, f"{maker.name}.{part}").compress(pruning.kept, axis)
        for part in ("w", "b")
    }
    nodes: list[Node] = [replace(maker, name=tensor)]
    for node in run.between:
        name = fresh_name(f"{node.name.removesuffix('_kept')}_kept", taken)
        nodes.append(replace(node, name=name, inputs=(tensor,)))
        tensor = name
    if isinstance(reader, Dense):
        nodes.append(replace(reader, inputs=(tensor,)))
        arrays |= {f"{reader.name}.w": dense_weights(conv), f"{reader.name}.b": conv.b_rco[0, 0]}
    else:
        nodes.append(replace(reader, inputs=(tensor,), padding=conv.padding, classes=conv.classes))
        arrays |= {f"{reader.name}.w": conv.w_rcohwi, f"{reader.name}.b": conv.b_rco}
    return Fold("prune", run.nodes, tuple(nodes), arrays, pruning.reason, pruning.certificate)
