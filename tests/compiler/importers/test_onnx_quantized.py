"""Quantized ONNX models: the golden model of the imported graph equals onnxruntime in every number."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convfold.compiler.errors import CompileError
from convfold.compiler.graph import Graph, QConv2D, QTable
from convfold.compiler.importers import ort_math
from convfold.compiler.importers.onnx import read_onnx
from convfold.compiler.importers.onnx_quantized import is_quantized, read_quantized
from convfold.compiler.numbers import Format
from convfold.sim import golden
from tests.onnx_random import compare, random_model, session

MICROSOFT = "com.microsoft"
Arrays = dict[str, Any]
Node = onnx.NodeProto
NUMBERS = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8, np.dtype(np.float32): TensorProto.FLOAT}


def network(
    nodes: Sequence[Node], arrays: Arrays, inputs: dict[str, tuple[Any, Sequence[int]]], output: tuple[str, Any]
) -> onnx.ModelProto:
    """A model of these nodes; ``inputs`` and ``output`` with their types."""
    infos = [helper.make_tensor_value_info(name, NUMBERS[np.dtype(kind)], dims) for name, (kind, dims) in inputs.items()]
    result = helper.make_tensor_value_info(output[0], NUMBERS[np.dtype(output[1])], None)
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(list(nodes), "net", infos, [result], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    return model


def quantizer(name: str, result: str, scale: float = 0.1, zero: int = 0) -> tuple[Node, dict[str, Any]]:
    return _affine("QuantizeLinear", name, result, scale, zero)


def dequantizer(name: str, result: str, scale: float = 0.1, zero: int = 0) -> tuple[Node, dict[str, Any]]:
    return _affine("DequantizeLinear", name, result, scale, zero)


def _affine(op: str, name: str, result: str, scale: float, zero: int) -> tuple[Node, dict[str, Any]]:
    arrays = {f"{result}_s": np.float32(scale), f"{result}_z": np.uint8(zero)}
    return helper.make_node(op, [name, *arrays], [result], name=result), arrays


def between(op: Node, extra: Arrays | None = None, zero: int = 0, dims: Sequence[int] = (1, 2, 4, 4)) -> onnx.ModelProto:
    """``x → QuantizeLinear → DequantizeLinear → op → QuantizeLinear → DequantizeLinear``."""
    parts = [
        quantizer("x", "xq"),
        dequantizer("xq", "real"),
        (op, extra or {}),
        quantizer("y", "yq", 0.05, zero),
        dequantizer("yq", "out", 0.05, zero),
    ]
    arrays = {name: array for _, part in parts for name, array in part.items()}
    return network([node for node, _ in parts], arrays, {"x": (np.float32, dims)}, ("out", np.float32))


# ------------------------------------------------------------------------------------------------------- random networks


@pytest.mark.parametrize("first", range(0, 180, 12))
def test_random_networks_are_equal(first: int) -> None:
    for seed in range(first, first + 12):
        model = random_model(seed)
        result = compare(model, read_quantized(model, f"seed {seed}"))
        assert result.numbers
        assert result.different == 0, f"seed {seed}"


def test_one_changed_weight_is_found() -> None:
    found = 0
    for seed in range(30):
        model = random_model(seed)
        graph = read_quantized(model, "changed")
        layers = [node for node in graph.nodes if isinstance(node, QConv2D) and node.name in graph.outputs]
        if not layers:
            continue
        weights = dict(graph.weights)
        changed = weights[f"{layers[0].name}.b"].copy()
        changed += 2000
        weights[f"{layers[0].name}.b"] = changed
        other = Graph(graph.name, graph.nodes, graph.outputs, weights)
        found += compare(model, other).different > 0
    assert found >= 3


def test_a_seed_makes_the_same_network_again() -> None:
    assert random_model(5).SerializeToString() == random_model(5).SerializeToString()


# ---------------------------------------------------------------------------------------------------------- definitions


def formats(signed: bool, seed: int, count: int) -> list[tuple[Format, Format, Format]]:
    """Formats of two operands and a result; every third has powers of two, whose results tie often."""
    rng = np.random.default_rng(seed)
    low = -128 if signed else 0
    made = []
    for number in range(count):
        scales = rng.uniform(0.005, 0.05, 3) if number % 3 else np.array([0.5, 0.25, 0.5])
        zeros = rng.integers(low, low + 256, 3)
        a, b, y = (Format(8, signed, float(np.float32(s)), int(z)) for s, z in zip(scales, zeros, strict=True))
        made.append((a, b, y))
    return made


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("op", "formula"), [("QLinearAdd", ort_math.add_raw), ("QLinearMul", ort_math.multiply_raw)])
def test_every_pair_of_operands(op: str, formula: Callable[..., NDArray[np.int64]], signed: bool) -> None:
    kind: Any = np.int8 if signed else np.uint8
    low = -128 if signed else 0
    a_raw, b_raw = np.meshgrid(np.arange(low, low + 256), np.arange(low, low + 256), indexing="ij")
    dims = (1, 1, 256, 256)
    for a, b, y in formats(signed, 3, 9):
        arrays = {"as": np.float32(a.scale), "az": kind(a.zero_point), "bs": np.float32(b.scale), "bz": kind(b.zero_point)}
        arrays |= {"ys": np.float32(y.scale), "yz": kind(y.zero_point)}
        node = helper.make_node(op, ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"], domain=MICROSOFT)
        model = network([node], arrays, {"a": (kind, dims), "b": (kind, dims)}, ("y", kind))
        (theirs,) = session(model).run(None, {"a": a_raw.reshape(dims).astype(kind), "b": b_raw.reshape(dims).astype(kind)})
        assert np.array_equal(formula(a_raw, b_raw, a, b, y), theirs.reshape(256, 256))


@pytest.mark.parametrize("op", "Sigmoid Tanh HardSwish HardSigmoid LeakyRelu Abs Sqrt Elu Softplus Exp".split())
def test_every_input_of_a_function(op: str) -> None:
    """A table of 256 integers equals onnxruntime's, or is refused because float32 does not decide it."""
    made = 0
    for zero in (0, 100, 128):
        model = between(helper.make_node(op, ["real"], ["y"], name="f"), zero=zero, dims=(1, 1, 16, 16))
        try:
            graph = read_quantized(model, "function")
        except CompileError as error:
            assert "in float32 is not known" in error.message
            continue
        made += 1
        raw = np.arange(256).reshape(1, 16, 16, 1)
        (name,) = graph.outputs
        (theirs,) = session(model).run(None, {"x": (raw.reshape(1, 1, 16, 16) * np.float32(0.1)).astype(np.float32)})
        form = graph.format_of(name)
        ours = golden.run(graph, raw)[name].reshape(1, 1, 16, 16)
        real = ((ours - form.zero_point).astype(np.float32) * np.float32(form.scale)).astype(np.float32)
        assert np.array_equal(real, theirs)
    assert made


def test_averages_that_tie_are_refused() -> None:
    alike = Format(8, False, 0.1, 0)
    assert not ort_math.average_is_sure(alike, alike, {4}, {4: 4})
    assert ort_math.average_is_sure(alike, alike, {3}, {3: 3})


# --------------------------------------------------------------------------------------------------------------- layouts


def test_a_dense_layer_reads_the_map_without_a_flatten() -> None:
    rng = np.random.default_rng(0)
    arrays = {"w": rng.integers(-128, 128, (18, 5)).astype(np.int8), "ws": np.float32(0.02), "wz": np.int8(0)}
    arrays |= {"s": np.float32(0.1), "z": np.uint8(7), "ys": np.float32(0.5), "yz": np.uint8(100)}
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("QLinearMatMul", ["flat", "s", "z", "w", "ws", "wz", "ys", "yz"], ["y"]),
    ]
    model = network(nodes, arrays, {"image": (np.uint8, (1, 2, 3, 3))}, ("y", np.uint8))
    graph = read_quantized(model, "dense")
    assert [node.op for node in graph.nodes] == ["input", "qconv2d"]
    assert graph.weights["y.w"].shape == (1, 1, 5, 3, 3, 2)
    assert compare(model, graph).different == 0


def test_channels_last_inputs_lose_their_transpose() -> None:
    arrays = {"s": np.float32(0.1), "z": np.uint8(7)}
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("MaxPool", ["nchw"], ["pooled"], kernel_shape=[2, 2]),
        helper.make_node("DequantizeLinear", ["pooled", "s", "z"], ["y"]),
    ]
    model = network(nodes, arrays, {"image": (np.uint8, (1, 5, 4, 3))}, ("y", np.float32))
    graph = read_quantized(model, "last")
    assert [node.op for node in graph.nodes] == ["input", "max_pool"]
    assert graph.input.shape == (5, 4, 3)
    raw = np.random.default_rng(0).integers(0, 256, (1, 5, 4, 3))
    (theirs,) = session(model).run(None, {"image": raw.astype(np.uint8)})
    ours = graph.format_of("pooled").dequantize(golden.run(graph, raw)["pooled"]).astype(np.float32)
    assert np.array_equal(ours.transpose(0, 3, 1, 2), theirs)


def test_a_softmax_at_the_end_is_a_head() -> None:
    parts = [quantizer("x", "xq"), dequantizer("xq", "real"), (one("Softmax", axis=1), {})]
    every = {name: array for _, part in parts for name, array in part.items()}
    nodes = [node for node, _ in parts]
    graph = read_quantized(network(nodes, every, {"x": (np.float32, (1, 5))}, ("y", np.float32)), "head")
    ((name, head),) = graph.heads
    assert name in graph.outputs
    assert head.beta == 1.0


def test_the_quantizers_behind_a_last_softmax_are_left_out() -> None:
    model = between(one("Softmax", axis=1), dims=(1, 5))
    graph = read_quantized(model, "head")
    assert [node.op for node in graph.nodes] == ["input"]
    assert [name for name, _ in graph.heads] == list(graph.outputs)


def test_a_softmax_inside_is_refused() -> None:
    model = between(one("Softmax", axis=1), dims=(1, 5))
    model.graph.node.append(helper.make_node("Abs", ["out"], ["abs"]))
    model.graph.output[0].name = "abs"
    assert re.search(r"^1 node cannot be imported:\n  - Softmax .*it is not the last operator", refusal(model))


def test_files_are_read(tmp_path: Path) -> None:
    model = random_model(2)
    assert is_quantized(model)
    onnx.save(model, tmp_path / "net.onnx")
    graph = read_onnx(tmp_path / "net.onnx")
    assert compare(model, graph).different == 0


def test_constants_become_tables_of_one_row_a_channel() -> None:
    rng = np.random.default_rng(4)
    constant = rng.integers(0, 256, (1, 2, 1, 1)).astype(np.uint8)
    node, arrays = dequantizer("k", "kr", 0.03, 9)
    model = between(helper.make_node("Add", ["real", "kr"], ["y"]), {"k": constant} | arrays, zero=3)
    at = [one.name for one in model.graph.node].index("real")
    model.graph.node.insert(at, node)
    graph = read_quantized(model, "constant")
    (table,) = (one for one in graph.nodes if isinstance(one, QTable))
    assert graph.weights[f"{table.name}.table"].shape == (2, 256)
    raw = rng.integers(0, 256, (1, 4, 4, 2))
    (theirs,) = session(model).run(None, {"x": (raw.transpose(0, 3, 1, 2) * np.float32(0.1)).astype(np.float32)})
    ours = golden.run(graph, raw)[table.name].transpose(0, 3, 1, 2)
    assert np.array_equal(((ours - 3).astype(np.float32) * np.float32(0.05)).astype(np.float32), theirs)


# --------------------------------------------------------------------------------------------------------------- refusals


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(CompileError) as caught:
        read_quantized(model, "net.onnx")
    return caught.value.message


def one(op: str, *extra: str, **attributes: Any) -> Node:
    return helper.make_node(op, ["real", *extra], ["y"], **attributes)


SUM = "the order of the sum decides"
REFUSED: dict[str, tuple[Node, Arrays, int, str]] = {
    "mean": (one("ReduceMean", axes=[2, 3]), {}, 0, SUM),
    "cut": (helper.make_node("Relu", ["pooled"], ["y"]), {}, 9, "the clip in front of it cuts into its range"),
    "ties": (one("AveragePool", kernel_shape=[2, 2]), {}, 0, SUM),
    "matrix": (one("MatMul", "w"), {"w": np.ones((4, 4), np.float32)}, 0, "operand 'w' is not quantized"),
    "reflect": (one("Pad", "p", mode="reflect"), {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, 0, "mode reflect"),
    "linear": (one("Resize", "", "s", mode="linear"), {"s": np.array([1, 1, 2, 2], np.float32)}, 0, "interpolates"),
    "unknown": (one("Cos"), {}, 0, "no integer form of this operator"),
    "transposed": (one("ConvTranspose", "w"), {"w": np.ones((2, 2, 2, 2), np.float32)}, 0, "no integer form"),
    "rows": (one("Concat", "real", axis=2), {}, 0, "joins along rows or columns"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_float32_decides_is_refused_by_name(case: str) -> None:
    node, arrays, zero, words = REFUSED[case]
    model = between(node, arrays, zero)
    if case == "cut":
        at = [one.name for one in model.graph.node].index("real")
        model.graph.node.insert(at + 1, helper.make_node("GlobalAveragePool", ["real"], ["pooled"], name="pool"))
    assert re.search(rf"^1 node cannot be imported:\n  - .*{re.escape(words)}", refusal(model))


def test_all_unsupported_nodes_are_listed_at_once() -> None:
    parts = [quantizer("x", "xq"), dequantizer("xq", "real")]
    nodes = [node for node, _ in parts]
    arrays = {name: array for _, part in parts for name, array in part.items()}
    nodes += [helper.make_node("Cos", ["real"], ["a"]), helper.make_node("Sin", ["real"], ["b"])]
    model = network(nodes, arrays, {"x": (np.float32, (1, 2, 4, 4))}, ("a", np.float32))
    assert re.search(r"^2 nodes cannot be imported:\n  - Cos .*\n  - Sin ", refusal(model))


def test_dynamic_quantization_is_refused() -> None:
    node = helper.make_node("ConvInteger", ["image", "w"], ["y"])
    model = network([node], {"w": np.ones((1, 1, 1, 1), np.uint8)}, {"image": (np.uint8, (1, 1, 4, 4))}, ("y", np.uint8))
    assert "leaves 32-bit sums to float32 operators" in refusal(model)


def test_activations_of_16_bits_are_refused() -> None:
    arrays = {"s": np.float32(0.1), "z": np.uint16(0)}
    parts = (("QuantizeLinear", "x", "q"), ("DequantizeLinear", "q", "y"))
    nodes = [helper.make_node(op, [name, "s", "z"], [result]) for op, name, result in parts]
    model = network(nodes, arrays, {"x": (np.float32, (1, 2))}, ("y", np.float32))
    assert re.search("^activations are uint16 in steps of float32$", refusal(model))


def test_a_malformed_node_is_refused_by_name() -> None:
    model = between(helper.make_node("Reshape", ["real"], ["y"]))
    assert re.search(r"^1 node cannot be imported:\n  - Reshape .*: it is no such operator", refusal(model))
