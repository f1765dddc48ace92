"""Operators of float networks. Weights that are stored as float16 or int8 are taken at their real values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from ..graph import (
    Add,
    AveragePool,
    Clip,
    Conv2D,
    Dense,
    Multiply,
    Node,
    Pointwise,
    Prelu,
    ScaleBias,
    Softmax,
)
from ..numbers import RealArray
from . import tflite_moves as moves
from .common import finite
from .tflite_call import Call, Refused, Rule
from .tflite_moves import MOVES, broadcast
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

__all__ = ["REAL"]

ACTIVATIONS: Mapping[int, tuple[float, float]] = {1: (0.0, math.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
NONE, TANH = 0, 4


def _inner(call: Call) -> str:
    """The name of a node that a fused activation may follow."""
    return call.fresh("linear" if call.option("FusedActivationFunction") else "")


def _activated(call: Call, name: str) -> tuple[str, ...]:
    """The result behind the fused activation."""
    activation = call.option("FusedActivationFunction")
    if activation == NONE:
        return (name,)
    if activation == TANH:
        return (call.add(Pointwise(name=call.fresh(), inputs=(name,), source=call.source, function="tanh")),)
    if activation not in ACTIVATIONS:
        raise Refused(f"its fused activation is number {activation}", "use RELU, RELU6 or none")
    low, high = ACTIVATIONS[activation]
    return (call.add(Clip(name=call.fresh(), inputs=(name,), source=call.source, low=low, high=high)),)


def _clip(low: float, high: float) -> Rule:
    def rule(call: Call) -> tuple[str, ...]:
        inputs = (call.activation(0),)
        return (call.add(Clip(name=call.fresh(), inputs=inputs, source=call.source, low=low, high=high)),)

    return rule


def _pointwise(function: str, parameters: Callable[[Call], tuple[float, ...]] = lambda call: ()) -> Rule:
    def rule(call: Call) -> tuple[str, ...]:
        inputs, numbers = (call.activation(0),), parameters(call)
        node = Pointwise(name=call.fresh(), inputs=inputs, source=call.source, function=function, parameters=numbers)
        return (call.add(node),)

    return rule


# ------------------------------------------------------------------------------------------------------ convolutions


def conv_2d(call: Call) -> tuple[str, ...]:
    return _windowed(call, *conv_filter(call, call.reals(1)))


def depthwise_conv_2d(call: Call) -> tuple[str, ...]:
    return _windowed(call, *depthwise_filter(call, call.reals(1)))


def _windowed(call: Call, w_ohwi: RealArray, groups: int) -> tuple[str, ...]:
    stride, dilation = call.stride(), call.dilation()
    padding = call.padding(call.shape(0), (w_ohwi.shape[1], w_ohwi.shape[2]), stride, dilation)
    name, padding = merged_padding(call, padding)
    node = Conv2D(
        name=_inner(call),
        inputs=(name,),
        source=call.source,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    return _activated(call, call.add(node, w=w_ohwi[None, None], b=_bias(call, 2, len(w_ohwi))[None, None]))


def fully_connected(call: Call) -> tuple[str, ...]:
    """FULLY_CONNECTED of the whole map, or at each pixel."""
    w_oi = call.reals(1)
    name, window = dense_window(call, w_oi.shape)
    b_o = _bias(call, 2, len(w_oi))
    if call.shape_of(name) == window:
        name = call.add(Dense(name=_inner(call), inputs=(name,), source=call.source), w=w_oi, b=b_o)
    else:
        node = Conv2D(name=_inner(call), inputs=(name,), source=call.source)
        name = call.add(node, w=w_oi[None, None, :, None, None], b=b_o[None, None])
    return _activated(call, name)


def transpose_conv(call: Call) -> tuple[str, ...]:
    w_ohwi = transposed_filter(call, call.reals(1))
    name, made = transposed(call, w_ohwi, _bias(call, 3, len(w_ohwi)))
    node = Conv2D(name=call.fresh("phases"), inputs=(name,), source=call.source, padding=made.padding)
    name = call.add(node, w=made.w_ohwi[None, None], b=made.b_o[None, None])
    if call.option("FusedActivationFunction") != NONE:
        raise Refused("it has a fused activation", "put the activation behind it")
    return (transposed_result(call, name, made),)


def _bias(call: Call, position: int, outputs: int) -> RealArray:
    if not call.has(position):
        return np.zeros(outputs)
    b_o = call.reals(position).ravel()
    if len(b_o) != outputs:
        call.fail(f"its bias must have {outputs} numbers, not {len(b_o)}")
    return b_o


# -------------------------------------------------------------------------------------------------------------- pools


def average_pool(call: Call) -> tuple[str, ...]:
    kernel, stride = call.filter(), call.stride()
    padding = call.padding(call.shape(0), kernel, stride)
    inputs = (call.activation(0),)
    node = AveragePool(name=_inner(call), inputs=inputs, source=call.source, kernel=kernel, stride=stride, padding=padding)
    return _activated(call, call.add(node))


def max_pool(call: Call) -> tuple[str, ...]:
    return _activated(call, *moves.max_pool(call))


def mean(call: Call) -> tuple[str, ...]:
    kernel, inputs = spatial_kernel(call), (call.activation(0),)
    return (call.add(AveragePool(name=call.fresh(), inputs=inputs, source=call.source, kernel=kernel, stride=kernel)),)


# --------------------------------------------------------------------------------------------------------- arithmetic


def add(call: Call) -> tuple[str, ...]:
    if call.is_constant(0) or call.is_constant(1):
        constant = 0 if call.is_constant(0) else 1
        return _affine(call, 1 - constant, 1.0, _channels(call, constant))
    return _activated(call, _join(call, Add, _operands(call)))


def subtract(call: Call) -> tuple[str, ...]:
    if call.is_constant(1):
        return _affine(call, 0, 1.0, -_channels(call, 1))
    if call.is_constant(0):
        return _affine(call, 1, -1.0, _channels(call, 0))
    first, second = _operands(call)
    channels = call.shape_of(second)[2]
    negative = ScaleBias(name=call.fresh("negative"), inputs=(second,), source=call.source)
    second = call.add(negative, scale=np.full(channels, -1.0), bias=np.zeros(channels))
    return _activated(call, _join(call, Add, (first, second)))


def multiply(call: Call) -> tuple[str, ...]:
    if call.is_constant(0) or call.is_constant(1):
        constant = 0 if call.is_constant(0) else 1
        return _affine(call, 1 - constant, _channels(call, constant), 0.0)
    return _activated(call, _join(call, Multiply, _operands(call)))


def divide(call: Call) -> tuple[str, ...]:
    """DIV by a constant."""
    if not call.is_constant(1):
        raise Refused("it divides by a tensor", "divide by a constant")
    with np.errstate(divide="ignore"):
        factor = 1.0 / _channels(call, 1)
    return _affine(call, 0, finite(call.source, "the inverse of its constant", factor), 0.0)


def _join(call: Call, kind: type[Add] | type[Multiply], inputs: tuple[str, ...]) -> str:
    node: Node = kind(name=_inner(call), inputs=inputs, source=call.source)
    return call.add(node)


def _operands(call: Call) -> tuple[str, ...]:
    shape = call.expected()
    return tuple(broadcast(call, call.activation(position), shape) for position in (0, 1))


def _channels(call: Call, position: int) -> RealArray:
    """A constant operand, one number for each channel."""
    shape = call.shape(1 - position)
    constant = call.reals(position)
    if call.expected() != shape:
        raise Refused("its constant is larger than its input", "use a constant for each channel")
    call.check_per_channel("it has a constant", constant.shape, shape[2])
    return np.broadcast_to(constant.ravel(), shape[2])


def _affine(call: Call, data: int, scale: RealArray | float, bias: RealArray | float) -> tuple[str, ...]:
    channels = call.shape(data)[2]
    node = ScaleBias(name=_inner(call), inputs=(call.activation(data),), source=call.source)
    arrays = {part: np.array(np.broadcast_to(array, channels)) for part, array in (("scale", scale), ("bias", bias))}
    return _activated(call, call.add(node, **arrays))


def prelu(call: Call) -> tuple[str, ...]:
    channels, slope = call.shape(0)[2], call.reals(1)
    call.check_per_channel("it has slopes", slope.shape, channels)
    node = Prelu(name=call.fresh(), inputs=(call.activation(0),), source=call.source)
    return (call.add(node, slope=np.array(np.broadcast_to(slope.ravel(), channels))),)


def gelu(call: Call) -> tuple[str, ...]:
    if call.option("Approximate"):
        raise Refused("it approximates by tanh", "export it exact")
    return _pointwise("gelu")(call)


def softmax(call: Call) -> tuple[str, ...]:
    """SOFTMAX as the last operator: the host computes it from the engine's logits."""
    call.state.heads[call.output().index] = (call.activation(0), Softmax(call.real_option("Beta")))
    return ()


def dequantize(call: Call) -> tuple[str, ...]:
    """DEQUANTIZE of a constant, such as weights that are stored as float16."""
    if not call.is_constant(0):
        raise Refused("it reads integers in the middle of a float network", "quantize the whole network")
    call.state.constants[call.output().index] = call.reals(0)
    return ()


REAL: Mapping[str, Rule] = {
    **MOVES,
    "ABS": _pointwise("abs"),
    "ADD": add,
    "AVERAGE_POOL_2D": average_pool,
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "DEQUANTIZE": dequantize,
    "DIV": divide,
    "ELU": _pointwise("elu", lambda call: (1.0,)),
    "EXP": _pointwise("exp"),
    "FULLY_CONNECTED": fully_connected,
    "GELU": gelu,
    "HARD_SWISH": _pointwise("hard_swish"),
    "LEAKY_RELU": _pointwise("leaky_relu", lambda call: (call.real_option("Alpha"),)),
    "LOG": _pointwise("log"),
    "LOGISTIC": _pointwise("sigmoid"),
    "MAX_POOL_2D": max_pool,
    "MEAN": mean,
    "MUL": multiply,
    "PRELU": prelu,
    "RELU": _clip(0.0, math.inf),
    "RELU6": _clip(0.0, 6.0),
    "RELU_N1_TO_1": _clip(-1.0, 1.0),
    "SOFTMAX": softmax,
    "SQRT": _pointwise("sqrt"),
    "SQUARE": _pointwise("square"),
    "SUB": subtract,
    "TANH": _pointwise("tanh"),
    "TRANSPOSE_CONV": transpose_conv,
}
