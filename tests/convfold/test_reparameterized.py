"""Blocks that are trained with branches and run as one convolution: RepVGG, diverse branches, collapsible ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convfold.api import compile
from convfold.compiler.graph import Clip, Conv2D, Graph
from convfold.compiler.passes import Options, fold
from convfold.compiler.spec import load_spec
from convfold.sim.cosimulate import cosimulate
from tests.oracle import difference, toeplitz

CHANNELS = 4


class Block:
    """Layers of a specification, with random weights, between ``start`` and the layer called ``name``."""

    def __init__(self, name: str, start: str, rng: np.random.Generator) -> None:
        self.name, self.start, self.rng = name, start, rng
        self.layers: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}

    def conv(self, name: str, source: str, kernel: int, inputs: int = CHANNELS, outputs: int = CHANNELS) -> str:
        w_ohwi = self.rng.normal(size=(outputs, kernel, kernel, inputs)) / (kernel * inputs**0.5)
        self.arrays[f"{self.name}_{name}.w"] = w_ohwi
        return self.layer(name, "conv2d", source, padding="same")

    def norm(self, name: str, source: str) -> str:
        for part in ("gamma", "beta", "mean"):
            self.arrays[f"{self.name}_{name}.{part}"] = self.rng.normal(size=CHANNELS)
        self.arrays[f"{self.name}_{name}.var"] = self.rng.uniform(0.5, 2, CHANNELS)
        return self.layer(name, "batch_norm", source, epsilon=1e-5)

    def layer(self, name: str, op: str, source: str, **fields: object) -> str:
        self.layers.append({"name": f"{self.name}_{name}", "op": op, "input": source, **fields})
        return f"{self.name}_{name}"

    def add(self, *inputs: str) -> None:
        self.layers.append({"name": self.name, "op": "add", "inputs": list(inputs)})


def repvgg(block: Block) -> None:
    """3×3, 1×1 and the identity, each with its norm."""
    wide = block.norm("n3", block.conv("c3", block.start, 3))
    point = block.norm("n1", block.conv("c1", block.start, 1))
    block.add(wide, point, block.norm("n0", block.start))


def diverse(block: Block) -> None:
    """3×3; 1×1; 1×1 and then a padded 3×3; 1×1 and then an average; a norm behind every layer."""
    wide = block.norm("n3", block.conv("c3", block.start, 3))
    point = block.norm("n1", block.conv("c1", block.start, 1))
    inner = block.norm("n13", block.conv("c13", block.start, 1))
    pair = block.norm("n31", block.conv("c31", inner, 3))
    averaged = block.norm("na", block.conv("ca", block.start, 1))
    average = block.layer("a", "average_pool", averaged, kernel=3, stride=1, padding="same", count_include_pad=True)
    block.add(wide, point, pair, block.norm("nb", average))


def collapsible(block: Block) -> None:
    """3×3 to many channels, 1×1 back, and the identity: as in small nets for super-resolution."""
    wide = block.conv("expand", block.start, 3, outputs=4 * CHANNELS)
    block.add(block.conv("squeeze", wide, 1, inputs=4 * CHANNELS), block.start)


BLOCKS: dict[str, Callable[[Block], None]] = {"repvgg": repvgg, "diverse": diverse, "collapsible": collapsible}


def write(folder: Path, *kinds: str) -> Path:
    """A network of such blocks, a rectifier behind each, on ``8×8`` pixels."""
    rng = np.random.default_rng(5)
    layers: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    start = "input"
    for kind in kinds:
        block = Block(kind, start, rng)
        BLOCKS[kind](block)
        start = f"{kind}_relu"
        layers += [*block.layers, {"name": start, "op": "relu", "input": kind}]
        arrays |= block.arrays
    network = {"name": "blocks", "weights": "blocks.npz", "input": {"shape": [8, 8, CHANNELS], "range": [-1.0, 1.0]}}
    np.savez(folder / "blocks.npz", allow_pickle=False, **arrays)
    (folder / "blocks.json").write_text(json.dumps({"network": network, "layer": layers}))
    return folder / "blocks.json"


def linear_part(graph: Graph) -> Graph:
    """The network without its last rectifier."""
    (last,) = (node for node in graph.nodes if isinstance(node, Clip))
    return Graph(name=graph.name, nodes=graph.nodes[:-1], outputs=last.inputs, weights=graph.weights)


@pytest.mark.parametrize(("kind", "classes"), [("repvgg", 1), ("diverse", 9), ("collapsible", 1)])
def test_a_block_becomes_one_convolution(kind: str, classes: int, tmp_path: Path) -> None:
    graph = linear_part(load_spec(write(tmp_path, kind)))
    folded = fold(graph)
    (node,) = folded.nodes[1:]
    assert isinstance(node, Conv2D) and node.classes.count == classes
    assert folded.weights[f"{kind}.w"].shape[2:] == (CHANNELS, 3, 3, CHANNELS)
    assert difference(toeplitz(graph)[kind], toeplitz(folded)[kind]) < 1e-9


def test_the_usual_recipe_for_diverse_branches_is_wrong_at_the_border(tmp_path: Path) -> None:
    """One kernel everywhere is right only if the padding in a branch holds what a padded input would give."""
    graph = linear_part(load_spec(write(tmp_path, "diverse")))
    plain = fold(graph, Options(fold="interior"))
    assert difference(toeplitz(graph)["diverse"], toeplitz(plain)["diverse"]) > 0.01
    inside = np.zeros((8, 8, CHANNELS), dtype=bool)
    inside[1:-1, 1:-1] = True
    before, after = ((matrix[inside.ravel()], offset[inside.ravel()]) for matrix, offset in (
        toeplitz(graph)["diverse"], toeplitz(plain)["diverse"]))  # fmt: skip
    assert difference(before, after) < 1e-9


def test_blocks_behind_one_another_go_bit_exact_through_the_hardware(tmp_path: Path) -> None:
    compiled = compile(write(tmp_path, *BLOCKS))
    assert [node.op for node in compiled.folded.nodes] == ["input", *["conv2d", "clip"] * 3]
    assert [node.op for node in compiled.integers.nodes] == ["input", *["qconv2d"] * 3]
    result = cosimulate(compiled.write(tmp_path / "build"), frames=4)
    assert result.passed, result.summary()
    assert result.mismatches == 0
    assert result.record["frames"] >= 4
