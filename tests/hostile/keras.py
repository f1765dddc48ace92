"""A small Keras network as ``.keras`` and ``.h5``, and its spoilt files; Keras is not needed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.hostile.archives import bombs, zipped
from tests.hostile.files import (
    HOSTILE_NAMES,
    TRAP,
    Makers,
    damaged,
    no_files,
    normal,
    pickled,
    rng,
    spoilt,
)

Config = dict[str, Any]


def keras_config() -> Config:
    def layer(kind: str, **config: Any) -> Config:
        return {"module": "keras.layers", "class_name": kind, "registered_name": None, "config": config}

    shape = {"batch_shape": [None, 6, 6, 2], "name": "image", "dtype": "float32"}
    layers = [
        layer("InputLayer", **shape),
        layer("Conv2D", name="conv", filters=3, kernel_size=[3, 3], strides=[1, 1], padding="valid", activation="relu"),
        layer("Flatten", name="flat"),
        layer("Dense", name="dense", units=4, activation="softmax"),
    ]
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "net", "layers": layers}, "registered_name": None}


KERAS_WEIGHTS: Mapping[tuple[str, int, str], tuple[int, ...]] = {
    ("conv", 0, "kernel"): (3, 3, 2, 3),
    ("conv", 1, "bias"): (3,),
    ("dense", 0, "kernel"): (48, 4),
    ("dense", 1, "bias"): (4,),
}
GROUPS = {"conv": "conv2d", "dense": "dense"}
FileChange = Callable[[h5py.File, str, Path], object]
"""What is done to the HDF5 file; the path of the convolution's kernel in it; the folder."""


def hdf5(config: Config | str | None, change: FileChange, folder: Path) -> bytes:
    """A ``.h5`` file, or with no configuration the weights of a ``.keras`` archive."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for (layer, number, part), shape in KERAS_WEIGHTS.items():
            numbered, named = f"layers/{GROUPS[layer]}/vars/{number}", f"model_weights/{layer}/{layer}/{part}:0"
            file[numbered if config is None else named] = normal(*shape)
        if config is not None:
            file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
            file.attrs["keras_version"] = "2.15.0"
        change(file, "layers/conv2d/vars/0" if config is None else "model_weights/conv/conv/kernel:0", folder)
    return stream.getvalue()


def _kernel(value: Any) -> FileChange:
    def change(file: h5py.File, kernel: str, folder: Path) -> None:
        del file[kernel]
        file[kernel] = value(folder) if callable(value) else value

    return change


def _dataset(shape: tuple[int, ...] = (3, 3, 2, 3), dtype: str = "f4", **options: Any) -> FileChange:
    def change(file: h5py.File, kernel: str, folder: Path) -> None:
        del file[kernel]
        file.create_dataset(kernel, shape, dtype, **options)

    return change


def _foreign(folder: Path) -> Path:
    """A file that is not the model's, with the very weights."""
    with h5py.File(folder.parent / "outside.h5", "w") as file:
        file["kernel"] = normal(3, 3, 2, 3)
    (folder.parent / "outside.bin").write_bytes(normal(3, 3, 2, 3).tobytes())
    return folder.parent / "outside.h5"


def _virtual(file: h5py.File, kernel: str, folder: Path) -> None:
    layout = h5py.VirtualLayout((3, 3, 2, 3), "f4")
    layout[:] = h5py.VirtualSource(str(_foreign(folder)), "kernel", (3, 3, 2, 3))
    del file[kernel]
    file.create_virtual_dataset(kernel, layout)


def _external_bytes(file: h5py.File, kernel: str, folder: Path) -> None:
    outside = str(_foreign(folder).with_suffix(".bin"))
    del file[kernel]
    file.create_dataset(kernel, (3, 3, 2, 3), "f4", external=[(outside, 0, 216)])


def _self_group(file: h5py.File, kernel: str, folder: Path) -> None:
    group = file[kernel].parent
    group["again"] = group


FILE_CHANGES: Mapping[str, FileChange] = {
    "NaN": _kernel(spoilt(normal(3, 3, 2, 3), np.nan)),
    "infinity": _kernel(spoilt(normal(3, 3, 2, 3), np.inf)),
    "another shape": _kernel(normal(3, 3, 3, 2)),
    "no elements": _kernel(normal(0, 3, 2, 3)),
    "a scalar": _kernel(np.float32(1)),
    "text as weights": _kernel(np.array([b"x"] * 54).reshape(3, 3, 2, 3)),
    "complex weights": _kernel(normal(3, 3, 2, 3).astype(np.complex64)),
    "a dataset of a tebibyte": _dataset((1 << 20, 1 << 10, 1 << 8), chunks=(1 << 10, 1 << 8, 1 << 4)),
    "a chunk of a gibibyte": _dataset(maxshape=(None,) * 4, chunks=(1 << 10, 1 << 10, 1 << 4, 1 << 4), compression="gzip"),
    "a virtual dataset": _virtual,
    "bytes of another file": _external_bytes,
    "a link to another file": _kernel(lambda folder: h5py.ExternalLink(str(_foreign(folder)), "kernel")),
    "a soft link": lambda file, kernel, folder: (
        file.move(kernel, "elsewhere"),
        file.__setitem__(kernel, h5py.SoftLink("/elsewhere")),
    ),
    "a link to nowhere": _kernel(h5py.SoftLink("/nowhere")),
    "a link to itself": lambda file, kernel, folder: _kernel(h5py.SoftLink(f"/{kernel}"))(file, kernel, folder),
    "a group as weights": lambda file, kernel, folder: (file.__delitem__(kernel), file.create_group(kernel)),
    "a group in itself": _self_group,
    "weights missing": lambda file, kernel, folder: file.__delitem__(kernel),
    "all weights missing": lambda file, kernel, folder: file.__delitem__(kernel.split("/")[0]),
    "half a number": _dataset(dtype="f2"),
}


def _conv(**fields: Any) -> Callable[[Config], None]:
    return lambda config: config["config"]["layers"][1]["config"].update(fields)


def _class(**fields: Any) -> Callable[[Config], None]:
    return lambda config: config["config"]["layers"][1].update(fields)


def _lambda(command: str) -> Callable[[Config], None]:
    code = {"class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAA", "defaults": None, "closure": None}}
    return _class(class_name="Lambda", config={"name": "lambda", "function": code, "arguments": {"command": command}})


def _functional(calls: Mapping[str, list[Any]]) -> Callable[[Config], None]:
    """The layers connected anew, each to those it reads."""

    def change(config: Config) -> None:
        config["class_name"] = "Functional"
        for layer in config["config"]["layers"]:
            name = layer["config"]["name"]
            layer["name"] = name
            layer["inbound_nodes"] = [[[source, 0, 0, {}] for source in calls[name]]] if calls.get(name) else []
        config["config"] |= {"input_layers": [["image", 0, 0]], "output_layers": [["dense", 0, 0]]}

    return change


CONFIG_CHANGES: Mapping[str, Callable[[Config], object]] = {
    "a Lambda": _lambda(f"touch {TRAP}"),
    "a class of somebody's": _class(module="evil", class_name="Evil", registered_name="evil>Evil"),
    "a class of Python's": _class(module="os", class_name="system", config={"name": "conv", "command": f"touch {TRAP}"}),
    "a class of Keras's that runs code": _class(class_name="TFSMLayer", config={"name": "conv", "filepath": "."}),
    "a function of Python's": _conv(activation={"module": "builtins", "class_name": "function", "config": "exec"}),
    "an activation unknown": _conv(activation="os.system"),
    "an activation that is a list": _conv(activation=[["relu"]]),
    "filters negative": _conv(filters=-3),
    "no filters": _conv(filters=0),
    "filters huge": _conv(filters=1 << 62),
    "filters a text": _conv(filters="3"),
    "a kernel of no size": _conv(kernel_size=[0, 3]),
    "a kernel huge": _conv(kernel_size=[1 << 40, 3]),
    "strides 0": _conv(strides=[0, 1]),
    "strides of floats": _conv(strides=[1.5, 1]),
    "groups 0": _conv(groups=0),
    "groups negative": _conv(groups=-1),
    "dilation huge": _conv(dilation_rate=[1 << 62, 1]),
    "padding unknown": _conv(padding="whatever"),
    "channels first": _conv(data_format="channels_first"),
    "no name": _conv(name=None),
    "a name that is a list": _conv(name=["conv"]),
    "a name twice": _conv(name="dense"),
    "a name that leaves": _conv(name="../../conv"),
    "no layers": lambda config: config["config"].update(layers=[]),
    "layers of text": lambda config: config["config"].update(layers="layers"),
    "10,000 layers": lambda config: config["config"]["layers"].extend(
        {"class_name": "Dropout", "config": {"name": f"d{n}"}} for n in range(20_000)
    ),
    "a model in a model in a model": lambda config: _wrapped(config, 200),
    "a model that is a list": lambda config: config.update(config=[[]]),
    "another class": lambda config: config.update(class_name="Evil"),
    "an input of no size": lambda config: config["config"]["layers"][0]["config"].update(batch_shape=[None, 0, 6, 2]),
    "an input negative": lambda config: config["config"]["layers"][0]["config"].update(batch_shape=[None, -6, 6, 2]),
    "an input huge": lambda config: config["config"]["layers"][0]["config"].update(batch_shape=[None, 1 << 40, 1 << 40, 2]),
    "an input of NaN": lambda config: config["config"]["layers"][0]["config"].update(batch_shape=[None, float("nan"), 6, 2]),
    "no input": lambda config: config["config"]["layers"].pop(0),
    "a loop": _functional({"conv": ["dense"], "flat": ["conv"], "dense": ["flat"]}),
    "a layer that reads itself": _functional({"conv": ["conv"], "flat": ["conv"], "dense": ["flat"]}),
    "a layer that reads nothing": _functional({"conv": ["nobody"], "flat": ["conv"], "dense": ["flat"]}),
    "connections that are none": _functional({"conv": [7], "flat": ["conv"], "dense": ["flat"]}),
    "batch norm of a negative epsilon": _class(class_name="BatchNormalization", config={"name": "conv", "epsilon": -1.0}),
}


def _wrapped(config: Config, depth: int) -> None:
    inner = dict(config)
    for n in range(depth):
        inner = {"class_name": "Sequential", "config": {"name": f"m{n}", "layers": [inner]}}
    config |= inner


def keras_file(config: Config | str, change: FileChange, folder: Path) -> bytes:
    text = config if isinstance(config, str) else json.dumps(config)
    return zipped(
        {
            "metadata.json": b'{"keras_version": "3.0.0"}',
            "config.json": text.encode(),
            "model.weights.h5": hdf5(None, change, folder),
        }
    )


def nothing(*args: object) -> None:
    """Leaves things as they are."""


def keras_makers(suffix: str) -> Makers:
    write = keras_file if suffix == ".keras" else hdf5
    sound = write(keras_config(), nothing, Path())

    def changed(change: Callable[[Config], object], folder: Path) -> bytes:
        config = keras_config()
        change(config)
        return write(config, nothing, folder)

    makers = damaged(sound) | no_files(suffix)
    makers |= {name: partial(changed, change) for name, change in CONFIG_CHANGES.items()}
    makers |= {f"weights: {name}": partial(write, keras_config(), change) for name, change in FILE_CHANGES.items()}
    for number, name in enumerate(HOSTILE_NAMES[::6]):
        makers[f"name {number} of a layer"] = partial(changed, _conv(name=name))
    makers |= {
        "deep JSON": partial(write, "[" * 100_000, nothing),
        "deep tables": partial(write, '{"config":' * 100_000, nothing),
        "JSON of 9 MB": partial(write, " " * 9_000_000, nothing),
        "no JSON": partial(write, "{", nothing),
        "a number": partial(write, "5", nothing),
        "a number of many digits": partial(write, "9" * 100_000, nothing),
        "a pickle": pickled,
        "a soft spot of HDF5": lambda folder: b"\x89HDF\r\n\x1a\n" + rng().bytes(2000),
    }
    if suffix == ".keras":
        members = {"config.json": json.dumps(keras_config()).encode(), "model.weights.h5": hdf5(None, nothing, Path())}
        makers |= {f"zip: {name}": maker for name, maker in bombs(members, "model.weights.h5").items()}
        makers |= {f"zip, configuration: {name}": maker for name, maker in bombs(members, "config.json").items()}
    return makers
