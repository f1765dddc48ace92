"""A real graph as a specification that `load_spec` reads: a TOML file and its weights."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np

from .errors import CompileError
from .functions import FUNCTIONS
from .graph import Clip, Conv2D, Graph, Node, Pointwise
from .layers import INPUT, SOFTMAX
from .passes.rewrite import fresh_name

REQUIRED = frozenset({("batch_norm", "epsilon"), ("clip", "low"), ("clip", "high")})
"""Fields that are written even where they hold what the graph takes for granted."""


def write_spec(graph: Graph, folder: Path, header: str = "") -> Path:
    """Write ``NAME.toml`` and ``NAME.npz`` into a folder and return the first; the same graph gives the same bytes.

    The graph that `load_spec` reads back is equal but for ``source``, and calls its input "input".

    *Raises* ``CompileError`` for a graph in which a layer has that name, or reads one tensor twice, or whose softmax makes
    integers.
    """
    files = spec_files(graph, header)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / f"{graph.name}.toml"


def spec_files(graph: Graph, header: str = "") -> dict[str, bytes]:
    """The two files by name; ``header`` becomes the comment at the top.

    *Raises* ``CompileError`` as `write_spec` does.
    """
    buffer = io.BytesIO()
    arrays = {name: _plain(graph, name) for name in sorted(graph.weights)}
    np.savez(buffer, allow_pickle=False, **arrays)
    text = "\n".join(_lines(graph, header)) + "\n"
    return {f"{graph.name}.toml": text.encode(), f"{graph.name}.npz": buffer.getvalue()}


def _plain(graph: Graph, name: str) -> np.ndarray:
    """An array as it stands in the file: a single border class needs no axes."""
    node = graph.node(name.rpartition(".")[0])
    array = np.asarray(graph.weights[name])
    return array[0, 0] if isinstance(node, Conv2D) and node.classes.count == 1 else array


def _lines(graph: Graph, header: str) -> Iterator[str]:
    yield from (f"# {line}".rstrip() for line in header.splitlines())
    source = graph.input
    yield "\n[network]" if header else "[network]"
    yield f"name = {_toml(graph.name)}"
    yield f"weights = {_toml(f'{graph.name}.npz')}"
    yield f"input = {{ shape = {_toml(source.shape)}, range = {_toml((source.low, source.high))} }}"
    taken = {*graph.shapes, INPUT}
    heads = {name: fresh_name(f"{name}_{SOFTMAX}", taken) for name, _ in graph.heads}
    outputs = [heads.get(name, name) for name in graph.outputs]
    if outputs != [graph.nodes[-1].name, *heads.values()][-1:]:
        yield f"outputs = {_toml(tuple(outputs))}"
    if graph.labels:
        yield f"labels = {_toml(graph.labels)}"
    previous = source.name
    for node in graph.nodes:
        if node is not source:
            yield from _layer(graph, node, previous)
            previous = node.name
    for name, head in graph.heads:
        if head.format is not None:
            message = f"the softmax of {name!r} makes integers, which no specification can say"
            raise CompileError(graph.node(name).source, message, "remove it")
        yield f"\n[[layer]]\nname = {_toml(heads[name])}\nop = {_toml(SOFTMAX)}\ninput = {_toml(name)}"
        if head.beta != 1:
            yield f"beta = {_toml(head.beta)}"


def _layer(graph: Graph, node: Node, previous: str) -> Iterator[str]:
    if node.name.lower() == INPUT:
        message = f"layer {node.name!r} cannot be written: that name is taken by the input"
        raise CompileError(node.source, message, "rename the layer")
    if len(set(node.inputs)) < len(node.inputs):
        raise CompileError(node.source, f"layer {node.name!r} reads one tensor twice", "scale that tensor instead")
    relu = isinstance(node, Clip) and (node.low, node.high) == (0.0, math.inf)
    op = "relu" if relu else node.function if isinstance(node, Pointwise) else node.op
    prefix = f"{node.name}."
    shapes = (f"{name} {_plain(graph, name).shape}" for name in graph.weights if name.startswith(prefix))
    comment = ", ".join(shapes)
    yield ""
    yield "[[layer]]"
    yield f"name = {_toml(node.name)}"
    yield f"op = {_toml(op)}" + (f"  # {comment}" if comment else "")
    inputs = tuple(INPUT if name == graph.input.name else name for name in node.inputs)
    if len(inputs) > 1:
        yield f"inputs = {_toml(inputs)}"
    elif node.inputs != (previous,):
        yield f"input = {_toml(inputs[0])}"
    if isinstance(node, Pointwise):
        names, _ = FUNCTIONS[node.function]
        yield from (f"{name} = {_toml(value)}" for name, value in zip(names, node.parameters, strict=True))
        return
    for field in fields(node):
        value = getattr(node, field.name)
        told = value != field.default or (node.op, field.name) in REQUIRED
        if told and not relu and field.name not in ("name", "inputs", "source"):
            yield f"{field.name} = {_toml(value)}"


def _toml(value: object) -> str:
    """A value in TOML, which writes texts as JSON does."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case int() | float():
            return repr(value)
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{{ {', '.join(f'{field.name} = {_toml(getattr(value, field.name))}' for field in fields(value))} }}"
    raise TypeError(f"value must be a text, a number, a tuple or a dataclass, not {value!r}")
