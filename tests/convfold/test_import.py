"""Other tools' models through the command line: options, errors, and the words that are printed."""

from __future__ import annotations

import builtins
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from convfold.cli import main
from convfold.compiler.importers import SUFFIXES, import_model
from convfold.compiler.numbers import Format
from convfold.sim import golden
from tests.hostile.archives import zipped
from tests.hostile.keras import keras_config, keras_file, nothing
from tests.hostile.onnx import onnx_model
from tests.hostile.tflite import tflite
from tests.hostile.torch import torch_members, torch_program
from tests.tflite_writer import Writer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def command(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def assert_refused(result: Result, message: str, fix: str) -> None:
    """Status 2, nothing on stdout, one message and what to do about it."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.search(f"^error: {message}\n  fix: {fix}$", result.stderr, re.MULTILINE), result.stderr


def samples(count: int = 6) -> None:
    """Labelled frames, once real and once raw; the labels are the network's own answers but for two."""
    raw = np.random.default_rng(0).integers(-128, 128, (count, 6, 6, 2))
    graph = import_model(Path("net.tflite"))
    answers = golden.run(graph, raw)[graph.outputs[0]].reshape(count, 4).argmax(axis=1)
    y = np.where(np.arange(count) < 2, (answers + 1) % 4, answers)
    np.savez("raw.npz", allow_pickle=False, x_raw=raw, y=y)
    np.savez("real.npz", allow_pickle=False, x=Format(8, True, float(np.float32(0.05)), -3).dequantize(raw), y=y)


def test_a_quantized_model_with_a_head(folder: Path) -> None:
    Path("net.tflite").write_bytes(tflite())
    samples()
    for data in ("real.npz", "raw.npz"):
        result = command("compile", "net.tflite", "--test", data, "--head", "argmax", "-o", "out")
        assert result.exit_code == 0, result.output
        assert re.search(r"^accuracy   integer 66\.67% on 6 test images$", result.stdout, re.MULTILINE), result.stdout
        assert re.search(r"^build      out$", result.stdout, re.MULTILINE)
        assert "warning" not in result.stderr
        assert [line.split()[0] for line in result.stderr.splitlines()] == ["import", "plan", "front", "emit"]
        manifest = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))
        assert manifest["command"] == f"convfold compile net.tflite --test {data} --head argmax"
        (output,) = manifest["outputs"]
        assert (output["shape"], output["bits"], output["signed"]) == ([1, 1, 1], 2, False)
        assert manifest["input"]["scale"] == float(np.float32(0.05)) and manifest["input"]["zero_point"] == -3
        assert manifest["accuracy"] == {"samples": 6, "integer": 4 / 6}
    assert sorted(path.name for path in folder.iterdir()) == ["net.tflite", "out", "raw.npz", "real.npz"]


def test_an_input_range(folder: Path) -> None:
    Path("net.onnx").write_bytes(onnx_model().SerializeToString())
    scales = []
    for options in ((), ("--input-range", "0", "255")):
        result = command("compile", "net.onnx", *options, "-o", "out", "--json")
        assert result.exit_code == 0, result.output
        printed = json.loads(result.stdout)
        scales.append((printed["input"]["signed"], printed["input"]["scale"]))
        assert printed["command"] == " ".join(["convfold compile net.onnx", *options])
    assert scales == [(True, 1 / 127), (False, 1.0)]


WRONG_RANGES = {
    ("255", "0"): r"net\.onnx: the input range must rise, within ±1e\+30, not \[255\.0, 0\.0\]",
    ("nan", "1"): r"net\.onnx: the input range must rise, within ±1e\+30, not \[nan, 1\.0\]",
    ("0", "inf"): r"net\.onnx: the input range must rise, within ±1e\+30, not \[0\.0, inf\]",
}


@pytest.mark.parametrize("limits", WRONG_RANGES)
def test_an_input_range_that_is_none(limits: tuple[str, str], folder: Path) -> None:
    Path("net.onnx").write_bytes(onnx_model().SerializeToString())
    assert_refused(command("compile", "net.onnx", "--input-range", *limits), WRONG_RANGES[limits], "for example 0 to 1")
    assert [path.name for path in folder.iterdir()] == ["net.onnx"]


def test_a_range_for_a_specification() -> None:
    """It has one of its own."""
    Path("net.toml").write_text("", encoding="utf-8")
    result = command("compile", "net.toml", "--input-range", "0", "1")
    assert_refused(result, r"net\.toml: has an input range of its own", "leave the range out, or change it in the file")


@pytest.mark.parametrize("name", ["net.caffemodel", "net", "net.pb", "net.ONNX2", ".onnx", "net.tflite.zip"])
def test_an_unknown_suffix(name: str, folder: Path) -> None:
    Path(name).write_bytes(b"")
    known = re.escape(", ".join(SUFFIXES))
    message = rf"{re.escape(name)}: is no kind of network that can be read"
    assert_refused(command("compile", name), message, f"known are {known}")
    assert [path.name for path in folder.iterdir()] == [name]


def test_suffixes_in_capitals() -> None:
    Path("NET.TFLITE").write_bytes(tflite())
    assert command("compile", "NET.TFLITE", "-o", "out").exit_code == 0


def missing(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if a package were not installed, nor any reader loaded that needs it."""
    load = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return load(name, *rest, **named)

    for name in list(sys.modules):
        if name.startswith("convfold.compiler.importers.") or name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)


EXTRAS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "tflite": ("net.tflite", tflite),
    "onnx": ("net.onnx", lambda: bytes(onnx_model().SerializeToString())),
    "h5py": ("net.keras", lambda: keras_file(keras_config(), nothing, Path())),
}
EXTRA_OF = {"h5py": "keras"}


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    package: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = EXTRAS[package]
    Path(name).write_bytes(data())
    missing(monkeypatch, package)
    extra = EXTRA_OF.get(package, package)
    message = rf"{re.escape(name)}: reading this file needs the package '{package}', which is not installed"
    assert_refused(command("compile", name), message, rf"pip install 'convfold\[{extra}\]'")
    assert [path.name for path in folder.iterdir()] == [name]


def test_torch_is_not_needed_for_an_exported_program(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("net.pt2").write_bytes(zipped(torch_members(*torch_program())))
    missing(monkeypatch, "torch")
    result = command("compile", "net.pt2", "-o", "out")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["net.tflite", "net.onnx"])
def test_the_extras_are_there(name: str) -> None:
    """Each package that a reader asks for is in the extra that it names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package, extra in {"tflite": "tflite", "onnx": "onnx", "h5py": "keras"}.items():
        assert re.search(rf"^{extra} = \[[^\]]*\"{package}\b", text, re.MULTILINE), (package, extra)


def test_a_quantized_model_has_nothing_to_explain(folder: Path) -> None:
    Path("net.tflite").write_bytes(tflite())
    message = r"net\.tflite: comes in integers of its own; the algebra works on real numbers, so nothing is folded"
    assert_refused(command("explain", "net.tflite"), message, "explain the float model that it was made from")
    assert [path.name for path in folder.iterdir()] == ["net.tflite"]


def test_a_quantized_model_has_nothing_to_calibrate(folder: Path) -> None:
    Path("net.tflite").write_bytes(tflite())
    samples()
    message = r"net\.tflite: comes in integers of its own, so there is nothing to fold, to calibrate or to quantize"
    for options in (("--calibration", "real.npz"), ("--approximate", "--error", "0.1")):
        assert_refused(command("compile", "net.tflite", *options), message, "leave these options out")


def test_all_that_is_unsupported_in_one_error(folder: Path) -> None:
    """Each node by its name and shape, with what works instead; nothing is written."""
    model = onnx_model()
    for at, kind in ((1, "Hardmax"), (2, "GlobalLpPool"), (3, "Evil")):
        model.graph.node[at].op_type = kind
    Path("net.onnx").write_bytes(model.SerializeToString())
    result = command("compile", "net.onnx", "-o", "out")
    assert result.exit_code == 2 and result.stdout == ""
    error, *lines, fix = result.stderr.splitlines()[1:] if result.stderr.startswith("  import") else result.stderr.splitlines()
    assert error == "error: net.onnx: 3 nodes cannot be imported:", result.stderr
    for line, (kind, name) in zip(lines, (("Hardmax", "relu"), ("GlobalLpPool", "pool"), ("Evil", "flat")), strict=True):
        assert line.startswith(f"  - {kind} '{name}'"), line
    assert fix.startswith("  fix: ")
    assert [path.name for path in folder.iterdir()] == ["net.onnx"]


def test_what_data_must_be(folder: Path) -> None:
    Path("net.tflite").write_bytes(tflite())
    np.savez("floats.npz", allow_pickle=False, x_raw=np.zeros((1, 6, 6, 2)), y=np.zeros(1, int))
    np.savez("wide.npz", allow_pickle=False, x_raw=np.full((1, 6, 6, 2), 200), y=np.zeros(1, int))
    np.savez("labels.npz", allow_pickle=False, x_raw=np.zeros((1, 6, 6, 2), int), y=np.array([4]))
    np.savez("none.npz", allow_pickle=False, y=np.zeros(1, int))
    for name, message, fix in (
        ("floats", r"floats\.npz: x_raw has the type float64", "save raw images as integers, real ones as x"),
        ("wide", r"wide\.npz: x_raw has values from 200 to 200, outside -128 to 127", "the input is int8"),
        ("labels", r"labels\.npz: y has labels 4 to 4", "the network has the classes 0 to 3"),
        ("none", r"none\.npz: has no array 'x'", r"save the images as x, shape \(N, 6, 6, 2\).*"),
    ):
        assert_refused(command("compile", "net.tflite", "--test", f"{name}.npz", "-o", "out"), message, fix)
    assert not (folder / "out").exists()


def test_head_without_a_choice() -> None:
    Path("net.tflite").write_bytes(tflite())
    result = command("compile", "net.tflite", "--head", "softmax")
    assert result.exit_code == 2 and "'softmax' is not 'argmax'" in result.output


def test_operators_behind_unsupported_ones_are_listed_too(folder: Path) -> None:
    """As far as they can be judged without knowing what they read."""

    def change(net: Writer) -> None:
        for operator in net.operators[:3]:
            operator.kind = "CUMSUM"

    Path("net.tflite").write_bytes(tflite(change))
    result = command("compile", "net.tflite")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: net.tflite: 3 nodes cannot be imported:\n"), result.stderr
    assert [name in result.stderr for name in ("'edges' (1×4×4×3)", "'flat' (1×48)", "'scores' (1×4)")] == [True] * 3
    assert [path.name for path in folder.iterdir()] == ["net.tflite"]


def test_a_quantized_model_is_not_compressed(folder: Path) -> None:
    Path("net.tflite").write_bytes(tflite())
    message = r"net\.tflite: comes in integers of its own, and only real layers are split"
    result = command("compress", "net.tflite", "--error", "0.1", "-o", "out")
    assert_refused(result, message, "compress the float model that it was made from")
    assert [path.name for path in folder.iterdir()] == ["net.tflite"]
