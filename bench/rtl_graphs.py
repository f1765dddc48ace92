"""Random models, from file to simulated Verilog: every beat compared, under every stall profile.

    python bench/rtl_graphs.py --count 100 [--first 0] [--simulator icarus]

Models are quantized ones of TFLite and ONNX and our own specifications in turn, with branches, residuals and all operators,
for targets and rates that change from model to model. A model that no chip takes at that rate is compiled as small as it can
be. Prints each model, and the seeds that failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import convfold
from convfold.compiler.errors import CompileError
from convfold.compiler.graph import Input
from convfold.sim.cosimulate import cosimulate
from tests.networks import random_branches
from tests.onnx_random import random_model
from tests.tflite_nets import random_network

TARGETS = ("generic", "ecp5-85k", "ice40-hx8k")
FRAMES = 2


def write_model(seed: int, folder: Path) -> Path:
    """A random model's file."""
    if seed % 3 == 2:
        return random_branches(seed, folder)
    if seed % 3:
        path = folder / f"random{seed}.onnx"
        path.write_bytes(random_model(seed).SerializeToString())
    else:
        path = folder / f"random{seed}.tflite"
        rng = np.random.default_rng(seed)
        path.write_bytes(random_network(rng, int(rng.integers(2, 7)))[0])
    return path


def compile_model(path: Path, seed: int) -> convfold.Compiled:
    """The model for a target of its own, some of them fast."""
    rng = np.random.default_rng(seed)
    target = TARGETS[int(rng.integers(len(TARGETS)))]
    fps = float(10 ** rng.uniform(2, 6))
    for chip, rate in ((target, fps), (target, 1.0), ("generic", None)):
        try:
            return convfold.compile(path, target=chip, fps=rate)
        except CompileError:
            if (chip, rate) == ("generic", None):
                raise
    raise AssertionError("the last attempt returns or raises")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--simulator", default="icarus")
    options = parser.parse_args()
    seen: Counter[str] = Counter()
    failed: list[int] = []
    refused: list[str] = []
    passed = 0
    seed = options.first
    while passed + len(failed) < options.count:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            path = write_model(seed, Path(scratch))
            try:
                compiled = compile_model(path, seed)
            except CompileError as error:
                refused.append(f"{seed}: {error.source}: {error.message}")
                seed += 1
                continue
            build = compiled.write(Path(scratch) / "build")
            run = cosimulate(build, frames=FRAMES, simulator=options.simulator)
        operators = [node.op for node in compiled.integers.nodes if not isinstance(node, Input)]
        seen.update(operators)
        print(
            f"{path.name:18} {compiled.plan.target.name:12} {compiled.plan.interval_cycles:7,} cycles  "
            f"{'exact' if run.passed else 'WRONG'}  {time.monotonic() - began:5.1f} s  {' '.join(operators)}",
            flush=True,
        )
        if run.passed:
            passed += 1
        else:
            failed.append(seed)
            print(run.summary(), flush=True)
        seed += 1
    print(f"\n{passed} exact, {len(failed)} wrong {failed or ''}, {len(refused)} refused")
    print("layers seen: " + ", ".join(f"{name} {count}" for name, count in seen.most_common()))
    for line in refused:
        print("refused", line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
