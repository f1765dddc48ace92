"""The command line as a user meets it: exit status, one clear message, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from convfold.cli import main

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
GOOD = """\
[network]
name = "net"
weights = "net.npz"
input = { shape = [6, 6, 2], range = [0.0, 1.0] }

[[layer]]
name = "first"
op = "conv2d"
padding = "same"

[[layer]]
name = "bend"
op = "relu"

[[layer]]
name = "last"
op = "conv2d"
"""
Arrays = dict[str, np.ndarray[Any, Any]]
Change = Callable[[str, Arrays], str]


def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {"first.w": rng.normal(size=(3, 3, 3, 2)), "last.w": rng.normal(size=(2, 3, 3, 3)), "last.b": rng.normal(size=2)}


def convfold(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with a folder for temporary files that must be empty when it is done."""
    with TemporaryDirectory() as scratch:
        env = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TMPDIR": scratch} | environment
        run = subprocess.run(
            [sys.executable, "-m", "convfold", *arguments], cwd=folder, capture_output=True, text=True, env=env, check=False
        )
        assert list(Path(scratch).iterdir()) == []
    return run


def found_in(folder: Path) -> dict[str, int]:
    """Everything below a folder, with sizes."""
    return {str(path.relative_to(folder)): path.stat().st_size * path.is_file() for path in folder.rglob("*")}


def assert_refused(run: subprocess.CompletedProcess[str], words: Sequence[str]) -> None:
    """Status 2, and one message that says where, what and how to fix it."""
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    (error,) = (number for number, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines) == error + 2, run.stderr
    assert lines[-1].startswith("  fix: ")
    for word in words:
        assert word in lines[error] + lines[-1], run.stderr


def write(folder: Path, text: str, weights: Arrays) -> None:
    (folder / "net.toml").write_text(text, encoding="utf-8")
    np.savez(folder / "net.npz", allow_pickle=False, **weights)


def drop(name: str) -> Change:
    def change(text: str, weights: Arrays) -> str:
        del weights[name]
        return text

    return change


def spoil(name: str, value: float) -> Change:
    def change(text: str, weights: Arrays) -> str:
        weights[name].flat[0] = value
        return text

    return change


def reshape(name: str) -> Change:
    def change(text: str, weights: Arrays) -> str:
        weights[name] = weights[name][..., :-1]
        return text

    return change


def edit(before: str, after: str) -> Change:
    def change(text: str, weights: Arrays) -> str:
        assert before in text
        return text.replace(before, after, 1)

    return change


BAD: dict[str, tuple[Change, list[str]]] = {
    "unknown op": (edit('"relu"', '"rellu"'), ["net.toml", "'bend'", "relu"]),
    "missing weight": (drop("last.w"), ["net.toml", "'last'", "last.w"]),
    "misshapen weight": (reshape("last.w"), ["net.toml", "'last'", "last.w"]),
    "NaN": (spoil("first.w", np.nan), ["net.toml", "'first'", "first.w"]),
    "infinity": (spoil("last.b", np.inf), ["net.toml", "'last'", "last.b"]),
    "dangling input": (edit('op = "relu"', 'op = "relu"\ninput = "frist"'), ["net.toml", "'bend'", "frist"]),
    "cycle": (edit('op = "conv2d"\npadding', 'op = "conv2d"\ninput = "bend"\npadding'), ["net.toml", "first", "bend"]),
    "empty output": (edit("[6, 6, 2]", "[2, 2, 2]"), ["net.toml", "'last'", "2×2"]),
    "illegal name": (edit('name = "bend"', 'name = "be nd"'), ["net.toml", "be nd"]),
    "path that leaves": (edit('"net.npz"', '"../net.npz"'), ["net.toml", "../net.npz"]),
    "syntax": (edit("[network]", "[network"), ["net.toml"]),
    "missing weights file": (edit('"net.npz"', '"other.npz"'), ["net.toml", "other.npz"]),
    "bad range": (edit("[0.0, 1.0]", "[1.0, 0.0]"), ["net.toml", "range"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_specification(kind: str, tmp_path: Path) -> None:
    change, words = BAD[kind]
    weights = arrays()
    write(tmp_path, change(GOOD, weights), weights)
    before = found_in(tmp_path)
    assert_refused(convfold(tmp_path, "compile", "net.toml", "-o", "out"), words)
    assert found_in(tmp_path) == before


def samples(folder: Path) -> None:
    """Files of images, each wrong in its own way."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (4, 6, 6, 2))
    labels = np.arange(4) % 2
    files: dict[str, Arrays] = {
        "fine": {"x": x, "y": labels},
        "beyond": {"x": 2 * x},
        "flat": {"x": x.reshape(4, -1)},
        "small": {"x": x[:, :5]},
        "empty": {"x": x[:0]},
        "nan": {"x": np.where(x > 0.9, np.nan, x)},
        "nameless": {"images": x},
        "objects": {"x": np.array(["a", "b"])},
        "unlabelled": {"x": x},
        "short": {"x": x, "y": labels[:3]},
        "reals": {"x": x, "y": labels / 2},
        "many": {"x": x, "y": labels + 1},
    }
    for name, content in files.items():
        np.savez(folder / f"{name}.npz", allow_pickle=False, **content)
    (folder / "torn.npz").write_bytes((folder / "fine.npz").read_bytes()[:-40])


COMPILE = ("compile", "net.toml", "-o", "out")
WRONG: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "no such network": (("compile", "nothing.toml"), ["nothing.toml", "is not a file"]),
    "a folder as network": (("compile", "."), ["is no kind of network that can be read", ".toml"]),
    "another kind of file": (("compile", "net.npz"), ["net.npz", "is no kind of network that can be read"]),
    "unknown target": ((*COMPILE, "--target", "ecp5-99k"), ["there is no target 'ecp5-99k'", "ecp5-25k"]),
    "rate out of reach": ((*COMPILE, "--fps", "99000000"), ["99,000,000 frames/s", "'first'", "--fps ", " fits"]),
    "rate that does not fit": (
        (*COMPILE, "--target", "ice40-up5k", "--fps", "600000"),
        ["ice40-up5k: net needs ", ", and there are ", "--fps ", "--target ecp5-25k fits"],
    ),
    "no calibration file": ((*COMPILE, "--calibration", "none.npz"), ["none.npz", "is not a file"]),
    "calibration without x": ((*COMPILE, "--calibration", "nameless.npz"), ["nameless.npz", "has no array 'x'", "6, 6, 2"]),
    "calibration out of range": ((*COMPILE, "--calibration", "beyond.npz"), ["beyond.npz", "outside the input range 0 to 1"]),
    "calibration of another shape": ((*COMPILE, "--calibration", "flat.npz"), ["flat.npz", "(4, 72)", "(N, 6, 6, 2)"]),
    "calibration of another size": ((*COMPILE, "--calibration", "small.npz"), ["small.npz", "(4, 5, 6, 2)", "(N, 6, 6, 2)"]),
    "no calibration images": ((*COMPILE, "--calibration", "empty.npz"), ["empty.npz", "(0, 6, 6, 2)"]),
    "calibration with NaN": ((*COMPILE, "--calibration", "nan.npz"), ["nan.npz", "nan"]),
    "calibration of strings": ((*COMPILE, "--calibration", "objects.npz"), ["objects.npz", "'x'"]),
    "torn calibration": ((*COMPILE, "--calibration", "torn.npz"), ["torn.npz"]),
    "test without labels": ((*COMPILE, "--test", "unlabelled.npz"), ["unlabelled.npz", "has no array 'y'"]),
    "test with too few labels": ((*COMPILE, "--test", "short.npz"), ["short.npz", "(3,)", "4 integers"]),
    "test with labels that are no integers": ((*COMPILE, "--test", "reals.npz"), ["reals.npz", "float64"]),
    "test with labels of no class": ((*COMPILE, "--test", "many.npz"), ["many.npz", "labels 1 to 2", "classes 0 to 1"]),
    "output into a file": (("compile", "net.toml", "-o", "net.npz/out"), ["net.npz/out", "cannot be "]),
    "output over a file": (("compile", "net.toml", "-o", "net.npz"), ["net.npz", "exists and is no build folder"]),
    "output into itself": (("compile", "net.toml", "-o", "."), ["exists and is no build folder"]),
    "no build to simulate": (("simulate", "."), ["has no readable manifest.json", "convfold compile"]),
    "no build to synthesize": (("synth", "nothing"), ["nothing", "has no readable manifest.json"]),
    "nothing to explain": (("explain", "nothing.toml"), ["nothing.toml", "is not a file"]),
}
IN_PROCESS = {kind for kind, (arguments, _) in WRONG.items() if arguments[0] == "compile"} - {
    *("no such network", "unknown target", "rate out of reach", "rate that does not fit"),
    *("calibration without x", "calibration out of range", "calibration of another shape", "output into a file"),
}
"""Not worth a process of their own: others like them have one."""


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_use(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, words = WRONG[kind]
    write(tmp_path, GOOD, arrays())
    samples(tmp_path)
    before = found_in(tmp_path)
    if kind in IN_PROCESS:
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(main, arguments)
        assert isinstance(result.exception, SystemExit)
        run = subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)
    else:
        run = convfold(tmp_path, *arguments)
    assert_refused(run, words)
    assert found_in(tmp_path) == before


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--fps", "nan", "is not a finite number"),
        ("--fps", "inf", "is not a finite number"),
        ("--fps", "0", "is not in the range"),
        ("--fps", "many", "is not a valid float"),
        ("--percentile", "nan", "is not a finite number"),
        ("--bits", "1", "is not in the range"),
        ("--fold", "sometimes", "is not one of"),
    ],
)
def test_options_that_mean_nothing(option: str, value: str, text: str) -> None:
    result = CliRunner().invoke(main, ["compile", "net.toml", option, value])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output and text in result.output


def test_results_in_json_or_on_one_page(tmp_path: Path) -> None:
    """compile, report, and what synth says of a target that is no chip."""
    write(tmp_path, GOOD, arrays())
    samples(tmp_path)
    options = ("--calibration", "fine.npz", "--test", "fine.npz", "--fps", "123456.789", "-o", "out")
    run = convfold(tmp_path, "compile", "net.toml", *options, "--json")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    printed = json.loads(run.stdout)
    assert printed.pop("build") == "out"
    assert printed == json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert "--fps 123456.789" in printed["command"] and "out" not in printed["command"]

    words = convfold(tmp_path, "compile", "net.toml", *options)
    assert words.returncode == 0
    for text in ("folding    ", "accuracy   float ", "speed      ", "frames/s at 100 MHz", "estimate   ", "build      out"):
        assert text in words.stdout
    assert [line.split()[0] for line in words.stderr.splitlines()] == ["import", "fold", "quantize", "plan", "front", "emit"]

    report = convfold(tmp_path, "report", "out")
    assert report.returncode == 0 and str(tmp_path / "out" / "report.html") in report.stdout
    before = found_in(tmp_path)
    assert_refused(convfold(tmp_path, "synth", "out"), ["generic"])
    assert found_in(tmp_path) == before


@pytest.mark.parametrize("manifest", ["", "[]", "5", '"layers"', "{}", '{"layers": []}', '{"top": "x", "layers": 1}', "\udcff"])
@pytest.mark.parametrize("command", ["simulate", "synth", "report"])
def test_a_manifest_that_is_none(command: str, manifest: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest, encoding="utf-8", errors="surrogateescape")
    result = CliRunner().invoke(main, [command, str(tmp_path)])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "manifest" in result.output and "run convfold compile" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("text", ["[", "5", "[]", '{"layers": 3}'])
def test_only_a_build_is_replaced(text: str, tmp_path: Path) -> None:
    write(tmp_path, GOOD, arrays())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, ["compile", str(tmp_path / "net.toml"), "-o", str(tmp_path / "mine")])
    assert result.exit_code == 2
    assert "exists and is no build folder" in result.output
    assert (tmp_path / "mine" / "manifest.json").read_text(encoding="utf-8") == text


def test_a_folder_that_is_no_build_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, GOOD, arrays())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    run = convfold(tmp_path, "compile", "net.toml", "-o", "mine")
    assert run.returncode == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """Another folder, another hash seed, another output name: every file of the build is the same."""
    builds = []
    for seed in ("1", "2"):
        folder = tmp_path / f"somewhere{seed}"
        folder.mkdir()
        for name in ("digits.toml", "digits.npz", "calibration.npz", "test.npz"):
            shutil.copy(DIGITS / name, folder)
        options = ["--target", "ecp5-25k", "--fps", "1000", "--calibration", "calibration.npz", "--test", "test.npz"]
        run = subprocess.run(
            [sys.executable, "-m", "convfold", "compile", "digits.toml", *options, "-o", f"build{seed}"],
            cwd=folder,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        build = folder / f"build{seed}"
        builds.append({path.relative_to(build): path.read_bytes() for path in sorted(build.rglob("*")) if path.is_file()})
    assert builds[0].keys() == builds[1].keys()
    assert [name for name in builds[0] if builds[0][name] != builds[1][name]] == []
    assert not any(str(tmp_path).encode() in content for content in builds[0].values())


def test_explain_digits_in_words_and_json(tmp_path: Path) -> None:
    """The cascade and the projection, with multiplies before and after."""
    run = convfold(tmp_path, "explain", str(DIGITS / "digits.toml"))
    assert run.returncode == 0, run.stderr
    for text in ("Merged 'edges' and 'blend + project' into one layer", "Folded 'project' into 'blend'", "204,800 → 89,088"):
        assert text in run.stdout
    assert re.search(r"Merged 'edges' and .*\n(?:  .*\n)*  Multiplies a frame: [\d,]+ → [\d,]+ \(", run.stdout)
    found = json.loads(convfold(tmp_path, "explain", str(DIGITS / "digits.toml"), "--json").stdout)
    decisions = [entry["decision"] for entry in found["decisions"]]
    assert {decision["rule"] for decision in decisions} >= {"batch_norm", "pca", "cascade"}
    errors = [decision["error"] for decision in decisions if decision["taken"] and decision["error"] is not None]
    assert errors and max(errors) < 1e-9
