"""The manifest is contract enough: a bench without convfold drives an accelerator and gets the golden model's outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from convfold.api import compile
from convfold.compiler.tools.simulators import find_simulator, run_cocotb
from convfold.sim import golden

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"
FRAMES = 3


def test_bench_imports_nothing_of_ours() -> None:
    text = Path(__file__).with_name("outside_bench.py").read_text(encoding="utf-8")
    assert not re.search(r"^(from|import)\s+(convfold|tests)", text, flags=re.MULTILINE)


def test_digits_through_a_foreign_axi_stream(tmp_path: Path) -> None:
    compiled = compile(DIGITS / "digits.toml", "generic", fps=40_000, calibration=DIGITS / "calibration.npz")
    build = compiled.write(tmp_path / "build")
    images = np.load(DIGITS / "test.npz", allow_pickle=False)["x"][:FRAMES]
    x_raw = compiled.integers.input.format.quantize(images) if compiled.integers.input.format else None
    assert x_raw is not None
    expected = golden.run(compiled.integers, x_raw)[compiled.integers.outputs[0]]
    frames = {"inputs": x_raw.tolist(), "outputs": expected.tolist()}
    (build / "frames.json").write_text(json.dumps(frames), encoding="utf-8")
    run = run_cocotb(
        find_simulator(),
        [build / "accelerator.v"],
        compiled.integers.name,
        "outside_bench",
        build,
        python_path=[Path(__file__).parent],
        env={"OUTSIDE_BUILD": str(build)},
    )
    assert run.passed, [result.message for result in run.results]
