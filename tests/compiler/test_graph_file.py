"""An integer graph and its file are the same, whatever it holds; a file that is none of ours is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from convfold.compiler import graph as nodes
from convfold.compiler.errors import CompileError
from convfold.compiler.graph import BorderClasses, Graph, Node, Softmax
from convfold.compiler.graph_file import dump_graph, load_graph
from convfold.compiler.numbers import Format
from convfold.compiler.verify import verify

INT8, UINT8, WIDE = Format(8, True, 0.1, -3), Format(8, False, 1 / 3, 255), Format(16, True, 1e-7, 0)
GIVEN: dict[type[Node], dict[str, Any]] = {
    nodes.Input: {"shape": (4, 6, 2), "low": -1.5, "high": 12.4, "format": INT8},
    nodes.QConv2D: {
        "stride": (2, 1), "padding": ((1, 0), (2, 1)), "classes": BorderClasses((0, 1, 3), (0, 2)), "low": -128, "high": 127,
        "format": WIDE, "weight_bits": 8, "shift": 21, "dilation": (2, 1), "groups": 2, "rounding": "tflite", "kind": "dense",
    },
    nodes.QAveragePool: {
        "kernel": (2, 3), "stride": (1, 2), "padding": ((0, 1), (1, 0)), "count_include_pad": True, "low": 0, "high": 9,
        "format": UINT8, "rounding": "float32", "ratio": 1 / 7,
    },
    nodes.QAdd: {
        "low": -5, "high": 5, "format": INT8, "rounding": "tflite",
        "multipliers": ((1 << 30, -3), (-(1 << 30), 1), (1 << 30, 0)), "ratios": (0.1, 1e-30), "shift": 20,
    },
    nodes.QMultiply: {
        "low": 0, "high": 255, "format": UINT8, "rounding": "float64", "multiplier": (3, -4), "ratio": 0.1 + 0.2, "shift": 1,
    },
    nodes.QTable: {"format": INT8, "function": "hard swish"},
    nodes.MaxPool: {"kernel": (2, 2), "stride": (1, 1), "padding": ((1, 1), (0, 0))},
    nodes.ArgMax: {},
    nodes.Concat: {},
    nodes.Slice: {"start": 1, "stop": 2},
    nodes.ChannelShuffle: {"groups": 2},
    nodes.DepthToSpace: {"block": (2, 1), "order": "CRD"},
    nodes.SpaceToDepth: {"block": (2, 3), "order": "DCR"},
    nodes.Upsample: {"factor": (2, 3)},
    nodes.Pad: {"padding": ((1, 2), (3, 4)), "value": -0.30000000000000004},
    nodes.Crop: {"cropping": ((1, 0), (0, 2))},
    nodes.Reshape: {"shape": (6, 4, 2), "fold": "forbid"},
    nodes.Flatten: {"fold": "force"},
}  # fmt: skip
"""Every kind of node that an integer graph may hold, with fields that are all their own."""


def small(*more: Node, outputs: tuple[str, ...] = ("image",), **fields: Any) -> Graph:
    image = nodes.Input(name="image", inputs=(), source="net.tflite: 'é\n'", **GIVEN[nodes.Input])
    return Graph("net", (image, *more), outputs, **({"weights": {}} | fields))


def arrays(kind: type[Node]) -> dict[str, Any]:
    return {"w": np.ones((3, 2, 2, 2, 2, 1), dtype=np.int64)} if kind is nodes.QConv2D else {}


def again(graph: Graph) -> Graph:
    """The graph, through JSON."""
    return load_graph(json.loads(json.dumps(dump_graph(graph))), graph.weights, "network.json")


@pytest.mark.parametrize("kind", GIVEN)
def test_every_node_comes_back(kind: type[Node]) -> None:
    given = GIVEN[kind]
    assert given.keys() | {"name", "inputs", "source"} >= {field.name for field in fields(kind)} - {"fold"}
    if kind is nodes.Input:
        graph = small()
    else:
        count = 2 if kind in (nodes.QAdd, nodes.QMultiply, nodes.Concat) else 1
        node = kind(name="node", inputs=("image",) * count, source="net.tflite: node 'x'", **given)
        weights = {f"node.{part}": array for part, array in arrays(kind).items()}
        graph = small(node, outputs=("node",), weights=weights)
    found = again(graph)
    assert found == graph
    assert found.nodes[-1] == graph.nodes[-1] and type(found.nodes[-1]) is kind
    assert found.shapes == graph.shapes
    assert hash(found.nodes[-1]) == hash(graph.nodes[-1])
    assert str(found) == str(graph)


def test_these_are_all_kinds_of_integer_nodes() -> None:
    kinds = {kind for kind in vars(nodes).values() if isinstance(kind, type) and issubclass(kind, Node)}
    real = {
        *(nodes.Node, nodes.Linear, nodes.Conv2D, nodes.Dense, nodes.BatchNorm, nodes.ScaleBias, nodes.Pca, nodes.AveragePool),
        *(nodes.Add, nodes.Dropout, nodes.Clip, nodes.Pointwise, nodes.Prelu, nodes.Multiply),
    }
    assert kinds - real == set(GIVEN)


def test_the_rest_of_a_graph_comes_back() -> None:
    pool = nodes.MaxPool(name="pool", inputs=("image",), source="", kernel=(1, 1), stride=(1, 1))
    heads = (("pool", Softmax(0.3, Format(8, True, 1 / 256, -128))), ("image", Softmax()))
    graph = small(pool, outputs=("pool", "image"), labels=("é", "it's"), heads=heads)
    found = again(graph)
    assert found == graph
    assert (found.outputs, found.labels, found.heads) == (graph.outputs, graph.labels, graph.heads)
    assert verify(found, "integer") is found


def test_an_input_without_a_format_comes_back() -> None:
    image = nodes.Input(name="image", inputs=(), source="", shape=(1, 1, 1), low=0.0, high=1.0)
    assert again(Graph("net", (image,), ("image",), {})).input.format is None


Change = Callable[[dict[str, Any]], object]


def drop(*path: Any) -> Change:
    def change(record: Any) -> None:
        for key in path[:-1]:
            record = record[key]
        del record[path[-1]]

    return change


def put(value: Any, *path: Any) -> Change:
    def change(record: Any) -> None:
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    return change


STRANGE: dict[str, Change] = {
    **{f"no {key}": drop(key) for key in ("name", "outputs", "labels", "heads", "nodes")},
    **{f"no {key} of a node": drop("nodes", 1, key) for key in ("op", "name", "inputs", "source", "kernel", "stride")},
    "an unknown operator": put("exec", "nodes", 1, "op"),
    "an operator on reals": put("clip", "nodes", 1, "op"),
    "an operator that is a list": put(["max_pool"], "nodes", 1, "op"),
    "a field more": put(1, "nodes", 1, "evil"),
    "nodes that are none": put(5, "nodes"),
    "a node that is none": put(5, "nodes", 1),
    "a node that is text": put("max_pool", "nodes", 1),
    "a name that is a list": put(["pool"], "nodes", 1, "name"),
    "a name that is a mapping": put({}, "nodes", 1, "name"),
    "inputs of nobody": put(["nobody"], "nodes", 1, "inputs"),
    "inputs that are a number": put(3, "nodes", 1, "inputs"),
    "outputs that are a number": put(3, "outputs"),
    "a kernel of text": put("22", "nodes", 1, "kernel"),
    "a kernel of nothing": put(None, "nodes", 1, "kernel"),
    "a stride of 0": put([0, 1], "nodes", 1, "stride"),
    "a window too large": put([99, 99], "nodes", 1, "kernel"),
    "a shape of text": put("abc", "nodes", 0, "shape"),
    "a format of 99 bits": put(99, "nodes", 0, "format", "bits"),
    "a format of a scale of 0": put(0, "nodes", 0, "format", "scale"),
    "a format of a scale of text": put("1", "nodes", 0, "format", "scale"),
    "a format that is text": put("int8", "nodes", 0, "format"),
    "a head that is none": put([["pool"]], "heads"),
    "a head of nobody": put([["nobody", {"beta": 1.0, "format": None}]], "heads"),
    "a head without beta": put([["pool", {"format": None}]], "heads"),
    "a head whose beta is text": put([["pool", {"beta": "x", "format": None}]], "heads"),
    "labels of numbers": put([1, 2], "labels"),
    "a name that is a number": put(7, "name"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_record_is_refused(kind: str) -> None:
    pool = nodes.MaxPool(name="pool", inputs=("image",), source="", kernel=(2, 2), stride=(1, 1))
    record = json.loads(json.dumps(dump_graph(small(pool, outputs=("pool",)))))
    assert isinstance(load_graph(record, {}, "network.json"), Graph)
    STRANGE[kind](record)
    with pytest.raises(CompileError) as error:
        load_graph(record, {}, "network.json")
    assert error.value.source == "network.json"
    assert error.value.message == "holds no integer network of convfold's"
    assert error.value.hint == "run convfold compile again"


def test_arrays_that_do_not_fit_are_refused() -> None:
    conv = nodes.QConv2D(name="node", inputs=("image",), source="", **GIVEN[nodes.QConv2D])
    graph = small(conv, outputs=("node",), weights={"node.w": arrays(nodes.QConv2D)["w"]})
    record = dump_graph(graph)
    for weights in ({}, {"node.w": np.ones(3)}, {"node.w": np.ones((1, 1, 3, 99, 99, 2), dtype=np.int64)}):
        with pytest.raises(CompileError, match=r"^network\.json: holds no integer network of convfold's\n"):
            load_graph(record, weights, "network.json")
