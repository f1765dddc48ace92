"""Fold convolutions and dense layers that stand directly behind one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf, prod

from ..graph import Clip, Conv2D, Decision, Dense, Graph, MaxPool, node_macs
from .algebra import ConvMap, compose, dense_weights, layer_map
from .options import DEFAULT, Options
from .rewrite import Fold, apply_folds, merged_source, record, run_behind, sole_consumer

Layer = Conv2D | Dense
LAYERS: tuple[type[Layer], ...] = (Conv2D, Dense)
Group = tuple[Layer, ...]


def fold_cascades(graph: Graph, options: Options = DEFAULT) -> Graph:
    """A chain of convolutions is one convolution; it is cut into the groups that multiply least.

    *Before*::

        reduce: 8×8×2 = conv2d(image, 1×1)
        edges: 8×8×4 = conv2d(reduce, 3×3, padding ((1, 1), (1, 1)))

    *After*::

        edges: 8×8×4 = conv2d(image, 3×3, padding ((1, 1), (1, 1)), classes 3×3)

    *Requires* batch norms and projections folded or lowered. *Leaves* neighbours that are not one affine map,
    that are needed apart, or that would take more multiplies as one: each with a decision that says so.
    """
    if options.fold != "off":
        cost: Callable[[Graph, Group], int] = (lambda _graph, _group: 0) if options.force else merged_macs
        groups = [
            group for chain in _chains(graph) for group in _partition(graph, chain, cost) if len(group) > 1
        ]
        graph = apply_folds(graph, [_merge(graph, group, options) for group in groups])
    return record(graph, list(_refusals(graph, options)))


# ------------------------------------------------------------------------------------------------- choosing


def merged_macs(graph: Graph, group: Group) -> int:
    """Multiplies of a group of neighbours as one layer; follows from sizes alone."""
    in_shape, (height, width, channels) = graph.shapes[group[0].inputs[0]], graph.shapes[group[-1].name]
    if _is_dense(graph, group):
        return prod(in_shape) * channels
    kernel, stride = [1, 1], [1, 1]
    for layer in group:
        step = layer_map(graph, layer)
        for axis in (0, 1):
            kernel[axis] += (step.kernel[axis] - 1) * stride[axis]
            stride[axis] *= step.stride[axis]
    return height * width * channels * prod(kernel) * in_shape[2]


def _is_dense(graph: Graph, group: Group) -> bool:
    return graph.shapes[group[-1].name][:2] == (1, 1) and any(isinstance(layer, Dense) for layer in group)


def _chains(graph: Graph) -> Iterator[Group]:
    """Every longest run of layers in which each is the only consumer of the one before."""
    seen: set[str] = set()
    for node in graph.nodes:
        if isinstance(node, Layer) and node.name not in seen:
            chain: Group = (node, *run_behind(graph, node, *LAYERS))
            seen |= {layer.name for layer in chain}
            yield chain


def _partition(graph: Graph, chain: Group, cost: Callable[[Graph, Group], int]) -> list[Group]:
    """The cheapest way to cut a chain into groups; of two that cost the same, the one with fewer groups."""
    best: list[tuple[int, list[Group]]] = [(0, [])]
    for stop in range(1, len(chain) + 1):
        cuts = (
            (best[start][0] + cost(graph, chain[start:stop]), [*best[start][1], chain[start:stop]])
            for start in range(stop)
        )
        best.append(min(cuts, key=lambda cut: (cut[0], len(cut[1]))))
    return best[-1][1]


# -------------------------------------------------------------------------------------------------- merging


def _merge(graph: Graph, group: Group, options: Options) -> Fold:
    maps = [layer_map(graph, layer) for layer in group]
    merged = maps[-1]
    for step in reversed(maps[:-1]):
        merged = compose(step, merged, interior=options.fold == "interior")
    last, source, inputs = group[-1], merged_source(group), group[0].inputs
    weight_bits = max((layer.weight_bits for layer in group if layer.weight_bits is not None), default=None)
    node: Layer
    if _is_dense(graph, group):
        w, b = dense_weights(merged), merged.b_rco[0, 0]
        node = Dense(name=last.name, inputs=inputs, source=source, bits=last.bits, weight_bits=weight_bits)
    else:
        w, b = merged.w_rcohwi, merged.b_rco
        node = Conv2D(
            name=last.name,
            inputs=inputs,
            source=source,
            stride=merged.stride,
            padding=merged.padding,
            classes=merged.classes,
            bits=last.bits,
            weight_bits=weight_bits,
        )
    arrays = {f"{last.name}.w": w, f"{last.name}.b": b}
    return Fold("cascade", group, (node,), arrays, _merge_reason(maps, merged, w.size))


def _merge_reason(maps: list[ConvMap], merged: ConvMap, weights: int) -> str:
    stride = f" at stride {merged.stride[0]}×{merged.stride[1]}" if merged.stride != (1, 1) else ""
    parts = [f"{_kernels(maps)} are one {_kernels([merged])}{stride}: taps at u1 + u2·s1, bias b2 + Σ w2·b1"]
    if merged.classes.count > 1:
        classes = f"{len(merged.classes.rows)}×{len(merged.classes.cols)}"
        parts.append(f"zero padding stands between, so {classes} border classes keep it exact")
    if not merged.exact:
        parts.append("zero padding stands between, but the interior's kernel is used everywhere, as asked")
    parts.append(f"{sum(step.w_rcohwi.size for step in maps):,} weights become {weights:,}")
    return "; ".join(parts)


def _kernels(maps: list[ConvMap]) -> str:
    return " and then ".join(f"{step.kernel[0]}×{step.kernel[1]}" for step in maps)


# ------------------------------------------------------------------------------------------------- refusing


def layers_between(graph: Graph, layer: Layer) -> tuple[Layer | None, tuple[Clip | MaxPool, ...]]:
    """The layer with weights in front of another one, and the rectifiers and pools between the two."""
    between: list[Clip | MaxPool] = []
    node = graph.node(layer.inputs[0])
    while isinstance(node, Clip | MaxPool):
        between.insert(0, node)
        node = graph.node(node.inputs[0])
    return (node if isinstance(node, Layer) else None), tuple(between)


def _refusals(graph: Graph, options: Options) -> Iterator[Decision]:
    """Why each pair of neighbours stays a pair, with the multiplies it would take as one layer.

    Where no such layer exists, ``macs_after`` is what they take now.
    """
    for second in graph.nodes:
        if not isinstance(second, Layer):
            continue
        first, between = layers_between(graph, second)
        if first is None:
            continue
        before = node_macs(graph, first) + node_macs(graph, second)
        after = merged_macs(graph, (first, second))
        if between:
            after, reason = before, _obstacle(between)
        elif sole_consumer(graph, first.name) is None:
            after, reason = after + node_macs(graph, first), _needed_apart(graph, first, second)
        elif options.fold == "off":
            reason = (
                f"folding is off: one layer would take {after:,} multiplies instead of {before:,}. "
                "Choose 'exact' or 'interior' to have one"
            )
        else:
            kernels = _kernels([layer_map(graph, first), layer_map(graph, second)])
            reason = (
                f"it would not pay: {kernels} are one larger kernel, which takes {after:,} multiplies "
                f"instead of {before:,}. Force it if fewer layers matter more"
            )
        yield Decision("cascade", (first.name, second.name), False, reason, before, after)


def _obstacle(between: tuple[Clip | MaxPool, ...]) -> str:
    """What is not linear between two layers; a rectifier comes first, for it is what most would ask about."""
    nothing = "so the pair is not one affine map, and no single convolution equals it on every input"
    advice = "Train without it to have one layer"
    for node in between:
        if isinstance(node, Clip):
            rectifier = (node.low, node.high) == (0.0, inf)
            kind = "rectifier" if rectifier else f"limit to {node.low:g} … {node.high:g}"
            return f"a live {kind} stands between ({node.source}): it bends, {nothing}. {advice}"
    return (
        f"max pooling stands between ({between[0].source}): which sample passes depends on the data, "
        f"{nothing}. A stride in its place would be linear"
    )


def _needed_apart(graph: Graph, first: Layer, second: Layer) -> str:
    readers = [f"'{node.name}'" for node in graph.consumers(first.name) if node is not second]
    readers += ["the network's output"] * (first.name in graph.outputs)
    return (
        f"'{first.name}' is also needed by {' and '.join(readers)}, so it would be computed all the same. "
        "Let one layer alone read it to merge the two"
    )
