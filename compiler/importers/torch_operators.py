"""PyTorch's operators (ATen), one function each: most are an operator of ONNX under another name, and become the same.

A function takes a `Site`, the call with its arguments looked up, and returns one value or, for a list of tensors, a list. What
it cannot express it refuses (`Refusal`), with the nearest thing that works.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CompileError, quote
from ..graph import MaxPool
from .common import nonzero
from .onnx_layout import Dims, Refusal, Value, reshaped, transposed
from .onnx_net import Constant, Net, Op, Tensor
from .onnx_operators import OPERATORS as ONNX
from .torch_file import Strange

VERSION = 18
"""The opset whose operators are meant."""

FLOATS = (6, 7, 8, 13)
"""The codes of half, float, double and bfloat16."""

NOTHING: Mapping[str, Any] = {}

Result = Tensor | Sequence[Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A call: its arguments by name (values, arrays, numbers, lists), the sizes of its result, and where it stands."""

    net: Net
    label: str
    source: str
    arguments: Mapping[str, Any]
    shape: Dims | None

    def get(self, name: str, default: Any = None) -> Any:
        value = self.arguments.get(name, default)
        if isinstance(value, Strange):
            raise Refusal(f"its {name} is not known before it runs", "export the module for one fixed shape")
        return value

    def tensor(self, name: str = "self") -> Tensor:
        """A value, or a constant: an array, or a number."""
        value = self.get(name)
        if isinstance(value, int | float):
            return np.asarray(value, dtype=np.float64)
        if not isinstance(value, Value | np.ndarray):
            raise CompileError(self.source, f"{name} must be a tensor, not {quote(value)}", "export the module again")
        return value

    def value(self, name: str = "self") -> Value:
        value = self.tensor(name)
        if not isinstance(value, Value):
            raise Refusal(f"{name} does not depend on the input", "fold it before the export")
        return value

    def maybe(self, name: str) -> Tensor | None:
        return None if self.get(name) is None else self.tensor(name)

    def integer(self, name: str, default: int) -> int:
        value = self.get(name, default)
        if not isinstance(value, int) or abs(value) >= 1 << 63:
            raise CompileError(self.source, f"{name} must be a whole number, not {quote(value)}", "export the module again")
        return int(value)

    def number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if not isinstance(value, int | float):
            raise CompileError(self.source, f"{name} must be a number, not {quote(value)}", "export the module again")
        return float(value)

    def integers(self, name: str, default: Sequence[int] = (), count: int | None = None) -> list[int]:
        """Whole numbers; one alone stands for all ``count``."""
        value = self.get(name, default)
        value = (value,) if isinstance(value, int) else value
        if not isinstance(value, list | tuple) or not all(type(item) is int and abs(item) < 1 << 63 for item in value):
            raise CompileError(self.source, f"{name} must be whole numbers, not {quote(value)}", "export the module again")
        if count is not None and len(value) == 1:
            value = list(value) * count
        if count is not None and len(value) != count:
            raise CompileError(self.source, f"{name} must be {count} numbers, not {quote(value)}", "export the module again")
        return list(value)

    def onnx(self, kind: str, *inputs: Tensor | Sequence[int] | float | None, **attributes: Any) -> Value:
        """What an operator of ONNX makes of these inputs."""
        result = self.several(kind, *inputs, **attributes)
        single = result if not isinstance(result, Sequence) else result[0]
        assert isinstance(single, Value)
        return single

    def several(self, kind: str, *inputs: Tensor | Sequence[int] | float | None, outputs: int = 1, **attributes: Any) -> Result:
        tensors = tuple(one if one is None or isinstance(one, Value) else np.asarray(one) for one in inputs)
        return ONNX[kind](self.net, self.op(kind, tensors, attributes, outputs))

    def op(self, kind: str, inputs: tuple[Tensor | None, ...], attributes: Mapping[str, Any] = NOTHING, outputs: int = 1) -> Op:
        return Op(kind, self.label, self.source, inputs, attributes, outputs, VERSION)


Handler = Callable[[Site], Result]


# ------------------------------------------------------------------------------------------------ sample by sample


def _same(kind: str, **attributes: object) -> Handler:
    """An operator of ONNX of one input."""
    return lambda site: site.onnx(kind, site.value(), **attributes)


def _binary(kind: str) -> Handler:
    """``alpha`` is a factor of the second operand."""

    def handler(site: Site) -> Result:
        a, b = site.tensor("self"), site.tensor("other")
        alpha = site.number("alpha", 1.0)
        if site.get("rounding_mode") is not None:
            raise Refusal("it divides to whole numbers", "divide without rounding")
        if alpha != 1.0:
            b = site.onnx("Mul", b, alpha) if isinstance(b, Value) else np.asarray(b * alpha)
        return site.onnx(kind, a, b)

    return handler


def _rsub(site: Site) -> Result:
    b = site.onnx("Mul", site.value(), site.number("alpha", 1.0)) if site.number("alpha", 1.0) != 1.0 else site.value()
    return site.onnx("Sub", site.tensor("other"), b)


def _square(site: Site) -> Result:
    return site.onnx("Pow", site.value(), site.number("exponent", 2.0))


def _clamp(site: Site) -> Result:
    return site.onnx("Clip", site.value(), site.maybe("min"), site.maybe("max"))


def _hardtanh(site: Site) -> Result:
    return site.onnx("Clip", site.value(), site.number("min_val", -1.0), site.number("max_val", 1.0))


def _leaky_relu(site: Site) -> Result:
    return site.onnx("LeakyRelu", site.value(), alpha=site.number("negative_slope", 0.01))


def _prelu(site: Site) -> Result:
    x, slope = site.value(), site.tensor("weight")
    if not isinstance(slope, Value) and slope.ndim == 1:  # channels are the second dimension
        slope = slope.reshape(-1, *(1,) * (len(x.axes) - 2))
    return site.onnx("PRelu", x, slope)


def _elu(site: Site) -> Result:
    alpha, scale = site.number("alpha", 1.0), site.number("scale", 1.0)
    if site.number("input_scale", 1.0) != 1.0:
        raise Refusal("it scales its input", "multiply in front of it")
    if scale != 1.0:
        return site.onnx("Selu", site.value(), alpha=alpha, gamma=scale)
    return site.onnx("Elu", site.value(), alpha=alpha)


def _gelu(site: Site) -> Result:
    return site.onnx("Gelu", site.value(), approximate=site.get("approximate", "none"))


def _softplus(site: Site) -> Result:
    if site.number("beta", 1.0) != 1.0 or site.number("threshold", 20.0) < 15.0:
        raise Refusal("its beta is not 1, or its threshold is low", "use Softplus()")
    return site.onnx("Softplus", site.value())


def _identity(site: Site) -> Result:
    dtype = site.get("dtype")
    if dtype is not None and dtype not in FLOATS:
        raise Refusal("it converts to whole numbers", "leave the conversion out")
    name = "input" if "input" in site.arguments else "self"
    return site.tensor(name)


def _dropout(site: Site) -> Result:
    if site.get("train", False):
        raise Refusal("it is in training mode", "export module.eval()")
    return _identity(site)


# ------------------------------------------------------------------------------------------------------- layers


def _batch_norm(site: Site) -> Result:
    if site.get("training", False):
        raise Refusal("it is in training mode", "export module.eval()")
    x = site.value("input")
    channels = x.dims[1] if len(x.dims) > 1 else 0
    gamma, beta = site.maybe("weight"), site.maybe("bias")
    arrays = (np.ones(channels) if gamma is None else gamma, np.zeros(channels) if beta is None else beta)
    mean, var = site.tensor("running_mean"), site.tensor("running_var")
    return site.onnx("BatchNormalization", x, *arrays, mean, var, epsilon=site.number("eps", 1e-5))


def _conv(site: Site) -> Result:
    x, weight = site.value("input"), site.tensor("weight")
    count = len(x.axes) - 2
    if isinstance(weight, Value):
        raise Refusal("its weights depend on the input", "use constant weights")
    dilation, stride = site.integers("dilation", (1,), count), site.integers("stride", (1,), count)
    padding = site.get("padding", (0,))
    if padding == "same":
        spare = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=False)]
        pads = [*(total // 2 for total in spare), *(total - total // 2 for total in spare)]
    else:
        pads = [0] * 2 * count if padding == "valid" else site.integers("padding", (0,), count) * 2
    kind, more = "Conv", {}
    if site.get("transposed", False) or "output_padding" in site.arguments:
        if site.get("transposed", True):
            kind, more = "ConvTranspose", {"output_padding": site.integers("output_padding", (0,), count)}
    groups = site.integer("groups", 1)
    if groups < 1:
        raise CompileError(site.source, f"groups must be a number from 1, not {groups}", "export the module again")
    return site.onnx(
        kind, x, weight, site.maybe("bias"), strides=stride, pads=pads, dilations=dilation, group=groups, **more
    )  # fmt: skip


def _conv_transpose(site: Site) -> Result:
    return _conv(replace(site, arguments={**site.arguments, "transposed": True}))


def _linear(site: Site) -> Result:
    x, weight, bias = site.value("input"), site.tensor("weight"), site.maybe("bias")
    if isinstance(weight, Value) or weight.ndim != 2:
        raise Refusal("its weights are no constant matrix", "use constant weights")
    if len(x.axes) == 2:
        return site.onnx("Gemm", x, weight, bias, transB=1)
    y = site.onnx("MatMul", x, weight.T)
    return y if bias is None else site.onnx("Add", y, bias)


def _addmm(site: Site) -> Result:
    fields = {"alpha": site.number("alpha", 1.0), "beta": site.number("beta", 1.0)}
    return site.onnx("Gemm", site.value("mat1"), site.tensor("mat2"), site.tensor("self"), **fields)


def _matmul(site: Site) -> Result:
    return site.onnx("MatMul", site.tensor(), site.tensor("mat2" if "mat2" in site.arguments else "other"))


# --------------------------------------------------------------------------------------------------------- pools


def _pool(kind: str) -> Handler:
    def handler(site: Site) -> Result:
        x = site.value()
        count = len(x.axes) - 2
        kernel = site.integers("kernel_size", (), count)
        stride = site.integers("stride", ()) or kernel
        attributes: dict[str, object] = {
            "kernel_shape": kernel,
            "strides": stride * count if len(stride) == 1 else stride,
            "pads": site.integers("padding", (0,), count) * 2,
            "dilations": site.integers("dilation", (1,), count),
            "ceil_mode": int(site.get("ceil_mode", False) is True),
        }
        if kind == "AveragePool":
            attributes["count_include_pad"] = int(site.get("count_include_pad", True) is True)
            if site.get("divisor_override") is not None:
                raise Refusal("it divides by a number of its own", "leave divisor_override out")
        return site.onnx(kind, x, **attributes)

    return handler


def _adaptive_pool(kind: str) -> Handler:
    """Windows of one size, where the sizes divide."""

    def handler(site: Site) -> Result:
        x = site.value()
        size = list(x.dims[2:])
        wanted = site.integers("output_size", (), len(size))
        if any(want < 1 or have % want for have, want in zip(size, wanted, strict=True)):
            raise Refusal(f"{wanted} does not divide its {size}", "use an output size that divides, or 1")
        kernel = [have // want for have, want in zip(size, wanted, strict=True)]
        return site.onnx(kind, x, kernel_shape=kernel, strides=kernel)

    return handler


def _reduced(kind: str) -> Handler:
    def handler(site: Site) -> Result:
        x = site.value()
        axes = site.integers("dim", ()) if site.get("dim") is not None else []
        return site.onnx(kind, x, axes=axes or list(range(len(x.axes))), keepdims=int(site.get("keepdim", False) is True))

    return handler


def _argmax(site: Site) -> Result:
    if site.get("dim") is None:
        raise Refusal("it runs over all samples", "take argmax over dimension 1")
    return site.onnx("ArgMax", site.value(), axis=site.integer("dim", 1), keepdims=int(site.get("keepdim", False) is True))


def _softmax(site: Site) -> Result:
    return site.onnx("Softmax", site.value(), axis=site.integer("dim", -1))


# ---------------------------------------------------------------------------------------------- moving samples


def _axis(site: Site, name: str, default: int, rank: int) -> int:
    axis = site.integer(name, default)
    if not -rank <= axis < rank:
        raise CompileError(site.source, f"{name} must be an axis of {rank}, not {axis}", "export the module again")
    return axis % rank


def _view(site: Site) -> Result:
    name = "shape" if "shape" in site.arguments else "size"
    return site.onnx("Reshape", site.value(), np.asarray(site.integers(name), dtype=np.int64), allowzero=1)


def _flatten(site: Site) -> Result:
    x = site.value()
    first, last = _axis(site, "start_dim", 0, len(x.axes)), _axis(site, "end_dim", -1, len(x.axes))
    if first > last:
        raise CompileError(site.source, "start_dim must not be behind end_dim", "export the module again")
    return reshaped(x, (*x.dims[:first], math.prod(x.dims[first : last + 1]), *x.dims[last + 1 :]))


def _unflatten(site: Site) -> Result:
    x = site.value()
    at = _axis(site, "dim", 0, len(x.axes))
    sizes = site.integers("sizes")
    known = -math.prod(sizes)
    sizes = [x.dims[at] // known if size == -1 and known > 0 else size for size in sizes]
    if not sizes or min(sizes) < 1 or len(sizes) > 8:
        raise CompileError(site.source, f"sizes must be numbers from 1, not {quote(sizes)}", "export the module again")
    return reshaped(x, (*x.dims[:at], *sizes, *x.dims[at + 1 :]))


def _squeeze(site: Site) -> Result:
    x = site.value()
    rank = len(x.axes)
    axes = site.integers("dim") if "dim" in site.arguments else list(range(rank))
    dropped = {axis % rank for axis in axes if not x.axes[axis % rank]}
    return replace(x, axes=tuple(axis for at, axis in enumerate(x.axes) if at not in dropped))


def _unsqueeze(site: Site) -> Result:
    return site.onnx("Unsqueeze", site.value(), np.asarray([site.integer("dim", 0)]))


def _permute(site: Site) -> Result:
    x = site.value()
    return transposed(x, [axis % len(x.axes) for axis in site.integers("dims")])


def _transpose(site: Site) -> Result:
    x = site.value()
    order = list(range(len(x.axes)))
    a, b = (_axis(site, name, at, len(order)) for at, name in enumerate(("dim0", "dim1")))
    order[a], order[b] = order[b], order[a]
    return transposed(x, order)


def _t(site: Site) -> Result:
    x = site.value()
    return transposed(x, tuple(reversed(range(len(x.axes)))))


def _expand(site: Site) -> Result:
    x = site.value()
    if any(size not in (-1, have) for size, have in zip(reversed(site.integers("size")), reversed(x.dims), strict=False)):
        raise Refusal("it repeats samples", "add or multiply the small tensor: that repeats it")
    return x


def _cat(site: Site) -> Result:
    tensors = site.get("tensors")
    if not isinstance(tensors, tuple) or not all(isinstance(one, Value) for one in tensors):
        raise Refusal("one of its tensors is constant", "pad channels by torch.nn.functional.pad")
    return site.onnx("Concat", *tensors, axis=site.integer("dim", 0))


def _split(site: Site) -> Result:
    """split, split_with_sizes, chunk: by the sizes, or the number, of the parts."""
    x = site.value()
    axis = _axis(site, "dim", 0, len(x.axes))
    size = x.dims[axis]
    if "chunks" in site.arguments:
        step = -(-size // max(site.integer("chunks", 1), 1))
    else:
        sizes = site.integers("split_sizes" if "split_sizes" in site.arguments else "split_size")
        if len(sizes) > 1 or "split_sizes" in site.arguments:
            return site.several("Split", x, np.asarray(sizes), axis=axis, outputs=len(sizes))
        step = max(sizes[0], 1)
    sizes = [min(step, size - start) for start in range(0, size, step)]
    if len(sizes) > 1 << 10:
        raise Refusal(f"it makes {len(sizes)} parts", "make fewer")
    return site.several("Split", x, np.asarray(sizes), axis=axis, outputs=len(sizes))


def _slice(site: Site) -> Result:
    start, end = site.get("start"), site.get("end")
    every = _every(site)
    if every is not None:
        return every
    spans = [[0 if start is None else site.integer("start", 0)], [(1 << 63) - 1 if end is None else site.integer("end", 0)]]
    first, last, step = (np.asarray(item, dtype=np.int64) for item in (*spans, [site.integer("step", 1)]))
    return site.onnx("Slice", site.value(), first, last, np.asarray([site.integer("dim", 0)]), step)


def _every(site: Site) -> Value | None:
    """Every step-th row or column from the first: a 1×1 pool. Rows and then columns are one pool."""
    x, step = site.value(), site.integer("step", 1)
    rank = len(x.axes)
    axis = _axis(site, "dim", 0, rank)
    end = site.get("end")
    whole = not site.get("start") and (end is None or site.integer("end", 0) >= x.dims[axis])
    if not whole or axis < 2 or step < 2 or rank > 4:
        return None
    op = site.op("Slice", (x,))
    tensor, stride = site.net.image(op, op.value()).tensor, (step, 1) if axis == 2 else (1, step)
    node = next(node for node in site.net.builder.nodes if node.name == tensor)
    if isinstance(node, MaxPool) and node.kernel == (1, 1) and not nonzero(node.padding):
        (tensor,), stride = node.inputs, (node.stride[0] * stride[0], node.stride[1] * stride[1])
    return site.net.map(site.net.emit(op, MaxPool, [tensor], kernel=(1, 1), stride=stride), rank)


def _narrow(site: Site) -> Result:
    first = site.integer("start", 0)
    spans = (np.asarray([item]) for item in (first, first + site.integer("length", 1), site.integer("dim", 0)))
    return site.onnx("Slice", site.value(), *spans)


def _select(site: Site) -> Result:
    x = site.value()
    axis = _axis(site, "dim", 0, len(x.axes))
    at = _axis(site, "index", 0, x.dims[axis])
    y = site.onnx("Slice", x, np.asarray([at]), np.asarray([at + 1]), np.asarray([axis]))
    return site.onnx("Squeeze", y, np.asarray([axis]))


def _pad(site: Site) -> Result:
    if site.get("mode", "constant") != "constant":
        raise Refusal(f"padding by {quote(site.get('mode'))} is not supported", "pad with zeros")
    pads = site.integers("pad")
    if len(pads) % 2:
        raise CompileError(site.source, "pad must be pairs of numbers", "export the module again")
    fill = site.get("value")
    axes = [-1 - at for at in range(len(pads) // 2)]
    stated = np.asarray([*pads[0::2], *pads[1::2]], dtype=np.int64)
    return site.onnx("Pad", site.value(), stated, 0.0 if fill is None else site.number("value", 0.0), np.asarray(axes))


def _pixel_shuffle(site: Site) -> Result:
    return site.onnx("DepthToSpace", site.value(), blocksize=site.integer("upscale_factor", 1), mode="CRD")


def _pixel_unshuffle(site: Site) -> Result:
    return site.onnx("SpaceToDepth", site.value(), blocksize=site.integer("downscale_factor", 1), mode="CRD")


def _channel_shuffle(site: Site) -> Result:
    x, groups = site.value(), site.integer("groups", 1)
    if len(x.dims) < 2 or groups < 1 or x.dims[1] % groups:
        raise Refusal(f"{list(x.dims)} has no channels in {groups} groups", "choose a divisor")
    parts = reshaped(x, (x.dims[0], groups, x.dims[1] // groups, *x.dims[2:]))
    return reshaped(transposed(parts, (0, 2, 1, *range(3, len(parts.axes)))), x.dims)


def _upsample(coordinates: str) -> Handler:
    def handler(site: Site) -> Result:
        x = site.value("input" if "input" in site.arguments else "self")
        if site.shape is None:
            raise Refusal("its output has no fixed size", "export the module for one fixed shape")
        sizes = np.asarray(site.shape, dtype=np.int64)
        modes = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": "floor"}
        return site.onnx("Resize", x, None, None, sizes, **modes)

    return handler


OPERATORS: Mapping[str, Handler] = {
    "_adaptive_avg_pool2d": _adaptive_pool("AveragePool"),
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_prelu_kernel": _prelu,
    "_softmax": _softmax,
    "_to_copy": _identity,
    "_unsafe_view": _view,
    "_upsample_nearest_exact1d": _upsample("tf_half_pixel_for_nn"),
    "_upsample_nearest_exact2d": _upsample("tf_half_pixel_for_nn"),
    "abs": _same("Abs"),
    "adaptive_avg_pool1d": _adaptive_pool("AveragePool"),
    "adaptive_avg_pool2d": _adaptive_pool("AveragePool"),
    "adaptive_max_pool1d": _adaptive_pool("MaxPool"),
    "adaptive_max_pool2d": _adaptive_pool("MaxPool"),
    "add": _binary("Add"),
    "addmm": _addmm,
    "alias": _identity,
    "alpha_dropout": _dropout,
    "amax": _reduced("ReduceMax"),
    "argmax": _argmax,
    "avg_pool1d": _pool("AveragePool"),
    "avg_pool2d": _pool("AveragePool"),
    "batch_norm": _batch_norm,
    "cat": _cat,
    "channel_shuffle": _channel_shuffle,
    "chunk": _split,
    "clamp": _clamp,
    "clamp_max": _clamp,
    "clamp_min": _clamp,
    "clone": _identity,
    "concat": _cat,
    "constant_pad_nd": _pad,
    "contiguous": _identity,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "convolution": _conv,
    "detach": _identity,
    "div": _binary("Div"),
    "dropout": _dropout,
    "elu": _elu,
    "exp": _same("Exp"),
    "expand": _expand,
    "feature_dropout": _dropout,
    "flatten": _flatten,
    "gelu": _gelu,
    "hardsigmoid": _same("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hardswish": _same("HardSwish"),
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
    "lift_fresh_copy": _identity,
    "linear": _linear,
    "log": _same("Log"),
    "matmul": _matmul,
    "max_pool1d": _pool("MaxPool"),
    "max_pool2d": _pool("MaxPool"),
    "max_pool2d_with_indices": _pool("MaxPool"),
    "maximum": _binary("Max"),
    "mean": _reduced("ReduceMean"),
    "minimum": _binary("Min"),
    "mm": _matmul,
    "mul": _binary("Mul"),
    "narrow": _narrow,
    "native_channel_shuffle": _channel_shuffle,
    "neg": _same("Neg"),
    "pad": _pad,
    "permute": _permute,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "pow": _square,
    "prelu": _prelu,
    "relu": _same("Relu"),
    "relu6": lambda site: site.onnx("Clip", site.value(), 0.0, 6.0),
    "reshape": _view,
    "rsub": _rsub,
    "select": _select,
    "selu": _same("Selu", alpha=1.6732632423543772, gamma=1.0507009873554805),
    "sigmoid": _same("Sigmoid"),
    "silu": _same("Swish"),
    "slice": _slice,
    "softmax": _softmax,
    "softplus": _softplus,
    "split": _split,
    "split_with_sizes": _split,
    "sqrt": _same("Sqrt"),
    "square": _square,
    "squeeze": _squeeze,
    "sub": _binary("Sub"),
    "sum": _reduced("ReduceSum"),
    "t": _t,
    "tanh": _same("Tanh"),
    "to": _identity,
    "transpose": _transpose,
    "unflatten": _unflatten,
    "unsqueeze": _unsqueeze,
    "upsample_nearest1d": _upsample("asymmetric"),
    "upsample_nearest2d": _upsample("asymmetric"),
    "view": _view,
}
"""Every operator that can be imported, by its name in ``aten`` without its overload."""

VIEWS = frozenset(
    "_to_copy alias alpha_dropout chunk contiguous detach dropout expand feature_dropout flatten narrow permute reshape "
    "select slice split split_with_sizes squeeze t to transpose unflatten unsqueeze view".split()
)
"""Their results may share memory with their inputs, so that a change of one in place changes the other."""

NEAREST: Mapping[str, str] = {
    "_log_softmax": "use softmax: the host computes it",
    "bmm": "multiply by constant weights",
    "embedding": "embed outside the network",
    "group_norm": "train with BatchNorm2d",
    "gru": "use convolutions",
    "instance_norm": "train with BatchNorm2d",
    "layer_norm": "train with BatchNorm2d",
    "native_layer_norm": "train with BatchNorm2d",
    "log_softmax": "use softmax: the host computes it",
    "lstm": "use convolutions",
    "mish": "use hardswish",
    "scaled_dot_product_attention": "use convolutions",
    "upsample_bilinear2d": "use nearest, by a whole factor",
}
"""What to use instead of some operators that are not supported."""


# ------------------------------------------------------------------------------------------------------ constants

Fold = Callable[[Mapping[str, Any]], NDArray[Any]]


def _folded_view(arguments: Mapping[str, Any]) -> Constant:
    return np.reshape(arguments["self"], arguments.get("shape", arguments.get("size")))


FOLDS: Mapping[str, Fold] = {
    "_to_copy": lambda given: given["self"],
    "add": lambda given: given["self"] + given.get("alpha", 1) * given["other"],
    "alias": lambda given: given["self"],
    "clone": lambda given: given["self"],
    "contiguous": lambda given: given["self"],
    "detach": lambda given: given["self"],
    "div": lambda given: given["self"] / given["other"],
    "exp": lambda given: np.exp(given["self"]),
    "lift_fresh_copy": lambda given: given["self"],
    "mul": lambda given: given["self"] * given["other"],
    "neg": lambda given: -given["self"],
    "permute": lambda given: np.transpose(given["self"], given["dims"]),
    "reciprocal": lambda given: 1 / given["self"],
    "reshape": _folded_view,
    "rsqrt": lambda given: 1 / np.sqrt(given["self"]),
    "sigmoid": lambda given: 1 / (1 + np.exp(-given["self"])),
    "sqrt": lambda given: np.sqrt(given["self"]),
    "sub": lambda given: given["self"] - given.get("alpha", 1) * given["other"],
    "t": lambda given: np.transpose(given["self"]),
    "to": lambda given: given["self"],
    "transpose": lambda given: np.swapaxes(given["self"], given["dim0"], given["dim1"]),
    "unsqueeze": lambda given: np.expand_dims(given["self"], given["dim"]),
    "view": _folded_view,
}
"""What is computed of constants alone. None makes more than its operands broadcast to."""
