"""An integer graph as JSON, with its arrays beside it: what the host library reads from a build folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from . import graph as nodes
from .errors import CompileError
from .graph import Array, BorderClasses, Graph, Node, Softmax
from .numbers import Format

__all__ = ["dump_graph", "load_graph"]

_NODES: Mapping[str, type[Node]] = {
    kind.op: kind
    for kind in (
        *(nodes.Input, nodes.QConv2D, nodes.QAveragePool, nodes.QAdd, nodes.QMultiply, nodes.QTable),
        *(nodes.MaxPool, nodes.ArgMax, nodes.Concat, nodes.Slice, nodes.ChannelShuffle, nodes.DepthToSpace),
        *(nodes.SpaceToDepth, nodes.Upsample, nodes.Pad, nodes.Crop, nodes.Reshape, nodes.Flatten),
    )
}
"""The nodes of integer graphs; nothing else is read from a file."""


def dump_graph(graph: Graph) -> dict[str, Any]:
    """All of an integer graph but its arrays and decisions."""
    return {
        "name": graph.name,
        "outputs": list(graph.outputs),
        "labels": list(graph.labels),
        "heads": [[name, dataclasses.asdict(head)] for name, head in graph.heads],
        "nodes": [{"op": node.op} | dataclasses.asdict(node) for node in graph.nodes],
    }


def load_graph(record: Mapping[str, Any], weights: Mapping[str, Array], source: str) -> Graph:
    """The graph that `dump_graph` wrote. Whether it is sound is for ``verify`` to say.

    *Raises* ``CompileError`` for a record that is none of ours.
    """
    try:
        graph = Graph(
            name=record["name"],
            nodes=tuple(_node(entry) for entry in record["nodes"]),
            outputs=tuple(record["outputs"]),
            weights=weights,
            labels=tuple(record["labels"]),
            heads=tuple((name, _head(entry)) for name, entry in record["heads"]),
        )
        names = (graph.name, *(node.name for node in graph.nodes), *graph.outputs, *graph.labels)
        if not all(isinstance(name, str) for name in names) or not {name for name, _ in graph.heads} <= {*graph.outputs}:
            raise ValueError("names must be text, and heads those of outputs")
        return graph
    except (CompileError, KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CompileError(source, "holds no integer network of convfold's", "run convfold compile again") from error


def _node(entry: Mapping[str, Any]) -> Node:
    fields = {name: _value(name, value) for name, value in entry.items() if name != "op"}
    return _NODES[entry["op"]](**fields)


def _head(entry: Mapping[str, Any]) -> Softmax:
    return Softmax(float(entry["beta"]), _value("format", entry["format"]))


def _value(name: str, value: Any) -> Any:
    """A field's value: JSON's lists are our tuples."""
    if name == "format":
        return None if value is None else Format(**value)
    if name == "classes":
        return BorderClasses(tuple(value["rows"]), tuple(value["cols"]))
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
