"""Quantized ONNX models, as integers from the first layer to the last: QOperator (``QLinearConv`` …) and QDQ.

What onnxruntime computes on a CPU (x86-64 with AVX2 or later, default optimizations, int8 allowed) is the definition, bit for
bit. In QDQ form that is: ``DequantizeLinear → operator → QuantizeLinear`` is one integer operator where onnxruntime makes it
one; a function of a single sample is a table computed in its float32; and whatever it leaves to float32 sums is refused by
name, since those depend on their order.

Int8 allowed: ``session.qdqisint8allowed``. Without it, onnxruntime on x86-64 turns some int8 tensors of a QDQ network into
uint8, and computes what reads both kinds in float32; that rounds a few numbers in a million otherwise.

The model's tensors are NCHW and ours HWC: a transpose or reshape moves nothing, unless the order of samples really changes, and
then the stream is shuffled where it must be.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CompileError, quote
from ..files import one_line
from ..graph import (
    Graph,
    Input,
    Softmax,
)
from ..numbers import Format
from .common import finite
from .onnx_layout import Refusal
from .onnx_load import constants
from .quantized_functions import NAMED, Functions
from .quantized_joins import Joins
from .quantized_moves import Moves
from .quantized_pools import Pools
from .quantized_terms import (
    FORMATS,
    Arrays,
    Constant,
    Op,
    Pending,
    Value,
    decoded,
    input_axes,
    map_shape,
)

if TYPE_CHECKING:
    import onnx

__all__ = ["Reader", "is_quantized", "read_quantized"]

QOPERATORS = ("QuantizeLinear", "DequantizeLinear", "QGemm")


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a model is in QOperator or QDQ form."""
    return any(node.op_type in QOPERATORS or node.op_type.startswith("QLinear") for node in model.graph.node)


def read_quantized(model: onnx.ModelProto, source: str) -> Graph:
    """The integer graph of a quantized model whose shapes are fixed, with batch 1.

    *Raises* ``CompileError`` that lists every node which cannot be imported.
    """
    return Reader(model, source).read()


class Reader(Joins, Functions, Pools, Moves):
    """One walk over the nodes; a rule for each operator."""

    def read(self) -> Graph:
        graph = self.model.graph
        self.terms.update(constants(self.model))
        ops = [decoded(node, self.source) for node in graph.node]
        self.uses = Counter(name for op in ops for name in op.inputs) + Counter(value.name for value in graph.output)
        self.ops = ops
        inputs = [value for value in graph.input if value.name not in self.terms]
        if len(inputs) != 1:
            raise CompileError(self.source, f"a network has exactly one input, not {len(inputs)}", "export it with one input")
        try:
            self._input(inputs[0])
        except Refusal as refusal:
            source = f"{self.source}: input {quote(inputs[0].name)}"
            raise CompileError(source, refusal.what, refusal.nearest) from refusal
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
            self.lost.update(name for name in op.outputs if name not in self.terms)
            return
        try:
            self._rule(op)
            return
        except Refusal as refusal:
            self.unsupported.add(op.label, refusal.what, refusal.nearest)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:  # the file may lie
            self.unsupported.add(op.label, f"it is no such operator: {one_line(error)}", "export the model again")
        self.lost.update(op.outputs)

    def _rule(self, op: Op) -> None:
        rule = self._function if op.kind in NAMED else getattr(self, f"_op_{op.kind}", None)
        if rule is None:
            raise Refusal("there is no integer form of this operator", "leave it out, or run it on the host")
        rule(op)

    def _input(self, value: onnx.ValueInfoProto) -> None:
        from onnx import helper

        kind = value.type.tensor_type
        dims = tuple(int(size.dim_value) for size in kind.shape.dim)
        source = f"{self.source}: input {value.name!r}"
        if not 2 <= len(dims) <= 4 or min(dims) < 1 or dims[0] != 1:
            text = "×".join(map(str, dims))
            raise CompileError(source, f"must be 1×C×H×W, 1×C×L or 1×C with fixed sizes, not {text}", "export it so")
        known = kind.elem_type in helper.get_all_tensor_dtypes()
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)) if known else np.dtype(object)
        if dtype.kind not in "fiu":
            raise CompileError(source, f"must hold numbers, not type {kind.elem_type}", "export the model again")
        form = self._input_format(value.name, dtype.name, source)
        axes = input_axes(len(dims), self._channels_last(value.name))
        shape = map_shape(dims, axes)
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
        where = f"output {quote(name)}"
        if isinstance(term, Value) and not term.steps:
            return self._ordered(term, f"{self.source}: {where}")
        self.unsupported.add(where, "it is computed in float32", "quantize the output, and export again")
        return ""

    def _ordered(self, value: Value, where: str) -> str:
        """The node of an output: a flat one has the samples in the model's order."""
        if len(value.dims) > 2 and value.dims[1:] and "".join(value.axes) in ("NHWC", "NHC"):
            return value.node
        return self._map(value, where).node

    def _op_Constant(self, op: Op) -> None:
        if not isinstance(op.attributes.get("value"), np.ndarray):
            raise Refusal("its value is no tensor", "fold the constants")
        self.terms[op.outputs[0]] = op.attributes["value"]

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
        finite(op.where, "its constant", array)
        scale, zero = self._constant(op.inputs[1]), self._constant(op.inputs[2]) if len(op.inputs) > 2 else np.uint8(0)
        if not (np.all(np.isfinite(scale)) and np.all(scale > 0)):
            raise Refusal("its scales must be positive", "calibrate again")
        limits = np.iinfo(zero.dtype)
        axis = int(op.attributes.get("axis", 1))
        if scale.size > 1:
            if scale.size != array.shape[axis]:
                raise Refusal("its scales do not fit its axis", "export again")
            shape = [-1 if index == axis % array.ndim else 1 for index in range(array.ndim)]
            scale, zero = scale.reshape(shape), np.asarray(zero).reshape(shape)
        steps = np.rint(array.astype(np.float32) / scale.astype(np.float32)) + zero
        return np.asarray(np.clip(steps, limits.min, limits.max), dtype=zero.dtype)

    def _op_Softmax(self, op: Op) -> None:
        value = self._settled(op.inputs[0])
        if not value.real:
            raise Refusal("it computes in float32", "put QuantizeLinear and DequantizeLinear in front of it")
        self._head(op, value, int(op.attributes.get("axis", 1 if self.opset < 13 else -1)))

    def _op_QLinearSoftmax(self, op: Op) -> None:
        self._head(op, self._integers(op, 0), int(op.attributes.get("axis", -1)))

    def _head(self, op: Op, value: Value, axis: int) -> None:
        """A last softmax is the host's: the engine ends in its input, and what quantizes its output is left out."""
        rank = len(value.dims)
        if not -rank <= axis < rank or axis % rank != (1 if rank > 2 else rank - 1):
            raise Refusal("it does not run over the channels", "use it on the channels, last of all")
        name = op.outputs[0]
        while name not in {output.name for output in self.model.graph.output}:
            readers = [other for other in self.ops if name in other.inputs]
            if len(readers) != 1 or readers[0].kind not in ("QuantizeLinear", "DequantizeLinear"):
                raise Refusal("it is not the last operator", "leave it out: a softmax inside a network has no integer form")
            self.lost.add(name)
            name = readers[0].outputs[0]
        self.heads[name] = op.outputs[0]
        self.terms[name] = replace(value, real=True)
