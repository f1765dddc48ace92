"""An ONNX file made safe and simple: `load_onnx`, which every ONNX importer starts from.

Nothing in the file is trusted. It is capped in size before it is parsed, external data is read by us and never from outside
the model's folder, and what the onnx checker lets pass (a group of 0, dimensions that lie, tensors made twice) is refused
here. Then the batch is fixed to 1, shapes are inferred by onnx, and what does not depend on the input is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from ..errors import CompileError, quote
from ..files import one_line, printable
from ..verify import MAX_ELEMENTS, MAX_STEP
from .common import MAX_MODEL_BYTES, MAX_NODES, MAX_WEIGHTS, checked_size, read_file
from .onnx_fold import check_folded, fold_node
from .onnx_wire import check_wire

OPSETS = range(7, onnx.defs.onnx_opset_version() + 1)
"""The versions of ONNX's own operators that are understood."""

SMALL = 1 << 10
"""Elements up to which a constant may matter for shapes."""

MAX_ROUNDS = 64
"""How often shapes are inferred and what they tell is computed: once for each reshape that waits for another."""

SIZES = ("group", "strides", "dilations", "kernel_shape", "blocksize", "num_outputs")
"""Attributes that count something: at least 1 each."""

KINDS = {
    number: getattr(onnx.defs.OpSchema.AttrType, name)
    for name, number in AttributeProto.AttributeType.items()
    if hasattr(onnx.defs.OpSchema.AttrType, name)
}
"""The kinds of attributes, from the number in a file to what onnx calls it in its definitions."""

Constant = NDArray[Any]


def load_onnx(path: Path) -> ModelProto:
    """The model of a file, checked and simplified.

    What the caller may rely on: exactly one input that some node reads (``graph.input[0]``; weights are never inputs), all its
    sizes fixed, the batch (its first dimension, if it has two or more) 1; every other tensor is made before it is read, and
    once; all weights are initializers in the file's own types, no external data, no `Constant` node, and each has as many
    numbers as its dimensions say; nodes whose inputs are all constant are folded (but no quantizing node); ``value_info``
    holds the shapes that onnx infers; counts in attributes (`SIZES`) are at least 1; no functions, no sparse weights.
    Operators, ranges of values and NaN are *not* checked. Take weights by `constants`, attributes by `attributes`.

    *Raises* ``CompileError`` for anything that is wrong with the file.
    """
    source = printable(path.name)
    model = _parse(read_file(path), source)
    _check_text(model, source)
    _check_header(model, source)
    _embed(model, path, source)
    _check_tensors(model, source)
    _check_nodes(model, source)
    _fix_input(model, source)
    _fold(model, {}, source)
    for _ in range(MAX_ROUNDS):
        if not _fold(model, _infer(model), source):
            break
    return model


# ------------------------------------------------------------------------------------------------ reading a model


def constants(model: ModelProto) -> dict[str, Constant]:
    """The initializers of a loaded model, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values; strings as ``str``, tensors as arrays, graphs left out."""
    return {one.name: value for one in node.attribute if (value := _value(one)) is not None}


def _value(attribute: AttributeProto) -> object:
    match attribute.type:
        case AttributeProto.STRING:
            return attribute.s.decode("utf-8", "replace")
        case AttributeProto.STRINGS:
            return [item.decode("utf-8", "replace") for item in attribute.strings]
        case AttributeProto.TENSOR:
            return numpy_helper.to_array(attribute.t)
        case AttributeProto.INT | AttributeProto.INTS | AttributeProto.FLOAT | AttributeProto.FLOATS:
            value: object = helper.get_attribute_value(attribute)
            return list(value) if isinstance(value, Sequence) else value
    return None


def opset(model: ModelProto) -> int:
    """The version of ONNX's own operators that a loaded model uses."""
    (version,) = (int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return version


def describe(node: NodeProto) -> str:
    """A node in the words of an error: its operator, and its name or its first output's."""
    name = node.name or next(iter(node.output), "")
    operator = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return f"{printable(operator)} {quote(name)}"


# --------------------------------------------------------------------------------------------------------- checks


def _parse(data: bytes, source: str) -> ModelProto:
    model = ModelProto()
    try:
        check_wire(data)
        model.ParseFromString(data)
    except Exception as error:  # whatever a damaged file does to protobuf
        raise CompileError(source, f"is not an ONNX model: {one_line(error)}", "export the model again") from error
    return model


def _check_text(model: ModelProto, source: str) -> None:
    """All names are text: protobuf hands out those that are not UTF-8 as bytes."""
    graph = model.graph
    texts: list[object] = [graph.name, *(entry.domain for entry in model.opset_import)]
    texts += [one.name for part in (graph.input, graph.output, graph.value_info) for one in part]
    for node in graph.node:
        texts += (node.name, node.op_type, node.domain, *node.input, *node.output)
        texts += [attribute.name for attribute in node.attribute]
    for tensor in _tensors(model):
        texts += (tensor.name, *(text for entry in tensor.external_data for text in (entry.key, entry.value)))
    if not all(isinstance(text, str) for text in texts):
        raise CompileError(source, "holds names that are no text", "export the model again")


def _check_header(model: ModelProto, source: str) -> None:
    if not model.HasField("graph") or not model.graph.node:
        raise CompileError(source, "is not an ONNX model with nodes", "export the model again")
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0] not in OPSETS:
        found = quote(versions[0]) if len(versions) == 1 else f"{len(versions)} entries"
        message = f"opset must be {OPSETS[0]} to {OPSETS[-1]}, not {found}"
        raise CompileError(source, message, "convert it with onnx.version_converter")
    if len(model.graph.node) > MAX_NODES:
        raise CompileError(source, f"must have at most {MAX_NODES} nodes, not {len(model.graph.node)}", "split the network")
    if model.functions:
        hint = "inline them: onnx.inliner.inline_local_functions(model)"
        raise CompileError(source, f"uses {len(model.functions)} functions of its own", hint)
    if model.graph.sparse_initializer:
        raise CompileError(source, "has sparse weights", "store them as dense tensors")


def _check_tensors(model: ModelProto, source: str) -> None:
    """Every weight has the numbers that its dimensions say, and there are not too many."""
    seen: set[str] = set()
    total = 0
    for tensor in _tensors(model):
        what = f"weights {quote(tensor.name)}"
        if any(size < 0 or size > MAX_ELEMENTS for size in tensor.dims):
            raise CompileError(source, f"{what} must have sizes from 0, not {quote(list(tensor.dims))}", "export again")
        total += math.prod(tensor.dims)
        if total > MAX_WEIGHTS:
            raise CompileError(source, f"must have at most {MAX_WEIGHTS} weights", "use a smaller model")
        try:
            _check_length(tensor)
            numpy_helper.to_array(tensor)
        except Exception as error:  # whatever a damaged tensor does to numpy
            raise CompileError(source, f"{what} cannot be read: {one_line(error)}", "export the model again") from error
    for tensor in model.graph.initializer:
        if not tensor.name or tensor.name in seen:
            raise CompileError(source, f"weights {quote(tensor.name)} must have a name of their own", "export again")
        seen.add(tensor.name)


def _check_length(tensor: TensorProto) -> None:
    if tensor.HasField("segment"):
        raise ValueError("it is split into segments")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data") and dtype.itemsize > 1 and len(tensor.raw_data) != count * dtype.itemsize:
        found = len(tensor.raw_data)
        raise ValueError(f"{quote(list(tensor.dims))} of {dtype} take {count * dtype.itemsize} bytes, not {found}")


def _check_nodes(model: ModelProto, source: str) -> None:
    """Every tensor is made once, before it is read, and every count is one."""
    made = {one.name for one in model.graph.input} | {one.name for one in model.graph.initializer}
    version = opset(model)
    for node in model.graph.node:
        where = f"{source}: {describe(node)}"
        _check_form(node, version, where)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR and not attribute.HasField("t"):
                raise CompileError(where, f"{quote(attribute.name)} holds no tensor", "export the model again")
            if attribute.name in SIZES:
                _check_counts(attribute, where)
        for name in node.input:
            if name and name not in made:
                hint = "the nodes form a circle, or are out of order: export the model again"
                raise CompileError(where, f"reads {quote(name)}, which no node before it makes", hint)
        for name in node.output:
            if name in made:
                raise CompileError(where, f"makes {quote(name)}, which there is already", "give every tensor its own name")
            if name:
                made.add(name)
    if not model.graph.output:
        raise CompileError(source, "has no output", "name one in graph.output")
    for output in model.graph.output:
        if output.name not in made:
            raise CompileError(source, f"output {quote(output.name)} is made by no node", "export the model again")


def _check_form(node: NodeProto, version: int, where: str) -> None:
    """One of ONNX's own operators has as many inputs and outputs, and attributes of the kinds, as ONNX says."""
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "") if node.domain in ("", "ai.onnx") else None
    except onnx.defs.SchemaError:  # unknown in this opset: the importer refuses it by name
        schema = None
    if schema is None:
        return
    for what, names, least, most in (
        ("inputs", node.input, schema.min_input, schema.max_input),
        ("outputs", node.output, schema.min_output, schema.max_output),
    ):
        if not least <= len(names) <= most:
            limits = str(least) if least == most else f"{least} to {most}" if most < MAX_NODES else f"{least} or more"
            raise CompileError(where, f"must have {limits} {what}, not {len(names)}", "export the model again")
    for attribute in node.attribute:
        stated = schema.attributes.get(attribute.name)
        if stated is not None and stated.type != KINDS.get(attribute.type):
            raise CompileError(where, f"attribute {quote(attribute.name)} is not of ONNX's type", "export the model again")


def _check_counts(attribute: AttributeProto, where: str) -> None:
    values = list(attribute.ints) if attribute.type == AttributeProto.INTS else [attribute.i]
    if attribute.type not in (AttributeProto.INT, AttributeProto.INTS) or not all(1 <= one <= MAX_STEP for one in values):
        message = f"{attribute.name} must be 1 to {MAX_STEP}, not {quote(values)}"
        raise CompileError(where, message, "export the model again")


def _fix_input(model: ModelProto, source: str) -> None:
    """One input, its batch 1; inputs that are weights too, as old files list them, are no inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    read = {name for node in model.graph.node for name in node.input} | {one.name for one in model.graph.output}
    inputs = [one for one in model.graph.input if one.name not in weights and one.name in read]
    if len(inputs) != 1:
        names = ", ".join(quote(one.name) for one in inputs[:4]) or "none"
        raise CompileError(source, f"must have exactly one input, not {len(inputs)}: {names}", "export with one input tensor")
    (one,) = inputs
    what = f"input {quote(one.name)}"
    if not one.type.HasField("tensor_type") or not one.type.tensor_type.HasField("shape"):
        raise CompileError(source, f"{what} must be a tensor of a known shape", "export it with a fixed shape")
    dims = one.type.tensor_type.shape.dim
    if len(dims) >= 2:
        if dims[0].HasField("dim_value") and dims[0].dim_value != 1:
            message = f"{what} must have a batch of 1 or a free one, not {dims[0].dim_value}"
            raise CompileError(source, message, "export it with a batch of 1")
        dims[0].dim_value = 1
    free = [str(axis) for axis, dim in enumerate(dims) if not dim.HasField("dim_value")]
    if free:
        message = f"{what} must have fixed sizes behind the batch, but dimension {', '.join(free)} is free"
        raise CompileError(source, message, "export it with a fixed image size")
    checked_size(source, what, [dim.dim_value for dim in dims])
    kept = [type(one).FromString(one.SerializeToString())]
    del model.graph.input[:]
    model.graph.input.extend(kept)


# -------------------------------------------------------------------------------------------------- external data


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """All tensors of the main graph: weights, and those in attributes."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _embed(model: ModelProto, path: Path, source: str) -> None:
    """Read all external data into the model."""
    rest = MAX_MODEL_BYTES
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            if tensor.external_data:
                raise CompileError(source, f"weights {quote(tensor.name)} are both here and external", "export again")
            continue
        data = _external(tensor, path, rest, f"{source}: weights {quote(tensor.name)}")
        rest -= len(data)
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = data


def _external(tensor: TensorProto, path: Path, most: int, source: str) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    hint = "save the model with its weights inside, or beside it"
    file = _external_path(entries.get("location", ""), path, source, hint)
    try:
        size = file.stat().st_size
        offset, length = _whole(entries.get("offset", "0")), _whole(entries.get("length", str(size)))
        if offset is None or length is None or (offset + length > size and "length" in entries) or offset > size:
            message = f"offset and length must lie within the {size} bytes of its file"
            raise CompileError(source, message, "copy the whole file")
        length = min(length, size - offset)
        if length > most:
            raise CompileError(source, f"external data must not exceed {MAX_MODEL_BYTES} bytes in all", "use a smaller model")
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(length)
    except OSError as error:
        raise CompileError(source, f"external data cannot be read: {one_line(error)}", hint) from error
    if len(data) != length:
        raise CompileError(source, "external data is cut short", "copy the whole file")
    return data


def _external_path(location: str, path: Path, source: str, hint: str) -> Path:
    """The file that a location names: a plain one, in the model's folder, links followed."""
    what = f"external data {quote(location)}"
    parts = location.replace("\\", "/").split("/")
    strange = not location.isprintable() or ":" in location or "\\" in location
    if not location or strange or location.startswith(("/", "~")) or ".." in parts:
        raise CompileError(source, f"{what} must be a plain path inside the model's folder", hint)
    try:
        folder = path.parent.resolve()
        file = (folder / location).resolve(strict=True)
        if not file.is_relative_to(folder):
            raise CompileError(source, f"{what} leaves the model's folder", hint)
        if not file.is_file() or file.stat().st_nlink > 1:  # a second name of a file may stand anywhere
            raise CompileError(source, f"{what} must be a plain file without other names", hint)
    except (OSError, ValueError, RuntimeError) as error:  # missing, too long, or a circle of links
        raise CompileError(source, f"{what} cannot be found: {one_line(error)}", hint) from error
    return file


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


# -------------------------------------------------------------------------------------------------- simplification


def _infer(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes that onnx infers, which become ``value_info``. It sees neither large weights nor the file's word."""
    thin = ModelProto(ir_version=model.ir_version)
    thin.opset_import.extend(model.opset_import)
    thin.graph.name = "net"
    thin.graph.node.extend(model.graph.node)
    thin.graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            thin.graph.initializer.append(tensor)
        else:
            thin.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for output in model.graph.output:
        thin.graph.output.add().name = output.name
    try:
        inferred = shape_inference.infer_shapes(thin)  # not data_prop: sixty nodes could make it fill the memory
    except Exception:  # a node that cannot be inferred is refused by the importer, with its name
        return {}
    infos = [*inferred.graph.value_info, *inferred.graph.output]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)
    shapes = {}
    for info in infos:
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") and dim.dim_value > 0 for dim in dims):
            shapes[info.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _fold(model: ModelProto, shapes: Mapping[str, tuple[int, ...]], source: str) -> bool:
    """Replace every node of constants by its result; whether there was any."""
    known = constants(model)
    outputs = {output.name for output in model.graph.output}
    fresh: dict[str, Constant] = {}
    rest: list[NodeProto] = []
    version = opset(model)
    for node in model.graph.node:
        results = None if outputs & set(node.output) else fold_node(node, known, shapes, version)
        if results is None:
            rest.append(node)
        else:
            known |= results
            fresh |= results
            check_folded(fresh, source)
    if not fresh:
        return False
    kept = [NodeProto.FromString(node.SerializeToString()) for node in rest]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    read = {name for node in kept for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        for name, array in fresh.items()
        if name in read
    )
    return True
