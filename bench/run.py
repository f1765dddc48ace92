"""All that we measure of our accelerators, beside what others have published: ``make bench``.

    python bench/run.py [--only NAME] [--route [--seeds N]] [--publish]

Compiles every case of `bench/cases.py` (all, or those whose name holds ``--only``), simulates it bit by bit against the golden
model, and with ``--route`` places and routes it, tens of minutes for a large network. What was measured is kept in
``build/bench/NAME.json`` with the hash of the Verilog that it was measured on, so cases can be run one by one and are not run
again; what was measured on other hardware than the sources now give is dropped. Prints the table as Markdown and draws
``build/bench/bench.png``; ``--publish`` writes both, and the numbers, into docs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import CASES, ROOT, Case, Missing
from bench.table import draw, page, table

BUILDS = ROOT / "build" / "bench"
DOCS = ROOT / "docs"
PUBLISHED = DOCS / "bench.json"
SOURCES = ("compiler", "hdl", "templates/accelerator.py.j2", "bench/cases.py", "examples/digits")

Result = dict[str, Any]


def convfold(*arguments: str) -> dict[str, Any]:
    """Run the command line with ``--json``; a missed clock (status 1) is a result too."""
    run = subprocess.run(
        [sys.executable, "-m", "convfold", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    if run.returncode not in (0, 1) or not run.stdout:
        raise SystemExit(f"convfold {' '.join(arguments)}\n{run.stderr}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


# ---------------------------------------------------------------------------------------------------------------- results


def sources_sha256() -> str:
    """What the hardware of all cases depends on."""
    files = [path for name in SOURCES for path in ((ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name])]
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.is_file() and path.suffix in (".py", ".v", ".j2", ".toml", ".npz"):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def load(name: str) -> Result:
    """What is known of a case: from this checkout's runs, else as published."""
    path = BUILDS / f"{name}.json"
    for found in (path, PUBLISHED):
        if found.is_file():
            record: Result = json.loads(found.read_text(encoding="utf-8"))
            return record if found == path else record.get(name, {})
    return {}


def save(name: str, result: Result) -> None:
    BUILDS.mkdir(parents=True, exist_ok=True)
    (BUILDS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def without_stale(result: Result) -> Result:
    """The result less what was measured on other Verilog than ``compile`` last made."""
    now = result["compile"]["verilog_sha256"]
    return {key: part for key, part in result.items() if key == "compile" or part["verilog_sha256"] == now}


# ------------------------------------------------------------------------------------------------------------------- steps


def busy_share(layers: Mapping[str, int], cycles: Mapping[str, tuple[int, int]]) -> float:
    """The share of all multipliers' cycles in which they are fed; ``cycles`` are each layer's, and of these the busy ones."""
    fed = sum(count * cycles[name][0] / cycles[name][1] for name, count in layers.items())
    return round(fed / sum(layers.values()), 4)


def compile_case(case: Case, sources: str) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        network = case.network(Path(scratch))
        began = time.monotonic()
        made = convfold("compile", *network, *case.options, "-o", str(BUILDS / case.name))
    interval = made["interval_cycles"]
    layers = {layer["name"]: layer["multipliers"] for layer in made["layers"] if layer["multipliers"]}
    steps = {layer["name"]: (layer["steps"], interval) for layer in made["layers"]}
    return {
        "sources_sha256": sources,
        "verilog_sha256": hashlib.sha256((BUILDS / case.name / "accelerator.v").read_bytes()).hexdigest(),
        "target": made["target"],
        "options": list(case.options),
        "macs": sum(layer["macs"] for layer in made["layers"]),
        "multipliers": layers,
        "busy": busy_share(layers, steps),
        "interval_cycles": interval,
        "latency_cycles": made["latency_cycles"],
        "estimate": made["estimate"],
        "seconds": round(time.monotonic() - began, 1),
    }


def simulate_case(case: Case, compiled: Result) -> Result:
    found = convfold("simulate", str(BUILDS / case.name), "--frames", str(case.frames), "--fast")
    if not found["passed"]:
        raise SystemExit(f"{case.name}: simulation failed: {found['tests']}")
    cycles = {
        layer["name"]: (layer["busy"], sum(layer[kind] for kind in ("busy", "input", "room", "idle")))
        for layer in found["layers"]
    }
    slowest = max(compiled["multipliers"], key=lambda name: cycles[name][0])
    return {
        "verilog_sha256": compiled["verilog_sha256"],
        "simulator": found["simulator"],
        "frames": found["frames"],
        "beats": sum(profile["beats"] for profile in found["profiles"]),
        "mismatches": sum(profile["mismatches"] for profile in found["profiles"]),
        "interval_cycles": found["interval_cycles"],
        "latency_cycles": found["latency_cycles"],
        "busy": busy_share(compiled["multipliers"], cycles),
        "issue_frames": case.frames,
        "issue_rate": found["profiles"][0]["issue_rates"][slowest],
    }


def route_case(case: Case, compiled: Result, seeds: int) -> Result:
    options = ["--router", case.router, *([] if case.freq_mhz is None else ["--freq", f"{case.freq_mhz:g}"])]
    found = convfold("synth", str(BUILDS / case.name), *options, *(["--seeds", str(seeds)] if seeds > 1 else []))
    kept = ("luts", "ffs", "dsps", "brams", "fmax_mhz", "freq_mhz", "speed", "seed", "versions", "seconds")
    return {"verilog_sha256": compiled["verilog_sha256"], "seeds": seeds} | {key: found[key] for key in kept}


def run(case: Case, sources: str, wanted: bool, seeds: int) -> Result:
    """Bring a case up to date; only a ``wanted`` one is simulated, and routed with ``seeds``."""
    result = load(case.name)
    current = bool(result) and result["compile"]["sources_sha256"] == sources
    if (wanted and not (current and (BUILDS / case.name / "accelerator.v").is_file())) or (result and not current):
        result |= {"compile": compile_case(case, sources)}
        fresh = without_stale(result)
        for part in result.keys() - fresh.keys():
            print(f"{case.name}: {part} was of other hardware, and is dropped", file=sys.stderr)
        result = fresh
        save(case.name, result)
    if wanted and "simulation" not in result:
        result["simulation"] = simulate_case(case, result["compile"])
        save(case.name, result)
    if wanted and seeds > result.get("route", {"seeds": 0})["seeds"]:
        result["route"] = route_case(case, result["compile"], seeds)
        save(case.name, result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cases whose name holds this text")
    parser.add_argument("--route", action="store_true", help="place and route too")
    parser.add_argument("--seeds", type=int, default=1, help="seeds to route with; the best counts")
    parser.add_argument("--publish", action="store_true", help="write the results into docs")
    options = parser.parse_args()
    sources, results = sources_sha256(), {}
    for name, case in CASES.items():
        try:
            result = run(case, sources, options.only in name, options.seeds if options.route else 0)
        except Missing as reason:
            print(f"{name}: left out, {reason}", file=sys.stderr)
            continue
        if result:
            results[name] = result
    print(table(results), end="")
    folder = DOCS if options.publish else BUILDS
    draw(results, folder / "bench.png")
    if options.publish:
        PUBLISHED.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (DOCS / "benchmarks.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
