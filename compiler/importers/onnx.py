"""ONNX files: `read_onnx`, for float models and for models that come in integers of their own."""

from __future__ import annotations

from pathlib import Path

from ..files import printable
from ..graph import Graph
from ..verify import legal_name
from .common import extra


def read_onnx(path: Path, input_range: tuple[float, float] | None = None) -> Graph:
    """The graph of an ONNX file: a real one, or integers where the model is quantized (QDQ, QOperator, QONNX).

    ``input_range`` are the limits of the real inputs of a float model, by default -1 to 1.

    *Raises* ``CompileError`` for anything that is wrong with the file, and for nodes that cannot be imported: one error lists
    them all.
    """
    source = printable(path.name)
    with extra("onnx", source):
        from .onnx_float import import_float
        from .onnx_load import load_onnx
        from .onnx_quantized import is_quantized, read_quantized
        from .qonnx import is_qonnx, read_qonnx
    model = load_onnx(path)
    if is_quantized(model):
        return read_quantized(model, source)
    if is_qonnx(model):
        return read_qonnx(model, source, input_range)
    return import_float(model, legal_name(path.stem), source, input_range)
