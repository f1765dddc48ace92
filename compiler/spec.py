"""The native network format: a TOML or JSON file that lists the layers, and an ``.npz`` with the weights.

Nothing in either file is trusted. Each is capped in size before it is read, arrays are never unpickled, no
path leaves the folder of the specification, and every field has one `Kind` that says what it must be. What is
wrong comes out as one ``CompileError`` that names the file, the layer and the fix.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from .errors import CompileError, quote
from .fields import INPUT_TABLE, LABELS, NAMES, RANGE, SCALE, SHAPE, TABLE, TABLES, TEXT, Table, suggest
from .files import one_line, printable, read_bytes
from .graph import Graph, Input, Node, Shape, Softmax, node_shape
from .layers import INPUT, OPERATORS, SOFTMAX, Arrays, Layer, expand
from .npz import MAX_NPZ_BYTES
from .numbers import RealArray
from .verify import SPEC, verify

MAX_SPEC_BYTES = 1 << 18
MAX_DOTS = 16
"""Dots on one line of TOML: the parser's memory grows with the square of the dots in a key."""


def load_spec(path: Path) -> Graph:
    """The real graph of a specification file, verified.

    *Raises* ``CompileError`` for anything that is wrong with the file, its weights or the network in them.
    """
    file = printable(path.name)
    tree = Table(_read_tree(path, file), file)
    network = Table(tree.require("network", TABLE), f"{file}: [network]")
    tables = tree.require("layer", TABLES)
    tree.close()

    name = network.legal_name()
    source = _input(network)
    arrays = Arrays(_weights_path(path.parent, network), f"{network.source} weights")
    labels = network.read("labels", LABELS, ())
    layers = _layers(tables, file, arrays)
    outputs = _outputs(network, layers)
    heads = _heads(layers, outputs)
    network.close()

    nodes: list[Node] = [source]
    shapes: dict[str, Shape] = {INPUT: source.shape}
    weights: dict[str, RealArray] = {}
    for layer in _in_order(layers):
        node, parts = OPERATORS[layer.operator].parse(layer, shapes[layer.inputs[0]])
        if layer.operator == SOFTMAX:
            continue
        weights |= {f"{layer.name}.{part}": array for part, array in parts.items()}
        for made in expand(layer, node, nodes, shapes, weights, {INPUT, *layers, *shapes}):
            shapes[made.name] = node_shape(made, tuple(shapes[name] for name in made.inputs), weights)
            nodes.append(made)
    arrays.close()
    ends = tuple(layers[name].inputs[0] if name in heads else name for name in outputs)
    softmax = tuple((layers[name].inputs[0], head) for name, head in heads.items())
    graph = Graph(name, tuple(nodes), ends, weights, labels, heads=softmax)
    return verify(graph, SPEC)


def source_sha256(path: Path) -> str:
    """What identifies a network: the hash of its specification and of the weights beside it.

    *Raises* ``CompileError`` for files that cannot be read.
    """
    file = printable(path.name)
    network = Table(Table(_read_tree(path, file), file).require("network", TABLE), f"{file}: [network]")
    weights = _weights_path(path.parent, network)
    digest = hashlib.sha256(read_bytes(path, file, MAX_SPEC_BYTES))
    digest.update(read_bytes(weights, network.source, MAX_NPZ_BYTES))
    return digest.hexdigest()


def _heads(layers: Mapping[str, Layer], outputs: Collection[str]) -> dict[str, Softmax]:
    """The layers that the host computes: each is an output, and nothing reads it."""
    heads: dict[str, Softmax] = {}
    for layer in layers.values():
        if layer.operator == SOFTMAX:
            readers = [other.name for other in layers.values() if layer.name in other.inputs]
            if readers or layer.name not in outputs:
                where = f"{readers[0]!r} reads it" if readers else "it is no output"
                layer.fail(f"op 'softmax' must end the network, but {where}", "read what softmax reads instead")
            source = layer.inputs[0]
            if source == INPUT or source in outputs or any(layers[head].inputs[0] == source for head in heads):
                layer.fail(f"softmax needs a layer of its own, but {source!r} is an output too", "remove one of them")
            heads[layer.name] = Softmax(layer.read("beta", SCALE, 1.0))
            layer.close()
    return heads


def _input(network: Table) -> Input:
    table = Table(network.require("input", INPUT_TABLE), f"{network.source} input")
    shape = table.require("shape", SHAPE)
    low, high = table.require("range", RANGE)
    table.close()
    return Input(name=INPUT, inputs=(), source=table.source, shape=shape, low=low, high=high)


def _layers(tables: Iterable[dict[str, Any]], file: str, arrays: Arrays) -> dict[str, Layer]:
    """The layers by name, in the order of the file."""
    layers: dict[str, Layer] = {}
    previous = INPUT
    for number, table in enumerate(tables, start=1):
        layer = Layer(table, f"{file}: layer {number}", arrays, previous)
        if layer.name.lower() == INPUT:
            layer.fail(f"name {layer.name!r} is taken by the network's input", "rename the layer")
        if layer.name in layers:
            layer.fail(f"name {layer.name!r} is taken by an earlier layer", "rename one of them")
        previous = layer.name
        layers[previous] = layer
    return layers


def _outputs(network: Table, layers: Mapping[str, Layer]) -> tuple[str, ...]:
    """The tensors that leave the network: that of the last layer, unless the file says otherwise."""
    outputs = network.read("outputs", NAMES, tuple(layers)[-1:])
    for output in outputs:
        if output not in layers:
            network.fail(f"output {quote(output)} is not a layer", suggest(output, layers))
    return outputs


def _in_order(layers: Mapping[str, Layer]) -> list[Layer]:
    """The layers, each behind the ones it reads."""
    for layer in layers.values():
        for name in layer.inputs:
            if name not in layers and name != INPUT:
                layer.fail(f"input {quote(name)} is not a layer", suggest(name, {*layers, INPUT}))
    try:
        order = list(TopologicalSorter({name: layer.inputs for name, layer in layers.items()}).static_order())
    except CycleError as error:
        cycle: list[str] = error.args[1]
        text = " → ".join(cycle if len(cycle) <= 8 else [*cycle[:6], "…", cycle[-1]])
        layers[cycle[0]].fail(f"layers feed each other in a circle: {text}", "give one of them another input")
    return [layers[name] for name in order if name != INPUT]


# ------------------------------------------------------------------------------------------------------------- the tree


def _read_tree(path: Path, file: str) -> dict[str, Any]:
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise CompileError(file, "a specification must end in .toml or .json", "rename the file")
    data = read_bytes(path, file, MAX_SPEC_BYTES)
    try:
        tree = read(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        language = path.suffix[1:].upper()
        hint = f"correct the {language} at this place"
        raise CompileError(file, f"is not valid {language}: {one_line(error)}", hint) from error
    if not isinstance(tree, dict):
        raise CompileError(file, f"must be a table, not {quote(tree)}", 'write {"network": …, "layer": […]}')
    return tree


def _toml(text: str) -> object:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > MAX_DOTS:
            raise ValueError(f"more than {MAX_DOTS} dots on line {number}: break it")
    return tomllib.loads(text)


def _json(text: str) -> object:
    def table(pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields: dict[str, object] = {}
        for key, value in pairs:
            if key in fields:
                raise ValueError(f"field {quote(key)} is given twice")
            fields[key] = value
        return fields

    return json.loads(text, object_pairs_hook=table)


READERS: Mapping[str, Callable[[str], object]] = {".toml": _toml, ".json": _json}


def _weights_path(folder: Path, network: Table) -> Path:
    """The weights file, which must lie in the folder of the specification, links followed."""
    text = network.require("weights", TEXT)
    try:
        folder = folder.resolve()
        path = (folder / text).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, or a circle of links
        network.fail(f"weights {quote(text)} is not a path: {one_line(error)}", "name a file in this folder")
    if not path.is_relative_to(folder):
        network.fail(f"weights {quote(text)} leaves the folder of the specification", "copy the file into it")
    return path
