"""How much of a device a pipeline takes, before synthesis.

Multipliers and block RAMs are counted as the leaf cells will instantiate or infer them. Look-up tables and flip-flops are sums
over `convfold.compiler.features`, each times what it costs; ``bench/calibrate.py`` fits that to synthesized parts, and says
how far off whole networks are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from .features import BRAM, DSP, features
from .pipeline import Pipeline
from .schedule import StageParams
from .targets import Target

__all__ = ["Fit", "Resources", "estimate", "fit_path", "load_fit", "part_resources", "routed_mhz", "stage_resources"]


@dataclass(frozen=True, slots=True)
class Resources:
    """Cells of each kind."""

    luts: int = 0
    ffs: int = 0
    dsps: int = 0
    brams: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.luts + other.luts, self.ffs + other.ffs, self.dsps + other.dsps, self.brams + other.brams
        )

    def __mul__(self, count: int) -> Resources:
        return Resources(self.luts * count, self.ffs * count, self.dsps * count, self.brams * count)

    def lacking(self, target: Target) -> list[tuple[str, int, int]]:
        """``(resource, need, have)`` for whatever the target has too little of."""
        pairs = [
            ("multipliers (DSP)", self.dsps, target.dsps),
            ("block RAMs", self.brams, target.brams),
            ("LUTs", self.luts, target.luts),
            ("flip-flops", self.ffs, target.ffs),
        ]
        return [(name, need, have) for name, need, have in pairs if have is not None and need > have]


def estimate(pipeline: Pipeline, target: Target) -> Resources:
    """The sum over all components."""
    edges = (pipeline.edge_in, *(edge for _, edge in pipeline.outputs))
    stages = (component.params for component in pipeline.components)
    return sum((part_resources(params, target.family) for params in (*edges, *stages)), Resources())


def stage_resources(params: StageParams, target: Target) -> Resources:
    """What one component takes."""
    return part_resources(params, target.family)


@lru_cache(maxsize=1 << 16)
def part_resources(params: Any, family: str) -> Resources:
    """What a component, an edge, or a part of either takes on a family, see `convfold.compiler.features`."""
    luts_of, ffs_of = load_fit(family).luts.get, load_fit(family).ffs.get
    luts = ffs = dsps = brams = 0.0
    for name, amount in features(params, family):
        if name == DSP:
            dsps += amount
        elif name == BRAM:
            brams += amount
        else:
            luts += luts_of(name, 0.0) * amount
            ffs += ffs_of(name, 0.0) * amount
    return Resources(round(luts), round(ffs), int(dsps), int(brams))


def routed_mhz(luts: int, target: Target) -> float | None:
    """The clock to expect of something of so many look-up tables that is alone on a device; None where none was measured."""
    clock = load_fit(target.family).clock
    line = clock.get(target.name, clock.get(target.family))
    return None if line is None else 1e3 / (line[0] + line[1] * math.sqrt(luts))


@dataclass(frozen=True, slots=True)
class Fit:
    """What one of each feature costs, the clock to expect after routing (the slowest speed grade), and mean errors in per cent.

    ``clock`` has ``(a, b)`` for each device, or one for all of a family: ``a + b·√LUTs`` ns a cycle. Once logic is pipelined,
    wires decide, and they are as long as what they cross is wide. ``error`` has that of ``luts`` and ``ffs`` of whole networks,
    and of the clock, ``mhz``, each route left out of the fit in its turn; it is empty until measured.
    """

    luts: Mapping[str, float]
    ffs: Mapping[str, float]
    clock: Mapping[str, tuple[float, float]]
    error: Mapping[str, float]


@cache
def load_fit(family: str) -> Fit:
    """The fit for a family; plain Verilog, for any device, is counted as if for ECP5."""
    document = json.loads(fit_path(family).read_text(encoding="utf-8"))
    clock = {device: (a, b) for device, (a, b) in document["clock"].items()}
    return Fit(document["luts"], document["ffs"], clock, document["error"])


def fit_path(family: str) -> Path:
    """Where the fit of a family is written; ``bench/calibrate.py`` makes it."""
    return Path(__file__).with_name(f"estimate_{'ice40' if family == 'ice40' else 'ecp5'}.json")
