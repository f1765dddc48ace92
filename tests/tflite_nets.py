"""Random TensorFlow Lite networks of all operators that are imported, int8 or float, with branches and residuals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.tflite_writer import Tensor, Writer, float32

SAME, VALID = 0, 1


@dataclass
class Net:
    """A network in the making. Operators read any tensor made so far; what nobody reads becomes an output."""

    rng: np.random.Generator
    real: bool = False
    writer: Writer = field(default_factory=Writer)
    made: list[int] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------------------- tensors

    def shape(self, index: int) -> tuple[int, ...]:
        return self.writer.tensors[index].shape

    def format(self, index: int) -> tuple[float, int]:
        tensor: Tensor = self.writer.tensors[index]
        return (tensor.scales[0], tensor.zero_points[0]) if tensor.scales else (0.05, 0)

    def any_scale(self, near: float = 0.05) -> float:
        return float32(near * 2.0 ** self.rng.uniform(-1.5, 1.5))

    def any_point(self) -> int:
        points = (-128, 0, 127, int(self.rng.integers(-128, 128)))
        return points[int(self.rng.choice(4, p=[0.3, 0.2, 0.05, 0.45]))]

    def activation(self, shape: Sequence[int], near: float = 0.05) -> int:
        return self.tensor(shape, self.any_scale(near), self.any_point())

    def tensor(self, shape: Sequence[int], scale: float, zero_point: int) -> int:
        return self.writer.tensor(shape, scale, zero_point, "FLOAT32" if self.real else "INT8")

    def constant(self, raw: NDArray[np.int64], scale: float, zero_point: int) -> int:
        """An operand from 8-bit numbers: in a float network their real values."""
        if self.real:
            return self.writer.constant((raw - zero_point) * scale, "FLOAT32")
        return self.writer.constant(raw, "INT8", [scale], [zero_point])

    def like(self, index: int, shape: Sequence[int]) -> int:
        """A tensor in the format of another."""
        return self.tensor(shape, *self.format(index))

    def ints(self, *values: int) -> int:
        return self.writer.constant(values, "INT32")

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def flag(self, chance: float = 0.5) -> bool:
        return bool(self.rng.random() < chance)

    def add(self, kind: str, inputs: Sequence[int], output: int, **options: float) -> int:
        self.writer.operator(kind, inputs, [output], **options)
        return output

    def fused(self) -> int:
        return int(self.rng.choice([0, 1, 2, 3], p=[0.4, 0.3, 0.1, 0.2]))

    # ------------------------------------------------------------------------------------------------ weighted layers

    def weights(self, shape: Sequence[int], outputs: int, axis: int) -> tuple[int, tuple[float, ...]]:
        w = self.rng.integers(-127, 128, shape)
        if self.real:
            return self.writer.constant(w / (64 * (w.size / outputs) ** 0.5), "FLOAT32"), (1.0,)
        base = self.any_scale(0.01)
        scales = tuple(float32(base * f) for f in self.rng.uniform(0.3, 3, outputs)) if self.flag(0.7) else (base,)
        return self.writer.constant(w, "INT8", scales, axis=axis), scales

    def bias(self, outputs: int, taps: int, x_scale: float, scales: tuple[float, ...]) -> int:
        reach = 2000 * max(1, int(taps**0.5))
        b = self.rng.integers(-reach, reach + 1, outputs)
        if self.real:
            return self.writer.constant(b / reach, "FLOAT32")
        return self.writer.constant(b, "INT32", [float32(x_scale * scale) for scale in scales])

    def result_scale(self, taps: int, x_scale: float, scales: tuple[float, ...]) -> float:
        """Near to what keeps most results within 8 bits."""
        return float(x_scale * max(scales) * 75 * 75 * taps**0.5 / 64)


def window(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """The outputs of a window along one axis; not positive for none."""
    extent = (kernel - 1) * dilation + 1
    return -(-size // stride) if padding == SAME else (size + stride - extent) // stride


def conv(net: Net, x: int) -> int | None:
    _, height, width, channels = net.shape(x)
    kh, kw = net.number(1, 4), net.number(1, 4)
    sh, sw = net.number(1, 2), net.number(1, 3)
    dh, dw = (net.number(1, 3), net.number(1, 2)) if net.flag(0.3) else (1, 1)
    padding = net.number(0, 1)
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    groups = int(net.rng.choice(divisors)) if net.flag(0.2) else 1
    outputs = groups * net.number(1, 6)
    rows, cols = window(height, kh, sh, padding, dh), window(width, kw, sw, padding, dw)
    if min(rows, cols) < 1:
        return None
    w, scales = net.weights((outputs, kh, kw, channels // groups), outputs, 0)
    taps, x_scale = kh * kw * channels // groups, net.format(x)[0]
    inputs = [x, w, net.bias(outputs, taps, x_scale, scales)]
    y = net.activation((1, rows, cols, outputs), net.result_scale(taps, x_scale, scales))
    options = {"Padding": padding, "StrideH": sh, "StrideW": sw, "DilationHFactor": dh, "DilationWFactor": dw}
    return net.add("CONV_2D", inputs, y, FusedActivationFunction=net.fused(), **options)


def depthwise(net: Net, x: int) -> int | None:
    _, height, width, channels = net.shape(x)
    kh, kw, stride, times = net.number(1, 4), net.number(1, 4), net.number(1, 2), net.number(1, 3)
    padding, outputs = net.number(0, 1), channels * times
    rows, cols = window(height, kh, stride, padding), window(width, kw, stride, padding)
    if min(rows, cols) < 1 or outputs > 24:
        return None
    w, scales = net.weights((1, kh, kw, outputs), outputs, 3)
    inputs = [x, w, net.bias(outputs, kh * kw, net.format(x)[0], scales)]
    y = net.activation((1, rows, cols, outputs), net.result_scale(kh * kw, net.format(x)[0], scales))
    options = {"Padding": padding, "StrideH": stride, "StrideW": stride, "DepthMultiplier": times}
    options |= {"DilationHFactor": 1, "DilationWFactor": 1}
    return net.add("DEPTHWISE_CONV_2D", inputs, y, FusedActivationFunction=net.fused(), **options)


def dense(net: Net, x: int) -> int | None:
    reads, outputs = int(np.prod(net.shape(x))), net.number(1, 10)
    w, scales = net.weights((outputs, reads), outputs, 0)
    inputs = [x, w, net.bias(outputs, reads, net.format(x)[0], scales)] if net.flag(0.8) else [x, w]
    y = net.activation((1, outputs), net.result_scale(reads, net.format(x)[0], scales))
    net.add("FULLY_CONNECTED", inputs, y, FusedActivationFunction=net.fused())
    image = net.like(y, (1, 1, 1, outputs))
    return net.add("RESHAPE", [y, net.ints(1, 1, 1, outputs)], image)


def transposed(net: Net, x: int) -> int | None:
    _, height, width, channels = net.shape(x)
    kh, kw, stride, padding, outputs = net.number(1, 4), net.number(1, 4), net.number(1, 3), net.number(0, 1), net.number(1, 4)
    rows, cols = (size * stride if padding == SAME else (size - 1) * stride + k for size, k in ((height, kh), (width, kw)))
    if rows * cols * outputs > 2000 or (max(kh, kw) < stride and padding == SAME):
        return None
    w, scales = net.weights((outputs, kh, kw, channels), outputs, 0)
    taps = max(1, kh * kw * channels // stride**2)
    y = net.activation((1, rows, cols, outputs), net.result_scale(taps, net.format(x)[0], scales))
    inputs = [net.ints(1, rows, cols, outputs), w, x, net.bias(outputs, taps, net.format(x)[0], scales)]
    return net.add("TRANSPOSE_CONV", inputs, y, Padding=padding, StrideH=stride, StrideW=stride)


# -------------------------------------------------------------------------------------------------------- arithmetic


def _twin(net: Net, x: int) -> int:
    """A tensor of the same shape: one that is there, or the same requantized."""
    twins = [other for other in net.made if net.shape(other) == net.shape(x) and other != x]
    if twins and net.flag(0.8):
        return int(net.rng.choice(twins))
    if net.real:
        return net.add("RELU", [x], net.like(x, net.shape(x)))
    return net.add("QUANTIZE", [x], net.activation(net.shape(x), net.format(x)[0]))


def _second(net: Net, x: int) -> int:
    """The other operand: a tensor, a constant for each channel or one number."""
    if net.flag(0.6):
        return _twin(net, x)
    shape = (net.shape(x)[3],) if net.flag() else (1, 1, 1, 1)
    scale, point = net.any_scale(net.format(x)[0]), net.any_point()
    return net.constant(net.rng.integers(-128, 128, shape), scale, point)


def _binary(kind: str) -> Callable[[Net, int], int | None]:
    def rule(net: Net, x: int) -> int | None:
        pair = [x, _second(net, x)]
        if net.flag(0.3):
            pair.reverse()
        one, two = (net.format(index)[0] for index in pair)
        near = one * two * 64 if kind == "MUL" else max(one, two)
        return net.add(kind, pair, net.activation(net.shape(x), near), FusedActivationFunction=net.fused())

    return rule


def scaled_by_pixel(net: Net, x: int) -> int | None:
    """Squeeze and excite: a map times the mean of its channels."""
    mean_ = mean(net, x)
    if mean_ is None:
        return None
    y = net.activation(net.shape(x), net.format(x)[0] * net.format(mean_)[0] * 64)
    return net.add("MUL", [x, mean_], y, FusedActivationFunction=0)


# ------------------------------------------------------------------------------------------------------------- pools


def _pool(kind: str) -> Callable[[Net, int], int | None]:
    def rule(net: Net, x: int) -> int | None:
        _, height, width, channels = net.shape(x)
        kh, kw, sh, sw, padding = net.number(1, 4), net.number(1, 4), net.number(1, 3), net.number(1, 3), net.number(0, 1)
        if net.flag(0.2):
            kh, kw, padding = height, width, VALID
        rows, cols = window(height, kh, sh, padding), window(width, kw, sw, padding)
        if min(rows, cols) < 1:
            return None
        fused = net.fused() if kind == "AVERAGE_POOL_2D" else 0
        options = {"Padding": padding, "StrideH": sh, "StrideW": sw, "FilterHeight": kh, "FilterWidth": kw}
        y = net.like(x, (1, rows, cols, channels))
        return net.add(kind, [x], y, FusedActivationFunction=fused, **options)

    return rule


def mean(net: Net, x: int) -> int | None:
    _, height, width, channels = net.shape(x)
    shape, axes = [((1, 1, 1, channels), (1, 2)), ((1, 1, width, channels), (1,)), ((1, height, 1, channels), (2,))][
        int(net.rng.choice(3, p=[0.7, 0.15, 0.15]))
    ]
    y = net.activation(shape, net.format(x)[0] * 0.5)
    return net.add("MEAN", [x, net.ints(*axes)], y, KeepDims=1)


def reduce_max(net: Net, x: int) -> int | None:
    y = net.like(x, (1, 1, 1, net.shape(x)[3]))
    return net.add("REDUCE_MAX", [x, net.ints(1, 2)], y, KeepDims=1)


# ----------------------------------------------------------------------------------------------------------- functions


def _function(kind: str) -> Callable[[Net, int], int | None]:
    def rule(net: Net, x: int) -> int | None:
        shape = net.shape(x)
        if kind == "RELU6":
            return net.add(kind, [x], net.like(x, shape))
        if kind == "LOGISTIC":
            return net.add(kind, [x], net.tensor(shape, 1 / 256, -128))
        if kind == "TANH":
            return net.add(kind, [x], net.tensor(shape, 1 / 128, 0))
        near = net.format(x)[0]
        y = net.activation(shape, near * (1.5 if kind == "HARD_SWISH" else 1))
        if kind == "PRELU":
            slopes = net.rng.integers(-128, 128, (1, 1, shape[3]))
            alpha = net.constant(slopes, net.any_scale(0.01), net.any_point())
            return net.add(kind, [x, alpha], y)
        if kind == "LEAKY_RELU":
            return net.add(kind, [x], y, Alpha=float(net.rng.uniform(-0.5, 1.5)))
        return net.add(kind, [x], y)

    return rule


# ---------------------------------------------------------------------------------------------------------------- moves


def concat(net: Net, x: int) -> int | None:
    others = [other for other in net.made if net.shape(other)[:3] == net.shape(x)[:3]]
    parts = [x]
    for _ in range(net.number(1, 2)):
        other = int(net.rng.choice(others))
        same = net.format(other) == net.format(x)
        parts.append(other if same else net.add("QUANTIZE", [other], net.like(x, net.shape(other))))
    channels = sum(net.shape(part)[3] for part in parts)
    if channels > 24:
        return None
    y = net.like(x, (*net.shape(x)[:3], channels))
    return net.add("CONCATENATION", parts, y, Axis=int(net.rng.choice([3, -1])))


def split(net: Net, x: int) -> int | None:
    shape = net.shape(x)
    axes = [axis for axis in (1, 2, 3) if shape[axis] % 2 == 0]
    if not axes:
        return None
    axis = int(net.rng.choice(axes))
    half = list(shape)
    half[axis] //= 2
    parts = [net.like(x, half), net.like(x, half)]
    net.writer.operator("SPLIT", [net.ints(axis), x], parts, NumSplits=2)
    net.made.append(parts[0])
    return parts[1]


def _cut(net: Net, x: int) -> tuple[list[int], list[int]]:
    begin = [0, *(net.number(0, size - 1) if net.flag(0.5) else 0 for size in net.shape(x)[1:])]
    size = [1, *(net.number(1, full - first) for full, first in zip(net.shape(x)[1:], begin[1:], strict=True))]
    return begin, size


def slice_(net: Net, x: int) -> int | None:
    begin, size = _cut(net, x)
    return net.add("SLICE", [x, net.ints(*begin), net.ints(*size)], net.like(x, size))


def strided_slice(net: Net, x: int) -> int | None:
    begin, size = _cut(net, x)
    end = [first + count for first, count in zip(begin, size, strict=True)]
    inputs = [x, net.ints(*begin), net.ints(*end), net.ints(1, 1, 1, 1)]
    return net.add("STRIDED_SLICE", inputs, net.like(x, size), BeginMask=0, EndMask=0)


def resize(net: Net, x: int) -> int | None:
    _, height, width, channels = net.shape(x)
    rows, cols = height * net.number(1, 3), width * net.number(1, 3)
    if rows * cols * channels > 2000:
        return None
    y = net.like(x, (1, rows, cols, channels))
    return net.add("RESIZE_NEAREST_NEIGHBOR", [x, net.ints(rows, cols)], y, HalfPixelCenters=net.flag())


def depth_to_space(net: Net, x: int) -> int | None:
    _, height, width, channels = net.shape(x)
    if channels % 4:
        return None
    y = net.like(x, (1, height * 2, width * 2, channels // 4))
    return net.add("DEPTH_TO_SPACE", [x], y, BlockSize=2)


def space_to_depth(net: Net, x: int) -> int | None:
    _, height, width, channels = net.shape(x)
    if height % 2 or width % 2 or channels > 6:
        return None
    y = net.like(x, (1, height // 2, width // 2, channels * 4))
    return net.add("SPACE_TO_DEPTH", [x], y, BlockSize=2)


def pad(net: Net, x: int) -> int | None:
    _, height, width, channels = net.shape(x)
    top, bottom, left, right = (net.number(0, 2) for _ in range(4))
    pads = net.writer.constant(np.array([[0, 0], [top, bottom], [left, right], [0, 0]]), "INT32")
    y = net.like(x, (1, height + top + bottom, width + left + right, channels))
    if net.flag():
        return net.add("PAD", [x, pads], y)
    scale, point = net.format(x)
    value = net.constant(np.array([net.number(-128, 127)]), scale, point)
    return net.add("PADV2", [x, pads, value], y)


def reshape(net: Net, x: int) -> int | None:
    _, height, width, channels = net.shape(x)
    shape = (1, width, height, channels) if net.flag() else (1, 1, 1, height * width * channels)
    if shape[3] > 24 or shape == net.shape(x):
        return None
    return net.add("RESHAPE", [x, net.ints(*shape)], net.like(x, shape))


OPERATORS: Mapping[str, Callable[[Net, int], int | None]] = {
    "conv": conv,
    "depthwise": depthwise,
    "dense": dense,
    "transposed": transposed,
    "add": _binary("ADD"),
    "sub": _binary("SUB"),
    "mul": _binary("MUL"),
    "scaled_by_pixel": scaled_by_pixel,
    "average_pool": _pool("AVERAGE_POOL_2D"),
    "max_pool": _pool("MAX_POOL_2D"),
    "mean": mean,
    "reduce_max": reduce_max,
    "relu": _function("RELU"),
    "relu6": _function("RELU6"),
    "leaky_relu": _function("LEAKY_RELU"),
    "prelu": _function("PRELU"),
    "hard_swish": _function("HARD_SWISH"),
    "logistic": _function("LOGISTIC"),
    "tanh": _function("TANH"),
    "quantize": _function("QUANTIZE"),
    "concat": concat,
    "split": split,
    "slice": slice_,
    "strided_slice": strided_slice,
    "resize": resize,
    "depth_to_space": depth_to_space,
    "space_to_depth": space_to_depth,
    "pad": pad,
    "reshape": reshape,
}


REAL_OPERATORS = tuple(name for name in OPERATORS if name != "quantize")
"""Those of float networks."""


def random_network(
    rng: np.random.Generator, count: int, operators: Sequence[str] = (), real: bool = False
) -> tuple[bytes, int]:
    """A file with ``count`` operators or a few more, and how many outputs it has."""
    net = Net(rng, real)
    operators = operators or (REAL_OPERATORS if real else tuple(OPERATORS))
    height, width, channels = net.number(3, 9), net.number(3, 9), net.number(1, 8)
    source = net.activation((1, height, width, channels))
    net.made.append(source)
    for _ in range(20 * count):
        if len(net.made) > count:
            break
        recent = net.made[-3:] if net.flag(0.7) else net.made
        y = OPERATORS[str(rng.choice(list(operators)))](net, int(rng.choice(recent)))
        if y is not None and int(np.prod(net.shape(y))) <= 4000:
            net.made.append(y)
    read = {index for operator in net.writer.operators for index in operator.inputs}
    tensors = {index for operator in net.writer.operators for index in operator.outputs}
    outputs = sorted(tensors - read)
    return net.writer.write([source], outputs), len(outputs)


def random_frames(rng: np.random.Generator, count: int, shape: Sequence[int]) -> NDArray[np.int8]:
    """Frames of any samples, the extremes among them."""
    frames = rng.integers(-128, 128, (count, *shape))
    extremes = rng.random((count, *shape)) < 0.1
    return np.where(extremes, rng.choice([-128, 127], (count, *shape)), frames).astype(np.int8)
