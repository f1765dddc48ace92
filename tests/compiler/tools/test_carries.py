"""Trimmed carry chains: fewer cells, the same sums, whatever enters a chain whose first carry was a constant."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from convfold.compiler.targets import get_target
from convfold.compiler.tools.carries import trim_carries
from convfold.compiler.tools.yosys import find_yosys, synthesize
from tests.hdl.verilog_bench import CARRIES

DESIGN = """\
module top (
    input [8:0] a, b, input [3:0] c, input [1:0] digit,
    output [9:0] sum, output [8:0] less, output below, output [6:0] small, output [10:0] row, minus
);
    assign sum = a + b;
    assign less = a - b;
    assign below = a < b;
    assign small = {c, 1'b1} + {b[1], b[3:0], a[0]};
    carry_row #(.BITS(9)) first (.a(a), .digit(digit), .o(row));
    carry_row #(.BITS(9), .NEGATIVE(1)) second (.a(a), .digit(digit), .o(minus));
endmodule
"""

PROOF = """\
read_verilog -nosynthesis top.v carries.v
hierarchy -top top
proc
flatten
rename -top sums
design -stash sums
read_json chains.json
read_verilog +/lattice/ccu2c_sim.vh
read_verilog cells.v
hierarchy -top top
proc
flatten
rename -top chains
design -copy-from sums -as sums sums
miter -equiv -flatten sums chains equal
sat -verify -prove trigger 0 equal
"""

CELLS = """\
module LUT4 #(parameter [15:0] INIT = 0) (input A, B, C, D, output Z);
    assign Z = INIT[{D, C, B, A}];
endmodule
module LUT2 #(parameter [3:0] INIT = 0) (input A, B, output Z);
    assign Z = INIT[{B, A}];
endmodule
module PFUMX (input ALUT, BLUT, C0, output Z);
    assign Z = C0 ? ALUT : BLUT;
endmodule
module L6MUX21 (input D0, D1, SD, output Z);
    assign Z = SD ? D1 : D0;
endmodule
"""


def chains(module: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell["connections"] for cell in module["cells"].values() if cell["type"] == "CCU2C"]


@pytest.fixture(scope="module")
def netlist(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("carries")
    (folder / "top.v").write_text(DESIGN, encoding="utf-8")
    made = synthesize(find_yosys(), [folder / "top.v", CARRIES], get_target("ecp5-25k"), "top", folder)
    document: dict[str, Any] = json.loads(made.netlist.read_text(encoding="utf-8"))
    return document, folder


def test_no_chain_is_fed_and_none_feeds(netlist: tuple[dict[str, Any], Path]) -> None:
    """None of the design's chains begins with a constant, and only a comparison's last carry may be read."""
    top = netlist[0]["modules"]["top"]
    entering = [wires["CIN"][0] for wires in chains(top)]
    assert entering.count("x") >= 5
    assert not {"0", "1"} & set(entering)
    assert sum(wires["COUT"] == ["x"] for wires in chains(top)) >= 4


@pytest.mark.parametrize("entering", "01")
def test_the_sums_are_the_same(netlist: tuple[dict[str, Any], Path], entering: str) -> None:
    """All values of all inputs, by satisfiability, with either level in the places that were left open."""
    document, folder = copy.deepcopy(netlist[0]), netlist[1]
    top = document["modules"]["top"]
    for wires in chains(top):
        wires["CIN"] = [entering] if wires["CIN"] == ["x"] else wires["CIN"]
        for pin in ("S0", "COUT"):
            wires[pin] = [] if wires[pin] == ["x"] else wires[pin]
    document["modules"] = {"top": top}
    (folder / "chains.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "cells.v").write_text(CELLS, encoding="utf-8")
    (folder / "carries.v").write_text(CARRIES.read_text(encoding="utf-8"), encoding="utf-8")
    log = find_yosys().run(PROOF, folder, "proof.log").read_text(encoding="utf-8")
    assert "SAT proof finished - no model found: SUCCESS!" in log


def test_a_chain_that_needs_three_inputs_stays() -> None:
    """Its first carry depends on A, B and C, and a carry's table has two."""
    wires = {pin: [n + 2] for n, pin in enumerate(("A0", "B0", "C0", "D0", "A1", "B1", "C1", "D1", "S0", "S1", "COUT"))}
    cell: dict[str, Any] = {
        "type": "CCU2C",
        "parameters": {"INIT0": f"{0x7878:016b}", "INIT1": f"{0:016b}", "INJECT1_0": "NO", "INJECT1_1": "NO"},
        "port_directions": {pin: "output" if pin in ("S0", "S1", "COUT") else "input" for pin in (*wires, "CIN")},
        "connections": {**wires, "CIN": ["0"]},
    }
    expected = copy.deepcopy(cell)
    expected["connections"]["COUT"] = ["x"]
    trim_carries({"modules": {"top": {"ports": {}, "cells": {"chain": cell}}}})
    assert cell == expected
