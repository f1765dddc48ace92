"""The rules of a graph: a sound one comes back as it is, and a broken rule is named with its node."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convfold.compiler.errors import CompileError, InternalError, quote
from convfold.compiler.graph import (
    Add,
    ArgMax,
    Array,
    BatchNorm,
    BorderClasses,
    ChannelShuffle,
    Clip,
    Concat,
    Conv2D,
    Crop,
    Dense,
    DepthToSpace,
    Flatten,
    Graph,
    Input,
    MaxPool,
    Multiply,
    Node,
    Pad,
    Pca,
    Pointwise,
    Prelu,
    QAdd,
    QAveragePool,
    QConv2D,
    QMultiply,
    QTable,
    Reshape,
    Slice,
    Softmax,
    SpaceToDepth,
    Upsample,
)
from convfold.compiler.numbers import Format
from convfold.compiler.verify import RESERVED, legal_name, name_fault, verify

INT8 = Format(8, True, 0.5)
UINT8 = Format(8, False, 0.5)


def real_graph() -> Graph:
    def where(name: str, *inputs: str) -> dict[str, Any]:
        return {"name": name, "inputs": inputs, "source": f"net.toml: {name}"}

    return Graph(
        name="net",
        nodes=(
            Input(**where("image"), shape=(6, 6, 2), low=0.0, high=1.0),
            Conv2D(
                **where("edges", "image"), classes=BorderClasses((0, 1), (0, 2, 3)), bits=8, weight_bits=4
            ),
            BatchNorm(**where("norm", "edges")),
            Pca(**where("project", "norm")),
            Clip(**where("rect", "project")),
            MaxPool(**where("pool", "rect"), kernel=(2, 2), stride=(2, 2)),
            Dense(**where("scores", "pool")),
        ),
        outputs=("scores", "norm"),
        weights={
            "edges.w": np.ones((2, 3, 3, 3, 3, 2)),
            "edges.b": np.ones((2, 3, 3)),
            **{f"norm.{part}": np.ones(3) for part in ("gamma", "beta", "mean", "var")},
            "project.components": np.ones((2, 3)),
            "project.mean": np.ones(3),
            "scores.w": np.ones((5, 8)),
            "scores.b": np.ones(5),
        },
        labels=("a", "b", "c", "d", "e"),
    )


def integer_graph() -> Graph:
    edges = QConv2D(
        name="edges",
        inputs=("image",),
        source="net.toml: edges",
        stride=(1, 1),
        padding=((1, 1), (1, 1)),
        classes=BorderClasses(),
        shift=1,
        low=0,
        high=255,
        format=UINT8,
        weight_bits=4,
    )
    return Graph(
        name="net",
        nodes=(
            Input(
                name="image",
                inputs=(),
                source="net.toml: image",
                shape=(6, 6, 2),
                low=0.0,
                high=1.0,
                format=INT8,
            ),
            edges,
            MaxPool(name="pool", inputs=("edges",), source="net.toml: pool", kernel=(2, 2), stride=(2, 2)),
        ),
        outputs=("pool",),
        weights={
            "edges.w": np.full((1, 1, 3, 3, 3, 2), -8),
            "edges.b": np.zeros((1, 1, 3), dtype=np.int64),
            "edges.m": np.full(3, (1 << 17) - 1),
        },
    )


def imported_graph() -> Graph:
    """Every operator of integers, as an importer makes them."""

    def where(name: str, *inputs: str, **fields: Any) -> Any:
        return {"name": name, "inputs": inputs, "source": f"net.tflite: {name}"} | fields

    limits: dict[str, Any] = {"low": -128, "high": 127, "format": INT8, "rounding": "tflite"}
    nodes = (
        Input(**where("image", shape=(4, 4, 2)), low=0.0, high=1.0, format=INT8),
        QConv2D(
            **where("conv", "image", **limits),
            stride=(1, 1),
            padding=((2, 2), (2, 2)),
            dilation=(2, 2),
            groups=2,
            classes=BorderClasses(),
            weight_bits=8,
        ),
        QConv2D(
            **where("scaled", "image", **limits | {"rounding": "float32"}),
            stride=(1, 1),
            padding=((0, 0), (0, 0)),
            classes=BorderClasses(),
            weight_bits=8,
        ),
        QAdd(**where("sum", "conv", "scaled", **limits), multipliers=((2**30, 0), (2**30, -1), (2**30, -18)), shift=20),
        QMultiply(**where("product", "sum", "conv", **limits), multiplier=(2**30, -7)),
        QAveragePool(
            **where("mean", "product", **limits),
            kernel=(2, 2),
            stride=(1, 1),
            padding=((1, 0), (1, 0)),
            count_include_pad=False,
        ),
        QTable(**where("curve", "mean"), format=INT8, function="sigmoid"),
        Concat(**where("both", "mean", "curve")),
        ChannelShuffle(**where("shuffle", "both"), groups=2),
        DepthToSpace(**where("wide", "shuffle"), block=(2, 2)),
        SpaceToDepth(**where("deep", "wide"), block=(2, 2)),
        Upsample(**where("up", "deep"), factor=(2, 2)),
        Pad(**where("pad", "up"), padding=((1, 1), (1, 1))),
        Crop(**where("crop", "pad"), cropping=((1, 1), (1, 1))),
        Slice(**where("part", "crop"), start=0, stop=2),
        MaxPool(**where("pool", "part"), kernel=(2, 2), stride=(2, 2)),
        Reshape(**where("reshape", "pool"), shape=(2, 8, 2)),
        Flatten(**where("flat", "reshape")),
        ArgMax(**where("best", "flat")),
    )
    weights: dict[str, Array] = {
        "conv.w": np.full((1, 1, 2, 3, 3, 1), -128),
        "conv.b": np.zeros((1, 1, 2), dtype=np.int64),
        "conv.m": np.full(2, 2**31 - 1),
        "conv.s": np.array([-31, 2]),
        "scaled.w": np.full((1, 1, 2, 1, 1, 2), 127),
        "scaled.b": np.zeros((1, 1, 2), dtype=np.int64),
        "scaled.scale": np.array([0.25, 1e-6]),
        "curve.table": np.arange(-128, 128)[None],
    }
    heads = (("flat", Softmax(1.0, Format(8, True, 1 / 256, -128))),)
    return Graph("net", nodes, ("best", "flat"), weights, labels=tuple(map(str, range(32))), heads=heads)


Change = Callable[[Graph], Graph]


def node(name: str, **fields: Any) -> Change:
    """One node with other fields."""

    def change(graph: Graph) -> Graph:
        nodes = (replace(old, **fields) if old.name == name else old for old in graph.nodes)
        return replace(graph, nodes=tuple(nodes))

    return change


def arrays(**changed: Array | None) -> Change:
    """Other arrays (with ``_`` for the dot), or none where there was one."""

    def change(graph: Graph) -> Graph:
        weights: dict[str, Array | None] = dict(graph.weights)
        weights |= {name.replace("_", "."): array for name, array in changed.items()}
        return replace(graph, weights={name: array for name, array in weights.items() if array is not None})

    return change


def also(extra: Node) -> Change:
    return lambda graph: replace(graph, nodes=(*graph.nodes, extra))


def behind_the_back(nodes: Callable[[tuple[Node, ...]], tuple[Node, ...]]) -> Change:
    """Nodes that `Graph` itself would not take, since it could not derive their shapes."""

    def change(graph: Graph) -> Graph:
        object.__setattr__(graph, "nodes", nodes(graph.nodes))
        return graph

    return change


def one(value: float) -> Array:
    array = np.ones(3)
    array[1] = value
    return array


def variance(least: float, epsilon: float) -> Change:
    return lambda graph: node("norm", epsilon=epsilon)(arrays(norm_var=one(least))(graph))


HIGH = 1 << 21

REAL: dict[str, tuple[Change, str, str]] = {
    "no input": (
        behind_the_back(lambda nodes: nodes[1:]),
        "the graph",
        "a network has exactly one input, not 0",
    ),
    "two inputs": (
        also(Input(name="other", inputs=(), source="", shape=(1, 1, 1), low=0, high=1)),
        "the graph",
        "a network has exactly one input, not 2",
    ),
    "network's name": (
        lambda graph: replace(graph, name="a b"),
        "the graph",
        "name 'a b' must be 1 to 64 ASCII letters, digits and _, no digit first",
    ),
    "name": (
        also(Clip(name="a\nb", inputs=("scores",), source="")),
        "'a\\nb'",
        "name 'a\\nb' must be 1 to 64 ASCII letters, digits and _, no digit first",
    ),
    "reserved": (
        also(Clip(name="wire", inputs=("scores",), source="")),
        "'wire'",
        "name 'wire' is a reserved word of Python or Verilog",
    ),
    "case": (
        also(Clip(name="RECT", inputs=("scores",), source="")),
        "'RECT'",
        "name 'RECT' differs from 'rect' only in case",
    ),
    "made twice": (
        also(Clip(name="scores", inputs=("scores",), source="")),
        "'scores'",
        "'scores' is made twice",
    ),
    "no argument": (
        behind_the_back(lambda nodes: (*nodes[:1], replace(nodes[1], inputs=()), *nodes[2:])),
        "'edges'",
        "conv2d takes 1 inputs, not 0",
    ),
    "made later": (
        behind_the_back(lambda nodes: (*nodes[:2], nodes[3], nodes[2], *nodes[4:])),
        "'project'",
        "input 'norm' is not made before it is used",
    ),
    "no outputs": (
        lambda graph: replace(graph, outputs=()),
        "the graph",
        "outputs must be one or more different tensors, not ()",
    ),
    "output twice": (
        lambda graph: replace(graph, outputs=("norm", "norm")),
        "the graph",
        "outputs must be one or more different tensors, not ('norm', 'norm')",
    ),
    "unknown output": (
        lambda graph: replace(graph, outputs=("other",)),
        "the graph",
        "output 'other' is no tensor of the network",
    ),
    "unused": (
        lambda graph: replace(graph, outputs=("norm",)),
        "'scores'",
        "no layer reads 'scores', and it is not an output",
    ),
    "array missing": (arrays(edges_b=None), "'edges'", "array 'edges.b' is missing"),
    "array of another shape": (
        arrays(edges_b=np.ones((2, 3, 4))),
        "'edges'",
        "array 'edges.b' must have shape (2, 3, O), not (2, 3, 4)",
    ),
    "array of other classes": (
        node("edges", classes=BorderClasses((0, 1), (0, 1))),
        "'edges'",
        "array 'edges.w' must have shape (2, 2, O, kh, kw, 2), not (2, 3, 3, 3, 3, 2)",
    ),
    "array of no elements": (
        arrays(edges_w=np.ones((2, 3, 3, 0, 3, 2))),
        "'edges'",
        "array 'edges.w' must have shape (2, 3, O, kh, kw, 2), not (2, 3, 3, 0, 3, 2)",
    ),
    "array too many": (arrays(other_w=np.ones(3)), "the graph", "array 'other.w' belongs to no layer"),
    "tensor too large": (
        node("edges", padding=((1 << 14, 0), (1 << 14, 0))),
        "'edges'",
        "output 16388×16388×3 must have 1 to 268435456 elements",
    ),
    "empty input": (
        lambda graph: Graph("net", (replace(graph.input, shape=(6, -6, 2)),), ("image",), {}),
        "'image'",
        "output 6×-6×2 must have 1 to 268435456 elements",
    ),
    "padded too large": (
        node("edges", padding=((1 << 14, 0), (1 << 14, 0)), stride=(1 << 12, 1 << 12)),
        "'edges'",
        "padded input 16390×16390×2 must have at most 268435456 elements",
    ),
    "stride": (node("pool", stride=(HIGH, 1)), "'pool'", f"stride must be 1 to 1048576, not ({HIGH}, 1)"),
    "stride below": (
        node("pool", kernel=(4, 4), stride=(2, -1)),
        "'pool'",
        "stride must be 1 to 1048576, not (2, -1)",
    ),
    "padding below": (
        node("edges", padding=((-1, 1), (0, 0))),
        "'edges'",
        "padding must be 0 to 1048576, not ((-1, 1), (0, 0))",
    ),
    "pool kernel": (node("pool", kernel=(2, 0)), "'pool'", "kernel must be 1 to 1048576, not (2, 0)"),
    "pool of padding": (
        node("pool", padding=((0, 0), (0, 2))),
        "'pool'",
        "padding must be below the kernel (2, 2), not ((0, 0), (0, 2))",
    ),
    **{
        f"classes {starts}": (
            node("edges", classes=BorderClasses((0, 1), starts)),
            "'edges'",
            f"border classes must rise from 0 to below 4, not {starts}",
        )
        for starts in ((1, 2, 3), (0, 2, 2), (0, 3, 2), (0, 2, 4))
    },
    "labels": (
        lambda graph: replace(graph, labels=("a", "b")),
        "'scores'",
        "output has 5 channels, but there are 2 labels",
    ),
    **{
        f"range {low} {high}": (
            node("image", low=low, high=high),
            "'image'",
            f"range must be finite, low below high, not [{low}, {high}]",
        )
        for low, high in ((1.0, 1.0), (-math.inf, 0.0), (0.0, math.nan))
    },
    "clip": (node("rect", low=2.0, high=1.0), "'rect'", "low must not exceed high, not [2.0, 1.0]"),
    "clip nan": (node("rect", low=math.nan), "'rect'", "low must not exceed high, not [nan, inf]"),
    "bits": (node("edges", bits=17), "'edges'", "bits must be 2 to 16, not 17"),
    "weight_bits": (node("scores", weight_bits=1), "'scores'", "weight_bits must be 2 to 16, not 1"),
    **{
        f"variance {least} {epsilon}": (
            variance(least, epsilon),
            "'norm'",
            f"variance + epsilon must be positive, neither negative, not {least:g} + {epsilon:g}",
        )
        for least, epsilon in ((-1.0, 2.0), (1.0, -0.5), (0.0, 0.0), (math.nan, 1.0))
    },
    "integer node": (
        lambda graph: replace(
            integer_graph(), nodes=(replace(graph.nodes[0], inputs=()), *integer_graph().nodes[1:])
        ),
        "'edges'",
        "qconv2d must not stand in a real graph",
    ),
    "groups": (
        lambda graph: arrays(edges_w=np.ones((2, 3, 3, 3, 3, 1)))(node("edges", groups=2)(graph)),
        "'edges'",
        "groups must divide the 2 channels it reads and the 3 it makes, not 2",
    ),
    "channels of a group": (
        node("edges", groups=2),
        "'edges'",
        "array 'edges.w' must have shape (2, 3, O, kh, kw, 1), not (2, 3, 3, 3, 3, 2)",
    ),
    "dilation": (node("edges", dilation=(0, 1)), "'edges'", "dilation must be 1 to 1048576, not (0, 1)"),
    "fold": (node("norm", fold="never"), "'norm'", "fold must be one of auto, force, forbid, not 'never'"),
    "join": (also(Add(name="sum", inputs=("scores",), source="")), "'sum'", "add takes 2 or more inputs, not 1"),
    "factor": (
        lambda graph: replace(
            also(Upsample(name="up", inputs=("scores",), source="", factor=(0, 1)))(graph), outputs=("up",)
        ),
        "'up'",
        "factor must be 1 to 1048576, not (0, 1)",
    ),
    "no variance": (
        node("project", whiten=True),
        "'project'",
        "array 'project.explained_variance' is missing",
    ),
    "variance": (
        lambda graph: node("project", whiten=True)(
            replace(graph, weights={**graph.weights, "project.explained_variance": np.array([1.0, -1.0])})
        ),
        "'project'",
        "explained variance must not be negative",
    ),
    "integers": (
        arrays(edges_b=np.ones((2, 3, 3), dtype=np.int64)),
        "'edges'",
        "array 'edges.b' must hold float64, not int64",
    ),
}

QUANTIZED: dict[str, tuple[Change, str, str]] = {
    "no format": (node("image", format=None), "'image'", "the input must have an integer format"),
    "weight_bits": (node("edges", weight_bits=17), "'edges'", "weight_bits must be 2 to 16, not 17"),
    "kind": (node("edges", kind="pca"), "'edges'", "kind must be 'conv2d' or 'dense', not 'pca'"),
    "no shift": (node("edges", shift=0), "'edges'", "shift must be 1 to 62, not 0"),
    "shift": (node("edges", shift=63), "'edges'", "shift must be 1 to 62, not 63"),
    "low": (node("edges", low=-1), "'edges'", "limits must rise inside uint8 × 0.5, not [-1, 255]"),
    "high": (node("edges", high=256), "'edges'", "limits must rise inside uint8 × 0.5, not [0, 256]"),
    "limits": (node("edges", low=9, high=8), "'edges'", "limits must rise inside uint8 × 0.5, not [9, 8]"),
    "real node": (
        lambda graph: also(Clip(name="rect", inputs=("pool",), source=""))(
            replace(graph, outputs=("pool", "rect"))
        ),
        "'rect'",
        "clip must not stand in an integer graph",
    ),
    "floats": (arrays(edges_m=np.ones(3)), "'edges'", "array 'edges.m' must hold int64, not float64"),
    "no multiplier": (arrays(edges_m=None), "'edges'", "array 'edges.m' is missing"),
    "weight below": (
        arrays(edges_w=np.full((1, 1, 3, 3, 3, 2), -9)),
        "'edges'",
        "array 'edges.w' must stay in [-8, 7], not [-9, -9]",
    ),
    "weight above": (
        arrays(edges_w=np.full((1, 1, 3, 3, 3, 2), 8)),
        "'edges'",
        "array 'edges.w' must stay in [-8, 7], not [8, 8]",
    ),
    "bias": (
        arrays(edges_b=np.full((1, 1, 3), 1 << 45)),
        "'edges'",
        f"array 'edges.b' must stay in [{1 - (1 << 45)}, {(1 << 45) - 1}], not [{1 << 45}, {1 << 45}]",
    ),
    "multiplier": (
        arrays(edges_m=np.full(3, 1 << 17)),
        "'edges'",
        "array 'edges.m' must stay in [0, 131071], not [131072, 131072]",
    ),
    "negative multiplier": (
        arrays(edges_m=np.full(3, -1)),
        "'edges'",
        "array 'edges.m' must stay in [0, 131071], not [-1, -1]",
    ),
    "accumulator": (
        arrays(edges_b=np.full((1, 1, 3), (1 << 45) - 1)),
        "'edges'",
        f"accumulator must stay within ±{(1 << 45) - 1}, not [{-18288}, {(1 << 45) - 1 + 18432}]",
    ),
}


LARGE = 2**31
IMPORTED: dict[str, tuple[Change, str, str]] = {
    "channels of a group": (
        node("scaled", groups=2),
        "'scaled'",
        "array 'scaled.w' must have shape (1, 1, O, kh, kw, 1), not (1, 1, 2, 1, 1, 2)",
    ),
    "groups": (
        node("conv", groups=-1),
        "'conv'",
        "array 'conv.w' must have shape (1, 1, O, kh, kw, 2), not (1, 1, 2, 3, 3, 1)",
    ),
    "rounding": (
        node("product", rounding="up"),
        "'product'",
        "rounding must be one of native, tflite, float32, float64, not 'up'",
    ),
    "limits": (node("sum", low=128), "'sum'", "limits must rise inside int8 × 0.5, not [128, 127]"),
    "dilation": (
        node("conv", dilation=(0, 2), padding=((0, 0), (2, 2))),
        "'conv'",
        "dilation must be 1 to 1048576, not (0, 2)",
    ),
    "exponents": (
        arrays(conv_s=np.array([-32, 0])),
        "'conv'",
        "array 'conv.s' must stay in [-31, 30], not [-32, 0]",
    ),
    "multipliers": (
        arrays(conv_m=np.array([-1, 0])),
        "'conv'",
        f"array 'conv.m' must stay in [0, {LARGE - 1}], not [-1, 0]",
    ),
    "exponents missing": (arrays(conv_s=None), "'conv'", "array 'conv.s' is missing"),
    "scale of integers": (
        arrays(scaled_scale=np.array([1, 2])),
        "'scaled'",
        "array 'scaled.scale' must hold float64, not int64",
    ),
    "concat": (
        node("curve", format=Format(8, True, 0.25)),
        "'both'",
        "concat takes tensors of one format: 'mean' is int8 × 0.5, but 'curve' is int8 × 0.25",
    ),
    "mean": (
        node("mean", format=Format(8, True, 0.25)),
        "'mean'",
        "format must be that of its input, int8 × 0.5, not int8 × 0.25",
    ),
    "mean of floats": (
        node("mean", rounding="float32", ratio=0.0),
        "'mean'",
        "ratios must be 1, finite and positive, not (0.0,)",
    ),
    "mean in padding": (
        node("mean", stride=(2, 1), padding=((2, 2), (1, 0))),
        "'mean'",
        "padding must be below the kernel (2, 2), not ((2, 2), (1, 0))",
    ),
    "table's rows": (
        arrays(curve_table=np.zeros((3, 256), dtype=np.int64)),
        "'curve'",
        "array 'curve.table' must have shape (1, 256) or (2, 256), not (3, 256)",
    ),
    "table's length": (
        arrays(curve_table=np.zeros((1, 255), dtype=np.int64)),
        "'curve'",
        "array 'curve.table' must have shape (1, 256) or (2, 256), not (1, 255)",
    ),
    "table's entries": (
        arrays(curve_table=np.full((1, 256), 128)),
        "'curve'",
        "array 'curve.table' must stay in [-128, 127], not [128, 128]",
    ),
    "terms of a sum": (
        node("sum", multipliers=((1, 0), (1, 0))),
        "'sum'",
        "multipliers must be 3, the last not negative, not ((1, 0), (1, 0))",
    ),
    "shift of a sum": (node("sum", shift=32), "'sum'", "shift must be 0 to 31, not 32"),
    "exponent of a sum": (
        node("sum", multipliers=((1, 0), (1, -32), (1, 0))),
        "'sum'",
        f"multiplier must be 0 to {LARGE - 1} with exponent -31 to 30, not (1, -32)",
    ),
    "native sum": (
        node("sum", rounding="native", multipliers=((1, 0), (1, 1))),
        "'sum'",
        f"multipliers must be 2 below {LARGE}, with exponents 0, not ((1, 0), (1, 1))",
    ),
    "native sum's shift": (node("sum", rounding="native", shift=0), "'sum'", "shift must be 1 to 62, not 0"),
    "sum of floats": (
        node("sum", rounding="float64", ratios=(1.0, math.inf)),
        "'sum'",
        "ratios must be 2, finite and not 0, not (1.0, inf)",
    ),
    "product": (
        node("product", multiplier=(LARGE, 0)),
        "'product'",
        f"multiplier must be 0 to {LARGE - 1} with exponent -31 to 30, not ({LARGE}, 0)",
    ),
    "native product": (
        node("product", rounding="native", shift=1, multiplier=(-1, 0)),
        "'product'",
        f"multiplier must be 0 to {LARGE - 1} with exponent 0, and its products below 2**62, not (-1, 0)",
    ),
    "product of floats": (
        node("product", rounding="float64", ratio=-1.0),
        "'product'",
        "ratios must be 1, finite and positive, not (-1.0,)",
    ),
    "two factors": (node("product", inputs=("sum",)), "'product'", "qmultiply takes 2 inputs, not 1"),
    "value of a pad": (node("pad", value=math.nan), "'pad'", "value must be finite, not nan"),
    "negative pad": (
        node("pad", padding=((-1, 3), (1, 1))),
        "'pad'",
        "padding must be 0 to 1048576, not ((-1, 3), (1, 1))",
    ),
    "negative crop": (
        node("crop", cropping=((-1, 3), (1, 1))),
        "'crop'",
        "cropping must be 0 to 1048576, not ((-1, 3), (1, 1))",
    ),
    "block": (
        behind_the_back(lambda nodes: tuple(replace(n, block=(0, 2)) if isinstance(n, SpaceToDepth) else n for n in nodes)),
        "'deep'",
        "block must be 1 to 1048576, not (0, 2)",
    ),
    "order": (node("wide", order="RCD"), "'wide'", "order must be one of DCR, CRD, not 'RCD'"),
    "labels of the greatest": (
        lambda graph: replace(graph, labels=("a",)),
        "'best'",
        "output has 32 channels, but there are 1 labels",
    ),
    "head of no output": (
        lambda graph: replace(graph, heads=(("pool", Softmax()),)),
        "the graph",
        "a head must name an output of its own, not 'pool'",
    ),
    "two heads": (
        lambda graph: replace(graph, heads=graph.heads * 2),
        "the graph",
        "a head must name an output of its own, not 'flat'",
    ),
    "beta": (
        lambda graph: replace(graph, heads=(("flat", Softmax(0.0)),)),
        "'flat'",
        "beta of its softmax must be positive and finite, not 0.0",
    ),
    "format of a head": (
        lambda graph: replace(graph, heads=(("flat", Softmax(1.0, UINT8)),)),
        "'flat'",
        "softmax in integers is from int8 to int8 × 1/256 zero -128, not from int8 × 0.5 to uint8 × 0.5",
    ),
}


def test_sound_graphs_come_back_as_they_are() -> None:
    real, quantized = real_graph(), integer_graph()
    for graph in (imported_graph(), arrays(scaled_offset=np.ones(2))(imported_graph())):
        assert verify(graph, "spec") is graph
    for stage in ("spec", "fold_batchnorm"):
        assert verify(real, stage) is real
    for stage in ("integer", "plan"):
        assert verify(quantized, stage) is quantized


def test_convolutions_may_be_padded_by_more_than_their_kernel() -> None:
    graph = node("edges", padding=((3, 4), (0, 0)))(
        replace(real_graph(), nodes=real_graph().nodes[:2], labels=())
    )
    weights = {name: array for name, array in graph.weights.items() if name.startswith("edges.")}
    verify(replace(graph, outputs=("edges",), weights=weights), "fold_cascades")


def test_a_network_of_nothing_is_sound() -> None:
    """What is left when all rectifiers of a net of rectifiers are proven to be identities."""
    graph = real_graph()
    verify(Graph("net", graph.nodes[:1], ("image",), {}), "fold")


def test_a_thousand_pools_keep_the_format_of_their_input() -> None:
    """Deeper than Python may recurse."""
    graph = integer_graph()
    names = ["pool", *(f"pool{number}" for number in range(1100))]
    pools = (
        MaxPool(name=name, inputs=(before,), source="", kernel=(1, 1), stride=(1, 1))
        for before, name in pairwise(names)
    )
    graph = replace(graph, nodes=(*graph.nodes, *pools), outputs=(names[-1],))
    assert verify(graph, "integer").format_of(names[-1]) == UINT8


@pytest.mark.parametrize("case", REAL)
def test_broken_rules_of_real_graphs(case: str) -> None:
    change, name, rule = REAL[case]
    graph = change(real_graph())
    with pytest.raises(
        InternalError, match=rf"^bug in convfold: after fold_x: {re.escape(f'{name}: {rule}')}(\n|$)"
    ):
        verify(graph, "fold_x")
    with pytest.raises(CompileError, match=rf"^[^\n]*: {re.escape(rule)}(\n  fix: |$)"):
        verify(graph, "spec")


@pytest.mark.parametrize("case", QUANTIZED)
def test_broken_rules_of_integer_graphs(case: str) -> None:
    change, name, rule = QUANTIZED[case]
    graph = change(integer_graph())
    with pytest.raises(
        InternalError, match=rf"^bug in convfold: after integer: {re.escape(f'{name}: {rule}')}(\n|$)"
    ):
        verify(graph, "integer")


@pytest.mark.parametrize("case", IMPORTED)
def test_broken_rules_of_imported_integers(case: str) -> None:
    change, name, rule = IMPORTED[case]
    graph = change(imported_graph())
    with pytest.raises(
        InternalError, match=rf"^bug in convfold: after integer: {re.escape(f'{name}: {rule}')}(\n|$)"
    ):
        verify(graph, "integer")
    with pytest.raises(CompileError, match=rf"^[^\n]*: {re.escape(rule)}(\n  fix: |$)"):
        verify(graph, "spec")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (arrays(conv_s=np.array([0, 13])), 147456 * 2**13),
        (node("sum", shift=24), 2**31),
        (node("product", multiplier=(2**30, 18)), 2**32),
    ],
)
def test_tflite_has_32_bits(change: Change, found: int) -> None:
    """The reference's integers would overflow, which its definition leaves open."""
    if found <= 2**31:
        verify(change(imported_graph()), "integer")
        return
    rule = f"what it multiplies must stay within ±{2**31}, not {found}\n  fix: its scales are too far apart"
    with pytest.raises(CompileError, match=rf"^net\.tflite: [a-z]+: {re.escape(rule)}$"):
        verify(change(imported_graph()), "integer")


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        (np.array([0.5, 0.0]), "must be finite and positive"),
        (np.array([math.inf, 1.0]), "must be finite and positive"),
    ],
)
def test_scales_are_the_users(array: Array, rule: str) -> None:
    with pytest.raises(CompileError, match=rf"^net\.tflite: scaled: array 'scaled\.scale' {rule}$"):
        verify(arrays(scaled_scale=array)(imported_graph()), "integer")


FUNCTIONS: dict[str, tuple[Node, str]] = {
    "unknown": (Pointwise(name="f", inputs=("image",), source="", function="sine"), "function must be one of leaky_relu, "),
    "parameters": (
        Pointwise(name="f", inputs=("image",), source="", function="leaky_relu"),
        "leaky_relu takes alpha, all finite, not ()",
    ),
    "finite": (
        Pointwise(name="f", inputs=("image",), source="", function="elu", parameters=(math.nan,)),
        "elu takes alpha, all finite, not (nan,)",
    ),
    "prelu": (Prelu(name="f", inputs=("image",), source=""), "array 'f.slope' is missing"),
    "multiply": (Multiply(name="f", inputs=("image",), source=""), "multiply takes 2 inputs, not 1"),
    "integers": (
        QAdd(name="f", inputs=("image", "image"), source="", low=0, high=1, format=INT8),
        "qadd must not stand in a real graph",
    ),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_broken_rules_of_functions(case: str) -> None:
    function, rule = FUNCTIONS[case]
    image = real_graph().nodes[0]
    with pytest.raises(CompileError, match=rf"^: {re.escape(rule)}"):
        verify(Graph("net", (image, function), ("f",), {}), "spec")


@pytest.mark.parametrize("stage", ["spec", "fold_cascades"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_numbers_that_overflow_are_the_users(stage: str, value: float) -> None:
    with pytest.raises(
        CompileError, match=r"^net\.toml: norm: array 'norm\.mean' must be finite\n  fix: products of "
    ):
        verify(arrays(norm_mean=one(value))(real_graph()), stage)


def test_stage_integer_takes_no_real_graph() -> None:
    text = "bug in convfold: after integer: 'image': the input must have an integer format"
    with pytest.raises(InternalError, match=rf"^{re.escape(text)}\n"):
        verify(real_graph(), "integer")


def test_the_user_sees_where_and_how_to_fix_it() -> None:
    graph = replace(real_graph(), outputs=("norm",))
    text = (
        "net.toml: scores: no layer reads 'scores', and it is not an output\n"
        "  fix: let another layer read it, add it to [network] outputs, or remove it"
    )
    with pytest.raises(CompileError, match=rf"^{re.escape(text)}$"):
        verify(graph, "spec")
    with pytest.raises(CompileError, match=r"^network 'a b': name 'a b' must be .*\n  fix: call it 'a_b'$"):
        verify(replace(graph, name="a b"), "spec")


def test_a_bug_is_shown_in_its_place() -> None:
    text = (
        "bug in convfold: after fold_x: 'rect': low must not exceed high, not [2.0, 1.0]\n"
        "  edges: 4×4×3 = conv2d(image, 3×3, classes 2×3)\n"
        "  norm: 4×4×3 = batch_norm(edges)\n"
        "  project: 4×4×2 = pca(norm)\n"
        "→ rect: 4×4×2 = clip(project, 2 … 1)\n"
        "  pool: 2×2×2 = max_pool(rect, 2×2, stride 2×2)\n"
        "  scores: 1×1×5 = dense(pool)\n"
        "  return scores, norm"
    )
    with pytest.raises(InternalError, match=rf"^{re.escape(text)}$") as caught:
        verify(node("rect", low=2.0, high=1.0)(real_graph()), "fold_x")
    assert (caught.value.stage, caught.value.node) == ("fold_x", "'rect'")


@given(text=st.text(max_size=80))
def test_any_text_has_a_legal_name(text: str) -> None:
    name = legal_name(text)
    assert name_fault(name) is None
    assert name_fault(text) is not None or name == text


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_words_get_another_name(name: str) -> None:
    assert name_fault(name) == (
        f"name {name!r} is a reserved word of Python or Verilog",
        f"call it '{name}_'",
    )


def test_the_input_may_be_called_input() -> None:
    assert name_fault("input") is None


@dataclass
class Silent:
    """Its ``repr`` fails as that of an integer too long to print does."""

    def __repr__(self) -> str:
        raise ValueError("Exceeds the limit")


def test_quotes_are_short_and_never_fail() -> None:
    assert quote("a\x1b\n") == r"'a\x1b\n'"
    assert quote("x" * 100) == f"'{'x' * 43} … {'x' * 12}'"
    assert len(quote(list(range(100)))) == 60
    assert quote(Silent()) == "something of type Silent too long to print"
    assert quote(1 << 100_000) == "something of type int too long to print"
