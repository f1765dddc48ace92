"""Runs one outside program with its output in a file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from convfold.compiler.tools.errors import ToolError

_TAIL_LINES = 12
_ERROR_LINE = re.compile(r"^\s*(?:%?error\b|fatal\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Job:
    """A program that runs in a session of its own, with both its streams in the file ``log``."""

    tool: str
    log: Path
    process: subprocess.Popen[bytes]
    timeout_s: float | None
    deadline: float | None

    @property
    def over(self) -> bool:
        """Whether `wait` would return, or raise, at once: the program has ended, or its time is up."""
        return self.process.poll() is not None or (self.deadline is not None and time.monotonic() >= self.deadline)

    def wait(self, *, any_status: bool = False) -> Path:
        """The log, once the program has ended. When the caller is interrupted meanwhile, it is stopped.

        Raises:
            ToolError: the program took longer than ``timeout_s`` and was stopped with everything it started, or it ended
                with another status than 0 (unless ``any_status`` says that the caller judges by other signs).
        """
        try:
            status = self.process.wait(None if self.deadline is None else max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            self.stop()
            message = f"was stopped after {self.timeout_s:g} s\n{last_lines(self.log, 3)}".rstrip()
            raise ToolError(self.tool, message, self.log) from error
        except BaseException:
            self.stop()
            raise
        if status != 0 and not any_status:
            raise ToolError(self.tool, f"{_ending(status)}\n{last_lines(self.log)}".rstrip(), self.log)
        return self.log

    def stop(self) -> None:
        """End the program, if it still runs, with all its children."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def start_logged(
    tool: str,
    command: Sequence[str],
    cwd: Path,
    log: str,
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Job:
    """Start ``command`` in ``cwd`` with both its streams in the file ``cwd/log``; nothing reaches our own standard output.

    Raises:
        ToolError: the program cannot be started.
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
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    return Job(tool, log_path, process, timeout_s, deadline)


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
    """`start_logged`, then `Job.wait`."""
    return start_logged(tool, command, cwd, log, env=env, timeout_s=timeout_s).wait(any_status=any_status)


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


def _ending(status: int) -> str:
    return f"was stopped by signal {-status}" if status < 0 else f"stopped with exit status {status}"
