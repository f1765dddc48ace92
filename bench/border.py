"""Border classes in hardware: two same-padded convolutions with nothing between, folded into one and not.

    python bench/border.py

For kernels 3 and 5 and strides 1 and 2, compiles the cascade 3 → 8 → 4 channels on 16×16 pixels both ways for ecp5-25k at 2,500
frames/s, simulates both against the golden model (every pixel, border included) and synthesizes both with
yosys. Prints Markdown: multiplies a frame, bits of weights, and the cells that yosys counts before placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convfold.api import Compiled, compile
from convfold.compiler.graph import QConv2D, graph_macs
from convfold.compiler.passes import Options
from convfold.compiler.targets import get_target
from convfold.compiler.tools.yosys import find_yosys, synthesize
from convfold.sim.cosimulate import cosimulate

BUILDS = Path(__file__).resolve().parent.parent / "build" / "bench"
SIZE, CHANNELS, MIDDLE, FILTERS = 16, 3, 8, 4
CYCLES = 40_000
"""Cycles a frame that both forms may take; the planner gives each the fewest multipliers for it."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """A net of two convolutions, both with kernel ``kernel`` and stride ``stride``, random weights."""

    kernel: int
    stride: int

    @property
    def name(self) -> str:
        return f"border_k{self.kernel}_s{self.stride}"

    def write(self, folder: Path) -> Path:
        """The specification and its weights."""
        rng = np.random.default_rng(self.kernel * 10 + self.stride)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {}
        layers = []
        for name, inputs, filters in (("first", CHANNELS, MIDDLE), ("second", MIDDLE, FILTERS)):
            arrays[f"{name}.w"] = rng.normal(size=(filters, self.kernel, self.kernel, inputs)) / (self.kernel * inputs**0.5)
            arrays[f"{name}.b"] = rng.normal(size=filters)
            layers.append(f'[[layer]]\nname = "{name}"\nop = "conv2d"\nstride = {self.stride}\npadding = "same"\n')
        np.savez_compressed(folder / f"{self.name}.npz", allow_pickle=False, **arrays)
        head = (
            f'[network]\nname = "{self.name}"\nweights = "{self.name}.npz"\n'
            f"input = {{ shape = [{SIZE}, {SIZE}, {CHANNELS}], range = [0.0, 1.0] }}\n\n"
        )
        path = folder / f"{self.name}.toml"
        path.write_text(head + "\n".join(layers), encoding="utf-8")
        return path


def cells(compiled: Compiled, folder: Path) -> Mapping[str, int]:
    """LUT4, flip-flops, multipliers and block RAMs of the synthesized netlist."""
    target = get_target("ecp5-25k")
    counted = synthesize(find_yosys(), folder / "accelerator.v", target, compiled.integers.name, folder).cells
    carry = 2 * counted.get("CCU2C", 0)
    return {
        "LUT": counted.get("LUT4", 0) + carry,
        "FF": counted.get("TRELLIS_FF", 0),
        "DSP": counted.get("MULT18X18D", 0),
        "BRAM": counted.get("DP16KD", 0),
    }


def weight_bits(compiled: Compiled) -> int:
    """Bits of all kernels, border classes included."""
    graph = compiled.integers
    layers = [node for node in graph.nodes if isinstance(node, QConv2D)]
    return sum(graph.weights[f"{node.name}.w"].size * node.weight_bits for node in layers)


def main() -> None:
    head = ("kernel", "stride", "form", "multiplies", "weight bits", "cycles/frame", "LUT", "FF", "DSP", "BRAM", "mismatches")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head), flush=True)
    for kernel in (3, 5):
        for stride in (1, 2):
            cascade = Cascade(kernel, stride)
            net = cascade.write(BUILDS / cascade.name)
            images = np.random.default_rng(1).uniform(size=(32, SIZE, SIZE, CHANNELS))
            for form, options in (("two", Options(fold="off")), ("one", Options(force=True))):
                rate = get_target("ecp5-25k").plan_mhz * 1e6 / CYCLES
                compiled = compile(net, "ecp5-25k", fps=rate, calibration=images, fold_options=options)
                folder = compiled.write(BUILDS / f"{cascade.name}_{form}")
                run = cosimulate(folder, frames=2)
                if not run.passed:
                    raise SystemExit(f"{folder.name}: {run.summary()}")
                row = [kernel, stride, form, f"{graph_macs(compiled.integers):,}", f"{weight_bits(compiled):,}"]
                row += [f"{run.record['interval_cycles']:,}", *cells(compiled, folder).values(), run.mismatches]
                print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
