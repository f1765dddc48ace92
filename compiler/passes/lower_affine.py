"""Turn what is left of batch norms and projections into 1×1 convolutions."""

from __future__ import annotations

import numpy as np

from ..evaluate import normalization, real_array
from ..graph import BatchNorm, Conv2D, Dense, Graph, Node, Pca
from ..numbers import RealArray
from .rewrite import Fold, apply_folds, sole_consumer


def lower_affine(graph: Graph) -> Graph:
    """``A·x + a`` at every pixel is a 1×1 convolution with weights ``A`` and bias ``a``.

    It can then be folded *forward*, into the convolution behind it: exactly, by border classes, since a zero
    padded onto ``Q·(x − μ)`` is not ``−Q·μ``.

    *Before*::

        project: 8×8×2 = pca(image)
        edges: 8×8×4 = conv2d(project, 3×3, padding ((1, 1), (1, 1)))

    *After*::

        project: 8×8×2 = conv2d(image, 1×1)
        edges: 8×8×4 = conv2d(project, 3×3, padding ((1, 1), (1, 1)))

    *Requires* a real graph, and ``fold_batchnorm`` and ``fold_pca`` before it, which cost nothing. *Leaves*
    neither batch norms nor projections.
    """
    return apply_folds(
        graph, [_lower(graph, node) for node in graph.nodes if isinstance(node, BatchNorm | Pca)]
    )


def _lower(graph: Graph, node: BatchNorm | Pca) -> Fold:
    w_oi, b_o = _affine(graph, node)
    conv = Conv2D(name=node.name, inputs=node.inputs, source=node.source)
    return Fold(
        rule="lower",
        layers=(node,),
        nodes=(conv,),
        arrays={f"{node.name}.w": w_oi[None, None, :, None, None, :], f"{node.name}.b": b_o[None, None, :]},
        reason=f"{_why(graph, graph.node(node.inputs[0]))}, so it becomes a 1×1 convolution",
    )


def _affine(graph: Graph, node: BatchNorm | Pca) -> tuple[RealArray, RealArray]:
    if isinstance(node, BatchNorm):
        scale, shift = normalization(graph, node)
        return np.diag(scale), shift
    q_rc = real_array(graph, f"{node.name}.components")
    return q_rc, -q_rc @ real_array(graph, f"{node.name}.mean")


def _why(graph: Graph, producer: Node) -> str:
    if not isinstance(producer, Conv2D | Dense):
        return f"'{producer.name}' in front of it ({producer.op}) has no weights to fold into"
    if sole_consumer(graph, producer.name) is None:
        return f"'{producer.name}' in front of it is needed elsewhere too"
    return f"it is not folded into '{producer.name}' in front of it"
