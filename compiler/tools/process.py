"""Runs one outside program with its output in a file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from convfold.compiler.tools.errors import ToolError

_TAIL_LINES = 12
_ERROR_LINE = re.compile(r"^\s*(?:%?error\b|fatal\b)", re.IGNORECASE)


def run_logged(
    tool: str,
    command: Sequence[str],
    cwd: Path,
    log: str,
    *,
    env: Mapping[str, str] | None = None,
    any_status: bool = False,
    timeout_s: float | None = None,
) -> Path:
    """Run ``command`` in ``cwd`` with both its streams in the file ``cwd/log``, and return that file.

    Nothing reaches our own standard output. When the caller is interrupted, or ``timeout_s`` is over, the
    program and everything it started is stopped.

    Raises:
        ToolError: the program cannot be started, takes too long, or ends with another status than 0 (unless
            ``any_status`` says that the caller judges by other signs).
    """
    log_path = cwd / log
    with log_path.open("wb") as stream:
        try:
            process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=None if env is None else dict(env),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ToolError(tool, f"cannot be started: {error.strerror}", log_path) from error
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            _stop(process)
            raise ToolError(tool, f"was stopped after {timeout_s:g} s", log_path) from error
        except BaseException:
            _stop(process)
            raise
    if status != 0 and not any_status:
        raise ToolError(tool, f"{_ending(status)}\n{last_lines(log_path)}".rstrip(), log_path)
    return log_path


def output_of(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> str | None:
    """What a short command such as ``yosys -V`` prints on either stream; ``None`` when it cannot run."""
    try:
        done = subprocess.run(
            list(command),
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def last_lines(log: Path, count: int = _TAIL_LINES) -> str:
    """The end of a log, from its first error line if that is near, without a Python traceback."""
    if not log.is_file():
        return ""
    text = log.read_bytes()[-20_000:].decode("utf-8", "replace")
    before, _, trace = text.partition("Traceback (most recent call last):")
    lines = [line for line in before.splitlines() if line.strip()]
    if not lines:
        return "\n".join([line.strip() for line in trace.splitlines() if line.strip()][-1:])
    tail = lines[-count:]
    first_error = next((number for number, line in enumerate(tail) if _ERROR_LINE.match(line)), 0)
    return "\n".join(tail[first_error:])


def parse_version(text: str) -> tuple[int, ...]:
    """``"Verilator 5.036 2025-04-27"`` is ``(5, 36)``; a text without a dotted number is ``()``."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a program started in a session of its own, with all its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ending(status: int) -> str:
    return f"was stopped by signal {-status}" if status < 0 else f"stopped with exit status {status}"
