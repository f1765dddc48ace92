"""What values every tensor can take, proven for all inputs within the declared range.

Two methods, of which each element of each tensor (so every border class and every padded zero) takes the tighter:

*Intervals*: ``low = b + Σ min(w·low, w·high)`` from layer to layer. Exact for one affine map of the input, but blind to
what two channels have in common.

*Affine forms* (zonotopes): ``center + Σ_k term_k·ε_k ± error`` with all ``|ε_k| ≤ 1``. One symbol ε for each value of
the input, and one for each value that a live clip bends. An affine map keeps the symbols, so a chain or a branch of
linear layers is bounded exactly, and what two channels have in common cancels where they meet. The symbols stay few
because two of them share one term where no later value depends on both (see `_Plan`); what would cost too much all the
same becomes ``error``.

Rounding: all that float64 can lose is added outward, twice the usual ``n·u`` of an n-term sum (Higham, *Accuracy and
Stability of Numerical Algorithms*, §3.1): once for what is computed here, once for `evaluate`, so a bound holds for the
exact network and for its float64 evaluation in any order of summation. Underflow is left out of account.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from .evaluate import apply_node, evaluate, normalization, projection, real_array
from .functions import IMAGES, TURNS
from .graph import (
    Add,
    ArgMax,
    Array,
    AveragePool,
    BatchNorm,
    Certificate,
    ChannelShuffle,
    Clip,
    Concat,
    Conv2D,
    Crop,
    Dense,
    DepthToSpace,
    Dropout,
    Flatten,
    Graph,
    Input,
    Linear,
    MaxPool,
    Multiply,
    Node,
    Pad,
    Pca,
    Pointwise,
    Prelu,
    Reshape,
    ScaleBias,
    Slice,
    SpaceToDepth,
    Upsample,
    node_macs,
)
from .numbers import RealArray

Method = Literal["exact", "affine forms", "intervals"]

WORK = 1 << 28
"""Multiplies that the affine forms of one graph may take: a tenth of a second."""
VALUES = 1 << 25
"""Values of one tensor's terms that stand in memory at once (256 MiB)."""
UNIT = 2.0**-53
"""Half the distance from 1 to the next float64: what one operation loses at most."""
Weighted = Conv2D | Dense | ScaleBias
Opaque = Pointwise | Prelu | Multiply | ArgMax
"""What affine forms see only the interval of: a new symbol for each of its values."""
_MOVERS = (Slice, ChannelShuffle, DepthToSpace, SpaceToDepth, Pad, Crop, Reshape, Dropout, Flatten)
SAMPLES = 6
"""Inputs of each kind on which a question is tried before any work goes into its proof."""


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """``low … high`` of every element of a tensor; ``exact`` where some input attains them, but for rounding."""

    low_hwc: RealArray
    high_hwc: RealArray
    method: Method

    @property
    def low_c(self) -> RealArray:
        """The least value of each channel, over all positions."""
        return np.asarray(self.low_hwc.min(axis=(0, 1)))

    @property
    def high_c(self) -> RealArray:
        """The greatest value of each channel, over all positions."""
        return np.asarray(self.high_hwc.max(axis=(0, 1)))


def find_bounds(graph: Graph, wanted: Collection[str] | None = None) -> dict[str, Bounds]:
    """Bounds of every tensor of a real graph.

    Affine forms are worked out only as far as the tensors in ``wanted``: by default what clips read, where a few inputs
    do not settle that nothing can be proven.
    """
    wanted = open_questions(graph) if wanted is None else wanted
    graph = _plain(graph)
    forms = _Forms(graph, max((n for n, node in enumerate(graph.nodes) if node.name in wanted), default=-1))
    parts = _Parts(graph)
    bounds: dict[str, Bounds] = {}
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is bounded by nothing
        for n, node in enumerate(graph.nodes):
            box = _interval(graph, parts, node, [bounds[name] for name in node.inputs])
            bounds[node.name] = box
            if n <= forms.last:
                bounds[node.name] = _tighter(box, forms.step(n, parts, bounds))
    return bounds


def open_questions(graph: Graph) -> set[str]:
    """The tensors in front of clips of which a few inputs do not show that nothing can be proven.

    A sample can refute, never prove: it only saves work.
    """
    clips = [node for node in graph.nodes if isinstance(node, Clip)]
    if not clips:
        return set()
    tensors = evaluate(graph, _samples(graph.input), {clip.inputs[0] for clip in clips})
    return {clip.inputs[0] for clip in clips if _is_open(clip, tensors[clip.inputs[0]])}


def _is_open(clip: Clip, x_bhwc: RealArray) -> bool:
    least, most = x_bhwc.min(axis=(0, 1, 2)), x_bhwc.max(axis=(0, 1, 2))
    constant = (most <= clip.low) | (least >= clip.high)
    idle_low = clip.low > -math.inf and bool((least >= clip.low).all())
    idle_high = clip.high < math.inf and bool((most <= clip.high).all())
    return bool(constant.any()) or idle_low or idle_high


def _samples(source: Input) -> RealArray:
    """Both ends of the range, random corners from few to many high values, and random values."""
    rng = np.random.default_rng(0)
    shape = (SAMPLES, *source.shape)
    ends = np.stack([np.full(source.shape, source.low), np.full(source.shape, source.high)])
    corners = np.where(rng.random(shape) < rng.random((SAMPLES, 1, 1, 1)), source.high, source.low)
    return np.concatenate([ends, corners, rng.uniform(source.low, source.high, shape)])


# ---------------------------------------------------------------------------------------------------------- linear maps


class _Parts:
    """The linear maps of a graph by the sign of their weights, without biases; and the biases alone."""

    def __init__(self, graph: Graph) -> None:
        self.whole = _mapped(graph, lambda w: w, np.zeros_like)
        self.plus = _mapped(graph, lambda w: np.maximum(w, 0), np.zeros_like)
        self.minus = _mapped(graph, lambda w: np.minimum(w, 0), np.zeros_like)
        self.sizes = _mapped(graph, np.abs, np.zeros_like)
        self.biases = _mapped(graph, np.zeros_like, lambda b: b)


def _mapped(graph: Graph, on_w: Callable[[Array], Array], on_b: Callable[[Array], Array]) -> Graph:
    weights = dict(graph.weights)
    for node in graph.nodes:
        if isinstance(node, Weighted):
            w, b = ("scale", "bias") if isinstance(node, ScaleBias) else ("w", "b")
            weights[f"{node.name}.{w}"] = on_w(weights[f"{node.name}.{w}"])
            weights[f"{node.name}.{b}"] = on_b(weights[f"{node.name}.{b}"])
    return replace(graph, weights=weights)


def _plain(graph: Graph) -> Graph:
    """A batch norm as a scale and a bias, a projection as it is evaluated: the mean is taken off, then multiplied."""
    nodes: list[Node] = []
    weights: dict[str, Array] = {}
    for node in graph.nodes:
        match node:
            case BatchNorm():
                weights[f"{node.name}.scale"], weights[f"{node.name}.bias"] = normalization(graph, node)
                nodes.append(ScaleBias(name=node.name, inputs=node.inputs, source=node.source))
            case Pca():
                q_rc, mean = projection(graph, node), real_array(graph, f"{node.name}.mean")
                centered = f"{node.name} centered"  # no name of a user's has a space
                weights |= {f"{centered}.scale": np.ones_like(mean), f"{centered}.bias": -mean}
                weights[f"{node.name}.w"] = q_rc[None, None, :, None, None]
                weights[f"{node.name}.b"] = np.zeros((1, 1, len(q_rc)))
                nodes.append(ScaleBias(name=centered, inputs=node.inputs, source=node.source))
                nodes.append(Conv2D(name=node.name, inputs=(centered,), source=node.source))
            case _:
                nodes.append(node)
                prefix = f"{node.name}."
                weights |= {name: array for name, array in graph.weights.items() if name.startswith(prefix)}
    return replace(graph, nodes=tuple(nodes), weights=weights)


def _slack(graph: Graph, node: Linear) -> float:
    """What a node's sums can lose, in parts of the sum of their terms' magnitudes."""
    match node:
        case Conv2D():
            terms = math.prod(graph.weights[f"{node.name}.w"].shape[3:])
        case Dense():
            terms = graph.weights[f"{node.name}.w"].shape[1]
        case ScaleBias():
            terms = 1
        case AveragePool():
            terms = math.prod(node.kernel)
        case Add():
            terms = len(node.inputs)
        case _:
            return 0.0  # samples are moved, and nothing is lost
    return 4 * (terms + 4) * UNIT


def _bias(graph: Graph, parts: _Parts, node: Linear) -> RealArray:
    if isinstance(node, Weighted | Pad):
        return np.asarray(apply_node(parts.biases, node, (np.zeros((1, *graph.shapes[node.inputs[0]])),))[0])
    return np.zeros(graph.shapes[node.name])


def _unbiased(node: Linear) -> Linear:
    """The node whose weights, without their biases, are all that it adds."""
    return replace(node, value=0.0) if isinstance(node, Pad) else node


# ------------------------------------------------------------------------------------------------------------ intervals


def _interval(graph: Graph, parts: _Parts, node: Node, inputs: list[Bounds]) -> Bounds:
    lows, highs = [box.low_hwc for box in inputs], [box.high_hwc for box in inputs]
    match node:
        case Input():
            return Bounds(np.full(node.shape, node.low), np.full(node.shape, node.high), "exact")
        case Linear():
            both = list(zip(lows, highs, strict=True))
            bias, node = _bias(graph, parts, node), _unbiased(node)
            up = tuple(np.stack([low, high, np.abs(low), np.abs(high)]) for low, high in both)
            ends = apply_node(parts.plus, node, up)
            if isinstance(node, Weighted):
                ((low, high),) = both
                down = apply_node(parts.minus, node, (np.stack([high, low, np.abs(high), np.abs(low)]),))
                ends = ends + down * np.array([1, 1, -1, -1])[:, None, None, None]
            (least, most), terms = ends[:2], ends[2:]
            # A bias alone is exact, and so is a sum of zeros.
            lost = np.where(terms > 0, _slack(graph, node) * (terms + np.abs(bias)), 0.0)
            moved = _slack(graph, node) == 0 and inputs[0].method == "exact"
            exact = len(inputs) == 1 and (moved or _is_input(graph, graph.node(node.inputs[0])))
            least, most = least + bias - lost[0], most + bias + lost[1]
            return Bounds(*_known(least, most), "exact" if exact else "intervals")
        case Clip() | MaxPool():  # both keep the order of numbers, and lose nothing
            low, high = apply_node(graph, node, (np.stack([*lows, *highs]),))
            return Bounds(low, high, "intervals")
        case Pointwise() | Prelu():
            return _bent(graph, node, inputs[0])
        case Multiply():
            corners = np.stack([a * b for a in (lows[0], highs[0]) for b in (lows[1], highs[1])])
            corners = np.where(np.isnan(corners), 0.0, corners)  # zero times anything, however great
            lost = 4 * UNIT * np.abs(corners).max(axis=0)
            least = corners.min(axis=0) - lost
            if node.inputs[0] == node.inputs[1]:
                least = np.maximum(least, 0.0)
            return Bounds(least, corners.max(axis=0) + lost, "intervals")
        case ArgMax():
            shape, channels = graph.shapes[node.name], graph.shapes[node.inputs[0]][2]
            return Bounds(np.zeros(shape), np.full(shape, channels - 1.0), "intervals")
    raise TypeError(f"node must be an operator on reals, not {node!r}")


def _bent(graph: Graph, node: Pointwise | Prelu, box: Bounds) -> Bounds:
    """A function of each sample: its values at both ends, and where it turns round between them."""
    turn = 0.0 if isinstance(node, Prelu) else TURNS.get(node.function, math.inf)
    image = (-math.inf, math.inf) if isinstance(node, Prelu) else IMAGES.get(node.function, (-math.inf, math.inf))
    parameters = () if isinstance(node, Prelu) else node.parameters
    between = np.where((box.low_hwc < turn) & (turn < box.high_hwc), turn, box.low_hwc)
    ends = apply_node(graph, node, (np.stack([box.low_hwc, between, box.high_hwc]),))
    size = (1 + sum(map(abs, parameters))) * (1 + np.maximum(np.abs(box.low_hwc), np.abs(box.high_hwc)))
    least, most = ends.min(axis=0), ends.max(axis=0)
    least, most = least - 16 * UNIT * (np.abs(least) + size), most + 16 * UNIT * (np.abs(most) + size)
    least, most = _known(least, most)
    return Bounds(np.clip(least, *image), np.clip(most, *image), "intervals")


def _known(least: RealArray, most: RealArray) -> tuple[RealArray, RealArray]:
    """Bounds, with no bound in the place of what is no number."""
    return np.where(np.isnan(least), -math.inf, least), np.where(np.isnan(most), math.inf, most)


def _is_input(graph: Graph, node: Node) -> bool:
    """Whether a tensor is the input or a part of it, each value once: then each is free, whatever the others are."""
    while isinstance(node, _MOVERS):
        node = graph.node(node.inputs[0])
    return isinstance(node, Input)


# --------------------------------------------------------------------------------------------------------- affine forms


Span = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """``center + Σ_k term_k·ε_k ± error``; each set of symbols has its terms ``(K, H, W, C)`` under its source's name.

    ``exact`` as long as nothing was bent or given up.
    """

    center_hwc: RealArray
    error_hwc: RealArray
    terms: Mapping[str, RealArray]
    exact: bool

    @property
    def spread_hwc(self) -> RealArray:
        """How far from the center the form reaches."""
        spread = self.error_hwc
        for terms in self.terms.values():
            spread = spread + np.abs(terms).sum(axis=0)
        return spread * (1 + 2 * UNIT * (4 + sum(map(len, self.terms.values()))))

    def range(self) -> tuple[RealArray, RealArray]:
        spread = self.spread_hwc
        lost = 2 * UNIT * (np.abs(self.center_hwc) + spread)
        return self.center_hwc - spread - lost, self.center_hwc + spread + lost

    def without(self, gone: Collection[str]) -> _Form:
        """Sets of symbols given up: what they reach becomes error."""
        dropped = {name: terms for name, terms in self.terms.items() if name in gone}
        if not dropped:
            return self
        error = replace(self, center_hwc=np.zeros_like(self.center_hwc), terms=dropped).spread_hwc
        kept = {name: terms for name, terms in self.terms.items() if name not in gone}
        return _Form(self.center_hwc, error, kept, exact=False)


def _middle(box: Bounds) -> tuple[RealArray, RealArray]:
    """The center of an interval, and a radius that covers it."""
    center = box.low_hwc / 2 + box.high_hwc / 2
    return center, np.maximum(box.high_hwc - center, center - box.low_hwc) * (1 + 4 * UNIT)


def _tighter(box: Bounds, form: _Form) -> Bounds:
    low, high = form.range()
    both = Bounds(np.fmax(box.low_hwc, low), np.fmin(box.high_hwc, high), "affine forms")
    if form.exact or box.method == "exact":
        return replace(both, method="exact")
    better = (both.low_c > box.low_c).any() or (both.high_c < box.high_c).any()
    return both if better else replace(both, method="intervals")


class _Forms:
    """The affine forms of a graph's tensors, up to the node with index ``last``, within `WORK` multiplies."""

    def __init__(self, graph: Graph, last: int) -> None:
        self.graph, self.last = graph, last
        self.work_left = WORK
        self.until: dict[str, int] = {}  # the node up to which a set of symbols is kept
        self.forms: dict[str, _Form] = {}
        self.last_use = {name: n for n, node in enumerate(graph.nodes) for name in node.inputs}

    def step(self, n: int, parts: _Parts, bounds: Mapping[str, Bounds]) -> _Form:
        """The form of node ``n``, whose interval is known, after those of all nodes before it.

        Where no symbols are left the form is the interval.
        """
        node = self.graph.nodes[n]
        gone = {name for name, until in self.until.items() if until < n}
        inputs = [self.forms[name].without(gone) for name in node.inputs]
        if isinstance(node, Input | Clip | Opaque) or any(form.terms for form in inputs):
            form = self._form(n, node, inputs, parts, bounds)
        else:
            form = _Form(*_middle(bounds[node.name]), {}, exact=False)
        self.forms[node.name] = form
        for name in (*node.inputs, node.name):
            if self.last_use.get(name, n) <= n:
                self.forms.pop(name, None)
        return form

    def _form(
        self, n: int, node: Node, inputs: list[_Form], parts: _Parts, bounds: Mapping[str, Bounds]
    ) -> _Form:
        match node:
            case Input():
                center, radius = _middle(bounds[node.name])
                return self._with_symbols(n, _Form(center, np.zeros(node.shape), {}, exact=True), radius)
            case Linear():
                return self._linear(node, inputs, parts)
            case Clip():
                return self._with_symbols(n, *_bend(node, inputs[0], bounds[node.inputs[0]]))
            case MaxPool():
                return _pool(self.graph, node, inputs[0], bounds[node.inputs[0]])
            case Pointwise() | Prelu() | Multiply() | ArgMax():
                center, radius = _middle(bounds[node.name])
                return self._with_symbols(n, _Form(center, np.zeros_like(center), {}, exact=False), radius)
        raise TypeError(f"node must be an operator on reals, not {node!r}")

    def _linear(self, node: Linear, inputs: list[_Form], parts: _Parts) -> _Form:
        def apply(graph: Graph, xs_hwc: list[RealArray]) -> RealArray:
            return np.asarray(apply_node(graph, node, tuple(x_hwc[None] for x_hwc in xs_hwc))[0])

        bias, node = _bias(self.graph, parts, node), _unbiased(node)
        size = apply(parts.sizes, [np.abs(form.center_hwc) + form.spread_hwc for form in inputs])
        terms = {}
        for name, count in {name: len(terms) for form in inputs for name, terms in form.terms.items()}.items():
            before = (form.terms.get(name, np.zeros((count, 1, 1, 1))) for form in inputs)
            wide = (np.broadcast_to(x, (count, *form.center_hwc.shape)) for x, form in zip(before, inputs, strict=True))
            terms[name] = apply_node(parts.whole, node, tuple(wide))
        return _Form(
            apply(parts.whole, [form.center_hwc for form in inputs]) + bias,
            apply(parts.sizes, [form.error_hwc for form in inputs]) + _slack(self.graph, node) * (size + np.abs(bias)),
            terms,
            all(form.exact for form in inputs),
        )

    def _with_symbols(self, n: int, form: _Form, radius_hwc: RealArray) -> _Form:
        """A form with one more symbol a value, or with more error where that is not worth its price."""
        live = np.flatnonzero((radius_hwc > 0).any(axis=(0, 1)))
        plan = self._plan(n, len(live)) if len(live) and np.isfinite(radius_hwc).all() else None
        if plan is None:
            return replace(form, error_hwc=form.error_hwc + radius_hwc, exact=form.exact and not len(live))
        name = self.graph.nodes[n].name
        self.until[name] = plan.until
        self.work_left -= plan.work
        return replace(form, terms={**form.terms, name: _impulses(radius_hwc, live, plan.period)})

    def _plan(self, n: int, channels: int) -> _Plan | None:
        """How far symbols for the values of node ``n`` are kept; none unless that is behind a second sum.

        (A single one adds up errors just as it adds up symbols.)
        """
        source = self.graph.nodes[n].name
        height, width, _ = self.graph.shapes[source]
        spans = {source: [np.stack([np.arange(size)] * 2) for size in (height, width)]}
        period, macs, values, sums, best = [1, 1], 0, 0, 0, None
        for m in range(n + 1, self.last + 1):
            node = self.graph.nodes[m]
            if not any(name in spans for name in node.inputs):
                continue
            before = [spans[name] for name in node.inputs if name in spans]
            spans[node.name] = [_reach(self.graph, node, axis, [span[axis] for span in before]) for axis in (0, 1)]
            for axis, (first, last) in enumerate(spans[node.name]):
                period[axis] = max(period[axis], int((last - first).max()) + 1)
            elements = math.prod(self.graph.shapes[node.name])
            macs, values = macs + node_macs(self.graph, node) + elements, max(values, elements)
            sums += isinstance(node, Linear) and _slack(self.graph, node) > 0
            count = min(period[0], height) * min(period[1], width) * channels
            if count * macs > self.work_left // 2 or count * values > VALUES:
                break
            if sums > 1:
                best = _Plan((period[0], period[1]), until=m, work=count * macs)
        return best


@dataclass(frozen=True, slots=True)
class _Plan:
    """Symbols ``period`` rows or columns apart share a term: up to node ``until``, no value depends on both."""

    period: tuple[int, int]
    until: int
    work: int


def _reach(graph: Graph, node: Node, axis: int, spans: list[Span]) -> Span:
    """The first and the last source row (column) that each row (column) of an output can depend on, ``(2, size)``."""
    size, source = graph.shapes[node.name][axis], graph.shapes[node.inputs[0]][axis]
    first, last = np.min([span[0] for span in spans], axis=0), np.max([span[1] for span in spans], axis=0)
    match node:
        case Clip() | ScaleBias() | Add() | Concat() | Slice() | ChannelShuffle() | Dropout():
            return np.stack([first, last])
        case Pointwise() | Prelu() | Multiply() | ArgMax():
            return np.stack([first, last])
        case Crop():
            start = node.cropping[axis][0]
            return np.stack([first, last])[:, start : start + size]
        case SpaceToDepth():
            step = node.block[axis]
            return np.stack([first.reshape(-1, step).min(axis=1), last.reshape(-1, step).max(axis=1)])
        case Upsample() | DepthToSpace():
            factor = node.factor if isinstance(node, Upsample) else node.block
            return np.stack([first, last]).repeat(factor[axis], axis=1)
        case Pad():
            rows = np.arange(size) - node.padding[axis][0]
            inside, rows = (0 <= rows) & (rows < source), rows.clip(0, source - 1)
            return np.stack([np.where(inside, first[rows], last.max() + 1), np.where(inside, last[rows], -1)])
        case Conv2D() | MaxPool() | AveragePool():
            kernel = graph.weights[f"{node.name}.w"].shape[3:5] if isinstance(node, Conv2D) else node.kernel
            dilation = node.dilation[axis] if isinstance(node, Conv2D) else 1
            starts = np.arange(size) * node.stride[axis] - node.padding[axis][0]
            taps = starts[:, None] + np.arange(kernel[axis]) * dilation
            inside = (0 <= taps) & (taps < source)
            taps = taps.clip(0, source - 1)
            beyond = last.max() + 1  # a window of nothing but padding has an empty span
            first, last = np.where(inside, first[taps], beyond), np.where(inside, last[taps], -1)
            return np.stack([first.min(axis=1), last.max(axis=1)])
    return np.stack([np.full(size, first.min()), np.full(size, last.max())])


def _impulses(radius_hwc: RealArray, live: NDArray[np.int64], period: tuple[int, int]) -> RealArray:
    """One symbol for each value of the live channels, those a period apart in one term."""
    height, width, channels = radius_hwc.shape
    rows, cols = min(period[0], height), min(period[1], width)
    terms = np.zeros((rows, cols, len(live), height, width, channels))
    i, j, k = np.ix_(range(height), range(width), range(len(live)))
    terms[i % rows, j % cols, k, i, j, live[k]] = radius_hwc[:, :, live]
    return terms.reshape(-1, height, width, channels)


def _bend(node: Clip, form: _Form, box: Bounds) -> tuple[_Form, RealArray]:
    """A clip of a form, and the radius of what it bends: ``clip(x) = slope·x + middle ± radius`` on ``low … high``.

    The difference of a clip and a line is greatest and least at the ends or at the clip's own corners.
    """
    low, high = box.low_hwc, box.high_hwc
    at_low, at_high = np.clip(low, node.low, node.high), np.clip(high, node.low, node.high)
    idle = (low >= node.low) & (high <= node.high)
    flat = ~idle & ((high <= node.low) | (low >= node.high))
    width = np.where(high > low, high - low, 1.0)
    slope = np.where(idle, 1.0, np.where(flat, 0.0, np.clip((at_high - at_low) / width, 0.0, 1.0)))
    corners = np.stack([low, high, np.clip(node.low, low, high), np.clip(node.high, low, high)])
    apart = np.clip(corners, node.low, node.high) - slope * corners
    most, least = apart.max(axis=0), apart.min(axis=0)
    live = ~(idle | flat)
    middle = np.where(idle, 0.0, np.where(flat, at_low, (most + least) / 2))
    size = np.abs(form.center_hwc) + form.spread_hwc + np.maximum(np.abs(low), np.abs(high))
    lost = np.where(live, 8 * UNIT * size, 0.0)
    bent = _Form(
        slope * form.center_hwc + middle,
        slope * form.error_hwc + lost,
        {name: slope * terms for name, terms in form.terms.items()},
        form.exact and not live.any(),
    )
    return bent, np.where(live, (most - least) / 2, 0.0)


def _pool(graph: Graph, node: MaxPool, form: _Form, box: Bounds) -> _Form:
    """A max pool of a form: the sample that is always greatest; where there is none, the interval of the maximum."""
    height, width, channels = graph.shapes[node.inputs[0]]
    low, high = (_windows(x_hwc, node, -math.inf) for x_hwc in (box.low_hwc, box.high_hwc))
    positions = _windows(np.arange(height * width).reshape(height, width, 1), node, -1)
    at = low.argmax(axis=3)[..., None]
    others = high.copy()
    np.put_along_axis(others, at, -math.inf, axis=3)
    maximum = Bounds(low.max(axis=3), high.max(axis=3), "intervals")
    wins = others.max(axis=3) <= maximum.low_hwc
    row, col = np.divmod(np.take_along_axis(positions, at, axis=3)[..., 0], width)
    pick = row, col, np.arange(channels)
    middle, radius = _middle(maximum)
    return _Form(
        np.where(wins, form.center_hwc[pick], middle),
        np.where(wins, form.error_hwc[pick], radius),
        {name: np.where(wins, terms[:, *pick], 0.0) for name, terms in form.terms.items()},
        form.exact and bool(wins.all()),
    )


def _windows(x_hwc: NDArray[Any], node: MaxPool, fill: float) -> NDArray[Any]:
    """The samples of each window, ``(H', W', C, kh·kw)``."""
    padded = np.pad(x_hwc, (*node.padding, (0, 0)), constant_values=fill)
    windows = sliding_window_view(padded, node.kernel, axis=(0, 1))[:: node.stride[0], :: node.stride[1]]
    return windows.reshape(*windows.shape[:3], -1)


# --------------------------------------------------------------------------------------------------------- certificates


def certify(clip: Clip, box: Bounds, rule: str, channels: Sequence[int]) -> Certificate:
    """What is proven of the tensor that a clip reads, as a record."""
    return Certificate(
        layer=clip.name,
        tensor=clip.inputs[0],
        limits=(clip.low if clip.low > -math.inf else None, clip.high if clip.high < math.inf else None),
        rule=rule,
        channels=tuple(map(int, channels)),
        low=tuple(map(float, box.low_c)),
        high=tuple(map(float, box.high_c)),
        method=box.method,
    )
