"""Several seeds of place and route, with a program in nextpnr's place that is quick and does as it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convfold.compiler.targets import get_target
from convfold.compiler.tools import flow
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.flow import implement
from convfold.compiler.tools.nextpnr import Nextpnr, RouteOptions, SeedRun, place_and_route, place_and_route_seeds
from convfold.compiler.tools.wrapper import Port
from convfold.compiler.tools.yosys import Synthesis, Yosys

TARGET = get_target("ecp5-25k")

# Seed n reaches plan[n] MHz, fails where that is 0, and never ends where it is below.
FAKE = """
import json, subprocess, sys, time
arguments = dict(zip(sys.argv[1:], sys.argv[2:]))
mhz = {plan}[arguments["--seed"]]
with open("began", "a") as file:
    file.write(arguments["--seed"] + "\\n")
with open("arguments-" + arguments["--seed"], "w") as file:
    json.dump(sys.argv[1:], file)
if mhz == 0:
    sys.exit("ERROR: no place")
if mhz < 0:
    child = "import time; time.sleep(3); open('late', 'w').close()"
    print("router at work", flush=True)
    subprocess.run([sys.executable, "-c", child])
time.sleep({slow})
fmax = {{"clk": {{"achieved": mhz, "constraint": 1}}}}
with open(arguments["--report"], "w") as file:
    json.dump({{"utilization": {{}}, "fmax": fmax, "critical_paths": []}}, file)
open(arguments["--textcfg"], "w").close()
"""


def fake(slow: float = 0.0, **plan: float) -> Nextpnr:
    """``fake(s1=100)`` reaches 100 MHz with seed 1."""
    program = FAKE.format(plan={name[1:]: mhz for name, mhz in plan.items()}, slow=slow)
    packer = (sys.executable, "-c", "import sys; open(sys.argv[-1], 'w').write(open(sys.argv[-2]).name)")
    return Nextpnr("ecp5", "nextpnr 0", (sys.executable, "-c", program), packer)


def fmax(run: SeedRun) -> float | None:
    return None if isinstance(run.result, ToolError) else run.result.slowest_mhz


def run(nextpnr: Nextpnr, cwd: Path, seeds: range, jobs: int, options: RouteOptions | None = None) -> tuple[SeedRun, ...]:
    return place_and_route_seeds(nextpnr, cwd / "n.json", TARGET, cwd, options, seeds=seeds, jobs=jobs)


def test_each_seed_has_its_result_in_order(tmp_path: Path) -> None:
    told: list[int] = []
    runs = place_and_route_seeds(
        fake(s3=90.5, s4=0, s5=120.25),
        tmp_path / "n.json",
        TARGET,
        tmp_path,
        seeds=range(3, 6),
        jobs=2,
        told=lambda run: told.append(run.seed),
    )
    assert [run.seed for run in runs] == [3, 4, 5] == sorted(told)
    assert [fmax(run) for run in runs] == [90.5, None, 120.25]
    failure = runs[1].result
    assert isinstance(failure, ToolError)
    assert failure.message == "stopped with exit status 1\nERROR: no place"
    assert failure.log == tmp_path / "seed4.log"


@pytest.mark.parametrize("jobs", [1, 3])
def test_no_more_than_jobs_at_a_time(jobs: int, tmp_path: Path) -> None:
    """With one job a seed begins when the one before has ended; with three all begin before the first ends."""
    begun: list[int] = []
    place_and_route_seeds(
        fake(slow=1.0 if jobs > 1 else 0.0, s1=1, s2=2, s3=3),
        tmp_path / "n.json",
        TARGET,
        tmp_path,
        seeds=range(1, 4),
        jobs=jobs,
        told=lambda run: begun.append(len((tmp_path / "began").read_text().split())),
    )
    assert begun == ([1, 2, 3] if jobs == 1 else [3, 3, 3])


def test_a_seed_that_never_ends_is_stopped_with_its_children(tmp_path: Path) -> None:
    slow, good = run(fake(s1=-1, s2=50), tmp_path, range(1, 3), 2, RouteOptions(timeout_s=2.5))
    assert isinstance(slow.result, ToolError)
    assert slow.result.message == "was stopped after 2.5 s\nrouter at work"
    assert fmax(good) == 50
    time.sleep(3.1)
    assert not (tmp_path / "late").exists()


def test_an_interruption_stops_all_seeds(tmp_path: Path) -> None:
    def interrupt(run: SeedRun) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place_and_route_seeds(
            fake(s1=-1, s2=50, s3=-1), tmp_path / "n.json", TARGET, tmp_path, seeds=range(1, 4), jobs=3, told=interrupt
        )
    time.sleep(3.1)
    assert not (tmp_path / "late").exists()


def test_the_options_reach_nextpnr(tmp_path: Path) -> None:
    options = RouteOptions(freq_mhz=123.5, speed="8", placer="static", router="router2")
    result = place_and_route(fake(s7=130), tmp_path / "n.json", TARGET, tmp_path, options, seed=7)
    assert (result.requested_mhz, result.speed, result.seed, result.achieved) == (123.5, "8", 7, True)
    given = " ".join(json.loads((tmp_path / "arguments-7").read_text()))
    for part in ("--freq 123.5", "--speed 8", "--placer static", "--router router2", "--seed 7", "--25k"):
        assert part in given


def test_the_planning_clock_is_the_goal(tmp_path: Path) -> None:
    result = place_and_route(fake(s1=99.9), tmp_path / "n.json", TARGET, tmp_path)
    assert (result.requested_mhz, result.achieved) == (TARGET.plan_mhz, False)
    assert f"--freq {TARGET.plan_mhz:g}" in " ".join(json.loads((tmp_path / "arguments-1").read_text()))


def test_clock_and_time_are_above_zero() -> None:
    with pytest.raises(ValueError, match=r"^freq_mhz must be above 0, not 0$"):
        RouteOptions(freq_mhz=0)
    with pytest.raises(ValueError, match=r"^timeout_s must be above 0, not -1$"):
        RouteOptions(timeout_s=-1)


# ------------------------------------------------------------------------------------------------------------ whole flow


@pytest.fixture
def no_synthesis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "read_ports", lambda *_: (Port("clk", 1, "input"), Port("o", 1, "output")))
    monkeypatch.setattr(flow, "synthesize", lambda yosys, sources, target, top, cwd: Synthesis(cwd / "n.json", top, {}, cwd))


def flow_of(nextpnr: Nextpnr, cwd: Path, seeds: range) -> flow.Implementation:
    return implement(cwd / "a.v", TARGET, "top", cwd, seeds=seeds, jobs=3, yosys=Yosys("yosys 0", ()), nextpnr=nextpnr)


@pytest.mark.usefixtures("no_synthesis")
def test_the_fastest_seed_is_kept(tmp_path: Path) -> None:
    done = flow_of(fake(s1=90, s2=110, s3=0, s4=100), tmp_path, range(1, 5))
    assert (done.route.seed, done.route.slowest_mhz) == (2, 110)
    assert [fmax(run) for run in done.seeds] == [90, 110, None, 100]
    assert done.bitstream is not None and done.bitstream.read_text() == "seed2.config"
    assert [path.name for path in tmp_path.glob("*.config")] == ["seed2.config"]


@pytest.mark.usefixtures("no_synthesis")
def test_only_when_all_fail_it_is_an_error(tmp_path: Path) -> None:
    reason = r"stopped with exit status 1\nERROR: no place\n  log: "
    with pytest.raises(ToolError, match=rf"^nextpnr-ecp5: all 2 seeds failed; the first {reason}"):
        flow_of(fake(s1=0, s2=0), tmp_path, range(1, 3))
    with pytest.raises(ToolError, match=rf"^nextpnr-ecp5: {reason}"):
        flow_of(fake(s1=0), tmp_path, range(1, 2))


TERMINATED = """
import sys
from convfold.cli import _reports_errors
from convfold.compiler.tools.process import run_logged
from pathlib import Path

@_reports_errors
def command():
    child = "import subprocess; subprocess.run(['sh', '-c', 'touch up; sleep 1; touch late'])"
    run_logged("tool", (sys.executable, "-c", child), Path("."), "tool.log")

command()
"""


def test_a_command_that_is_terminated_leaves_no_tool_behind(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", TERMINATED], cwd=tmp_path) as command:
        for _ in range(600):
            if (tmp_path / "up").exists():
                break
            time.sleep(0.05)
        os.kill(command.pid, signal.SIGTERM)
        assert command.wait() == 128 + signal.SIGTERM
    time.sleep(1.2)
    assert (tmp_path / "up").exists() and not (tmp_path / "late").exists()
