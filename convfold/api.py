"""From a network file to a build folder: what ``convfold.compile`` does."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convfold.compiler.approximate import approximate as approximate_pairs
from convfold.compiler.emit import Emission, emit, npz_bytes
from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import accuracy, evaluate
from convfold.compiler.explain import explain
from convfold.compiler.graph import ArgMax, Graph
from convfold.compiler.graph_file import dump_graph
from convfold.compiler.importers import import_model, is_quantized, model_sha256
from convfold.compiler.importers.torch import import_module
from convfold.compiler.lossy import Budget, Evidence
from convfold.compiler.numbers import IntArray, RealArray
from convfold.compiler.passes import Options, fold
from convfold.compiler.passes.rewrite import fresh_name
from convfold.compiler.plan import FILL, Plan, make_plan
from convfold.compiler.quantize import QuantizeOptions, quantize
from convfold.compiler.report import report_html
from convfold.compiler.targets import get_target
from convfold.compiler.tradeoff import Point, front_record
from convfold.compiler.verify import verify
from convfold.sim import golden

from .data import Samples, load_samples, vectors

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Compiled", "compile"]

VECTORS = 64
"""Frames kept in ``vectors.npz`` for simulation."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Compiled:
    """A network on its way through the compiler; every stage can be looked at.

    ``network`` as written, ``folded`` after the algebra, ``integers`` after quantization, ``plan`` with an engine a layer;
    ``command`` is the command line that made it, if one did; ``front``, if asked for, what other speeds would take.
    """

    source: Path
    source_sha256: str
    network: Graph
    folded: Graph
    integers: Graph
    plan: Plan
    vectors: IntArray
    labelled: Samples | None = field(default=None)
    front: tuple[Point, ...] = ()
    command: str | None = None

    @cached_property
    def accuracy(self) -> dict[str, Any] | None:
        """Share of labelled samples classified rightly, in floating point and in integers; ``None`` without labels."""
        if self.labelled is None or self.labelled.labels is None:
            return None
        x, y = self.labelled.images, self.labelled.labels
        name = self.integers.outputs[0]
        raw = golden.run(self.integers, self.integers.format_of(self.integers.input.name).quantize(x))[name]
        found: dict[str, Any] = {"samples": len(y), "integer": _accuracy(self.integers, name, raw, y)}
        if not is_quantized(self.network):
            before = evaluate(self.network, x)[self.network.outputs[0]]
            after = evaluate(self.folded, x)[self.folded.outputs[0]]
            scale = float(np.max(np.abs(before))) or 1.0
            found |= {
                "float": _accuracy(self.network, self.network.outputs[0], before, y),
                "folding_difference": float(np.max(np.abs(before - after))) / scale,
            }
        return found

    def write(self, folder: str | Path) -> Path:
        """Write the build folder; it appears whole or not at all. A build that is there already is replaced.

        *Raises* ``CompileError`` if ``folder`` holds something that is not a build of convfold's, or cannot be written.
        """
        folder = Path(folder)
        self._check_folder(folder)
        explained = [] if is_quantized(self.network) else explain(self.network, self.folded)
        explanations = [str(entry) for entry in explained]
        extra: dict[str, Any] = {"accuracy": self.accuracy, "explanations": explanations}
        if self.front:
            extra["pareto"] = front_record(self.front)
        if self.command is not None:
            extra["command"] = self.command
        files = emit(Emission(self.plan, self.network, self.source, self.source_sha256, extra))
        files["vectors.npz"] = npz_bytes(vectors(self.integers, self.vectors, golden.run(self.integers, self.vectors)))
        files["network.json"] = (json.dumps(dump_graph(self.integers), indent=1, ensure_ascii=False) + "\n").encode()
        files["network.npz"] = npz_bytes(self.integers.weights)
        files["report.html"] = report_html(json.loads(files["manifest.json"])).encode()
        try:
            _replace_folder(folder, files)
        except OSError as error:
            message = f"cannot be written: {error.strerror}"
            raise CompileError(str(folder), message, "choose another folder with -o") from error
        return folder

    def _check_folder(self, folder: Path) -> None:
        """Whether ``folder`` may be replaced: nothing is lost but a build."""
        another = "choose another folder with -o"
        try:
            if not folder.exists():
                return
            if not (folder.is_dir() and (not any(folder.iterdir()) or _is_build(folder))):
                raise CompileError(str(folder), "exists and is no build folder", another)
            for path, what in ((Path.cwd(), "the current folder"), (self.source, "the network itself")):
                if path.resolve().is_relative_to(folder.resolve()):
                    raise CompileError(str(folder), f"cannot be replaced, because {what} is in it", another)
        except OSError as error:
            raise CompileError(str(folder), f"cannot be read: {error.strerror}", another) from error


def _accuracy(graph: Graph, output: str, values: NDArray[np.float64] | IntArray, labels: IntArray) -> float:
    """The share of frames classified rightly, by the greatest output or by the one that an argmax names."""
    if isinstance(graph.node(output), ArgMax):
        return float(np.mean(values.reshape(-1) == labels))
    return accuracy(values, labels)


def _is_build(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "source_sha256" in manifest


def _replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder with ``files`` where ``folder`` is; if that fails, what was there stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        whole, before = Path(scratch, "build"), Path(scratch, "before")
        whole.mkdir()
        for name, content in files.items():
            (whole / name).write_bytes(content)
        if folder.exists():
            folder.rename(before)
        try:
            whole.rename(folder)
        except BaseException:
            if before.exists():
                before.rename(folder)
            raise


def compile(
    net: str | Path | nn.Module,
    target: str = "generic",
    *,
    fps: float | None = None,
    latency_us: float | None = None,
    fill: float = FILL,
    calibration: str | Path | RealArray | None = None,
    test: str | Path | None = None,
    fold_options: Options | None = None,
    quantize_options: QuantizeOptions | None = None,
    approximate: Budget | None = None,
    input_range: tuple[float, float] | None = None,
    input_shape: Sequence[int] | None = None,
    head: str | None = None,
    progress: Progress = lambda step: None,
) -> Compiled:
    """Compile a network file, or a PyTorch module, for a target.

    The accelerator is the smallest that reaches ``fps`` frames a second and answers within ``latency_us`` microseconds from
    first beat in to last beat out, both at the target's planning clock. If neither is given it is the fastest that fits, or for
    no device in particular the smallest. Of a device's look-up tables, flip-flops and block RAMs the share ``fill`` is used.

    *Shapes* ``input_shape`` is what a module takes, ``(C, H, W)`` without the batch. ``calibration`` is an array of images
    ``(N, H, W, C)``, or an ``.npz`` with one called ``x``; ``test`` is an ``.npz`` with images ``x`` and labels ``y``.

    With ``approximate`` pairs of layers with a rectifier between them become one where that stays within the budget.
    ``input_range`` are the limits of the real inputs of a float model of another tool (by default -1 to 1). With ``head``
    ``"argmax"`` the accelerator sends the number of the greatest output instead of all.

    A model that comes in integers keeps them: nothing is folded or quantized anew.

    *Raises* ``CompileError`` for anything wrong with the input.
    """
    chip = get_target(target)
    progress("import")
    path, network, digest = _import(net, input_range, input_shape)
    match calibration:
        case None | np.ndarray():
            images = calibration
        case str() | Path():
            images = load_samples(Path(calibration), network).images
        case _:
            raise TypeError(f"calibration must be an array or the path of an .npz, not {calibration!r}")
    labelled = None if test is None else load_samples(Path(test), network, labels=True)
    if is_quantized(network):
        folded = integers = network
        chosen = fold_options not in (None, Options()) or quantize_options not in (None, QuantizeOptions())
        if chosen or calibration is not None or approximate is not None:
            message = "comes in integers of its own, so there is nothing to fold, to calibrate or to quantize"
            raise CompileError(path.name, message, "leave these options out")
    else:
        progress("fold")
        folded = fold(network, fold_options or Options())
        if approximate is not None:
            progress("approximate")
            test_images, labels = (None, None) if labelled is None else (labelled.images, labelled.labels)
            evidence = Evidence.of(images, test_images, labels)
            folded = verify(approximate_pairs(folded, approximate, evidence, fold_options or Options()), "approximate")
        progress("quantize")
        integers = verify(quantize(folded, quantize_options or QuantizeOptions(), images), "integer")
    if head is not None:
        integers = verify(_with_head(integers, head), "integer")
    progress("plan")
    plan = make_plan(integers, chip, fps, latency_us, fill)
    real = labelled.images if labelled is not None else images
    return Compiled(
        source=path,
        source_sha256=digest,
        network=network,
        folded=folded,
        integers=integers,
        plan=plan,
        vectors=_vectors(integers, real),
        labelled=labelled,
    )


def _import(
    net: str | Path | nn.Module, input_range: tuple[float, float] | None, input_shape: Sequence[int] | None
) -> tuple[Path, Graph, str]:
    """Where a network comes from, the network, and the hash that identifies it."""
    if isinstance(net, str | Path):
        path = Path(net)
        if input_shape is not None:
            raise CompileError(path.name, "tells its own input shape", "leave input_shape out: it is for PyTorch modules")
        return path, import_model(path, input_range), model_sha256(path)
    if input_shape is None:
        raise CompileError(type(net).__name__, "does not tell its input shape", "give it as input_shape=(C, H, W)")
    network = import_module(net, input_shape, input_range)
    digest = hashlib.sha256(f"{network}\n".encode() + npz_bytes(network.weights)).hexdigest()
    return Path(type(net).__name__), network, digest


def _with_head(graph: Graph, head: str) -> Graph:
    """The graph with an argmax behind every output; a softmax there would change no order."""
    if head != "argmax":
        raise CompileError("--head", f"{head!r} is no head", "the one there is, is argmax")
    nodes, taken = list(graph.nodes), set(graph.shapes)
    outputs = []
    for name in graph.outputs:
        if graph.shapes[name][2] < 2:
            raise CompileError("--head", f"output {name!r} has a single channel, so there is no greatest", "leave --head out")
        outputs.append(fresh_name(f"{name}_argmax", taken))
        taken.add(outputs[-1])
        nodes.append(ArgMax(name=outputs[-1], inputs=(name,), source=f"--head {head}"))
    return replace(graph, nodes=tuple(nodes), outputs=tuple(outputs), heads=())


def _vectors(graph: Graph, images: RealArray | None) -> IntArray:
    """Frames to simulate: real images if there are any, else random ones that reach the input's limits."""
    form = graph.format_of(graph.input.name)
    if images is not None:
        return form.quantize(images[:VECTORS])
    rng = np.random.default_rng(0)
    return rng.integers(form.min_raw, form.max_raw + 1, (VECTORS, *graph.input.shape))
