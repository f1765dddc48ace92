"""Quantized pools of ONNX."""

from __future__ import annotations

import numpy as np

from ..graph import (
    MaxPool,
    Padding,
    Pair,
    QAveragePool,
)
from ..numbers import Format
from . import ort_math
from .common import ceil_padding, nonzero, spatial
from .onnx_layout import Refusal
from .quantized_terms import (
    Op,
    Pending,
    Terms,
    Value,
)


class Pools(Terms):
    """Maxima of integers; averages as onnxruntime rounds them."""

    float32 = True
    """Whether sums of reals are rounded as float32 rounds them."""

    def _op_MaxPool(self, op: Op) -> None:
        value = self._value(op.inputs[0])
        if any(step.name not in ("relu", "clip") for step in value.steps):
            raise Refusal("its input is a float32 function", "put QuantizeLinear and DequantizeLinear in front of it")
        value = self._map(value, op.where)  # what never falls may as well come after a maximum
        if len(value.dims) < 3:
            raise Refusal("it pools a tensor without rows", "reshape it to 1×C×H×W")
        kernel = op.ints("kernel_shape")
        if len(op.outputs) > 1 and any(op.outputs[1:]):
            raise Refusal("its indices are read", "use the values alone")
        if any(step != 1 for step in op.ints("dilations")):
            raise Refusal("its window is dilated", "use dilation 1")
        stride, padding = self._window(op, value, kernel, (1,) * len(kernel))
        shape = self.builder.shapes[value.node]
        if op.attributes.get("ceil_mode", 0):
            rows, cols = map(ceil_padding, shape[:2], spatial(kernel), stride, padding)
            padding = (rows, cols)
        name = self.builder.fresh(op.outputs[0])
        node = MaxPool(name=name, inputs=(value.node,), source=op.where, kernel=spatial(kernel), stride=stride, padding=padding)
        self._moved(op, value, self.builder.add(node))

    def _average(self, op: Op, value: Value, kernel: tuple[int, ...] | None) -> Pending:
        """``kernel`` is that of a window; a window as large as the map is a global pool."""
        value = self._map(value, op.where)
        if len(value.dims) < 3:
            raise Refusal("it pools a tensor without rows", "reshape it to 1×C×H×W")
        if op.attributes.get("channels_last", 0):
            raise Refusal("its channels are last", "export NCHW")
        height, width, channels = self.builder.shapes[value.node]
        stride, padding, counts = (1, 1), ((0, 0), (0, 0)), False
        if kernel is not None:
            if any(step != 1 for step in op.ints("dilations")):
                raise Refusal("its window is dilated", "use dilation 1")
            stride, padding = self._window(op, value, kernel, (1,) * len(kernel))
            counts = bool(op.attributes.get("count_include_pad", 0))
            if op.attributes.get("ceil_mode", 0) and any(
                ceil_padding(size, k, s, pad) != pad
                for size, k, s, pad in zip((height, width), spatial(kernel), stride, padding, strict=True)
            ):
                raise Refusal("its last window is cut short", "leave ceil_mode out")
        size = spatial(kernel) if kernel is not None else (height, width)
        whole = size == (height, width) and not nonzero(padding)

        def make(name: str, form: Format) -> str:
            ratio = np.float64(value.format.scale) / np.float64(form.scale)
            if whole:
                taps = np.float32(height * width)
                scale = np.float32(value.format.scale) / (np.float32(form.scale) * taps)
                ratio = np.float64(scale) * (height * width)
            elif self.float32 and not ort_math.average_is_sure(
                value.format, form, *window_counts((height, width), size, stride, padding, counts)
            ):
                raise Refusal(
                    "onnxruntime sums it in float32, and the order of the sum decides some of its roundings",
                    "use GlobalAveragePool, or a depthwise convolution",
                )
            node = QAveragePool(
                name=self.builder.fresh(name), inputs=(value.node,), source=op.where, kernel=size, stride=stride,
                padding=padding, count_include_pad=counts, low=form.min_raw, high=form.max_raw, format=form,
                rounding="float32" if whole else "float64", ratio=float(ratio),
            )  # fmt: skip
            return self.builder.add(node)

        rows, cols = ((n + sum(p) - k) // s + 1 for n, p, k, s in zip((height, width), padding, size, stride, strict=True))
        return Pending(make, value, (1, channels, rows, cols)[: len(value.dims)], value.axes)

    def _op_QLinearAveragePool(self, op: Op) -> None:
        self._finish(op, self._average(op, self._integers(op, 0), op.ints("kernel_shape")), self._format(*op.inputs[3:5]))

    def _op_QLinearGlobalAveragePool(self, op: Op) -> None:
        self._finish(op, self._average(op, self._integers(op, 0), None), self._format(*op.inputs[3:5]))

    def _op_AveragePool(self, op: Op) -> None:
        self.terms[op.outputs[0]] = self._average(op, self._real(op.inputs[0]), op.ints("kernel_shape"))

    def _op_GlobalAveragePool(self, op: Op) -> None:
        self.terms[op.outputs[0]] = self._average(op, self._real(op.inputs[0]), None)

    def _op_ReduceMean(self, op: Op) -> None:
        raise Refusal("onnxruntime sums it in float32, and the order of the sum decides its rounding", "use GlobalAveragePool")


def window_counts(size: Pair, kernel: Pair, stride: Pair, padding: Padding, counts: bool) -> tuple[set[int], dict[int, int]]:
    """How many samples the windows have, and by how many each is divided."""
    numbers = []
    for axis in (0, 1):
        windows = (size[axis] + sum(padding[axis]) - kernel[axis]) // stride[axis] + 1
        first = np.arange(windows) * stride[axis] - padding[axis][0]
        numbers.append({int(n) for n in (first + kernel[axis]).clip(0, size[axis]) - first.clip(0, size[axis])})
    samples = {rows * cols for rows in numbers[0] for cols in numbers[1]}
    return samples, {count: kernel[0] * kernel[1] if counts else count for count in samples}
