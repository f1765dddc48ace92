"""Exported PyTorch programs (``.pt2``) as plain data: calls of operators, and the arrays they read.

An archive of `torch.export.save` is a zip of JSON and of raw numbers, so PyTorch is not needed to read it. Nor is it asked:
`torch.export.load` unpickles some members of the archive without restraint and evaluates expressions in it, and so runs code
from the file. Pickles in it are left alone here, and expressions are refused.

*Source*: ``torch/_export/serde/schema.py`` (schema version 8) and ``torch/export/pt2_archive`` of PyTorch 2.9 and later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CompileError, quote
from .archive import MAX_NUMBERS, Archive, open_archive
from .common import MAX_NODES, checked_size

SCHEMA = 8
"""The major version of the schema; a new one may mean other things by the same words."""

TYPES: Mapping[int, str] = {
    1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f2", 7: "<f4", 8: "<f8", 12: "?", 13: "<u2",
}  # fmt: skip
"""numpy's names of torch's number types by their codes; 13 is bfloat16, the upper half of a float32."""

BFLOAT16 = 13

AGAIN = "export it again: torch.export.save(torch.export.export(module.eval(), (x,)), 'net.pt2')"
RAISE = "save it again with PyTorch 2.9 or later"
DICT = "build the module, load the file into it, and give that to convfold.compile(module, input_shape=(C, H, W)), or export it"

LEGACY = (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",)
"""How a file begins that torch.save made before it used zip archives: a pickled magic number."""


@dataclass(frozen=True, slots=True)
class Name:
    """A tensor in a call's arguments."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of an operator: ``target`` like ``aten.conv2d.default``, arguments by their names in its schema.

    ``results`` has one entry for each result: a name, names of a list of tensors, or ``None``. ``label`` is a short name.
    """

    target: str
    arguments: Mapping[str, Any]
    results: tuple[str | tuple[str, ...] | None, ...]
    label: str


@dataclass(slots=True, eq=False)
class Program:
    """An exported program: one input, calls in order, outputs; ``shapes`` of all tensors, where they are plain numbers."""

    source: str
    input: str
    outputs: tuple[str, ...]
    calls: tuple[Call, ...]
    shapes: Mapping[str, tuple[int, ...] | None]
    types: Mapping[str, int]
    places: Mapping[str, tuple[str, Mapping[str, Any]]]
    archive: Archive
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    numbers: int = 0

    def array(self, name: str) -> NDArray[Any]:
        """A parameter, buffer or constant by the name of its tensor.

        *Raises* ``CompileError`` where it is not what the archive says.
        """
        if name not in self.arrays:
            self.arrays[name] = self._array(name)
        return self.arrays[name]

    def _array(self, name: str) -> NDArray[Any]:
        member, payload = self.places[name]
        what = f"{self.source}: tensor {quote(name)}"
        meta = payload.get("tensor_meta")
        if payload.get("use_pickle") or not isinstance(meta, Mapping):
            raise CompileError(what, "is pickled, which is never read", "export plain tensors on the CPU")
        shape, strides = _sizes(meta.get("sizes")), _sizes(meta.get("strides"))
        (offset,) = _sizes([meta.get("storage_offset")]) or (None,)
        code = meta.get("dtype")
        if shape is None or strides is None or offset is None or len(shape) != len(strides) or type(code) is not int:
            raise CompileError(what, "must state plain sizes and strides", AGAIN)
        if code not in TYPES:
            raise CompileError(what, "must hold real numbers", "export it as float32")
        if min(shape, default=1) > 0:
            checked_size(what, "it", shape)
        self.numbers += math.prod(shape)
        if self.numbers > MAX_NUMBERS:
            raise CompileError(what, f"there are more than {MAX_NUMBERS} numbers", "make the model smaller")
        kind = np.dtype(TYPES[code])
        data = self.archive.read(member)
        try:
            steps = [stride * kind.itemsize for stride in strides]
            view = np.ndarray(shape, kind, data, offset * kind.itemsize, steps)
        except (ValueError, TypeError, OverflowError) as error:
            raise CompileError(what, f"{list(shape)} numbers do not fit into its {len(data)} bytes", AGAIN) from error
        return (view.astype(np.uint32) << 16).view(np.float32) if code == BFLOAT16 else view.copy()


def read_program(source: str, data: bytes) -> Program:
    """The program in an archive.

    *Raises* ``CompileError`` for anything that is wrong with it, and for other files that PyTorch writes.
    """
    if data.startswith(LEGACY) or data[:1] == b"\x80":
        raise CompileError(source, "holds pickled weights, but no network", DICT)
    if data[:4] != b"PK\x03\x04":
        raise CompileError(source, "is no archive of torch.export", AGAIN)
    archive = open_archive(source, data)
    root = _root(source, archive)
    model = _mapping(source, "the program", archive.json(f"{root}models/model.json"))
    version = _mapping(source, "schema_version", model.get("schema_version"))
    if version.get("major") != SCHEMA:
        raise CompileError(source, f"is of schema {quote(version.get('major'))}, but only {SCHEMA} is known", RAISE)
    module = _mapping(source, "graph_module", model.get("graph_module"))
    graph = _mapping(source, "graph", module.get("graph"))
    signature = _mapping(source, "signature", module.get("signature"))
    values = _mapping(source, "tensor_values", graph.get("tensor_values"))
    places = _places(source, archive, root, signature)
    entries = [name for name in _inputs(source, signature) if name not in places]
    if len(entries) != 1:
        raise CompileError(source, f"must have one input, not {len(entries)}", "export a module with one tensor as input")
    nodes = graph.get("nodes")
    if not isinstance(nodes, list) or len(nodes) > MAX_NODES:
        raise CompileError(source, f"must have a list of at most {MAX_NODES} nodes", AGAIN)
    return Program(
        source=source,
        input=entries[0],
        outputs=_outputs(source, signature),
        calls=tuple(_call(source, node) for node in nodes),
        shapes={name: _sizes(meta.get("sizes")) for name, meta in values.items() if isinstance(meta, Mapping)},
        types={name: meta.get("dtype", 0) for name, meta in values.items() if isinstance(meta, Mapping)},
        places=places,
        archive=archive,
    )


def _root(source: str, archive: Archive) -> str:
    """The folder that all members are in; which of PyTorch's archives it is."""
    for name in archive.sizes:
        root, found, rest = name.partition("models/model.json")
        if found and not rest and root.count("/") <= 1:
            return root
    names = {name.partition("/")[2] or name for name in archive.sizes}
    if "constants.pkl" in names:
        raise CompileError(source, "is a TorchScript archive, which holds code", "export the module with torch.export instead")
    if "data.pkl" in names:
        raise CompileError(source, "holds pickled weights, but no network", DICT)
    if "serialized_exported_program.json" in archive.sizes:
        raise CompileError(source, "was exported by a PyTorch before 2.9, which pickles the weights", RAISE)
    raise CompileError(source, "is no archive of torch.export", AGAIN)


def _mapping(source: str, what: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CompileError(source, f"{what} must be a mapping, not {quote(value)}", AGAIN)
    return value


def _sizes(written: object) -> tuple[int, ...] | None:
    """``[{"as_int": 3}, …]`` as numbers; ``None`` where they are symbols, or negative."""
    if not isinstance(written, list) or len(written) > 16:
        return None
    sizes = [item.get("as_int") if isinstance(item, Mapping) else None for item in written]
    known = [size for size in sizes if type(size) is int and 0 <= size < 1 << 40]
    return tuple(known) if len(known) == len(sizes) else None


def _string(source: str, what: str, value: object) -> str:
    if not isinstance(value, str):
        raise CompileError(source, f"{what} must be a name, not {quote(value)}", AGAIN)
    return value


def _specs(source: str, signature: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The inputs or outputs: of which kind, and what is said of them."""
    specs = signature.get(key)
    if not isinstance(specs, list) or not all(isinstance(one, Mapping) and len(one) == 1 for one in specs):
        raise CompileError(source, f"{key} must be a list of mappings", AGAIN)
    return [(kind, _mapping(source, key, said)) for one in specs for kind, said in one.items()]


def _tensor(source: str, argument: object) -> str:
    """The name in ``{"name": …}`` or ``{"as_tensor": {"name": …}}``."""
    argument = _mapping(source, "an argument", argument)
    if "name" not in argument:
        if "as_tensor" not in argument:
            what = f"inputs and outputs must be tensors, not {quote(dict(argument))}"
            raise CompileError(source, what, "return tensors only")
        argument = _mapping(source, "an argument", argument["as_tensor"])
    return _string(source, "a tensor", argument.get("name"))


def _inputs(source: str, signature: Mapping[str, Any]) -> list[str]:
    return [_tensor(source, said.get("arg")) for kind, said in _specs(source, signature, "input_specs") if kind == "user_input"]


def _outputs(source: str, signature: Mapping[str, Any]) -> tuple[str, ...]:
    specs = _specs(source, signature, "output_specs")
    for kind, _ in specs:
        if kind not in ("user_output", "user_input_mutation"):
            raise CompileError(source, f"it changes its own state ({quote(kind)})", "export it in evaluation: module.eval()")
    return tuple(_tensor(source, said.get("arg")) for kind, said in specs if kind == "user_output")


STATE = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


def _places(source: str, archive: Archive, root: str, signature: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Where the array of each parameter, buffer and constant lies, by the name of its tensor."""
    stored = {}
    for folder, file in (("weights", "model_weights_config.json"), ("constants", "model_constants_config.json")):
        name = f"{root}data/{folder}/{file}"
        config = _mapping(source, file, archive.json(name)).get("config") if name in archive.sizes else {}
        for key, payload in _mapping(source, file, config).items():
            payload = _mapping(source, file, payload)
            stored[key] = f"{root}data/{folder}/{payload.get('path_name')}", payload
    places = {}
    for kind, said in _specs(source, signature, "input_specs"):
        if kind in STATE:
            key = _string(source, kind, said.get(STATE[kind]))
            if key not in stored:
                raise CompileError(source, f"holds no numbers for {kind} {quote(key)}", RAISE)
            places[_tensor(source, said.get("arg"))] = stored[key]
        elif kind != "user_input":
            raise CompileError(source, f"has an input of kind {quote(kind)}", "export a module with one tensor as input")
    return places


def _call(source: str, node: object) -> Call:
    node = _mapping(source, "a node", node)
    target = _string(source, "a target", node.get("target")).removeprefix("torch.ops.")
    where = f"{source}: {quote(target)}"
    inputs, outputs = node.get("inputs"), node.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise CompileError(where, "must have inputs and outputs", AGAIN)
    arguments = {}
    for given in inputs:
        given = _mapping(where, "an input", given)
        arguments[_string(where, "an argument", given.get("name"))] = _argument(where, given.get("arg"))
    results = tuple(_result(where, output) for output in outputs)
    return Call(target, arguments, results, _label(node, target, results))


PLAIN: Mapping[str, type | tuple[type, ...]] = {
    "as_int": int,
    "as_float": (int, float, str),
    "as_bool": bool,
    "as_string": str,
    "as_scalar_type": int,
    "as_ints": list,
    "as_floats": list,
    "as_bools": list,
}


@dataclass(frozen=True, slots=True)
class Strange:
    """An argument that no operator here takes."""

    kind: str


def _argument(where: str, written: object) -> Any:
    """An argument's value: a number, a list of numbers, `Name`, a list of names, ``None``, or `Strange`."""
    written = _mapping(where, "an argument", written)
    if len(written) != 1:
        raise CompileError(where, f"an argument must be of one kind, not {quote(list(written))}", AGAIN)
    ((kind, value),) = written.items()
    if kind == "as_none":
        return None
    if kind in PLAIN:
        if not isinstance(value, PLAIN[kind]):
            raise CompileError(where, f"{kind} must not be {quote(value)}", AGAIN)
        if kind == "as_float":
            return _number(where, value)
        if isinstance(value, list) and not all(type(item) in (int, float, bool) for item in value):
            raise CompileError(where, f"{kind} must be numbers, not {quote(value)}", AGAIN)
        return tuple(value) if isinstance(value, list) else value
    if kind == "as_tensor":
        return Name(_tensor(where, value))
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        value = _mapping(where, kind, value)
        plain = value.get("as_int", value.get("as_float", value.get("as_bool")))
        return plain if type(plain) in (int, float, bool) else Strange(kind)
    if kind == "as_optional_tensor":
        value = _mapping(where, kind, value)
        return Name(_tensor(where, value)) if "as_tensor" in value else None
    if kind in ("as_tensors", "as_optional_tensors", "as_sym_ints") and isinstance(value, list):
        if kind == "as_sym_ints":
            sizes = _sizes(value)
            return Strange(kind) if sizes is None else sizes
        named = [item if kind == "as_tensors" else _mapping(where, kind, item) for item in value]
        return tuple(None if "as_none" in item else Name(_tensor(where, item)) for item in named)
    return Strange(kind)


def _number(where: str, value: object) -> float:
    """A number that JSON may hold as a word: Infinity."""
    try:
        number = float(value) if isinstance(value, str | float | int) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise CompileError(where, f"as_float must be a number, not {quote(value)}", AGAIN)
    return number


def _result(where: str, output: object) -> str | tuple[str, ...] | None:
    output = _mapping(where, "an output", output)
    if "as_tensor" in output:
        return _tensor(where, output)
    if isinstance(output.get("as_tensors"), list):
        return tuple(_tensor(where, item) for item in output["as_tensors"])
    return None


def _label(node: Mapping[str, Any], target: str, results: Sequence[str | tuple[str, ...] | None]) -> str:
    """The path of the layer that a call comes from, where PyTorch's own layer makes it; else the result's name."""
    metadata = node.get("metadata")
    stack = metadata.get("nn_module_stack") if isinstance(metadata, Mapping) else None
    if isinstance(stack, str) and len(stack) < 10_000:
        _, path, kind = (*stack.rpartition(";")[2].split(",", 2), "", "", "")[:3]
        if path and kind.startswith("torch.nn.modules.") and not kind.startswith("torch.nn.modules.container."):
            return f"layer{path}" if path[0].isdigit() else path
    return next((result for result in results if isinstance(result, str)), target)
