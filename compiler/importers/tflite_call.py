"""One operator of a TensorFlow Lite file while it is imported: what its rule reads, and how it adds nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import CompileError
from ..files import printable
from ..graph import Flatten, Node, Padding, Pair, Reshape, Shape, Softmax, same_padding, window_extent
from ..numbers import Format, IntArray, RealArray
from .common import Builder, checked_size, finite
from .tflite_file import Model, Operator, Tensor

__all__ = ["ITEM_BYTES", "MAX_NUMBERS", "Call", "Refused", "State", "feature_map", "tensor_format"]

MAX_NUMBERS = 1 << 23
"""Numbers of all arrays that are made, an array counting as often as it is read: 64 MiB as int64."""

DTYPES: Mapping[str, str] = {
    "FLOAT32": "<f4",
    "FLOAT16": "<f2",
    "INT8": "<i1",
    "UINT8": "<u1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
}
ITEM_BYTES: Mapping[str, int] = {kind: np.dtype(dtype).itemsize for kind, dtype in DTYPES.items()}


class Refused(Exception):
    """This operator cannot be imported: what is wrong with it, and the nearest thing that works."""

    def __init__(self, what: str, nearest: str) -> None:
        super().__init__(what, nearest)
        self.what = what
        self.nearest = nearest


@dataclass(slots=True)
class State:
    """What is known while the operators are read, one after the other.

    ``names`` are the graph's names of activations, ``constants`` the tensors that operators made of constants, ``refused``
    the tensors that no node makes, ``heads`` the softmaxes by the tensor they make, each with the name it reads.
    """

    model: Model
    builder: Builder
    real: bool
    names: dict[int, str] = field(default_factory=dict)
    constants: dict[int, RealArray] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    heads: dict[int, tuple[str, Softmax]] = field(default_factory=dict)
    numbers: int = 0

    def spend(self, source: str, shape: tuple[int, ...]) -> None:
        """Count an array that is about to be made.

        *Raises* ``CompileError`` when all together hold too many numbers.
        """
        self.numbers += math.prod(shape)
        if self.numbers > MAX_NUMBERS:
            raise CompileError(source, f"the network's arrays hold more than {MAX_NUMBERS} numbers", "make it smaller")


def feature_map(source: str, tensor: Tensor) -> Shape:
    """A tensor's shape as rows, columns and channels, without its batch.

    *Raises* `Refused` for another batch than one and for more than four axes, ``CompileError`` for sizes below one.
    """
    shape = checked_size(source, f"tensor {printable(tensor.name)}", tensor.shape)
    if len(shape) > 4:
        raise Refused(f"its tensor {printable(tensor.name)} has {len(shape)} axes", "use tensors of 2 to 4 axes")
    if len(shape) > 1 and shape[0] != 1:
        raise Refused(f"its batch is {shape[0]}", "export the network with batch 1")
    match shape:
        case (_, height, width, channels):
            return height, width, channels
        case (_, height, channels):
            return height, 1, channels
    return 1, 1, math.prod(shape)


def tensor_format(source: str, tensor: Tensor) -> Format:
    """The format of an 8-bit activation.

    *Raises* `Refused` for another type, ``CompileError`` for a scale or a zero point that is none.
    """
    if tensor.kind not in ("INT8", "UINT8"):
        raise Refused(f"{printable(tensor.name)} is {tensor.kind}", "quantize all activations to int8")
    if len(tensor.scales) != 1 or len(tensor.zero_points) != 1:
        message = f"tensor {printable(tensor.name)} must have one scale and one zero point"
        raise CompileError(source, message, "quantize the network with full-integer post-training quantization")
    try:
        return Format(8, tensor.kind == "INT8", tensor.scales[0], tensor.zero_points[0])
    except ValueError as error:
        raise CompileError(source, f"tensor {printable(tensor.name)}: {error}", "export the model again") from error


@dataclass(slots=True)
class Call:
    """One operator. ``source`` names it for errors, ``label`` is the name its result is to have."""

    state: State
    operator: Operator
    source: str
    label: str

    # ----------------------------------------------------------------------------------------------- what it reads

    def fail(self, message: str, hint: str = "export the model again") -> NoReturn:
        raise CompileError(self.source, message, hint)

    @property
    def kind(self) -> str:
        return self.operator.kind

    def option(self, name: str) -> int:
        return int(self._options[name])

    def real_option(self, name: str) -> float:
        value = float(self._options[name])
        if not math.isfinite(value):
            self.fail(f"option {name} must be finite, not {value}")
        return value

    @property
    def _options(self) -> Mapping[str, float]:
        if self.operator.options is None:
            self.fail("its options are missing")
        return self.operator.options

    def has(self, position: int) -> bool:
        """Whether an input is given."""
        return position < len(self.operator.inputs) and self.operator.inputs[position] >= 0

    def tensor(self, position: int) -> Tensor:
        """An input."""
        if not self.has(position):
            self.fail(f"input {position} is missing")
        return self.state.model.tensors[self.operator.inputs[position]]

    def output(self, position: int = 0) -> Tensor:
        if position >= len(self.operator.outputs):
            self.fail(f"output {position} is missing")
        return self.state.model.tensors[self.operator.outputs[position]]

    def is_constant(self, position: int) -> bool:
        tensor = self.tensor(position)
        return tensor.index in self.state.constants or (tensor.data is not None and tensor.index not in self.state.names)

    def activation(self, position: int) -> str:
        """The graph's name of an input that is no constant."""
        tensor = self.tensor(position)
        if tensor.index in self.state.names:
            if self.state.real and tensor.kind != "FLOAT32":
                raise Refused(f"its input {position} is {tensor.kind}", "use float32 tensors")
            return self.state.names[tensor.index]
        if tensor.index in self.state.heads:
            raise Refused("it reads the result of a softmax", "end the network in the softmax, or leave the softmax out")
        if self.is_constant(position):
            raise Refused(f"its input {position} is a constant", "fold constants before the export")
        self.fail(f"input {position}, {printable(tensor.name)}, is not made before it is used")

    def shape(self, position: int) -> Shape:
        """The map of an activation that is read."""
        self.activation(position)
        return feature_map(self.source, self.tensor(position))

    def expected(self, position: int = 0) -> Shape:
        """The map of a result, as the file declares it."""
        return feature_map(self.source, self.output(position))

    def format(self, position: int) -> Format:
        return tensor_format(self.source, self.tensor(position))

    @property
    def result(self) -> Format:
        """The format of the result."""
        return tensor_format(self.source, self.output())

    def constant(self, position: int, kinds: tuple[str, ...]) -> NDArray[Any]:
        """A constant input of one of these types.

        *Raises* ``CompileError`` for bytes that are not those of its shape, `Refused` for anything that is no such constant.
        """
        tensor = self.tensor(position)
        if tensor.fault:
            raise Refused(f"its input {position} cannot be read: {tensor.fault}", "store it densely in the model")
        if tensor.data is None or tensor.index in self.state.names:
            raise Refused(f"its input {position} is not a constant", "make it a constant of the model")
        if tensor.kind not in kinds:
            what = f"its input {position} is {tensor.kind}, not {' or '.join(kinds)}"
            raise Refused(what, "convert the model to int8 or float32")
        shape = checked_size(self.source, f"tensor {printable(tensor.name)}", tensor.shape)
        wanted = math.prod(shape) * ITEM_BYTES[tensor.kind]
        if tensor.data.size != wanted:
            self.fail(f"tensor {printable(tensor.name)} must have {wanted} bytes, not {tensor.data.size}")
        self.state.spend(self.source, shape)
        return np.frombuffer(tensor.data.tobytes(), DTYPES[tensor.kind]).reshape(shape)

    def integers(self, position: int) -> tuple[int, ...]:
        """A short constant of integers: axes, sizes, paddings, row by row."""
        if math.prod(self.tensor(position).shape) > 64:
            self.fail(f"input {position} holds too many numbers")
        return tuple(int(number) for number in self.constant(position, ("INT32", "INT64")).ravel())

    def integer(self, position: int) -> int:
        """A constant that is one integer."""
        numbers = self.integers(position)
        if len(numbers) != 1:
            self.fail(f"input {position} must be one number, not {len(numbers)}")
        return numbers[0]

    def reals(self, position: int) -> RealArray:
        """A constant of real numbers: as stored, made by an operator of constants, or quantized weights dequantized."""
        tensor = self.tensor(position)
        if tensor.index in self.state.constants:
            return self.state.constants[tensor.index]
        what = f"tensor {printable(tensor.name)}"
        array = finite(self.source, what, self.constant(position, ("FLOAT32", "FLOAT16", "INT8", "UINT8")))
        if tensor.kind in ("FLOAT32", "FLOAT16"):
            return array
        scales, zero_points = self.scales(position), np.array(tensor.zero_points, dtype=np.float64)
        if len(zero_points) not in (1, len(scales)):
            self.fail(f"{what} must have as many zero points as scales")
        sizes = [1] * array.ndim
        if len(scales) > 1:
            if not 0 <= tensor.axis < array.ndim or array.shape[tensor.axis] != len(scales):
                self.fail(f"{what} has {len(scales)} scales, which is not the size of its axis {tensor.axis}")
            sizes[tensor.axis] = -1
        real = (array - zero_points.reshape(sizes if len(zero_points) > 1 else [1])) * np.array(scales).reshape(sizes)
        return finite(self.source, what, real)

    def check_per_channel(self, what: str, shape: tuple[int, ...], channels: int) -> None:
        """*Raises* `Refused` for a constant that is neither one number nor one for each channel."""
        if math.prod(shape) != 1 and (math.prod(shape) != channels or shape[-1] != channels):
            raise Refused(f"{what} of shape {shape}", "use one number, or one for each channel")

    def scales(self, position: int) -> tuple[float, ...]:
        """The scales of a quantized constant, each finite and positive."""
        tensor = self.tensor(position)
        if not tensor.scales or not all(math.isfinite(scale) and scale > 0 for scale in tensor.scales):
            self.fail(f"tensor {printable(tensor.name)} must have scales, all finite and positive")
        return tensor.scales

    # ------------------------------------------------------------------------------------------------ what it makes

    def fresh(self, suffix: str = "") -> str:
        """A name for a node: that of the result, or one with a suffix for a step on the way."""
        return self.state.builder.fresh(f"{self.label[:40]}_{suffix}" if suffix else self.label)

    def add(self, node: Node, **arrays: RealArray | IntArray) -> str:
        return self.state.builder.add(node, **arrays)

    def shape_of(self, name: str) -> Shape:
        return self.state.builder.shapes[name]

    def node(self, name: str) -> Node:
        return next(node for node in reversed(self.state.builder.nodes) if node.name == name)

    def reshaped(self, name: str, shape: Shape, suffix: str = "") -> str:
        """The same samples as a map of another shape."""
        if self.shape_of(name) == shape:
            return name
        if shape[:2] == (1, 1):
            return self.add(Flatten(name=self.fresh(suffix), inputs=(name,), source=self.source))
        return self.add(Reshape(name=self.fresh(suffix), inputs=(name,), source=self.source, shape=shape))

    def unflattened(self, name: str) -> str:
        """The tensor that a chain of reshapes starts from: a dense layer reads it in the same order."""
        node = self.node(name)
        while isinstance(node, Flatten | Reshape):
            node = self.node(node.inputs[0])
        return node.name

    # ---------------------------------------------------------------------------------------------------- windows

    def stride(self) -> Pair:
        return self._steps("StrideH", "StrideW")

    def dilation(self) -> Pair:
        return self._steps("DilationHFactor", "DilationWFactor")

    def filter(self) -> Pair:
        return self._steps("FilterHeight", "FilterWidth")

    def _steps(self, *names: str) -> Pair:
        rows, cols = (self.option(name) for name in names)
        if min(rows, cols) < 1 or max(rows, cols) > 1 << 20:
            self.fail(f"{' and '.join(names)} must be 1 to {1 << 20}, not {rows} and {cols}")
        return rows, cols

    def padding(self, shape: Shape, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> Padding:
        """SAME and VALID by TensorFlow's rules."""
        match self.option("Padding"):
            case 0:
                rows, cols = (same_padding(shape[a], window_extent(kernel[a], dilation[a]), stride[a]) for a in (0, 1))
                return rows, cols
            case 1:
                return (0, 0), (0, 0)
        self.fail(f"Padding must be SAME or VALID, not {self.option('Padding')}")

    def spend(self, shape: tuple[int, ...]) -> None:
        self.state.spend(self.source, shape)


Rule = Callable[[Call], tuple[str, ...]]
"""Makes the nodes of one operator; the names of its results."""
