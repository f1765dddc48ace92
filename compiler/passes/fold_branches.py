"""Fold linear branches that part and come together again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from ..graph import (
    Add,
    AveragePool,
    ChannelShuffle,
    Concat,
    Conv2D,
    Decision,
    Graph,
    Linear,
    Node,
    Slice,
    SpaceToDepth,
    node_macs,
)
from .algebra import ConvMap, NotAConvolution, add, behind, identity, reads, unbiased
from .merge import merge, merged_size
from .options import DEFAULT, Options
from .rewrite import Fold, apply_folds


def fold_branches(graph: Graph, options: Options = DEFAULT) -> Graph:
    """Everything between a tensor and the sum (or the stack) of its linear branches is one convolution.

    The map of a whole region is built from its end: what the end makes of a tensor is the sum, over the readers of
    that tensor, of what the end makes of theirs. It saves the branches' queues, so it is done unless the kernel would
    need more multiplies for its zeros, which groups, averages and blocks leave out.

    *Before*::

        wide: 8×8×2 = conv2d(image, 3×3, padding ((1, 1), (1, 1)))
        point: 8×8×2 = conv2d(image, 1×1)
        sum: 8×8×2 = add(wide, point, image)

    *After*::

        sum: 8×8×2 = conv2d(image, 3×3, padding ((1, 1), (1, 1)))

    *Requires* a real graph. *Leaves* branches with something in them that is not linear or is needed elsewhere, those
    that are no convolution together, and all of them when folding is off; `kept_branches` says which and why.
    """
    folds: list[Fold] = []
    for region in _regions(graph):
        if not isinstance(fold := _fold(graph, region, options), str):
            inside = {node.name for node in region}
            folds = [inner for inner in folds if inner.layers[-1].name not in inside] + [fold]
    return apply_folds(graph, folds)


def kept_branches(graph: Graph, options: Options = DEFAULT) -> Iterator[Decision]:
    """Why branches are still there."""
    for region in _regions(graph):
        reason = _fold(graph, region, options)
        if isinstance(reason, str):
            macs = sum(node_macs(graph, node) for node in region)
            yield Decision("branches", tuple(node.name for node in region), False, reason, macs, macs)


# ------------------------------------------------------------------------------------------------------------- regions


def _regions(graph: Graph) -> Iterator[tuple[Node, ...]]:
    """For every join, what lies between the last tensor that all its branches come from and the join itself."""
    from_input: dict[str, tuple[str, ...]] = {}  # the tensors that every way from the network's input passes
    for node in graph.nodes:
        ways = [from_input[name] for name in node.inputs]
        shared = tuple(step[0] for step in takewhile(lambda step: len({*step}) == 1, zip(*ways, strict=False)))
        from_input[node.name] = (*shared, node.name)
        if isinstance(node, Add | Concat):
            yield _between(graph, shared[-1], node)


def _between(graph: Graph, entrance: str, join: Node) -> tuple[Node, ...]:
    wanted = {join.name}
    region: list[Node] = []
    for node in reversed(graph.nodes):
        if node.name in wanted and node.name != entrance:
            region.insert(0, node)
            wanted |= set(node.inputs)
    return tuple(region)


def _fold(graph: Graph, region: Sequence[Node], options: Options) -> Fold | str:
    """A region as one layer, or the reason why it is none."""
    join, inside = region[-1], {node.name for node in region}
    where = f"the branches that meet in '{join.name}'"
    linear = [node for node in region if isinstance(node, Linear)]
    if len(linear) < len(region):
        bent = next(node for node in region if not isinstance(node, Linear))
        return f"{bent.op} ({bent.source}) stands in {where}: it bends, so they are not one affine map"
    for node in region[:-1]:
        readers = [f"'{reader.name}'" for reader in graph.consumers(node.name) if reader.name not in inside]
        readers += ["the network's output"] * (node.name in graph.outputs)
        if readers:
            return f"'{node.name}' in {where} is also needed by {' and '.join(readers)}"
    for node in linear:
        if node.fold == "forbid" and inside & set(node.inputs):
            return f"'{node.name}' in {where} forbids it"
    if options.fold == "off":
        return f"folding is off: {where} are linear. Choose 'exact' or 'interior' to have one layer"
    try:
        conv = _region_map(graph, linear, interior=options.fold == "interior")
    except NotAConvolution as error:
        return f"{where} are no convolution together: {error}"
    forced = options.force or any(node.fold == "force" for node in linear)
    if not forced and any(_leaves_zeros_out(node) for node in linear):
        before = sum(node_macs(graph, node) for node in linear)
        after = merged_size(linear, conv, conv.in_shape, conv.out_shape).multiplies
        if after > before:
            return (
                f"it would not pay: {where} as one kernel with all its zeros take {after:,} multiplies instead of "
                f"{before:,}. Force it if fewer layers matter more"
            )
    return merge("branches", linear, conv, _reason(graph, linear, conv))


def _leaves_zeros_out(node: Linear) -> bool:
    """Whether a layer alone multiplies less than the kernel it is as a convolution."""
    if isinstance(node, Conv2D):
        return node.groups > 1
    return isinstance(node, AveragePool | ChannelShuffle | Slice | SpaceToDepth)


def _region_map(graph: Graph, region: Sequence[Linear], *, interior: bool) -> ConvMap:
    """What the end of a region makes of its entrance.

    From the end to the front, ``to_end`` holds what the end makes of every tensor whose readers are all done. A join
    hands its own map to each of its inputs, and its bias to the first alone.
    """
    entrance, end = region[0].inputs[0], region[-1]
    to_end: dict[str, ConvMap] = {end.name: identity(graph.shapes[end.name])}
    for node in reversed(region):
        conv, start = to_end.pop(node.name), 0
        for number, name in enumerate(node.inputs):
            part = conv
            match node:
                case Add():
                    pass
                case Concat():
                    stop = start + graph.shapes[name][2]
                    part, start = reads(conv, start, stop), stop
                case _:
                    part = behind(graph, node, conv, interior=interior)
            part = unbiased(part) if number else part
            to_end[name] = add(to_end[name], part) if name in to_end else part
    return to_end[entrance]


def _reason(graph: Graph, region: Sequence[Linear], conv: ConvMap) -> str:
    join, entrance = region[-1], region[0].inputs[0]
    verb, kernel = "add up to" if isinstance(join, Add) else "stack to", f"{conv.kernel[0]}×{conv.kernel[1]}"
    parts = [
        f"all between '{entrance}' and '{join.name}' is linear: {len(join.inputs)} branches {verb} one {kernel} kernel"
    ]
    if conv.classes.count > 1:
        classes = f"{len(conv.classes.rows)}×{len(conv.classes.cols)}"
        parts.append(f"zero padding stands inside, so {classes} border classes keep it exact")
    if not conv.exact:
        parts.append("zero padding stands inside, but the interior's kernel is used everywhere, as asked")
    return "; ".join(parts)
