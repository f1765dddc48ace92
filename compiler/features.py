"""What a component is made of: the numbers that its look-up tables and flip-flops are proportional to.

Each feature is a count of bits or of parts, ``"window.data": 288``. What one costs on a family is fitted to synthesized
parts, see ``bench/calibrate.py``. Hard cells are no features: they are counted as they will be instantiated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import replace
from typing import Any

from amaranth.hdl import Shape

from convfold.hdl.add import AddParams
from convfold.hdl.argmax import ArgMaxParams
from convfold.hdl.axi_stream import AxiStreamParams
from convfold.hdl.buffer import BufferParams
from convfold.hdl.concat import ConcatParams
from convfold.hdl.conv import ConvParams
from convfold.hdl.crop import CropParams
from convfold.hdl.dense import DenseParams
from convfold.hdl.depthwise import DepthwiseParams
from convfold.hdl.fork import ForkParams
from convfold.hdl.global_pool import GlobalPoolParams
from convfold.hdl.lane_row import LaneRowParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.lookup import LookupParams
from convfold.hdl.mac_row import MacRowParams
from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.multiplier import MultiplierParams
from convfold.hdl.multiplier_pair import MultiplierPairParams
from convfold.hdl.pad import PadParams
from convfold.hdl.pipe import PipeParams
from convfold.hdl.product import ProductParams
from convfold.hdl.queue import QueueParams
from convfold.hdl.ram import RamParams
from convfold.hdl.reorder import ReorderParams
from convfold.hdl.requantizer import TABLE_CYCLES, RequantizerParams
from convfold.hdl.rom import RomParams
from convfold.hdl.scale import ScaleParams
from convfold.hdl.ties import TiesParams
from convfold.hdl.window import WindowParams

__all__ = ["Feature", "features", "parts"]

Feature = tuple[str, float]
"""The name of a feature, and how much of it. The hard cells are called ``DSP`` and ``BRAM``."""

DSP, BRAM = "DSP", "BRAM"


def parts(params: Any) -> Iterator[tuple[str, Any]]:
    """A component and the parts of it that can be counted alone, each with the end of its module's name."""
    yield "", params
    match params:
        case DenseParams():
            yield from list(parts(params.conv))[1:]
        case ConvParams() | DepthwiseParams():
            yield "_window", params.window
            yield "_row0", params.mac_row_of(0)
            yield "_requantizer0", params.requantizer
            yield "_queue", params.queue
        case GlobalPoolParams():
            yield "_requantizer0", params.requantizer


def features(params: Any, family: str) -> Iterator[Feature]:
    """All of a component's features; one may come several times.

    *Raises* ``TypeError`` for what is no component's parameters.
    """
    match params:
        case DenseParams():
            yield from features(params.conv, family)
        case ConvParams() | DepthwiseParams():
            yield from _stage(params, family)
        case WindowParams():
            yield from _window(params, family)
        case MacRowParams():
            yield from _mac_row(params, family)
        case LaneRowParams():
            yield from _lane_row(params, family)
        case RequantizerParams():
            yield from _requantizer(params, family)
        case RomParams():
            yield from _rom(params, family)
        case QueueParams():
            yield from _queue(Shape.cast(params.shape).width, params.depth_words, family)
        case MaxPoolParams():
            yield from _max_pool(params, family)
        case LaneAdapterParams():
            yield from _adapter(params)
        case ForkParams():
            yield "slice", 1
            yield "slice.data", params.lanes * params.bits
            yield "fork.branches", params.outputs
        case BufferParams():
            yield from _buffer(params, family)
        case LookupParams():
            yield from _pipe(params.pipe, params.lanes * params.out_bits, family)
            yield "lookup.address", params.lanes * _bits(params.rom.depth_words)
            yield from _many(params.lanes, _rom(params.rom, family))
        case AddParams():
            yield from _add(params, family)
        case ProductParams():
            yield from _product(params, family)
        case GlobalPoolParams():
            yield from _global_pool(params, family)
        case ReorderParams():
            yield from _reorder(params, family)
        case ArgMaxParams():
            yield from _argmax(params, family)
        case ConcatParams():
            yield "concat", 1
            yield "concat.data", params.lanes * params.bits * len(params.channels)
            yield "slice.data", params.lanes * params.bits
        case CropParams() | PadParams():
            yield "trim", 1
            yield "trim.counters", _bits(params.height) + _bits(params.width) + _bits(-(-params.channels // params.lanes))
            yield "slice.data", params.lanes * params.bits
        case AxiStreamParams():
            yield "edge", 1
            yield "edge.counter", _bits(params.frame_beats)
            yield "slice.data", params.tdata_bits
        case _:
            raise TypeError(f"params must be those of a component, not {params!r}")


def _bits(count: int) -> int:
    """Of a counter to ``count - 1``."""
    return (count - 1).bit_length()


def _many(count: int, found: Iterator[Feature]) -> Iterator[Feature]:
    return ((name, count * amount) for name, amount in found)


# ----------------------------------------------------------------------------------------------------------------- stages


def _stage(params: ConvParams | DepthwiseParams, family: str) -> Iterator[Feature]:
    yield from _window(params.window, family)
    yield from _queue(params.rows * params.out_bits, params.queue.depth_words, family)
    shared = _IN_ALL_ROWS if isinstance(params, ConvParams) else _IN_ALL_ROWS - {"row.hops"}
    rows: Counter[MacRowParams | LaneRowParams] = Counter(map(params.mac_row_of, range(params.rows)))
    for n, (row, count) in enumerate(rows.items()):
        features = _mac_row(row, family) if isinstance(row, MacRowParams) else _lane_row(row, family)
        yield from _alike(count, features, shared, n == 0)
    yield from _alike(params.rows, _requantizer(params.requantizer, family), _IN_ALL_ROWS, True)
    yield "stage", 1
    yield "credits.counters", _bits(params.queue.depth_words + 1) + _bits(params.passes)
    yield "stage.address", _bits(params.depth_words)
    yield "stage.delay", params.window.latency


_IN_ALL_ROWS = frozenset(
    "row row.hops row.addresses row.flags row.delays row.pace lane table.address".split()
    + "requantizer requantizer.slots requantizer.steps".split()
)
"""What all rows of a stage do alike, sample by sample: synthesis finds that out, and makes it once."""


def _alike(rows: int, found: Iterator[Feature], shared: Set[str], first: bool) -> Iterator[Feature]:
    """The features of so many rows; what is ``shared`` comes with the first of them."""
    return ((name, amount * (first if name in shared else rows)) for name, amount in found)


def _max_pool(params: MaxPoolParams, family: str) -> Iterator[Feature]:
    yield from _window(params.window, family)
    yield from _queue(params.window.lanes * params.window.bits, params.queue.depth_words, family)
    yield "stage", 1
    yield "credits.counters", _bits(params.queue.depth_words + 1)
    yield "stage.delay", params.window.latency
    yield "pool.data", params.window.lanes * params.window.bits


def _global_pool(p: GlobalPoolParams, family: str) -> Iterator[Feature]:
    yield from _pipe(p.pipe, p.lanes * p.requantizer.out_bits, family)
    if p.ring is not None:
        yield from _queue(p.lanes * p.requantizer.acc_bits, p.ring.depth_words, family)
    yield from _alike(p.lanes, _requantizer(p.requantizer, family), _IN_ALL_ROWS, True)
    yield "global", 1
    yield "global.counters", _bits(p.pixels) + _bits(p.words) + _bits(p.requantizer.ii)
    yield "global.data", p.lanes * (p.bits + (p.words == 2) * p.requantizer.acc_bits)
    yield "sum", p.lanes * p.requantizer.acc_bits


def _window(p: WindowParams, family: str) -> Iterator[Feature]:
    banks_r, banks_c = p.parallel
    banks, width = banks_r * banks_c, p.lanes * p.bits
    depth = p.rows // banks_r * -(-p.width // banks_c) * p.beats
    column_bits = _bits(depth // (p.rows // banks_r)) + 1
    counted = (p.width, p.beats, p.out_width, p.out_height, p.passes, p.steps, p.beats, p.kernel[1] // banks_c, *p.parallel)
    place = _bits(p.height) + _bits(p.width) + 4 + _bits(p.rows) + column_bits  # row, column, ring row, word: of window and tap
    pixels = _bits(p.rows * p.width) + 1
    yield "window", 1
    yield "window.counters", sum(map(_bits, counted))
    yield "window.pixels", pixels
    yield "window.place", 2 * place
    yield "window.group", column_bits + 2 * _bits(depth)
    yield "window.slots", banks_r * _bits(depth)
    yield "window.columns", banks_c * column_bits
    yield "window.addresses", banks * _bits(depth)
    yield "window.table", p.rows * (1 + (banks_r > 1))
    yield "window.steps", p.out_height * any(p.padding[0]) + p.out_width * any(p.padding[1])
    yield "window.inside", banks_r * _bits(p.height) + banks_c * _bits(p.width)
    yield "window.delays", ((banks_r + banks_c) * (p.latency - 1)) + 4 * (_bits(banks_r) + _bits(banks_c)) + banks
    yield "window.written", width
    if any(side for sides in p.padding for side in sides):
        yield "window.masked", banks * width
    yield "window.samples", banks * width
    for count in p.parallel:
        if count > 1:
            yield "window.turned", banks * width
            yield "window.turns", banks * width * (count - 1)
    yield from _many(banks, _ram(RamParams(width, depth, p.memory), family))


def _multipliers(p: MultiplierParams, count: int) -> Iterator[Feature]:
    """Of one kind."""
    if p.kind == "ecp5":
        yield DSP, count
        yield "multiplier.wait", count * (p.latency - 2) * (p.a_bits + p.b_bits)
    elif p.kind == "ice40":
        yield DSP, p.block_params.blocks(count)
        yield "multiplier.wait", count * max(p.latency - 3, 0) * (p.a_bits + p.b_bits)
    else:
        yield p.kind, count
        yield f"{p.kind}.area", count * p.a_bits * p.b_bits
        yield f"{p.kind}.ends", count * (p.a_bits + p.b_bits)


def _multiplier_pairs(p: MultiplierPairParams, count: int) -> Iterator[Feature]:
    """One carry is one more place of an adder, and waits for it in a register or not."""
    yield DSP, count
    yield "multiplier.wait", count * (p.latency - 2) * 2 * p.product_bits
    yield "pair.carries", count


def _dots(row: MacRowParams | LaneRowParams) -> Iterator[Feature]:
    """Multipliers, adder trees and accumulators of all elements."""
    p, multipliers = row.dot, row.pes * row.taps
    alone = [row.dot_of(e).hard for e in range(row.pes)]
    bits = p.x_bits + (p.w_bits or not p.x_signed)
    if isinstance(row, MacRowParams) and (pairs := [row.pairs(e // row.together) for e in range(row.pes)])[0]:
        alone = [hard - shared for hard, shared in zip(alone, pairs, strict=True)]
        bits = row.pair_params.product_bits
        yield from _multiplier_pairs(row.pair_params, sum(pairs) // 2)
    if p.w_bits:
        soft = multipliers - row.hard
        for hard, elements in Counter(alone).items():
            if hard:
                yield from _many(elements, _multipliers(p.multiplier_params(0), hard))
        if soft:
            yield from _multipliers(replace(p, hard=0).multiplier_params(0), soft)
    widths = [bits] * p.taps
    while len(widths) > 1:
        sums = [widths[n : n + 2] for n in range(0, len(widths), 2)]
        widths = [max(terms) + len(terms) - 1 for terms in sums]
        yield "tree", row.pes * sum(width for width, terms in zip(widths, sums, strict=True) if len(terms) > 1)
        yield "tree.registers", row.pes * sum(widths)
    yield "row.delays", 2 * (p.latency - 1)
    yield "sum", row.pes * p.acc_bits


def _mac_row(p: MacRowParams, family: str) -> Iterator[Feature]:
    yield from _dots(p)
    yield "row", 1
    yield "row.hops", p.hops * p.taps * p.x_bits
    yield "row.addresses", p.hops * _bits(p.depth_words)
    yield "row.elements", p.pes
    yield "row.flags", 3 * p.hops + p.pes + (p.hops if p.word_cycles == 1 else p.pes) - 1
    yield from _drain("row", p, p.pes + p.hops * (p.word_cycles == 1))
    for rom, hops in Counter(map(p.rom_of, range(p.hops))).items():
        yield from _many(hops, _rom(rom, family))


def _lane_row(p: LaneRowParams, family: str) -> Iterator[Feature]:
    yield from _dots(p)
    yield "lane", 1
    yield "lane.elements", p.pes
    yield "row.flags", p.pes + 2
    yield from _drain("lane", p, p.pes)
    if p.w_bits:
        yield from _rom(p.rom_params, family)


def _drain(kind: str, p: MacRowParams | LaneRowParams, registers: int) -> Iterator[Feature]:
    """Sums on their way out."""
    yield "row.drain", registers * p.acc_bits
    yield f"{kind}.choice", (p.pes - 1) * p.acc_bits
    if p.pes > 1:
        yield "row.pace", _bits(p.word_cycles) + 2


def _requantizer(p: RequantizerParams, family: str) -> Iterator[Feature]:
    wait = max(TABLE_CYCLES + 1 - p.ii, 0)
    yield "requantizer", 1
    yield "requantizer.delay", wait * p.acc_bits
    yield "requantizer.slots", _bits(p.slots) + _bits(p.walk.count)
    yield "requantizer.sum", 2 * p.digits
    if p.steps > 1:
        yield "requantizer.steps", 1
        yield "requantizer.picked", 2 * p.digits
        yield "requantizer.shifted", 2 * p.unit_digits * (p.steps - 1)
    yield "requantizer.multiples", p.unit_digits * (p.multiplier_bits + 2)
    count, width, places = p.unit_digits, p.multiplier_bits + 2, 2
    while count > 1:
        yield "requantizer.tree", count // 2 * width
        yield "requantizer.tree.registers", -(-count // 2) * (width + places)
        count, width, places = -(-count // 2), width + places, 2 * places
    yield "requantizer.product", p.multiplier_bits + 2 * p.unit_digits
    yield "requantizer.rounded", max(p.acc_bits + p.multiplier_bits - p.shift, 0)
    yield "requantizer.low", p.shift
    yield "requantizer.out", p.out_bits
    if p.split:
        yield "requantizer.split", 1
        yield "requantizer.offsets", p.offset_bits * (1 + p.offset_tables)
    if p.rounding:
        yield from _ties(p.rounding)
    yield from _rom(p.factor_table, family)
    yield from _rom(p.bias_table, family)


def _ties(p: TiesParams) -> Iterator[Feature]:
    yield f"ties.{p.kind}", 1
    yield "ties.bits", p.bits
    yield "ties.out", p.out_bits


def _scale(p: ScaleParams) -> Iterator[Feature]:
    digits = len(p.multiplier.digits)
    yield "scale", 1
    yield "scale.product", max(digits - 1, 0) * (p.in_bits + 4)
    yield "scale.registers", p.multiplier.latency * p.multiplier.out_bits
    yield "scale.sum", p.multiplier.out_bits
    yield "scale.out", p.out_bits
    if p.rounding:
        yield from _ties(p.rounding)


# ----------------------------------------------------------------------------------------------------------------- streams


def _pipe(p: PipeParams, width: int, family: str) -> Iterator[Feature]:
    depth = p.queue.depth_words
    yield "pipe", 1
    yield "pipe.delay", p.cycles
    yield "credits.counters", _bits(depth + 1)
    yield from _queue(width, depth, family)


def _adapter(p: LaneAdapterParams) -> Iterator[Feature]:
    wide, narrow = max(p.in_lanes, p.out_lanes) * p.bits, min(p.in_lanes, p.out_lanes) * p.bits
    kind = "gather" if p.out_lanes > p.in_lanes else "spread"
    yield kind, 1
    yield f"{kind}.data", wide
    yield f"{kind}.held", wide - narrow
    yield "adapter.counters", _bits(-(-p.channels // p.in_lanes)) + _bits(wide // narrow)


def _buffer(p: BufferParams, family: str) -> Iterator[Feature]:
    width = p.bits * p.lanes
    if p.deep:
        yield "buffer", 1
        yield "buffer.counters", _bits(p.depth_words)
        yield "buffer.data", width
        yield from _ram(p.ram, family)
        yield from _pipe(p.reader, p.lanes * p.bits, family)
    elif p.depth_words == 2:
        yield "slice", 1
        yield "slice.data", width
    else:
        yield from _queue(width, p.depth_words, family)


def _add(p: AddParams, family: str) -> Iterator[Feature]:
    yield from _pipe(p.pipe, p.lanes * p.out_bits, family)
    yield "add.address", p.lanes * (p.a_bits + p.b_bits)
    yield "add.sum", p.lanes * p.table_bits
    for rom in p.roms:
        yield from _many(p.lanes, _rom(rom, family))
    yield from _many(p.lanes, _scale(p.scale))


def _product(p: ProductParams, family: str) -> Iterator[Feature]:
    yield from _pipe(p.pipe, p.lanes * p.out_bits, family)
    multiplier = p.multiplier_params(p.lanes)
    yield from _multipliers(multiplier, p.lanes - p.hard)
    if p.hard:
        yield from _multipliers(p.multiplier_params(0), p.hard)
    yield "product.operands", p.lanes * (multiplier.a_bits + multiplier.b_bits)
    yield "product.result", p.lanes * p.scale.in_bits
    yield from _many(p.lanes, _scale(p.scale))


def _reorder(p: ReorderParams, family: str) -> Iterator[Feature]:
    yield "reorder", 1
    yield "reorder.counters", sum(_bits(count) for count, _ in p.loops)
    yield "reorder.addresses", len(p.loops) * _bits(p.band_words)
    yield "reorder.data", p.lanes * p.bits
    yield from _ram(p.ram, family)
    yield from _pipe(p.reader, p.lanes * p.bits, family)


def _argmax(p: ArgMaxParams, family: str) -> Iterator[Feature]:
    yield from _pipe(p.pipe, p.out_bits, family)
    yield "argmax", 1
    yield "argmax.counters", _bits(p.channels)
    yield "argmax.values", p.lanes * p.bits
    yield "argmax.places", p.lanes * _bits(max(p.lanes, 2))


# ----------------------------------------------------------------------------------------------------------------- stores


def _queue(width: int, depth: int, family: str) -> Iterator[Feature]:
    """A queue instantiates no cells: yosys takes a block RAM where that saves some twenty distributed ones."""
    yield "queue", 1
    yield "queue.counters", _bits(depth)
    yield "queue.data", width
    blocks = -(-width // 36) * -(-depth // 512)
    if family == "ecp5" and -(-width // 4) * -(-depth // 16) > 20 * blocks:
        yield BRAM, blocks
    else:
        yield from _words(width, depth, family, written=True)


def _rom(p: RomParams, family: str) -> Iterator[Feature]:
    """A table with two registers behind it, or a block that has them."""
    if p.in_blocks:
        yield BRAM, p.blocks
        pages = -(-p.depth_words // 2048)
        if pages > 1:
            yield "pages", (pages - 1) * p.width_bits
    else:
        yield "table.data", p.width_bits
        yield "table.address", _bits(p.depth_words)
        yield from _words(p.width_bits, p.depth_words, family, written=False)


def _ram(p: RamParams, family: str) -> Iterator[Feature]:
    if p.in_blocks:
        yield BRAM, p.blocks
        pages = p.blocks // -(-p.width_bits // p.block_width_bits)
        if pages > 1:
            yield "pages", (pages - 1) * p.width_bits
            yield "pages.write", pages
    else:
        yield "store.data", p.width_bits
        yield from _words(p.width_bits, p.depth_words, family, written=True)


def _words(width: int, depth: int, family: str, *, written: bool) -> Iterator[Feature]:
    """Words that no leaf cell was chosen for: synthesis takes what it likes."""
    if family == "ice40":
        shapes = ((256, 16), (512, 8), (1024, 4), (2048, 2))
        if width * depth >= 16 * depth.bit_length() * 8 or (written and depth > 16):
            yield BRAM, min(-(-width // bits) * -(-depth // words) for words, bits in shapes)
        elif written:
            yield "distributed.flip-flops", width * depth
        else:
            yield "table.words", width * -(-depth // 16)
    elif written:
        yield "distributed", -(-width // 4) * -(-depth // 16)
        yield "distributed.rows", width * (-(-depth // 16) - 1)
    elif depth <= 4:
        yield "table.short", min(width, 1 << depth)
    else:
        yield "table.words", width * -(-depth // 16)
        yield "table.rows", width * (-(-depth // 16) - 1)
