"""The library's front door: ``convfold.compile(...).write(...)``, and folders that are replaced whole or not at all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convfold
from convfold import CompileError, api
from convfold.compiler.evaluate import evaluate
from convfold.sim import golden
from tests.networks import Network

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
FILES = {"accelerator.py", "accelerator.v", "manifest.json", "report.html", "test_accelerator.py", "vectors.npz", "weights.npz"}
FILES |= {"network.json", "network.npz"}


def network() -> Network:
    return Network((4, 4, 1)).conv("edges", 2, (2, 2)).relu("live").dense("scores", 3)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> convfold.Compiled:
    return convfold.compile(network().write(tmp_path_factory.mktemp("network")))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ----------------------------------------------------------------------------------------------------------------- compile


def test_every_step_can_be_looked_at(tmp_path: Path) -> None:
    steps: list[str] = []
    made = convfold.compile(str(network().write(tmp_path)), target="ecp5-25k", fps=1e5, progress=steps.append)
    assert steps[0] == "import" and steps[-1] == "plan"
    assert [node.name for node in made.network.nodes] == ["input", "edges", "live", "scores"]
    assert made.folded.shapes["scores"] == made.integers.shapes["scores"] == (1, 1, 3)
    assert made.plan.target.name == "ecp5-25k"
    assert made.plan.interval_cycles <= 1000
    assert made.accuracy is None


def test_calibration_by_array_and_by_file_are_one(tmp_path: Path) -> None:
    spec, images = network().write(tmp_path), network().images(8)
    np.savez(tmp_path / "images.npz", allow_pickle=False, x=images)
    by_array, by_path, by_name = (
        convfold.compile(spec, calibration=calibration)
        for calibration in (images, tmp_path / "images.npz", str(tmp_path / "images.npz"))
    )
    assert by_array.integers == by_path.integers == by_name.integers
    assert by_array.integers != convfold.compile(spec).integers
    assert np.array_equal(by_array.vectors, by_path.vectors)
    assert np.array_equal(by_array.vectors, by_array.integers.format_of("input").quantize(images))


def test_calibration_of_another_kind(tmp_path: Path) -> None:
    anything: Any = [[0.5]]
    with pytest.raises(TypeError, match=r"^calibration must be an array or the path of an \.npz, not \[\[0\.5\]\]$"):
        convfold.compile(network().write(tmp_path), calibration=anything)


def test_calibration_that_does_not_suit(tmp_path: Path) -> None:
    spec = network().write(tmp_path)
    shape = r"^calibration data: the shape is \(2, 4, 4\), but 'input' takes \(images, 4, 4, 1\)\n"
    with pytest.raises(CompileError, match=shape):
        convfold.compile(spec, calibration=np.zeros((2, 4, 4)))
    limits = r"^calibration data: values reach from 0 to 9, but the input 'input' is declared 0 … 1\n"
    with pytest.raises(CompileError, match=limits):
        convfold.compile(spec, calibration=np.array([0.0, 9.0] * 8).reshape(1, 4, 4, 1))


def test_without_images_the_vectors_reach_the_limits(compiled: convfold.Compiled) -> None:
    assert compiled.vectors.shape == (api.VECTORS, 4, 4, 1)
    assert (compiled.vectors.min(), compiled.vectors.max()) == (0, 255)


def test_accuracy_counts_right_answers(tmp_path: Path) -> None:
    """On labels that are the network's own answers, and on some that are not."""
    images = network().images(40)
    spec = network().write(tmp_path)
    plain = convfold.compile(spec, calibration=images)
    answers = evaluate(plain.network, images)["scores"].reshape(40, 3).argmax(axis=1)
    raw = golden.run(plain.integers, plain.integers.format_of("input").quantize(images))["scores"]
    labels = np.where(np.arange(40) < 10, (answers + 1) % 3, answers)
    np.savez(tmp_path / "test.npz", allow_pickle=False, x=images, y=labels)
    found = convfold.compile(spec, calibration=images, test=tmp_path / "test.npz").accuracy
    assert found is not None
    assert (found["samples"], found["float"]) == (40, 0.75)
    assert found["integer"] == np.mean(raw.reshape(40, 3).argmax(axis=1) == labels)
    assert found["folding_difference"] < 1e-12


@pytest.mark.parametrize("name", ["net.pb", "net", "net.toml.txt"])
def test_a_file_of_another_kind(name: str, tmp_path: Path) -> None:
    known = r"is no kind of network that can be read\n  fix: known are \.toml, "
    with pytest.raises(CompileError, match=rf"^{re.escape(name)}: {known}"):
        convfold.compile(tmp_path / name)


def test_importing_the_package_loads_no_compiler() -> None:
    """Its names are there, and the compiler comes with the first that needs it."""
    program = (
        "import sys, convfold; assert 'convfold.api' not in sys.modules and 'amaranth' not in sys.modules; "
        "assert {'compile', 'Compiled', 'CompileError'} <= set(convfold.__all__); "
        "assert convfold.compile.__module__ == 'convfold.api'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match=r"^module 'convfold' has no attribute 'unknown'$"):
        vars(convfold)["__getattr__"]("unknown")


# ------------------------------------------------------------------------------------------------------------------- write


def test_a_build_is_written_and_replaced(compiled: convfold.Compiled, tmp_path: Path) -> None:
    build = compiled.write(tmp_path / "new" / "folder")
    assert build == tmp_path / "new" / "folder"
    before = contents(build)
    assert set(before) == FILES
    (build / "accelerator.v").write_text("spoilt", encoding="utf-8")
    (build / "sim_build").mkdir()
    assert compiled.write(str(build)) == build
    assert contents(build) == before
    assert [path.name for path in build.parent.iterdir()] == ["folder"]


def test_an_empty_folder_is_taken(compiled: convfold.Compiled, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    assert set(contents(compiled.write(tmp_path / "build"))) == FILES


def test_a_link_to_a_build_gives_way(compiled: convfold.Compiled, tmp_path: Path) -> None:
    """What it points at stays."""
    real = compiled.write(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    compiled.write(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()
    assert set(contents(real)) == set(contents(tmp_path / "link")) == FILES


def assert_refused(compiled: convfold.Compiled, folder: Path, message: str) -> None:
    with pytest.raises(CompileError, match=f"^{re.escape(f'{folder}: ')}{message}\n  fix: choose another folder with -o$"):
        compiled.write(folder)


@pytest.mark.parametrize("manifest", [None, "[]", "no json", '{"name": "mine"}', '"source_sha256"'])
def test_a_folder_that_is_no_build_is_left_alone(compiled: convfold.Compiled, manifest: str | None, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years", encoding="utf-8")
    if manifest is not None:
        (tmp_path / "mine" / "manifest.json").write_text(manifest, encoding="utf-8")
    before = contents(tmp_path / "mine")
    assert_refused(compiled, tmp_path / "mine", "exists and is no build folder")
    assert contents(tmp_path / "mine") == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_is_no_folder(compiled: convfold.Compiled, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert_refused(compiled, tmp_path / "file", "exists and is no build folder")
    assert_refused(compiled, tmp_path / "file" / "build", "cannot be (read|written): .*")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_dangling_link(compiled: convfold.Compiled, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert_refused(compiled, tmp_path / "link", "cannot be written: Not a directory")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_the_current_folder_is_not_pulled_away(
    compiled: convfold.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = compiled.write(tmp_path / "build")
    (build / "below").mkdir()
    monkeypatch.chdir(build / "below")
    assert_refused(compiled, build, "cannot be replaced, because the current folder is in it")


def test_the_network_is_not_replaced_by_its_build(tmp_path: Path) -> None:
    build = convfold.compile(network().write(tmp_path)).write(tmp_path / "build")
    inside = convfold.compile(network().write(build))
    assert_refused(inside, build, "cannot be replaced, because the network itself is in it")
    assert (build / "net.json").is_file()


def test_what_was_there_stays_when_writing_fails(
    compiled: convfold.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither half of a new build nor the loss of the old one; no temporary folder either."""
    build = compiled.write(tmp_path / "build")
    before = contents(build)
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if path.name == "build" and target == build:
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    assert_refused(compiled, build, "cannot be written: No space left on device")
    assert contents(build) == before
    assert [path.name for path in tmp_path.iterdir()] == ["build"]


def test_nothing_is_left_when_emission_fails(
    compiled: convfold.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(emission: object) -> dict[str, bytes]:
        raise CompileError("emission", "stopped")

    monkeypatch.setattr(api, "emit", fails)
    with pytest.raises(CompileError, match=r"^emission: stopped$"):
        compiled.write(tmp_path / "deep" / "build")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_keeps_the_command_if_there_was_one(compiled: convfold.Compiled, tmp_path: Path) -> None:
    without = json.loads((compiled.write(tmp_path / "one") / "manifest.json").read_text(encoding="utf-8"))
    assert "command" not in without
    commanded = replace(compiled, command="convfold compile net.json")
    found = json.loads((commanded.write(tmp_path / "two") / "manifest.json").read_text(encoding="utf-8"))
    assert found["command"] == "convfold compile net.json"


def test_vectors_are_goldens(compiled: convfold.Compiled, tmp_path: Path) -> None:
    with np.load(compiled.write(tmp_path / "build") / "vectors.npz", allow_pickle=False) as vectors:
        expected = golden.run(compiled.integers, vectors["inputs"])["scores"]
        assert np.array_equal(vectors["outputs"], expected)
