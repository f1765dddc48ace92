"""One layer as two with a thin tensor between them: every rank of it, what it costs and what it loses.

Of a layer with ``K`` taps and ``M`` outputs the *channel* split makes ``r`` outputs of the ``K`` taps and ``M`` of those
``r``: ``r·(K + M)`` multiplies a pixel in place of ``K·M``, so it pays below rank ``K·M / (K + M)``. The best ``r`` are the
principal components ``V`` of the layer's *responses* on data, with their mean μ::

    y = W·x + b  ≈  V·(Vᵀ·W·x + Vᵀ·(b − μ)) + μ

Without data they are the left singular vectors of ``W``, which are the best for white noise. The *spatial* split is a ``kh×1``
kernel to ``r`` channels and a ``1×kw`` kernel to ``M``: the leading terms of the singular value decomposition of ``W`` as a
matrix of (row, input) by (column, output); with data the second kernel is then fitted to the responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .evaluate import apply_node, real_array
from .graph import Array, BorderClasses, Conv2D, Dense, Graph, Node, node_macs
from .lossy import convolve, patches, solve, spread_error
from .numbers import RealArray
from .passes.rewrite import fresh_name

Scheme = Literal["channel", "spatial"]
Layer = Conv2D | Dense
Pair = tuple[RealArray, RealArray]

RANKS = 16
"""How many ranks of a layer are looked at: all of a thin one, evenly spread ones of a wide one."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A layer as two: ``first`` makes ``rank`` channels, ``second`` has the layer's name; ``macs`` are of both.

    ``error`` is the `spread_error` of the responses on images that were not fitted, or, without images, the relative
    Frobenius norm of what the weights lose.
    """

    scheme: Scheme
    rank: int
    first: Layer
    second: Layer
    arrays: Mapping[str, Array]
    macs: int
    error: float

    @property
    def name(self) -> str:
        return self.second.name


def splits(graph: Graph, layer: Layer, fit: Pair | None = None, judge: Pair | None = None) -> Iterator[Split]:
    """The splits of a layer that save multiplies, by scheme and rising rank.

    ``fit`` and ``judge`` are what stands at the layer's entrance and what it answers, ``(B, H, W, C)`` each.
    """
    for factors in _factors(graph, layer, fit):
        unit = _split(graph, factors, 1, None).macs
        most = min(factors.full_rank, (node_macs(graph, layer) - 1) // unit)
        for rank in sorted({round(rank) for rank in np.linspace(1, most, min(most, RANKS))}) if most else ():
            yield _split(graph, factors, rank, judge)


def split_at(
    graph: Graph, layer: Layer, scheme: Scheme, rank: int, fit: Pair | None = None, judge: Pair | None = None
) -> Split:
    """The split of one rank, whether it pays or not.

    *Raises* ``ValueError`` for a scheme or a rank that the layer does not have.
    """
    for factors in _factors(graph, layer, fit):
        if factors.scheme == scheme and 1 <= rank <= factors.full_rank:
            return _split(graph, factors, rank, judge)
    raise ValueError(f"layer {layer.name!r} must have a {scheme} split of the rank, not {rank!r}")


def break_even(graph: Graph, layer: Layer) -> tuple[int, int, float]:
    """The taps ``K`` and the outputs ``M`` of a layer, and the rank ``K·M / (K + M)`` below which a channel split pays."""
    height, width, outputs = graph.shapes[layer.name]
    taps = node_macs(graph, layer) // (height * width * outputs)
    return taps, outputs, taps * outputs / (taps + outputs)


def apply_splits(graph: Graph, chosen: Sequence[Split]) -> Graph:
    """The graph with these layers split; the same object without any."""
    if not chosen:
        return graph
    of = {split.name: split for split in chosen}
    weights = {key: array for key, array in graph.weights.items() if key.rpartition(".")[0] not in of}
    nodes: list[Node] = []
    for node in graph.nodes:
        split = of.get(node.name)
        nodes += (node,) if split is None else (split.first, split.second)
    for split in chosen:
        weights |= split.arrays
    return replace(graph, nodes=tuple(nodes), weights=weights)


# ------------------------------------------------------------------------------------------------------------- factors


@dataclass(frozen=True, slots=True, eq=False)
class _Factors:
    """A split at full rank: at rank ``r`` the first layer keeps its first ``r`` outputs, the second is ``weights(r)``.

    ``lost[r]`` is the relative Frobenius norm of what the weights lose at rank ``r``.
    """

    scheme: Scheme
    first: Layer
    second: Layer
    w1: RealArray
    b1: RealArray
    weights: Callable[[int], Pair]
    lost: RealArray

    @property
    def full_rank(self) -> int:
        return len(self.lost) - 1


def _factors(graph: Graph, layer: Layer, fit: Pair | None) -> Iterator[_Factors]:
    if isinstance(layer, Dense) or layer.plain:
        yield _channel(graph, layer, fit)
    if isinstance(layer, Conv2D) and layer.plain and layer.classes.count == 1:
        if min(graph.weights[f"{layer.name}.w"].shape[3:5]) > 1:
            yield _spatial(graph, layer, fit)


def _split(graph: Graph, factors: _Factors, rank: int, judge: Pair | None) -> Split:
    first, second = factors.first, factors.second
    before = (slice(None),) * 2 if isinstance(first, Conv2D) else ()  # the axes of the border classes
    w2, b2 = factors.weights(rank)
    arrays = {
        f"{first.name}.w": factors.w1[(*before, slice(rank))],
        f"{first.name}.b": factors.b1[..., :rank],
        f"{second.name}.w": w2,
        f"{second.name}.b": b2,
    }
    split = Split(factors.scheme, rank, first, second, arrays, 0, float(factors.lost[rank]))
    thin = apply_splits(graph, [split])
    error = split.error
    if judge is not None:
        middle = apply_node(thin, first, (judge[0],))
        error = spread_error(judge[1], apply_node(thin, second, (middle,)))
    return replace(split, macs=node_macs(thin, first) + node_macs(thin, second), error=error)


def _middle(graph: Graph, layer: Layer, suffix: str) -> str:
    """A name for the thin tensor of a layer."""
    return fresh_name(f"{layer.name}_{suffix}", set(graph.shapes))


def _channel(graph: Graph, layer: Layer, fit: Pair | None) -> _Factors:
    w, b = real_array(graph, f"{layer.name}.w"), real_array(graph, f"{layer.name}.b")
    outputs = b.shape[-1]
    b_no = b.reshape(-1, outputs)
    w_nok = w.reshape(*b_no.shape, -1)
    share_n = _class_shares(graph, layer)
    centre_o = share_n @ b_no if fit is None else fit[1].reshape(-1, outputs).mean(axis=0)
    parts = np.concatenate([w_nok, (b_no - share_n @ b_no)[:, :, None]], axis=2) * np.sqrt(share_n)[:, None, None]
    weights_ok = parts.transpose(1, 0, 2).reshape(outputs, -1)
    spread = weights_ok if fit is None else (fit[1].reshape(-1, outputs) - centre_o).T
    v_or = np.linalg.eigh(spread @ spread.T)[1][:, ::-1]
    name = _middle(graph, layer, "reduce")
    first, second = replace(layer, name=name, bits=None), replace(layer, inputs=(name,), fold="forbid")
    w1 = np.einsum("or,nok->nrk", v_or, w_nok).reshape(w.shape)
    b1 = ((b_no - centre_o) @ v_or).reshape(b.shape)

    def weights(rank: int) -> Pair:
        w2 = v_or[:, :rank]
        return (w2, centre_o) if isinstance(layer, Dense) else (w2[None, None, :, None, None], centre_o[None, None])

    if isinstance(second, Conv2D):
        second = replace(second, stride=(1, 1), padding=((0, 0), (0, 0)), classes=BorderClasses())
    kept = np.square(v_or.T @ weights_ok).sum(axis=1)
    return _Factors("channel", first, second, w1, b1, weights, _lost(kept))


def _class_shares(graph: Graph, layer: Layer) -> RealArray:
    """The share of the output positions that each border class has."""
    if isinstance(layer, Dense):
        return np.ones(1)
    height, width, _ = graph.shapes[layer.name]
    rows, cols = np.bincount(layer.classes.row_class(height)), np.bincount(layer.classes.col_class(width))
    return np.asarray(np.outer(rows, cols).ravel() / (height * width))


def _lost(squares: RealArray) -> RealArray:
    """From the squared norms of all terms, the relative norm of those that each rank leaves out."""
    tail = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return np.sqrt(tail / (tail[0] or 1.0))


def _spatial(graph: Graph, layer: Conv2D, fit: Pair | None) -> _Factors:
    w_ohwi, b_o = real_array(graph, f"{layer.name}.w")[0, 0], real_array(graph, f"{layer.name}.b")[0, 0]
    outputs, kh, kw, inputs = w_ohwi.shape
    p, s, q = np.linalg.svd(w_ohwi.transpose(1, 3, 2, 0).reshape(kh * inputs, kw * outputs), full_matrices=False)
    w1 = (p * np.sqrt(s)).T.reshape(1, 1, -1, kh, 1, inputs)
    w2_vro = (np.sqrt(s)[:, None] * q).reshape(-1, kw, outputs).transpose(1, 0, 2)
    b1 = np.zeros((1, 1, len(s)))
    name, (rows, cols), none = _middle(graph, layer, "rows"), layer.padding, (0, 0)
    first = replace(layer, name=name, stride=(layer.stride[0], 1), padding=(rows, none), bits=None)
    second = replace(layer, inputs=(name,), stride=(1, layer.stride[1]), padding=(none, cols), fold="forbid")
    correct = (lambda rank: (0.0, b_o)) if fit is None else _refit(first, second, w1[0, 0], w2_vro, b_o, fit)

    def weights(rank: int) -> Pair:
        change_vro, b = correct(rank)
        w_vro = w2_vro[:, :rank] + change_vro
        return w_vro.transpose(2, 0, 1)[None, None, :, None], b[None, None]

    return _Factors("spatial", first, second, w1, b1, weights, _lost(s**2))


def _refit(
    first: Conv2D, second: Conv2D, w1_ohwi: RealArray, w2_vro: RealArray, b_o: RealArray, fit: Pair
) -> Callable[[int], tuple[RealArray, RealArray]]:
    """What each rank adds to the second kernel, and its bias, to answer ``fit`` best.

    Only what the weights at hand leave of the answers is fitted, so at full rank there is nothing left to add.
    """
    kw, full, outputs = w2_vro.shape
    z_bhwr = convolve(fit[0], w1_ohwi, first.stride, first.padding)
    features = patches(z_bhwr, (1, kw), second.stride, second.padding)
    answers = fit[1].reshape(-1, outputs)
    mean_f, mean_a = features.mean(axis=0), answers.mean(axis=0)
    features, answers = features - mean_f, answers - mean_a
    gram, moments = features.T @ features, features.T @ answers

    def correct(rank: int) -> tuple[RealArray, RealArray]:
        used = (np.arange(kw)[:, None] * full + np.arange(rank)).ravel()
        kernel = w2_vro[:, :rank].reshape(-1, outputs)
        change = solve(gram[np.ix_(used, used)], moments[used] - gram[np.ix_(used, used)] @ kernel)
        return change.reshape(kw, rank, outputs), mean_a - mean_f[used] @ (kernel + change)

    return correct
