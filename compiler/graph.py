"""The graph: frozen nodes in single assignment and topological order, weights beside them.

A node's name is the name of the tensor it makes. Activations are ``(H, W, C)``. Convolution weights are
``(R, C, O, kh, kw, I)``: one kernel for each *border class* (row class × column class, see `BorderClasses`); an ordinary
convolution has a single class, ``R = C = 1``. Real graphs hold float64 arrays; after ``quantize`` a graph holds only
integer nodes (`QConv2D`, `MaxPool`, …) and int64 arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from .errors import CompileError
from .numbers import Format

Shape = tuple[int, int, int]
Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
Array = NDArray[np.float64] | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BorderClasses:
    """Which kernel an output position uses: class ``n`` holds from ``rows[n]`` up to the next start; columns likewise."""

    rows: tuple[int, ...] = (0,)
    cols: tuple[int, ...] = (0,)

    @property
    def count(self) -> int:
        return len(self.rows) * len(self.cols)

    def row_class(self, height: int) -> NDArray[np.int64]:
        """The class of each of ``height`` output rows."""
        return np.searchsorted(self.rows, np.arange(height), side="right") - 1

    def col_class(self, width: int) -> NDArray[np.int64]:
        """The class of each of ``width`` output columns."""
        return np.searchsorted(self.cols, np.arange(width), side="right") - 1


# ---------------------------------------------------------------------------------------------------------------- nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operation. ``source`` says where the user wrote it, for error texts."""

    name: str
    inputs: tuple[str, ...]
    source: str

    op = "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Node):
    """The network's input: real values within ``low … high``, or integers once ``format`` is set."""

    shape: Shape
    low: float
    high: float
    format: Format | None = None

    op = "input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2D(Node):
    """``y[i,j,m] = b[m] + Σ w[m,u,v,c] · x[i·s+u−p, j·s+v−p, c]``; arrays ``NAME.w (R,C,O,kh,kw,I)``, ``NAME.b (R,C,O)``.

    ``bits`` and ``weight_bits`` are the user's own widths for the output and the weights of this layer.
    """

    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    classes: BorderClasses = BorderClasses()
    bits: int | None = None
    weight_bits: int | None = None

    op = "conv2d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense(Node):
    """``y = W · flatten(x) + b``, flattened in (H, W, C) order; arrays ``NAME.w (O, H·W·C)`` and ``NAME.b (O,)``."""

    bits: int | None = None
    weight_bits: int | None = None

    op = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNorm(Node):
    """``y = gamma · (x − mean) / √(var + epsilon) + beta`` per channel; arrays ``NAME.gamma/.beta/.mean/.var (C,)``."""

    epsilon: float = 1e-5

    op = "batch_norm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pca(Node):
    """``y = components · (x − mean)`` at every pixel; arrays ``NAME.components (r, c)`` and ``NAME.mean (c,)``."""

    op = "pca"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip(Node):
    """``min(max(x, low), high)``; ReLU is ``low = 0, high = ∞``."""

    low: float = 0.0
    high: float = math.inf

    op = "clip"


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool(Node):
    """The greatest value of each window; padding never wins. Works on reals and on raw integers alike."""

    kernel: Pair
    stride: Pair
    padding: Padding = ((0, 0), (0, 0))

    op = "max_pool"


@dataclass(frozen=True, slots=True, kw_only=True)
class QConv2D(Node):
    """Integer convolution, requantized: ``y = requantize(b + Σ w·x_raw, m, shift, zero point, low, high)``.

    Arrays ``NAME.w (R,C,O,kh,kw,I)``, ``NAME.b (R,C,O)`` (already less ``zero_point · Σw`` of the input, so padded taps carry
    the input's zero point), ``NAME.m (O,)``. ``low … high`` are the output's limits in raw steps, a rectifier included.
    ``op`` in the user's words ("conv2d" or "dense") is ``kind``.
    """

    stride: Pair
    padding: Padding
    classes: BorderClasses
    shift: int
    low: int
    high: int
    format: Format
    weight_bits: int
    kind: str = "conv2d"

    op = "qconv2d"


# ---------------------------------------------------------------------------------------------------------------- graph


@dataclass(frozen=True, slots=True)
class Decision:
    """What a pass did, or why it did not. ``error`` is the greatest measured difference, relative for exact rules."""

    rule: str
    layers: tuple[str, ...]
    taken: bool
    reason: str
    macs_before: int
    macs_after: int
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in topological order, the tensors that leave, and read-only weights.

    ``shapes`` is derived: the ``(H, W, C)`` of every tensor. Change a graph with `dataclasses.replace`.
    """

    name: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Array] = field(compare=False)
    labels: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    shapes: Mapping[str, Shape] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        frozen = {}
        for name, array in self.weights.items():
            view = array.view()
            view.flags.writeable = False
            frozen[name] = view
        object.__setattr__(self, "weights", MappingProxyType(frozen))
        object.__setattr__(self, "shapes", MappingProxyType(infer_shapes(self.nodes, self.weights)))

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def kernel(self, node: Node) -> Pair:
        """The window of a convolution or a pool."""
        if isinstance(node, MaxPool):
            return node.kernel
        kh, kw = self.weights[f"{node.name}.w"].shape[3:5]
        return kh, kw

    def integers(self, name: str) -> NDArray[np.int64]:
        """An array of a quantized graph."""
        return self.weights[name].astype(np.int64, copy=False)

    def consumers(self, name: str) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if name in node.inputs)

    @property
    def input(self) -> Input:
        (node,) = (node for node in self.nodes if isinstance(node, Input))
        return node

    def format_of(self, name: str) -> Format:
        """The integer format of a tensor of a quantized graph."""
        node = self.node(name)
        while not isinstance(node, Input | QConv2D):  # a pool keeps its input's
            node = self.node(node.inputs[0])
        if node.format is None:
            raise ValueError(f"tensor must be quantized, not {name!r}")
        return node.format

    def __str__(self) -> str:
        """One line a node: what the pass laws and the expect files compare."""
        return "\n".join(_lines(self))


def _lines(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        height, width, channels = graph.shapes[node.name]
        arguments = [*node.inputs, *(text for text in _attributes(graph, node) if text)]
        yield f"{node.name}: {height}×{width}×{channels} = {node.op}({', '.join(arguments)})"
    yield f"return {', '.join(graph.outputs)}"


def _attributes(graph: Graph, node: Node) -> Iterator[str]:
    if isinstance(node, Conv2D | QConv2D):
        _, _, _, kh, kw, _ = graph.weights[f"{node.name}.w"].shape
        yield f"{kh}×{kw}"
        yield f"stride {node.stride[0]}×{node.stride[1]}" if node.stride != (1, 1) else ""
        yield f"padding {node.padding}" if node.padding != ((0, 0), (0, 0)) else ""
        yield f"classes {len(node.classes.rows)}×{len(node.classes.cols)}" if node.classes.count > 1 else ""
    elif isinstance(node, MaxPool):
        yield f"{node.kernel[0]}×{node.kernel[1]}, stride {node.stride[0]}×{node.stride[1]}"
    elif isinstance(node, Clip):
        yield f"{node.low:g} … {node.high:g}"
    if isinstance(node, QConv2D | Input) and node.format is not None:
        yield str(node.format)


# --------------------------------------------------------------------------------------------------------------- shapes


def window_size(size: int, kernel: int, stride: int, padding: Pair) -> int:
    """How many windows of ``kernel`` fit into ``size`` samples with ``padding`` on both sides, ``stride`` apart."""
    return (size + sum(padding) - kernel) // stride + 1


def _windows(node: Node, shape: Shape, kernel: Pair, stride: Pair, padding: Padding) -> Pair:
    height, width = (window_size(shape[a], kernel[a], stride[a], padding[a]) for a in (0, 1))
    if height < 1 or width < 1:
        raise CompileError(
            node.source,
            f"a {kernel[0]}×{kernel[1]} window does not fit into its {shape[0]}×{shape[1]} input, so the output is empty",
            "use a smaller kernel, or padding",
        )
    return height, width


def node_shape(node: Node, inputs: tuple[Shape, ...], weights: Mapping[str, Array]) -> Shape:
    """The shape rule of every operator."""
    match node:
        case Input():
            return node.shape
        case Conv2D() | QConv2D():
            _, _, outputs, kh, kw, _ = weights[f"{node.name}.w"].shape
            return (*_windows(node, inputs[0], (kh, kw), node.stride, node.padding), outputs)
        case MaxPool():
            return (*_windows(node, inputs[0], node.kernel, node.stride, node.padding), inputs[0][2])
        case Dense():
            return 1, 1, weights[f"{node.name}.w"].shape[0]
        case Pca():
            return inputs[0][0], inputs[0][1], weights[f"{node.name}.components"].shape[0]
        case BatchNorm() | Clip():
            return inputs[0]
    raise TypeError(f"node must be a known operator, not {node!r}")


def infer_shapes(nodes: tuple[Node, ...], weights: Mapping[str, Array]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for node in nodes:
        shapes[node.name] = node_shape(node, tuple(shapes[name] for name in node.inputs), weights)
    return shapes


# -------------------------------------------------------------------------------------------------------------- counting


def node_macs(graph: Graph, node: Node) -> int:
    """Multiplies of one node for one frame; padded taps count, since the engine spends a cycle on them."""
    height, width, channels = graph.shapes[node.name]
    match node:
        case Conv2D() | QConv2D():
            _, _, _, kh, kw, inputs = graph.weights[f"{node.name}.w"].shape
            return int(height * width * channels * kh * kw * inputs)
        case Dense():
            return int(graph.weights[f"{node.name}.w"].size)
        case Pca():
            return height * width * int(graph.weights[f"{node.name}.components"].size)
        case BatchNorm():
            return height * width * channels
    return 0


def graph_macs(graph: Graph) -> int:
    return sum(node_macs(graph, node) for node in graph.nodes)
