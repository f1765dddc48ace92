"""A build folder as a function: real images in, classes and names out, by the golden model or by the simulated Verilog."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

import convfold
from convfold import Accelerator, CompileError, accelerator
from convfold.compiler.emit import npz_bytes
from convfold.compiler.tools.simulators import find_simulator
from convfold.sim import cosimulate as cosimulation
from convfold.sim import golden
from convfold.sim.cosimulate import cosimulate
from convfold.sim.softmax import softmax
from tests.hostile.onnx import onnx_model
from tests.hostile.tflite import tflite_writer
from tests.networks import Network, small_simulator
from tests.tflm import Reference

LABELS = ("zero", "eins", "due")


def digits(folder: Path) -> Path:
    """Our own specification, with labels."""
    path = Network((4, 4, 1)).conv("edges", 2, (2, 2)).relu("live").dense("scores", 3).write(folder)
    record = json.loads(path.read_text(encoding="utf-8"))
    record["network"]["labels"] = LABELS
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def tflite(folder: Path, *outputs: int) -> Path:
    (folder / "net.tflite").write_bytes(tflite_writer().write([0], outputs or (8,)))
    return folder / "net.tflite"


def real_softmax(folder: Path) -> Path:
    model = onnx_model()
    model.graph.node.append(helper.make_node("Softmax", ["scores"], ["shares"], "softmax", axis=1))
    model.graph.output[0].name = "shares"
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


BUILDS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "digits": (digits, {}),
    "tflite": (tflite, {}),
    "argmax": (tflite, {"head": "argmax"}),
    "softmax": (real_softmax, {"input_range": (0.0, 1.0)}),
    "two": (lambda folder: tflite(folder, 3, 7), {}),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            write, options = BUILDS[name]
            made[name] = convfold.compile(write(folder), **options).write(folder / "build")
        return made[name]

    return build


@pytest.fixture
def copied(built: Callable[[str], Path], tmp_path: Path) -> Path:
    """The digits' build, to be spoilt."""
    return Path(shutil.copytree(built("digits"), tmp_path / "build"))


def images(count: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(0, 1, (count, *shape))


# ------------------------------------------------------------------------------------------------------------- results


def test_images_become_names(built: Callable[[str], Path]) -> None:
    digit, x = Accelerator(built("digits")), images(5, 4, 4, 1)
    found = digit(x)
    raw = golden.run(digit.graph, digit.graph.format_of("input").quantize(x))["scores"]
    assert np.array_equal(found.raw, raw) and found.final is found.raw
    assert found.raw.shape == (5, 1, 1, 3)
    assert np.array_equal(found.real, digit.graph.format_of("scores").dequantize(raw))
    assert found.classes.tolist() == raw.reshape(5, 3).argmax(axis=1).tolist()
    assert found.names == [LABELS[n] for n in found.classes]
    assert digit.labels == found.labels == LABELS


def test_the_graph_is_the_one_that_was_compiled(tmp_path: Path) -> None:
    compiled = convfold.compile(digits(tmp_path))
    read = Accelerator(str(compiled.write(tmp_path / "build"))).graph
    assert read == replace(compiled.integers, decisions=())
    assert {name: array.tolist() for name, array in read.weights.items()} == {
        name: array.tolist() for name, array in compiled.integers.weights.items()
    }


def test_an_int8_classifier_is_tflite_micro(built: Callable[[str], Path]) -> None:
    """Raw and behind the softmax, integer for integer."""
    net = Accelerator(built("tflite"))
    x = np.random.default_rng(1).integers(-128, 128, (6, 6, 6, 2))
    reference = Reference((built("tflite").parent / "net.tflite").read_bytes())
    found = net.run(x)[net.graph.outputs[0]]
    expected = np.array([reference.run(frame[None].astype(np.int8)) for frame in x]).reshape(6, 4)
    assert np.array_equal(found.final.reshape(6, 4), expected)
    assert not np.array_equal(found.raw, found.final)
    assert np.array_equal(found.real, (found.final + 128) / 256)
    assert np.abs(found.real.sum(axis=-1) - 1).max() <= 4 / 256
    assert found.names == [str(n) for n in found.classes]  # it has no labels
    assert found.classes.tolist() == expected.argmax(axis=1).tolist()


def test_a_softmax_in_reals(built: Callable[[str], Path]) -> None:
    net = Accelerator(built("softmax"))
    found = net(images(4, 6, 6, 2))
    scores = net.graph.format_of(net.graph.outputs[0]).dequantize(found.raw)
    assert np.array_equal(found.real, softmax(scores))
    assert np.abs(found.real.sum(axis=-1) - 1).max() < 1e-12  # four roundings
    assert found.final is found.raw


def test_an_argmax_in_the_engine(built: Callable[[str], Path]) -> None:
    """It names the class that the scores' greatest is, without a head."""
    x = np.random.default_rng(2).integers(-128, 128, (8, 6, 6, 2))
    plain, chosen = Accelerator(built("tflite")), Accelerator(built("argmax"))
    scores = plain.run(x)[plain.graph.outputs[0]]
    found = chosen.run(x)[chosen.graph.outputs[0]]
    assert found.raw.shape == (8, 1, 1, 1) and chosen.graph.heads == ()
    assert found.classes.tolist() == scores.raw.reshape(8, 4).argmax(axis=1).tolist()
    assert len(set(found.classes.tolist())) > 1
    assert found.names == [str(n) for n in found.classes]


def test_several_outputs(built: Callable[[str], Path]) -> None:
    net = Accelerator(built("two"))
    x = np.random.default_rng(3).integers(-128, 128, (2, 6, 6, 2))
    found = net.run(x)
    assert list(found) == list(net.graph.outputs) == ["edges", "scores"]
    assert [one.raw.shape for one in found.values()] == [(2, 4, 4, 3), (2, 1, 1, 4)]
    first = net(net.input_format.dequantize(x))
    assert np.array_equal(first.raw, found["edges"].raw)


# -------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 4), (16,), (1, 4, 4, 1), (1, 4, 4), (1, 16)])
def test_an_image_in_any_of_its_shapes(built: Callable[[str], Path], shape: tuple[int, ...]) -> None:
    digit, x = Accelerator(built("digits")), images(1, 4, 4, 1)
    assert np.array_equal(digit.quantize(x.reshape(shape)), digit.quantize(x))
    assert np.array_equal(digit(x.reshape(shape).tolist()).raw, digit(x).raw)


@pytest.mark.parametrize("shape", [(5, 5, 1), (3, 5), (17,), (2, 2, 4, 4, 1), ()])
def test_another_shape_is_named(built: Callable[[str], Path], shape: tuple[int, ...]) -> None:
    text = f"images must have the shape (4, 4, 1), or (images, 4, 4, 1), not {shape!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Accelerator(built("digits")).quantize(np.zeros(shape))


def test_reals_are_clamped_to_the_format(built: Callable[[str], Path]) -> None:
    digit = Accelerator(built("digits"))
    assert digit.quantize(np.full((4, 4), 1e9)).tolist() == np.full((1, 4, 4, 1), 255).tolist()
    assert digit.quantize(np.full((4, 4), -np.inf)).max() == 0


def test_raw_images_must_be_raw(built: Callable[[str], Path]) -> None:
    digit, chip = Accelerator(built("digits")), cast(Any, "chip")
    with pytest.raises(TypeError, match=r"^raw images must be integers, not float64; for real ones call "):
        digit.run(np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"^raw images must have values of 0 to 255, not -1 to 256$"):
        digit.run(np.array([-1, 256] * 8))
    with pytest.raises(ValueError, match=r"^engine must be 'golden' or 'rtl', not 'chip'$"):
        digit.run(np.zeros((4, 4), dtype=int), engine=chip)


# ------------------------------------------------------------------------------------------------------ broken folders


def edited(*path: Any, value: Any) -> Callable[[Path], object]:
    def change(build: Path) -> None:
        file = build / "network.json"
        record = part = json.loads(file.read_text(encoding="utf-8"))
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        file.write_text(json.dumps(record), encoding="utf-8")

    return change


def array(name: str, change: Callable[[NDArray[Any]], Any]) -> Callable[[Path], object]:
    def spoil(build: Path) -> None:
        with np.load(build / "network.npz", allow_pickle=False) as arrays:
            weights = dict(arrays)
        weights[name] = change(weights[name])
        (build / "network.npz").write_bytes(npz_bytes(weights))

    return spoil


NONE = "is no build folder: it has no readable "
STRANGE = "network.json: holds no integer network of convfold's"
UNSOUND = "network.json: holds a network that is not sound"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (shutil.rmtree, NONE + "manifest.json"),
    "no manifest": (lambda build: (build / "manifest.json").unlink(), NONE + "manifest.json"),
    "no network": (lambda build: (build / "network.json").unlink(), NONE + "network.json"),
    "no weights": (lambda build: (build / "network.npz").unlink(), "network.npz: cannot be read"),
    "a manifest of nothing": (lambda build: (build / "manifest.json").write_bytes(b""), NONE + "manifest.json"),
    "a manifest that is no text": (lambda build: (build / "manifest.json").write_bytes(b"\xff"), NONE + "manifest.json"),
    "a manifest that is a list": (lambda build: (build / "manifest.json").write_text("[]"), "manifest.json: is none of "),
    "a deep manifest": (lambda build: (build / "manifest.json").write_text("[" * 100_000), NONE + "manifest.json"),
    "a network that is a list": (lambda build: (build / "network.json").write_text("[]"), "network.json: is none of "),
    "weights cut short": (
        lambda build: (build / "network.npz").write_bytes((build / "network.npz").read_bytes()[:-30]),
        "network.npz: cannot be read",
    ),
    "weights spoilt": (
        lambda build: (build / "network.npz").write_bytes(b"\xff".join((build / "network.npz").read_bytes().split(b"\0"))),
        "network.npz: cannot be read",
    ),
    "weights of another shape": (array("edges.w", lambda w: w[:, :, :1]), UNSOUND),
    "weights of floats": (array("edges.w", lambda w: w / 2), UNSOUND),
    "weights too wide": (array("edges.w", lambda w: w * 1000), UNSOUND),
    "a multiplier too wide": (array("edges.m", lambda m: m << 20), UNSOUND),
    "a field more": (edited("nodes", 1, "evil", value=1), STRANGE),
    "another operator": (edited("nodes", 1, "op", value="clip"), STRANGE),
    "outputs of nobody": (edited("outputs", value=["nobody"]), UNSOUND),
    "no outputs": (edited("outputs", value=[]), UNSOUND),
    "a huge input": (edited("nodes", 0, "shape", value=[1 << 20, 1 << 20, 1]), "network.json: holds "),
    "a negative input": (edited("nodes", 0, "shape", value=[-4, 4, 1]), "network.json: holds "),
    "no format": (edited("nodes", 0, "format", value=None), "network.json: holds "),
    "a hostile name": (edited("name", value="x\nendmodule"), "network.json: holds "),
    "labels by letters": (edited("labels", value="ab"), "network.json: holds "),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_refused(kind: str, copied: Path) -> None:
    spoil, text = BROKEN[kind]
    spoil(copied)
    with pytest.raises(CompileError, match=re.escape(text)) as error:
        Accelerator(copied)
    assert error.value.source.startswith(str(copied))


# ----------------------------------------------------------------------------------------------------------------- RTL


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator of small networks."""
    simulator = find_simulator(small_simulator())
    monkeypatch.setattr(cosimulation, "find_simulator", lambda name: simulator)
    monkeypatch.setattr(accelerator, "find_simulator", lambda: simulator)


@pytest.mark.usefixtures("quick")
def test_the_verilog_is_the_golden_model(built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    digit, x = Accelerator(built("digits")), images(2, 4, 4)
    before = {path.name for path in digit.folder.iterdir()}
    assert np.array_equal(digit(x, engine="rtl").raw, digit(x).raw)
    assert {path.name for path in digit.folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_verilog_that_computes_something_else_is_found(copied: Path) -> None:
    """The sign of one weight: the bench says which beat differs."""
    path = copied / "accelerator.v"
    word = r"(module \w+_weights\((?:.|\n)*?\[0\] = )(\d+)'h([0-9a-f]+);"

    def flipped(match: re.Match[str]) -> str:
        return f"{match[1]}{match[2]}'h{int(match[3], 16) ^ 1 << (int(match[2]) - 1):x};"

    verilog, count = re.subn(word, flipped, path.read_text(encoding="utf-8"), count=1)
    assert count == 1
    path.write_text(verilog, encoding="utf-8")
    text = r"^the simulated Verilog and the golden model differ: (.|\n)* beats differ; the first is "
    with pytest.raises(RuntimeError, match=text):
        Accelerator(copied)(images(2, 4, 4), engine="rtl")


@pytest.mark.parametrize("name", ["accelerator.v", "test_accelerator.py"])
def test_a_folder_without_its_verilog(name: str, copied: Path) -> None:
    (copied / name).unlink()
    digit = Accelerator(copied)
    assert digit(images(1, 4, 4)).raw.shape == (1, 1, 1, 3)
    with pytest.raises(CompileError, match=rf": has no {name}\n  fix: run convfold compile again$"):
        digit(images(1, 4, 4), engine="rtl")


def spoilt_vectors(build: Path, name: str) -> None:
    with np.load(build / "vectors.npz", allow_pickle=False) as arrays:
        vectors = {key: value[:2].copy() for key, value in arrays.items()}
    assert name in vectors
    vectors[name][1].flat[-1] ^= 1
    (build / "vectors.npz").write_bytes(npz_bytes(vectors))


def test_a_wrong_value_in_the_second_output_is_found(built: Callable[[str], Path], tmp_path: Path) -> None:
    build = Path(shutil.copytree(built("two"), tmp_path / "build"))
    spoilt_vectors(build, "outputs1")
    found = cosimulate(build, frames=2, simulator=small_simulator())
    assert not found.passed and found.mismatches == 4  # one under each stall profile
    assert "1 of 40 beats differ" in found.summary() or " of frame 1 of m1_axis: (tdata, tlast) = " in found.summary()
    assert [one["mismatches"] for one in found.record["profiles"]] == [1] * 4


def test_a_beat_too_many_in_the_second_output_is_found(built: Callable[[str], Path], tmp_path: Path) -> None:
    """The manifest says fewer beats a frame than there are: what comes behind the last is noticed."""
    build = Path(shutil.copytree(built("two"), tmp_path / "build"))
    manifest = json.loads((build / "manifest.json").read_text(encoding="utf-8"))
    manifest["outputs"][1]["shape"] = [1, 1, 3]
    (build / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with np.load(build / "vectors.npz", allow_pickle=False) as arrays:
        vectors = {key: value[:1] for key, value in arrays.items()}
    vectors["outputs1"] = vectors["outputs1"][..., :3]
    (build / "vectors.npz").write_bytes(npz_bytes(vectors))
    found = cosimulate(build, frames=1, simulator=small_simulator())
    assert not found.passed
    assert "m1_axis has a beat too many" in found.summary()
