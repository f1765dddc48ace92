"""The graph: frozen nodes in single assignment and topological order, weights beside them.

A node's name is the name of the tensor it makes. Activations are ``(H, W, C)``. Convolution weights are
``(R, C, O, kh, kw, I)``: one kernel for each *border class* (row class × column class, see `BorderClasses`);
an ordinary convolution has a single class, ``R = C = 1``. 1-D networks are ``H×1``. Real graphs hold float64 arrays;
after ``quantize`` a graph holds only integer nodes (`QConv2D`, `MaxPool`, …) and int64 arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import CompileError
from .numbers import MIN_BITS, Format

Shape = tuple[int, int, int]
Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
Array = NDArray[np.float64] | NDArray[np.int64]
FoldRule = Literal["auto", "force", "forbid"]
DepthOrder = Literal["DCR", "CRD"]
Rounding = Literal["native", "tflite", "float32", "float64"]
"""Which definition turns an accumulator into the next layer's integers: see `convfold.compiler.rounding`."""


@dataclass(frozen=True, slots=True)
class BorderClasses:
    """Which kernel an output position uses: class ``n`` holds from ``rows[n]`` to the next start; columns likewise."""

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
class Linear(Node):
    """An operation that is an affine map of its inputs: what the algebra can fold.

    ``fold`` is the user's word on merging it with the linear layer *in front* of it: ``auto`` (where it pays),
    ``force`` (wherever it is exact) or ``forbid``.
    """

    fold: FoldRule = "auto"

    op = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2D(Linear):
    """``y[i,j,m] = b[m] + Σ w[m,u,v,c] · x[i·s+u·d−p, j·s+v·d−p, c]``.

    Arrays ``NAME.w (R,C,O,kh,kw,I)`` and ``NAME.b (R,C,O)``. With ``groups`` the outputs and the channels of ``x`` are
    cut into as many equal parts, each output part reads its own input part, and ``I`` counts the channels of one part:
    as many groups as channels is a depthwise convolution.
    ``bits`` and ``weight_bits`` are the user's own widths for the output and the weights of this layer.
    """

    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    classes: BorderClasses = BorderClasses()
    bits: int | None = None
    weight_bits: int | None = None

    op = "conv2d"

    @property
    def plain(self) -> bool:
        """Whether every output reads every channel of neighbouring samples: neither grouped nor dilated."""
        return self.groups == 1 and self.dilation == (1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense(Linear):
    """``y = W · flatten(x) + b``, flattened in (H, W, C) order; arrays ``NAME.w (O, H·W·C)`` and ``NAME.b (O,)``."""

    bits: int | None = None
    weight_bits: int | None = None

    op = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNorm(Linear):
    """``y = gamma · (x − mean) / √(var + epsilon) + beta`` per channel; arrays ``NAME.gamma/.beta/.mean/.var (C,)``."""

    epsilon: float = 1e-5

    op = "batch_norm"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleBias(Linear):
    """``y = scale · x + bias`` per channel; arrays ``NAME.scale (C,)`` and ``NAME.bias (C,)``."""

    op = "scale_bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pca(Linear):
    """``y = components · (x − mean)`` at every pixel; arrays ``NAME.components (r, c)`` and ``NAME.mean (c,)``.

    With ``whiten`` each component is divided by its standard deviation, the root of ``NAME.explained_variance (r,)``.
    """

    whiten: bool = False

    op = "pca"


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePool(Linear):
    """The mean of each window; a global pool is one whose window is the whole map.

    With ``count_include_pad`` padded samples are zeros that count, so every window divides by ``kh·kw`` (PyTorch's
    default); without, a window divides by the number of its samples that lie inside the map (ONNX's and TensorFlow's
    default).
    """

    kernel: Pair
    stride: Pair
    padding: Padding = ((0, 0), (0, 0))
    count_include_pad: bool = False

    op = "average_pool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Linear):
    """The sum of two or more tensors of one shape."""

    op = "add"


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat(Linear):
    """The channels of two or more tensors of one size, one tensor after the other."""

    op = "concat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Linear):
    """The channels ``start … stop − 1``."""

    start: int
    stop: int

    op = "slice"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelShuffle(Linear):
    """Channel ``g·(C/groups) + n`` of the input becomes channel ``n·groups + g``."""

    groups: int

    op = "channel_shuffle"


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthToSpace(Linear):
    """``y[i·bh+r, j·bw+s, c] = x[i, j, n]``, where ``block`` is ``(bh, bw)`` and ``y`` has ``C`` channels.

    ``n = (r·bw + s)·C + c`` in ``order`` ``DCR`` (TensorFlow, ONNX's default), and ``n = (c·bh + r)·bw + s`` in
    ``CRD`` (PyTorch's pixel shuffle).
    """

    block: Pair
    order: DepthOrder = "DCR"

    op = "depth_to_space"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upsample(Linear):
    """Nearest neighbour, by an integer factor: ``y[i, j] = x[⌊i/fh⌋, ⌊j/fw⌋]``."""

    factor: Pair

    op = "upsample"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceToDepth(Linear):
    """The inverse of `DepthToSpace` of the same ``block`` and ``order``."""

    block: Pair
    order: DepthOrder = "DCR"

    op = "space_to_depth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pad(Linear):
    """``value`` all round the map: ``padding`` rows at top and bottom, columns left and right."""

    padding: Padding
    value: float = 0.0

    op = "pad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop(Linear):
    """The map without ``cropping`` rows at top and bottom, columns left and right."""

    cropping: Padding

    op = "crop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshape(Linear):
    """The same samples in the same (H, W, C) order, as a map of ``shape``."""

    shape: Shape

    op = "reshape"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropout(Linear):
    """The identity: what dropout is once a network is trained."""

    op = "dropout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten(Linear):
    """All samples as the channels of one pixel, in (H, W, C) order."""

    op = "flatten"


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
class Pointwise(Node):
    """A function of each sample, by name, with its ``parameters``; `convfold.compiler.functions` defines them all."""

    function: str
    parameters: tuple[float, ...] = ()

    op = "pointwise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prelu(Node):
    """``x`` where it is positive, ``slope · x`` where not, per channel; array ``NAME.slope (C,)``."""

    op = "prelu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiply(Node):
    """The product of two tensors of one shape, sample by sample."""

    op = "multiply"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgMax(Node):
    """The number of the greatest channel at every pixel, the first among equals. Works on reals and on raw integers alike."""

    op = "argmax"


# Integer nodes. Each has ``low … high``, the limits of its output in raw steps (a rectifier included), and ``format``.


@dataclass(frozen=True, slots=True, kw_only=True)
class QConv2D(Node):
    """Integer convolution, requantized: ``y = clamp(round(b + Σ w·x_raw) + zero point, low, high)``.

    Arrays ``NAME.w (R,C,O,kh,kw,I)``, ``NAME.b (R,C,O)`` (already less ``zero_point · Σw`` of the input, so padded taps carry
    the input's zero point), and those of its ``rounding``:

    * ``native``: ``NAME.m (O,)``, with the one ``shift`` of all channels: ``(acc·m + 2**(shift-1)) >> shift``;
    * ``tflite``: ``NAME.m (O,)`` of 31 bits and ``NAME.s (O,)``, the exponent (negative: to the right);
    * ``float32``, ``float64``: ``NAME.scale (O,)``, the product in that precision, then half to even; an optional
      ``NAME.offset (O,)`` is added before rounding.

    ``groups`` and ``dilation`` as in `Conv2D`. ``op`` in the user's words ("conv2d", "dense") is ``kind``.
    """

    stride: Pair
    padding: Padding
    classes: BorderClasses
    low: int
    high: int
    format: Format
    weight_bits: int
    shift: int = 0
    dilation: Pair = (1, 1)
    groups: int = 1
    rounding: Rounding = "native"
    kind: str = "conv2d"

    op = "qconv2d"


@dataclass(frozen=True, slots=True, kw_only=True)
class QAveragePool(Node):
    """The mean of each window of integers.

    ``native``: ``floor(Σ x / n + 1/2)``; ``tflite``: ``Σ x / n`` rounded to the nearest, ties away from zero; both in the
    input's own format. ``float32``, ``float64``: ``half_even(Σ (x - zero point) · ratio / n) + zero point``, in that precision
    (``ratio / n`` is rounded first, from float64). ``n`` counts as in `AveragePool`; padded samples are the input's zero point.
    """

    kernel: Pair
    stride: Pair
    padding: Padding
    count_include_pad: bool
    low: int
    high: int
    format: Format
    rounding: Rounding = "native"
    ratio: float = 1.0

    op = "qaverage_pool"


@dataclass(frozen=True, slots=True, kw_only=True)
class QAdd(Node):
    """The sum of two tensors of one shape, each with a factor of its own (a negative one subtracts).

    With ``a`` and ``b`` the raw samples less their zero points:

    * ``native``: ``(a·m0 + b·m1 + 2**(shift-1)) >> shift``, where ``multipliers`` is ``((m0, 0), (m1, 0))``;
    * ``tflite``: ``multipliers`` is ``((m0, s0), (m1, s1), (m2, s2))``, ``shift`` the left shift (20 for int8):
      ``scaled(scaled(a << shift, m0, s0) + scaled(b << shift, m1, s1), m2, s2)``, where ``scaled(x, -m, s)`` is
      ``-scaled(x, m, s)``;
    * ``float64``: ``half_even(a·ratios[0] + b·ratios[1])``, each step in that precision;
    * ``float32``: the same as onnxruntime computes it, zero points inside (`convfold.compiler.rounding`).
    """

    low: int
    high: int
    format: Format
    rounding: Rounding = "native"
    multipliers: tuple[Pair, ...] = ()
    ratios: tuple[float, ...] = ()
    shift: int = 0

    op = "qadd"


@dataclass(frozen=True, slots=True, kw_only=True)
class QMultiply(Node):
    """The product of two tensors of one shape, both less their zero points, requantized.

    ``native``: ``multiplier = (m, 0)`` and ``shift``; ``tflite``: ``multiplier = (m, s)``; ``float32``, ``float64``: ``ratio``.
    With ``float32`` the output's zero point is added before rounding, as onnxruntime does.
    """

    low: int
    high: int
    format: Format
    rounding: Rounding = "native"
    multiplier: Pair = (0, 0)
    ratio: float = 1.0
    shift: int = 0

    op = "qmultiply"


@dataclass(frozen=True, slots=True, kw_only=True)
class QTable(Node):
    """Any function of one sample, looked up: ``y = table[c or 0, x_raw - min_raw]``.

    Array ``NAME.table (1 or C, 2**bits of the input)``, raw values of ``format``; one row a channel, or one for all.
    ``function`` says what it stands for, for those who read the result.
    """

    format: Format
    function: str

    op = "qtable"


# These have a format of their own; argmax makes plain numbers, and all other nodes keep their input's.
Quantized = QConv2D | QAveragePool | QAdd | QMultiply | QTable


# ---------------------------------------------------------------------------------------------------------------- graph


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is proven of a tensor: channel ``c`` lies within ``low[c] … high[c]`` for every input in the declared range.

    ``layer`` is the clip that reads ``tensor``, with ``limits`` (``None`` for none). ``rule`` is what the bounds justify:
    that it is the ``identity``, that its ``floor`` or its ``ceiling`` is never touched, or that the ``channels`` behind it
    are ``constant``. ``channels`` are those for which that holds, ``method`` is how the bounds were found.
    """

    layer: str
    tensor: str
    limits: tuple[float | None, float | None]
    rule: str
    channels: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    method: str


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
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class Softmax:
    """What the host computes from an output of the engine: ``exp(beta·x) / Σ exp(beta·x)`` over the channels.

    With ``format`` the result is integers again, as tflite-micro computes them.
    """

    beta: float = 1.0
    format: Format | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in topological order, the tensors that leave, and read-only weights.

    ``heads`` names what the host library adds to an output (`Softmax`), by the output's name. ``shapes`` is derived: the
    ``(H, W, C)`` of every tensor. Change a graph with `dataclasses.replace`.
    """

    name: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Array] = field(compare=False)
    labels: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    heads: tuple[tuple[str, Softmax], ...] = ()
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
        if isinstance(node, MaxPool | AveragePool | QAveragePool):
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
        while not isinstance(node, Input | Quantized | ArgMax):  # what only moves samples, or picks one, keeps its input's
            node = self.node(node.inputs[0])
        if isinstance(node, ArgMax):
            return number_format(self.shapes[node.inputs[0]][2])
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
        yield f"dilation {node.dilation[0]}×{node.dilation[1]}" if node.dilation != (1, 1) else ""
        yield f"groups {node.groups}" if node.groups != 1 else ""
        yield f"classes {len(node.classes.rows)}×{len(node.classes.cols)}" if node.classes.count > 1 else ""
    elif isinstance(node, MaxPool | AveragePool | QAveragePool):
        yield f"{node.kernel[0]}×{node.kernel[1]}, stride {node.stride[0]}×{node.stride[1]}"
        if not isinstance(node, MaxPool):
            yield f"padding {node.padding}" if node.padding != ((0, 0), (0, 0)) else ""
            yield "padding counts" if node.count_include_pad else ""
    elif isinstance(node, Clip):
        yield f"{node.low:g} … {node.high:g}"
    elif isinstance(node, Slice):
        yield f"{node.start} … {node.stop - 1}"
    elif isinstance(node, ChannelShuffle):
        yield f"groups {node.groups}"
    elif isinstance(node, DepthToSpace | SpaceToDepth):
        yield f"{node.block[0]}×{node.block[1]}, {node.order}"
    elif isinstance(node, Upsample):
        yield f"{node.factor[0]}×{node.factor[1]}"
    elif isinstance(node, Pca):
        yield "whiten" if node.whiten else ""
    elif isinstance(node, Pad):
        yield f"{node.padding}, value {node.value:g}"
    elif isinstance(node, Crop):
        yield str(node.cropping)
    elif isinstance(node, Pointwise):
        yield node.function
        yield from (f"{parameter:g}" for parameter in node.parameters)
    elif isinstance(node, QTable):
        yield node.function
    if isinstance(node, Linear):
        yield f"fold {node.fold}" if node.fold != "auto" else ""
    if isinstance(node, QConv2D | QAveragePool | QAdd | QMultiply):
        yield node.rounding if node.rounding != "native" else ""
    if isinstance(node, Quantized | Input) and node.format is not None:
        yield str(node.format)


# --------------------------------------------------------------------------------------------------------------- shapes


def window_size(size: int, kernel: int, stride: int, padding: Pair) -> int:
    """How many windows of ``kernel`` fit into ``size`` samples with ``padding`` on both sides, ``stride`` apart."""
    return (size + sum(padding) - kernel) // stride + 1


def window_extent(kernel: int, dilation: int) -> int:
    """How many samples a kernel spans whose taps lie ``dilation`` apart."""
    return (kernel - 1) * dilation + 1


def same_padding(size: int, extent: int, stride: int, upper: bool = True) -> Pair:
    """The padding that makes ``⌈size / stride⌉`` windows; an odd sample goes behind, as in TensorFlow, or in front."""
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    small, great = total // 2, total - total // 2
    return (small, great) if upper else (great, small)


def number_format(channels: int) -> Format:
    """The format of a channel's number, which argmax makes."""
    return Format(max((channels - 1).bit_length(), MIN_BITS), False, 1.0)


def _windows(node: Node, shape: Shape, kernel: Pair, stride: Pair, padding: Padding) -> Pair:
    if 0 in stride:
        raise CompileError(node.source, f"stride must be 1 or more, not {stride}", "correct the stride")
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
            extent = window_extent(kh, node.dilation[0]), window_extent(kw, node.dilation[1])
            return (*_windows(node, inputs[0], extent, node.stride, node.padding), outputs)
        case MaxPool() | AveragePool() | QAveragePool():
            return (*_windows(node, inputs[0], node.kernel, node.stride, node.padding), inputs[0][2])
        case Dense():
            return 1, 1, weights[f"{node.name}.w"].shape[0]
        case Pca():
            return inputs[0][0], inputs[0][1], weights[f"{node.name}.components"].shape[0]
        case BatchNorm() | ScaleBias() | Clip() | Dropout() | Pointwise() | Prelu() | QTable():
            return inputs[0]
        case ArgMax():
            return inputs[0][0], inputs[0][1], 1
        case Add() | Multiply() | QAdd() | QMultiply():
            return _same_size(node, inputs, 3)
        case Concat():
            return (*_same_size(node, inputs, 2)[:2], sum(shape[2] for shape in inputs))
    return _moved(node, inputs[0])


def _same_size(node: Node, inputs: tuple[Shape, ...], axes: int) -> Shape:
    for name, shape in zip(node.inputs, inputs, strict=True):
        if shape[:axes] != inputs[0][:axes]:
            first, other = ("×".join(map(str, size[:axes])) for size in (inputs[0], shape))
            raise CompileError(
                node.source,
                f"{node.op} takes tensors of one size, but '{node.inputs[0]}' is {first} and '{name}' is {other}",
                "give the branches the same strides, padding and channels",
            )
    return inputs[0]


def _moved(node: Node, shape: Shape) -> Shape:
    """The shapes of operators that only move samples."""
    height, width, channels = shape
    match node:
        case Slice():
            if not 0 <= node.start < node.stop <= channels:
                message = f"channels {node.start} … {node.stop - 1} must lie within its input's 0 … {channels - 1}"
                raise CompileError(node.source, message, "start counts from 0, and stop is the first channel left out")
            return height, width, node.stop - node.start
        case ChannelShuffle():
            return height, width, node.groups * _share(node, channels, node.groups, "groups")
        case DepthToSpace():
            parts = node.block[0] * node.block[1]
            return height * node.block[0], width * node.block[1], _share(node, channels, parts, "samples a block")
        case SpaceToDepth():
            rows = _share(node, height, node.block[0], "rows a block", "rows")
            cols = _share(node, width, node.block[1], "columns a block", "columns")
            return rows, cols, channels * node.block[0] * node.block[1]
        case Upsample():
            return height * node.factor[0], width * node.factor[1], channels
        case Pad():
            return height + sum(node.padding[0]), width + sum(node.padding[1]), channels
        case Crop():
            height, width = height - sum(node.cropping[0]), width - sum(node.cropping[1])
            if height < 1 or width < 1:
                raise CompileError(node.source, f"nothing is left of its {shape[0]}×{shape[1]} input", "crop less")
            return height, width, channels
        case Reshape():
            if math.prod(node.shape) != math.prod(shape) or min(node.shape) < 1:
                wanted, given = ("×".join(map(str, size)) for size in (node.shape, shape))
                raise CompileError(node.source, f"{given} samples cannot be {wanted}", "keep the number of samples")
            return node.shape
        case Flatten():
            return 1, 1, math.prod(shape)
    raise TypeError(f"node must be a known operator, not {node!r}")


def _share(node: Node, size: int, parts: int, what: str, unit: str = "channels") -> int:
    if parts < 1 or size % parts:
        raise CompileError(node.source, f"{size} {unit} cannot be cut into {parts} {what}", "choose a divisor")
    return size // parts


def infer_shapes(nodes: tuple[Node, ...], weights: Mapping[str, Array]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for node in nodes:
        shapes[node.name] = node_shape(node, tuple(shapes[name] for name in node.inputs), weights)
    return shapes


# ------------------------------------------------------------------------------------------------------------ counting


def node_macs(graph: Graph, node: Node) -> int:
    """Multiplies of one node for one frame; padded taps count, since the engine spends a cycle on them.

    An average is one multiply: the rest of it are additions.
    """
    height, width, channels = graph.shapes[node.name]
    match node:
        case Conv2D() | QConv2D():
            _, _, _, kh, kw, inputs = graph.weights[f"{node.name}.w"].shape
            return int(height * width * channels * kh * kw * inputs)
        case Dense():
            return int(graph.weights[f"{node.name}.w"].size)
        case Pca():
            return height * width * int(graph.weights[f"{node.name}.components"].size)
        case BatchNorm() | ScaleBias() | AveragePool():
            return height * width * channels
    return 0


def graph_macs(graph: Graph) -> int:
    return sum(node_macs(graph, node) for node in graph.nodes)
