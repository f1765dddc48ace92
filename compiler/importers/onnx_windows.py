"""Float ONNX operators that sum or choose: convolutions, dense layers, pools, reductions, softmax."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import CompileError
from ..graph import (
    ArgMax,
    AveragePool,
    Conv2D,
    Dense,
    DepthToSpace,
    MaxPool,
    Pad,
    Padding,
    Pair,
    ScaleBias,
    Softmax,
    same_padding,
    window_extent,
)
from ..numbers import RealArray
from ..verify import MAX_ELEMENTS, MAX_STEP
from .common import MAX_WEIGHTS, ceil_padding, nonzero, spatial
from .lowering import MAX_TRANSPOSED_STRIDE, phases_size, transposed_conv, transposed_outputs, transposed_weights
from .onnx_layout import Dims, Factor, Refusal, Value, transposed
from .onnx_net import Handler, Net, Op, Result

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
    x, rank = net.spatial(op, op.value())
    weights, groups = op.weights(1), op.integer("group", 1)
    w_oihw = _kernel(op, weights, rank)
    channels, outputs = net.shape(x)[2], w_oihw.shape[0]
    if channels % groups or outputs % groups or w_oihw.shape[1] * groups != channels:
        message = f"weights {list(weights.shape)} in {groups} groups do not fit {channels} channels"
        raise CompileError(op.source, message, "export the model again")
    dilation = _pair(op, "dilations", rank)
    stride, padding = _windows(op, net.shape(x)[:2], rank, weights.shape[2:], dilation)
    arrays = {"w": w_oihw.transpose(0, 2, 3, 1)[None, None], "b": _bias(op, 2, outputs)[None, None]}
    fields: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return net.map(net.emit(op, Conv2D, [x.tensor], arrays, **fields), rank)


def _conv_transpose(net: Net, op: Op) -> Result:
    x, rank = net.spatial(op, op.value())
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
    if max(stride) > MAX_TRANSPOSED_STRIDE or phases_size(w_iohw.shape, stride, dilation) > MAX_WEIGHTS:
        raise Refusal(f"its stride {stride[0]}×{stride[1]} makes too many weights", "use a smaller stride")
    made = transposed_conv(transposed_weights(w_iohw, groups), bias, size, outputs, padding, stride, dilation)
    arrays = {"w": made.w_ohwi[None, None], "b": made.b_o[None, None]}
    tensor = net.cropped(op, x.tensor, made.cropping, "crop")
    whole = made.block == (1, 1) and not nonzero(made.trim)
    tensor = net.emit(op, Conv2D, [tensor], arrays, "" if whole else "conv", padding=made.padding, groups=groups)
    if made.block != (1, 1):
        part = "blocks" if nonzero(made.trim) else ""
        tensor = net.emit(op, DepthToSpace, [tensor], part=part, block=made.block, order="CRD")
    return net.map(net.cropped(op, tensor, made.trim), rank)


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
    if not ceil:
        return kernel, stride, padding, padding, dilation
    rows, cols = map(ceil_padding, size, extent, stride, padding)
    return kernel, stride, padding, (rows, cols), dilation


def _max_pool(net: Net, op: Op) -> Result:
    x, rank = net.spatial(op, op.value())
    kernel, stride, _, padding, dilation = _pool_windows(op, x, net, rank)
    if op.outputs > 1:
        raise Refusal("its indices are not made", "use the first output only")
    if dilation != (1, 1):
        raise Refusal("dilated pooling is not supported", "pool without dilation")
    return net.map(net.emit(op, MaxPool, [x.tensor], kernel=kernel, stride=stride, padding=padding), rank)


def _average_pool(net: Net, op: Op) -> Result:
    x, rank = net.spatial(op, op.value())
    kernel, stride, stated, padding, dilation = _pool_windows(op, x, net, rank)
    counts = bool(op.integer("count_include_pad", 0))
    tensor = x.tensor
    if dilation != (1, 1):
        if nonzero(padding) and not (counts and padding == stated):
            raise Refusal("dilated pooling with padding that does not count is not supported", "pool without dilation")
        channels = net.shape(x)[2]
        if channels * math.prod(kernel) > MAX_ELEMENTS >> 4:
            raise Refusal("its dilated window is too large", "pool without dilation")
        weights = np.full((1, 1, channels, *kernel, 1), 1.0 / math.prod(kernel))
        arrays = {"w": weights, "b": np.zeros((1, 1, channels))}
        spread: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": channels}
        return net.map(net.emit(op, Conv2D, [tensor], arrays, **spread), rank)
    if counts and padding != stated:  # stated padding counts, that of ceil_mode does not
        if nonzero(stated):
            tensor = net.emit(op, Pad, [tensor], part="pad", padding=stated)
        padding = _difference(padding, stated)
        counts = False
    fields: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding, "count_include_pad": counts}
    return net.map(net.emit(op, AveragePool, [tensor], **fields), rank)


def _difference(a: Padding, b: Padding) -> Padding:
    (top, bottom), (left, right) = (tuple(x - y for x, y in zip(*pair, strict=True)) for pair in zip(a, b, strict=True))
    return (top, bottom), (left, right)


def _global_pool(kind: type[AveragePool] | type[MaxPool]) -> Handler:
    def handler(net: Net, op: Op) -> Result:
        x, rank = net.spatial(op, op.value())
        return net.map(net.emit(op, kind, [x.tensor], kernel=net.shape(x)[:2], stride=(1, 1)), rank)

    return handler


def _reduce(how: str) -> Handler:
    """The mean, sum or maximum over rows and columns; mean and sum over channels too."""

    def handler(net: Net, op: Op) -> Result:
        value = op.value()
        rank = len(value.axes)
        axes = op.axes(op.listed("axes", 1), rank)
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
    (axis,) = op.axes((op.integer("axis", 0),), rank)
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
    (axis,) = op.axes((op.integer("axis", default),), rank)
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


WINDOWS: Mapping[str, Handler] = {
    "ArgMax": _argmax,
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(AveragePool),
    "GlobalMaxPool": _global_pool(MaxPool),
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "ReduceMax": _reduce("max"),
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "Softmax": _softmax,
}
