"""The command line as a user meets it: exit status, one clear message, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


def convfold(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "convfold", *arguments], cwd=folder, capture_output=True, text=True, env=env, check=False
    )


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
    before = sorted(path.name for path in tmp_path.iterdir())
    run = convfold(tmp_path, "compile", "net.toml", "-o", "out")
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    assert run.stderr.count("error:") == 1
    assert "fix:" in run.stderr
    for word in words:
        assert word in run.stderr, run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


BAD_OPTIONS: dict[str, tuple[list[str], str]] = {
    "missing file": (["compile", "nothing.toml"], "nothing.toml"),
    "unknown target": (["compile", "net.toml", "--target", "ecp5-99k"], "ecp5-99k"),
    "rate": (["compile", "net.toml", "--target", "ecp5-25k", "--fps", "99000000"], "ask for --fps|fits"),
    "no calibration file": (["compile", "net.toml", "--calibration", "none.npz"], "none.npz"),
    "no such array": (["compile", "net.toml", "--calibration", "net.npz"], "has no array 'x'"),
    "no build": (["simulate", "."], "manifest.json"),
    "not a device": (["synth", "built"], "generic"),
}


@pytest.mark.parametrize("kind", BAD_OPTIONS)
def test_bad_option(kind: str, tmp_path: Path) -> None:
    arguments, word = BAD_OPTIONS[kind]
    write(tmp_path, GOOD, arrays())
    if "built" in arguments:
        assert convfold(tmp_path, "compile", "net.toml", "-o", "built").returncode == 0
    before = sorted(path.name for path in tmp_path.iterdir())
    run = convfold(tmp_path, *arguments)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    assert any(part in run.stderr for part in word.split("|")), run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


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
        options = ["--target", "ecp5-25k", "--calibration", "calibration.npz", "--test", "test.npz"]
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
    run = convfold(tmp_path, "explain", str(DIGITS / "digits.toml"))
    assert run.returncode == 0, run.stderr
    for text in ("Merged 'edges' and 'blend + project' into one layer", "Folded 'project' into 'blend'", "204,800 → 89,088"):
        assert text in run.stdout
    found = json.loads(convfold(tmp_path, "explain", str(DIGITS / "digits.toml"), "--json").stdout)
    assert {entry["decision"]["rule"] for entry in found["decisions"]} >= {"batch_norm", "pca", "cascade"}
