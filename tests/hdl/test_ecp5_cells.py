"""The models of the ECP5 cells, against models in Python that were written from the same documents."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.simulators import find_simulator, lint
from tests.hdl.verilog_bench import BENCH_END, BENCH_HEAD, CELLS, compile_bench, icarus, write_hex

needs_icarus = pytest.mark.skipif(
    icarus() is None, reason="a simulation for each value: Verilator would compile each for some seconds"
)


Parameters = dict[str, str | int]


def pins(name: str, bits: int) -> str:
    return ", ".join(f".{name}{n}({name.lower()}[{n}])" for n in range(bits))


REGISTERED = {"REG_INPUTA_CLK": "CLK0", "REG_INPUTB_CLK": "CLK0", "REG_OUTPUT_CLK": "CLK0"}
MULTIPLIER_PINS = {
    "CE0": "1'b1",
    "RST0": "1'b0",
    "SIGNEDA": "1'b1",
    "SIGNEDB": "1'b1",
    "SOURCEA": "1'b0",
    "SOURCEB": "1'b0",
}
BLOCK: Parameters = {
    "DATA_WIDTH_A": 18,
    "DATA_WIDTH_B": 18,
    "REGMODE_A": "OUTREG",
    "REGMODE_B": "OUTREG",
    "RESETMODE": "SYNC",
    "ASYNC_RESET_RELEASE": "SYNC",
    "CSDECODE_A": "0b000",
    "CSDECODE_B": "0b000",
    "WRITEMODE_A": "NORMAL",
    "WRITEMODE_B": "NORMAL",
    "GSR": "AUTO",
}
BLOCK_PINS = {
    f"{pin}{side}{n}": level
    for side in "AB"
    for pin, n, level in [("CE", "", "1'b1"), ("OCE", "", "1'b1"), ("RST", "", "1'b0")]
    + [("CS", str(bit), "1'b0") for bit in range(3)]
} | {"CLKB": "clk"}


def instance(cell: str, parameters: Parameters, *connections: str, **levels: str) -> str:
    values = ", ".join(
        f'.{name}("{value}")' if isinstance(value, str) else f".{name}({value})" for name, value in parameters.items()
    )
    tied = ", ".join(f".{name}({level})" for name, level in levels.items())
    return f"    {cell} #({values}) cell_({', '.join(connections)}, {tied});\n"


def multiplier(parameters: Parameters, levels: dict[str, str]) -> str:
    return instance("MULT18X18D", parameters, ".CLK0(clk)", pins("A", 18), pins("B", 18), pins("P", 36), **levels)


def block(parameters: Parameters, levels: dict[str, str]) -> str:
    connections = [".CLKA(clk)", ".WEA(wea)", ".WEB(web)"]
    for side in "AB":
        connections += [pins(f"AD{side}", 14), pins(f"DI{side}", 18), pins(f"DO{side}", 18)]
    return instance("DP16KD", parameters, *connections, **levels)


@pytest.mark.parametrize("tool", ["icarus", "verilator"])
@pytest.mark.parametrize("top", ["MULT18X18D", "DP16KD"])
def test_no_warnings(tool: str, top: str, tmp_path: Path) -> None:
    try:
        simulator = find_simulator(tool)
    except ToolError as error:
        pytest.skip(str(error))
    lint(simulator, [CELLS], top, tmp_path)


def test_products(tmp_path: Path) -> None:
    """A new pair every cycle; the product of the pair set before one edge is there after the next."""
    corners = [-(1 << 17), -(1 << 17) + 1, -1, 0, 1, (1 << 17) - 1, 127, -128]
    pairs = [(a, b) for a in corners for b in corners]
    pairs += [(random.randrange(-(1 << 17), 1 << 17), random.randrange(-(1 << 17), 1 << 17)) for _ in range(500)]
    mask = (1 << 18) - 1
    vectors = [(a & mask) << 54 | (b & mask) << 36 | (a * b) & ((1 << 36) - 1) for a, b in pairs]
    write_hex(vectors, 72, tmp_path / "vectors.hex")
    text = BENCH_HEAD + f"""
    reg [71:0] vectors [0:{len(vectors) - 1}];
    reg [17:0] a, b;
    wire [35:0] p;
    integer n;
{multiplier({**REGISTERED}, MULTIPLIER_PINS)}
    initial begin
        $readmemh("vectors.hex", vectors);
        for (n = 0; n < {len(vectors)}; n = n + 1) begin
            {{a, b}} = vectors[n][71:36];
            @(posedge clk); #1;
            if (n >= 1 && p !== vectors[n - 1][35:0]) wrong = wrong + 1;
        end
""" + BENCH_END
    (tmp_path / "bench.v").write_text(text, encoding="utf-8")
    compile_bench([CELLS, tmp_path / "bench.v"], tmp_path).check()


@dataclass(slots=True)
class Port:
    """One port of the Python model: ``latch`` is the memory's output, ``out`` the register behind it."""

    width: int
    latch: list[int | None] = field(default_factory=lambda: [None] * 18)
    out: list[int | None] = field(default_factory=lambda: [None] * 18)

    def touched(self, address: int) -> list[int]:
        """Bit positions in the memory, lowest first; a word of 9 bits begins at any multiple of 9."""
        first = (address >> 3) * 9 if self.width == 9 else (address >> 4) * 18
        return list(range(first, first + self.width))

    def written(self, enable: int, address: int, value: int) -> dict[int, int]:
        bits = self.touched(address)
        if self.width == 18:  # address pins 0 and 1 enable the bytes
            enabled = [n for n in range(18) if address >> n // 9 & 1]
        else:
            enabled = list(range(9))
        return {bits[n]: value >> n & 1 for n in enabled} if enable else {}


def clocked(memory: list[int | None], ports: tuple[Port, Port], commands: list[tuple[int, int, int]]) -> None:
    """One clock of the Python model; a command is ``(write enable, address pins, data)``."""
    writes = [port.written(*command) for port, command in zip(ports, commands, strict=True)]
    for n, (port, (enable, address, _)) in enumerate(zip(ports, commands, strict=True)):
        port.out = list(port.latch)
        if not enable:
            bits = [None if bit in writes[1 - n] else memory[bit] for bit in port.touched(address)]
            port.latch = bits + [None] * (18 - len(bits))
    for n, write in enumerate(writes):
        for bit, value in write.items():
            memory[bit] = None if bit in writes[1 - n] else value


@pytest.mark.parametrize("widths", [(18, 18), (9, 9), (18, 9), (9, 18)])
def test_block_ram(widths: tuple[int, int], tmp_path: Path) -> None:
    """Every word of INITVAL from both ports, then dense traffic on a few words; unknown bits must be unknown."""
    words = [random.getrandbits(18) for _ in range(1024)]
    memory: list[int | None] = [word >> n & 1 for word in words for n in range(18)]
    ports = Port(widths[0]), Port(widths[1])
    low = [3 if width == 9 else 4 for width in widths]
    commands = [
        [(0, min(n, (1 << 14 - shift) - 1) << shift, 0) for shift in low] for n in range(1 << 14 - min(low))
    ]
    for _ in range(1500):
        line: list[tuple[int, int, int]] = []
        for side in range(2):
            word = random.choice((0, 1, 2, 1022, 1023))
            address = word << 4 | random.getrandbits(4)
            if random.random() < 0.3 and side:
                address = line[0][1] ^ random.choice((0, 0, 8, 3))
            line.append((int(random.random() < 0.4), address, random.getrandbits(18)))
        commands.append(line)
    vectors = []
    unknown = 0  # after the start, when registers are
    for cycle, line in enumerate(commands):
        clocked(memory, ports, line)
        unknown += cycle > 2 and any(None in port.out[:9] for port in ports)
        vector = 0
        for enable, address, data in line:
            vector = vector << 33 | enable << 32 | address << 18 | data
        for port in ports:
            care = sum((bit is not None) << n for n, bit in enumerate(port.out))
            vector = vector << 36 | care << 18 | sum((bit or 0) << n for n, bit in enumerate(port.out))
        vectors.append(vector)
    write_hex(vectors, 138, tmp_path / "vectors.hex")
    initvals = []
    for line_number in range(64):  # sixteen words of 18 bits, 20 bits apart
        packed = sum(word << (20 * n) for n, word in enumerate(words[16 * line_number : 16 * line_number + 16]))
        initvals.append(f".INITVAL_{line_number:02X}(320'h{packed:080x})")
    parameters = {**BLOCK, "DATA_WIDTH_A": widths[0], "DATA_WIDTH_B": widths[1]}
    cell = block(parameters, BLOCK_PINS)
    cell = cell.replace("#(", f"#({', '.join(initvals)}, ", 1)
    text = BENCH_HEAD + f"""
    reg [137:0] vectors [0:{len(vectors) - 1}];
    reg wea, web;
    reg [13:0] ada, adb;
    reg [17:0] dia, dib, care_a, care_b, known_a, known_b;
    wire [17:0] doa, dob;
    integer n;
{cell}
    initial begin
        $readmemh("vectors.hex", vectors);
        for (n = 0; n < {len(vectors)}; n = n + 1) begin
            {{wea, ada, dia, web, adb, dib, care_a, known_a, care_b, known_b}} = vectors[n];
            @(posedge clk); #1;
            if (((doa ^ known_a) & care_a) !== 18'd0 || ((dob ^ known_b) & care_b) !== 18'd0) wrong = wrong + 1;
`ifndef VERILATOR
            if ((doa | care_a) !== (care_a | {{18{{1'bx}}}}) || (dob | care_b) !== (care_b | {{18{{1'bx}}}}))
                wrong = wrong + 1;
`endif
        end
""" + BENCH_END
    (tmp_path / "bench.v").write_text(text, encoding="utf-8")
    compile_bench([CELLS, tmp_path / "bench.v"], tmp_path).check()
    assert unknown > 50


def refusal(cell: str, folder: Path) -> str:
    """What a bench prints that only runs a cell for four clocks."""
    signals = "".join(f"    reg [35:0] {name} = 0;\n" for name in ("a", "b", "ada", "adb", "dia", "dib"))
    signals += "    wire [35:0] p, doa, dob;\n    reg wea = 1'b0, web = 1'b0;\n"
    text = BENCH_HEAD + signals + cell + "    initial begin\n        repeat (4) @(posedge clk);\n" + BENCH_END
    (folder / "bench.v").write_text(text, encoding="utf-8")
    return compile_bench([CELLS, folder / "bench.v"], folder).output()


@needs_icarus
def test_the_right_modes_are_accepted(tmp_path: Path) -> None:
    assert "PASS\n" in refusal(multiplier({**REGISTERED}, MULTIPLIER_PINS), tmp_path)
    assert "PASS\n" in refusal(block(BLOCK, BLOCK_PINS), tmp_path)


@needs_icarus
@pytest.mark.parametrize(
    "change",
    [
        {"REG_INPUTA_CLK": "NONE"},
        {"REG_INPUTB_CLK": "CLK1"},
        {"REG_OUTPUT_CLK": "NONE"},
        {"REG_PIPELINE_CLK": "CLK0"},
        {"REG_PIPELINE_CE": "CE1"},
        {"REG_INPUTA_CE": "CE1"},
        {"REG_OUTPUT_RST": "RST3"},
        {"SOURCEB_MODE": "C_SHIFT"},
        {"MULT_BYPASS": "ENABLED"},
        {"RESETMODE": "ASYNC"},
        {"CE0": "1'b0"},
        {"RST0": "1'b1"},
        {"SIGNEDA": "1'b0"},
        {"SIGNEDB": "1'b0"},
        {"SOURCEA": "1'b1"},
        {"SOURCEB": "1'bz"},
    ],
    ids=str,
)
def test_other_multiplier_modes_stop_the_simulation(change: dict[str, str], tmp_path: Path) -> None:
    parameters: Parameters = {**REGISTERED}
    parameters |= {name: value for name, value in change.items() if name not in MULTIPLIER_PINS}
    levels = MULTIPLIER_PINS | {name: value for name, value in change.items() if name in MULTIPLIER_PINS}
    printed = refusal(multiplier(parameters, levels), tmp_path)
    assert "ERROR: bench.cell_: this model of MULT18X18D" in printed
    assert "PASS" not in printed


@needs_icarus
@pytest.mark.parametrize(
    "change",
    [
        {"DATA_WIDTH_A": 36},
        {"DATA_WIDTH_B": 4},
        {"REGMODE_A": "NOREG"},
        {"REGMODE_B": "NOREG"},
        {"RESETMODE": "ASYNC"},
        {"WRITEMODE_A": "WRITETHROUGH"},
        {"WRITEMODE_B": "READBEFOREWRITE"},
        {"CSDECODE_A": "0b001"},
        {"GSR": "ENABLED"},
        {"CEA": "1'b0"},
        {"OCEB": "1'b0"},
        {"RSTA": "1'b1"},
        {"CSB2": "1'b1"},
        {"CLKB": "~clk"},
    ],
    ids=str,
)
def test_other_block_modes_stop_the_simulation(change: Parameters, tmp_path: Path) -> None:
    parameters = BLOCK | {name: value for name, value in change.items() if name not in BLOCK_PINS}
    levels = BLOCK_PINS | {name: str(value) for name, value in change.items() if name in BLOCK_PINS}
    printed = refusal(block(parameters, levels), tmp_path)
    assert "ERROR: bench.cell_: this model of DP16KD" in printed
    assert "PASS" not in printed
