"""Real graph to integer graph: the ranges of tensors, then their formats, then the integers of every layer.

Ranges come from calibration data or, without any, are proven from the declared input range. The
rest is arithmetic: a layer's range gives its output step, each output channel's weights give their own step,
and the ratio of the accumulator's step to the output's is the channel's multiplier. Weights and formats bound
the accumulator, so it cannot overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import singledispatchmethod

import numpy as np

from .calibrate import METHODS, Calibration, Method, Span, find_spans, interval_bounds, layer_weights
from .errors import CompileError
from .evaluate import apply_node, scale_and_shift
from .graph import (
    Add,
    ArgMax,
    Array,
    AveragePool,
    BatchNorm,
    Clip,
    Conv2D,
    Decision,
    Dense,
    Dropout,
    Graph,
    Input,
    Multiply,
    Node,
    Pointwise,
    Prelu,
    QAdd,
    QAveragePool,
    QConv2D,
    QMultiply,
    QTable,
    Reshape,
    ScaleBias,
    graph_macs,
    number_format,
)
from .numbers import (
    ACCUMULATOR_BITS,
    MAX_ACCUMULATOR,
    MAX_BITS,
    MIN_BITS,
    MULTIPLIER_BITS,
    Format,
    RealArray,
    accumulator_range,
    choose_multipliers,
    format_for_range,
    round_half_up,
)
from .prepare import Elementwise, Families, Maker, absorbed_nodes, add_factor, fuse_clips, prepare

__all__ = ["QuantizeOptions", "interval_bounds", "quantize"]

TABLE_BITS = 8
"""The widest input of a table."""
_MAX_RATIO = 1 << (MULTIPLIER_BITS - 2)
"""An accumulator step is at most this many output steps, so that a multiplier exists."""
_MIN_RATIO = 2.0**-40
"""What is less than this many output steps never shows."""


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How a real graph becomes integers.

    *Parameters* ``bits`` of activations and ``weight_bits`` of weights, 2 to 16, for layers that have none of
    their own. ``method``: a tensor's range is that of its calibrated values ("min-max"), what is left of
    it without the ``100 - percentile`` per cent greatest and as many least values ("percentile"), or the part of it
    for which rounding and saturation together have the least mean of squares ("mean-square").
    """

    bits: int = 8
    weight_bits: int = 8
    method: Method = "min-max"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        for name, bits in (("bits", self.bits), ("weight_bits", self.weight_bits)):
            if not MIN_BITS <= bits <= MAX_BITS:
                raise ValueError(f"{name} must be {MIN_BITS} to {MAX_BITS}, not {bits!r}")
        if self.method not in METHODS:
            raise ValueError(f"method must be {', '.join(map(repr, METHODS[:-1]))} or {METHODS[-1]!r}, not {self.method!r}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must be above 50 and at most 100, not {self.percentile!r}")


def quantize(
    graph: Graph, options: QuantizeOptions | None = None, calibration: RealArray | None = None
) -> Graph:
    """The integer graph of a folded real one.

    A clip becomes the limits of what feeds it, and its readers read that; where others read that too it is a table.
    So is any function of single samples: as many as stand behind one another are one table. What only moves samples
    keeps its input's format, and what is stacked shares one. Formats have no zero point; they are unsigned where bounds
    prove a tensor never negative, and signed elsewhere.

    *Before*::

        edges: 8×8×4 = conv2d(image, 3×3, padding ((1, 1), (1, 1)))
        relu: 8×8×4 = clip(edges, 0 … inf)
        scores: 1×1×10 = dense(relu)

    *After*::

        edges: 8×8×4 = qconv2d(image, 3×3, padding ((1, 1), (1, 1)), uint8 × 0.0123)
        scores: 1×1×10 = qconv2d(edges, 8×8, int8 × 0.0456)

    *Shapes* ``calibration`` is ``(B, H, W, C)``, real values within the declared input range.

    *Requires* a real graph. *Leaves* integer nodes, and what works on reals and integers alike.

    *Raises* ``CompileError`` for a function of samples that have more than 8 bits, or one that is not defined for all of
    them, for calibration data that do not suit the input, and for an accumulator that could leave ``MAX_ACCUMULATOR``.
    """
    options = options or QuantizeOptions()
    prepared = prepare(graph)
    return _Quantizer(prepared, options, calibration).run(graph)


class _Quantizer:
    """The nodes and arrays made so far; one rule for each operator in `_make`."""

    def __init__(self, graph: Graph, options: QuantizeOptions, calibration: RealArray | None) -> None:
        self.graph, self.options = graph, options
        clips = fuse_clips(graph)
        self.limits, self.fused = clips.limits, clips.fused
        self.families = Families(graph, clips.fused)
        made = {name: own for name, own in clips.limits.items() if isinstance(graph.node(name), Maker)}
        data = None
        if calibration is not None:
            bits = {name: self._bits(self.families.of(name)) for name in made}
            data = Calibration(calibration, options.method, options.percentile, bits)
        self.spans, self.origin = find_spans(graph, made, data)
        narrow = {name for name in absorbed_nodes(graph, self.fused) if self._source_bits(graph.node(name)) <= TABLE_BITS}
        self.absorbed = frozenset(narrow)
        self.layers: list[str] = []
        self.formats: dict[str, Format] = {}
        self.nodes: list[Node] = []
        self.weights: dict[str, Array] = {}
        self.renamed: dict[str, str] = {}

    def run(self, original: Graph) -> Graph:
        graph = self.graph
        factors = {name for node in graph.nodes if isinstance(node, Add) for name in self._scaled(node)}
        for node in graph.nodes:
            if isinstance(node, Dropout) and node.name in graph.outputs:
                shape = graph.shapes[node.name]  # so that the output keeps its name
                self._make(Reshape(name=node.name, inputs=node.inputs, source=node.source, shape=shape))
            elif node.name in self.fused or isinstance(node, Dropout):
                self.renamed[node.name] = self._now(node.inputs[0])
            elif node.name not in self.absorbed and node.name not in factors:
                self._make(node)
        macs = graph_macs(original)
        decision = Decision("quantize", tuple(self.layers), True, self.origin, macs, macs)
        return Graph(
            name=graph.name,
            nodes=tuple(self.nodes),
            outputs=tuple(map(self._now, graph.outputs)),
            weights=self.weights,
            labels=graph.labels,
            decisions=(*original.decisions, decision),
            heads=tuple((self._now(name), head) for name, head in graph.heads),
        )

    # ------------------------------------------------------------------------------------------------------- formats

    def _now(self, name: str) -> str:
        """A tensor by the name it has in the integer graph."""
        return self.renamed.get(name, name)

    def _format(self, name: str) -> Format:
        return self.formats[self.families.of(name)]

    def _bits(self, family: str) -> int:
        makers = self.families.makers[family]
        widths = [node.bits or self.options.bits for node in makers if isinstance(node, Conv2D | Dense)]
        return max(widths + [self.options.bits] * (len(widths) < len(makers)))

    def _source_bits(self, node: Node) -> int:
        """The width of what a run of pointwise operators reads."""
        source = self.graph.node(node.inputs[0])
        while isinstance(source, Elementwise) and source.name in absorbed_nodes(self.graph, self.fused):
            source = self.graph.node(source.inputs[0])
        family = self.families.of(source.name)
        (first, *_) = self.families.makers[family]
        return first.format.bits if isinstance(first, Input) and first.format else self._bits(family)

    def _span(self, family: str) -> Span:
        """What the format of a family must hold: all that its makers make, and what is padded."""
        spans = [self.spans[node.name] for node in self.families.makers[family]]
        pads = self.families.pads[family]
        low = min([span.low for span in spans] + pads)
        return Span(
            low, max([span.high for span in spans] + pads), any(span.signed for span in spans) or min(pads, default=0.0) < 0
        )

    def _choose(self, name: str, finest: float = 0.0) -> Format:
        """The format of a maker's family, chosen at the first of them: no step is finer than ``finest``."""
        family = self.families.of(name)
        if family not in self.formats:
            span, bits = self._span(family), self._bits(family)
            largest = max(-span.low, span.high) / ((1 << (bits - span.signed)) - 1)
            self.formats[family] = Format(bits, span.signed, max(largest or 1.0, finest))
        return self.formats[family]

    def _raw_limits(self, name: str, form: Format) -> tuple[int, int]:
        low, high = form.quantize(np.array(self.limits[name])).tolist()
        return low, high

    # --------------------------------------------------------------------------------------------------------- rules

    @singledispatchmethod
    def _make(self, node: Node) -> None:
        """What only moves samples."""
        self.nodes.append(replace(node, inputs=tuple(map(self._now, node.inputs))))

    @_make.register
    def _input(self, node: Input) -> None:
        self.formats[node.name] = node.format or format_for_range(node.low, node.high, self.options.bits)
        self.nodes.append(replace(node, format=self.formats[node.name]))

    @_make.register
    def _argmax(self, node: ArgMax) -> None:
        self.nodes.append(replace(node, inputs=(self._now(node.inputs[0]),)))
        self.formats[node.name] = number_format(self.graph.shapes[node.inputs[0]][2])

    @_make.register(Conv2D)
    @_make.register(Dense)
    def _layer(self, node: Conv2D | Dense) -> None:
        self._convolve(node, *layer_weights(self.graph, node))

    @_make.register
    def _average(self, node: AveragePool) -> None:
        form = self._format(node.name)
        low, high = self._raw_limits(node.name, form)
        self.nodes.append(
            QAveragePool(
                name=node.name,
                inputs=(self._now(node.inputs[0]),),
                source=node.source,
                kernel=node.kernel,
                stride=node.stride,
                padding=node.padding,
                count_include_pad=node.count_include_pad,
                format=form,
                low=low,
                high=high,
            )
        )

    @_make.register
    def _add(self, node: Add) -> None:
        scaled = self._scaled(node)
        names, factors = zip(*(scaled.get(name, (name, 1.0)) for name in node.inputs), strict=True)
        steps = np.array([factor * self._format(name).scale for name, factor in zip(names, factors, strict=True)])
        form = self._choose(node.name, float(np.abs(steps).max()) / _MAX_RATIO)
        m, shift = choose_multipliers(np.clip(np.abs(steps) / form.scale, _MIN_RATIO, _MAX_RATIO))
        low, high = self._raw_limits(node.name, form)
        self.layers.append(node.name)
        self.nodes.append(
            QAdd(
                name=node.name,
                inputs=tuple(map(self._now, names)),
                source=node.source,
                multipliers=tuple((int(one), 0) for one in m * np.sign(steps).astype(np.int64)),
                shift=shift,
                format=form,
                low=low,
                high=high,
            )
        )

    @_make.register
    def _multiply(self, node: Multiply) -> None:
        step = math.prod(self._format(name).scale for name in node.inputs)
        form = self._choose(node.name, step / _MAX_RATIO)
        m, shift = choose_multipliers(np.clip([step / form.scale], _MIN_RATIO, _MAX_RATIO))
        low, high = self._raw_limits(node.name, form)
        self.layers.append(node.name)
        self.nodes.append(
            QMultiply(
                name=node.name,
                inputs=tuple(map(self._now, node.inputs)),
                source=node.source,
                multiplier=(int(m[0]), 0),
                shift=shift,
                format=form,
                low=low,
                high=high,
            )
        )

    @_make.register(BatchNorm)
    @_make.register(ScaleBias)
    @_make.register(Pointwise)
    @_make.register(Prelu)
    @_make.register(Clip)
    def _elementwise(self, node: BatchNorm | ScaleBias | Pointwise | Prelu | Clip) -> None:
        run = list(self._run_to(node))
        source = self._format(run[0].inputs[0])
        if source.bits > TABLE_BITS:
            self._scale_wide(node, source)
            return
        x_raw = np.arange(source.min_raw, source.max_raw + 1)
        y_real = source.dequantize(x_raw)[:, None, None, None]
        for step in run:
            y_real = np.clip(apply_node(self.graph, step, (y_real,)), *self.limits[step.name])
        if np.isnan(y_real).any():
            at = source.dequantize(x_raw)[np.isnan(y_real).any(axis=(1, 2, 3))]
            message = f"{_function(run)} is not defined for {at.min():g} … {at.max():g}, which {source} can hold"
            raise CompileError(node.source, message, "clip what it reads to where it is defined")
        form = self._choose(node.name)
        table = form.quantize(y_real[:, 0, 0].T)
        same = (table == table[:1]).all()
        self.layers.append(node.name)
        self.weights[f"{node.name}.table"] = table[:1] if same else table
        inputs = (self._now(run[0].inputs[0]),)
        self.nodes.append(
            QTable(name=node.name, inputs=inputs, source=node.source, format=form, function=_function(run))
        )

    # ------------------------------------------------------------------------------------------------------- helpers

    def _scaled(self, node: Add) -> dict[str, tuple[str, float]]:
        """The inputs of a sum that are scales it takes over."""
        found = {name: add_factor(self.graph, name) for name in node.inputs}
        return {
            name: (source, factor)
            for name, (source, factor) in found.items()
            if source != name and source not in self.absorbed and name not in self.fused
        }

    def _run_to(self, node: Node) -> Iterator[Node]:
        """The pointwise operators that one table holds, the last of them given."""
        source = self.graph.node(node.inputs[0])
        while source.name in self.fused:
            source = self.graph.node(source.inputs[0])
        if source.name in self.absorbed:
            yield from self._run_to(source)
        yield node

    def _scale_wide(self, node: Node, source: Format) -> None:
        """A scale or a clip of more bits than a table takes: a convolution with a group for each channel."""
        channels = self.graph.shapes[node.name][2]
        scale, bias = np.ones(channels), np.zeros(channels)
        if isinstance(node, Pointwise | Prelu):
            raise CompileError(
                node.source,
                f"{node.name!r} looks up its input, which may have {TABLE_BITS} bits at most, not {source.bits}",
                f"give what it reads bits = {TABLE_BITS}",
            )
        if isinstance(node, BatchNorm | ScaleBias):
            scale, bias = scale_and_shift(self.graph, node)
        if isinstance(node, Clip):
            self.limits[node.name] = node.low, node.high
        layer = Conv2D(name=node.name, inputs=node.inputs, source=node.source, groups=channels)
        self._convolve(layer, scale.reshape(1, 1, channels, 1, 1, 1), bias.reshape(1, 1, channels))

    def _convolve(self, node: Conv2D | Dense, w_rcohwi: RealArray, b_rco: RealArray) -> None:
        """The integer layer with its arrays ``w``, ``b`` and ``m``."""
        source, weight_bits = self._format(node.inputs[0]), node.weight_bits or self.options.weight_bits
        exact_o = np.abs(w_rcohwi).max(axis=(0, 1, 3, 4, 5)) / ((1 << (weight_bits - 1)) - 1)
        form = self._choose(node.name, source.scale * float(exact_o.max()) / _MAX_RATIO)
        step_o = _weight_steps(w_rcohwi, b_rco, exact_o, source, form)

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
        multiplier, shift = choose_multipliers(np.minimum(source.scale * step_o / form.scale, _MAX_RATIO))
        convolution = node if isinstance(node, Conv2D) else Conv2D(name=node.name, inputs=(), source=node.source)
        low, high = self._raw_limits(node.name, form)
        self.layers.append(node.name)
        self.nodes.append(
            QConv2D(
                name=node.name,
                inputs=(self._now(node.inputs[0]),),
                source=node.source,
                stride=convolution.stride,
                padding=convolution.padding,
                dilation=convolution.dilation,
                groups=convolution.groups,
                classes=convolution.classes,
                shift=shift,
                format=form,
                weight_bits=weight_bits,
                kind=node.op,
                low=low,
                high=high,
            )
        )
        self.weights |= {f"{node.name}.w": w_raw, f"{node.name}.b": b_raw, f"{node.name}.m": multiplier}


def _function(run: list[Node]) -> str:
    """What a table stands for, in the words of the network."""
    words = (node.function if isinstance(node, Pointwise) else node.op for node in run)
    return " → ".join(words)


def _weight_steps(
    w_rcohwi: RealArray, b_rco: RealArray, exact_o: RealArray, source: Format, form: Format
) -> RealArray:
    """The weight step of each output channel.

    That is its greatest weight over ``2**(weight_bits-1) - 1``, ``exact_o``, unless that is uselessly fine, as
    it is when training has driven the weights to zero and left a bias:

    1. No finer than where rounding all the weights moves the output by 1/32 step at most.
    2. All channels share one shift, so a fine step means a coarse multiplier ``m``. No finer than where
       rounding ``m`` (an error of ``bias · top/step · 2**-17``) costs as much as rounding the weights
       (``step/2`` each).
    """
    reach = source.max_raw - source.min_raw
    taps = math.prod(w_rcohwi.shape[3:])
    bias_o = np.abs(b_rco).max(axis=(0, 1))
    finest = form.scale / (source.scale * 16 * taps * reach)
    top = max(float(exact_o.max()), finest)
    balanced_o = np.sqrt(bias_o * top / (taps * reach * source.scale) / (1 << (MULTIPLIER_BITS - 1)))
    step_o: RealArray = np.maximum(np.maximum(exact_o, finest), np.minimum(balanced_o, top))
    return step_o
