"""What ``make bench`` prints: only what was measured on the Verilog at hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench import run as bench
from bench.cases import CASES, GROUPS, Case
from bench.table import draw, page, rows, table

Result = dict[str, Any]
COUNTS = {"luts": 4000, "ffs": 3000, "dsps": 20, "brams": 9}


def result(*parts: str) -> Result:
    made = {"verilog_sha256": "a", "sources_sha256": "s", "target": "ecp5-85k", "macs": 1_000_000, "estimate": COUNTS}
    measured = {
        "compile": made | {"multipliers": {"first": 6, "second": 2}},
        "simulation": {"verilog_sha256": "a", "interval_cycles": 10_000, "latency_cycles": 15_000, "busy": 0.9251},
        "route": {"verilog_sha256": "a", "fmax_mhz": 150.0, "seeds": 2} | COUNTS,
    }
    return {part: measured[part] for part in ("compile", *parts)}


def line_of(text: str, who: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if f" {who} |" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


OURS = f"**{CASES['resnet8'].title}**"


def test_a_rate_needs_simulated_cycles_and_a_routed_clock() -> None:
    cells = line_of(table({"resnet8": result("simulation", "route")}), OURS)
    assert cells[1:8] == ["ECP5-85F", "15,000", "100.0", "10,000", "15,000", "92.5%", "100.0"]
    assert cells[8:] == ["150.0", "4,000 (4,000)", "3,000 (3,000)", "20 (20)", "9 (9)", "measured"]
    cells = line_of(table({"resnet8": result("simulation")}), OURS)
    assert cells[2:6] == ["", "", "10,000", "15,000"] and cells[8] == "not routed"
    cells = line_of(table({"resnet8": result("route")}), OURS)
    assert cells[2:6] == ["", "", "not simulated", "not simulated"]


def test_anchors_stand_beside_ours_and_are_marked() -> None:
    text = table({"resnet8": result("simulation", "route")})
    anchors = {group.name: group.anchors for group in GROUPS}["resnet8"]
    assert text.count("| published: ") == len(anchors)
    assert line_of(text, "GAP9")[2:4] == ["1,623", "616.1"]
    assert [title for title, *_ in rows({"resnet8": result()})] == [g.title for g in GROUPS if g.name == "resnet8"]
    assert text in page({"resnet8": result("simulation", "route")})


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    results = {"layer": result("simulation", "route"), "resnet8": result(), "digits-25k": result()}
    draw(results, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    draw({"digits-25k": result("simulation", "route")}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_multipliers_that_are_busy() -> None:
    assert bench.busy_share({"first": 6, "second": 2}, {"first": (9, 10), "second": (1, 2), "pool": (0, 9)}) == 0.8


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The case of a tiny network, with nothing published, and folders of its own."""
    monkeypatch.setattr(bench, "BUILDS", tmp_path / "bench")
    monkeypatch.setattr(bench, "PUBLISHED", tmp_path / "bench.json")
    (tmp_path / "bench").mkdir()
    return replace(CASES["layer"], name="tiny", network=tiny, options=("--target", "ecp5-25k", "--fps", "1"))


def tiny(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[np.float64]] = {"conv.w": rng.normal(size=(2, 2, 2, 1)), "conv.b": rng.normal(size=2)}
    np.savez(folder / "tiny.npz", allow_pickle=False, **arrays)
    np.savez(folder / "images.npz", allow_pickle=False, x=rng.uniform(size=(2, 4, 4, 1)))
    network = {"name": "tiny", "weights": "tiny.npz", "input": {"shape": [4, 4, 1], "range": [0.0, 1.0]}}
    conv = {"name": "conv", "op": "conv2d", "stride": 1, "padding": "valid"}
    (folder / "tiny.json").write_text(json.dumps({"network": network, "layer": [conv]}), encoding="utf-8")
    return [str(folder / "tiny.json"), "--calibration", str(folder / "images.npz")]


def test_what_was_measured_on_other_verilog_is_dropped(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what is known is not measured again."""
    measured: list[str] = []

    def measure(part: str, **seen: object) -> Any:
        def step(case: Case, compiled: Result, *_seeds: int) -> Result:
            measured.append(part)
            return {"verilog_sha256": compiled["verilog_sha256"], **seen}

        return step

    monkeypatch.setattr(bench, "simulate_case", measure("simulation"))
    monkeypatch.setattr(bench, "route_case", measure("route", seeds=2))
    first = bench.run(case, "sources", True, 2)
    assert first == bench.run(case, "sources", True, 2) == bench.load("tiny")
    assert first["compile"]["busy"] <= 1 and first["compile"]["multipliers"] == {"conv": 1}
    assert measured == ["simulation", "route"]

    assert bench.run(case, "other sources", False, 0) == first | {"compile": first["compile"] | bench.load("tiny")["compile"]}
    assert measured == ["simulation", "route"] and capsys.readouterr().err == ""

    bench.save("tiny", first | {"route": first["route"] | {"verilog_sha256": "of other hardware"}})
    assert bench.run(case, "third sources", False, 0).keys() == {"compile", "simulation"}
    assert capsys.readouterr().err == "tiny: route was of other hardware, and is dropped\n"
    bench.run(case, "third sources", True, 0)
    assert measured == ["simulation", "route"]


def test_published_results_are_known(case: Case) -> None:
    bench.PUBLISHED.write_text(json.dumps({"tiny": result("route")}), encoding="utf-8")
    assert bench.load("tiny") == result("route")
    assert bench.load("other") == {}
