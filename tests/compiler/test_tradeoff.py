"""What is said of a plan is true of other plans."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from convfold.api import compile
from convfold.compiler.emit import Emission, manifest
from convfold.compiler.errors import CompileError
from convfold.compiler.graph import Graph
from convfold.compiler.plan import NAMES, Plan, make_plan
from convfold.compiler.solver import KINDS, amount
from convfold.compiler.targets import get_target
from convfold.compiler.tradeoff import front, next_step, plan_record, plan_texts

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"


@cache
def digits() -> Graph:
    return compile(DIGITS / "digits.toml", calibration=DIGITS / "calibration.npz").integers


@cache
def plan(target: str, fps: float | None, fill: float = 0.8) -> Plan:
    return make_plan(digits(), get_target(target), fps, fill=fill)


@pytest.mark.parametrize(("target", "fps"), [("ecp5-25k", 5000), ("ecp5-25k", 40_000), ("ice40-up5k", 500), ("generic", None)])
def test_the_next_step_costs_what_is_said(target: str, fps: float | None) -> None:
    slow = plan(target, fps)
    step = next_step(slow)
    assert step is not None and not step.lacking
    assert step.point.interval_cycles * 1.1 <= slow.interval_cycles
    fast = make_plan(digits(), slow.target, slow.target.plan_mhz * 1e6 / step.point.interval_cycles)
    assert fast.interval_cycles <= step.point.interval_cycles
    for kind in KINDS:
        assert amount(slow.resources, kind) + amount(step.more, kind) == amount(step.point.resources, kind)
    area = slow.planner.area(step.point.resources)
    assert abs(slow.planner.area(fast.resources) - area) <= 0.01 * area
    assert slow.planner.area(step.more) > 0


def test_a_step_that_lacks_something_does_not_fit() -> None:
    full = plan("ecp5-25k", None, 0.3)
    step = next_step(full)
    assert step is not None and step.lacking
    for kind in step.lacking:
        assert amount(step.point.resources, kind) > full.planner.limits[kind]
    with pytest.raises(CompileError, match=r"^ecp5-25k: digits needs "):
        make_plan(digits(), full.target, step.point.frames_per_second, fill=0.3)


def test_the_front_rises() -> None:
    slow = plan("ecp5-25k", 5000)
    points = front(slow)
    assert len(points) >= 5
    area = [slow.planner.area(point.resources) for point in points]
    cycles = [point.interval_cycles for point in points]
    assert area == sorted(set(area)) and cycles == sorted(set(cycles), reverse=True)
    for point in points[::3]:
        made = make_plan(digits(), slow.target, slow.target.plan_mhz * 1e6 / point.interval_cycles)
        assert slow.planner.area(made.resources) <= 1.01 * slow.planner.area(point.resources)
        assert made.interval_cycles <= point.interval_cycles


def test_the_texts() -> None:
    made = plan("ecp5-25k", 5000)
    texts = dict(plan_texts(manifest(Emission(made, digits(), DIGITS / "digits.toml", ""))))
    slowest = made.bottleneck
    assert texts["slowest"] == f"'{slowest.node.name}', {slowest.cycles:,} cycles of {made.interval_cycles:,} a frame"
    record = plan_record(made)
    assert record["limits"] == {"luts": 19430, "ffs": 19430, "dsps": 28, "brams": 44}
    need = made.resources
    assert need.dsps / 28 > max(need.luts / 19430, need.ffs / 19430, need.brams / 44)
    assert texts["bound by"] == f"--fps 5,000 (20,000 cycles); fullest: {need.dsps} of 28 multipliers (DSP)"
    step = record["next"]
    rate = f"{step['frames_per_second']:,.0f} frames/s ({step['interval_cycles']:,} cycles a frame)"
    assert texts["next step"].startswith(f"{rate} for ")
    assert f"{step['more']['dsps']:+} DSP" in texts["next step"]


def test_a_step_keeps_the_latency() -> None:
    """A faster pipeline that answers as soon takes no less than one that may answer later."""
    made = make_plan(digits(), get_target("ecp5-25k"), 15_000, 60.0)
    step, free = next_step(made), next_step(replace(made, wish=replace(made.wish, latency_us=None)))
    assert step is not None and free is not None
    assert made.planner.area(step.more) > made.planner.area(free.more)
    assert plan_record(made)["most_latency_cycles"] == 6000


def test_a_full_device_names_what_it_lacks() -> None:
    full = plan("ecp5-25k", None, 0.3)
    texts = dict(plan_texts(manifest(Emission(full, digits(), DIGITS / "digits.toml", ""))))
    lacking = plan_record(full)["next"]["lacking"]
    names = " and ".join(
        f"{amount(full.resources, kind):,} of {full.planner.limits[kind]:,} {NAMES[kind]}" for kind in lacking
    )
    assert lacking and texts["bound by"] == f"{names} (--fill 0.3)"
    assert " would take " in texts["next step"]


RECORD: dict[str, Any] = {
    "plan": {
        "fps": None,
        "latency_us": None,
        "most_interval_cycles": None,
        "most_latency_cycles": None,
        "fill": 0.8,
        "limits": {"luts": 100, "ffs": 100, "dsps": 4, "brams": 5},
        "next": None,
    },
    "estimate": {"luts": 100, "ffs": 50, "dsps": 4, "brams": 4},
    "layers": [{"name": "one", "cycles": 70}, {"name": "two", "cycles": 99}],
    "interval_cycles": 1000,
}
STEP: dict[str, Any] = {"interval_cycles": 90, "frames_per_second": 1111.1, "luts": 1234, "ffs": 50, "dsps": 4, "brams": 7}
STEP |= {"more": {"luts": 1134, "ffs": 0, "dsps": 0, "brams": 2}, "lacking": ["luts", "brams"]}


def test_the_text_of_a_step_that_does_not_fit() -> None:
    needs = "1,234 LUTs, where 100 may be used, and 7 block RAMs, where 5 may be used"
    assert list(plan_texts(RECORD | {"plan": RECORD["plan"] | {"next": STEP}})) == [
        ("slowest", "'two', 99 cycles of 1,000 a frame"),
        ("bound by", "100 of 100 LUTs and 4 of 5 block RAMs (--fill 0.8)"),
        (
            "next step",
            f"1,111 frames/s (90 cycles a frame) would take {needs}",
        ),
    ]


def test_the_text_where_nothing_is_faster() -> None:
    asked = {"fps": 900.0, "most_interval_cycles": 1100, "latency_us": 12.5, "most_latency_cycles": 1250}
    assert list(plan_texts(RECORD | {"plan": RECORD["plan"] | asked})) == [
        ("slowest", "'two', 99 cycles of 1,000 a frame"),
        ("bound by", "--fps 900 (1,100 cycles) and --latency 12.5 (1,250 cycles); fullest: 100 of 100 LUTs"),
        ("next step", "none: nothing is faster"),
    ]
