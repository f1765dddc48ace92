"""All hostile files by kind, and a sound one of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tests.hostile.archives import zipped
from tests.hostile.files import (
    Maker,
    Makers,
)
from tests.hostile.keras import hdf5, keras_config, keras_file, keras_makers, nothing
from tests.hostile.onnx import onnx_makers, onnx_model, quantized_makers, quantized_model
from tests.hostile.specs import SPEC, npz, npz_makers, spec_makers, toml
from tests.hostile.tflite import tflite, tflite_makers
from tests.hostile.torch import pickle_makers, torch_makers, torch_members, torch_program

KINDS = ("toml", "json", "npz", "tflite", "onnx", "quantized", "keras", "h5", "pt2", "pth")

SUFFIXES: Mapping[str, str] = {"npz": ".toml", "quantized": ".onnx"}
"""The suffix of each kind's files, where it is not the kind's own name."""

MAKERS: Mapping[str, Callable[[], Makers]] = {
    "toml": partial(spec_makers, "toml"),
    "json": partial(spec_makers, "json"),
    "npz": npz_makers,
    "tflite": tflite_makers,
    "onnx": onnx_makers,
    "quantized": quantized_makers,
    "keras": partial(keras_makers, ".keras"),
    "h5": partial(keras_makers, ".h5"),
    "pt2": torch_makers,
    "pth": pickle_makers,
}


def sound(kind: str, folder: Path) -> bytes:
    """The file of a kind that is not spoilt."""
    model, weights = torch_program()
    (folder / "net.npz").write_bytes(npz())
    quantized: bytes = quantized_model().SerializeToString()
    real: bytes = onnx_model().SerializeToString()
    files = {
        "toml": toml(SPEC).encode(),
        "json": json.dumps(SPEC).encode(),
        "npz": toml(SPEC).encode(),
        "tflite": tflite(),
        "onnx": real,
        "quantized": quantized,
        "keras": keras_file(keras_config(), nothing, folder),
        "h5": hdf5(keras_config(), nothing, folder),
        "pt2": zipped(torch_members(model, weights)),
        "pth": zipped(torch_members(model, weights)),
    }
    return files[kind]


def write(maker: Maker, kind: str, folder: Path) -> Path:
    """The file that a maker makes, in ``folder``."""
    made = maker(folder)
    if isinstance(made, Path):
        return made
    path = folder / f"net{SUFFIXES.get(kind, f'.{kind}')}"
    path.write_bytes(made)
    return path
