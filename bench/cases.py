"""What `bench/run.py` measures, and what others have published for the same task.

A case is a network, a target and a rate; a group is a task with its cases and its anchors. Anchors are quoted, never measured
by the bench: from the published result files of MLPerf Tiny, or peers' Verilog that we once put through the same yosys and
nextpnr. The remark says which.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.models import INT8, find_models

__all__ = ["CASES", "GROUPS", "Anchor", "Case", "Group", "Missing"]

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits"


class Missing(Exception):
    """A case that cannot run here, and why."""


Network = Callable[[Path], list[str]]
"""Writes what it needs into a folder; returns the arguments of ``convfold compile``: the network and its data."""


@dataclass(frozen=True, slots=True)
class Case:
    """One build. ``frames`` a stall profile are simulated; ``freq_mhz``, or the planning clock, is asked of the ``router``.

    Router 1 is the better one of small designs, and does not end on half a device.
    """

    name: str
    title: str
    network: Network
    options: tuple[str, ...]
    frames: int = 2
    freq_mhz: float | None = None
    router: str = "router1"


@dataclass(frozen=True, slots=True)
class Anchor:
    """A published result; ``remark`` names the source. The ``rate`` of a ``single_stream`` is one over its latency."""

    name: str
    device: str
    rate: float | None
    remark: str
    single_stream: bool = False
    luts: int | None = None
    macs_per_cycle: float | None = None
    fmax_mhz: float | None = None

    @property
    def latency_us(self) -> float | None:
        return 1e6 / self.rate if self.single_stream and self.rate else None


@dataclass(frozen=True, slots=True)
class Group:
    """A task; ``plotted`` if the picture shows it."""

    name: str
    title: str
    cases: tuple[Case, ...]
    anchors: tuple[Anchor, ...] = ()
    plotted: bool = True


def layer(folder: Path) -> list[str]:
    """One 3×3 convolution, 16 → 16 channels on 32×32 pixels, same-padded, with weights drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(16, 3, 3, 16)) / 12
    np.savez(folder / "layer.npz", allow_pickle=False, **{"conv.w": w, "conv.b": rng.normal(size=16) / 4})
    network = {"name": "layer", "weights": "layer.npz", "input": {"shape": [32, 32, 16], "range": [-1.0, 1.0]}}
    conv = {"name": "conv", "op": "conv2d", "stride": 1, "padding": "same"}
    (folder / "layer.json").write_text(json.dumps({"network": network, "layer": [conv]}), encoding="utf-8")
    np.savez(folder / "images.npz", allow_pickle=False, x=rng.uniform(-1, 1, (16, 32, 32, 16)))
    return [str(folder / "layer.json"), "--calibration", str(folder / "images.npz")]


def digits(_folder: Path) -> list[str]:
    """The example network."""
    samples = ["--calibration", str(DIGITS / "calibration.npz"), "--test", str(DIGITS / "test.npz")]
    return [str(DIGITS / "digits.toml"), *samples]


def up5k(folder: Path) -> list[str]:
    """A net for 8×8 images with weights drawn from a fixed seed: as long with 2 and 14 multipliers in its convolutions."""
    rng = np.random.default_rng(0)
    shapes = {"edges": (14, 3, 3, 1), "mix": (28, 3, 3, 14), "classify": (10, 4 * 4 * 28)}
    arrays = {f"{name}.w": rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5 for name, shape in shapes.items()}
    arrays |= {f"{name}.b": rng.normal(size=shape[0]) / 4 for name, shape in shapes.items()}
    np.savez(folder / "up5k.npz", allow_pickle=False, **arrays)
    network = {"name": "up5k", "weights": "up5k.npz", "input": {"shape": [8, 8, 1], "range": [0.0, 1.0]}}
    layers = [
        {"name": "edges", "op": "conv2d", "padding": "same"},
        {"name": "relu1", "op": "relu"},
        {"name": "mix", "op": "conv2d", "stride": 2, "padding": "same"},
        {"name": "relu2", "op": "relu"},
        {"name": "classify", "op": "dense"},
    ]
    (folder / "up5k.json").write_text(json.dumps({"network": network, "layer": layers}), encoding="utf-8")
    np.savez(folder / "images.npz", allow_pickle=False, x=rng.uniform(0, 1, (16, 8, 8, 1)))
    return [str(folder / "up5k.json"), "--calibration", str(folder / "images.npz")]


def pretrained(name: str) -> Network:
    """An int8 model of the folder of real models, with real frames."""

    def write(folder: Path) -> list[str]:
        models = find_models()
        if models is None:
            raise Missing("there is no folder of models: set CONVFOLD_MODELS to it")
        samples, data = INT8[name], folder / "samples.npz"
        np.savez(data, allow_pickle=False, x_raw=samples.frames(models)[:16], y=samples.classes(models)[:16])
        return [str(models / samples.model), "--test", str(data)]

    return write


def on(target: str, fps: int, *more: str) -> tuple[str, ...]:
    return ("--target", target, "--fps", str(fps), *more)


TINY = "MLPerf Tiny, closed division"
OPEN = "MLPerf Tiny, open division"
HERE = "its Verilog through the same yosys and nextpnr"

GROUPS = (
    Group(
        "layer",
        "One 3×3 convolution, 16 → 16 channels, 32×32, int8 (2.36 M MAC)",
        (Case("layer", "convfold, 144 multipliers", layer, on("ecp5-85k", 6100), frames=10, freq_mhz=180),),
        (
            Anchor("NNgen", "ECP5-85F", 227, HERE, luts=23_378, macs_per_cycle=8.9, fmax_mhz=60.4),
            Anchor("our prototype", "ECP5-85F", 7_112, "routed, before this project", luts=6_080),
        ),
    ),
    Group(
        "resnet8",
        "Image classification, ResNet-8, int8 (12.5 M MAC)",
        (Case("resnet8", "convfold", pretrained("resnet8"), on("ecp5-85k", 3400), freq_mhz=125, router="router2"),),
        (
            Anchor("fpgaConvNet", "XC7Z045, 900 DSP48", 6_790, TINY, True),
            Anchor("fpgaConvNet", "XC7Z020, 220 DSP48", 2_431, TINY, True),
            Anchor("FINN, its own 1-bit net", "FPGA", 661, OPEN, True),
            Anchor("hls4ml, its own small net", "FPGA", 131, OPEN, True),
            Anchor("NNgen, with ideal memory", "ECP5-85F", None, "its Verilog simulated: 1,720,881 cycles", macs_per_cycle=7.3),
            Anchor("GAP9", "microcontroller class", 1_623, TINY, True),
            Anchor("Snapdragon NPU", "phone", 10_437, TINY, True),
        ),
    ),
    Group(
        "kws",
        "Keyword spotting, DS-CNN, int8 (2.7 M MAC)",
        (
            Case("kws", "convfold, small", pretrained("kws"), on("ecp5-85k", 3200, "--latency", "380"), freq_mhz=170),
            Case("kws-fast", "convfold, fast", pretrained("kws"), on("ecp5-85k", 14_500), freq_mhz=125, router="router2"),
        ),
        (
            Anchor("fpgaConvNet", "XC7Z020, 220 DSP48", 3_088, TINY, True),
            Anchor("hls4ml, its own 3-bit MLP", "FPGA", 57_268, OPEN, True),
            Anchor("GAP9", "microcontroller class", 2_103, TINY, True),
            Anchor("Snapdragon NPU", "phone", 15_396, TINY, True),
        ),
    ),
    Group(
        "up5k",
        "A conv net on the 16 multipliers of an iCE40 UP5K, int8 (0.07 M MAC)",
        (Case("up5k", "convfold, two convolutions and a dense layer", up5k, on("ice40-up5k", 5_900), frames=10, freq_mhz=48),),
        (
            Anchor("MARLANN", "iCE40 UP5K", None, "a hand-written engine, run at 12 MHz", macs_per_cycle=12.8, fmax_mhz=26),
        ),
        plotted=False,
    ),
    Group(
        "digits",
        "Handwritten digits, 8×8, the example network",
        (
            Case("digits-25k", "ecp5-25k, 20,000 frames/s", digits, on("ecp5-25k", 20_000), 4),
            Case("digits-25k-unfolded", "ecp5-25k, the same unfolded", digits, on("ecp5-25k", 20_000, "--fold", "off"), 4),
            Case("digits-25k-smallest", "ecp5-25k, smallest", digits, on("ecp5-25k", 1), 4),
            Case("digits-85k", "ecp5-85k, 100,000 frames/s", digits, on("ecp5-85k", 100_000), 4),
            Case("digits-up5k", "ice40-up5k, smallest", digits, on("ice40-up5k", 1), 4),
            Case("digits-hx8k", "ice40-hx8k, smallest", digits, on("ice40-hx8k", 1), 4),
        ),
        plotted=False,
    ),
)

CASES = {case.name: case for group in GROUPS for case in group.cases}
