"""Turn what is left of linear operators into plain convolutions, which an engine takes."""

from __future__ import annotations

from ..graph import (
    Add,
    BatchNorm,
    Concat,
    Conv2D,
    Dense,
    DepthToSpace,
    Graph,
    Linear,
    Node,
    Pca,
    ScaleBias,
    Upsample,
)
from .algebra import ConvMap, node_map
from .merge import merge
from .rewrite import apply_folds, sole_consumer


def lower_linear(graph: Graph) -> Graph:
    """A projection is a 1×1 convolution, an average a kernel of equal weights, a group a kernel with zeros.

    They can then be folded *forward*, into the convolution behind: exactly, by border classes, since a zero
    padded onto ``Q·(x − μ)`` is not ``−Q·μ``. What finds no neighbour runs as it is, zeros and all.

    *Before*::

        project: 8×8×2 = pca(image)
        edges: 8×8×4 = conv2d(project, 3×3, padding ((1, 1), (1, 1)))

    *After*::

        project: 8×8×2 = conv2d(image, 1×1)
        edges: 8×8×4 = conv2d(project, 3×3, padding ((1, 1), (1, 1)))

    *Requires* a real graph, and ``fold_batchnorm`` and ``fold_pca`` before it, which cost nothing. *Leaves* of linear
    operators only plain convolutions, dense layers, joins, and what writes blocks of pixels.
    """
    folds = []
    for node in graph.nodes:
        if isinstance(node, Linear) and not _is_plain(node):
            conv = node_map(graph, node)
            folds.append(merge("lower", (node,), conv, _reason(graph, node, conv)))
    return apply_folds(graph, folds)


def _is_plain(node: Linear) -> bool:
    if isinstance(node, Conv2D):
        return node.plain
    return isinstance(node, Dense | DepthToSpace | Upsample | Add | Concat)


def _reason(graph: Graph, node: Linear, conv: ConvMap) -> str:
    kind = f"so it becomes a {conv.kernel[0]}×{conv.kernel[1]} convolution"
    match node:
        case Conv2D():
            zeros = conv.w_rcohwi.size - graph.weights[f"{node.name}.w"].size
            gaps = [f"{node.groups} groups"] * (node.groups > 1)
            gaps += [f"a dilation of {node.dilation[0]}×{node.dilation[1]}"] * (node.dilation != (1, 1))
            return f"the engine has no {' and no '.join(gaps)}, {kind} with {zeros:,} zeros among its weights"
        case BatchNorm() | ScaleBias() | Pca():
            return f"{_why(graph, graph.node(node.inputs[0]))}, {kind}"
    return f"{node.op} is linear, {kind} that its neighbours can take over"


def _why(graph: Graph, producer: Node) -> str:
    if not isinstance(producer, Conv2D | Dense):
        return f"'{producer.name}' in front of it ({producer.op}) has no weights to fold into"
    if sole_consumer(graph, producer.name) is None:
        return f"'{producer.name}' in front of it is needed elsewhere too"
    return f"it is not folded into '{producer.name}' in front of it"
