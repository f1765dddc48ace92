"""One layer in the place of several."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..graph import (
    AveragePool,
    BatchNorm,
    Conv2D,
    Dense,
    DepthToSpace,
    FoldRule,
    Graph,
    Linear,
    ScaleBias,
    Shape,
    SpaceToDepth,
    Upsample,
    node_macs,
    window_extent,
)
from .algebra import ConvMap, dense_weights
from .options import Size
from .rewrite import Fold, merged_source

WORD_BITS = 8
"""What a weight or a sample is taken to have when layers are compared, before anything is quantized."""


def merge(rule: str, layers: Sequence[Linear], conv: ConvMap, reason: str) -> Fold:
    """``layers``, which together compute ``conv``, as one convolution, or one dense layer if one is among them."""
    last, source = layers[-1], merged_source(layers)
    inputs = layers[0].inputs[:1]
    wishes = {layer.fold for layer in layers if inputs[0] in layer.inputs}
    fold: FoldRule = "forbid" if "forbid" in wishes else "force" if "force" in wishes else "auto"
    bits = last.bits if isinstance(last, Conv2D | Dense) else None
    own = (layer.weight_bits for layer in layers if isinstance(layer, Conv2D | Dense))
    weight_bits = max((width for width in own if width is not None), default=None)
    node: Conv2D | Dense
    if is_dense(layers, conv.out_shape):
        w, b = dense_weights(conv), conv.b_rco[0, 0]
        node = Dense(name=last.name, inputs=inputs, source=source, fold=fold, bits=bits, weight_bits=weight_bits)
    else:
        w, b = conv.w_rcohwi, conv.b_rco
        node = Conv2D(
            name=last.name,
            inputs=inputs,
            source=source,
            fold=fold,
            stride=conv.stride,
            padding=conv.padding,
            classes=conv.classes,
            bits=bits,
            weight_bits=weight_bits,
        )
    return Fold(rule, tuple(layers), (node,), {f"{last.name}.w": w, f"{last.name}.b": b}, reason)


def is_dense(layers: Sequence[Linear], out_shape: Shape) -> bool:
    """Whether layers become a dense layer: it has one pixel to make, and is read more simply than a convolution."""
    return out_shape[:2] == (1, 1) and any(isinstance(layer, Dense) for layer in layers)


def merged_size(layers: Sequence[Linear], conv: ConvMap, in_shape: Shape, out_shape: Shape) -> Size:
    """What ``layers`` need as one; of ``conv`` only the geometry counts, for it may have one channel alone."""
    kernel, stride = conv.kernel, conv.stride
    if is_dense(layers, out_shape):
        kernel, stride = in_shape[:2], (1, 1)
    weights = prod(kernel) * in_shape[2] * out_shape[2]
    return Size(
        multiplies=weights * out_shape[0] * out_shape[1],
        weight_bits=weights * WORD_BITS,
        class_bits=weights * (conv.classes.count - 1) * WORD_BITS,
        line_bits=_line_bits(in_shape, kernel[0] + stride[0]),
    )


def layer_size(graph: Graph, node: Linear) -> Size:
    """What one layer needs as it is: a group reads its own channels only, and what moves samples multiplies nothing."""
    in_shape = graph.shapes[node.inputs[0]]
    multiplies, weights, classes, rows = node_macs(graph, node), 0, 1, 0
    match node:
        case Conv2D():
            classes = node.classes.count
            weights = graph.weights[f"{node.name}.w"].size // classes
            rows = window_extent(graph.kernel(node)[0], node.dilation[0]) + node.stride[0]
        case Dense():
            weights, rows = multiplies, in_shape[0] + 1
        case AveragePool():
            rows = node.kernel[0] + node.stride[0]
        case BatchNorm() | ScaleBias():
            weights = 2 * in_shape[2]
        case SpaceToDepth():
            rows = 2 * node.block[0]
        case DepthToSpace() | Upsample():
            rows = 2
    return Size(
        multiplies=multiplies,
        weight_bits=weights * WORD_BITS,
        class_bits=weights * (classes - 1) * WORD_BITS,
        line_bits=_line_bits(in_shape, rows),
    )


def _line_bits(in_shape: Shape, rows: int) -> int:
    """A buffer of some rows, but never of more than two maps."""
    return min(rows, 2 * in_shape[0]) * in_shape[1] * in_shape[2] * WORD_BITS
