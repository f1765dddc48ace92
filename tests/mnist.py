"""A trained MNIST network and the test images of MNIST, read as arrays from the folder of real models."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convfold.compiler.graph import Graph
from convfold.compiler.numbers import IntArray, RealArray
from tests.compiler.passes.nets import Net


def read_images(folder: Path, start: int, stop: int) -> tuple[RealArray, IntArray]:
    """Images ``(N, 28, 28, 1)`` of 0 to 255 and their labels."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / "data_mnist" / name).read_bytes())[head:], np.uint8)
        for name, head in (("t10k-images-idx3-ubyte.gz", 16), ("t10k-labels-idx1-ubyte.gz", 8))
    )
    return pixels.reshape(-1, 28, 28, 1)[start:stop].astype(np.float64), labels[start:stop].astype(np.int64)


def read_network(folder: Path) -> Graph:
    """``cntk_mnist/model.onnx``: two padded 5×5 convolutions, each with ReLU and a pool behind, and a dense layer."""
    arrays = dict(_initializers((folder / "cntk_mnist" / "model.onnx").read_bytes()))
    w1_oihw, w2_oihw = arrays["Parameter5"].reshape(8, 1, 5, 5), arrays["Parameter87"].reshape(16, 8, 5, 5)
    net = Net((28, 28, 1), low=0.0, high=255.0)
    same = ((2, 2), (2, 2))
    net.conv("first", 8, (5, 5), padding=same).relu("relu1").pool("pool1")
    net.conv("second", 16, (5, 5), padding=same).relu("relu2").pool("pool2", (3, 3), (3, 3)).dense("classify", 10)
    w_chwo = arrays["Parameter193"].reshape(16, 4, 4, 10)
    net.weights = {
        "first.w": w1_oihw.transpose(0, 2, 3, 1)[None, None],
        "first.b": arrays["Parameter6"].reshape(1, 1, -1),
        "second.w": w2_oihw.transpose(0, 2, 3, 1)[None, None],
        "second.b": arrays["Parameter88"].reshape(1, 1, -1),
        "classify.w": w_chwo.transpose(3, 1, 2, 0).reshape(10, -1),
        "classify.b": arrays["Parameter194"].ravel(),
    }
    return net.graph()


def _initializers(model: bytes) -> Iterator[tuple[str, RealArray]]:
    """The float arrays of an ONNX file: field 7 of the model is the graph, field 5 of that a tensor."""
    for graph in (part for field, part in _fields(model) if field == 7):
        for tensor in (part for field, part in _fields(graph) if field == 5):
            fields: dict[int, bytes] = {}
            for field, part in _fields(tensor):
                fields[field] = fields.get(field, b"") + part
            yield fields[8].decode(), np.frombuffer(fields.get(4) or fields.get(9, b""), "<f4").astype(np.float64)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protocol buffer that hold bytes; numbers are passed over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                _, at = _varint(message, at)
            case 2:
                size, at = _varint(message, at)
                yield tag >> 3, message[at : at + size]
                at += size
            case kind:
                at += {1: 8, 5: 4}[kind]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if message[at - 1] < 128:
            return value, at
