"""Random quantized ONNX networks: branches, residuals and every operator, in QOperator form, in QDQ form, and mixed.

A seed makes one network, always the same. Scales follow from the layers, so that outputs use their range; now and then they are
powers of two, which make exact ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convfold.compiler.importers.ort_math import average_is_sure
from convfold.compiler.importers.quantized_pools import window_counts
from convfold.compiler.numbers import Format

MICROSOFT = "com.microsoft"
OPSET = 17
Dims = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An integer tensor of ``dims``, batch included."""

    name: str
    dims: Dims
    scale: np.float32
    zero: int


class Writer:
    """A network in the making."""

    def __init__(self, rng: np.random.Generator, style: str, kind: type[np.integer]) -> None:
        self.rng, self.style, self.kind = rng, style, kind
        self.limits = np.iinfo(kind)
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, NDArray[Any]] = {}
        self.count = 0
        self.used: list[str] = []

    # ------------------------------------------------------------------------------------------------------ pieces

    def name(self, stem: str = "t") -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def array(self, value: NDArray[Any] | np.generic) -> str:
        name = self.name("k")
        self.arrays[name] = np.asarray(value)
        return name

    def node(self, op: str, inputs: Sequence[str], domain: str = "", outputs: int = 1, **attributes: Any) -> list[str]:
        names = [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, name=f"n{self.count}", **attributes))
        self.used.append(op)
        return names

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def qdq(self) -> bool:
        """Whether the next operator is written between DequantizeLinear and QuantizeLinear."""
        return self.style == "qdq" or (self.style == "mixed" and self.chance(0.5))

    def zero(self) -> int:
        low, high = int(self.limits.min), int(self.limits.max)
        return int(self.pick(low, (low + high + 1) // 2, self.rng.integers(low, high + 1)))

    def scale(self, wanted: float) -> np.float32:
        if self.chance(0.15):
            return np.float32(2.0 ** round(math.log2(wanted)))
        return np.float32(wanted * self.rng.uniform(0.7, 1.4))

    def params(self, tensor: Tensor) -> list[str]:
        return [self.array(tensor.scale), self.array(self.kind(tensor.zero))]

    def triple(self, tensor: Tensor) -> list[str]:
        return [tensor.name, *self.params(tensor)]

    def real(self, tensor: Tensor) -> str:
        return self.node("DequantizeLinear", self.triple(tensor))[0]

    def quantized(self, real: str, dims: Dims, scale: np.float32, zero: int) -> Tensor:
        made = Tensor("", dims, scale, zero)
        return Tensor(self.node("QuantizeLinear", [real, *self.params(made)])[0], dims, scale, zero)

    def result(self, op: str, inputs: Sequence[str], dims: Dims, scale: np.float32, zero: int, **attributes: Any) -> Tensor:
        """A QOperator node whose last two inputs are the output's format."""
        made = Tensor("", dims, scale, zero)
        domain = "" if op in ("QLinearConv", "QLinearMatMul") else MICROSOFT
        return Tensor(self.node(op, [*inputs, *self.params(made)], domain, **attributes)[0], dims, scale, zero)

    # -------------------------------------------------------------------------------------------- weighted operators

    def weights(self, shape: Dims, outputs: int, axis: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Integers, scales and zero points, for each output or for all."""
        kind = np.int8 if self.kind is np.int8 or self.chance(0.5) else np.uint8
        limits = np.iinfo(kind)
        raw = self.rng.integers(limits.min, limits.max + 1, shape).astype(kind)
        scales = np.asarray([self.scale(0.01) for _ in range(outputs if self.chance(0.5) else 1)], dtype=np.float32)
        middle = (int(limits.min) + int(limits.max) + 1) // 2
        zeros = np.full(scales.shape, middle + int(self.pick(0, 0, self.rng.integers(-20, 21))), dtype=np.int64).astype(kind)
        return raw, scales, zeros

    def bias(self, outputs: int, taps: int) -> NDArray[np.int32]:
        return self.rng.integers(-900, 901, outputs).astype(np.int32) * np.int32(max(1, math.isqrt(taps)))

    def output_format(self, x: Tensor, scales: NDArray[Any], taps: int) -> tuple[np.float32, int]:
        spread = float(x.scale) * float(np.mean(scales)) * math.sqrt(taps) * 74.0 * 74.0
        return self.scale(spread / self.rng.uniform(25, 90)), self.zero()

    def conv(self, x: Tensor) -> Tensor | None:
        channels, size = x.dims[1], x.dims[2:]
        kernel = tuple(int(self.rng.integers(1, min(5, n) + 1)) for n in size)
        dilation = tuple(int(self.rng.integers(1, 3)) if k > 1 else 1 for k in kernel)
        stride = tuple(int(self.rng.integers(1, 3)) for _ in size)
        divisors = [g for g in range(1, channels + 1) if channels % g == 0]
        groups = int(self.pick(1, 1, channels, self.pick(*divisors)))
        outputs = groups * int(self.rng.integers(1, max(2, 9 // groups)))
        begin = [int(self.rng.integers(0, k)) for k in kernel]
        end = [int(self.rng.integers(0, k)) for k in kernel]
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        made = [(n + a + b - e) // s + 1 for n, a, b, e, s in zip(size, begin, end, spans, stride, strict=True)]
        if min(n + a + b - e for n, a, b, e in zip(size, begin, end, spans, strict=True)) < 0:
            return None
        shape = (outputs, channels // groups, *kernel)
        taps = math.prod(shape[1:])
        raw, scales, zeros = self.weights(shape, outputs, 0)
        scale, zero = self.output_format(x, scales, taps)
        attributes: dict[str, Any] = {
            "strides": stride, "dilations": dilation, "group": groups, "kernel_shape": kernel, "pads": [*begin, *end],
        }  # fmt: skip
        dims = (1, outputs, *made)
        bias = self.bias(outputs, taps) if self.chance(0.7) else None
        return self.weighted("Conv", x, raw, scales, zeros, 0, bias, dims, scale, zero, attributes)

    def weighted(
        self, op: str, x: Tensor, raw: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any], axis: int,
        bias: NDArray[Any] | None, dims: Dims, scale: np.float32, zero: int, attributes: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        """Conv, MatMul or Gemm in this network's form."""
        whole = scales.size == 1
        steps, points = (self.array(v.reshape(()) if whole else v) for v in (scales, zeros))
        if not self.qdq():
            inputs = [*self.triple(x), self.array(raw), steps, points]
            made = Tensor("", dims, scale, zero)
            if op == "Gemm":
                last = self.array(bias) if bias is not None else ""
                return self.result("QGemm", [*inputs, last], dims, scale, zero, **attributes)
            if bias is None or op == "MatMul":
                return self.result(f"QLinear{op}", inputs, dims, scale, zero, **attributes)
            names = self.node(f"QLinear{op}", [*inputs, *self.params(made), self.array(bias)], **attributes)
            return Tensor(names[0], dims, scale, zero)
        extra: dict[str, Any] = {} if whole else {"axis": axis}
        inputs = [self.real(x), self.node("DequantizeLinear", [self.array(raw), steps, points], **extra)[0]]
        if bias is not None:
            bias_scales = (x.scale * scales).astype(np.float32)
            none = self.array(np.zeros((), np.int32) if whole else np.zeros(scales.shape, np.int32))
            arrays = [self.array(bias), self.array(bias_scales.reshape(()) if whole else bias_scales), none]
            along: dict[str, Any] = {} if whole else {"axis": 0}
            inputs.append(self.node("DequantizeLinear", arrays, **along)[0])
        real = self.node(op, inputs, **attributes)[0]
        if zero == self.limits.min and self.chance(0.5):
            real = self.node("Relu", [real])[0]
        return self.quantized(real, dims, scale, zero)

    def dense(self, x: Tensor) -> Tensor | None:
        if math.prod(x.dims) > 600:
            return None
        flat = self.flat(x)
        inputs, outputs = flat.dims[1], int(self.rng.integers(2, 11))
        raw, scales, zeros = self.weights((inputs, outputs), outputs, 1)
        scale, zero = self.output_format(flat, scales, inputs)
        if self.chance(0.5):
            return self.weighted("MatMul", flat, raw, scales, zeros, 1, None, (1, outputs), scale, zero, {})
        attributes = {}
        axis = 1
        if self.chance(0.5):
            raw, axis, attributes = np.ascontiguousarray(raw.T), 0, {"transB": 1}
        bias = self.bias(outputs, inputs) if self.chance(0.7) else None
        return self.weighted("Gemm", flat, raw, scales, zeros, axis, bias, (1, outputs), scale, zero, attributes)

    def flat(self, x: Tensor) -> Tensor:
        if len(x.dims) == 2:
            return x
        dims = (1, math.prod(x.dims))
        if self.chance(0.5):
            return self.moved("Flatten", x, dims)
        return self.moved("Reshape", x, dims, [self.array(np.array([1, -1]))])

    # ------------------------------------------------------------------------------------------------ what only moves

    def moved(self, op: str, x: Tensor, dims: Dims, extra: Sequence[str] = (), **attributes: Any) -> Tensor:
        """An operator that keeps the format, on integers or between a dequantizer and a quantizer."""
        floats = op in ("DepthToSpace", "SpaceToDepth")  # onnxruntime has them for floats only
        if floats or self.qdq():
            real = self.node(op, [self.real(x), *extra], **attributes)[0]
            return self.quantized(real, dims, x.scale, x.zero)
        return Tensor(self.node(op, [x.name, *extra], **attributes)[0], dims, x.scale, x.zero)

    def max_pool(self, x: Tensor) -> Tensor | None:
        size = x.dims[2:]
        kernel = tuple(int(self.rng.integers(1, min(3, n) + 1)) for n in size)
        stride = tuple(int(self.rng.integers(1, 3)) for _ in size)
        begin = [int(self.rng.integers(0, k)) for k in kernel]
        end = [int(self.rng.integers(0, k)) for k in kernel]
        ceil = self.chance(0.3)
        made = []
        for n, a, b, k, s in zip(size, begin, end, kernel, stride, strict=True):
            windows = (-(-(n + a + b - k) // s) if ceil else (n + a + b - k) // s) + 1
            if (windows - 1) * s >= n + a:  # a window of padding alone: the tools disagree on it
                return None
            made.append(windows)
        attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": [*begin, *end], "ceil_mode": int(ceil)}
        return self.moved("MaxPool", x, (*x.dims[:2], *made), **attributes)

    def resize(self, x: Tensor) -> Tensor | None:
        factor = [int(self.rng.integers(1, 4)) for _ in x.dims[2:]]
        dims = (*x.dims[:2], *(n * f for n, f in zip(x.dims[2:], factor, strict=True)))
        if math.prod(dims) > 4000 or max(factor) == 1:
            return None
        scales = self.array(np.array([1, 1, *factor], dtype=np.float32))
        mode, rounding = self.pick(("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))
        extra = ["", scales]
        return self.moved("Resize", x, dims, extra, mode="nearest", coordinate_transformation_mode=mode, nearest_mode=rounding)

    def pad(self, x: Tensor) -> Tensor | None:
        spatial = len(x.dims) - 2
        begin, end = ([int(n) for n in self.rng.integers(0, 3, spatial)] for _ in range(2))
        wider = [int(n) for n in self.rng.integers(0, 3, 2)] if self.chance(0.2) else [0, 0]
        dims = (1, x.dims[1] + sum(wider), *(n + a + b for n, a, b in zip(x.dims[2:], begin, end, strict=True)))
        pads = self.array(np.array([0, wider[0], *begin, 0, wider[1], *end]))
        if sum(wider) or self.chance(0.5):
            real = self.node("Pad", [self.real(x), pads])[0]
            return self.quantized(real, dims, x.scale, x.zero)
        fill = self.array(self.kind(self.rng.integers(self.limits.min, self.limits.max + 1)))
        return Tensor(self.node("Pad", [x.name, pads, fill])[0], dims, x.scale, x.zero)

    def cut(self, x: Tensor) -> Tensor | None:
        starts: list[int] = []
        ends: list[int] = []
        axes: list[int] = []
        steps: list[int] = []
        dims = list(x.dims)
        for axis in range(1, len(dims)):
            if self.chance(0.5) and dims[axis] > 1:
                first = int(self.rng.integers(0, dims[axis] - 1))
                stop = int(self.rng.integers(first + 1, dims[axis] + 1))
                step = 2 if axis > 1 and self.chance(0.3) else 1
                starts, ends, axes, steps = [*starts, first], [*ends, stop], [*axes, axis], [*steps, step]
                dims[axis] = -(-(stop - first) // step)
        if not axes:
            return None
        return self.moved("Slice", x, tuple(dims), [self.array(np.array(v)) for v in (starts, ends, axes, steps)])

    def depth_to_space(self, x: Tensor) -> Tensor | None:
        if len(x.dims) != 4:
            return None
        _, channels, height, width = x.dims
        if channels % 4 == 0 and self.chance(0.5):
            mode = self.pick("DCR", "CRD")
            return self.moved("DepthToSpace", x, (1, channels // 4, height * 2, width * 2), blocksize=2, mode=mode)
        if height % 2 == width % 2 == 0:
            return self.moved("SpaceToDepth", x, (1, channels * 4, height // 2, width // 2), blocksize=2)
        return None

    def reshape(self, x: Tensor) -> Tensor | None:
        """Another map of the same samples, which moves them all in our order."""
        total = math.prod(x.dims)
        channels = int(self.pick(*[n for n in range(1, total + 1) if total % n == 0 and n <= 12]))
        rows = int(self.pick(*[n for n in range(1, total // channels + 1) if total // channels % n == 0]))
        dims = (1, channels, rows, total // channels // rows)
        return self.moved("Reshape", x, dims, [self.array(np.array(dims))])

    # ----------------------------------------------------------------------------------------------------- functions

    def function(self, x: Tensor) -> Tensor | None:
        op = self.pick("LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Relu", "Clip", "PRelu", "Abs")
        attributes: dict[str, Any] = {}
        if op == "LeakyRelu":
            attributes["alpha"] = float(self.rng.uniform(0.01, 0.4))
        zero = self.zero()
        wide = float(x.scale) * 256
        if op in ("Sigmoid", "HardSigmoid"):
            scale, zero = self.scale(1 / 256), int(self.limits.min)
        else:
            scale = self.scale(1 / 128 if op == "Tanh" else wide / 200)
        if op in ("LeakyRelu", "Sigmoid") and not self.qdq():
            return self.result(f"QLinear{op}", self.triple(x), x.dims, scale, zero, **attributes)
        extra = []
        if op == "Clip":
            extra = [self.array(np.float32(-wide / 5)), self.array(np.float32(wide / 4))]
        if op == "PRelu":
            shape = (x.dims[1], *[1] * (len(x.dims) - 2))
            extra = [self.array(self.rng.uniform(-0.5, 0.5, shape).astype(np.float32))]
        return self.quantized(self.node(op, [self.real(x), *extra], **attributes)[0], x.dims, scale, zero)

    def constant(self, x: Tensor) -> Tensor | None:
        """Adding or multiplying one constant, or one for each channel."""
        op = self.pick("Add", "Mul")
        shape = () if self.chance(0.3) else (1, x.dims[1], *[1] * (len(x.dims) - 2))
        other = Tensor("", shape, self.scale(float(x.scale) if op == "Add" else 0.01), self.zero())
        raw = self.rng.integers(self.limits.min, self.limits.max + 1, shape)
        array = self.array(np.asarray(raw, dtype=self.kind))
        scale = self.scale(float(x.scale) * 1.5 if op == "Add" else float(x.scale) * float(other.scale) * 80)
        triple = [array, *self.params(other)]
        if not self.qdq():
            return self.result(f"QLinear{op}", [*self.triple(x), *triple], x.dims, scale, self.zero())
        real = self.node(op, [self.real(x), self.node("DequantizeLinear", triple)[0]])[0]
        return self.quantized(real, x.dims, scale, self.zero())

    def average(self, x: Tensor) -> Tensor | None:
        size = x.dims[2:]
        if self.chance(0.4):
            scale, zero = self.scale(float(x.scale) * 0.7), self.zero()
            dims = (*x.dims[:2], *[1] * len(size))
            if not self.qdq():
                return self.result("QLinearGlobalAveragePool", self.triple(x), dims, scale, zero, channels_last=0)
            return self.quantized(self.node("GlobalAveragePool", [self.real(x)])[0], dims, scale, zero)
        kernel = tuple(int(self.rng.integers(1, min(3, n) + 1)) for n in size)
        stride = tuple(int(self.rng.integers(1, 3)) for _ in size)
        begin, end = ([int(self.rng.integers(0, k)) for k in kernel] for _ in range(2))
        counts = self.chance(0.5)
        made = [(n + a + b - k) // s + 1 for n, a, b, k, s in zip(size, begin, end, kernel, stride, strict=True)]
        zero = self.zero()
        pairs = [*zip(begin, end, strict=True), (0, 0)]
        sizes, kernels, strides = (((*v, 1)[0], (*v, 1)[1]) for v in (size, kernel, stride))
        windows = window_counts(sizes, kernels, strides, (pairs[0], pairs[1]), counts)
        for _ in range(20):
            scale = self.scale(float(x.scale) * 0.8)
            bits, signed = 8, self.kind is np.int8
            source, target = Format(bits, signed, float(x.scale), x.zero), Format(bits, signed, float(scale), zero)
            if (kernel == size and not any(begin + end)) or average_is_sure(source, target, *windows):
                break
        else:
            return None
        attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": [*begin, *end]}
        attributes["count_include_pad"] = int(counts)
        dims = (*x.dims[:2], *made)
        if not self.qdq():
            return self.result("QLinearAveragePool", self.triple(x), dims, scale, zero, **attributes)
        return self.quantized(self.node("AveragePool", [self.real(x)], **attributes)[0], dims, scale, zero)

    # --------------------------------------------------------------------------------------------------------- joins

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum or the product of two tensors of one shape."""
        op = self.pick("Add", "Add", "Mul")
        scale = self.scale((float(a.scale) + float(b.scale)) * 0.7 if op == "Add" else float(a.scale) * float(b.scale) * 60)
        zero = self.zero()
        if not self.qdq():
            return self.result(f"QLinear{op}", [*self.triple(a), *self.triple(b)], a.dims, scale, zero)
        real = self.node(op, [self.real(a), self.real(b)])[0]
        if zero == self.limits.min and self.chance(0.5):
            real = self.node("Relu", [real])[0]
        return self.quantized(real, a.dims, scale, zero)

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        dims = (1, sum(part.dims[1] for part in parts), *parts[0].dims[2:])
        same = self.chance(0.3)
        scale, zero = (parts[0].scale, parts[0].zero) if same else (self.scale(float(parts[0].scale)), self.zero())
        if not self.qdq():
            made = Tensor("", dims, scale, zero)
            inputs = [*self.params(made), *(name for part in parts for name in self.triple(part))]
            return Tensor(self.node("QLinearConcat", inputs, MICROSOFT, axis=1)[0], dims, scale, zero)
        return self.quantized(self.node("Concat", [self.real(part) for part in parts], axis=1)[0], dims, scale, zero)

    def gate(self, x: Tensor, pixel: Tensor) -> Tensor:
        """``x`` times one number a channel, computed from the image."""
        scale, zero = self.scale(float(x.scale) * float(pixel.scale) * 60), self.zero()
        if not self.qdq():
            return self.result("QLinearMul", [*self.triple(x), *self.triple(pixel)], x.dims, scale, zero)
        return self.quantized(self.node("Mul", [self.real(x), self.real(pixel)])[0], x.dims, scale, zero)

    def split(self, x: Tensor) -> list[Tensor]:
        first = int(self.rng.integers(1, x.dims[1]))
        sizes = [first, x.dims[1] - first]
        names = self.node("Split", [x.name, self.array(np.array(sizes))], outputs=2, axis=1)
        return [Tensor(name, (1, size, *x.dims[2:]), x.scale, x.zero) for name, size in zip(names, sizes, strict=True)]


def random_model(seed: int) -> onnx.ModelProto:
    """The network of a seed."""
    rng = np.random.default_rng(seed)
    style = ("qoperator", "qdq", "mixed")[seed % 3]
    kind = np.int8 if rng.random() < 0.35 else np.uint8
    w = Writer(rng, style, kind)
    rank = 3 if rng.random() < 0.2 else 4
    size = tuple(int(n) for n in rng.integers(3, 10, rank - 2))
    first = Tensor("", (1, int(rng.integers(1, 5)), *size), w.scale(0.02), w.zero())
    floats = style == "qdq" or w.chance(0.3)
    if floats:
        live = [w.quantized("image", first.dims, first.scale, first.zero)]
    else:
        live = [Tensor("image", first.dims, first.scale, first.zero)]
    moves = (w.conv, w.conv, w.conv, w.max_pool, w.resize, w.pad, w.cut, w.depth_to_space, w.function, w.constant, w.average)
    for _ in range(int(rng.integers(3, 9))):
        x = live[int(rng.integers(max(0, len(live) - 3), len(live)))]
        if w.chance(0.35):
            _joined(w, live, x)
        elif len(x.dims) == 2 or w.chance(0.04):
            made = w.dense(x) if w.chance(0.7) else w.function(x)
            live += [made] if made else []
        elif w.chance(0.06):
            made = w.reshape(x)
            live += [made] if made else []
        else:
            made = w.pick(*moves)(x)
            live += [made] if made else []
    if w.chance(0.3):
        made = w.dense(live[-1])
        live += [made] if made else []
    return _finished(w, live, floats, first, kind)


def _joined(w: Writer, live: list[Tensor], x: Tensor) -> None:
    """A branch that closes: residual, concatenation, gate; or one that opens."""
    alike = [t for t in live if t.dims == x.dims]
    wide = [t for t in live if len(t.dims) > 2 and t.dims[2:] == x.dims[2:]]
    pixels = [t for t in live if len(t.dims) == 4 and t.dims[1:] == (x.dims[1], 1, 1)]
    if pixels and len(x.dims) == 4 and x.dims[2:] != (1, 1) and w.chance(0.5):
        live.append(w.gate(x, pixels[-1]))
    elif len(wide) > 1 and len(x.dims) > 2 and w.chance(0.3):
        live.append(w.concat([wide[int(n)] for n in w.rng.integers(0, len(wide), 2)]))
    elif len(x.dims) > 2 and x.dims[1] > 1 and w.chance(0.2):
        live += w.split(x)
    else:
        other = alike[int(w.rng.integers(len(alike)))]
        live.append(w.join(x, other))


def _finished(w: Writer, live: list[Tensor], floats: bool, first: Tensor, kind: type[np.integer]) -> onnx.ModelProto:
    read = {name for node in w.nodes for name in node.input}
    loose = [t for t in live if t.name not in read][-3:] or live[-1:]
    outputs = []
    number = TensorProto.INT8 if kind is np.int8 else TensorProto.UINT8
    for tensor in loose:
        if len(tensor.dims) > 2 and tensor.dims[1] > 1 and w.chance(0.1):
            name = w.node("ArgMax", [tensor.name], axis=1)[0]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
        elif floats:
            outputs.append(helper.make_tensor_value_info(w.real(tensor), TensorProto.FLOAT, None))
        else:
            outputs.append(helper.make_tensor_value_info(tensor.name, number, None))
    read = {name for node in w.nodes for name in node.input} | {value.name for value in outputs}
    used = list(w.nodes)
    while True:  # what no output needs goes
        kept = [node for node in used if any(name in read for name in node.output)]
        if len(kept) == len(used):
            break
        used = kept
        read = {name for node in used for name in node.input} | {value.name for value in outputs}
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT if floats else number, first.dims)
    initializers = [numpy_helper.from_array(array, name) for name, array in w.arrays.items() if name in read]
    graph = helper.make_graph(used, "random", [image], outputs, initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    return model


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """onnxruntime with its default optimizations, on one thread.

    On x86-64 it turns some int8 tensors of a QDQ network into uint8 unless told that int8 is allowed, and then leaves
    operators that read both to float32, which can round a tie otherwise. ``qdqisint8allowed`` keeps them integers.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many numbers of how many differ, and the operators of the network."""

    different: int
    numbers: int
    operators: tuple[str, ...]


def compare(model: onnx.ModelProto, graph: Any, frames: int = 3, seed: int = 0) -> Comparison:
    """The golden model of an imported graph against onnxruntime, every number of every output, on random frames."""
    from convfold.sim import golden

    rng = np.random.default_rng(seed)
    form = graph.format_of(graph.input.name)
    raw = rng.integers(form.min_raw, form.max_raw + 1, (frames, *graph.input.shape))
    ours = golden.run(graph, raw)
    theirs = session(model)
    dims = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    floats = model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    different = numbers = 0
    for frame in range(frames):
        x = raw[frame].transpose(2, 0, 1).reshape(dims)
        if floats:
            image: NDArray[Any] = ((x - form.zero_point).astype(np.float32) * np.float32(form.scale)).astype(np.float32)
        else:
            image = x.astype(np.int8 if form.signed else np.uint8)
        results = theirs.run(None, {"image": image})
        for name, result in zip(graph.outputs, results, strict=True):
            y = ours[name][frame].transpose(2, 0, 1).reshape(result.shape)
            out = graph.format_of(name)
            if result.dtype == np.float32:
                y = ((y - out.zero_point).astype(np.float32) * np.float32(out.scale)).astype(np.float32)
            different += int(np.sum(y != result))
            numbers += result.size
    return Comparison(different, numbers, tuple(node.op_type for node in model.graph.node))
