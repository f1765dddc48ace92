"""Operators of int8 networks, with the integers of the file and the arithmetic of tflite-micro's reference kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..graph import BorderClasses, Padding, Pair, QAdd, QAveragePool, QConv2D, QMultiply, QTable, Softmax
from ..numbers import Format, IntArray
from . import tflite_kernels as kernels
from .tflite_call import Call, Refused, Rule
from .tflite_kernels import Limits
from .tflite_moves import MOVES, broadcast, same_format
from .tflite_windows import (
    conv_filter,
    dense_window,
    depthwise_filter,
    merged_padding,
    spatial_kernel,
    transposed,
    transposed_filter,
    transposed_result,
)

__all__ = ["INTEGER"]


# ------------------------------------------------------------------------------------------------------ convolutions


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Layer:
    """A convolution to be made: of the tensor ``name``, which is input number ``data`` of the operator."""

    name: str
    w_ohwi: IntArray
    b_o: IntArray
    multipliers: Sequence[Pair]
    limits: Limits
    data: int = 0
    groups: int = 1
    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    kind: str = "conv2d"
    weight_bits: int = 8


def _add_layer(call: Call, layer: _Layer, suffix: str = "") -> str:
    """*Raises* `Refused` where the kernel's 32-bit arithmetic could overflow."""
    x, y = call.format(layer.data), call.result
    w_ohwi = layer.w_ohwi
    b_o = layer.b_o - x.zero_point * w_ohwi.sum(axis=(1, 2, 3))
    m_o, s_o = (np.array(part, dtype=np.int64) for part in zip(*layer.multipliers, strict=True))
    positive, negative = (part(w_ohwi, 0).sum(axis=(1, 2, 3)) for part in (np.maximum, np.minimum))
    least_o = positive * x.min_raw + negative * x.max_raw + b_o
    most_o = positive * x.max_raw + negative * x.min_raw + b_o
    reach_o = np.maximum(abs(least_o), abs(most_o))
    if (s_o > 30).any() or (reach_o >> (31 - np.maximum(s_o, 0))).any():
        raise Refused("its accumulators overflow 32 bits", "export it with scales that follow from the weights")
    low, high = layer.limits
    node = QConv2D(
        name=call.fresh(suffix),
        inputs=(layer.name,),
        source=call.source,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        classes=BorderClasses(),
        low=low,
        high=high,
        format=y,
        weight_bits=layer.weight_bits,
        rounding="tflite",
        kind=layer.kind,
    )
    return call.add(node, w=w_ohwi[None, None], b=b_o[None, None], m=m_o, s=s_o)


def conv_2d(call: Call) -> tuple[str, ...]:
    """CONV_2D; a filter with fewer channels than its input makes groups."""
    w_ohwi, groups = conv_filter(call, call.constant(1, ("INT8",)).astype(np.int64))
    return (_windowed(call, w_ohwi, groups, _channel_multipliers(call, len(w_ohwi), axis=0)),)


def depthwise_conv_2d(call: Call) -> tuple[str, ...]:
    """DEPTHWISE_CONV_2D: as many groups as channels."""
    w_ohwi, groups = depthwise_filter(call, call.constant(1, ("INT8",)).astype(np.int64))
    return (_windowed(call, w_ohwi, groups, _channel_multipliers(call, len(w_ohwi), axis=3)),)


def _windowed(call: Call, w_ohwi: IntArray, groups: int, multipliers: Sequence[Pair]) -> str:
    stride, dilation = call.stride(), call.dilation()
    padding = call.padding(call.shape(0), (w_ohwi.shape[1], w_ohwi.shape[2]), stride, dilation)
    name, padding = merged_padding(call, padding)
    layer = _Layer(
        name=name,
        w_ohwi=w_ohwi,
        b_o=_bias(call, 2, len(w_ohwi)),
        multipliers=multipliers,
        limits=_limits(call),
        groups=groups,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    return _add_layer(call, layer)


def fully_connected(call: Call) -> tuple[str, ...]:
    """FULLY_CONNECTED: a window as large as its input."""
    w_oi = call.constant(1, ("INT8",)).astype(np.int64)
    name, window = dense_window(call, w_oi.shape)
    layer = _Layer(
        name=name,
        w_ohwi=w_oi.reshape(-1, *window),
        b_o=_bias(call, 2, len(w_oi)),
        multipliers=_channel_multipliers(call, len(w_oi), axis=0),
        limits=_limits(call),
        kind="dense",
    )
    return (_add_layer(call, layer),)


def transpose_conv(call: Call) -> tuple[str, ...]:
    """TRANSPOSE_CONV (output shape, filter, input, bias): a convolution whose channels are laid out in blocks.

    The kernel adds the same products to the same bias in another order, and requantizes when all are there.
    """
    if call.option("FusedActivationFunction") != kernels.NONE:
        raise Refused("it has a fused activation", "put the activation behind it")
    w_ohwi = transposed_filter(call, call.constant(1, ("INT8",)).astype(np.int64))
    outputs = len(w_ohwi)
    name, made = transposed(call, w_ohwi, _bias(call, 3, outputs))
    multipliers = _channel_multipliers(call, outputs, axis=0, data=2)
    layer = _Layer(
        name=name,
        w_ohwi=made.w_ohwi,
        b_o=made.b_o,
        multipliers=[pair for pair in multipliers for _ in range(len(made.b_o) // outputs)],
        limits=kernels.activation_limits(kernels.NONE, call.result),
        data=2,
        padding=made.padding,
    )
    return (transposed_result(call, _add_layer(call, layer, "phases"), made),)


def _bias(call: Call, position: int, outputs: int) -> IntArray:
    if not call.has(position):
        return np.zeros(outputs, dtype=np.int64)
    b_o = call.constant(position, ("INT32",)).astype(np.int64).ravel()
    if len(b_o) != outputs:
        call.fail(f"its bias must have {outputs} numbers, not {len(b_o)}")
    return b_o


def _channel_multipliers(call: Call, outputs: int, axis: int, data: int = 0) -> list[Pair]:
    """One for each output, from the scales in double precision."""
    scales = _weight_scales(call, outputs, axis)
    x, y = call.format(data).scale, call.result.scale
    return [kernels.quantize_multiplier(x * scale / y) for scale in scales]


def _weight_scales(call: Call, outputs: int, axis: int) -> tuple[float, ...]:
    tensor, scales = call.tensor(1), call.scales(1)
    if any(tensor.zero_points):
        raise Refused("its weights have a zero point", "quantize weights symmetrically")
    if len(scales) == 1:
        return scales * outputs
    if len(scales) != outputs or tensor.axis != axis:
        call.fail(f"its weights must have one scale, or {outputs} along axis {axis}")
    return scales


def _limits(call: Call) -> Limits:
    activation = call.option("FusedActivationFunction")
    if activation not in (kernels.NONE, kernels.RELU, kernels.RELU_N1_TO_1, kernels.RELU6):
        raise Refused(f"its fused activation is number {activation}", "use RELU, RELU6 or none")
    return kernels.activation_limits(activation, call.result)


# -------------------------------------------------------------------------------------------------------------- means


def average_pool(call: Call) -> tuple[str, ...]:
    """AVERAGE_POOL_2D: over the samples inside the map, in the input's own format."""
    same_format(call)
    kernel, stride, (low, high) = call.filter(), call.stride(), _limits(call)
    node = QAveragePool(
        name=call.fresh(),
        inputs=(call.activation(0),),
        source=call.source,
        kernel=kernel,
        stride=stride,
        padding=call.padding(call.shape(0), kernel, stride),
        count_include_pad=False,
        low=low,
        high=high,
        format=call.result,
        rounding="tflite",
    )
    return (call.add(node),)


def mean(call: Call) -> tuple[str, ...]:
    """MEAN over rows and columns: a depthwise convolution with weights of 1 whose factor divides."""
    kernel, channels = spatial_kernel(call), call.shape(0)[2]
    call.spend((channels, *kernel))
    x, y = call.format(0), call.result
    layer = _Layer(
        name=call.activation(0),
        w_ohwi=np.ones((channels, *kernel, 1), dtype=np.int64),
        b_o=np.zeros(channels, dtype=np.int64),
        multipliers=[kernels.mean_multiplier(x.scale / y.scale, kernel[0] * kernel[1])] * channels,
        limits=kernels.activation_limits(kernels.NONE, y),
        groups=channels,
        stride=kernel,
        weight_bits=2,
    )
    return (_add_layer(call, layer),)


# --------------------------------------------------------------------------------------------------------- arithmetic


def add(call: Call) -> tuple[str, ...]:
    return (_sum(call, 1),)


def subtract(call: Call) -> tuple[str, ...]:
    return (_sum(call, -1),)


def _sum(call: Call, sign: int) -> str:
    """ADD and SUB: of two tensors, or of one and a constant, which is a table."""
    a, b, y = call.format(0), call.format(1), call.result
    factors = kernels.add_multipliers(a.scale, b.scale, y.scale)
    low, high = _limits(call)
    if call.is_constant(0) or call.is_constant(1):

        def total(x: IntArray, c: IntArray, first: bool) -> IntArray:
            pair = (x, c) if first else (c, x)
            return np.clip(kernels.sum_of(*pair, factors, sign) + y.zero_point, low, high)

        return _table_with_constant(call, total)
    names = _operands(call)
    first, (m, s), last = factors
    node = QAdd(
        name=call.fresh(),
        inputs=names,
        source=call.source,
        low=low,
        high=high,
        format=y,
        rounding="tflite",
        multipliers=(first, (sign * m, s), last),
        shift=20,
    )
    return call.add(node)


def multiply(call: Call) -> tuple[str, ...]:
    """MUL: of two tensors, or of one and a constant, which is a table."""
    a, b, y = call.format(0), call.format(1), call.result
    factor = kernels.quantize_multiplier(a.scale * b.scale / y.scale)
    low, high = _limits(call)
    if call.is_constant(0) or call.is_constant(1):

        def product(x: IntArray, c: IntArray, first: bool) -> IntArray:
            return np.clip(kernels.rescaled(x * c, factor) + y.zero_point, low, high)

        return (_table_with_constant(call, product),)
    kernels.rescaled(np.array([1 << 16]), factor)  # raises what no product may raise
    names = _operands(call)
    node = QMultiply(
        name=call.fresh(),
        inputs=names,
        source=call.source,
        low=low,
        high=high,
        format=y,
        rounding="tflite",
        multiplier=factor,
    )
    return (call.add(node),)


def _operands(call: Call) -> tuple[str, ...]:
    shape = call.expected()
    return tuple(broadcast(call, call.activation(position), shape) for position in (0, 1))


def _table_with_constant(call: Call, combine: Callable[[IntArray, IntArray, bool], IntArray]) -> str:
    """The table of an operator of which one operand is a constant: one row for all, or one a channel."""
    constant = 0 if call.is_constant(0) else 1
    channels = call.shape(1 - constant)[2]
    if call.expected() != call.shape(1 - constant):
        raise Refused("its constant is larger than its input", "use a constant for each channel")
    c = call.constant(constant, ("INT8",)).astype(np.int64)
    call.check_per_channel("it has a constant", c.shape, channels)
    call.spend((c.size, 256))
    x = call.format(1 - constant)
    steps = np.arange(x.min_raw, x.max_raw + 1) - x.zero_point
    return _table(call, combine(steps, c.reshape(-1, 1) - call.format(constant).zero_point, constant == 1), data=1 - constant)


# ------------------------------------------------------------------------------------------------------------- tables


def _table(call: Call, table: IntArray, data: int = 0) -> str:
    node = QTable(
        name=call.fresh(),
        inputs=(call.activation(data),),
        source=call.source,
        format=call.result,
        function=call.kind.lower(),
    )
    return call.add(node, table=np.atleast_2d(table).astype(np.int64))


def _pointwise(make: Callable[[Call, Format, Format], IntArray]) -> Rule:
    """The rule of a function of each sample, from its table."""

    def rule(call: Call) -> tuple[str, ...]:
        return (_table(call, make(call, call.format(0), call.result)),)

    return rule


def _relu6(call: Call, x: Format, y: Format) -> IntArray:
    same_format(call)
    return kernels.relu6(x)


def _logistic(call: Call, x: Format, y: Format) -> IntArray:
    if y.zero_point != y.min_raw:
        raise Refused(f"its result has the zero point {y.zero_point}", "quantize it with scale 1/256 and zero point -128")
    return kernels.logistic(x)


def prelu(call: Call) -> tuple[str, ...]:
    """PRELU: a table for each channel."""
    x, y, alpha = call.format(0), call.result, call.format(1)
    c = call.constant(1, ("INT8",)).astype(np.int64) - alpha.zero_point
    call.check_per_channel("it has slopes", c.shape, call.shape(0)[2])
    call.spend((c.size, 256))
    return (_table(call, np.stack([kernels.prelu(x, y, int(slope), alpha.scale) for slope in c.ravel()])),)


def softmax(call: Call) -> tuple[str, ...]:
    """SOFTMAX as the last operator: the host computes it from the engine's logits."""
    call.state.heads[call.output().index] = (call.activation(0), Softmax(call.real_option("Beta"), call.result))
    return ()


INTEGER: Mapping[str, Rule] = {
    **MOVES,
    "ADD": add,
    "AVERAGE_POOL_2D": average_pool,
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "FULLY_CONNECTED": fully_connected,
    "HARD_SWISH": _pointwise(lambda call, x, y: kernels.hard_swish(x, y)),
    "LEAKY_RELU": _pointwise(lambda call, x, y: kernels.leaky_relu(x, y, call.real_option("Alpha"))),
    "LOGISTIC": _pointwise(_logistic),
    "MEAN": mean,
    "MUL": multiply,
    "PRELU": prelu,
    "QUANTIZE": _pointwise(lambda call, x, y: kernels.requantize(x, y)),
    "RELU": _pointwise(lambda call, x, y: kernels.relu(x, y)),
    "RELU6": _pointwise(_relu6),
    "SOFTMAX": softmax,
    "SUB": subtract,
    "TANH": _pointwise(lambda call, x, y: kernels.tanh(x)),
    "TRANSPOSE_CONV": transpose_conv,
}
