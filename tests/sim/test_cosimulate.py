"""Random networks through the whole compiler: the simulated Verilog is golden's equal, bit for bit and cycle for cycle.

``CONVFOLD_SOAK=200`` adds as many networks to the few of every run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from convfold.api import Compiled
from convfold.cli import main
from convfold.compiler.emit import npz_bytes
from convfold.compiler.errors import CompileError
from convfold.compiler.passes import Options
from convfold.compiler.targets import get_target
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.simulators import find_simulator
from convfold.hdl.conv import ConvParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.sim.cosimulate import Cosimulation, cosimulate
from tests.networks import Network, compile_network, random_case, small_simulator

SEEDS = (11, 16, 27, 39, 49, 61, 103, 104, 116)
SOAK = range(1000, 1000 + int(os.environ.get("CONVFOLD_SOAK", "0")))

PROFILES = ["none", "input gaps", "output stalls", "both"]


def assert_equal_to_golden(compiled: Compiled, build: Path, fast: bool = False) -> None:
    """Every stall profile, frames of wrong length, and the manifest's latency and interval."""
    run = cosimulate(compiled.write(build), frames=2, simulator=None if fast else small_simulator(), fast=fast)
    assert run.passed, run.summary()
    assert run.mismatches == 0
    assert [profile["name"] for profile in run.record["profiles"]] == PROFILES
    assert [profile["frames"] for profile in run.record["profiles"]] == [2] * 4
    assert run.record["latency_cycles"] == compiled.plan.latency_cycles
    assert run.record["interval_cycles"] == compiled.plan.interval_cycles
    assert run.summary() == "6 tests passed"
    assert_layers_are_counted(compiled, run)


def assert_layers_are_counted(compiled: Compiled, run: Cosimulation) -> None:
    """One frame, then six: of these the last four count. Each layer works exactly as long as its steps; the rest it waits."""
    promised = {stage.node.name: stage for stage in compiled.plan.stages}
    layers = run.record["layers"]
    assert [layer["name"] for layer in layers] == list(promised)
    for layer in layers:
        window = promised[layer["name"]].window
        assert layer["frames"] == 4
        assert layer["steps"] * 4 == layer["busy"] * 7
        assert layer["steps"] <= layer["span"]
        if window is not None:
            assert layer["busy"] == 4 * window.out_height * window.out_width * window.ii


@pytest.mark.parametrize("seed", [*SEEDS, *SOAK])
def test_a_random_network(seed: int, tmp_path: Path) -> None:
    case = random_case(seed, most_macs=800 if seed in SEEDS else 3000)
    try:
        compiled = case.compile(tmp_path)
    except CompileError as error:
        assert error.source == case.target
        compiled = replace(case, fps=None).compile(tmp_path, "generic")
    assert_equal_to_golden(compiled, tmp_path / "build")


@pytest.mark.parametrize(("target", "signed"), [("generic", True), ("ecp5-25k", False)])
def test_rows_of_filters_with_fillers(target: str, signed: bool, tmp_path: Path) -> None:
    """Few taps and many filters at a high rate: several rows share a pass, and the last has lanes to spare."""
    network = Network((4, 4, 1), low=-1.0 if signed else 0.0).conv("wide", 7, (1, 1))
    compiled = compile_network(network, tmp_path, target, fps=2.5e6, calibrated=True, fold=Options("off"))
    cores = [stage.core for stage in compiled.plan.stages if isinstance(stage.core, ConvParams)]
    assert cores[0].rows > 1 and cores[0].filters % cores[0].rows
    assert_equal_to_golden(compiled, tmp_path / "build")


@pytest.mark.parametrize(("fps", "mixed"), [(100_000, False), (200_000, True)])
def test_hard_multipliers_of_up5k(fps: float, mixed: bool, tmp_path: Path) -> None:
    """The emitted Verilog with the model of SB_MAC16: all multipliers in blocks, or more of them than there are."""
    network = Network((4, 4, 2)).conv("first", 4, (3, 3), padding="same").relu("live").conv("second", 3, (2, 2))
    compiled = compile_network(network, tmp_path, "ice40-up5k", fps=fps, calibrated=True, fold=Options("off"))
    cores = [stage.core for stage in compiled.plan.stages if isinstance(stage.core, ConvParams)]
    assert any(core.hard > 1 for core in cores)
    assert any(core.hard < core.multipliers for core in cores) == mixed
    assert_equal_to_golden(compiled, tmp_path / "build")


@pytest.mark.parametrize(("weight_bits", "fps", "mixed"), [(4, 400_000, True), (5, 1_000_000, False)])
def test_pairs_of_ecp5(weight_bits: int, fps: float, mixed: bool, tmp_path: Path) -> None:
    """The emitted Verilog with the model of MULT18X18D: blocks for all multipliers, or look-up tables for some."""
    network = Network((4, 4, 2)).conv("first", 4, (3, 3), padding="same").relu("live").conv("second", 3, (2, 2))
    options = Options("off")
    compiled = compile_network(network, tmp_path, "ecp5-25k", fps=fps, calibrated=True, fold=options, weight_bits=weight_bits)
    cores = [stage.core for stage in compiled.plan.stages if isinstance(stage.core, ConvParams)]
    assert sum(core.hard for core in cores) > compiled.plan.resources.dsps > 0
    assert any(core.hard < core.multipliers for core in cores) == mixed
    assert_equal_to_golden(compiled, tmp_path / "build")


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The results of a frame have left long before its last rows, which nobody needs, have come in."""
    folder = tmp_path_factory.mktemp("early")
    return compile_network(Network((9, 8, 1)).pool("top", (2, 2), (9, 1)), folder, "generic", calibrated=True)


@pytest.mark.parametrize("fast", [False, True])
def test_a_frame_goes_in_whole_though_its_results_are_there(early: Compiled, fast: bool, tmp_path: Path) -> None:
    """Both benches: a test after another on the same engine, and ``error`` is right."""
    if fast:
        try:
            find_simulator("verilator")
        except ToolError:
            pytest.skip("no Verilator")
    assert early.plan.latency_cycles < early.plan.interval_cycles - 12
    assert_equal_to_golden(early, tmp_path / "build", fast)


def test_the_random_networks_are_of_all_kinds(tmp_path: Path) -> None:
    cases = {seed: random_case(seed, most_macs=800) for seed in SEEDS}
    assert {get_target(case.target).family for case in cases.values()} == {"generic", "ecp5", "ice40"}
    assert {case.bits for case in cases.values()} == {2, 3, 5, 7, 8, 11, 16}
    assert {case.weight_bits for case in cases.values()} == {2, 3, 6, 8, 9, 12, 16}
    assert len({case.fps for case in cases.values()}) == 5
    assert {case.calibrated for case in cases.values()} == {True, False}
    operators = {layer["op"] for case in cases.values() for layer in case.network.layers}
    assert operators == {"conv2d", "dense", "batch_norm", "pca", "relu", "clip", "max_pool"}

    plans = [case.compile(tmp_path).plan for case in cases.values()]
    stages = [stage for plan in plans for stage in plan.stages]
    cores = [stage.core for stage in stages if isinstance(stage.core, ConvParams)]
    assert any(len(plan.stages) >= 4 for plan in plans)
    assert any(isinstance(part.params, LaneAdapterParams) for plan in plans for part in plan.pipeline.components)
    assert {core.window.parallel == (1, 1) for core in cores} == {True, False}
    assert {core.pes > 1 for core in cores} == {True, False}
    assert len({core.requantizer_ii for core in cores}) > 1
    assert {core.multiplier for core in cores} == {"behavioural", "ecp5", "ice40"}
    assert any(core.walk.count > 1 for core in cores)


# ---------------------------------------------------------------------------------------------------------------- sabotage


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = Network((4, 4, 1)).conv("edges", 2, (2, 2)).relu("live").conv("mix", 2, (2, 2)).relu("late").dense("scores", 4)
    folder = tmp_path_factory.mktemp("sound")
    return compile_network(network, folder, fps=1e6, calibrated=True, fold=Options("off")).write(folder / "build")


@pytest.fixture
def build(sound: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(sound, tmp_path / "build", ignore=shutil.ignore_patterns("sim_build")))


def simulate(build: Path, frames: int = 2) -> tuple[int, str]:
    """``convfold simulate``: exit status and output."""
    arguments = ["simulate", str(build), "--frames", str(frames), "--simulator", small_simulator()]
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def change(path: Path, pattern: str, new: str | Callable[[re.Match[str]], str]) -> None:
    """Replace one place in a file."""
    text, count = re.subn(pattern, new, path.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    assert count == 1
    path.write_text(text, encoding="utf-8")


def flip_a_bit(match: re.Match[str]) -> str:
    """The most significant bit of a word of a ROM: the sign of one weight."""
    bits, word = int(match[2]), int(match[3], 16)
    return f"{match[1]}{bits}'h{word ^ 1 << (bits - 1):x};"


def rewire(build: Path, wire: str, port: str, value: str) -> None:
    """Give a port of the top module another value than that of the edge that drives it."""
    change(build / "accelerator.v", rf"^    \.o_{wire}\({port}\)", f"    .o_{wire}(o_{wire})")
    change(build / "accelerator.v", rf"^  assign o_{wire} = {port};$", f"  assign {port} = {value};")


DIFFERS = re.compile(
    r"(\d+) of (\d+) beats differ; the first is beat (\d+) of frame (\d+) of m_axis: "
    r"\(tdata, tlast\) = \(0x[0-9a-f]+, "
)


def test_a_sound_build_passes(build: Path) -> None:
    """And the same seed gives the same stalls, another one others."""
    status, output = simulate(build)
    assert status == 0
    assert re.search(r"^passed: 6 tests passed \((icarus|verilator) ", output, re.MULTILINE)
    manifest = json.loads((build / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["simulation"]["passed"] is True
    assert manifest["simulation"]["frames"] == 8
    runs = [manifest["simulation"]]
    runs += [cosimulate(build, frames=2, seed=seed, simulator=small_simulator()).record for seed in (1, 2)]
    cycles = [[profile["cycles"] for profile in run["profiles"]] for run in runs]
    assert cycles[0] == cycles[1] != cycles[2]
    assert [run["seed"] for run in runs] == [1, 1, 2]


def test_one_flipped_bit_of_a_rom_is_found(build: Path) -> None:
    """The message names the frame and the beat."""
    word = r"(module net_edges_row0_pe0_weights\((?:.|\n)*?\[0\] = )(\d+)'h([0-9a-f]+);"
    change(build / "accelerator.v", word, flip_a_bit)
    status, output = simulate(build)
    assert status == 1
    found = DIFFERS.search(output)
    assert found is not None, output
    assert int(found[1]) <= int(found[2]) and int(found[4]) < 2
    assert "failed: no_stalls: " in output
    manifest = json.loads((build / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["simulation"]["passed"] is False


def test_one_changed_operator_is_found(build: Path) -> None:
    """An accumulator that subtracts."""
    sum_ = r"(module net_mix_row0_pe0\((?:.|\n)*?\$signed\(\w+\)) \+ (\$signed\()"
    change(build / "accelerator.v", sum_, r"\1 - \2")
    status, output = simulate(build)
    assert status == 1
    assert DIFFERS.search(output) is not None, output


def test_an_engine_that_says_nothing_is_found(build: Path) -> None:
    rewire(build, "tvalid", "m_axis_tvalid", "1'h0")
    status, output = simulate(build, frames=1)
    assert status == 1
    assert re.search(r"no_stalls: 0 of \d+ outputs, then nothing for \d+ cycles", output)
    assert re.search(r"^latency +not measured, [\d,]+ promised$", output, re.MULTILINE)
    report = CliRunner().invoke(main, ["report", str(build)])
    assert report.exit_code == 0, report.output


def test_a_beat_that_does_not_wait_is_found(build: Path) -> None:
    """``tvalid`` withdrawn while ``tready`` is low breaks AXI4-Stream."""
    rewire(build, "tvalid", "m_axis_tvalid", "o_tvalid & m_axis_tready")
    status, output = simulate(build)
    assert status == 1
    assert re.search(r": beat \d+ of m_axis was withdrawn while it waited|outputs, then nothing for", output), output


@pytest.mark.parametrize("name", ["latency", "interval"])
def test_a_promise_that_does_not_hold_is_found(build: Path, name: str) -> None:
    path = build / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    right = manifest[f"{name}_cycles"]
    path.write_text(json.dumps(manifest | {f"{name}_cycles": right + 1}), encoding="utf-8")
    status, output = simulate(build, frames=1)
    assert status == 1
    assert re.search(rf"latency_and_interval: {name} {right}, manifest {right + 1}$", output, re.MULTILINE), output


def test_an_error_flag_that_stays_low_is_found(build: Path) -> None:
    rewire(build, "error", "error", "1'h0")
    status, output = simulate(build, frames=1)
    assert status == 1
    assert "frames_of_wrong_length: error is not set by a frame that ends early" in output


def test_wrong_expectations_are_found(build: Path) -> None:
    """Even one value of one frame."""
    with np.load(build / "vectors.npz", allow_pickle=False) as arrays:
        vectors = {name: arrays[name].copy() for name in arrays.files}
    vectors["outputs"][1, 0, 0, 3] += 1
    (build / "vectors.npz").write_bytes(npz_bytes(vectors))
    status, output = simulate(build)
    assert status == 1
    assert re.search(r"1 of \d+ beats differ; the first is beat \d of frame 1 of m_axis: ", output), output


def test_verilog_that_does_not_build_is_no_traceback(build: Path) -> None:
    change(build / "accelerator.v", r"^endmodule$", "nonsense")
    with pytest.raises(ToolError, match=r"^(icarus|verilator): the build of monitor failed\n"):
        cosimulate(build, simulator=small_simulator())
    status, output = simulate(build)
    assert status == 2
    assert "Traceback" not in output


@pytest.mark.parametrize("name", ["accelerator.v", "vectors.npz", "test_accelerator.py"])
def test_a_build_that_lacks_a_file(build: Path, name: str) -> None:
    (build / name).unlink()
    status, output = simulate(build)
    assert status == 2
    assert f"has no {name}" in output
    assert "fix: run convfold compile again" in output


# ---------------------------------------------------------------------------------------------------------------- the bench


def test_the_emitted_bench_runs_under_pytest(build: Path) -> None:
    """As its own first lines say."""
    only_icarus = build / "bin"
    if small_simulator() == "icarus":  # and not Verilator, which compiles longer than this test runs
        only_icarus.mkdir()
        for name in ("iverilog", "vvp"):
            (only_icarus / name).symlink_to(shutil.which(name) or "")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_accelerator.py"],
        cwd=build,
        env=environment | {"CONVFOLD_FRAMES": "1"} | ({"PATH": str(only_icarus)} if only_icarus.exists() else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout
