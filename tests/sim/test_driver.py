"""The compiled driver moves the same beats in the same cycles as cocotb, and finds the same faults."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import convfold
from convfold.cli import main
from convfold.compiler.emit import npz_bytes
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.simulators import build_program, find_simulator
from convfold.sim.cosimulate import Cosimulation, cosimulate
from tests.hostile.tflite import tflite_writer
from tests.networks import small_simulator


@pytest.fixture(scope="module", autouse=True)
def verilator() -> None:
    """Nothing here runs without it."""
    try:
        find_simulator("verilator")
    except ToolError:
        pytest.skip("no Verilator")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two outputs, beats of odd widths, and the program built."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "net.tflite").write_bytes(tflite_writer().write([0], (3, 7)))
    build = convfold.compile(folder / "net.tflite").write(folder / "build")
    assert cosimulate(build, frames=1, fast=True).passed
    return build


@pytest.fixture
def build(sound: Path, tmp_path: Path) -> Iterator[Path]:
    """To be spoilt. It stays where the program was built, and is put right afterwards."""
    names = ("manifest.json", "vectors.npz", "accelerator.v")
    for name in names:
        shutil.copy(sound / name, tmp_path)
    yield sound
    for name in names:
        shutil.copy(tmp_path / name, sound)


def seen(run: Cosimulation) -> dict[str, object]:
    """All that a run tells but its speed."""
    record = {key: value for key, value in run.record.items() if key != "simulator"}
    record["profiles"] = [{key: profile[key] for key in profile if key != "seconds"} for profile in record["profiles"]]
    return record


def test_it_sees_what_cocotb_sees(build: Path) -> None:
    """Cycle for cycle, layer for layer, under all stalls."""
    driven = cosimulate(build, frames=2, seed=7, fast=True)
    assert driven.passed and driven.summary() == "6 tests passed"
    assert driven.record["simulator"].endswith(", compiled driver")
    assert driven.record["frames"] == 8
    assert seen(driven) == seen(cosimulate(build, frames=2, seed=7, simulator=small_simulator()))


def test_the_command(build: Path) -> None:
    result = CliRunner().invoke(main, ["simulate", str(build), "--frames", "2", "--fast"])
    assert result.exit_code == 0, result.output
    assert re.search(r"^passed: 6 tests passed \(verilator .*, compiled driver\)$", result.output, re.MULTILINE)
    manifest = json.loads((build / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["simulation"]["passed"] is True


@pytest.mark.parametrize("option", [["--waves"], ["--simulator", "icarus"]])
def test_what_it_cannot_do_is_refused(build: Path, option: list[str]) -> None:
    result = CliRunner().invoke(main, ["simulate", str(build), "--fast", *option])
    assert result.exit_code == 2
    assert "options: --fast is for Verilator, and keeps no waves" in result.output


def test_a_wrong_expectation_is_found(build: Path) -> None:
    with np.load(build / "vectors.npz", allow_pickle=False) as arrays:
        vectors = {name: arrays[name].copy() for name in arrays.files}
    vectors["outputs1"][1, 0, 0, 0] ^= 1
    (build / "vectors.npz").write_bytes(npz_bytes(vectors))
    run = cosimulate(build, frames=2, fast=True)
    assert not run.passed
    assert re.search(r"no_stalls: 1 of \d+ beats differ; the first is beat 0 of frame 1 of m1_axis: ", run.summary())


def test_a_promise_that_does_not_hold_is_found(build: Path) -> None:
    path = build / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | {"interval_cycles": manifest["interval_cycles"] - 1}), encoding="utf-8")
    run = cosimulate(build, frames=1, fast=True)
    assert re.search(r"^latency_and_interval: interval \d+, manifest \d+$", run.summary(), re.MULTILINE)


SPOILT = {
    "silent": ("m1", "1'h0", r"\d+ of \d+, 0 of \d+ outputs, then nothing for \d+ cycles$"),
    "withdrawn": ("m0", "{} & m1_axis_tready", r": beat \d+ of m0_axis was withdrawn while it waited$"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_broken_stream_is_found(build: Path, kind: str) -> None:
    """``tvalid`` of one output gets another value than that of the edge that drives it."""
    output, value, text = SPOILT[kind]
    path = build / "accelerator.v"
    verilog = path.read_text(encoding="utf-8")
    found = re.search(rf"^  assign (\\?o_tvalid\S* ?) = {output}_axis_tvalid;$", verilog, re.MULTILINE)
    assert found is not None
    verilog = verilog.replace(found[0], f"  assign {output}_axis_tvalid = {value.format(found[1])};")
    verilog = verilog.replace(f".o_tvalid({output}_axis_tvalid)", f".o_tvalid({found[1]})")
    path.write_text(verilog, encoding="utf-8")
    run = cosimulate(build, frames=1, fast=True)
    assert not run.passed
    assert re.search(text, run.summary(), re.MULTILINE), run.summary()


def test_only_verilator_makes_programs(tmp_path: Path) -> None:
    simulator = find_simulator("icarus")
    with pytest.raises(ToolError, match=r"^icarus: makes no programs"):
        build_program(simulator, [], "top", tmp_path)
