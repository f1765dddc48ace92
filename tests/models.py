"""The int8 networks of the folder of real models, with their samples and what tflite-micro makes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convfold.compiler.graph import Graph
from convfold.compiler.numbers import IntArray
from convfold.sim.softmax import softmax_int8

__all__ = ["INT8", "Samples", "classify", "find_models", "goldens"]

ROOT = Path(__file__).resolve().parent.parent


def find_models() -> Path | None:
    """The folder of real models: ``CONVFOLD_MODELS``, or ``shared/models`` beside the checkout."""
    named = os.environ.get("CONVFOLD_MODELS")
    folder = Path(named) if named else ROOT.parent / "shared" / "models"
    return folder if folder.is_dir() else None


@dataclass(frozen=True, slots=True)
class Samples:
    """A network's file, and the file of its samples: ``inputs`` less ``offset``, ``tflm_out_int8`` and the classes ``y``."""

    model: str
    data: str
    inputs: str
    offset: int = 0

    def frames(self, folder: Path) -> NDArray[np.int64]:
        return self._array(folder, self.inputs) - self.offset

    def expected(self, folder: Path) -> IntArray:
        """What the interpreter of tflite-micro gives for each frame."""
        return self._array(folder, "tflm_out_int8")

    def classes(self, folder: Path) -> IntArray:
        return self._array(folder, "y")

    def _array(self, folder: Path, name: str) -> IntArray:
        with np.load(folder / self.data, allow_pickle=False) as arrays:
            return np.asarray(arrays[name], dtype=np.int64)


INT8 = {
    "kws": Samples("mlperf_kws_dscnn/kws_ref_model.tflite", "data_kws/speech_commands_v002_testset_mfcc_int8.npz", "x_int8"),
    "resnet8": Samples("mlperf_resnet8/pretrainedResnet_quant.tflite", "data_cifar10/cifar10_test_1k_jpeg.npz", "x_uint8", 128),
    "micro_speech": Samples(
        "tflm_micro_speech/micro_speech_quantized.tflite", "tflm_micro_speech/micro_speech_test_1640.npz", "x_int8"
    ),
}
HELLO_WORLD = "tflm_hello_world/hello_world_int8.tflite"
"""A network of one number: all its 256 inputs are its samples."""


def classify(graph: Graph, logits: IntArray) -> IntArray:
    """What the host makes of a network's only output: its head, if it has one."""
    raw = logits.reshape(len(logits), -1)
    if not graph.heads:
        return raw
    ((name, head),) = graph.heads
    return softmax_int8(raw, graph.format_of(name).scale, head.beta)


def goldens(folder: Path) -> Iterator[tuple[str, str, IntArray, IntArray]]:
    """The published vectors: a name, the network of `INT8`, the frame and its output."""
    files = {"imgc": ("resnet8", "data_cifar10"), "kws": ("kws", "data_kws")}
    for key, outputs in json.loads((folder / "goldens.json").read_text(encoding="utf-8")).items():
        kind, _, name = key.partition(":")
        if kind not in files:  # a remark on where they come from
            continue
        net, data = files[kind]
        frame = np.frombuffer((folder / data / f"{name}.dat").read_bytes(), np.int8)
        yield name, net, frame.astype(np.int64), np.asarray(outputs, dtype=np.int64)
