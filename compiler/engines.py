"""Engines: what can compute a layer, how parallel it may be, and the parameters and constants of the one that was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from convfold.hdl.add import AddParams
from convfold.hdl.argmax import ArgMaxParams
from convfold.hdl.border import BorderWalkParams
from convfold.hdl.concat import ConcatParams
from convfold.hdl.conv import ConvParams
from convfold.hdl.crop import CropParams
from convfold.hdl.dense import DenseParams
from convfold.hdl.depthwise import DepthwiseParams
from convfold.hdl.global_pool import GlobalPoolParams
from convfold.hdl.lookup import LookupParams
from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.multiplier_pair import MultiplierPairParams
from convfold.hdl.pad import PadParams
from convfold.hdl.product import ProductParams
from convfold.hdl.reorder import ReorderParams
from convfold.hdl.requantizer import RequantizerParams
from convfold.hdl.sb_mac16 import SbMac16Params
from convfold.hdl.streams import beats
from convfold.hdl.window import WindowParams

from .errors import CompileError
from .graph import (
    ArgMax,
    ChannelShuffle,
    Concat,
    Crop,
    DepthToSpace,
    Flatten,
    Graph,
    MaxPool,
    Node,
    Pad,
    Pair,
    QAdd,
    QAveragePool,
    QConv2D,
    QMultiply,
    QTable,
    Reshape,
    Slice,
    SpaceToDepth,
    Upsample,
)
from .narrow import Form, add_form, average_form, conv_form, multiply_form
from .numbers import Format, IntArray, Range, accumulator_range

__all__ = [
    "WIRES",
    "Choice",
    "EngineParams",
    "Fixed",
    "Stage",
    "block_products",
    "blocks",
    "choices",
    "fixed_parts",
    "make_stage",
]

WIRES = (Reshape, Flatten)
"""Layers that are nothing but another way to count the same samples."""

WindowEngine = ConvParams | DepthwiseParams | DenseParams | MaxPoolParams
StreamEngine = (
    AddParams
    | ProductParams
    | LookupParams
    | GlobalPoolParams
    | ConcatParams
    | ArgMaxParams
    | ReorderParams
    | CropParams
    | PadParams
)
EngineParams = WindowEngine | StreamEngine
AnyMac = TypeVar("AnyMac", ConvParams, DepthwiseParams)


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to fold a layer: how many lanes, taps, rows and elements work at once, and what it costs."""

    lanes: int
    cycles: int
    parallel: Pair = (1, 1)
    rows: int = 1
    pes: int = 1
    multipliers: int = 0

    @property
    def element_taps(self) -> int:
        """Multipliers of one element."""
        return self.multipliers // (self.rows * self.pes)

    @property
    def cost(self) -> tuple[int, int, int, int]:
        """Multipliers first; among equals few requantizers, then few banks, then narrow words."""
        return self.multipliers, self.rows, self.parallel[0] * self.parallel[1], self.lanes


@dataclass(frozen=True, slots=True)
class Stage:
    """One layer and its engine. ``cycles`` a frame are what the interval cannot go below.

    It takes beats of ``in_lanes`` and makes beats of ``out_lanes``; ``arrays`` are what the engine is created with.
    """

    node: Node
    engine: EngineParams
    cycles: int
    in_lanes: int
    out_lanes: int
    arrays: Mapping[str, IntArray]

    @property
    def core(self) -> EngineParams:
        """The engine proper: a dense layer's is a convolution."""
        return self.engine.conv if isinstance(self.engine, DenseParams) else self.engine

    @property
    def window(self) -> WindowParams | None:
        """The window of an engine that has one."""
        core = self.core
        return core.window if isinstance(core, ConvParams | DepthwiseParams | MaxPoolParams) else None

    @property
    def multipliers(self) -> int:
        core = self.core
        if isinstance(core, ConvParams | DepthwiseParams):
            return core.multipliers
        return core.lanes if isinstance(core, ProductParams) else 0


def block_products(graph: Graph, node: Node, family: str) -> int:
    """How many of a layer's multipliers one hard block of a family makes: 0 where it is none for such operands.

    On ECP5 two multipliers share a block if they share a sample, and if their weights are narrow and symmetric.
    """
    if family == "ecp5":
        return 2 if isinstance(node, QConv2D) and not _depthwise(graph, node) and _pairs(graph, node) else 1
    if family != "ice40" or not isinstance(node, QConv2D):  # differences from zero points may be too wide
        return 0
    source = graph.format_of(node.inputs[0])
    return SbMac16Params(source.bits, source.signed, node.weight_bits).products


def _pairs(graph: Graph, node: QConv2D) -> bool:
    source = graph.format_of(node.inputs[0])
    symmetric = int(graph.integers(f"{node.name}.w").min()) > -(1 << node.weight_bits - 1)
    return symmetric and MultiplierPairParams.fits(source.bits, source.signed, node.weight_bits)


def blocks(choice: Choice, hard: int, products: int, family: str) -> int:
    """How many blocks hold the first ``hard`` multipliers, where a block makes ``products``.

    They are of one element, or on ECP5 of the same tap of two elements in a row; the last of an odd number is left alone.
    """
    if family == "ecp5" and products == 2:
        row = choice.pes * choice.element_taps
        alone = choice.element_taps * (choice.pes % 2)
        rows, rest = divmod(hard, row)
        return (rows * (row + alone) + rest + max(rest - (row - alone), 0) + 1) // 2
    whole, rest = divmod(hard, choice.element_taps)
    return whole * -(-choice.element_taps // products) + -(-rest // products)


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """What no folding changes of a layer that rounds: fields of its engine, and its constants."""

    fields: Mapping[str, Any]
    arrays: Mapping[str, IntArray]


def fixed_parts(graph: Graph) -> Mapping[str, Fixed]:
    """What is the same in all foldings of each layer that rounds, by layer."""
    return {node.name: fixed for node in graph.nodes if (fixed := _fixed(graph, node))}


def _fixed(graph: Graph, node: Node) -> Fixed | None:
    match node:
        case QConv2D():
            form = conv_form(graph, node)
            source = graph.format_of(node.inputs[0])
            w, b = graph.integers(f"{node.name}.w"), graph.integers(f"{node.name}.b")
            fields = {
                "weight_bits": node.weight_bits,
                "acc_bits": _signed_bits(accumulator_range(w, b, source.min_raw, source.max_raw)),
                "class_rows": node.classes.rows,
                "class_cols": node.classes.cols,
                **_requantizer_fields(node.format, node.low, node.high, form),
            }
            return Fixed(fields, {"w": w, "b": b} | _constants(form))
        case QAveragePool():
            average = average_form(graph, node)
            fields = {
                "acc_bits": _signed_bits(average.range),
                **_requantizer_fields(node.format, node.low, node.high, average.form),
            }
            if not _global(graph, node):
                fields |= {"weight_bits": 0, "class_rows": average.classes.rows, "class_cols": average.classes.cols}
            return Fixed(fields, {"b": average.b} | _constants(average.form))
        case QAdd():
            adder = add_form(graph, node)
            return Fixed(_constant_fields(node, adder.form), {"table_a": adder.table_a, "table_b": adder.table_b})
        case QMultiply():
            product = multiply_form(graph, node)
            return Fixed(_constant_fields(node, product), {})
    return None


# ------------------------------------------------------------------------------------------------------------ candidates


def _folds(size: int) -> list[int]:
    """The useful ways to split ``size`` things: the smallest part of each number of rounds."""
    return sorted({-(-size // rounds) for rounds in range(1, size + 1)})


def _divisors(size: int) -> list[int]:
    return [n for n in range(1, size + 1) if size % n == 0]


def choices(graph: Graph, node: Node) -> Iterator[Choice]:
    """Every folding of a layer that differs in speed."""
    match node:
        case QConv2D():
            return _depthwise_choices(graph, node) if _depthwise(graph, node) else _conv_choices(graph, node)
        case QAveragePool():
            return _global_choices(graph, node) if _global(graph, node) else _depthwise_choices(graph, node)
        case MaxPool():
            return _pool_choices(graph, node)
    return _stream_choices(graph, node)


def _depthwise(graph: Graph, node: QConv2D) -> bool:
    """Whether each output channel reads one input channel of its own."""
    return node.groups > 1 and node.groups == graph.shapes[node.inputs[0]][2] == graph.shapes[node.name][2]


def _global(graph: Graph, node: QAveragePool) -> bool:
    """Whether the window is the image, and that large enough for the engine without a window."""
    height, width, _ = graph.shapes[node.inputs[0]]
    padded = any(side for sides in node.padding for side in sides)
    return node.kernel == (height, width) and not padded and height * width >= GlobalPoolParams.LEAST_PIXELS


def _parallels(kernel: Pair, dilation: Pair) -> list[Pair]:
    """The directions of a kernel that may be read at once: none, its rows, or all of it."""
    kh, kw = kernel
    rows, whole = dilation[0] == 1 or kh == 1, dilation[1] == 1 or kw == 1
    return sorted({(1, 1)} | ({(kh, 1)} if rows else set()) | ({(kh, kw)} if rows and whole else set()))


def _conv_choices(graph: Graph, node: QConv2D) -> Iterator[Choice]:
    height, width, channels = graph.shapes[node.inputs[0]]
    out_height, out_width, filters = graph.shapes[node.name]
    kh, kw = graph.kernel(node)
    channels_each, filters_each = channels // node.groups, filters // node.groups
    grouped = node.groups > 1
    for parallel in _parallels((kh, kw), node.dilation):
        for lanes in _divisors(channels_each) if grouped else _folds(channels):
            steps = (kh // parallel[0]) * (kw // parallel[1]) * beats(channels_each, lanes)
            taps = parallel[0] * parallel[1] * lanes
            loads = height * width * beats(channels, lanes)
            for rows in _divisors(filters_each) if grouped else _folds(filters):
                words = beats(filters, rows)
                for pes in _divisors(filters_each // rows) if grouped else _folds(words):
                    if pes <= steps:
                        cycles = out_height * out_width * steps * beats(words, pes)
                        yield Choice(lanes, max(cycles, loads), parallel, rows, pes, rows * pes * taps)


def _depthwise_choices(graph: Graph, node: QConv2D | QAveragePool) -> Iterator[Choice]:
    height, width, channels = graph.shapes[node.inputs[0]]
    out_height, out_width, _ = graph.shapes[node.name]
    kh, kw = graph.kernel(node)
    for parallel in _parallels((kh, kw), node.dilation if isinstance(node, QConv2D) else (1, 1)):
        steps = (kh // parallel[0]) * (kw // parallel[1])
        for lanes in _divisors(channels):
            cycles = out_height * out_width * steps * beats(channels, lanes)
            loads = height * width * beats(channels, lanes)
            for rows in _divisors(lanes):
                if lanes // rows <= steps:
                    multipliers = lanes * parallel[0] * parallel[1]
                    yield Choice(lanes, max(cycles, loads), parallel, rows, lanes // rows, multipliers)


def _global_choices(graph: Graph, node: QAveragePool) -> Iterator[Choice]:
    channels = graph.shapes[node.name][2]
    for lanes in _divisors(channels):
        pixels, words = node.kernel[0] * node.kernel[1], channels // lanes
        yield Choice(lanes, (pixels - 1) * words + (words - 1) * _mean_cycles(pixels) + 1, rows=lanes)


def _mean_cycles(pixels: int) -> int:
    """The pace of a global pool's requantizers: slow, but hardly any slower than its sums."""
    return min(max(pixels // 16, 1), 8)


def _pool_choices(graph: Graph, node: MaxPool) -> Iterator[Choice]:
    height, width, channels = graph.shapes[node.inputs[0]]
    out_height, out_width, _ = graph.shapes[node.name]
    for lanes in _folds(channels):
        cycles = out_height * out_width * beats(channels, lanes) * node.kernel[0] * node.kernel[1]
        yield Choice(lanes, max(cycles, height * width * beats(channels, lanes)))


def _stream_choices(graph: Graph, node: Node) -> Iterator[Choice]:
    """Of engines that pass a beat a cycle: all lanes that they take."""
    shapes = [graph.shapes[name] for name in (*node.inputs, node.name)]
    form = graph.format_of(node.inputs[0])
    for lanes in _divisors(shapes[0][2]):
        if isinstance(node, Concat) and any(shape[2] % lanes for shape in shapes[:-2]):
            continue
        if isinstance(node, ChannelShuffle | DepthToSpace | SpaceToDepth | Upsample | Crop | Slice | Pad):
            try:
                _mover(graph, node, lanes, form, "behavioural")
            except ValueError:
                continue
        cycles = max(height * width * beats(channels, lanes) for height, width, channels in (shapes[0], shapes[-1]))
        if isinstance(node, ArgMax):
            cycles = shapes[0][0] * shapes[0][1] * beats(shapes[0][2], lanes)
        yield Choice(lanes, cycles, multipliers=lanes if isinstance(node, QMultiply) else 0)


# ---------------------------------------------------------------------------------------------------------------- stages


def make_stage(
    graph: Graph,
    node: Node,
    choice: Choice,
    fixed: Fixed | None,
    multiplier: str,
    hard: int,
    memory: str,
    block_roms: int = 0,
) -> Stage:
    """The engine of one layer, with ``hard`` of its multipliers in hard blocks; see `ConvParams` for its ``block_roms``.

    ``multiplier`` and ``memory`` are the families of the leaf cells: ``behavioural``, ``ecp5`` or (multipliers) ``ice40``.
    """
    match node:
        case QConv2D() if fixed is not None:
            cells = {"multiplier": multiplier, "hard": hard, "memory": memory}
            return _conv_stage(graph, node, choice, fixed, cells, block_roms)
        case QAveragePool() if fixed is not None and not _global(graph, node):
            window = _window(graph, node, choice, memory, pad_raw=graph.format_of(node.inputs[0]).zero_point, channelwise=True)
            pool = DepthwiseParams(window=window, rows=choice.rows, multiplier="behavioural", memory=memory, **fixed.fields)
            return Stage(node, _slowest(pool), choice.cycles, choice.lanes, choice.rows, fixed.arrays)
        case MaxPool():
            least = graph.format_of(node.inputs[0]).min_raw
            window = _window(graph, node, choice, memory, pad_raw=least, channelwise=True)
            return Stage(node, MaxPoolParams(window), choice.cycles, choice.lanes, choice.lanes, {})
    engine, arrays = _stream_engine(graph, node, choice.lanes, fixed, multiplier, hard, memory)
    out_lanes = 1 if isinstance(node, ArgMax) else choice.lanes
    return Stage(node, engine, choice.cycles, choice.lanes, out_lanes, arrays)


def _window(
    graph: Graph,
    node: QConv2D | QAveragePool | MaxPool,
    choice: Choice,
    memory: str,
    *,
    pad_raw: int,
    channelwise: bool,
    replays: int = 1,
) -> WindowParams:
    height, width, channels = graph.shapes[node.inputs[0]]
    form = graph.format_of(node.inputs[0])
    dilation, groups = (node.dilation, node.groups) if isinstance(node, QConv2D) else ((1, 1), 1)
    return _sized_window(
        height=height,
        width=width,
        channels=channels,
        lanes=choice.lanes,
        bits=form.bits,
        signed=form.signed,
        kernel=graph.kernel(node),
        stride=node.stride,
        padding=node.padding,
        replays=replays,
        parallel=choice.parallel,
        channelwise=channelwise,
        pad_raw=pad_raw,
        memory=memory,
        dilation=dilation,
        groups=1 if channelwise else groups,
    )


@lru_cache(maxsize=1 << 12)
def _sized_window(*, height: int, parallel: Pair, **fields: Any) -> WindowParams:
    """A window whose ring is large enough and no larger; many foldings of a layer have the same."""
    window = WindowParams(height=height, parallel=parallel, rows=height * 2 * parallel[0], **fields)
    return replace(window, rows=window.full_rows)


def _conv_stage(
    graph: Graph, node: QConv2D, choice: Choice, fixed: Fixed, cells: Mapping[str, Any], block_roms: int
) -> Stage:
    filters = graph.shapes[node.name][2]
    channelwise = _depthwise(graph, node)
    replays = 1 if channelwise else beats(beats(filters, choice.rows), choice.pes)
    pad_raw = graph.format_of(node.inputs[0]).zero_point
    window = _window(graph, node, choice, cells["memory"], pad_raw=pad_raw, channelwise=channelwise, replays=replays)
    common: dict[str, Any] = {"window": window, "rows": choice.rows, **cells, **fixed.fields}
    engine: WindowEngine
    if channelwise:
        engine = _slowest(DepthwiseParams(**common))
    else:
        together = block_products(graph, node, "ecp5") if cells["multiplier"] == "ecp5" else 1
        engine = _slowest(ConvParams(filters=filters, pes=choice.pes, together=together, block_roms=block_roms, **common))
        if node.kind == "dense" and window.kernel == (window.height, window.width):
            engine = DenseParams(engine)
    return Stage(node, engine, choice.cycles, choice.lanes, choice.rows, fixed.arrays)


def _requantizer_fields(form: Format, low: int, high: int, narrow: Form) -> dict[str, Any]:
    return {
        "out_bits": form.bits,
        "out_signed": form.signed,
        "shift": narrow.shift,
        "low": low,
        "high": high,
        "zero_point": form.zero_point - narrow.rounding.zero_point,
        "multiplier_bits": narrow.multiplier_bits,
        "split": narrow.split,
        "offset_bits": narrow.offset_bits,
        "offset_shift": narrow.offset_shift,
        "positive": narrow.constants[0],
        "negative": narrow.constants[1],
        "ties": narrow.rounding.ties,
        "tie_bits": narrow.rounding.bits,
    }


def _constants(form: Form) -> dict[str, IntArray]:
    return {"m": form.m} | dict(zip(("positive", "negative"), form.tables, strict=False))


def _slowest(engine: AnyMac) -> AnyMac:
    """The engine with the smallest requantizers that keep up, and no slower ones than that takes."""
    most = engine.window.steps // engine.pass_words
    steps = replace(engine.requantizer, ii=most).steps
    return replace(engine, requantizer_ii=min(most, steps + 1))


def _signed_bits(reach: Range) -> int:
    """The width of a range's numbers in two's complement, which is what the hardware adds."""
    return Range(min(reach.low, -1), reach.high).bits


def _stream_engine(
    graph: Graph, node: Node, lanes: int, fixed: Fixed | None, multiplier: str, hard: int, memory: str
) -> tuple[StreamEngine, Mapping[str, IntArray]]:
    source = graph.format_of(node.inputs[0])
    channels = graph.shapes[node.inputs[0]][2]
    match node:
        case QTable():
            table = graph.integers(f"{node.name}.table")
            params = LookupParams(
                channels=channels,
                lanes=lanes,
                in_bits=source.bits,
                in_signed=source.signed,
                out_bits=node.format.bits,
                out_signed=node.format.signed,
                tables=len(table),
                memory=memory,
            )
            return params, {"table": table}
        case QAdd() if fixed is not None:
            other = graph.format_of(node.inputs[1])
            tables = np.concatenate([*fixed.arrays.values()])
            adder = AddParams(
                lanes=lanes,
                a_bits=source.bits,
                a_signed=source.signed,
                b_bits=other.bits,
                b_signed=other.signed,
                table_bits=_signed_bits(Range(int(tables.min()), int(tables.max()))),
                memory=memory,
                **fixed.fields,
            )
            return adder, fixed.arrays
        case QMultiply() if fixed is not None:
            other = graph.format_of(node.inputs[1])
            product = ProductParams(
                lanes=lanes,
                a_bits=source.bits,
                a_signed=source.signed,
                a_zero=source.zero_point,
                b_bits=other.bits,
                b_signed=other.signed,
                b_zero=other.zero_point,
                multiplier=multiplier,
                hard=hard,
                **fixed.fields,
            )
            return product, {}
        case QAveragePool() if fixed is not None:
            pixels, words = node.kernel[0] * node.kernel[1], channels // lanes
            requantizer = RequantizerParams(
                slots=words,
                words=words,
                walk=BorderWalkParams(1, 1),
                ii=_mean_cycles(pixels),
                memory=memory,
                by_class=True,
                uniform=True,
                **fixed.fields,
            )
            return GlobalPoolParams(pixels, channels, lanes, source.bits, source.signed, requantizer), fixed.arrays
        case Concat():
            each = tuple(graph.shapes[name][2] for name in node.inputs)
            return ConcatParams(channels=each, lanes=lanes, bits=source.bits, signed=source.signed), {}
        case ArgMax():
            out_bits = graph.format_of(node.name).bits
            return ArgMaxParams(channels, lanes, source.bits, source.signed, out_bits), {}
    return _mover(graph, node, lanes, source, memory), {}


def _constant_fields(node: QAdd | QMultiply, form: Form) -> dict[str, Any]:
    return {
        "m": int(form.m[0]),
        "positive": int(form.positive[0]),
        "negative": int(form.negative[0]),
        "shift": form.shift,
        "low": node.low,
        "high": node.high,
        "zero_point": node.format.zero_point - form.rounding.zero_point,
        "out_bits": node.format.bits,
        "out_signed": node.format.signed,
        "ties": form.rounding.ties,
        "tie_bits": form.rounding.bits,
    }


def _mover(graph: Graph, node: Node, lanes: int, form: Format, memory: str) -> StreamEngine:
    """The engine of a layer that only moves samples.

    *Raises* ``ValueError`` where its beats cannot have so many lanes.
    """
    height, width, channels = graph.shapes[node.inputs[0]]
    size: dict[str, Any] = {"height": height, "width": width, "channels": channels}
    size |= {"lanes": lanes, "bits": form.bits, "signed": form.signed}
    match node:
        case Crop():
            return CropParams(**size, cropping=node.cropping, start=0, stop=channels)
        case Slice():
            return CropParams(**size, cropping=((0, 0), (0, 0)), start=node.start, stop=node.stop)
        case Pad():
            return PadParams(**size, padding=node.padding, value_raw=int(form.quantize(np.array(node.value))))
        case DepthToSpace():
            return ReorderParams.for_depth_to_space(**size, block=node.block, order=node.order, memory=memory)
        case SpaceToDepth():
            return ReorderParams.for_space_to_depth(**size, block=node.block, order=node.order, memory=memory)
        case Upsample():
            return ReorderParams.for_upsample(**size, factor=node.factor, memory=memory)
        case ChannelShuffle():
            return ReorderParams.for_channel_shuffle(**size, groups=node.groups, memory=memory)
    raise CompileError(node.source, f"operator {node.op} has no engine", "fold it, or leave it to the host")
