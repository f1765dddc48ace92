"""The operators of imported networks in our own format: what each table means, and what is refused."""

from __future__ import annotations

import hashlib
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import evaluate
from convfold.compiler.functions import FUNCTIONS
from convfold.compiler.graph import ArgMax, Crop, Multiply, Node, Pad, Pointwise, Prelu, Reshape, Softmax, SpaceToDepth
from convfold.compiler.spec import load_spec, source_sha256
from tests.compiler.test_spec import write

IDENTITY: dict[str, Any] = {"source": "net.json: layer 1 'a'", "name": "a", "inputs": ("input",)}


def network(*layers: dict[str, Any], shape: tuple[int, int, int] = (4, 6, 2), **fields: Any) -> dict[str, Any]:
    source = {"shape": list(shape), "range": [-1.0, 1.0]}
    return {"network": {"name": "net", "weights": "net.npz", "input": source, **fields}, "layer": list(layers)}


def read(folder: Path, tree: dict[str, Any], **arrays: Any) -> Any:
    return load_spec(write(folder, tree, {name.replace("__", "."): np.asarray(array) for name, array in arrays.items()}))


def refused(text: str, fix: str) -> AbstractContextManager[object]:
    return pytest.raises(CompileError, match=rf"^{re.escape(text)}\n  fix: {re.escape(fix)}$")


CASES: list[tuple[dict[str, Any], Node]] = [
    ({"op": "pad", "padding": [[1, 0], [2, 3]], "value": -0.5}, Pad(**IDENTITY, padding=((1, 0), (2, 3)), value=-0.5)),
    ({"op": "pad", "padding": [[1, 1], [1, 1]]}, Pad(**IDENTITY, padding=((1, 1), (1, 1)))),
    ({"op": "crop", "cropping": [[1, 0], [2, 3]]}, Crop(**IDENTITY, cropping=((1, 0), (2, 3)))),
    ({"op": "reshape", "shape": [8, 3, 2]}, Reshape(**IDENTITY, shape=(8, 3, 2))),
    ({"op": "space_to_depth", "block": [2, 3], "order": "CRD"}, SpaceToDepth(**IDENTITY, block=(2, 3), order="CRD")),
    ({"op": "leaky_relu", "alpha": 0.1}, Pointwise(**IDENTITY, function="leaky_relu", parameters=(0.1,))),
    ({"op": "elu"}, Pointwise(**IDENTITY, function="elu", parameters=(1.0,))),
    ({"op": "sigmoid"}, Pointwise(**IDENTITY, function="sigmoid")),
    ({"op": "argmax"}, ArgMax(**IDENTITY)),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "node"), CASES, ids=[fields["op"] for fields, _ in CASES])
def test_a_table_becomes_a_node(fields: dict[str, Any], node: object, tmp_path: Path) -> None:
    assert read(tmp_path, network({"name": "a", **fields})).nodes[1] == node


def test_prelu_and_products(tmp_path: Path) -> None:
    layers = {"name": "a", "op": "prelu"}, {"name": "m", "op": "multiply", "inputs": ["a", "input"]}
    graph = read(tmp_path, network(*layers), a__slope=[0.5, -0.25])
    assert graph.nodes[1] == Prelu(**IDENTITY)
    assert graph.nodes[2] == Multiply(name="m", inputs=("a", "input"), source="net.json: layer 2 'm'")
    assert graph.weights["a.slope"].tolist() == [0.5, -0.25]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_is_an_operator(function: str, tmp_path: Path) -> None:
    fields = {name: 0.5 for name in FUNCTIONS[function][0]}
    (node,) = read(tmp_path, network({"name": "a", "op": function, **fields})).nodes[1:]
    assert node == Pointwise(**IDENTITY, function=function, parameters=(0.5,) * len(fields))


# ------------------------------------------------------------------------------------------------ transposed convolution


@pytest.mark.parametrize("seed", range(40))
def test_a_transposed_convolution_scatters_its_kernel(seed: int, tmp_path: Path) -> None:
    """``y[i·s + u·d − p] += w[u]·x[i]``, written as loops."""
    rng = np.random.default_rng(seed)
    stride, dilation = (tuple(int(n) for n in rng.integers(1, 4, 2)) for _ in range(2))
    kernel, more = rng.integers(1, 4, 2), [int(rng.integers(max(s, d))) for s, d in zip(stride, dilation, strict=True)]
    groups = int(rng.choice([1, 2]))
    w, b = rng.normal(size=(4, *kernel, 2 // groups)), rng.normal(size=4)
    x_hwc = rng.normal(size=(3, 5, 2))
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip((3, 5), stride, kernel, dilation, strict=True)]
    padding = [[int(rng.integers((n + 1) // 2)), int(rng.integers((n + 1) // 2))] for n in full]
    y_hwo = np.zeros((full[0] + more[0], full[1] + more[1], 4))
    for i, j, u, v, o in np.ndindex(3, 5, *kernel, 4):
        part = o // (4 // groups) * (2 // groups)
        y_hwo[i * stride[0] + u * dilation[0], j * stride[1] + v * dilation[1], o] += (
            w[o, u, v] @ x_hwc[i, j, part : part + 2 // groups]
        )
    (top, bottom), (left, right) = padding
    expected = y_hwo[top : len(y_hwo) - bottom, left : y_hwo.shape[1] - right] + b
    fields: dict[str, Any] = {"stride": list(stride), "dilation": list(dilation), "padding": padding, "output_padding": more}
    layer = {"name": "a", "op": "conv_transpose2d", "groups": groups, **fields}
    graph = read(tmp_path, network(layer, shape=(3, 5, 2)), a__w=w, a__b=b)
    assert graph.outputs == ("a",)
    assert np.abs(evaluate(graph, x_hwc[None])["a"][0] - expected).max() < 1e-12


def test_a_transposed_convolution_that_leaves_nothing(tmp_path: Path) -> None:
    layer: dict[str, Any] = {"name": "a", "op": "conv_transpose2d", "padding": [[3, 3], [0, 0]]}
    source = "net.json: layer 1 'a'"
    with refused(f"{source}: nothing is left of its -1×7 output", "use less padding"):
        read(tmp_path, network(layer), a__w=np.ones((1, 2, 2, 2)))
    layer = {"name": "a", "op": "conv_transpose2d", "stride": 2, "output_padding": [0, 2]}
    message = f"{source}: output_padding must be below the stride or the dilation, not (0, 2)"
    with refused(message, "pad behind it instead"):
        read(tmp_path, network(layer), a__w=np.ones((1, 2, 2, 2)))


# ---------------------------------------------------------------------------------------------------------------- softmax


def test_softmax_is_a_head_of_the_output_in_front_of_it(tmp_path: Path) -> None:
    layers = {"name": "a", "op": "sigmoid"}, {"name": "s", "op": "softmax", "beta": 2.0}
    graph = read(tmp_path, network(*layers))
    assert graph.outputs == ("a",) and graph.heads == (("a", Softmax(2.0)),)
    assert [node.name for node in graph.nodes] == ["input", "a"]
    other = {"name": "b", "op": "tanh", "input": "a"}
    graph = read(tmp_path, network(*layers, other, outputs=["b", "s"]))
    assert graph.outputs == ("b", "a") and graph.heads == (("a", Softmax(2.0)),)


def test_softmax_anywhere_else_is_refused(tmp_path: Path) -> None:
    layers = {"name": "a", "op": "sigmoid"}, {"name": "s", "op": "softmax"}
    source = "net.json: layer 2 's'"
    hint = "read what softmax reads instead"
    with refused(f"{source}: op 'softmax' must end the network, but 'b' reads it", hint):
        read(tmp_path, network(*layers, {"name": "b", "op": "tanh"}))
    with refused(f"{source}: op 'softmax' must end the network, but it is no output", hint):
        read(tmp_path, network(*layers, {"name": "b", "op": "tanh", "input": "a"}))
    with refused(f"{source}: softmax needs a layer of its own, but 'a' is an output too", "remove one of them"):
        read(tmp_path, network(*layers, outputs=["a", "s"]))
    with refused(f"{source}: beta must be a number above 0 and up to 1e+30, not 0", "for example beta = 1.0"):
        read(tmp_path, network(layers[0], {**layers[1], "beta": 0}))


# ----------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"op": "pad"}, "padding is missing", "add padding = [[1, 1], [1, 1]]"),
        (
            {"op": "crop", "cropping": "same"},
            "cropping must be [[top, bottom], [left, right]], integers from 0 to 1048576, not 'same'",
            "for example cropping = [[1, 1], [1, 1]]",
        ),
        ({"op": "crop", "cropping": [[2, 2], [0, 0]]}, "nothing is left of its 4×6 input", "crop less"),
        ({"op": "reshape", "shape": [5, 5, 2]}, "4×6×2 samples cannot be 5×5×2", "keep the number of samples"),
        ({"op": "leaky_relu"}, "alpha is missing", "add alpha = 0.1"),
        ({"op": "sigmoid", "alpha": 1.0}, "field 'alpha' is not known here", "choose from 'input', 'inputs', 'name', 'op'"),
        ({"op": "multiply"}, "op 'multiply' takes 2 inputs, not 1", 'name them, for example inputs = ["a", "b"]'),
    ],
)  # fmt: skip
def test_wrong_tables(fields: dict[str, Any], message: str, hint: str, tmp_path: Path) -> None:
    with refused(f"net.json: layer 1 'a': {message}", hint):
        read(tmp_path, network({"name": "a", **fields}))


def test_the_hash_of_a_network_is_that_of_both_files(tmp_path: Path) -> None:
    path = write(tmp_path, network({"name": "a", "op": "prelu"}), {"a.slope": np.array([1.0, 2.0])})
    first = source_sha256(path)
    assert first == hashlib.sha256(path.read_bytes() + (tmp_path / "net.npz").read_bytes()).hexdigest()
    write(tmp_path, network({"name": "a", "op": "prelu"}), {"a.slope": np.array([1.0, 2.5])})
    assert source_sha256(path) != first
