"""Operators that move samples or pick one, the same in real and in integer networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from ..graph import ArgMax, Concat, Crop, DepthToSpace, MaxPool, Pad, Pair, Shape, Slice, SpaceToDepth, Upsample
from .tflite_call import Call, Refused, Rule, tensor_format
from .tflite_windows import spatial_kernel

__all__ = ["MOVES", "broadcast", "same_format"]

NO_ACTIVATION = 0


def same_format(call: Call, positions: Sequence[int] = (0,)) -> None:
    """Refuse an operator that only moves samples, between formats that differ.

    The kernel copies the raw bytes: a network in which that changes their meaning is none that a converter makes.
    """
    if call.state.real:
        return
    for position in positions:
        if call.format(position) != call.result:
            what = f"its input {position} is {call.format(position)} and its result {call.result}"
            raise Refused(what, "insert a QUANTIZE in front of it")


def reshape(call: Call) -> tuple[str, ...]:
    """RESHAPE, SQUEEZE, EXPAND_DIMS: the declared shape of the result says it all."""
    same_format(call)
    if math.prod(call.expected()) != math.prod(call.shape(0)):
        call.fail(f"{math.prod(call.shape(0))} samples cannot be {math.prod(call.expected())}")
    return (call.reshaped(call.activation(0), call.expected()),)


def transpose(call: Call) -> tuple[str, ...]:
    """TRANSPOSE, where only axes of size 1 change places."""
    shape, order = call.tensor(0).shape, call.integers(1)
    if sorted(order) != list(range(len(shape))):
        call.fail(f"its permutation must name each of {len(shape)} axes once, not {list(order)}")
    moved = [axis for axis in order if shape[axis] != 1]
    if moved != sorted(moved):
        raise Refused(f"it reorders samples by {list(order)}", "keep channels last, and transpose outside the network")
    return reshape(call)


def concatenation(call: Call) -> tuple[str, ...]:
    rank = len(call.output().shape)
    if call.option("Axis") % max(rank, 1) != rank - 1:
        raise Refused(f"it joins along axis {call.option('Axis')}", "join along the channels, the last axis")
    if call.option("FusedActivationFunction") != NO_ACTIVATION:
        raise Refused("it has a fused activation", "put the activation behind it")
    names = tuple(call.activation(position) for position in range(len(call.operator.inputs)))
    if not names:
        call.fail("it joins nothing")
    same_format(call, range(len(names)))
    if len(names) == 1:
        return names
    return (call.add(Concat(name=call.fresh(), inputs=names, source=call.source)),)


def depth_to_space(call: Call) -> tuple[str, ...]:
    same_format(call)
    name = call.activation(0)
    return (call.add(DepthToSpace(name=call.fresh(), inputs=(name,), source=call.source, block=_block(call))),)


def space_to_depth(call: Call) -> tuple[str, ...]:
    same_format(call)
    name = call.activation(0)
    return (call.add(SpaceToDepth(name=call.fresh(), inputs=(name,), source=call.source, block=_block(call))),)


def _block(call: Call) -> Pair:
    size = call.option("BlockSize")
    if not 1 <= size <= 1 << 20:
        call.fail(f"BlockSize must be 1 to {1 << 20}, not {size}")
    return size, size


def resize_nearest(call: Call) -> tuple[str, ...]:
    """RESIZE_NEAREST_NEIGHBOR, where every sample becomes a block of one size."""
    same_format(call)
    shape, wanted = call.shape(0), call.expected()
    factor = wanted[0] // shape[0], wanted[1] // shape[1]
    if any(not _is_repeat(call, shape[axis], wanted[axis]) for axis in (0, 1)):
        sizes = f"{shape[0]}×{shape[1]} to {wanted[0]}×{wanted[1]}"
        raise Refused(f"it resizes {sizes}", "resize by an integer factor, without align_corners")
    if factor == (1, 1):
        return (call.activation(0),)
    return (call.add(Upsample(name=call.fresh(), inputs=(call.activation(0),), source=call.source, factor=factor)),)


def _is_repeat(call: Call, size: int, wanted: int) -> bool:
    """Whether the kernel, in its own single precision, reads sample ``⌊n / factor⌋`` for each ``n``."""
    if wanted % size or wanted > 1 << 20:
        return False
    corners, centers = call.option("AlignCorners"), call.option("HalfPixelCenters")
    step = np.float32(size - 1) / np.float32(wanted - 1) if corners and wanted > 1 else np.float32(size) / np.float32(wanted)
    at = (np.arange(wanted, dtype=np.float32) + np.float32(0.5 if centers else 0.0)) * step
    nearest = np.floor(at + np.float32(0.5)) if corners else np.floor(at)
    return bool((np.minimum(nearest, size - 1) == np.arange(wanted) // (wanted // size)).all())


def broadcast(call: Call, name: str, shape: Shape) -> str:
    """A tensor as large as ``shape``: a single row or column is repeated over the map."""
    size = call.shape_of(name)
    if size == shape:
        return name
    factor = shape[0] // size[0], shape[1] // size[1]
    if any(size[axis] not in (1, shape[axis]) for axis in (0, 1)) or size[2] != shape[2]:
        sizes = " and ".join("×".join(map(str, one)) for one in (size, shape))
        raise Refused(f"it combines {sizes}", "give both tensors one shape, or one of them a single row, column or pixel")
    return call.add(Upsample(name=call.fresh("map"), inputs=(name,), source=call.source, factor=factor))


def max_pool(call: Call) -> tuple[str, ...]:
    kernel, stride = call.filter(), call.stride()
    same_format(call)
    if not call.state.real and call.option("FusedActivationFunction") != NO_ACTIVATION:
        raise Refused("it has a fused activation", "put the activation in front of it")
    padding = call.padding(call.shape(0), kernel, stride)
    name = call.fresh("max" if call.option("FusedActivationFunction") else "")
    inputs = (call.activation(0),)
    return (call.add(MaxPool(name=name, inputs=inputs, source=call.source, kernel=kernel, stride=stride, padding=padding)),)


def reduce_max(call: Call) -> tuple[str, ...]:
    """REDUCE_MAX over rows and columns."""
    same_format(call)
    kernel = spatial_kernel(call)
    inputs = (call.activation(0),)
    return (call.add(MaxPool(name=call.fresh(), inputs=inputs, source=call.source, kernel=kernel, stride=kernel)),)


def pad(call: Call) -> tuple[str, ...]:
    """PAD, PADV2 and MIRROR_PAD's plain kin: rows and columns of one value."""
    same_format(call)
    sizes, rank = call.integers(1), len(call.tensor(0).shape)
    if rank < 2 or len(sizes) != 2 * rank or min(sizes, default=0) < 0 or max(sizes, default=0) > 1 << 20:
        call.fail(f"its padding must be {rank} pairs of 0 to {1 << 20}, not {list(sizes)}")
    pairs = list(zip(sizes[::2], sizes[1::2], strict=True))
    rows, cols = [*pairs[1:-1], (0, 0), (0, 0)][:2]
    if any(map(any, (pairs[0], pairs[-1]))):
        raise Refused("it pads channels", "pad rows and columns only")
    value = _pad_value(call)
    if (rows, cols) == ((0, 0), (0, 0)):
        return (call.activation(0),)
    inputs = (call.activation(0),)
    return (call.add(Pad(name=call.fresh(), inputs=inputs, source=call.source, padding=(rows, cols), value=value)),)


def _pad_value(call: Call) -> float:
    if not call.has(2):
        return 0.0
    if math.prod(call.tensor(2).shape) != 1:
        call.fail("its value must be one number")
    if call.state.real:
        return float(call.reals(2).item())
    raw, form = int(call.constant(2, ("INT8", "UINT8")).item()), call.format(0)
    return (raw - form.zero_point) * form.scale


# -------------------------------------------------------------------------------------------------------------- parts


def slice_(call: Call) -> tuple[str, ...]:
    shape, begin, size = call.tensor(0).shape, call.integers(1), call.integers(2)
    if not len(shape) == len(begin) == len(size):
        call.fail(f"its begin and size must have {len(shape)} numbers each")
    stop = [full if count == -1 else first + count for full, first, count in zip(shape, begin, size, strict=True)]
    return (_part(call, list(zip(begin, stop, strict=True)), 0),)


def strided_slice(call: Call) -> tuple[str, ...]:
    """STRIDED_SLICE with steps of 1; an axis that shrinks away leaves one sample."""
    shape = call.tensor(0).shape
    begin, end, steps = (call.integers(position) for position in (1, 2, 3))
    if not len(shape) == len(begin) == len(end) == len(steps):
        raise Refused("it does not name every axis", "give begin, end and strides for each axis")
    if call.option("EllipsisMask") or call.option("NewAxisMask"):
        raise Refused("it uses an ellipsis or a new axis", "give begin, end and strides for each axis")
    spans = []
    for axis, full in enumerate(shape):
        shrinks = call.option("ShrinkAxisMask") >> axis & 1
        first = 0 if call.option("BeginMask") >> axis & 1 and not shrinks else _wrapped(begin[axis], full)
        last = first + 1 if shrinks else full if call.option("EndMask") >> axis & 1 else _wrapped(end[axis], full)
        if steps[axis] != 1 and last - first > 1:
            raise Refused(f"it takes every {steps[axis]}th sample", "use steps of 1, or a convolution with a stride")
        spans.append((first, last))
    return (_part(call, spans, 0),)


def _wrapped(index: int, size: int) -> int:
    return min(max(index + size if index < 0 else index, 0), size)


def split(call: Call) -> tuple[str, ...]:
    """SPLIT (axis, tensor) into equal parts, SPLIT_V (tensor, sizes, axis) into given ones."""
    even = call.kind == "SPLIT"
    data = 1 if even else 0
    axis = call.integer(0 if even else 2)
    shape, count = call.tensor(data).shape, len(call.operator.outputs)
    if not -len(shape) <= axis < len(shape) or not count:
        call.fail(f"its axis must be one of {len(shape)}, not {axis}")
    axis %= len(shape)
    if even and shape[axis] % count:
        call.fail(f"{shape[axis]} samples cannot be split into {count} parts")
    sizes = [shape[axis] // count] * count if even else list(call.integers(1))
    if len(sizes) != count or min(sizes) < 1 or sum(sizes) != shape[axis]:
        call.fail(f"its parts {sizes} must make up the {shape[axis]} samples of axis {axis}")
    names = []
    for position, span in enumerate(pairwise(accumulate(sizes, initial=0))):
        spans = [(0, full) for full in shape]
        spans[axis] = span
        names.append(_part(call, spans, data, position))
    return tuple(names)


def _part(call: Call, spans: list[Pair], data: int, position: int = 0) -> str:
    """The samples within ``spans`` of all axes: a crop, then a slice of channels."""
    shape = call.tensor(data).shape
    if len(shape) < 2:
        raise Refused("it cuts a vector without a batch", "use tensors of 2 to 4 axes")
    for (first, last), full in zip(spans, shape, strict=True):
        if not 0 <= first < last <= full:
            call.fail(f"samples {first} … {last - 1} must lie within 0 … {full - 1}")
    if not call.state.real and call.format(data) != (made := tensor_format(call.source, call.output(position))):
        raise Refused(f"its input is {call.format(data)} and its result {made}", "insert a QUANTIZE in front of it")
    name = call.activation(data)
    cuts = [(first, full - last) for (first, last), full in zip(spans, shape, strict=True)]
    rows, cols = [*cuts[1:-1], (0, 0), (0, 0)][:2]
    suffix = f"part{position}" if position else ""
    channels = cuts[-1] != (0, 0)
    if any(rows) or any(cols):
        label = "crop" if channels else suffix
        name = call.add(Crop(name=call.fresh(label), inputs=(name,), source=call.source, cropping=(rows, cols)))
    if channels:
        start, stop = spans[-1]
        name = call.add(Slice(name=call.fresh(suffix), inputs=(name,), source=call.source, start=start, stop=stop))
    return name


def arg_max(call: Call) -> tuple[str, ...]:
    """ARG_MAX over the channels; its result can only leave the network."""
    rank, axis = len(call.tensor(0).shape), call.integer(1)
    if axis % max(rank, 1) != rank - 1:
        raise Refused(f"it searches along axis {axis}", "search along the channels, the last axis")
    return (call.add(ArgMax(name=call.fresh(), inputs=(call.activation(0),), source=call.source)),)


MOVES: Mapping[str, Rule] = {
    "ARG_MAX": arg_max,
    "CONCATENATION": concatenation,
    "DEPTH_TO_SPACE": depth_to_space,
    "EXPAND_DIMS": reshape,
    "MAX_POOL_2D": max_pool,
    "PAD": pad,
    "PADV2": pad,
    "REDUCE_MAX": reduce_max,
    "RESHAPE": reshape,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
    "SLICE": slice_,
    "SPACE_TO_DEPTH": space_to_depth,
    "SPLIT": split,
    "SPLIT_V": split,
    "SQUEEZE": reshape,
    "STRIDED_SLICE": strided_slice,
    "TRANSPOSE": transpose,
}
