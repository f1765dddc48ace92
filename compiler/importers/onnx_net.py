"""A float network of ONNX or PyTorch in the making: its values, what a node may ask of them, and what puts them in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CompileError, quote
from ..graph import (
    Array,
    ChannelShuffle,
    Conv2D,
    Crop,
    DepthOrder,
    DepthToSpace,
    Dropout,
    Flatten,
    Input,
    Node,
    Padding,
    Pair,
    Reshape,
    Shape,
    Softmax,
    SpaceToDepth,
    Upsample,
)
from ..numbers import RealArray
from ..verify import MAX_ELEMENTS
from .common import Builder, finite, nonzero
from .onnx_layout import Dims, Factors, Refusal, Value, image_order, in_order, merged, product, same_layout, value_of

Constant = NDArray[Any]
Tensor = Value | Constant

Result = Tensor | Sequence[Tensor]
Handler = Callable[["Net", "Op"], Result]
"""What makes nodes of an ONNX node; a sequence holds one value an output."""

MAX_SPREAD = 1 << 20
"""Samples up to which a constant may have a number of its own for each."""

EXPORT = "export the model with constants here"


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """An ONNX node: its inputs, and its attributes read by kind.

    *Raises* ``Refusal`` where an input is not of the kind asked for, ``CompileError`` where an attribute is not.
    """

    kind: str
    label: str
    source: str
    inputs: tuple[Tensor | None, ...]
    attributes: Mapping[str, Any]
    outputs: int
    version: int

    def value(self, index: int = 0, moved: bool = False) -> Value:
        """An input that depends on the network's. Only what merely moves samples may follow a softmax."""
        tensor = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(tensor, Value):
            raise Refusal(f"input {index} is constant or missing", "let it depend on the network's input")
        if tensor.head and not moved:
            raise Refusal("it follows a softmax", "let softmax be the last operation: the host computes it")
        return tensor

    def constant(self, index: int) -> Constant | None:
        """An input that does not depend on the network's; ``None`` where it is left out."""
        tensor = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(tensor, Value):
            raise Refusal(f"input {index} is not constant", EXPORT)
        return tensor

    def reals(self, index: int) -> RealArray | None:
        """A constant input as finite float64."""
        array = self.constant(index)
        return None if array is None else finite(self.source, f"input {index}", array)

    def weights(self, index: int) -> RealArray:
        """A constant input that must be there, as finite float64."""
        array = self.reals(index)
        if array is None:
            raise Refusal(f"input {index} is missing", EXPORT)
        return array

    def scalar(self, index: int) -> float | None:
        """A constant input of one number; it may be infinite."""
        array = self.constant(index)
        if array is None:
            return None
        if array.size != 1 or array.dtype.kind not in "iuf" or np.isnan(array).any():
            raise Refusal(f"input {index} must be one number, not {quote(array.reshape(-1)[:8].tolist())}", EXPORT)
        return float(array.reshape(())[()])

    def list(self, index: int) -> Dims | None:
        """A constant input of whole numbers."""
        array = self.constant(index)
        if array is None:
            return None
        if array.dtype.kind not in "iu" or array.ndim > 1 or array.size > MAX_SPREAD:
            raise CompileError(self.source, f"input {index} must be a list of integers", EXPORT)
        return tuple(int(item) for item in array.reshape(-1))

    def integer(self, name: str, default: int) -> int:
        value = self.attributes.get(name, default)
        if type(value) is not int:
            raise CompileError(self.source, f"{name} must be an integer, not {quote(value)}", "export the model again")
        return value

    def integers(self, name: str) -> Dims | None:
        value = self.attributes.get(name)
        if value is not None and not (isinstance(value, list) and all(type(item) is int for item in value)):
            raise CompileError(self.source, f"{name} must be integers, not {quote(value)}", "export the model again")
        return None if value is None else tuple(value)

    def number(self, name: str, default: float) -> float:
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise CompileError(self.source, f"{name} must be a number, not {quote(value)}", "export the model again")
        return float(finite(self.source, name, np.asarray(value))[()])

    def text(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default)
        if not isinstance(value, str):
            raise CompileError(self.source, f"{name} must be a string, not {quote(value)}", "export the model again")
        return value

    def axes(self, axes: Dims | None, rank: int) -> Dims:
        """Axes counted from 0, all different."""
        counted = tuple(axis + rank if axis < 0 else axis for axis in axes or ())
        if not all(0 <= axis < rank for axis in counted) or len(set(counted)) != len(counted):
            message = f"axes must be different ones of {rank}, not {list(axes or ())[:8]}"
            raise CompileError(self.source, message, "export the model again")
        return counted

    def listed(self, name: str, index: int) -> Dims | None:
        """Whole numbers that older opsets hold in an attribute and newer ones in an input."""
        return self.list(index) if len(self.inputs) > index and self.inputs[index] is not None else self.integers(name)


@dataclass(slots=True)
class Net:
    """The graph in the making, and how a value gets the order that an operator needs."""

    builder: Builder
    settled: dict[Value, Value] = field(default_factory=dict)

    def emit(
        self,
        op: Op,
        kind: type[Node],
        inputs: Sequence[str],
        arrays: Mapping[str, Array] | None = None,
        part: str = "",
        **fields: Any,
    ) -> str:
        """A node for ``op``, its name that of the operation, and ``part`` where it is only a part of it."""
        name = self.builder.fresh(f"{op.label}_{part}" if part else op.label)
        node = kind(name=name, inputs=tuple(inputs), source=op.source, **fields)
        return self.builder.add(node, **(arrays or {}))

    def made(self, tensor: str) -> Node:
        """The node that makes a tensor."""
        return self.builder.made[tensor]

    def scales(self, node: Node, scale: float, bias: float) -> bool:
        """Whether a node is ``scale · x + bias``, as far as float32 tells."""
        arrays = (self.builder.weights.get(f"{node.name}.{part}", np.array(np.inf)) for part in ("scale", "bias"))
        return all(np.abs(array - number).max() <= 1e-6 for array, number in zip(arrays, (scale, bias), strict=True))

    def shape(self, value: Value) -> Shape:
        return self.builder.shapes[value.tensor]

    def shaped(self, op: Op, value: Value, shape: Shape) -> Value:
        """The same value, its tensor cut into other rows, columns and channels."""
        if self.shape(value) == shape:
            return value
        if shape[:2] == (1, 1):
            return replace(value, tensor=self.emit(op, Flatten, [value.tensor], part="flatten"))
        return replace(value, tensor=self.emit(op, Reshape, [value.tensor], part="reshape", shape=shape))

    def image(self, op: Op, value: Value) -> Value:
        """The value as a map: rows, columns and channels of the graph are those of ``N,C,H,W``."""
        if value not in self.settled:
            self.settled[value] = self._image(op, value)
        return self.settled[value]

    def _image(self, op: Op, value: Value) -> Value:
        rank = len(value.axes)
        if not 1 <= rank <= 4:
            raise Refusal(f"tensors of {rank} dimensions are not supported here", "use at most N,C,H,W")
        if rank > 1 and value.axes[0]:
            raise Refusal(f"its first dimension is {value.dims[0]}, not the batch of 1", "keep the batch in front")
        if not in_order(value, image_order(rank)):
            value = self._moved(op, merged(value))
        return self.shaped(op, value, image_shape(value.dims))

    def spatial(self, op: Op, value: Value) -> tuple[Value, int]:
        """The value as a map with rows (and columns), and its rank."""
        x = self.image(op, value)
        if len(x.axes) < 3:
            raise Refusal("its input is no map", "use N,C,L or N,C,H,W")
        return x, len(x.axes)

    def cropped(self, op: Op, tensor: str, cropping: Padding, part: str = "") -> str:
        """The tensor less some rows and columns; itself where none are."""
        return self.emit(op, Crop, [tensor], part=part, cropping=cropping) if nonzero(cropping) else tensor

    def oriented(self, op: Op, value: Value) -> tuple[Value, Dims]:
        """The value as a map, and which axis of ``N,C,H,W`` each of its own is: channels may stand last."""
        rank = len(value.axes)
        last = (0, rank - 1, *range(1, rank - 1))
        if rank in (3, 4) and not in_order(value, image_order(rank)) and in_order(value, range(rank)):
            return self.image(op, replace(value, axes=tuple(value.axes[axis] for axis in last))), tuple(
                np.argsort(last).tolist()
            )
        return self.image(op, value), tuple(range(rank))

    def _moved(self, op: Op, value: Value) -> Value:
        """Put samples in order by the operators that do: channel shuffle, depth to space, space to depth."""
        channels, rows, cols = (*value.axes[1:], (), ())[:3] if len(value.axes) > 1 else (value.axes[0], (), ())
        target = replace(value, stream=rows + cols + channels)
        height, width = product(rows), product(cols)
        if len(channels) == 2 and value.stream == (*rows, *cols, channels[1], channels[0]):
            source = self.shaped(op, value, (height, width, product(channels)))
            tensor = self.emit(op, ChannelShuffle, [source.tensor], part="shuffle", groups=channels[1].size)
            return replace(target, tensor=tensor)
        for kind, block, order, shape in (
            *_to_space(value.stream, channels, rows, cols),
            *_to_depth(value.stream, channels, rows, cols),
        ):
            source = self.shaped(op, value, shape)
            tensor = self.emit(op, kind, [source.tensor], part="blocks", block=block, order=order)
            return replace(target, tensor=tensor)
        raise Refusal(
            f"it needs the samples of {'×'.join(map(str, value.dims))} in another order than they stream in",
            "leave transpositions out, or flatten straight into a dense layer",
        )

    def spread(self, op: Op, value: Value, array: RealArray) -> tuple[Value, RealArray]:
        """The value, and a constant that is broadcast onto it as one number a channel of its tensor ``(C,)``."""
        value = replace(value, axes=((),) * (array.ndim - len(value.axes)) + value.axes)
        sizes = (1,) * (len(value.axes) - array.ndim) + array.shape
        if any(size not in (1, dim) for size, dim in zip(sizes, value.dims, strict=True)):
            raise Refusal(f"a constant of {list(array.shape)} does not fit onto {list(value.dims)}", "broadcast constants only")
        used = [factor for size, axis in zip(sizes, value.axes, strict=True) if size > 1 for factor in axis]
        inner = value.stream[min((value.stream.index(factor) for factor in used), default=len(value.stream)) :]
        order = [used.index(factor) for factor in inner if factor in used]
        values = array.reshape([factor.size for factor in used]).transpose(order)
        values = values.reshape([factor.size if factor in used else 1 for factor in inner])
        vector = np.broadcast_to(values, [factor.size for factor in inner]).reshape(-1)
        channels = self.shape(value)[2] if self.shape(value)[2] % vector.size == 0 else value.size
        if channels > MAX_SPREAD:
            raise Refusal(f"its constant spreads over {channels} numbers", "use one number a channel")
        if channels != self.shape(value)[2]:
            value = self.shaped(op, value, (1, 1, channels))
        return value, np.tile(vector, channels // vector.size).astype(np.float64)

    def aligned(self, op: Op, values: Sequence[Value]) -> list[Value]:
        """Values in one order and of one size, sizes of 1 repeated."""
        rank = max(len(value.axes) for value in values)
        values = [replace(value, axes=((),) * (rank - len(value.axes)) + value.axes) for value in values]
        first = values[0]
        if all(same_layout(first, value) for value in values):
            return [self.shaped(op, value, self.shape(first)) for value in values]
        images = [self.image(op, value) for value in values]
        dims = tuple(max(sizes) for sizes in zip(*(value.dims for value in images), strict=True))
        return [self._repeated(op, value, dims) for value in images]

    def _repeated(self, op: Op, value: Value, dims: Dims) -> Value:
        if any(size not in (1, dim) for size, dim in zip(value.dims, dims, strict=True)):
            raise Refusal(f"{list(value.dims)} does not fit onto {list(dims)}", "give the branches the same shape")
        height, width, channels = image_shape(dims)
        tensor = value.tensor
        if self.builder.shapes[tensor][2] != channels:
            arrays = {"w": np.ones((1, 1, channels, 1, 1, 1)), "b": np.zeros((1, 1, channels))}
            tensor = self.emit(op, Conv2D, [tensor], arrays, part="repeat")
        if self.builder.shapes[tensor] != (height, width, channels):
            rows, cols, _ = self.builder.shapes[tensor]
            tensor = self.emit(op, Upsample, [tensor], part="repeat", factor=(height // rows, width // cols))
        return value if tensor == value.tensor else value_of(tensor, dims, image_order(len(dims)))

    def stand_in(self, name: str, dims: Dims) -> Value | None:
        """A value of ``dims`` that comes from nowhere; ``None`` for what no tensor can have."""
        if len(dims) > 4 or min(dims) < 1 or (len(dims) > 1 and dims[0] != 1) or math.prod(dims) > MAX_ELEMENTS:
            return None
        node = Input(name=self.builder.fresh(name), inputs=(), source="", shape=image_shape(dims), low=0.0, high=1.0)
        return value_of(self.builder.add(node), dims, image_order(len(dims)))

    def output(self, op: Op, value: Value) -> tuple[str, Softmax | None]:
        """The tensor of an output, in the order in which it leaves, and its head."""
        rank, plain = len(value.axes), replace(value, head=None)
        if (rank <= 4 and in_order(plain, image_order(rank))) or not in_order(plain, range(rank)):
            try:
                plain = self.image(op, plain)
            except Refusal as refusal:
                raise CompileError(op.source, refusal.what, refusal.nearest) from refusal
        tensor = plain.tensor
        if value.head or tensor == self.builder.nodes[0].name:  # a tensor of its own
            tensor = self.emit(op, Dropout, [tensor])
        return tensor, value.head

    def map(self, tensor: str, rank: int) -> Value:
        """The tensor of the graph as an ``N,C,H,W`` value (or ``N,C,L``, ``N,C``, ``C``)."""
        height, width, channels = self.builder.shapes[tensor]
        dims = {1: (channels,), 2: (1, channels), 3: (1, channels, height), 4: (1, channels, height, width)}[rank]
        return value_of(tensor, dims, image_order(rank))


def image_shape(dims: Dims) -> Shape:
    """Rows, columns and channels of a tensor ``N,C,H,W``, ``N,C,L``, ``N,C`` or ``C``."""
    channels, height, width = (*dims[1:], 1, 1)[:3] if len(dims) > 1 else (dims[0], 1, 1)
    return height, width, channels


Move = tuple[type[Node], Pair, DepthOrder, Shape]
"""The operator, its block and order, and the shape of what it reads."""


def _to_space(stream: Factors, channels: Factors, rows: Factors, cols: Factors) -> list[Move]:
    """Rows are outer rows and the rows of a block, which stand among the channels in the stream; columns likewise."""
    moves: list[Move] = []
    for high in range(len(rows) + 1):
        for wide in range(len(cols) + 1):
            outer, r, s = rows[:high] + cols[:wide], rows[high:], cols[wide:]
            block = product(r), product(s)
            shape = product(rows[:high]), product(cols[:wide]), block[0] * block[1] * product(channels)
            if stream == outer + channels + r + s:
                moves.append((DepthToSpace, block, "CRD", shape))
            elif stream == outer + r + s + channels:
                moves.append((DepthToSpace, block, "DCR", shape))
    return moves


def _to_depth(stream: Factors, channels: Factors, rows: Factors, cols: Factors) -> list[Move]:
    """Channels are those of a pixel and the rows and columns of a block, which stand among the pixels in the stream."""
    moves: list[Move] = []
    for first in range(len(channels) + 1):
        for second in range(first, len(channels) + 1):
            parts: tuple[Factors, Factors, Factors] = channels[:first], channels[first:second], channels[second:]
            orders: tuple[tuple[DepthOrder, Factors, Factors, Factors], ...] = (
                ("DCR", parts[0], parts[1], parts[2]),
                ("CRD", parts[1], parts[2], parts[0]),
            )
            for order, r, s, c in orders:
                if stream == rows + r + cols + s + c:
                    shape = product(rows + r), product(cols + s), product(c)
                    moves.append((SpaceToDepth, (product(r), product(s)), order, shape))
    return moves
