"""Images and labels: what is read, and each thing that can be wrong with them, in its exact words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convfold.compiler.errors import CompileError
from convfold.compiler.graph import Graph
from convfold.compiler.spec import load_spec
from convfold.data import load_samples
from tests.networks import Network

IMAGES = np.linspace(0, 1, 3 * 4 * 4 * 2).reshape(3, 4, 4, 2)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return load_spec(Network((4, 4, 2)).conv("edges", 3).write(tmp_path_factory.mktemp("network")))


def save(folder: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(folder / "images.npz", allow_pickle=False, **arrays)
    return folder / "images.npz"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_images_come_as_float64(graph: Graph, tmp_path: Path, dtype: type[np.floating[Any]]) -> None:
    samples = load_samples(save(tmp_path, x=IMAGES.astype(dtype)), graph)
    assert samples.images.dtype == np.float64
    assert np.array_equal(samples.images, IMAGES.astype(dtype))
    assert samples.labels is None


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_labels_come_as_int64(graph: Graph, tmp_path: Path, dtype: type[np.integer[Any]]) -> None:
    samples = load_samples(save(tmp_path, x=IMAGES, y=np.array([0, 2, 1], dtype)), graph, labels=True)
    assert samples.labels is not None
    assert samples.labels.dtype == np.int64
    assert samples.labels.tolist() == [0, 2, 1]


def test_integers_are_images_too(graph: Graph, tmp_path: Path) -> None:
    """As long as they are within the range."""
    samples = load_samples(save(tmp_path, x=np.ones((2, 4, 4, 2), np.uint8)), graph)
    assert samples.images.dtype == np.float64


X = IMAGES
WRONG: dict[str, tuple[dict[str, NDArray[Any]], str, str]] = {
    "no x": ({"y": np.arange(3)}, "has no array 'x'", "save the images as x, shape (N, 4, 4, 2)"),
    "flat": ({"x": X.reshape(3, -1)}, "x has the shape (3, 32)", "it must be (N, 4, 4, 2)"),
    "one image": ({"x": X[0]}, "x has the shape (4, 4, 2)", "it must be (N, 4, 4, 2)"),
    "a number": ({"x": np.array(1.0)}, "x has the shape ()", "it must be (N, 4, 4, 2)"),
    "channels first": ({"x": X.transpose(0, 3, 1, 2)}, "x has the shape (3, 2, 4, 4)", "it must be (N, 4, 4, 2)"),
    "none": ({"x": X[:0]}, "x has the shape (0, 4, 4, 2)", "it must be (N, 4, 4, 2)"),
    "bright": (
        {"x": 255 * X},
        "x has values from 0 to 255, outside the input range 0 to 1",
        "scale the images, or widen the network's input range",
    ),
    "negative": (
        {"x": X - 0.25},
        "x has values from -0.25 to 0.75, outside the input range 0 to 1",
        "scale the images, or widen the network's input range",
    ),
    "infinite": (
        {"x": np.where(X > 0.99, np.inf, X)},
        "x has values from 0 to inf, outside the input range 0 to 1",
        "scale the images, or widen the network's input range",
    ),
}
WRONG_LABELS: dict[str, tuple[NDArray[Any], str, str]] = {
    "too few": (np.arange(2), "y has the shape (2,) and type int64", "it must be 3 integers"),
    "one hot": (np.eye(3, dtype=np.int64), "y has the shape (3, 3) and type int64", "it must be 3 integers"),
    "real": (np.zeros(3), "y has the shape (3,) and type float64", "it must be 3 integers"),
    "negative": (np.array([0, -1, 2]), "y has labels -1 to 2", "the network has the classes 0 to 2"),
    "of no class": (np.array([0, 1, 3]), "y has labels 0 to 3", "the network has the classes 0 to 2"),
}


def assert_refused(path: Path, graph: Graph, message: str, hint: str, *, labels: bool) -> None:
    with pytest.raises(CompileError, match=f"^{re.escape(f'images.npz: {message}')}\n  fix: {re.escape(hint)}$"):
        load_samples(path, graph, labels=labels)


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("labels", [False, True])
def test_wrong_images(kind: str, labels: bool, graph: Graph, tmp_path: Path) -> None:
    arrays, message, hint = WRONG[kind]
    assert_refused(save(tmp_path, **arrays), graph, message, hint, labels=labels)


@pytest.mark.parametrize("kind", WRONG_LABELS)
def test_wrong_labels(kind: str, graph: Graph, tmp_path: Path) -> None:
    labels, message, hint = WRONG_LABELS[kind]
    path = save(tmp_path, x=X, y=labels)
    assert_refused(path, graph, message, hint, labels=True)
    assert load_samples(path, graph).labels is None


def test_no_labels(graph: Graph, tmp_path: Path) -> None:
    hint = "save one integer label an image as y, shape (N,)"
    assert_refused(save(tmp_path, x=X), graph, "has no array 'y'", hint, labels=True)


def test_nan_is_out_of_every_range(graph: Graph, tmp_path: Path) -> None:
    path = save(tmp_path, x=np.where(X > 0.5, np.nan, X))
    with pytest.raises(CompileError, match=r"^images\.npz: x has values from nan to nan, outside the input range 0 to 1\n"):
        load_samples(path, graph)


def test_a_file_that_is_not_there(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"^none\.npz: 'none\.npz' is not a file\n  fix: check the name and the folder$"):
        load_samples(tmp_path / "none.npz", graph)


def test_nothing_is_unpickled(graph: Graph, tmp_path: Path) -> None:
    path = save(tmp_path, x=X)
    path.write_bytes(path.read_bytes().replace(b"'<f8'", b"'|O' "))
    with pytest.raises(CompileError, match=r"^images\.npz: array 'x' in 'images\.npz' cannot be read: "):
        load_samples(path, graph)
