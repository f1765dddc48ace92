"""The host's side of an accelerator: from real inputs to real results, through the golden model or the simulated Verilog."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convfold.compiler.emit import npz_bytes
from convfold.compiler.errors import CompileError, InternalError
from convfold.compiler.graph import Graph, Softmax
from convfold.compiler.graph_file import load_graph
from convfold.compiler.numbers import Format, IntArray, RealArray
from convfold.compiler.tools.simulators import find_simulator
from convfold.compiler.verify import INTEGER, verify
from convfold.sim import golden
from convfold.sim.cosimulate import cosimulate
from convfold.sim.softmax import softmax, softmax_int8

from .data import vectors

__all__ = ["Accelerator", "Result"]

Engine = Literal["golden", "rtl"]


@dataclass(frozen=True)
class Result:
    """One output for a batch: ``raw`` integers as the engine sends them, ``real`` values with the host's part applied.

    *Shapes* both ``(N, H, W, C)``. ``final`` are the integers behind a quantized softmax, as the model it came from gives
    them; without one they are ``raw``. ``labels`` names the class of each frame, if the network has names for them.
    """

    raw: IntArray
    final: IntArray
    real: RealArray
    labels: tuple[str, ...]

    @property
    def classes(self) -> NDArray[np.int64]:
        """The greatest output of each frame, the first among equals."""
        flat = self.real.reshape(len(self.real), -1)
        return flat.argmax(axis=1) if flat.shape[1] > 1 else flat[:, 0].astype(np.int64)

    @property
    def names(self) -> list[str]:
        """The label of each frame."""
        return [self.labels[n] if n < len(self.labels) else str(n) for n in self.classes]


class Accelerator:
    """A build folder, ready to compute::

        digits = convfold.Accelerator("build/digits")
        digits(images).names                    # ['7', '2', …]

    *Raises* ``CompileError`` for a folder that is no build of convfold's.
    """

    def __init__(self, build: str | Path) -> None:
        self.folder = Path(build)
        self.manifest = self._read_json("manifest.json")
        self.graph = self._read_graph()
        self.labels = self.graph.labels

    @property
    def input_format(self) -> Format:
        return self.graph.format_of(self.graph.input.name)

    def quantize(self, x_real: ArrayLike) -> IntArray:
        """Raw integers ``(N, H, W, C)`` of real images; one image, or one without its last axis of 1, will do."""
        return self.input_format.quantize(self._batch(np.asarray(x_real, dtype=np.float64)))

    def __call__(self, x_real: ArrayLike, engine: Engine = "golden") -> Result:
        """The first output for real images."""
        return self.run(self.quantize(x_real), engine)[self.graph.outputs[0]]

    def run(self, x_raw: ArrayLike, engine: Engine = "golden") -> dict[str, Result]:
        """All outputs, by name, for raw integers ``(N, H, W, C)``.

        With ``rtl`` the accelerator's Verilog computes them in a simulator, under four stall profiles, and every beat is
        compared with the golden model; that takes seconds to minutes.

        *Raises* ``RuntimeError`` where the two differ, ``ValueError`` and ``TypeError`` for frames that are none.
        """
        frames = self._raw(np.asarray(x_raw))
        outputs = golden.run(self.graph, frames)
        if engine == "rtl":
            self._simulate(frames, outputs)
        elif engine != "golden":
            raise ValueError(f"engine must be 'golden' or 'rtl', not {engine!r}")
        return {name: self._result(name, raw) for name, raw in outputs.items()}

    def _result(self, name: str, raw: IntArray) -> Result:
        form, head = self.graph.format_of(name), dict(self.graph.heads).get(name)
        final, real = _apply(head, raw, form)
        return Result(raw, final, real, self.labels)

    def _simulate(self, frames: IntArray, outputs: dict[str, IntArray]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            for name in ("manifest.json", "accelerator.v", "test_accelerator.py"):
                if not (self.folder / name).is_file():
                    raise CompileError(str(self.folder), f"has no {name}", "run convfold compile again")
                shutil.copy(self.folder / name, scratch)
            Path(scratch, "vectors.npz").write_bytes(npz_bytes(vectors(self.graph, frames, outputs)))
            run = cosimulate(Path(scratch), fast=find_simulator().name == "verilator")
            if not run.passed:
                raise RuntimeError(f"the simulated Verilog and the golden model differ: {run.summary()}")

    def _raw(self, x: NDArray[Any]) -> IntArray:
        """Frames of integers that the input's format holds."""
        form = self.input_format
        frames = self._batch(x)
        if frames.dtype.kind not in "iu":
            raise TypeError(f"raw images must be integers, not {frames.dtype}; for real ones call the accelerator, or quantize")
        if frames.size and not form.min_raw <= frames.min() <= frames.max() <= form.max_raw:
            limits = f"{form.min_raw} to {form.max_raw}"
            raise ValueError(f"raw images must have values of {limits}, not {frames.min()} to {frames.max()}")
        return frames.astype(np.int64)

    def _batch(self, x: NDArray[Any]) -> NDArray[Any]:
        """A batch of frames of the input's shape, from anything with as many samples in the same order."""
        shape = self.graph.input.shape
        trimmed = tuple(size for size in shape if size > 1)
        for form in (shape, trimmed, (int(np.prod(shape)),)):
            if x.shape == form or x.shape[1:] == form:
                return x.reshape(-1, *shape)
        raise ValueError(f"images must have the shape {shape}, or (images, {str(shape)[1:]}, not {x.shape!r}")

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            record = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            message = f"is no build folder: it has no readable {name}"
            raise CompileError(str(self.folder), message, "run convfold compile") from error
        if not isinstance(record, dict):
            raise CompileError(str(self.folder / name), "is none of convfold's", "run convfold compile again")
        return record

    def _read_graph(self) -> Graph:
        record = self._read_json("network.json")
        try:
            with np.load(io.BytesIO((self.folder / "network.npz").read_bytes()), allow_pickle=False) as arrays:
                weights = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
            raise CompileError(str(self.folder / "network.npz"), "cannot be read", "run convfold compile again") from error
        source = str(self.folder / "network.json")
        try:
            return verify(load_graph(record, weights, source), INTEGER)
        except InternalError as error:
            raise CompileError(source, "holds a network that is not sound", "run convfold compile again") from error


def _apply(head: Softmax | None, raw: IntArray, form: Format) -> tuple[IntArray, RealArray]:
    """The integers and the real values behind an output's head."""
    if head is None:
        return raw, form.dequantize(raw)
    if head.format is None:
        return raw, softmax(form.dequantize(raw), head.beta)
    final = softmax_int8(raw, form.scale, head.beta)
    return final, head.format.dequantize(final)
