"""How much of a device a pipeline takes, before synthesis.

Multipliers and block RAMs are counted as the leaf cells will instantiate or infer them; look-up tables and flip-flops follow
from the widths of each component's registers and adders. ``bench/digits.py`` prints the estimate beside the synthesized counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from convfold.hdl.add import AddParams
from convfold.hdl.axi_stream import AxiStreamParams
from convfold.hdl.buffer import BufferParams
from convfold.hdl.conv import ConvParams
from convfold.hdl.dense import DenseParams
from convfold.hdl.depthwise import DepthwiseParams
from convfold.hdl.fork import ForkParams
from convfold.hdl.lane_row import LaneRowParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.lookup import LookupParams
from convfold.hdl.mac_row import DotParams, MacRowParams
from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.product import ProductParams
from convfold.hdl.ram import RamParams
from convfold.hdl.reorder import ReorderParams
from convfold.hdl.requantizer import RequantizerParams
from convfold.hdl.rom import RomParams
from convfold.hdl.window import WindowParams

from .pipeline import Pipeline
from .schedule import StageParams
from .targets import Target

__all__ = ["Resources", "estimate"]


@dataclass(frozen=True, slots=True)
class Resources:
    """Cells of each kind."""

    luts: int = 0
    ffs: int = 0
    dsps: int = 0
    brams: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.luts + other.luts, self.ffs + other.ffs, self.dsps + other.dsps, self.brams + other.brams
        )

    def __mul__(self, count: int) -> Resources:
        return Resources(self.luts * count, self.ffs * count, self.dsps * count, self.brams * count)

    def lacking(self, target: Target) -> list[tuple[str, int, int]]:
        """``(resource, need, have)`` for whatever the target has too little of."""
        pairs = [
            ("multipliers (DSP)", self.dsps, target.dsps),
            ("block RAMs", self.brams, target.brams),
            ("LUTs", self.luts, target.luts),
            ("flip-flops", self.ffs, target.ffs),
        ]
        return [(name, need, have) for name, need, have in pairs if have is not None and need > have]


def estimate(pipeline: Pipeline, target: Target) -> Resources:
    """The sum over all components."""
    total = _edge(pipeline.edge_in)
    for _, edge in pipeline.outputs:
        total += _edge(edge)
    for component in pipeline.components:
        total += stage_resources(component.params, target)
    return total


def stage_resources(params: StageParams, target: Target) -> Resources:
    """What one component takes."""
    match params:
        case DenseParams():
            return stage_resources(params.conv, target)
        case ConvParams():
            return sum(_conv(params, target), Resources())
        case DepthwiseParams():
            return sum(_depthwise(params, target), Resources())
        case MaxPoolParams():
            width = params.window.bits * params.window.lanes
            compare = Resources(luts=2 * width, ffs=width + params.window.latency * 3)
            return _window(params.window, target) + _queue(width, params.queue.depth_words, target) + compare
        case LaneAdapterParams():
            width = params.bits * max(params.in_lanes, params.out_lanes)
            return Resources(luts=width + 12, ffs=2 * width + 10)
        case ForkParams():
            return Resources(luts=3 * params.outputs, ffs=params.outputs)
        case BufferParams():
            return _queue(params.bits * params.lanes, params.depth_words, target)
        case LookupParams():
            table = _memory(params.out_bits, params.tables << params.in_bits, target) * params.lanes
            return table + _queue(params.out_bits * params.lanes, params.queue.depth_words, target)
        case AddParams():
            lane = _memory(params.table_bits, 1 << params.a_bits, target)
            lane += _memory(params.table_bits, 1 << params.b_bits, target)
            lane += _constant_multiplier(params.m, params.table_bits + 1, params.out_bits)
            return lane * params.lanes + _queue(params.out_bits * params.lanes, params.queue.depth_words, target)
        case ProductParams():
            width = params.a_bits + params.b_bits + 2
            soft = _soft_multiplier(params.multiplier, width // 2, width // 2)
            lane = _constant_multiplier(params.m, width, params.out_bits)
            multipliers = Resources(dsps=params.hard) + soft * (params.lanes - params.hard)
            return multipliers + lane * params.lanes + _queue(params.out_bits * params.lanes, params.queue.depth_words, target)
        case ReorderParams():
            width = params.bits * params.lanes
            store = _memory(width, 2 * params.band_words, target, ram=True)
            return store + _queue(width, params.queue.depth_words, target) + Resources(luts=150, ffs=120)
    width = params.bits * params.lanes  # concat, crop, pad, argmax: counters and a register
    return Resources(luts=width + 60, ffs=2 * width + 40)


def _constant_multiplier(factor: int, width: int, out_bits: int) -> Resources:
    """Shift and add by a constant, then rounding and clamping: an adder for each digit that is not zero."""
    digits = bin(factor ^ (3 * factor)).count("1")
    bits = width + factor.bit_length()
    return Resources(luts=digits * bits + 3 * out_bits + bits, ffs=(digits + 2) * bits + out_bits)


def _conv(params: ConvParams, target: Target) -> Iterator[Resources]:
    yield _window(params.window, target)
    yield _queue(params.out_bits * params.rows, params.queue.depth_words, target)
    for row in range(params.rows):
        yield _mac_row(params.mac_row_of(row), target)
    yield _requantizer(params.requantizer, target) * params.rows
    yield Resources(luts=40, ffs=40 + 4 * params.window.latency)


def _depthwise(params: DepthwiseParams, target: Target) -> Iterator[Resources]:
    yield _window(params.window, target)
    yield _queue(params.out_bits * params.rows, params.queue.depth_words, target)
    for row in range(params.rows):
        yield _lane_row(params.mac_row_of(row), target)
    yield _requantizer(params.requantizer, target) * params.rows
    yield Resources(luts=40, ffs=40 + 4 * params.window.latency)


def _window(params: WindowParams, target: Target) -> Resources:
    banks = params.parallel[0] * params.parallel[1]
    words = params.rows // params.parallel[0] * -(-params.width // params.parallel[1]) * params.beats
    width = params.lanes * params.bits
    store = _memory(width, words, target, ram=True) * banks
    turns = (params.parallel[0] > 1) + (params.parallel[1] > 1)
    turning = Resources(luts=banks * width * turns * max(params.parallel) // 2, ffs=banks * width * turns)
    address = (words - 1).bit_length()
    control = Resources(luts=230 + 12 * address, ffs=110 + 8 * address + 4 * params.latency)
    return store + turning + control + Resources(luts=banks * width, ffs=banks * width + banks * address)


def _mac_row(params: MacRowParams, target: Target) -> Resources:
    """Elements in a row: each hands samples, address and flags on, and has its own weights and a place in the drain."""
    hops = Resources(ffs=params.taps * params.x_bits + (params.depth_words - 1).bit_length() + 3)
    element = hops + _drain(params.acc_bits) + _memory(params.rom_params.width_bits, params.depth_words, target)
    return sum((_dot(params.dot_of(e), target) for e in range(params.pes)), element * params.pes)


def _lane_row(params: LaneRowParams, target: Target) -> Resources:
    """Elements side by side: one table of weights for all."""
    row = sum((_dot(params.dot_of(e), target) for e in range(params.pes)), _drain(params.acc_bits) * params.pes)
    return row + (_memory(params.rom_params.width_bits, params.depth_words, target) if params.w_bits else Resources())


def _dot(params: DotParams, target: Target) -> Resources:
    """Multipliers and their adder tree."""
    x_bits, w_bits = params.x_bits + (not params.x_signed), params.w_bits
    tree = Resources(luts=x_bits + w_bits, ffs=x_bits + w_bits) * (params.taps - 1)
    if not w_bits:
        return tree
    soft = _soft_multiplier(params.multiplier, params.x_bits, w_bits)
    return Resources(dsps=params.blocks) + soft * (params.taps - params.hard) + tree


def _soft_multiplier(family: str, a_bits: int, b_bits: int) -> Resources:
    """In carry chains on ECP5, measured for 8×8 bits; as yosys maps it elsewhere."""
    if family == "ecp5":
        return Resources(luts=79 * a_bits * b_bits // 64, ffs=80 * a_bits * b_bits // 64)
    return Resources(luts=int(1.35 * a_bits * b_bits) + a_bits + b_bits, ffs=2 * (a_bits + b_bits))


def _drain(acc_bits: int) -> Resources:
    return Resources(luts=2 * acc_bits, ffs=3 * acc_bits + 3)


def _requantizer(params: RequantizerParams, target: Target) -> Resources:
    tables = _memory(params.factor_table.width_bits, params.words, target)
    tables += _memory(params.acc_bits, params.words * params.walk.count, target)
    width = params.multiplier_bits + 4
    adder = Resources(luts=width, ffs=width)
    product = Resources(luts=width) * params.unit_digits + adder * params.unit_digits
    rest = Resources(luts=5 * params.digits + 65, ffs=4 * params.digits + 40)
    return tables + product + rest


def _queue(width: int, depth: int, target: Target) -> Resources:
    pointers = 3 * (depth - 1).bit_length()
    control = Resources(luts=pointers + 10 + width, ffs=pointers + 2 + width)
    if target.family == "ecp5":
        return _ecp5_queue_store(width, depth) + control
    return _memory(width, depth, target, ram=True) + control


def _ecp5_queue_store(width: int, depth: int) -> Resources:
    """A queue instantiates no cells: yosys takes a block RAM where that saves some twenty distributed ones."""
    blocks = -(-width // 36) * -(-depth // 512)
    if -(-width // 4) * -(-depth // 16) > 20 * blocks:
        return Resources(brams=blocks, ffs=width)
    return _distributed(width, depth)


def _edge(params: AxiStreamParams) -> Resources:
    return Resources(luts=params.tdata_bits + 30, ffs=2 * params.tdata_bits + 20)


def _distributed(width: int, depth: int) -> Resources:
    """A distributed RAM of ECP5: of 16 words, two LUTs (and two for writing) for four bits."""
    return Resources(luts=(-(-width // 4) * 4 + width // 2) * -(-depth // 16), ffs=width)


def _memory(width: int, depth: int, target: Target, *, ram: bool = False) -> Resources:
    """A table or a store of ``depth`` words, as its leaf cell maps on the target's family."""
    output = Resources(ffs=width)
    if target.family == "ecp5":
        params = RamParams(width, depth, "ecp5") if ram else RomParams(width, depth, "ecp5")
        if params.in_blocks:
            return Resources(brams=params.blocks)
        return (_distributed(width, depth) if ram else Resources(luts=width * -(-depth // 16)) + output) + output
    if target.family == "ice40":
        shapes = ((256, 16), (512, 8), (1024, 4), (2048, 2))
        blocks = min(-(-width // bits) * -(-depth // words) for words, bits in shapes)
        if width * depth >= 16 * depth.bit_length() * 8 or (ram and depth > 16):
            return Resources(brams=blocks) + output
        return Resources(luts=width * -(-depth // 16), ffs=width * (depth if ram else 1)) + output
    return Resources(luts=width * -(-depth // 16)) + output
