"""Fold linear layers that stand directly behind one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from math import inf

import numpy as np

from ..graph import (
    AveragePool,
    BatchNorm,
    BorderClasses,
    ChannelShuffle,
    Clip,
    Conv2D,
    Crop,
    Decision,
    Dense,
    DepthToSpace,
    Dropout,
    Flatten,
    Graph,
    MaxPool,
    Node,
    Pad,
    Pointwise,
    Prelu,
    ScaleBias,
    Slice,
    SpaceToDepth,
    Upsample,
    node_macs,
)
from .algebra import ConvMap, NotAConvolution, behind, block_of, compose, node_map, outline, unblock_nearest, unflatten
from .fold_branches import kept_branches
from .merge import WORD_BITS, layer_size, merge, merged_size
from .options import DEFAULT, Options, Size
from .rewrite import Fold, apply_folds, record, run_behind, sole_consumer

Layer = Conv2D | Dense | AveragePool | BatchNorm | ScaleBias
"""What multiplies."""
Mover = Slice | ChannelShuffle | SpaceToDepth | Pad | Crop | Dropout
Blocks = DepthToSpace | Upsample | Flatten
"""What no convolution computes, but one can read."""
Step = Layer | Mover | Blocks
STEPS: tuple[type[Step], ...] = Step.__args__
Chain = tuple[Step, ...]

Price = tuple[int, float, int]
"""What one group adds, to be compared in this order: broken wishes, cost, groups."""


def fold_cascades(graph: Graph, options: Options = DEFAULT) -> Graph:
    """A chain of linear layers is one convolution; it is cut into the groups that cost least.

    A layer alone costs what it is: groups, averages and scales multiply little, and what moves samples nothing. Merged
    they are kernels with all their zeros, so that pays where a neighbour is thin. Upsampling and depth to space become
    a part of the convolution that reads them, where its stride allows that.

    *Before*::

        reduce: 8×8×2 = conv2d(image, 1×1)
        edges: 8×8×4 = conv2d(reduce, 3×3, padding ((1, 1), (1, 1)))

    *After*::

        edges: 8×8×4 = conv2d(image, 3×3, padding ((1, 1), (1, 1)), classes 3×3)

    *Requires* projections folded or lowered. *Leaves* neighbours that are not one affine map, that are
    needed apart, or that would cost more as one: each with a decision that says so.
    """
    if options.fold != "off":
        folds = []
        for chain in _chains(graph):
            cuts = cheapest_cuts(len(chain), *chain_prices(graph, chain, options))
            groups = (chain[start:stop] for start, stop in cuts)
            folds += [_merge(graph, group, options) for group in groups if len(group) > 1]
        graph = apply_folds(graph, folds)
    return record(graph, [*kept_branches(graph, options), *_kept_pairs(graph, options)])


# ------------------------------------------------------------------------------------------------------------ choosing


def _chains(graph: Graph) -> Iterator[Chain]:
    """Every longest run of steps in which each is the only consumer of the one before."""
    seen: set[str] = set()
    for node in graph.nodes:
        if isinstance(node, Step) and node.name not in seen:
            chain: Chain = (node, *run_behind(graph, node, *STEPS))
            seen |= {step.name for step in chain}
            yield chain


Pricing = Callable[[int, int], Price | None]


def cheapest_cuts(length: int, price: Pricing, floor: Pricing) -> list[tuple[int, int]]:
    """The cheapest way to cut ``length`` steps into groups ``start … stop − 1``; a price of ``None`` is no group.

    The cheapest cut of the first ``stop`` steps ends in some group, and cuts the steps before that group in the
    cheapest way: ``O(length²)`` prices, as against ``2^(length−1)`` ways. No price is asked for whose ``floor``, which
    must not be above it, is too high already.
    """
    best: list[tuple[Price, list[tuple[int, int]]]] = [((0, 0.0, 0), [])]
    for stop in range(1, length + 1):
        floors = ((floor(start, stop), start) for start in range(stop))
        hopes = sorted((add_prices(best[start][0], least), start) for least, start in floors if least is not None)
        found: tuple[Price, int] | None = None
        for hope, start in hopes:
            if found is not None and hope >= found[0]:
                break
            if (added := price(start, stop)) is not None:
                way = add_prices(best[start][0], added), start
                found = way if found is None else min(found, way)
        if found is None:
            raise ValueError(f"step {stop - 1} must be in some group")
        total, start = found
        best.append((total, [*best[start][1], (start, stop)]))
    return best[-1][1]


def add_prices(one: Price, other: Price) -> Price:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def chain_prices(graph: Graph, chain: Chain, options: Options) -> tuple[Pricing, Pricing]:
    """The price of the steps ``start … stop − 1`` of a chain as one layer, and what it is at least.

    The kernel of a group follows from sizes, and that is the floor. Its border classes follow from one channel.
    """
    interior = options.fold == "interior"
    outlines = [None if isinstance(step, Blocks) else outline(graph, step) for step in chain]

    @cache
    def geometry(start: int, stop: int) -> ConvMap | None:
        """A group in one channel, where it is a convolution."""
        step, first, last = chain[start], outlines[start], outlines[stop - 1]
        if start + 1 == stop or last is None:
            return first if start + 1 == stop else None
        if all(outlines[start:stop]):
            front = geometry(start, stop - 1)
            return front and compose(front, last, interior=interior)
        if (rest := geometry(start + 1, stop)) is None:
            return None
        try:
            return _outline_behind(graph, step, rest, interior=interior)
        except NotAConvolution:
            return None

    def wishes(start: int, stop: int) -> int | None:
        """How many are broken by a group; ``None`` for one that a layer forbids."""
        if any(step.fold == "forbid" for step in chain[start + 1 : stop]):
            return None
        return int(start > 0 and (chain[start].fold == "force" or (options.force and chain[start].fold == "auto")))

    def price_of(start: int, stop: int, conv: ConvMap, broken: int) -> Price:
        in_shape, out_shape = graph.shapes[chain[start].inputs[0]], graph.shapes[chain[stop - 1].name]
        return broken, options.cost.of(merged_size(chain[start:stop], conv, in_shape, out_shape)), 1

    def price(start: int, stop: int) -> Price | None:
        if (broken := wishes(start, stop)) is None:
            return None
        if start + 1 == stop:
            return broken, options.cost.of(layer_size(graph, chain[start])), 1
        conv = geometry(start, stop)
        return None if conv is None else price_of(start, stop, conv, broken)

    def floor(start: int, stop: int) -> Price | None:
        if (broken := wishes(start, stop)) is None or start + 1 == stop:
            return price(start, stop)
        maps = [conv for conv in outlines[start:stop] if conv is not None]
        if len(maps) < stop - start:
            return broken, 0.0, 1
        return price_of(start, stop, _without_classes(maps), broken)

    return price, floor


def _without_classes(maps: Sequence[ConvMap]) -> ConvMap:
    """The kernel and the stride of convolutions behind one another."""
    kernel, stride = [1, 1], [1, 1]
    for conv in maps:
        for axis in (0, 1):
            kernel[axis] += (conv.kernel[axis] - 1) * stride[axis]
            stride[axis] *= conv.stride[axis]
    w_rcohwi = np.zeros((1, 1, 1, *kernel, 1))
    return replace(maps[0], w_rcohwi=w_rcohwi, classes=BorderClasses(), stride=(stride[0], stride[1]))


# ------------------------------------------------------------------------------------------------------------- merging


def _merge(graph: Graph, group: Chain, options: Options) -> Fold:
    merged = _group_map(graph, group, options)
    return merge("cascade", group, merged, _merge_reason(graph, group, merged))


def _group_map(graph: Graph, group: Chain, options: Options) -> ConvMap:
    """From the front, which takes the fewest products, but for what stands in front of a block."""
    interior = options.fold == "interior"
    blocks = max((n for n, step in enumerate(group, start=1) if isinstance(step, Blocks)), default=0)
    merged = node_map(graph, group[blocks])
    for step in group[blocks + 1 :]:
        merged = compose(merged, node_map(graph, step), interior=interior)
    for step in reversed(group[:blocks]):
        merged = behind(graph, step, merged, interior=interior)
    return merged


def _merge_reason(graph: Graph, group: Chain, merged: ConvMap) -> str:
    before = sum(graph.weights[f"{step.name}.w"].size for step in group if isinstance(step, Conv2D | Dense))
    size = merged_size(group, merged, merged.in_shape, merged.out_shape)
    stride = f" at stride {merged.stride[0]}×{merged.stride[1]}" if merged.stride != (1, 1) else ""
    one = f"{merged.kernel[0]}×{merged.kernel[1]}{stride}"
    parts = [f"{_kernels(graph, group)} are one {one}: taps at u1 + u2·s1, bias b2 + Σ w2·b1"]
    if merged.classes.count > 1:
        classes = f"{len(merged.classes.rows)}×{len(merged.classes.cols)}"
        parts.append(f"zero padding stands between, so {classes} border classes keep it exact")
    if not merged.exact:
        parts.append("zero padding stands between, but the interior's kernel is used everywhere, as asked")
    parts.append(f"{before:,} weights become {(size.weight_bits + size.class_bits) // WORD_BITS:,}")
    return "; ".join(parts)


def _kernels(graph: Graph, group: Chain) -> str:
    return " and then ".join(_kernel(graph, step) for step in group)


def _kernel(graph: Graph, step: Step) -> str:
    if not isinstance(step, Conv2D | Dense | AveragePool):
        return step.op
    kh, kw = outline(graph, step).kernel
    if isinstance(step, AveragePool):
        return f"{kh}×{kw} average"
    return f"{kh}×{kw}" if isinstance(step, Dense) or step.groups == 1 else f"{kh}×{kw} in {step.groups} groups"


# ------------------------------------------------------------------------------------------------------------ refusing


def layers_between(graph: Graph, layer: Layer) -> tuple[Layer | None, tuple[Node, ...]]:
    """The layer with weights in front of another one, and what stands between the two."""
    between: list[Node] = []
    node = graph.node(layer.inputs[0])
    while isinstance(node, Clip | MaxPool | Pointwise | Prelu | Mover | Blocks):
        between.insert(0, node)
        node = graph.node(node.inputs[0])
    return (node if isinstance(node, Layer) else None), tuple(between)


def _kept_pairs(graph: Graph, options: Options) -> Iterator[Decision]:
    """Why each pair of neighbours stays a pair, with the multiplies it would take as one layer.

    Where no such layer exists, ``macs_after`` is what they take now.
    """
    for second in graph.nodes:
        if not isinstance(second, Layer):
            continue
        first, between = layers_between(graph, second)
        if first is None:
            continue
        before = after = node_macs(graph, first) + node_macs(graph, second)
        group = (first, *(node for node in between if isinstance(node, Step)), second)
        reason = _obstacle(between)
        if reason is None:
            reason, after = _refusal(graph, group, options, before)
        yield Decision("cascade", (first.name, second.name), False, reason, before, after)


def _refusal(graph: Graph, group: Chain, options: Options, before: int) -> tuple[str, int]:
    """Why a group of linear steps stays apart, and how many multiplies there would be else."""
    try:
        now, one = _sizes(graph, group, options)
    except NotAConvolution as error:
        return f"{error}. Give the reader a stride that is a multiple of the block to have one layer", before
    if readers := _needed_apart(graph, group):
        return readers, one.multiplies + node_macs(graph, group[0])
    counts = f"one layer would take {one.multiplies:,} multiplies instead of {before:,}"
    if options.fold == "off":
        return f"folding is off: {counts}. Choose 'exact' or 'interior' to have one", one.multiplies
    if forbidding := [f"'{step.name}'" for step in group[1:] if step.fold == "forbid"]:
        return f"{forbidding[0]} forbids it: {counts}", one.multiplies
    return _does_not_pay(_kernels(graph, group), now, one), one.multiplies


def _sizes(graph: Graph, group: Chain, options: Options) -> tuple[Size, Size]:
    """What the steps of a group need apart, and as one."""
    now, conv = Size(0), outline(graph, group[-1])
    for step in group:
        now += layer_size(graph, step)
    for step in reversed(group[:-1]):
        conv = _outline_behind(graph, step, conv, interior=options.fold == "interior")
    return now, merged_size(group, conv, graph.shapes[group[0].inputs[0]], graph.shapes[group[-1].name])


def _outline_behind(graph: Graph, step: Step, conv: ConvMap, *, interior: bool) -> ConvMap:
    """One channel of a convolution behind a step, as one of what the step reads."""
    height, width, _ = graph.shapes[step.inputs[0]]
    if isinstance(step, Flatten):
        return unflatten(replace(conv, w_rcohwi=np.ones((1, 1, 1, 1, 1, height * width))), step, (height, width, 1))
    if isinstance(step, Blocks):
        return unblock_nearest(conv, step, (height, width, 1), block_of(step))
    return compose(outline(graph, step), conv, interior=interior)


def _does_not_pay(kernels: str, now: Size, one: Size) -> str:
    advice = "Force it if fewer layers matter more"
    if one.multiplies >= now.multiplies:
        return (
            f"it would not pay: {kernels} are one larger kernel, which takes {one.multiplies:,} multiplies "
            f"instead of {now.multiplies:,}. {advice}"
        )
    return (
        f"it would not pay: {kernels} as one take {one.multiplies:,} multiplies instead of {now.multiplies:,}, but "
        f"{one.stored_bits:,} bits of weights and lines instead of {now.stored_bits:,}. {advice}"
    )


def _obstacle(between: tuple[Node, ...]) -> str | None:
    """What is not linear between two layers; a rectifier comes first, for it is what most would ask about."""
    nothing = "so the pair is not one affine map, and no single convolution equals it on every input"
    advice = "Train without it to have one layer"
    for node in between:
        if isinstance(node, Clip):
            rectifier = (node.low, node.high) == (0.0, inf)
            kind = "rectifier" if rectifier else f"limit to {node.low:g} … {node.high:g}"
            return f"a live {kind} stands between ({node.source}): it bends, {nothing}. {advice}"
    for node in between:
        if isinstance(node, MaxPool):
            return (
                f"max pooling stands between ({node.source}): which sample passes depends on the data, "
                f"{nothing}. A stride in its place would be linear"
            )
    for node in between:
        if isinstance(node, Pointwise | Prelu):
            function = node.function if isinstance(node, Pointwise) else node.op
            return f"{function} stands between ({node.source}): it bends, {nothing}. {advice}"
    return None


def _needed_apart(graph: Graph, group: Chain) -> str:
    """Who else reads the first layer of a group, or what stands between it and the last."""
    first, second, *_ = group
    readers = [f"'{node.name}'" for node in graph.consumers(first.name) if node.name != second.name]
    readers += ["the network's output"] * (first.name in graph.outputs)
    if readers:
        return (
            f"'{first.name}' is also needed by {' and '.join(readers)}, so it would be computed all the same. "
            "Let one layer alone read it to merge the two"
        )
    shared = " and ".join(f"'{step.name}'" for step in group[1:-1] if sole_consumer(graph, step.name) is None)
    return f"{shared} between is needed elsewhere too" if shared else ""
