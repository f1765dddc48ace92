"""Networks about which something can be proven: biases that settle it, and random networks with limits in them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from convfold.compiler.graph import Clip, Graph, Input, MaxPool, Node
from tests.compiler.passes.nets import Net, random_linear

LIMITS = ((0.0, math.inf), (0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, 2.0))


def bias(net: Net, *b_o: float) -> Net:
    """The last layer with these biases, and with weights of at most 1."""
    w, b = f"{net.tail}.w", f"{net.tail}.b"
    net.weights[w] = np.clip(net.weights[w], -1.0, 1.0)
    net.weights[b] = np.array(b_o, dtype=np.float64).reshape(net.weights[b].shape)
    return net


def random_net(seed: int) -> Graph:
    """A random linear network with a limit behind every other operator or so, and here and there a max pool.

    The pools keep the size, so what stands behind them fits as before.
    """
    rng = np.random.default_rng(seed)
    graph = random_linear(seed)
    nodes: list[Node] = []
    stands_for: dict[str, str] = {}
    for node in graph.nodes:
        nodes.append(replace(node, inputs=tuple(stands_for.get(name, name) for name in node.inputs)))
        last = node.name
        if not isinstance(node, Input) and rng.random() < 0.5:
            low, high = LIMITS[rng.integers(len(LIMITS))]
            nodes.append(Clip(name=f"{node.name}_clip", inputs=(last,), source=last, low=low, high=high))
            last = nodes[-1].name
        if rng.random() < 0.2:
            padding = ((0, 1), (1, 0))
            pool = MaxPool(
                name=f"{node.name}_max", inputs=(last,), source=last, kernel=(2, 2), stride=(1, 1), padding=padding
            )
            nodes.append(pool)
            last = pool.name
        stands_for[node.name] = last
    outputs = tuple(stands_for[name] for name in graph.outputs)
    return replace(graph, nodes=tuple(nodes), outputs=outputs)
