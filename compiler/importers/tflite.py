"""TensorFlow Lite networks: a float file becomes a real graph, an int8 file an integer graph with the file's own integers.

An int8 network computes exactly what the reference kernels of tflite-micro compute, byte for byte; its last softmax is left
to the host. A QUANTIZE at the front of a network with float input and a DEQUANTIZE at its end are left out: the engine takes
and gives the integers between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import CompileError
from ..files import printable
from ..graph import Graph, Input, Shape
from .common import Builder, Unsupported, checked_range
from .tflite_call import Call, Refused, Rule, State, feature_map, tensor_format
from .tflite_file import Model, Operator, Tensor, read_model
from .tflite_integer import INTEGER
from .tflite_kernels import Unrepresentable
from .tflite_real import REAL

__all__ = ["import_tflite", "read_tflite"]

INTEGERS = ("INT8", "UINT8", "INT16")
NEAREST: Mapping[str, str] = {
    "ABS": "use PRELU with slopes of -1",
    "BATCH_MATMUL": "use FULLY_CONNECTED",
    "DIV": "use MUL by the inverse",
    "ELU": "use LEAKY_RELU",
    "GATHER": "use SLICE or SPLIT",
    "GELU": "use HARD_SWISH",
    "LOG_SOFTMAX": "use SOFTMAX",
    "MAXIMUM": "use RELU or PRELU",
    "MINIMUM": "use RELU6",
    "MIRROR_PAD": "use PAD",
    "PACK": "use CONCATENATION",
    "RELU_N1_TO_1": "use RELU6, or fuse it into the layer in front",
    "RESIZE_BILINEAR": "use RESIZE_NEAREST_NEIGHBOR",
    "SQUARED_DIFFERENCE": "use SUB and MUL",
    "SUM": "use MEAN",
    "UNPACK": "use SPLIT",
}
"""The nearest operators that can be imported."""

OTHER_SCALES = "export it with other scales"

SHAPED = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
"""Their further inputs say again what the declared shape of the result says."""

DROPS_AXES = ("MEAN", "REDUCE_MAX", "STRIDED_SLICE")
"""Their results can lack axes of size 1 that ours keep."""

TAKES_UINT8 = ("QUANTIZE", "DEQUANTIZE")
"""All that tflite-micro does with uint8."""


def read_tflite(path: Path, input_range: tuple[float, float] | None = None) -> Graph:
    """The graph of a ``.tflite`` file, verified.

    ``input_range`` is what the input of a float network stays in, see `checked_range`; an int8 file says it itself.

    *Raises* ``CompileError`` for a broken file, and one that lists every operator that cannot be imported.
    """
    graph, _ = import_tflite(path, input_range)
    return graph


def import_tflite(path: Path, input_range: tuple[float, float] | None = None) -> tuple[Graph, Mapping[int, str]]:
    """`read_tflite`, and the graph's name of each tensor of the file that is in the graph, by the tensor's number."""
    model = read_model(path)
    operators = _needed(model)
    state = State(model, Builder(model.name), real=not _is_integer(model, operators))
    unsupported = Unsupported(model.source)
    _add_input(state, operators, unsupported, checked_range(model.source, input_range))
    for operator in operators:
        _import(state, operator, unsupported)
    unsupported.close()
    graph = _finished(state)
    return graph, {index: name for index, name in state.names.items() if name in graph.shapes}


def _needed(model: Model) -> list[Operator]:
    """The operators that outputs depend on, in the file's order; shapes that are computed from shapes are not among them."""
    wanted = set(model.outputs)
    needed = []
    for operator in reversed(model.operators):
        if wanted.intersection(operator.outputs):
            needed.append(operator)
            wanted.update(operator.inputs[:1] if operator.kind in SHAPED else operator.inputs)
    return needed[::-1]


def _is_integer(model: Model, operators: Sequence[Operator]) -> bool:
    made = [*model.inputs, *(index for operator in operators for index in operator.outputs if operator.kind != "DEQUANTIZE")]
    return any(model.tensors[index].kind in INTEGERS for index in made)


# ------------------------------------------------------------------------------------------------------------- input


def _add_input(state: State, operators: Sequence[Operator], unsupported: Unsupported, limits: tuple[float, float]) -> None:
    """The one input; of an integer network with float input, what its QUANTIZE makes."""
    model = state.model
    if len(model.inputs) != 1:
        raise CompileError(model.source, f"must have one input, not {len(model.inputs)}", "export one input")
    tensor = model.tensors[model.inputs[0]]
    source = f"{model.source}: input {printable(tensor.name)}"
    try:
        shape = feature_map(source, tensor)
        if state.real:
            if tensor.kind != "FLOAT32":
                raise Refused(f"it is {tensor.kind}", "use float32 or int8")
            node = Input(name=_name(state, tensor), inputs=(), source=source, shape=shape, low=limits[0], high=limits[1])
        else:
            node = _integer_input(state, operators, tensor, source, shape)
        state.names[tensor.index] = state.builder.add(node)
    except Refused as refused:
        state.refused.add(tensor.index)
        unsupported.add(source, refused.what, refused.nearest, tensor.shape)


def _integer_input(state: State, operators: Sequence[Operator], tensor: Tensor, source: str, shape: Shape) -> Input:
    made = tensor
    if tensor.kind == "FLOAT32":
        readers = [operator for operator in operators if tensor.index in operator.inputs]
        if len(readers) != 1 or readers[0].kind != "QUANTIZE" or len(readers[0].outputs) != 1:
            raise Refused("it is float, but the network computes in integers", "quantize the input too")
        made = state.model.tensors[readers[0].outputs[0]]
    form = tensor_format(source, made)
    low, high = ((raw - form.zero_point) * form.scale for raw in (form.min_raw, form.max_raw))
    return Input(name=_name(state, tensor), inputs=(), source=source, shape=shape, low=low, high=high, format=form)


def _name(state: State, tensor: Tensor) -> str:
    """A name from a tensor's own, which can be a list of all operators that were fused into one."""
    return state.builder.fresh(tensor.name.split(";")[0])


# --------------------------------------------------------------------------------------------------------- operators


def _import(state: State, operator: Operator, unsupported: Unsupported) -> None:
    """Run the rule of one operator, and note why it cannot be imported."""
    outputs = [state.model.tensors[index] for index in operator.outputs]
    label = outputs[0].name.split(";")[0] if outputs else operator.kind
    source = f"{state.model.source}: operator {operator.index} {operator.kind} '{printable(label)}'"
    for tensor in outputs:
        if tensor.index in state.names or tensor.index in state.heads or tensor.index in state.constants:
            raise CompileError(source, f"makes {printable(tensor.name)}, which another operator makes", "export it again")
        if tensor.data is not None:
            raise CompileError(source, f"makes {printable(tensor.name)}, which is a constant", "export it again")
    call = Call(state, operator, source, label or operator.kind.lower())
    try:
        rule = _rule(call)
        if state.refused.intersection(operator.inputs):  # then this is all that can be said of it
            state.refused.update(operator.outputs)
            return
        _keep(call, rule(call))
    except (Refused, Unrepresentable) as error:
        what, nearest = (error.what, error.nearest) if isinstance(error, Refused) else (str(error), OTHER_SCALES)
        state.refused.update(operator.outputs)
        unsupported.add(source, what, nearest, outputs[0].shape if outputs else None)


def _rule(call: Call) -> Rule:
    rules: Mapping[str, Rule] = REAL if call.state.real else {**INTEGER, "DEQUANTIZE": _dequantize, "QUANTIZE": _quantize}
    if call.kind not in rules:
        kind = "float" if call.state.real else "int8"
        nearest = NEAREST.get(call.kind, "compute it outside the network")
        raise Refused(f"{call.kind} is not supported in {kind} networks", nearest)
    tensors = [call.state.model.tensors[index] for index in (*call.operator.inputs[:1], *call.operator.outputs) if index >= 0]
    if call.kind not in TAKES_UINT8 and any(tensor.kind == "UINT8" for tensor in tensors):
        raise Refused("it computes in uint8", "convert the network to int8")
    return rules[call.kind]


def _quantize(call: Call) -> tuple[str, ...]:
    """QUANTIZE: of the network's own float input it is left out; between integers it is a table."""
    if call.tensor(0).kind == "FLOAT32":
        name = call.activation(0)
        if call.tensor(0).index not in call.state.model.inputs:
            raise Refused("it quantizes in the middle of the network", "quantize the whole network")
        return (name,)
    return INTEGER["QUANTIZE"](call)


def _dequantize(call: Call) -> tuple[str, ...]:
    """DEQUANTIZE at the end is left out."""
    if call.output().index not in call.state.model.outputs:
        raise Refused("it is not the network's last operator", "quantize the whole network")
    if call.tensor(0).index in call.state.heads:
        call.state.heads[call.output().index] = call.state.heads[call.tensor(0).index]
        return ()
    return (call.activation(0),)


def _keep(call: Call, names: tuple[str, ...]) -> None:
    """Note the results under the numbers of their tensors, in the shapes that the file declares."""
    for position, name in enumerate(names):
        tensor = call.output(position)
        shape, wanted = call.shape_of(name), call.expected(position)
        if shape != wanted and call.kind != "ARG_MAX":
            made, declared = ("×".join(map(str, size)) for size in (shape, wanted))
            if call.kind not in DROPS_AXES or [size for size in shape if size > 1] != [size for size in wanted if size > 1]:
                call.fail(f"makes {made}, but its result is declared as {declared}")
            name = call.reshaped(name, wanted, "map")
        call.state.names[tensor.index] = name


# ------------------------------------------------------------------------------------------------------------ output


def _finished(state: State) -> Graph:
    model = state.model
    outputs, heads = [], {}
    for index in model.outputs:
        if index in state.heads:
            name, softmax = state.heads[index]
            heads[name] = softmax
        elif index in state.names:
            name = state.names[index]
        else:
            message = f"output {printable(model.tensors[index].name)} is made by no operator"
            raise CompileError(model.source, message, "export it again")
        outputs.append(name)
    if not outputs or len(set(outputs)) != len(outputs):
        raise CompileError(model.source, "must have outputs, all of different tensors", "export each result once")
    return state.builder.graph(outputs, heads)
