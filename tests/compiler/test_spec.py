"""The native format: what is read, and every way to get it wrong, with the exact words that come back."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from convfold.compiler import fields, npz, spec
from convfold.compiler import layers as operators
from convfold.compiler.errors import CompileError
from convfold.compiler.graph import BatchNorm, Clip, Conv2D, Dense, Graph, MaxPool, Pca, same_padding, window_size
from convfold.compiler.npz import read_npz
from convfold.compiler.spec import load_spec

Tree = Any
Arrays = dict[str, NDArray[Any]]

SECONDS = 2.0
"""No malformed file may take longer, in seconds of the processor: other tests run beside this one."""

TOML = """
[network]
name = "net"
weights = "net.npz"
input = { shape = [8, 8, 2], range = [0.0, 1.0] }
[[layer]]
name = "edges"
op = "conv2d"
padding = "same"
[[layer]]
name = "rect"
op = "relu"
[[layer]]
name = "scores"
op = "dense"
"""

TREE: Tree = {
    "network": {"name": "net", "weights": "net.npz", "input": {"shape": [8, 8, 2], "range": [0.0, 1.0]}},
    "layer": [
        {"name": "edges", "op": "conv2d", "padding": "same"},
        {"name": "rect", "op": "relu"},
        {"name": "scores", "op": "dense"},
    ],
}


def weights() -> Arrays:
    """Those of `TREE`."""
    rng = np.random.default_rng(7)
    shapes = {"edges.w": (4, 3, 3, 2), "edges.b": (4,), "scores.w": (3, 256), "scores.b": (3,)}
    return {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def save(path: Path, arrays: Arrays) -> None:
    np.savez(path, allow_pickle=False, **arrays)


def write(folder: Path, tree: Tree, arrays: Arrays) -> Path:
    save(folder / "net.npz", arrays)
    path = folder / "net.json"
    path.write_text(json.dumps(tree))
    return path


def load(folder: Path, tree: Tree, **arrays: NDArray[Any]) -> Graph:
    """A network of its own layers and arrays, in the usual input."""
    return load_spec(write(folder, {"network": TREE["network"], "layer": tree}, arrays))


def refused(path: Path, text: str, fix: str) -> None:
    """The specification is refused at once, in exactly these words."""
    start = time.process_time()
    with pytest.raises(CompileError, match=rf"^{re.escape(text)}\n  fix: {re.escape(fix)}$"):
        load_spec(path)
    assert time.process_time() - start < SECONDS


# ----------------------------------------------------------------------------------------------- what is read


def test_toml_and_json_are_one_format(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(TOML, encoding="utf-8-sig")
    from_json = load_spec(write(tmp_path, TREE, weights()))
    from_toml = load_spec(tmp_path / "net.toml")
    expected = (
        "input: 8×8×2 = input()\n"
        "edges: 8×8×4 = conv2d(input, 3×3, padding ((1, 1), (1, 1)))\n"
        "rect: 8×8×4 = clip(edges, 0 … inf)\n"
        "scores: 1×1×3 = dense(rect)\n"
        "return scores"
    )
    assert str(from_toml) == str(from_json) == expected
    assert [node.source for node in from_toml.nodes] == [
        "net.toml: [network] input",
        "net.toml: layer 1 'edges'",
        "net.toml: layer 2 'rect'",
        "net.toml: layer 3 'scores'",
    ]
    assert (from_toml.input.low, from_toml.input.high) == (0.0, 1.0)


def test_arrays_become_float64_with_class_axes(tmp_path: Path) -> None:
    arrays = weights()
    graph = load_spec(write(tmp_path, TREE, arrays))
    assert {name: array.shape for name, array in graph.weights.items()} == {
        "edges.w": (1, 1, 4, 3, 3, 2),
        "edges.b": (1, 1, 4),
        "scores.w": (3, 256),
        "scores.b": (3,),
    }
    assert all(array.dtype == np.float64 for array in graph.weights.values())
    assert np.array_equal(graph.weights["edges.w"][0, 0], arrays["edges.w"])
    assert np.array_equal(graph.weights["scores.w"], arrays["scores.w"])


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "i1", "u1", ">i2", "u8"])
def test_every_plain_number_type_is_read(tmp_path: Path, dtype: str) -> None:
    w_oi = np.asfortranarray(np.arange(3 * 128).reshape(3, 128) % 100, dtype=dtype)
    graph = load(tmp_path, [{"name": "scores", "op": "dense"}], **{"scores.w": w_oi})
    assert np.array_equal(graph.weights["scores.w"], w_oi)


def test_biases_gains_and_offsets_may_be_left_out(tmp_path: Path) -> None:
    layers = [
        {"name": "edges", "op": "conv2d"},
        {"name": "norm", "op": "batch_norm", "epsilon": 1e-3},
        {"name": "scores", "op": "dense"},
    ]
    arrays = {"edges.w": np.ones((4, 1, 1, 2)), "norm.mean": np.ones(4), "norm.var": np.ones(4)}
    graph = load(tmp_path, layers, **arrays, **{"scores.w": np.ones((3, 256))})
    assert graph.weights["edges.b"].tolist() == [[[0.0] * 4]]
    assert graph.weights["norm.gamma"].tolist() == [1.0] * 4
    assert graph.weights["norm.beta"].tolist() == [0.0] * 4
    assert graph.weights["scores.b"].tolist() == [0.0] * 3
    norm = graph.node("norm")
    assert isinstance(norm, BatchNorm) and norm.epsilon == 1e-3


def test_every_field_of_every_operator(tmp_path: Path) -> None:
    layers = [
        {
            "name": "a",
            "op": "conv2d",
            "stride": [2, 1],
            "padding": [[0, 1], [2, 3]],
            "bits": 6,
            "weight_bits": 4,
        },
        {"name": "b", "op": "pca"},
        {"name": "c", "op": "relu6"},
        {"name": "d", "op": "clip", "low": -1, "high": 2.5},
        {"name": "e", "op": "max_pool", "kernel": 2},
        {"name": "f", "op": "max_pool", "kernel": [2, 3], "stride": 1, "padding": "same"},
        {"name": "g", "op": "dense", "bits": 2, "weight_bits": 16},
    ]
    arrays = {"a.w": np.ones((4, 3, 2, 2)), "b.components": np.ones((3, 4)), "b.mean": np.ones(4)}
    graph = load(tmp_path, layers, **arrays, **{"g.w": np.ones((5, 2 * 6 * 3))})
    name: dict[str, Any] = {
        node.name: {"name": node.name, "inputs": node.inputs, "source": node.source} for node in graph.nodes
    }
    assert graph.nodes[1:] == (
        Conv2D(**name["a"], stride=(2, 1), padding=((0, 1), (2, 3)), bits=6, weight_bits=4),
        Pca(**name["b"]),
        Clip(**name["c"], low=0.0, high=6.0),
        Clip(**name["d"], low=-1.0, high=2.5),
        MaxPool(**name["e"], kernel=(2, 2), stride=(2, 2)),
        MaxPool(**name["f"], kernel=(2, 3), stride=(1, 1), padding=((0, 1), (1, 1))),
        Dense(**name["g"], bits=2, weight_bits=16),
    )
    assert [graph.shapes[node.name] for node in graph.nodes[1:]] == [
        (4, 12, 4), (4, 12, 3), (4, 12, 3), (4, 12, 3), (2, 6, 3), (2, 6, 3), (1, 1, 5),
    ]  # fmt: skip


@given(size=st.integers(1, 40), kernel=st.integers(1, 9), stride=st.integers(1, 6))
def test_same_padding_is_the_least_that_gives_every_stride_an_output(
    size: int, kernel: int, stride: int
) -> None:
    begin, end = same_padding(size, kernel, stride)
    assert fields.PADDINGS["same"]((size, 9, 1), (kernel, 4), (stride, 2)) == ((begin, end), (1, 2))
    assert window_size(size, kernel, stride, (begin, end)) == -(-size // stride)
    assert 0 <= end - begin <= 1
    if end:
        assert window_size(size, kernel, stride, (begin, end - 1)) < -(-size // stride)


def test_layers_in_any_order_with_several_outputs(tmp_path: Path) -> None:
    tree = copy.deepcopy(TREE)
    tree["network"] |= {"outputs": ["pooled", "scores"], "labels": ["u", "v", "w", "x"]}
    tree["layer"] = [
        {"name": "scores", "op": "dense", "input": "rect"},
        {"name": "pooled", "op": "max_pool", "kernel": 2, "inputs": ["rect"]},
        {"name": "rect", "op": "relu", "input": "edges"},
        {"name": "edges", "op": "conv2d", "padding": "same", "input": "input"},
    ]
    graph = load_spec(write(tmp_path, tree, weights()))
    assert [node.name for node in graph.nodes] == ["input", "edges", "rect", "scores", "pooled"]
    assert graph.outputs == ("pooled", "scores")
    assert graph.labels == ("u", "v", "w", "x")
    assert graph.node("scores").source == "net.json: layer 1 'scores'"


def test_the_digits_example_is_a_specification(tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.toml"
    shapes: dict[str, tuple[int, ...]] = {
        "edges.w": (8, 3, 3, 1), "blend.w": (24, 3, 3, 8), "mix.w": (16, 3, 3, 8), "classify.w": (10, 256),
        "project.components": (8, 24), "project.mean": (24,), "norm.mean": (16,), "norm.var": (16,),
    }  # fmt: skip
    (tmp_path / "digits.toml").write_bytes(example.read_bytes())
    save(tmp_path / "digits.npz", {name: np.ones(shape) for name, shape in shapes.items()})
    assert load_spec(tmp_path / "digits.toml").shapes["classify"] == (1, 1, 10)


# -------------------------------------------------------------------------------------------- what is refused

Change = Callable[[Tree], object]


def in_network(**fields: object) -> Change:
    return lambda tree: tree["network"].update(fields)


def in_input(**fields: object) -> Change:
    return lambda tree: tree["network"]["input"].update(fields)


def in_layer(number: int, **fields: object) -> Change:
    return lambda tree: tree["layer"][number - 1].update(fields)


def as_layer(number: int, **fields: object) -> Change:
    return lambda tree: tree["layer"].__setitem__(number - 1, fields)


NET, EDGES, RECT, SCORES = (
    f"net.json: {part}" for part in ("[network]", "layer 1 'edges'", "layer 2 'rect'", "layer 3 'scores'")
)
TABLES = "net.json: layer must be 1 to 1024 tables, each under its own [[layer]]"
LABELS = "a list of different printable strings of 1 to 64 characters"
STEPS = "an integer from 1 to 1048576, or [vertical, horizontal]"
PADS = '"same", "valid" or [[top, bottom], [left, right]], integers from 0 to 1048576'
SHAPE = "[height, width, channels], integers from 1 to 268435456"
RANGE = "[low, high], numbers up to 1e+30, low below high"
LETTERS = "must be 1 to 64 ASCII letters, digits and _, no digit first"

TREES: dict[str, tuple[Change, str, str]] = {
    # the file as a whole
    "no network": (
        lambda tree: tree.pop("network"),
        "net.json: network is missing",
        'add network = { name = "net", weights = "net.npz" }',
    ),
    "network misspelt": (
        lambda tree: tree.update(netwrok=tree.pop("network")),
        "net.json: network is missing",
        "rename 'netwrok' to 'network'",
    ),
    "network no table": (
        lambda tree: tree.update(network=[]),
        "net.json: network must be a table, not []",
        'for example network = { name = "net", weights = "net.npz" }',
    ),
    "layer a table": (
        lambda tree: tree.update(layer={"name": "a"}),
        f"{TABLES}, not {{'name': 'a'}}",
        'for example layer = [{ name = "first", op = "relu" }]',
    ),
    "no layers": (
        lambda tree: tree.update(layer=[]),
        f"{TABLES}, not []",
        'for example layer = [{ name = "first", op = "relu" }]',
    ),
    "layer no table": (
        lambda tree: tree["layer"].append(3),
        f"{TABLES}, not [{{'name': 'edges', 'op': 'conv2d', 'padding' …  'dense'}}, 3]",
        'for example layer = [{ name = "first", op = "relu" }]',
    ),
    "unknown section": (
        lambda tree: tree.update(layers=[]),
        "net.json: field 'layers' is not known here",
        "did you mean 'layer'?",
    ),
    # [network]
    "network unknown field": (
        in_network(label=["a"]),
        f"{NET}: field 'label' is not known here",
        "did you mean 'labels'?",
    ),
    "network unknown field, none near": (
        in_network(zzz=1),
        f"{NET}: field 'zzz' is not known here",
        "choose from 'input', 'labels', 'name', 'outputs', 'weights'",
    ),
    "network name": (in_network(name="my net"), f"{NET}: name 'my net' {LETTERS}", "call it 'my_net'"),
    "network name number": (
        in_network(name=3),
        f"{NET}: name must be a string, not 3",
        'for example name = "a"',
    ),
    "no input": (
        lambda tree: tree["network"].pop("input"),
        f"{NET}: input is missing",
        "add input = { shape = [32, 32, 3], range = [0.0, 1.0] }",
    ),
    "input no table": (
        in_network(input=[8, 8, 2]),
        f"{NET}: input must be a table, not [8, 8, 2]",
        "for example input = { shape = [32, 32, 3], range = [0.0, 1.0] }",
    ),
    "input no shape": (
        lambda tree: tree["network"]["input"].pop("shape"),
        f"{NET} input: shape is missing",
        "add shape = [32, 32, 3]",
    ),
    "input unknown field": (
        in_input(ranges=1),
        f"{NET} input: field 'ranges' is not known here",
        "did you mean 'range'?",
    ),
    **{
        f"shape {value}": (
            in_input(shape=value),
            f"{NET} input: shape must be {SHAPE}, not {value!r}",
            "for example shape = [32, 32, 3]",
        )
        for value in (
            [8, 8],
            [8, 8, 0],
            [8, -8, 2],
            [8, True, 2],
            [8, 8.0, 2],
            "8x8x2",
            8,
            [8, 8, 1 << 40],
            None,
        )
    },
    **{
        f"range {value}": (
            in_input(range=value),
            f"{NET} input: range must be {RANGE}, not {value!r}",
            "for example range = [0.0, 1.0]",
        )
        for value in (
            [1.0, 0.0],
            [0, 0],
            [0, 5e-324],
            [0.0],
            [False, True],
            ["0", "1"],
            [0, 1e31],
            [0, 10**40],
        )
    },
    "range nan": (
        in_input(range=[0.0, float("nan")]),
        f"{NET} input: range must be {RANGE}, not [0.0, nan]",
        "for example range = [0.0, 1.0]",
    ),
    "range inf": (
        in_input(range=[float("-inf"), 0.0]),
        f"{NET} input: range must be {RANGE}, not [-inf, 0.0]",
        "for example range = [0.0, 1.0]",
    ),
    "labels": (
        in_network(labels=["a", "b"]),
        f"{SCORES}: output has 3 channels, but there are 2 labels",
        "give one label a channel, in order, or none at all",
    ),
    **{
        f"labels {value}": (
            in_network(labels=value),
            f"{NET}: labels must be {LABELS}, not {value!r}",
            'for example labels = ["cat", "dog"]',
        )
        for value in (
            [],
            "abc",
            ["a", "a", "b"],
            ["a", "b", 3],
            ["a", "b", ""],
            ["a", "b", "\x1b[2J"],
            ["\ud800"],
        )
    },
    "outputs unknown": (
        in_network(outputs=["score"]),
        f"{NET}: output 'score' is not a layer",
        "did you mean 'scores'?",
    ),
    "outputs input": (
        in_network(outputs=["input"]),
        f"{NET}: output 'input' is not a layer",
        "choose from 'edges', 'rect', 'scores'",
    ),
    **{
        f"outputs {value}": (
            in_network(outputs=value),
            f"{NET}: outputs must be a list of different layer names, not {value!r}",
            'for example outputs = ["a"]',
        )
        for value in ([], "scores", ["scores", "scores"], [1])
    },
    "unused layer": (
        in_network(outputs=["rect"]),
        f"{SCORES}: no layer reads 'scores', and it is not an output",
        "let another layer read it, add it to [network] outputs, or remove it",
    ),
    # names
    **{
        f"name {name!r}": (
            in_layer(2, name=name),
            f"net.json: layer 2: name {name!r} {LETTERS}",
            f"call it {better!r}",
        )
        for name, better in {
            "": "_",
            "1st": "_1st",
            "a-b": "a_b",
            "a.b": "a_b",
            "a/../b": "a____b",
            "rect\n": "rect_",
            "x #": "x__",
            "naïve": "na_ve",
            "ﬁ": "_",
            "\ud800": "_",
            "a" * 40 + " b": "a" * 40 + "_b",
        }.items()
    },
    "long name": (
        in_layer(2, name="n" * 65),
        f"net.json: layer 2: name '{'n' * 43} … {'n' * 12}' {LETTERS}",
        f"call it '{'n' * 64}'",
    ),
    **{
        f"name {name}": (
            in_layer(2, name=name),
            f"net.json: layer 2: name {name!r} is a reserved word of Python or Verilog",
            f"call it '{name}_'",
        )
        for name in ("class", "None", "module", "output", "reg", "endmodule")
    },
    "two of one name": (
        in_layer(2, name="edges"),
        "net.json: layer 2 'edges': name 'edges' is taken by an earlier layer",
        "rename one of them",
    ),
    "two but for case": (
        in_layer(2, name="Edges"),
        "net.json: layer 2 'Edges': name 'Edges' differs from 'edges' only in case",
        "rename one of them",
    ),
    "name of the input": (
        in_layer(1, name="Input"),
        "net.json: layer 1 'Input': name 'Input' is taken by the network's input",
        "rename the layer",
    ),
    # layers
    "no op": (lambda tree: tree["layer"][1].pop("op"), f"{RECT}: op is missing", 'add op = "a"'),
    "unknown op": (in_layer(1, op="conv"), f"{EDGES}: op 'conv' is not known", "did you mean 'conv2d'?"),
    "unknown op, none near": (
        in_layer(1, op="lstm"),
        f"{EDGES}: op 'lstm' is not known",
        f"choose from {', '.join(map(repr, sorted(operators.OPERATORS)))}",
    ),
    "op no string": (
        in_layer(2, op=["relu"]),
        f"{RECT}: op must be a string, not ['relu']",
        'for example op = "a"',
    ),
    "unknown field": (
        in_layer(1, strides=2),
        f"{EDGES}: field 'strides' is not known here",
        "did you mean 'stride'?",
    ),
    "input unknown": (
        in_layer(3, input="rekt"),
        f"{SCORES}: input 'rekt' is not a layer",
        "did you mean 'rect'?",
    ),
    "input number": (
        in_layer(3, input=2),
        f"{SCORES}: input must be a string, not 2",
        'for example input = "a"',
    ),
    "input and inputs": (
        in_layer(3, input="rect", inputs=["rect"]),
        f"{SCORES}: input and inputs must not both be given",
        "remove one of them",
    ),
    "two inputs": (
        in_layer(3, inputs=["rect", "edges"]),
        f"{SCORES}: op 'dense' takes 1 input, not 2",
        "name one layer",
    ),
    "inputs empty": (
        in_layer(3, inputs=[]),
        f"{SCORES}: inputs must be a list of different layer names, not []",
        'for example inputs = ["a"]',
    ),
    "itself": (
        in_layer(2, input="rect"),
        f"{RECT}: layers feed each other in a circle: rect → rect",
        "give one of them another input",
    ),
    "circle": (
        in_layer(1, input="scores"),
        f"{EDGES}: layers feed each other in a circle: edges → rect → scores → edges",
        "give one of them another input",
    ),
    # fields of operators
    **{
        f"stride {value}": (
            in_layer(1, stride=value),
            f"{EDGES}: stride must be {STEPS}, not {value!r}",
            "for example stride = [2, 2]",
        )
        for value in (0, -1, True, [True, True], 1.0, "2", [1], [1, 0], [1, 2, 3], 1 << 60, {"y": 1}, None)
    },
    **{
        f"padding {value}": (
            in_layer(1, padding=value),
            f"{EDGES}: padding must be {PADS}, not {value!r}",
            'for example padding = "same"',
        )
        for value in (
            "SAME",
            1,
            True,
            [1, 1],
            [[1, 1]],
            [[1, 1], [1]],
            [[1, -1], [0, 0]],
            [[0, True], [0, 0]],
            None,
        )
    },
    **{
        f"bits {value}": (
            in_layer(1, bits=value),
            f"{EDGES}: bits must be an integer from 2 to 16, not {value!r}",
            "for example bits = 8",
        )
        for value in (1, 17, True, 8.0, "8")
    },
    "weight_bits": (
        in_layer(3, weight_bits=0),
        f"{SCORES}: weight_bits must be an integer from 2 to 16, not 0",
        "for example weight_bits = 8",
    ),
    "window too large": (
        as_layer(2, name="rect", op="max_pool", kernel=9),
        f"{RECT}: a 9×9 window does not fit into its 8×8 input, so the output is empty",
        "use a smaller kernel, or padding",
    ),
    "pool without kernel": (
        as_layer(2, name="rect", op="max_pool"),
        f"{RECT}: kernel is missing",
        "add kernel = [2, 2]",
    ),
    "pool with kernel misspelt": (
        as_layer(2, name="rect", op="max_pool", kernal=2),
        f"{RECT}: kernel is missing",
        "rename 'kernal' to 'kernel'",
    ),
    "clip without high": (
        as_layer(2, name="rect", op="clip", low=0),
        f"{RECT}: high is missing",
        "add high = 6.0",
    ),
    "clip upside down": (
        as_layer(2, name="rect", op="clip", low=1, high=1),
        f"{RECT}: low must be below high, not 1 and 1",
        "for example low = 0 and high = 6",
    ),
    "clip nan": (
        as_layer(2, name="rect", op="clip", low=float("nan"), high=1),
        f"{RECT}: low must be a number up to 1e+30, or inf, not nan",
        "for example low = 6.0",
    ),
    "epsilon": (
        as_layer(2, name="rect", op="batch_norm", epsilon=-1e-5),
        f"{RECT}: epsilon must be a number from 0 to 1, not -1e-05",
        "for example epsilon = 1e-5",
    ),
    "no epsilon": (
        as_layer(2, name="rect", op="batch_norm"),
        f"{RECT}: epsilon is missing",
        "add epsilon = 1e-5",
    ),
}


@pytest.mark.parametrize("case", TREES)
def test_wrong_tree(tmp_path: Path, case: str) -> None:
    change, text, fix = TREES[case]
    tree = copy.deepcopy(TREE)
    change(tree)
    refused(write(tmp_path, tree, weights()), text, fix)


def test_wrong_values_print_whatever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    save(tmp_path / "net.npz", weights())
    path.write_text(TOML.replace('padding = "same"', f"stride = 0x{'f' * 10_000}"))
    start = f"net.toml: layer 1 'edges': stride must be {STEPS}, not"
    refused(path, f"{start} something of type int too long to print", "for example stride = [2, 2]")
    path.write_text(TOML.replace('padding = "same"', "stride = 1979-05-27"))
    refused(path, f"{start} datetime.date(1979, 5, 27)", "for example stride = [2, 2]")


@pytest.mark.parametrize(
    ("layer", "text", "fix"),
    [
        (
            {"op": "max_pool", "kernel": 2, "padding": [[2, 0], [0, 0]]},
            "padding must be below the kernel (2, 2), not ((2, 0), (0, 0))",
            "pad less: a window of nothing but padding has no greatest value, and no mean",
        ),
        (
            {"op": "max_pool", "kernel": 1 << 20, "padding": [[1 << 19, 1 << 19], [1 << 19, 1 << 19]]},
            "padded input 1048584×1048584×2 must have at most 268435456 elements",
            "pad less",
        ),
        (
            {"op": "conv2d", "padding": [[1 << 15, 0], [1 << 15, 0]]},
            "output 32776×32776×1 must have 1 to 268435456 elements",
            "shrink the input, or use a larger stride",
        ),
    ],
)
def test_windows_that_make_no_sense(tmp_path: Path, layer: Tree, text: str, fix: str) -> None:
    arrays = {"a.w": np.ones((1, 1, 1, 2))} if layer["op"] == "conv2d" else {}
    path = write(tmp_path, {"network": TREE["network"], "layer": [{"name": "a", **layer}]}, arrays)
    refused(path, f"net.json: layer 1 'a': {text}", fix)


def test_input_of_too_many_elements(tmp_path: Path) -> None:
    network = TREE["network"] | {"input": {"shape": [1 << 14, 1 << 14, 2], "range": [0, 1]}}
    path = write(tmp_path, {"network": network, "layer": [{"name": "a", "op": "relu"}]}, {})
    refused(
        path,
        "net.json: [network] input: output 16384×16384×2 must have 1 to 268435456 elements",
        "shrink the input, or use a larger stride",
    )


def test_long_circles_are_cut(tmp_path: Path) -> None:
    layers = [{"name": f"a{n}", "op": "relu"} for n in range(1000)]
    layers[0]["input"] = "a999"
    path = write(tmp_path, {"network": TREE["network"], "layer": layers}, {})
    refused(
        path,
        "net.json: layer 1 'a0': layers feed each other in a circle: a0 → a1 → a2 → a3 → a4 → a5 → … → a0",
        "give one of them another input",
    )


# -------------------------------------------------------------------------------------------- the file itself


@pytest.mark.parametrize("name", ["net.txt", "net", ".toml", "net.toml.gz"])
def test_wrong_ending(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TOML)
    refused(tmp_path / name, f"{name}: a specification must end in .toml or .json", "rename the file")


def test_no_plain_file(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    for name in ("none.toml", "folder.toml", "pipe.toml", "loop.toml"):
        refused(tmp_path / name, f"{name}: {name!r} is not a file", "check the name and the folder")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "net.toml").write_text(TOML)
    monkeypatch.setattr(Path, "open", denied)
    refused(
        tmp_path / "net.toml",
        "net.toml: 'net.toml' cannot be read: Permission denied",
        "check the file",
    )


def test_names_of_files_are_printable(tmp_path: Path) -> None:
    refused(
        tmp_path / "a\x1b[2J\n.toml",
        "'a\\x1b[2J\\n.toml': 'a\\x1b[2J\\n.toml' is not a file",
        "check the name and the folder",
    )


def test_too_large_a_file(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text("#" * (spec.MAX_SPEC_BYTES + 1))
    refused(
        tmp_path / "net.toml",
        "net.toml: 'net.toml' must not exceed 262144 bytes, but has 262145",
        "make the file smaller",
    )


FILES: dict[str, tuple[str, bytes, str]] = {
    "empty toml": ("toml", b"", "net.toml: network is missing\n"),
    "syntax": (
        "toml",
        b"[network]\nname net",
        r"net.toml: is not valid TOML: .*line 2.*\n  fix: correct the TOML",
    ),
    "place": ("toml", b"a = 1\n = 2", r"net.toml: is not valid TOML: .*\(at line 2, column 2\)\n"),
    "given twice": ("toml", b"a = 1\na = 2", "net.toml: is not valid TOML: Cannot overwrite a value "),
    "layer once a table": ("toml", b"[layer]\n[[layer]]", "net.toml: is not valid TOML: "),
    "nul": ("toml", b"a = '\0'", "net.toml: is not valid TOML: "),
    "latin-1": (
        "toml",
        b"name = '\xe9'",
        "net.toml: is not valid TOML: 'utf-8' codec can't decode byte 0xe9",
    ),
    "deep array": ("toml", b"a = " + b"[" * 100_000, "net.toml: is not valid TOML: "),
    "deep table": ("toml", b"a = " + b"{a=" * 50_000, "net.toml: is not valid TOML: "),
    "long number": ("toml", b"a = " + b"9" * 100_000, "net.toml: is not valid TOML: "),
    "dotted key": (
        "toml",
        b"a." * 100_000 + b"a = 1",
        r"net.toml: is not valid TOML: more than 16 dots on line 1: break it\n",
    ),
    "dotted table": (
        "toml",
        b"\n[" + b"a." * 100_000 + b"a]",
        r"net.toml: is not valid TOML: more than 16 dots on line 2: break it\n",
    ),
    "binary": ("toml", bytes(range(256)) * 100, "net.toml: is not valid TOML: "),
    "empty json": ("json", b"", "net.json: is not valid JSON: Expecting value"),
    "trailing comma": (
        "json",
        b'{"a": 1,}',
        r"net.json: is not valid JSON: .*line 1.*\n  fix: correct the JSON",
    ),
    "field twice": ("json", b'{"a": 1, "a": 2}', "net.json: is not valid JSON: field 'a' is given twice\n"),
    "deep json": ("json", b"[" * 200_000, "net.json: is not valid JSON: "),
    "deep object": ("json", b'{"a":' * 50_000, "net.json: is not valid JSON: "),
    "long json number": ("json", b"9" * 100_000, "net.json: is not valid JSON: "),
    "a list": ("json", b"[1]", r"net.json: must be a table, not \[1\]\n  fix: write "),
    "nan": ("json", b"NaN", "net.json: must be a table, not nan\n  fix: write "),
    "null": ("json", b"null", "net.json: must be a table, not None\n  fix: write "),
}


@pytest.mark.parametrize("case", FILES)
def test_wrong_file(tmp_path: Path, case: str) -> None:
    suffix, data, pattern = FILES[case]
    path = tmp_path / f"net.{suffix}"
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(CompileError, match=rf"^{pattern}"):
        load_spec(path)
    assert time.process_time() - start < SECONDS


def test_the_slowest_legal_toml_is_quick(tmp_path: Path) -> None:
    """The dots that are allowed, as often as the file may be long."""
    lines = spec.MAX_SPEC_BYTES // (8 + 2 * spec.MAX_DOTS)
    line = "".join(f"[a{n}." + "a." * (spec.MAX_DOTS - 1) + "a]\n" for n in range(lines))
    (tmp_path / "net.toml").write_text(line)
    start = time.process_time()
    with pytest.raises(CompileError, match=r"^net\.toml: network is missing\n"):
        load_spec(tmp_path / "net.toml")
    assert time.process_time() - start < SECONDS


# ------------------------------------------------------------------------------------------------ the weights

WEIGHTS = f"{NET} weights"
NUMBERS = "numbers from -1e+30 to 1e+30"


def one_less(array: NDArray[Any]) -> NDArray[Any]:
    return array[:-1]


def holding(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(array: NDArray[Any]) -> NDArray[Any]:
        array = array.copy()
        array[(1,) * array.ndim] = value
        return array

    return change


ARRAYS: dict[str, tuple[str, Callable[[NDArray[Any]], NDArray[Any]], str, str]] = {
    "Keras axes": (
        "edges.w",
        lambda w: w.transpose(1, 2, 3, 0),
        f"{EDGES}: array 'edges.w' in net.npz must have shape (out, kh, kw, 2), not (3, 3, 2, 4)",
        operators.CONV_HINT,
    ),
    "no axes": (
        "edges.w",
        lambda w: w.reshape(-1),
        f"{EDGES}: array 'edges.w' in net.npz must have shape (out, kh, kw, 2), not (72,)",
        operators.CONV_HINT,
    ),
    "no outputs": (
        "edges.w",
        lambda w: w[:0],
        f"{EDGES}: array 'edges.w' in net.npz must have shape (out, kh, kw, 2), not (0, 3, 3, 2)",
        operators.CONV_HINT,
    ),
    "bias": (
        "edges.b",
        one_less,
        f"{EDGES}: array 'edges.b' in net.npz must have shape (4,), not (3,)",
        "save it with shape (4,)",
    ),
    "scalar": (
        "edges.b",
        lambda b: b[0],
        f"{EDGES}: array 'edges.b' in net.npz must have shape (4,), not ()",
        "save it with shape (4,)",
    ),
    "dense": (
        "scores.w",
        lambda w: w.T,
        f"{SCORES}: array 'scores.w' in net.npz must have shape (out, 256), not (256, 3)",
        operators.DENSE_HINT,
    ),
    **{
        f"{value}": (
            "edges.w",
            holding(value),
            f"{EDGES}: array 'edges.w' in net.npz must hold {NUMBERS}, not {value:g} at [1, 1, 1, 1]",
            "train again, or replace the value",
        )
        for value in (float("nan"), float("inf"), float("-inf"), 2e30)
    },
    "signalling nan": (
        "edges.b",
        lambda b: np.frombuffer(struct.pack("<4I", 0, 0x7F800001, 0, 0), "<f4"),
        f"{EDGES}: array 'edges.b' in net.npz must hold {NUMBERS}, not nan at [1]",
        "train again, or replace the value",
    ),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_wrong_array(tmp_path: Path, case: str) -> None:
    name, change, text, fix = ARRAYS[case]
    arrays = weights()
    refused(write(tmp_path, TREE, arrays | {name: change(arrays[name])}), text, fix)


NORM = {"mean": np.zeros(2), "var": np.ones(2)}


@pytest.mark.parametrize(
    ("epsilon", "arrays", "text", "fix"),
    [
        (
            1e-5,
            NORM | {"var": np.array([1.0, -0.5])},
            "array 'a.var' in net.npz must hold numbers from 0 to 1e+30, not -0.5 at [1]",
            "train again, or replace the value",
        ),
        (
            0,
            NORM | {"var": np.zeros(2)},
            "variance + epsilon must be at least 1e-30, not 0",
            "use epsilon = 1e-5",
        ),
        (
            1e-5,
            {"mean": np.zeros(2)},
            "array 'a.var' of shape (2,) is missing in net.npz",
            "add it",
        ),
        (
            1e-5,
            {"moving_mean": np.zeros(2)},
            "array 'a.mean' of shape (2,) is missing in net.npz",
            "rename 'a.moving_mean' to 'a.mean'",
        ),
    ],
)
def test_wrong_batch_norm(tmp_path: Path, epsilon: float, arrays: Arrays, text: str, fix: str) -> None:
    tree = {"network": TREE["network"], "layer": [{"name": "a", "op": "batch_norm", "epsilon": epsilon}]}
    path = write(tmp_path, tree, {f"a.{part}": array for part, array in arrays.items()})
    refused(path, f"net.json: layer 1 'a': {text}", fix)


def test_wrong_pca(tmp_path: Path) -> None:
    tree = {"network": TREE["network"], "layer": [{"name": "a", "op": "pca"}]}
    path = write(tmp_path, tree, {"a.components": np.ones((2, 3)), "a.mean": np.zeros(2)})
    start = "net.json: layer 1 'a': array 'a.components' in net.npz must have shape"
    refused(path, f"{start} (components, 2), not (2, 3)", "save it with shape (components, 2)")


def test_missing_and_spare_arrays(tmp_path: Path) -> None:
    arrays = weights()
    w_ohwi = arrays.pop("edges.w")
    shape = f"{EDGES}: array 'edges.w' of shape (out, kh, kw, 2) is missing in net.npz"
    refused(write(tmp_path, TREE, arrays), shape, "add it")
    renamed = arrays | {"edgse.w": w_ohwi}
    refused(write(tmp_path, TREE, renamed), shape, "rename 'edgse.w' to 'edges.w'")
    spare = weights() | {"zzz": np.ones(1)}
    belongs = "in net.npz belongs to no layer"
    refused(write(tmp_path, TREE, spare), f"{WEIGHTS}: array 'zzz' {belongs}", "remove it")
    bias = weights()
    bias["edges.bias"] = bias.pop("edges.b")
    refused(write(tmp_path, TREE, bias), f"{WEIGHTS}: array 'edges.bias' {belongs}", "rename it to 'edges.b'")


@pytest.mark.parametrize(
    "name", ["../net.npz", "sub/../../net.npz", "/net.npz", "link.npz", "out/net.npz", ".."]
)
def test_paths_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder, TREE, weights())
    (folder / "net.npz").rename(tmp_path / "net.npz")
    (folder / "link.npz").symlink_to(tmp_path / "net.npz")
    (folder / "out").symlink_to(tmp_path)
    (folder / "net.json").write_text(json.dumps(TREE | {"network": TREE["network"] | {"weights": name}}))
    refused(
        folder / "net.json",
        f"{NET}: weights {name!r} leaves the folder of the specification",
        "copy the file into it",
    )


def test_links_and_folders_inside_the_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    tree = TREE | {"network": TREE["network"] | {"weights": "sub/../link.npz"}}
    path = write(tmp_path, tree, weights())
    (tmp_path / "net.npz").rename(tmp_path / "sub" / "real.npz")
    (tmp_path / "link.npz").symlink_to("sub/real.npz")
    assert load_spec(path).shapes["scores"] == (1, 1, 3)


@pytest.mark.parametrize("name", ["none.npz", ".", "", "net.json/x.npz"])
def test_weights_that_are_no_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, TREE | {"network": TREE["network"] | {"weights": name}}, weights())
    with pytest.raises(
        CompileError, match=rf"^{re.escape(WEIGHTS)}: '[^']*' is not a file\n  fix: check the name"
    ):
        load_spec(path)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "n" * 300, "loop.npz"])
def test_weights_that_are_no_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop.npz").symlink_to("loop.npz")
    path = write(tmp_path, TREE | {"network": TREE["network"] | {"weights": name}}, weights())
    # Python 3.13 resolves a circle of links to itself, and finds no file there.
    with pytest.raises(
        CompileError, match=rf"^{re.escape(NET)}.*( is not a path: |cannot be read: |is not a file)"
    ):
        load_spec(path)


# ------------------------------------------------------------------------------------------- hostile archives


def refused_npz(path: Path, text: str) -> None:
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(CompileError, match=rf"^here: {text}"):
            read_npz(path, "here")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < SECONDS


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """The start of an ``.npy`` file with this header."""
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode("latin-1")


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as stream:
        for name, data in members.items():
            stream.writestr(name, data)
    return path


FLOATS = "{'descr': '<f8', 'fortran_order': False, 'shape': %s, }"

MEMBERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "EOF: .*"),
    "text": (b"hello, world", "the magic string is not correct.*"),
    "version": (header("{}", (3, 0)), "format 3.0 holds named fields, not numbers"),
    "header cut": (header(FLOATS % "(2,)")[:40], "EOF: .*"),
    "header long": (header(" " * 60_000), "Header info length .*"),
    "header no dictionary": (header("[]"), "Header is not a dictionary.*"),
    "header code": (header("__import__('os').getcwd()"), ".*"),
    "header deep": (header("-" * 9_000 + "1"), ".*"),
    "header other keys": (header("{'descr': '<f8'}"), "Header does not contain the correct keys.*"),
    "cut": (npy(np.ones(9))[:-1], r"shape \(9,\) does not match its 199 bytes"),
    "more": (npy(np.ones(9)) + b"x", r"shape \(9,\) does not match its 201 bytes"),
    "huge": (
        header(FLOATS % "(1000000, 1000000)"),
        r"shape \(1000000, 1000000\) does not match its \d+ bytes",
    ),
    "negative": (header(FLOATS % "(-1, -1)") + bytes(8), r"shape \(-1, -1\) does not match its \d+ bytes"),
    "no shape": (header(FLOATS % "'abc'"), "shape is not valid: 'abc'"),
    "named fields": (npy(np.zeros(1, "<f4, <i4")), r"it holds .*, not integers or float64 numbers at most"),
    "complex": (npy(np.ones(1, complex)), "it holds 'complex128', not integers or float64 numbers at most"),
    "strings": (npy(np.array(["a"])), "it holds '<U1', not integers or float64 numbers at most"),
    "booleans": (npy(np.ones(1, bool)), "it holds 'bool', not integers or float64 numbers at most"),
    "dates": (
        npy(np.zeros(1, "M8[s]")),
        r"it holds 'datetime64\[s\]', not integers or float64 numbers at most",
    ),
    "nothing": (
        header("{'descr': '|V0', 'fortran_order': False, 'shape': (1,), }"),
        "it holds '.*', not integers.*",
    ),
}


@pytest.mark.parametrize("case", MEMBERS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_arrays(tmp_path: Path, case: str, method: int) -> None:
    data, reason = MEMBERS[case]
    path = archive(tmp_path / "net.npz", {"a.npy": data}, method)
    refused_npz(
        path, rf"array 'a' in 'net.npz' cannot be read: {reason}\n  fix: save plain arrays with numpy.savez$"
    )


def test_headers_of_python_2(tmp_path: Path) -> None:
    path = archive(tmp_path / "net.npz", {"a.npy": header(FLOATS % "(2L,)") + bytes(16)})
    assert read_npz(path, "here")["a"].tolist() == [0.0, 0.0]


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """An array of objects whose unpickling would leave a file behind."""
    trap = tmp_path / "sprung"
    pickled = b"cos\nsystem\n(S'touch %s'\ntR." % str(trap).encode()
    data = header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + pickled
    path = archive(tmp_path / "net.npz", {"a.npy": data})
    refused_npz(
        path, "array 'a' in 'net.npz' cannot be read: it holds 'object', not integers or float64 numbers"
    )
    for content in (data, pickled):
        path.write_bytes(content)
        refused_npz(
            path, "'net.npz' is not an .npz file: File is not a zip file\n  fix: save it with numpy.savez$"
        )
    assert not trap.exists()


def test_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "net.npz"
    for data in (b"", b"PK", npy(np.ones(3)), bytes(range(256))):
        path.write_bytes(data)
        refused_npz(path, "'net.npz' is not an .npz file: .*\n  fix: save it with numpy.savez$")


def test_other_members(tmp_path: Path) -> None:
    for name in ("a", "a.txt", "folder/", "../../a", "a.npy/"):
        path = archive(tmp_path / "net.npz", {name: npy(np.ones(2))})
        refused_npz(path, rf"array '{re.escape(name)}' in 'net.npz' cannot be read: it is not an array\n")
    path = archive(tmp_path / "net.npz", {"\x1b[2J\n": b""})
    refused_npz(path, r"array '\\x1b\[2J\\n' in 'net.npz' cannot be read: it is not an array\n")


def test_names_are_never_paths(tmp_path: Path) -> None:
    path = archive(tmp_path / "net.npz", {"../../a.npy": npy(np.ones(2)), "/b.npy": npy(np.ones(2))})
    assert list(read_npz(path, "here")) == ["../../a", "/b"]
    assert sorted(tmp_path.iterdir()) == [path]


def test_one_name_twice(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        with zipfile.ZipFile(tmp_path / "net.npz", "w") as stream:
            stream.writestr("a.npy", npy(np.ones(2)))
            stream.writestr("a.npy", npy(np.zeros(2)))
    refused_npz(tmp_path / "net.npz", "array 'a' in 'net.npz' cannot be read: it is there twice\n")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packers(tmp_path: Path, method: int) -> None:
    path = archive(tmp_path / "net.npz", {"a.npy": npy(np.ones(2))}, method)
    refused_npz(
        path, "array 'a' in 'net.npz' cannot be read: it is packed in a way that numpy does not use\n"
    )


def test_bombs(tmp_path: Path) -> None:
    zeros = npy(np.zeros(1 << 20))
    path = archive(tmp_path / "net.npz", {"a.npy": zeros})
    refused_npz(path, "array 'a' in 'net.npz' cannot be read: it is packed more than 200 times\n")
    path = archive(tmp_path / "net.npz", {"a.npy": npy(np.zeros(1 << 16))})
    assert not read_npz(path, "here")["a"].any()  # half a megabyte of zeros is no bomb

    for claimed, text in (
        (
            1 << 40,
            "'net.npz' must not hold more than 268435456 bytes unpacked\n  fix: save the weights as float32$",
        ),
        (200, "array 'a' in 'net.npz' cannot be read: .*\n"),
    ):
        with zipfile.ZipFile(tmp_path / "net.npz", "w", zipfile.ZIP_DEFLATED) as stream:
            stream.writestr("a.npy", zeros)
            stream.filelist[0].file_size = claimed
        refused_npz(path, text)


def test_a_member_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    """The header fits the size that is claimed, and gigabytes follow: only the claimed bytes are unpacked."""
    start = npy(np.ones(9))
    with zipfile.ZipFile(tmp_path / "net.npz", "w", zipfile.ZIP_DEFLATED) as stream:
        stream.writestr("a.npy", start + bytes(100 << 20))
        stream.filelist[0].file_size = len(start)
    refused_npz(tmp_path / "net.npz", "array 'a' in 'net.npz' cannot be read: Bad CRC-32 for file 'a.npy'\n")


def test_a_member_that_unpacks_to_less_than_it_says(tmp_path: Path) -> None:
    data = header(FLOATS % "(9,)") + bytes(64)
    with zipfile.ZipFile(tmp_path / "net.npz", "w", zipfile.ZIP_DEFLATED) as stream:
        stream.writestr("a.npy", data)
        stream.filelist[0].file_size = len(data) + 8
    refused_npz(tmp_path / "net.npz", "array 'a' in 'net.npz' cannot be read: it is cut short\n")


def test_more_arrays_and_numbers_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"a{n}.npy": npy(np.ones(8)) for n in range(5)}
    path = archive(tmp_path / "net.npz", members)
    monkeypatch.setattr(npz, "MAX_ARRAYS", 4)
    refused_npz(path, "'net.npz' must not hold more than 4 arrays\n  fix: split the network$")
    monkeypatch.setattr(npz, "MAX_ARRAYS", 5)
    monkeypatch.setattr(npz, "MAX_NPZ_ELEMENTS", 32)
    refused_npz(path, "array 'a4' in 'net.npz' cannot be read: with it the file holds more than 32 numbers\n")
    monkeypatch.setattr(npz, "MAX_NPZ_BYTES", 100)
    refused_npz(path, r"'net.npz' must not exceed 100 bytes, but has \d+\n  fix: make the file smaller$")


def test_a_directory_of_a_million_entries_is_not_read(tmp_path: Path) -> None:
    entry = b"PK\1\2" + bytes(42)
    directory = entry * 1_000_000
    end = b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 65535, 65535, len(directory), 0, 0)
    (tmp_path / "net.npz").write_bytes(directory + end)
    start = time.process_time()
    with pytest.raises(CompileError, match=r"^here: 'net\.npz' must not hold more than 4096 arrays\n"):
        read_npz(tmp_path / "net.npz", "here")
    assert time.process_time() - start < SECONDS


# ------------------------------------------------------------------------------------------------------ noise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    write(folder, TREE, weights())
    return folder


def survives(path: Path) -> None:
    """A graph or a `CompileError` with a fix; never anything else."""
    try:
        load_spec(path)
    except CompileError as error:
        assert error.source and error.message and error.hint
        assert str(error).encode() and "\n" not in error.source + error.message


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["input", "edges", "rect", "scores", "relu", "conv2d", "dense", "pca", "net.npz"]),
)  # fmt: skip
TREES_OF_ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
PLACES = [
    ("network",), ("network", "name"), ("network", "weights"), ("network", "input"), ("layer",), ("layer", 0),
    ("network", "input", "shape"), ("network", "input", "range"), ("network", "outputs"),
    *(("layer", n, field) for n in (0, 1, 2) for field in ("name", "op", "input", "inputs", "bits")),
    ("network", "labels"), ("layer", 0, "stride"), ("layer", 0, "padding"), ("layer", 1, "low"),
]  # fmt: skip


@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), TREES_OF_ANYTHING), min_size=1, max_size=2))
def test_anything_in_any_field(folder: Path, changes: list[tuple[tuple[Any, ...], object]]) -> None:
    tree = copy.deepcopy(TREE)
    for (*way, last), value in changes:
        place = tree
        try:
            for step in way:
                place = place[step]
            place[last] = value
        except (TypeError, KeyError, IndexError):  # an earlier change took that place away
            continue
    (folder / "changed.json").write_text(json.dumps(tree))
    survives(folder / "changed.json")


@given(cut=st.integers(0, len(TOML)), length=st.integers(0, 30), text=st.text(max_size=10))
def test_noise_in_the_toml(folder: Path, cut: int, length: int, text: str) -> None:
    data = (TOML[:cut] + text + TOML[cut + length :]).encode("utf-8", "surrogatepass")
    (folder / "changed.toml").write_bytes(data)
    survives(folder / "changed.toml")


@given(data=st.data())
def test_noise_in_the_weights(folder: Path, data: st.DataObject) -> None:
    bytes_of = bytearray((folder / "net.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # Most bytes are weights: aim at what stands around them.
        marks = [match.start() for match in re.finditer(rb"PK|NUMPY", bytes_of)]
        at = data.draw(st.sampled_from(marks)) + data.draw(st.integers(0, 100))
        if at < len(bytes_of):
            bytes_of[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([None, None, -1, -30, 500]))
    (folder / "noise.npz").write_bytes(bytes_of[:end])
    tree = TREE | {"network": TREE["network"] | {"weights": "noise.npz"}}
    (folder / "noise.json").write_text(json.dumps(tree))
    survives(folder / "noise.json")
