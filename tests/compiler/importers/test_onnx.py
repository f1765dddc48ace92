"""Float ONNX models: equal to onnxruntime, no transposition left, and whatever is wrong with a file refused by type."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, parser

from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import Graph
from convfold.compiler.importers.onnx import read_onnx
from convfold.compiler.numbers import RealArray

TOLERANCE = 1e-5


def network(inputs: str, body: str, opset: int = 17, outputs: str = "y") -> ModelProto:
    """A model of ONNX's text: its first input is the network's, all others are random weights."""
    made = ", ".join(f"float[] {name}" for name in outputs.split())
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> net ({inputs}) => ({made}) {{ {body} }}'
    model = parser.parse_model(text)
    rng = np.random.default_rng(7)
    for info in list(model.graph.input)[1:]:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        array = rng.uniform(0.1, 1.0, shape) * rng.choice((-1.0, 1.0), shape)
        if info.name.startswith("var"):
            array = np.abs(array)
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), info.name))
        model.graph.input.remove(info)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


def imported(model: ModelProto, folder: Path) -> Graph:
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return read_onnx(path)


def difference(model: ModelProto, graph: Graph, x: np.ndarray) -> float:
    """The greatest difference from onnxruntime, relative to its greatest output, over all outputs."""
    model.ir_version = min(model.ir_version, 10)  # the newest that onnxruntime reads is older than the newest onnx writes
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: x})
    results = evaluate(graph, stream(x, graph.input.shape))
    worst = 0.0
    for name, array in zip(graph.outputs, expected, strict=True):
        result = results[name]
        if head := dict(graph.heads).get(name):
            powers = np.exp(head.beta * result)
            result = powers / powers.sum(axis=3, keepdims=True)
        scale = max(1.0, float(np.abs(array).max()))
        worst = max(worst, float(np.abs(result - stream(array, result.shape[1:])).max()) / scale)
    return worst


def stream(array: np.ndarray, shape: tuple[int, ...]) -> RealArray:
    """An ``N,C,H,W`` tensor (or ``N,C,L``, ``N,C``) as the batch of maps it is."""
    order = (0, *range(2, array.ndim), 1)
    return np.asarray(array.transpose(order).reshape(-1, *shape), np.float64)


# ------------------------------------------------------------------------------------------------ equal to onnxruntime

NETWORKS: dict[str, tuple[str, str]] = {
    "a dense layer reads a map in the file's order": (
        "float[1,3,4,5] x, float[60,7] w, float[7] b",
        "f = Flatten(x) y = Gemm(f, w, b)",
    ),
    "a matrix product over pixels": (
        "float[1,3,4,5] x, float[3,6] w",
        "t = Transpose<perm=[0,2,3,1]>(x) m = MatMul(t, w) y = Transpose<perm=[0,3,1,2]>(m)",
    ),
    "channel shuffle": (
        "float[1,6,4,5] x, float[6,6,1,1] w",
        (
            "s = Constant<value_ints=[1,3,2,4,5]>() b = Constant<value_ints=[0,-1,4,5]>() r = Reshape(x, s) "
            "t = Transpose<perm=[0,2,1,3,4]>(r) u = Reshape(t, b) y = Conv(u, w)"
        ),
    ),
    "pixel shuffle written out": (
        "float[1,8,3,5] x, float[4,2,1,1] w",
        (
            "s = Constant<value_ints=[1,2,2,2,3,5]>() b = Constant<value_ints=[1,2,6,10]>() r = Reshape(x, s) "
            "t = Transpose<perm=[0,1,4,2,5,3]>(r) u = Reshape(t, b) y = Conv(u, w)"
        ),
    ),
    "space to depth written out": (
        "float[1,2,4,6] x, float[4,8,1,1] w",
        (
            "s = Constant<value_ints=[1,2,2,2,3,2]>() b = Constant<value_ints=[1,8,2,3]>() r = Reshape(x, s) "
            "t = Transpose<perm=[0,1,3,5,2,4]>(r) u = Reshape(t, b) y = Conv(u, w)"
        ),
    ),
    "a batch norm between flatten and dense": (
        "float[1,2,3,3] x, float[18] g, float[18] o, float[18] m, float[18] var_v, float[18,4] w",
        "f = Flatten(x) n = BatchNormalization(f, g, o, m, var_v) y = MatMul(n, w)",
    ),
    "squeeze and excite": (
        "float[1,4,5,6] x, float[4,4,1,1] w",
        "p = GlobalAveragePool(x) c = Conv(p, w) s = Sigmoid(c) y = Mul(x, s)",
    ),
    "a gate of one channel": ("float[1,4,5,6] x, float[1,4,1,1] w", "c = Conv(x, w) s = Tanh(c) y = Mul(x, s)"),
    "swish": ("float[1,4,5,6] x", "s = Sigmoid(x) y = Mul(s, x)"),
    "gelu written out": (
        "float[1,4,5,6] x",
        (
            "r = Constant<value_float=1.4142135>() o = Constant<value_float=1.0>() h = Constant<value_float=0.5>() "
            "d = Div(x, r) e = Erf(d) a = Add(e, o) m = Mul(x, a) y = Mul(m, h)"
        ),
    ),
    "a residual with a shortcut padded by channels": (
        "float[1,4,9,8] x, float[8,4,3,3] w",
        (
            "c = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w) z = Constant<value_ints=[0,0]>() e = Constant<value_ints=[9,8]>() "
            "a = Constant<value_ints=[2,3]>() t = Constant<value_ints=[2,2]>() s = Slice(x, z, e, a, t) "
            "q = Constant<value_ints=[0,2,0,0,0,2,0,0]>() p = Pad(s, q) d = Add(c, p) y = Relu(d)"
        ),
    ),
    "groups, dilation and uneven padding": (
        "float[1,4,9,8] x, float[6,2,3,2] w, float[6] b",
        "y = Conv<group=2, dilations=[2,1], pads=[0,2,3,1], strides=[1,2]>(x, w, b)",
    ),
    "transposed convolution": (
        "float[1,4,4,5] x, float[4,3,4,3] w, float[6] b",
        "y = ConvTranspose<group=2, strides=[2,3], pads=[1,0,2,1], output_padding=[1,2]>(x, w, b)",
    ),
    "transposed convolution in one dimension": (
        "float[1,4,9] x, float[4,3,5] w",
        'y = ConvTranspose<strides=[3], auto_pad="SAME_UPPER">(x, w)',
    ),
    "one dimension": (
        "float[1,3,17] x, float[4,3,5] w, float[4,3] v",
        (
            'c = Conv<strides=[2], auto_pad="SAME_LOWER">(x, w) r = Elu(c) p = MaxPool<kernel_shape=[2], strides=[2]>(r) '
            "a = Constant<value_ints=[2]>() m = ReduceMean<axes=[2], keepdims=0>(p) y = MatMul(m, v)"
        ),
    ),
    "pools whose last windows stick out": (
        "float[1,2,6,7] x",
        (
            "m = MaxPool<kernel_shape=[3,2], strides=[2,2], ceil_mode=1>(x) "
            "y = AveragePool<kernel_shape=[2,2], strides=[2,3], pads=[1,0,0,1], ceil_mode=1>(m)"
        ),
    ),
    "padding that counts, and windows that stick out": (
        "float[1,2,6,8] x",
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1, count_include_pad=1>(x)",
    ),
    "split, and both halves joined again": (
        "float[1,6,4,4] x, float[2,2,3,3] w",
        "n = Constant<value_ints=[2,4]>() a, b = Split<axis=1>(x, n) c = Conv<pads=[1,1,1,1]>(a, w) y = Concat<axis=1>(b, c)",
    ),
    "subtraction of branches and constants": (
        "float[1,3,4,4] x, float[3,3,1,1] w, float[3,1,1] k",
        "c = Conv(x, w) s = Sub(x, c) t = Sub(k, s) y = Div(t, k)",
    ),
    "nearest resize by sizes": (
        "float[1,3,4,5] x",
        (
            "s = Constant<value_ints=[1,3,8,15]>() "
            'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , , s)'
        ),
    ),
    "every third pixel": (
        "float[1,3,9,6] x",
        (
            "s = Constant<value_floats=[1.0,1.0,0.33333334,0.5]>() "
            'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)'
        ),
    ),
    "a sum over rows": ("float[1,3,4,5] x", "a = Constant<value_ints=[2]>() y = ReduceSum<keepdims=1>(x, a)"),
    "a mean over channels": ("float[1,3,4,5] x", "y = ReduceMean<axes=[1], keepdims=1>(x)"),
    "softmax at the end": ("float[1,3,4,5] x, float[60,7] w", "f = Flatten(x) m = MatMul(f, w) y = Softmax<axis=1>(m)"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_onnxruntime(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    model = network(*NETWORKS[name])
    graph = imported(model, tmp_path)
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    for _ in range(3):
        x = rng.uniform(-1, 1, dims).astype(np.float32)
        assert difference(model, graph, x) <= TOLERANCE


OPSET_7 = {
    "clip": ("float[1,3,4,4] x", "y = Clip<min=-0.5, max=0.25>(x)"),
    "upsample": ("float[1,3,4,4] x", 'y = Upsample<mode="nearest", scales=[1.0,1.0,2.0,3.0]>(x)'),
    "pad": ("float[1,3,4,4] x", "y = Pad<pads=[0,0,1,2,0,0,0,1], value=0.5>(x)"),
    "slice": ("float[1,3,4,4] x", "y = Slice<starts=[1,-3], ends=[3,9], axes=[1,2]>(x)"),
    "squeeze": ("float[1,3,4,4] x", "p = GlobalMaxPool(x) y = Squeeze<axes=[2,3]>(p)"),
    "split": ("float[1,3,4,4] x", "a, y = Split<axis=1, split=[1,2]>(x)"),
    "softmax": ("float[1,3,1,1] x", "y = Softmax(x)"),
    "reduce": ("float[1,3,4,4] x", "y = ReduceMax<axes=[2,3]>(x)"),
}


@pytest.mark.parametrize("name", OPSET_7)
def test_old_opsets_are_read(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    model = network(*OPSET_7[name], opset=7)
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert difference(model, imported(model, tmp_path), rng.uniform(-1, 1, dims).astype(np.float32)) <= TOLERANCE


MODELS = ("cntk_mnist/model.onnx", "qonnx_espcn/subpixel_float_model.onnx", "qonnx_espcn/nn_resize_float_model.onnx")


@pytest.mark.parametrize("name", MODELS)
def test_real_models_equal_onnxruntime(name: str, models_dir: Path, rng: np.random.Generator) -> None:
    model = onnx.load(models_dir / name)
    graph = read_onnx(models_dir / name)
    x = rng.normal(size=(1, graph.input.shape[2], *graph.input.shape[:2])).astype(np.float32)
    assert difference(model, graph, x) <= TOLERANCE


def test_a_real_model_gives_its_published_output(models_dir: Path) -> None:
    folder = models_dir / "cntk_mnist"
    x, y = (numpy_helper.to_array(onnx.load_tensor(folder / f"{part}_0.pb")) for part in ("input", "output"))
    graph = read_onnx(folder / "model.onnx", (0.0, 255.0))
    (result,) = evaluate(graph, stream(x, graph.input.shape)).values()
    assert np.abs(result.reshape(-1) - y.reshape(-1)).max() <= TOLERANCE * np.abs(y).max()
    assert (graph.input.low, graph.input.high) == (0.0, 255.0)


# ------------------------------------------------------------------------------------------------- what it becomes


def test_no_transposition_is_left(tmp_path: Path) -> None:
    body = (
        "t = Transpose<perm=[0,3,1,2]>(x) c = Conv(t, w) u = Transpose<perm=[0,2,3,1]>(c) d = Add(u, b) r = Relu(d) "
        "v = Transpose<perm=[0,3,1,2]>(r) y = MaxPool<kernel_shape=[2,2]>(v)"
    )
    graph = imported(network("float[N,6,8,3] x, float[4,3,3,3] w, float[4] b", body), tmp_path)
    assert str(graph).splitlines() == [
        "x: 6×8×3 = input()",
        "c: 4×6×4 = conv2d(x, 3×3)",
        "d: 4×6×4 = scale_bias(c)",
        "r: 4×6×4 = clip(d, 0 … inf)",
        "y: 3×5×4 = max_pool(r, 2×2, stride 1×1)",
        "return y",
    ]


def test_shapes_that_the_file_computes_are_folded(tmp_path: Path) -> None:
    body = (
        "s = Shape(x) z = Constant<value_int=0>() n = Gather(s, z) a = Constant<value_ints=[0]>() u = Unsqueeze(n, a) "
        "m = Constant<value_ints=[-1]>() c = Concat<axis=0>(u, m) f = Reshape(x, c) y = MatMul(f, w)"
    )
    graph = imported(network("float[N,2,3,4] x, float[24,5] w", body), tmp_path)
    assert [node.op for node in graph.nodes] == ["input", "dense"]


def test_several_outputs_and_a_head(tmp_path: Path) -> None:
    body = "c = Conv(x, w) y = Relu(c) p = GlobalAveragePool(y) f = Flatten(p) z = Softmax(f)"
    graph = imported(network("float[1,3,4,5] x, float[6,3,1,1] w", body, outputs="y z"), tmp_path)
    assert graph.outputs == ("y", "z")
    assert [name for name, _ in graph.heads] == ["z"]
    assert graph.node("z").op == "dropout"  # the logits


def test_names_of_the_file_are_made_legal(tmp_path: Path) -> None:
    model = network("float[1,3,4,4] x", "a = Relu(x) b = Relu(a) c = Relu(b) y = Relu(c)")
    for node, name in zip(model.graph.node, ("/conv1/Relu", "x #;\n`module`", "RELU", "relu"), strict=True):
        node.name = name
    graph = imported(model, tmp_path)
    assert [node.name for node in graph.nodes] == ["x", "conv1_Relu", "x_____module_", "RELU", "relu_2"]


def test_every_unsupported_node_is_listed(tmp_path: Path) -> None:
    body = (
        "a = Sin(x) b = Conv(a, w) i = InstanceNormalization(b, g, g) t = Transpose<perm=[0,2,1,3]>(i) c = Conv(t, v) "
        "y = LogSoftmax(c)"
    )
    model = network("float[1,3,4,4] x, float[4,3,1,1] w, float[4] g, float[2,4,1,1] v", body)
    with pytest.raises(CompileError) as caught:
        imported(model, tmp_path)
    order = "it needs the samples of 1×4×4×4 in another order than they stream in"
    assert str(caught.value).splitlines() == [
        "net.onnx: 4 nodes cannot be imported:",
        "  - Sin 'a' (1×3×4×4): this operator is not supported; replace it, or cut the network there",
        "  - InstanceNormalization 'i' (1×4×4×4): this operator is not supported; train with BatchNormalization",
        f"  - Conv 'c' (1×4×4×4): {order}; leave transpositions out, or flatten straight into a dense layer",
        "  - LogSoftmax 'y' (1×2×4×4): this operator is not supported; use Softmax: the host computes it",
        "  fix: change each node as said behind it, and export again",
    ]


REFUSED = {
    "Resize 'y' (1×3×4×4): interpolation 'linear' is not supported": "s = Constant<value_floats=[1.0,1.0,2.0,2.0]>() "
    'y = Resize<mode="linear">(x, , s)',
    "it repeats some samples more often than others": "s = Constant<value_floats=[1.0,1.0,1.5,2.0]>() "
    'y = Resize<mode="nearest">(x, , s)',
    "padding by 'reflect' is not supported": 'p = Constant<value_ints=[0,0,1,1,0,0,1,1]>() y = Pad<mode="reflect">(x, p)',
    "only channels can be joined": "r = Relu(x) y = Concat<axis=2>(x, r)",
    "dilated pooling is not supported": "y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)",
    "its indices are not made": "y, i = MaxPool<kernel_shape=[2,2]>(x) z = Relu(i)",
    "it follows a softmax": "s = Softmax<axis=1>(x) y = Relu(s)",
    "it runs over the batch": "y = Softmax<axis=0>(x)",
    "only division by a constant is supported": "r = Exp(x) y = Div(x, r)",
    "input 1 is not constant": "r = Relu(x) y = Conv(x, r)",
    "it runs backwards": "a = Constant<value_ints=[3]>() b = Constant<value_ints=[-9]>() c = Constant<value_ints=[-1]>() "
    "y = Slice(x, a, b, a, c)",
    "the tanh approximation of Gelu": 'y = Gelu<approximate="tanh">(x)',
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_expressed_is_refused(reason: str, tmp_path: Path) -> None:
    outputs = "z" if "z = " in REFUSED[reason] else "y"
    opset = 20 if "Gelu" in reason else 17
    with pytest.raises(CompileError, match=re.escape(reason)):
        imported(network("float[1,3,4,4] x", REFUSED[reason], opset, outputs), tmp_path)


# --------------------------------------------------------------------------------------------------- hostile files


def plain() -> ModelProto:
    return network("float[N,3,6,6] x, float[4,3,3,3] w, float[4] b", "c = Conv<strides=[1,1], group=1>(x, w, b) y = Relu(c)")


def set_attribute(name: str, *values: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        (attribute,) = (one for one in model.graph.node[0].attribute if one.name == name)
        if attribute.ints:
            attribute.ints[:] = values
        else:
            attribute.i = values[0]

    return change


def set_weight(value: float) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        array = numpy_helper.to_array(model.graph.initializer[0]).copy()
        array[1, 2, 0, 1] = value
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))

    return change


def set_dims(*dims: int) -> Callable[[ModelProto], None]:
    return lambda model: model.graph.initializer[0].dims.__setitem__(slice(None), dims)


def set_input(*dims: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, dims, strict=True):
            dim.dim_value = size

    return change


def circle(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def twice(model: ModelProto) -> None:
    model.graph.node[1].output[0] = "c"
    model.graph.output[0].name = "c"


def missing_output(model: ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def two_inputs(model: ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])
    model.graph.input[1].name = "other"
    model.graph.node[1].input[0] = "other"


def set_opset(version: int) -> Callable[[ModelProto], None]:
    return lambda model: setattr(model.opset_import[0], "version", version)


def set_type(kind: int) -> Callable[[ModelProto], None]:
    return lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", kind)


def set_tensor_type(kind: int) -> Callable[[ModelProto], None]:
    return lambda model: setattr(model.graph.initializer[0], "data_type", kind)


def sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add()


def functions(model: ModelProto) -> None:
    model.functions.add().name = "f"


def no_operator(model: ModelProto) -> None:
    model.graph.node[1].op_type = "`Nothing`\n"


def no_bias(model: ModelProto) -> None:
    model.graph.node[0].input[2] = "w"


def too_many_inputs(model: ModelProto) -> None:
    model.graph.node[1].input.append("x")


def text_for_number(model: ModelProto) -> None:
    (attribute,) = (one for one in model.graph.node[0].attribute if one.name == "group")
    attribute.type, attribute.s = onnx.AttributeProto.STRING, b"1"


HOSTILE: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "group 0": (set_attribute("group", 0), "net.onnx: Conv 'c': group must be 1 to 1048576, not [0]"),
    "group -1": (set_attribute("group", -1), "group must be 1 to 1048576, not [-1]"),
    "group 3": (set_attribute("group", 3), "weights [4, 3, 3, 3] in 3 groups do not fit 3 channels"),
    "stride 0": (set_attribute("strides", 1, 0), "strides must be 1 to 1048576, not [1, 0]"),
    "three strides": (set_attribute("strides", 1, 1, 1), "strides must be 2 numbers, not [1, 1, 1]"),
    "stride 2⁶²": (set_attribute("strides", 1 << 62, 1), "strides must be 1 to 1048576"),
    "NaN": (set_weight(float("nan")), "input 1 must hold numbers up to 1e+30, not nan at [1, 2, 0, 1]"),
    "infinity": (set_weight(float("inf")), "input 1 must hold numbers up to 1e+30, not inf"),
    "dims that lie": (set_dims(4, 3, 3, 4), "weights 'w' cannot be read: [4, 3, 3, 4] of float32 take 576 bytes, not 432"),
    "negative dims": (set_dims(4, 3, 3, -3), "weights 'w' must have sizes from 0, not [4, 3, 3, -3]"),
    "dims of 2⁶²": (set_dims(1 << 62, 3, 3, 3), "weights 'w' must have sizes from 0"),
    "dims of 2²⁷": (set_dims(1 << 27, 1, 1, 1), "must have at most 33554432 weights"),
    "an input of 0": (set_input(1, 3, 0, 6), "input 'x' must have sizes from 1"),
    "a negative input": (set_input(1, 3, -6, 6), "input 'x' must have sizes from 1"),
    "a huge input": (set_input(1, 3, 1 << 40, 1 << 40), "input 'x' must have sizes from 1"),
    "an input too small": (set_input(1, 3, 2, 6), "a 3×3 window does not fit into its 2×6 input"),
    "a batch of 2": (set_input(2, 3, 6, 6), "input 'x' must have a batch of 1 or a free one, not 2"),
    "other channels": (set_input(1, 5, 6, 6), "do not fit 5 channels"),
    "a circle": (circle, "Conv 'c': reads 'y', which no node before it makes"),
    "a tensor made twice": (twice, "Relu 'c': makes 'c', which there is already"),
    "no such output": (missing_output, "output 'nowhere' is made by no node"),
    "two inputs": (two_inputs, "must have exactly one input, not 2: 'x', 'other'"),
    "an old opset": (set_opset(6), "opset must be 7 to "),
    "a future opset": (set_opset(9999), "opset must be 7 to "),
    "an integer input": (set_type(TensorProto.INT64), "must hold float numbers"),
    "an input of strings": (set_type(TensorProto.STRING), "must hold float numbers"),
    "weights of strings": (set_tensor_type(TensorProto.STRING), "weights 'w' cannot be read"),
    "weights of no type": (set_tensor_type(0), "weights 'w' cannot be read"),
    "weights of type 999": (set_tensor_type(999), "weights 'w' cannot be read"),
    "complex weights": (set_tensor_type(TensorProto.COMPLEX64), "weights 'w' cannot be read"),
    "sparse weights": (sparse, "has sparse weights"),
    "functions": (functions, "uses 1 functions of its own"),
    "an unknown operator": (no_operator, "'`Nothing`\\n' 'y' (1×4×4×4): this operator is not supported"),
    "a bias of four dimensions": (no_bias, "the bias must have 4 numbers, not [4, 3, 3, 3]"),
    "too many inputs": (too_many_inputs, "Relu 'y': must have 1 inputs, not 2"),
    "text for a number": (text_for_number, "attribute 'group' is not of ONNX's type"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_refused(name: str, tmp_path: Path) -> None:
    model = plain()
    change, message = HOSTILE[name]
    change(model)
    with pytest.raises(CompileError) as caught:
        imported(model, tmp_path)
    assert message in str(caught.value)


HUGE = {
    "a tensor that doubles": " ".join(f"s{n + 1} = Concat<axis=0>(s{n}, s{n})" for n in range(60)) + " y = Add(x, s60)",
    "a tensor of 2⁴⁰": "e = Constant<value_ints=[1099511627776]>() s1 = Expand(s0, e) y = Add(x, s1)",
    "a range of 10¹²": "a = Constant<value_float=1e12>() b = Constant<value_float=1.0>() s1 = Range(b, a, b) y = Add(x, s1)",
    "an outer product of 2⁴⁰": "n = Constant<value_ints=[1048576]>() m = Constant<value_ints=[1048576,1]>() "
    "a = ConstantOfShape(n) b = ConstantOfShape(m) s1 = Add(a, b) y = Add(x, s1)",
    "a transposed stride of 2²⁰": "y = ConvTranspose<strides=[1048576,1048576]>(x, k)",
    "a dilated window of 2³⁸": "y = AveragePool<kernel_shape=[524288,524288], dilations=[2,2], pads=[0,0,0,0]>(x)",
    "a resize by 2¹⁹": 's = Constant<value_floats=[1.0,1.0,524288.0,524288.0]>() y = Resize<mode="nearest">(x, , s)',
    "padding by 2²⁰ channels and more": "p = Constant<value_ints=[0,1048576,0,0,0,1048577,0,0]>() y = Pad(x, p)",
    "a window of 2²⁰": "y = MaxPool<kernel_shape=[1048576,1048576]>(x)",
}


@pytest.mark.parametrize("name", HUGE)
def test_a_small_file_makes_nothing_huge(name: str, tmp_path: Path) -> None:
    model = network("float[1,3,6,6] x, float[1] s0, float[3,1,3,3] k", HUGE[name], opset=19)
    tracemalloc.start()
    try:
        with pytest.raises(CompileError):
            imported(model, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 28
    finally:
        tracemalloc.stop()


def test_the_missing_package_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from pathlib import Path\n"
        "from convfold.compiler.errors import CompileError\n"
        "from convfold.compiler.importers import import_model\n"
        "try: import_model(Path('net.onnx'))\n"
        "except CompileError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "net.onnx: reading this file needs the package 'onnx', which is not installed",
        "  fix: pip install 'convfold[onnx]'",
    ]


def field(number: int, body: bytes) -> bytes:
    """A protobuf field of bytes."""
    size, length = b"", len(body)
    while length >= 128:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + body


DAMAGED = {
    "nothing": (b"", "is not an ONNX model with nodes"),
    "text": (b"not a model", "is not an ONNX model"),
    "zeros": (bytes(1 << 20), "is not an ONNX model: "),
    "a million empty nodes": (field(7, field(1, b"") * 1_000_000), "it has more than 131072 fields"),
    "a node of a million inputs": (field(7, field(1, field(1, b"") * 1_000_000)), "it has more than 131072 fields"),
    "packed integers that grow eightfold": (field(7, field(5, field(7, b"\1" * (1 << 24) + b"\1"))), "packed integers"),
    "names that are no text": (field(7, field(1, field(4, b"\xff\xfe"))), "names that are no text"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_bytes_are_refused(name: str, tmp_path: Path) -> None:
    data, message = DAMAGED[name]
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    with pytest.raises(CompileError) as caught:
        read_onnx(path)
    assert str(caught.value).startswith("net.onnx: ")
    assert message in str(caught.value)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    data = plain().SerializeToString()
    path = tmp_path / "net.onnx"
    for size in range(0, len(data) - 30, 7):  # the last fields are opset and outputs: any may be missing
        path.write_bytes(data[:size])
        with pytest.raises(CompileError):
            read_onnx(path)


def test_changed_bytes_never_crash(tmp_path: Path, rng: np.random.Generator) -> None:
    data = plain().SerializeToString()
    path = tmp_path / "net.onnx"
    for _ in range(300):
        changed = bytearray(data)
        for at in rng.integers(len(data), size=rng.integers(1, 5)):
            changed[at] = rng.integers(256)
        path.write_bytes(bytes(changed))
        try:
            read_onnx(path)
        except CompileError as error:
            assert str(error).isprintable() or "\n" in str(error)


# --------------------------------------------------------------------------------------------------- external data


def external(folder: Path, location: str, **more: str) -> Path:
    """The plain model, its first weights in an external file."""
    model = plain()
    tensor = model.graph.initializer[0]
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, beside a secret that it must not reach."""
    (tmp_path / "secret.bin").write_bytes(bytes(432))
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "sub" / "inside.bin").write_bytes(np.ones(108, np.float32).tobytes())
    return tmp_path / "model"


def test_external_data_in_the_folder_is_read(folder: Path) -> None:
    expected = read_onnx(external(folder, "weights.bin")).weights["c.w"]
    assert np.array_equal(expected, imported(plain(), folder).weights["c.w"])
    inside = read_onnx(external(folder, "sub/inside.bin", offset="0", length="432")).weights["c.w"]
    assert np.array_equal(inside, np.ones((1, 1, 4, 3, 3, 3)))
    (folder / "link.bin").symlink_to(folder / "sub" / "inside.bin")  # a link that stays inside
    assert np.array_equal(read_onnx(external(folder, "link.bin")).weights["c.w"], inside)


LOCATIONS = (
    "../secret.bin",
    "sub/../../secret.bin",
    "./../secret.bin",
    "..\\secret.bin",
    "sub\\..\\..\\secret.bin",
    "/etc/hostname",
    "//etc/hostname",
    "~/secret.bin",
    "file:///etc/hostname",
    "C:\\secret.bin",
    "",
    ".",
    "sub",
    "weights.bin\0.txt",
    "weights\n.bin",
    "nothing.bin",
    "x" * 5000,
    "out.bin",  # links to the secret
    "away/secret.bin",  # a linked folder
    "hard.bin",  # a second name of the secret
    "loop.bin",
    "/dev/zero",
    "pipe",
)


@pytest.mark.parametrize("location", LOCATIONS)
def test_external_data_never_leaves_the_folder(location: str, folder: Path) -> None:
    (folder / "out.bin").symlink_to(folder.parent / "secret.bin")
    (folder / "away").symlink_to(folder.parent)
    (folder / "hard.bin").hardlink_to(folder.parent / "secret.bin")
    (folder / "loop.bin").symlink_to("loop.bin")
    os.mkfifo(folder / "pipe")
    with pytest.raises(CompileError) as caught:
        read_onnx(external(folder, location))
    assert "weights 'w': external data" in str(caught.value)
    assert caught.value.hint == "save the model with its weights inside, or beside it"


@pytest.mark.parametrize(
    "more",
    [
        {"offset": "-1"},
        {"offset": "433"},
        {"offset": "1", "length": "432"},
        {"length": "433"},
        {"length": "-1"},
        {"length": "1e3"},
        {"length": "9" * 5000},
        {"offset": "0x0"},
    ],
)
def test_external_data_lies_within_its_file(more: dict[str, str], folder: Path) -> None:
    with pytest.raises(CompileError, match=r"offset and length must lie within the 432 bytes of its file"):
        read_onnx(external(folder, "weights.bin", **more))


def test_external_data_of_another_length_is_refused(folder: Path) -> None:
    with pytest.raises(CompileError, match=r"take 432 bytes, not 428"):
        read_onnx(external(folder, "weights.bin", offset="4"))
