"""Files that mean harm: small sound models of every kind that is read, and hundreds of ways to spoil them.

A `Maker` writes whatever it needs into an empty folder, which it may name, and gives the file to read, or its bytes. Most must be
refused; those of `HARMLESS` may also be read, for a damaged weight is a weight. ``TRAP`` is the file that code in a model would
make if it ran.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.tflite_writer import Writer

TRAP = "trap"
Maker = Callable[[Path], "bytes | Path"]
Makers = dict[str, Maker]

FLIPS, CUTS = 10, 4
"""Files of each kind with random bits flipped, and cut short."""

HARMLESS = ("bits", "name", "ones in the middle", "beta huge", "weight scale huge", "zero point of another type", "no name", "half a number")
"""Words in the names of those that may be read: what is damaged or strange there may be a weight, a gap or a name."""

KINDS = ("toml", "json", "npz", "tflite", "onnx", "quantized", "keras", "h5", "pt2", "pth")

SUFFIXES: Mapping[str, str] = {"npz": ".toml", "quantized": ".onnx"}
"""The suffix of each kind's files, where it is not the kind's own name."""

HOSTILE_NAMES = (
    *("", " ", "\n", "x #", 'x"', "x'", "x\\", "x;", "x*/", "//x", "/*x", "`x", "$x", "x\0", "x\x1b[2J", "x\rx", "x\tx"),
    *("endmodule", "reg", "begin", "module x; endmodule", "x\nendmodule\nmodule y", "\\x ", "x[3:0]", "x.y", "1x", "-x", "x-y"),
    *("lambda", "class", "None", "import os", "__import__('os')", "x'''", 'x"""', "x\\n", "{{7*7}}", "{%x%}", "{#x#}", "${7*7}"),
    *("%s%s%s%n", "{0}", "{0.__class__}", "../../x", "/etc/passwd", "..", ".", "C:\\x", "~", "con", "<script>alert(1)</script>"),
    *("&amp;", "<!--", "]]>", "é", "ｘ", "\u202ex", "\u200b", "𝕩", "🙂", "x" * 10_000, "X", "x", "x_2", "clk", "rst", "s_axis_tdata"),
)
"""Names that mean something to Verilog, Python, HTML, templates, shells, terminals or file systems."""


def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def normal(*shape: int) -> NDArray[np.float32]:
    return rng().normal(size=shape).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ any kind


def damaged(data: bytes) -> Makers:
    """Cuts, garbage and random bits of a sound file."""
    makers: Makers = {
        "empty": lambda folder: b"",
        "one byte": lambda folder: data[:1],
        "zeros": lambda folder: bytes(len(data)),
        "garbage": lambda folder: rng().bytes(4096),
        "garbage behind the first bytes": lambda folder: data[:16] + rng().bytes(len(data)),
        "ones in the middle": lambda folder: data[: len(data) // 3] + b"\xff" * 64 + data[len(data) // 3 + 64 :],
    }
    for n in range(CUTS):
        makers[f"cut to {n + 1} of {CUTS + 1}"] = partial(_cut, data, len(data) * (n + 1) // (CUTS + 1))
    for seed in range(FLIPS):
        makers[f"bits {seed}"] = partial(_flipped, data, seed)
    return makers


def _cut(data: bytes, length: int, folder: Path) -> bytes:
    return data[:length]


def _flipped(data: bytes, seed: int, folder: Path) -> bytes:
    random = np.random.default_rng(seed)
    spoilt = bytearray(data)
    for _ in range(1 + seed % 4):
        spoilt[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    return bytes(spoilt)


def no_files(suffix: str) -> Makers:
    """What is no plain file, or much too large; sparse, so that it takes no room."""

    def missing(folder: Path) -> Path:
        return folder / f"missing{suffix}"

    def directory(folder: Path) -> Path:
        path = folder / f"net{suffix}"
        path.mkdir()
        return path

    def pipe(folder: Path) -> Path:
        path = folder / f"net{suffix}"
        os.mkfifo(path)
        return path

    def device(folder: Path) -> Path:
        path = folder / f"net{suffix}"
        path.symlink_to("/dev/zero")
        return path

    def circle(folder: Path) -> Path:
        path = folder / f"net{suffix}"
        path.symlink_to(path)
        return path

    def huge(folder: Path) -> Path:
        path = folder / f"net{suffix}"
        with path.open("wb") as stream:
            stream.truncate(1 << 40)
        return path

    def null(folder: Path) -> Path:
        return folder / f"n\0t{suffix}"

    def long(folder: Path) -> Path:
        return folder / ("n" * 5000 + suffix)

    return {
        "missing": missing,
        "a folder": directory,
        "a pipe": pipe,
        "a device": device,
        "a link to itself": circle,
        "a tebibyte": huge,
        "a NUL in its name": null,
        "a name of 5,000 letters": long,
    }


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def bombs(members: Mapping[str, bytes], victim: str) -> Makers:
    """Archives whose member ``victim`` is not what it says."""
    whole = members[victim]

    def packed(method: int, size: int) -> Maker:
        return lambda folder: zipped({**members, victim: bytes(size)}, method)

    def many(folder: Path) -> bytes:
        return zipped({**members, **{f"x{n}": b"" for n in range(20_000)}})

    def nested(folder: Path) -> bytes:
        inner = zipped({"x": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
        return zipped({name: inner for name in members})

    def twice(folder: Path) -> bytes:
        return zipped({**members, victim + "#": whole}).replace(victim.encode() + b"#", victim.encode() + b"\0")

    def lying(size: int, method: int = zipfile.ZIP_DEFLATED, content: int = 1 << 25) -> Maker:
        return lambda folder: _sizes(zipped({**members, victim: bytes(content)}, method), victim, size)

    def overlapping(folder: Path) -> bytes:
        data = bytearray(zipped(members | {f"x{n}": b"" for n in range(9)}))
        end = data.rindex(b"PK\5\6")
        at = struct.unpack_from("<I", data, end + 16)[0]
        first = struct.unpack_from("<I", data, at + 42)[0]
        while data[at : at + 4] == b"PK\1\2":
            struct.pack_into("<I", data, at + 42, first)
            at += 46 + sum(struct.unpack_from("<3H", data, at + 28))
        return bytes(data)

    def encrypted(folder: Path) -> bytes:
        data = bytearray(zipped(members))
        at = data.index(b"PK\1\2")
        while data[at : at + 4] == b"PK\1\2":
            data[at + 8] |= 1
            at += 46 + sum(struct.unpack_from("<3H", data, at + 28))
        return bytes(data)

    def dictionary(folder: Path) -> bytes:
        """A member packed by LZMA that asks for a dictionary of 4 GiB."""
        data = bytearray(zipped({**members, victim: whole}, zipfile.ZIP_LZMA))
        start = data.index(victim.encode()) + len(victim)
        struct.pack_into("<I", data, start + 5, 0xFFFFFFFF)
        return bytes(data)

    return {
        "no members": lambda folder: zipped({}),
        "other members": lambda folder: zipped({"x": b"x"}),
        "a bomb": packed(zipfile.ZIP_DEFLATED, 1 << 25),
        "a bomb of bzip2": packed(zipfile.ZIP_BZIP2, 1 << 24),
        "a bomb of LZMA": packed(zipfile.ZIP_LZMA, 1 << 24),
        "20,000 members": many,
        "a zip in a zip": nested,
        "a member twice": twice,
        "a bomb that says it is small": lying(1000),
        "a bomb of bzip2 that says it is small": lying(1000, zipfile.ZIP_BZIP2, 1 << 24),
        "a bomb of LZMA that says it is small": lying(1000, zipfile.ZIP_LZMA, 1 << 24),
        "a member that says it is 4 GiB": lying(0xFFFFFFF0, zipfile.ZIP_STORED, 100),
        "overlapping members": overlapping,
        "encrypted members": encrypted,
        "an LZMA dictionary of 4 GiB": dictionary,
    }


def _sizes(data: bytes, name: str, size: int) -> bytes:
    """The archive with another unpacked size of a member, in its directory and in front of it."""
    spoilt, key = bytearray(data), name.encode()
    for mark, sizes, text in ((b"PK\3\4", 22, 30), (b"PK\1\2", 24, 46)):
        at = data.find(mark)
        while at >= 0:
            if data[at + text : at + text + len(key)] == key:
                struct.pack_into("<I", spoilt, at + sizes, size)
            at = data.find(mark, at + 4)
    return bytes(spoilt)


def pickled(folder: Path) -> bytes:
    """A pickle that makes the trap when it is loaded."""
    return b"\x80\x02cposix\nsystem\nX" + struct.pack("<I", len(_command(folder))) + _command(folder) + b"\x85R."


def _command(folder: Path) -> bytes:
    return f"touch {folder / TRAP}".encode()


# ------------------------------------------------------------------------------------------------------ specifications

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
    makers = {name: partial(_with_weights, maker) for name, maker in damaged(write(SPEC).encode()).items()} | no_files(f".{kind}")

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
        "a number of many digits": lambda folder: {"toml": b"x = " + b"9" * depth, "json": b'{"x": ' + b"9" * depth + b"}"}[kind],
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


# -------------------------------------------------------------------------------------------------------------- TFLite


def tflite_writer() -> Writer:
    """Convolution, reshape, dense layer, softmax: tensors 0 (input) to 9."""
    net = Writer()
    x = net.tensor((1, 6, 6, 2), 0.05, -3, name="image")
    w = net.constant(rng().integers(-127, 128, (3, 3, 3, 2)), "INT8", [0.01, 0.02, 0.03])
    b = net.constant([100, -200, 300], "INT32", [0.0005, 0.001, 0.0015])
    y = net.tensor((1, 4, 4, 3), 0.06, 5, name="edges")
    options = {"Padding": 1, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    net.operator("CONV_2D", [x, w, b], [y], FusedActivationFunction=1, **options)
    flat = net.tensor((1, 48), 0.06, 5, name="flat")
    net.operator("RESHAPE", [y, net.constant([1, 48], "INT32")], [flat])
    dense = net.constant(rng().integers(-127, 128, (4, 48)), "INT8", [0.01])
    scores = net.tensor((1, 4), 0.3, 0, name="scores")
    net.operator("FULLY_CONNECTED", [flat, dense], [scores], FusedActivationFunction=0)
    net.operator("SOFTMAX", [scores], [net.tensor((1, 4), 1 / 256, -128, name="shares")], Beta=1.0)
    return net


def tflite(change: Callable[[Writer], object] = lambda net: None) -> bytes:
    net = tflite_writer()
    change(net)
    return net.write([0], [8])


def _tensor(at: int, **fields: Any) -> Callable[[Writer], None]:
    def change(net: Writer) -> None:
        for name, value in fields.items():
            setattr(net.tensors[at], name, value)

    return change


def _operator(at: int, **fields: Any) -> Callable[[Writer], None]:
    def change(net: Writer) -> None:
        for name, value in fields.items():
            setattr(net.operators[at], name, value)

    return change


def _options(at: int, **options: float) -> Callable[[Writer], None]:
    return lambda net: setattr(net.operators[at], "options", {**net.operators[at].options, **options})


TFLITE_CHANGES: Mapping[str, Callable[[Writer], object]] = {
    "a shape that lies": _tensor(1, shape=(3, 3, 3, 200)),
    "an output shape that lies": _tensor(3, shape=(1, 40, 40, 3)),
    "a negative size": _tensor(0, shape=(1, -6, 6, 2)),
    "no size": _tensor(0, shape=(1, 0, 6, 2)),
    "a huge size": _tensor(0, shape=(1, 2**31 - 1, 2**31 - 1, 2)),
    "a huge batch": _tensor(0, shape=(2**31 - 1, 6, 6, 2)),
    "weights of a huge shape": _tensor(1, shape=(2**31 - 1,) * 4),
    "weights of a negative shape": _tensor(1, shape=(-3, -3, 3, 2)),
    "nine axes": _tensor(0, shape=(1,) * 9),
    "no axes": _tensor(0, shape=()),
    "no weights": _tensor(1, data=None),
    "weights cut short": _tensor(1, data=bytes(10)),
    "a constant as input": _operator(0, inputs=(1, 1, 2)),
    "scale 0": _tensor(3, scales=(0.0,)),
    "scale negative": _tensor(3, scales=(-0.06,)),
    "scale NaN": _tensor(3, scales=(float("nan"),)),
    "scale infinite": _tensor(3, scales=(float("inf"),)),
    "scale denormal": _tensor(3, scales=(1e-44,)),
    "no scale": _tensor(3, scales=(), zero_points=()),
    "weight scale 0": _tensor(1, scales=(0.01, 0.0, 0.03)),
    "weight scale huge": _tensor(1, scales=(1e38, 1e38, 1e38)),
    "two scales for three filters": _tensor(1, scales=(0.01, 0.02), zero_points=(0, 0)),
    "scales along another axis": _tensor(1, axis=7),
    "zero point above": _tensor(3, zero_points=(128,)),
    "zero point far below": _tensor(3, zero_points=(-(2**63),)),
    "weights with a zero point": _tensor(1, zero_points=(1, 2, 300)),
    "a type that is none": _tensor(3, kind="COMPLEX64"),
    "strings": _tensor(0, kind="STRING"),
    "bias beyond the accumulator": _tensor(2, kind="INT64", data=np.full(3, 2**62).tobytes()),
    "tensor 99": _operator(0, inputs=(99, 1, 2)),
    "tensor -2": _operator(0, inputs=(-2, 1, 2)),
    "no inputs": _operator(0, inputs=()),
    "no outputs": _operator(0, outputs=()),
    "a layer that reads itself": _operator(0, inputs=(3, 1, 2)),
    "a loop": _operator(0, inputs=(7, 1, 2)),
    "a tensor made twice": _operator(1, outputs=(3,)),
    "the input made": _operator(1, outputs=(0,)),
    "stride 0": _options(0, StrideH=0),
    "stride negative": _options(0, StrideW=-1),
    "stride huge": _options(0, StrideH=2**31 - 1),
    "dilation 0": _options(0, DilationHFactor=0),
    "dilation huge": _options(0, DilationWFactor=2**31 - 1),
    "padding 77": _options(0, Padding=77),
    "activation 77": _options(0, FusedActivationFunction=77),
    "beta NaN": _options(3, Beta=float("nan")),
    "beta negative": _options(3, Beta=-1.0),
    "beta huge": _options(3, Beta=1e38),
    "no options": _operator(0, options={}),
    "another operator's options": _operator(0, kind="AVERAGE_POOL_2D", options={"StrideH": 1}),
    "an operator that is not supported": _operator(3, kind="WHILE"),
    "all operators not supported": lambda net: [setattr(one, "kind", "CUMSUM") for one in net.operators],
    "a reshape of other size": _tensor(4, data=np.array([1, 47], "<i4").tobytes()),
    "a reshape of a huge size": _tensor(4, data=np.array([2**31 - 1, 2**31 - 1], "<i4").tobytes()),
}


def tflite_makers() -> Makers:
    sound = tflite()
    makers = damaged(sound) | no_files(".tflite")

    def changed(change: Callable[[Writer], object], folder: Path) -> bytes:
        return tflite(change)

    makers |= {name: partial(changed, change) for name, change in TFLITE_CHANGES.items()}
    for number, name in enumerate(HOSTILE_NAMES[::6]):
        makers[f"name {number} of a tensor"] = partial(changed, _tensor(3, name=name))
    makers |= {
        "the root far away": lambda folder: struct.pack("<I", 0x7FFFFFF0) + sound[4:],
        "the root negative": lambda folder: struct.pack("<I", 0xFFFFFFF0) + sound[4:],
        "another identifier": lambda folder: sound[:4] + b"TFL9" + sound[8:],
        "a zip behind the head": lambda folder: sound[:8] + zipped({"x": b""}),
        "a pickle": pickled,
        "words of ones": lambda folder: sound[:32] + b"\xff\xff\xff\x7f" * (len(sound) // 4 - 8),
    }
    return makers


# ---------------------------------------------------------------------------------------------------------------- ONNX

ModelChange = Callable[[ModelProto, Path], object]


def onnx_model() -> ModelProto:
    """Convolution, relu, global pool, flatten, dense layer."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", kernel_shape=[3, 3]),
            helper.make_node("Relu", ["y"], ["z"], "relu"),
            helper.make_node("GlobalAveragePool", ["z"], ["p"], "pool"),
            helper.make_node("Flatten", ["p"], ["f"], "flat"),
            helper.make_node("Gemm", ["f", "v"], ["scores"], "dense", transB=1),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 6, 6])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4])],
        [
            numpy_helper.from_array(normal(3, 2, 3, 3), "w"),
            numpy_helper.from_array(normal(3), "b"),
            numpy_helper.from_array(normal(4, 3), "v"),
        ],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def _attribute(at: int, **attributes: Any) -> ModelChange:
    def change(model: ModelProto, folder: Path) -> None:
        node = model.graph.node[at]
        kept = [one for one in node.attribute if one.name not in attributes]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())])

    return change


def _weights(at: int, values: NDArray[Any]) -> ModelChange:
    name = "wbv"[at]
    return lambda model, folder: model.graph.initializer[at].CopyFrom(numpy_helper.from_array(values, name))


def _dims(at: int, *dims: int) -> ModelChange:
    return lambda model, folder: model.graph.initializer[at].dims.__setitem__(slice(None), dims)


def _node(at: int, **fields: Any) -> ModelChange:
    def change(model: ModelProto, folder: Path) -> None:
        node = model.graph.node[at]
        for name, value in fields.items():
            if isinstance(value, list):
                getattr(node, name)[:] = value
            else:
                setattr(node, name, value)

    return change


def _shape(*dims: int) -> ModelChange:
    return lambda model, folder: model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, dims))


def _spoilt(values: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    values.flat[0] = value
    return values


def external(location: str | Callable[[Path], str], **entries: str) -> ModelChange:
    """The weights of the convolution lie elsewhere; what is there would do."""

    def change(model: ModelProto, folder: Path) -> None:
        data = normal(3, 2, 3, 3).tobytes()
        (folder.parent / "outside.bin").write_bytes(data)
        (folder / "inside.bin").write_bytes(data)
        (folder / "link.bin").symlink_to(folder.parent / "outside.bin")
        (folder / "way").symlink_to(folder.parent, target_is_directory=True)
        (folder / "circle").symlink_to("circle")
        (folder / "sub").mkdir()
        os.link(folder.parent / "outside.bin", folder / "hard.bin")
        os.mkfifo(folder / "pipe")
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location(folder) if callable(location) else location, **entries}.items():
            tensor.external_data.add(key=key, value=value)

    return change


EXTERNAL: Mapping[str, ModelChange] = {
    "above": external("../outside.bin"),
    "above, by a way round": external("sub/../../outside.bin"),
    "above, with backslashes": external("..\\outside.bin"),
    "absolute": external(lambda folder: str(folder.parent / "outside.bin")),
    "absolute, twice": external(lambda folder: "/" + str(folder.parent / "outside.bin")),
    "a URL": external(lambda folder: f"file://{folder.parent / 'outside.bin'}"),
    "at home": external("~/outside.bin"),
    "in the environment": external("$HOME/outside.bin"),
    "a link": external("link.bin"),
    "a linked folder": external("way/outside.bin"),
    "a hard link": external("hard.bin"),
    "a circle of links": external("circle"),
    "a pipe": external("pipe"),
    "a folder": external("sub"),
    "a device": external("/dev/zero"),
    "of a process": external("/proc/self/environ"),
    "nowhere": external("nowhere.bin"),
    "without a place": external(""),
    "a NUL": external("inside.bin\0"),
    "a line break": external("inside\n.bin"),
    "10,000 letters": external("x" * 10_000),
    "the model itself": external("net.onnx", length="216", offset="0"),
    "offset behind the end": external("inside.bin", offset="1000000000000"),
    "offset negative": external("inside.bin", offset="-1"),
    "offset no number": external("inside.bin", offset="0x10"),
    "length huge": external("inside.bin", length="99999999999999999999"),
    "length negative": external("inside.bin", length="-1"),
    "length short": external("inside.bin", length="100"),
    "offset and length beyond": external("inside.bin", offset="200", length="200"),
}

ONNX_CHANGES: Mapping[str, ModelChange] = {
    "group 0": _attribute(0, group=0),
    "group negative": _attribute(0, group=-1),
    "group 2 of 3": _attribute(0, group=2),
    "group huge": _attribute(0, group=1 << 62),
    "stride 0": _attribute(0, strides=[0, 1]),
    "strides of five": _attribute(0, strides=[1] * 5),
    "dilation 0": _attribute(0, dilations=[0, 1]),
    "dilation huge": _attribute(0, dilations=[1 << 40, 1]),
    "kernel of another shape": _attribute(0, kernel_shape=[5, 5]),
    "kernel negative": _attribute(0, kernel_shape=[-3, 3]),
    "padding negative": _attribute(0, pads=[-1, 0, 0, 0]),
    "padding huge": _attribute(0, pads=[1 << 40, 0, 0, 0]),
    "padding of another rank": _attribute(0, pads=[1, 1, 1]),
    "padding unknown": _attribute(0, auto_pad="SAME_SOMEHOW"),
    "a number for a list": _attribute(0, strides=1),
    "a text for a number": _attribute(0, group="1"),
    "infinity": _weights(0, _spoilt(normal(3, 2, 3, 3), np.inf)),
    "NaN": _weights(0, _spoilt(normal(3, 2, 3, 3), np.nan)),
    "NaN in a bias": _weights(1, _spoilt(normal(3), np.nan)),
    "a weight of 1e38": _weights(0, _spoilt(normal(3, 2, 3, 3), 3e38)),
    "weights of another rank": _weights(0, normal(3, 2, 9)),
    "no filters": _weights(0, normal(0, 2, 3, 3)),
    "weights for more channels": _weights(0, normal(3, 7, 3, 3)),
    "a bias for more filters": _weights(1, normal(7)),
    "weights of text": lambda model, folder: model.graph.initializer[0].CopyFrom(
        helper.make_tensor("w", TensorProto.STRING, [3, 2, 3, 3], [b"a"] * 54)
    ),
    "complex weights": _weights(0, normal(3, 2, 3, 3).astype(np.complex64)),
    "dims that lie": _dims(0, 300, 2, 3, 3),
    "dims negative": _dims(0, -3, -2, 3, 3),
    "dims huge": _dims(0, 1 << 62, 4, 1 << 62, 4),
    "dims many": _dims(0, *[1] * 1000),
    "a type that is none": lambda model, folder: setattr(model.graph.initializer[0], "data_type", 99),
    "an input of no size": _shape(1, 2, 0, 6),
    "an input of negative size": _shape(1, 2, -6, 6),
    "a huge input": _shape(1, 2, 1 << 40, 1 << 40),
    "an input too small": _shape(1, 2, 2, 2),
    "an input of nine axes": _shape(*[1] * 9),
    "a batch of 7": _shape(7, 2, 6, 6),
    "no input": lambda model, folder: model.graph.ClearField("input"),
    "an input twice": lambda model, folder: model.graph.input.extend(list(model.graph.input)),
    "an input of no type": lambda model, folder: model.graph.input[0].ClearField("type"),
    "no output": lambda model, folder: model.graph.ClearField("output"),
    "an output that is none": lambda model, folder: setattr(model.graph.output[0], "name", "nobody"),
    "no nodes": lambda model, folder: model.graph.ClearField("node"),
    "no graph": lambda model, folder: model.ClearField("graph"),
    "a node that reads itself": _node(1, input=["z"]),
    "a loop": _node(0, input=["f", "w", "b"]),
    "a node that reads nothing": _node(1, input=["nobody"]),
    "no inputs": _node(0, input=[]),
    "a hundred inputs": _node(0, input=["x"] * 100),
    "no outputs": _node(1, output=[]),
    "a tensor made twice": _node(2, output=["y"]),
    "a weight made": _node(1, output=["w"]),
    "weights of a convolution computed": _node(0, input=["x", "x", "b"]),
    "weights twice": lambda model, folder: model.graph.initializer.extend([model.graph.initializer[0]]),
    "weights without a name": lambda model, folder: setattr(model.graph.initializer[0], "name", ""),
    "weights missing": lambda model, folder: model.graph.initializer.__delitem__(0),
    "an operator that is none": _node(1, op_type="Evil"),
    "an operator of 10,000 letters": _node(1, op_type="x" * 10_000),
    "an operator of its own": _node(1, op_type="PyOp", domain="ai.onnx.contrib"),
    "all operators unknown": lambda model, folder: [setattr(node, "op_type", "Evil") for node in model.graph.node],
    "no opset": lambda model, folder: model.ClearField("opset_import"),
    "opset 9999": lambda model, folder: setattr(model.opset_import[0], "version", 9999),
    "opset negative": lambda model, folder: setattr(model.opset_import[0], "version", -1),
    "two opsets": lambda model, folder: model.opset_import.add(domain="ai.onnx", version=11),
    "both here and elsewhere": lambda model, folder: model.graph.initializer[0].external_data.add(key="location", value="x"),
    "a constant of a tebibyte": lambda model, folder: _constant_of(model, 1 << 38),
    "a constant of a gibibyte": lambda model, folder: _constant_of(model, 1 << 28),
    "an endless loop": lambda model, folder: model.graph.node.insert(0, _endless()),
    "graphs in graphs": lambda model, folder: model.graph.node.insert(0, _deep(25)),
    "the batch norm's variance negative": lambda model, folder: _norm(model, -1.0, 1e-5),
    "the batch norm's epsilon negative": lambda model, folder: _norm(model, 1.0, -2.0),
    "a reshape to zero": lambda model, folder: _reshape(model, [0, 0, 0, 0, 0]),
    "a reshape to -1 and -1": lambda model, folder: _reshape(model, [-1, -1]),
    "a reshape beyond": lambda model, folder: _reshape(model, [1 << 40, 1 << 40]),
}


def _constant_of(model: ModelProto, size: int) -> None:
    """The weights are a constant of ``size`` numbers, which a few bytes ask for."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([size], np.int64), "size"))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["size"], ["huge"], "fill"))
    model.graph.node[-1].input[1] = "huge"


def _endless() -> NodeProto:
    body = helper.make_graph([], "body", [], [])
    return helper.make_node("Loop", ["", ""], ["never"], body=body)


def _deep(depth: int) -> NodeProto:
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(depth):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "g", [], [])
    return helper.make_node("If", ["x"], ["deep"], then_branch=graph, else_branch=graph)


def _norm(model: ModelProto, variance: float, epsilon: float) -> None:
    ones = [numpy_helper.from_array(np.ones(3, np.float32) * scale, name) for name, scale in (("one", 1), ("var", variance))]
    model.graph.initializer.extend(ones)
    model.graph.node[1].CopyFrom(
        helper.make_node("BatchNormalization", ["y", "one", "one", "one", "var"], ["z"], "norm", epsilon=epsilon)
    )


def _reshape(model: ModelProto, shape: list[int]) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
    model.graph.node[3].CopyFrom(helper.make_node("Reshape", ["p", "shape"], ["f"], "flat"))


def _onnx_changed(make: Callable[[], ModelProto], change: ModelChange, folder: Path) -> bytes:
    model = make()
    change(model, folder)
    data: bytes = model.SerializeToString()
    return data


def onnx_makers() -> Makers:
    data: bytes = onnx_model().SerializeToString()
    makers = damaged(data) | no_files(".onnx")
    makers |= {name: partial(_onnx_changed, onnx_model, change) for name, change in ONNX_CHANGES.items()}
    makers |= {f"external data {name}": partial(_onnx_changed, onnx_model, change) for name, change in EXTERNAL.items()}
    for number, name in enumerate(HOSTILE_NAMES[::6]):
        if "\0" not in name:
            makers[f"name {number} of a node"] = partial(_onnx_changed, onnx_model, _node(1, name=name))
    makers |= {
        "a pickle": pickled,
        "two million empty nodes": lambda folder: b"\x3a\x80\x80\x80\x02" + b"\x0a\x00" * (1 << 21),
        "a message in itself": lambda folder: _nested(200),
        "a length of 2 GiB": lambda folder: b"\x3a\xff\xff\xff\xff\x07" + data,
    }
    return makers


def _nested(depth: int) -> bytes:
    """Graphs in attributes of nodes of graphs, deeper than protobuf goes."""
    data = b""
    for _ in range(depth):
        for tag in (0x32, 0x2A, 0x0A):  # attribute's graph, node's attribute, graph's node
            size = len(data)
            length = bytearray()
            while size > 127:
                length.append(size & 127 | 128)
                size >>= 7
            data = bytes([tag, *length, size]) + data
    return b"\x08\x08" + data


# ------------------------------------------------------------------------------------------------------ quantized ONNX


def quantized_model() -> ModelProto:
    """QuantizeLinear, QLinearConv, DequantizeLinear."""
    names = ("xs", "xz", "w", "ws", "wz", "ys", "yz", "b")
    arrays = (
        *(np.float32(0.05), np.int8(-3), rng().integers(-127, 128, (3, 2, 3, 3)).astype(np.int8)),
        *(np.array([0.01, 0.02, 0.03], np.float32), np.zeros(3, np.int8), np.float32(0.06), np.int8(5)),
        np.array([100, -200, 300], np.int32),
    )
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"], "quantize"),
            helper.make_node("QLinearConv", ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["c"], "conv"),
            helper.make_node("DequantizeLinear", ["c", "ys", "yz"], ["y"], "real"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
        [numpy_helper.from_array(np.asarray(one), name) for name, one in zip(names, arrays, strict=True)],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def _part(name: str, value: Any) -> ModelChange:
    def change(model: ModelProto, folder: Path) -> None:
        (one,) = (one for one in model.graph.initializer if one.name == name)
        one.CopyFrom(numpy_helper.from_array(np.asarray(value), name))

    return change


QUANTIZED_CHANGES: Mapping[str, ModelChange] = {
    "scale 0": _part("ys", np.float32(0)),
    "scale negative": _part("ys", np.float32(-0.06)),
    "scale NaN": _part("ys", np.float32("nan")),
    "scale infinite": _part("xs", np.float32("inf")),
    "scale denormal": _part("ys", np.float32(1e-44)),
    "scale of many": _part("ys", np.ones(7, np.float32)),
    "scale an integer": _part("ys", np.int8(1)),
    "weight scale 0": _part("ws", np.array([0.01, 0, 0.01], np.float32)),
    "weight scale huge": _part("ws", np.full(3, 3e38, np.float32)),
    "two weight scales": _part("ws", np.array([0.01, 0.02], np.float32)),
    "zero point of another type": _part("yz", np.uint8(5)),
    "zero point a float": _part("yz", np.float32(5)),
    "zero point of 16 bits": _part("yz", np.int16(30_000)),
    "weights of floats": _part("w", normal(3, 2, 3, 3)),
    "weights of 64 bits": _part("w", np.full((3, 2, 3, 3), 1 << 62)),
    "bias of floats": _part("b", normal(3)),
    "bias of many": _part("b", np.zeros(9, np.int32)),
    "no scale": lambda model, folder: model.graph.initializer.__delitem__(0),
    "inputs missing": _node(1, input=["q", "xs", "xz", "w"]),
    "inputs left out": _node(1, input=["q", "", "", "w", "", "", "", ""]),
    "a real convolution of integers": _node(1, op_type="Conv", input=["q", "w", "b"]),
    "group 0": _attribute(1, group=0),
    "group 2 of 3": _attribute(1, group=2),
    "a loop": _node(1, input=["c", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]),
    "an operator that is none": _node(2, op_type="QLinearEvil"),
}


def quantized_makers() -> Makers:
    data: bytes = quantized_model().SerializeToString()
    makers = {name: maker for name, maker in damaged(data).items() if name.startswith(("bits", "cut"))}
    return makers | {name: partial(_onnx_changed, quantized_model, change) for name, change in QUANTIZED_CHANGES.items()}


# --------------------------------------------------------------------------------------------------------------- Keras

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
    "NaN": _kernel(_spoilt(normal(3, 3, 2, 3), np.nan)),
    "infinity": _kernel(_spoilt(normal(3, 3, 2, 3), np.inf)),
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
    "a function of Python's as activation": _conv(activation={"module": "builtins", "class_name": "function", "config": "exec"}),
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


def _nothing(*args: object) -> None:
    """Leaves things as they are."""


def keras_makers(suffix: str) -> Makers:
    write = keras_file if suffix == ".keras" else hdf5
    sound = write(keras_config(), _nothing, Path())

    def changed(change: Callable[[Config], object], folder: Path) -> bytes:
        config = keras_config()
        change(config)
        return write(config, _nothing, folder)

    makers = damaged(sound) | no_files(suffix)
    makers |= {name: partial(changed, change) for name, change in CONFIG_CHANGES.items()}
    makers |= {f"weights: {name}": partial(write, keras_config(), change) for name, change in FILE_CHANGES.items()}
    for number, name in enumerate(HOSTILE_NAMES[::6]):
        makers[f"name {number} of a layer"] = partial(changed, lambda config, name=name: config["config"].update(name=name))
    makers |= {
        "deep JSON": partial(write, "[" * 100_000, _nothing),
        "deep tables": partial(write, '{"config":' * 100_000, _nothing),
        "JSON of 9 MB": partial(write, " " * 9_000_000, _nothing),
        "no JSON": partial(write, "{", _nothing),
        "a number": partial(write, "5", _nothing),
        "a number of many digits": partial(write, "9" * 100_000, _nothing),
        "a pickle": pickled,
        "a soft spot of HDF5": lambda folder: b"\x89HDF\r\n\x1a\n" + rng().bytes(2000),
    }
    if suffix == ".keras":
        members = {"config.json": json.dumps(keras_config()).encode(), "model.weights.h5": hdf5(None, _nothing, Path())}
        makers |= {f"zip: {name}": maker for name, maker in bombs(members, "model.weights.h5").items()}
        makers |= {f"zip, configuration: {name}": maker for name, maker in bombs(members, "config.json").items()}
    return makers


# ------------------------------------------------------------------------------------------------------------- PyTorch


def _named(name: str) -> Config:
    return {"as_tensor": {"name": name}}


def _meta(*shape: int) -> Config:
    strides = [int(np.prod(shape[n + 1 :])) for n in range(len(shape))]
    return {
        "dtype": 7,
        "sizes": [{"as_int": size} for size in shape],
        "strides": [{"as_int": stride} for stride in strides],
        "storage_offset": {"as_int": 0},
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "layout": 7,
    }


def torch_program() -> tuple[Config, Config]:
    """The program and the list of its weights: convolution, relu, mean, linear layer."""
    shapes = {"conv.weight": (3, 2, 3, 3), "conv.bias": (3,), "fc.weight": (4, 3), "fc.bias": (4,)}
    names = {name: "p_" + name.replace(".", "_") for name in shapes}

    def call(target: str, result: str, **arguments: Config) -> Config:
        inputs = [{"name": name, "arg": value, "kind": 1} for name, value in arguments.items()]
        return {"target": f"torch.ops.aten.{target}", "inputs": inputs, "outputs": [_named(result)], "metadata": {}}

    weights = {
        name: {"path_name": f"weight_{n}", "is_param": True, "use_pickle": False, "tensor_meta": _meta(*shape)}
        for n, (name, shape) in enumerate(shapes.items())
    }
    conv = {"input": _named("x"), "weight": _named("p_conv_weight"), "bias": _named("p_conv_bias")}
    linear = {"input": _named("mean"), "weight": _named("p_fc_weight"), "bias": _named("p_fc_bias")}
    nodes = [
        call("conv2d.default", "conv2d", **conv),
        call("relu.default", "relu", self=_named("conv2d")),
        call("mean.dim", "mean", self=_named("relu"), dim={"as_ints": [2, 3]}),
        call("linear.default", "linear", **linear),
    ]
    results = {"x": (1, 2, 6, 6), "conv2d": (1, 3, 4, 4), "relu": (1, 3, 4, 4), "mean": (1, 3), "linear": (1, 4)}
    tensors = results | {names[name]: shape for name, shape in shapes.items()}
    parameters = [{"parameter": {"arg": {"name": names[name]}, "parameter_name": name}} for name in shapes]
    graph = {
        "inputs": [_named(name) for name in [*names.values(), "x"]],
        "outputs": [_named("linear")],
        "nodes": nodes,
        "tensor_values": {name: _meta(*shape) for name, shape in tensors.items()},
    }
    signature = {
        "input_specs": [*parameters, {"user_input": {"arg": _named("x")}}],
        "output_specs": [{"user_output": {"arg": _named("linear")}}],
    }
    module = {"graph": graph, "signature": signature, "module_call_graph": []}
    return {"graph_module": module, "schema_version": {"major": 8, "minor": 20}}, {"config": weights}


ProgramChange = Callable[[Config, Config], object]


def torch_members(model: Config | str, weights: Config | str) -> dict[str, bytes]:
    arrays = (normal(3, 2, 3, 3), normal(3), normal(4, 3), normal(4))
    return {
        "net/models/model.json": (model if isinstance(model, str) else json.dumps(model)).encode(),
        "net/data/weights/model_weights_config.json": (weights if isinstance(weights, str) else json.dumps(weights)).encode(),
        **{f"net/data/weights/weight_{n}": one.tobytes() for n, one in enumerate(arrays)},
        "net/archive_version": b"0",
    }


def _graph(**fields: Any) -> ProgramChange:
    return lambda model, weights: model["graph_module"]["graph"].update(fields)


def _call(at: int, **fields: Any) -> ProgramChange:
    return lambda model, weights: model["graph_module"]["graph"]["nodes"][at].update(fields)


def _argument(at: int, name: str, value: Any) -> ProgramChange:
    return lambda model, weights: model["graph_module"]["graph"]["nodes"][at]["inputs"].append(
        {"name": name, "arg": value, "kind": 1}
    )


def _stored(**fields: Any) -> ProgramChange:
    return lambda model, weights: weights["config"]["conv.weight"].update(fields)


def _stored_meta(**fields: Any) -> ProgramChange:
    return lambda model, weights: weights["config"]["conv.weight"]["tensor_meta"].update(fields)


def _ints(*values: int) -> list[Config]:
    return [{"as_int": value} for value in values]


PROGRAM_CHANGES: Mapping[str, ProgramChange] = {
    "groups 0": _argument(0, "groups", {"as_int": 0}),
    "groups negative": _argument(0, "groups", {"as_int": -1}),
    "stride 0": _argument(0, "stride", {"as_ints": [0, 1]}),
    "stride huge": _argument(0, "stride", {"as_ints": [1 << 62, 1]}),
    "strides of five": _argument(0, "stride", {"as_ints": [1] * 5}),
    "padding negative": _argument(0, "padding", {"as_ints": [-1, 0]}),
    "padding huge": _argument(0, "padding", {"as_ints": [1 << 40, 0]}),
    "padding NaN": _argument(0, "padding", {"as_float": "NaN"}),
    "an expression": _argument(0, "groups", {"as_sym_int": {"as_expr": {"expr_str": "__import__('os').system('true')"}}}),
    "a graph as argument": _argument(0, "groups", {"as_graph": {"name": "g", "graph": {}}}),
    "two kinds at once": _argument(0, "groups", {"as_int": 1, "as_float": 1.0}),
    "an operator unknown": _call(1, target="torch.ops.aten.evil.default"),
    "an operator of Python's": _call(1, target="os.system"),
    "an operator of 10,000 letters": _call(1, target="x" * 10_000),
    "no operator": _call(1, target=None),
    "no inputs": _call(0, inputs=[]),
    "inputs that are none": _call(0, inputs="x"),
    "no outputs": _call(1, outputs=[]),
    "a call that reads itself": _call(1, inputs=[{"name": "self", "arg": _named("relu"), "kind": 1}]),
    "a loop": _call(1, inputs=[{"name": "self", "arg": _named("mean"), "kind": 1}]),
    "a call that reads nothing": _call(1, inputs=[{"name": "self", "arg": _named("nobody"), "kind": 1}]),
    "a tensor made twice": _call(1, outputs=[_named("conv2d")]),
    "the input made": _call(1, outputs=[_named("x")]),
    "no nodes": _graph(nodes=[]),
    "nodes that are none": _graph(nodes={"x": 1}),
    "20,000 nodes": lambda model, weights: model["graph_module"]["graph"].update(
        nodes=model["graph_module"]["graph"]["nodes"] * 5_000
    ),
    "no tensors": _graph(tensor_values={}),
    "an input of no size": lambda model, weights: _size(model, 1, 2, 0, 6),
    "an input negative": lambda model, weights: _size(model, 1, 2, -6, 6),
    "an input huge": lambda model, weights: _size(model, 1, 2, 1 << 39, 1 << 39),
    "an input of nine axes": lambda model, weights: _size(model, *[1] * 9),
    "an input too small": lambda model, weights: _size(model, 1, 2, 2, 2),
    "no signature": lambda model, weights: model["graph_module"].update(signature=None),
    "no graph": lambda model, weights: model.update(graph_module=5),
    "schema 99": lambda model, weights: model.update(schema_version={"major": 99}),
    "no schema": lambda model, weights: model.pop("schema_version"),
    "weights pickled": _stored(use_pickle=True),
    "weights of another member": _stored(path_name="../../models/model.json"),
    "weights above": _stored(path_name="../../../../outside.bin"),
    "weights nowhere": _stored(path_name="nowhere"),
    "weights of a list": _stored(path_name=["weight_0"]),
    "weights missing": lambda model, weights: weights["config"].pop("conv.weight"),
    "weights too short": _stored_meta(sizes=_ints(300, 2, 3, 3)),
    "weights of another shape": _stored_meta(sizes=_ints(2, 3, 3, 3), strides=_ints(27, 9, 3, 1)),
    "weights negative": _stored_meta(sizes=_ints(-3, 2, 3, 3)),
    "weights huge": _stored_meta(sizes=_ints(1 << 38, 1 << 38, 3, 3), strides=_ints(0, 0, 0, 0)),
    "weights spread over all": _stored_meta(sizes=_ints(1 << 30, 2, 3, 3), strides=_ints(0, 0, 0, 0)),
    "strides negative": _stored_meta(strides=_ints(-18, 9, 3, 1)),
    "strides beyond": _stored_meta(strides=_ints(1 << 39, 9, 3, 1)),
    "an offset beyond": _stored_meta(storage_offset={"as_int": 1 << 39}),
    "an offset negative": _stored_meta(storage_offset={"as_int": -54}),
    "a type that is none": _stored_meta(dtype=99),
    "complex weights": _stored_meta(dtype=10),
    "a type that is a list": _stored_meta(dtype=[7]),
    "no sizes": _stored_meta(sizes=None),
    "a mapping that is none": lambda model, weights: weights.update(config=[1]),
}


def _size(model: Config, *shape: int) -> None:
    model["graph_module"]["graph"]["tensor_values"]["x"] = _meta(*shape)


def torch_makers() -> Makers:
    model, weights = torch_program()
    members = torch_members(model, weights)

    def changed(change: ProgramChange, folder: Path) -> bytes:
        model, weights = torch_program()
        change(model, weights)
        (folder.parent / "outside.bin").write_bytes(normal(3, 2, 3, 3).tobytes())
        return zipped(torch_members(model, weights))

    def replaced(member: str, data: bytes) -> Maker:
        return lambda folder: zipped({**members, member: data})

    nan = _spoilt(normal(3, 2, 3, 3), np.nan).tobytes()
    makers = damaged(zipped(members)) | no_files(".pt2")
    makers |= {name: partial(changed, change) for name, change in PROGRAM_CHANGES.items()}
    makers |= {f"zip: {name}": maker for name, maker in bombs(members, "net/data/weights/weight_0").items()}
    for number, name in enumerate(HOSTILE_NAMES[::6]):
        makers[f"name {number} of a call"] = partial(changed, _call(1, name=name))
    makers |= {
        "NaN": replaced("net/data/weights/weight_0", nan),
        "deep JSON": replaced("net/models/model.json", b"[" * 100_000),
        "deep tables": replaced("net/models/model.json", b'{"x":' * 100_000),
        "a number of many digits": replaced("net/models/model.json", b"9" * 100_000),
        "no JSON": replaced("net/models/model.json", b"{"),
        "weights in no JSON": replaced("net/data/weights/model_weights_config.json", b"\xff"),
    }
    return makers


def pickle_makers() -> Makers:
    """What `torch.save` writes: pickles, in an archive or alone."""

    def checkpoint(name: str) -> Maker:
        return lambda folder: zipped({f"net/{name}": pickled(folder), "net/version": b"3", "net/data/0": bytes(64)})

    def legacy(folder: Path) -> bytes:
        return b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + pickled(folder)

    def program(folder: Path) -> bytes:
        """A sound program with a pickle where PyTorch itself would load one."""
        model, weights = torch_program()
        weights["config"]["conv.weight"]["use_pickle"] = True
        members = torch_members(model, weights) | {"net/data/weights/weight_0": pickled(folder)}
        return zipped(members | {"net/data/sample_inputs/model.pt": pickled(folder)})

    return {
        "a pickle": pickled,
        "a pickle of old": legacy,
        "a checkpoint": checkpoint("data.pkl"),
        "TorchScript": checkpoint("constants.pkl"),
        "a program with a pickle": program,
        "an old export": lambda folder: zipped({"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": pickled(folder)}),
        **{name: maker for name, maker in damaged(zipped({"net/data.pkl": b"\x80\x02N."})).items() if "bits" not in name},
    }


MAKERS: Mapping[str, Callable[[], Makers]] = {
    "toml": partial(spec_makers, "toml"),
    "json": partial(spec_makers, "json"),
    "npz": npz_makers,
    "tflite": tflite_makers,
    "onnx": onnx_makers,
    "quantized": quantized_makers,
    "keras": partial(keras_makers, ".keras"),
    "h5": partial(keras_makers, ".h5"),
    "pt2": torch_makers,
    "pth": pickle_makers,
}


def sound(kind: str, folder: Path) -> bytes:
    """The file of a kind that is not spoilt."""
    model, weights = torch_program()
    (folder / "net.npz").write_bytes(npz())
    quantized: bytes = quantized_model().SerializeToString()
    real: bytes = onnx_model().SerializeToString()
    files = {
        "toml": toml(SPEC).encode(),
        "json": json.dumps(SPEC).encode(),
        "npz": toml(SPEC).encode(),
        "tflite": tflite(),
        "onnx": real,
        "quantized": quantized,
        "keras": keras_file(keras_config(), _nothing, folder),
        "h5": hdf5(keras_config(), _nothing, folder),
        "pt2": zipped(torch_members(model, weights)),
        "pth": zipped(torch_members(model, weights)),
    }
    return files[kind]


def write(maker: Maker, kind: str, folder: Path) -> Path:
    """The file that a maker makes, in ``folder``."""
    made = maker(folder)
    if isinstance(made, Path):
        return made
    path = folder / f"net{SUFFIXES.get(kind, f'.{kind}')}"
    path.write_bytes(made)
    return path
