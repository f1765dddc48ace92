"""Keras models as graphs: layers in the order in which they depend on each other, models within models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ..errors import CompileError, quote
from ..files import printable
from ..graph import Dropout, Graph, Input, Softmax
from ..verify import legal_name
from .common import MAX_NODES, Builder, Unsupported, checked_size
from .keras_file import BROKEN, KerasFile, Place
from .keras_layers import LAYERS, NEAREST, OPERATIONS, Layer, Tensor, map_shape
from .onnx_layout import Refusal

MAX_LAYERS = 1 << 12
"""Layers of a model, those of inner models counted at every call."""

MAX_DEPTH = 16
"""Models within models."""

MODELS = ("Functional", "Sequential", "Model")
MODULES = re.compile(r"(tf_)?keras(\.src)?\.layers(\.|$)")
"""Where the layers of Keras itself live."""

FUNCTIONS = re.compile(r"keras\.(src\.)?ops\.numpy$")

Reference = tuple[str, int]
"""A layer's name, and which of its calls."""

Value = Tensor | None
"""A tensor; none behind what cannot be imported."""


def import_keras(file: KerasFile, name: str, limits: tuple[float, float]) -> Graph:
    """The graph of a Keras file; ``name`` is the network's.

    *Raises* ``CompileError``, for unsupported layers one that lists them all.
    """
    reader = _Reader(file, Builder(name), limits, Unsupported(file.source))
    record = _record(file.config, file.source)
    if not record.is_model:
        what = f"it is no Sequential or Functional model, but {printable(record.kind)}"
        raise CompileError(file.source, what, "build it from Keras layers, with no class of its own: the file holds no code")
    outputs = reader.model(record, None, Place())
    reader.unsupported.close()
    return reader.graph(outputs)


@dataclass(frozen=True, slots=True)
class _Record:
    """A layer as it is written: its class and where that is from, its name, configuration, and calls."""

    kind: str
    module: str
    name: str
    config: Mapping[str, Any]
    calls: tuple[Any, ...]

    @property
    def ours(self) -> bool:
        """Whether it is Keras's own, and not a class that somebody registered."""
        if self.kind in OPERATIONS and FUNCTIONS.match(self.module):
            return True
        return not self.module or MODULES.match(self.module) is not None

    @property
    def is_model(self) -> bool:
        return self.kind in MODELS and self.module.partition(".")[0] in ("", "keras", "tf_keras")


def _record(written: object, where: str) -> _Record:
    if not isinstance(written, Mapping):
        raise CompileError(where, f"a layer must be a mapping, not {quote(written)}", BROKEN)
    kind, config = written.get("class_name"), written.get("config")
    module, calls = written.get("module") or "", written.get("inbound_nodes", [])
    if isinstance(config, list):  # Sequential, once
        config = {"layers": config}
    if not isinstance(config, Mapping) or not isinstance(calls, list):
        raise CompileError(where, f"a layer must have a config and calls, not {quote(written)}", BROKEN)
    if not isinstance(kind, str) or not isinstance(module, str):
        raise CompileError(where, f"a layer must have a class_name, not {quote(written)}", BROKEN)
    name = config.get("name", written.get("name"))
    name = kind if name is None else name
    if not isinstance(name, str):
        raise CompileError(where, f"a layer's name must be a string, not {quote(name)}", BROKEN)
    if written.get("registered_name") not in (None, kind) and kind not in MODELS:
        module = module if not MODULES.match(module) else "registered"
    return _Record(kind, module, name, config, tuple(calls))


def _snake(kind: str) -> str:
    """What Keras calls the group of a class in its weights."""
    text = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", text).lower()


@dataclass(slots=True, eq=False)
class _Reader:
    file: KerasFile
    builder: Builder
    limits: tuple[float, float]
    unsupported: Unsupported
    layers: int = 0

    def model(self, model: _Record, inputs: Sequence[Value] | None, place: Place) -> list[Value]:
        """What a model makes of its inputs; of the network's own for the outermost."""
        where = self._where(model)
        records = self._records(model, where)
        places = _places(records, place)
        if len(place.names) > MAX_DEPTH:
            raise CompileError(where, "models are nested too deep", BROKEN)
        if model.kind == "Sequential":
            return [self._sequence(model, records, inputs, places)]
        return self._functional(model, records, inputs, places)

    def _records(self, model: _Record, where: str) -> list[_Record]:
        layers = model.config.get("layers")
        if not isinstance(layers, list) or not layers:
            raise CompileError(where, "must have layers", BROKEN)
        self.layers += len(layers)
        if self.layers > MAX_LAYERS:
            raise CompileError(where, f"must not have more than {MAX_LAYERS} layers", "make the model smaller")
        records = [_record(layer, where) for layer in layers]
        names = {record.name for record in records}
        if len(names) < len(records):
            raise CompileError(where, "has two layers of one name", "give every layer a name of its own")
        return records

    # ------------------------------------------------------------------------------------------------- sequential

    def _sequence(
        self, model: _Record, records: list[_Record], inputs: Sequence[Value] | None, places: Mapping[str, Place]
    ) -> Value:
        stated = records[0].config if records[0].kind == "InputLayer" else _first_shape(model, records[0])
        if inputs is None:
            inputs = [self._input(model if records[0].kind != "InputLayer" else records[0], stated)]
        values = list(inputs)
        for record in records:
            if record.kind != "InputLayer":
                values = self._call(record, values, places[record.name])
        if len(values) != 1:
            raise CompileError(self._where(model), "must have one output", BROKEN)
        return values[0]

    # ------------------------------------------------------------------------------------------------- functional

    def _functional(
        self, model: _Record, records: list[_Record], inputs: Sequence[Value] | None, places: Mapping[str, Place]
    ) -> list[Value]:
        where = self._where(model)
        by_name = {record.name: record for record in records}
        entries = _references(model.config.get("input_layers"), where)
        calls = {(record.name, at): self._arguments(record, call) for record in records for at, call in enumerate(record.calls)}
        values: dict[Reference, list[Value]] = {}
        if inputs is None:
            if len(entries) != 1:
                raise CompileError(where, f"must have one input, not {len(entries)}", "export a model with one input")
            record = by_name.get(entries[0][0])
            if record is None:
                raise CompileError(where, f"has no layer {quote(entries[0][0])}", BROKEN)
            inputs = [self._input(record, record.config)]
        if len(entries) != len(inputs):
            raise CompileError(where, f"must have {len(entries)} inputs, not {len(inputs)}", BROKEN)
        for (name, node, _), value in zip(entries, inputs, strict=True):
            values[name, node] = [value]
        for key in _ordered(calls, where):
            if key in values:
                continue
            if key not in calls:
                raise CompileError(where, f"has no call {key[1]} of a layer {quote(key[0])}", BROKEN)
            values[key] = self._call(by_name[key[0]], _results(values, calls[key], where), places[key[0]])
        return _results(values, _references(model.config.get("output_layers"), where), where, self.unsupported)

    def _arguments(self, record: _Record, call: object) -> list[tuple[str, int, int]]:
        """What one call reads: Keras 3 writes tensors as mappings, Keras 2 as lists."""
        where = self._where(record)
        if isinstance(call, Mapping):
            found = list(_tensors(call.get("args"), where))
            options = call.get("kwargs") or {}
        else:
            found = _references(call, where)
            last = call[0] if isinstance(call, list) and call else []
            options = last[3] if isinstance(last, list) and len(last) > 3 else {}
        for key, value in options.items() if isinstance(options, Mapping) else ():
            if key not in ("training", "mask") or value not in (None, False):
                self.unsupported.add(where, f"it is called with {quote(key)}", "call layers with tensors only")
                break
        return found

    # ------------------------------------------------------------------------------------------------------ layers

    def _call(self, record: _Record, inputs: Sequence[Value], place: Place) -> list[Value]:
        """What a layer makes of its inputs; `Unsupported` where it cannot be imported."""
        where = self._where(record)
        known = [x for x in inputs if x is not None]
        shape = known[0].dims if known else None
        if record.is_model:
            return self.model(record, inputs, place)
        handler = LAYERS.get(record.kind) if record.ours else None
        if handler is None:
            what = "this layer is not supported"
            if not record.ours:
                what = f"this layer is not Keras's own ({printable(record.module)})"
            self.unsupported.add(where, what, NEAREST.get(record.kind, "replace it, or cut the network there"), shape)
            return [None]
        if len(known) < len(inputs):
            return [None]
        layer = Layer(record.kind, _label(record), record.config, where, place, self.file, self.builder)
        try:
            return [handler(layer, known)]
        except Refusal as refusal:
            self.unsupported.add(where, refusal.what, refusal.nearest, shape)
            return [None]

    def _input(self, record: _Record, config: Mapping[str, Any]) -> Tensor:
        where = self._where(record)
        shape = config.get("batch_shape", config.get("batch_input_shape"))
        if not isinstance(shape, list) or not all(size is None or type(size) is int for size in shape):
            raise CompileError(where, f"must have an input shape, not {quote(shape)}", "build the model with an Input(shape)")
        dims = tuple(shape[1:])
        if not 1 <= len(dims) <= 3 or None in dims or shape[0] not in (None, 1):
            message = f"its shape must be a batch, of any size or 1, and 1 to 3 sizes, not {quote(shape)}"
            raise CompileError(where, message, "build the model with Input((height, width, channels))")
        checked_size(where, "the input", dims)
        low, high = self.limits
        node = Input(
            name=self.builder.fresh(_label(record)), inputs=(), source=where, shape=map_shape(dims), low=low, high=high
        )
        return Tensor(self.builder.add(node), dims)

    def _where(self, record: _Record) -> str:
        return f"{self.file.source}: layer {quote(record.name)} ({printable(record.kind)})"

    def graph(self, outputs: Sequence[Value]) -> Graph:
        """The graph that ends in these tensors; one that is the input, or leaves twice, is named anew."""
        heads: dict[str, Softmax] = {}
        names: list[str] = []
        for x in outputs:
            if x is None:
                raise CompileError(self.file.source, "an output does not depend on the input", BROKEN)
            name = x.name
            if name in (self.builder.nodes[0].name, *names):
                node = Dropout(name=self.builder.fresh(f"{name}_out"), inputs=(name,), source=self.file.source)
                name = self.builder.add(node)
            if x.head:
                heads[name] = x.head
            names.append(name)
        return self.builder.graph(names, heads)


def _label(record: _Record) -> str:
    return legal_name(record.name)


def _first_shape(model: _Record, first: _Record) -> Mapping[str, Any]:
    """Where a Sequential model without an input layer says its shape."""
    if "batch_input_shape" in first.config or "batch_shape" in first.config:
        return first.config
    return {"batch_shape": model.config.get("build_input_shape")}


def _places(records: Sequence[_Record], place: Place) -> dict[str, Place]:
    """Where the weights of each layer stand: a class's groups are numbered from the second on."""
    used: dict[str, int] = {}
    places = {}
    for record in records:
        snake = _snake(record.kind)
        count = used.get(snake, 0)
        used[snake] = count + 1
        group = f"{snake}_{count}" if count else snake
        places[record.name] = Place((*place.names, record.name), (*place.groups, group))
    return places


def _ordered(calls: Mapping[Reference, Sequence[tuple[str, int, int]]], where: str) -> Iterator[Reference]:
    """Calls in an order in which each comes behind those that it reads."""
    sorter = TopologicalSorter({key: [(name, node) for name, node, _ in read] for key, read in calls.items()})
    try:
        yield from sorter.static_order()
    except CycleError as error:
        raise CompileError(where, "its layers read each other in a circle", BROKEN) from error


def _results(
    values: Mapping[Reference, Sequence[Value]],
    references: Sequence[tuple[str, int, int]],
    where: str,
    unsupported: Unsupported | None = None,
) -> list[Value]:
    found: list[Value] = []
    for name, node, result in references:
        made = values.get((name, node), ())
        if result >= len(made):
            if unsupported is not None:
                unsupported.close()
            raise CompileError(where, f"reads result {result} of {quote(name)}, which is not there", BROKEN)
        found.append(made[result])
    return found


def _references(written: object, where: str) -> list[tuple[str, int, int]]:
    """``["conv", 0, 0]``, with more behind, or a list of such."""
    if isinstance(written, list) and len(written) >= 3 and isinstance(written[0], str):
        name, node, result = written[:3]
        if type(node) is int and type(result) is int and 0 <= node <= MAX_NODES and 0 <= result <= MAX_NODES:
            return [(name, node, result)]
    elif isinstance(written, list) and all(isinstance(item, list) for item in written):
        found: list[tuple[str, int, int]] = []
        for item in written:
            found += _references(item, where)
        return found
    raise CompileError(where, f"its connections must be layers and numbers, not {quote(written)}", BROKEN)


def _tensors(written: object, where: str, depth: int = 0) -> Iterator[tuple[str, int, int]]:
    """The tensors among the arguments of a call in Keras 3: one alone, or lists of them."""
    if isinstance(written, list) and depth < 4:
        for item in written:
            yield from _tensors(item, where, depth + 1)
    elif isinstance(written, Mapping) and written.get("class_name") == "__keras_tensor__":
        config = written.get("config")
        yield from _references(config.get("keras_history") if isinstance(config, Mapping) else None, where)
    else:
        raise CompileError(where, f"is called with {quote(written)}, which is no tensor", "use a Rescaling layer for constants")
