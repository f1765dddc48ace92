"""From a network file to a smaller one within a budget: what ``convfold.compress`` does."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convfold.compiler.compress import Compressed, record
from convfold.compiler.compress import compress as compress_graph
from convfold.compiler.compress_report import compress_html
from convfold.compiler.errors import CompileError
from convfold.compiler.graph import Graph
from convfold.compiler.importers import import_model, is_quantized
from convfold.compiler.lossy import Budget, Evidence
from convfold.compiler.passes import Options
from convfold.compiler.write_spec import spec_files

from .api import Progress
from .data import load_samples

__all__ = ["Compression", "compress", "read_budget", "read_evidence"]

RECORD = "compress.json"


@dataclass(frozen=True)
class Compression:
    """A network compressed; ``found`` has every measured point, ``record`` the same for JSON."""

    source: Path
    network: Graph
    found: Compressed

    @property
    def record(self) -> dict[str, Any]:
        return {"source": self.source.name, **record(self.found)}

    def write(self, folder: str | Path) -> Path:
        """Write the new specification, its weights, ``compress.json`` and ``report.html``; returns the specification.

        *Raises* ``CompileError`` if ``folder`` holds something else.
        """
        folder = Path(folder)
        if folder.exists() and not (folder.is_dir() and ((folder / RECORD).is_file() or not any(folder.iterdir()))):
            raise CompileError(str(folder), "exists and holds no compressed network", "choose another folder with -o")
        point = self.found.chosen
        header = f"{self.source.name} compressed by convfold within {self.found.budget}: {point.macs:,} multiplies a frame."
        text = json.dumps(self.record, indent=1, ensure_ascii=False) + "\n"
        files = spec_files(self.found.graph, header)
        files |= {RECORD: text.encode(), "report.html": compress_html(self.record).encode()}
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder / f"{self.found.graph.name}.toml"


def compress(
    net: str | Path,
    *,
    error: float | None = None,
    accuracy_drop: float | None = None,
    macs: int | None = None,
    calibration: str | Path | None = None,
    test: str | Path | None = None,
    fold_options: Options | None = None,
    progress: Progress = lambda step: None,
) -> Compression:
    """Compress a network file within one budget: relative response error, points of accuracy, or multiplies a frame.

    *Raises* ``CompileError`` for anything wrong with the input, and for a budget that cannot be met.
    """
    budget = read_budget(error, accuracy_drop, macs)
    progress("import")
    network = import_model(Path(net))
    if is_quantized(network):
        message = "comes in integers of its own, and only real layers are split"
        raise CompileError(Path(net).name, message, "compress the float model that it was made from")
    evidence = read_evidence(network, calibration, test)
    return Compression(Path(net), network, compress_graph(network, budget, evidence, fold_options or Options(), progress))


def read_budget(error: float | None, accuracy_drop: float | None, macs: int | None = None) -> Budget:
    """The one budget that is given.

    *Raises* ``CompileError`` for none, for several, and for one that is not finite.
    """
    given = [value for value in (error, accuracy_drop, macs) if value is not None]
    if len(given) != 1:
        found = f"{len(given)} are given" if given else "none is given"
        message = f"a lossy step needs one budget, and {found}"
        raise CompileError("options", message, "say how much may be lost, for example --accuracy-drop 0.5 or --error 0.1")
    if not 0 <= given[0] < math.inf:
        raise CompileError("options", f"a budget must be a number from 0 on, not {given[0]}", "for example --error 0.1")
    return Budget(error, accuracy_drop, macs)


def read_evidence(network: Graph, calibration: str | Path | None, test: str | Path | None) -> Evidence:
    """The images to fit and to judge on.

    *Raises* ``CompileError`` for files that do not fit the network.
    """
    images = None if calibration is None else load_samples(Path(calibration), network).images
    if test is None:
        return Evidence.of(images)
    samples = load_samples(Path(test), network, labels=True)
    return Evidence.of(images, samples.images, samples.labels)
