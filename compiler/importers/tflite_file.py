"""A TensorFlow Lite file as plain data: read once, in one guarded step, and never touched again.

The generated accessors of the package ``tflite`` follow whatever offsets a file holds. All of them are called here, so
what they raise on a broken file becomes one ``CompileError``; every count is capped before anything is read by it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CompileError
from ..files import printable
from .common import extra, read_file

__all__ = ["Model", "Operator", "Tensor", "read_model"]

IDENTIFIER = b"TFL3"
MAX_BYTES = 1 << 27
MAX_TENSORS = 1 << 14
MAX_OPERATORS = 1 << 10
MAX_RANK = 8
MAX_OPERANDS = 1 << 10
MAX_READ = 1 << 20
"""Numbers and letters that are read of all tables together: tables can share them, and so be larger than the file."""

_WINDOW = ("Padding", "StrideH", "StrideW", "FusedActivationFunction")
_DILATED = (*_WINDOW, "DilationHFactor", "DilationWFactor")
_POOL = (*_WINDOW, "FilterHeight", "FilterWidth")
_FUSED = ("FusedActivationFunction",)
_MASKS = ("BeginMask", "EndMask", "EllipsisMask", "NewAxisMask", "ShrinkAxisMask")

OPTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ADD": ("AddOptions", _FUSED),
    "AVERAGE_POOL_2D": ("Pool2DOptions", _POOL),
    "CONCATENATION": ("ConcatenationOptions", ("Axis", *_FUSED)),
    "CONV_2D": ("Conv2DOptions", _DILATED),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", _DILATED),
    "DEPTH_TO_SPACE": ("DepthToSpaceOptions", ("BlockSize",)),
    "DIV": ("DivOptions", _FUSED),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("WeightsFormat", *_FUSED)),
    "GELU": ("GeluOptions", ("Approximate",)),
    "LEAKY_RELU": ("LeakyReluOptions", ("Alpha",)),
    "MAX_POOL_2D": ("Pool2DOptions", _POOL),
    "MUL": ("MulOptions", _FUSED),
    "RESIZE_NEAREST_NEIGHBOR": ("ResizeNearestNeighborOptions", ("AlignCorners", "HalfPixelCenters")),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
    "SPACE_TO_DEPTH": ("SpaceToDepthOptions", ("BlockSize",)),
    "STRIDED_SLICE": ("StridedSliceOptions", _MASKS),
    "SUB": ("SubOptions", _FUSED),
    "TRANSPOSE_CONV": ("TransposeConvOptions", _WINDOW),
}
"""The table in which an operator keeps its options, and those that are read of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One tensor. ``data`` are the bytes of a constant; ``fault`` is why no constant of its kind can be read."""

    index: int
    name: str
    kind: str
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    data: NDArray[np.uint8] | None
    fault: str


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator: the numbers of its tensors (-1 for one that is left out) and its options, by their names in the schema."""

    index: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class Model:
    """The first subgraph of a file."""

    source: str
    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_model(path: Path) -> Model:
    """The network of a file.

    *Raises* ``CompileError`` for a file that is no TensorFlow Lite model, or a broken one, and when ``tflite`` is missing.
    """
    source = printable(path.name)
    with extra("tflite", source):
        import tflite

    data = read_file(path, MAX_BYTES)
    if data[4:8] != IDENTIFIER:
        message = f"is not a TensorFlow Lite model: bytes 4 to 7 must be {IDENTIFIER.decode()!r}, not {data[4:8]!r}"
        raise CompileError(source, message, "name a .tflite file")
    try:
        return _Parser(tflite, data, source, path.stem).model()
    except (struct.error, IndexError, ValueError, TypeError) as error:  # how the accessors fail, each for other offsets
        raise CompileError(source, "is a broken TensorFlow Lite file: an offset points outside it", "copy it again") from error


class _Parser:
    """Reads the tables. Every error but ``CompileError`` that leaves here means a broken file."""

    def __init__(self, schema: Any, data: bytes, source: str, name: str) -> None:
        self.schema = schema
        self.source = source
        self.name = name
        self.root = schema.Model.GetRootAs(data, 0)
        self.kinds = _words(schema.TensorType)
        self.operators = _words(schema.BuiltinOperator)
        self.read = 0

    def model(self) -> Model:
        if self.root.SubgraphsLength() != 1:
            message = f"must hold one subgraph, not {self.root.SubgraphsLength()}"
            raise CompileError(self.source, message, "export one signature, without control flow")
        graph = self.root.Subgraphs(0)
        kinds = self._count("operator codes", self.root.OperatorCodesLength())
        codes = [self._code(self.root.OperatorCodes(n)) for n in range(kinds)]
        count = self._count("tensors", graph.TensorsLength(), MAX_TENSORS)
        tensors = [self._tensor(n, graph.Tensors(n)) for n in range(count)]
        steps = self._count("operators", graph.OperatorsLength())
        operators = [self._operator(n, graph.Operators(n), codes) for n in range(steps)]
        return Model(
            self.source,
            self.name,
            tuple(tensors),
            tuple(self._checked(operator, len(tensors)) for operator in operators),
            self._known(graph.InputsAsNumpy(), len(tensors)),
            self._known(graph.OutputsAsNumpy(), len(tensors)),
        )

    def _count(self, what: str, count: int, most: int = MAX_OPERATORS) -> int:
        if count > most:
            raise CompileError(self.source, f"must hold at most {most} {what}, not {count}", "make the network smaller")
        return count

    def _code(self, code: Any) -> str:
        """The builtin operator; old files keep its number in a byte of its own."""
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        kind = self.operators.get(number, f"operator {number}")
        if kind != "CUSTOM":
            return kind
        return f"CUSTOM {printable(self._text(code.CustomCode()))}"

    def _tensor(self, index: int, tensor: Any) -> Tensor:
        data, fault = self._data(tensor)
        quantization = tensor.Quantization()
        scales, zero_points, axis = (), (), 0
        if quantization is not None:
            scales = self._numbers(quantization.ScaleAsNumpy(), float)
            zero_points = self._numbers(quantization.ZeroPointAsNumpy(), int)
            axis = quantization.QuantizedDimension()
        return Tensor(
            index,
            self._text(tensor.Name()),
            self.kinds.get(tensor.Type(), f"type {tensor.Type()}"),
            self._numbers(tensor.ShapeAsNumpy(), int, MAX_RANK),
            scales,
            zero_points,
            axis,
            data,
            fault,
        )

    def _data(self, tensor: Any) -> tuple[NDArray[np.uint8] | None, str]:
        if tensor.Sparsity() is not None:
            return None, "it is sparse"
        if tensor.IsVariable():
            return None, "it is a variable"
        if tensor.Buffer() >= self.root.BuffersLength():
            raise IndexError
        buffer = self.root.Buffers(tensor.Buffer())
        if buffer.Offset() > 1:
            return None, "its data lies behind the model's own"
        data = buffer.DataAsNumpy() if buffer.DataLength() else None
        return data, ""

    def _operator(self, index: int, operator: Any, codes: list[str]) -> Operator:
        kind = codes[operator.OpcodeIndex()]
        inputs = self._numbers(operator.InputsAsNumpy(), int, MAX_OPERANDS)
        outputs = self._numbers(operator.OutputsAsNumpy(), int, MAX_OPERANDS)
        return Operator(index, kind, inputs, outputs, self._options(kind, operator))

    def _options(self, kind: str, operator: Any) -> Mapping[str, float] | None:
        """The options of an operator, where they are read; ``None`` where they are missing."""
        if kind not in OPTIONS:
            return MappingProxyType({})
        table, fields = OPTIONS[kind]
        found = operator.BuiltinOptions()
        if found is None or operator.BuiltinOptionsType() != getattr(self.schema.BuiltinOptions, table):
            return None
        options = getattr(self.schema, table)()
        options.Init(found.Bytes, found.Pos)
        return MappingProxyType({field: getattr(options, field)() for field in fields})

    def _checked(self, operator: Operator, count: int) -> Operator:
        if not all(-1 <= index < count for index in operator.inputs):
            raise IndexError
        if not all(0 <= index < count for index in operator.outputs):
            raise IndexError
        return operator

    def _known(self, indices: Any, count: int) -> tuple[int, ...]:
        known = self._numbers(indices, int, MAX_OPERANDS)
        if not all(0 <= index < count for index in known):
            raise IndexError
        return known

    def _numbers(self, vector: Any, convert: Callable[[Any], Any], most: int = MAX_TENSORS) -> tuple[Any, ...]:
        """A vector as numbers; the accessors give 0 for one that is missing."""
        if isinstance(vector, int):
            return ()
        if len(vector) > most:
            raise IndexError
        self._spend(len(vector))
        return tuple(convert(number) for number in vector)

    def _text(self, letters: bytes | None) -> str:
        self._spend(len(letters or b""))
        return (letters or b"").decode("utf-8", "replace")

    def _spend(self, count: int) -> None:
        self.read += count
        if self.read > MAX_READ:
            raise CompileError(self.source, f"its tables hold more than {MAX_READ} numbers and letters", "copy it again")


def _words(enumeration: Any) -> dict[int, str]:
    return {number: word for word, number in vars(enumeration).items() if isinstance(number, int)}
