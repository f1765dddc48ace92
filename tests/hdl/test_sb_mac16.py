"""SB_MAC16: our model of the block against yosys's, and our multipliers made of it against plain ones."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.simulators import find_simulator, lint
from convfold.hdl.multiplier import MultiplierParams
from convfold.hdl.sb_mac16 import SbMac16Params
from tests.hdl.conv_cases import SAME, ConvCase, ConvStage, make_depthwise, make_stage
from tests.hdl.test_ecp5_forms import Pairs, loop, stream_bench
from tests.hdl.verilog_bench import BENCH_END, BENCH_HEAD, ICE40_CELLS, compile_bench, icarus, write_hex

REGISTERS = {"A_REG": 1, "B_REG": 1}
DUAL = REGISTERS | {
    "MODE_8x8": 1, "TOP_8x8_MULT_REG": 1, "BOT_8x8_MULT_REG": 1, "TOPOUTPUT_SELECT": 2, "BOTOUTPUT_SELECT": 2, "B_SIGNED": 1,
}  # fmt: skip
SUMS = {"TOPOUTPUT_SELECT": 1, "BOTOUTPUT_SELECT": 1, "TOPADDSUB_UPPERINPUT": 1, "BOTADDSUB_UPPERINPUT": 1}
DUAL_SUMS = DUAL | SUMS | {"TOPADDSUB_LOWERINPUT": 1, "BOTADDSUB_LOWERINPUT": 1}
WHOLE = REGISTERS | {"PIPELINE_16x16_MULT_REG2": 1, "TOPOUTPUT_SELECT": 3, "BOTOUTPUT_SELECT": 3, "B_SIGNED": 1}
WHOLE_SUMS = WHOLE | SUMS | {"TOPADDSUB_LOWERINPUT": 2, "BOTADDSUB_LOWERINPUT": 2}
TIED = {"CE": "1'b1", "C": "16'd0", "D": "16'd0"} | dict.fromkeys(
    ("AHOLD", "BHOLD", "CHOLD", "DHOLD", "IRSTTOP", "IRSTBOT", "ORSTTOP", "ORSTBOT", "OLOADTOP", "OLOADBOT",
     "ADDSUBTOP", "ADDSUBBOT", "OHOLDTOP", "OHOLDBOT", "CI", "ACCUMCI", "SIGNEXTIN"),
    "1'b0",
)  # fmt: skip

needs_icarus = pytest.mark.skipif(icarus() is None, reason="a simulation for each value, and waits in the cell models")


def yosys_cell(folder: Path) -> Path:
    """The vendor-documented behaviour as yosys has it, under the name ``REFERENCE``."""
    found = util.find_spec("pyosys")
    if found is None or found.origin is None:
        pytest.skip("needs pyosys, whose library of cells is compared with")
    text = (Path(found.origin).parent / "share" / "ice40" / "cells_sim.v").read_text(encoding="utf-8")
    start = text.index("module SB_MAC16 (")
    path = folder / "reference.v"
    path.write_text(text[start : text.index("endmodule", start)].replace("SB_MAC16", "REFERENCE") + "endmodule\n", "utf-8")
    return path


def instance(cell: str, name: str, parameters: dict[str, int], levels: dict[str, str], o: str) -> str:
    values = ", ".join(f".{key}({value})" for key, value in parameters.items())
    tied = ", ".join(f".{key}({level})" for key, level in levels.items())
    return f"    {cell} #({values}) {name} (.CLK(clk), .A(a), .B(b), .O({o}), {tied});\n"


@needs_icarus
@pytest.mark.parametrize("mode", [DUAL, DUAL_SUMS], ids=["products", "sums"])
@pytest.mark.parametrize("a_signed", [0, 1])
def test_every_product_of_both_halves_as_in_yosys(a_signed: int, mode: dict[str, int], tmp_path: Path) -> None:
    """A half walks over all pairs while the other takes random ones, and the other way round; a new pair every cycle."""
    parameters = mode | {"A_SIGNED": a_signed}
    text = BENCH_HEAD + f"""
    reg [15:0] a = 0, b = 0;
    wire [31:0] ours, theirs;
    integer n, half;
{instance("SB_MAC16", "ours_", parameters, TIED, "ours")}{instance("REFERENCE", "theirs_", parameters, TIED, "theirs")}
    initial begin
        for (half = 0; half < 2; half = half + 1)
            for (n = 0; n < 65536; n = n + 1) begin
                {{a, b}} = $random;
                if (half) {{a[15:8], b[15:8]}} = n;
                else {{a[7:0], b[7:0]}} = n;
                @(posedge clk); #1;
                if ((half || n > 1) && ours !== theirs) wrong = wrong + 1;
            end
"""
    (tmp_path / "bench.v").write_text(text + BENCH_END, encoding="utf-8")
    compile_bench([ICE40_CELLS, yosys_cell(tmp_path), tmp_path / "bench.v"], tmp_path).check()


@needs_icarus
@pytest.mark.parametrize("mode", [WHOLE, WHOLE_SUMS], ids=["products", "sums"])
@pytest.mark.parametrize("a_signed", [0, 1])
def test_whole_products_as_in_yosys(a_signed: int, mode: dict[str, int], tmp_path: Path) -> None:
    parameters = mode | {"A_SIGNED": a_signed}
    corners = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    vectors = [a << 16 | b for a in corners for b in corners] + [random.getrandbits(32) for _ in range(20000)]
    write_hex(vectors, 32, tmp_path / "vectors.hex")
    text = BENCH_HEAD + f"""
    reg [31:0] vectors [0:{len(vectors) - 1}];
    reg [15:0] a, b;
    wire [31:0] ours, theirs;
    integer n;
{instance("SB_MAC16", "ours_", parameters, TIED, "ours")}{instance("REFERENCE", "theirs_", parameters, TIED, "theirs")}
    initial begin
        $readmemh("vectors.hex", vectors);
        for (n = 0; n < {len(vectors)}; n = n + 1) begin
            {{a, b}} = vectors[n];
            @(posedge clk); #1;
            if (n > 1 && ours !== theirs) wrong = wrong + 1;
        end
"""
    (tmp_path / "bench.v").write_text(text + BENCH_END, encoding="utf-8")
    compile_bench([ICE40_CELLS, yosys_cell(tmp_path), tmp_path / "bench.v"], tmp_path).check()


@pytest.mark.parametrize("tool", ["icarus", "verilator"])
def test_no_warnings(tool: str, tmp_path: Path) -> None:
    try:
        simulator = find_simulator(tool)
    except ToolError as error:
        pytest.skip(str(error))
    lint(simulator, [ICE40_CELLS], "SB_MAC16", tmp_path)


def refusal(parameters: dict[str, int], levels: dict[str, str], folder: Path) -> str:
    """What a bench prints that only runs the cell for four clocks."""
    text = BENCH_HEAD + "    reg [15:0] a = 0, b = 0;\n    wire [31:0] o;\n"
    text += instance("SB_MAC16", "cell_", parameters, levels, "o")
    text += "    initial begin\n        repeat (4) @(posedge clk);\n" + BENCH_END
    (folder / "bench.v").write_text(text, encoding="utf-8")
    return compile_bench([ICE40_CELLS, folder / "bench.v"], folder).output()


@needs_icarus
@pytest.mark.parametrize("mode", [DUAL, WHOLE, DUAL_SUMS, WHOLE_SUMS, DUAL | {"A_SIGNED": 1}], ids=range(5))
def test_the_right_modes_are_accepted(mode: dict[str, int], tmp_path: Path) -> None:
    assert "PASS\n" in refusal(mode, TIED, tmp_path)


OTHER_MODES = [
    DUAL | {"A_REG": 0},
    DUAL | {"B_REG": 0},
    DUAL | {"C_REG": 1},
    DUAL | {"D_REG": 1},
    DUAL | {"TOP_8x8_MULT_REG": 0},
    DUAL | {"BOT_8x8_MULT_REG": 0},
    DUAL | {"MODE_8x8": 0},
    DUAL | {"B_SIGNED": 0},
    DUAL | {"NEG_TRIGGER": 1},
    DUAL | {"TOPOUTPUT_SELECT": 1},
    DUAL | {"BOTOUTPUT_SELECT": 3},
    DUAL_SUMS | {"TOPADDSUB_UPPERINPUT": 0},
    DUAL_SUMS | {"BOTADDSUB_CARRYSELECT": 1},
    DUAL_SUMS | {"TOPADDSUB_LOWERINPUT": 2},
    DUAL_SUMS | {"BOTADDSUB_LOWERINPUT": 2},
    WHOLE_SUMS | {"TOPADDSUB_LOWERINPUT": 1},
    DUAL | {"TOPADDSUB_LOWERINPUT": 1},
    DUAL | {"BOTADDSUB_UPPERINPUT": 1},
    WHOLE | {"MODE_8x8": 1},
    WHOLE | {"PIPELINE_16x16_MULT_REG1": 1},
    WHOLE | {"PIPELINE_16x16_MULT_REG2": 0},
]


@needs_icarus
@pytest.mark.parametrize("number", range(len(OTHER_MODES)))
def test_other_modes_stop_the_simulation(number: int, tmp_path: Path) -> None:
    printed = refusal(OTHER_MODES[number], TIED, tmp_path)
    assert "ERROR: bench.cell_: this model of SB_MAC16 has no such parameter value" in printed
    assert "PASS" not in printed


@needs_icarus
@pytest.mark.parametrize("pin", TIED)
def test_other_levels_stop_the_simulation(pin: str, tmp_path: Path) -> None:
    level = "1'b0" if pin == "CE" else TIED[pin].replace("d0", "d4").replace("b0", "bz")
    printed = refusal(DUAL, TIED | {pin: level}, tmp_path)
    assert "ERROR: bench.cell_: this model of SB_MAC16 needs CE high" in printed
    assert "PASS" not in printed


# ------------------------------------------------------------------------------------------------------------ the component


SHAPES = [
    (8, True, 8), (8, False, 8), (5, False, 3), (1, True, 8), (9, True, 8), (16, True, 16), (16, False, 16), (8, False, 9),
]  # fmt: skip


def test_products_as_those_of_plain_multipliers(tmp_path: Path) -> None:
    """Corners and random operands, a new set every cycle: the same products in the same cycle."""
    pairs = Pairs()
    checks, stimulus = [], []
    latencies = set()
    for a_bits, a_signed, b_bits in SHAPES:
        expected = MultiplierParams(a_bits, b_bits, a_signed=a_signed)
        params = SbMac16Params(a_bits, a_signed, b_bits, expected.latency)
        prefix = f"m{a_bits}{'s' if a_signed else 'u'}{b_bits}"
        block = params.create()
        pairs.module.submodules[f"{prefix}_block"] = block
        latencies.add(params.latency)
        for n in range(params.products):
            name = f"{prefix}_{n}"
            inputs = pairs.inputs(name, ("a", a_bits), ("b", b_bits))
            plain = expected.create()
            pairs.module.submodules[f"{name}_plain"] = plain
            a, b = inputs["a"].as_signed() if a_signed else inputs["a"], inputs["b"].as_signed()
            pairs.module.d.comb += [plain.i_a.eq(a), plain.i_b.eq(b), block.i_a[n].eq(a), block.i_b[n].eq(b)]
            bits = a_bits + b_bits
            pairs.module.d.comb += [
                pairs.port(f"{name}_expected", bits, False).eq(plain.o),
                pairs.port(f"{name}_product", bits, False).eq(block.o[n]),
            ]
            checks.append(f"{name}_expected !== {name}_product")
            for operand, width in (("a", a_bits), ("b", b_bits)):
                corner = f"({1 << width - 1} - ($random & 1))"
                stimulus.append(f"{name}_{operand} = ($random & 3) != 0 ? $random : {corner};")
    pairs.compile(tmp_path, loop(5000, stimulus, checks, max(latencies))).check()
    assert latencies == {2, 3, 4}


def test_how_many_products_a_block_makes() -> None:
    assert [SbMac16Params(*shape).products for shape in SHAPES] == [2, 2, 2, 2, 1, 1, 1, 1]
    assert [SbMac16Params(8, False, 8).blocks(n) for n in range(5)] == [0, 1, 1, 2, 2]
    assert [SbMac16Params(9, False, 8).blocks(n) for n in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("shape", [(17, True, 8), (8, True, 17)])
def test_what_is_refused(shape: tuple[int, bool, int]) -> None:
    with pytest.raises(ValueError, match=rf"^operands must have at most 16 bits, not \({shape[0]}, {shape[2]}\)$"):
        SbMac16Params(*shape)
    with pytest.raises(ValueError, match=r"^latency must be at least 2, not 1$"):
        SbMac16Params(8, True, 8, 1)


# ---------------------------------------------------------------------------------------------------------------- stages


STAGES = {
    "pairs": ConvCase((4, 6, 4), 4, (3, 3), padding=SAME, lanes=2, pes=2, ring=None),
    "odd, two rows": ConvCase((4, 9, 2), 4, (3, 3), padding=SAME, pes=2, rows=2, parallel=(3, 1), ring=None, signed=True),
    "narrow": ConvCase((3, 5, 6), 5, (1, 1), lanes=3, rows=1, ring=None, bits=5, weight_bits=4),
    "wide": ConvCase((3, 5, 6), 5, (1, 1), lanes=3, rows=1, ring=None, bits=9, weight_bits=7),
    "depthwise": ConvCase((4, 6, 4), 0, (3, 3), padding=SAME, lanes=4, rows=2, ring=None, parallel=(3, 1)),
}


@pytest.mark.parametrize("share", [1, 2], ids=["all hard", "half of them hard"])
@pytest.mark.parametrize("name", STAGES)
def test_stages(name: str, share: int, tmp_path: Path) -> None:
    """Whole stages give what their definition says, with multipliers in blocks, or in blocks and in look-up tables."""
    stage: ConvStage[Any] = (make_depthwise if name == "depthwise" else make_stage)(STAGES[name])
    multipliers = stage.params.multipliers
    params = replace(stage.params, multiplier="ice40", hard=-(-multipliers // share))
    stage = replace(stage, params=params)
    images = stage.random_frames(2)
    window = params.window
    stream_bench(
        stage.create(),
        stage.beats(images),
        window.lanes * window.bits,
        stage.output_beats(images),
        params.out_bits,
        params.rows,
        tmp_path,
    )
    text = (tmp_path / "stage.v").read_text(encoding="utf-8")
    blocks = sum(params.mac_row_of(row).dot_of(e).blocks for row in range(params.rows) for e in range(params.mac_row.pes))
    assert text.count("SB_MAC16 #(") == blocks > 0
