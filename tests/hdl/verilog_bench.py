"""Plain Verilog benches that check themselves, in Icarus Verilog, or in Verilator where there is no Icarus."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from amaranth.back import rtlil

from convfold import hdl
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.simulators import Simulator, find_simulator, verilator_arguments
from convfold.compiler.tools.yosys import find_yosys, rtlil_to_verilog

CELLS = Path(hdl.__path__[0]) / "ecp5_cells.v"
CARRIES = Path(hdl.__path__[0]) / "ecp5_carries.v"
ICE40_CELLS = Path(hdl.__path__[0]) / "ice40_cells.v"

# Style of the benches themselves, which nobody reads but Verilator.
_BENCH_WAIVERS = ("-Wno-WIDTHTRUNC", "-Wno-BLKSEQ", "-Wno-TIMESCALEMOD", "-Wno-PINMISSING")


@dataclass(frozen=True, slots=True)
class VerilogBench:
    """A compiled bench. It prints ``PASS`` when all it checked was right."""

    command: tuple[str, ...]
    folder: Path
    env: Mapping[str, str]

    def output(self, *plusargs: str) -> str:
        """What it prints."""
        return _printed([*self.command, *plusargs], self.folder, self.env, check=False)

    def check(self, *plusargs: str) -> None:
        printed = self.output(*plusargs).splitlines()
        assert "PASS" in printed, "\n".join(printed[-12:])


def icarus() -> Simulator | None:
    try:
        return find_simulator("icarus")
    except ToolError:
        return None


def simulator() -> Simulator:
    """Icarus starts at once; Verilator compiles for some seconds."""
    found = icarus()
    if found is not None:
        return found
    try:
        return find_simulator("verilator")
    except ToolError as error:
        pytest.skip(f"no Verilog simulator: {error}")


def compile_bench(sources: Sequence[Path], folder: Path) -> VerilogBench:
    """Build the module ``bench`` of some sources."""
    tool = simulator()
    names = [str(source) for source in sources]
    env = tool.environment(folder)
    if tool.name == "icarus":
        command = ["iverilog", "-g2005", "-Wall", "-Wno-timescale", "-s", "bench", "-o", "bench.vvp", *names]
        _printed(command, folder, env)
        return VerilogBench(("vvp", "-n", "bench.vvp"), folder, env)
    options = ["--binary", "--timing", "-CFLAGS", "-std=gnu++20 -fcoroutines", "--timescale", "1ns/1ps"]
    options += ["--top-module", "bench", "-Mdir", "obj", "-o", "bench"]
    command = ["verilator", *options, *verilator_arguments(), *_BENCH_WAIVERS, *names]
    _printed(command, folder, env)
    return VerilogBench((str(folder / "obj" / "bench"), "+verilator+rand+reset+2", "+verilator+seed+1"), folder, env)


def _printed(command: Sequence[str], folder: Path, env: Mapping[str, str], check: bool = True) -> str:
    program = shutil.which(command[0], path=env["PATH"]) or command[0]
    done = subprocess.run(
        [program, *command[1:]], cwd=folder, env=dict(env), capture_output=True, text=True, check=False, timeout=600
    )
    printed = done.stdout + done.stderr
    assert not check or done.returncode == 0, printed[-2000:]
    return printed


def write_verilog(design: Any, name: str, folder: Path, ports: Sequence[Any] | None = None) -> Path:
    """An Amaranth design as Verilog, the way the compiler prints it."""
    text = rtlil.convert(design, name=name) if ports is None else rtlil.convert(design, name=name, ports=ports)
    path = folder / f"{name}.v"
    path.write_text(rtlil_to_verilog(find_yosys(), text, folder, f"{name}.log"), encoding="utf-8")
    return path


def write_hex(values: Sequence[int], bits: int, path: Path) -> None:
    """For ``$readmemh``."""
    digits = -(-bits // 4)
    path.write_text("".join(f"{value:0{digits}x}\n" for value in values), encoding="ascii")


BENCH_HEAD = """\
module bench;
    reg clk = 1'b0;
    always #5 clk = ~clk;
    integer wrong = 0;
"""

BENCH_END = """\
        if (wrong == 0) $display("PASS");
        else $display("FAIL: %0d wrong", wrong);
        $finish;
    end
endmodule
"""
