"""What values the tensors of a real graph take: proven from the declared input range, or seen on calibration data."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .bounds import Bounds, find_bounds
from .errors import CompileError
from .evaluate import evaluate
from .graph import Clip, Conv2D, Dense, Graph, Input, MaxPool
from .numbers import RealArray

__all__ = ["Calibration", "Limits", "Span", "clip_limits", "find_spans", "interval_bounds", "layer_weights"]

Method = Literal["min-max", "percentile", "mean-square"]
METHODS: tuple[Method, ...] = get_args(Method)

_IMAGES = 32
"""Calibration images evaluated together."""
_BINS = 4096
"""Of the histogram of a tensor from which its range of least error is found."""
_STEPS = 100
"""Ranges that are tried: so many parts of the greatest value."""

Limits = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Span:
    """What the format of a tensor must hold; signed unless it is proven that nothing in it is negative."""

    low: float
    high: float
    signed: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """How ranges are found on data: of ``images``, by a ``method``, for formats of so many ``bits`` each."""

    images: RealArray
    method: Method
    percentile: float
    bits: Mapping[str, int]


def clip_limits(values: Limits, limits: Limits) -> Limits:
    """The least and the greatest of some values once they are clipped."""
    low, high = limits
    return min(max(values[0], low), high), min(max(values[1], low), high)


def find_spans(
    graph: Graph, limits: Mapping[str, Limits], calibration: Calibration | None
) -> tuple[dict[str, Span], str]:
    """What the format of each tensor in ``limits`` must hold within these, and how that was found."""
    bounds = find_bounds(graph, limits)
    intervals = interval_bounds(graph, bounds)
    proven = {  # the tighter of the two: one leaves rounding out, the other knows what channels have in common
        name: (
            max(float(intervals[name][0].min()), float(bounds[name].low_hwc.min())),
            min(float(intervals[name][1].max()), float(bounds[name].high_hwc.max())),
        )
        for name in limits
    }
    if calibration is None:
        ranges = proven
        declared = f"{graph.input.low:g} … {graph.input.high:g}"
        origin = f"ranges proven from the declared input range {declared}"
        origin += "; nothing saturates, but steps are coarser than with calibration data"
    else:
        ranges = _observe(graph, limits, calibration)
        share = f" {calibration.percentile:g}" if calibration.method == "percentile" else ""
        origin = f"ranges observed on {len(calibration.images)} calibration images, {calibration.method}{share}"
    spans = {
        name: Span(*clip_limits(ranges[name], own), signed=clip_limits(proven[name], own)[0] < 0)
        for name, own in limits.items()
    }
    for name, span in spans.items():
        if not (math.isfinite(span.low) and math.isfinite(span.high)):
            where = graph.node(name).source
            message = f"the values of {name!r} have no finite range: {span.low:g} … {span.high:g}"
            raise CompileError(where, message, "give calibration data, or clip what it reads")
    return spans, origin


def interval_bounds(
    graph: Graph, bounds: Mapping[str, Bounds] | None = None
) -> dict[str, tuple[RealArray, RealArray]]:
    """The least and greatest value of each channel of each tensor, ``(C,)``, for all inputs in the declared range.

    Exact for each layer over the box of its input channels: ``b + Σ min(w·low, w·high)``, where a padded
    layer's box holds the zero of the padding. Composed from layer to layer, so wide for deep networks, but
    never too narrow. What is neither layer, clip nor max pool has its ``bounds``.
    """
    bounds = find_bounds(graph, ()) if bounds is None else bounds
    found: dict[str, tuple[RealArray, RealArray]] = {}
    for node in graph.nodes:
        match node:
            case Input():
                found[node.name] = np.full(node.shape[2], node.low), np.full(node.shape[2], node.high)
            case Conv2D() | Dense():
                low, high = found[node.inputs[0]]
                if isinstance(node, Conv2D) and node.padding != ((0, 0), (0, 0)):
                    low, high = np.minimum(low, 0), np.maximum(high, 0)
                w_rcohwi, b_rco = layer_weights(graph, node)
                if isinstance(node, Conv2D) and node.groups > 1:  # each output has its own channels
                    low, high = (_of_groups(side, node.groups, w_rcohwi.shape[2]) for side in (low, high))
                at_low, at_high = w_rcohwi * low, w_rcohwi * high
                least = b_rco + np.minimum(at_low, at_high).sum(axis=(3, 4, 5))
                most = b_rco + np.maximum(at_low, at_high).sum(axis=(3, 4, 5))
                found[node.name] = least.min(axis=(0, 1)), most.max(axis=(0, 1))
            case Clip():
                low, high = found[node.inputs[0]]
                found[node.name] = np.clip(low, node.low, node.high), np.clip(high, node.low, node.high)
            case MaxPool():
                found[node.name] = found[node.inputs[0]]
            case _:
                found[node.name] = bounds[node.name].low_c, bounds[node.name].high_c
    return found


def _of_groups(side_i: RealArray, groups: int, outputs: int) -> RealArray:
    """The channels that each output reads, ``(O, 1, 1, I)``."""
    return side_i.reshape(groups, -1).repeat(outputs // groups, axis=0)[:, None, None, :]


def layer_weights(graph: Graph, node: Conv2D | Dense) -> tuple[RealArray, RealArray]:
    """Kernels ``(R,C,O,kh,kw,I)`` and biases ``(R,C,O)``; a dense layer's kernel is as large as its input."""
    w, b = (np.asarray(graph.weights[f"{node.name}.{part}"], dtype=np.float64) for part in "wb")
    if isinstance(node, Conv2D):
        return w, b
    return w.reshape(1, 1, len(w), *graph.shapes[node.inputs[0]]), b.reshape(1, 1, -1)


# ------------------------------------------------------------------------------------------------------------- on data


def _observe(graph: Graph, limits: Mapping[str, Limits], calibration: Calibration) -> dict[str, Limits]:
    images = _checked(graph, calibration.images)
    dropped = (100 - calibration.percentile) / 100 if calibration.method == "percentile" else 0.0
    extremes = _extremes(graph, images, limits, dropped)
    if calibration.method != "mean-square":
        return extremes
    ends = {name: clip_limits(extremes[name], own) for name, own in limits.items()}
    counts = {name: np.zeros(_BINS) for name in limits}
    for name, values in _tensors(graph, images, limits):
        counts[name] += np.histogram(np.clip(values, *ends[name]), _BINS, _wide(ends[name]))[0]
    return {name: _least_error(counts[name], ends[name], calibration.bits[name]) for name in limits}


def _tensors(graph: Graph, images: RealArray, names: Collection[str]) -> Iterator[tuple[str, RealArray]]:
    """All values of some tensors, a few images at a time."""
    for first in range(0, len(images), _IMAGES):
        for name, values in evaluate(graph, images[first : first + _IMAGES], keep=names).items():
            yield name, values.ravel()


def _extremes(graph: Graph, images: RealArray, names: Collection[str], dropped: float) -> dict[str, Limits]:
    """The ranges of tensors without a share of their values at each end; only extreme values are kept in memory."""
    counts = {name: int(len(images) * math.prod(graph.shapes[name]) * dropped) + 1 for name in names}
    tails = {name: (np.empty(0), np.empty(0)) for name in names}
    for name, values in _tensors(graph, images, names):
        least, most = tails[name]
        tails[name] = (
            _least(np.concatenate((least, values)), counts[name]),
            -_least(-np.concatenate((most, values)), counts[name]),
        )
    return {name: (float(least.max()), float(most.min())) for name, (least, most) in tails.items()}


def _least(values: RealArray, count: int) -> RealArray:
    return np.partition(values, count - 1)[:count] if count < len(values) else values


def _wide(ends: Limits) -> Limits:
    return ends if ends[0] < ends[1] else (ends[0], ends[0] + 1.0)


def _least_error(counts: RealArray, ends: Limits, bits: int) -> Limits:
    """The part of a range whose format errs least in the mean of squares: rounding within, saturation outside."""
    low, high = _wide(ends)
    centers = low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
    greatest, signed = max(-ends[0], ends[1]), ends[0] < 0
    steps = (1 << (bits - signed)) - 1
    best, least = greatest, math.inf
    for part in range(_STEPS, 0, -1):
        top = greatest * part / _STEPS
        step = top / steps or 1.0
        errors = centers - np.clip(np.round(centers / step), -steps if signed else 0, steps) * step
        error = float(counts @ errors**2)
        if error < least:
            best, least = top, error
    return max(ends[0], -best), min(ends[1], best)


def _checked(graph: Graph, calibration: RealArray) -> RealArray:
    source = graph.input
    images = np.asarray(calibration, dtype=np.float64)
    if images.ndim != 4 or images.shape[1:] != source.shape or not len(images):
        raise CompileError(
            "calibration data",
            f"the shape is {images.shape!r}, but {source.name!r} takes (images, {str(source.shape)[1:]}",
            "give an array of the shape (images, height, width, channels)",
        )
    least, most = float(images.min()), float(images.max())
    slack = 1e-6 * (source.high - source.low)
    if not (source.low - slack <= least and most <= source.high + slack):
        raise CompileError(
            "calibration data",
            f"values reach from {least:g} to {most:g}, but the input {source.name!r} is declared "
            f"{source.low:g} … {source.high:g}",
            "scale the data as the network expects them, or declare their true range",
        )
    return images
