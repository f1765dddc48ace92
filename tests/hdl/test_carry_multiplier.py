"""The carry chains of products and sums: proved equal to what simulation sees, with the cells as Yosys models them."""

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
hierarchy -top {cell} {parameters}
proc
rename -top sums
design -stash sums
{read_chains}
read_verilog +/lattice/ccu2c_sim.vh
read_verilog tables.v
hierarchy -top {cell} {parameters}
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


def prove(cell: str, folder: Path, **parameters: int) -> None:
    """That both forms of a cell are equal for all values of its inputs, by satisfiability."""
    (folder / "tables.v").write_text(TABLES, encoding="utf-8")
    read = read_command(CARRIES, folder)
    given = " ".join(f"-chparam {name} {value}" for name, value in parameters.items())
    sums = read.replace("read_verilog", "read_verilog -nosynthesis")
    script = PROOF.format(read=sums, read_chains=read, cell=cell, parameters=given)
    log = find_yosys().run(script, folder, "proof.log").read_text(encoding="utf-8")
    assert "SAT proof finished - no model found: SUCCESS!" in log


@pytest.mark.parametrize("bits", [1, 2, 7, 8, 17])
def test_chains_add_what_simulation_adds(bits: int, tmp_path: Path) -> None:
    for is_signed in (0, 1):
        for negative in (0, 1):
            prove("carry_row", tmp_path, BITS=bits, SIGNED=is_signed, NEGATIVE=negative)


@pytest.mark.parametrize(("bits", "term_bits"), [(1, 1), (20, 16), (19, 19), (21, 1)])
def test_chains_accumulate_what_simulation_does(bits: int, term_bits: int, tmp_path: Path) -> None:
    prove("carry_accumulate", tmp_path, BITS=bits, TERM_BITS=term_bits)


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
    kinds = [kind for kind in KINDS if kind != "ice40" or max(a.width, b) <= 16]
    assert {MultiplierParams(a.width, b, kind, a.signed).latency for kind in kinds} == {latency}
