"""Real graph to integer graph: the ranges of tensors, then their formats, then the integers of every layer.

Ranges come from calibration data or, without any, are proven from the declared input range. The
rest is arithmetic: a layer's range gives its output step, each output channel's weights give their own step,
and the ratio of the accumulator's step to the output's is the channel's multiplier. Weights and formats bound
the accumulator, so it cannot overflow.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .bounds import find_bounds
from .errors import CompileError
from .evaluate import evaluate
from .graph import Array, Clip, Conv2D, Decision, Dense, Graph, Input, MaxPool, Node, QConv2D, graph_macs
from .numbers import (
    ACCUMULATOR_BITS,
    MAX_ACCUMULATOR,
    MAX_BITS,
    MIN_BITS,
    MULTIPLIER_BITS,
    Format,
    IntArray,
    RealArray,
    accumulator_range,
    choose_multipliers,
    format_for_range,
    round_half_up,
)

_IMAGES = 32
"""Calibration images evaluated together."""
_MAX_RATIO = 1 << (MULTIPLIER_BITS - 2)
"""An accumulator step is at most this many output steps, so that a multiplier exists."""

Limits = tuple[float, float]


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How a real graph becomes integers.

    *Parameters* ``bits`` of activations and ``weight_bits`` of weights, 2 to 16, for layers that have none of
    their own. ``method``: a tensor's range is that of its calibrated values ("min-max"), or what is left of
    it without the ``100 - percentile`` per cent greatest and as many least values ("percentile").
    """

    bits: int = 8
    weight_bits: int = 8
    method: Literal["min-max", "percentile"] = "min-max"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        for name, bits in (("bits", self.bits), ("weight_bits", self.weight_bits)):
            if not MIN_BITS <= bits <= MAX_BITS:
                raise ValueError(f"{name} must be {MIN_BITS} to {MAX_BITS}, not {bits!r}")
        if self.method not in ("min-max", "percentile"):
            raise ValueError(f"method must be 'min-max' or 'percentile', not {self.method!r}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must be above 50 and at most 100, not {self.percentile!r}")


@dataclass(frozen=True, slots=True)
class _Span:
    """What the format of a layer must hold; signed unless it is proven that nothing in it is negative."""

    low: float
    high: float
    signed: bool


def quantize(
    graph: Graph, options: QuantizeOptions | None = None, calibration: RealArray | None = None
) -> Graph:
    """The integer graph of a folded real one.

    A clip becomes the limits of the layer that feeds it, and its readers read that layer. It may stand behind
    max pools too, since clipping keeps the order of numbers. Formats have no zero point; they are unsigned
    where bounds prove a tensor never negative, and signed elsewhere.

    *Before*::

        edges: 8×8×4 = conv2d(image, 3×3, padding ((1, 1), (1, 1)))
        relu: 8×8×4 = clip(edges, 0 … inf)
        scores: 1×1×10 = dense(relu)

    *After*::

        edges: 8×8×4 = qconv2d(image, 3×3, padding ((1, 1), (1, 1)), uint8 × 0.0123)
        scores: 1×1×10 = qconv2d(edges, 8×8, int8 × 0.0456)

    *Shapes* ``calibration`` is ``(B, H, W, C)``, real values within the declared input range.

    *Requires* nothing but `Input`, plain `Conv2D`, `Dense`, `Clip` and `MaxPool`. *Leaves* `Input`, `QConv2D`,
    `MaxPool`.

    *Raises* ``CompileError`` for another operator, for a clip that no layer can take over, for calibration
    data that do not suit the input, and for an accumulator that could leave ``MAX_ACCUMULATOR``.
    """
    options = options or QuantizeOptions()
    limits = _fuse_clips(graph)
    spans, origin = _find_spans(graph, limits, options, calibration)

    nodes: list[Node] = []
    weights: dict[str, Array] = {}
    formats: dict[str, Format] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        match node:
            case Clip():
                renamed[node.name] = node.inputs[0]
                continue
            case Input():
                formats[node.name] = node.format or format_for_range(node.low, node.high, options.bits)
                node = replace(node, format=formats[node.name])
            case MaxPool():
                formats[node.name] = formats[node.inputs[0]]
            case Conv2D() | Dense():
                source = formats[node.inputs[0]]
                node, arrays = _quantize_layer(
                    graph, node, source, spans[node.name], limits[node.name], options
                )
                formats[node.name] = node.format
                weights |= {f"{node.name}.{part}": array for part, array in arrays.items()}
        nodes.append(node)

    macs = graph_macs(graph)
    decision = Decision("quantize", tuple(limits), True, origin, macs, macs)
    return Graph(
        name=graph.name,
        nodes=tuple(nodes),
        outputs=tuple(renamed.get(name, name) for name in graph.outputs),
        weights=weights,
        labels=graph.labels,
        decisions=(*graph.decisions, decision),
    )


# ------------------------------------------------------------------------------------------------------ clips


def _fuse_clips(graph: Graph) -> dict[str, Limits]:
    """The limits that each layer takes over from the clips behind it."""
    limits: dict[str, Limits] = {}
    for node in graph.nodes:
        match node:
            case Dense() | Conv2D(groups=1, dilation=(1, 1)):
                limits[node.name] = (-math.inf, math.inf)
            case Clip():
                layer = _clipped_layer(graph, node)
                limits[layer] = _clip(limits[layer], (node.low, node.high))
            case Input() | MaxPool():
                pass
            case _:
                raise CompileError(
                    node.source,
                    f"operator {node.op} cannot be quantized",
                    "fold it into a convolution: quantized are plain conv2d, dense, clip and max_pool",
                )
    return limits


def _clip(values: Limits, limits: Limits) -> Limits:
    low, high = limits
    return min(max(values[0], low), high), min(max(values[1], low), high)


def _clipped_layer(graph: Graph, clip: Clip) -> str:
    """The layer that can take over ``clip``: only clips and max pools lie between, and nothing else reads them."""
    behind: Node = clip
    while True:
        source = graph.node(behind.inputs[0])
        if isinstance(source, Input):
            raise CompileError(
                clip.source,
                f"clip {clip.name!r} works on the network's input, where no layer can take over its limits",
                "declare the clipped range as the input's range, and clip the data before they are sent",
            )
        readers = [node.name for node in graph.consumers(source.name) if node != behind]
        if readers or source.name in graph.outputs:
            reader = f"read by {readers[0]!r}" if readers else "an output of the network"
            raise CompileError(
                clip.source,
                f"clip {clip.name!r} cannot be merged into {source.name!r}, because that is also {reader}",
                "let only the clip read it, or give the clip a copy of the layer",
            )
        if isinstance(source, Conv2D | Dense):
            return source.name
        behind = source


# ----------------------------------------------------------------------------------------------------- ranges


def _find_spans(
    graph: Graph, limits: Mapping[str, Limits], options: QuantizeOptions, calibration: RealArray | None
) -> tuple[dict[str, _Span], str]:
    """What each layer's format must hold within its limits, and how that was found."""
    intervals, bounds = interval_bounds(graph), find_bounds(graph, limits)
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
        ranges = _observe(graph, limits.keys(), options, calibration)
        share = f" {options.percentile:g}" if options.method == "percentile" else ""
        origin = f"ranges observed on {len(calibration)} calibration images, {options.method}{share}"
    spans = {
        name: _Span(*_clip(ranges[name], own), signed=_clip(proven[name], own)[0] < 0)
        for name, own in limits.items()
    }
    return spans, origin


def interval_bounds(graph: Graph) -> dict[str, tuple[RealArray, RealArray]]:
    """The least and greatest value of each channel of each tensor, ``(C,)``, for all inputs in the declared range.

    Exact for each layer over the box of its input channels: ``b + Σ min(w·low, w·high)``, where a padded
    layer's box holds the zero of the padding. Composed from layer to layer, so wide for deep networks, but
    never too narrow.
    """
    bounds: dict[str, tuple[RealArray, RealArray]] = {}
    for node in graph.nodes:
        match node:
            case Input():
                bounds[node.name] = np.full(node.shape[2], node.low), np.full(node.shape[2], node.high)
            case Conv2D() | Dense():
                low, high = bounds[node.inputs[0]]
                if isinstance(node, Conv2D) and node.padding != ((0, 0), (0, 0)):
                    low, high = np.minimum(low, 0), np.maximum(high, 0)
                w_rcohwi, b_rco = _layer_weights(graph, node)
                at_low, at_high = w_rcohwi * low, w_rcohwi * high
                least = b_rco + np.minimum(at_low, at_high).sum(axis=(3, 4, 5))
                most = b_rco + np.maximum(at_low, at_high).sum(axis=(3, 4, 5))
                bounds[node.name] = least.min(axis=(0, 1)), most.max(axis=(0, 1))
            case Clip():
                low, high = bounds[node.inputs[0]]
                bounds[node.name] = np.clip(low, node.low, node.high), np.clip(high, node.low, node.high)
            case MaxPool():
                bounds[node.name] = bounds[node.inputs[0]]
    return bounds


def _observe(
    graph: Graph, tensors: Collection[str], options: QuantizeOptions, calibration: RealArray
) -> dict[str, tuple[float, float]]:
    """The ranges of ``tensors`` over the calibration data; only their extreme values are kept in memory."""
    images = _checked_calibration(graph, calibration)
    dropped = (100 - options.percentile) / 100 if options.method == "percentile" else 0.0
    counts = {name: int(len(images) * math.prod(graph.shapes[name]) * dropped) + 1 for name in tensors}
    tails = {name: (np.empty(0), np.empty(0)) for name in tensors}
    for first in range(0, len(images), _IMAGES):
        for name, values in evaluate(graph, images[first : first + _IMAGES], keep=tensors).items():
            least, most = tails[name]
            tails[name] = (
                _least(np.concatenate((least, values.ravel())), counts[name]),
                -_least(-np.concatenate((most, values.ravel())), counts[name]),
            )
    return {name: (float(least.max()), float(most.min())) for name, (least, most) in tails.items()}


def _least(values: RealArray, count: int) -> RealArray:
    return np.partition(values, count - 1)[:count] if count < len(values) else values


def _checked_calibration(graph: Graph, calibration: RealArray) -> RealArray:
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


# ----------------------------------------------------------------------------------------------------- layers


def _quantize_layer(
    graph: Graph, node: Conv2D | Dense, source: Format, span: _Span, limits: Limits, options: QuantizeOptions
) -> tuple[QConv2D, dict[str, IntArray]]:
    """The integer layer that reads ``source``, with its arrays ``w``, ``b`` and ``m``."""
    w_rcohwi, b_rco = _layer_weights(graph, node)
    bits, weight_bits = node.bits or options.bits, node.weight_bits or options.weight_bits
    form, step_o = _choose_steps(w_rcohwi, b_rco, source, span, bits, weight_bits)

    largest = (1 << (weight_bits - 1)) - 1
    w_raw = np.clip(round_half_up(w_rcohwi / step_o[:, None, None, None]), -largest, largest).astype(np.int64)
    b_steps = np.clip(b_rco / (source.scale * step_o), -4.0 * MAX_ACCUMULATOR, 4.0 * MAX_ACCUMULATOR)
    b_raw = round_half_up(b_steps).astype(np.int64) - source.zero_point * w_raw.sum(axis=(3, 4, 5))
    if accumulator_range(w_raw, b_raw, source.min_raw, source.max_raw).magnitude > MAX_ACCUMULATOR:
        raise CompileError(
            node.source,
            f"{node.name!r} needs an accumulator of more than {ACCUMULATOR_BITS} bits",
            "use fewer bits or weight_bits, or look for an excessive bias",
        )
    multiplier, shift = choose_multipliers(source.scale * step_o / form.scale)
    low, high = (int(limit) for limit in form.quantize(np.array(limits)))
    convolution = node if isinstance(node, Conv2D) else Conv2D(name=node.name, inputs=(), source=node.source)
    layer = QConv2D(
        name=node.name,
        inputs=node.inputs,
        source=node.source,
        stride=convolution.stride,
        padding=convolution.padding,
        classes=convolution.classes,
        shift=shift,
        low=low,
        high=high,
        format=form,
        weight_bits=weight_bits,
        kind=node.op,
    )
    return layer, {"w": w_raw, "b": b_raw, "m": multiplier}


def _layer_weights(graph: Graph, node: Conv2D | Dense) -> tuple[RealArray, RealArray]:
    """Kernels ``(R,C,O,kh,kw,I)`` and biases ``(R,C,O)``; a dense layer's kernel is as large as its input."""
    w, b = (np.asarray(graph.weights[f"{node.name}.{part}"], dtype=np.float64) for part in "wb")
    if isinstance(node, Conv2D):
        return w, b
    return w.reshape(1, 1, len(w), *graph.shapes[node.inputs[0]]), b.reshape(1, 1, -1)


def _choose_steps(
    w_rcohwi: RealArray, b_rco: RealArray, source: Format, span: _Span, bits: int, weight_bits: int
) -> tuple[Format, RealArray]:
    """The output's format, and the weight step of each output channel.

    A channel's step is its greatest weight over ``2**(weight_bits-1) - 1``, unless that is uselessly fine, as
    it is when training has driven the weights to zero and left a bias:

    1. No finer than where rounding all the weights moves the output by 1/32 step at most.
    2. All channels share one shift, so a fine step means a coarse multiplier ``m``. No finer than where
       rounding ``m`` (an error of ``bias · top/step · 2**-17``) costs as much as rounding the weights
       (``step/2`` each).
    """
    reach = source.max_raw - source.min_raw
    taps = math.prod(w_rcohwi.shape[3:])
    exact_o = np.abs(w_rcohwi).max(axis=(0, 1, 3, 4, 5)) / ((1 << (weight_bits - 1)) - 1)
    bias_o = np.abs(b_rco).max(axis=(0, 1))

    largest = max(-span.low, span.high) / ((1 << (bits - span.signed)) - 1)
    scale = max(largest or 1.0, source.scale * float(exact_o.max()) / _MAX_RATIO)
    finest = scale / (source.scale * 16 * taps * reach)
    top = max(float(exact_o.max()), finest)
    balanced_o = np.sqrt(bias_o * top / (taps * reach * source.scale) / (1 << (MULTIPLIER_BITS - 1)))
    step_o = np.maximum(np.maximum(exact_o, finest), np.minimum(balanced_o, top))
    return Format(bits, span.signed, scale), step_o
