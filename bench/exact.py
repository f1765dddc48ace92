"""Int8 networks of other people against tflite-micro: every sample, every byte.

    python bench/exact.py

Needs the folder of real models (``CONVFOLD_MODELS``), the extra ``tflite`` and, for tensors inside the networks and for
hello_world, the package tflite-micro. Prints Markdown: the outputs of the golden model with the host's softmax that differ
from the interpreter's, the bytes of all tensors inside that differ for the first frames, and frames a second of the golden
model. Exits with status 1 when a byte differs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convfold.compiler.importers.tflite import import_tflite
from convfold.compiler.numbers import IntArray
from convfold.sim import golden

INSIDE = 20
"""Frames of which every tensor is compared."""


def measured(path: Path, frames: IntArray, expected: IntArray | None) -> list[str]:
    """One row: outputs against those expected, or the interpreter's if none are, and the tensors inside."""
    from tests.models import classify
    from tests.tflm import Reference

    graph, names = import_tflite(path)
    reference = Reference(path.read_bytes(), keep=True)
    x_raw = frames.reshape(-1, *graph.input.shape)
    if expected is None:
        expected = np.stack([reference.run(frame).ravel() for frame in x_raw]).astype(np.int64)
    start = time.perf_counter()
    outputs = golden.run(graph, x_raw)
    seconds = time.perf_counter() - start
    differing = int((classify(graph, outputs[graph.outputs[0]]) != expected).sum())

    inside = golden.trace(graph, x_raw[:INSIDE])
    compared = wrong = 0
    for number, frame in enumerate(x_raw[:INSIDE]):
        for index, tensor in reference.tensors(frame, names).items():
            compared += tensor.size
            wrong += int((tensor.ravel() != inside[names[index]][number].ravel()).sum())
    counts = (len(x_raw), differing, len(names), compared, wrong)
    return [path.stem, *(f"{count:,}" for count in counts), f"{len(x_raw) / seconds:,.0f}"]


def rows(folder: Path) -> Iterator[list[str]]:
    from tests.models import HELLO_WORLD, INT8, classify, goldens

    for samples in INT8.values():
        yield measured(folder / samples.model, samples.frames(folder), samples.expected(folder))
    yield measured(folder / HELLO_WORLD, np.arange(-128, 128), None)

    graphs = {name: import_tflite(folder / samples.model)[0] for name, samples in INT8.items()}
    wrong = count = 0
    for _, net, frame, expected in goldens(folder):
        outputs = golden.run(graphs[net], frame.reshape(1, *graphs[net].input.shape))
        wrong += int((classify(graphs[net], outputs[graphs[net].outputs[0]]) != expected).sum())
        count += 1
    yield ["published vectors", f"{count:,}", f"{wrong:,}", "", "", "0", ""]


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests' helpers are not installed
    from tests.models import find_models

    folder = find_models()
    if folder is None:
        raise SystemExit("no folder of models: set CONVFOLD_MODELS to it")
    print("| net | frames | differing outputs | tensors inside | bytes inside | differing | frames/s |")
    print("|---|---|---|---|---|---|---|")
    failed = False
    for row in rows(folder):
        print(f"| {' | '.join(row)} |", flush=True)
        failed |= row[2] != "0" or row[5] != "0"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
