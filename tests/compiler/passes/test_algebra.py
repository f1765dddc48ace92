from __future__ import annotations

from functools import reduce

import pytest

from convfold.compiler.graph import Conv2D, Dense, Graph
from convfold.compiler.passes.algebra import ConvMap, compose, dense_weights, node_map
from tests.compiler.passes.nets import SAME, Net, random_chain
from tests.oracle import difference, toeplitz

EXACT = 1e-9


def as_graph(conv: ConvMap, graph: Graph) -> Graph:
    """The input of a graph and one convolution behind it."""
    node = Conv2D(
        name="conv",
        inputs=("image",),
        source="conv",
        stride=conv.stride,
        padding=conv.padding,
        classes=conv.classes,
    )
    weights = {"conv.w": conv.w_rcohwi, "conv.b": conv.b_rco}
    return Graph(name="net", nodes=(graph.input, node), outputs=("conv",), weights=weights)


def maps_of(seed: int) -> tuple[Graph, list[ConvMap]]:
    """The convolutions of a random chain alone."""
    chain = random_chain(seed)
    net = Net(chain.input.shape, seed)
    for node in chain.nodes:
        if isinstance(node, Conv2D):
            kh, kw = chain.weights[f"{node.name}.w"].shape[3:5]
            net.conv(node.name, chain.shapes[node.name][2], (kh, kw), node.stride, node.padding)
    graph = net.graph()
    return graph, [node_map(graph, node) for node in graph.nodes if isinstance(node, Conv2D)]


@pytest.mark.parametrize("seed", range(60))
def test_composition_is_associative(seed: int) -> None:
    """From the front the first map of each pair has border classes, from the back the second one."""
    graph, maps = maps_of(seed)
    reference = toeplitz(graph)[graph.outputs[0]]
    from_front = reduce(compose, maps)
    from_back = reduce(lambda behind, first: compose(first, behind), reversed(maps))
    for conv in (from_front, from_back):
        assert difference(reference, toeplitz(as_graph(conv, graph))["conv"]) < EXACT
    assert (from_front.stride, from_front.padding) == (from_back.stride, from_back.padding)


def test_a_dense_layer_is_a_convolution_of_full_size() -> None:
    graph = Net((3, 4, 2)).dense("dense", 5).graph()
    node = graph.node("dense")
    assert isinstance(node, Dense)
    conv = node_map(graph, node)
    assert conv.kernel == (3, 4)
    assert (dense_weights(conv) == graph.weights["dense.w"]).all()


@pytest.mark.parametrize(("size", "kernel"), [(2, 5), (7, 3)], ids=["padded all round", "end not read"])
def test_dense_weights_are_what_the_one_window_reads(size: int, kernel: int) -> None:
    padding = SAME if size < kernel else ((1, 0), (1, 0))
    stride = (9, 9)
    graph = Net((size, size, 2)).conv("conv", 3, (min(kernel, size + 2),) * 2, stride, padding).graph()
    assert graph.shapes["conv"] == (1, 1, 3)
    node = graph.node("conv")
    assert isinstance(node, Conv2D)
    matrix, _ = toeplitz(graph)["conv"]
    assert (dense_weights(node_map(graph, node)) == matrix).all()
