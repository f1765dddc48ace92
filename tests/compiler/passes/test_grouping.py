"""When folding pays: the cheapest cut of a chain, against every cut there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce
from itertools import pairwise, product

import numpy as np
import pytest

from convfold.compiler.graph import Conv2D, Graph
from convfold.compiler.passes import Cost, Options, fold
from convfold.compiler.passes.algebra import node_map
from convfold.compiler.passes.fold_cascades import Chain, Price, add_prices, chain_prices, cheapest_cuts
from convfold.compiler.passes.merge import merged_size
from convfold.compiler.passes.options import Size
from tests.compiler.passes.nets import SAME, Net, random_convolutions
from tests.oracle import difference, toeplitz

Cuts = list[tuple[int, int]]
SEEDS, BATCH = 500, 50


def every_cut(length: int) -> list[Cuts]:
    """All ways to cut a chain, ``2^(length−1)`` of them."""
    ways = []
    for cut in product((False, True), repeat=length - 1):
        ends = [0, *(n for n, here in enumerate(cut, start=1) if here), length]
        ways.append(list(pairwise(ends)))
    return ways


def layers(graph: Graph) -> Chain:
    return tuple(node for node in graph.nodes if isinstance(node, Conv2D))


def random_cost(rng: np.random.Generator) -> Cost:
    """Every weight off, small or great."""
    weights = 10.0 ** rng.uniform(-4, 1, 4) * rng.integers(0, 2, 4)
    return Cost(*map(float, weights))


def total(price: Callable[[int, int], Price | None], cuts: Cuts) -> Price:
    prices = [added for start, stop in cuts if (added := price(start, stop)) is not None]
    assert len(prices) == len(cuts)
    return reduce(add_prices, prices, (0, 0.0, 0))


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_the_cut_is_the_cheapest_of_all(first: int) -> None:
    for seed in range(first, first + BATCH):
        graph = random_convolutions(seed)
        chain, cost = layers(graph), random_cost(np.random.default_rng(seed))
        price, floor = chain_prices(graph, chain, Options(cost=cost))
        found = total(price, cheapest_cuts(len(chain), price, floor))
        assert found == min(total(price, cuts) for cuts in every_cut(len(chain))), seed


@pytest.mark.parametrize("seed", range(60))
def test_the_price_of_a_group_is_that_of_the_layer_it_becomes(seed: int) -> None:
    """What is foreseen from one channel's geometry is what the merged layer has, border classes included."""
    graph = random_convolutions(seed)
    chain, cost = layers(graph), Cost(1.0, 1e-2, 1e-4, 1e-6)
    price, floor = chain_prices(graph, chain, Options(cost=cost))
    foreseen, least = price(0, len(chain)), floor(0, len(chain))
    folded = fold(graph, Options(force=True))
    (node,) = layers(folded)
    size = merged_size((node,), node_map(folded, node), graph.input.shape, folded.shapes[node.name])
    assert foreseen is not None and least is not None and least <= foreseen
    assert foreseen[1] == pytest.approx(cost.of(size), rel=1e-12)


def test_the_random_chains_cover_what_they_claim() -> None:
    chains = [layers(random_convolutions(seed)) for seed in range(SEEDS)]
    assert {len(chain) for chain in chains} == {1, 2, 3, 4, 5, 6, 7}
    cuts = {
        tuple(cheapest_cuts(len(layers(graph)), *chain_prices(graph, layers(graph), Options())))
        for graph in map(random_convolutions, range(0, SEEDS, 5))
    }
    assert len(cuts) > 20  # neither all in one nor all apart


def test_a_greedy_choice_would_miss_the_optimum() -> None:
    """The first pair costs more as one, yet all three together cost least: the thin end pays for the way."""
    net = Net((6, 6, 2)).conv("a", 3, padding=SAME).conv("b", 5, padding=SAME)
    graph = net.conv("c", 1, (6, 6)).graph()
    chain, options = layers(graph), Options(cost=Cost(1.0, 0.0, 0.0, 0.0))
    price, floor = chain_prices(graph, chain, options)

    assert total(price, [(0, 2)]) > total(price, [(0, 1), (1, 2)])
    assert cheapest_cuts(3, price, floor) == [(0, 3)]


def test_stored_bits_can_outweigh_multiplies() -> None:
    """A 1×1 convolution with a bias costs nine border classes when it folds into a padded 3×3."""
    graph = Net((6, 6, 4)).conv("mix", 4, (1, 1)).conv("edges", 4, padding=SAME).graph()
    assert len(fold(graph).nodes) == 2
    costly = fold(graph, Options(cost=Cost.of_interval(1_000_000)))
    assert len(costly.nodes) == 3
    assert costly.decisions[-1].reason == (
        "it would not pay: 1×1 and then 3×3 as one take 5,184 multiplies instead of 5,760, but 11,136 bits of weights "
        "and lines instead of 2,432. Force it if fewer layers matter more"
    )
    assert difference(toeplitz(graph)["edges"], toeplitz(costly)["edges"]) == 0


def test_a_size_holds_what_a_layer_needs() -> None:
    graph = Net((6, 5, 4)).conv("mix", 3, (1, 1)).conv("edges", 2, stride=(2, 1), padding=SAME).graph()
    folded = fold(graph, Options(force=True))
    (node,) = layers(folded)
    size = merged_size((node,), node_map(folded, node), (6, 5, 4), (3, 5, 2))
    assert size == Size(multiplies=15 * 72, weight_bits=72 * 8, class_bits=5 * 72 * 8, line_bits=(3 + 2) * 5 * 4 * 8)
    assert size.stored_bits == 576 + 2880 + 800
    assert size + size == Size(2160, 1152, 5760, 1600)


def test_costs_must_be_numbers_from_0_on() -> None:
    for wrong in (-1.0, float("nan"), float("inf")):
        message = f"class_bits must be a number from 0 on, not {wrong!r}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            Cost(class_bits=wrong)
    assert Cost.of_interval(1000) == Cost()
