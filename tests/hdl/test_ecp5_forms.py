"""The ECP5 forms of multiplier, ROM and RAM beside the behavioural ones, and whole stages made of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal

from convfold.hdl.conv import ConvParams
from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.multiplier import MultiplierParams
from convfold.hdl.ram import RamParams
from convfold.hdl.rom import BLOCK_RAM_FROM_WORDS, RomParams
from convfold.hdl.window import WindowParams
from tests.hdl.bench import pack
from tests.hdl.conv_cases import SAME, ConvCase, ConvStage, make_depthwise, make_stage
from tests.hdl.verilog_bench import (
    BENCH_END,
    BENCH_HEAD,
    CARRIES,
    CELLS,
    ICE40_CELLS,
    VerilogBench,
    compile_bench,
    write_hex,
    write_verilog,
)


class Pairs:
    """A design that holds two components for each case, and the bench's view of their ports."""

    def __init__(self) -> None:
        self.module = Module()
        self.ports: list[Signal] = []
        self.declarations: list[str] = []
        self.connections = [".clk(clk)", ".rst(1'b0)"]

    def port(self, name: str, bits: int, driven: bool) -> Signal:
        signal = Signal(bits, name=name)
        self.ports.append(signal)
        self.declarations.append(f"    {'reg' if driven else 'wire'} [{bits - 1}:0] {name}{' = 0' if driven else ''};")
        self.connections.append(f".{name}({name})")
        return signal

    def inputs(self, prefix: str, *names_and_bits: tuple[str, int]) -> dict[str, Signal]:
        return {name: self.port(f"{prefix}_{name}", bits, True) for name, bits in names_and_bits}

    def add(self, prefix: str, form: str, component: Any, inputs: dict[str, Signal], bits: int) -> None:
        self.module.submodules[f"{prefix}_{form}"] = component
        for name, signal in inputs.items():
            self.module.d.comb += getattr(component, f"i_{name}").eq(signal)
        self.module.d.comb += self.port(f"{prefix}_{form}", bits, False).eq(component.o)

    def compile(self, folder: Path, body: str) -> VerilogBench:
        path = write_verilog(self.module, "pairs", folder, self.ports)
        connections = ",\n        ".join(self.connections)
        text = "\n".join([BENCH_HEAD, *self.declarations, f"    pairs pairs (\n        {connections});", body, BENCH_END])
        (folder / "bench.v").write_text(text, encoding="utf-8")
        return compile_bench([CELLS, CARRIES, ICE40_CELLS, path, folder / "bench.v"], folder)


def loop(cycles: int, stimulus: Sequence[str], checks: Sequence[str], wait: int = 1) -> str:
    """Drive, clock, then compare; in the first cycles, ``wait`` and one, the registers of the models are unknown."""
    return "\n".join(
        [
            "    integer n;",
            "    initial begin",
            f"        for (n = 0; n < {cycles}; n = n + 1) begin",
            *(f"            {line}" for line in stimulus),
            "            @(posedge clk); #1;",
            *(f"            if (n > {wait} && {check}) wrong = wrong + 1;" for check in checks),
            "        end",
        ]
    )


def add_multipliers(pairs: Pairs, prefix: str, a_bits: int, b_bits: int, a_signed: bool) -> str:
    """A multiplier of each kind; returns the comparison of their products."""
    inputs = pairs.inputs(prefix, ("a", a_bits), ("b", b_bits))
    for kind in ("behavioural", "ecp5", "ecp5_fabric"):
        pairs.add(prefix, kind, MultiplierParams(a_bits, b_bits, kind, a_signed).create(), inputs, a_bits + b_bits)
    return f"({prefix}_behavioural !== {prefix}_ecp5 || {prefix}_behavioural !== {prefix}_ecp5_fabric)"


def test_every_product_of_8x8_bits(tmp_path: Path) -> None:
    """Samples with a sign and without."""
    pairs = Pairs()
    checks = [add_multipliers(pairs, "signed", 8, 8, True), add_multipliers(pairs, "unsigned", 8, 8, False)]
    stimulus = [f"{{{name}_a, {name}_b}} = n;" for name in ("signed", "unsigned")]
    pairs.compile(tmp_path, loop((1 << 16) + 4, stimulus, checks, wait=2)).check()


MULTIPLIERS = [
    (18, 18, True),
    (17, 16, False),
    (2, 17, True),
    (3, 17, False),
    (12, 5, True),
    (8, 4, False),
    (8, 3, True),
    (8, 2, False),
    (7, 7, False),
    (4, 4, True),
    (4, 8, False),
    (2, 1, False),
    (1, 1, True),
    (1, 1, False),
    (1, 9, False),
]


def test_corners_and_random_products(tmp_path: Path) -> None:
    pairs = Pairs()
    checks, stimulus = [], []
    for a_bits, b_bits, a_signed in MULTIPLIERS:
        prefix = f"{'s' if a_signed else 'u'}{a_bits}x{b_bits}"
        checks.append(add_multipliers(pairs, prefix, a_bits, b_bits, a_signed))
        for operand, bits in (("a", a_bits), ("b", b_bits)):
            corner = f"({1 << bits - 1} - ($random & 1))"
            stimulus.append(f"{prefix}_{operand} = ($random & 3) != 0 ? $random : {corner};")
    pairs.compile(tmp_path, loop(5000, stimulus, checks, wait=5)).check()


ROM_WIDTHS = {
    2: (8,),
    48: (24, 37),
    64: (1, 9, 18, 19, 35, 36, 37, 54, 55, 72),
    200: (7, 27, 40),
    512: (18, 20, 55),
    513: (18, 19, 36),
    1024: (9, 20),
    1025: (8, 10),
    2048: (9,),
    2049: (3, 19),
    4097: (9, 12),
}


def test_roms(tmp_path: Path) -> None:
    """Every address once, then random ones; both forms against each other, and one against its words."""
    pairs = Pairs()
    stimulus, checks = [], []
    for depth, widths in ROM_WIDTHS.items():
        inputs = pairs.inputs(f"d{depth}", ("addr", (depth - 1).bit_length()))
        stimulus.append(f"d{depth}_addr = n < {depth} ? n : {{$random}} % {depth};")
        for width in widths:
            words = [random.getrandbits(width) for _ in range(depth)]
            for kind in ("behavioural", "ecp5" if depth >= BLOCK_RAM_FROM_WORDS else "ecp5_block"):
                form = kind.removesuffix("_block")
                pairs.add(f"d{depth}_w{width}", form, RomParams(width, depth, kind).create(words), inputs, width)
            checks.append(f"d{depth}_w{width}_behavioural !== d{depth}_w{width}_ecp5")
    pairs.compile(tmp_path, loop(4097 + 300, stimulus, checks)).check()


RAM_WIDTHS = {64: (1, 8, 19), 100: (36,), 1000: (8, 20), 1024: (18,), 1025: (9, 10), 2048: (8,), 2049: (16,), 4100: (9,)}


def test_rams(tmp_path: Path) -> None:
    """A read every cycle and a write in three of four; half the reads are of an address written lately."""
    pairs = Pairs()
    stimulus, checks = [], []
    for depth, widths in RAM_WIDTHS.items():
        bits = (depth - 1).bit_length()
        for width in widths:
            name = f"d{depth}_w{width}"
            inputs = pairs.inputs(name, ("addr", bits), ("write_addr", bits), ("write_data", width), ("write_en", 1))
            for kind in ("behavioural", "ecp5"):
                pairs.add(name, kind, RamParams(width, depth, kind).create(), inputs, width)
            pairs.declarations.append(f"    reg [1:0] {name}_defined = 0;")
            near = min(depth, 40)
            stimulus += [
                f"{name}_addr = $random & 1 ? {name}_write_addr : {{$random}} % {depth};",
                f"{name}_write_addr = $random & 3 ? {depth - near} + {{$random}} % {near} : {{$random}} % {depth};",
                f"{name}_write_data = {{$random, $random}};",
                f"{name}_write_en = ($random & 3) != 0;",
                f"{name}_defined = {{{name}_defined[0], !({name}_write_en && {name}_addr == {name}_write_addr)}};",
            ]
            checks.append(f"{name}_defined[1] && {name}_behavioural !== {name}_ecp5")
    pairs.compile(tmp_path, loop(5000, stimulus, checks)).check()


STREAM_BENCH = """\
    parameter SENT = 1, DUE = 1, IN_BITS = 1, OUT_BITS = 1;
    reg [IN_BITS-1:0] beats [0:SENT-1];
    reg [2*OUT_BITS-1:0] due [0:DUE-1];
    reg [IN_BITS-1:0] i_payload = 0;
    reg i_valid = 1'b0;
    reg o_ready = 1'b0;
    reg sending, receiving;
    wire i_ready, o_valid;
    wire [OUT_BITS-1:0] o_payload;
    reg [OUT_BITS-1:0] care, known;
    integer sent = 0, taken = 0, cycles = 0, gaps, stalls;

    stage stage (
        .clk(clk), .rst(1'b0),
        .i__payload(i_payload), .i__valid(i_valid), .i__ready(i_ready),
        .o__payload(o_payload), .o__valid(o_valid), .o__ready(o_ready)
    );

    initial begin
        if (!$value$plusargs("gaps=%d", gaps)) gaps = 0;
        if (!$value$plusargs("stalls=%d", stalls)) stalls = 0;
        $readmemh("beats.hex", beats);
        $readmemh("due.hex", due);
        while (taken < DUE && cycles < 200000) begin
            cycles = cycles + 1;
            if (sent < SENT && !i_valid && {$random} % 8 >= gaps) begin
                i_payload = beats[sent];
                i_valid = 1'b1;
            end
            o_ready = {$random} % 8 >= stalls;
            #1;
            sending = i_valid && i_ready === 1'b1;
            receiving = o_ready && o_valid === 1'b1;
            if (receiving) begin
                {care, known} = due[taken];
                if (((o_payload ^ known) & care) !== {OUT_BITS{1'b0}}) wrong = wrong + 1;
                taken = taken + 1;
            end
            if (o_valid === 1'bx || i_ready === 1'bx) wrong = wrong + 1;
            @(posedge clk); #1;
            if (sending) begin
                sent = sent + 1;
                i_valid = 1'b0;
            end
        end
        if (taken != DUE) wrong = wrong + 1;
"""

STALLS = [(0, 0), (4, 4), (0, 6)]


def stream_bench(
    design: Any, beats: list[int], in_bits: int, due: list[list[int]], bits: int, lanes: int, folder: Path
) -> None:
    """Run a stage as Verilog with the models of its cells, under every kind of stall; fillers are not looked at."""
    vectors = []
    for part in due:
        care = pack([-1] * len(part), bits)
        vectors.append(care << bits * lanes | pack(part, bits))
    write_hex(beats, in_bits, folder / "beats.hex")
    write_hex(vectors, 2 * bits * lanes, folder / "due.hex")
    sizes = {"SENT": len(beats), "DUE": len(due), "IN_BITS": in_bits, "OUT_BITS": bits * lanes}
    body = STREAM_BENCH
    for name, value in sizes.items():
        body = body.replace(f"{name} = 1", f"{name} = {value}")
    (folder / "bench.v").write_text(BENCH_HEAD + body + BENCH_END, encoding="utf-8")
    sources = [CELLS, CARRIES, ICE40_CELLS, write_verilog(design, "stage", folder), folder / "bench.v"]
    bench = compile_bench(sources, folder)
    for gaps, stalls in STALLS:
        bench.check(f"+gaps={gaps}", f"+stalls={stalls}")


STAGES = {
    "one at a time": ConvCase((4, 6, 4), 4, (3, 3), padding=SAME, pes=2, ring=None),
    "kernel rows at once": ConvCase((4, 9, 8), 4, (3, 3), padding=SAME, pes=4, parallel=(3, 1), ring=None, signed=True),
    "kernel at once": ConvCase((4, 6, 32), 1, (3, 3), parallel=(3, 3), ring=None),
    "pointwise": ConvCase((3, 5, 28), 5, (1, 1), lanes=2, rows=2, pes=2, ring=None),
    "classes, slow": ConvCase(
        (3, 8, 3), 2, (3, 3), padding=SAME, requantizer_ii=27, ring=None, class_rows=(0, 1, 2), class_cols=(0, 1, 7)
    ),
    "fast writer": ConvCase((7, 16, 4), 3, (2, 2), (1, 2), lanes=1, pes=2, ring=None),
    "groups, dilated, split": ConvCase(
        (7, 12, 4), 4, (3, 2), (2, 2), SAME, pes=2, ring=None, dilation=(2, 3), groups=2, split=True, multiplier_bits=23
    ),
}


def test_the_stages_have_roms_of_both_kinds() -> None:
    params = [make_stage(replace(case, kind="ecp5")).params for case in STAGES.values()]
    assert {stage.mac_row.rom_of(0).in_blocks for stage in params} == {True, False}
    assert any(not stage.mac_row.rom_of(0).in_blocks and stage.rows * stage.pes > 1 for stage in params)  # some of them will be


DEPTHWISE = {
    "depthwise": ConvCase((4, 6, 22), 0, (3, 3), padding=SAME, lanes=2, ring=None, signed=True, split=True, multiplier_bits=21),
    "depthwise, kernel at once": ConvCase((3, 8, 44), 0, (3, 3), padding=SAME, lanes=2, rows=2, parallel=(3, 3), ring=None),
    "pooling": ConvCase((4, 9, 16), 0, (2, 3), (2, 3), lanes=4, weight_bits=0, split=True, ring=None),
}


@pytest.mark.parametrize("name", STAGES | DEPTHWISE)
def test_mac_stages(name: str, tmp_path: Path) -> None:
    """Frames back to back through the smallest ring: a word that is read while it is written would be unknown."""
    make, case = (make_stage, STAGES[name]) if name in STAGES else (make_depthwise, DEPTHWISE[name])
    stage: ConvStage[Any] = make(replace(case, kind="ecp5"))
    params = replace(stage.params, hard=(stage.params.multipliers + 1) // 2)
    if isinstance(params, ConvParams):
        params = replace(params, block_roms=(params.rows * params.pes + 1) // 2)
    stage = replace(stage, params=params)
    images = stage.random_frames(2)
    window = params.window
    assert RamParams(window.lanes * window.bits, bank_words(window), "ecp5").in_blocks
    stream_bench(
        stage.create(),
        stage.beats(images),
        window.lanes * window.bits,
        stage.output_beats(images),
        params.out_bits,
        params.rows,
        tmp_path,
    )


def bank_words(window: WindowParams) -> int:
    return window.rows // window.parallel[0] * -(-window.width // window.parallel[1]) * window.beats


@pytest.mark.parametrize("stride", [1, 2])
def test_max_pool_stages(stride: int, tmp_path: Path) -> None:
    window = WindowParams(
        6, 12, 5, 2, 8, True, (2, 2), (stride, stride), ((0, 0), (0, 0)), 4,
        channelwise=True, pad_raw=-128, memory="ecp5",
    )  # fmt: skip
    params = MaxPoolParams(replace(window, rows=window.min_rows))
    assert RamParams(16, bank_words(params.window), "ecp5").in_blocks
    rng = np.random.default_rng(1)
    images = [rng.integers(-128, 128, (6, 12, 5)).tolist() for _ in range(3)]
    pixels = [pixel for image in images for row in image for pixel in row]
    beats = [pack(pixel[n : n + 2], 8) for pixel in pixels for n in range(0, 5, 2)]
    due = [beat[: 1 if n % 3 == 2 else 2] for image in images for n, beat in enumerate(params.reference(image))]
    stream_bench(params.create(), beats, 16, due, 8, 2, tmp_path)
