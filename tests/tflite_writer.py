"""Writes TensorFlow Lite files, one tensor and one operator at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import flatbuffers
import numpy as np
import tflite
from numpy.typing import NDArray

from convfold.compiler.importers.tflite_file import OPTIONS

TABLES: Mapping[str, str] = {kind: table for kind, (table, _) in OPTIONS.items()} | {
    "MEAN": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "SPLIT": "SplitOptions",
    "SPLIT_V": "SplitVOptions",
}
"""The table of each operator's options."""

DTYPES: Mapping[str, str] = {
    "FLOAT32": "<f4",
    "FLOAT16": "<f2",
    "INT8": "<i1",
    "UINT8": "<u1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
}

Scale = tuple[float, int]
"""A scale and a zero point."""


@dataclass
class Tensor:
    shape: tuple[int, ...]
    kind: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    data: bytes | None
    name: str


@dataclass
class Operator:
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, float]


@dataclass
class Writer:
    """Tensors and operators of a file; tensors are known by their numbers."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)

    def tensor(
        self,
        shape: Sequence[int],
        scale: float = 1.0,
        zero_point: int = 0,
        kind: str = "INT8",
        name: str | None = None,
    ) -> int:
        """An activation; a float one has no scale."""
        exact = kind.startswith("FLOAT") or kind in ("INT32", "INT64")
        scales, zero_points = ((), ()) if exact else ((scale,), (zero_point,))
        return self._append(Tensor(tuple(shape), kind, scales, zero_points, 0, None, name or f"t{len(self.tensors)}"))

    def constant(
        self,
        values: NDArray[np.generic] | Sequence[int],
        kind: str = "INT8",
        scales: Sequence[float] = (),
        zero_points: Sequence[int] = (),
        axis: int = 0,
    ) -> int:
        array = np.asarray(values).astype(DTYPES[kind])
        points = tuple(zero_points) or (0,) * len(scales)
        name = f"c{len(self.tensors)}"
        return self._append(Tensor(array.shape, kind, tuple(scales), points, axis, array.tobytes(), name))

    def operator(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **options: float) -> tuple[int, ...]:
        """Append an operator, its options by their names in the schema."""
        self.operators.append(Operator(kind, tuple(inputs), tuple(outputs), options))
        return tuple(outputs)

    def _append(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def write(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The whole file."""
        return File(self).write(inputs, outputs)


class File:
    """One file in the making: flatbuffers are written from the leaves up."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.builder = flatbuffers.Builder(1 << 12)

    def write(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        kinds = list(dict.fromkeys(operator.kind for operator in self.writer.operators))
        datas = [b"", *(tensor.data for tensor in self.writer.tensors if tensor.data is not None)]
        buffers = [self.table("Buffer", Data=self.bytes(data)) for data in datas]
        numbers = iter(range(1, len(datas)))
        tensors = [self.tensor(one, 0 if one.data is None else next(numbers)) for one in self.writer.tensors]
        operators = [self.operator(one, kinds.index(one.kind)) for one in self.writer.operators]
        graph = self.table(
            "SubGraph",
            Tensors=self.offsets(tensors),
            Inputs=self.numbers(inputs, "Int32"),
            Outputs=self.numbers(outputs, "Int32"),
            Operators=self.offsets(operators),
        )
        model = self.table(
            "Model",
            Version=3,
            OperatorCodes=self.offsets([self.code(kind) for kind in kinds]),
            Subgraphs=self.offsets([graph]),
            Buffers=self.offsets(buffers),
        )
        self.builder.Finish(model, b"TFL3")
        return bytes(self.builder.Output())

    def code(self, kind: str) -> int:
        number = getattr(tflite.BuiltinOperator, kind)
        return self.table("OperatorCode", DeprecatedBuiltinCode=min(number, 127), BuiltinCode=number, Version=1)

    def tensor(self, tensor: Tensor, buffer: int) -> int:
        quantization = None
        if tensor.scales:
            quantization = self.table(
                "QuantizationParameters",
                Scale=self.numbers(tensor.scales, "Float32"),
                ZeroPoint=self.numbers(tensor.zero_points, "Int64"),
                QuantizedDimension=tensor.axis,
            )
        return self.table(
            "Tensor",
            Shape=self.numbers(tensor.shape, "Int32"),
            Type=getattr(tflite.TensorType, tensor.kind),
            Buffer=buffer,
            Name=self.builder.CreateString(tensor.name),
            Quantization=quantization,
        )

    def operator(self, operator: Operator, code: int) -> int:
        inputs, outputs = self.numbers(operator.inputs, "Int32"), self.numbers(operator.outputs, "Int32")
        table = TABLES.get(operator.kind)
        if table is None:
            return self.table("Operator", OpcodeIndex=code, Inputs=inputs, Outputs=outputs)
        return self.table(
            "Operator",
            OpcodeIndex=code,
            Inputs=inputs,
            Outputs=outputs,
            BuiltinOptionsType=getattr(tflite.BuiltinOptions, table),
            BuiltinOptions=self.table(table, **operator.options),
        )

    def table(self, table: str, **fields: float | None) -> int:
        getattr(tflite, f"{table}Start")(self.builder)
        for name, value in fields.items():
            if value is not None:
                getattr(tflite, f"{table}Add{name}")(self.builder, value)
        end: int = getattr(tflite, f"{table}End")(self.builder)
        return end

    def bytes(self, data: bytes) -> int | None:
        return int(self.builder.CreateByteVector(data)) if data else None

    def numbers(self, values: Sequence[float], kind: str) -> int:
        sizes = {"Int32": 4, "Float32": 4, "Int64": 8}
        self.builder.StartVector(sizes[kind], len(values), sizes[kind])
        for value in reversed(values):
            getattr(self.builder, f"Prepend{kind}")(value)
        return int(self.builder.EndVector())

    def offsets(self, values: Sequence[int]) -> int:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependUOffsetTRelative(value)
        return int(self.builder.EndVector())


def float32(value: float) -> float:
    """The nearest number in single precision, as files hold it."""
    return float(np.float32(value))
