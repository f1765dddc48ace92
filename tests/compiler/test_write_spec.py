"""A graph that is written and read again is the same graph."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convfold.compiler.errors import CompileError
from convfold.compiler.functions import FUNCTIONS
from convfold.compiler.graph import Graph, Node, Softmax
from convfold.compiler.numbers import Format
from convfold.compiler.passes import fold
from convfold.compiler.spec import load_spec
from convfold.compiler.write_spec import write_spec
from tests.compiler.passes.nets import SAME, Net, random_chain, random_graph, random_linear


def nodes_of(graph: Graph) -> list[Node]:
    """The nodes without where they were written, the input under its name in files."""
    renamed = {graph.input.name: "input"}
    return [
        replace(
            node,
            name=renamed.get(node.name, node.name),
            inputs=tuple(renamed.get(name, name) for name in node.inputs),
            source="",
        )
        for node in graph.nodes
    ]


def check_round_trip(graph: Graph, folder: Path) -> None:
    found = load_spec(write_spec(graph, folder))
    order = {node.name: node for node in nodes_of(found)}
    assert order == {node.name: node for node in nodes_of(graph)}
    assert (found.name, found.outputs, found.labels) == (graph.name, graph.outputs, graph.labels)
    assert found.heads == graph.heads
    assert found.weights.keys() == graph.weights.keys()
    for name, array in graph.weights.items():
        assert np.array_equal(found.weights[name], array)


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_with_every_linear_operator(seed: int, tmp_path: Path) -> None:
    check_round_trip(random_linear(seed), tmp_path)


@pytest.mark.parametrize("seed", range(25))
def test_folded_graphs_with_border_classes(seed: int, tmp_path: Path) -> None:
    check_round_trip(fold(random_chain(seed)), tmp_path)


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_with_every_operator(seed: int, tmp_path: Path) -> None:
    graph = random_graph(seed)
    ends = [name for name in graph.outputs if name != graph.input.name]
    if any(len(set(node.inputs)) < len(node.inputs) for node in graph.nodes) or graph.outputs != tuple(ends):
        return  # no specification can say that
    check_round_trip(graph, tmp_path)


def test_functions_with_their_parameters(tmp_path: Path) -> None:
    net = Net((2, 2, 2))
    for name, (parameters, _) in FUNCTIONS.items():
        net.pointwise(f"the_{name}", name, *(0.25 + n for n in range(len(parameters))))
    graph = net.prelu("p").multiply("m", "the_abs").pad("pad", SAME, -1.5).graph()
    check_round_trip(graph, tmp_path)
    text = (tmp_path / "net.toml").read_text("utf-8")
    assert 'op = "leaky_relu"\nalpha = 0.25\n' in text
    assert 'op = "pad"\npadding = [[1, 1], [1, 1]]\nvalue = -1.5' in text


@pytest.mark.parametrize("outputs", [("d",), ("d", "c"), ("c", "d")])
def test_softmax_behind_outputs(outputs: tuple[str, ...], tmp_path: Path) -> None:
    net = Net((2, 2, 2)).conv("c", 2, (1, 1)).dense("d", 3)
    graph = replace(net.graph(*outputs), heads=(("d", Softmax(2.0)),))
    check_round_trip(graph, tmp_path)
    check_round_trip(replace(graph, heads=(*((("c", Softmax()),) * ("c" in outputs)), ("d", Softmax()))), tmp_path)


def test_a_softmax_of_integers_is_refused(tmp_path: Path) -> None:
    graph = replace(Net((2, 2, 2)).dense("d", 3).graph(), heads=(("d", Softmax(1.0, Format(8, True, 1 / 256, -128))),))
    message = "d: the softmax of 'd' makes integers, which no specification can say\n  fix: remove it"
    with pytest.raises(CompileError, match=f"^{re.escape(message)}$"):
        write_spec(graph, tmp_path)


def test_limits_pools_labels_and_several_outputs(tmp_path: Path) -> None:
    net = Net((8, 8, 2)).conv("a", 4, padding=SAME).relu("r").pool("p", (3, 3), (2, 2), SAME)
    net.behind("a").relu("six", 0.0, 6.0).behind("a").relu("below", high=2.5, low=-np.inf)
    graph = replace(net.graph("p", "six", "below"), labels=("zero", 'a "b"', "c\\d", "é"))
    check_round_trip(graph, tmp_path)


def test_the_file_is_written_to_be_read(tmp_path: Path) -> None:
    graph = Net((4, 4, 1)).conv("edges", 2, padding=SAME).relu("relu").graph()
    text = write_spec(graph, tmp_path, "one line\nanother").read_text("utf-8")
    assert text.splitlines() == [
        "# one line",
        "# another",
        "",
        "[network]",
        'name = "net"',
        'weights = "net.npz"',
        "input = { shape = [4, 4, 1], range = [0.0, 1.0] }",
        "",
        "[[layer]]",
        'name = "edges"',
        'op = "conv2d"  # edges.w (2, 3, 3, 1), edges.b (2,)',
        "padding = [[1, 1], [1, 1]]",
        "",
        "[[layer]]",
        'name = "relu"',
        'op = "relu"',
    ]


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = fold(random_chain(3))
    for folder in ("one", "two"):
        write_spec(graph, tmp_path / folder)
    for name in ("net.toml", "net.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_layer_cannot_have_the_name_of_the_input(tmp_path: Path) -> None:
    graph = Net((4, 4, 1)).conv("Input", 2).graph()
    with pytest.raises(CompileError, match=r"^Input: layer 'Input' cannot be written: that name is taken by the input"):
        write_spec(graph, tmp_path)


def test_a_layer_cannot_read_one_tensor_twice(tmp_path: Path) -> None:
    graph = Net((4, 4, 1)).conv("a", 2).add("twice", "a", "a").graph()
    with pytest.raises(CompileError, match=re.escape("twice: layer 'twice' reads one tensor twice")):
        write_spec(graph, tmp_path)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("{ rows = [0, 1] }", r"classes must be a table of 1 to 1024 rows and cols where border classes start"),
        ("{ rows = [0, -1], cols = [0] }", r"classes must be a table of 1 to 1024 rows and cols"),
        ("{ rows = [0, 1], cols = [] }", r"classes must be a table of 1 to 1024 rows and cols"),
        ("{ rows = [0, 9], cols = [0] }", r"border classes must rise from 0 to below 8, not \(0, 9\)"),
        ("{ rows = [0, 1, 2], cols = [0] }", r"array 'b.w' in net.npz must have shape \(3, 1, out, kh, kw, 1\)"),
    ],
)
def test_wrong_border_classes_are_refused(classes: str, message: str, tmp_path: Path) -> None:
    above = ((1, 0), (0, 0))
    graph = fold(Net((8, 8, 1)).conv("a", 1, (2, 1), padding=above).conv("b", 1, (2, 1), padding=above).graph())
    path = write_spec(graph, tmp_path)
    text = path.read_text("utf-8")
    assert "classes = { rows = [0, 1], cols = [0] }" in text
    path.write_text(text.replace("{ rows = [0, 1], cols = [0] }", classes), "utf-8")
    with pytest.raises(CompileError, match=message):
        load_spec(path)
