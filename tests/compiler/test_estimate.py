"""The estimate: hard cells counted as they are instantiated, everything else growing as it should."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from convfold.api import compile
from convfold.compiler.estimate import Resources, estimate, stage_resources
from convfold.compiler.graph import Graph
from convfold.compiler.plan import make_plan
from convfold.compiler.targets import TARGETS, get_target
from convfold.hdl.conv import ConvParams
from tests.networks import random_case

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"


@cache
def digits() -> Graph:
    return compile(DIGITS / "digits.toml", calibration=DIGITS / "calibration.npz").integers


def test_resources_add_up_and_scale() -> None:
    one, other = Resources(1, 2, 3, 4), Resources(10, 20, 30, 40)
    assert one + other == Resources(11, 22, 33, 44)
    assert other * 3 == Resources(30, 60, 90, 120)


def test_what_is_lacking_is_named_with_need_and_have() -> None:
    target = get_target("ice40-up5k")
    assert Resources(5280, 5280, 8, 30).lacking(target) == []
    assert Resources(5281, 5282, 9, 31).lacking(target) == [
        ("multipliers (DSP)", 9, 8),
        ("block RAMs", 31, 30),
        ("LUTs", 5281, 5280),
        ("flip-flops", 5282, 5280),
    ]
    assert Resources(10**9, 10**9, 10**9, 10**9).lacking(get_target("generic")) == []


@pytest.mark.parametrize("target", TARGETS)
def test_the_whole_is_the_sum_of_its_stages(target: str) -> None:
    plan = make_plan(digits(), get_target(target))
    alone = estimate(replace(plan.pipeline, components=()), plan.target)
    parts = [stage_resources(part.params, plan.target) for part in plan.pipeline.components]
    assert sum(parts, alone) == plan.resources


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_shrinks_when_a_layer_gets_more_multipliers(target: str) -> None:
    slow, fast = (make_plan(digits(), replace(get_target(target), dsps=10**6, luts=10**6, ffs=10**6, brams=10**6), rate)
                  for rate in (None, 2_000))
    assert fast.resources.luts > slow.resources.luts
    assert fast.resources.ffs > slow.resources.ffs
    assert fast.resources.dsps >= slow.resources.dsps


def hard_cells(verilog: str) -> Counter[str]:
    """Instances of vendor cells; the models at the end of the file are not among them."""
    return Counter(re.findall(r"^  (MULT18X18D|DP16KD|SB_MAC16) #\($", verilog.partition("`ifndef SYNTHESIS")[0], re.MULTILINE))


@pytest.mark.parametrize("rate", [20_000, 50_000])
def test_ecp5_multipliers_and_block_rams_are_exact(rate: float | None, tmp_path: Path) -> None:
    compiled = compile(
        DIGITS / "digits.toml", "ecp5-85k", fps=rate, calibration=DIGITS / "calibration.npz"
    )
    cells = hard_cells((compiled.write(tmp_path / "build") / "accelerator.v").read_text(encoding="utf-8"))
    assert cells["MULT18X18D"] == compiled.plan.resources.dsps > 0
    assert cells["DP16KD"] == compiled.plan.resources.brams > 0


@pytest.mark.parametrize("seed", [3, 7, 10, 16])
def test_ecp5_cells_of_random_networks_are_exact(seed: int, tmp_path: Path) -> None:
    compiled = replace(random_case(seed, most_macs=1500), fps=1e5).compile(tmp_path, "ecp5-85k")
    cells = hard_cells((compiled.write(tmp_path / "build") / "accelerator.v").read_text(encoding="utf-8"))
    assert (cells["MULT18X18D"], cells["DP16KD"]) == (compiled.plan.resources.dsps, compiled.plan.resources.brams)


@pytest.mark.parametrize("rate", [None, 3500])
def test_blocks_of_up5k_are_exact(rate: float | None, tmp_path: Path) -> None:
    """Two multipliers a block, both of one element; what the blocks do not hold is in look-up tables."""
    compiled = compile(DIGITS / "digits.toml", "ice40-up5k", fps=rate, calibration=DIGITS / "calibration.npz")
    cells = hard_cells((compiled.write(tmp_path / "build") / "accelerator.v").read_text(encoding="utf-8"))
    assert cells["SB_MAC16"] == compiled.plan.resources.dsps > 0
    cores = [stage.core for stage in compiled.plan.stages if isinstance(stage.core, ConvParams)]
    assert (sum(core.hard for core in cores) > cells["SB_MAC16"]) == (rate is not None)
