"""Drop what changes nothing: dropout, and flattening or reshaping in front of a dense layer."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Clip, Crop, Decision, Dense, Dropout, Flatten, Graph, Node, Pad, Pointwise, Reshape
from .rewrite import record, sole_consumer


def drop_identities(graph: Graph) -> Graph:
    """A trained dropout is the identity, and a dense layer flattens its input by itself.

    *Before*::

        drop: 2×2×3 = dropout(image)
        scores: 1×1×4 = dense(drop)

    *After*::

        scores: 1×1×4 = dense(image)

    *Requires* a real graph. *Leaves* those that are the network's output, which must keep its name, and flattening in
    front of anything else than (rectifiers and such, and) a dense layer.
    """
    dropped: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(dropped.get(name, name) for name in node.inputs))
        if node.name not in graph.outputs and _is_identity(graph, graph.node(node.name)):
            dropped[node.name] = node.inputs[0]
        else:
            nodes.append(node)
    if not dropped:
        return graph
    decisions = [Decision("identity", (name,), True, _why(graph.node(name)), 0, 0, 0.0) for name in dropped]
    return record(replace(graph, nodes=tuple(nodes)), decisions)


def _is_identity(graph: Graph, node: Node) -> bool:
    if isinstance(node, Flatten | Reshape):
        return graph.shapes[node.inputs[0]] == graph.shapes[node.name] or _ends_dense(graph, node)
    return isinstance(node, Dropout) or (
        isinstance(node, Pad | Crop) and graph.shapes[node.inputs[0]] == graph.shapes[node.name]
    )


def _ends_dense(graph: Graph, node: Node) -> bool:
    """Whether only a dense layer reads this tensor, perhaps through rectifiers."""
    reader = sole_consumer(graph, node.name)
    while isinstance(reader, Clip | Pointwise | Dropout | Flatten | Reshape):
        reader = sole_consumer(graph, reader.name)
    return isinstance(reader, Dense)


def _why(node: Node) -> str:
    if isinstance(node, Dropout):
        return "dropout is the identity once a network is trained"
    if isinstance(node, Pad | Crop):
        return "it adds no row or column, and takes none away"
    return "what reads it takes the samples in the same order by itself"
