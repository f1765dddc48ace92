"""nextpnr and the bitstream packers: from a netlist to timing, utilisation and a bitstream."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from convfold.compiler.errors import CompileError
from convfold.compiler.targets import Target
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.process import output_of, run_logged, start_logged

INSTALL_HINT = "pip install 'convfold[synth]'"

Placer = Literal["heap", "static", "sa"]
Router = Literal["router1", "router2"]


@dataclass(frozen=True, slots=True)
class Nextpnr:
    """A working nextpnr for one family and the bitstream packer that belongs to it."""

    family: str
    version: str
    command: tuple[str, ...]
    packer: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """How many of one kind of resource are used; ``available`` is the device's number."""

    used: int
    available: int

    @property
    def share(self) -> float:
        """The used part, 0 to 1; 0 where the device has none."""
        return self.used / self.available if self.available else 0.0


@dataclass(frozen=True, slots=True)
class PathStep:
    """One hop of the critical path, between two ends written ``cell.port``.

    ``kind`` is "clk-to-q", "logic", "routing" or "setup"; ``net`` is set for routing.
    """

    start: str
    end: str
    delay_ns: float
    kind: str
    net: str


@dataclass(frozen=True, slots=True)
class RouteResult:
    """What nextpnr found. A design slower than asked is a result like any other: see ``achieved``.

    ``fmax_mhz`` holds every clock by name; ``critical_path`` the slowest register-to-register path, hop by
    hop. ``luts`` counts 4-input tables, carry chains included. ``routed`` is the file the bitstream packer
    reads.
    """

    luts: Usage
    ffs: Usage
    dsps: Usage
    brams: Usage
    pins: Usage
    fmax_mhz: Mapping[str, float]
    requested_mhz: float
    achieved: bool
    critical_path: tuple[PathStep, ...]
    seed: int
    speed: str
    report: Path
    routed: Path
    log: Path

    @property
    def slowest_mhz(self) -> float:
        """The lowest frequency of any clock; 0.0 for a design without one."""
        return min(self.fmax_mhz.values(), default=0.0)

    @property
    def critical_ns(self) -> float:
        """The length of the critical path."""
        return sum(step.delay_ns for step in self.critical_path)


def find_nextpnr(target: Target, prefer: Literal["native", "yowasp"] | None = None) -> Nextpnr:
    """nextpnr for the family of ``target``: the native program on PATH, else the one from PyPI.

    Raises:
        CompileError: nothing can be placed for this target.
        ToolError: no nextpnr for this family is installed.
    """
    if target.family == "generic":
        hint = "name a device, such as ecp5-25k"
        raise CompileError("target", f"{target.name!r} cannot be placed and routed", hint)
    if prefer != "yowasp" and (native := _find_native(target.family)) is not None:
        return native
    if prefer != "native" and (yowasp := _find_yowasp(target.family)) is not None:
        return yowasp
    raise ToolError(f"nextpnr-{target.family}", "not found", hint=INSTALL_HINT)


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """How to place and route; what is ``None`` the target decides.

    ``freq_mhz`` is the clock to aim for (the planning clock), ``speed`` an ECP5 speed grade. ``constraints`` is an LPF or PCF
    file; ports it does not mention get any free pin. nextpnr is stopped after ``timeout_s`` seconds.

    Placer and router are the best that was measured, nextpnr 0.11.1, speed grade 6, seed 1, in MHz and processor seconds; a
    seed makes a difference of some per cent. A goal of 100, 130 or 150 MHz and ``--tmg-ripup`` changed nothing at all.

    =============  ======================  ==========================
    placer,        digits, 20,000          a layer of 144 multipliers
    router         frames/s: 25F, 18 %     on an 85F, 6 %
    =============  ======================  ==========================
    heap, 1        **163**, 45             **146**, 261
    heap, 2        148, 46
    static, 1      156, 58                 130, 183
    static, 2      142, 60
    =============  ======================  ==========================
    """

    freq_mhz: float | None = None
    speed: str | None = None
    constraints: Path | None = None
    placer: Placer = "heap"
    router: Router = "router1"
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("freq_mhz", self.freq_mhz), ("timeout_s", self.timeout_s)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value!r}")


@dataclass(frozen=True, slots=True)
class SeedRun:
    """What came of one seed: a route, or the error it ended with."""

    seed: int
    seconds: float
    result: RouteResult | ToolError


def place_and_route(
    nextpnr: Nextpnr,
    netlist: Path,
    target: Target,
    cwd: Path,
    options: RouteOptions | None = None,
    *,
    seed: int = 1,
    name: str = "route",
) -> RouteResult:
    """Place and route a netlist in the folder ``cwd``; files are called ``<name>.*``.

    Raises:
        ToolError: the design does not fit, nextpnr stops for another reason than a missed clock, or it takes
            longer than it may.
    """
    return _Run(nextpnr, netlist, target, cwd, options or RouteOptions(), seed, name).finish()


def place_and_route_seeds(
    nextpnr: Nextpnr,
    netlist: Path,
    target: Target,
    cwd: Path,
    options: RouteOptions | None = None,
    *,
    seeds: Iterable[int],
    jobs: int,
    told: Callable[[SeedRun], None] = lambda run: None,
) -> tuple[SeedRun, ...]:
    """`place_and_route` for each of ``seeds``, ``jobs`` processes at a time; ``told`` hears of each at its end.

    A seed that fails is one of the results. All that still run are stopped when the caller is interrupted.
    """
    waiting, running, ended = list(seeds), list[_Run](), dict[int, SeedRun]()
    order = tuple(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                seed = waiting.pop(0)
                running.append(_Run(nextpnr, netlist, target, cwd, options or RouteOptions(), seed, f"seed{seed}"))
            for run in [run for run in running if run.job.over]:
                running.remove(run)
                try:
                    result: RouteResult | ToolError = run.finish()
                except ToolError as error:
                    result = error
                ended[run.seed] = SeedRun(run.seed, round(time.monotonic() - run.began, 1), result)
                told(ended[run.seed])
            time.sleep(_POLL_S)
    finally:
        for run in running:
            run.job.stop()
    return tuple(ended[seed] for seed in order)


_POLL_S = 0.05


class _Run:
    """One nextpnr at work."""

    def __init__(
        self, nextpnr: Nextpnr, netlist: Path, target: Target, cwd: Path, options: RouteOptions, seed: int, name: str
    ) -> None:
        self.target, self.seed = target, seed
        self.goal_mhz = target.plan_mhz if options.freq_mhz is None else options.freq_mhz
        self.grade = target.speed if options.speed is None else options.speed
        self.report, self.routed = cwd / f"{name}.json", cwd / f"{name}.{_ROUTED_SUFFIX[target.family]}"
        arguments = [*target.nextpnr_args, "--json", _relative(netlist, cwd)]
        arguments += ["--freq", f"{self.goal_mhz:g}", "--seed", str(seed), "--timing-allow-fail"]
        arguments += ["--report", self.report.name, "--placer", options.placer, "--router", options.router]
        if target.family == "ecp5":
            arguments += ["--speed", self.grade, "--textcfg", self.routed.name, "--lpf-allow-unconstrained"]
        else:
            arguments += ["--asc", self.routed.name, "--pcf-allow-unconstrained"]
        if options.constraints is not None:
            arguments += ["--lpf" if target.family == "ecp5" else "--pcf", _relative(options.constraints, cwd)]
        for stale in (self.report, self.routed):
            stale.unlink(missing_ok=True)
        self.began = time.monotonic()
        command = (*nextpnr.command, *arguments)
        self.job = start_logged(f"nextpnr-{target.family}", command, cwd, f"{name}.log", timeout_s=options.timeout_s)

    def finish(self) -> RouteResult:
        log = self.job.wait()
        return _result(self.report, self.routed, log, self.target, self.goal_mhz, self.seed, self.grade)


@dataclass(frozen=True, slots=True)
class Packed:
    """What a netlist takes before anything is placed, as `RouteResult` counts it."""

    luts: int
    ffs: int
    dsps: int
    brams: int


def pack(nextpnr: Nextpnr, netlist: Path, target: Target, cwd: Path, name: str = "pack") -> Packed:
    """Pack a netlist in the folder ``cwd``; the log is ``<name>.log``. It takes a second, and no pins.

    Raises:
        ToolError: nextpnr stops with an error.
    """
    arguments = (*target.nextpnr_args, "--json", _relative(netlist, cwd), "--pack-only", *_NO_PADS[target.family])
    log = run_logged(f"nextpnr-{target.family}", (*nextpnr.command, *arguments), cwd, f"{name}.log")
    text = log.read_text(encoding="utf-8", errors="replace")
    used = {cell: int(count) for cell, count in re.findall(r"(\w+): +(\d+)/", text)}
    counts = {kind: used.get(_CELLS[target.family][kind], 0) for kind in ("luts", "ffs", "dsps", "brams")}
    return Packed(**counts | ({"ffs": _ice40_flip_flops(log)} if target.family == "ice40" else {}))


def pack_bitstream(nextpnr: Nextpnr, result: RouteResult, cwd: Path, name: str = "bitstream") -> Path:
    """Pack a routed design with ecppack or icepack; returns ``cwd/<name>.bit`` (ECP5) or ``.bin`` (iCE40).

    Raises:
        ToolError: the packer stops with an error.
    """
    suffix, options = ("bit", ("--compress",)) if nextpnr.family == "ecp5" else ("bin", ())
    bitstream = cwd / f"{name}.{suffix}"
    command = (*nextpnr.packer, *options, _relative(result.routed, cwd), bitstream.name)
    run_logged(_PACKER_NAME[nextpnr.family], command, cwd, f"{name}.log")
    return bitstream


_NO_PADS = {"ecp5": ("--out-of-context",), "ice40": ()}
_ROUTED_SUFFIX = {"ecp5": "config", "ice40": "asc"}
_PACKER_NAME = {"ecp5": "ecppack", "ice40": "icepack"}

# Our names of the resources, and nextpnr's.
_CELLS = {
    "ecp5": {
        "luts": "TRELLIS_COMB",
        "ffs": "TRELLIS_FF",
        "dsps": "MULT18X18D",
        "brams": "DP16KD",
        "pins": "TRELLIS_IO",
    },
    "ice40": {
        "luts": "ICESTORM_LC",
        "ffs": "",  # not counted apart from the logic cells
        "dsps": "ICESTORM_DSP",
        "brams": "ICESTORM_RAM",
        "pins": "SB_IO",
    },
}


def _find_native(family: str) -> Nextpnr | None:
    path, packer = shutil.which(f"nextpnr-{family}"), shutil.which(_PACKER_NAME[family])
    printed = output_of((path, "--version")) if path else None
    if path is None or packer is None or printed is None:
        return None
    found = re.search(r"nextpnr-(\d\S*?)\)", printed)
    return Nextpnr(family, f"nextpnr-{family} {found.group(1) if found else 'unknown'}", (path,), (packer,))


def _find_yowasp(family: str) -> Nextpnr | None:
    module = f"yowasp_nextpnr_{family}"
    if util.find_spec(module) is None:
        return None
    version = metadata.version(f"yowasp-nextpnr-{family}")
    return Nextpnr(
        family,
        f"yowasp-nextpnr-{family} {version}",
        _yowasp_command(module, f"run_nextpnr_{family}"),
        _yowasp_command(module, f"run_{_PACKER_NAME[family]}"),
    )


def _yowasp_command(module: str, function: str) -> tuple[str, ...]:
    program = f"import sys, {module}; sys.exit({module}.{function}(sys.argv[1:]))"
    return (sys.executable, "-P", "-c", program)


def _relative(path: Path, cwd: Path) -> str:
    """Relative to ``cwd``: programs from PyPI do not see the system's temporary folder by its full name."""
    return Path(os.path.relpath(path, cwd)).as_posix()


def _result(
    report: Path, routed: Path, log: Path, target: Target, goal_mhz: float, seed: int, grade: str
) -> RouteResult:
    document: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    used = {name: _usage(document["utilization"], cell) for name, cell in _CELLS[target.family].items()}
    if target.family == "ice40":  # a logic cell is one table and one flip-flop; nextpnr counts cells
        used["ffs"] = Usage(_ice40_flip_flops(log), used["luts"].available)
    fmax = {_clock_name(name): float(clock["achieved"]) for name, clock in document["fmax"].items()}
    return RouteResult(
        **used,
        fmax_mhz=dict(sorted(fmax.items())),
        requested_mhz=goal_mhz,
        achieved=all(mhz >= goal_mhz for mhz in fmax.values()),
        critical_path=_critical_path(document["critical_paths"]),
        seed=seed,
        speed=grade,
        report=report,
        routed=routed,
        log=log,
    )


def _usage(utilization: Mapping[str, Mapping[str, int]], cell: str) -> Usage:
    entry = utilization.get(cell, {"used": 0, "available": 0})
    return Usage(entry["used"], entry["available"])


def _ice40_flip_flops(log: Path) -> int:
    """From the packer's lines "41 LCs used as LUT4 and DFF" and "46 LCs used as DFF only"."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return sum(int(count) for count in re.findall(r"(\d+) LCs used as (?:LUT4 and )?DFF", text))


def _clock_name(net: str) -> str:
    """The port's name: ``$glbnet$clk$TRELLIS_IO_IN`` and ``clk$SB_IO_IN_$glb_clk`` are both ``clk``."""
    return net.removeprefix("$glbnet$").partition("$")[0] or net


def _critical_path(paths: list[dict[str, Any]]) -> tuple[PathStep, ...]:
    """The longest path that begins and ends at a clock; pads and asynchronous ends do not count."""
    clocked = [path["path"] for path in paths if "<async>" not in (path["from"], path["to"])]
    longest: list[dict[str, Any]] = max(clocked, key=_delay, default=[])
    return tuple(
        PathStep(
            start=f"{step['from']['cell']}.{step['from']['port']}",
            end=f"{step['to']['cell']}.{step['to']['port']}",
            delay_ns=round(float(step["delay"]), 3),
            kind=step["type"],
            net=step.get("net", ""),
        )
        for step in longest
    )


def _delay(steps: list[dict[str, Any]]) -> float:
    return sum(float(step["delay"]) for step in steps)
