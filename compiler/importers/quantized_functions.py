"""Functions of one sample in quantized ONNX models: each becomes a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from . import ort_math
from .onnx_layout import Refusal
from .quantized_terms import (
    Constant,
    Op,
    Pending,
    Step,
    Terms,
)

NAMED: Mapping[str, tuple[str, tuple[tuple[str, float], ...]]] = {
    "Abs": ("abs", ()),
    "Elu": ("elu", (("alpha", 1.0),)),
    "Exp": ("exp", ()),
    "HardSigmoid": ("hard_sigmoid", (("alpha", 0.2), ("beta", 0.5))),
    "HardSwish": ("hard_swish", ()),
    "LeakyRelu": ("leaky_relu", (("alpha", 0.01),)),
    "Log": ("log", ()),
    "Selu": ("selu", (("alpha", 1.6732632423543772), ("gamma", 1.0507009873554805))),
    "Sigmoid": ("sigmoid", ()),
    "Softplus": ("softplus", ()),
    "Softsign": ("softsign", ()),
    "Sqrt": ("sqrt", ()),
    "Tanh": ("tanh", ()),
}
"""ONNX's functions by their names in `convfold.compiler.functions`, with their attributes and what those are by default."""


class Functions(Terms):
    """Functions between a dequantizer and a quantizer; those that onnxruntime looks up (QLinearSigmoid, QLinearLeakyRelu)."""

    def _function(self, op: Op) -> None:
        name, parameters = NAMED[op.kind]
        self._named(op, name, *(float(op.attributes.get(one, default)) for one, default in parameters))

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

    def _op_Gelu(self, op: Op) -> None:
        if op.text("approximate", "none") != "none":
            raise Refusal("it approximates", "use the exact Gelu")
        self._named(op, "gelu")

    def _op_PRelu(self, op: Op) -> None:
        value = self._elementwise(op.inputs[0])
        term = self.terms.get(op.inputs[1])
        if isinstance(term, Constant):
            slopes = term.reals
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
                    term = term.reals
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
        value = replace(value, steps=(Step(name, function),))
        self.terms[op.outputs[0]] = self._tabulated(op, value, self._format(*op.inputs[3:5]))

    def _op_QLinearLeakyRelu(self, op: Op) -> None:
        self._lookup(op, "leaky_relu", float(op.attributes.get("alpha", 0.01)))

    def _op_QLinearSigmoid(self, op: Op) -> None:
        self._lookup(op, "sigmoid")
