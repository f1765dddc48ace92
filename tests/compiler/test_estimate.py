"""The estimate: hard cells counted as they are instantiated, everything else growing as it should."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from bench.calibrate import extract, nonnegative_least_squares
from convfold.api import compile
from convfold.compiler.engines import Choice, blocks
from convfold.compiler.estimate import Resources, estimate, load_fit, part_resources, routed_mhz, stage_resources
from convfold.compiler.features import features, parts
from convfold.compiler.graph import Graph
from convfold.compiler.plan import make_plan
from convfold.compiler.quantize import QuantizeOptions
from convfold.compiler.targets import TARGETS, get_target
from convfold.compiler.tools.nextpnr import find_nextpnr, pack
from convfold.compiler.tools.yosys import find_yosys, synthesize_modules
from convfold.hdl.conv import ConvParams
from convfold.hdl.mac_row import MacRowParams
from convfold.hdl.multiplier import hard_share
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
                  for rate in (1, 2_000))
    assert fast.resources.luts > slow.resources.luts
    assert fast.resources.ffs > slow.resources.ffs
    assert fast.resources.dsps >= slow.resources.dsps


@pytest.mark.parametrize("target", TARGETS)
def test_a_planner_may_ask_a_thousand_times(target: str) -> None:
    """Parameters that it has not seen before: those that it has are remembered."""
    (stage, *_) = make_plan(digits(), get_target(target)).stages
    core = stage.core
    assert isinstance(core, ConvParams)
    asked = [replace(core, acc_bits=core.acc_bits + n) for n in range(300)]
    began = time.process_time()
    found = [stage_resources(params, get_target(target)) for params in asked]
    assert (time.process_time() - began) / len(asked) < 400e-6  # 60 on a quiet machine
    assert found[-1].ffs > found[0].ffs
    assert [stage_resources(params, get_target(target)) for params in asked] == found


def test_what_is_no_component_has_no_features() -> None:
    with pytest.raises(TypeError, match=r"^params must be those of a component, not 7$"):
        list(features(7, "ecp5"))


@pytest.mark.parametrize("family", ["ecp5", "ice40"])
def test_the_fit_says_how_good_it_is(family: str) -> None:
    """The published error is that of networks the fit was not made from; what was not measured is not published."""
    fit = load_fit(family)
    assert set(fit.error) == ({"luts", "ffs", "mhz"} if family == "ecp5" else set())
    assert max(fit.error.get("luts", 0), fit.error.get("ffs", 0)) <= 10
    assert min(*fit.luts.values(), *fit.ffs.values()) >= 0


def test_the_clock_falls_with_the_size() -> None:
    target = get_target("ecp5-85k")
    a, b = load_fit("ecp5").clock["ecp5"]
    assert routed_mhz(10_000, target) == pytest.approx(1e3 / (a + 100 * b))
    small, large = routed_mhz(1_000, target), routed_mhz(50_000, get_target("ecp5-25k"))
    assert small is not None
    assert large is not None
    assert 250 > small > large > 80
    assert routed_mhz(1_000, get_target("generic")) is None


def test_parts_take_what_is_estimated(tmp_path: Path) -> None:
    """Synthesized and packed here and now, one of each kind. Parts are less exact than whole networks."""
    target = get_target("ecp5-25k")
    plan = make_plan(digits(), target, 20_000)
    compiled = compile(DIGITS / "digits.toml", "ecp5-25k", fps=20_000, calibration=DIGITS / "calibration.npz")
    source = compiled.write(tmp_path / "build") / "accelerator.v"
    stage = next(part for part in plan.pipeline.components if part.name == "project")
    modules = {f"digits_project{suffix}": params for suffix, params in parts(stage.params)}
    synthesized = synthesize_modules(find_yosys(), dict.fromkeys(modules, source), target, tmp_path)
    nextpnr = find_nextpnr(target)
    for module, params in modules.items():
        counted = pack(nextpnr, synthesized[module].netlist, target, tmp_path)
        guess = part_resources(params, target.family)
        assert (guess.dsps, guess.brams) == (counted.dsps, counted.brams), module
        assert abs(guess.luts - counted.luts) <= 0.25 * counted.luts + 10, (module, guess, counted)
        assert abs(guess.ffs - counted.ffs) <= 0.15 * counted.ffs + 10, (module, guess, counted)


def test_a_module_is_cut_out_with_all_that_it_is_made_of() -> None:
    """But without the models of vendor cells, which would be synthesized in their place."""
    parts_of = {
        "top": "module top(a);\n  left \\one  (\n    .a(a)\n  );\n  right two (\n    .a(a)\n  );\nendmodule\n",
        "left": "module left(a);\n  leaf #(\n    .N(1)\n  ) three (\n  );\n  MULT18X18D #(\n  ) dsp (\n  );\nendmodule\n",
        "right": "module right(a);\nendmodule\n",
        "leaf": "module leaf #(\n  parameter N = 1\n) (a);\nendmodule\n",
        "model": "\n`ifndef SYNTHESIS\nmodule MULT18X18D(a);\nendmodule\n`endif\n",
    }
    whole = "".join(parts_of.values())
    assert extract(whole, "left") == parts_of["left"] + parts_of["leaf"]
    assert extract(whole, "top") == "".join(parts_of[name] for name in ("top", "left", "right", "leaf"))


def test_least_squares_without_negative_costs(rng: np.random.Generator) -> None:
    """As good as the best of all choices of features that cost something."""
    for _ in range(20):
        a, b = rng.uniform(0, 1, (12, 5)), rng.uniform(-0.5, 1.5, 12)
        x = nonnegative_least_squares(a, b)
        assert x.min() >= 0
        best = float(np.linalg.norm(b))
        for chosen in product((False, True), repeat=5):
            columns = a[:, chosen]
            if columns.size and (tried := np.linalg.lstsq(columns, b, rcond=None)[0]).min() >= 0:
                best = min(best, float(np.linalg.norm(columns @ tried - b)))
        assert abs(float(np.linalg.norm(a @ x - b)) - best) < 1e-9


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


@pytest.mark.parametrize(("weight_bits", "rate"), [(4, 20_000), (5, 100_000)])
def test_pairs_of_ecp5_are_exact(weight_bits: int, rate: float, tmp_path: Path) -> None:
    """Narrow weights: two multipliers a block, of two elements; what the blocks do not hold is in look-up tables."""
    options, calibration = QuantizeOptions(weight_bits=weight_bits), DIGITS / "calibration.npz"
    compiled = compile(DIGITS / "digits.toml", "ecp5-25k", fps=rate, calibration=calibration, quantize_options=options)
    cells = hard_cells((compiled.write(tmp_path / "build") / "accelerator.v").read_text(encoding="utf-8"))
    assert cells["MULT18X18D"] == compiled.plan.resources.dsps > 0
    assert cells["DP16KD"] == compiled.plan.resources.brams > 0
    cores = [stage.core for stage in compiled.plan.stages if isinstance(stage.core, ConvParams)]
    assert sum(core.hard for core in cores) > cells["MULT18X18D"]


@pytest.mark.parametrize("products", [1, 2])
def test_blocks_are_counted_as_rows_count_them(products: int) -> None:
    for rows, pes, taps in product((1, 3), range(1, 6), (1, 3)):
        choice = Choice(1, 1, (1, 1), rows, pes, rows * pes * taps)
        row = MacRowParams(pes, taps, 8, False, 4, 20, 2, multiplier="ecp5", together=products)
        for hard in range(choice.multipliers + 1):
            parts = (hard_share(hard, n, pes * taps) for n in range(rows))
            assert blocks(choice, hard, products, "ecp5") == sum(replace(row, hard=part).blocks for part in parts)


@pytest.mark.parametrize("rate", [1, 3500])
def test_blocks_of_up5k_are_exact(rate: float, tmp_path: Path) -> None:
    """Two multipliers a block, both of one element; what the blocks do not hold is in look-up tables."""
    compiled = compile(DIGITS / "digits.toml", "ice40-up5k", fps=rate, calibration=DIGITS / "calibration.npz")
    cells = hard_cells((compiled.write(tmp_path / "build") / "accelerator.v").read_text(encoding="utf-8"))
    assert cells["SB_MAC16"] == compiled.plan.resources.dsps > 0
    cores = [stage.core for stage in compiled.plan.stages if isinstance(stage.core, ConvParams)]
    assert (sum(core.hard for core in cores) > cells["SB_MAC16"]) == (rate > 1)
