"""Windows of convolutions, pools and reductions, the same in real and in integer networks."""

from __future__ import annotations

from typing import TypeVar

from ..graph import Crop, DepthToSpace, Pad, Padding, Pair, Shape
from ..numbers import IntArray, RealArray
from .common import nonzero
from .lowering import TransposedConv, transposed_conv
from .tflite_call import Call, Refused

__all__ = [
    "conv_filter",
    "dense_window",
    "depthwise_filter",
    "merged_padding",
    "spatial_kernel",
    "transposed",
    "transposed_filter",
    "transposed_result",
]

Weights = TypeVar("Weights", IntArray, RealArray)


def conv_filter(call: Call, w: Weights) -> tuple[Weights, int]:
    """The weights ``(O, kh, kw, I)`` of CONV_2D and its groups."""
    channels = call.shape(0)[2]
    if w.ndim != 4 or channels % w.shape[3] or w.shape[0] % (channels // w.shape[3]):
        call.fail(f"its filter of shape {w.shape} does not fit an input of {channels} channels")
    return w, channels // w.shape[3]


def depthwise_filter(call: Call, w: Weights) -> tuple[Weights, int]:
    """The weights ``(O, kh, kw, 1)`` of DEPTHWISE_CONV_2D and its groups: one for each channel."""
    channels = call.shape(0)[2]
    if w.ndim != 4 or w.shape[0] != 1 or w.shape[3] % channels:
        call.fail(f"its filter of shape {w.shape} does not fit an input of {channels} channels")
    return w.transpose(3, 1, 2, 0), channels


def merged_padding(call: Call, padding: Padding) -> tuple[str, Padding]:
    """What a convolution reads, and its padding: zeros that are padded in front of it become its own."""
    name = call.activation(0)
    node = call.node(name)
    if not (isinstance(node, Pad) and node.value == 0.0):
        return name, padding
    rows, cols = (tuple(map(sum, zip(*pads, strict=True))) for pads in zip(padding, node.padding, strict=True))
    return node.inputs[0], ((rows[0], rows[1]), (cols[0], cols[1]))


def dense_window(call: Call, shape: tuple[int, ...]) -> tuple[str, Shape]:
    """What a dense layer with weights ``(O, I)`` reads, and its window: the whole map, or one pixel."""
    if call.option("WeightsFormat"):
        raise Refused("its weights are shuffled", "export them in the default format")
    if len(shape) != 2:
        call.fail(f"its weights must have two axes, not the shape {shape}")
    name = call.unflattened(call.activation(0))
    height, width, channels = call.shape_of(name)
    if shape[1] == height * width * channels:
        return name, (height, width, channels)
    height, width, channels = call.shape(0)
    if shape[1] != channels:
        call.fail(f"its {shape[1]} weights an output do not fit an input of {height}×{width}×{channels}")
    return call.activation(0), (1, 1, channels)


def spatial_kernel(call: Call) -> Pair:
    """The window of a reduction over rows, columns or both."""
    shape, sizes = call.shape(0), call.tensor(0).shape
    rank = len(sizes)
    axes = {axis % rank for axis in call.integers(1)} if rank else set()
    places = {1: 0, 2: 1} if rank == 4 else {1: 0} if rank == 3 else {}
    if any(axis not in places and sizes[axis] != 1 for axis in axes):
        raise Refused(f"it reduces the axes {sorted(axes)}", "reduce rows and columns only")
    wide = {places[axis] for axis in axes if axis in places}
    return shape[0] if 0 in wide else 1, shape[1] if 1 in wide else 1


def transposed_filter(call: Call, w: Weights) -> Weights:
    """The weights ``(O, kh, kw, I)`` of TRANSPOSE_CONV."""
    reads, makes = call.shape(2)[2], call.expected()[2]
    if w.ndim != 4 or w.shape[3] != reads or w.shape[0] != makes:
        call.fail(f"its filter of shape {w.shape} does not fit {reads} channels in and {makes} out")
    return w


def transposed(call: Call, w_ohwi: Weights, b_o: Weights) -> tuple[str, TransposedConv]:
    """What the convolution of a TRANSPOSE_CONV reads, and what it is."""
    shape, wanted = call.shape(2), call.expected()
    stride: Pair = call.stride()
    call.spend((*w_ohwi.shape, *stride))
    (top, _), (left, _) = call.padding(wanted, (w_ohwi.shape[1], w_ohwi.shape[2]), stride)
    made = transposed_conv(w_ohwi, b_o, shape[:2], wanted[:2], (top, left), stride)
    call.spend(made.w_ohwi.shape)
    return _cropped(call, call.activation(2), made.cropping, "inner"), made


def transposed_result(call: Call, name: str, made: TransposedConv) -> str:
    """Its channels laid out in blocks, without what was not wanted."""
    if made.block != (1, 1):
        label = "blocks" if nonzero(made.trim) else ""
        blocks = DepthToSpace(name=call.fresh(label), inputs=(name,), source=call.source, block=made.block, order="CRD")
        name = call.add(blocks)
    return _cropped(call, name, made.trim, "")


def _cropped(call: Call, name: str, cropping: Padding, label: str) -> str:
    if not nonzero(cropping):
        return name
    return call.add(Crop(name=call.fresh(label), inputs=(name,), source=call.source, cropping=cropping))
