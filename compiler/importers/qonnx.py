"""QONNX: float networks with ``Quant`` nodes in them, as Brevitas exports them, as integers and as reals.

``Quant(x, scale, zero point, bits)`` rounds ``x / scale + zero point`` to integers of that many bits and goes back to reals. So
between two of them a convolution, its batch norm and its rectifier are one integer convolution: with weights
``w = s_w · w_raw``, inputs ``x = s_x · (x_raw − z_x)`` and the real gain ``g`` and shift ``t`` of a channel,

    ``y / s_y = (|g| · s_x · s_w / s_y) · Σ ±w_raw · (x_raw − z_x) + (g · bias + t) / s_y``

rounded half to even, with a scale and an offset for each channel in float64 (``rounding="float64"``); a negative gain flips the
channel's weights. The qonnx package computes the same in float32, and differs only where its own sums round a tie away.

An input that no ``Quant`` reads gets 8 bits over the declared range, symmetric where the range has negative numbers: that is
the only approximation, and it is the image's own format where the range is 0 to 1 (`Format` uint8 × 1/255). `real_qonnx` is the
float network as it stands, without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CompileError
from ..graph import Graph, Input, Pair, QAdd, QAveragePool
from ..numbers import MAX_BITS, MIN_BITS, Format, IntArray, RealArray, format_for_range
from . import ort_math
from .common import checked_range, finite
from .onnx_layout import Refusal
from .onnx_quantized import Reader
from .quantized_terms import Constant, Layer, Op, Pending, Value, decoded, input_axes, map_shape

if TYPE_CHECKING:
    import onnx

__all__ = ["is_qonnx", "read_qonnx", "real_qonnx"]

DOMAINS = ("onnx.brevitas", "qonnx.custom_op.general", "finn.custom_op.general")
KINDS = ("Quant", "IntQuant", "BipolarQuant", "Trunc", "FloatQuant")
MOVES = frozenset("DepthToSpace SpaceToDepth Reshape Flatten Transpose Squeeze Unsqueeze Slice Identity Dropout".split())
"""Operators that may stand between a layer and its Quant."""


def is_qonnx(model: onnx.ModelProto) -> bool:
    """Whether a model holds Quant nodes."""
    return any(node.domain in DOMAINS and node.op_type in KINDS for node in model.graph.node)


def read_qonnx(model: onnx.ModelProto, source: str, input_range: tuple[float, float] | None = None) -> Graph:
    """The integer graph of a model whose shapes are fixed, with batch 1.

    *Raises* ``CompileError`` that lists every node which cannot be imported.
    """
    return _QonnxReader(model, source, checked_range(source, input_range)).read()


def real_qonnx(model: onnx.ModelProto, name: str, source: str, input_range: tuple[float, float] | None = None) -> Graph:
    """The real graph: every Quant as a division, a clip, a rounding and a product; weights are rounded already."""
    from .onnx_float import import_float

    return import_float(_without_quant(model, source), name, source, input_range)


# ------------------------------------------------------------------------------------------------------ Quant nodes


@dataclass(frozen=True, slots=True, eq=False)
class _Quantizer:
    """A Quant node's constants: scales, an integer zero point, limits in raw steps, and the mode of rounding."""

    scale: NDArray[np.float32]
    zero_point: int
    bits: int
    signed: bool
    low: int
    high: int
    mode: str

    def __call__(self, x: NDArray[np.float32]) -> IntArray:
        """Raw steps, in float32 as the qonnx package computes them."""
        steps = np.clip(x / self.scale + np.float32(self.zero_point), np.float32(self.low), np.float32(self.high))
        return np.asarray(_ROUNDINGS[self.mode](steps), dtype=np.int64)


_ROUNDINGS: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
    "DOWN": np.trunc,
    "HALF_UP": lambda x: np.sign(x) * np.floor(np.abs(x) + np.float32(0.5)),
    "HALF_DOWN": lambda x: np.sign(x) * np.ceil(np.abs(x) - np.float32(0.5)),
}


def _quantizer(op: Op, constants: list[NDArray[Any]]) -> _Quantizer:
    scale, zero, bits = (finite(op.where, "a quantizer's constant", array) for array in constants)
    if op.kind not in ("Quant", "IntQuant"):
        raise Refusal(f"{op.kind} has no integer form here", "use Quant nodes of 2 to 16 bits")
    mode = op.text("rounding_mode", "ROUND").upper()
    if mode not in _ROUNDINGS:
        raise Refusal(f"its rounding mode is {mode!r}", "use ROUND")
    if bits.size != 1 or zero.size != 1 or bits.item() != int(bits.item()) or zero.item() != int(zero.item()):
        raise Refusal("its bit width and zero point are no whole numbers for the whole tensor", "export it with one width")
    width, narrow, signed = int(bits.item()), bool(op.attributes.get("narrow", 1)), bool(op.attributes.get("signed", 1))
    if not MIN_BITS <= width <= MAX_BITS:
        raise Refusal(f"it has {width} bits", f"use {MIN_BITS} to {MAX_BITS}")
    if not np.all(scale > 0):
        raise Refusal("its scale must be positive", "train again")
    low = -(1 << (width - 1)) + narrow if signed else 0
    high = (1 << (width - 1)) - 1 if signed else (1 << width) - 1 - narrow
    return _Quantizer(scale.astype(np.float32), int(zero.item()), width, signed, low, high, mode)


# ------------------------------------------------------------------------------------------------------ to integers


@dataclass(frozen=True, slots=True, eq=False)
class _Affine:
    """``gain · (Σ w·x + bias) + shift`` of a layer for each output, limited, moved: what awaits its Quant."""

    op: Op
    layer: Layer
    gain: RealArray
    shift: RealArray
    limits: tuple[Pair | tuple[float, float], ...] = ()
    moves: tuple[Op, ...] = ()


class _QonnxReader(Reader):
    float32 = False

    def __init__(self, model: onnx.ModelProto, source: str, input_range: tuple[float, float]) -> None:
        super().__init__(model, source)
        self.range = input_range
        self.affine: dict[str, _Affine] = {}

    # ------------------------------------------------------------------------------------------- input, output

    def _input(self, value: onnx.ValueInfoProto) -> None:
        source = f"{self.source}: input {value.name!r}"
        dims = tuple(int(size.dim_value) for size in value.type.tensor_type.shape.dim)
        if not 2 <= len(dims) <= 4 or min(dims) < 1 or dims[0] != 1:
            text = "×".join(map(str, dims))
            raise CompileError(source, f"must be 1×C×H×W, 1×C×L or 1×C with fixed sizes, not {text}", "export it so")
        form = self._quantized_input(value.name) or format_for_range(*self.range, 8)
        axes = input_axes(len(dims), self._channels_last(value.name))
        low, high = (float(form.dequantize(np.asarray(raw))) for raw in (form.min_raw, form.max_raw))
        node = Input(
            name=self.builder.fresh(value.name), inputs=(), source=source,
            shape=map_shape(dims, axes), low=low, high=high, format=form,
        )  # fmt: skip
        self.terms[value.name] = Value(self.builder.add(node), dims, axes, form, real=True)

    def _quantized_input(self, name: str) -> Format | None:
        """The format of the one Quant that reads the input, if its whole range is used."""
        readers = [op for op in self.ops if name in op.inputs]
        if len(readers) != 1 or readers[0].kind not in ("Quant", "IntQuant"):
            return None
        try:
            quantizer = _quantizer(readers[0], [self._constant(one) for one in readers[0].inputs[1:4]])
            form = self._form(quantizer)
        except Refusal:
            return None
        return form if (quantizer.low, quantizer.high) == (form.min_raw, form.max_raw) else None

    def _form(self, quantizer: _Quantizer) -> Format:
        if quantizer.scale.size != 1:
            raise Refusal("activations have a scale for each channel", "quantize activations per tensor")
        if quantizer.mode not in ("ROUND", "HALF_EVEN"):
            raise Refusal(f"activations are rounded by {quantizer.mode}", "use ROUND")
        if quantizer.zero_point % 2 or not quantizer.low <= quantizer.zero_point <= quantizer.high:
            raise Refusal("its zero point is odd or outside its range", "use zero point 0")
        return Format(quantizer.bits, quantizer.signed, float(quantizer.scale.ravel()[0]), quantizer.zero_point)

    # --------------------------------------------------------------------------------------------------- Quant

    def _op_Quant(self, op: Op) -> None:
        quantizer = _quantizer(op, [self._constant(name) for name in op.inputs[1:4]])
        term = self.terms.get(op.inputs[0])
        if isinstance(term, np.ndarray):
            self.terms[op.outputs[0]] = self._quantized_weights(op, quantizer, term)
            return
        form, limits = self._form(quantizer), (quantizer.low, quantizer.high)
        if op.inputs[0] in self.affine:
            self.terms[op.outputs[0]] = self._quantized_layer(op, self.affine[op.inputs[0]], form, limits)
        elif isinstance(term, Pending):
            self.terms[op.outputs[0]] = replace(self._quantized_join(op, term, form, limits), real=True)
        else:
            value = self._real_or_stepped(op.inputs[0])
            whole = limits == (form.min_raw, form.max_raw)
            same = not value.steps and form == value.format and whole
            self.terms[op.outputs[0]] = value if same else self._quantized_function(op, value, quantizer, form)

    _op_IntQuant = _op_BipolarQuant = _op_Trunc = _op_FloatQuant = _op_Quant

    def _real_or_stepped(self, name: str) -> Value:
        value = self._value(name)
        if not value.real:
            raise Refusal("it quantizes integers", "export again")
        return value

    def _quantized_weights(self, op: Op, quantizer: _Quantizer, array: NDArray[Any]) -> Constant:
        shape, scale = array.shape, quantizer.scale
        finite(op.where, "its weights", array)
        axes = [at for at, size in enumerate((1,) * (array.ndim - scale.ndim) + scale.shape) if size > 1]
        if len(axes) > 1 or (axes and scale.size != shape[axes[0]]):
            raise Refusal("its scales run along several axes", "quantize weights per tensor or per output channel")
        raw = quantizer(array.astype(np.float32))
        return Constant(raw, scale.ravel(), np.array([quantizer.zero_point]), axes[0] if axes else 0, "int8")

    def _quantized_function(self, op: Op, value: Value, quantizer: _Quantizer, form: Format) -> Value:
        """Functions of one sample, then a Quant: a table."""
        x: NDArray[Any] = ort_math.dequantize(ort_math.every_raw(value.format)[:, None], value.format)
        if any(step.per_channel for step in value.steps):
            value = self._map(value, op.where)
        with np.errstate(all="ignore"):
            for step in value.steps:
                x = np.asarray(step.function(x), dtype=np.float32)
        if np.isnan(x).any():
            raise Refusal("its input is not a number for some samples", "choose a function that is defined everywhere")
        table = np.ascontiguousarray(quantizer(x).T)
        names = " then ".join(step.name for step in value.steps) or "requantize"
        return replace(value, node=self._table(value, table, form, names, op.where, op.outputs[0]), format=form, steps=())

    def _quantized_layer(self, op: Op, affine: _Affine, form: Format, limits: Pair) -> Value:
        """A convolution with everything up to its Quant."""
        layer = affine.layer
        low, high = self._cut_limits(affine.limits, form, limits)
        steps = np.abs(affine.gain) * layer.x.format.scale * layer.w_scale.astype(np.float64) / form.scale
        signs = np.sign(affine.gain).astype(np.int64)[:, None, None, None]
        scale = np.where(steps > 0, steps, 1.0)
        w_ohwi = layer.w_ohwi * np.where(steps[:, None, None, None] > 0, signs, 0)
        zeros = np.zeros(len(w_ohwi), dtype=np.int64)
        name = affine.moves[0].inputs[0] if affine.moves else op.outputs[0]
        offset = affine.shift / form.scale
        node = self._conv_like(affine.op, layer, name, form, (low, high), "float64", w_ohwi, zeros, scale, offset)
        value = Value(node, layer.dims, layer.axes, form, real=True)
        for move in affine.moves:
            self.terms[move.inputs[0]] = value
            super()._rule(move)
            value = self._value(move.outputs[0])
        return value

    def _cut_limits(self, clips: tuple[tuple[float, float], ...], form: Format, limits: Pair) -> Pair:
        """The raw limits with those of the clips in front of a Quant.

        Rounding never reverses an order, so a limit rounds to the limit of what is rounded.
        """
        low, high = limits
        for least, most in clips:
            bounds = (_raw_limit(bound, form, limits) for bound in (least, most))
            low, high = max(low, next(bounds)), min(high, next(bounds))
        if low > high:
            raise Refusal("its clip leaves nothing", "quantize the range that the clip leaves")
        return low, high

    def _quantized_join(self, op: Op, pending: Pending, form: Format, limits: Pair) -> Value:
        name = op.outputs[0]
        node = pending.make(name, form)
        made = self.builder.nodes[-1]
        if isinstance(made, QAdd | QAveragePool):
            low, high = self._cut_limits(pending.limits, form, limits)
            self.builder.nodes[-1] = replace(made, low=low, high=high)
        return Value(node, pending.dims, pending.axes, form)

    # ---------------------------------------------------------------------------------------------------- layers

    def _rule(self, op: Op) -> None:
        if op.kind in MOVES and op.inputs[0] in self.affine:
            affine = self._sole(op.inputs[0])
            self._await(op, replace(affine, moves=(*affine.moves, op)))
            return
        super()._rule(op)

    def _sole(self, name: str) -> _Affine:
        if self.uses[name] > 1:
            raise Refusal("its real input is also read elsewhere", "quantize it once and read that")
        return self.affine[name]

    def _await(self, op: Op, affine: _Affine) -> None:
        name = op.outputs[0]
        self.affine[name] = affine
        self.terms[name] = Pending(_unquantized, affine.layer.x, affine.layer.dims, affine.layer.axes)

    def _op_Conv(self, op: Op) -> None:
        layer = self._convolution(op, self._real(op.inputs[0]), self._dequantized(op.inputs[1]))
        self._layer(op, layer, op.inputs[2] if len(op.inputs) > 2 else "")

    def _op_MatMul(self, op: Op) -> None:
        self._layer(op, self._dense(op, self._real(op.inputs[0]), self._dequantized(op.inputs[1])), "")

    def _op_Gemm(self, op: Op) -> None:
        x, weight = self._real(op.inputs[0]), self._dequantized(op.inputs[1])
        if op.attributes.get("transA", 0) or any(float(op.attributes.get(one, 1.0)) != 1.0 for one in ("alpha", "beta")):
            raise Refusal("it transposes its input or scales", "leave transA, alpha and beta out")
        if op.attributes.get("transB", 0):
            weight = replace(weight, raw=weight.raw.T, axis=1 - weight.axis)
        self._layer(op, self._dense(op, x, weight), op.inputs[2] if len(op.inputs) > 2 else "")

    def _layer(self, op: Op, layer: Layer, bias: str) -> None:
        outputs = len(layer.w_ohwi)
        term = self.terms.get(bias) if bias else np.zeros(outputs)
        if isinstance(term, Constant):  # a quantized bias is a real one
            term = term.reals
        if not isinstance(term, np.ndarray) or term.size not in (1, outputs):
            raise Refusal("its bias does not fit its outputs", "export again")
        shift = np.broadcast_to(finite(op.where, "its bias", term).ravel(), (outputs,))
        self._await(op, _Affine(op, layer, np.ones(outputs), shift))

    def _op_BatchNormalization(self, op: Op) -> None:
        if op.inputs[0] not in self.affine or self.affine[op.inputs[0]].limits or self.affine[op.inputs[0]].moves:
            raise Refusal("it does not follow a convolution", "put it behind one, or fold it")
        gamma, beta, mean, var = (finite(op.where, "its statistics", self._constant(name)) for name in op.inputs[1:5])
        if np.any(var < 0):
            raise Refusal("its variances are negative", "train again")
        gain = gamma / np.sqrt(var + float(op.attributes.get("epsilon", 1e-5)))
        self._scaled(op, op.inputs[0], gain, beta - mean * gain)

    def _scaled(self, op: Op, name: str, gain: RealArray, shift: RealArray) -> None:
        affine = self._sole(name)
        if affine.limits or affine.moves:
            raise Refusal("it follows a function", "put it behind the convolution")
        if any(array.size not in (1, len(affine.gain)) for array in (gain, shift)):
            raise Refusal("its constants do not fit the channels", "export again")
        self._await(op, replace(affine, gain=affine.gain * gain, shift=affine.shift * gain + shift))

    def _float_constant(self, op: Op) -> None:
        """``Mul``, ``Add`` … by constants: behind a layer they are part of it."""
        swapped = isinstance(self.terms.get(op.inputs[0]), np.ndarray)
        name, other = op.inputs[::-1] if swapped else op.inputs
        if name not in self.affine:
            super()._float_constant(op)
            return
        array = finite(op.where, "its constant", self._constant(other))
        numbers = array.ravel() if array.size == 1 else self._per_channel(array, self._like(name))
        match op.kind, swapped:
            case "Mul", _:
                self._scaled(op, name, numbers, np.zeros(1))
            case "Div", False if np.all(numbers != 0):
                self._scaled(op, name, 1.0 / numbers, np.zeros(1))
            case ("Add", _) | ("Sub", False):
                self._scaled(op, name, np.ones(1), numbers if op.kind == "Add" else -numbers)
            case "Sub", True:
                self._scaled(op, name, -np.ones(1), numbers)
            case _:
                raise Refusal("it divides by its input, or by zero", "leave it out")

    _op_Sub = _op_Div = _float_constant

    def _like(self, name: str) -> Value:
        layer = self.affine[name].layer
        return replace(layer.x, dims=layer.dims, axes=layer.axes)

    def _clip(self, op: Op, low: float, high: float) -> None:
        if op.inputs[0] in self.affine:
            affine = self._sole(op.inputs[0])
            self._await(op, replace(affine, limits=(*affine.limits, (low, high))))
        else:
            super()._clip(op, low, high)

    def _joined(self, op: Op, a: Value, b: Value, form: Format, multiply: bool, name: str) -> str:
        if multiply:
            raise Refusal("it multiplies two tensors", "use the ONNX quantizers (QDQ) for products")
        node = QAdd(
            name=self.builder.fresh(name), inputs=(a.node, b.node), source=op.where, low=form.min_raw, high=form.max_raw,
            format=form, rounding="float64", ratios=(a.format.scale / form.scale, b.format.scale / form.scale),
        )  # fmt: skip
        return self.builder.add(node)

    def _arithmetic(self, op: Op, multiply: bool) -> None:
        terms = [self.terms.get(name) for name in op.inputs]
        for name, term in zip(op.inputs, terms, strict=True):
            if isinstance(term, Constant):  # a quantized constant is a real one
                self.terms[name] = term.reals
        if not all(isinstance(term, Value) for term in terms):
            self._float_constant(op)
            return
        a, b = (self._real(name) for name in op.inputs)
        a, b = self._same_size(op, a, b, multiply=False)
        self.terms[op.outputs[0]] = Pending(lambda name, form: self._joined(op, a, b, form, multiply, name), a, a.dims, a.axes)

    def _average(self, op: Op, value: Value, kernel: tuple[int, ...] | None) -> Pending:
        pending = super()._average(op, value, kernel)

        def make(name: str, form: Format) -> str:
            node = pending.make(name, form)
            pool = self.builder.nodes[-1]
            if isinstance(pool, QAveragePool):  # in real arithmetic
                ratio = value.format.scale / form.scale
                self.builder.nodes[-1] = replace(pool, rounding="float64", ratio=ratio)
            return node

        return replace(pending, make=make)


def _unquantized(name: str, form: Format) -> str:
    raise Refusal("no Quant follows it", "quantize its output")


def _raw_limit(bound: float, form: Format, limits: Pair) -> int:
    """Where a real limit rounds to, within a Quant's own limits."""
    if math.isinf(bound):
        return limits[0] if bound < 0 else limits[1]
    return int(np.clip(np.rint(bound / form.scale + form.zero_point), *limits))


# --------------------------------------------------------------------------------------------------------- to reals


def _without_quant(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The same model in ONNX's own operators."""
    import onnx
    from onnx import helper, numpy_helper

    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    arrays = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    fresh: dict[str, NDArray[Any]] = {}

    def steps(name: str, into: str, quantizer: _Quantizer) -> Iterator[onnx.NodeProto]:
        zero, low, high = (np.asarray(n, dtype=np.float32) for n in (quantizer.zero_point, quantizer.low, quantizer.high))
        chain: list[tuple[str, tuple[NDArray[Any], ...]]] = [("Div", (quantizer.scale,)), ("Add", (zero,))]
        chain += [("Clip", (low, high)), ("Round", ()), ("Sub", (zero,)), ("Mul", (quantizer.scale,))]
        if not quantizer.zero_point:
            chain = [step for step in chain if step[0] not in ("Add", "Sub")]
        for at, (kind, constants) in enumerate(chain):
            names = [f"{into}__{kind}{number}" for number in range(len(constants))]
            fresh.update(zip(names, constants, strict=True))
            result = into if at == len(chain) - 1 else f"{into}__{kind}"
            yield helper.make_node(kind, [name, *names], [result], name=result)
            name = result

    for node in model.graph.node:
        if node.domain not in DOMAINS:
            nodes.append(node)
            continue
        op = decoded(node, source)
        try:
            if any(name not in arrays for name in node.input[1:4]):
                raise Refusal("its constants are computed", "fold the constants")
            quantizer = _quantizer(op, [arrays[name] for name in node.input[1:4]])
            if node.input[0] in arrays:
                raw = quantizer(arrays[node.input[0]].astype(np.float32))
                fresh[node.output[0]] = (raw.astype(np.float32) - np.float32(quantizer.zero_point)) * quantizer.scale
            elif quantizer.mode not in ("ROUND", "HALF_EVEN"):
                raise Refusal(f"activations are rounded by {quantizer.mode}", "use ROUND")
            else:
                nodes.extend(steps(node.input[0], node.output[0], quantizer))
        except Refusal as refusal:
            raise CompileError(op.where, refusal.what, refusal.nearest) from refusal
    del lowered.graph.node[:]
    lowered.graph.node.extend(nodes)
    lowered.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in fresh.items())
    return lowered


