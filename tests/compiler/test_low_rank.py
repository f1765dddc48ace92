"""A layer as two of low rank: exact at full rank, worse with every rank less, best where the data lies."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import Conv2D, Dense, Graph, node_macs
from convfold.compiler.low_rank import (
    RANKS,
    Layer,
    Pair,
    Scheme,
    apply_splits,
    break_even,
    split_at,
    splits,
)
from convfold.compiler.numbers import RealArray
from convfold.compiler.passes import fold
from convfold.compiler.passes.fold_cascades import fold_cascades
from convfold.compiler.verify import verify
from tests.compiler.passes.nets import SAME, Net

STRIPED = ((2, 1), (1, 2))


def images(graph: Graph, count: int, rng: np.random.Generator) -> RealArray:
    """Smooth images: a few waves each."""
    height, width, channels = graph.input.shape
    grid = np.linspace(0.0, 3.0, height)[:, None] + 1j * np.linspace(0.0, 3.0, width)
    turn = rng.normal(size=(count, 1, 1, channels)) + 1j * rng.normal(size=(count, 1, 1, channels))
    return np.asarray(0.5 + 0.5 * np.sin((grid[None, :, :, None] * turn).real))


def seen(graph: Graph, name: str, x_bhwc: RealArray) -> Pair:
    entrance = graph.node(name).inputs[0]
    tensors = evaluate(graph, x_bhwc, (entrance, name))
    return tensors[entrance], tensors[name]


def layer_of(graph: Graph, name: str) -> Layer:
    node = graph.node(name)
    assert isinstance(node, Conv2D | Dense)
    return node


NETS = {
    "plain": Net((8, 9, 3)).conv("layer", 6, padding=SAME).graph(),
    "strided": Net((8, 9, 3)).conv("layer", 6, (3, 4), (2, 3), STRIPED).graph(),
    "classes": fold(Net((8, 9, 3)).conv("first", 2, (1, 1)).conv("layer", 6, padding=SAME).graph()),
    "dense": Net((3, 4, 3)).dense("layer", 6).graph(),
    "nothing": Net((8, 9, 3)).conv("layer", 1, (1, 1)).graph(),
}
nets = pytest.mark.parametrize("net", NETS)


@nets
@pytest.mark.parametrize("scheme", ["channel", "spatial"])
@pytest.mark.parametrize("data", [False, True])
def test_full_rank_is_exact(net: str, scheme: Scheme, data: bool, rng: np.random.Generator) -> None:
    graph = NETS[net]
    layer = layer_of(graph, "layer")
    fit, judge = (seen(graph, "layer", images(graph, 6, rng)) for _ in range(2))
    _, _, outputs, kh, kw, inputs = (1, 1, 6, 1, 1, 1) if isinstance(layer, Dense) else graph.weights["layer.w"].shape
    if scheme == "spatial" and (isinstance(layer, Dense) or layer.classes.count > 1 or min(kh, kw) == 1):
        with pytest.raises(ValueError, match=r"^layer 'layer' must have a spatial split of the rank, not 1$"):
            split_at(graph, layer, scheme, 1, fit if data else None)
        return
    rank = outputs if scheme == "channel" else min(kh * inputs, kw * outputs)
    split = split_at(graph, layer, scheme, rank, fit if data else None, judge)
    assert split.error < 1e-9
    thin = verify(apply_splits(graph, [split]), "split")
    x_bhwc = rng.uniform(0.0, 1.0, (4, *graph.input.shape))
    expected, found = (evaluate(one, x_bhwc)["layer"] for one in (graph, thin))
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()


@nets
@pytest.mark.parametrize("rank", [0, 7, 100])
def test_a_rank_that_there_is_not(net: str, rank: int) -> None:
    with pytest.raises(ValueError, match=rf"^layer 'layer' must have a channel split of the rank, not {rank}$"):
        split_at(NETS[net], layer_of(NETS[net], "layer"), "channel", rank)


@nets
@pytest.mark.parametrize("data", [False, True])
def test_every_split_saves_multiplies_and_less_rank_is_more_error(
    net: str, data: bool, rng: np.random.Generator
) -> None:
    graph = NETS[net]
    layer = layer_of(graph, "layer")
    fit, judge = (seen(graph, "layer", images(graph, 24, rng)) if data else None for _ in range(2))
    found = list(splits(graph, layer, fit, judge))
    assert bool(found) == (net != "nothing")
    assert all(0 < split.macs < node_macs(graph, layer) for split in found)
    channel = [split for split in found if split.scheme == "channel"]
    assert [split.rank for split in channel] == list(range(1, len(channel) + 1))
    assert len(channel) == max(0, int(np.ceil(break_even(graph, layer)[2])) - 1)
    assert all(one.error >= other.error for one, other in pairwise(channel))
    if not data:
        spatial = [split for split in found if split.scheme == "spatial"]
        assert all(one.error >= other.error for one, other in pairwise(spatial))


def test_spatial_error_falls_with_rank_where_it_was_fitted(rng: np.random.Generator) -> None:
    graph = NETS["strided"]
    fit = seen(graph, "layer", images(graph, 24, rng))
    errors = [split.error for split in splits(graph, layer_of(graph, "layer"), fit, fit) if split.scheme == "spatial"]
    assert len(errors) > 3
    assert all(one >= other for one, other in pairwise(errors))


def test_the_error_without_data_is_what_the_weights_lose() -> None:
    graph = NETS["dense"]
    split = split_at(graph, layer_of(graph, "layer"), "channel", 2)
    w = np.asarray(graph.weights["layer.w"])
    lost = w - np.asarray(split.arrays["layer.w"]) @ np.asarray(split.arrays["layer_reduce.w"])
    assert split.error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(w), rel=1e-12)
    values = np.linalg.svd(w, compute_uv=False)
    assert split.error == pytest.approx(np.sqrt(np.sum(values[2:] ** 2) / np.sum(values**2)), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_responses_know_better_than_weights_where_data_has_structure(rank: int, rng: np.random.Generator) -> None:
    graph = NETS["plain"]
    layer = layer_of(graph, "layer")
    fit, judge = (seen(graph, "layer", images(graph, 48, rng)) for _ in range(2))
    for scheme in ("channel", "spatial"):
        of_responses = split_at(graph, layer, scheme, rank, fit, judge).error
        assert of_responses < 0.9 * split_at(graph, layer, scheme, rank, None, judge).error


def test_responses_of_low_rank_are_kept_whole(rng: np.random.Generator) -> None:
    """One input channel is the double of the other, which the weights alone cannot know."""
    graph = Net((6, 6, 2)).conv("layer", 6, (1, 1)).graph()
    x_bhwc = rng.uniform(0.0, 0.5, (8, 6, 6, 1)) * [1.0, 2.0]
    fit = seen(graph, "layer", x_bhwc)
    assert split_at(graph, layer_of(graph, "layer"), "channel", 1, fit, fit).error < 1e-9
    assert split_at(graph, layer_of(graph, "layer"), "channel", 1, None, fit).error > 1e-2


def test_constant_responses_have_no_error(rng: np.random.Generator) -> None:
    graph = NETS["plain"]
    x_bhwc = np.zeros((4, *graph.input.shape))
    fit = seen(graph, "layer", x_bhwc)
    assert split_at(graph, layer_of(graph, "layer"), "channel", 1, fit, fit).error < 1e-9


def test_wide_layers_offer_evenly_spread_ranks() -> None:
    graph = Net((2, 2, 64)).conv("layer", 64, (2, 2)).graph()
    ranks = [split.rank for split in splits(graph, layer_of(graph, "layer")) if split.scheme == "channel"]
    assert (len(ranks), ranks[0], ranks[-1]) == (RANKS, 1, 51)
    assert break_even(graph, layer_of(graph, "layer")) == (256, 64, 256 * 64 / 320)


def test_a_split_keeps_the_name_the_widths_and_the_source() -> None:
    graph = NETS["plain"]
    layer = layer_of(graph, "layer")
    layer = replace(layer, bits=5, weight_bits=6)
    graph = replace(graph, nodes=(graph.input, layer))
    split = split_at(graph, layer, "channel", 2)
    assert (split.name, split.first.name) == ("layer", "layer_reduce")
    assert (split.first.bits, split.first.weight_bits) == (None, 6)
    assert (split.second.bits, split.second.weight_bits, split.second.fold) == (5, 6, "forbid")
    assert split.first.source == split.second.source == layer.source


def test_an_expansion_folds_into_a_linear_layer_behind_it(rng: np.random.Generator) -> None:
    """The pair is never merged again, but the second of it may go into what follows."""
    graph = Net((8, 8, 3)).conv("layer", 12, padding=SAME).conv("next", 2, (1, 1)).graph()
    thin = apply_splits(graph, [split_at(graph, layer_of(graph, "layer"), "channel", 2)])
    folded = verify(fold_cascades(thin), "fold_cascades")
    assert [node.name for node in folded.nodes] == ["image", "layer_reduce", "next"]
    x_bhwc = rng.uniform(0.0, 1.0, (4, *graph.input.shape))
    expected, found = (evaluate(one, x_bhwc)["next"] for one in (thin, folded))
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()


def test_nothing_split_is_the_same_object() -> None:
    assert apply_splits(NETS["plain"], []) is NETS["plain"]


def test_grouped_layers_are_left_alone() -> None:
    graph = Net((8, 8, 4)).conv("layer", 4).graph()
    conv = graph.node("layer")
    assert isinstance(conv, Conv2D)
    conv = replace(conv, groups=2)
    weights = {**graph.weights, "layer.w": graph.weights["layer.w"][..., :2]}
    graph = replace(graph, nodes=(graph.input, conv), weights=weights)
    assert list(splits(graph, layer_of(graph, "layer"))) == []
