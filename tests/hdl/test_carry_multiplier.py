"""The carry chains of the fabric multiplier: proved equal to what simulation sees, with the cells as Yosys models them."""

from __future__ import annotations

from pathlib import Path

import pytest
from amaranth.hdl import Shape, signed, unsigned

from convfold.compiler.tools.yosys import find_yosys, read_command
from convfold.hdl.carry_multiplier import digit_rows
from convfold.hdl.multiplier import KINDS, MultiplierParams
from tests.hdl.verilog_bench import CARRIES

PROOF = """\
{read}
hierarchy -top carry_row {parameters}
proc
rename -top sums
design -stash sums
{read_chains}
read_verilog +/lattice/ccu2c_sim.vh
read_verilog tables.v
hierarchy -top carry_row {parameters}
proc
flatten
rename -top chains
design -copy-from sums -as sums sums
miter -equiv -flatten sums chains equal
sat -verify -prove trigger 0 equal
"""


TABLES = """\
module LUT4 #(parameter [15:0] INIT = 0) (input A, B, C, D, output Z);
    assign Z = INIT[{D, C, B, A}];
endmodule
module LUT2 #(parameter [3:0] INIT = 0) (input A, B, output Z);
    assign Z = INIT[{B, A}];
endmodule
"""


@pytest.mark.parametrize("bits", [1, 2, 7, 8, 17])
def test_chains_add_what_simulation_adds(bits: int, tmp_path: Path) -> None:
    """All values of both operands, by satisfiability."""
    (tmp_path / "tables.v").write_text(TABLES, encoding="utf-8")
    read = read_command(CARRIES, tmp_path)
    sums, chains = (read.replace("read_verilog", f"read_verilog {option}") for option in ("-nosynthesis", ""))
    for is_signed in (0, 1):
        for negative in (0, 1):
            parameters = f"-chparam BITS {bits} -chparam SIGNED {is_signed} -chparam NEGATIVE {negative}"
            script = PROOF.format(read=sums, read_chains=chains, parameters=parameters)
            log = find_yosys().run(script, tmp_path, "proof.log").read_text(encoding="utf-8")
            assert "SAT proof finished - no model found: SUCCESS!" in log


@pytest.mark.parametrize(
    ("a", "b", "rows", "latency"),
    [
        (signed(8), 8, 4, 3),
        (unsigned(8), 8, 4, 3),
        (signed(4), 8, 2, 2),
        (unsigned(4), 8, 3, 3),
        (signed(16), 2, 1, 2),
        (unsigned(17), 18, 9, 5),
    ],
)
def test_rows_and_latency(a: Shape, b: int, rows: int, latency: int) -> None:
    """Two bits of the narrower operand a row; then pairs of rows, pairs of pairs, and so on."""
    assert digit_rows(a, signed(b)) == rows
    assert {MultiplierParams(a.width, b, kind, a.signed).latency for kind in KINDS} == {latency}
