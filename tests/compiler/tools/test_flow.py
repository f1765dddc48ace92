"""Place and route, bitstreams, and the whole way from Verilog."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import pytest

from convfold.compiler.errors import CompileError
from convfold.compiler.targets import get_target
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.flow import implement
from convfold.compiler.tools.nextpnr import RouteOptions, find_nextpnr, place_and_route
from convfold.compiler.tools.yosys import Yosys, synthesize
from tests.compiler.tools.designs import TOP


def fake(folder: Path, name: str, prints: str) -> None:
    """A program on PATH that only tells a version."""
    (folder / name).write_text(f"#!/bin/sh\necho '{prints}'\n")
    (folder / name).chmod(0o755)


def test_native_nextpnr_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(tmp_path, "nextpnr-ecp5", '"nextpnr-ecp5" -- Next Generation Place and Route (Version nextpnr-0.8)')
    fake(tmp_path, "ecppack", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_nextpnr(get_target("ecp5-45k"))
    assert found.version == "nextpnr-ecp5 0.8"
    assert found.command == (str(tmp_path / "nextpnr-ecp5"),)
    assert found.packer == (str(tmp_path / "ecppack"),)


def test_no_nextpnr_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ToolError, match=r"^nextpnr-ice40: not found\n  fix: pip install 'convfold\[synth\]'$"
    ):
        find_nextpnr(get_target("ice40-up5k"))


def test_the_generic_target_has_no_nextpnr() -> None:
    with pytest.raises(CompileError, match=r"^target: 'generic' cannot be placed and routed\n"):
        find_nextpnr(get_target("generic"))


def test_ecp5_with_a_hard_multiplier(hard_verilog: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    done = implement(hard_verilog, get_target("ecp5-25k"), TOP, tmp_path, progress=steps.append)
    route = done.route
    assert (route.dsps.used, route.dsps.available) == (1, 28)
    assert (route.brams.used, route.brams.available) == (0, 56)
    assert (route.pins.used, route.luts.available, route.ffs.available) == (49, 24288, 24288)
    assert 50 < route.luts.used < 200
    assert 0 < route.luts.share < 0.01
    assert done.wrapper is None
    assert list(route.fmax_mhz) == ["clk"]
    assert route.achieved
    assert route.slowest_mhz > route.requested_mhz == 100.0
    assert done.bitstream is not None
    assert done.bitstream.name == "bitstream.bit"
    assert done.bitstream.stat().st_size > 10_000
    assert [step.partition(":")[0] for step in steps] == ["synthesize", "place and route", "pack"]


def test_the_critical_path_adds_up(hard_verilog: Path, tmp_path: Path) -> None:
    route = implement(hard_verilog, get_target("ecp5-25k"), TOP, tmp_path, bitstream=False).route
    path = route.critical_path
    assert (path[0].kind, path[-1].kind) == ("clk-to-q", "setup")
    assert all(before.end == after.start for before, after in pairwise(path))
    assert all(bool(step.net) == (step.kind == "routing") for step in path)
    assert route.critical_ns == pytest.approx(1000 / route.slowest_mhz, abs=0.05)


def test_a_missed_clock_is_a_result(yosys: Yosys, hard_verilog: Path, tmp_path: Path) -> None:
    target = get_target("ecp5-25k")
    netlist = synthesize(yosys, hard_verilog, target, TOP, tmp_path).netlist
    nextpnr = find_nextpnr(target)
    slow = place_and_route(nextpnr, netlist, target, tmp_path, RouteOptions(freq_mhz=400), seed=3, name="slow")
    assert not slow.achieved
    assert (slow.requested_mhz, slow.seed, slow.speed) == (400, 3, "6")
    fast = place_and_route(nextpnr, netlist, target, tmp_path, RouteOptions(freq_mhz=400, speed="8"), seed=3, name="fast")
    assert fast.slowest_mhz > slow.slowest_mhz
    again = place_and_route(nextpnr, netlist, target, tmp_path, RouteOptions(freq_mhz=400), seed=3, name="again")
    assert again.fmax_mhz == slow.fmax_mhz


def test_ice40_wraps_what_has_too_many_pins(fabric_verilog: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    done = implement(fabric_verilog, get_target("ice40-up5k"), TOP, tmp_path, progress=steps.append)
    assert steps[0] == "wrap: 49 port bits, 39 pins"
    assert done.wrapper is not None
    assert (done.wrapper.luts, done.wrapper.ffs) == (36, 83)
    assert (done.route.pins.used, done.route.dsps.used) == (4, 0)
    assert done.route.ffs.used > 87
    assert done.route.achieved
    assert list(done.route.fmax_mhz) == ["clk"]
    assert done.bitstream is not None
    assert done.bitstream.suffix == ".bin"
    assert done.bitstream.stat().st_size > 50_000


def test_ice40_with_bare_ports(fabric_verilog: Path, tmp_path: Path) -> None:
    done = implement(fabric_verilog, get_target("ice40-hx8k"), TOP, tmp_path, bitstream=False)
    assert done.wrapper is None
    assert done.bitstream is None
    assert (done.route.pins.used, done.route.luts.available) == (49, 7680)


def test_constraints_place_the_pins(hard_verilog: Path, tmp_path: Path) -> None:
    constraints = tmp_path / "board.lpf"
    constraints.write_text('LOCATE COMP "clk" SITE "G2";\nIOBUF PORT "clk" IO_TYPE=LVCMOS33;\n')
    options = RouteOptions(constraints=constraints)
    done = implement(hard_verilog, get_target("ecp5-25k"), TOP, tmp_path, options, bitstream=False)
    assert "pin 'clk$tr_io' constrained to Bel" in done.route.log.read_text()


def test_a_design_that_does_not_fit(yosys: Yosys, tmp_path: Path) -> None:
    source = tmp_path / "big.v"
    inputs = ", ".join(f"input a{number}" for number in range(220))
    source.write_text(
        f"module big(input clk, {inputs}, output reg q);\n  always @(posedge clk) q <= a0;\nendmodule\n"
    )
    target = get_target("ecp5-25k")
    netlist = synthesize(yosys, source, target, "big", tmp_path).netlist
    with pytest.raises(
        ToolError, match=r"^nextpnr-ecp5: stopped with exit status \d+\nERROR: Unable to place"
    ):
        place_and_route(find_nextpnr(target), netlist, target, tmp_path)
