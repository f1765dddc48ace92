"""Quantized convolutions and dense layers of ONNX."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import (
    BorderClasses,
    Pair,
    QConv2D,
    Rounding,
)
from ..numbers import Format, IntArray, RealArray, accumulator_range, bits_for_range
from .common import spatial
from .onnx_layout import Refusal
from .quantized_terms import (
    FORMATS,
    Constant,
    Layer,
    Op,
    Pending,
    Terms,
    Value,
)

INT32 = (1 << 31) - 1


class Layers(Terms):
    """QLinearConv, QLinearMatMul, QGemm; Conv, MatMul and Gemm between dequantizers and a quantizer."""

    def _conv_like(
        self, op: Op, layer: Layer, name: str, form: Format, limits: Pair, rounding: Rounding,
        w_ohwi: IntArray, b_o: IntArray, scale_o: RealArray, offset_o: RealArray | None = None,
    ) -> str:  # fmt: skip
        """A convolution of integer weights; ``scale_o`` turns accumulators into steps of ``form``."""
        source = layer.x.format
        w = np.ascontiguousarray(w_ohwi[None, None])
        b = (b_o - source.zero_point * w_ohwi.sum(axis=(1, 2, 3)))[None, None]
        if accumulator_range(w, b, source.min_raw, source.max_raw).magnitude > INT32:
            raise Refusal("its accumulators do not fit 32 bits", "use smaller weights or biases")
        if not (np.all(np.isfinite(scale_o)) and np.all(scale_o > 0)):
            raise Refusal("its scales must be positive", "calibrate again")
        bits = max(bits_for_range(min(int(w.min()), -1), int(w.max()))[0], 2)
        node = QConv2D(
            name=self.builder.fresh(name), inputs=(layer.x.node,), source=op.where, stride=layer.stride, padding=layer.padding,
            dilation=layer.dilation, groups=layer.groups, classes=BorderClasses(), low=limits[0], high=limits[1], format=form,
            weight_bits=bits, rounding=rounding, kind=layer.kind,
        )  # fmt: skip
        extra = {} if offset_o is None else {"offset": offset_o}
        return self.builder.add(node, w=w, b=b, scale=np.broadcast_to(scale_o, b_o.shape).astype(np.float64), **extra)

    def _convolution(self, op: Op, x: Value, weight: Constant) -> Layer:
        """The geometry of a convolution, and its weights less their zero points."""
        x = self._map(x, op.where)
        if len(x.dims) < 3 or weight.raw.ndim != len(x.dims):
            raise Refusal("it convolves a tensor without rows", "reshape it to 1×C×H×W")
        w = self._less_zero(weight, 0)
        if weight.scale.size > 1 and weight.axis != 0:
            raise Refusal("its weights have scales along another axis than the outputs", "quantize weights per output channel")
        kernel = op.ints("kernel_shape", w.shape[2:])
        dilation = op.ints("dilations", (1,) * len(kernel))
        stride, padding = self._window(op, x, kernel, dilation)
        groups = int(op.attributes.get("group", 1))
        outputs, channels = len(w), x.dims[1]
        if kernel != w.shape[2:] or groups < 1 or channels != w.shape[1] * groups or outputs % groups:
            raise Refusal("its weights do not fit its input", "export again")
        w_ohwi = (w if w.ndim == 4 else w[..., None]).transpose(0, 2, 3, 1)
        size = self.builder.shapes[x.node][:2]
        spans = zip(size, padding, w_ohwi.shape[1:3], spatial(dilation), stride, strict=True)
        height, width = ((n + sum(pad) - (k - 1) * d - 1) // s + 1 for n, pad, k, d, s in spans)
        dims = (1, outputs, height, width)[: len(x.dims)]
        return Layer(x, w_ohwi, weight.scale, dims, x.axes, "conv2d", stride, padding, spatial(dilation), groups)

    def _requantized(self, op: Op, layer: Layer, bias: IntArray | None, alpha: float = 1.0) -> Pending:
        """The layer with onnxruntime's requantizer."""
        outputs = len(layer.w_ohwi)
        if bias is not None and bias.size not in (1, outputs):
            raise Refusal("its bias does not fit its outputs", "export again")
        b_o = np.zeros(outputs, dtype=np.int64) if bias is None else np.broadcast_to(bias.ravel(), (outputs,))

        def make(name: str, form: Format) -> str:
            with np.errstate(over="ignore", invalid="ignore"):  # a factor that is not finite is refused by the rules of graphs
                scale = np.float32(alpha) * np.float32(layer.x.format.scale) * layer.w_scale / np.float32(form.scale)
            limits = form.min_raw, form.max_raw
            return self._conv_like(op, layer, name, form, limits, "float32", layer.w_ohwi, b_o, scale.astype(np.float64))

        return Pending(make, layer.x, layer.dims, layer.axes)

    def _dense(self, op: Op, x: Value, weight: Constant) -> Layer:
        """``x (…, K) · w (K, O)``: on a flat tensor a kernel as large as the map, on a channels-last map one of 1×1."""
        if weight.raw.ndim != 2 or x.dims[-1] != weight.raw.shape[0]:
            raise Refusal("its weights do not fit its input", "multiply by a constant matrix")
        if weight.scale.size > 1 and weight.axis != 1:
            raise Refusal("its weights have scales along another axis than the outputs", "quantize weights per output channel")
        w_ko = self._less_zero(weight, 1)
        sizes = dict(zip("HWC", self.builder.shapes[x.node], strict=True))
        last = x.axes[-1]
        axes: tuple[str, ...] = x.axes
        if all(sizes[axis] == 1 for axis in "HWC" if axis not in last):
            order = last.replace("N", "") + "".join(axis for axis in "CHW" if axis not in last)
            w_raw = w_ko.T.reshape(-1, *(sizes[axis] for axis in order))
            w_ohwi = w_raw.transpose(0, *(1 + order.index(axis) for axis in "HWC"))
            axes = ("",) * (len(x.dims) - 1) + ("NCHW",)
        elif last == "C":
            w_ohwi = w_ko.T[:, None, None, :]
        else:
            raise Refusal("it multiplies along rows or columns", "flatten its input, or move the channels last")
        return Layer(x, w_ohwi, weight.scale, (*x.dims[:-1], len(w_ohwi)), axes, "dense")

    def _op_QLinearConv(self, op: Op) -> None:
        weight = self._weight(*op.inputs[3:6])
        bias = self._constant(op.inputs[8]) if len(op.inputs) > 8 and op.inputs[8] else np.zeros(1, dtype=np.int32)
        if bias.dtype != np.int32:
            raise Refusal(f"its bias is {bias.dtype}", "quantize it to int32")
        layer = self._convolution(op, self._integers(op, 0), weight)
        self._finish(op, self._requantized(op, layer, bias.astype(np.int64)), self._format(*op.inputs[6:8]))

    def _op_QLinearMatMul(self, op: Op) -> None:
        weight = replace(self._weight(*op.inputs[3:6]), axis=1)
        layer = self._dense(op, self._integers(op, 0), weight)
        self._finish(op, self._requantized(op, layer, None), self._format(*op.inputs[6:8]))

    def _op_QGemm(self, op: Op) -> None:
        weight = replace(self._weight(*op.inputs[3:6]), axis=1)
        if op.attributes.get("transA", 0):
            raise Refusal("it transposes its input", "leave transA out")
        if op.attributes.get("transB", 0):
            weight = replace(weight, raw=weight.raw.T)
        bias = self._constant(op.inputs[6]).astype(np.int64) if op.inputs[6] else None
        if len(op.inputs) < 9 or not op.inputs[7]:
            raise Refusal("its output is float32", "quantize the output")
        alpha = float(op.attributes.get("alpha", 1.0))
        layer = self._dense(op, self._integers(op, 0), weight)
        self._finish(op, self._requantized(op, layer, bias, alpha), self._format(*op.inputs[7:9]))

    def _bias(self, op: Op, at: int, x: Value, weight: Constant) -> IntArray | None:
        """An int32 bias in steps of the accumulator."""
        if len(op.inputs) <= at or not op.inputs[at]:
            return None
        bias = self._dequantized(op.inputs[at])
        if bias.kind != "int32" or bias.zero_point.any():
            raise Refusal(f"its bias is {bias.kind}", "quantize biases to int32 with zero point 0")
        steps = np.float32(x.format.scale) * weight.scale
        if np.any(np.abs(bias.scale - steps) > 1e-3 * steps):  # onnxruntime never reads the scale of a bias
            raise Refusal("its bias has steps of its own", "quantize biases in steps of input times weights")
        return bias.raw

    def _eight_bits(self, weight: Constant) -> None:
        if weight.kind not in FORMATS:
            raise Refusal(f"its weights are {weight.kind}", "quantize weights to 8 bits")

    def _op_Conv(self, op: Op) -> None:
        x, weight = self._real(op.inputs[0]), self._dequantized(op.inputs[1])
        self._eight_bits(weight)
        self.terms[op.outputs[0]] = self._requantized(op, self._convolution(op, x, weight), self._bias(op, 2, x, weight))

    def _op_MatMul(self, op: Op) -> None:
        x, weight = self._real(op.inputs[0]), self._dequantized(op.inputs[1])
        self._eight_bits(weight)
        self.terms[op.outputs[0]] = self._requantized(op, self._dense(op, x, weight), None)

    def _op_Gemm(self, op: Op) -> None:
        x, weight = self._real(op.inputs[0]), self._dequantized(op.inputs[1])
        self._eight_bits(weight)
        bias = self._bias(op, 2, x, weight)
        if op.attributes.get("transA", 0) or float(op.attributes.get("beta", 1.0)) != 1.0:
            raise Refusal("it transposes its input or scales its bias", "leave transA and beta out")
        if op.attributes.get("transB", 0):
            weight = replace(weight, raw=weight.raw.T, axis=1 - weight.axis)
        alpha = float(op.attributes.get("alpha", 1.0))
        self.terms[op.outputs[0]] = self._requantized(op, self._dense(op, x, weight), bias, alpha)

    def _op_ConvInteger(self, op: Op) -> None:
        raise Refusal("it leaves 32-bit sums to float32 operators", "quantize statically (QLinearConv or QDQ)")

    _op_MatMulInteger = _op_DynamicQuantizeLinear = _op_ConvInteger

    _op_MatMulIntegerToFloat = _op_DynamicQuantizeMatMul = _op_ConvInteger
