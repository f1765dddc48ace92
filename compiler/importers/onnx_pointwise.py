"""Float ONNX operators that take one sample at a time, or the same sample of several tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..errors import CompileError
from ..fields import LARGEST
from ..graph import Add, BatchNorm, Clip, Multiply, Pointwise, Prelu, ScaleBias
from ..numbers import RealArray
from .onnx_layout import Refusal, Value
from .onnx_net import EXPORT, Handler, Net, Op, Result

UNBOUNDED = float(np.finfo(np.float32).max)
"""Limits of this size and more are none: how exporters write infinity."""


# ------------------------------------------------------------------------------------------------ sample by sample


def _pointwise(function: str, *parameters: tuple[str, float]) -> Handler:
    """A function of `convfold.compiler.functions`, its parameters attributes with defaults."""

    def handler(net: Net, op: Op) -> Result:
        values = tuple(op.number(name, default) for name, default in parameters)
        return _applied(net, op, op.value(), function, *values)

    return handler


def _applied(net: Net, op: Op, x: Value, function: str, *parameters: float) -> Value:
    return replace(x, tensor=net.emit(op, Pointwise, [x.tensor], function=function, parameters=parameters))


def _hard_swish(net: Net, op: Op) -> Result:
    return _applied(net, op, op.value(), "hard_swish")


def _gelu(net: Net, op: Op) -> Result:
    if op.text("approximate", "none") != "none":
        raise Refusal("the tanh approximation of Gelu is not supported", "use approximate = none")
    return _applied(net, op, op.value(), "gelu")


def _swish(net: Net, op: Op) -> Result:
    if op.number("alpha", 1.0) != 1.0:
        raise Refusal("alpha must be 1", "scale the input by a Mul")
    return _applied(net, op, op.value(), "swish")


def _pow(net: Net, op: Op) -> Result:
    functions = {2.0: "square", 0.5: "sqrt"}
    exponent = op.scalar(1)
    if exponent == 1.0:
        return op.value()
    if exponent not in functions:
        raise Refusal("only the powers 1, 2 and 0.5 are supported", "multiply the tensor by itself")
    return _applied(net, op, op.value(), functions[exponent])


def _clipped(net: Net, op: Op, x: Value, low: float, high: float) -> Value:
    low, high = (math.copysign(math.inf, limit) if abs(limit) >= UNBOUNDED else limit for limit in (low, high))
    if not low <= high or math.inf in (low, -high):
        raise Refusal(f"its limits {low:g} and {high:g} leave one value", "let min be below max")
    if low == -high == -math.inf:
        return x
    return replace(x, tensor=net.emit(op, Clip, [x.tensor], low=low, high=high))


def _relu(net: Net, op: Op) -> Result:
    return _clipped(net, op, op.value(), 0.0, math.inf)


def _clip(net: Net, op: Op) -> Result:
    if op.version < 11:
        return _clipped(net, op, op.value(), _limit(op, "min", -math.inf), _limit(op, "max", math.inf))
    low, high = op.scalar(1), op.scalar(2)
    return _clipped(net, op, op.value(), -math.inf if low is None else low, math.inf if high is None else high)


def _limit(op: Op, name: str, default: float) -> float:
    """An attribute that may be infinite."""
    value = op.attributes.get(name, default)
    return float(value) if isinstance(value, float) and math.isinf(value) else op.number(name, default)


def _extreme(least: bool) -> Handler:
    """Max and Min with one constant number: a clip."""

    def handler(net: Net, op: Op) -> Result:
        values = [index for index, tensor in enumerate(op.inputs) if isinstance(tensor, Value)]
        if len(values) != 1 or len(op.inputs) != 2:
            if len(op.inputs) == 1:
                return op.value()
            raise Refusal("only one tensor and one constant are supported", "write max(a, b) as a + Relu(b - a)")
        bound = op.scalar(1 - values[0])
        if bound is None:
            raise Refusal("its constant is missing", EXPORT)
        limits = (-math.inf, bound) if least else (bound, math.inf)
        return _clipped(net, op, op.value(values[0]), *limits)

    return handler


def _prelu(net: Net, op: Op) -> Result:
    x, slope = net.spread(op, op.value(), op.weights(1))
    return replace(x, tensor=net.emit(op, Prelu, [x.tensor], {"slope": slope}))


def _negate(net: Net, op: Op) -> Result:
    return _scaled(net, op, op.value(), np.array(-1.0), np.array(0.0))


def _scaled(net: Net, op: Op, x: Value, scale: RealArray, bias: RealArray) -> Value:
    """``scale · x + bias``, both broadcast as ONNX does."""
    limit = np.abs(scale).max(initial=0.0)
    if not limit <= LARGEST:
        raise CompileError(op.source, f"a factor must not exceed {LARGEST:g}, but one is {limit:g}", "do not divide by 0")
    scale, bias = np.broadcast_arrays(scale, bias)
    x, factors = net.spread(op, x, scale)
    x, terms = net.spread(op, x, bias)
    return replace(x, tensor=net.emit(op, ScaleBias, [x.tensor], {"scale": factors, "bias": terms}))


def _dropout(net: Net, op: Op) -> Result:
    training = op.constant(2)
    if training is not None and training.any():
        raise Refusal("it is in training mode", "export for inference")
    return op.value(moved=True)


def _identity(net: Net, op: Op) -> Result:
    return op.value(moved=True)


def _cast(net: Net, op: Op) -> Result:
    if op.integer("to", 1) not in (1, 10, 11, 16):  # float, float16, double, bfloat16
        raise Refusal("only casts to a float type are supported", "leave the cast out")
    return op.value(moved=True)


# ------------------------------------------------------------------------------------------------ joins of two


def _add(net: Net, op: Op) -> Result:
    """Add and Sum: tensors, and constants as a bias."""
    values = [tensor for tensor in op.inputs if isinstance(tensor, Value)]
    bias = [op.weights(index) for index, tensor in enumerate(op.inputs) if not isinstance(tensor, Value)]
    for index, tensor in enumerate(op.inputs):
        if isinstance(tensor, Value):
            op.value(index)
    total = values[0]
    if len(values) > 1:
        aligned = net.aligned(op, values)
        total = replace(aligned[0], tensor=net.emit(op, Add, [value.tensor for value in aligned]))
    for array in bias:
        total = _scaled(net, op, total, np.array(1.0), array)
    return total


def _mean(net: Net, op: Op) -> Result:
    total = _add(net, op)
    assert isinstance(total, Value)
    return _scaled(net, op, total, np.array(1.0 / len(op.inputs)), np.array(0.0))


def _sub(net: Net, op: Op) -> Result:
    if isinstance(op.inputs[0], Value) and isinstance(op.inputs[1], Value):
        a, b = net.aligned(op, [op.value(0), op.value(1)])
        minus = _scaled(net, op, b, np.array(-1.0), np.array(0.0))
        return replace(a, tensor=net.emit(op, Add, [a.tensor, minus.tensor]))
    if isinstance(op.inputs[0], Value):
        return _scaled(net, op, op.value(0), np.array(1.0), -op.weights(1))
    return _scaled(net, op, op.value(1), np.array(-1.0), op.weights(0))


def _mul(net: Net, op: Op) -> Result:
    if not isinstance(op.inputs[0], Value):
        return _scaled(net, op, op.value(1), op.weights(0), np.array(0.0))
    if not isinstance(op.inputs[1], Value):
        return _scaled(net, op, op.value(0), op.weights(1), np.array(0.0))
    if op.inputs[0] == op.inputs[1]:
        return _applied(net, op, op.value(0), "square")
    a, b = net.aligned(op, [op.value(0), op.value(1)])
    for x, gate in ((a, b), (b, a)):
        if function := _gated(net, x, gate):
            return _applied(net, op, x, function)
        if (source := _gelu_gate(net, gate)) is not None:
            if source == x.tensor:
                return _scaled(net, op, _applied(net, op, x, "gelu"), np.array(2.0), np.array(0.0))
            half = net.made(x.tensor)
            if half.inputs == (source,) and net.scales(half, 0.5, 0.0):
                return _applied(net, op, replace(x, tensor=source), "gelu")
    return replace(a, tensor=net.emit(op, Multiply, [a.tensor, b.tensor]))


def _gated(net: Net, x: Value, gate: Value) -> str | None:
    """``x · sigmoid(x)`` is swish, ``x · hard_sigmoid(x)`` hard swish."""
    node = net.made(gate.tensor)
    if not isinstance(node, Pointwise) or node.inputs != (x.tensor,):
        return None
    if node.function == "hard_sigmoid" and math.isclose(node.parameters[0], 1 / 6, rel_tol=1e-6) and node.parameters[1] == 0.5:
        return "hard_swish"
    return "swish" if node.function == "sigmoid" else None


def _gelu_gate(net: Net, gate: Value) -> str | None:
    """The tensor ``x`` where the gate is ``1 + erf(x / √2)``, as exporters write a Gelu out."""
    last = net.made(gate.tensor)
    erf = net.made(last.inputs[0]) if net.scales(last, 1.0, 1.0) else None
    first = net.made(erf.inputs[0]) if isinstance(erf, Pointwise) and erf.function == "erf" else None
    return first.inputs[0] if first is not None and net.scales(first, math.sqrt(0.5), 0.0) else None


def _div(net: Net, op: Op) -> Result:
    if not isinstance(op.inputs[0], Value) or isinstance(op.inputs[1], Value):
        raise Refusal("only division by a constant is supported", "divide by a constant, or multiply")
    with np.errstate(divide="ignore"):
        return _scaled(net, op, op.value(0), 1.0 / op.weights(1), np.array(0.0))


def _batch_norm(net: Net, op: Op) -> Result:
    if op.integer("training_mode", 0) or not op.integer("spatial", 1):
        raise Refusal("it is in training mode, or not spatial", "export for inference")
    value = op.value()
    column = (-1, *(1,) * (len(value.axes) - 2))  # the channels are the second dimension
    if len(value.axes) < 2:
        raise Refusal("its input has no channels", "use N,C,H,W")
    arrays: dict[str, RealArray] = {}
    for index, part in enumerate(("gamma", "beta", "mean", "var"), start=1):
        vector = op.weights(index)
        if vector.shape != value.dims[1:2]:
            message = f"input {index} must have shape {list(value.dims[1:2])}, not {list(vector.shape)}"
            raise CompileError(op.source, message, "export the model again")
        value, arrays[part] = net.spread(op, value, vector.reshape(column))
    epsilon = op.number("epsilon", 1e-5)
    return replace(value, tensor=net.emit(op, BatchNorm, [value.tensor], arrays, epsilon=epsilon))


POINTWISE: Mapping[str, Handler] = {
    "Abs": _pointwise("abs"),
    "Add": _add,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Div": _div,
    "Dropout": _dropout,
    "Elu": _pointwise("elu", ("alpha", 1.0)),
    "Erf": _pointwise("erf"),
    "Exp": _pointwise("exp"),
    "Gelu": _gelu,
    "HardSigmoid": _pointwise("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    "HardSwish": _hard_swish,
    "Identity": _identity,
    "LeakyRelu": _pointwise("leaky_relu", ("alpha", 0.01)),
    "Log": _pointwise("log"),
    "Max": _extreme(least=False),
    "Mean": _mean,
    "Min": _extreme(least=True),
    "Mul": _mul,
    "Neg": _negate,
    "PRelu": _prelu,
    "Pow": _pow,
    "Relu": _relu,
    "Round": _pointwise("round"),
    "Selu": _pointwise("selu", ("alpha", 1.6732632), ("gamma", 1.0507010)),
    "Sigmoid": _pointwise("sigmoid"),
    "Softplus": _pointwise("softplus"),
    "Softsign": _pointwise("softsign"),
    "Sqrt": _pointwise("sqrt"),
    "Sub": _sub,
    "Sum": _add,
    "Swish": _swish,
    "Tanh": _pointwise("tanh"),
}
