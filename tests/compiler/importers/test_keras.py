"""Keras files against Keras itself, on a real model and on small ones; hostile files of both formats."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import Graph, Softmax
from convfold.compiler.importers.keras import read_keras
from convfold.compiler.importers.tflite import read_tflite
from convfold.compiler.numbers import RealArray

h5py = pytest.importorskip("h5py", reason="needs h5py")

TOLERANCE = 1e-5
"""Keras computes in float32, the graph in float64."""


def computed(graph: Graph, x_bhwc: RealArray, output: str | None = None) -> RealArray:
    name = output or graph.outputs[0]
    y = evaluate(graph, x_bhwc)[name]
    if name in dict(graph.heads):
        y = np.exp(y - y.max(axis=-1, keepdims=True))
        y /= y.sum(axis=-1, keepdims=True)
    return y


# ------------------------------------------------------------------------------------------------------ real model


def test_resnet8(models_dir: Path) -> None:
    """76.2 % on all 1,000 images, and the numbers of the float tflite file of the same network."""
    folder = models_dir / "mlperf_resnet8"
    graph = read_keras(folder / "pretrainedResnet.h5", (0.0, 255.0))
    other = read_tflite(folder / "pretrainedResnet.tflite", (0.0, 255.0))
    data = np.load(models_dir / "data_cifar10" / "cifar10_test_1k_jpeg.npz")
    x_bhwc, labels = data["x_uint8"][::5].astype(np.float64), data["y"][::5]
    logits = evaluate(graph, x_bhwc)[graph.outputs[0]].reshape(len(labels), 10)
    assert np.abs(logits[:10] - evaluate(other, x_bhwc[:10])[other.outputs[0]].reshape(10, 10)).max() <= TOLERANCE
    assert dict(graph.heads) == {graph.outputs[0]: Softmax()}
    assert 0.72 <= (logits.argmax(axis=1) == labels).mean() <= 0.80


# -------------------------------------------------------------------------------------------------- small networks


@pytest.fixture(scope="session")
def keras() -> Any:
    pytest.importorskip("torch", reason="needs torch, behind keras")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    module = pytest.importorskip("keras", reason="needs keras")
    module.utils.set_random_seed(0)
    return module


def settled(model: Any, rng: np.random.Generator) -> Any:
    """The model with weights that all matter; variances stay positive."""
    for variable in model.variables:
        spread = rng.normal(0.0, 0.4, variable.shape)
        variable.assign(np.abs(spread) + 0.5 if "variance" in variable.name else spread)
    return model


def convolutions(L: Any) -> list[Any]:
    return [
        L.Input((9, 8, 4)),
        L.Conv2D(6, (3, 2), strides=(2, 1), padding="same", groups=2, activation="relu"),
        L.DepthwiseConv2D((3, 3), padding="same", depth_multiplier=2, dilation_rate=2),
        L.BatchNormalization(scale=False),
        L.SeparableConv2D(5, 3, padding="same", depth_multiplier=2, activation="tanh"),
        L.BatchNormalization(center=False, epsilon=0.1),
        L.Conv2DTranspose(3, 3, strides=2, padding="same", activation="sigmoid"),
        L.Conv2DTranspose(4, (2, 3), strides=(3, 1), use_bias=False),
        L.PReLU(shared_axes=[1, 2]),
    ]


def activations(L: Any) -> list[Any]:
    names = "leaky_relu relu6 hard_sigmoid hard_silu silu selu elu gelu softplus softsign linear exponential".split()
    layers = [layer for name in names for layer in (L.Activation(name), L.Rescaling(1.5, -0.75))]
    more = [L.ReLU(2.0, 0.1), L.LeakyReLU(0.3), L.ELU(0.7), L.ReLU(), L.Rescaling([1.0, 2.0, -1.0], [0.5, 0.0, 1.0])]
    return [L.Input((4, 5, 3)), *layers, *more]


def pools(L: Any) -> list[Any]:
    return [
        L.Input((12, 11, 3)),
        L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 0.5]),
        L.ZeroPadding2D(((1, 0), (2, 1))),
        L.MaxPooling2D(3, strides=2, padding="same"),
        L.AveragePooling2D(3, strides=1, padding="same"),
        L.UpSampling2D((2, 1)),
        L.Cropping2D(((1, 2), (0, 1))),
        L.SpatialDropout2D(0.2),
        L.GlobalAveragePooling2D(keepdims=True),
        L.Conv2D(4, 1),
        L.Reshape((2, -1)),
        L.Permute((1, 2)),
        L.Flatten(),
        L.Dense(5, activation="relu"),
        L.Dropout(0.5),
        L.Dense(3),
        L.Softmax(),
    ]


def rows(L: Any) -> list[Any]:
    return [
        L.Input((20, 3)),
        L.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu"),
        L.SeparableConv1D(6, 3, padding="same"),
        L.MaxPooling1D(2),
        L.ZeroPadding1D((1, 2)),
        L.DepthwiseConv1D(3, padding="valid"),
        L.AveragePooling1D(2, strides=1),
        L.Conv1DTranspose(4, 4, strides=2, padding="same"),
        L.UpSampling1D(2),
        L.Cropping1D(1),
        L.Dense(5, activation="tanh"),
        L.GlobalMaxPooling1D(),
        L.Dense(2, activation="softmax"),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("layers", [convolutions, activations, pools, rows])
def test_sequential(
    layers: Callable[[Any], list[Any]], suffix: str, keras: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    model = settled(keras.Sequential(layers(keras.layers)), rng)
    assert_equal(model, tmp_path / f"net{suffix}", rng)


def assert_equal(model: Any, path: Path, rng: np.random.Generator) -> Graph:
    """The saved model computes what Keras does, and keeps its range."""
    model.save(path)
    graph = read_keras(path, (-1.0, 2.0))
    assert (graph.name, graph.input.low, graph.input.high) == (path.stem, -1.0, 2.0)
    x = rng.uniform(-1.0, 2.0, (3, *model.input_shape[1:]))
    wanted = model(x.astype(np.float32), training=False)
    for output, one in zip(graph.outputs, wanted if isinstance(wanted, list) else [wanted], strict=True):
        numbers = one.detach().numpy().astype(np.float64)
        y = computed(graph, x.reshape(3, *graph.input.shape), output).reshape(numbers.shape)
        assert np.abs(y - numbers).max() <= TOLERANCE * max(1.0, np.abs(numbers).max())
    return graph


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_functional(suffix: str, keras: Any, rng: np.random.Generator, tmp_path: Path) -> None:
    """Branches, a shared layer, models within a model, broadcasts, arithmetic, two outputs."""
    L = keras.layers
    inner = keras.Sequential(
        [L.Input((8, 6, 4)), L.Conv2D(4, 3, padding="same", name="conv"), L.BatchNormalization()], name="inner"
    )
    entry = keras.Input((8, 6, 4))
    outer_conv = L.Conv2D(4, 1, activation="relu", name="conv")
    deep = keras.Model(entry, L.Add()([inner(entry), outer_conv(entry)]), name="deep")
    x = first = keras.Input((8, 6, 3))
    x = L.Conv2D(4, 1, name="front")(x)
    shared = L.Conv2D(4, 3, padding="same", name="shared")
    y = shared(L.ReLU()(shared(x)))
    gate = L.Dense(4, activation="hard_sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(deep(y)))
    z = L.Multiply()([y, gate])
    z = L.Subtract()([z, L.Average()([x, y, deep(x)])])
    z = L.Concatenate()([z, x + y])
    model = keras.Model(first, [L.Dense(3, activation="softmax")(L.Flatten()(z)), L.GlobalMaxPooling2D()(z)])
    graph = assert_equal(settled(model, rng), tmp_path / f"net{suffix}", rng)
    assert len(graph.outputs) == 2 and len(graph.heads) == 1


@pytest.mark.filterwarnings("ignore")
def test_learnt_normalization(keras: Any, rng: np.random.Generator, tmp_path: Path) -> None:
    layer = keras.layers.Normalization()
    layer.adapt(rng.normal(3.0, 2.0, (50, 4, 4, 2)))
    assert_equal(keras.Sequential([keras.Input((4, 4, 2)), layer]), tmp_path / "net.keras", rng)


# ------------------------------------------------------------------------------------- files that nothing has made

Layers = list[dict[str, Any]]
Arrays = Mapping[str, Any]


def layer(kind: str, name: str | None = None, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "module": "keras.layers", "config": {"name": name or kind.lower(), **config}}


def entry(*shape: int | None) -> dict[str, Any]:
    return layer("InputLayer", "x", batch_shape=[None, *shape])


def conv(name: str = "conv", **config: Any) -> dict[str, Any]:
    return layer("Conv2D", name, **{"filters": 2, "kernel_size": [3, 3], "activation": "relu", **config})


KERNEL = {"layers/conv2d/vars/0": np.ones((3, 3, 1, 2), np.float32), "layers/conv2d/vars/1": np.ones(2, np.float32)}
NET: Layers = [entry(8, 8, 1), conv()]


def hdf5(fill: Callable[[Any], None] | Arrays) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        if callable(fill):
            fill(file)
        else:
            for name, array in fill.items():
                file[name] = array
    return stream.getvalue()


def zipped(
    config: object,
    weights: Arrays | Callable[[Any], None] | bytes = KERNEL,
    how: int = 0,
    more: tuple[str, bytes] | None = None,
) -> bytes:
    """A ``.keras`` file; a list of layers is a Sequential model."""
    if isinstance(config, list):
        config = {"class_name": "Sequential", "module": "keras", "config": {"name": "net", "layers": config}}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        archive.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        archive.writestr("metadata.json", '{"keras_version": "3.1.0"}')
        archive.writestr("model.weights.h5", weights if isinstance(weights, bytes) else hdf5(weights))
        if more is not None:
            archive.writestr(*more)
    return stream.getvalue()


def plain(layers: Layers, arrays: Arrays, version: str = "2.4.0") -> bytes:
    """An ``.h5`` file of a Sequential model."""

    def fill(file: Any) -> None:
        file.attrs["keras_version"] = version
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"name": "net", "layers": layers}})
        for name, array in arrays.items():
            file[f"model_weights/{name}"] = array

    return hdf5(fill)


def functional(layers: Layers, outputs: object) -> dict[str, Any]:
    config = {"name": "net", "layers": layers, "input_layers": ["x", 0, 0], "output_layers": outputs}
    return {"class_name": "Functional", "module": "keras", "config": config}


def called(made: dict[str, Any], *inputs: Any, **kwargs: Any) -> dict[str, Any]:
    """A layer with one call in the form of Keras 2."""
    return {**made, "name": made["config"]["name"], "inbound_nodes": [[[*one, kwargs] for one in inputs]]}


def test_what_a_version_means(tmp_path: Path) -> None:
    """A hard sigmoid of Keras 2 is not that of Keras 3; names of weights are found in both."""
    path = tmp_path / "net.h5"
    layers = [
        entry(1, 1, 3),
        layer("DepthwiseConv2D", "d", kernel_size=[1, 1]),
        layer("Activation", "h", activation="hard_sigmoid"),
    ]
    x = np.array([[[[-2.0, 0.5, 1.0]]]])
    for version, kernel, slope in (("2.11.0", "depthwise_kernel", 0.2), ("3.0.1", "kernel", 1 / 6)):
        arrays = {f"d/d/{kernel}:0": np.ones((1, 1, 3, 1), np.float32), "d/d/bias:0": np.zeros(3, np.float32)}
        path.write_bytes(plain(layers, arrays, version))
        y = computed(read_keras(path), x)
        assert np.abs(y - np.clip(x * slope + 0.5, 0.0, 1.0)).max() <= 1e-12


def test_keras_is_not_needed(tmp_path: Path) -> None:
    """The graph of a file from its configuration alone, in the two ways in which calls are written."""
    path = tmp_path / "net.keras"
    calls = [{**entry(8, 8, 1), "inbound_nodes": []}, called(conv(), ["x", 0, 0])]
    path.write_bytes(zipped(functional(calls, [["conv", 0, 0]])))
    old = read_keras(path)
    path.write_bytes(zipped(NET))
    assert str(read_keras(path)) == str(old)
    assert [node.op for node in old.nodes] == ["input", "conv2d", "clip"]


def test_all_that_is_unsupported_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    layers = [
        entry(8, 8, 1),
        conv(activation="mish"),
        layer("Lambda", "evil", function={"class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAA"}}),
        layer("LSTM"),
        {**layer("Conv2D", "own"), "module": "mine", "registered_name": "Mine>Conv2D"},
        {**layer("Dense", "wrapped"), "registered_name": "Mine>Dense"},
    ]
    path.write_bytes(zipped(layers))
    with pytest.raises(CompileError) as caught:
        read_keras(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "net.keras: 5 nodes cannot be imported:"
    assert lines[1].startswith("  - net.keras: layer 'conv' (Conv2D) (8×8×1): the activation 'mish' is not supported; use elu")
    assert lines[2] == (
        "  - net.keras: layer 'evil' (Lambda): this layer is not supported; use a layer of Keras: code in a file is never run"
    )
    assert lines[3] == "  - net.keras: layer 'lstm' (LSTM): this layer is not supported; use convolutions"
    assert "this layer is not Keras's own (mine)" in lines[4] and "not Keras's own (registered)" in lines[5]


REFUSED: dict[str, tuple[Layers, str]] = {
    "channels first": (
        [entry(8, 8, 1), conv(data_format="channels_first")],
        "build the model with data_format='channels_last'",
    ),
    "softmax inside": ([*NET[:1], layer("Softmax"), layer("ReLU")], "let softmax be the last layer"),
    "softmax over rows": ([*NET[:1], layer("Softmax", axis=1)], "use axis=-1"),
    "slopes everywhere": ([*NET[:1], layer("PReLU", shared_axes=None)], "use PReLU(shared_axes=[1, 2])"),
    "bilinear": ([*NET[:1], layer("UpSampling2D", interpolation="bilinear")], "use 'nearest'"),
    "output padding": ([*NET[:1], {**conv(output_padding=[1, 1]), "class_name": "Conv2DTranspose"}], "leave both out"),
    "adapter": ([*NET[:1], conv(lora_rank=4)], "save the float model"),
    "quantized": ([*NET[:1], conv(quantization_config={})], "save the float model"),
    "threshold": ([*NET[:1], layer("ReLU", threshold=1.0)], "use threshold=0"),
    "permuted": ([entry(8, 8, 2), layer("Permute", dims=[3, 1, 2])], "leave the permutation out"),
    "rows normalized": ([*NET[:1], layer("BatchNormalization", axis=[1])], "use axis=-1"),
    "activation object": ([*NET[:1], layer("Activation", activation={"class_name": "Lambda"})], "name the activation"),
    "four dimensions": ([*NET[:1], layer("Reshape", target_shape=[2, 2, 4, 4])], "use at most (H, W, C)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, tmp_path: Path) -> None:
    layers, hint = REFUSED[name]
    path = tmp_path / "net.keras"
    path.write_bytes(zipped(layers))
    with pytest.raises(CompileError) as caught:
        read_keras(path)
    assert "1 node cannot be imported" in str(caught.value) and hint in str(caught.value)


# --------------------------------------------------------------------------------------------------- hostile files


def linked(link: Any) -> Callable[[Any], None]:
    def fill(file: Any) -> None:
        file["other"] = KERNEL["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/1"] = np.ones(2, np.float32)
        file["layers/conv2d/vars/0"] = link

    return fill


def stored(**how: Any) -> Callable[[Any], None]:
    """The kernel, stored in an odd way."""

    def fill(file: Any) -> None:
        file["layers/conv2d/vars/1"] = np.ones(2, np.float32)
        file.create_dataset("layers/conv2d/vars/0", **{"shape": (3, 3, 1, 2), "dtype": "f4", **how})

    return fill


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3, 3, 1, 2), "f4")
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", (3, 3, 1, 2))
    file["layers/conv2d/vars/1"] = np.ones(2, np.float32)
    file.create_virtual_dataset("layers/conv2d/vars/0", layout)


def circular(file: Any) -> None:
    """A group that contains itself."""
    file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": NET}})
    group = file.create_group("model_weights/conv")
    group["a"], group["b"] = group, group


def changed(name: str, value: Any) -> dict[str, Any]:
    return {**KERNEL, f"layers/conv2d/vars/{name}": value}


def nested(depth: int) -> Layers:
    layers = [conv()]
    for at in range(depth):
        layers = [{"class_name": "Sequential", "module": "keras", "config": {"name": f"m{at}", "layers": layers}}]
    return [entry(8, 8, 1), *layers]


def repeated(depth: int) -> Layers:
    """Models within models, each called twice: layers double at every level."""
    inner: dict[str, Any] = {"class_name": "Sequential", "module": "keras", "config": {"name": "m", "layers": [layer("ReLU")]}}
    for _ in range(depth):
        twin = {**inner, "config": {**inner["config"], "name": "twin"}}
        inner = {"class_name": "Sequential", "module": "keras", "config": {"name": "m", "layers": [inner, twin]}}
    return [entry(8, 8, 1), inner]


DENSE = [entry(4), layer("Dense", units=1 << 20)]
BOMB: dict[str, Any] = {"filters": 1 << 20, "kernel_size": [1 << 20, 1 << 20]}
LOOP = [{**entry(8, 8, 1)}, called(layer("ReLU", "a"), ["b", 0, 0]), called(layer("ReLU", "b"), ["a", 0, 0])]

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is neither a zip archive nor an HDF5 file"),
    "garbage": (lambda: bytes(range(256)) * 9, "is neither a zip archive nor an HDF5 file"),
    "pickle": (lambda: b"\x80\x04cos\nsystem\n(S'touch evil'\ntR.", "is neither a zip archive nor an HDF5 file"),
    "zip garbage": (lambda: b"PK\x03\x04" + bytes(range(256)) * 9, "is no sound zip archive"),
    "hdf5 garbage": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 9, "is no sound HDF5 file"),
    "truncated zip": (lambda: zipped(NET)[:-40], "is no sound zip archive"),
    "truncated hdf5": (lambda: plain(NET, {})[:-900], "is no sound HDF5 file"),
    "truncated inside": (lambda: zipped(NET, hdf5(KERNEL)[:1500]), "is no sound HDF5 file"),
    "bomb": (lambda: zipped(NET, how=zipfile.ZIP_DEFLATED, more=("x", bytes(1 << 25))), "would unpack to"),
    "twice": (lambda: twice(), "is there twice"),
    "no config": (lambda: other_zip(), "must contain 'config.json'"),
    "config list": (lambda: zipped(b"[]"), "must be a mapping"),
    "broken config": (lambda: zipped(b'{"class_name": '), "is no JSON"),
    "deep config": (lambda: zipped(b"[" * 100_000), "is no JSON"),
    "huge config": (lambda: zipped(b"[" * ((1 << 23) + 1)), "must not exceed"),
    "long number": (lambda: zipped(b"1" * 5000), "is no JSON"),
    "subclass": (lambda: zipped({"class_name": "Mine", "config": {}}), "is no Sequential or Functional model"),
    "subclass of ours": (lambda: zipped({"class_name": "Model", "module": "os", "config": {}}), "is no Sequential"),
    "weights alone": (lambda: hdf5({"dense/kernel": np.ones(3)}), "holds weights, but no network"),
    "shards": (lambda: zipped(NET, more=("model.weights.json", b"{}")), "spread over several files"),
    "no layers": (lambda: zipped([]), "must have layers"),
    "layer list": (lambda: zipped([entry(8, 8, 1), 3]), "a layer must be a mapping, not 3"),
    "no shape": (lambda: zipped([conv()]), "must have an input shape"),
    "open shape": (lambda: zipped([entry(None, 8, 1), conv()]), "its shape must be a batch"),
    "huge shape": (lambda: zipped([entry(1 << 30, 1 << 30, 1), conv()]), "elements"),
    "negative shape": (lambda: zipped([entry(-8, 8, 1), conv()]), "sizes from 1"),
    "one name": (lambda: zipped([entry(8, 8, 1), conv(), conv()]), "two layers of one name"),
    "no such layer": (lambda: zipped(functional([entry(8, 8, 1)], ["a", 0, 0])), "'a', which is not there"),
    "circle": (lambda: zipped(functional(LOOP, ["b", 0, 0])), "in a circle"),
    "references": (lambda: zipped(functional([entry(8, 8, 1)], {"a": 3})), "its connections must be layers and numbers"),
    "constant": (
        lambda: zipped(functional([entry(8, 8, 1), {**layer("ReLU"), "inbound_nodes": [{"args": [3.0]}]}], ["relu", 0, 0])),
        "is called with 3.0, which is no tensor",
    ),
    "deep models": (lambda: zipped(nested(40)), "models are nested too deep"),
    "doubled models": (lambda: zipped(repeated(14)), "must not have more than"),
    "filters": (lambda: zipped([NET[0], conv(**BOMB)]), "must have shape"),
    "strides": (lambda: zipped([NET[0], conv(strides=[0, 1])]), "strides must be 2 numbers from 1"),
    "kernel text": (lambda: zipped([NET[0], conv(kernel_size="os.system")]), "kernel_size must be whole numbers"),
    "groups": (lambda: zipped([NET[0], conv(groups=0)]), "groups must be a divisor of 1 channels"),
    "dense bomb": (lambda: zipped(DENSE, {}), "the file holds no weights 'layers'"),
    "upsampling bomb": (lambda: zipped([NET[0], layer("UpSampling2D", size=[1 << 20, 1 << 20])]), "elements"),
    "padding bomb": (lambda: zipped([NET[0], layer("ZeroPadding2D", padding=[[1 << 40] * 2] * 2)]), "pairs of numbers"),
    "epsilon": (lambda: zipped([NET[0], layer("Rescaling", scale=1e999)]), "must hold numbers up to"),
    "scale": (lambda: zipped([NET[0], layer("Rescaling", scale=["a"])]), "scale must be numbers"),
    "wrong shape": (lambda: zipped(NET, changed("0", np.ones((3, 3, 2, 1), "f4"))), "kernel must have shape [3, 3, 1, 2]"),
    "no bias": (lambda: zipped(NET, {"layers/conv2d/vars/0": KERNEL["layers/conv2d/vars/0"]}), "but the file holds 1"),
    "too many": (lambda: zipped(NET, changed("2", np.ones(2))), "but the file holds 3"),
    "not a number": (lambda: zipped(NET, changed("1", np.array([1, np.nan], "f4"))), "bias must hold numbers up to"),
    "infinite": (lambda: zipped(NET, changed("1", np.array([1, np.inf], "f4"))), "bias must hold numbers up to"),
    "complex": (lambda: zipped(NET, changed("1", np.ones(2, "c8"))), "must hold real numbers"),
    "strings": (lambda: zipped(NET, changed("1", np.array([b"a", b"b"], "O"))), "must hold real numbers"),
    "compound": (lambda: zipped(NET, changed("1", np.zeros(2, [("a", "f4")]))), "must hold real numbers"),
    "group": (lambda: zipped(NET, group_for_bias), "is no dataset"),
    "soft link": (lambda: zipped(NET, linked(h5py.SoftLink("/other"))), "is a link"),
    "dangling link": (lambda: zipped(NET, linked(h5py.SoftLink("/nowhere"))), "is a link"),
    "external link": (lambda: zipped(NET, linked(h5py.ExternalLink("/etc/passwd", "x"))), "is a link"),
    "external data": (lambda: zipped(NET, stored(external=[("/etc/passwd", 0, 72)])), "lies in another file"),
    "virtual data": (lambda: zipped(NET, virtual), "lies in another file"),
    "huge chunk": (
        lambda: zipped(NET, stored(chunks=(1 << 9, 1 << 9, 1 << 8, 2), maxshape=(None,) * 4, compression="gzip")),
        "too many",
    ),
    "huge dataset": (lambda: zipped(NET, stored(shape=(1 << 20, 1 << 20, 9, 9), chunks=True)), "must have shape"),
    "circular groups": (lambda: hdf5(circular), "too many, or nested too deep"),
    "other layer": (lambda: zipped(NET, of_another), "the weights in its place are those of 'other'"),
    "weights of a name": (lambda: plain(NET, {"conv/conv/kernel:0": KERNEL["layers/conv2d/vars/0"]}), "no weight 'bias'"),
}


def twice() -> bytes:
    data = zipped(NET, more=("metadata2json", b""))
    return data.replace(b"metadata2json", b"metadata.json")


def other_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "a")
    return stream.getvalue()


def group_for_bias(file: Any) -> None:
    file["layers/conv2d/vars/0"] = KERNEL["layers/conv2d/vars/0"]
    file.create_group("layers/conv2d/vars/1")


def of_another(file: Any) -> None:
    for name, array in KERNEL.items():
        file[name] = array
    file["layers/conv2d/vars"].attrs["name"] = "other"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, text = HOSTILE[name]
    path = tmp_path / "net.keras"
    path.write_bytes(make())
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    with pytest.raises(CompileError) as caught:
        read_keras(path)
    assert time.process_time() - start < 2.0
    assert text in str(caught.value), str(caught.value)
    assert str(caught.value).replace("\n", "").isprintable()
    assert [one.name for one in tmp_path.iterdir()] == ["net.keras"]


@pytest.mark.parametrize("make", [lambda: zipped(NET), lambda: plain(NET, {f"conv/{k}": v for k, v in KERNEL.items()})])
def test_changed_bytes(make: Callable[[], bytes], tmp_path: Path, rng: np.random.Generator) -> None:
    """Either the file is still a network, or it is refused: nothing else happens."""
    path = tmp_path / "net.keras"
    sound = make()
    for _ in range(60):
        data = bytearray(sound)
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(len(data) // 2, len(data))] if rng.random() < 0.3 else data)
        try:
            assert isinstance(read_keras(path), Graph)
        except CompileError as error:
            assert str(error).startswith("net.keras: ")
