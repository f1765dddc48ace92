"""From a network file to a build folder: what ``convfold.compile`` does."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from convfold.compiler.approximate import approximate as approximate_pairs
from convfold.compiler.emit import Emission, emit, npz_bytes
from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import accuracy, evaluate
from convfold.compiler.explain import explain
from convfold.compiler.graph import Graph
from convfold.compiler.lossy import Budget, Evidence
from convfold.compiler.numbers import IntArray, RealArray
from convfold.compiler.passes import Options, fold
from convfold.compiler.plan import Plan, make_plan
from convfold.compiler.quantize import QuantizeOptions, quantize
from convfold.compiler.report import report_html
from convfold.compiler.spec import load_spec
from convfold.compiler.targets import get_target
from convfold.compiler.verify import verify
from convfold.sim import golden

from .data import Samples, load_samples

__all__ = ["Compiled", "compile", "load_network"]

VECTORS = 64
"""Frames kept in ``vectors.npz`` for simulation."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Compiled:
    """A network on its way through the compiler; every stage can be looked at.

    ``network`` as written, ``folded`` after the algebra, ``integers`` after quantization, ``plan`` with an engine a layer.
    """

    source: Path
    source_sha256: str
    network: Graph
    folded: Graph
    integers: Graph
    plan: Plan
    vectors: IntArray
    labelled: Samples | None = field(default=None)

    @cached_property
    def accuracy(self) -> dict[str, Any] | None:
        """Share of labelled samples classified rightly, in floating point and in integers; ``None`` without labels."""
        if self.labelled is None or self.labelled.labels is None:
            return None
        x, y = self.labelled.images, self.labelled.labels
        before = evaluate(self.network, x)[self.network.outputs[0]]
        after = evaluate(self.folded, x)[self.folded.outputs[0]]
        raw = golden.run(self.integers, self.integers.format_of(self.integers.input.name).quantize(x))
        scale = float(np.max(np.abs(before))) or 1.0
        return {
            "samples": len(y),
            "float": accuracy(before, y),
            "integer": accuracy(raw[self.integers.outputs[0]], y),
            "folding_difference": float(np.max(np.abs(before - after))) / scale,
        }

    def write(self, folder: str | Path) -> Path:
        """Write the build folder; it appears whole or not at all.

        *Raises* ``CompileError`` if ``folder`` holds something that is not a build of convfold's.
        """
        folder = Path(folder)
        if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or _is_build(folder))):
            raise CompileError(str(folder), "exists and is no build folder", "choose another folder with -o")
        extra = {"accuracy": self.accuracy, "explanations": [str(entry) for entry in explain(self.network, self.folded)]}
        files = emit(Emission(self.plan, self.network, self.source, self.source_sha256, extra))
        expected = golden.run(self.integers, self.vectors)[self.integers.outputs[0]]
        files["vectors.npz"] = npz_bytes({"inputs": self.vectors, "outputs": expected})
        files["report.html"] = report_html(json.loads(files["manifest.json"])).encode()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            whole = Path(scratch) / "build"
            whole.mkdir()
            for name, content in files.items():
                (whole / name).write_bytes(content)
            if folder.exists():
                shutil.move(folder, Path(scratch) / "before")
            whole.rename(folder)
        return folder


def _is_build(folder: Path) -> bool:
    try:
        return "source_sha256" in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def load_network(net: str | Path) -> Graph:
    """The graph of a network file: ``.toml`` or ``.json``.

    *Raises* ``CompileError`` for a file of another kind, and for everything that is wrong inside.
    """
    path = Path(net)
    if path.suffix not in (".toml", ".json"):
        raise CompileError(str(path), f"files of kind '{path.suffix}' are not known", "give a .toml or .json network")
    return verify(load_spec(path), "spec")


def compile(
    net: str | Path,
    target: str = "generic",
    *,
    fps: float | None = None,
    calibration: str | Path | RealArray | None = None,
    test: str | Path | None = None,
    fold_options: Options | None = None,
    quantize_options: QuantizeOptions | None = None,
    approximate: Budget | None = None,
    progress: Progress = lambda step: None,
) -> Compiled:
    """Compile a network file for a target, smallest or for ``fps`` frames a second.

    *Shapes* ``calibration`` is an array of images ``(N, H, W, C)``, or an ``.npz`` with one called ``x``; ``test`` is an ``.npz``
    with images ``x`` and labels ``y``.

    With ``approximate`` pairs of layers with a rectifier between them become one where that stays within the budget.

    *Raises* ``CompileError`` for anything wrong with the input.
    """
    path = Path(net)
    chip = get_target(target)
    progress("import")
    network = load_network(path)
    images = calibration if isinstance(calibration, np.ndarray) else None
    if isinstance(calibration, str | Path):
        images = load_samples(Path(calibration), network).images
    labelled = None if test is None else load_samples(Path(test), network, labels=True)
    progress("fold")
    folded = fold(network, fold_options or Options())
    if approximate is not None:
        progress("approximate")
        test_images, labels = (None, None) if labelled is None else (labelled.images, labelled.labels)
        evidence = Evidence.of(images, test_images, labels)
        folded = verify(approximate_pairs(folded, approximate, evidence, fold_options or Options()), "approximate")
    progress("quantize")
    integers = verify(quantize(folded, quantize_options or QuantizeOptions(), images), "integer")
    progress("plan")
    plan = make_plan(integers, chip, fps)
    real = labelled.images if labelled is not None else images
    return Compiled(
        source=path,
        source_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        network=network,
        folded=folded,
        integers=integers,
        plan=plan,
        vectors=_vectors(integers, real),
        labelled=labelled,
    )


def _vectors(graph: Graph, images: RealArray | None) -> IntArray:
    """Frames to simulate: real images if there are any, else random ones that reach the input's limits."""
    form = graph.format_of(graph.input.name)
    if images is not None:
        return form.quantize(images[:VECTORS])
    rng = np.random.default_rng(0)
    return rng.integers(form.min_raw, form.max_raw + 1, (VECTORS, *graph.input.shape))
