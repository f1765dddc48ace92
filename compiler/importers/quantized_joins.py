"""Quantized sums, products and concatenations of ONNX."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph import (
    Concat,
    QAdd,
    QMultiply,
    Upsample,
)
from ..numbers import Format
from . import ort_math
from .common import finite
from .onnx_layout import Refusal
from .quantized_terms import (
    FORMATS,
    Constant,
    Op,
    Pending,
    Step,
    Terms,
    Value,
    replace_output,
)

MOST_TABLES = 1 << 12
"""Channels that may each have a table of their own."""


class Joins(Terms):
    """QLinearAdd, QLinearMul, QLinearConcat, and the same between dequantizers and a quantizer."""

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
        name, factor = self.builder.fresh(f"{gate.node}_spread"), (like.dims[2], like.dims[3])
        node = Upsample(name=name, inputs=(gate.node,), source=op.where, factor=factor)
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

    def _join(self, op: Op, a: Value, b: Value, multiply: bool, name: str, form: Format) -> str:
        return self._joined(op, a, b, form, multiply, name)

    def _with_constant(self, op: Op, x: Value, constant: Constant, form: Format, multiply: bool, swapped: bool) -> Value:
        """Adding or multiplying constants, one for all or one a channel, as a table of the same formula."""
        if constant.kind not in FORMATS or constant.scale.size != 1 or constant.zero_point.size != 1:
            raise Refusal("its constant operand has a scale for each channel", "quantize it per tensor")
        signs = {x.format.signed, FORMATS[constant.kind][1], form.signed}
        if len(signs) > 1:
            raise Refusal("it mixes int8 and uint8", "use one type throughout")
        x = self._map(x, op.where)
        values = self._per_channel(constant.raw, x)
        if len(values) > MOST_TABLES:
            raise Refusal(f"it needs {len(values)} tables", f"use at most {MOST_TABLES} channels")
        other = Format(*FORMATS[constant.kind], float(constant.scale[0]), int(constant.zero_point[0]))
        raw = np.broadcast_to(ort_math.every_raw(x.format)[None, :], (len(values), 1 << x.format.bits))
        a, b, formats = raw, np.broadcast_to(values[:, None], raw.shape), (x.format, other)
        if swapped:
            a, b, formats = b, a, (other, x.format)
        table = (ort_math.multiply_raw if multiply else ort_math.add_raw)(a, b, *formats, form)
        words = "constant multiply" if multiply else "constant add"
        return replace(x, node=self._table(x, table, form, words, op.where, op.outputs[0]), format=form, real=False)

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
            joined = partial(self._join, op, left, right, multiply)
            pending = Pending(joined, left, left.dims, left.axes)
        else:

            def make(name: str, form: Format) -> str:
                self._two(op, a, b, form, multiply)
                made = self.terms[op.outputs[0]]
                assert isinstance(made, Value)
                return made.node

            settled = self._map(like, op.where)
            pending = Pending(make, settled, settled.dims, settled.axes)
        self.terms[op.outputs[0]] = pending

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
