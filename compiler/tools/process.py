"""Runs one outside program with its output in a file."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
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
    accept: Sequence[int] = (0,),
    hint: str = "",
) -> Path:
    """Run ``command`` in ``cwd`` with both its streams in the file ``cwd/log``, and return that file.

    Nothing reaches our own standard output. When the caller is interrupted the program is stopped too.

    Raises:
        ToolError: the program cannot be started, or its exit status is not in ``accept``.
    """
    log_path = cwd / log
    with log_path.open("wb") as stream:
        try:
            done = subprocess.run(
                list(command),
                cwd=cwd,
                env=None if env is None else dict(env),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=False,
            )
        except OSError as error:
            raise ToolError(tool, f"cannot be started: {error.strerror}", log_path, hint) from error
    if done.returncode not in accept:
        raise ToolError(tool, f"{_ending(done.returncode)}\n{last_lines(log_path)}".rstrip(), log_path, hint)
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
    """The end of a log, beginning at its first error line where that is near the end."""
    if not log.is_file():
        return ""
    text = log.read_bytes()[-20_000:].decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    tail = lines[-count:]
    for start, line in enumerate(tail):
        if _ERROR_LINE.match(line):
            tail = tail[start:]
            break
    return "\n".join(tail)


def parse_version(text: str) -> tuple[int, ...]:
    """``"Verilator 5.036 2025-04-27"`` is ``(5, 36)``; a text without a dotted number is ``()``."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _ending(status: int) -> str:
    return f"was stopped by signal {-status}" if status < 0 else f"stopped with exit status {status}"
