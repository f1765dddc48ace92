"""A small exported PyTorch program, its spoilt files, and pickles; PyTorch is not needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.archives import bombs, zipped
from tests.hostile.files import (
    HOSTILE_NAMES,
    Maker,
    Makers,
    damaged,
    no_files,
    normal,
    pickled,
    spoilt,
)

Config = dict[str, Any]


def _named(name: str) -> Config:
    return {"as_tensor": {"name": name}}


def _meta(*shape: int) -> Config:
    strides = [int(np.prod(shape[n + 1 :])) for n in range(len(shape))]
    return {
        "dtype": 7,
        "sizes": [{"as_int": size} for size in shape],
        "strides": [{"as_int": stride} for stride in strides],
        "storage_offset": {"as_int": 0},
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "layout": 7,
    }


def torch_program() -> tuple[Config, Config]:
    """The program and the list of its weights: convolution, relu, mean, linear layer."""
    shapes = {"conv.weight": (3, 2, 3, 3), "conv.bias": (3,), "fc.weight": (4, 3), "fc.bias": (4,)}
    names = {name: "p_" + name.replace(".", "_") for name in shapes}

    def call(target: str, result: str, **arguments: Config) -> Config:
        inputs = [{"name": name, "arg": value, "kind": 1} for name, value in arguments.items()]
        return {"target": f"torch.ops.aten.{target}", "inputs": inputs, "outputs": [_named(result)], "metadata": {}}

    weights = {
        name: {"path_name": f"weight_{n}", "is_param": True, "use_pickle": False, "tensor_meta": _meta(*shape)}
        for n, (name, shape) in enumerate(shapes.items())
    }
    conv = {"input": _named("x"), "weight": _named("p_conv_weight"), "bias": _named("p_conv_bias")}
    linear = {"input": _named("mean"), "weight": _named("p_fc_weight"), "bias": _named("p_fc_bias")}
    nodes = [
        call("conv2d.default", "conv2d", **conv),
        call("relu.default", "relu", self=_named("conv2d")),
        call("mean.dim", "mean", self=_named("relu"), dim={"as_ints": [2, 3]}),
        call("linear.default", "linear", **linear),
    ]
    results = {"x": (1, 2, 6, 6), "conv2d": (1, 3, 4, 4), "relu": (1, 3, 4, 4), "mean": (1, 3), "linear": (1, 4)}
    tensors = results | {names[name]: shape for name, shape in shapes.items()}
    parameters = [{"parameter": {"arg": {"name": names[name]}, "parameter_name": name}} for name in shapes]
    graph = {
        "inputs": [_named(name) for name in [*names.values(), "x"]],
        "outputs": [_named("linear")],
        "nodes": nodes,
        "tensor_values": {name: _meta(*shape) for name, shape in tensors.items()},
    }
    signature = {
        "input_specs": [*parameters, {"user_input": {"arg": _named("x")}}],
        "output_specs": [{"user_output": {"arg": _named("linear")}}],
    }
    module = {"graph": graph, "signature": signature, "module_call_graph": []}
    return {"graph_module": module, "schema_version": {"major": 8, "minor": 20}}, {"config": weights}


ProgramChange = Callable[[Config, Config], object]


def torch_members(model: Config | str, weights: Config | str) -> dict[str, bytes]:
    arrays = (normal(3, 2, 3, 3), normal(3), normal(4, 3), normal(4))
    return {
        "net/models/model.json": (model if isinstance(model, str) else json.dumps(model)).encode(),
        "net/data/weights/model_weights_config.json": (weights if isinstance(weights, str) else json.dumps(weights)).encode(),
        **{f"net/data/weights/weight_{n}": one.tobytes() for n, one in enumerate(arrays)},
        "net/archive_version": b"0",
    }


def _graph(**fields: Any) -> ProgramChange:
    return lambda model, weights: model["graph_module"]["graph"].update(fields)


def _call(at: int, **fields: Any) -> ProgramChange:
    return lambda model, weights: model["graph_module"]["graph"]["nodes"][at].update(fields)


def _argument(at: int, name: str, value: Any) -> ProgramChange:
    return lambda model, weights: model["graph_module"]["graph"]["nodes"][at]["inputs"].append(
        {"name": name, "arg": value, "kind": 1}
    )


def _stored(**fields: Any) -> ProgramChange:
    return lambda model, weights: weights["config"]["conv.weight"].update(fields)


def _stored_meta(**fields: Any) -> ProgramChange:
    return lambda model, weights: weights["config"]["conv.weight"]["tensor_meta"].update(fields)


def _ints(*values: int) -> list[Config]:
    return [{"as_int": value} for value in values]


PROGRAM_CHANGES: Mapping[str, ProgramChange] = {
    "groups 0": _argument(0, "groups", {"as_int": 0}),
    "groups negative": _argument(0, "groups", {"as_int": -1}),
    "stride 0": _argument(0, "stride", {"as_ints": [0, 1]}),
    "stride huge": _argument(0, "stride", {"as_ints": [1 << 62, 1]}),
    "strides of five": _argument(0, "stride", {"as_ints": [1] * 5}),
    "padding negative": _argument(0, "padding", {"as_ints": [-1, 0]}),
    "padding huge": _argument(0, "padding", {"as_ints": [1 << 40, 0]}),
    "padding NaN": _argument(0, "padding", {"as_float": "NaN"}),
    "an expression": _argument(0, "groups", {"as_sym_int": {"as_expr": {"expr_str": "__import__('os').system('true')"}}}),
    "a graph as argument": _argument(0, "groups", {"as_graph": {"name": "g", "graph": {}}}),
    "two kinds at once": _argument(0, "groups", {"as_int": 1, "as_float": 1.0}),
    "an operator unknown": _call(1, target="torch.ops.aten.evil.default"),
    "an operator of Python's": _call(1, target="os.system"),
    "an operator of 10,000 letters": _call(1, target="x" * 10_000),
    "no operator": _call(1, target=None),
    "no inputs": _call(0, inputs=[]),
    "inputs that are none": _call(0, inputs="x"),
    "no outputs": _call(1, outputs=[]),
    "a call that reads itself": _call(1, inputs=[{"name": "self", "arg": _named("relu"), "kind": 1}]),
    "a loop": _call(1, inputs=[{"name": "self", "arg": _named("mean"), "kind": 1}]),
    "a call that reads nothing": _call(1, inputs=[{"name": "self", "arg": _named("nobody"), "kind": 1}]),
    "a tensor made twice": _call(1, outputs=[_named("conv2d")]),
    "the input made": _call(1, outputs=[_named("x")]),
    "no nodes": _graph(nodes=[]),
    "nodes that are none": _graph(nodes={"x": 1}),
    "20,000 nodes": lambda model, weights: model["graph_module"]["graph"].update(
        nodes=model["graph_module"]["graph"]["nodes"] * 5_000
    ),
    "no tensors": _graph(tensor_values={}),
    "an input of no size": lambda model, weights: _size(model, 1, 2, 0, 6),
    "an input negative": lambda model, weights: _size(model, 1, 2, -6, 6),
    "an input huge": lambda model, weights: _size(model, 1, 2, 1 << 39, 1 << 39),
    "an input of nine axes": lambda model, weights: _size(model, *[1] * 9),
    "an input too small": lambda model, weights: _size(model, 1, 2, 2, 2),
    "no signature": lambda model, weights: model["graph_module"].update(signature=None),
    "no graph": lambda model, weights: model.update(graph_module=5),
    "schema 99": lambda model, weights: model.update(schema_version={"major": 99}),
    "no schema": lambda model, weights: model.pop("schema_version"),
    "weights pickled": _stored(use_pickle=True),
    "weights of another member": _stored(path_name="../../models/model.json"),
    "weights above": _stored(path_name="../../../../outside.bin"),
    "weights nowhere": _stored(path_name="nowhere"),
    "weights of a list": _stored(path_name=["weight_0"]),
    "weights missing": lambda model, weights: weights["config"].pop("conv.weight"),
    "weights too short": _stored_meta(sizes=_ints(300, 2, 3, 3)),
    "weights of another shape": _stored_meta(sizes=_ints(2, 3, 3, 3), strides=_ints(27, 9, 3, 1)),
    "weights negative": _stored_meta(sizes=_ints(-3, 2, 3, 3)),
    "weights huge": _stored_meta(sizes=_ints(1 << 38, 1 << 38, 3, 3), strides=_ints(0, 0, 0, 0)),
    "weights spread over all": _stored_meta(sizes=_ints(1 << 30, 2, 3, 3), strides=_ints(0, 0, 0, 0)),
    "strides negative": _stored_meta(strides=_ints(-18, 9, 3, 1)),
    "strides beyond": _stored_meta(strides=_ints(1 << 39, 9, 3, 1)),
    "an offset beyond": _stored_meta(storage_offset={"as_int": 1 << 39}),
    "an offset negative": _stored_meta(storage_offset={"as_int": -54}),
    "a type that is none": _stored_meta(dtype=99),
    "complex weights": _stored_meta(dtype=10),
    "a type that is a list": _stored_meta(dtype=[7]),
    "no sizes": _stored_meta(sizes=None),
    "a mapping that is none": lambda model, weights: weights.update(config=[1]),
}


def _size(model: Config, *shape: int) -> None:
    model["graph_module"]["graph"]["tensor_values"]["x"] = _meta(*shape)


def torch_makers() -> Makers:
    model, weights = torch_program()
    members = torch_members(model, weights)

    def changed(change: ProgramChange, folder: Path) -> bytes:
        model, weights = torch_program()
        change(model, weights)
        (folder.parent / "outside.bin").write_bytes(normal(3, 2, 3, 3).tobytes())
        return zipped(torch_members(model, weights))

    def replaced(member: str, data: bytes) -> Maker:
        return lambda folder: zipped({**members, member: data})

    nan = spoilt(normal(3, 2, 3, 3), np.nan).tobytes()
    makers = damaged(zipped(members)) | no_files(".pt2")
    makers |= {name: partial(changed, change) for name, change in PROGRAM_CHANGES.items()}
    makers |= {f"zip: {name}": maker for name, maker in bombs(members, "net/data/weights/weight_0").items()}
    for number, name in enumerate(HOSTILE_NAMES[::6]):
        makers[f"name {number} of a call"] = partial(changed, _call(1, name=name))
    makers |= {
        "NaN": replaced("net/data/weights/weight_0", nan),
        "deep JSON": replaced("net/models/model.json", b"[" * 100_000),
        "deep tables": replaced("net/models/model.json", b'{"x":' * 100_000),
        "a number of many digits": replaced("net/models/model.json", b"9" * 100_000),
        "no JSON": replaced("net/models/model.json", b"{"),
        "weights in no JSON": replaced("net/data/weights/model_weights_config.json", b"\xff"),
    }
    return makers


def pickle_makers() -> Makers:
    """What `torch.save` writes: pickles, in an archive or alone."""

    def checkpoint(name: str) -> Maker:
        return lambda folder: zipped({f"net/{name}": pickled(folder), "net/version": b"3", "net/data/0": bytes(64)})

    def legacy(folder: Path) -> bytes:
        return b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + pickled(folder)

    def program(folder: Path) -> bytes:
        """A sound program with a pickle where PyTorch itself would load one."""
        model, weights = torch_program()
        weights["config"]["conv.weight"]["use_pickle"] = True
        members = torch_members(model, weights) | {"net/data/weights/weight_0": pickled(folder)}
        return zipped(members | {"net/data/sample_inputs/model.pt": pickled(folder)})

    return {
        "a pickle": pickled,
        "a pickle of old": legacy,
        "a checkpoint": checkpoint("data.pkl"),
        "TorchScript": checkpoint("constants.pkl"),
        "a program with a pickle": program,
        "an old export": lambda folder: zipped(
            {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": pickled(folder)}
        ),
        **{name: maker for name, maker in damaged(zipped({"net/data.pkl": b"\x80\x02N."})).items() if "bits" not in name},
    }
