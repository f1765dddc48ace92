"""Our own specifications and their weights, spoilt."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.hostile.archives import bombs, zipped
from tests.hostile.files import (
    HOSTILE_NAMES,
    Maker,
    Makers,
    damaged,
    no_files,
    normal,
    pickled,
)

SPEC: Mapping[str, Any] = {
    "network": {"name": "net", "weights": "net.npz", "input": {"shape": [6, 6, 2], "range": [0.0, 1.0]}},
    "layer": [
        {"name": "first", "op": "conv2d", "padding": "same"},
        {"name": "bend", "op": "relu"},
        {"name": "last", "op": "dense"},
    ],
}
Tree = dict[str, Any]


def spec_arrays() -> dict[str, NDArray[Any]]:
    return {"first.w": normal(3, 3, 3, 2), "first.b": normal(3), "last.w": normal(2, 108)}


@cache
def npz(**changed: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **spec_arrays())
    return stream.getvalue()


def toml(tree: Mapping[str, Any]) -> str:
    """Enough TOML for `SPEC`."""

    def value(one: Any) -> str:
        if isinstance(one, dict):
            return "{ " + ", ".join(f"{key} = {value(item)}" for key, item in one.items()) + " }"
        return json.dumps(one)

    lines = ["[network]", *(f"{key} = {value(one)}" for key, one in tree["network"].items())]
    for layer in tree["layer"]:
        lines += ["[[layer]]", *(f"{key} = {value(one)}" for key, one in layer.items())]
    return "\n".join(lines) + "\n"


def _layer(at: int, **fields: Any) -> Callable[[Tree], None]:
    return lambda tree: tree["layer"][at].update(fields)


def _network(**fields: Any) -> Callable[[Tree], None]:
    return lambda tree: tree["network"].update(fields)


def _image(**fields: Any) -> Callable[[Tree], None]:
    return lambda tree: tree["network"]["input"].update(fields)


SPEC_CHANGES: Mapping[str, Callable[[Tree], object]] = {
    "negative size": _image(shape=[6, -6, 2]),
    "no size": _image(shape=[0, 6, 2]),
    "huge size": _image(shape=[1 << 40, 1 << 40, 2]),
    "a size beyond 64 bits": _image(shape=[10**40, 6, 2]),
    "four sizes": _image(shape=[6, 6, 2, 1]),
    "a size that is true": _image(shape=[True, 6, 2]),
    "a range upside down": _image(range=[1.0, 0.0]),
    "a range beyond all numbers": _image(range=[-1e300, 1e308]),
    "a loop": _layer(0, input="bend"),
    "a layer that reads itself": _layer(1, input="bend"),
    "a layer that reads nothing": _layer(1, input="nobody"),
    "an output that is none": _network(outputs=["nobody"]),
    "an output twice": _network(outputs=["last", "last"]),
    "a name twice": _layer(1, name="first"),
    "a name in other letters": _layer(1, name="FIRST"),
    "the input's name": _layer(1, name="input"),
    "no layers": lambda tree: tree.update(layer=[]),
    "too many layers": lambda tree: tree.update(layer=[{"name": f"r{n}", "op": "relu"} for n in range(9_000)]),
    "stride 0": _layer(0, stride=[0, 1]),
    "stride huge": _layer(0, stride=[1 << 62, 1]),
    "padding negative": _layer(0, padding=[[-1, 0], [0, 0]]),
    "padding huge": _layer(0, padding=[[1 << 20, 1 << 20], [1 << 20, 1 << 20]]),
    "weights outside": _network(weights="../net.npz"),
    "weights absolute": _network(weights="/etc/passwd"),
    "weights a device": _network(weights="/dev/zero"),
    "weights a NUL": _network(weights="n\0t.npz"),
    "weights itself": _network(weights="net.json"),
    "an unknown field": _layer(0, exec="import os"),
    "an unknown operator": _layer(0, op="__import__"),
}


def spec_makers(kind: str) -> Makers:
    write: Callable[[Mapping[str, Any]], str] = toml if kind == "toml" else json.dumps
    broken = damaged(write(SPEC).encode())
    makers = {name: partial(_with_weights, maker) for name, maker in broken.items()} | no_files(f".{kind}")

    def changed(change: Callable[[Tree], object], folder: Path) -> bytes:
        (folder / "net.npz").write_bytes(npz())
        tree = json.loads(json.dumps(SPEC))
        change(tree)
        return write(tree).encode()

    makers |= {name: partial(changed, change) for name, change in SPEC_CHANGES.items()}
    for number, name in enumerate(HOSTILE_NAMES[:12]):
        makers[f"name {number} of a layer"] = partial(changed, _layer(2, name=name))
    depth = 100_000
    makers |= {
        "deep lists": lambda folder: {"toml": b"x = " + b"[" * depth, "json": b"[" * depth}[kind],
        "deep tables": lambda folder: {"toml": b"x = " + b"{x=" * depth, "json": b'{"x":' * depth}[kind],
        "a key of many dots": lambda folder: {"toml": b"x." * depth + b"x = 1", "json": b'{"' + b"x." * depth + b'": 1}'}[kind],
        "a number of many digits": lambda folder: {"toml": b"x = " + b"9" * depth, "json": b"[" + b"9" * depth + b"]"}[kind],
        "a key twice": lambda folder: {"toml": b"x = 1\nx = 1", "json": b'{"x": 1, "x": 1}'}[kind],
        "not text": lambda folder: b"\xff\xfe\0x",
        "lone surrogates": lambda folder: {"toml": b'"\\ud800" = 1', "json": b'{"\\ud800": 1}'}[kind],
    }
    return makers


def _with_weights(maker: Maker, folder: Path) -> bytes | Path:
    (folder / "net.npz").write_bytes(npz())
    return maker(folder)


def _with_spec(maker: Maker, folder: Path) -> Path:
    """The weights that ``maker`` makes, read by way of a sound specification."""
    (folder / "net.toml").write_text(toml(SPEC), encoding="utf-8")
    made = maker(folder)
    if isinstance(made, bytes):
        (folder / "net.npz").write_bytes(made)
    elif os.path.lexists(made):
        made.rename(folder / "net.npz")
    return folder / "net.toml"


def array(shape: str, kind: str = "<f4", data: bytes = bytes(216)) -> bytes:
    """An ``.npy`` whose header says anything."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def npz_makers() -> Makers:
    def replaced(data: bytes | Callable[[Path], bytes]) -> Maker:
        rest = {f"{name}.npy": _npy(one) for name, one in spec_arrays().items()}
        return lambda folder: zipped({**rest, "first.w.npy": data(folder) if callable(data) else data})

    def link(folder: Path) -> Path:
        outside = folder.parent / "outside.npz"
        outside.write_bytes(npz())
        (folder / "link").symlink_to(outside)
        return folder / "link"

    infinite, nan, signalling = normal(3, 3, 3, 2), normal(3, 3, 3, 2), np.full((3, 3, 3, 2), 0x7F800001, "<u4")
    infinite[0, 0, 0, 0], nan[1, 1, 1, 1] = np.inf, np.nan
    arrays = {f"{name}.npy": _npy(one) for name, one in spec_arrays().items()}
    makers = {
        **{name: maker for name, maker in no_files(".npz").items() if "name" not in name},
        **damaged(npz()),
        **bombs(arrays, "first.w.npy"),
        "a link out": link,
        "infinity": replaced(_npy(infinite)),
        "NaN": replaced(_npy(nan)),
        "signalling NaN": replaced(array("(3, 3, 3, 2)", data=signalling.tobytes())),
        "a negative size": replaced(array("(-3, -3, 3, 2)")),
        "a huge shape": replaced(array("(1 << 40, 3, 3, 2)")),
        "a shape beyond 64 bits": replaced(array("(3000000000000000000000000, 3, 3, 2)")),
        "no elements": replaced(array("(0, 3, 3, 2)", data=b"")),
        "another shape": replaced(array("(3, 3, 2, 3)")),
        "a shape that lies": replaced(array("(300, 3, 3, 2)")),
        "200 axes": replaced(array(f"({'1, ' * 200})")),
        "a program as shape": replaced(array("__import__('os').system('true')")),
        "a deep header": replaced(array("(" * 5000)),
        "complex numbers": replaced(array("(3, 3, 3, 2)", "<c8", bytes(432))),
        "objects": replaced(lambda folder: array("(1,)", "|O", pickled(folder))),
        "a pickle": replaced(pickled),
        "a pickle alone": pickled,
        "an array more": lambda folder: zipped(arrays | {"more.npy": _npy(normal(1))}),
        "an array less": lambda folder: zipped({name: data for name, data in arrays.items() if name != "first.w.npy"}),
    }
    return {name: partial(_with_spec, maker) for name, maker in makers.items()}


def _npy(values: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()
