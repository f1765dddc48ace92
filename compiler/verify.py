"""The rules of a graph, checked on the result of every step.

A rule is a generator of faults, and `verify` raises the first one: what comes behind it is never asked for. In stage
``spec`` the fault is the user's; in the result of a later step it is a bug of ours, shown with the graph around it.

`Graph` derives all shapes when it is made, so a graph that is seen here has the arrays its shapes come from.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import get_args

import numpy as np

from .errors import CompileError, InternalError, quote
from .functions import FUNCTIONS
from .graph import (
    Add,
    ArgMax,
    AveragePool,
    BatchNorm,
    ChannelShuffle,
    Clip,
    Concat,
    Conv2D,
    Crop,
    Dense,
    DepthOrder,
    DepthToSpace,
    Flatten,
    FoldRule,
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
    QAdd,
    QAveragePool,
    QConv2D,
    QMultiply,
    QTable,
    Reshape,
    Rounding,
    ScaleBias,
    Shape,
    Slice,
    SpaceToDepth,
    Upsample,
)
from .numbers import (
    MAX_ACCUMULATOR,
    MAX_BITS,
    MAX_SHIFT,
    MIN_BITS,
    MULTIPLIER_BITS,
    Format,
    accumulator_range,
)

SPEC, INTEGER = "spec", "integer"
"""The stages with a meaning of their own; any other is the name of the step that made the graph."""

MAX_ELEMENTS = 1 << 28
"""Elements of one tensor. Nothing of this size fits a chip, and refusing it here costs no memory."""

MAX_STEP = 1 << 20
"""The greatest stride, pool size and padding."""

MAX_NAME = 64

MAX_INPUTS = 1 << 10
"""Tensors that one node reads."""

Dims = tuple[int | str, ...]
"""The shape an array must have; a string stands for any size from 1 on, the same wherever it occurs again."""

OPTIONAL = ("offset",)
"""Arrays that a node may go without."""

MAX_TFLITE = 1 << 31
"""Multipliers of tflite are below it, and what they multiply is not above."""

MOVERS = (
    *(MaxPool, Concat, Slice, ChannelShuffle, DepthToSpace, SpaceToDepth, Upsample, Pad, Crop, Reshape, Flatten, ArgMax),
)
"""What works on reals and on raw integers alike."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken rule: at which node (or in the network as a whole), what, and what the user can do.

    ``by_user`` says that it is the user's in every stage.
    """

    node: Node | None
    message: str
    hint: str = ""
    by_user: bool = False


Rule = Callable[[Graph], Iterator[Fault]]


def verify(graph: Graph, stage: str) -> Graph:
    """The same graph, found to be sound.

    In stage ``integer``, and wherever the input has an integer format, it holds only integer nodes and
    arrays. Elsewhere it holds only real ones.

    *Raises* ``CompileError`` in stage ``spec`` and for numbers that overflow later; else ``InternalError``.
    """
    quantized = any(isinstance(node, Input) and node.format is not None for node in graph.nodes)
    rules = (*RULES, *(INTEGER_RULES if quantized or stage == INTEGER else REAL_RULES))
    fault = next(chain.from_iterable(rule(graph) for rule in rules), None)
    if fault is None:
        return graph
    if stage == SPEC or fault.by_user:
        source = fault.node.source if fault.node else f"network {quote(graph.name)}"
        raise CompileError(source, fault.message, fault.hint)
    name = quote(fault.node.name) if fault.node else "the graph"
    raise InternalError(stage, name, fault.message, _excerpt(graph, fault.node))


def _excerpt(graph: Graph, node: Node | None) -> str:
    """The node's line of the printed graph, with three lines before and after."""
    if node is None:
        return ""
    at = next(index for index, other in enumerate(graph.nodes) if other is node)
    first = max(0, at - 3)
    lines = str(graph).splitlines()[first : at + 4]
    return "\n".join(f"{'→' if first + index == at else ' '} {line}" for index, line in enumerate(lines))


# ------------------------------------------------------------------------------------------------------ names

_IDENTIFIER = re.compile(rf"[A-Za-z_][A-Za-z0-9_]{{0,{MAX_NAME - 1}}}")

RESERVED = frozenset(keyword.kwlist) | frozenset(
    # Verilog-2005 (IEEE 1364-2005, annex B), less "input": a network's input is called so, and is no module.
    """
    always and assign automatic begin buf bufif0 bufif1 case casex casez cell cmos config deassign default
    defparam design disable edge else end endcase endconfig endfunction endgenerate endmodule endprimitive
    endspecify endtable endtask event for force forever fork function generate genvar highz0 highz1 if
    ifnone incdir include initial inout instance integer join large liblist library localparam macromodule
    medium module nand negedge nmos nor noshowcancelled not notif0 notif1 or output parameter pmos posedge
    primitive pull0 pull1 pulldown pullup pulsestyle_ondetect pulsestyle_onevent rcmos real realtime reg
    release repeat rnmos rpmos rtran rtranif0 rtranif1 scalared showcancelled signed small specify
    specparam strong0 strong1 supply0 supply1 table task time tran tranif0 tranif1 tri tri0 tri1 triand
    trior trireg unsigned use uwire vectored wait wand weak0 weak1 while wire wor xnor xor
    """.split()
)


def legal_name(text: str) -> str:
    """The legal name nearest to any text. Two texts can get the same one."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", text)[:MAX_NAME]
    if not re.match(r"[A-Za-z_]", name):
        name = f"_{name}"[:MAX_NAME]
    return f"{name}_" if name in RESERVED else name


def name_fault(name: str) -> tuple[str, str] | None:
    """Why a name may not reach generated code, and what to do about it."""
    hint = f"call it {legal_name(name)!r}"
    if not _IDENTIFIER.fullmatch(name):
        return f"name {quote(name)} must be 1 to {MAX_NAME} ASCII letters, digits and _, no digit first", hint
    if name in RESERVED:
        return f"name {name!r} is a reserved word of Python or Verilog", hint
    return None


# ----------------------------------------------------------------------------------------- rules of any graph


def one_input(graph: Graph) -> Iterator[Fault]:
    inputs = [node for node in graph.nodes if isinstance(node, Input)]
    if len(inputs) != 1:
        yield Fault(None, f"a network has exactly one input, not {len(inputs)}")


def legal_names(graph: Graph) -> Iterator[Fault]:
    """Legal, and no two that differ only in case: not every tool and file system tells them apart."""
    if fault := name_fault(graph.name):
        yield Fault(None, *fault)
    seen: dict[str, str] = {}
    for node in graph.nodes:
        if fault := name_fault(node.name):
            yield Fault(node, *fault)
        other = seen.setdefault(node.name.lower(), node.name)
        if node.name != other:
            yield Fault(node, f"name {node.name!r} differs from {other!r} only in case", "rename one of them")


def single_assignment(graph: Graph) -> Iterator[Fault]:
    """Every tensor is made once, before its first use."""
    made: set[str] = set()
    for node in graph.nodes:
        if node.name in made:
            yield Fault(node, f"{node.name!r} is made twice", "rename one of them")
        least, most = arity(node)
        if not least <= len(node.inputs) <= most:
            takes = least if least == most else f"{least} or more"
            yield Fault(node, f"{node.op} takes {takes} inputs, not {len(node.inputs)}")
        for name in node.inputs:
            if name not in made:
                yield Fault(node, f"input {name!r} is not made before it is used")
        made.add(node.name)


def used_tensors(graph: Graph) -> Iterator[Fault]:
    """Every tensor is read by some node or leaves the network; outputs exist, once each."""
    if not graph.outputs or len(set(graph.outputs)) != len(graph.outputs):
        yield Fault(None, f"outputs must be one or more different tensors, not {graph.outputs}")
    if missing := set(graph.outputs) - {node.name for node in graph.nodes}:
        yield Fault(None, f"output {min(missing)!r} is no tensor of the network")
    used = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
    for node in graph.nodes:
        if node.name not in used:
            hint = "let another layer read it, add it to [network] outputs, or remove it"
            yield Fault(node, f"no layer reads {node.name!r}, and it is not an output", hint)


def exact_arrays(graph: Graph) -> Iterator[Fault]:
    """The arrays every operator needs, in their exact shapes, and no others."""
    extra = dict.fromkeys(graph.weights)
    for node in graph.nodes:
        sizes: dict[str, int] = {}
        for part, dims in array_dims(node, [graph.shapes[name] for name in node.inputs]).items():
            name = f"{node.name}.{part}"
            extra.pop(name, None)
            if name not in graph.weights:
                if part not in OPTIONAL:
                    yield Fault(node, f"array {name!r} is missing")
            elif not fits(graph.weights[name].shape, dims, sizes):
                found = show_dims(graph.weights[name].shape)
                yield Fault(node, f"array {name!r} must have shape {show_dims(dims)}, not {found}")
    if extra:
        yield Fault(None, f"array {next(iter(extra))!r} belongs to no layer")


def bounded_tensors(graph: Graph) -> Iterator[Fault]:
    """Every tensor has elements, and not more than can be worked with, padding included."""
    for node in graph.nodes:
        shape = graph.shapes[node.name]
        if min(shape) < 1 or math.prod(shape) > MAX_ELEMENTS:
            hint = "shrink the input, or use a larger stride"
            yield Fault(node, f"output {_by(shape)} must have 1 to {MAX_ELEMENTS} elements", hint)
        if isinstance(node, Conv2D | QConv2D | MaxPool | AveragePool | QAveragePool):
            height, width, channels = graph.shapes[node.inputs[0]]
            padded = (height + sum(node.padding[0]), width + sum(node.padding[1]), channels)
            if math.prod(padded) > MAX_ELEMENTS:
                message = f"padded input {_by(padded)} must have at most {MAX_ELEMENTS} elements"
                yield Fault(node, message, "pad less")


def sane_windows(graph: Graph) -> Iterator[Fault]:
    """Strides, dilations, pool windows and padding in range; no pool window that lies wholly in padding.

    A convolution may be padded by more than its kernel: folding makes such, and gives the bias there.
    """
    for node in graph.nodes:
        match node:
            case DepthToSpace() | SpaceToDepth() if not all(1 <= step <= MAX_STEP for step in node.block):
                yield Fault(node, f"block must be 1 to {MAX_STEP}, not {node.block}")
            case DepthToSpace() | SpaceToDepth() if node.order not in get_args(DepthOrder):
                yield Fault(node, f"order must be one of {', '.join(get_args(DepthOrder))}, not {node.order!r}")
            case Upsample() if not all(1 <= step <= MAX_STEP for step in node.factor):
                yield Fault(node, f"factor must be 1 to {MAX_STEP}, not {node.factor}")
            case Pad() if not math.isfinite(node.value):
                yield Fault(node, f"value must be finite, not {node.value}")
            case Pad() if not all(0 <= pad <= MAX_STEP for pad in chain(*node.padding)):
                yield Fault(node, f"padding must be 0 to {MAX_STEP}, not {node.padding}")
            case Crop() if not all(0 <= crop <= MAX_STEP for crop in chain(*node.cropping)):
                yield Fault(node, f"cropping must be 0 to {MAX_STEP}, not {node.cropping}")
        if not isinstance(node, Conv2D | QConv2D | MaxPool | AveragePool | QAveragePool):
            continue
        if isinstance(node, Conv2D | QConv2D) and not all(1 <= step <= MAX_STEP for step in node.dilation):
            yield Fault(node, f"dilation must be 1 to {MAX_STEP}, not {node.dilation}")
        if not all(1 <= step <= MAX_STEP for step in node.stride):
            yield Fault(node, f"stride must be 1 to {MAX_STEP}, not {node.stride}")
        if not all(0 <= pad <= MAX_STEP for pad in chain(*node.padding)):
            yield Fault(node, f"padding must be 0 to {MAX_STEP}, not {node.padding}")
        if isinstance(node, MaxPool | AveragePool | QAveragePool):
            if not all(1 <= size <= MAX_STEP for size in node.kernel):
                yield Fault(node, f"kernel must be 1 to {MAX_STEP}, not {node.kernel}")
            if any(max(pads) >= size for pads, size in zip(node.padding, node.kernel, strict=True)):
                hint = "pad less: a window of nothing but padding has no greatest value, and no mean"
                yield Fault(node, f"padding must be below the kernel {node.kernel}, not {node.padding}", hint)


def rising_classes(graph: Graph) -> Iterator[Fault]:
    """Border classes start at 0 and rise, the last one still inside the output."""
    for node in graph.nodes:
        if isinstance(node, Conv2D | QConv2D):
            height, width, _ = graph.shapes[node.name]
            for starts, size in ((node.classes.rows, height), (node.classes.cols, width)):
                if starts[:1] != (0,) or list(starts) != sorted(set(starts)) or starts[-1] >= size:
                    yield Fault(node, f"border classes must rise from 0 to below {size}, not {starts}")


def whole_groups(graph: Graph) -> Iterator[Fault]:
    """The channels of a convolution fall into equal groups."""
    for node in graph.nodes:
        if isinstance(node, Conv2D | QConv2D):
            channels = graph.shapes[node.inputs[0]][2], graph.shapes[node.name][2]
            if node.groups < 1 or any(count % node.groups for count in channels):
                message = f"groups must divide the {channels[0]} channels it reads and the {channels[1]} it makes"
                yield Fault(node, f"{message}, not {node.groups}", "choose a divisor of both")


def known_heads(graph: Graph) -> Iterator[Fault]:
    """Every head names an output, no two the same one."""
    seen: set[str] = set()
    for name, head in graph.heads:
        if name not in graph.outputs or name in seen:
            yield Fault(None, f"a head must name an output of its own, not {name!r}")
        if not 0 < head.beta < math.inf:
            yield Fault(graph.node(name), f"beta of its softmax must be positive and finite, not {head.beta}")
        if head.format is not None:
            source = graph.format_of(name)
            if not (source.bits == 8 and source.signed) or head.format != Format(8, True, 1 / 256, -128):
                message = f"softmax in integers is from int8 to int8 × 1/256 zero -128, not from {source} to {head.format}"
                yield Fault(graph.node(name), message, "let the softmax be of reals")
        seen.add(name)


def matching_labels(graph: Graph) -> Iterator[Fault]:
    """Labels name the channels of the first output, or those it is the number of."""
    node = graph.node(graph.outputs[0])
    channels = graph.shapes[node.inputs[0] if isinstance(node, ArgMax) else node.name][2]
    if graph.labels and len(graph.labels) != channels:
        hint = "give one label a channel, in order, or none at all"
        yield Fault(node, f"output has {channels} channels, but there are {len(graph.labels)} labels", hint)


# --------------------------------------------------------------------------------------- rules of real graphs


def real_nodes(graph: Graph) -> Iterator[Fault]:
    for node in graph.nodes:
        if isinstance(node, Linear) and node.fold not in get_args(FoldRule):
            yield Fault(node, f"fold must be one of {', '.join(get_args(FoldRule))}, not {node.fold!r}")
        match node:
            case Input() if not -math.inf < node.low < node.high < math.inf:
                yield Fault(node, f"range must be finite, low below high, not {[node.low, node.high]}")
            case Clip() if not node.low <= node.high:
                yield Fault(node, f"low must not exceed high, not {[node.low, node.high]}")
            case Conv2D() | Dense():
                for name, bits in (("bits", node.bits), ("weight_bits", node.weight_bits)):
                    if bits is not None and not MIN_BITS <= bits <= MAX_BITS:
                        yield Fault(node, f"{name} must be {MIN_BITS} to {MAX_BITS}, not {bits}")
            case BatchNorm():
                least = float(graph.weights[f"{node.name}.var"].min())
                if not (min(least, node.epsilon) >= 0 and least + node.epsilon > 0):
                    found = f"{least:g} + {node.epsilon:g}"
                    yield Fault(node, f"variance + epsilon must be positive, neither negative, not {found}")
            case Pca() if node.whiten and graph.weights[f"{node.name}.explained_variance"].min() < 0:
                yield Fault(node, "explained variance must not be negative")
            case Pointwise() if node.function not in FUNCTIONS:
                yield Fault(node, f"function must be one of {', '.join(FUNCTIONS)}, not {quote(node.function)}")
            case Pointwise():
                names, _ = FUNCTIONS[node.function]
                if len(node.parameters) != len(names) or not all(map(math.isfinite, node.parameters)):
                    takes = ", ".join(names) or "no parameters"
                    yield Fault(node, f"{node.function} takes {takes}, all finite, not {node.parameters}")
            case QConv2D() | QAveragePool() | QAdd() | QMultiply() | QTable():
                yield Fault(node, f"{node.op} must not stand in a real graph")


def real_arrays(graph: Graph) -> Iterator[Fault]:
    for node, name in _arrays(graph):
        array = graph.weights[name]
        if array.dtype != np.float64:
            yield Fault(node, f"array {name!r} must hold float64, not {array.dtype}")
        elif not np.isfinite(array).all():
            hint = "products of its weights and those of the layers folded into it overflow: scale them down"
            yield Fault(node, f"array {name!r} must be finite", hint, by_user=True)


# ------------------------------------------------------------------------------------ rules of integer graphs


def integer_nodes(graph: Graph) -> Iterator[Fault]:
    for node in graph.nodes:
        if isinstance(node, QConv2D | QAveragePool | QAdd | QMultiply):
            if node.rounding not in get_args(Rounding):
                yield Fault(node, f"rounding must be one of {', '.join(get_args(Rounding))}, not {quote(node.rounding)}")
            if not node.format.min_raw <= node.low <= node.high <= node.format.max_raw:
                yield Fault(node, f"limits must rise inside {node.format}, not {[node.low, node.high]}")
        match node:
            case Input():
                if node.format is None:
                    yield Fault(node, "the input must have an integer format")
            case QConv2D():
                if not MIN_BITS <= node.weight_bits <= MAX_BITS:
                    yield Fault(node, f"weight_bits must be {MIN_BITS} to {MAX_BITS}, not {node.weight_bits}")
                if node.kind not in ("conv2d", "dense"):
                    yield Fault(node, f"kind must be 'conv2d' or 'dense', not {node.kind!r}")
                if node.rounding == "native":
                    yield from _shift_in_range(node, node.shift)
            case QAveragePool() | QAdd() | QMultiply() | QTable() | Concat():
                pass  # `joined_formats`, `exact_factors`
            case _ if not isinstance(node, MOVERS):
                yield Fault(node, f"{node.op} must not stand in an integer graph")


def joined_formats(graph: Graph) -> Iterator[Fault]:
    """What is only moved, or averaged, keeps its format; a table has a row for each channel or one, as long as its input."""
    for node in graph.nodes:
        match node:
            case Concat():
                formats = [graph.format_of(name) for name in node.inputs]
                for name, form in zip(node.inputs, formats, strict=True):
                    if form != formats[0]:
                        message = f"'{node.inputs[0]}' is {formats[0]}, but '{name}' is {form}"
                        yield Fault(node, f"concat takes tensors of one format: {message}", "requantize one of them")
            case QAveragePool(rounding="native" | "tflite"):
                source = graph.format_of(node.inputs[0])
                if node.format != source:
                    yield Fault(node, f"format must be that of its input, {source}, not {node.format}")
            case QTable():
                source, table = graph.format_of(node.inputs[0]), graph.weights[f"{node.name}.table"]
                rows, entries = {1, graph.shapes[node.name][2]}, 1 << source.bits
                if table.shape[0] not in rows or table.shape[1] != entries:
                    wanted = " or ".join(f"({row}, {entries})" for row in sorted(rows))
                    yield Fault(node, f"array '{node.name}.table' must have shape {wanted}, not {table.shape}")


def exact_factors(graph: Graph) -> Iterator[Fault]:
    """Multipliers, exponents and ratios of pools, sums and products in range; no product leaves 64 bits."""
    for node in graph.nodes:
        if not isinstance(node, QAveragePool | QAdd | QMultiply):
            continue
        reaches = [_magnitude(graph.format_of(name)) for name in node.inputs]
        match node:
            case QAveragePool(rounding="float32" | "float64"):
                yield from _ratios_in_range(node, (node.ratio,), 1)
            case QAdd(rounding="float32" | "float64"):
                yield from _ratios_in_range(node, node.ratios, 2)
            case QMultiply(rounding="float32" | "float64"):
                yield from _ratios_in_range(node, (node.ratio,), 1)
            case QAdd(rounding="native"):
                yield from _shift_in_range(node, node.shift)
                if len(node.multipliers) != 2 or any(abs(m) >= MAX_TFLITE or s for m, s in node.multipliers):
                    yield Fault(node, f"multipliers must be 2 below {MAX_TFLITE}, with exponents 0, not {node.multipliers}")
            case QAdd(rounding="tflite"):
                if len(node.multipliers) != 3 or node.multipliers[2][0] < 0:
                    yield Fault(node, f"multipliers must be 3, the last not negative, not {node.multipliers}")
                if not 0 <= node.shift < 32:
                    yield Fault(node, f"shift must be 0 to 31, not {node.shift}")
                for m, s in node.multipliers:
                    yield from _tflite_in_range(node, (abs(m), s))
                for reach, (_, s) in zip(reaches, node.multipliers[:2], strict=True):
                    yield from _tflite_operand(node, reach << node.shift + max(s, 0))
            case QMultiply(rounding="native"):
                yield from _shift_in_range(node, node.shift)
                m, s = node.multiplier
                if not 0 <= m < MAX_TFLITE or s or m * math.prod(reaches) >= 1 << MAX_SHIFT:
                    limit = f"0 to {MAX_TFLITE - 1} with exponent 0, and its products below 2**{MAX_SHIFT}"
                    yield Fault(node, f"multiplier must be {limit}, not {node.multiplier}")
            case QMultiply(rounding="tflite"):
                yield from _tflite_in_range(node, node.multiplier)
                yield from _tflite_operand(node, math.prod(reaches) << max(node.multiplier[1], 0))


def _shift_in_range(node: Node, shift: int) -> Iterator[Fault]:
    if not 1 <= shift <= MAX_SHIFT:
        yield Fault(node, f"shift must be 1 to {MAX_SHIFT}, not {shift}")


def _ratios_in_range(node: QAveragePool | QAdd | QMultiply, ratios: Sequence[float], count: int) -> Iterator[Fault]:
    good = [math.isfinite(ratio) and (ratio > 0 or (ratio < 0 and isinstance(node, QAdd))) for ratio in ratios]
    if len(ratios) != count or not all(good):
        kind = "finite and not 0" if isinstance(node, QAdd) else "finite and positive"
        yield Fault(node, f"ratios must be {count}, {kind}, not {tuple(ratios)}")


def _tflite_in_range(node: Node, multiplier: tuple[int, int]) -> Iterator[Fault]:
    m, s = multiplier
    if not (0 <= m < MAX_TFLITE and -31 <= s <= 30):
        yield Fault(node, f"multiplier must be 0 to {MAX_TFLITE - 1} with exponent -31 to 30, not {multiplier}")


def _tflite_operand(node: Node, reach: int) -> Iterator[Fault]:
    if reach > MAX_TFLITE:
        message = f"what it multiplies must stay within ±{MAX_TFLITE}, not {reach}"
        yield Fault(node, message, "its scales are too far apart", by_user=True)


def _magnitude(form: Format) -> int:
    """The greatest difference from the zero point."""
    return max(form.max_raw - form.zero_point, form.zero_point - form.min_raw)


def integer_arrays(graph: Graph) -> Iterator[Fault]:
    """Every integer within its width, every scale positive."""
    for node, name in _arrays(graph):
        array, part = graph.weights[name], name.rpartition(".")[2]
        dtype = np.float64 if part in ("scale", "offset") else np.int64
        if array.dtype != dtype:
            yield Fault(node, f"array {name!r} must hold {np.dtype(dtype)}, not {array.dtype}")
        elif dtype is np.float64:
            if not np.isfinite(array).all() or (part == "scale" and array.min() <= 0):
                kind = "finite and positive" if part == "scale" else "finite"
                yield Fault(node, f"array {name!r} must be {kind}", by_user=True)
        elif part in (limits := _integer_limits(node)):
            low, high = limits[part]
            least, most = int(array.min()), int(array.max())
            if not low <= least <= most <= high:
                yield Fault(node, f"array {name!r} must stay in {[low, high]}, not {[least, most]}")


def _integer_limits(node: Node) -> dict[str, tuple[int, int]]:
    match node:
        case QConv2D():
            largest = 1 << (node.weight_bits - 1)
            most_m = MAX_TFLITE - 1 if node.rounding == "tflite" else (1 << MULTIPLIER_BITS) - 1
            return {
                "w": (-largest, largest - 1),
                "b": (-MAX_ACCUMULATOR, MAX_ACCUMULATOR),
                "m": (0, most_m),
                "s": (-31, 30),
            }
        case QTable():
            return {"table": (node.format.min_raw, node.format.max_raw)}
    return {}


def exact_accumulators(graph: Graph) -> Iterator[Fault]:
    """No accumulator is so wide that the requantizer would leave 64 bits, or tflite's its 32."""
    for node in graph.nodes:
        if isinstance(node, QConv2D):
            w_rcohwi, b_rco = (
                np.asarray(graph.weights[f"{node.name}.{part}"], dtype=np.int64) for part in "wb"
            )
            x_format = graph.format_of(node.inputs[0])
            acc = accumulator_range(w_rcohwi, b_rco, x_format.min_raw, x_format.max_raw)
            if acc.magnitude > MAX_ACCUMULATOR:
                found = [acc.low, acc.high]
                yield Fault(node, f"accumulator must stay within ±{MAX_ACCUMULATOR}, not {found}")
            if node.rounding == "tflite":
                left = max(0, int(graph.weights[f"{node.name}.s"].max()))
                yield from _tflite_operand(node, acc.magnitude << left)


RULES: tuple[Rule, ...] = (
    one_input,
    legal_names,
    single_assignment,
    used_tensors,
    sane_windows,  # before sizes, which follow from them
    bounded_tensors,  # before arrays: the size of one layer is in the arrays of the next
    exact_arrays,
    whole_groups,
    rising_classes,
    known_heads,
    matching_labels,
)
REAL_RULES: tuple[Rule, ...] = (real_nodes, real_arrays)
INTEGER_RULES: tuple[Rule, ...] = (integer_nodes, integer_arrays, joined_formats, exact_factors, exact_accumulators)


# ------------------------------------------------------------------------------------------ operators' tables


def arity(node: Node) -> tuple[int, int]:
    """How many tensors a node reads, at least and at most."""
    if isinstance(node, Input):
        return 0, 0
    if isinstance(node, Multiply | QAdd | QMultiply):
        return 2, 2
    return (2, MAX_INPUTS) if isinstance(node, Add | Concat) else (1, 1)


def array_dims(node: Node, inputs: Sequence[Shape]) -> dict[str, Dims]:
    """The arrays of every operator and their shapes."""
    match node:
        case Conv2D() | QConv2D():
            rows, cols = len(node.classes.rows), len(node.classes.cols)
            reads = inputs[0][2] // max(1, node.groups)
            dims: dict[str, Dims] = {"w": (rows, cols, "O", "kh", "kw", reads), "b": (rows, cols, "O")}
            if isinstance(node, QConv2D):
                parts = {"native": ("m",), "tflite": ("m", "s")}.get(node.rounding, ("scale", "offset"))
                dims |= dict.fromkeys(parts, ("O",))
            return dims
        case QTable():
            return {"table": ("tables", "entries")}
        case Prelu():
            return {"slope": (inputs[0][2],)}
        case Dense():
            return {"w": ("O", math.prod(inputs[0])), "b": ("O",)}
        case BatchNorm():
            return dict.fromkeys(("gamma", "beta", "mean", "var"), (inputs[0][2],))
        case ScaleBias():
            return dict.fromkeys(("scale", "bias"), (inputs[0][2],))
        case Pca():
            dims = {"components": ("r", inputs[0][2]), "mean": (inputs[0][2],)}
            return dims | {"explained_variance": ("r",)} if node.whiten else dims
    return {}


def fits(shape: tuple[int, ...], dims: Dims, sizes: dict[str, int] | None = None) -> bool:
    """Whether a shape is the one required; ``sizes`` holds what the strings stand for so far."""
    sizes = {} if sizes is None else sizes
    return len(shape) == len(dims) and all(
        size >= 1 and size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
        for size, dim in zip(shape, dims, strict=True)
    )


def show_dims(dims: Dims) -> str:
    """A shape as it is written in Python, with the letters unquoted."""
    return f"({', '.join(map(str, dims))}{',' if len(dims) == 1 else ''})"


def _arrays(graph: Graph) -> Iterator[tuple[Node, str]]:
    for node in graph.nodes:
        for part in array_dims(node, [graph.shapes[name] for name in node.inputs]):
            if part not in OPTIONAL or f"{node.name}.{part}" in graph.weights:
                yield node, f"{node.name}.{part}"


def _by(shape: Shape) -> str:
    return "×".join(map(str, shape))
