"""Outside programs: where their output goes, and what is said when they fail."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.process import last_lines, output_of, parse_version, run_logged


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


def test_both_streams_go_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = "import sys; print('one', flush=True); print('two', file=sys.stderr)"
    log = run_logged("tool", python(program), tmp_path, "tool.log")
    assert log.read_text() == "one\ntwo\n"
    assert capfd.readouterr() == ("", "")


def test_a_failure_ends_with_the_log(tmp_path: Path) -> None:
    program = "print('fine'); print('ERROR: no such cell'); raise SystemExit(3)"
    with pytest.raises(ToolError) as caught:
        run_logged("tool", python(program), tmp_path, "tool.log")
    assert caught.value.message == "stopped with exit status 3\nERROR: no such cell"
    assert str(caught.value).startswith("tool: stopped with exit status 3\nERROR: no such cell\n  log: ")


def test_any_status_is_left_to_the_caller(tmp_path: Path) -> None:
    run_logged("tool", python("raise SystemExit(3)"), tmp_path, "tool.log", any_status=True)


def test_a_crash_names_the_signal(tmp_path: Path) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    with pytest.raises(ToolError, match=r"^tool: was stopped by signal 11\n"):
        run_logged("tool", python(program), tmp_path, "tool.log")


def test_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"^tool: cannot be started: No such file or directory\n"):
        run_logged("tool", [str(tmp_path / "absent")], tmp_path, "tool.log")


def test_a_timeout_stops_the_children_too(tmp_path: Path) -> None:
    child = "import time; time.sleep(1); open('late', 'w').close()"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(ToolError, match=r"^tool: was stopped after 0.3 s\n"):
        run_logged("tool", python(program), tmp_path, "tool.log", timeout_s=0.3)
    time.sleep(1.2)
    assert not (tmp_path / "late").exists()


def test_a_traceback_is_not_shown(tmp_path: Path) -> None:
    log = tmp_path / "tool.log"
    log.write_text("step 1\nERROR: broken\nTraceback (most recent call last):\n  File x\nRuntimeError: 1\n")
    assert last_lines(log) == "ERROR: broken"
    log.write_text("Traceback (most recent call last):\n  File x\nRuntimeError: broken\n")
    assert last_lines(log) == "RuntimeError: broken"


def test_only_the_end_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "tool.log"
    log.write_text("\n".join(f"line {number}" for number in range(5000)))
    assert last_lines(log, 2) == "line 4998\nline 4999"
    assert last_lines(tmp_path / "absent") == ""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Verilator 5.036 2025-04-27 rev v5.036", (5, 36)),
        ("Icarus Verilog version 11.0 (stable) ()", (11, 0)),
        ("pyosys 0.70", (0, 70)),
        (" rev vUNKNOWN-built20260516", ()),
    ],
)
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_output_of_a_command() -> None:
    assert output_of(python("print('here')")) == "here\n"
    assert output_of(python("raise SystemExit(1)")) is None
    assert output_of(["/absent/program"]) is None
