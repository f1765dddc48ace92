"""An accelerator driven by a bench that knows its manifest only, with AXI4-Stream drivers that are not ours."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from convfold.api import Compiled, compile
from convfold.compiler.passes import Options
from convfold.compiler.quantize import QuantizeOptions
from convfold.compiler.tools.simulators import BenchRun, find_simulator, run_cocotb
from convfold.sim import golden
from tests.networks import Network, small_simulator

HERE = Path(__file__).parent
BENCH = HERE / "outside_bench.py"
DIGITS = HERE.parents[1] / "examples" / "digits"


def drive(compiled: Compiled, folder: Path, frames: int) -> BenchRun:
    """Hand the build, without golden's vectors, and the frames over to the bench."""
    if importlib.util.find_spec("cocotbext.axi") is None:
        pytest.skip("cocotbext-axi is not installed")
    written = compiled.write(folder / "written")
    build = folder / "build"
    build.mkdir()
    for name in ("accelerator.v", "manifest.json"):
        shutil.copyfile(written / name, build / name)
    inputs = compiled.vectors[:frames]
    (outputs,) = golden.run(compiled.integers, inputs).values()
    task = {"build": str(build), "inputs": inputs.tolist(), "outputs": outputs.tolist()}
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    return run_cocotb(
        find_simulator(small_simulator()),
        [build / "accelerator.v"],
        json.loads((build / "manifest.json").read_text(encoding="utf-8"))["top"],
        BENCH.stem,
        folder,
        python_path=[HERE],
        env={"OUTSIDE": str(folder / "task.json")},
    )


def failures(run: BenchRun) -> list[str]:
    """Each failed test with the first line of what it said."""
    return [f"{result.name}: {result.message.splitlines()[0]}" for result in run.results if not result.passed]


def test_the_bench_knows_nothing_of_ours() -> None:
    tree = ast.parse(BENCH.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {
        *("__future__", "json", "os", "random", "pathlib", "typing", "cocotb", "cocotbext")
    }


def test_digits(tmp_path: Path) -> None:
    """Real images; what comes back is golden's, and mostly the right digit."""
    compiled = compile(
        DIGITS / "digits.toml", fps=100_000, calibration=DIGITS / "calibration.npz", test=DIGITS / "test.npz"
    )
    run = drive(compiled, tmp_path, frames=3)
    assert len(run.results) == 2
    assert failures(run) == []


@pytest.mark.parametrize(
    ("bits", "low", "filters"),
    [(8, -1.0, 7), (11, 0.0, 3), (3, -1.0, 5)],
    ids=["signed bytes, lanes to spare", "two bytes a lane", "three bits in a byte"],
)
def test_formats_at_the_edge(bits: int, low: float, filters: int, tmp_path: Path) -> None:
    """Sign, zero extension, and beats that a pixel does not fill."""
    network = Network((3, 4, 5), low=low).conv("edges", filters, (2, 2))
    compiled = compile(
        network.write(tmp_path),
        fps=1.3e6,
        calibration=network.images(16),
        fold_options=Options("off"),
        quantize_options=QuantizeOptions(bits=bits),
    )
    assert compiled.plan.pipeline.edge_in.lanes > 1
    run = drive(compiled, tmp_path, frames=4)
    assert failures(run) == []


def test_a_wrong_answer_is_told(tmp_path: Path) -> None:
    """The bench sees a network that is not the one that golden runs."""
    compiled = compile(Network((3, 3, 1)).conv("edges", 2, (2, 2)).write(tmp_path), fps=1e6)
    biases = compiled.integers.weights["edges.b"] + (1 << 12)
    other = replace(compiled.integers, weights={**compiled.integers.weights, "edges.b": biases})
    assert failures(drive(replace(compiled, integers=other), tmp_path, frames=2)) == [
        "frames_back_to_back: frame 0 differs",
        "frames_with_pauses_on_both_sides: frame 0 differs",
    ]
