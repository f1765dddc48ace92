"""Run the bench of a build folder in a simulator and collect what it saw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convfold.compiler.errors import CompileError
from convfold.compiler.tools.simulators import BenchRun, find_simulator, run_cocotb

from .bench import RESULTS
from .driver import drive, write_changed
from .monitor import monitor_name, monitor_verilog

__all__ = ["Cosimulation", "cosimulate"]


@dataclass(frozen=True, slots=True)
class Cosimulation:
    """Results of all tests; ``record`` is what the manifest keeps."""

    run: BenchRun
    record: dict[str, Any]

    @property
    def passed(self) -> bool:
        return self.run.passed

    @property
    def mismatches(self) -> int:
        return sum(profile["mismatches"] for profile in self.record["profiles"])

    def summary(self) -> str:
        """One line a failed test, and where the log is."""
        failed = [f"{result.name}: {result.message}" for result in self.run.results if not result.passed]
        return "\n".join([*failed, f"log: {self.run.log}"]) if failed else f"{len(self.run.results)} tests passed"


def cosimulate(
    folder: Path,
    *,
    frames: int | None = None,
    seed: int = 1,
    waves: bool = False,
    simulator: str | None = None,
    fast: bool = False,
) -> Cosimulation:
    """Build ``accelerator.v`` and run ``test_accelerator.py`` on it, ``frames`` frames a stall profile (default: all vectors).

    With ``fast`` a compiled program drives the ports instead of cocotb: the same tests on the same beats, without waves.

    *Raises* ``CompileError`` for a folder that lacks one of their files, ``ToolError`` where no simulator is found or the
    design does not build.
    """
    for name in ("manifest.json", "accelerator.v", "test_accelerator.py", "vectors.npz"):
        if not (folder / name).is_file():
            raise CompileError(str(folder), f"has no {name}", "run convfold compile again")
    folder = folder.resolve()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    work = folder / "sim_build"
    work.mkdir(exist_ok=True)
    monitor, results = work / "monitor.v", work / "seen.jsonl"
    write_changed(monitor, monitor_verilog(manifest))
    results.write_text("", encoding="utf-8")
    sources = [folder / "accelerator.v", monitor]
    chosen = find_simulator("verilator" if fast else simulator)
    if fast:
        tests, seen, log = drive(chosen, sources, folder, frames, seed)
        run = BenchRun(f"{chosen.version}, compiled driver", tuple(tests), log, None)
    else:
        env = {RESULTS: str(results)} | ({"CONVFOLD_FRAMES": str(frames)} if frames else {})
        run = run_cocotb(chosen, sources, monitor_name(manifest), "test_accelerator", folder, env=env, waves=waves, seed=seed)
        seen = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    profiles = [{k: v for k, v in entry.items() if k != "test"} for entry in seen if entry["test"] == "compare"]
    measured: dict[str, Any] = next((entry for entry in seen if entry["test"] == "measure"), {})
    record = {
        "simulator": run.simulator,
        "seed": seed,
        "frames": sum(profile["frames"] for profile in profiles),
        "profiles": profiles,
        "latency_cycles": measured.get("latency_cycles"),
        "interval_cycles": measured.get("interval_cycles"),
        "layers": measured.get("layers", []),
        "tests": {result.name: "passed" if result.passed else result.message for result in run.results},
        "passed": run.passed,
    }
    return Cosimulation(run, record)
