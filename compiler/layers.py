"""The operators of a specification: how each ``[[layer]]`` becomes a node and its arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from .errors import CompileError, quote
from .fields import (
    BITS,
    CHANNEL,
    CLASSES,
    COUNT,
    EPSILON,
    FLAG,
    FOLD,
    LARGEST,
    LIMIT,
    NAMES,
    NUMBER,
    ORDER,
    PADDING,
    PAIR,
    SHAPE,
    SIDES,
    STEPS,
    TEXT,
    Table,
    nearest,
    no_padding,
    suggest,
)
from .files import printable
from .functions import FUNCTIONS
from .graph import (
    Add,
    ArgMax,
    AveragePool,
    BatchNorm,
    BorderClasses,
    ChannelShuffle,
    Clip,
    Concat,
    Conv2D,
    Crop,
    Dense,
    DepthToSpace,
    Dropout,
    Flatten,
    FoldRule,
    MaxPool,
    Multiply,
    Node,
    Pad,
    Pair,
    Pca,
    Pointwise,
    Prelu,
    Reshape,
    ScaleBias,
    Shape,
    Slice,
    SpaceToDepth,
    Upsample,
    window_extent,
)
from .npz import read_npz
from .numbers import RealArray
from .passes.rewrite import fresh_name
from .verify import MAX_INPUTS, Dims, fits, show_dims

INPUT = "input"
"""The name of the network's input."""
SOFTMAX = "softmax"
"""The operator that stands for no node, but for what the host computes of an output."""

# --------------------------------------------------------------------------------------------------------------- arrays


class Arrays:
    """The arrays of the weights file, and the names of those that some layer reads."""

    def __init__(self, path: Path, source: str) -> None:
        self.file = printable(path.name)
        self.source = source
        self.found = read_npz(path, source)
        self.known: set[str] = set()

    def close(self) -> None:
        for name in self.found:
            if name not in self.known:
                typo = nearest(name, self.known - self.found.keys())
                hint = f"rename it to {typo!r}" if typo else "remove it"
                message = f"array {quote(name)} in {self.file} belongs to no layer"
                raise CompileError(self.source, message, hint)


# --------------------------------------------------------------------------------------------------------------- layers


class Identity(TypedDict):
    """What every node has."""

    name: str
    inputs: tuple[str, ...]
    source: str


class LinearIdentity(Identity):
    """What every linear node has."""

    fold: FoldRule


class Layer(Table):
    """A ``[[layer]]`` table: its name, operator and inputs, read at once, and access to its weights."""

    def __init__(self, fields: dict[str, Any], source: str, arrays: Arrays, previous: str) -> None:
        super().__init__(fields, source)
        self.arrays = arrays
        self.name = self.legal_name()
        self.source = f"{source} '{self.name}'"
        self.operator = self.require("op", TEXT)
        if self.operator not in OPERATORS:
            self.fail(f"op {quote(self.operator)} is not known", suggest(self.operator, OPERATORS))
        arrays.known |= {f"{self.name}.{part}" for part in OPERATORS[self.operator].parts}
        one = self.read("input", TEXT, previous)
        self.inputs = self.read("inputs", NAMES, (one,))
        if "input" in fields and "inputs" in fields:
            self.fail("input and inputs must not both be given", "remove one of them")
        least, most = OPERATORS[self.operator].inputs
        if not least <= len(self.inputs) <= most:
            takes = f"{least} to {most} inputs" if least < most else f"{least} input{'s' * (least > 1)}"
            hint = 'name them, for example inputs = ["a", "b"]' if most > 1 else "name one layer"
            self.fail(f"op {self.operator!r} takes {takes}, not {len(self.inputs)}", hint)

    @property
    def identity(self) -> Identity:
        return {"name": self.name, "inputs": self.inputs, "source": self.source}

    @property
    def linear(self) -> LinearIdentity:
        return {**self.identity, "fold": self.read("fold", FOLD, "auto")}

    def array(
        self, part: str, dims: Dims, default: float | None = None, low: float = -LARGEST, hint: str = ""
    ) -> RealArray:
        """The weights ``NAME.part``, of the shape ``dims`` and no value below ``low``, in float64."""
        name, file, found = f"{self.name}.{part}", self.arrays.file, self.arrays.found
        shape = show_dims(dims)
        if name not in found:
            if default is not None:
                return np.full([size for size in dims if isinstance(size, int)], default)
            typo = nearest(name, found.keys() - self.arrays.known)
            rename = f"rename {quote(typo)} to {name!r}" if typo else "add it"
            self.fail(f"array {name!r} of shape {shape} is missing in {file}", rename)
        if not fits(found[name].shape, dims):
            found_shape = show_dims(found[name].shape)
            fix = hint or f"save it with shape {shape}"
            self.fail(f"array {name!r} in {file} must have shape {shape}, not {found_shape}", fix)
        with np.errstate(invalid="ignore"):  # a signalling NaN warns, and is refused below
            values = found[name].astype(np.float64)
        legal = (values >= low) & (values <= LARGEST)
        if not legal.all():
            at = np.unravel_index(int(np.argmin(legal)), values.shape)
            where = ", ".join(map(str, at))
            limits = f"{low:g} to {LARGEST:g}"
            message = f"array {name!r} in {file} must hold numbers from {limits}"
            self.fail(f"{message}, not {values[at]:g} at [{where}]", "train again, or replace the value")
        return values


# ------------------------------------------------------------------------------------------------------------ operators

Parser = Callable[[Layer, Shape], tuple[Node, Mapping[str, RealArray]]]


@dataclass(frozen=True, slots=True)
class Operator:
    """How a layer becomes a node and its arrays, from the layer and the shape of its input.

    ``parts`` are the last parts of the names of the arrays that it can have; ``inputs`` are how many tensors it reads, at
    least and at most.
    """

    parse: Parser
    parts: tuple[str, ...] = ()
    inputs: Pair = (1, 1)


CONV_HINT = "use transpose(3, 0, 1, 2) on weights from Keras, transpose(0, 2, 3, 1) on those from PyTorch"
TRANSPOSED_HINT = "use transpose(2, 0, 1, 3) on weights from Keras, transpose(1, 2, 3, 0) on those from PyTorch"
GROUPS_HINT = f"a group reads its own part of the channels; {CONV_HINT}"
DENSE_HINT = "transpose weights from Keras; inputs are flattened in (height, width, channel) order"


def _conv2d(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    groups = layer.read("groups", COUNT, 1)
    if shape[2] % groups:
        layer.fail(f"groups must divide the {shape[2]} channels of its input, not {groups}", "choose a divisor")
    classes = layer.read("classes", CLASSES, BorderClasses())
    starts = (len(classes.rows), len(classes.cols))
    dims: Dims = starts if classes.count > 1 else ()  # a single class needs no axes
    hint = GROUPS_HINT if groups > 1 else CONV_HINT
    w = layer.array("w", (*dims, "out", "kh", "kw", shape[2] // groups), hint=hint)
    outputs, kh, kw = w.shape[-4:-1]
    if outputs % groups:
        layer.fail(f"groups must divide the {outputs} channels of its output, not {groups}", "choose a divisor")
    b = layer.array("b", (*dims, outputs), default=0.0)
    stride, dilation = layer.read("stride", STEPS, (1, 1)), layer.read("dilation", STEPS, (1, 1))
    extent = window_extent(kh, dilation[0]), window_extent(kw, dilation[1])
    node = Conv2D(
        **layer.linear,
        stride=stride,
        padding=layer.read("padding", PADDING, no_padding)(shape, extent, stride),
        dilation=dilation,
        groups=groups,
        classes=classes,
        bits=layer.read("bits", BITS, None),
        weight_bits=layer.read("weight_bits", BITS, None),
    )
    return node, {"w": w.reshape(*starts, *w.shape[-4:]), "b": b.reshape(*starts, outputs)}


def _conv_transpose2d(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    """The convolution that it is the transpose of, with its weights; `expand` makes nodes of it."""
    groups = layer.read("groups", COUNT, 1)
    if shape[2] % groups:
        layer.fail(f"groups must divide the {shape[2]} channels of its input, not {groups}", "choose a divisor")
    w = layer.array("w", ("out", "kh", "kw", shape[2] // groups), hint=TRANSPOSED_HINT)
    if len(w) % groups:
        layer.fail(f"groups must divide the {len(w)} channels of its output, not {groups}", "choose a divisor")
    node = Conv2D(
        **layer.linear,
        stride=layer.read("stride", STEPS, (1, 1)),
        padding=layer.read("padding", SIDES, ((0, 0), (0, 0))),
        dilation=layer.read("dilation", STEPS, (1, 1)),
        groups=groups,
        bits=layer.read("bits", BITS, None),
        weight_bits=layer.read("weight_bits", BITS, None),
    )
    return node, {"w": w[None, None], "b": layer.array("b", (len(w),), default=0.0)[None, None]}


def _transposed(layer: Layer, node: Conv2D, shape: Shape, weights: dict[str, RealArray], taken: set[str]) -> list[Node]:
    """A transposed convolution of a map of ``shape`` as what the graph has: blocks of pixels that a convolution makes.

    ``padding`` is cut off the result, and ``output_padding`` rows and columns come after it, as in PyTorch.
    """
    from .importers.lowering import transposed_conv, transposed_outputs  # the package imports this module

    w, b = weights.pop(f"{node.name}.w")[0, 0], weights.pop(f"{node.name}.b")[0, 0]
    more = layer.read("output_padding", PAIR, (0, 0))
    if any(extra >= max(step, gap) for extra, step, gap in zip(more, node.stride, node.dilation, strict=True)):
        layer.fail(f"output_padding must be below the stride or the dilation, not {more}", "pad behind it instead")
    rows, cols = (
        transposed_outputs(shape[a], w.shape[1 + a], node.padding[a], node.stride[a], node.dilation[a], more[a])
        for a in (0, 1)
    )
    if min(rows, cols) < 1:
        layer.fail(f"nothing is left of its {rows}×{cols} output", "use less padding")
    start = node.padding[0][0], node.padding[1][0]
    parts = transposed_conv(w, b, shape[:2], (rows, cols), start, node.stride, node.dilation)
    conv = replace(node, stride=(1, 1), padding=parts.padding, dilation=(1, 1))
    nodes: list[Node] = [
        Crop(name="crop", inputs=(), source=node.source, cropping=parts.cropping),
        conv,
        DepthToSpace(name="blocks", inputs=(), source=node.source, block=parts.block, order="CRD"),
        Crop(name="trim", inputs=(), source=node.source, cropping=parts.trim),
    ]
    keeps = [any(map(any, parts.cropping)), True, parts.block != (1, 1), any(map(any, parts.trim))]
    nodes = [made for made, kept in zip(nodes, keeps, strict=True) if kept]
    tensor = node.inputs
    for number, made in enumerate(nodes):
        part = "conv" if made is conv else made.name
        name = node.name if made is nodes[-1] else fresh_name(f"{node.name}_{part}", taken)
        if made is conv:
            weights |= {f"{name}.w": parts.w_ohwi[None, None], f"{name}.b": parts.b_o[None, None]}
        nodes[number] = replace(made, name=name, inputs=tensor)
        tensor = (name,)
    return nodes


def _dense(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    w_oi = layer.array("w", ("out", math.prod(shape)), hint=DENSE_HINT)
    b_o = layer.array("b", w_oi.shape[:1], default=0.0)
    bits, weight_bits = layer.read("bits", BITS, None), layer.read("weight_bits", BITS, None)
    return Dense(**layer.linear, bits=bits, weight_bits=weight_bits), {"w": w_oi, "b": b_o}


def _batch_norm(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    channels = (shape[2],)
    epsilon = layer.require("epsilon", EPSILON)
    arrays = {
        "mean": layer.array("mean", channels),
        "var": layer.array("var", channels, low=0.0),
        "gamma": layer.array("gamma", channels, default=1.0),
        "beta": layer.array("beta", channels, default=0.0),
    }
    least = float(arrays["var"].min()) + epsilon
    if least < 1 / LARGEST:
        message = f"variance + epsilon must be at least {1 / LARGEST:g}, not {least:g}"
        layer.fail(message, "use epsilon = 1e-5")
    return BatchNorm(**layer.linear, epsilon=epsilon), arrays


def _scale_bias(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    channels = (shape[2],)
    scale, bias = layer.array("scale", channels, default=1.0), layer.array("bias", channels, default=0.0)
    return ScaleBias(**layer.linear), {"scale": scale, "bias": bias}


def _pca(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    components = layer.array("components", ("components", shape[2]))
    arrays = {"components": components, "mean": layer.array("mean", (shape[2],))}
    whiten = layer.read("whiten", FLAG, False)
    if whiten:
        arrays["explained_variance"] = layer.array("explained_variance", components.shape[:1], low=0.0)
    return Pca(**layer.linear, whiten=whiten), arrays


def expand(
    layer: Layer,
    node: Node,
    nodes: Sequence[Node],
    shapes: Mapping[str, Shape],
    weights: dict[str, RealArray],
    taken: set[str],
) -> list[Node]:
    """A layer's node, or the several that stand for it, with their arrays in ``weights``; the last has its name."""
    made = [node]
    if layer.operator == "conv_transpose2d" and isinstance(node, Conv2D):
        made = _transposed(layer, node, shapes[node.inputs[0]], weights, taken)
    elif isinstance(node, Pca) and layer.read("residue", FLAG, False):
        made = _with_residue(layer, node, nodes, weights, taken)
    layer.close()
    return made


def _with_residue(
    layer: Layer, pca: Pca, nodes: Sequence[Node], weights: dict[str, RealArray], taken: set[str]
) -> list[Node]:
    """A projection that keeps the residue ``(1 − Σ patch)·Q·μ`` of ``PCA.transform`` on the filters, as three nodes.

    ``Q·(W·patch + b − μ) + (1 − Σ patch)·Q·μ`` is ``[Q, −Q·μ]·(W·patch + b, Σ patch)``: a box filter beside the
    convolution, with its geometry and all weights 1, the two stacked, and one column more to project. Folded, it is
    the convolution with the filters that ``PCA.transform(W)`` gives.
    """
    conv = next(node for node in nodes if node.name == pca.inputs[0])
    if not isinstance(conv, Conv2D) or conv.groups > 1:
        layer.fail("residue = true needs a conv2d without groups as its input", "put it behind one, or remove residue")
    names = [fresh_name(f"{pca.name}_{part}", taken) for part in ("box", "patch")]
    w, mean, q_rc = weights[f"{conv.name}.w"], weights[f"{pca.name}.mean"], weights[f"{pca.name}.components"]
    weights |= {
        f"{names[0]}.w": np.ones_like(w[:, :, :1]),
        f"{names[0]}.b": np.zeros((1, 1, 1)),
        f"{pca.name}.components": np.concatenate((q_rc, -q_rc @ mean[:, None]), axis=1),
        f"{pca.name}.mean": np.zeros(len(mean) + 1),
    }
    box = replace(conv, name=names[0], source=pca.source, fold="auto", bits=None, weight_bits=None)
    both = Concat(name=names[1], inputs=(conv.name, box.name), source=pca.source)
    return [box, both, replace(pca, inputs=(both.name,))]


def _average_pool(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    kernel = layer.require("kernel", STEPS)
    stride = layer.read("stride", STEPS, kernel)
    node = AveragePool(
        **layer.linear,
        kernel=kernel,
        stride=stride,
        padding=layer.read("padding", PADDING, no_padding)(shape, kernel, stride),
        count_include_pad=layer.read("count_include_pad", FLAG, False),
    )
    return node, {}


def _global_average_pool(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return AveragePool(**layer.linear, kernel=shape[:2], stride=(1, 1)), {}


def _add(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Add(**layer.linear), {}


def _multiply(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Multiply(**layer.identity), {}


def _concat(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Concat(**layer.linear), {}


def _slice(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    stop = layer.read("stop", CHANNEL, shape[2])
    return Slice(**layer.linear, start=layer.read("start", CHANNEL, 0), stop=stop), {}


def _channel_shuffle(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return ChannelShuffle(**layer.linear, groups=layer.require("groups", COUNT)), {}


def _depth_to_space(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    block = layer.require("block", STEPS)
    return DepthToSpace(**layer.linear, block=block, order=layer.read("order", ORDER, "DCR")), {}


def _space_to_depth(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    block = layer.require("block", STEPS)
    return SpaceToDepth(**layer.linear, block=block, order=layer.read("order", ORDER, "DCR")), {}


def _pad(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Pad(**layer.linear, padding=layer.require("padding", SIDES), value=layer.read("value", NUMBER, 0.0)), {}


def _crop(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Crop(**layer.linear, cropping=layer.require("cropping", SIDES)), {}


def _reshape(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Reshape(**layer.linear, shape=layer.require("shape", SHAPE)), {}


def _upsample(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Upsample(**layer.linear, factor=layer.require("factor", STEPS)), {}


def _dropout(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Dropout(**layer.linear), {}


def _flatten(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Flatten(**layer.linear), {}


def _relu(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Clip(**layer.identity), {}


def _relu6(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Clip(**layer.identity, low=0.0, high=6.0), {}


def _clip(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    low, high = layer.require("low", LIMIT), layer.require("high", LIMIT)
    if not low < high:
        layer.fail(f"low must be below high, not {low:g} and {high:g}", "for example low = 0 and high = 6")
    return Clip(**layer.identity, low=low, high=high), {}


def _max_pool(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    kernel = layer.require("kernel", STEPS)
    stride = layer.read("stride", STEPS, kernel)
    padding = layer.read("padding", PADDING, no_padding)(shape, kernel, stride)
    return MaxPool(**layer.identity, kernel=kernel, stride=stride, padding=padding), {}


def _prelu(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Prelu(**layer.identity), {"slope": layer.array("slope", (shape[2],))}


DEFAULTS: Mapping[tuple[str, str], float] = {
    ("elu", "alpha"): 1.0,
    ("selu", "alpha"): 1.6732632423543772,
    ("selu", "gamma"): 1.0507009873554805,
}
"""Parameters of functions on which all frameworks agree; the others have to be given."""


def _pointwise(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    names, _ = FUNCTIONS[layer.operator]
    given = (layer.read(name, NUMBER, DEFAULTS.get((layer.operator, name))) for name in names)
    parameters = tuple(
        layer.require(name, NUMBER) if value is None else value for name, value in zip(names, given, strict=True)
    )
    return Pointwise(**layer.identity, function=layer.operator, parameters=parameters), {}


def _argmax(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return ArgMax(**layer.identity), {}


def _softmax(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Dropout(**layer.linear), {}  # for its shape alone


OPERATORS: Mapping[str, Operator] = {
    "conv2d": Operator(_conv2d, ("w", "b")),
    "conv_transpose2d": Operator(_conv_transpose2d, ("w", "b")),
    "dense": Operator(_dense, ("w", "b")),
    "batch_norm": Operator(_batch_norm, ("gamma", "beta", "mean", "var")),
    "scale_bias": Operator(_scale_bias, ("scale", "bias")),
    "pca": Operator(_pca, ("components", "mean", "explained_variance")),
    "average_pool": Operator(_average_pool),
    "global_average_pool": Operator(_global_average_pool),
    "add": Operator(_add, inputs=(2, MAX_INPUTS)),
    "multiply": Operator(_multiply, inputs=(2, 2)),
    "concat": Operator(_concat, inputs=(2, MAX_INPUTS)),
    "slice": Operator(_slice),
    "channel_shuffle": Operator(_channel_shuffle),
    "depth_to_space": Operator(_depth_to_space),
    "space_to_depth": Operator(_space_to_depth),
    "upsample": Operator(_upsample),
    "pad": Operator(_pad),
    "crop": Operator(_crop),
    "reshape": Operator(_reshape),
    "dropout": Operator(_dropout),
    "flatten": Operator(_flatten),
    "relu": Operator(_relu),
    "relu6": Operator(_relu6),
    "clip": Operator(_clip),
    "max_pool": Operator(_max_pool),
    "prelu": Operator(_prelu, ("slope",)),
    **{function: Operator(_pointwise) for function in FUNCTIONS},
    "argmax": Operator(_argmax),
    SOFTMAX: Operator(_softmax),
}
