"""Quantized ONNX models, as integers from the first layer to the last: QOperator (``QLinearConv`` …) and QDQ.

What onnxruntime computes on a CPU (x86-64 with AVX2 or later, default optimizations) is the definition, bit for bit. In QDQ form
that is: ``DequantizeLinear → operator → QuantizeLinear`` is one integer operator where onnxruntime makes it one; a function of a
single sample is a table computed in its float32; and whatever it leaves to float32 sums is refused by name, since those depend
on their order. The model's tensors are NCHW and ours HWC: a transpose or reshape moves nothing, unless the order of samples
really changes, and then the stream is shuffled where it must be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CompileError
from ..graph import (
    ArgMax,
    BorderClasses,
    ChannelShuffle,
    Concat,
    Crop,
    DepthOrder,
    DepthToSpace,
    Flatten,
    Graph,
    Input,
    MaxPool,
    Pad,
    Padding,
    Pair,
    QAdd,
    QAveragePool,
    QConv2D,
    QMultiply,
    QTable,
    Reshape,
    Rounding,
    Shape,
    Slice,
    Softmax,
    SpaceToDepth,
    Upsample,
)
from ..numbers import Format, IntArray, RealArray, accumulator_range, bits_for_range
from . import ort_math
from .common import Builder, Unsupported, finite, nonzero, same_padding, spatial
from .onnx_layout import Refusal

if TYPE_CHECKING:
    import onnx

__all__ = ["is_quantized", "read_quantized"]

INT32 = (1 << 31) - 1
FORMATS = {"uint8": (8, False), "int8": (8, True)}
QOPERATORS = ("QuantizeLinear", "DequantizeLinear", "QGemm")


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a model is in QOperator or QDQ form."""
    return any(node.op_type in QOPERATORS or node.op_type.startswith("QLinear") for node in model.graph.node)


def read_quantized(model: onnx.ModelProto, source: str) -> Graph:
    """The integer graph of a quantized model whose shapes are fixed, with batch 1.

    *Raises* ``CompileError`` that lists every node which cannot be imported.
    """
    return Reader(model, source).read()


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of integers.

    ``axes`` says for each axis of the ONNX tensor which of N, C, H and W it runs through, the last the fastest, and ``dims`` its
    size; the node holds the same samples as ``(H, W, C)``. A ``real`` one has been dequantized; ``steps`` are functions that
    await the next QuantizeLinear.
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


Arrays = NDArray[Any]
Term = Value | Pending | Constant | Arrays


def _input_axes(rank: int, last: bool) -> tuple[str, ...]:
    names = {2: ("N", "C"), 3: ("N", "C", "H"), 4: ("N", "C", "H", "W")}[rank]
    return (names[0], *names[2:], names[1]) if last else names


@dataclass(slots=True)
class Op:
    """A node with its attributes decoded."""

    kind: str
    where: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def ints(self, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        return tuple(int(value) for value in self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default)
        return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


class Reader:
    def __init__(self, model: onnx.ModelProto, source: str) -> None:
        self.model, self.source = model, source
        self.builder = Builder(model.graph.name or "network")
        self.unsupported = Unsupported(source)
        self.terms: dict[str, Term] = {}
        self.lost: set[str] = set()
        self.heads: dict[str, str] = {}
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)

    # ------------------------------------------------------------------------------------------------ the walk

    def read(self) -> Graph:
        from onnx import helper, numpy_helper

        graph = self.model.graph
        for initializer in graph.initializer:
            self.terms[initializer.name] = numpy_helper.to_array(initializer)
        ops = []
        for index, node in enumerate(graph.node):
            label = node.name or (node.output[0] if node.output else str(index))
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            where = f"{self.source}: {node.op_type} {label!r}"
            ops.append(Op(node.op_type, where, tuple(node.input), tuple(node.output), attributes))
        self.uses = Counter(name for op in ops for name in op.inputs) + Counter(value.name for value in graph.output)
        self.ops = ops
        inputs = [value for value in graph.input if value.name not in self.terms]
        if len(inputs) != 1:
            raise CompileError(self.source, f"a network has exactly one input, not {len(inputs)}", "export it with one input")
        self._input(inputs[0])
        for op in ops:
            self._read(op)
        self.unsupported.close()
        outputs: list[str] = []
        heads: dict[str, Softmax] = {}
        for value in graph.output:
            name = self._output(value.name)
            outputs.append(name)
            if value.name in self.heads:
                heads[name] = Softmax()
        self.unsupported.close()
        return self.builder.graph(outputs, heads)

    def _read(self, op: Op) -> None:
        if any(name in self.lost for name in op.inputs):
            self.lost.update(op.outputs)
            return
        try:
            rule = getattr(self, f"_op_{op.kind}", None)
            if rule is None:
                raise Refusal("there is no integer form of this operator", "leave it out, or run it on the host")
            rule(op)
        except Refusal as refusal:
            self.unsupported.add(op.where, refusal.what, refusal.nearest)
            self.lost.update(op.outputs)

    def _input(self, value: onnx.ValueInfoProto) -> None:
        from onnx import helper

        kind = value.type.tensor_type
        dims = tuple(int(size.dim_value) for size in kind.shape.dim)
        source = f"{self.source}: input {value.name!r}"
        if not 2 <= len(dims) <= 4 or min(dims) < 1 or dims[0] != 1:
            text = "×".join(map(str, dims))
            raise CompileError(source, f"its shape must be 1×C×H×W, 1×C×L or 1×C with every size given, not {text}", "fix the shape")
        form = self._input_format(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name, source)
        axes = _input_axes(len(dims), self._channels_last(value.name))
        sizes = dict(zip(axes, dims, strict=True))
        shape = (sizes.get("H", 1), sizes.get("W", 1), sizes["C"])
        low, high = (float(form.dequantize(np.asarray(raw))) for raw in (form.min_raw, form.max_raw))
        name = self.builder.fresh(value.name)
        self.builder.add(Input(name=name, inputs=(), source=source, shape=shape, low=low, high=high, format=form))
        self.terms[value.name] = Value(name, dims, axes, form)

    def _input_format(self, name: str, kind: str, source: str) -> Format:
        """That of the first node which says what the input's integers stand for; steps of 1 when none does."""
        wanted = {name}
        for op in self.ops:
            if op.kind in ("QuantizeLinear", "DequantizeLinear") and op.inputs[0] in wanted:
                return self._format(*op.inputs[1:3])
            if op.kind.startswith("QLinear") or op.kind == "QGemm":
                start = 2 if op.kind == "QLinearConcat" else 0
                for at in range(start, len(op.inputs) - 2):
                    if op.inputs[at] in wanted:
                        return self._format(op.inputs[at + 1], op.inputs[at + 2])
            elif op.inputs and op.inputs[0] in wanted:
                wanted.update(op.outputs)
        if kind not in FORMATS:
            raise CompileError(source, f"no QuantizeLinear reads it, and it is {kind}", "quantize the input")
        return Format(*FORMATS[kind], 1.0)

    def _channels_last(self, name: str) -> bool:
        """Whether the first transpose of the input makes NCHW of NHWC."""
        wanted = {name}
        for op in self.ops:
            if op.inputs and op.inputs[0] in wanted:
                if op.kind == "Transpose":
                    perm = op.ints("perm")
                    return len(perm) > 2 and perm == (0, len(perm) - 1, *range(1, len(perm) - 1))
                if op.kind not in ("QuantizeLinear", "DequantizeLinear"):
                    return False
                wanted.update(op.outputs)
        return False

    def _output(self, name: str) -> str:
        if name in self.lost:
            return ""
        term = self.terms.get(name)
        where = f"{self.source}: output {name!r}"
        if isinstance(term, Value) and not term.steps:
            return self._ordered(term, where)
        self.unsupported.add(where, "it is computed in float32", "quantize the output, and export again")
        return ""

    def _ordered(self, value: Value, where: str) -> str:
        """The node of an output: a flat one has the samples in the model's order."""
        if len(value.dims) > 2 and value.dims[1:] and "".join(value.axes) in ("NHWC", "NHC"):
            return value.node
        return self._map(value, where).node

    # -------------------------------------------------------------------------------------------------- operands

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

    def _integers(self, op: Op, at: int) -> Value:
        """Operand ``at`` of a QOperator node, in the format which the node says it has."""
        value = self._settled(op.inputs[at])
        form = self._format(*op.inputs[at + 1 : at + 3])
        if value.real:
            raise Refusal("its input is real", "export again")
        return self._read_as(value, form, op.where)

    def _read_as(self, value: Value, form: Format, where: str) -> Value:
        """The same integers, standing for other reals."""
        if form == value.format:
            return value
        if (form.bits, form.signed) != (value.format.bits, value.format.signed):
            raise Refusal(f"it reads {value.format} as {form}", "export again")
        name = self._table(value, ort_math.every_raw(form)[None], form, "identity", where, f"{value.node}_as")
        return replace(value, node=name, format=form)

    def _table(self, value: Value, table: IntArray, form: Format, function: str, where: str, name: str) -> str:
        node = QTable(name=self.builder.fresh(name), inputs=(value.node,), source=where, format=form, function=function)
        return self.builder.add(node, table=table)

    def _map(self, value: Value, where: str) -> Value:
        """The value as the map its dims say: ``(1, C, H, W)``, ``(1, C, L)`` or ``(1, C)``; shuffles the stream if it must."""
        rank = len(value.dims)
        if not 2 <= rank <= 4 or value.dims[0] != 1:
            raise Refusal(f"a tensor of {'×'.join(map(str, value.dims))} is no map", "reshape it to 1×C×H×W")
        axes = _input_axes(rank, last=False)
        sizes = dict(zip(axes, value.dims, strict=True))
        shape = (sizes.get("H", 1), sizes.get("W", 1), sizes["C"])
        have = self.builder.shapes[value.node]
        if have == shape and self._order(value) == "".join(a for a, n in zip("CHW", (shape[2], *shape[:2]), strict=True) if n > 1):
            return replace(value, axes=axes)
        return replace(value, node=self._shuffled(value, shape, where), axes=axes)

    def _order(self, value: Value) -> str:
        """C, H and W as the model's tensor runs through them, those of one sample left out."""
        sizes = dict(zip("HWC", self.builder.shapes[value.node], strict=True))
        return "".join(axis for axis in "".join(value.axes) if axis != "N" and sizes[axis] > 1)

    def _shuffled(self, value: Value, shape: Shape, where: str) -> str:
        """Flat in the model's order, then the map of ``shape``."""
        height, width, channels = self.builder.shapes[value.node]
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
        axes = _input_axes(len(dims), last=False)
        target = dict(zip(axes, dims, strict=True))
        shape = (target.get("H", 1), target.get("W", 1), target["C"])
        return replace(value, node=self._shuffled(value, shape, where), dims=dims, axes=axes)

    # ---------------------------------------------------------------------------------- quantize and dequantize

    def _op_Constant(self, op: Op) -> None:
        from onnx import numpy_helper

        if "value" not in op.attributes:
            raise Refusal("its value is no tensor", "fold the constants")
        self.terms[op.outputs[0]] = numpy_helper.to_array(op.attributes["value"])

    def _op_Identity(self, op: Op) -> None:
        self.terms[op.outputs[0]] = self.terms[op.inputs[0]]

    _op_Dropout = _op_Identity

    def _op_DequantizeLinear(self, op: Op) -> None:
        if op.attributes.get("block_size", 0):
            raise Refusal("it has a scale for each block", "quantize per tensor or per channel")
        term = self.terms.get(op.inputs[0])
        if isinstance(term, np.ndarray):
            scale = self._constant(op.inputs[1])
            given = self._constant(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] else np.zeros(scale.shape, term.dtype)
            if term.dtype.name not in (*FORMATS, "int32") or scale.dtype != np.float32:
                raise Refusal(f"constants are {term.dtype} in steps of {scale.dtype}", "quantize constants to 8 bits")
            axis = int(op.attributes.get("axis", 1))
            if scale.size > 1 and not (-term.ndim <= axis < term.ndim and scale.size == given.size == term.shape[axis]):
                raise Refusal("its scales do not fit its axis", "export again")
            axis = axis % term.ndim if scale.size > 1 else 0
            if not (np.all(np.isfinite(scale)) and np.all(scale > 0)):
                raise Refusal("its scales must be positive", "calibrate again")
            self.terms[op.outputs[0]] = Constant(
                term.astype(np.int64), scale.ravel(), given.ravel().astype(np.int64), axis, term.dtype.name
            )
            return
        value = self._settled(op.inputs[0])
        self.terms[op.outputs[0]] = replace(self._read_as(value, self._format(*op.inputs[1:3]), op.where), real=True)

    def _op_QuantizeLinear(self, op: Op) -> None:
        term = self.terms.get(op.inputs[0])
        name = op.outputs[0]
        if isinstance(term, np.ndarray):
            self.terms[name] = self._quantized_constant(op, term)
            return
        form = self._format(*op.inputs[1:3])
        if isinstance(term, Pending):
            if self.uses[op.inputs[0]] > 1:
                raise Refusal("its float32 input is also read elsewhere", "quantize it once and read that")
            if form.signed != term.like.format.signed:
                raise Refusal("onnxruntime computes in float32 where int8 becomes uint8", "use one type throughout")
            least, most = (float(form.dequantize(np.asarray(raw))) for raw in (form.min_raw, form.max_raw))
            if any(least < low or most > high for low, high in term.limits):
                raise Refusal(
                    "the clip in front of it cuts into its range, so onnxruntime computes in float32",
                    "calibrate asymmetrically, so that the zero point is the least integer",
                )
            self.terms[name] = Value(term.make(name, form), term.dims, term.axes, form)
            return
        value = self._value(op.inputs[0])
        if not value.real:  # the network's input, which has this format from the start
            self.terms[name] = value
        elif not value.steps and form == value.format:
            self.terms[name] = replace(value, real=False)
        else:
            self.terms[name] = self._tabulated(op, value, form)

    def _quantized_constant(self, op: Op, array: Arrays) -> Arrays:
        scale, zero = self._constant(op.inputs[1]), self._constant(op.inputs[2]) if len(op.inputs) > 2 else np.uint8(0)
        limits = np.iinfo(zero.dtype)
        axis = int(op.attributes.get("axis", 1))
        if scale.size > 1:
            if scale.size != array.shape[axis]:
                raise Refusal("its scales do not fit its axis", "export again")
            shape = [-1 if index == axis % array.ndim else 1 for index in range(array.ndim)]
            scale, zero = scale.reshape(shape), np.asarray(zero).reshape(shape)
        steps = np.rint(array.astype(np.float32) / scale.astype(np.float32)) + zero
        return np.clip(steps, limits.min, limits.max).astype(zero.dtype)

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

    # ------------------------------------------------------------------------------------ convolution and dense

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
            scale = np.float32(alpha) * np.float32(layer.x.format.scale) * layer.w_scale / np.float32(form.scale)
            limits = form.min_raw, form.max_raw
            return self._conv_like(op, layer, name, form, limits, "float32", layer.w_ohwi, b_o, scale.astype(np.float64))

        return Pending(make, layer.x, layer.dims, layer.axes)

    def _less_zero(self, constant: Constant, axis: int) -> IntArray:
        """Weights less their zero points, which are one for all or one for each index of ``axis``."""
        shape = [-1 if index == axis and constant.zero_point.size > 1 else 1 for index in range(constant.raw.ndim)]
        return constant.raw - constant.zero_point.reshape(shape)

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

    def _weight(self, raw: str, scale: str, zero: str) -> Constant:
        """A constant operand of a QOperator node."""
        array, steps = self._constant(raw), self._constant(scale).ravel()
        zeros = self._constant(zero).ravel() if zero else np.zeros(1, dtype=array.dtype)
        if array.dtype.name not in FORMATS or zeros.dtype != array.dtype:
            raise Refusal(f"its weights are {array.dtype}", "quantize weights to 8 bits")
        return Constant(array.astype(np.int64), steps, zeros.astype(np.int64), 0, array.dtype.name)

    def _finish(self, op: Op, pending: Pending, form: Format) -> None:
        name = op.outputs[0]
        self.terms[name] = Value(pending.make(name, form), pending.dims, pending.axes, form)

    def _op_QLinearConv(self, op: Op) -> None:
        weight = self._weight(*op.inputs[3:6])
        bias = self._constant(op.inputs[8]).astype(np.int64) if len(op.inputs) > 8 and op.inputs[8] else None
        layer = self._convolution(op, self._integers(op, 0), weight)
        self._finish(op, self._requantized(op, layer, bias), self._format(*op.inputs[6:8]))

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

    def _dequantized(self, name: str) -> Constant:
        term = self.terms.get(name)
        if not isinstance(term, Constant):
            raise Refusal(f"its operand {name!r} is not quantized", "quantize weights and biases, and export again")
        return term

    def _real(self, name: str) -> Value:
        value = self._settled(name)
        if not value.real:
            raise Refusal("it computes in float32", "put QuantizeLinear and DequantizeLinear in front of it")
        return value

    def _bias(self, op: Op, at: int, x: Value, weight: Constant) -> IntArray | None:
        """An int32 bias in steps of the accumulator."""
        if len(op.inputs) <= at or not op.inputs[at]:
            return None
        bias = self._dequantized(op.inputs[at])
        if bias.kind != "int32" or bias.zero_point.any():
            raise Refusal(f"its bias is {bias.kind}", "quantize biases to int32 with zero point 0")
        steps = np.float32(x.format.scale) * weight.scale
        if not np.allclose(bias.scale, steps, rtol=1e-3, atol=0.0):  # onnxruntime never reads the scale of a bias
            raise Refusal("its bias has other steps than input times weights", "quantize biases in steps of input times weights")
        return bias.raw

    def _op_Conv(self, op: Op) -> None:
        x, weight = self._real(op.inputs[0]), self._dequantized(op.inputs[1])
        self._eight_bits(weight)
        self.terms[op.outputs[0]] = self._requantized(op, self._convolution(op, x, weight), self._bias(op, 2, x, weight))

    def _eight_bits(self, weight: Constant) -> None:
        if weight.kind not in FORMATS:
            raise Refusal(f"its weights are {weight.kind}", "quantize weights to 8 bits")

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

    # ------------------------------------------------------------------------------------------------ sums, products

    def _op_QLinearAdd(self, op: Op) -> None:
        self._two(op, self._operand(op, 0), self._operand(op, 3), self._format(*op.inputs[6:8]), multiply=False)

    def _op_QLinearMul(self, op: Op) -> None:
        self._two(op, self._operand(op, 0), self._operand(op, 3), self._format(*op.inputs[6:8]), multiply=True)

    def _operand(self, op: Op, at: int) -> Value | Constant:
        if isinstance(self.terms.get(op.inputs[at]), np.ndarray):
            return self._weight(*op.inputs[at : at + 3])
        return self._integers(op, at)

    def _two(self, op: Op, a: Value | Constant, b: Value | Constant, form: Format, multiply: bool) -> None:
        name = op.outputs[0]
        if isinstance(a, Value) and isinstance(b, Value):
            a, b = self._same_size(op, a, b, multiply)
            node = self._joined(op, a, b, form, multiply, name)
            self.terms[name] = Value(node, a.dims, a.axes, form)
        elif isinstance(a, Value) and isinstance(b, Constant):
            self.terms[name] = self._with_constant(op, a, b, form, multiply, swapped=False)
        elif isinstance(a, Constant) and isinstance(b, Value):
            self.terms[name] = self._with_constant(op, b, a, form, multiply, swapped=True)
        else:
            raise Refusal("both its operands are constant", "fold the constants")

    def _same_size(self, op: Op, a: Value, b: Value, multiply: bool) -> tuple[Value, Value]:
        if a.axes != b.axes or a.dims != b.dims:
            a, b = self._map(a, op.where), self._map(b, op.where)
        if a.dims == b.dims:
            return a, b
        if multiply and len(a.dims) == len(b.dims) == 4 and a.dims[1] == b.dims[1]:  # a gate of one pixel
            if b.dims[2:] == (1, 1):
                return a, self._spread(op, b, a)
            if a.dims[2:] == (1, 1):
                return self._spread(op, a, b), b
        raise Refusal("its operands differ in size", "give both the same shape")

    def _spread(self, op: Op, gate: Value, like: Value) -> Value:
        node = Upsample(name=self.builder.fresh(f"{gate.node}_spread"), inputs=(gate.node,), source=op.where, factor=like.dims[2:4])
        return replace(gate, node=self.builder.add(node), dims=like.dims)

    def _joined(self, op: Op, a: Value, b: Value, form: Format, multiply: bool, name: str) -> str:
        if a.format.signed != b.format.signed or a.format.signed != form.signed:
            raise Refusal("it mixes int8 and uint8", "use one type throughout")
        ra, rb = (np.float32(x.format.scale) / np.float32(form.scale) for x in (a, b))
        ratio = np.float32(a.format.scale) * np.float32(b.format.scale) / np.float32(form.scale)
        common: dict[str, Any] = {
            "name": self.builder.fresh(name),
            "inputs": (a.node, b.node),
            "source": op.where,
            "low": form.min_raw,
            "high": form.max_raw,
            "format": form,
            "rounding": "float32",
        }
        if multiply:
            return self.builder.add(QMultiply(**common, ratio=float(ratio)))
        return self.builder.add(QAdd(**common, ratios=(float(ra), float(rb))))

    def _with_constant(self, op: Op, x: Value, constant: Constant, form: Format, multiply: bool, swapped: bool) -> Value:
        """Adding or multiplying constants, one for all or one a channel, as a table of the same formula."""
        if constant.kind not in FORMATS or constant.scale.size != 1 or constant.zero_point.size != 1:
            raise Refusal("its constant operand has a scale for each channel", "quantize it per tensor")
        signs = {x.format.signed, FORMATS[constant.kind][1], form.signed}
        if len(signs) > 1:
            raise Refusal("it mixes int8 and uint8", "use one type throughout")
        x = self._map(x, op.where)
        values = self._per_channel(constant.raw, x)
        other = Format(*FORMATS[constant.kind], float(constant.scale[0]), int(constant.zero_point[0]))
        raw = np.broadcast_to(ort_math.every_raw(x.format)[None, :], (len(values), 1 << x.format.bits))
        a, b, formats = raw, np.broadcast_to(values[:, None], raw.shape), (x.format, other)
        if swapped:
            a, b, formats = b, a, (other, x.format)
        table = (ort_math.multiply_raw if multiply else ort_math.add_raw)(a, b, *formats, form)
        words = "constant multiply" if multiply else "constant add"
        return replace(x, node=self._table(x, table, form, words, op.where, op.outputs[0]), format=form, real=False)

    def _per_channel(self, array: Arrays, x: Value) -> Arrays:
        """A constant that broadcasts to a map, as one number or one a channel."""
        if array.size == 1:
            return np.asarray(array).reshape(1)
        shape = (1,) * (len(x.dims) - array.ndim) + array.shape
        if len(shape) != len(x.dims) or shape[1] != x.dims[1] or array.size != x.dims[1]:
            raise Refusal("its constant operand differs from pixel to pixel", "use one constant, or one a channel")
        return array.reshape(-1)

    def _op_Add(self, op: Op) -> None:
        self._arithmetic(op, multiply=False)

    def _op_Mul(self, op: Op) -> None:
        self._arithmetic(op, multiply=True)

    def _arithmetic(self, op: Op, multiply: bool) -> None:
        terms = [self.terms.get(name) for name in op.inputs]
        if any(isinstance(term, np.ndarray) for term in terms):
            self._float_constant(op)
            return
        if all(isinstance(term, Constant) for term in terms):
            raise Refusal("both its operands are constant", "fold the constants")
        a, b = (term if isinstance(term, Constant) else self._real(n) for term, n in zip(terms, op.inputs, strict=True))
        like = a if isinstance(a, Value) else b
        assert isinstance(like, Value)
        if isinstance(a, Value) and isinstance(b, Value):
            if a.format.signed != b.format.signed:
                raise Refusal("it mixes int8 and uint8", "use one type throughout")
            left, right = self._same_size(op, a, b, multiply)
            pending = Pending(lambda name, form: self._joined(op, left, right, form, multiply, name), left, left.dims, left.axes)
        else:

            def make(name: str, form: Format) -> str:
                self._two(op, a, b, form, multiply)
                made = self.terms[op.outputs[0]]
                assert isinstance(made, Value)
                return made.node

            settled = self._map(like, op.where)
            pending = Pending(make, settled, settled.dims, settled.axes)
        self.terms[op.outputs[0]] = pending

    # -------------------------------------------------------------------------------------- functions of one sample

    def _float_constant(self, op: Op) -> None:
        """``x ∘ constant`` of a dequantized ``x`` and float numbers, one rounding each."""
        operation = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[op.kind]
        swapped = isinstance(self.terms.get(op.inputs[0]), np.ndarray)
        name, other = op.inputs[::-1] if swapped else op.inputs
        value = self._elementwise(name)
        array = self._constant(other)
        finite(op.where, "its constant", array)
        value = self._map(value, op.where) if array.size > 1 else value
        numbers = self._per_channel(array.astype(np.float32), value)

        def function(x: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(operation(numbers, x) if swapped else operation(x, numbers))

        self._step(op, value, Step(op.kind, function, per_channel=array.size > 1))

    _op_Sub = _op_Div = _float_constant

    def _elementwise(self, name: str) -> Value:
        value = self._value(name)
        if not value.real:
            raise Refusal("it computes in float32", "put QuantizeLinear and DequantizeLinear in front of it")
        return value

    def _step(self, op: Op, value: Value, step: Step) -> None:
        self.terms[op.outputs[0]] = replace(value, steps=(*value.steps, step))

    def _named(self, op: Op, name: str, *parameters: float) -> None:
        value = self._elementwise(op.inputs[0])
        exact = ort_math.exact_function(name, parameters)
        if exact is not None:
            self._step(op, value, Step(name, exact))
            return
        smooth = ort_math.smooth_function(name, parameters)
        if smooth is None:
            raise Refusal("there is no such function", "choose another")
        self._step(op, value, Step(name, smooth, exact=False))

    def _op_LeakyRelu(self, op: Op) -> None:
        self._named(op, "leaky_relu", float(op.attributes.get("alpha", 0.01)))

    def _op_HardSigmoid(self, op: Op) -> None:
        self._named(op, "hard_sigmoid", float(op.attributes.get("alpha", 0.2)), float(op.attributes.get("beta", 0.5)))

    def _op_Elu(self, op: Op) -> None:
        self._named(op, "elu", float(op.attributes.get("alpha", 1.0)))

    def _op_Selu(self, op: Op) -> None:
        gamma = float(op.attributes.get("gamma", 1.0507009873554805))
        self._named(op, "selu", float(op.attributes.get("alpha", 1.6732632423543772)), gamma)

    def _op_Gelu(self, op: Op) -> None:
        if op.text("approximate", "none") != "none":
            raise Refusal("it approximates", "use the exact Gelu")
        self._named(op, "gelu")

    def _op_Sigmoid(self, op: Op) -> None:
        self._named(op, "sigmoid")

    def _op_Tanh(self, op: Op) -> None:
        self._named(op, "tanh")

    def _op_HardSwish(self, op: Op) -> None:
        self._named(op, "hard_swish")

    def _op_Softplus(self, op: Op) -> None:
        self._named(op, "softplus")

    def _op_Softsign(self, op: Op) -> None:
        self._named(op, "softsign")

    def _op_Exp(self, op: Op) -> None:
        self._named(op, "exp")

    def _op_Log(self, op: Op) -> None:
        self._named(op, "log")

    def _op_Sqrt(self, op: Op) -> None:
        self._named(op, "sqrt")

    def _op_Abs(self, op: Op) -> None:
        self._named(op, "abs")

    def _op_PRelu(self, op: Op) -> None:
        value = self._elementwise(op.inputs[0])
        term = self.terms.get(op.inputs[1])
        if isinstance(term, Constant):
            shape = [-1 if i == term.axis and term.scale.size > 1 else 1 for i in range(term.raw.ndim)]
            slopes = ((term.raw - term.zero_point.reshape(shape)).astype(np.float32) * term.scale.reshape(shape)).astype(np.float32)
        else:
            slopes = self._constant(op.inputs[1]).astype(np.float32)
        value = self._map(value, op.where) if slopes.size > 1 else value
        slope = self._per_channel(slopes, value)
        step = Step("prelu", lambda x: np.where(x > 0, x, slope * x), per_channel=slopes.size > 1)
        self._step(op, value, step)

    def _op_Relu(self, op: Op) -> None:
        self._clip(op, 0.0, math.inf)

    def _op_Clip(self, op: Op) -> None:
        bounds = [-math.inf, math.inf]
        for at, name in enumerate(("min", "max")):
            if name in op.attributes:
                bounds[at] = float(op.attributes[name])
            elif len(op.inputs) > 1 + at and op.inputs[1 + at]:
                term = self.terms.get(op.inputs[1 + at])
                if isinstance(term, Constant):
                    term = ((term.raw - term.zero_point).astype(np.float32) * term.scale).astype(np.float32)
                if not isinstance(term, np.ndarray) or term.size != 1:
                    raise Refusal("its limits are not constant", "make them initializers")
                bounds[at] = float(term.ravel()[0])
        if math.isnan(bounds[0]) or math.isnan(bounds[1]) or bounds[0] > bounds[1]:
            raise Refusal("its limits cross", "give min below max")
        self._clip(op, *bounds)

    def _clip(self, op: Op, low: float, high: float) -> None:
        term = self.terms.get(op.inputs[0])
        if isinstance(term, Pending):
            if self.uses[op.inputs[0]] > 1:
                raise Refusal("its float32 input is also read elsewhere", "quantize it once and read that")
            self.terms[op.outputs[0]] = replace(term, limits=(*term.limits, (low, high)))
            return
        value = self._value(op.inputs[0])
        if value.real:
            limits = np.float32(low), np.float32(high)
            self._step(op, value, Step("relu" if (low, high) == (0, math.inf) else "clip", lambda x: np.clip(x, *limits)))
            return
        form = value.format  # Clip and Relu of integers compare raw values
        raw = ort_math.every_raw(form)
        table = np.clip(raw, max(low, form.min_raw), min(high, form.max_raw)).astype(np.int64)[None]
        self.terms[op.outputs[0]] = replace(value, node=self._table(value, table, form, "clip", op.where, op.outputs[0]))

    def _lookup(self, op: Op, name: str, *parameters: float) -> None:
        value = self._integers(op, 0)
        function = ort_math.exact_function(name, parameters)
        assert function is not None
        self.terms[op.outputs[0]] = self._tabulated(op, replace(value, steps=(Step(name, function),)), self._format(*op.inputs[3:5]))

    def _op_QLinearLeakyRelu(self, op: Op) -> None:
        self._lookup(op, "leaky_relu", float(op.attributes.get("alpha", 0.01)))

    def _op_QLinearSigmoid(self, op: Op) -> None:
        self._lookup(op, "sigmoid")

    # --------------------------------------------------------------------------------------------------------- pools

    def _op_MaxPool(self, op: Op) -> None:
        value = self._map(self._settled(op.inputs[0]), op.where)
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
            padding = tuple(  # type: ignore[assignment]
                _ceil_padding(size, k, s, pad) for size, k, s, pad in zip(shape[:2], spatial(kernel), stride, padding, strict=True)
            )
        name = self.builder.fresh(op.outputs[0])
        node = MaxPool(name=name, inputs=(value.node,), source=op.where, kernel=spatial(kernel), stride=stride, padding=padding)
        self._moved(op, value, self.builder.add(node))

    def _moved(self, op: Op, value: Value, node: str, at: int = 0) -> None:
        """The output of a node that keeps the format and is a map."""
        height, width, channels = self.builder.shapes[node]
        dims = (1, channels, height, width)[: len(value.dims)]
        self.terms[op.outputs[at]] = replace(value, node=node, dims=dims)

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
                _ceil_padding(size, k, s, pad) != pad
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
            elif not ort_math.average_is_sure(value.format, form, *_window_counts((height, width), size, stride, padding, counts)):
                raise Refusal(
                    "onnxruntime sums it in float32, and the order of the sum decides some of its roundings",
                    "use GlobalAveragePool, or a depthwise convolution",
                )
            node = QAveragePool(
                name=self.builder.fresh(name), inputs=(value.node,), source=op.where, kernel=size, stride=stride, padding=padding,
                count_include_pad=counts, low=form.min_raw, high=form.max_raw, format=form,
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

    # --------------------------------------------------------------------------------------------------- moving samples

    def _op_QLinearConcat(self, op: Op) -> None:
        form = self._format(*op.inputs[:2])
        parts = []
        for at in range(2, len(op.inputs), 3):
            value = self._integers(op, at)
            if value.format != form:
                value = self._tabulated(replace_output(op, f"{value.node}_to"), value, form)
            parts.append(value)
        self._concatenated(op, parts)

    def _concatenated(self, op: Op, parts: list[Value]) -> None:
        parts = [self._map(part, op.where) for part in parts]
        rank = len(parts[0].dims)
        if int(op.attributes.get("axis", 1)) % rank != 1:
            raise Refusal("it joins along rows or columns", "join channels")
        name = self.builder.fresh(op.outputs[0])
        node = self.builder.add(Concat(name=name, inputs=tuple(part.node for part in parts), source=op.where))
        self._moved(op, parts[0], node)

    def _op_Concat(self, op: Op) -> None:
        values = [self._settled(name) for name in op.inputs]
        if all(value.format == values[0].format for value in values):
            self._concatenated(op, values)
            return
        if not all(value.real for value in values) or len({value.format.signed for value in values}) > 1:
            raise Refusal("its inputs have several formats", "quantize them alike")

        def make(name: str, form: Format) -> str:
            parts = [
                value if value.format == form else self._tabulated(replace_output(op, f"{value.node}_to"), value, form)
                for value in values
            ]
            self._concatenated(op, parts)
            made = self.terms[op.outputs[0]]
            assert isinstance(made, Value)
            return made.node

        first = self._map(values[0], op.where)
        if int(op.attributes.get("axis", 1)) % len(first.dims) != 1:
            raise Refusal("it joins along rows or columns", "join channels")
        dims = (1, sum(value.dims[1] for value in values), *first.dims[2:])
        self.terms[op.outputs[0]] = Pending(make, first, dims, first.axes)

    def _op_Reshape(self, op: Op) -> None:
        value = self._value(op.inputs[0])
        wanted = [int(size) for size in self._constant(op.inputs[1]).ravel()]
        if not op.attributes.get("allowzero", 0):
            wanted = [value.dims[at] if size == 0 and at < len(value.dims) else size for at, size in enumerate(wanted)]
        total = math.prod(value.dims)
        if -1 in wanted:
            rest = math.prod(size for size in wanted if size != -1)
            wanted[wanted.index(-1)] = total // rest if rest > 0 else 0
        if min(wanted, default=0) < 1 or math.prod(wanted) != total:
            raise Refusal("its shape does not fit its input", "export again")
        self.terms[op.outputs[0]] = self._regrouped(value, tuple(wanted), op.where)

    def _op_Flatten(self, op: Op) -> None:
        value = self._value(op.inputs[0])
        axis = int(op.attributes.get("axis", 1)) % (len(value.dims) + 1)
        dims = (math.prod(value.dims[:axis]), math.prod(value.dims[axis:]))
        self.terms[op.outputs[0]] = self._regrouped(value, dims, op.where)

    def _op_Squeeze(self, op: Op) -> None:
        value = self._value(op.inputs[0])
        axes = self._axes(op, len(value.dims)) or [at for at, size in enumerate(value.dims) if size == 1]
        dims = tuple(size for at, size in enumerate(value.dims) if at not in axes)
        self.terms[op.outputs[0]] = self._regrouped(value, dims, op.where)

    def _op_Unsqueeze(self, op: Op) -> None:
        value = self._value(op.inputs[0])
        axes = self._axes(op, len(value.dims) + (len(self._constant(op.inputs[1])) if len(op.inputs) > 1 else len(op.ints("axes"))))
        dims = list(value.dims)
        for at in sorted(axes):
            dims.insert(at, 1)
        self.terms[op.outputs[0]] = self._regrouped(value, tuple(dims), op.where)

    def _axes(self, op: Op, rank: int) -> list[int]:
        given = op.ints("axes")
        if len(op.inputs) > 1 and op.inputs[1]:
            given = tuple(int(axis) for axis in self._constant(op.inputs[1]).ravel())
        return [axis % rank for axis in given]

    def _op_Transpose(self, op: Op) -> None:
        value = self._value(op.inputs[0])
        perm = op.ints("perm", range(len(value.dims))[::-1])
        if sorted(perm) != list(range(len(value.dims))):
            raise Refusal("its axes are no permutation", "export again")
        dims = tuple(value.dims[axis] for axis in perm)
        self.terms[op.outputs[0]] = replace(value, dims=dims, axes=tuple(value.axes[axis] for axis in perm))

    def _op_Slice(self, op: Op) -> None:
        value = self._map(self._value(op.inputs[0]), op.where)
        rank = len(value.dims)
        if len(op.inputs) > 1:
            arrays = [self._constant(name).ravel() if name else None for name in op.inputs[1:]]
            starts, ends = (np.asarray(array) for array in arrays[:2])
            axes = arrays[2] if len(arrays) > 2 and arrays[2] is not None else np.arange(len(starts))
            steps = arrays[3] if len(arrays) > 3 and arrays[3] is not None else np.ones(len(starts), dtype=np.int64)
        else:
            starts, ends = np.asarray(op.ints("starts")), np.asarray(op.ints("ends"))
            axes, steps = np.asarray(op.ints("axes", range(len(starts)))), np.ones(len(starts), dtype=np.int64)
        if np.any(steps != 1):
            raise Refusal("its step is not 1", "use a strided convolution")
        bounds = {axis: (0, size) for axis, size in enumerate(value.dims)}
        for start, end, axis in zip(starts, ends, axes, strict=True):
            first, stop, _ = slice(int(start), int(end)).indices(value.dims[int(axis) % rank])
            bounds[int(axis) % rank] = (first, stop)
        self._cut(op, value, bounds, 0)

    def _cut(self, op: Op, value: Value, bounds: Mapping[int, Pair], at: int) -> None:
        """Rows, columns and channels ``first … stop − 1`` of each axis."""
        if any(stop <= first for first, stop in bounds.values()):
            raise Refusal("nothing is left", "slice less")
        node = value.node
        first, stop = bounds[1]
        if (first, stop) != (0, value.dims[1]):
            name = self.builder.fresh(op.outputs[at])
            node = self.builder.add(Slice(name=name, inputs=(node,), source=op.where, start=first, stop=stop))
        edges = [(bounds[axis][0], value.dims[axis] - bounds[axis][1]) for axis in range(2, len(value.dims))]
        cropping = (*edges, *[(0, 0)] * (2 - len(edges)))
        if any(map(any, cropping)):
            name = self.builder.fresh(op.outputs[at])
            node = self.builder.add(Crop(name=name, inputs=(node,), source=op.where, cropping=(cropping[0], cropping[1])))
        self._moved(op, value, node, at)

    def _op_Split(self, op: Op) -> None:
        value = self._map(self._value(op.inputs[0]), op.where)
        axis = int(op.attributes.get("axis", 0)) % len(value.dims)
        count = len(op.outputs)
        sizes = op.ints("split")
        if len(op.inputs) > 1 and op.inputs[1]:
            sizes = tuple(int(size) for size in self._constant(op.inputs[1]).ravel())
        if not sizes:
            part = -(-value.dims[axis] // count)
            sizes = (*[part] * (count - 1), value.dims[axis] - part * (count - 1))
        if len(sizes) != count or sum(sizes) != value.dims[axis] or min(sizes) < 1:
            raise Refusal("its parts do not fit its input", "export again")
        first = 0
        for at, size in enumerate(sizes):
            bounds = {other: (0, whole) for other, whole in enumerate(value.dims)} | {axis: (first, first + size)}
            self._cut(op, value, bounds, at)
            first += size

    def _op_Resize(self, op: Op) -> None:
        value = self._map(self._settled(op.inputs[0]), op.where)
        if op.text("mode", "nearest") != "nearest":
            raise Refusal("it interpolates", "use mode nearest")
        rank = len(value.dims)
        scales = [1.0] * rank
        names = op.inputs[1:] if op.kind == "Upsample" or self.opset < 11 else op.inputs[2:]
        if names and names[0] and self._constant(names[0]).size:
            scales = [float(scale) for scale in self._constant(names[0]).ravel()]
        elif len(names) > 1 and names[1]:
            scales = [int(new) / old for new, old in zip(self._constant(names[1]).ravel(), value.dims, strict=True)]
        elif "scales" in op.attributes:
            scales = [float(scale) for scale in op.attributes["scales"]]
        if op.ints("axes") or len(scales) != rank or any(s < 1 or s != int(s) for s in scales) or scales[:2] != [1.0, 1.0]:
            raise Refusal("its factors are not whole numbers for rows and columns", "enlarge by whole numbers")
        factor = tuple(int(scale) for scale in scales[2:])
        old = self.opset < 11
        mode = op.text("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
        rounding = op.text("nearest_mode", "floor" if old else "round_prefer_floor")
        for size, scale in zip(value.dims[2:], factor, strict=True):
            if not _repeats(size, scale, mode, rounding):
                raise Refusal(f"{mode} and {rounding} do not repeat each sample alike", "use asymmetric and floor")
        name = self.builder.fresh(op.outputs[0])
        node = Upsample(name=name, inputs=(value.node,), source=op.where, factor=spatial(factor))
        self._moved(op, value, self.builder.add(node))

    _op_Upsample = _op_Resize

    def _op_Pad(self, op: Op) -> None:
        value = self._map(self._settled(op.inputs[0]), op.where)
        if op.text("mode", "constant") != "constant":
            raise Refusal(f"it pads by mode {op.text('mode', '')}", "pad with a constant")
        rank = len(value.dims)
        pads = op.ints("pads") or tuple(int(size) for size in self._constant(op.inputs[1]).ravel())
        if len(op.inputs) > 3 and op.inputs[3]:
            axes = [int(axis) % rank for axis in self._constant(op.inputs[3]).ravel()]
            every = [0] * (2 * rank)
            for at, axis in enumerate(axes):
                every[axis], every[axis + rank] = pads[at], pads[at + len(axes)]
            pads = tuple(every)
        if len(pads) != 2 * rank or min(pads) < 0 or any(pads[:2]) or any(pads[rank : rank + 2]):
            raise Refusal("it pads channels, or by negative numbers", "pad rows and columns")
        raw = 0 if not value.real else value.format.zero_point
        if len(op.inputs) > 2 and op.inputs[2]:
            fill = self._constant(op.inputs[2])
            if value.real:
                steps = ort_math.quantize(fill.astype(np.float32), value.format)
                if np.any(ort_math.dequantize(steps, value.format) != fill):
                    raise Refusal("it pads with a number that no integer stands for", "pad with zero")
                raw = int(steps.ravel()[0])
            else:
                raw = int(fill.ravel()[0])
        edges = [(pads[axis], pads[axis + rank]) for axis in range(2, rank)]
        padding = (*edges, *[(0, 0)] * (2 - len(edges)))
        node = Pad(
            name=self.builder.fresh(op.outputs[0]), inputs=(value.node,), source=op.where, padding=(padding[0], padding[1]),
            value=float(value.format.dequantize(np.asarray(raw))),
        )  # fmt: skip
        self._moved(op, value, self.builder.add(node))

    def _op_DepthToSpace(self, op: Op) -> None:
        value = self._map(self._value(op.inputs[0]), op.where)
        block = int(op.attributes["blocksize"])
        order: DepthOrder = "CRD" if op.text("mode", "DCR") == "CRD" else "DCR"
        name = self.builder.fresh(op.outputs[0])
        node = DepthToSpace(name=name, inputs=(value.node,), source=op.where, block=(block, block), order=order)
        self._moved(op, value, self.builder.add(node))

    def _op_SpaceToDepth(self, op: Op) -> None:
        value = self._map(self._value(op.inputs[0]), op.where)
        block = int(op.attributes["blocksize"])
        name = self.builder.fresh(op.outputs[0])
        node = SpaceToDepth(name=name, inputs=(value.node,), source=op.where, block=(block, block))
        self._moved(op, value, self.builder.add(node))

    # ----------------------------------------------------------------------------------------------------------- heads

    def _op_ArgMax(self, op: Op) -> None:
        value = self._map(self._settled(op.inputs[0]), op.where)
        if int(op.attributes.get("axis", 0)) % len(value.dims) != 1 or op.attributes.get("select_last_index", 0):
            raise Refusal("it is not the first greatest channel", "use axis 1 and the first index")
        name = self.builder.fresh(op.outputs[0])
        node = self.builder.add(ArgMax(name=name, inputs=(value.node,), source=op.where))
        bits = Format(max((value.dims[1] - 1).bit_length(), 2), False, 1.0)
        dims = (1, 1, *value.dims[2:])
        made = replace(value, node=node, dims=dims, format=bits, real=False)
        self.terms[op.outputs[0]] = made if op.attributes.get("keepdims", 1) else self._regrouped(made, (1, *dims[2:]), op.where)

    def _op_Softmax(self, op: Op) -> None:
        """The last operator is the host's: the engine ends in its input, and what quantizes its output is left out."""
        value = self._settled(op.inputs[0])
        axis = int(op.attributes.get("axis", 1 if self.opset < 13 else -1)) % len(value.dims)
        if not value.real or axis != (1 if len(value.dims) > 2 else len(value.dims) - 1):
            raise Refusal("it does not run over the channels", "use it on the channels, last of all")
        name = op.outputs[0]
        while name not in {output.name for output in self.model.graph.output}:
            readers = [other for other in self.ops if name in other.inputs]
            if len(readers) != 1 or readers[0].kind not in ("QuantizeLinear", "DequantizeLinear"):
                raise Refusal("it is not the last operator", "leave it out: a softmax inside a network has no integer form")
            name = readers[0].outputs[0]
            self.lost.add(name)
        self.lost.discard(name)
        self.heads[name] = op.outputs[0]
        self.terms[name] = value

    def _op_QLinearSoftmax(self, op: Op) -> None:
        raise Refusal("it has no integer form", "leave it out: convfold's host library computes a softmax from the logits")


def replace_output(op: Op, name: str) -> Op:
    """The same node, under another name for what it makes."""
    return replace(op, outputs=(name,))


def _ceil_padding(size: int, kernel: int, stride: int, padding: Pair) -> Pair:
    """The padding with which a window may also begin where the last samples are too few for it."""
    before, after = padding
    windows = -(-(size + before + after - kernel) // stride) + 1
    if (windows - 1) * stride >= size + before:
        windows -= 1
    return before, max(after, (windows - 1) * stride + kernel - size - before)


def _window_counts(size: Pair, kernel: Pair, stride: Pair, padding: Padding, counts: bool) -> tuple[set[int], dict[int, int]]:
    """How many samples the windows have, and by how many each is divided."""
    numbers = []
    for axis in (0, 1):
        windows = (size[axis] + sum(padding[axis]) - kernel[axis]) // stride[axis] + 1
        first = np.arange(windows) * stride[axis] - padding[axis][0]
        numbers.append({int(n) for n in (first + kernel[axis]).clip(0, size[axis]) - first.clip(0, size[axis])})
    samples = {rows * cols for rows in numbers[0] for cols in numbers[1]}
    return samples, {count: kernel[0] * kernel[1] if counts else count for count in samples}


def _repeats(size: int, factor: int, mode: str, rounding: str) -> bool:
    """Whether a nearest-neighbour rule reads sample ``⌊i / factor⌋`` for every ``i``."""
    i = np.arange(size * factor, dtype=np.float32)
    scale = np.float32(factor)
    if mode in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        at = (i + np.float32(0.5)) / scale - np.float32(0.5)
    elif mode == "asymmetric":
        at = i / scale
    else:
        return False
    rounds: Mapping[str, Callable[[RealArray], RealArray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    }
    if rounding not in rounds:
        return False
    read = np.clip(rounds[rounding](at.astype(np.float64)), 0, size - 1)
    return bool(np.array_equal(read, np.arange(size * factor) // factor))
