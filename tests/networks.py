"""Small networks on disk: specifications with their weights, drawn from a seed or written out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convfold.api import Compiled, compile
from convfold.compiler.graph import window_size
from convfold.compiler.passes import Options
from convfold.compiler.quantize import QuantizeOptions
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.simulators import BenchRun, find_simulator, run_cocotb
from convfold.compiler.write_spec import write_spec
from tests.compiler.passes.nets import random_graph

Field = Any
Arrays = dict[str, NDArray[Any]]


@dataclass
class Network:
    """A specification in the making; each method adds one layer with random weights."""

    shape: tuple[int, int, int]
    seed: int = 0
    name: str = "net"
    low: float = 0.0
    layers: list[dict[str, Field]] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.out_shape = self.shape

    @property
    def macs(self) -> int:
        """Multiplies a frame of all layers with kernels, as they are written."""
        return self._macs

    _macs = 0

    def conv(
        self,
        name: str,
        filters: int,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        padding: Field = "valid",
        **fields: Field,
    ) -> Network:
        channels = self.out_shape[2]
        taps = kernel[0] * kernel[1] * channels
        self.arrays[f"{name}.w"] = self.rng.normal(size=(filters, *kernel, channels)) / taps**0.5
        self.arrays[f"{name}.b"] = self.rng.normal(size=filters) / 4
        self.out_shape = (*self._window(kernel, stride, padding), filters)
        self._macs += self.out_shape[0] * self.out_shape[1] * filters * taps
        return self._add(name, "conv2d", stride=list(stride), padding=padding, **fields)

    def dense(self, name: str, outputs: int, **fields: Field) -> Network:
        size = int(np.prod(self.out_shape))
        self.arrays[f"{name}.w"] = self.rng.normal(size=(outputs, size)) / size**0.5
        self.arrays[f"{name}.b"] = self.rng.normal(size=outputs) / 4
        self.out_shape = (1, 1, outputs)
        self._macs += outputs * size
        return self._add(name, "dense", **fields)

    def norm(self, name: str) -> Network:
        channels = self.out_shape[2]
        for part in ("gamma", "beta", "mean"):
            self.arrays[f"{name}.{part}"] = self.rng.normal(size=channels)
        self.arrays[f"{name}.var"] = self.rng.uniform(0.25, 2, size=channels)
        return self._add(name, "batch_norm", epsilon=1e-5)

    def pca(self, name: str, rank: int) -> Network:
        channels = self.out_shape[2]
        self.arrays[f"{name}.components"] = np.linalg.qr(self.rng.normal(size=(channels, channels)))[0][:rank]
        self.arrays[f"{name}.mean"] = self.rng.normal(size=channels)
        self.out_shape = (*self.out_shape[:2], rank)
        return self._add(name, "pca")

    def relu(self, name: str) -> Network:
        return self._add(name, "relu")

    def clip(self, name: str, low: float, high: float) -> Network:
        return self._add(name, "clip", low=low, high=high)

    def pool(
        self, name: str, kernel: tuple[int, int], stride: tuple[int, int], padding: Field = "valid"
    ) -> Network:
        self.out_shape = (*self._window(kernel, stride, padding), self.out_shape[2])
        return self._add(name, "max_pool", kernel=list(kernel), stride=list(stride), padding=padding)

    def write(self, folder: Path) -> Path:
        """``NAME.json`` and ``NAME.npz`` in ``folder``; returns the first."""
        np.savez(folder / f"{self.name}.npz", allow_pickle=False, **self.arrays)
        network = {
            "name": self.name,
            "weights": f"{self.name}.npz",
            "input": {"shape": list(self.shape), "range": [self.low, 1.0]},
        }
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps({"network": network, "layer": self.layers}, indent=1), encoding="utf-8")
        return path

    def images(self, count: int) -> NDArray[np.float64]:
        """Random ones, the first of them all at the limits of the range."""
        images = self.rng.uniform(self.low, 1.0, (count, *self.shape))
        images[0] = self.rng.choice([self.low, 1.0], self.shape)
        return images

    def _add(self, name: str, op: str, **fields: Field) -> Network:
        self.layers.append({"name": name, "op": op, **fields})
        return self

    def _window(self, kernel: tuple[int, int], stride: tuple[int, int], padding: Field) -> tuple[int, int]:
        sizes = []
        for axis in (0, 1):
            size = self.out_shape[axis]
            if padding == "same":
                sizes.append(-(-size // stride[axis]))
            else:
                pads = (0, 0) if padding == "valid" else tuple(padding[axis])
                sizes.append(window_size(size, kernel[axis], stride[axis], pads))
        return sizes[0], sizes[1]


@dataclass(frozen=True)
class Case:
    """A random network, and how it is to be compiled."""

    network: Network
    target: str
    fps: float | None
    bits: int
    weight_bits: int
    fold: Options
    calibrated: bool

    def compile(self, folder: Path, target: str | None = None) -> Compiled:
        target = target or self.target
        slow = None if target == "generic" else 100.0  # no rate at all would fill a device
        return compile(
            self.network.write(folder),
            target,
            fps=self.fps or slow,
            calibration=self.network.images(8) if self.calibrated else None,
            fold_options=self.fold,
            quantize_options=QuantizeOptions(self.bits, self.weight_bits),
        )


def random_case(seed: int, most_macs: int = 4000) -> Case:
    """Any geometry, width and target; one to four layers that multiply, of at most ``most_macs`` multiplies each."""
    rng = np.random.default_rng(seed)

    def pick(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    shape = (pick(1, 2, 3, 4, 5, 6, 7), pick(1, 2, 3, 4, 5, 6, 7), pick(1, 1, 2, 3, 5))
    network = Network(shape, seed, name=f"net{seed}", low=pick(0.0, 0.0, -1.0))
    if not pick(0, 1, 1, 1, 1):
        pick(network.norm, lambda name: network.pca(name, shape[2]))("first")
    for n in range(pick(1, 2, 2, 3, 4)):
        _random_layer(network, n, pick, most_macs)
    return Case(
        network=network,
        target=pick("generic", "ecp5-25k", "ecp5-85k", "ice40-up5k", "ice40-hx8k"),
        fps=pick(None, 1e4, 1e5, 3e5, 1e6),
        bits=pick(8, 8, 2, 3, 5, 7, 11, 16),
        weight_bits=pick(8, 8, 2, 3, 6, 9, 12, 16),
        fold=Options(pick("exact", "exact", "exact", "interior", "off"), force=pick(False, False, True)),
        calibrated=pick(True, False),
    )


def _random_layer(network: Network, n: int, pick: Any, most_macs: int) -> None:
    """One layer that multiplies and perhaps others behind it."""
    if pick(0, 0, 0, 1):
        network.dense(f"dense{n}", pick(1, 2, 3, 5, 8))
    else:
        while True:
            kernel, stride = (pick(1, 2, 3, 3, 4), pick(1, 2, 3, 3, 4)), (pick(1, 1, 2, 3), pick(1, 1, 2))
            padding = pick("same", "valid", [[pick(0, 1, 2), pick(0, 1, 2)], [pick(0, 1, 3), pick(0, 1)]])
            filters = pick(1, 2, 3, 4, 6, 7)
            height, width = network._window(kernel, stride, padding)
            macs = height * width * filters * kernel[0] * kernel[1] * network.out_shape[2]
            if min(height, width) >= 1 and macs <= most_macs:
                break
        network.conv(f"conv{n}", filters, kernel, stride, padding)
    match pick(0, 0, 0, 1, 2):
        case 1:
            network.norm(f"norm{n}")
        case 2:
            network.pca(f"pca{n}", pick(1, network.out_shape[2]))
    pool = pick(True, False, False, False)
    rectifier = pick("", "relu", "clip")
    if pool and pick(True, False):
        _random_pool(network, f"pool{n}", pick)
        pool = False
    if rectifier == "relu":
        network.relu(f"relu{n}")
    elif rectifier == "clip":
        network.clip(f"clip{n}", pick(0.0, -0.5), pick(0.5, 1.0))
    if pool:
        _random_pool(network, f"pool{n}", pick)


def _random_pool(network: Network, name: str, pick: Any) -> None:
    height, width, _ = network.out_shape
    kernel = pick(1, 2, min(3, height)), pick(1, 2, min(3, width))
    kernel = min(kernel[0], height), min(kernel[1], width)
    network.pool(name, kernel, (pick(1, 2, 3), pick(1, 2)), pick("valid", "same"))


def random_branches(seed: int, folder: Path, *, tables: bool = True) -> Path:
    """A specification in ``folder`` of any operators: branches, residuals, several outputs; what `random_graph` draws.

    Seeds are passed over whose networks no specification can hold.
    """
    while True:
        graph = random_graph(seed, tables=tables)
        twice = any(len(set(node.inputs)) < len(node.inputs) for node in graph.nodes)
        if not twice and graph.input.name not in graph.outputs:
            return write_spec(graph, folder)
        seed += 1_000_000


def compile_network(
    network: Network,
    folder: Path,
    target: str = "generic",
    *,
    fps: float | None = None,
    calibrated: bool = False,
    fold: Options | None = None,
    weight_bits: int = 8,
) -> Compiled:
    """Write a network to ``folder`` and compile it."""
    images = network.images(16) if calibrated else None
    options = QuantizeOptions(weight_bits=weight_bits)
    return compile(network.write(folder), target, fps=fps, calibration=images, fold_options=fold, quantize_options=options)


def simulate_once(build: Path, frames: int = 2) -> BenchRun:
    """The emitted bench's test without stalls alone: the quickest way to see a build compute what golden does."""
    top = json.loads((build / "manifest.json").read_text(encoding="utf-8"))["top"]
    return run_cocotb(
        find_simulator(small_simulator()),
        [build / "accelerator.v"],
        top,
        "test_accelerator",
        build,
        env={"CONVFOLD_FRAMES": str(frames)},
        testcase="no_stalls",
    )


def small_simulator() -> str:
    """The simulator for small networks: Icarus, which starts at once, or else Verilator; the test is skipped without."""
    for name in ("icarus", "verilator"):
        try:
            find_simulator(name)
        except ToolError:
            continue
        return name
    pytest.skip("no simulator")
