"""A small TensorFlow Lite network, and its spoilt files."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.archives import zipped
from tests.hostile.files import (
    HOSTILE_NAMES,
    Makers,
    damaged,
    no_files,
    pickled,
    rng,
)
from tests.tflite_writer import Writer


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
    "all operators not supported": lambda net: [_operator(at, kind="CUMSUM")(net) for at in range(4)],
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
