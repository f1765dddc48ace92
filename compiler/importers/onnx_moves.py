"""Float ONNX operators that move samples: reshapes and transpositions, which are bookkeeping, and what must be built."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..errors import CompileError
from ..fields import LARGEST
from ..graph import Concat, Conv2D, DepthOrder, DepthToSpace, MaxPool, Pad, Pair, Slice, SpaceToDepth, Upsample
from ..verify import MAX_ELEMENTS, MAX_STEP
from .onnx_layout import Dims, Refusal, Value, reshaped, transposed
from .onnx_net import EXPORT, Handler, Net, Op, Result

MAX_RANK = 8


# ---------------------------------------------------------------------------------------------- moving samples


def _reshape(net: Net, op: Op) -> Result:
    x = op.value(moved=True)
    wanted = op.listed("shape", 1)
    if wanted is None or len(wanted) > MAX_RANK or wanted.count(-1) > 1:
        raise Refusal("its shape is missing, or has too many dimensions", EXPORT)
    keep = not op.integer("allowzero", 0)
    dims = [x.dims[at] if keep and size == 0 and at < len(x.dims) else size for at, size in enumerate(wanted)]
    if -1 in dims:
        known = -math.prod(dims)
        dims[dims.index(-1)] = x.size // known if known > 0 and x.size % known == 0 else 0
    if any(size < 1 for size in dims):
        raise Refusal(f"{x.size} samples cannot be {list(wanted)}", "keep the number of samples, and a batch of 1")
    return reshaped(x, dims)


def _flatten(net: Net, op: Op) -> Result:
    x = op.value(moved=True)
    axis = op.integer("axis", 1)
    rank = len(x.axes)
    axis = axis + rank if axis < 0 else axis
    if not 0 <= axis <= rank:
        raise CompileError(op.source, f"axis must be 0 to {rank}, not {axis}", "export the model again")
    return reshaped(x, (math.prod(x.dims[:axis]), math.prod(x.dims[axis:])))


def _squeeze(net: Net, op: Op) -> Result:
    x = op.value(moved=True)
    axes = op.listed("axes", 1)
    dropped = op.axes(axes, len(x.axes)) if axes is not None else tuple(at for at, axis in enumerate(x.axes) if not axis)
    if any(x.axes[at] for at in dropped):
        raise CompileError(op.source, f"only axes of size 1 can be squeezed, not {list(dropped)}", "export the model again")
    return replace(x, axes=tuple(axis for at, axis in enumerate(x.axes) if at not in dropped))


def _unsqueeze(net: Net, op: Op) -> Result:
    x = op.value(moved=True)
    axes = op.listed("axes", 1) or ()
    rank = len(x.axes) + len(axes)
    if rank > MAX_RANK:
        raise Refusal(f"tensors of {rank} dimensions are not supported", f"use at most {MAX_RANK}")
    added = op.axes(axes, rank)
    rest = iter(x.axes)
    return replace(x, axes=tuple(() if at in added else next(rest) for at in range(rank)))


def _transpose(net: Net, op: Op) -> Result:
    x = op.value(moved=True)
    return transposed(x, op.integers("perm") or tuple(reversed(range(len(x.axes)))))


def _depth_to_space(net: Net, op: Op) -> Result:
    return _blocks(net, op, DepthToSpace)


def _space_to_depth(net: Net, op: Op) -> Result:
    return _blocks(net, op, SpaceToDepth)


def _blocks(net: Net, op: Op, kind: type[DepthToSpace] | type[SpaceToDepth]) -> Result:
    x, rank = net.spatial(op, op.value())
    orders: dict[str, DepthOrder] = {"DCR": "DCR", "CRD": "CRD"}
    mode, block = op.text("mode", "DCR"), op.integer("blocksize", 0)
    if rank != 4 or mode not in orders:
        raise Refusal("it must be on N,C,H,W, in mode DCR or CRD", "use one of them")
    return net.map(net.emit(op, kind, [x.tensor], block=(block, block), order=orders[mode]), 4)


def _concat(net: Net, op: Op) -> Result:
    values = [op.value(index) for index in range(len(op.inputs))]
    (axis,) = op.axes((op.integer("axis", 1),), len(values[0].axes))
    if len(values) == 1:
        return values[0]
    if len({len(value.axes) for value in values}) > 1:
        raise CompileError(op.source, "its inputs must have one number of dimensions", "export the model again")
    images, places = zip(*(net.oriented(op, value) for value in values), strict=True)
    if len(set(places)) > 1 or places[0][axis] != min(1, len(values[0].axes) - 1):
        raise Refusal("only channels can be joined", "concatenate along axis 1")
    tensor = net.emit(op, Concat, [image.tensor for image in images])
    return transposed(net.map(tensor, len(values[0].axes)), places[0])


def _split(net: Net, op: Op) -> Result:
    value = op.value()
    (axis,) = op.axes((op.integer("axis", 0),), len(value.axes))
    size = value.dims[axis]
    sizes = op.listed("split", 1)
    if sizes is None:
        part = -(-size // max(op.outputs, 1))
        sizes = (*(part,) * (op.outputs - 1), size - part * (op.outputs - 1))
    if sum(sizes) != size or len(sizes) != op.outputs or min(sizes) < 1:
        raise CompileError(op.source, f"{size} cannot be split into {list(sizes)[:8]}", "let the parts add up")
    starts = np.cumsum((0, *sizes)).tolist()
    return [_sliced(net, op, value, {axis: (start, start + part, 1)}) for start, part in zip(starts, sizes, strict=False)]


def _slice(net: Net, op: Op) -> Result:
    value = op.value()
    rank = len(value.axes)
    starts, ends = op.listed("starts", 1), op.listed("ends", 2)
    if starts is None or ends is None:
        raise Refusal("its starts or ends are missing", EXPORT)
    axes = op.listed("axes", 3)
    axes = op.axes(tuple(range(len(starts))) if axes is None else axes, rank)
    steps = op.list(4) or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise CompileError(op.source, "starts, ends, axes and steps must be as many, no step 0", "export the model again")
    ranges = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        span = range(*slice(start, end, step).indices(value.dims[axis]))
        if step < 0 and len(span) > 1:
            raise Refusal("it runs backwards", "use positive steps")
        if not span:
            raise CompileError(op.source, f"nothing is left of axis {axis}", "let start be below end")
        ranges[axis] = (span[0], span[-1] + 1, max(step, 1))
    return _sliced(net, op, value, ranges)


def _sliced(net: Net, op: Op, value: Value, ranges: Mapping[int, tuple[int, int, int]]) -> Value:
    """Some of the rows, columns and channels: start, stop and step by axis."""
    whole = {
        axis: (start, stop, step)
        for axis, (start, stop, step) in ranges.items()
        if (start, stop, step) != (0, value.dims[axis], 1)
    }
    if not whole:
        return value
    x, places = net.oriented(op, value)
    rank, shape, tensor = len(value.axes), net.shape(x), x.tensor
    kept = {places[axis]: span for axis, span in whole.items()}
    start, stop, step = kept.pop(min(1, rank - 1), (0, shape[2], 1))
    cuts = [kept.get(2, (0, shape[0], 1)), kept.get(3, (0, shape[1], 1))]
    if (start, stop) != (0, shape[2]) or step > 1:
        tensor = _channels(net, op, tensor, range(start, stop, step), "channels" if kept else "")
    tensor = _subsampled(net, op, tensor, cuts)
    return transposed(net.map(tensor, rank), places)


def _channels(net: Net, op: Op, tensor: str, kept: range, part: str) -> str:
    if kept.step == 1:
        return net.emit(op, Slice, [tensor], part=part, start=kept.start, stop=kept.stop)
    channels = net.builder.shapes[tensor][2]
    if len(kept) * channels > MAX_ELEMENTS >> 4:
        raise Refusal(f"it takes every n-th of {channels} channels", "use step 1")
    w = np.zeros((len(kept), channels))
    w[range(len(kept)), kept] = 1.0
    return net.emit(op, Conv2D, [tensor], {"w": w[None, None, :, None, None], "b": np.zeros((1, 1, len(kept)))}, part)


def _subsampled(net: Net, op: Op, tensor: str, cuts: Sequence[tuple[int, int, int]]) -> str:
    """Every step-th row and column from start to stop: a crop, and a 1×1 pool with a stride."""
    rows, cols, _ = net.builder.shapes[tensor]
    (top, bottom, high), (left, right, wide) = cuts
    strided = (high, wide) != (1, 1)
    cropping = (top, rows - bottom), (left, cols - right)
    tensor = net.cropped(op, tensor, cropping, "crop" if strided else "")
    return net.emit(op, MaxPool, [tensor], kernel=(1, 1), stride=(high, wide)) if strided else tensor


def _pad(net: Net, op: Op) -> Result:
    value = op.value()
    rank = len(value.axes)
    if op.text("mode", "constant") != "constant":
        raise Refusal(f"padding by {op.text('mode', '')!r} is not supported", "pad with a constant")
    stated = op.listed("pads", 1)
    fill = op.scalar(2) if op.version >= 11 else op.number("value", 0.0)
    fill = 0.0 if fill is None else fill
    axes = op.list(3)
    axes = op.axes(tuple(range(rank)) if axes is None else axes, rank)
    if stated is None or len(stated) != 2 * len(axes) or not all(abs(pad) <= MAX_STEP for pad in stated):
        raise CompileError(op.source, f"pads must be {2 * len(axes)} numbers to ±{MAX_STEP}", "export the model again")
    if not abs(fill) <= LARGEST:
        raise Refusal(f"its value {fill:g} is not finite", "pad with a finite constant")
    x, places = net.oriented(op, value)
    pads = {places[axis]: (stated[at], stated[at + len(axes)]) for at, axis in enumerate(axes)}
    if rank > 1 and pads.get(0, (0, 0)) != (0, 0):
        raise Refusal("it pads the batch", "pad rows, columns or channels")
    tensor = _padded_channels(net, op, x.tensor, pads.get(min(1, rank - 1), (0, 0)), fill)
    edges = pads.get(2, (0, 0)), pads.get(3, (0, 0))
    outer, inner = (tuple((max(sign * a, 0), max(sign * b, 0)) for a, b in edges) for sign in (1, -1))
    tensor = net.cropped(op, tensor, (inner[0], inner[1]), "crop")
    if any(map(any, outer)):
        tensor = net.emit(op, Pad, [tensor], padding=outer, value=fill)
    return _result(x, tensor, net, rank, places)


def _result(x: Value, tensor: str, net: Net, rank: int, places: Dims) -> Value:
    return transposed(x if tensor == x.tensor else net.map(tensor, rank), places)


def _padded_channels(net: Net, op: Op, tensor: str, pads: Pair, fill: float) -> str:
    """More channels that hold a constant, or fewer: a 1×1 convolution with a 1 for each channel that stays."""
    if pads == (0, 0):
        return tensor
    channels = net.builder.shapes[tensor][2]
    outputs = channels + sum(pads)
    if outputs < 1 or outputs * channels > MAX_ELEMENTS >> 4:
        raise Refusal(f"{channels} channels cannot become {outputs}", "pad less")
    w, b = np.eye(outputs, channels, -pads[0]), np.full(outputs, fill)
    b[w.any(axis=1)] = 0.0
    return net.emit(op, Conv2D, [tensor], {"w": w[None, None, :, None, None], "b": b[None, None]}, "channels")


# -------------------------------------------------------------------------------------------------------- resize


def _resize(net: Net, op: Op) -> Result:
    """Nearest neighbour where it repeats each sample an integer number of times, or takes every n-th."""
    value = op.value()
    rank = len(value.axes)
    if op.text("mode", "nearest") not in ("nearest",):
        raise Refusal(f"interpolation {op.text('mode', '')!r} is not supported", "use mode = nearest with integer factors")
    if op.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refusal("it keeps the aspect ratio", "state the exact sizes")
    old = op.kind == "Upsample" or op.version < 11
    scales = op.attributes.get("scales") if op.kind == "Upsample" and op.version < 9 else op.reals(1 if old else 2)
    sizes = None if old else op.list(3)
    axes = op.integers("axes")
    axes = op.axes(tuple(range(rank)) if axes is None else axes, rank)
    ratios = dict.fromkeys(range(rank), 1.0)
    dims = list(value.dims)
    if scales is not None and len(scales):
        factors = [float(item) for item in np.asarray(scales, np.float64).reshape(-1)]
        if len(factors) != len(axes) or not all(0 < item <= MAX_STEP for item in factors):
            raise CompileError(op.source, f"scales must be {len(axes)} positive numbers", "export the model again")
        ratios |= dict(zip(axes, factors, strict=True))
        dims = [math.floor(size * ratios[at] + 1e-9) for at, size in enumerate(dims)]
    elif sizes is not None and len(sizes) == len(axes):
        for axis, size in zip(axes, sizes, strict=True):
            ratios[axis] = size / dims[axis]
            dims[axis] = size
    else:
        raise Refusal("its scales or sizes are missing", EXPORT)
    if not all(1 <= size <= MAX_STEP for size in dims):
        raise CompileError(op.source, f"an output of {dims} is not possible", "check scales and sizes")
    x, places = net.oriented(op, value)
    new = {places[at]: size for at, size in enumerate(dims)}
    ratio = {places[at]: item for at, item in ratios.items()}
    return _result(x, _resized(net, op, x, new, ratio, old), net, rank, places)


def _resized(net: Net, op: Op, x: Value, new: Mapping[int, int], ratio: Mapping[int, float], old: bool) -> str:
    spatial_axes = [at for at in (2, 3) if at < len(x.axes)]
    if any(new[at] != x.dims[at] for at in new if at not in spatial_axes):
        raise Refusal("it resizes channels", "resize rows and columns")
    maps = [_nearest(op, x.dims[at], new[at], ratio[at], old) for at in spatial_axes]
    maps += [[0]] * (2 - len(maps))
    size = net.shape(x)[:2]
    factor = tuple(_repeats(source, have) for source, have in zip(maps, size, strict=True))
    if all(factor):
        return x.tensor if factor == (1, 1) else net.emit(op, Upsample, [x.tensor], factor=factor)
    cuts = [_progression(source) for source in maps]
    if any(cut is None for cut in cuts):
        raise Refusal("it repeats some samples more often than others", "use nearest, an integer factor, asymmetric and floor")
    return _subsampled(net, op, x.tensor, [cut for cut in cuts if cut is not None])


def _repeats(source: Sequence[int], have: int) -> int:
    """How often each of ``have`` samples is repeated; 0 where not all are, in order and alike."""
    factor = len(source) // have
    return factor if factor and list(source) == [at // factor for at in range(have * factor)] else 0


def _progression(source: Sequence[int]) -> tuple[int, int, int] | None:
    """Start, stop and step of indices that rise evenly."""
    step = source[1] - source[0] if len(source) > 1 else 1
    even = step >= 1 and list(source) == list(range(source[0], source[-1] + 1, step))
    return (source[0], source[-1] + 1, step) if even else None


def _nearest(op: Op, have: int, want: int, ratio: float, old: bool) -> list[int]:
    """Which sample each output reads: the formulas of ONNX's Resize, in float32 as onnxruntime computes them."""
    mode = "asymmetric" if old else op.text("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else op.text("nearest_mode", "round_prefer_floor")
    at, scale = np.arange(want, dtype=np.float32), np.float32(ratio)
    half = np.float32(0.5)
    if mode == "asymmetric":
        x = at / scale
    elif mode == "half_pixel" or (mode == "pytorch_half_pixel" and want > 1):
        x = (at + half) / scale - half
    elif mode == "pytorch_half_pixel":
        x = at * 0
    elif mode == "half_pixel_symmetric":
        centre = np.float32(have / 2) * (1 - np.float32(want) / (scale * np.float32(have)))
        x = centre + (at + half) / scale - half
    elif mode == "tf_half_pixel_for_nn":
        x = (at + half) / scale
    elif mode == "align_corners":
        x = at * np.float32((have - 1) / (want - 1)) if want > 1 else at * 0
    else:
        raise Refusal(f"coordinate mode {mode!r} is not supported", "use asymmetric, with nearest_mode = floor")
    roundings: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "round_prefer_floor": lambda x: np.ceil(x - half),
        "round_prefer_ceil": lambda x: np.floor(x + half),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    if rounding not in roundings:
        raise CompileError(op.source, f"nearest_mode must be one of {', '.join(roundings)}", "export the model again")
    return [int(item) for item in np.clip(roundings[rounding](x), 0, have - 1)]


MOVES: Mapping[str, Handler] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Flatten": _flatten,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
