"""What only moves samples in quantized ONNX models, or picks one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ..graph import (
    ArgMax,
    Crop,
    DepthOrder,
    DepthToSpace,
    MaxPool,
    Pad,
    Pair,
    Slice,
    SpaceToDepth,
    Upsample,
)
from ..numbers import Format, RealArray
from . import ort_math
from .common import checked_size, spatial
from .onnx_layout import Refusal
from .quantized_layers import Layers
from .quantized_terms import (
    Layer,
    Op,
    Value,
)


class Moves(Layers):
    """Reshapes and transpositions are bookkeeping; the rest keeps its input's format."""

    def _op_Reshape(self, op: Op) -> None:
        value = self._value(op.inputs[0])
        wanted = [int(size) for size in self._constant(op.inputs[1]).ravel()]
        if not op.attributes.get("allowzero", 0):
            wanted = [value.dims[at] if size == 0 and at < len(value.dims) else size for at, size in enumerate(wanted)]
        total = math.prod(value.dims)
        if -1 in wanted:
            rest = math.prod(size for size in wanted if size != -1)
            wanted[wanted.index(-1)] = total // rest if rest > 0 else 0
        if min(wanted, default=0) < 1 or math.prod(wanted) != total:
            raise Refusal("its shape does not fit its input", "export again")
        self.terms[op.outputs[0]] = self._regrouped(value, tuple(wanted), op.where)

    def _op_Flatten(self, op: Op) -> None:
        value = self._value(op.inputs[0])
        axis = int(op.attributes.get("axis", 1)) % (len(value.dims) + 1)
        dims = (math.prod(value.dims[:axis]), math.prod(value.dims[axis:]))
        self.terms[op.outputs[0]] = self._regrouped(value, dims, op.where)

    def _op_Squeeze(self, op: Op) -> None:
        value = self._value(op.inputs[0])
        axes = self._axes(op, len(value.dims)) or [at for at, size in enumerate(value.dims) if size == 1]
        dims = tuple(size for at, size in enumerate(value.dims) if at not in axes)
        self.terms[op.outputs[0]] = self._regrouped(value, dims, op.where)

    def _op_Unsqueeze(self, op: Op) -> None:
        value = self._value(op.inputs[0])
        added = self._constant(op.inputs[1]).size if len(op.inputs) > 1 else len(op.ints("axes"))
        axes = self._axes(op, len(value.dims) + added)
        dims = list(value.dims)
        for at in sorted(axes):
            dims.insert(at, 1)
        self.terms[op.outputs[0]] = self._regrouped(value, tuple(dims), op.where)

    def _axes(self, op: Op, rank: int) -> list[int]:
        given = op.ints("axes")
        if len(op.inputs) > 1 and op.inputs[1]:
            given = tuple(int(axis) for axis in self._constant(op.inputs[1]).ravel())
        return [axis % rank for axis in given]

    def _op_Transpose(self, op: Op) -> None:
        value = self._value(op.inputs[0])
        perm = op.ints("perm", range(len(value.dims))[::-1])
        if sorted(perm) != list(range(len(value.dims))):
            raise Refusal("its axes are no permutation", "export again")
        dims = tuple(value.dims[axis] for axis in perm)
        self.terms[op.outputs[0]] = replace(value, dims=dims, axes=tuple(value.axes[axis] for axis in perm))

    def _op_Slice(self, op: Op) -> None:
        value = self._map(self._value(op.inputs[0]), op.where)
        rank = len(value.dims)
        if len(op.inputs) > 1:
            arrays = [self._constant(name).ravel() if name else None for name in op.inputs[1:]]
            starts, ends = (np.asarray(array) for array in arrays[:2])
            axes = arrays[2] if len(arrays) > 2 and arrays[2] is not None else np.arange(len(starts))
            steps = arrays[3] if len(arrays) > 3 and arrays[3] is not None else np.ones(len(starts), dtype=np.int64)
        else:
            starts, ends = np.asarray(op.ints("starts")), np.asarray(op.ints("ends"))
            axes, steps = np.asarray(op.ints("axes", range(len(starts)))), np.ones(len(starts), dtype=np.int64)
        strides = dict.fromkeys(range(rank), 1) | {int(axis) % rank: int(step) for axis, step in zip(axes, steps, strict=True)}
        if min(strides.values()) < 1 or strides[0] != 1 or strides[1] != 1:
            raise Refusal("it goes backwards, or over some channels", "use steps from 1, along rows and columns")
        bounds = {axis: (0, size) for axis, size in enumerate(value.dims)}
        for start, end, axis in zip(starts, ends, axes, strict=True):
            first, stop, _ = slice(int(start), int(end)).indices(value.dims[int(axis) % rank])
            bounds[int(axis) % rank] = (first, stop)
        self._cut(op, value, bounds, 0)
        if any(step > 1 for step in strides.values()):
            self._thinned(op, (strides.get(2, 1), strides.get(3, 1)))

    def _thinned(self, op: Op, stride: Pair) -> None:
        """Every so many rows and columns: the maxima of single samples."""
        value = self._value(op.outputs[0])
        name = self.builder.fresh(f"{op.outputs[0]}_thin")
        node = MaxPool(name=name, inputs=(value.node,), source=op.where, kernel=(1, 1), stride=stride)
        self._moved(op, value, self.builder.add(node))

    def _cut(self, op: Op, value: Value, bounds: Mapping[int, Pair], at: int) -> None:
        """Rows, columns and channels ``first … stop − 1`` of each axis."""
        if any(stop <= first for first, stop in bounds.values()):
            raise Refusal("nothing is left", "slice less")
        node = value.node
        first, stop = bounds[1]
        if (first, stop) != (0, value.dims[1]):
            name = self.builder.fresh(op.outputs[at])
            node = self.builder.add(Slice(name=name, inputs=(node,), source=op.where, start=first, stop=stop))
        edges = [(bounds[axis][0], value.dims[axis] - bounds[axis][1]) for axis in range(2, len(value.dims))]
        cropping = (*edges, *[(0, 0)] * (2 - len(edges)))
        if any(map(any, cropping)):
            name = self.builder.fresh(op.outputs[at])
            node = self.builder.add(Crop(name=name, inputs=(node,), source=op.where, cropping=(cropping[0], cropping[1])))
        self._moved(op, value, node, at)

    def _op_Split(self, op: Op) -> None:
        value = self._map(self._value(op.inputs[0]), op.where)
        axis = int(op.attributes.get("axis", 0)) % len(value.dims)
        count = len(op.outputs)
        sizes = op.ints("split")
        if len(op.inputs) > 1 and op.inputs[1]:
            sizes = tuple(int(size) for size in self._constant(op.inputs[1]).ravel())
        if not sizes:
            part = -(-value.dims[axis] // count)
            sizes = (*[part] * (count - 1), value.dims[axis] - part * (count - 1))
        if len(sizes) != count or sum(sizes) != value.dims[axis] or min(sizes) < 1:
            raise Refusal("its parts do not fit its input", "export again")
        first = 0
        for at, size in enumerate(sizes):
            bounds = {other: (0, whole) for other, whole in enumerate(value.dims)} | {axis: (first, first + size)}
            self._cut(op, value, bounds, at)
            first += size

    def _op_Resize(self, op: Op) -> None:
        value = self._map(self._settled(op.inputs[0]), op.where)
        if op.text("mode", "nearest") != "nearest":
            raise Refusal("it interpolates", "use mode nearest")
        rank = len(value.dims)
        scales = [1.0] * rank
        names = op.inputs[1:] if op.kind == "Upsample" or self.opset < 11 else op.inputs[2:]
        if names and names[0] and self._constant(names[0]).size:
            scales = [float(scale) for scale in self._constant(names[0]).ravel()]
        elif len(names) > 1 and names[1]:
            scales = [int(new) / old for new, old in zip(self._constant(names[1]).ravel(), value.dims, strict=True)]
        elif "scales" in op.attributes:
            scales = [float(scale) for scale in op.attributes["scales"]]
        if op.ints("axes") or len(scales) != rank or any(s < 1 or s != int(s) for s in scales) or scales[:2] != [1.0, 1.0]:
            raise Refusal("its factors are not whole numbers for rows and columns", "enlarge by whole numbers")
        factor = tuple(int(scale) for scale in scales[2:])
        old = self.opset < 11
        mode = op.text("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
        rounding = op.text("nearest_mode", "floor" if old else "round_prefer_floor")
        for size, scale in zip(value.dims[2:], factor, strict=True):
            checked_size(op.where, "the output", (size, scale))
            if not _repeats(size, scale, mode, rounding):
                raise Refusal(f"{mode} and {rounding} do not repeat each sample alike", "use asymmetric and floor")
        name = self.builder.fresh(op.outputs[0])
        node = Upsample(name=name, inputs=(value.node,), source=op.where, factor=spatial(factor))
        self._moved(op, value, self.builder.add(node))

    _op_Upsample = _op_Resize

    def _op_Pad(self, op: Op) -> None:
        value = self._map(self._settled(op.inputs[0]), op.where)
        if op.text("mode", "constant") != "constant":
            raise Refusal(f"it pads by mode {op.text('mode', '')}", "pad with a constant")
        rank = len(value.dims)
        pads = op.ints("pads") or tuple(int(size) for size in self._constant(op.inputs[1]).ravel())
        if len(op.inputs) > 3 and op.inputs[3]:
            axes = [int(axis) % rank for axis in self._constant(op.inputs[3]).ravel()]
            every = [0] * (2 * rank)
            for at, axis in enumerate(axes):
                every[axis], every[axis + rank] = pads[at], pads[at + len(axes)]
            pads = tuple(every)
        if len(pads) != 2 * rank or min(pads) < 0 or pads[0] or pads[rank]:
            raise Refusal("it pads the batch, or by negative numbers", "pad rows, columns and channels")
        raw = 0 if not value.real else value.format.zero_point
        if len(op.inputs) > 2 and op.inputs[2]:
            fill = self._constant(op.inputs[2])
            if value.real:
                steps = ort_math.quantize(fill.astype(np.float32), value.format)
                if np.any(ort_math.dequantize(steps, value.format) != fill):
                    raise Refusal("it pads with a number that no integer stands for", "pad with zero")
                raw = int(steps.ravel()[0])
            else:
                raw = int(fill.ravel()[0])
        edges = [(pads[axis], pads[axis + rank]) for axis in range(2, rank)]
        padding = (*edges, *[(0, 0)] * (2 - len(edges)))
        if pads[1] or pads[rank + 1]:
            value = self._wider(op, value, (pads[1], pads[rank + 1]), raw)
        if not any(map(any, padding)):
            self.terms[op.outputs[0]] = value
            return
        node = Pad(
            name=self.builder.fresh(op.outputs[0]), inputs=(value.node,), source=op.where, padding=(padding[0], padding[1]),
            value=float(value.format.dequantize(np.asarray(raw))),
        )  # fmt: skip
        self._moved(op, value, self.builder.add(node))

    def _wider(self, op: Op, value: Value, pads: Pair, raw: int) -> Value:
        """More channels, of real zeros: a convolution of 1×1 whose kernels are zeros and ones, and whose scale is one."""
        if raw != value.format.zero_point:
            raise Refusal("it pads channels with a number", "pad channels with zero")
        (before, after), channels = pads, value.dims[1]
        checked_size(op.where, "its kernel", (channels + before + after, channels))
        w_oi = np.eye(channels, dtype=np.int64)[:, None, None, :]
        w_ohwi = np.pad(w_oi, ((before, after), (0, 0), (0, 0), (0, 0)))
        dims = (1, len(w_ohwi), *value.dims[2:])
        layer = Layer(value, w_ohwi, np.ones(1, dtype=np.float32), dims, value.axes, "conv2d")
        zeros, ones = np.zeros(len(w_ohwi), dtype=np.int64), np.ones(len(w_ohwi))
        limits = value.format.min_raw, value.format.max_raw
        name = f"{op.outputs[0]}_channels" if op.outputs else "channels"
        node = self._conv_like(op, layer, name, value.format, limits, "float32", w_ohwi, zeros, ones)
        return replace(value, node=node, dims=dims)

    def _op_DepthToSpace(self, op: Op) -> None:
        value = self._map(self._value(op.inputs[0]), op.where)
        block = int(op.attributes["blocksize"])
        order: DepthOrder = "CRD" if op.text("mode", "DCR") == "CRD" else "DCR"
        name = self.builder.fresh(op.outputs[0])
        node = DepthToSpace(name=name, inputs=(value.node,), source=op.where, block=(block, block), order=order)
        self._moved(op, value, self.builder.add(node))

    def _op_SpaceToDepth(self, op: Op) -> None:
        value = self._map(self._value(op.inputs[0]), op.where)
        block = int(op.attributes["blocksize"])
        name = self.builder.fresh(op.outputs[0])
        node = SpaceToDepth(name=name, inputs=(value.node,), source=op.where, block=(block, block))
        self._moved(op, value, self.builder.add(node))

    def _op_ArgMax(self, op: Op) -> None:
        value = self._map(self._settled(op.inputs[0]), op.where)
        if int(op.attributes.get("axis", 0)) % len(value.dims) != 1 or op.attributes.get("select_last_index", 0):
            raise Refusal("it is not the first greatest channel", "use axis 1 and the first index")
        name = self.builder.fresh(op.outputs[0])
        node = self.builder.add(ArgMax(name=name, inputs=(value.node,), source=op.where))
        bits = Format(max((value.dims[1] - 1).bit_length(), 2), False, 1.0)
        dims = (1, 1, *value.dims[2:])
        made = replace(value, node=node, dims=dims, format=bits, real=False)
        keep = op.attributes.get("keepdims", 1)
        self.terms[op.outputs[0]] = made if keep else self._regrouped(made, (1, *dims[2:]), op.where)


def _repeats(size: int, factor: int, mode: str, rounding: str) -> bool:
    """Whether a nearest-neighbour rule reads sample ``⌊i / factor⌋`` for every ``i``."""
    i = np.arange(size * factor, dtype=np.float32)
    scale = np.float32(factor)
    if mode in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        at = (i + np.float32(0.5)) / scale - np.float32(0.5)
    elif mode == "asymmetric":
        at = i / scale
    else:
        return False
    rounds: Mapping[str, Callable[[RealArray], RealArray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    }
    if rounding not in rounds:
        return False
    read = np.clip(rounds[rounding](at.astype(np.float64)), 0, size - 1)
    return bool(np.array_equal(read, np.arange(size * factor) // factor))
