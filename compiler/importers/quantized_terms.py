"""What the readers of quantized ONNX models share: tensors of integers, where their samples stand, what awaits a quantizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..graph import (
    ChannelShuffle,
    Flatten,
    Padding,
    Pair,
    QTable,
    Reshape,
    Shape,
    same_padding,
)
from ..numbers import Format, IntArray
from . import ort_math
from .common import Builder, Unsupported, spatial
from .onnx_layout import Refusal
from .onnx_load import attributes, describe, opset

if TYPE_CHECKING:
    import onnx

FORMATS = {"uint8": (8, False), "int8": (8, True)}
Arrays = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of integers.

    ``axes`` says for each axis of the ONNX tensor which of N, C, H and W it runs through, the last the fastest, and ``dims``
    its size; the node holds the same samples as ``(H, W, C)``. A ``real`` one has been dequantized; ``steps`` are functions
    that await the next QuantizeLinear.
    """

    node: str
    dims: tuple[int, ...]
    axes: tuple[str, ...]
    format: Format
    real: bool = False
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """A function of one sample (of channels ``(..., C)``): ``exact`` in float32, or in float64 to some last places."""

    name: str
    function: Callable[[NDArray[Any]], NDArray[Any]]
    exact: bool = True
    per_channel: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """The real result of an operator that onnxruntime joins with the QuantizeLinear behind it."""

    make: Callable[[str, Format], str]
    like: Value
    dims: tuple[int, ...]
    axes: tuple[str, ...]
    limits: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """An initializer that has been dequantized: integers, one scale and zero point for all or for each index of ``axis``."""

    raw: IntArray
    scale: NDArray[np.float32]
    zero_point: IntArray
    axis: int
    kind: str

    @property
    def reals(self) -> NDArray[np.float32]:
        """What the integers stand for, each rounded once."""
        shape = [-1 if at == self.axis else 1 for at in range(self.raw.ndim)]
        zero, scale = (one.reshape(shape) if one.size > 1 else one for one in (self.zero_point, self.scale))
        return np.asarray((self.raw - zero).astype(np.float32) * scale, dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A convolution or dense layer: its input, its integer weights, their scale for each output or for all, its geometry."""

    x: Value
    w_ohwi: IntArray
    w_scale: NDArray[np.float32]
    dims: tuple[int, ...]
    axes: tuple[str, ...]
    kind: str
    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(slots=True)
class Op:
    """A node with its attributes decoded."""

    kind: str
    source: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.source}: {self.label}"

    def ints(self, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        return tuple(int(value) for value in self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        return str(self.attributes.get(name, default))


def decoded(node: onnx.NodeProto, source: str) -> Op:
    return Op(node.op_type, source, describe(node), tuple(node.input), tuple(node.output), attributes(node))


def replace_output(op: Op, name: str) -> Op:
    """The same node, under another name for what it makes."""
    return replace(op, outputs=(name,))


def input_axes(rank: int, last: bool) -> tuple[str, ...]:
    names = {2: ("N", "C"), 3: ("N", "C", "H"), 4: ("N", "C", "H", "W")}[rank]
    return (names[0], *names[2:], names[1]) if last else names


def map_shape(dims: Sequence[int], axes: Sequence[str]) -> Shape:
    """The ``(H, W, C)`` of a tensor whose axes have these names."""
    sizes = dict(zip(axes, dims, strict=True))
    return sizes.get("H", 1), sizes.get("W", 1), sizes["C"]


Term = Value | Pending | Constant | Arrays


class Terms:
    """All tensors by name, as far as the nodes have been read."""

    def __init__(self, model: onnx.ModelProto, source: str) -> None:
        self.model, self.source = model, source
        self.builder = Builder(model.graph.name or "network")
        self.unsupported = Unsupported(source)
        self.terms: dict[str, Term] = {}
        self.lost: set[str] = set()
        self.uses: Counter[str] = Counter()
        self.ops: list[Op] = []
        self.heads: dict[str, str] = {}
        self.opset = opset(model)

    def _constant(self, name: str) -> Arrays:
        term = self.terms.get(name)
        if not isinstance(term, np.ndarray):
            raise Refusal(f"its operand {name!r} is not constant", "make it an initializer")
        return term

    def _format(self, scale: str, zero_point: str = "") -> Format:
        """The format of activations: one positive scale, a zero point of 8 bits."""
        scales = self._constant(scale)
        zeros = self._constant(zero_point) if zero_point else np.zeros((), dtype=np.uint8)
        if scales.size != 1 or zeros.size != 1:
            raise Refusal("activations have a scale for each channel", "quantize activations per tensor")
        if zeros.dtype.name not in FORMATS or scales.dtype != np.float32:
            raise Refusal(f"activations are {zeros.dtype} in steps of {scales.dtype}", "quantize activations to 8 bits")
        step = float(scales.ravel()[0])
        if not (math.isfinite(step) and step > 0):
            raise Refusal(f"its scale is {step:g}", "calibrate again")
        return Format(*FORMATS[zeros.dtype.name], step, int(zeros.ravel()[0]))

    def _value(self, name: str) -> Value:
        term = self.terms.get(name)
        if isinstance(term, Pending):
            raise Refusal("its input is a float32 sum", "put QuantizeLinear and DequantizeLinear in front of it")
        if not isinstance(term, Value):
            raise Refusal(f"its operand {name!r} is constant or missing", "fold the constants")
        return term

    def _settled(self, name: str) -> Value:
        """An operand whose samples are known integers: no function awaits its QuantizeLinear."""
        value = self._value(name)
        if value.steps:
            raise Refusal("its input is a float32 function", "put QuantizeLinear and DequantizeLinear in front of it")
        return value

    def _real(self, name: str) -> Value:
        value = self._settled(name)
        if not value.real:
            raise Refusal("it computes in float32", "put QuantizeLinear and DequantizeLinear in front of it")
        return value

    def _elementwise(self, name: str) -> Value:
        value = self._value(name)
        if not value.real:
            raise Refusal("it computes in float32", "put QuantizeLinear and DequantizeLinear in front of it")
        return value

    def _integers(self, op: Op, at: int) -> Value:
        """Operand ``at`` of a QOperator node, in the format which the node says it has."""
        value = self._settled(op.inputs[at])
        form = self._format(*op.inputs[at + 1 : at + 3])
        if value.real:
            raise Refusal("its input is real", "export again")
        return self._read_as(value, form, op.where)

    def _dequantized(self, name: str) -> Constant:
        term = self.terms.get(name)
        if not isinstance(term, Constant):
            raise Refusal(f"its operand {name!r} is not quantized", "quantize weights and biases, and export again")
        return term

    def _weight(self, raw: str, scale: str, zero: str) -> Constant:
        """A constant operand of a QOperator node."""
        array, steps = self._constant(raw), self._constant(scale).ravel()
        zeros = self._constant(zero).ravel() if zero else np.zeros(1, dtype=array.dtype)
        if array.dtype.name not in FORMATS or zeros.dtype != array.dtype:
            raise Refusal(f"its weights are {array.dtype}", "quantize weights to 8 bits")
        return Constant(array.astype(np.int64), steps, zeros.astype(np.int64), 0, array.dtype.name)

    def _read_as(self, value: Value, form: Format, where: str) -> Value:
        """The same integers, standing for other reals."""
        if form == value.format:
            return value
        if (form.bits, form.signed) != (value.format.bits, value.format.signed):
            raise Refusal(f"it reads {value.format} as {form}", "export again")
        name = self._table(value, ort_math.every_raw(form)[None], form, "identity", where, f"{value.node}_as")
        return replace(value, node=name, format=form)

    def _step(self, op: Op, value: Value, step: Step) -> None:
        self.terms[op.outputs[0]] = replace(value, steps=(*value.steps, step))

    def _table(self, value: Value, table: IntArray, form: Format, function: str, where: str, name: str) -> str:
        node = QTable(name=self.builder.fresh(name), inputs=(value.node,), source=where, format=form, function=function)
        return self.builder.add(node, table=table)

    def _tabulated(self, op: Op, value: Value, form: Format) -> Value:
        """The functions between DequantizeLinear and QuantizeLinear, as one table."""
        if any(step.per_channel for step in value.steps):
            value = self._map(value, op.where)
        names = " then ".join(step.name for step in value.steps) or "requantize"
        raw = ort_math.every_raw(value.format)[:, None]
        with np.errstate(all="ignore"):
            if all(step.exact for step in value.steps):
                x: NDArray[Any] = ort_math.dequantize(raw, value.format)
                for step in value.steps:
                    x = step.function(x)
                table: IntArray | None = None if np.isnan(x).any() else ort_math.quantize(x, form)
            else:
                x = value.format.dequantize(raw)
                for step in value.steps:
                    x = step.function(x)
                table = None if np.isnan(x).any() else ort_math.quantize_surely(x, form)
        if table is None:
            raise Refusal(f"the rounding of {names} in float32 is not known for every input", "change its scale a little")
        node = self._table(value, np.ascontiguousarray(table.T), form, names, op.where, op.outputs[0])
        return replace(value, node=node, format=form, real=False, steps=())

    def _finish(self, op: Op, pending: Pending, form: Format) -> None:
        name = op.outputs[0]
        self.terms[name] = Value(pending.make(name, form), pending.dims, pending.axes, form)

    def _moved(self, op: Op, value: Value, node: str, at: int = 0) -> None:
        """The output of a node that keeps the format and is a map."""
        height, width, channels = self.builder.shapes[node]
        dims = (1, channels, height, width)[: len(value.dims)]
        self.terms[op.outputs[at]] = replace(value, node=node, dims=dims)

    def _map(self, value: Value, where: str) -> Value:
        """The value as the map its dims say: ``(1, C, H, W)``, ``(1, C, L)`` or ``(1, C)``; shuffles the stream if it must."""
        rank = len(value.dims)
        if not 2 <= rank <= 4 or value.dims[0] != 1:
            raise Refusal(f"a tensor of {'×'.join(map(str, value.dims))} is no map", "reshape it to 1×C×H×W")
        axes = input_axes(rank, last=False)
        shape = map_shape(value.dims, axes)
        have = self.builder.shapes[value.node]
        order = "".join(axis for axis, size in zip("CHW", (shape[2], *shape[:2]), strict=True) if size > 1)
        if have == shape and self._order(value) == order:
            return replace(value, axes=axes)
        return replace(value, node=self._shuffled(value, shape, where), axes=axes)

    def _order(self, value: Value) -> str:
        """C, H and W as the model's tensor runs through them, those of one sample left out."""
        sizes = dict(zip("HWC", self.builder.shapes[value.node], strict=True))
        return "".join(axis for axis in "".join(value.axes) if axis != "N" and sizes[axis] > 1)

    def _shuffled(self, value: Value, shape: Shape, where: str) -> str:
        """Flat in the model's order, then the map of ``shape``."""
        height, width, _ = self.builder.shapes[value.node]
        order, node = self._order(value), value.node
        if order not in ("CHW", "HWC", "HW", "CH", "HC", "CW", "WC", "C", "H", "W", ""):
            raise Refusal("it transposes rows and columns", "leave the transpose out")
        make = self.builder.add

        def named(part: str) -> str:
            return self.builder.fresh(f"{value.node}_{part}")

        if height * width > 1:
            node = make(Flatten(name=named("flat"), inputs=(node,), source=where))
        if order in ("CHW", "CH", "CW"):
            node = make(ChannelShuffle(name=named("order"), inputs=(node,), source=where, groups=height * width))
        if shape[2] > 1 and shape[0] * shape[1] > 1:
            node = make(ChannelShuffle(name=named("map"), inputs=(node,), source=where, groups=shape[2]))
        if shape[0] * shape[1] > 1:
            node = make(Reshape(name=named("shape"), inputs=(node,), source=where, shape=shape))
        return node

    def _regrouped(self, value: Value, dims: tuple[int, ...], where: str) -> Value:
        """A reshape: axes are joined or parted without moving a sample where that is possible."""
        sizes = {"N": 1, **dict(zip("HWC", self.builder.shapes[value.node], strict=True))}
        letters = [letter for letter in "".join(value.axes)]
        letters += [letter for letter in "NCHW" if letter not in letters]
        groups: list[str] = []
        at = 0
        for size in dims:
            group, count = "", 1
            while at < len(letters) and (count < size or (size == 1 and group == "" and sizes[letters[at]] == 1)):
                count *= sizes[letters[at]]
                group += letters[at]
                at += 1
            if count != size:
                break
            groups.append(group)
        if len(groups) == len(dims) and all(sizes[letter] == 1 for letter in letters[at:]):
            groups[-1] += "".join(letters[at:])
            return replace(value, dims=dims, axes=tuple(groups))
        if not 2 <= len(dims) <= 4 or dims[0] != 1:
            raise Refusal(f"a tensor of {'×'.join(map(str, dims))} is no map", "reshape to 1×C×H×W")
        axes = input_axes(len(dims), last=False)
        return replace(value, node=self._shuffled(value, map_shape(dims, axes), where), dims=dims, axes=axes)

    def _per_channel(self, array: Arrays, x: Value) -> Arrays:
        """A constant that broadcasts to a map, as one number or one a channel."""
        if array.size == 1:
            return np.asarray(array).reshape(1)
        shape = (1,) * (len(x.dims) - array.ndim) + array.shape
        if len(shape) != len(x.dims) or shape[1] != x.dims[1] or array.size != x.dims[1]:
            raise Refusal("its constant operand differs from pixel to pixel", "use one constant, or one a channel")
        return array.reshape(-1)

    def _less_zero(self, constant: Constant, axis: int) -> IntArray:
        """Weights less their zero points, which are one for all or one for each index of ``axis``."""
        shape = [-1 if index == axis and constant.zero_point.size > 1 else 1 for index in range(constant.raw.ndim)]
        return constant.raw - constant.zero_point.reshape(shape)

    def _window(self, op: Op, value: Value, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Pair, Padding]:
        """Strides and padding; a 1-D window runs along the rows."""
        rank = len(value.dims) - 2
        if len(kernel) != rank or len(dilation) != rank:
            raise Refusal(f"its window has {len(kernel)} axes for {rank}", "export again")
        strides = op.ints("strides", (1,) * rank)
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        auto = op.text("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            sizes = value.dims[2:]
            pairs = [
                same_padding(n, e, s, auto == "SAME_UPPER") for n, e, s in zip(sizes, extents, strides, strict=True)
            ]
        else:
            pads = op.ints("pads", (0,) * (2 * rank)) if auto == "NOTSET" else (0,) * (2 * rank)
            pairs = [(pads[axis], pads[axis + rank]) for axis in range(rank)]
        if any(side < 0 for pair in pairs for side in pair):
            raise Refusal("its padding is negative", "crop with Slice instead")
        padding = (pairs[0], pairs[1] if rank == 2 else (0, 0))
        return spatial(strides), padding
