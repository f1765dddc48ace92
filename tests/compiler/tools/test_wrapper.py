"""The frame that brings a wide top down to four pins."""

from __future__ import annotations

from pathlib import Path

import pytest

from convfold.compiler.targets import get_target
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.simulators import find_simulator, lint
from convfold.compiler.tools.wrapper import Port, make_wrapper, pin_count, read_ports, wrapper_cost
from convfold.compiler.tools.yosys import Yosys, cells_by_module, synthesize
from tests.compiler.tools.designs import TOP, dot_product_rtlil


def test_ports_of_verilog_and_rtlil_agree(yosys: Yosys, fabric_verilog: Path, tmp_path: Path) -> None:
    source = tmp_path / "top.il"
    source.write_text(dot_product_rtlil())
    ports = read_ports(yosys, fabric_verilog, TOP, tmp_path)
    assert set(ports) == set(read_ports(yosys, source, TOP, tmp_path))
    assert Port("clk", 1, "input") in ports
    assert Port("s_axis_tdata", 8, "input") in ports
    assert Port("m_axis_tdata", 32, "output") in ports
    assert pin_count(ports) == 49


def test_ports_of_an_absent_module(yosys: Yosys, fabric_verilog: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"^yosys: stopped with exit status 1\n"):
        read_ports(yosys, fabric_verilog, "absent", tmp_path)


def test_a_small_wrapper_in_full() -> None:
    ports = (Port("clk", 1, "input"), Port("a", 1, "input"), Port("b", 2, "input"), Port("y", 1, "output"))
    assert make_wrapper(ports, "top", name="frame") == (
        "module frame(clk, rst, serial_in, serial_out);\n"
        "  input clk;\n"
        "  input rst;\n"
        "  input serial_in;\n"
        "  output serial_out;\n"
        "  reg [2:0] stimulus = 0;\n"
        "  wire [0:0] response;\n"
        "  reg [0:0] captured = 0;\n"
        "  reg [0:0] signature = 0;\n"
        "  assign serial_out = signature[0];\n"
        "  always @(posedge clk) begin\n"
        "    stimulus <= (stimulus << 1) | serial_in;\n"
        "    captured <= response;\n"
        "    signature <= (signature << 1) ^ (signature >> 0) ^ captured;\n"
        "  end\n"
        "  top wrapped (\n"
        "    .clk(clk),\n"
        "    .a(stimulus[0:0]),\n"
        "    .b(stimulus[2:1]),\n"
        "    .y(response[0:0])\n"
        "  );\n"
        "endmodule\n"
    )


def test_it_is_clean_and_keeps_the_design_alive(yosys: Yosys, fabric_verilog: Path, tmp_path: Path) -> None:
    target = get_target("ecp5-25k")
    ports = read_ports(yosys, fabric_verilog, TOP, tmp_path)
    frame = tmp_path / "frame.v"
    frame.write_text(make_wrapper(ports, TOP, name="frame"))
    bare = synthesize(yosys, fabric_verilog, target, TOP, tmp_path, name="bare")
    sources = (fabric_verilog, frame)
    wrapped = synthesize(yosys, sources, target, "frame", tmp_path, name="wrapped")
    cost = wrapper_cost(ports)
    assert (cost.luts, cost.ffs) == (36, 11 + 2 * 36)
    # tlast is constant, and eight sign bits of tdata are equal: their registers are shared or gone.
    assert bare.cells["TRELLIS_FF"] + 60 < wrapped.cells["TRELLIS_FF"] <= bare.cells["TRELLIS_FF"] + cost.ffs
    assert cells_by_module(yosys, sources, target, "frame", tmp_path)["frame"] == {
        "LUT4": cost.luts,
        "TRELLIS_FF": cost.ffs,
    }
    for name in ("verilator", "icarus"):
        try:
            simulator = find_simulator(name)
        except ToolError:
            continue
        lint(simulator, sources, "frame", tmp_path)


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ((Port("y", 1, "output"),), r"^ports of top must include the clock 'clk', not only y$"),
        ((Port("clk", 1, "input"),), r"^ports of top must include an output$"),
        ((Port("a b", 1, "output"),), r"^port name must be a plain Verilog identifier, not 'a b'$"),
    ],
)
def test_ports_that_cannot_be_wrapped(ports: tuple[Port, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_wrapper(ports, "top")
