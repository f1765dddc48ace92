"""What an ONNX node makes of constants, by onnx's own reference operators: an allow-list, and a cap on what comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ..errors import CompileError
from .common import MAX_WEIGHTS

MAX_FOLDED = 1 << 22
"""Elements of a folded tensor that none of its inputs has already."""

SAME = frozenset(
    "Abs Cast Ceil Clip Concat Constant Exp Flatten Floor Gather Identity Log Neg Not Reciprocal Relu Reshape Round Sigmoid "
    "Sign Slice Split Sqrt Squeeze Sum Tanh Transpose Unsqueeze ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum".split()
)
"""They make no more than they read."""

BROADCAST = frozenset("Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub Where Xor".split())
"""They make what their inputs broadcast to."""

Constants = Mapping[str, NDArray[Any]]


def fold_node(
    node: NodeProto, constants: Constants, shapes: Mapping[str, Sequence[int]], opset: int
) -> dict[str, NDArray[Any]] | None:
    """The outputs of a node by name, if they follow from ``constants``, and from ``shapes`` for `Shape` and `Size`.

    ``None`` where they do not, where the operator is not on the list, or where it fails: whoever reads the node then says so.
    """
    if node.domain not in ("", "ai.onnx") or not node.output:
        return None
    if node.op_type == "Constant":
        value = _constant(node)
        return None if value is None else {node.output[0]: value}
    if node.op_type in ("Shape", "Size") and node.input and node.input[0] in shapes:
        blank = np.broadcast_to(np.zeros((), np.float32), tuple(shapes[node.input[0]]))
        return _run(node, {node.input[0]: blank}, opset)
    inputs = {name: constants[name] for name in node.input if name in constants}
    if any(name and name not in constants for name in node.input) or not inputs:
        return None
    try:
        size = _size(node.op_type, [inputs[name] for name in node.input if name])
    except (ValueError, IndexError, OverflowError):  # shapes that do not broadcast, or a missing input
        return None
    return _run(node, inputs, opset) if size <= max(MAX_FOLDED, *(array.size for array in inputs.values())) else None


def check_folded(results: Constants, source: str) -> None:
    """*Raises* ``CompileError`` when all that was folded takes more memory than weights may."""
    if sum(array.size for array in results.values()) > MAX_WEIGHTS:
        raise CompileError(source, f"computes more than {MAX_WEIGHTS} constants", "fold them before the export")


def _size(operator: str, inputs: Sequence[NDArray[Any]]) -> float:
    """How many elements the result has at most; infinite for operators that are not folded."""
    if operator in SAME and operator != "Gather":
        return sum(array.size for array in inputs)
    if operator == "Gather":
        return inputs[0].size * inputs[1].size
    if operator in BROADCAST:
        return math.prod(np.broadcast_shapes(*(array.shape for array in inputs)))
    if operator == "ConstantOfShape":
        return math.prod(abs(int(size)) for size in inputs[0].flat)
    if operator == "Expand":
        return inputs[0].size * math.prod(max(1, abs(int(size))) for size in inputs[1].flat)
    if operator == "Tile":
        return inputs[0].size * math.prod(abs(int(times)) for times in inputs[1].flat)
    if operator == "Range" and len(inputs) == 3:
        start, limit, delta = (float(array.reshape(-1)[0]) for array in inputs)
        return abs((limit - start) / delta) if delta else math.inf
    return math.inf


def _constant(node: NodeProto) -> NDArray[Any] | None:
    """The value of a `Constant`, in any of the forms it may have."""
    if len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    match attribute.name:
        case "value":
            return numpy_helper.to_array(attribute.t)
        case "value_float" | "value_floats":
            return np.asarray(helper.get_attribute_value(attribute), np.float32)
        case "value_int" | "value_ints":
            return np.asarray(helper.get_attribute_value(attribute), np.int64)
    return None


def _run(node: NodeProto, inputs: Constants, opset: int) -> dict[str, NDArray[Any]] | None:
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape))
        for name, array in inputs.items()
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output if name]
    graph = helper.make_graph([node], "node", infos, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):  # NaN and infinity are refused where they are used
            results = ReferenceEvaluator(model).run(None, dict(inputs))
    except Exception:  # whatever a wrong node does to the reference
        return None
    if not all(isinstance(array, np.ndarray | np.generic) for array in results):
        return None
    return {info.name: np.asarray(array) for info, array in zip(outputs, results, strict=True)}
