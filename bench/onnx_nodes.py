"""ONNX's own node tests through the importer: which pass, and which are refused with what reason.

    python bench/onnx_nodes.py          # the core operators of convolutional networks
    python bench/onnx_nodes.py --all    # every operator that the importer knows

Each case is a model of one node with inputs and outputs. Here its first input is the network's, of any batch where the first
dimension of all outputs is the same; the other inputs are weights. Nodes that join tensors of one shape get all of them, as
parts of one input. The graph is evaluated in float64 and compared at 1e-5; a case that is not refused must be equal.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import Graph
from convfold.compiler.importers.onnx import read_onnx
from convfold.compiler.importers.onnx_operators import OPERATORS
from convfold.compiler.numbers import RealArray
from convfold.sim.golden import run

CORE = (
    "Conv ConvTranspose QLinearConv MaxPool AveragePool GlobalAveragePool GlobalMaxPool Gemm MatMul BatchNormalization "
    "Relu Clip LeakyRelu PRelu Sigmoid Tanh HardSigmoid HardSwish Softmax Add Mul Concat Flatten Pad DepthToSpace SpaceToDepth"
).split()
"""The core operators of convolutional networks: 166 cases of one node in onnx 1.23."""

JOINS = ("Add", "Concat", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum")
TOLERANCE = 1e-5
ROUNDED = {"test_averagepool_2d_ceil_last_window_starts_on_pad": 1e-4}
"""What ONNX itself states with only so many digits."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One node, what goes in and what must come out."""

    name: str
    operator: str
    model: ModelProto
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a case: ``passed``, ``refused`` or ``wrong``, with the reason or the greatest error."""

    name: str
    operator: str
    state: str
    reason: str


def cases(operators: Sequence[str]) -> Iterator[Case]:
    """All cases of a single node of these operators, in ONNX's order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX divides by zero on purpose while it makes them
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    for case in found:
        nodes = case.model.graph.node if case.model else []
        if case.model and case.data_sets and len(nodes) == 1 and nodes[0].op_type in operators and not nodes[0].domain:
            inputs, outputs = case.data_sets[0]
            if all(isinstance(array, np.ndarray | np.generic) for array in (*inputs, *outputs)):
                arrays = [tuple(np.asarray(array) for array in part) for part in (inputs, outputs)]
                yield Case(case.name, nodes[0].op_type, case.model, arrays[0], arrays[1])


def network(case: Case) -> tuple[ModelProto, Array]:
    """The case as a network of one input, and that input."""
    model = ModelProto.FromString(case.model.SerializeToString())
    graph = model.graph
    model.ir_version = 10
    joined = case.operator in JOINS and len(case.inputs) > 1 and len({array.shape for array in case.inputs}) == 1
    x = case.inputs[0]
    if joined and x.ndim:
        axis = min(1, x.ndim - 1)
        x = np.concatenate(case.inputs, axis=axis)
        parts = [info.name for info in graph.input]
        sizes = numpy_helper.from_array(np.full(len(parts), case.inputs[0].shape[axis]), "sizes")
        split = helper.make_node("Split", ["joined", "sizes"], parts, axis=axis)
        node = graph.node.pop()
        graph.node.extend([split, node])
        graph.initializer.append(sizes)
        model.opset_import[0].version = max(model.opset_import[0].version, 13)
        kind = graph.input[0].type.tensor_type.elem_type
        del graph.input[:]
        graph.input.append(helper.make_tensor_value_info("joined", kind, list(x.shape)))
    else:
        for info, array in zip(graph.input[1:], case.inputs[1:], strict=True):
            graph.initializer.append(numpy_helper.from_array(array, info.name))
        del graph.input[1:]
    if x.ndim >= 2 and all(array.ndim >= 2 and array.shape[0] == x.shape[0] for array in case.outputs):
        graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return model, x


def judge(case: Case, folder: Path) -> Verdict:
    """Import a case, evaluate it, compare."""
    model, x = network(case)
    path = folder / "case.onnx"
    onnx.save(model, path)
    try:
        graph = read_onnx(path)
    except CompileError as error:
        return Verdict(case.name, case.operator, "refused", error.message.replace("\n", " "))
    if graph.input.format is not None:
        return _judge_integers(case, graph, x)
    results = evaluate(graph, as_stream(np.asarray(x, np.float64), graph.input.shape)[0])
    worst = 0.0
    for name, expected in zip(graph.outputs, case.outputs, strict=True):
        result = results[name]
        if head := dict(graph.heads).get(name):
            powers = np.exp(head.beta * (result - result.max(axis=3, keepdims=True)))
            result = powers / powers.sum(axis=3, keepdims=True)
        worst = max(worst, error_of(result, np.asarray(expected, np.float64)))
    state = "passed" if worst <= ROUNDED.get(case.name, TOLERANCE) else "wrong"
    return Verdict(case.name, case.operator, state, f"{worst:.1e}")


def _judge_integers(case: Case, graph: Graph, x: Array) -> Verdict:
    (frames,) = (np.asarray(stream, np.int64) for stream in as_stream(x, graph.input.shape)[:1])
    (result,) = run(graph, frames).values()
    expected = as_stream(case.outputs[0], result.shape[1:])[0]
    same = np.array_equal(result, np.asarray(expected, np.int64))
    return Verdict(case.name, case.operator, "passed" if same else "wrong", "equal" if same else "differs")


def as_stream(array: Array, shape: Sequence[int]) -> list[Array]:
    """An ONNX tensor as the batch of maps it is: channels last, and flat in its own order."""
    if array.ndim < 2:
        return [array.reshape(1, *shape)]
    last = np.moveaxis(array, 1, -1)
    return [form.reshape(-1, *shape) for form in (last, array)]


def error_of(result: RealArray, expected: RealArray) -> float:
    """The greatest difference relative to the greatest value, infinities being equal. An output may keep its own order."""
    if result.size != expected.size:
        return float("inf")
    errors = []
    for form in as_stream(expected, result.shape[1:]):
        with np.errstate(invalid="ignore"):
            difference = np.where(result == form, 0.0, np.abs(result - form))
        scale = np.max(np.abs(form), initial=1.0, where=np.isfinite(form))
        errors.append(float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0) / scale))
    return min(errors)


def judge_all(operators: Sequence[str]) -> list[Verdict]:
    with tempfile.TemporaryDirectory() as folder:
        return [judge(case, Path(folder)) for case in cases(operators)]


def main() -> int:
    verdicts = judge_all([*CORE, *OPERATORS] if "--all" in sys.argv[1:] else CORE)
    width = max(len(verdict.name) for verdict in verdicts)
    for verdict in verdicts:
        print(f"{verdict.name:{width}}  {verdict.state:7}  {verdict.reason}")
    states = [verdict.state for verdict in verdicts]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("passed", "refused", "wrong"))
    print(f"{len(verdicts)} cases: {counts}")
    return 1 if "wrong" in states else 0


if __name__ == "__main__":
    sys.exit(main())
