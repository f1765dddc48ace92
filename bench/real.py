"""Pretrained networks of other people, from file to chip: what README and docs/importing.md print.

    python bench/real.py [--frames 4] [--route] [--only NAME]

Needs the folder of real models (``CONVFOLD_MODELS``), the extras ``tflite`` and ``onnx``, and time: a large network takes tens
of minutes to simulate, and as long to route. Prints Markdown: seconds from the file to Verilog, cycles of the simulated
Verilog, frames and beats compared with the golden model over all stall profiles and how many differ; with ``--route``
nextpnr's counts and clock for an ECP5-85F of the slowest grade.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.run import BUILDS, convfold
from tests.models import HELLO_WORLD, INT8, find_models

SMALL = 6
"""Rows and columns of the images that the super-resolution networks get: theirs of 128 would take days to simulate."""


@dataclass(frozen=True, slots=True)
class Run:
    """A model, at how many frames a second on which target; ``samples`` names its real frames, if it has any."""

    model: str
    fps: int
    target: str = "ecp5-85k"
    samples: str = ""
    small: bool = False
    limits: tuple[float, float] | None = None


RUNS = {
    "keyword DS-CNN, int8": Run(INT8["kws"].model, 2000, samples="kws"),
    "ResNet-8, int8": Run(INT8["resnet8"].model, 1000, samples="resnet8"),
    "micro_speech, int8": Run(INT8["micro_speech"].model, 2000, samples="micro_speech"),
    "hello_world, int8": Run(HELLO_WORLD, 100_000),
    "ESPCN sub-pixel, QONNX": Run("qonnx_espcn/subpixel_quant_model.onnx", 4000, "generic", "", True, (0.0, 1.0)),
    "ESPCN sub-pixel, float": Run("qonnx_espcn/subpixel_float_model.onnx", 4000, "generic", "", True, (0.0, 1.0)),
    "ESPCN resize, float": Run("qonnx_espcn/nn_resize_float_model.onnx", 4000, "generic", "", True, (0.0, 1.0)),
}


def shrunk(path: Path, folder: Path) -> Path:
    """The same network for images of `SMALL` rows and columns."""
    import onnx

    model = onnx.load(path)
    for size in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.dim_value = SMALL
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    small = folder / path.name
    onnx.save(model, small)
    return small


def rows(models: Path, frames: int, route: bool, only: str) -> Iterator[list[str]]:
    for name, run in RUNS.items():
        if only not in name:
            continue
        build = str(BUILDS / "".join(letter if letter.isalnum() else "-" for letter in name))
        with tempfile.TemporaryDirectory() as scratch:
            path = models / run.model
            options = ["--target", run.target, "--fps", str(run.fps)]
            if run.small:
                path = shrunk(path, Path(scratch))
            if run.limits is not None:
                options += ["--input-range", *map(str, run.limits)]
            if run.samples:
                samples, data = INT8[run.samples], Path(scratch, "samples.npz")
                x_raw, y = samples.frames(models)[:frames], samples.classes(models)[:frames]
                np.savez(data, allow_pickle=False, x_raw=x_raw, y=y)
                options += ["--test", str(data)]
            began = time.monotonic()
            made = convfold("compile", str(path), *options, "-o", build)
            seconds = time.monotonic() - began
        simulated = convfold("simulate", build, "--frames", str(frames), "--fast")
        wrong = sum(profile["mismatches"] for profile in simulated["profiles"])
        beats = sum(profile["beats"] for profile in simulated["profiles"])
        cells = [name, run.target, f"{seconds:.1f}", f"{simulated['interval_cycles']:,}", f"{simulated['latency_cycles']:,}"]
        cells += [str(simulated["frames"]), f"{beats:,}", str(wrong) if simulated["passed"] else "FAILED"]
        if route and run.target != "generic":
            synthesis = convfold("synth", build)
            cells += [f"{synthesis[kind]:,} ({made['estimate'][kind]:,})" for kind in ("luts", "ffs", "dsps", "brams")]
            rate = synthesis["fmax_mhz"] * 1e6 / simulated["interval_cycles"]
            cells += [f"{synthesis['fmax_mhz']:.1f}", f"{rate:,.0f}"]
        yield cells


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=4, help="frames a stall profile")
    parser.add_argument("--route", action="store_true", help="also place and route")
    parser.add_argument("--only", default="", help="rows with this in their name")
    options = parser.parse_args()
    models = find_models()
    if models is None:
        raise SystemExit("no folder of models: set CONVFOLD_MODELS to it")
    heads = ["network", "target", "s to Verilog", "cycles/frame", "latency", "frames", "beats", "differing"]
    if options.route:
        heads += ["LUT (est.)", "FF (est.)", "DSP (est.)", "BRAM (est.)", "Fmax MHz", "frames/s"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for row in rows(models, options.frames, options.route, options.only):
        print(f"| {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
