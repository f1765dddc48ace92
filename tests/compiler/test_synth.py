"""Synthesis of a build folder: what is recorded, and that it is what nextpnr said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from convfold.cli import main
from convfold.compiler import synth
from convfold.compiler.errors import CompileError
from convfold.compiler.synth import synthesize_build
from convfold.compiler.targets import Target, get_target
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.flow import Implementation
from convfold.compiler.tools.nextpnr import Nextpnr, PathStep, RouteOptions, RouteResult, SeedRun, Usage
from convfold.compiler.tools.wrapper import WrapperCost
from convfold.compiler.tools.yosys import Synthesis
from tests.networks import Network, compile_network

SIZES = {"luts": (1234, 5280), "ffs": (900, 5280), "dsps": (2, 8), "brams": (3, 30)}


@pytest.fixture
def build(tmp_path: Path) -> Path:
    network = Network((4, 4, 1)).conv("edges", 2).relu("live").dense("scores", 3)
    return compile_network(network, tmp_path, "ice40-up5k", fps=100).write(tmp_path / "build")


@pytest.fixture(params=[True, False])
def met(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A place and route that takes no time, and meets the clock or does not."""

    def implement(
        source: Path, target: Target, top: str, cwd: Path, options: RouteOptions, **others: Any
    ) -> Implementation:
        assert (source.name, target.name, top) == ("accelerator.v", "ice40-up5k", "net")
        assert options == RouteOptions(freq_mhz=20.0, placer="sa", timeout_s=60)
        assert list(others["seeds"]) == [6, 7, 8] and others["jobs"] == 2
        others["progress"]("place and route: nextpnr 0")
        (cwd / "routed.bin").write_bytes(b"bits")
        used = {name: Usage(*usage) for name, usage in SIZES.items()}
        mhz = 21.987 if request.param else 18.123
        route = RouteResult(
            luts=used["luts"],
            ffs=used["ffs"],
            dsps=used["dsps"],
            brams=used["brams"],
            pins=Usage(9, 39),
            fmax_mhz={"clk": mhz},
            requested_mhz=20.0,
            achieved=mhz >= 20,
            critical_path=(PathStep("a.q", "b.d", 1.23456, "routing", "n"), PathStep("b.d", "b.d", 0.5, "setup", "")),
            seed=7,
            speed="",
            report=cwd / "report",
            routed=cwd / "routed",
            log=cwd / "log",
        )
        synthesis = Synthesis(cwd / "netlist.json", top, {}, cwd / "log")
        slower = replace(route, seed=6, fmax_mhz={"clk": mhz - 2})
        failed = ToolError("nextpnr", "was stopped after 60 s")
        runs = (SeedRun(6, 1.5, slower), SeedRun(7, 2.5, route), SeedRun(8, 60.0, failed))
        for run in runs:
            others["told"](run)
        return Implementation(synthesis, route, runs, WrapperCost(11, 22), cwd / "routed.bin", ("yosys 0", "nextpnr 0"))

    monkeypatch.setattr(synth, "implement", implement)
    monkeypatch.setattr(synth, "find_nextpnr", lambda target: Nextpnr(target.family, "nextpnr 0", (), ()))
    return bool(request.param)


def test_what_is_recorded(build: Path, met: bool) -> None:
    steps: list[str] = []
    manifest = json.loads((build / "manifest.json").read_text(encoding="utf-8"))
    found = synthesize_build(
        build,
        manifest,
        RouteOptions(freq_mhz=20.0, placer="sa", timeout_s=60),
        seeds=range(6, 9),
        jobs=2,
        progress=steps.append,
        told=lambda run: steps.append(f"seed {run.seed}"),
    )
    assert found.pop("seconds") >= 0
    fmax = 21.99 if met else 18.12
    assert found == {
        **{name: used for name, (used, _) in SIZES.items()},
        "available": {name: available for name, (_, available) in SIZES.items()},
        "fmax_mhz": fmax,
        "clocks": {"clk": fmax},
        "freq_mhz": 20.0,
        "met": met,
        "speed": "",
        "seed": 7,
        "seeds": [
            {"seed": 6, "seconds": 1.5, "fmax_mhz": round(fmax - 2, 2), "error": None},
            {"seed": 7, "seconds": 2.5, "fmax_mhz": fmax, "error": None},
            {"seed": 8, "seconds": 60.0, "fmax_mhz": None, "error": "was stopped after 60 s"},
        ],
        "placer": "sa",
        "router": "router1",
        "bitstream": "net.bin",
        "critical_path": [
            {"from": "a.q", "to": "b.d", "ns": 1.235, "kind": "routing", "net": "n"},
            {"from": "b.d", "to": "b.d", "ns": 0.5, "kind": "setup", "net": ""},
        ],
        "wrapper": {"luts": 11, "ffs": 22},
        "versions": ["yosys 0", "nextpnr 0"],
    }
    assert (build / "net.bin").read_bytes() == b"bits"
    assert steps == ["place and route: nextpnr 0", "seed 6", "seed 7", "seed 8"]


def test_the_command_fails_where_the_clock_is_missed(build: Path, met: bool) -> None:
    """It says by how much, and keeps the result either way."""
    options = ["--freq", "20", "--seed", "6", "--seeds", "3", "--jobs", "2", "--placer", "sa", "--timeout", "60"]
    result = CliRunner().invoke(main, ["synth", str(build), *options])
    assert result.exit_code == (0 if met else 1), result.output
    best = "22.0" if met else "18.1"
    assert f"  seed 7    {best} MHz, 2 s\n  seed 8    failed: was stopped after 60 s, 60 s\n" in result.output
    assert f"seeds      {best}, {'20.0' if met else '16.1'} MHz; 1 failed; kept seed 7\n" in result.output
    assert "LUT          1,234 of   5,280  23.4%" in result.output
    assert ("missed: 20 MHz were asked for, 18.1 reached, 1.9 MHz short" in result.output) != met
    manifest = json.loads((build / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["synthesis"]["met"] == met
    report = CliRunner().invoke(main, ["report", str(build)])
    assert "chip       1,234 LUT (23%), 900 FF (17%), 2 DSP (25%), 3 BRAM (10%)" in report.output


def test_a_target_that_is_no_chip_leaves_the_build_as_it_was(tmp_path: Path) -> None:
    build = compile_network(Network((2, 2, 1)).conv("edges", 1, (1, 1)), tmp_path).write(tmp_path / "build")
    before = sorted(build.iterdir())
    manifest = json.loads((build / "manifest.json").read_text(encoding="utf-8"))
    with pytest.raises(CompileError, match=r"^target: 'generic' cannot be placed and routed\n  fix: "):
        synthesize_build(build, manifest)
    assert sorted(build.iterdir()) == before


@pytest.mark.route
@pytest.mark.parametrize("target", ["ice40-up5k", "ecp5-25k"])
def test_synthesis_of_a_small_network(target: str, tmp_path: Path) -> None:
    """The bitstream lies in the build, the counts are below the device's, and near the estimate."""
    network = Network((6, 6, 1)).conv("edges", 4, padding="same").relu("live").pool("pool", (2, 2), (2, 2)).dense("scores", 3)
    compiled = compile_network(network, tmp_path, target, calibrated=True)
    build = compiled.write(tmp_path / "build")
    result = CliRunner().invoke(main, ["synth", str(build), "--json"])
    assert result.exit_code in (0, 1), result.output
    manifest = json.loads((build / "manifest.json").read_text(encoding="utf-8"))
    found = manifest["synthesis"]
    assert found == json.loads(result.stdout)
    assert (build / found["bitstream"]).stat().st_size > 10_000
    assert found["met"] == (result.exit_code == 0)
    assert found["fmax_mhz"] > 0.5 * get_target(target).plan_mhz
    for kind, most in get_target(target).resources().items():
        assert 0 <= found[kind] <= found["available"][kind]
        assert most is None or found["available"][kind] == most
    assert found["dsps"] == manifest["estimate"]["dsps"]
    assert found["brams"] <= manifest["estimate"]["brams"]
    for kind in ("luts", "ffs"):
        assert 0.5 < found[kind] / manifest["estimate"][kind] < 2
    assert "synthesis" in (build / "report.html").read_text(encoding="utf-8").lower()
