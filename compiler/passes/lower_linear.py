"""Turn the projections that are left into convolutions, which an engine takes."""

from __future__ import annotations

from ..graph import Conv2D, Dense, Graph, Node, Pca
from .algebra import node_map
from .merge import merge
from .rewrite import apply_folds, sole_consumer


def lower_linear(graph: Graph) -> Graph:
    """A projection is a 1×1 convolution.

    It can then be folded *forward*, into the convolution behind: exactly, by border classes, since a zero padded onto
    ``Q·(x − μ)`` is not ``−Q·μ``. What finds no neighbour runs as it is.

    *Before*::

        project: 8×8×2 = pca(image)
        edges: 8×8×4 = conv2d(project, 3×3, padding ((1, 1), (1, 1)))

    *After*::

        project: 8×8×2 = conv2d(image, 1×1)
        edges: 8×8×4 = conv2d(project, 3×3, padding ((1, 1), (1, 1)))

    *Requires* a real graph, and ``fold_pca`` before it, which costs nothing. *Leaves* every other operator as it is: the
    engine has averages, groups, dilations, scales, and all that moves samples.
    """
    folds = []
    for node in graph.nodes:
        if isinstance(node, Pca):
            reason = f"{_why(graph, graph.node(node.inputs[0]))}, so it becomes a 1×1 convolution"
            folds.append(merge("lower", (node,), node_map(graph, node), reason))
    return apply_folds(graph, folds)


def _why(graph: Graph, producer: Node) -> str:
    if not isinstance(producer, Conv2D | Dense):
        return f"'{producer.name}' in front of it ({producer.op}) has no weights to fold into"
    if sole_consumer(graph, producer.name) is None:
        return f"'{producer.name}' in front of it is needed elsewhere too"
    return f"it is not folded into '{producer.name}' in front of it"
