"""The checks of `convfold.sim.checks` without cocotb: a small C++ program, compiled with Verilator's model, moves the beats.

The same beats move in the same cycles as in cocotb, several times faster, because nothing wakes up Python in between and
Verilator need not keep every signal visible. Python still prepares the stimulus, and compares.
"""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convfold.compiler.emit import VERSION, render
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.simulators import BenchResult, Simulator, build_program

from .checks import TESTS, Beats, Checks, Output, Runs, Transfer
from .monitor import count_bits, monitor_name, port_edge, read_counts

__all__ = ["drive", "write_changed"]

LOG = "drive.log"


def driver_source(manifest: Mapping[str, Any]) -> str:
    """The C++ program for the ports of a build."""
    return render(
        "driver.cpp.j2",
        top=manifest["top"],
        version=VERSION,
        in_bits=port_edge(manifest["input"]).tdata_bits,
        outputs=[{"port": output["port"], "bits": port_edge(output).tdata_bits} for output in manifest["outputs"]],
        count_bits=count_bits(manifest),
    )


def drive(
    simulator: Simulator, sources: Sequence[Path], folder: Path, frames: int | None, seed: int
) -> tuple[list[BenchResult], list[dict[str, Any]], Path]:
    """Build the program for a build folder and run all tests.

    Returns how each ended, what they noted, and the log.

    *Raises* ``ToolError`` if it does not build, or stops.
    """
    manifest = Checks(folder, 1, seed).manifest
    program = folder / "sim_build" / "driver.cpp"
    write_changed(program, driver_source(manifest))
    log = folder / LOG
    executable = build_program(simulator, [*sources, program], monitor_name(manifest), folder, log=LOG)
    results: list[BenchResult] = []
    seen: list[dict[str, Any]] = []
    with subprocess.Popen([str(executable)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for name, test in TESTS.items():
            driver = _Driver(folder, frames, seed, process, seen)
            try:
                asyncio.run(test(driver))
                message = ""
            except AssertionError as error:
                message = str(error)
            except (BrokenPipeError, EOFError) as error:
                process.kill()
                raise ToolError(simulator.name, f"the driver of {manifest['top']} stopped", log) from error
            results.append(BenchResult(name, not message, message, 0.0, time.monotonic() - driver.began))
    return results, seen, log


class _Driver(Checks):
    """One accelerator under test, reset, in the program at the other end of two pipes."""

    def __init__(
        self, folder: Path, frames: int | None, seed: int, process: subprocess.Popen[bytes], seen: list[dict[str, Any]]
    ) -> None:
        super().__init__(folder, frames, seed)
        if process.stdin is None or process.stdout is None:
            raise ValueError("process must have pipes for its standard input and output")
        self._stdin, self._stdout = process.stdin, process.stdout
        self.seen = seen
        self._send(b"R")

    async def exchange(
        self, beats: Beats, counts: Sequence[int], source: Runs, sinks: Sequence[Runs], patience: int, linger: int
    ) -> Transfer:
        size = self.edge_in.tdata_bits // 8
        self._send(b"X", struct.pack("=QQQ", len(beats), patience, linger), _packed(source))
        for count, runs in zip(counts, sinks, strict=True):
            self._send(struct.pack("=Q", count), _packed(runs))
        data = b"".join(word.to_bytes(size, sys.byteorder) for word, _last in beats)
        self._send(data, bytes(last for _word, last in beats))
        self._stdin.flush()
        if length := self._number():
            raise AssertionError(self._receive(length).decode())
        run = Transfer([], in_cycles=self._array("=u4", self._number()))
        for count, edge in zip(counts, self.edges_out, strict=True):
            cycles, last = self._array("=u4", count), self._array("=?", count)
            size = edge.tdata_bits // 8
            words = self._receive(count * size)
            data_out = [int.from_bytes(words[n : n + size], sys.byteorder) for n in range(0, count * size, size)]
            run.outputs.append(Output(cycles, data_out, last))
        run.error = self._receive(1) != b"\0"
        run.counts = read_counts(self.manifest, int.from_bytes(self._receive(count_bits(self.manifest) // 8), sys.byteorder))
        return run

    def note(self, test: str, **seen: object) -> None:
        self.seen.append({"test": test, **seen})

    def _send(self, *parts: bytes) -> None:
        for part in parts:
            self._stdin.write(part)

    def _receive(self, size: int) -> bytes:
        found = self._stdout.read(size)
        if len(found) < size:
            raise EOFError
        return found

    def _number(self) -> int:
        number: int = struct.unpack("=Q", self._receive(8))[0]
        return number

    def _array(self, kind: str, count: int) -> list[Any]:
        dtype = np.dtype(kind)
        found: list[Any] = np.frombuffer(self._receive(count * dtype.itemsize), dtype).tolist()
        return found


def write_changed(path: Path, text: str) -> None:
    """Write a file, unless it is as it should be: Verilator builds anew what is newer."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _packed(runs: Runs) -> bytes:
    return struct.pack("=Q", len(runs)) + np.array(runs, "=u4").tobytes()
