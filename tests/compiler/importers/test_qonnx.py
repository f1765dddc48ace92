"""QONNX models: the integers of the imported graph equal those of the qonnx package's executor, ties of float32 apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import Graph, QAdd, QConv2D, QTable
from convfold.compiler.importers.onnx import read_onnx
from convfold.compiler.importers.onnx_load import load_onnx
from convfold.compiler.importers.qonnx import is_qonnx, read_qonnx, real_qonnx
from convfold.compiler.numbers import Format
from convfold.sim import golden
from tests.models import find_models

qonnx_exec = pytest.importorskip("qonnx.core.onnx_exec")

DOMAIN = "qonnx.custom_op.general"
Arrays = dict[str, Any]
Real = NDArray[np.float32]


class Net:
    """A model in the making; weights and quantizers get names of their own."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: Arrays = {}
        self.dims = dims

    def array(self, value: Any) -> str:
        name = f"k{len(self.arrays)}"
        self.arrays[name] = np.asarray(value, dtype=np.float32)
        return name

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def quant(
        self, x: str, scale: Any, bits: float, *, signed: int = 0, narrow: int = 0, zero: float = 0.0, mode: str = "ROUND"
    ) -> str:
        constants = (self.array(scale), self.array(zero), self.array(bits))
        return self.node("Quant", x, *constants, domain=DOMAIN, signed=signed, narrow=narrow, rounding_mode=mode)

    def model(self, output: str) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.dims)
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        arrays = [numpy_helper.from_array(array, name) for name, array in self.arrays.items()]
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(helper.make_graph(self.nodes, "net", [image], [result], arrays), opset_imports=opsets)
        model.ir_version = 8
        return model


def executed(model: onnx.ModelProto, x: Real, monkeypatch: pytest.MonkeyPatch) -> dict[str, Real]:
    """Every tensor, by the qonnx package; it writes models newer than its own onnxruntime reads."""
    wrapper_of = pytest.importorskip("qonnx.core.modelwrapper").ModelWrapper
    infer = pytest.importorskip("qonnx.transformation.infer_shapes").InferShapes
    make = qonnx_exec.qonnx_make_model

    def older(*positional: Any, **named: Any) -> onnx.ModelProto:
        made: onnx.ModelProto = make(*positional, **named)
        made.ir_version = 8
        return made

    monkeypatch.setattr(qonnx_exec, "qonnx_make_model", older)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.domain == "onnx.brevitas":
            node.domain = DOMAIN
    wrapper = wrapper_of(copy).transform(infer())
    inputs = {copy.graph.input[0].name: x}
    tensors: dict[str, Real] = qonnx_exec.execute_onnx(wrapper, inputs, return_full_exec_context=True)
    return tensors


def small(seed: int) -> tuple[onnx.ModelProto, str]:
    """Convolutions with per-channel weights, batch norms of both signs, rectifiers, a residual, a pool and a dense layer."""
    rng = np.random.default_rng(seed)
    net = Net((1, 3, 6, 6))

    def layer(x: str, inputs: int, outputs: int, scale: float, bits: int) -> str:
        w = net.array(rng.normal(size=(outputs, inputs, 3, 3)) * 0.2)
        quantized = net.quant(w, rng.uniform(0.01, 0.03, (outputs, 1, 1, 1)), 4, signed=1, narrow=1)
        y = net.node("Conv", x, quantized, net.array(rng.normal(size=outputs) * 0.1), pads=[1, 1, 1, 1])
        gamma, beta, mean = rng.normal(size=(3, outputs)) * np.array([[1.0], [0.1], [1.0]])
        norm = (gamma, beta, mean, rng.uniform(0.5, 2, outputs))
        y = net.node("BatchNormalization", y, *(net.array(one) for one in norm))
        return net.quant(net.node("Relu", y), scale, bits)

    first = layer(net.quant("x", 1 / 255, 8), 3, 4, 0.11, 4)
    second = layer(first, 4, 4, 0.05, 5)
    total = net.quant(net.node("Add", first, second), 0.13, 4, signed=1, narrow=1)
    curved = net.quant(net.node("Sigmoid", total), 1 / 63, 6)
    pooled = net.node("MaxPool", curved, kernel_shape=[2, 2], strides=[2, 2])
    flat = net.node("Flatten", pooled)
    weights = net.quant(net.array(rng.normal(size=(36, 5)) * 0.2), 0.05, 3, signed=1, narrow=1)
    scores = net.node("Add", net.node("MatMul", flat, weights), net.array(rng.normal(size=5)))
    output = net.quant(scores, 0.02, 8, signed=1, narrow=0)
    return net.model(output), output


def raw_steps(real: Real, form: Format) -> NDArray[np.int64]:
    return np.asarray(np.rint(real / np.float32(form.scale)), dtype=np.int64) + form.zero_point


@pytest.mark.parametrize("seed", range(8))
def test_small_networks_equal_the_executor(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, output = small(seed)
    assert is_qonnx(model)
    graph = read_qonnx(model, "small", (0.0, 1.0))
    raw = np.random.default_rng(seed).integers(0, 256, (1, 6, 6, 3))
    x = (raw.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
    theirs = executed(model, x, monkeypatch)
    ours = golden.trace(graph, raw)
    quants = [name for name in ours if name.startswith("quant")]
    assert output in quants
    assert len(quants) >= 5
    for name in quants:
        expected = raw_steps(theirs[name], graph.format_of(name))
        assert np.array_equal(ours[name].transpose(0, 3, 1, 2).reshape(expected.shape), expected), name
    real = evaluate(real_qonnx(model, "small", "small", (0.0, 1.0)), x.transpose(0, 2, 3, 1).astype(np.float64))
    ((values),) = real.values()
    assert np.max(np.abs(values.reshape(theirs[output].shape) - theirs[output])) <= 1e-5


def test_negative_gains_flip_the_weights() -> None:
    graph = read_qonnx(small(0)[0], "small", (0.0, 1.0))
    layers = [node for node in graph.nodes if isinstance(node, QConv2D)]
    assert {node.rounding for node in layers} == {"float64"}
    assert all(np.all(graph.weights[f"{node.name}.scale"] > 0) for node in layers)
    assert layers[0].weight_bits <= 4
    assert [node.format.bits for node in layers] == [4, 5, 8]
    assert sum(isinstance(node, QAdd) for node in graph.nodes) == 1
    assert sum(isinstance(node, QTable) for node in graph.nodes) == 1


# ---------------------------------------------------------------------------------------------------- a network of others


def espcn() -> Path:
    folder = find_models()
    if folder is None:
        pytest.skip("the folder of real models is not here")
    return folder / "qonnx_espcn" / "subpixel_quant_model.onnx"


def cropped(size: int) -> onnx.ModelProto:
    """The super-resolution network for a smaller image."""
    model = load_onnx(espcn())
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    del model.graph.value_info[:]
    return model


def test_the_brevitas_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """All inner tensors are equal; an output differs only where the exact value lies on a tie, as far as float32 can tell."""
    model = cropped(48)
    graph = read_qonnx(model, "espcn", (0.0, 1.0))
    real = real_qonnx(model, "espcn", "espcn", (0.0, 1.0))
    raw = np.random.default_rng(1).integers(0, 256, (1, 48, 48, 3))
    x = (raw / np.float32(255)).astype(np.float32)
    theirs = executed(model, x.transpose(0, 3, 1, 2), monkeypatch)
    ours = golden.trace(graph, raw)
    for name, tensor in (("x_3", "x.3"), ("x_12", "x.12"), ("x_20", "x.20")):
        expected = raw_steps(theirs[tensor], graph.format_of(name))
        assert len(np.unique(expected)) > 8
        assert np.array_equal(ours[name].transpose(0, 3, 1, 2), expected), name
    (output,), (last,) = graph.outputs, real.outputs
    expected = raw_steps(theirs["79"], graph.format_of(output)).transpose(0, 2, 3, 1)
    different = ours[output] != expected
    steps = evaluate(real, x.astype(np.float64), keep=["_79__Clip", last])
    from_tie = np.abs(steps["_79__Clip"] - np.floor(steps["_79__Clip"]) - 0.5)
    assert np.mean(different) < 1e-3
    assert np.all(from_tie[different] < 1e-4)
    assert np.array_equal(np.rint(steps[last] * 255)[from_tie > 1e-4], expected[from_tie > 1e-4])
    error = np.abs(steps[last] - theirs["79"].transpose(0, 2, 3, 1))
    assert np.all(error[~different] <= 1e-5)


def test_the_file_becomes_integers() -> None:
    graph = read_onnx(espcn(), (0.0, 1.0))
    assert [node.op for node in graph.nodes] == ["input", *["qconv2d"] * 4, "depth_to_space"]
    assert graph.input.format == Format(8, False, 1 / 255)
    assert graph.shapes[graph.outputs[0]] == (256, 256, 3)


# ---------------------------------------------------------------------------------------------------------------- refusals


def refusal(net: Net, output: str) -> str:
    with pytest.raises(CompileError) as caught:
        read_qonnx(net.model(output), "net.onnx", (0.0, 1.0))
    return caught.value.message


def test_activations_that_do_not_round_to_the_nearest_are_refused() -> None:
    net = Net((1, 2, 4, 4))
    relu = net.node("Relu", net.quant("x", 0.1, 4))
    assert re.search("^1 node cannot be imported:\n  - .*rounded by FLOOR", refusal(net, net.quant(relu, 0.1, 4, mode="FLOOR")))


def test_one_bit_is_refused() -> None:
    net = Net((1, 2, 4, 4))
    assert re.search("^1 node cannot be imported:\n  - .*it has 1 bits", refusal(net, net.quant("x", 0.1, 1, signed=1)))


def test_bipolar_quantizers_are_refused() -> None:
    net = Net((1, 2, 4, 4))
    node = net.node("BipolarQuant", "x", net.array(0.1), domain=DOMAIN)
    assert re.search("^1 node cannot be imported:\n  - .*BipolarQuant", refusal(net, node))


def test_unquantized_weights_and_outputs_are_refused() -> None:
    net = Net((1, 2, 4, 4))
    conv = net.node("Conv", net.quant("x", 0.1, 4), net.array(np.ones((2, 2, 1, 1))))
    assert re.search("^1 node cannot be imported:\n  - Conv .* is not quantized", refusal(net, conv))
    net = Net((1, 2, 4, 4))
    weights = net.quant(net.array(np.ones((2, 2, 1, 1))), 0.5, 3, signed=1)
    conv = net.node("Conv", net.quant("x", 0.1, 4), weights)
    assert re.search("^1 node cannot be imported:\n  - output .*: it is computed in float32", refusal(net, conv))


def test_weights_take_every_rounding() -> None:
    weights = np.array([0.26, 0.74, -0.26, -0.74, 0.25, -0.25, 0.5, -0.5], dtype=np.float32).reshape(8, 1, 1, 1)
    expected = {"ROUND": [1, 1, -1, -1, 0, 0, 1, -1], "FLOOR": [0, 1, -1, -2, 0, -1, 1, -1], "CEIL": [1, 2, 0, -1, 1, 0, 1, -1]}
    for mode, integers in expected.items():
        net = Net((1, 1, 2, 2))
        quantized = net.quant(net.array(weights), 0.5, 4, signed=1, mode=mode)
        conv = net.node("Conv", net.quant("x", 0.1, 4), quantized)
        graph: Graph = read_qonnx(net.model(net.quant(conv, 0.1, 8, signed=1)), "net", (0.0, 1.0))
        (layer,) = (node for node in graph.nodes if isinstance(node, QConv2D))
        assert graph.weights[f"{layer.name}.w"].ravel().tolist() == integers
