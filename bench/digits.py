"""The digits table of the README: compile, simulate and (with ``--route``) place and route for every target.

    python bench/digits.py [--route] [--only NAME]

Prints Markdown. Cycles are simulated, bit-exact against the golden model; LUT, FF, DSP, BRAM and Fmax are nextpnr's after
routing, speed grade 6, seed 1; estimates are the planner's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits"
BUILDS = ROOT / "build" / "bench"

RUNS: dict[str, list[str]] = {
    "ecp5-25k, 20,000 frames/s": ["--target", "ecp5-25k", "--fps", "20000"],
    "ecp5-25k, the same unfolded": ["--target", "ecp5-25k", "--fps", "20000", "--fold", "off"],
    "ecp5-25k, smallest": ["--target", "ecp5-25k"],
    "ecp5-85k, 100,000 frames/s": ["--target", "ecp5-85k", "--fps", "100000"],
    "ice40-up5k, smallest": ["--target", "ice40-up5k"],
    "ice40-hx8k, smallest": ["--target", "ice40-hx8k"],
}


def convfold(*arguments: str) -> dict[str, Any]:
    """Run the command line with ``--json``; a missed clock (status 1) is a result too."""
    run = subprocess.run(
        [sys.executable, "-m", "convfold", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    if run.returncode not in (0, 1) or not run.stdout:
        raise SystemExit(f"convfold {' '.join(arguments)}\n{run.stderr}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def rows(route: bool, only: str) -> Iterator[list[str]]:
    """One row a run."""
    for name, arguments in RUNS.items():
        if only not in name:
            continue
        build = str(BUILDS / name.replace(",", "").replace(" ", "-"))
        samples = ["--calibration", str(DIGITS / "calibration.npz"), "--test", str(DIGITS / "test.npz")]
        made = convfold("compile", str(DIGITS / "digits.toml"), *arguments, *samples, "-o", build)
        simulated = convfold("simulate", build, "--frames", "4")
        if not simulated["passed"]:
            raise SystemExit(f"{name}: simulation failed")
        cells = [name, f"{simulated['interval_cycles']:,}", f"{simulated['latency_cycles']:,}"]
        if route:
            synthesis = convfold("synth", build)
            kinds = ("luts", "ffs", "dsps", "brams")
            cells += [f"{synthesis[kind]:,} ({made['estimate'][kind]:,})" for kind in kinds]
            rate = synthesis["fmax_mhz"] * 1e6 / simulated["interval_cycles"]
            cells += [f"{synthesis['fmax_mhz']:.1f}", f"{rate:,.0f}"]
        yield cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--route", action="store_true", help="place and route too: minutes a row")
    parser.add_argument("--only", default="", help="only rows whose name holds this text")
    options = parser.parse_args()
    head = ["target", "cycles/frame", "latency"]
    if options.route:
        head += ["LUT (est.)", "FF (est.)", "DSP (est.)", "BRAM (est.)", "Fmax MHz", "frames/s"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head), flush=True)
    for cells in rows(options.route, options.only):
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
