"""The native network format: a TOML or JSON file that lists the layers, and an ``.npz`` with the weights.

Nothing in either file is trusted. Each is capped in size before it is read, arrays are never unpickled, no
path leaves the folder of the specification, and every field has one `Kind` that says what it must be. What is
wrong comes out as one ``CompileError`` that names the file, the layer and the fix.
"""

from __future__ import annotations

import io
import json
import math
import tomllib
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Generic, NoReturn, TypedDict, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import CompileError, quote
from .graph import (
    Add,
    AveragePool,
    BatchNorm,
    BorderClasses,
    ChannelShuffle,
    Clip,
    Concat,
    Conv2D,
    Dense,
    DepthOrder,
    DepthToSpace,
    Dropout,
    Flatten,
    FoldRule,
    Graph,
    Input,
    MaxPool,
    Node,
    Padding,
    Pair,
    Pca,
    ScaleBias,
    Shape,
    Slice,
    Upsample,
    node_shape,
    window_extent,
)
from .numbers import MAX_BITS, MIN_BITS, RealArray
from .passes.rewrite import fresh_name
from .verify import MAX_ELEMENTS, MAX_INPUTS, MAX_NAME, MAX_STEP, SPEC, Dims, fits, name_fault, show_dims, verify

T = TypeVar("T")
Default = TypeVar("Default")

MAX_SPEC_BYTES = 1 << 18
MAX_LAYERS = 1 << 10
MAX_DOTS = 32
"""Dots on one line of TOML: the parser's memory grows with the square of the dots in a key."""

MAX_NPZ_BYTES = 1 << 28
MAX_ARRAYS = 1 << 12
MAX_NPZ_ELEMENTS = 1 << 25
"""Elements of all arrays of an ``.npz`` together: 256 MiB as float64."""

MAX_RATIO = 200
RATIO_FREE_BYTES = 1 << 20
"""An array may shrink by more than ``MAX_RATIO`` only up to this size. Trained weights hardly shrink."""

MAX_CHOICES = 20
"""Names that an error offers to choose from."""

MAX_CLASSES = 1 << 10
"""Border classes of a convolution along one axis."""

LARGEST = 1e30
"""The greatest magnitude of a number in the files. Products of many layers then stay far inside float64."""

INPUT = "input"
"""The name of the network's input."""


def load_spec(path: Path) -> Graph:
    """The real graph of a specification file, verified.

    *Raises* ``CompileError`` for anything that is wrong with the file, its weights or the network in them.
    """
    file = _printable(path.name)
    tree = Table(_read_tree(path, file), file)
    network = Table(tree.require("network", TABLE), f"{file}: [network]")
    tables = tree.require("layer", TABLES)
    tree.close()

    name = network.legal_name()
    source = _input(network)
    arrays = Arrays(_weights_path(path.parent, network), f"{network.source} weights")
    labels = network.read("labels", LABELS, ())
    layers = _layers(tables, file, arrays)
    outputs = _outputs(network, layers)
    network.close()

    nodes: list[Node] = [source]
    shapes: dict[str, Shape] = {INPUT: source.shape}
    weights: dict[str, RealArray] = {}
    for layer in _in_order(layers):
        node, parts = OPERATORS[layer.operator].parse(layer, shapes[layer.inputs[0]])
        residue = isinstance(node, Pca) and layer.read("residue", FLAG, False)
        layer.close()
        weights |= {f"{layer.name}.{part}": array for part, array in parts.items()}
        taken = {INPUT, *layers, *shapes}
        for made in _with_residue(layer, node, nodes, weights, taken) if isinstance(node, Pca) and residue else [node]:
            shapes[made.name] = node_shape(made, tuple(shapes[name] for name in made.inputs), weights)
            nodes.append(made)
    arrays.close()
    return verify(Graph(name, tuple(nodes), outputs, weights, labels), SPEC)


# -------------------------------------------------------------------------------------------- kinds of fields

Convert = Callable[[Any], T | None]
"""From a value of the file to what it means; ``None`` for a value that is refused."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """What a field must be: the rule in words, an example, and the conversion."""

    rule: str
    example: str
    convert: Convert[T]


def _integer(low: int, high: int) -> Convert[int]:
    return lambda value: value if type(value) is int and low <= value <= high else None  # True is no integer


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None


def _fraction(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= 1 else None


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _label(value: object) -> str | None:
    return value if isinstance(value, str) and value.isprintable() and 1 <= len(value) <= MAX_NAME else None


def _choice(words: tuple[T, ...]) -> Convert[T]:
    return lambda value: next((word for word in words if word == value), None)


def _table(value: object) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _pair(item: Convert[T]) -> Convert[tuple[T, T]]:
    def convert(value: object) -> tuple[T, T] | None:
        if not (isinstance(value, list) and len(value) == 2):
            return None
        first, second = map(item, value)
        return None if first is None or second is None else (first, second)

    return convert


def _list(item: Convert[T], most: float = math.inf) -> Convert[tuple[T, ...]]:
    def convert(value: object) -> tuple[T, ...] | None:
        if not (isinstance(value, list) and 1 <= len(value) <= most):
            return None
        items = tuple(converted for one in value if (converted := item(one)) is not None)
        return items if len(items) == len(value) else None

    return convert


def _distinct(item: Convert[str]) -> Convert[tuple[str, ...]]:
    def convert(value: object) -> tuple[str, ...] | None:
        items = _list(item)(value)
        return items if items and len(set(items)) == len(items) else None

    return convert


def _shape(value: object) -> Shape | None:
    match _list(_integer(1, MAX_ELEMENTS), 3)(value):
        case (height, width, channels):
            return height, width, channels
    return None


def _range(value: object) -> tuple[float, float] | None:
    limits = _pair(_number)(value)
    return limits if limits and limits[1] - limits[0] >= 1 / LARGEST else None


def _limit(value: object) -> float | None:
    return float(value) if value in (math.inf, -math.inf) else _number(value)


def _steps(value: object) -> Pair | None:
    return _pair(_integer(1, MAX_STEP))([value, value] if isinstance(value, int) else value)


Padder = Callable[[Shape, Pair, Pair], Padding]
"""What a padding comes to, from the input's shape, the kernel and the stride."""


def _valid(shape: Shape, kernel: Pair, stride: Pair) -> Padding:
    return (0, 0), (0, 0)


def _same(shape: Shape, kernel: Pair, stride: Pair) -> Padding:
    """As in TensorFlow: ``⌈in / stride⌉`` outputs; an odd sample of padding goes to the bottom or right."""

    def pads(axis: int) -> Pair:
        outputs = -(-shape[axis] // stride[axis])
        total = max((outputs - 1) * stride[axis] + kernel[axis] - shape[axis], 0)
        return total // 2, total - total // 2

    return pads(0), pads(1)


PADDINGS: Mapping[str, Padder] = {"valid": _valid, "same": _same}


def _classes(value: object) -> BorderClasses | None:
    """Where classes start; that they rise within the output is a rule of the graph."""
    if not (isinstance(value, dict) and value.keys() == {"rows", "cols"}):
        return None
    starts = _list(_integer(0, MAX_STEP), MAX_CLASSES)
    rows, cols = starts(value["rows"]), starts(value["cols"])
    return BorderClasses(rows, cols) if rows and cols else None


def _padding(value: object) -> Padder | None:
    if isinstance(value, str):
        return PADDINGS.get(value)
    pads = _pair(_pair(_integer(0, MAX_STEP)))(value)
    return (lambda shape, kernel, stride: pads) if pads else None


TABLE = Kind("a table", '{ name = "net", weights = "net.npz" }', _table)
INPUT_TABLE = Kind("a table", "{ shape = [32, 32, 3], range = [0.0, 1.0] }", _table)
TABLES = Kind(
    f"1 to {MAX_LAYERS} tables, each under its own [[layer]]",
    '[{ name = "first", op = "relu" }]',
    _list(_table, MAX_LAYERS),
)
TEXT = Kind("a string", '"a"', _string)
NAMES = Kind("a list of different layer names", '["a"]', _distinct(_string))
LABELS = Kind(
    f"a list of different printable strings of 1 to {MAX_NAME} characters",
    '["cat", "dog"]',
    _distinct(_label),
)
SHAPE = Kind(f"[height, width, channels], integers from 1 to {MAX_ELEMENTS}", "[32, 32, 3]", _shape)
RANGE = Kind(f"[low, high], numbers up to {LARGEST:g}, low below high", "[0.0, 1.0]", _range)
STEPS = Kind(f"an integer from 1 to {MAX_STEP}, or [vertical, horizontal]", "[2, 2]", _steps)
PADDING = Kind(
    f'"same", "valid" or [[top, bottom], [left, right]], integers from 0 to {MAX_STEP}', '"same"', _padding
)
CLASSES = Kind(
    f"a table of 1 to {MAX_CLASSES} rows and cols where border classes start",
    "{ rows = [0, 1, 7], cols = [0, 1, 7] }",
    _classes,
)
BITS = Kind(f"an integer from {MIN_BITS} to {MAX_BITS}", "8", _integer(MIN_BITS, MAX_BITS))
LIMIT = Kind(f"a number up to {LARGEST:g}, or inf", "6.0", _limit)
FLAG = Kind("true or false", "true", lambda value: value if isinstance(value, bool) else None)
CHANNEL = Kind(f"an integer from 0 to {MAX_ELEMENTS}", "0", _integer(0, MAX_ELEMENTS))
COUNT = Kind(f"an integer from 1 to {MAX_ELEMENTS}", "2", _integer(1, MAX_ELEMENTS))
FOLD: Kind[FoldRule] = Kind('"auto", "force" or "forbid"', '"forbid"', _choice(get_args(FoldRule)))
ORDER: Kind[DepthOrder] = Kind('"DCR" or "CRD"', '"DCR"', _choice(get_args(DepthOrder)))
EPSILON = Kind("a number from 0 to 1", "1e-5", _fraction)


class Table:
    """A table of the file, read field by field; `close` refuses the fields that nobody asked for."""

    def __init__(self, fields: dict[str, Any], source: str) -> None:
        self.fields = fields
        self.source = source
        self.known: list[str] = []

    def fail(self, message: str, hint: str) -> NoReturn:
        raise CompileError(self.source, message, hint)

    def read(self, key: str, kind: Kind[T], default: Default) -> T | Default:
        self.known.append(key)
        if key not in self.fields:
            return default
        value = kind.convert(self.fields[key])
        if value is None:
            found = quote(self.fields[key])
            self.fail(f"{key} must be {kind.rule}, not {found}", f"for example {key} = {kind.example}")
        return value

    def require(self, key: str, kind: Kind[T]) -> T:
        value = self.read(key, kind, None)
        if value is None:
            typo = _nearest(key, set(self.fields).difference(self.known))
            hint = f"rename {quote(typo)} to {key!r}" if typo else f"add {key} = {kind.example}"
            self.fail(f"{key} is missing", hint)
        return value

    def legal_name(self) -> str:
        """The field ``name``, fit for generated code."""
        name = self.require("name", TEXT)
        if fault := name_fault(name):
            self.fail(*fault)
        return name

    def close(self) -> None:
        for key in self.fields:
            if key not in self.known:
                self.fail(f"field {quote(key)} is not known here", _suggest(key, self.known))


def _nearest(word: str, options: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(word, sorted(options), 1)), None)


def _suggest(word: str, options: Iterable[str]) -> str:
    options = sorted(options)
    nearest = _nearest(word, options)
    some = ", ".join(map(quote, options[:MAX_CHOICES])) + (", …" if len(options) > MAX_CHOICES else "")
    return f"did you mean {quote(nearest)}?" if nearest else f"choose from {some}"


# ----------------------------------------------------------------------------------------------------- layers


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
            self.fail(f"op {quote(self.operator)} is not known", _suggest(self.operator, OPERATORS))
        arrays.known |= {f"{self.name}.{part}" for part in OPERATORS[self.operator].parts}
        one = self.read("input", TEXT, previous)
        self.inputs = self.read("inputs", NAMES, (one,))
        if "input" in fields and "inputs" in fields:
            self.fail("input and inputs must not both be given", "remove one of them")
        joins = self.operator in JOINS
        if joins and not 2 <= len(self.inputs) <= MAX_INPUTS:
            message = f"op {self.operator!r} takes 2 to {MAX_INPUTS} inputs, not {len(self.inputs)}"
            self.fail(message, 'name them, for example inputs = ["a", "b"]')
        if not joins and len(self.inputs) != 1:
            self.fail(f"op {self.operator!r} takes 1 input, not {len(self.inputs)}", "name one layer")

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
            typo = _nearest(name, found.keys() - self.arrays.known)
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


def _input(network: Table) -> Input:
    table = Table(network.require("input", INPUT_TABLE), f"{network.source} input")
    shape = table.require("shape", SHAPE)
    low, high = table.require("range", RANGE)
    table.close()
    return Input(name=INPUT, inputs=(), source=table.source, shape=shape, low=low, high=high)


def _layers(tables: Iterable[dict[str, Any]], file: str, arrays: Arrays) -> dict[str, Layer]:
    """The layers by name, in the order of the file."""
    layers: dict[str, Layer] = {}
    previous = INPUT
    for number, table in enumerate(tables, start=1):
        layer = Layer(table, f"{file}: layer {number}", arrays, previous)
        if layer.name.lower() == INPUT:
            layer.fail(f"name {layer.name!r} is taken by the network's input", "rename the layer")
        if layer.name in layers:
            layer.fail(f"name {layer.name!r} is taken by an earlier layer", "rename one of them")
        previous = layer.name
        layers[previous] = layer
    return layers


def _outputs(network: Table, layers: Mapping[str, Layer]) -> tuple[str, ...]:
    """The tensors that leave the network: that of the last layer, unless the file says otherwise."""
    outputs = network.read("outputs", NAMES, tuple(layers)[-1:])
    for output in outputs:
        if output not in layers:
            network.fail(f"output {quote(output)} is not a layer", _suggest(output, layers))
    return outputs


def _in_order(layers: Mapping[str, Layer]) -> list[Layer]:
    """The layers, each behind the ones it reads."""
    for layer in layers.values():
        for name in layer.inputs:
            if name not in layers and name != INPUT:
                layer.fail(f"input {quote(name)} is not a layer", _suggest(name, {*layers, INPUT}))
    try:
        order = list(TopologicalSorter({name: layer.inputs for name, layer in layers.items()}).static_order())
    except CycleError as error:
        cycle: list[str] = error.args[1]
        text = " → ".join(cycle if len(cycle) <= 8 else [*cycle[:6], "…", cycle[-1]])
        layers[cycle[0]].fail(f"layers feed each other in a circle: {text}", "give one of them another input")
    return [layers[name] for name in order if name != INPUT]


# -------------------------------------------------------------------------------------------------- operators

Parser = Callable[[Layer, Shape], tuple[Node, Mapping[str, RealArray]]]


@dataclass(frozen=True, slots=True)
class Operator:
    """How a layer becomes a node and its arrays, from the layer and the shape of its input.

    ``parts`` are the last parts of the names of the arrays that it can have.
    """

    parse: Parser
    parts: tuple[str, ...] = ()


CONV_HINT = "use transpose(3, 0, 1, 2) on weights from Keras, transpose(0, 2, 3, 1) on those from PyTorch"
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
        padding=layer.read("padding", PADDING, _valid)(shape, extent, stride),
        dilation=dilation,
        groups=groups,
        classes=classes,
        bits=layer.read("bits", BITS, None),
        weight_bits=layer.read("weight_bits", BITS, None),
    )
    return node, {"w": w.reshape(*starts, *w.shape[-4:]), "b": b.reshape(*starts, outputs)}


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
        padding=layer.read("padding", PADDING, _valid)(shape, kernel, stride),
        count_include_pad=layer.read("count_include_pad", FLAG, False),
    )
    return node, {}


def _global_average_pool(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return AveragePool(**layer.linear, kernel=shape[:2], stride=(1, 1)), {}


def _add(layer: Layer, shape: Shape) -> tuple[Node, Mapping[str, RealArray]]:
    return Add(**layer.linear), {}


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
    padding = layer.read("padding", PADDING, _valid)(shape, kernel, stride)
    return MaxPool(**layer.identity, kernel=kernel, stride=stride, padding=padding), {}


OPERATORS: Mapping[str, Operator] = {
    "conv2d": Operator(_conv2d, ("w", "b")),
    "dense": Operator(_dense, ("w", "b")),
    "batch_norm": Operator(_batch_norm, ("gamma", "beta", "mean", "var")),
    "scale_bias": Operator(_scale_bias, ("scale", "bias")),
    "pca": Operator(_pca, ("components", "mean", "explained_variance")),
    "average_pool": Operator(_average_pool),
    "global_average_pool": Operator(_global_average_pool),
    "add": Operator(_add),
    "concat": Operator(_concat),
    "slice": Operator(_slice),
    "channel_shuffle": Operator(_channel_shuffle),
    "depth_to_space": Operator(_depth_to_space),
    "upsample": Operator(_upsample),
    "dropout": Operator(_dropout),
    "flatten": Operator(_flatten),
    "relu": Operator(_relu),
    "relu6": Operator(_relu6),
    "clip": Operator(_clip),
    "max_pool": Operator(_max_pool),
}


JOINS = ("add", "concat")
"""The operators that take several inputs."""


# --------------------------------------------------------------------------------------------------- the tree


def _read_tree(path: Path, file: str) -> dict[str, Any]:
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise CompileError(file, "a specification must end in .toml or .json", "rename the file")
    data = _read_bytes(path, file, MAX_SPEC_BYTES)
    try:
        tree = read(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        language = path.suffix[1:].upper()
        hint = f"correct the {language} at this place"
        raise CompileError(file, f"is not valid {language}: {_one_line(error)}", hint) from error
    if not isinstance(tree, dict):
        raise CompileError(file, f"must be a table, not {quote(tree)}", 'write {"network": …, "layer": […]}')
    return tree


def _toml(text: str) -> object:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > MAX_DOTS:
            raise ValueError(f"more than {MAX_DOTS} dots on line {number}: break it")
    return tomllib.loads(text)


def _json(text: str) -> object:
    def table(pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields: dict[str, object] = {}
        for key, value in pairs:
            if key in fields:
                raise ValueError(f"field {quote(key)} is given twice")
            fields[key] = value
        return fields

    return json.loads(text, object_pairs_hook=table)


READERS: Mapping[str, Callable[[str], object]] = {".toml": _toml, ".json": _json}


def _read_bytes(path: Path, source: str, most: int) -> bytes:
    """A whole file, if it is a plain one and not too large."""
    file = quote(path.name)
    try:
        if not path.is_file():
            raise CompileError(source, f"{file} is not a file", "check the name and the folder")
        size = path.stat().st_size
        if size > most:
            raise CompileError(source, f"{file} must not exceed {most} bytes", "make the file smaller")
        with path.open("rb") as stream:
            return stream.read(size)
    except OSError as error:
        raise CompileError(source, f"{file} cannot be read: {_one_line(error)}", "check the file") from error


def _printable(name: str) -> str:
    """The name of a file as it is, if that can be printed."""
    return name if name.isprintable() else quote(name)


def _one_line(error: BaseException) -> str:
    """An exception's own words, on one printable line."""
    words = error.strerror if isinstance(error, OSError) else str(error)
    text = " ".join((words or type(error).__name__).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text[:160])


# ---------------------------------------------------------------------------------------------------- weights


class Arrays:
    """The arrays of the weights file, and the names of those that some layer reads."""

    def __init__(self, path: Path, source: str) -> None:
        self.file = _printable(path.name)
        self.source = source
        self.found = read_npz(path, source)
        self.known: set[str] = set()

    def close(self) -> None:
        for name in self.found:
            if name not in self.known:
                typo = _nearest(name, self.known - self.found.keys())
                hint = f"rename it to {typo!r}" if typo else "remove it"
                message = f"array {quote(name)} in {self.file} belongs to no layer"
                raise CompileError(self.source, message, hint)


def _weights_path(folder: Path, network: Table) -> Path:
    """The weights file, which must lie in the folder of the specification, links followed."""
    text = network.require("weights", TEXT)
    try:
        folder = folder.resolve()
        path = (folder / text).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, or a circle of links
        network.fail(f"weights {quote(text)} is not a path: {_one_line(error)}", "name a file in this folder")
    if not path.is_relative_to(folder):
        network.fail(f"weights {quote(text)} leaves the folder of the specification", "copy the file into it")
    return path


def read_npz(path: Path, source: str) -> dict[str, NDArray[Any]]:
    """Every array of an ``.npz`` file, each of plain integers or floating-point numbers.

    Nothing is unpickled, and nothing is unpacked before its size is known and allowed.

    *Raises* ``CompileError`` from ``source`` for anything else.
    """
    data = _read_bytes(path, source, MAX_NPZ_BYTES)
    file = quote(path.name)
    if data.count(b"PK\1\2") > MAX_ARRAYS:  # the mark of an entry in the directory, counted before it is read
        raise CompileError(source, f"{file} must not hold more than {MAX_ARRAYS} arrays", "split the network")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except Exception as error:  # whatever a damaged file does to zipfile
        message = f"{file} is not an .npz file: {_one_line(error)}"
        raise CompileError(source, message, "save it with numpy.savez") from error
    members = archive.infolist()
    if sum(member.file_size for member in members) > MAX_NPZ_BYTES:
        message = f"{file} must not hold more than {MAX_NPZ_BYTES} bytes unpacked"
        raise CompileError(source, message, "save the weights as float32")
    arrays: dict[str, NDArray[Any]] = {}
    elements = 0
    for member in members:
        name = member.filename.removesuffix(".npy")
        try:
            if name in arrays:
                raise ValueError("it is there twice")
            arrays[name] = _read_array(archive, member)
            elements += arrays[name].size
            if elements > MAX_NPZ_ELEMENTS:
                raise ValueError(f"with it the file holds more than {MAX_NPZ_ELEMENTS} numbers")
        except Exception as error:  # whatever a damaged file does to zipfile, zlib and numpy
            message = f"array {quote(name)} in {file} cannot be read: {_one_line(error)}"
            raise CompileError(source, message, "save plain arrays with numpy.savez") from error
    return arrays


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    if not member.filename.endswith(".npy"):
        raise ValueError("it is not an array")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed in a way that numpy does not use")
    if member.file_size > max(RATIO_FREE_BYTES, MAX_RATIO * member.compress_size):
        raise ValueError(f"it is packed more than {MAX_RATIO} times")
    with archive.open(member) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of headers that Python 2 wrote, and reads them
        version = np.lib.format.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"format {version[0]}.{version[1]} holds named fields, not numbers")
        shape, fortran, dtype = HEADERS[version](stream)
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            raise ValueError(f"it holds {quote(str(dtype))}, not integers or float64 numbers at most")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != member.file_size - stream.tell():
            raise ValueError(f"shape {quote(shape)} does not match its {member.file_size} bytes")
        data = stream.read(size)
        if len(data) < size or stream.read(1):
            raise ValueError("it is cut short")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
