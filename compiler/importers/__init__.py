"""Networks that other tools made, brought onto our graph; most readers need an optional package."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from ..errors import CompileError
from ..graph import Graph, Input
from ..spec import load_spec, source_sha256

__all__ = ["SUFFIXES", "import_model", "is_quantized", "model_sha256"]

Range = tuple[float, float]

_READERS: Mapping[str, tuple[str, str]] = {
    ".tflite": ("tflite", "read_tflite"),
    ".onnx": ("onnx", "read_onnx"),
    ".keras": ("keras", "read_keras"),
    ".h5": ("keras", "read_keras"),
    ".hdf5": ("keras", "read_keras"),
    ".pt2": ("torch", "read_torch"),
    ".pt": ("torch", "read_torch"),
    ".pth": ("torch", "read_torch"),
    ".th": ("torch", "read_torch"),
}
SUFFIXES = (".toml", ".json", *_READERS)
"""The files that can be read."""


def import_model(path: Path, input_range: Range | None = None) -> Graph:
    """The network in a file: our own specification, or another tool's model, told apart by the file's suffix.

    ``input_range`` are the limits of the real inputs, which float models of other tools do not tell.

    *Raises* ``CompileError`` for a suffix nobody knows, and for whatever is wrong with the file.
    """
    suffix = path.suffix.lower()
    if suffix in (".toml", ".json"):
        if input_range is not None:
            raise CompileError(path.name, "has an input range of its own", "leave the range out, or change it in the file")
        return load_spec(path)
    if suffix not in _READERS:
        raise CompileError(path.name or str(path), "is no kind of network that can be read", f"known are {', '.join(SUFFIXES)}")
    module, function = _READERS[suffix]
    reader: Callable[[Path, Range | None], Graph] = getattr(import_module(f".{module}", __name__), function)
    return reader(path, input_range)


def model_sha256(path: Path) -> str:
    """What identifies a network: the hash of its file, and of the weights beside a specification of ours."""
    if path.suffix.lower() in (".toml", ".json"):
        return source_sha256(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_quantized(graph: Graph) -> bool:
    """Whether a network came in integers of its own."""
    return any(isinstance(node, Input) and node.format is not None for node in graph.nodes)
