"""The linear operators of the native format, and what scikit-learn's PCA becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import (
    Add,
    AveragePool,
    ChannelShuffle,
    Concat,
    Conv2D,
    DepthToSpace,
    Dropout,
    Flatten,
    Graph,
    Node,
    Pca,
    ScaleBias,
    Slice,
    Upsample,
)
from convfold.compiler.passes import Options, fold
from convfold.compiler.passes.rewrite import relative_error
from tests.compiler.test_spec import TREE, load, refused, write
from tests.oracle import difference, toeplitz

Layers = list[dict[str, Any]]
EXACT = 1e-9

# ------------------------------------------------------------------------------------------------------- what is read


def test_every_field_of_every_operator(tmp_path: Path) -> None:
    graph = load(
        tmp_path,
        [
            {"name": "a", "op": "conv2d", "padding": "same", "dilation": [2, 1], "groups": 2, "fold": "forbid"},
            {"name": "b", "op": "scale_bias"},
            {"name": "c", "op": "conv2d", "input": "a", "padding": "same", "fold": "force"},
            {"name": "d", "op": "add", "inputs": ["b", "c", "a"]},
            {"name": "e", "op": "concat", "inputs": ["d", "b"]},
            {"name": "f", "op": "channel_shuffle", "groups": 4},
            {"name": "g", "op": "slice", "start": 1, "stop": 5},
            {"name": "h", "op": "depth_to_space", "block": 2, "order": "CRD"},
            {"name": "i", "op": "average_pool", "kernel": [2, 3], "stride": 1, "padding": "same"},
            {"name": "j", "op": "average_pool", "kernel": 2, "count_include_pad": True},
            {"name": "k", "op": "upsample", "factor": [2, 1]},
            {"name": "l", "op": "dropout"},
            {"name": "m", "op": "global_average_pool"},
            {"name": "n", "op": "flatten"},
        ],
        **{"a.w": np.ones((4, 3, 3, 1)), "b.scale": np.ones(4), "c.w": np.ones((4, 1, 1, 4))},
    )
    name: dict[str, Any] = {
        node.name: {"name": node.name, "inputs": node.inputs, "source": node.source} for node in graph.nodes
    }
    expected: tuple[Node, ...] = (
        Conv2D(**name["a"], padding=((2, 2), (1, 1)), dilation=(2, 1), groups=2, fold="forbid"),
        ScaleBias(**name["b"]),
        Conv2D(**name["c"], fold="force"),
        Add(**name["d"]),
        Concat(**name["e"]),
        ChannelShuffle(**name["f"], groups=4),
        Slice(**name["g"], start=1, stop=5),
        DepthToSpace(**name["h"], block=(2, 2), order="CRD"),
        AveragePool(**name["i"], kernel=(2, 3), stride=(1, 1), padding=((0, 1), (1, 1))),
        AveragePool(**name["j"], kernel=(2, 2), stride=(2, 2), count_include_pad=True),
        Upsample(**name["k"], factor=(2, 1)),
        Dropout(**name["l"]),
        AveragePool(**name["m"], kernel=(16, 8), stride=(1, 1)),
        Flatten(**name["n"]),
    )
    assert graph.nodes[1:] == expected
    assert name["d"]["inputs"] == ("b", "c", "a")
    assert graph.weights["b.bias"].tolist() == [0.0] * 4
    assert [graph.shapes[node.name] for node in graph.nodes[4:]] == [
        (8, 8, 4), (8, 8, 8), (8, 8, 8), (8, 8, 4), (16, 16, 1), (16, 16, 1), (8, 8, 1), (16, 8, 1), (16, 8, 1),
        (1, 1, 1), (1, 1, 1),
    ]  # fmt: skip


def test_a_depthwise_convolution_has_one_channel_a_filter(tmp_path: Path) -> None:
    layer = {"name": "a", "op": "conv2d", "groups": 2}
    assert load(tmp_path, [layer], **{"a.w": np.ones((2, 3, 3, 1))}).shapes["a"] == (6, 6, 2)


def test_what_is_read_prints_its_own_fields(tmp_path: Path) -> None:
    layers: Layers = [
        {"name": "a", "op": "conv2d", "dilation": 2, "groups": 2, "fold": "force"},
        {"name": "b", "op": "average_pool", "kernel": 2, "padding": [[1, 0], [0, 0]], "count_include_pad": True},
        {"name": "c", "op": "slice", "start": 1},
        {"name": "d", "op": "upsample", "factor": 2},
    ]
    assert str(load(tmp_path, layers, **{"a.w": np.ones((2, 3, 3, 1))})).splitlines()[1:-1] == [
        "a: 4×4×2 = conv2d(input, 3×3, dilation 2×2, groups 2, fold force)",
        "b: 2×2×2 = average_pool(a, 2×2, stride 2×2, padding ((1, 0), (0, 0)), padding counts)",
        "c: 2×2×1 = slice(b, 1 … 1)",
        "d: 4×4×1 = upsample(c, 2×2)",
    ]


# ---------------------------------------------------------------------------------------------------- what is refused

A, B = "net.json: layer 1 'a'", "net.json: layer 2 'b'"
HALF = {"name": "a", "op": "average_pool", "kernel": 2}


@pytest.mark.parametrize(
    ("layers", "text", "fix"),
    [
        (
            [{"name": "a", "op": "conv2d", "groups": 3}],
            f"{A}: groups must divide the 2 channels of its input, not 3",
            "choose a divisor",
        ),
        (
            [{"name": "a", "op": "conv2d", "groups": 2}],
            f"{A}: groups must divide the 3 channels of its output, not 2",
            "choose a divisor",
        ),
        (
            [{"name": "a", "op": "conv2d", "dilation": 0}],
            f"{A}: dilation must be an integer from 1 to 1048576, or [vertical, horizontal], not 0",
            "for example dilation = [2, 2]",
        ),
        (
            [{"name": "a", "op": "conv2d", "dilation": 8}],
            f"{A}: a 17×17 window does not fit into its 8×8 input, so the output is empty",
            "use a smaller kernel, or padding",
        ),
        (
            [{"name": "a", "op": "dropout", "fold": "never"}],
            f"{A}: fold must be \"auto\", \"force\" or \"forbid\", not 'never'",
            'for example fold = "forbid"',
        ),
        (
            [{"name": "a", "op": "relu", "fold": "force"}],
            f"{A}: field 'fold' is not known here",
            "choose from 'input', 'inputs', 'name', 'op'",
        ),
        (
            [{"name": "a", "op": "add"}],
            f"{A}: op 'add' takes 2 to 1024 inputs, not 1",
            'name them, for example inputs = ["a", "b"]',
        ),
        (
            [HALF, {"name": "b", "op": "add", "inputs": ["a", "input"]}],
            f"{B}: add takes tensors of one size, but 'a' is 4×4×2 and 'input' is 8×8×2",
            "give the branches the same strides, padding and channels",
        ),
        (
            [HALF, {"name": "b", "op": "concat", "inputs": ["input", "a"]}],
            f"{B}: concat takes tensors of one size, but 'input' is 8×8 and 'a' is 4×4",
            "give the branches the same strides, padding and channels",
        ),
        (
            [{"name": "a", "op": "average_pool", "kernel": 2, "padding": [[2, 0], [0, 0]]}],
            f"{A}: padding must be below the kernel (2, 2), not ((2, 0), (0, 0))",
            "pad less: a window of nothing but padding has no greatest value, and no mean",
        ),
        (
            [{**HALF, "count_include_pad": 1}],
            f"{A}: count_include_pad must be true or false, not 1",
            "for example count_include_pad = true",
        ),
        (
            [{"name": "a", "op": "slice", "start": 1, "stop": 3}],
            f"{A}: channels 1 … 2 must lie within its input's 0 … 1",
            "start counts from 0, and stop is the first channel left out",
        ),
        (
            [{"name": "a", "op": "channel_shuffle", "groups": 3}],
            f"{A}: 2 channels cannot be cut into 3 groups",
            "choose a divisor",
        ),
        (
            [{"name": "a", "op": "depth_to_space", "block": 2}],
            f"{A}: 2 channels cannot be cut into 4 samples a block",
            "choose a divisor",
        ),
        (
            [{"name": "a", "op": "depth_to_space", "block": 2, "order": "RCD"}],
            f"{A}: order must be \"DCR\" or \"CRD\", not 'RCD'",
            'for example order = "DCR"',
        ),
        ([{"name": "a", "op": "upsample"}], f"{A}: factor is missing", "add factor = [2, 2]"),
        (
            [{"name": "a", "op": "upsample", "factor": 1 << 20}],
            f"{A}: output 8388608×8388608×2 must have 1 to 268435456 elements",
            "shrink the input, or use a larger stride",
        ),
        (
            [{"name": "a", "op": "dropout"}, {"name": "b", "op": "pca", "residue": True}],
            f"{B}: residue = true needs a conv2d without groups as its input",
            "put it behind one, or remove residue",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, layers: Layers, text: str, fix: str) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for layer in layers:
        if layer["op"] == "conv2d":
            arrays["a.w"] = np.ones((3, 3, 3, 2 // layer.get("groups", 1) or 1))
        if layer["op"] == "pca":
            arrays |= {"b.components": np.ones((1, 2)), "b.mean": np.zeros(2)}
    refused(write(tmp_path, {"network": TREE["network"], "layer": layers}, arrays), text, fix)


def test_groups_tell_the_shape_of_their_weights(tmp_path: Path) -> None:
    layers = [{"name": "a", "op": "conv2d", "groups": 2}]
    path = write(tmp_path, {"network": TREE["network"], "layer": layers}, {"a.w": np.ones((2, 3, 3, 2))})
    refused(
        path,
        f"{A}: array 'a.w' in net.npz must have shape (out, kh, kw, 1), not (2, 3, 3, 2)",
        "a group reads its own part of the channels; use transpose(3, 0, 1, 2) on weights from Keras, "
        "transpose(0, 2, 3, 1) on those from PyTorch",
    )


# ---------------------------------------------------------------------------------------------------------------- pca


def fitted(pca: PCA, name: str = "project") -> dict[str, NDArray[Any]]:
    """A fitted PCA as the arrays to save."""
    return {
        f"{name}.components": pca.components_,
        f"{name}.mean": pca.mean_,
        f"{name}.explained_variance": pca.explained_variance_,
    }


def kernels(rng: np.random.Generator, outputs: int, kernel: int, inputs: int) -> NDArray[np.float64]:
    return rng.normal(size=(outputs, kernel, kernel, inputs))


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_projection_of_responses_folds_back(tmp_path: Path, whiten: bool, padding: str) -> None:
    rng = np.random.default_rng(0)
    conv = {"name": "edges", "op": "conv2d", "padding": padding}
    arrays = {"edges.w": kernels(rng, 6, 3, 2), "edges.b": rng.normal(size=6)}
    x_bhwc = rng.uniform(size=(30, 8, 8, 2))
    responses = evaluate(load(tmp_path, [conv], **arrays), x_bhwc)["edges"]
    pca = PCA(3, whiten=whiten).fit(responses.reshape(-1, 6))
    expected = pca.transform(responses.reshape(-1, 6)).reshape(*responses.shape[:3], 3)

    layers = [conv, {"name": "project", "op": "pca", "whiten": whiten}]
    graph = load(tmp_path, layers, **arrays, **fitted(pca))
    folded = fold(graph)
    assert [node.op for node in folded.nodes] == ["input", "conv2d"]
    for found in (evaluate(graph, x_bhwc), evaluate(folded, x_bhwc)):
        assert relative_error(expected, found["project"]) < EXACT


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize(("padding", "classes"), [("valid", 1), ("same", 9)])
def test_the_projection_of_pixels_folds_forward(tmp_path: Path, whiten: bool, padding: str, classes: int) -> None:
    """A zero padded onto the projection is not the projection of a zero pixel: border classes make up for it."""
    rng = np.random.default_rng(1)
    x_bhwc = rng.uniform(size=(30, 8, 8, 2)) @ np.array([[1.0, 0.4], [0.0, 0.5]])
    pca = PCA(2, whiten=whiten).fit(x_bhwc.reshape(-1, 2))
    projected = pca.transform(x_bhwc.reshape(-1, 2)).reshape(x_bhwc.shape)
    conv = {"name": "edges", "op": "conv2d", "padding": padding}
    arrays = {"edges.w": kernels(rng, 4, 3, 2), "edges.b": rng.normal(size=4)}
    expected = evaluate(load(tmp_path, [conv], **arrays), projected)["edges"]

    layers = [{"name": "project", "op": "pca", "whiten": whiten}, conv]
    graph = load(tmp_path, layers, **arrays, **fitted(pca))
    folded = fold(graph)
    (node,) = folded.nodes[1:]
    assert isinstance(node, Conv2D) and node.classes.count == classes
    assert relative_error(expected, evaluate(folded, x_bhwc)["edges"]) < EXACT
    assert difference(toeplitz(graph)["edges"], toeplitz(folded)["edges"]) < EXACT


def test_components_without_variance_are_as_in_scikit_learn(tmp_path: Path) -> None:
    """Where a variance is all but zero, both divide by what float64 resolves."""
    rng = np.random.default_rng(2)
    pca = PCA(2, whiten=True).fit(rng.normal(size=(40, 2)))
    pca.explained_variance_ = np.array([1e-33, 0.0])
    x_bhwc = rng.uniform(size=(3, 8, 8, 2))
    graph = load(tmp_path, [{"name": "project", "op": "pca", "whiten": True}], **fitted(pca))
    expected = pca.transform(x_bhwc.reshape(-1, 2)).reshape(x_bhwc.shape)
    assert relative_error(expected, evaluate(graph, x_bhwc)["project"]) < EXACT


def test_whitening_needs_variances(tmp_path: Path) -> None:
    arrays = {"project.components": np.ones((1, 2)), "project.mean": np.zeros(2)}
    layers = [{"name": "project", "op": "pca", "whiten": True}]
    where = "net.json: layer 1 'project'"
    refused(
        write(tmp_path, {"network": TREE["network"], "layer": layers}, arrays),
        f"{where}: array 'project.explained_variance' of shape (1,) is missing in net.npz",
        "add it",
    )
    arrays["project.explained_variance"] = np.array([-1.0])
    refused(
        write(tmp_path, {"network": TREE["network"], "layer": layers}, arrays),
        f"{where}: array 'project.explained_variance' in net.npz must hold numbers from 0 to 1e+30, not -1 at [0]",
        "train again, or replace the value",
    )


# ------------------------------------------------------------------------------------------------------------ residue


def convolve_with(folder: Path, w_ohwi: NDArray[np.float64], b_o: NDArray[np.float64], padding: str) -> Graph:
    layer = {"name": "edges", "op": "conv2d", "padding": padding}
    return load(folder, [layer], **{"edges.w": w_ohwi, "edges.b": b_o})


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_residue_is_what_transformed_filters_compute(tmp_path: Path, padding: str, whiten: bool) -> None:
    """``PCA.transform`` on the filters, taken at its word: convolve with what it returns."""
    rng = np.random.default_rng(3)
    w_ohwi, b_o = kernels(rng, 6, 3, 2) + 0.5, rng.normal(size=6)
    w_ko = w_ohwi.reshape(6, -1).T  # one sample a tap, one feature a filter
    pca = PCA(3, whiten=whiten).fit(w_ko)
    transformed = pca.transform(w_ko).T.reshape(3, 3, 3, 2)
    projection = pca.components_ / (np.sqrt(pca.explained_variance_)[:, None] if whiten else 1.0)
    expected = convolve_with(tmp_path, transformed, projection @ b_o, padding)

    layers: Layers = [
        {"name": "edges", "op": "conv2d", "padding": padding},
        {"name": "project", "op": "pca", "whiten": whiten, "residue": True},
    ]
    graph = load(tmp_path, layers, **{"edges.w": w_ohwi, "edges.b": b_o}, **fitted(pca))
    folded = fold(graph)
    (node,) = folded.nodes[1:]
    assert isinstance(node, Conv2D) and node.classes.count == 1
    assert relative_error(transformed, folded.weights["project.w"][0, 0]) < EXACT
    for found in (graph, folded):
        assert difference(toeplitz(expected)["edges"], toeplitz(found)["project"]) < EXACT

    layers[1]["residue"] = False
    right = load(tmp_path, layers, **{"edges.w": w_ohwi, "edges.b": b_o}, **fitted(pca))
    assert difference(toeplitz(right)["project"], toeplitz(graph)["project"]) > 0.01
    x_bhwc = rng.uniform(size=(2, 8, 8, 2))
    ones = convolve_with(tmp_path, np.ones((1, 3, 3, 2)), np.zeros(1), padding)
    patch = evaluate(ones, x_bhwc)["edges"]
    residue = (1 - patch) * (projection @ pca.mean_)
    shown = evaluate(right, x_bhwc)["project"] + residue
    assert relative_error(shown, evaluate(folded, x_bhwc)["project"]) < EXACT


def test_the_residue_is_one_channel_of_a_box_filter(tmp_path: Path) -> None:
    layers = [
        {"name": "edges", "op": "conv2d", "stride": 2, "dilation": 2},
        {"name": "project", "op": "pca", "residue": True},
    ]
    arrays = {"edges.w": np.ones((4, 3, 3, 2)), "project.components": np.eye(3, 4), "project.mean": np.full(4, 0.5)}
    graph = load(tmp_path, layers, **arrays)
    assert str(graph).splitlines()[1:-1] == [
        "edges: 2×2×4 = conv2d(input, 3×3, stride 2×2, dilation 2×2)",
        "project_box: 2×2×1 = conv2d(input, 3×3, stride 2×2, dilation 2×2)",
        "project_patch: 2×2×5 = concat(edges, project_box)",
        "project: 2×2×3 = pca(project_patch)",
    ]
    assert np.all(graph.weights["project_box.w"] == 1)
    assert isinstance(graph.nodes[-1], Pca)
    assert graph.weights["project.components"].tolist() == np.hstack((np.eye(3, 4), np.full((3, 1), -0.5))).tolist()
    kept = fold(graph, Options(fold="off"))
    assert [node.name for node in kept.nodes] == [node.name for node in graph.nodes]


def test_names_of_the_residue_are_new_ones(tmp_path: Path) -> None:
    layers = [
        {"name": "edges", "op": "conv2d"},
        {"name": "project", "op": "pca", "residue": True},
        {"name": "PROJECT_box", "op": "relu"},
    ]
    arrays = {"edges.w": np.ones((4, 3, 3, 2)), "project.components": np.eye(3, 4), "project.mean": np.full(4, 0.5)}
    assert "project_box_2" in load(tmp_path, layers, **arrays).shapes
