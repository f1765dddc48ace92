"""The build folder: readable, self-contained, the network's own names, the same bytes whoever makes it."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import jinja2
import numpy as np
import pytest

from convfold.api import Compiled, compile
from convfold.compiler.emit import npz_bytes, render
from convfold.compiler.estimate import load_fit, routed_mhz, stage_resources
from convfold.compiler.foldings import Foldings
from convfold.compiler.passes import Options
from convfold.compiler.plan import FILL, Planner, Wish
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.simulators import Simulator, find_simulator, lint
from tests.networks import Network, compile_network, simulate_once

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"
RULES = "E,W,F,I,UP,B,ISC,NPY,PTH"

BUILDS = {"generic": 100_000.0, "ecp5-25k": 20_000.0, "ice40-up5k": 100.0}
FILES = {"accelerator.py", "accelerator.v", "manifest.json", "report.html", "test_accelerator.py", "vectors.npz", "weights.npz"}
FILES |= {"network.json", "network.npz"}
CONSTRAINTS = {"generic": set[str](), "ecp5-25k": {"constraints.lpf"}, "ice40-up5k": {"constraints.pcf"}}


@pytest.fixture(scope="module")
def compiled() -> dict[str, Compiled]:
    return {
        target: compile(DIGITS / "digits.toml", target, fps=fps, calibration=DIGITS / "calibration.npz")
        for target, fps in BUILDS.items()
    }


@pytest.fixture(scope="module")
def builds(compiled: dict[str, Compiled], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("builds")
    return {target: compiled[target].write(folder / target) for target in BUILDS}


def instances(build: Path) -> list[str]:
    """Names of the instances in the top module, in order."""
    top = json.loads((build / "manifest.json").read_text(encoding="utf-8"))["top"]
    text = (build / "accelerator.v").read_text(encoding="utf-8")
    body = text[text.index(f"module {top}(") :]
    return re.findall(r"^  \w+ \\?(\S+) +\($", body[: body.index("endmodule")], re.MULTILINE)


# ------------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("target", BUILDS)
def test_the_folder_holds_these_files(builds: dict[str, Path], target: str) -> None:
    assert {path.name for path in builds[target].iterdir()} == FILES | CONSTRAINTS[target]


@pytest.mark.parametrize("target", BUILDS)
def test_no_file_knows_where_it_was_made(builds: dict[str, Path], target: str) -> None:
    """No folder of this machine, and no time."""
    for path in builds[target].iterdir():
        data = path.read_bytes()
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                data = " ".join(arrays.files).encode()
        for folder in (ROOT, DIGITS, builds[target], Path.home(), Path(sys.prefix), Path(sys.executable)):
            assert str(folder).encode() not in data, path.name


def test_the_program_prints_the_verilog(builds: dict[str, Path]) -> None:
    """On its own, from anywhere."""
    for target in ("ecp5-25k", "ice40-up5k"):
        program = builds[target] / "accelerator.py"
        run = subprocess.run(
            [sys.executable, "-I", program], cwd=builds[target].parent, capture_output=True, check=True, timeout=120
        )
        assert run.stderr == b""
        assert run.stdout == (builds[target] / "accelerator.v").read_bytes()


@pytest.mark.parametrize("target", BUILDS)
def test_emitted_python_is_clean(builds: dict[str, Path], target: str) -> None:
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed")
    assert_clean(builds[target])


def assert_clean(build: Path) -> None:
    options = ["--isolated", "--no-cache", "--select", RULES, "--line-length", "120", "--target-version", "py311"]
    run = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *options, str(build)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("target", BUILDS)
def test_emitted_python_spells_everything_out(builds: dict[str, Path], compiled: dict[str, Compiled], target: str) -> None:
    """Every parameter by its name, every layer under its own, a comment a layer, lines of readable length."""
    text = (builds[target] / "accelerator.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Params"):
            assert not node.args
            assert all(keyword.arg for keyword in node.keywords)
    for stage in compiled[target].plan.stages:
        assert f"m.submodules.{stage.node.name} = " in text
        assert re.search(rf"^    {stage.node.name} +\d+×\d+×\d+ → \d+×\d+×\d+: ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 120
    assert "1 multipliers" not in text


# ---------------------------------------------------------------------------------------------------------------- verilog


def simulators() -> list[Simulator]:
    found = []
    for name in ("icarus", "verilator"):
        with suppress(ToolError):
            found.append(find_simulator(name))
    return found or pytest.skip("no simulator")


@pytest.mark.parametrize("target", BUILDS)
def test_the_verilog_has_no_warnings(builds: dict[str, Path], target: str, tmp_path: Path) -> None:
    """Neither of Icarus (``-g2005 -Wall``) nor of Verilator (``-Wall`` without matters of style)."""
    for simulator in simulators():
        lint(simulator, [builds[target] / "accelerator.v"], "digits", tmp_path)


@pytest.mark.parametrize("target", BUILDS)
def test_the_verilog_has_the_names_of_the_network(
    builds: dict[str, Path], compiled: dict[str, Compiled], target: str
) -> None:
    layers = [stage.node.name for stage in compiled[target].plan.stages]
    found = instances(builds[target])
    assert [name for name in found if name in layers] == sorted(layers)
    assert set(found) - set(layers) <= {"edge_in", "edge_out", *(f"{name}_lanes{n}" for name in layers for n in ("", 2))}
    text = (builds[target] / "accelerator.v").read_text(encoding="utf-8")
    modules = re.findall(r"^module (\S+)\(", text, re.MULTILINE)
    assert {f"digits_{name}" for name in layers} <= set(modules)
    assert all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in modules)


def test_the_port_list_is_the_contract(builds: dict[str, Path]) -> None:
    text = (builds["generic"] / "accelerator.v").read_text(encoding="utf-8")
    ports = re.search(r"^module digits\((.*?)\);", text, re.MULTILINE | re.DOTALL)
    assert ports is not None
    assert set(re.split(r",\s*", ports[1])) == {
        *("clk", "rst", "error"),
        *(f"{side}_axis_{wire}" for side in "sm" for wire in ("tdata", "tvalid", "tready", "tlast")),
    }


def test_models_of_cells_stay_out_of_synthesis(builds: dict[str, Path]) -> None:
    for target, cell in (("ecp5-25k", "MULT18X18D"), ("ice40-up5k", "SB_MAC16")):
        text = (builds[target] / "accelerator.v").read_text(encoding="utf-8")
        design, found, models = text.partition("`ifndef SYNTHESIS\n")
        assert found and models.endswith("`endif\n")
        assert f"module {cell}" in models and f"module {cell}" not in design
    assert "SYNTHESIS" not in (builds["generic"] / "accelerator.v").read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------- manifest


@pytest.mark.parametrize("target", BUILDS)
def test_the_manifest_tells_the_whole_contract(builds: dict[str, Path], compiled: dict[str, Compiled], target: str) -> None:
    manifest = json.loads((builds[target] / "manifest.json").read_text(encoding="utf-8"))
    plan = compiled[target].plan
    assert (manifest["name"], manifest["top"], manifest["clock"], manifest["reset"]) == ("digits", "digits", "clk", "rst")
    assert manifest["target"] == target
    assert set(manifest["versions"]) == {"convfold", "amaranth", "yosys"}
    assert manifest["input"] == {
        "name": "input",
        "port": "s_axis",
        "shape": [8, 8, 1],
        "bits": 8,
        "signed": False,
        "lanes": plan.pipeline.edge_in.lanes,
        "scale": 1 / 255,
        "zero_point": 0,
    }
    (output,) = manifest["outputs"]
    assert (output["port"], output["shape"], output["lanes"]) == ("m_axis", [1, 1, 10], plan.pipeline.outputs[0][1].lanes)
    assert (manifest["latency_cycles"], manifest["interval_cycles"]) == (plan.latency_cycles, plan.interval_cycles)
    assert [layer["name"] for layer in manifest["layers"]] == [stage.node.name for stage in plan.stages]
    for layer, stage in zip(manifest["layers"], plan.stages, strict=True):
        assert (layer["multipliers"], layer["cycles"]) == (stage.multipliers, stage.cycles)
        assert layer["source"].startswith("digits.toml: layer ")
        need = stage_resources(stage.engine, plan.target)
        mhz = routed_mhz(need.luts, plan.target)
        assert layer["estimate"] == asdict(need) | {"mhz": None if mhz is None else round(mhz, 1)}
    assert [layer["name"] for layer in manifest["network"]][1:] == [
        *("edges", "blend", "project", "relu1", "mix", "norm", "relu2", "pool", "classify")
    ]
    assert {"rule", "layers", "taken", "reason", "macs_before", "macs_after", "error"} <= set(manifest["decisions"][0])
    assert set(manifest["estimate"]) == {"luts", "ffs", "dsps", "brams"}
    assert manifest["estimate_error"] == dict(load_fit(plan.target.family).error)


def test_arrays_are_as_narrow_as_they_can_be(builds: dict[str, Path], compiled: dict[str, Compiled]) -> None:
    graph = compiled["generic"].integers
    with np.load(builds["generic"] / "weights.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == set(graph.weights)
        assert arrays["norm.w"].dtype == np.int8
        for name in arrays.files:
            assert np.array_equal(arrays[name], graph.weights[name])


def test_the_same_arrays_give_the_same_bytes() -> None:
    one, other = np.arange(6).reshape(2, 3), np.ones(4, np.int8)
    data = npz_bytes({"one": one, "other": other})
    assert data == npz_bytes({"other": other.copy(), "one": one.copy()})
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        assert arrays.files == ["one", "other"]


def test_a_field_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match=r"^'name' is undefined$"):
        render("test_accelerator.py.j2", version="0", profiles=[])


# ------------------------------------------------------------------------------------------------------------------ names

LONG = "x" * 63
HOSTILE = [
    *("m", "self", "np", "source", "weights", "stage", "edge_in", "edge_out", "TOP", "m_queue", "m_lanes", "net"),
    *("a", "a_", "a__", "_", "__x", "__class__", "_builder", f"{LONG}y", f"{LONG}z", "before", "logic"),
    *("clk", "RST", "error", "s_axis_tdata"),
]
PORTS = {"clk", "RST", "error", "s_axis_tdata"}


def hostile_network(names: list[str]) -> Network:
    """One pixel through a layer of each name: convolutions and, since they are compiled sooner, pools."""
    network = Network((1, 1, 2))
    for n, name in enumerate(names):
        if n % 3 == 0:
            network.conv(name, 2 + n % 2, (1, 1))
        else:
            network.pool(name, (1, 1), (1, 1))
    return network


@pytest.mark.parametrize("part", range(2))
def test_legal_names_that_mean_something_elsewhere(part: int, tmp_path: Path) -> None:
    """They compile, keep their names in Verilog (but for those of ports), and compute what golden computes."""
    names = HOSTILE[part::2]
    compiled = compile_network(hostile_network(names), tmp_path, fold=Options("off"))
    build = compiled.write(tmp_path / "build")
    found = instances(build)
    assert {f"{name}_" if name in PORTS else name for name in names} <= set(found)
    assert len(found) == len(set(found)) == len(compiled.plan.pipeline.components) + 2
    if importlib.util.find_spec("ruff") is not None:
        assert_clean(build)
    assert simulate_once(build).passed


@pytest.mark.parametrize("name", ["DP16KD", "SB", "pin_wrapper", "clk", "MAC16", "x" * 64])
def test_legal_names_of_networks(name: str, tmp_path: Path) -> None:
    """The top module is called after the network, unless that is the name of a port or a cell."""
    network = Network((4, 4, 1), name=name).conv("MAC16", 2, (2, 2)).relu("live").dense("scores", 70)
    build = compile_network(network, tmp_path, "ecp5-25k", fps=100).write(tmp_path / "build")
    manifest = json.loads((build / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["name"] == name
    assert manifest["top"] == (f"{name}_top" if name in ("DP16KD", "SB", "pin_wrapper", "clk") else name)
    assert "DP16KD #(" in (build / "accelerator.v").read_text(encoding="utf-8")
    for simulator in simulators():
        lint(simulator, [build / "accelerator.v"], manifest["top"], tmp_path)
    if name == "DP16KD":
        assert simulate_once(build).passed


def test_names_made_up_give_way_to_names_of_layers(tmp_path: Path) -> None:
    """An adapter is called after its layer, unless a layer has that name."""
    network = Network((4, 4, 1)).conv("one", 4, (2, 2)).conv("two", 3, (2, 2)).conv("two_lanes", 2, (1, 1))
    compiled = compile_network(network, tmp_path, fold=Options("off"))
    foldings = Foldings(compiled.integers, compiled.plan.target)
    lanes = {"one": 4, "two": 1, "two_lanes": 1}  # the planner would not choose them
    chosen = {
        name: (next(choice for choice in menu if max(choice.rows, choice.lanes) == lanes[name]), 0, 0)
        for name, menu in foldings.menus.items()
    }
    wish = Wish(compiled.plan.target, None, None)
    compiled = replace(compiled, plan=Planner(foldings, FILL).assemble(wish, chosen, None))
    assert [part.name for part in compiled.plan.pipeline.components] == ["one", "two_lanes2", "two", "two_lanes"]
    found = instances(compiled.write(tmp_path / "build"))
    assert {"one", "two", "two_lanes", "two_lanes2", "edge_in", "edge_out"} <= set(found)


@pytest.mark.parametrize("name", ['x"""\nimport os  #.json', "a\\.json", "'''.json", "ü×.json", f"{'n' * 200}.json"])
def test_the_name_of_the_network_file_runs_nothing(name: str, tmp_path: Path) -> None:
    path = Network((2, 2, 1)).conv("one", 1, (1, 1)).write(tmp_path)
    build = compile(path.rename(tmp_path / name)).write(tmp_path / "build")
    module = ast.parse((build / "accelerator.py").read_text(encoding="utf-8"))
    imported = [alias.name for node in module.body if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["numpy"]
    assert (ast.get_docstring(module) or "").splitlines()[2].startswith("Made by convfold ")
    assert max(map(len, (build / "accelerator.py").read_text(encoding="utf-8").splitlines())) <= 120


def test_a_network_without_weights(tmp_path: Path) -> None:
    compiled = compile_network(Network((4, 3, 2)).pool("pool", (2, 2), (1, 1)), tmp_path)
    build = compiled.write(tmp_path / "build")
    assert "weights" not in (build / "accelerator.py").read_text(encoding="utf-8")
    if importlib.util.find_spec("ruff") is not None:
        assert_clean(build)
    assert simulate_once(build).passed
