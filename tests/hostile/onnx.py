"""Two small ONNX networks, one of them quantized, and their spoilt files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.hostile.files import (
    HOSTILE_NAMES,
    Makers,
    damaged,
    no_files,
    normal,
    pickled,
    rng,
    spoilt,
)

ModelChange = Callable[[ModelProto, Path], object]


def onnx_model() -> ModelProto:
    """Convolution, relu, global pool, flatten, dense layer."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", kernel_shape=[3, 3]),
            helper.make_node("Relu", ["y"], ["z"], "relu"),
            helper.make_node("GlobalAveragePool", ["z"], ["p"], "pool"),
            helper.make_node("Flatten", ["p"], ["f"], "flat"),
            helper.make_node("Gemm", ["f", "v"], ["scores"], "dense", transB=1),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 6, 6])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4])],
        [
            numpy_helper.from_array(normal(3, 2, 3, 3), "w"),
            numpy_helper.from_array(normal(3), "b"),
            numpy_helper.from_array(normal(4, 3), "v"),
        ],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def _attribute(at: int, **attributes: Any) -> ModelChange:
    def change(model: ModelProto, folder: Path) -> None:
        node = model.graph.node[at]
        kept = [one for one in node.attribute if one.name not in attributes]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())])

    return change


def _weights(at: int, values: NDArray[Any]) -> ModelChange:
    name = "wbv"[at]
    return lambda model, folder: model.graph.initializer[at].CopyFrom(numpy_helper.from_array(values, name))


def _dims(at: int, *dims: int) -> ModelChange:
    return lambda model, folder: model.graph.initializer[at].dims.__setitem__(slice(None), dims)


def _node(at: int, **fields: Any) -> ModelChange:
    def change(model: ModelProto, folder: Path) -> None:
        node = model.graph.node[at]
        for name, value in fields.items():
            if isinstance(value, list):
                getattr(node, name)[:] = value
            else:
                setattr(node, name, value)

    return change


def _shape(*dims: int) -> ModelChange:
    return lambda model, folder: model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, dims))


def external(location: str | Callable[[Path], str], **entries: str) -> ModelChange:
    """The weights of the convolution lie elsewhere; what is there would do."""

    def change(model: ModelProto, folder: Path) -> None:
        data = normal(3, 2, 3, 3).tobytes()
        (folder.parent / "outside.bin").write_bytes(data)
        (folder / "inside.bin").write_bytes(data)
        (folder / "link.bin").symlink_to(folder.parent / "outside.bin")
        (folder / "way").symlink_to(folder.parent, target_is_directory=True)
        (folder / "circle").symlink_to("circle")
        (folder / "sub").mkdir()
        os.link(folder.parent / "outside.bin", folder / "hard.bin")
        os.mkfifo(folder / "pipe")
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location(folder) if callable(location) else location, **entries}.items():
            tensor.external_data.add(key=key, value=value)

    return change


EXTERNAL: Mapping[str, ModelChange] = {
    "above": external("../outside.bin"),
    "above, by a way round": external("sub/../../outside.bin"),
    "above, with backslashes": external("..\\outside.bin"),
    "absolute": external(lambda folder: str(folder.parent / "outside.bin")),
    "absolute, twice": external(lambda folder: "/" + str(folder.parent / "outside.bin")),
    "a URL": external(lambda folder: f"file://{folder.parent / 'outside.bin'}"),
    "at home": external("~/outside.bin"),
    "in the environment": external("$HOME/outside.bin"),
    "a link": external("link.bin"),
    "a linked folder": external("way/outside.bin"),
    "a hard link": external("hard.bin"),
    "a circle of links": external("circle"),
    "a pipe": external("pipe"),
    "a folder": external("sub"),
    "a device": external("/dev/zero"),
    "of a process": external("/proc/self/environ"),
    "nowhere": external("nowhere.bin"),
    "without a place": external(""),
    "a NUL": external("inside.bin\0"),
    "a line break": external("inside\n.bin"),
    "10,000 letters": external("x" * 10_000),
    "the model itself": external("net.onnx", length="216", offset="0"),
    "offset behind the end": external("inside.bin", offset="1000000000000"),
    "offset negative": external("inside.bin", offset="-1"),
    "offset no number": external("inside.bin", offset="0x10"),
    "length huge": external("inside.bin", length="99999999999999999999"),
    "length negative": external("inside.bin", length="-1"),
    "length short": external("inside.bin", length="100"),
    "offset and length beyond": external("inside.bin", offset="200", length="200"),
}

ONNX_CHANGES: Mapping[str, ModelChange] = {
    "group 0": _attribute(0, group=0),
    "group negative": _attribute(0, group=-1),
    "group 2 of 3": _attribute(0, group=2),
    "group huge": _attribute(0, group=1 << 62),
    "stride 0": _attribute(0, strides=[0, 1]),
    "strides of five": _attribute(0, strides=[1] * 5),
    "dilation 0": _attribute(0, dilations=[0, 1]),
    "dilation huge": _attribute(0, dilations=[1 << 40, 1]),
    "kernel of another shape": _attribute(0, kernel_shape=[5, 5]),
    "kernel negative": _attribute(0, kernel_shape=[-3, 3]),
    "padding negative": _attribute(0, pads=[-1, 0, 0, 0]),
    "padding huge": _attribute(0, pads=[1 << 40, 0, 0, 0]),
    "padding of another rank": _attribute(0, pads=[1, 1, 1]),
    "padding unknown": _attribute(0, auto_pad="SAME_SOMEHOW"),
    "a number for a list": _attribute(0, strides=1),
    "a text for a number": _attribute(0, group="1"),
    "infinity": _weights(0, spoilt(normal(3, 2, 3, 3), np.inf)),
    "NaN": _weights(0, spoilt(normal(3, 2, 3, 3), np.nan)),
    "NaN in a bias": _weights(1, spoilt(normal(3), np.nan)),
    "a weight of 1e38": _weights(0, spoilt(normal(3, 2, 3, 3), 3e38)),
    "weights of another rank": _weights(0, normal(3, 2, 9)),
    "no filters": _weights(0, normal(0, 2, 3, 3)),
    "weights for more channels": _weights(0, normal(3, 7, 3, 3)),
    "a bias for more filters": _weights(1, normal(7)),
    "weights of text": lambda model, folder: model.graph.initializer[0].CopyFrom(
        TensorProto(name="w", data_type=TensorProto.STRING, dims=[3, 2, 3, 3], string_data=[b"a"] * 54)
    ),
    "complex weights": _weights(0, normal(3, 2, 3, 3).astype(np.complex64)),
    "dims that lie": _dims(0, 300, 2, 3, 3),
    "dims negative": _dims(0, -3, -2, 3, 3),
    "dims huge": _dims(0, 1 << 62, 4, 1 << 62, 4),
    "dims many": _dims(0, *[1] * 1000),
    "a type that is none": lambda model, folder: setattr(model.graph.initializer[0], "data_type", 99),
    "an input of no size": _shape(1, 2, 0, 6),
    "an input of negative size": _shape(1, 2, -6, 6),
    "a huge input": _shape(1, 2, 1 << 40, 1 << 40),
    "an input too small": _shape(1, 2, 2, 2),
    "an input of nine axes": _shape(*[1] * 9),
    "a batch of 7": _shape(7, 2, 6, 6),
    "no input": lambda model, folder: model.graph.ClearField("input"),
    "an input of type 0": lambda model, folder: setattr(model.graph.input[0].type.tensor_type, "elem_type", 0),
    "an input of type 99": lambda model, folder: setattr(model.graph.input[0].type.tensor_type, "elem_type", 99),
    "an input twice": lambda model, folder: model.graph.input.extend(list(model.graph.input)),
    "an input of no type": lambda model, folder: model.graph.input[0].ClearField("type"),
    "no output": lambda model, folder: model.graph.ClearField("output"),
    "an output that is none": lambda model, folder: setattr(model.graph.output[0], "name", "nobody"),
    "no nodes": lambda model, folder: model.graph.ClearField("node"),
    "no graph": lambda model, folder: model.ClearField("graph"),
    "a node that reads itself": _node(1, input=["z"]),
    "a loop": _node(0, input=["f", "w", "b"]),
    "a node that reads nothing": _node(1, input=["nobody"]),
    "no inputs": _node(0, input=[]),
    "a hundred inputs": _node(0, input=["x"] * 100),
    "no outputs": _node(1, output=[]),
    "a tensor made twice": _node(2, output=["y"]),
    "a weight made": _node(1, output=["w"]),
    "weights of a convolution computed": _node(0, input=["x", "x", "b"]),
    "weights twice": lambda model, folder: model.graph.initializer.extend([model.graph.initializer[0]]),
    "weights without a name": lambda model, folder: setattr(model.graph.initializer[0], "name", ""),
    "weights missing": lambda model, folder: model.graph.initializer.__delitem__(0),
    "an operator that is none": _node(1, op_type="Evil"),
    "an operator of 10,000 letters": _node(1, op_type="x" * 10_000),
    "an operator of its own": _node(1, op_type="PyOp", domain="ai.onnx.contrib"),
    "all operators unknown": lambda model, folder: [_node(at, op_type="Evil")(model, folder) for at in range(5)],
    "no opset": lambda model, folder: model.ClearField("opset_import"),
    "opset 9999": lambda model, folder: setattr(model.opset_import[0], "version", 9999),
    "opset negative": lambda model, folder: setattr(model.opset_import[0], "version", -1),
    "two opsets": lambda model, folder: model.opset_import.add(domain="ai.onnx", version=11),
    "both here and elsewhere": lambda model, folder: model.graph.initializer[0].external_data.add(key="location", value="x"),
    "a constant of a tebibyte": lambda model, folder: _constant_of(model, 1 << 38),
    "a constant of a gibibyte": lambda model, folder: _constant_of(model, 1 << 28),
    "an endless loop": lambda model, folder: model.graph.node.insert(0, _endless()),
    "graphs in graphs": lambda model, folder: model.graph.node.insert(0, _deep(25)),
    "the batch norm's variance negative": lambda model, folder: _norm(model, -1.0, 1e-5),
    "the batch norm's epsilon negative": lambda model, folder: _norm(model, 1.0, -2.0),
    "a reshape to zero": lambda model, folder: _reshape(model, [0, 0, 0, 0, 0]),
    "a reshape to -1 and -1": lambda model, folder: _reshape(model, [-1, -1]),
    "a reshape beyond": lambda model, folder: _reshape(model, [1 << 40, 1 << 40]),
}


def _constant_of(model: ModelProto, size: int) -> None:
    """The weights are a constant of ``size`` numbers, which a few bytes ask for."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([size], np.int64), "size"))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["size"], ["huge"], "fill"))
    model.graph.node[-1].input[1] = "huge"


def _endless() -> NodeProto:
    body = helper.make_graph([], "body", [], [])
    return helper.make_node("Loop", ["", ""], ["never"], body=body)


def _deep(depth: int) -> NodeProto:
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(depth):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "g", [], [])
    return helper.make_node("If", ["x"], ["deep"], then_branch=graph, else_branch=graph)


def _norm(model: ModelProto, variance: float, epsilon: float) -> None:
    ones = [numpy_helper.from_array(np.ones(3, np.float32) * scale, name) for name, scale in (("one", 1), ("var", variance))]
    model.graph.initializer.extend(ones)
    model.graph.node[1].CopyFrom(
        helper.make_node("BatchNormalization", ["y", "one", "one", "one", "var"], ["z"], "norm", epsilon=epsilon)
    )


def _reshape(model: ModelProto, shape: list[int]) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
    model.graph.node[3].CopyFrom(helper.make_node("Reshape", ["p", "shape"], ["f"], "flat"))


def _onnx_changed(make: Callable[[], ModelProto], change: ModelChange, folder: Path) -> bytes:
    model = make()
    change(model, folder)
    data: bytes = model.SerializeToString()
    return data


def onnx_makers() -> Makers:
    data: bytes = onnx_model().SerializeToString()
    makers = damaged(data) | no_files(".onnx")
    makers |= {name: partial(_onnx_changed, onnx_model, change) for name, change in ONNX_CHANGES.items()}
    makers |= {f"external data {name}": partial(_onnx_changed, onnx_model, change) for name, change in EXTERNAL.items()}
    for number, name in enumerate(HOSTILE_NAMES[::6]):
        if "\0" not in name:
            makers[f"name {number} of a node"] = partial(_onnx_changed, onnx_model, _node(1, name=name))
    makers |= {
        "a pickle": pickled,
        "two million empty nodes": lambda folder: b"\x3a\x80\x80\x80\x02" + b"\x0a\x00" * (1 << 21),
        "a message in itself": lambda folder: _nested(200),
        "a length of 2 GiB": lambda folder: b"\x3a\xff\xff\xff\xff\x07" + data,
    }
    return makers


def _nested(depth: int) -> bytes:
    """Graphs in attributes of nodes of graphs, deeper than protobuf goes."""
    data = b""
    for _ in range(depth):
        for tag in (0x32, 0x2A, 0x0A):  # attribute's graph, node's attribute, graph's node
            size = len(data)
            length = bytearray()
            while size > 127:
                length.append(size & 127 | 128)
                size >>= 7
            data = bytes([tag, *length, size]) + data
    return b"\x08\x08" + data


# ------------------------------------------------------------------------------------------------------ quantized


def quantized_model() -> ModelProto:
    """QuantizeLinear, QLinearConv, DequantizeLinear."""
    names = ("xs", "xz", "w", "ws", "wz", "ys", "yz", "b")
    arrays = (
        *(np.float32(0.05), np.int8(-3), rng().integers(-127, 128, (3, 2, 3, 3)).astype(np.int8)),
        *(np.array([0.01, 0.02, 0.03], np.float32), np.zeros(3, np.int8), np.float32(0.06), np.int8(5)),
        np.array([100, -200, 300], np.int32),
    )
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"], "quantize"),
            helper.make_node("QLinearConv", ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["c"], "conv"),
            helper.make_node("DequantizeLinear", ["c", "ys", "yz"], ["y"], "real"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
        [numpy_helper.from_array(np.asarray(one), name) for name, one in zip(names, arrays, strict=True)],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def _part(name: str, value: Any) -> ModelChange:
    def change(model: ModelProto, folder: Path) -> None:
        (one,) = (one for one in model.graph.initializer if one.name == name)
        one.CopyFrom(numpy_helper.from_array(np.asarray(value), name))

    return change


def _element(kind: int) -> ModelChange:
    return lambda model, folder: setattr(model.graph.input[0].type.tensor_type, "elem_type", kind)


def _not_text(model: ModelProto, old: bytes) -> bytes:
    """The file with a name that is not UTF-8."""
    start = b"\x12" + bytes([len(old)])
    data: bytes = model.SerializeToString()
    return data.replace(start + old, start + b"\xff" * len(old))


QUANTIZED_CHANGES: Mapping[str, ModelChange] = {
    "scale 0": _part("ys", np.float32(0)),
    "scale negative": _part("ys", np.float32(-0.06)),
    "scale NaN": _part("ys", np.float32("nan")),
    "scale infinite": _part("xs", np.float32("inf")),
    "scale denormal": _part("ys", np.float32(1e-44)),
    "scale of many": _part("ys", np.ones(7, np.float32)),
    "scale an integer": _part("ys", np.int8(1)),
    "weight scale 0": _part("ws", np.array([0.01, 0, 0.01], np.float32)),
    "weight scale infinite": _part("ws", np.array([np.inf, 0.01, np.inf], np.float32)),
    "weight scale NaN": _part("ws", np.array([0.01, np.nan, 0.01], np.float32)),
    "scales of almost nothing": lambda model, folder: [_part(name, np.float32(1e-44))(model, folder) for name in ("xs", "ys")],
    "an input of no type": _element(0),
    "an input of type 99": _element(99),
    "an input of texts": _element(TensorProto.STRING),
    "weight scale huge": _part("ws", np.full(3, 3e38, np.float32)),
    "two weight scales": _part("ws", np.array([0.01, 0.02], np.float32)),
    "zero point of another type": _part("yz", np.uint8(5)),
    "zero point a float": _part("yz", np.float32(5)),
    "zero point of 16 bits": _part("yz", np.int16(30_000)),
    "weights of floats": _part("w", normal(3, 2, 3, 3)),
    "weights of 64 bits": _part("w", np.full((3, 2, 3, 3), 1 << 62)),
    "bias of floats": _part("b", normal(3)),
    "bias of many": _part("b", np.zeros(9, np.int32)),
    "no scale": lambda model, folder: model.graph.initializer.__delitem__(0),
    "inputs missing": _node(1, input=["q", "xs", "xz", "w"]),
    "inputs left out": _node(1, input=["q", "", "", "w", "", "", "", ""]),
    "a real convolution of integers": _node(1, op_type="Conv", input=["q", "w", "b"]),
    "group 0": _attribute(1, group=0),
    "group 2 of 3": _attribute(1, group=2),
    "a loop": _node(1, input=["c", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]),
    "an operator that is none": _node(2, op_type="QLinearEvil"),
}


def quantized_makers() -> Makers:
    data: bytes = quantized_model().SerializeToString()
    makers = {name: maker for name, maker in damaged(data).items() if name.startswith(("bits", "cut"))}
    makers["a graph called by no text"] = lambda folder: _not_text(quantized_model(), b"net")
    return makers | {name: partial(_onnx_changed, quantized_model, change) for name, change in QUANTIZED_CHANGES.items()}
