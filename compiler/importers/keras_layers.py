"""The layers of Keras, one function each: what nodes a layer becomes.

A Keras tensor without its batch is (H, W, C), (L, C) or (C): the graph's own order, as a map of H×W×C, L×1×C or 1×1×C.
A function takes the network in the making, the layer and its inputs, and returns its output. What it cannot express it refuses
(`Refusal`), with the nearest thing that works.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import CompileError, quote
from ..graph import (
    Add,
    Array,
    AveragePool,
    BatchNorm,
    Clip,
    Concat,
    Conv2D,
    Crop,
    Dense,
    DepthToSpace,
    Flatten,
    MaxPool,
    Multiply,
    Node,
    Pad,
    Padding,
    Pair,
    Pointwise,
    Prelu,
    Reshape,
    ScaleBias,
    Shape,
    Softmax,
    Upsample,
    same_padding,
    window_extent,
)
from ..numbers import RealArray
from ..verify import MAX_STEP
from .common import Builder, finite, nonzero, spatial
from .keras_file import BROKEN, KerasFile, Place
from .lowering import transposed_conv
from .onnx_layout import Refusal

Dims = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A Keras tensor: the graph's ``name``, its sizes without the batch, and ``head`` once a softmax is due."""

    name: str
    dims: Dims
    head: Softmax | None = None

    @property
    def channels(self) -> int:
        return self.dims[-1]

    @property
    def size(self) -> Pair:
        return map_shape(self.dims)[:2]


def map_shape(dims: Dims) -> Shape:
    """Rows, columns and channels of a tensor of 1 to 3 sizes."""
    height, width = (*dims[:-1], 1, 1)[:2]
    return height, width, dims[-1]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer's configuration, read by kind of number, and the node that is made for it.

    *Raises* ``CompileError`` where the configuration is not what Keras writes.
    """

    kind: str
    name: str
    config: Mapping[str, Any]
    source: str
    place: Place
    file: KerasFile
    builder: Builder

    # ------------------------------------------------------------------------------------------------ configuration

    def wrong(self, key: str, rule: str) -> CompileError:
        return CompileError(self.source, f"{key} must be {rule}, not {quote(self.config.get(key))}", BROKEN)

    def integer(self, key: str, default: int) -> int:
        value = self.config.get(key, default)
        if type(value) is not int or not 0 <= value <= MAX_STEP:
            raise self.wrong(key, f"a number from 0 to {MAX_STEP}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.config.get(key, default)
        if type(value) not in (int, float):
            raise self.wrong(key, "a number")
        return float(finite(self.source, key, np.asarray(float(value) if abs(value) < 1e300 else math.inf))[()])

    def optional(self, key: str) -> float | None:
        return None if self.config.get(key) is None else self.number(key, 0.0)

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.config.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def integers(self, key: str, default: Sequence[int] | None = None) -> Dims:
        """Whole numbers from -1; one alone is a list of one."""
        value = self.config.get(key)
        value = default if value is None else value
        value = [value] if type(value) is int else value
        if not isinstance(value, list | tuple) or len(value) > 8 or not all(type(item) is int for item in value):
            raise self.wrong(key, "whole numbers")
        if not all(-8 <= item <= MAX_STEP for item in value):
            raise self.wrong(key, f"numbers up to {MAX_STEP}")
        return tuple(value)

    def sizes(self, key: str, rank: int, default: Sequence[int] | None = None) -> Dims:
        """One number from 1 for each of ``rank`` axes, or one for all."""
        values = self.integers(key, default)
        values = values * rank if len(values) == 1 else values
        if len(values) != rank or min(values) < 1:
            raise self.wrong(key, f"{rank} numbers from 1")
        return values

    def edges(self, key: str, rank: int) -> Padding:
        """Samples at both ends of one or two axes: ``1``, ``(1, 2)`` or ``((1, 2), (3, 4))``."""
        value = self.config.get(key, 1)
        if type(value) is int:
            value = [[value, value]] * rank
        elif rank == 1 and isinstance(value, list) and all(type(item) is int for item in value):
            value = [value]
        if not isinstance(value, list) or len(value) != rank:
            raise self.wrong(key, f"numbers for {rank} axes")
        pairs = [[item, item] if type(item) is int else item for item in value] + [[0, 0]] * (2 - rank)
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or not all(type(n) is int and 0 <= n <= MAX_STEP for n in pair):
                raise self.wrong(key, f"pairs of numbers from 0 to {MAX_STEP}")
        return (pairs[0][0], pairs[0][1]), (pairs[1][0], pairs[1][1])

    def channels_last(self) -> None:
        if self.config.get("data_format") not in (None, "channels_last"):
            raise Refusal("it has channels first", "build the model with data_format='channels_last'")

    # ------------------------------------------------------------------------------------------------ what is made

    def weights(self, **shapes: Sequence[int]) -> dict[str, RealArray]:
        return self.file.weights(self.source, self.place, shapes)

    def emit(
        self,
        kind: type[Node],
        inputs: Sequence[str],
        arrays: Mapping[str, Array] | None = None,
        part: str = "",
        **fields: object,
    ) -> str:
        """A node, its name that of the layer, and ``part`` where it is only a part of it."""
        name = self.builder.fresh(f"{self.name}_{part}" if part else self.name)
        return self.builder.add(kind(name=name, inputs=tuple(inputs), source=self.source, **fields), **(arrays or {}))

    def tensor(self, name: str, rank: int) -> Tensor:
        """A tensor of the graph as one of ``rank`` sizes."""
        height, width, channels = self.builder.shapes[name]
        return Tensor(name, (*(height, width)[: rank - 1], channels))

    def reshaped(self, x: Tensor, dims: Dims) -> Tensor:
        """The same samples in the same order."""
        shape = map_shape(dims)
        if self.builder.shapes[x.name] == shape:
            return replace(x, dims=dims)
        if shape[:2] == (1, 1):
            return replace(x, name=self.emit(Flatten, [x.name]), dims=dims)
        return replace(x, name=self.emit(Reshape, [x.name], shape=shape), dims=dims)


Handler = Callable[[Layer, Sequence[Tensor]], Tensor]


def one(layer: Layer, inputs: Sequence[Tensor], rank: int | None = None) -> Tensor:
    """The only input, before any softmax, of ``rank`` sizes."""
    if len(inputs) != 1:
        raise CompileError(layer.source, f"must have one input, not {len(inputs)}", BROKEN)
    if inputs[0].head:
        raise Refusal("it follows a softmax", "let softmax be the last layer: the host computes it")
    if rank is not None and len(inputs[0].dims) != rank:
        message = f"must read a tensor of {rank} dimensions and a batch, not {list(inputs[0].dims)}"
        raise CompileError(layer.source, message, BROKEN)
    return inputs[0]


# --------------------------------------------------------------------------------------------------- activations


SELU = (1.6732632423543772, 1.0507009873554805)

FUNCTIONS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "elu": ("elu", (1.0,)),
    "exponential": ("exp", ()),
    "gelu": ("gelu", ()),
    "hard_silu": ("hard_swish", ()),
    "hard_swish": ("hard_swish", ()),
    "leaky_relu": ("leaky_relu", (0.2,)),
    "selu": ("selu", SELU),
    "sigmoid": ("sigmoid", ()),
    "silu": ("swish", ()),
    "softplus": ("softplus", ()),
    "softsign": ("softsign", ()),
    "swish": ("swish", ()),
    "tanh": ("tanh", ()),
}
"""Activations by their names in Keras."""


def _activated(layer: Layer, x: Tensor, part: str = "") -> Tensor:
    """What the layer's ``activation`` makes of its own result."""
    name = layer.config.get("activation")
    if name is None or name == "linear":
        return x
    if not isinstance(name, str):
        raise Refusal("its activation is an object of its own", "name the activation, or use a layer for it")
    if name == "softmax":
        return replace(x, head=Softmax())
    if name in ("relu", "relu6"):
        high = 6.0 if name == "relu6" else math.inf
        return replace(x, name=layer.emit(Clip, [x.name], part=part, low=0.0, high=high))
    if name == "hard_sigmoid":  # Keras 2 has another one than Keras 3
        return _function(layer, x, "hard_sigmoid", ((0.2, 0.5) if layer.file.version < 3 else (1 / 6, 0.5)), part)
    if name not in FUNCTIONS:
        known = ", ".join(sorted((*FUNCTIONS, "hard_sigmoid", "linear", "relu", "relu6", "softmax")))
        raise Refusal(f"the activation {quote(name)} is not supported", f"use {known}")
    return _function(layer, x, *FUNCTIONS[name], part)


def _function(layer: Layer, x: Tensor, function: str, parameters: tuple[float, ...], part: str = "") -> Tensor:
    return replace(x, name=layer.emit(Pointwise, [x.name], part=part, function=function, parameters=parameters))


def _activation(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    return _activated(layer, one(layer, inputs))


def _relu(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    x, most, slope = one(layer, inputs), layer.optional("max_value"), layer.optional("negative_slope")
    if layer.optional("threshold"):
        raise Refusal("its threshold is not 0", "use threshold=0")
    high = math.inf if most is None else most
    if not high > 0:
        raise layer.wrong("max_value", "above 0")
    if not slope:
        return replace(x, name=layer.emit(Clip, [x.name], low=0.0, high=high))
    leaky = _function(layer, x, "leaky_relu", (slope,), "slope" if most is not None else "")
    return leaky if most is None else replace(x, name=layer.emit(Clip, [leaky.name], low=-math.inf, high=high))


def _leaky_relu(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    key = "negative_slope" if "negative_slope" in layer.config else "alpha"
    return _function(layer, one(layer, inputs), "leaky_relu", (layer.number(key, 0.3),))


def _elu(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    return _function(layer, one(layer, inputs), "elu", (layer.number("alpha", 1.0),))


def _prelu(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    x = one(layer, inputs)
    shared = layer.integers("shared_axes", ())
    shape = [1 if axis in shared else size for axis, size in enumerate(x.dims, start=1)]
    if math.prod(shape[:-1]) != 1 or len(x.dims) in shared:
        raise Refusal("its slopes are not one a channel", "use PReLU(shared_axes=[1, 2])")
    slope = layer.weights(alpha=shape)["alpha"].reshape(-1)
    return replace(x, name=layer.emit(Prelu, [x.name], {"slope": slope}))


def _softmax(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    x = one(layer, inputs)
    if layer.integers("axis", (-1,)) not in ((-1,), (len(x.dims),)):
        raise Refusal("it does not run over the channels", "use axis=-1")
    return replace(x, head=Softmax())


# -------------------------------------------------------------------------------------------------- convolutions


def _plain(layer: Layer) -> None:
    """No weights but those of the float layer."""
    layer.channels_last()
    if layer.config.get("quantization_config") is not None or layer.config.get("lora_rank") is not None:
        raise Refusal("it is quantized, or has an adapter", "save the float model, its adapters merged")


def _padding(layer: Layer, size: Pair, extent: Pair, stride: Pair) -> Padding:
    match layer.text("padding", "valid"):
        case "valid":
            return (0, 0), (0, 0)
        case "same":
            return same_padding(size[0], extent[0], stride[0]), same_padding(size[1], extent[1], stride[1])
        case "causal" if layer.kind.endswith("1D"):
            return (extent[0] - 1, 0), (0, 0)
    raise Refusal(f"padding {quote(layer.config['padding'])} is not supported", "use 'valid' or 'same'")


def _rank(layer: Layer) -> int:
    """Spatial axes, from the layer's name: Conv1D, SeparableConv2D, …"""
    return 1 if "1D" in layer.kind else 2


@dataclass(frozen=True, slots=True)
class _Windows:
    kernel: Dims
    stride: Pair
    dilation: Pair
    padding: Padding


def _windows(layer: Layer, x: Tensor) -> _Windows:
    """Kernel, stride, dilation and padding of a convolution."""
    _plain(layer)
    rank = _rank(layer)
    kernel = layer.sizes("kernel_size", rank)
    stride, dilation = spatial(layer.sizes("strides", rank, [1])), spatial(layer.sizes("dilation_rate", rank, [1]))
    (kh, kw) = spatial(kernel)
    extent = window_extent(kh, dilation[0]), window_extent(kw, dilation[1])
    return _Windows(kernel, stride, dilation, _padding(layer, x.size, extent, stride))


def _filters(layer: Layer, groups: int = 1) -> int:
    filters = layer.integer("filters", 0)
    if filters < 1 or filters % groups:
        raise layer.wrong("filters", f"a multiple of {groups} groups" if groups > 1 else "a number from 1")
    return filters


def _with_bias(layer: Layer, outputs: int, **shapes: Dims) -> tuple[list[RealArray], RealArray]:
    """The weights of the given shapes, and the bias or zeros."""
    if layer.flag("use_bias", True):
        shapes["bias"] = (outputs,)
    *weights, last = layer.weights(**shapes).values()
    return (weights, last) if "bias" in shapes else ([*weights, last], np.zeros(outputs))


def _ohwi(kernel: RealArray) -> RealArray:
    """Weights ``(kh, kw, I, O)``, or ``(k, I, O)``, as ``(1, 1, O, kh, kw, I)``."""
    kernel = kernel[:, None] if kernel.ndim == 3 else kernel
    return kernel.transpose(3, 0, 1, 2)[None, None]


def _conv(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    x = one(layer, inputs, _rank(layer) + 1)
    windows, groups = _windows(layer, x), layer.integer("groups", 1)
    if groups < 1 or x.channels % groups:
        raise layer.wrong("groups", f"a divisor of {x.channels} channels")
    filters = _filters(layer, groups)
    (kernel,), bias = _with_bias(layer, filters, kernel=(*windows.kernel, x.channels // groups, filters))
    return _convolved(layer, x, windows, _ohwi(kernel), bias, groups)


def _convolved(layer: Layer, x: Tensor, windows: _Windows, w: RealArray, b: RealArray, groups: int, part: str = "") -> Tensor:
    fields = {"stride": windows.stride, "padding": windows.padding, "dilation": windows.dilation, "groups": groups}
    part = part or _inner(layer)
    y = layer.tensor(layer.emit(Conv2D, [x.name], {"w": w, "b": b[None, None]}, part, **fields), len(x.dims))
    return y if part == "depthwise" else _activated(layer, y)


def _inner(layer: Layer) -> str:
    """The name's part for what stands in front of the layer's own activation."""
    return "" if layer.config.get("activation") in (None, "linear", "softmax") else "linear"


def _depthwise_weights(kernel: RealArray) -> RealArray:
    """``(kh, kw, C, m)`` as ``(1, 1, C·m, kh, kw, 1)``: output ``c·m + n`` reads channel ``c``."""
    kernel = kernel[:, None] if kernel.ndim == 3 else kernel
    kh, kw, channels, times = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(1, 1, channels * times, kh, kw, 1)


def _depthwise_conv(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    x = one(layer, inputs, _rank(layer) + 1)
    windows, times = _windows(layer, x), layer.integer("depth_multiplier", 1)
    part = "kernel" if layer.file.version >= 3 else "depthwise_kernel"
    outputs = x.channels * max(times, 1)
    (kernel,), bias = _with_bias(layer, outputs, **{part: (*windows.kernel, x.channels, max(times, 1))})
    return _convolved(layer, x, windows, _depthwise_weights(kernel), bias, x.channels)


def _separable_conv(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    rank = _rank(layer)
    x = one(layer, inputs, rank + 1)
    windows, times, filters = _windows(layer, x), max(layer.integer("depth_multiplier", 1), 1), _filters(layer)
    shapes = {
        "depthwise_kernel": (*windows.kernel, x.channels, times),
        "pointwise_kernel": (*(1,) * rank, x.channels * times, filters),
    }
    (depthwise, pointwise), bias = _with_bias(layer, filters, **shapes)
    middle = _convolved(
        layer, x, windows, _depthwise_weights(depthwise), np.zeros(x.channels * times), x.channels, part="depthwise"
    )
    single = _Windows((1,) * rank, (1, 1), (1, 1), ((0, 0), (0, 0)))
    return _convolved(layer, middle, single, _ohwi(pointwise), bias, 1)


def _conv_transpose(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    """TensorFlow's: the gradient of the convolution that would make this input of this output."""
    rank = _rank(layer)
    x = one(layer, inputs, rank + 1)
    _plain(layer)
    kernel, filters = layer.sizes("kernel_size", rank), _filters(layer)
    stride = spatial(layer.sizes("strides", rank, [1]))
    if layer.config.get("output_padding") is not None or spatial(layer.sizes("dilation_rate", rank, [1])) != (1, 1):
        raise Refusal("it has an output padding or a dilation", "leave both out")
    spare = [max(k - s, 0) for k, s in zip(spatial(kernel), stride, strict=True)]
    (weights,), bias = _with_bias(layer, filters, kernel=(*kernel, filters, x.channels))
    weights = weights[:, None] if rank == 1 else weights
    match layer.text("padding", "valid"):
        case "same":
            front = spare[0] // 2, spare[1] // 2
            outputs = x.size[0] * stride[0], x.size[1] * stride[1]
        case "valid":
            front = 0, 0
            outputs = x.size[0] * stride[0] + spare[0], x.size[1] * stride[1] + spare[1]
        case _:
            raise layer.wrong("padding", "'valid' or 'same'")
    if math.prod(stride) * filters > MAX_STEP or max(stride) > 1 << 10:
        raise Refusal(f"its strides {list(stride)} are too large", "use smaller ones")
    made = transposed_conv(weights.transpose(2, 0, 1, 3), bias, x.size, outputs, front, stride)
    arrays = {"w": made.w_ohwi[None, None], "b": made.b_o[None, None]}
    name = _cropped(layer, x.name, made.cropping, "crop")
    name = layer.emit(Conv2D, [name], arrays, "conv" if made.block != (1, 1) else _inner(layer), padding=made.padding)
    if made.block != (1, 1):
        part = "blocks" if nonzero(made.trim) or _inner(layer) else ""
        name = layer.emit(DepthToSpace, [name], part=part, block=made.block, order="CRD")
    return _activated(layer, layer.tensor(_cropped(layer, name, made.trim, "trim"), rank + 1))


def _cropped(layer: Layer, name: str, cropping: Padding, part: str = "") -> str:
    return layer.emit(Crop, [name], part=part, cropping=cropping) if nonzero(cropping) else name


def _dense(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    x, units = one(layer, inputs), layer.integer("units", 0)
    _plain(layer)
    if units < 1:
        raise layer.wrong("units", "a number from 1")
    (kernel,), bias = _with_bias(layer, units, kernel=(x.channels, units))
    if len(x.dims) == 1:
        name = layer.emit(Dense, [x.name], {"w": kernel.T, "b": bias}, _inner(layer))
    else:  # at every pixel
        name = layer.emit(Conv2D, [x.name], {"w": kernel.T[None, None, :, None, None], "b": bias[None, None]}, _inner(layer))
    return _activated(layer, Tensor(name, (*x.dims[:-1], units)))


# ------------------------------------------------------------------------------------------------- normalization


def _batch_norm(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    x = one(layer, inputs)
    if layer.integers("axis", (-1,)) not in ((-1,), (len(x.dims),)) or layer.config.get("renorm"):
        raise Refusal("it does not normalize channels, or by renorm", "use axis=-1")
    gamma, beta = layer.flag("scale", True), layer.flag("center", True)
    parts = [*(["gamma"] if gamma else []), *(["beta"] if beta else []), "moving_mean", "moving_variance"]
    found = layer.weights(**dict.fromkeys(parts, (x.channels,)))
    arrays = {
        "gamma": found.get("gamma", np.ones(x.channels)),
        "beta": found.get("beta", np.zeros(x.channels)),
        "mean": found["moving_mean"],
        "var": found["moving_variance"],
    }
    epsilon = layer.number("epsilon", 1e-3)
    return replace(x, name=layer.emit(BatchNorm, [x.name], arrays, epsilon=epsilon))


def _channel_numbers(layer: Layer, key: str, channels: int) -> RealArray:
    """A number, or one for each channel, as ``(C,)``."""
    try:
        values = np.asarray(layer.config.get(key), dtype=np.float64).reshape(-1)
    except (ValueError, TypeError, OverflowError) as error:
        raise layer.wrong(key, "numbers") from error
    if values.size not in (1, channels):
        raise layer.wrong(key, f"1 number or {channels}")
    return np.broadcast_to(finite(layer.source, key, values), (channels,)).copy()


def _rescaling(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    x = one(layer, inputs)
    shifted = layer.config.get("offset") is not None
    bias = _channel_numbers(layer, "offset", x.channels) if shifted else np.zeros(x.channels)
    arrays = {"scale": _channel_numbers(layer, "scale", x.channels), "bias": bias}
    return replace(x, name=layer.emit(ScaleBias, [x.name], arrays))


def _normalization(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    """``(x − mean) / max(√variance, 1e-7)``."""
    x = one(layer, inputs)
    if layer.config.get("invert") or layer.config.get("axis", -1) not in (-1, len(x.dims), [-1], [len(x.dims)], None, []):
        raise Refusal("it does not normalize channels", "use axis=-1, without invert")
    if layer.config.get("mean") is None:  # learnt by adapt()
        shape = () if layer.config.get("axis", -1) in (None, []) else (x.channels,)
        found = layer.weights(mean=shape, variance=shape, count=())
        mean, variance = (np.broadcast_to(found[part], (x.channels,)) for part in ("mean", "variance"))
    else:
        mean, variance = (_channel_numbers(layer, part, x.channels) for part in ("mean", "variance"))
    if (variance < 0).any():
        raise CompileError(layer.source, "a variance must not be negative", BROKEN)
    scale = 1.0 / np.maximum(np.sqrt(variance), 1e-7)
    return replace(x, name=layer.emit(ScaleBias, [x.name], {"scale": scale, "bias": -mean * scale}))


# --------------------------------------------------------------------------------------------------------- pools


def _pool(kind: type[MaxPool] | type[AveragePool]) -> Handler:
    def handler(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
        rank = _rank(layer)
        x = one(layer, inputs, rank + 1)
        layer.channels_last()
        kernel = layer.sizes("pool_size", rank, [2])
        stride = spatial(layer.sizes("strides", rank, kernel))
        size = spatial(kernel)
        fields: dict[str, Any] = {"kernel": size, "stride": stride, "padding": _padding(layer, x.size, size, stride)}
        return layer.tensor(layer.emit(kind, [x.name], **fields), rank + 1)

    return handler


def _global_pool(kind: type[MaxPool] | type[AveragePool]) -> Handler:
    def handler(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
        rank = _rank(layer)
        x = one(layer, inputs, rank + 1)
        layer.channels_last()
        name = layer.emit(kind, [x.name], kernel=x.size, stride=(1, 1))
        return layer.tensor(name, rank + 1 if layer.flag("keepdims", False) else 1)

    return handler


# ------------------------------------------------------------------------------------------------ moving samples


def _flatten(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    layer.channels_last()
    (x,) = _any(layer, inputs)
    return layer.reshaped(x, (math.prod(x.dims),)) if x.head is None else _after_softmax(x, (math.prod(x.dims),))


def _reshape(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    (x,) = _any(layer, inputs)
    dims, total = layer.integers("target_shape"), math.prod(x.dims)
    if dims.count(-1) == 1:
        known = -math.prod(dims)
        dims = tuple(total // known if size == -1 and known > 0 else size for size in dims)
    if not dims or min(dims) < 1 or math.prod(dims) != total:
        raise layer.wrong("target_shape", f"the sizes of {total} samples")
    if len(dims) > 3:
        raise Refusal(f"tensors of {len(dims)} dimensions and a batch are not supported", "use at most (H, W, C)")
    return layer.reshaped(x, dims) if x.head is None else _after_softmax(x, dims)


def _any(layer: Layer, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(inputs) != 1:
        raise CompileError(layer.source, f"must have one input, not {len(inputs)}", BROKEN)
    return inputs


def _after_softmax(x: Tensor, dims: Dims) -> Tensor:
    if dims[-1] != x.channels:
        raise Refusal("it follows a softmax", "let softmax be the last layer: the host computes it")
    return replace(x, dims=dims) if map_shape(dims) == map_shape(x.dims) else x


def _permute(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    x, order = one(layer, inputs), layer.integers("dims")
    if sorted(order) != list(range(1, len(x.dims) + 1)):
        raise layer.wrong("dims", f"the numbers 1 to {len(x.dims)}")
    moved = [axis for axis in order if x.dims[axis - 1] > 1]
    if moved != sorted(moved):
        raise Refusal("it needs samples in another order than they stream in", "leave the permutation out")
    return layer.reshaped(x, tuple(x.dims[axis - 1] for axis in order))


def _zero_padding(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    rank = _rank(layer)
    x = one(layer, inputs, rank + 1)
    layer.channels_last()
    return layer.tensor(layer.emit(Pad, [x.name], padding=layer.edges("padding", rank)), rank + 1)


def _cropping(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    rank = _rank(layer)
    x = one(layer, inputs, rank + 1)
    layer.channels_last()
    return layer.tensor(_cropped(layer, x.name, layer.edges("cropping", rank)), rank + 1)


def _up_sampling(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    rank = _rank(layer)
    x = one(layer, inputs, rank + 1)
    layer.channels_last()
    if layer.text("interpolation", "nearest") != "nearest":
        raise Refusal(f"interpolation {quote(layer.config['interpolation'])} is not supported", "use 'nearest'")
    factor = spatial(layer.sizes("size", rank, [2]))
    return layer.tensor(layer.emit(Upsample, [x.name], factor=factor), rank + 1)


def _identity(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    (x,) = _any(layer, inputs)
    return x


# --------------------------------------------------------------------------------------------------------- joins


def _aligned(layer: Layer, inputs: Sequence[Tensor]) -> tuple[list[str], Dims]:
    """The tensors, rows and columns of 1 repeated to the size of the others, and the sizes of the result."""
    if len(inputs) < 2:
        raise CompileError(layer.source, f"must have two inputs or more, not {len(inputs)}", BROKEN)
    inputs = [one(layer, [x]) for x in inputs]
    dims = max((x.dims for x in inputs), key=len)
    shapes = [map_shape(x.dims) for x in inputs]
    height, width, channels = (max(sizes) for sizes in zip(*shapes, strict=True))
    names = []
    for x, (rows, cols, depth) in zip(inputs, shapes, strict=True):
        if rows not in (1, height) or cols not in (1, width) or depth != channels or len(x.dims) not in (1, len(dims)):
            raise Refusal(f"{list(x.dims)} does not fit onto {height}×{width}×{channels}", "give the branches the same shape")
        factor = height // rows, width // cols
        names.append(x.name if factor == (1, 1) else layer.emit(Upsample, [x.name], part="repeat", factor=factor))
    return names, (*(height, width)[: len(dims) - 1], channels)


def _add(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    names, dims = _aligned(layer, inputs)
    return Tensor(layer.emit(Add, names), dims)


def _average(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    names, dims = _aligned(layer, inputs)
    total = layer.emit(Add, names, part="sum")
    arrays = {"scale": np.full(dims[-1], 1.0 / len(names)), "bias": np.zeros(dims[-1])}
    return Tensor(layer.emit(ScaleBias, [total], arrays), dims)


def _subtract(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    (a, b, *more), dims = _aligned(layer, inputs)
    if more:
        raise CompileError(layer.source, "must have two inputs", BROKEN)
    minus = layer.emit(ScaleBias, [b], {"scale": np.full(dims[-1], -1.0), "bias": np.zeros(dims[-1])}, "minus")
    return Tensor(layer.emit(Add, [a, minus]), dims)


def _multiply(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    (total, *names), dims = _aligned(layer, inputs)
    for at, name in enumerate(names, start=1):
        total = layer.emit(Multiply, [total, name], part="" if at == len(names) else f"part{at}")
    return Tensor(total, dims)


def _concatenate(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    tensors = [one(layer, [x]) for x in inputs]
    if not tensors or len({len(x.dims) for x in tensors}) > 1:
        raise CompileError(layer.source, "its inputs must have one number of dimensions", BROKEN)
    rank = len(tensors[0].dims)
    if layer.integers("axis", (-1,)) not in ((-1,), (rank,)):
        raise Refusal("it does not join channels", "use axis=-1")
    if len(tensors) == 1:
        return tensors[0]
    return layer.tensor(layer.emit(Concat, [x.name for x in tensors]), rank)


LAYERS: Mapping[str, Handler] = {
    "Activation": _activation,
    "ActivityRegularization": _identity,
    "Add": _add,
    "AlphaDropout": _identity,
    "Average": _average,
    "AveragePooling1D": _pool(AveragePool),
    "AveragePooling2D": _pool(AveragePool),
    "BatchNormalization": _batch_norm,
    "Concatenate": _concatenate,
    "Conv1D": _conv,
    "Conv1DTranspose": _conv_transpose,
    "Conv2D": _conv,
    "Conv2DTranspose": _conv_transpose,
    "Cropping1D": _cropping,
    "Cropping2D": _cropping,
    "Dense": _dense,
    "DepthwiseConv1D": _depthwise_conv,
    "DepthwiseConv2D": _depthwise_conv,
    "Dropout": _identity,
    "ELU": _elu,
    "Flatten": _flatten,
    "GaussianDropout": _identity,
    "GaussianNoise": _identity,
    "GlobalAveragePooling1D": _global_pool(AveragePool),
    "GlobalAveragePooling2D": _global_pool(AveragePool),
    "GlobalMaxPooling1D": _global_pool(MaxPool),
    "GlobalMaxPooling2D": _global_pool(MaxPool),
    "Identity": _identity,
    "LeakyReLU": _leaky_relu,
    "MaxPooling1D": _pool(MaxPool),
    "MaxPooling2D": _pool(MaxPool),
    "Multiply": _multiply,
    "Normalization": _normalization,
    "PReLU": _prelu,
    "Permute": _permute,
    "RandomBrightness": _identity,
    "RandomContrast": _identity,
    "RandomFlip": _identity,
    "RandomRotation": _identity,
    "RandomTranslation": _identity,
    "RandomZoom": _identity,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv1D": _separable_conv,
    "SeparableConv2D": _separable_conv,
    "Softmax": _softmax,
    "SpatialDropout1D": _identity,
    "SpatialDropout2D": _identity,
    "Subtract": _subtract,
    "UpSampling1D": _up_sampling,
    "UpSampling2D": _up_sampling,
    "ZeroPadding1D": _zero_padding,
    "ZeroPadding2D": _zero_padding,
}
"""Every layer that can be imported, by its class."""

OPERATIONS = ("Add", "Multiply", "Subtract")
"""Functions of two tensors that Keras 3 keeps as layers, and that are what the layers of these names are."""

NEAREST: Mapping[str, str] = {
    "Conv3D": "use Conv2D",
    "Embedding": "embed outside the network",
    "GRU": "use convolutions",
    "GroupNormalization": "train with BatchNormalization",
    "LSTM": "use convolutions",
    "Lambda": "use a layer of Keras: code in a file is never run",
    "LayerNormalization": "train with BatchNormalization",
    "Maximum": "write max(a, b) as a + ReLU(b − a)",
    "MultiHeadAttention": "use convolutions",
    "TFOpLambda": "use a layer of Keras: code in a file is never run",
    "TimeDistributed": "use the layer itself on rows",
}
"""What to use instead of some layers that are not supported."""
