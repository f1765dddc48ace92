"""The float operators of ONNX, one function each: what nodes an operator becomes, and where its result stands.

A function takes the net in the making and the ONNX node; it returns one value for each output (one, or a list). What it cannot
express it refuses (`Refusal`), with the nearest thing that works.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..errors import CompileError
from ..graph import (
    Add,
    ArgMax,
    AveragePool,
    BatchNorm,
    Clip,
    Concat,
    Conv2D,
    Crop,
    Dense,
    DepthOrder,
    DepthToSpace,
    MaxPool,
    Multiply,
    Pad,
    Padding,
    Pair,
    Pointwise,
    Prelu,
    ScaleBias,
    Slice,
    Softmax,
    SpaceToDepth,
    Upsample,
    window_extent,
)
from ..numbers import RealArray
from ..spec import LARGEST
from ..verify import MAX_ELEMENTS, MAX_STEP
from .common import nonzero, same_padding, spatial
from .lowering import transposed_conv, transposed_outputs, transposed_weights
from .onnx_layout import Dims, Factor, Refusal, Value, reshaped, transposed
from .onnx_net import EXPORT, Net, Op, Tensor

Result = Tensor | Sequence[Tensor]
Handler = Callable[[Net, Op], Result]

UNBOUNDED = float(np.finfo(np.float32).max)
"""Limits of this size and more are none: how exporters write infinity."""

MAX_RANK = 8


# ------------------------------------------------------------------------------------------------ sample by sample


def _pointwise(function: str, *parameters: tuple[str, float]) -> Handler:
    """A function of `convfold.compiler.functions`, its parameters attributes with defaults."""

    def handler(net: Net, op: Op) -> Result:
        values = tuple(op.number(name, default) for name, default in parameters)
        return _applied(net, op, op.value(), function, *values)

    return handler


def _applied(net: Net, op: Op, x: Value, function: str, *parameters: float) -> Value:
    return replace(x, tensor=net.emit(op, Pointwise, [x.tensor], function=function, parameters=parameters))


def _hard_swish(net: Net, op: Op) -> Result:
    return _applied(net, op, op.value(), "hard_swish")


def _gelu(net: Net, op: Op) -> Result:
    if op.text("approximate", "none") != "none":
        raise Refusal("the tanh approximation of Gelu is not supported", "use approximate = none")
    return _applied(net, op, op.value(), "gelu")


def _swish(net: Net, op: Op) -> Result:
    if op.number("alpha", 1.0) != 1.0:
        raise Refusal("alpha must be 1", "scale the input by a Mul")
    return _applied(net, op, op.value(), "swish")


def _pow(net: Net, op: Op) -> Result:
    functions = {2.0: "square", 0.5: "sqrt"}
    exponent = op.scalar(1)
    if exponent == 1.0:
        return op.value()
    if exponent not in functions:
        raise Refusal("only the powers 1, 2 and 0.5 are supported", "multiply the tensor by itself")
    return _applied(net, op, op.value(), functions[exponent])


def _clipped(net: Net, op: Op, x: Value, low: float, high: float) -> Value:
    low, high = (math.copysign(math.inf, limit) if abs(limit) >= UNBOUNDED else limit for limit in (low, high))
    if not low <= high or math.inf in (low, -high):
        raise Refusal(f"its limits {low:g} and {high:g} leave one value", "let min be below max")
    if low == -high == -math.inf:
        return x
    return replace(x, tensor=net.emit(op, Clip, [x.tensor], low=low, high=high))


def _relu(net: Net, op: Op) -> Result:
    return _clipped(net, op, op.value(), 0.0, math.inf)


def _clip(net: Net, op: Op) -> Result:
    if op.version < 11:
        return _clipped(net, op, op.value(), _limit(op, "min", -math.inf), _limit(op, "max", math.inf))
    low, high = op.scalar(1), op.scalar(2)
    return _clipped(net, op, op.value(), -math.inf if low is None else low, math.inf if high is None else high)


def _limit(op: Op, name: str, default: float) -> float:
    """An attribute that may be infinite."""
    value = op.attributes.get(name, default)
    return float(value) if isinstance(value, float) and math.isinf(value) else op.number(name, default)


def _extreme(least: bool) -> Handler:
    """Max and Min with one constant number: a clip."""

    def handler(net: Net, op: Op) -> Result:
        values = [index for index, tensor in enumerate(op.inputs) if isinstance(tensor, Value)]
        if len(values) != 1 or len(op.inputs) != 2:
            if len(op.inputs) == 1:
                return op.value()
            raise Refusal("only one tensor and one constant are supported", "write max(a, b) as a + Relu(b - a)")
        bound = op.scalar(1 - values[0])
        if bound is None:
            raise Refusal("its constant is missing", EXPORT)
        limits = (-math.inf, bound) if least else (bound, math.inf)
        return _clipped(net, op, op.value(values[0]), *limits)

    return handler


def _prelu(net: Net, op: Op) -> Result:
    x, slope = net.spread(op, op.value(), op.weights(1))
    return replace(x, tensor=net.emit(op, Prelu, [x.tensor], {"slope": slope}))


def _negate(net: Net, op: Op) -> Result:
    return _scaled(net, op, op.value(), np.array(-1.0), np.array(0.0))


def _scaled(net: Net, op: Op, x: Value, scale: RealArray, bias: RealArray) -> Value:
    """``scale · x + bias``, both broadcast as ONNX does."""
    limit = np.abs(scale).max(initial=0.0)
    if not limit <= LARGEST:
        raise CompileError(op.source, f"a factor must not exceed {LARGEST:g}, but one is {limit:g}", "do not divide by 0")
    scale, bias = np.broadcast_arrays(scale, bias)
    x, factors = net.spread(op, x, scale)
    x, terms = net.spread(op, x, bias)
    return replace(x, tensor=net.emit(op, ScaleBias, [x.tensor], {"scale": factors, "bias": terms}))


def _dropout(net: Net, op: Op) -> Result:
    training = op.constant(2)
    if training is not None and training.any():
        raise Refusal("it is in training mode", "export for inference")
    return op.value(moved=True)


def _identity(net: Net, op: Op) -> Result:
    return op.value(moved=True)


def _cast(net: Net, op: Op) -> Result:
    if op.integer("to", 1) not in (1, 10, 11, 16):  # float, float16, double, bfloat16
        raise Refusal("only casts to a float type are supported", "leave the cast out")
    return op.value(moved=True)


# ------------------------------------------------------------------------------------------------ joins of two


def _add(net: Net, op: Op) -> Result:
    """Add and Sum: tensors, and constants as a bias."""
    values = [tensor for tensor in op.inputs if isinstance(tensor, Value)]
    bias = [op.weights(index) for index, tensor in enumerate(op.inputs) if not isinstance(tensor, Value)]
    for index, tensor in enumerate(op.inputs):
        if isinstance(tensor, Value):
            op.value(index)
    total = values[0]
    if len(values) > 1:
        aligned = net.aligned(op, values)
        total = replace(aligned[0], tensor=net.emit(op, Add, [value.tensor for value in aligned]))
    for array in bias:
        total = _scaled(net, op, total, np.array(1.0), array)
    return total


def _mean(net: Net, op: Op) -> Result:
    total = _add(net, op)
    assert isinstance(total, Value)
    return _scaled(net, op, total, np.array(1.0 / len(op.inputs)), np.array(0.0))


def _sub(net: Net, op: Op) -> Result:
    if isinstance(op.inputs[0], Value) and isinstance(op.inputs[1], Value):
        a, b = net.aligned(op, [op.value(0), op.value(1)])
        minus = _scaled(net, op, b, np.array(-1.0), np.array(0.0))
        return replace(a, tensor=net.emit(op, Add, [a.tensor, minus.tensor]))
    if isinstance(op.inputs[0], Value):
        return _scaled(net, op, op.value(0), np.array(1.0), -op.weights(1))
    return _scaled(net, op, op.value(1), np.array(-1.0), op.weights(0))


def _mul(net: Net, op: Op) -> Result:
    if not isinstance(op.inputs[0], Value):
        return _scaled(net, op, op.value(1), op.weights(0), np.array(0.0))
    if not isinstance(op.inputs[1], Value):
        return _scaled(net, op, op.value(0), op.weights(1), np.array(0.0))
    if op.inputs[0] == op.inputs[1]:
        return _applied(net, op, op.value(0), "square")
    a, b = net.aligned(op, [op.value(0), op.value(1)])
    for x, gate in ((a, b), (b, a)):
        if function := _gated(net, x, gate):
            return _applied(net, op, x, function)
    return replace(a, tensor=net.emit(op, Multiply, [a.tensor, b.tensor]))


def _gated(net: Net, x: Value, gate: Value) -> str | None:
    """``x · sigmoid(x)`` is swish, ``x · hard_sigmoid(x)`` hard swish."""
    node = next(node for node in reversed(net.builder.nodes) if node.name == gate.tensor)
    if not isinstance(node, Pointwise) or node.inputs != (x.tensor,):
        return None
    if node.function == "hard_sigmoid" and math.isclose(node.parameters[0], 1 / 6, rel_tol=1e-6) and node.parameters[1] == 0.5:
        return "hard_swish"
    return "swish" if node.function == "sigmoid" else None


def _div(net: Net, op: Op) -> Result:
    if not isinstance(op.inputs[0], Value) or isinstance(op.inputs[1], Value):
        raise Refusal("only division by a constant is supported", "divide by a constant, or multiply")
    with np.errstate(divide="ignore"):
        return _scaled(net, op, op.value(0), 1.0 / op.weights(1), np.array(0.0))


def _batch_norm(net: Net, op: Op) -> Result:
    if op.integer("training_mode", 0) or not op.integer("spatial", 1):
        raise Refusal("it is in training mode, or not spatial", "export for inference")
    value = op.value()
    column = (-1, *(1,) * (len(value.axes) - 2))  # the channels are the second dimension
    if len(value.axes) < 2:
        raise Refusal("its input has no channels", "use N,C,H,W")
    arrays: dict[str, RealArray] = {}
    for index, part in enumerate(("gamma", "beta", "mean", "var"), start=1):
        vector = op.weights(index)
        if vector.shape != value.dims[1:2]:
            message = f"input {index} must have shape {list(value.dims[1:2])}, not {list(vector.shape)}"
            raise CompileError(op.source, message, "export the model again")
        value, arrays[part] = net.spread(op, value, vector.reshape(column))
    epsilon = op.number("epsilon", 1e-5)
    return replace(value, tensor=net.emit(op, BatchNorm, [value.tensor], arrays, epsilon=epsilon))


# ------------------------------------------------------------------------------------------------- convolutions


def _windows(op: Op, size: Pair, rank: int, kernel: Dims, dilation: Pair) -> tuple[Pair, Padding]:
    """Stride and padding of a convolution or a pool, for all forms of ``auto_pad``."""
    extent = [window_extent(k, d) for k, d in zip(spatial(kernel), dilation, strict=True)]
    stride = _pair(op, "strides", rank)
    if max(stride) > MAX_STEP:
        raise Refusal(f"its strides {list(stride)} are too large", "use smaller ones")
    mode = op.text("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = [same_padding(size[a], extent[a], stride[a], mode == "SAME_UPPER") for a in (0, 1)]
        return stride, (pads[0], pads[1])
    if mode == "VALID":
        return stride, ((0, 0), (0, 0))
    if mode != "NOTSET":
        raise CompileError(op.source, "auto_pad must be NOTSET, SAME_UPPER, SAME_LOWER or VALID", "export the model again")
    return stride, _pads(op, op.integers("pads"), rank)


def _pair(op: Op, name: str, rank: int) -> Pair:
    """An attribute of one number a spatial axis, 1 each by default."""
    values = op.integers(name) or (1,) * (rank - 2)
    if len(values) != rank - 2:
        raise CompileError(op.source, f"{name} must be {rank - 2} numbers, not {list(values)[:8]}", "export the model again")
    return spatial(values)


def _pads(op: Op, pads: Dims | None, rank: int) -> Padding:
    pads = (0,) * (2 * rank - 4) if pads is None else pads
    if len(pads) != 2 * rank - 4 or not all(0 <= pad <= MAX_STEP for pad in pads):
        message = f"pads must be {2 * rank - 4} numbers from 0 to {MAX_STEP}, not {list(pads)[:8]}"
        raise CompileError(op.source, message, "crop with a Slice instead of negative padding")
    return ((pads[0], pads[1]), (0, 0)) if rank == 3 else ((pads[0], pads[2]), (pads[1], pads[3]))


def _map(net: Net, op: Op, index: int = 0) -> tuple[Value, int]:
    """An input with rows (and columns), and its rank."""
    x = net.image(op, op.value(index))
    if len(x.axes) < 3:
        raise Refusal("its input is no map", "use N,C,L or N,C,H,W")
    return x, len(x.axes)


def _kernel(op: Op, weights: RealArray, rank: int) -> RealArray:
    """The weights of a convolution with two spatial axes, checked."""
    if weights.ndim != rank or not weights.size:
        raise CompileError(
            op.source, f"weights must have {rank} dimensions, not {list(weights.shape)}", "export the model again"
        )
    stated = op.integers("kernel_shape")
    if stated is not None and stated != weights.shape[2:]:
        message = f"kernel_shape is {list(stated)[:8]}, but the weights are {list(weights.shape)}"
        raise CompileError(op.source, message, "export the model again")
    return weights if rank == 4 else weights[..., None]


def _bias(op: Op, index: int, outputs: int) -> RealArray:
    bias = op.reals(index)
    bias = np.zeros(outputs) if bias is None else bias
    if bias.shape != (outputs,):
        raise CompileError(op.source, f"the bias must have {outputs} numbers, not {list(bias.shape)}", "export the model again")
    return bias


def _conv(net: Net, op: Op) -> Result:
    x, rank = _map(net, op)
    weights, groups = op.weights(1), op.integer("group", 1)
    w_oihw = _kernel(op, weights, rank)
    channels, outputs = net.shape(x)[2], w_oihw.shape[0]
    if channels % groups or outputs % groups or w_oihw.shape[1] * groups != channels:
        message = f"weights {list(weights.shape)} in {groups} groups do not fit {channels} channels"
        raise CompileError(op.source, message, "export the model again")
    dilation = _pair(op, "dilations", rank)
    stride, padding = _windows(op, net.shape(x)[:2], rank, weights.shape[2:], dilation)
    arrays = {"w": w_oihw.transpose(0, 2, 3, 1)[None, None], "b": _bias(op, 2, outputs)[None, None]}
    fields = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return net.map(net.emit(op, Conv2D, [x.tensor], arrays, **fields), rank)


def _conv_transpose(net: Net, op: Op) -> Result:
    x, rank = _map(net, op)
    weights, groups = op.weights(1), op.integer("group", 1)
    w_iohw = _kernel(op, weights, rank)
    height, width, channels = net.shape(x)
    if channels % groups or w_iohw.shape[0] != channels:
        message = f"weights {list(weights.shape)} in {groups} groups do not fit {channels} channels"
        raise CompileError(op.source, message, "export the model again")
    stride, dilation = _pair(op, "strides", rank), _pair(op, "dilations", rank)
    extent = [window_extent(k, d) for k, d in zip(w_iohw.shape[2:], dilation, strict=True)]
    size = height, width
    outputs, padding = _transposed_size(op, rank, size, (extent[0], extent[1]), stride)
    if max(outputs) * max(stride) > MAX_ELEMENTS or min(outputs) < 1:
        raise CompileError(op.source, f"an output of {outputs[0]}×{outputs[1]} is not possible", "check pads and strides")
    bias = _bias(op, 2, w_iohw.shape[1] * groups)
    made = transposed_conv(transposed_weights(w_iohw, groups), bias, size, outputs, padding, stride, dilation)
    arrays = {"w": made.w_ohwi[None, None], "b": made.b_o[None, None]}
    tensor = _cropped(net, op, x.tensor, made.cropping, "crop")
    whole = made.block == (1, 1) and not nonzero(made.trim)
    tensor = net.emit(op, Conv2D, [tensor], arrays, "" if whole else "conv", padding=made.padding, groups=groups)
    if made.block != (1, 1):
        part = "blocks" if nonzero(made.trim) else ""
        tensor = net.emit(op, DepthToSpace, [tensor], part=part, block=made.block, order="CRD")
    return net.map(_cropped(net, op, tensor, made.trim), rank)


def _transposed_size(op: Op, rank: int, size: Pair, extent: Pair, stride: Pair) -> tuple[Pair, Pair]:
    """The output's size, and the padding at top and left, of a transposed convolution."""
    mode, wanted = op.text("auto_pad", "NOTSET"), op.integers("output_shape")
    more = op.integers("output_padding") or (0,) * (rank - 2)
    if len(more) != rank - 2 or not all(0 <= one <= MAX_STEP for one in more):
        raise CompileError(op.source, f"output_padding must be {rank - 2} numbers from 0", "export the model again")
    if len(more) == 1:
        more = (*more, 0)
    full = [transposed_outputs(size[a], extent[a], (0, 0), stride[a], 1, more[a]) for a in (0, 1)]
    if wanted is None and mode not in ("SAME_UPPER", "SAME_LOWER"):
        pads = _pads(op, None if mode == "VALID" else op.integers("pads"), rank)
        return (full[0] - sum(pads[0]), full[1] - sum(pads[1])), (pads[0][0], pads[1][0])
    if wanted is not None:
        wanted = wanted[-(rank - 2) :]  # some exporters name batch and channels too
        if len(wanted) != rank - 2 or not all(1 <= one <= MAX_ELEMENTS for one in wanted):
            raise CompileError(op.source, f"output_shape must be {rank - 2} numbers from 1", "export the model again")
        outputs = spatial(wanted)
    else:
        outputs = size[0] * stride[0], size[1] * stride[1]
    spare = [max(full[a] - outputs[a], 0) for a in (0, 1)]
    front = [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in spare]
    return outputs, (front[0], front[1])


def _cropped(net: Net, op: Op, tensor: str, cropping: Padding, part: str = "") -> str:
    return net.emit(op, Crop, [tensor], part=part, cropping=cropping) if nonzero(cropping) else tensor


# ------------------------------------------------------------------------------------------------- dense layers


def _gemm(net: Net, op: Op) -> Result:
    alpha, beta = op.number("alpha", 1.0), op.number("beta", 1.0)
    x, weights = op.value(), op.weights(1)
    if op.integer("transA", 0):
        raise Refusal("it transposes the batch (transA)", "transpose the weights instead")
    if weights.ndim != 2 or len(x.axes) != 2:
        raise Refusal("it is no product of two matrices", "flatten to N,C in front of it")
    w_km = weights.T if op.integer("transB", 0) else weights
    bias = op.reals(2)
    b_m = np.zeros(w_km.shape[1])
    if bias is not None:
        if bias.ndim > 2 or bias.shape[-1:] not in ((), (1,), b_m.shape) or bias.size not in (1, b_m.size):
            raise Refusal(f"its bias {list(bias.shape)} differs from row to row", "use one number an output")
        b_m = b_m + beta * bias.reshape(-1)
    return _product(net, op, x, alpha * w_km, b_m)


def _matmul(net: Net, op: Op) -> Result:
    x, weights = op.value(), op.weights(1)
    if weights.ndim > 2 and math.prod(weights.shape[:-2]) == 1:
        weights = weights.reshape(weights.shape[-2:])
    if weights.ndim != 2:
        raise Refusal(f"it does not multiply by a matrix, but by {list(weights.shape)}", "multiply by constant weights (K, M)")
    return _product(net, op, x, weights, np.zeros(weights.shape[1]))


def _product(net: Net, op: Op, x: Value, w_km: RealArray, b_m: RealArray) -> Value:
    """The last axis times a matrix: a dense layer, or a 1×1 convolution where there are other axes."""
    last, outputs = x.axes[-1], w_km.shape[1]
    if w_km.shape[0] != x.dims[-1] or not outputs:
        raise CompileError(
            op.source, f"weights {list(w_km.shape)} do not fit an input of {x.dims[-1]}", "export the model again"
        )
    inner = x.stream[len(x.stream) - len(last) :]
    if set(inner) != set(last):
        raise Refusal("it multiplies along an axis that is not the channels", "transpose channels to the end")
    order = [last.index(factor) for factor in inner]
    w_mk = w_km.reshape(*(factor.size for factor in last), outputs).transpose(*order, len(last)).reshape(-1, outputs).T
    made = (Factor(outputs),) if outputs > 1 else ()
    outer = x.stream[: len(x.stream) - len(last)]
    if not outer:
        tensor = net.emit(op, Dense, [x.tensor], {"w": w_mk, "b": b_m})
    else:
        if net.shape(x)[2] != x.dims[-1]:
            x = net.shaped(op, x, (x.size // x.dims[-1], 1, x.dims[-1]))
        tensor = net.emit(op, Conv2D, [x.tensor], {"w": w_mk[None, None, :, None, None], "b": b_m[None, None]})
    return Value(tensor, outer + made, (*x.axes[:-1], made))


# -------------------------------------------------------------------------------------------------------- pools


def _ceiled(op: Op, size: Pair, kernel: Pair, stride: Pair, padding: Padding) -> Padding:
    """The padding with which windows that begin inside count too: what ``ceil_mode`` adds at the bottom and right."""

    def axis(a: int) -> Pair:
        (front, back), step = padding[a], stride[a]
        windows = -(-(size[a] + front + back - kernel[a]) // step) + 1
        if (windows - 1) * step >= size[a] + front:
            windows -= 1
        return front, max(back, (windows - 1) * step + kernel[a] - size[a] - front)

    return axis(0), axis(1)


def _pool_windows(op: Op, x: Value, net: Net, rank: int) -> tuple[Pair, Pair, Padding, Padding, Pair]:
    """Kernel, stride, padding as stated, padding with that of ``ceil_mode``, and dilation."""
    stated = op.integers("kernel_shape")
    if stated is None or len(stated) != rank - 2:
        raise CompileError(op.source, f"kernel_shape must be {rank - 2} numbers", "export the model again")
    dilation, size = _pair(op, "dilations", rank), net.shape(x)[:2]
    stride, padding = _windows(op, size, rank, stated, dilation)
    kernel = spatial(stated)
    extent = window_extent(kernel[0], dilation[0]), window_extent(kernel[1], dilation[1])
    ceil = op.integer("ceil_mode", 0) and op.text("auto_pad", "NOTSET") == "NOTSET"
    return kernel, stride, padding, _ceiled(op, size, extent, stride, padding) if ceil else padding, dilation


def _max_pool(net: Net, op: Op) -> Result:
    x, rank = _map(net, op)
    kernel, stride, _, padding, dilation = _pool_windows(op, x, net, rank)
    if op.outputs > 1:
        raise Refusal("its indices are not made", "use the first output only")
    if dilation != (1, 1):
        raise Refusal("dilated pooling is not supported", "pool without dilation")
    return net.map(net.emit(op, MaxPool, [x.tensor], kernel=kernel, stride=stride, padding=padding), rank)


def _average_pool(net: Net, op: Op) -> Result:
    x, rank = _map(net, op)
    kernel, stride, stated, padding, dilation = _pool_windows(op, x, net, rank)
    counts = bool(op.integer("count_include_pad", 0))
    tensor = x.tensor
    if dilation != (1, 1):
        if nonzero(padding) and not (counts and padding == stated):
            raise Refusal("dilated pooling with padding that does not count is not supported", "pool without dilation")
        channels = net.shape(x)[2]
        weights = np.full((1, 1, channels, *kernel, 1), 1.0 / math.prod(kernel))
        arrays = {"w": weights, "b": np.zeros((1, 1, channels))}
        fields = {"stride": stride, "padding": padding, "dilation": dilation, "groups": channels}
        return net.map(net.emit(op, Conv2D, [tensor], arrays, **fields), rank)
    if counts and padding != stated:  # stated padding counts, that of ceil_mode does not
        if nonzero(stated):
            tensor = net.emit(op, Pad, [tensor], part="pad", padding=stated)
        padding = _difference(padding, stated)
        counts = False
    fields = {"kernel": kernel, "stride": stride, "padding": padding, "count_include_pad": counts}
    return net.map(net.emit(op, AveragePool, [tensor], **fields), rank)


def _difference(a: Padding, b: Padding) -> Padding:
    (top, bottom), (left, right) = (tuple(x - y for x, y in zip(*pair, strict=True)) for pair in zip(a, b, strict=True))
    return (top, bottom), (left, right)


def _global_pool(kind: type[AveragePool] | type[MaxPool]) -> Handler:
    def handler(net: Net, op: Op) -> Result:
        x, rank = _map(net, op)
        return net.map(net.emit(op, kind, [x.tensor], kernel=net.shape(x)[:2], stride=(1, 1)), rank)

    return handler


def _reduce(how: str) -> Handler:
    """The mean, sum or maximum over rows and columns; mean and sum over channels too."""

    def handler(net: Net, op: Op) -> Result:
        value = op.value()
        rank = len(value.axes)
        axes = _axes(op, op.listed("axes", 1), rank)
        if not axes:
            if op.integer("noop_with_empty_axes", 0):
                return value
            axes = tuple(range(rank))
        x, places = net.oriented(op, value)
        reduced = {places[axis] for axis in axes}
        channel = min(1, rank - 1)
        rows, cols, channels = net.shape(x)
        kernel = (rows if 2 in reduced else 1, cols if 3 in reduced else 1)
        if rank > 1 and 0 in reduced:
            raise Refusal("it reduces the batch", "reduce rows, columns or channels")
        if channel in reduced and how == "max":
            raise Refusal("the maximum over channels is not supported", "reduce rows and columns")
        tensor, count = x.tensor, kernel[0] * kernel[1]
        if kernel != (1, 1):
            kind = MaxPool if how == "max" else AveragePool
            tensor = net.emit(op, kind, [tensor], kernel=kernel, stride=(1, 1))
        if channel in reduced:
            weight = 1.0 / channels if how == "mean" else float(count)
            arrays = {"w": np.full((1, 1, 1, 1, 1, channels), weight), "b": np.zeros((1, 1, 1))}
            tensor = net.emit(op, Conv2D, [tensor], arrays)
        elif how == "sum" and count > 1:
            arrays = {"scale": np.full(channels, float(count)), "bias": np.zeros(channels)}
            tensor = net.emit(op, ScaleBias, [tensor], arrays)
        y = net.map(tensor, rank)
        y = transposed(y, places)
        keep = op.integer("keepdims", 1)
        return y if keep else replace(y, axes=tuple(axis for at, axis in enumerate(y.axes) if at not in axes))

    return handler


def _argmax(net: Net, op: Op) -> Result:
    value = op.value()
    rank = len(value.axes)
    (axis,) = _axes(op, (op.integer("axis", 0),), rank)
    x, places = net.oriented(op, value)
    if places[axis] != min(1, rank - 1) or op.integer("select_last_index", 0):
        raise Refusal("only the first greatest channel is supported", "take ArgMax over axis 1, without select_last_index")
    y = transposed(net.map(net.emit(op, ArgMax, [x.tensor]), rank), places)
    keep = op.integer("keepdims", 1)
    return y if keep else replace(y, axes=tuple(factors for at, factors in enumerate(y.axes) if at != axis))


def _softmax(net: Net, op: Op) -> Result:
    """Softmax leaves the engine's last layer as it is: the host computes it."""
    value = op.value()
    rank = len(value.axes)
    default = -1 if op.version >= 13 else 1
    (axis,) = _axes(op, (op.integer("axis", default),), rank)
    over = set(range(axis, rank)) if op.version < 13 else {axis}
    if axis == 0 and rank > 1:
        raise Refusal("it runs over the batch", "let softmax run over axis 1")
    if any(value.axes[at] for at in over - {axis}):
        raise Refusal("it runs over more than one axis", "use opset 13 or later, or flatten in front of it")
    channels = value.axes[axis]
    inner = value.stream[len(value.stream) - len(channels) :]
    if set(inner) != set(channels):
        raise Refusal("it does not run over the channels", "let softmax run over axis 1")
    size = value.dims[axis]
    return replace(
        net.shaped(op, value, (value.size // size, 1, size)) if net.shape(value)[2] != size else value, head=Softmax()
    )


# ---------------------------------------------------------------------------------------------- moving samples


def _axes(op: Op, axes: Dims | None, rank: int) -> Dims:
    """Axes counted from 0, all different."""
    counted = tuple(axis + rank if axis < 0 else axis for axis in axes or ())
    if not all(0 <= axis < rank for axis in counted) or len(set(counted)) != len(counted):
        message = f"axes must be different ones of {rank}, not {list(axes or ())[:8]}"
        raise CompileError(op.source, message, "export the model again")
    return counted


def _reshape(net: Net, op: Op) -> Result:
    x = op.value(moved=True)
    wanted = op.listed("shape", 1)
    if wanted is None or len(wanted) > MAX_RANK or wanted.count(-1) > 1:
        raise Refusal("its shape is missing, or has too many dimensions", EXPORT)
    keep = not op.integer("allowzero", 0)
    dims = [x.dims[at] if keep and size == 0 and at < len(x.dims) else size for at, size in enumerate(wanted)]
    if -1 in dims:
        known = -math.prod(dims)
        dims[dims.index(-1)] = x.size // known if known > 0 and x.size % known == 0 else 0
    if any(size < 1 for size in dims):
        raise Refusal(f"{x.size} samples cannot be {list(wanted)}", "keep the number of samples, and a batch of 1")
    return reshaped(x, dims)


def _flatten(net: Net, op: Op) -> Result:
    x = op.value(moved=True)
    axis = op.integer("axis", 1)
    rank = len(x.axes)
    axis = axis + rank if axis < 0 else axis
    if not 0 <= axis <= rank:
        raise CompileError(op.source, f"axis must be 0 to {rank}, not {axis}", "export the model again")
    return reshaped(x, (math.prod(x.dims[:axis]), math.prod(x.dims[axis:])))


def _squeeze(net: Net, op: Op) -> Result:
    x = op.value(moved=True)
    axes = op.listed("axes", 1)
    dropped = _axes(op, axes, len(x.axes)) if axes is not None else tuple(at for at, axis in enumerate(x.axes) if not axis)
    if any(x.axes[at] for at in dropped):
        raise CompileError(op.source, f"only axes of size 1 can be squeezed, not {list(dropped)}", "export the model again")
    return replace(x, axes=tuple(axis for at, axis in enumerate(x.axes) if at not in dropped))


def _unsqueeze(net: Net, op: Op) -> Result:
    x = op.value(moved=True)
    axes = op.listed("axes", 1) or ()
    rank = len(x.axes) + len(axes)
    if rank > MAX_RANK:
        raise Refusal(f"tensors of {rank} dimensions are not supported", f"use at most {MAX_RANK}")
    added = _axes(op, axes, rank)
    rest = iter(x.axes)
    return replace(x, axes=tuple(() if at in added else next(rest) for at in range(rank)))


def _transpose(net: Net, op: Op) -> Result:
    x = op.value(moved=True)
    return transposed(x, op.integers("perm") or tuple(reversed(range(len(x.axes)))))


def _depth_to_space(net: Net, op: Op) -> Result:
    return _blocks(net, op, DepthToSpace)


def _space_to_depth(net: Net, op: Op) -> Result:
    return _blocks(net, op, SpaceToDepth)


def _blocks(net: Net, op: Op, kind: type[DepthToSpace] | type[SpaceToDepth]) -> Result:
    x, rank = _map(net, op)
    orders: dict[str, DepthOrder] = {"DCR": "DCR", "CRD": "CRD"}
    mode, block = op.text("mode", "DCR"), op.integer("blocksize", 0)
    if rank != 4 or mode not in orders:
        raise Refusal("it must be on N,C,H,W, in mode DCR or CRD", "use one of them")
    return net.map(net.emit(op, kind, [x.tensor], block=(block, block), order=orders[mode]), 4)


def _concat(net: Net, op: Op) -> Result:
    values = [op.value(index) for index in range(len(op.inputs))]
    (axis,) = _axes(op, (op.integer("axis", 1),), len(values[0].axes))
    if len(values) == 1:
        return values[0]
    if len({len(value.axes) for value in values}) > 1:
        raise CompileError(op.source, "its inputs must have one number of dimensions", "export the model again")
    images, places = zip(*(net.oriented(op, value) for value in values), strict=True)
    if len(set(places)) > 1 or places[0][axis] != min(1, len(values[0].axes) - 1):
        raise Refusal("only channels can be joined", "concatenate along axis 1")
    tensor = net.emit(op, Concat, [image.tensor for image in images])
    return transposed(net.map(tensor, len(values[0].axes)), places[0])


def _split(net: Net, op: Op) -> Result:
    value = op.value()
    (axis,) = _axes(op, (op.integer("axis", 0),), len(value.axes))
    size = value.dims[axis]
    sizes = op.listed("split", 1)
    if sizes is None:
        part = -(-size // max(op.outputs, 1))
        sizes = (*(part,) * (op.outputs - 1), size - part * (op.outputs - 1))
    if sum(sizes) != size or len(sizes) != op.outputs or min(sizes) < 1:
        raise CompileError(op.source, f"{size} cannot be split into {list(sizes)[:8]}", "let the parts add up")
    starts = np.cumsum((0, *sizes)).tolist()
    return [_sliced(net, op, value, {axis: (start, start + part, 1)}) for start, part in zip(starts, sizes, strict=False)]


def _slice(net: Net, op: Op) -> Result:
    value = op.value()
    rank = len(value.axes)
    starts, ends = op.listed("starts", 1), op.listed("ends", 2)
    if starts is None or ends is None:
        raise Refusal("its starts or ends are missing", EXPORT)
    axes = op.listed("axes", 3)
    axes = _axes(op, tuple(range(len(starts))) if axes is None else axes, rank)
    steps = op.list(4) or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise CompileError(op.source, "starts, ends, axes and steps must be as many, no step 0", "export the model again")
    ranges = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        span = range(*slice(start, end, step).indices(value.dims[axis]))
        if step < 0 and len(span) > 1:
            raise Refusal("it runs backwards", "use positive steps")
        if not span:
            raise CompileError(op.source, f"nothing is left of axis {axis}", "let start be below end")
        ranges[axis] = (span[0], span[-1] + 1, max(step, 1))
    return _sliced(net, op, value, ranges)


def _sliced(net: Net, op: Op, value: Value, ranges: Mapping[int, tuple[int, int, int]]) -> Value:
    """Some of the rows, columns and channels: start, stop and step by axis."""
    whole = {
        axis: (start, stop, step)
        for axis, (start, stop, step) in ranges.items()
        if (start, stop, step) != (0, value.dims[axis], 1)
    }
    if not whole:
        return value
    x, places = net.oriented(op, value)
    rank, shape, tensor = len(value.axes), net.shape(x), x.tensor
    kept = {places[axis]: span for axis, span in whole.items()}
    start, stop, step = kept.pop(min(1, rank - 1), (0, shape[2], 1))
    cuts = [kept.get(2, (0, shape[0], 1)), kept.get(3, (0, shape[1], 1))]
    if (start, stop) != (0, shape[2]) or step > 1:
        tensor = _channels(net, op, tensor, range(start, stop, step), "channels" if kept else "")
    tensor = _subsampled(net, op, tensor, cuts)
    return transposed(net.map(tensor, rank), places)


def _channels(net: Net, op: Op, tensor: str, kept: range, part: str) -> str:
    if kept.step == 1:
        return net.emit(op, Slice, [tensor], part=part, start=kept.start, stop=kept.stop)
    w = np.zeros((len(kept), net.builder.shapes[tensor][2]))
    w[range(len(kept)), kept] = 1.0
    return net.emit(op, Conv2D, [tensor], {"w": w[None, None, :, None, None], "b": np.zeros((1, 1, len(kept)))}, part)


def _subsampled(net: Net, op: Op, tensor: str, cuts: Sequence[tuple[int, int, int]]) -> str:
    """Every step-th row and column from start to stop: a crop, and a 1×1 pool with a stride."""
    rows, cols, _ = net.builder.shapes[tensor]
    (top, bottom, high), (left, right, wide) = cuts
    strided = (high, wide) != (1, 1)
    cropping = (top, rows - bottom), (left, cols - right)
    tensor = _cropped(net, op, tensor, cropping, "crop" if strided else "")
    return net.emit(op, MaxPool, [tensor], kernel=(1, 1), stride=(high, wide)) if strided else tensor


def _pad(net: Net, op: Op) -> Result:
    value = op.value()
    rank = len(value.axes)
    if op.text("mode", "constant") != "constant":
        raise Refusal(f"padding by {op.text('mode', '')!r} is not supported", "pad with a constant")
    stated = op.listed("pads", 1)
    fill = op.scalar(2) if op.version >= 11 else op.number("value", 0.0)
    fill = 0.0 if fill is None else fill
    axes = op.list(3)
    axes = _axes(op, tuple(range(rank)) if axes is None else axes, rank)
    if stated is None or len(stated) != 2 * len(axes) or not all(abs(pad) <= MAX_STEP for pad in stated):
        raise CompileError(op.source, f"pads must be {2 * len(axes)} numbers to ±{MAX_STEP}", "export the model again")
    if not abs(fill) <= LARGEST:
        raise Refusal(f"its value {fill:g} is not finite", "pad with a finite constant")
    x, places = net.oriented(op, value)
    pads = {places[axis]: (stated[at], stated[at + len(axes)]) for at, axis in enumerate(axes)}
    if rank > 1 and pads.get(0, (0, 0)) != (0, 0):
        raise Refusal("it pads the batch", "pad rows, columns or channels")
    tensor = _padded_channels(net, op, x.tensor, pads.get(min(1, rank - 1), (0, 0)), fill)
    edges = pads.get(2, (0, 0)), pads.get(3, (0, 0))
    outer, inner = (tuple((max(sign * a, 0), max(sign * b, 0)) for a, b in edges) for sign in (1, -1))
    tensor = _cropped(net, op, tensor, (inner[0], inner[1]), "crop")
    if any(map(any, outer)):
        tensor = net.emit(op, Pad, [tensor], padding=outer, value=fill)
    return _result(x, tensor, net, rank, places)


def _result(x: Value, tensor: str, net: Net, rank: int, places: Dims) -> Value:
    return transposed(x if tensor == x.tensor else net.map(tensor, rank), places)


def _padded_channels(net: Net, op: Op, tensor: str, pads: Pair, fill: float) -> str:
    """More channels that hold a constant, or fewer: a 1×1 convolution with a 1 for each channel that stays."""
    if pads == (0, 0):
        return tensor
    channels = net.builder.shapes[tensor][2]
    outputs = channels + sum(pads)
    if outputs < 1 or outputs * channels > MAX_ELEMENTS >> 4:
        raise Refusal(f"{channels} channels cannot become {outputs}", "pad less")
    w, b = np.eye(outputs, channels, -pads[0]), np.full(outputs, fill)
    b[w.any(axis=1)] = 0.0
    return net.emit(op, Conv2D, [tensor], {"w": w[None, None, :, None, None], "b": b[None, None]}, "channels")


# -------------------------------------------------------------------------------------------------------- resize


def _resize(net: Net, op: Op) -> Result:
    """Nearest neighbour where it repeats each sample an integer number of times, or takes every n-th."""
    value = op.value()
    rank = len(value.axes)
    if op.text("mode", "nearest") not in ("nearest",):
        raise Refusal(f"interpolation {op.text('mode', '')!r} is not supported", "use mode = nearest with integer factors")
    if op.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refusal("it keeps the aspect ratio", "state the exact sizes")
    old = op.kind == "Upsample" or op.version < 11
    scales = op.attributes.get("scales") if op.kind == "Upsample" and op.version < 9 else op.reals(1 if old else 2)
    sizes = None if old else op.list(3)
    axes = op.integers("axes")
    axes = _axes(op, tuple(range(rank)) if axes is None else axes, rank)
    ratios = dict.fromkeys(range(rank), 1.0)
    dims = list(value.dims)
    if scales is not None and len(scales):
        factors = [float(item) for item in np.asarray(scales, np.float64).reshape(-1)]
        if len(factors) != len(axes) or not all(0 < item <= MAX_STEP for item in factors):
            raise CompileError(op.source, f"scales must be {len(axes)} positive numbers", "export the model again")
        ratios |= dict(zip(axes, factors, strict=True))
        dims = [math.floor(size * ratios[at] + 1e-9) for at, size in enumerate(dims)]
    elif sizes is not None and len(sizes) == len(axes):
        for axis, size in zip(axes, sizes, strict=True):
            ratios[axis] = size / dims[axis]
            dims[axis] = size
    else:
        raise Refusal("its scales or sizes are missing", EXPORT)
    if not all(1 <= size <= MAX_STEP for size in dims):
        raise CompileError(op.source, f"an output of {dims} is not possible", "check scales and sizes")
    x, places = net.oriented(op, value)
    new, ratio = ({places[at]: item for at, item in parts.items()} for parts in (dict(enumerate(dims)), ratios))
    return _result(x, _resized(net, op, x, new, ratio, old), net, rank, places)


def _resized(net: Net, op: Op, x: Value, new: Mapping[int, int], ratio: Mapping[int, float], old: bool) -> str:
    spatial_axes = [at for at in (2, 3) if at < len(x.axes)]
    if any(new[at] != x.dims[at] for at in new if at not in spatial_axes):
        raise Refusal("it resizes channels", "resize rows and columns")
    maps = [_nearest(op, x.dims[at], new[at], ratio[at], old) for at in spatial_axes]
    maps += [range(1)] * (2 - len(maps))
    size = net.shape(x)[:2]
    factor = tuple(_repeats(source, have) for source, have in zip(maps, size, strict=True))
    if all(factor):
        return x.tensor if factor == (1, 1) else net.emit(op, Upsample, [x.tensor], factor=factor)
    cuts = [_progression(source) for source in maps]
    if any(cut is None for cut in cuts):
        raise Refusal("it repeats some samples more often than others", "use nearest, an integer factor, asymmetric and floor")
    return _subsampled(net, op, x.tensor, [cut for cut in cuts if cut is not None])


def _repeats(source: Sequence[int], have: int) -> int:
    """How often each of ``have`` samples is repeated; 0 where not all are, in order and alike."""
    factor = len(source) // have
    return factor if factor and list(source) == [at // factor for at in range(have * factor)] else 0


def _progression(source: Sequence[int]) -> tuple[int, int, int] | None:
    """Start, stop and step of indices that rise evenly."""
    step = source[1] - source[0] if len(source) > 1 else 1
    even = step >= 1 and list(source) == list(range(source[0], source[-1] + 1, step))
    return (source[0], source[-1] + 1, step) if even else None


def _nearest(op: Op, have: int, want: int, ratio: float, old: bool) -> list[int]:
    """Which sample each output reads: the formulas of ONNX's Resize, in float32 as onnxruntime computes them."""
    mode = "asymmetric" if old else op.text("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else op.text("nearest_mode", "round_prefer_floor")
    at, scale = np.arange(want, dtype=np.float32), np.float32(ratio)
    half = np.float32(0.5)
    if mode == "asymmetric":
        x = at / scale
    elif mode == "half_pixel" or (mode == "pytorch_half_pixel" and want > 1):
        x = (at + half) / scale - half
    elif mode == "pytorch_half_pixel":
        x = at * 0
    elif mode == "half_pixel_symmetric":
        centre = np.float32(have / 2) * (1 - np.float32(want) / (scale * np.float32(have)))
        x = centre + (at + half) / scale - half
    elif mode == "tf_half_pixel_for_nn":
        x = (at + half) / scale
    elif mode == "align_corners":
        x = at * np.float32((have - 1) / (want - 1)) if want > 1 else at * 0
    else:
        raise Refusal(f"coordinate mode {mode!r} is not supported", "use asymmetric, with nearest_mode = floor")
    roundings: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "round_prefer_floor": lambda x: np.ceil(x - half),
        "round_prefer_ceil": lambda x: np.floor(x + half),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    if rounding not in roundings:
        raise CompileError(op.source, f"nearest_mode must be one of {', '.join(roundings)}", "export the model again")
    return [int(item) for item in np.clip(roundings[rounding](x), 0, have - 1)]


OPERATORS: Mapping[str, Handler] = {
    "Abs": _pointwise("abs"),
    "Add": _add,
    "ArgMax": _argmax,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Dropout": _dropout,
    "Elu": _pointwise("elu", ("alpha", 1.0)),
    "Exp": _pointwise("exp"),
    "Flatten": _flatten,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(AveragePool),
    "GlobalMaxPool": _global_pool(MaxPool),
    "HardSigmoid": _pointwise("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    "HardSwish": _hard_swish,
    "Identity": _identity,
    "LeakyRelu": _pointwise("leaky_relu", ("alpha", 0.01)),
    "Log": _pointwise("log"),
    "MatMul": _matmul,
    "Max": _extreme(least=False),
    "MaxPool": _max_pool,
    "Mean": _mean,
    "Min": _extreme(least=True),
    "Mul": _mul,
    "Neg": _negate,
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _pow,
    "ReduceMax": _reduce("max"),
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "Relu": _relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Selu": _pointwise("selu", ("alpha", 1.6732632), ("gamma", 1.0507010)),
    "Sigmoid": _pointwise("sigmoid"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _pointwise("softplus"),
    "Softsign": _pointwise("softsign"),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _pointwise("sqrt"),
    "Squeeze": _squeeze,
    "Sub": _sub,
    "Sum": _add,
    "Swish": _swish,
    "Tanh": _pointwise("tanh"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}

NEAREST: Mapping[str, str] = {
    "Celu": "use Elu",
    "ConvInteger": "use QLinearConv",
    "DFT": "compute features outside the network",
    "Einsum": "use Conv, Gemm or MatMul with constant weights",
    "Erf": "use Gelu",
    "GRU": "use convolutions",
    "Gather": "use Slice",
    "GroupNormalization": "train with BatchNormalization",
    "If": "export one branch",
    "InstanceNormalization": "train with BatchNormalization",
    "LRN": "train with BatchNormalization",
    "LSTM": "use convolutions",
    "LayerNormalization": "train with BatchNormalization",
    "LogSoftmax": "use Softmax: the host computes it",
    "Loop": "unroll it",
    "LpPool": "use AveragePool or MaxPool",
    "Mish": "use HardSwish",
    "ReduceMin": "use ReduceMax of the negated tensor",
    "Reciprocal": "divide by constants only",
    "TopK": "use ArgMax",
}
"""What to use instead of some operators that are not supported."""
