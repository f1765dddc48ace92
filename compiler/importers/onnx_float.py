"""Float ONNX models as graphs: walk the nodes once, fold what is constant, hand the rest to its operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from ..errors import CompileError, quote
from ..graph import Graph, Input, Softmax
from ..verify import RESERVED, legal_name
from .common import Builder, Unsupported, checked_range
from .onnx_fold import check_folded, fold_node
from .onnx_layout import Dims, Refusal, Value, image_order, value_of
from .onnx_load import attributes, constants, describe, opset
from .onnx_net import Constant, Net, Op, Tensor, image_shape
from .onnx_operators import NEAREST, OPERATORS

REALS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def import_float(model: ModelProto, name: str, source: str, input_range: tuple[float, float] | None = None) -> Graph:
    """The real graph of a model from `load_onnx`; ``name`` is the network's, ``source`` the file's in errors.

    Maps are NCHW in the file and (H, W, C) here: no transposition is left, one that the stream cannot absorb is refused.
    An output keeps the order of the stream: ``N,C,H,W`` leaves as (H, W, C), ``N,C,L`` as (L, 1, C), anything else flat in
    its own order. A final softmax becomes a head of its output.

    *Raises* ``CompileError``, for unsupported nodes one that lists them all.
    """
    low, high = checked_range(source, input_range)
    builder = Builder(name)
    net = Net(builder)
    (info,) = model.graph.input
    value = _input(model, net, info, source, low, high)
    walk = _Walk(model, net, source, {info.name: value})
    for node in model.graph.node:
        walk.visit(node)
    walk.unsupported.close()
    outputs: dict[str, Softmax | None] = {}
    for output in model.graph.output:
        tensor, head = walk.output(output.name)
        outputs[tensor] = head
    return builder.graph(list(outputs), {tensor: head for tensor, head in outputs.items() if head})


def _input(model: ModelProto, net: Net, info: ValueInfoProto, source: str, low: float, high: float) -> Value:
    what = f"{source}: input {quote(info.name)}"
    readers = [node for node in model.graph.node if info.name in node.input]
    cast = all(node.op_type == "Cast" for node in readers)
    if info.type.tensor_type.elem_type not in REALS and not cast:
        raise CompileError(what, "must hold float numbers", "export the model with a float input")
    dims = _sizes(info)
    rank = len(dims)
    if not 1 <= rank <= 4:
        raise CompileError(what, f"must have 1 to 4 dimensions, not {rank}", "use N,C,H,W, N,C,L or N,C")
    order = image_order(rank)
    if rank in (3, 4) and readers and all(_puts_channels_first(node, rank) for node in readers):
        order = tuple(range(rank))
        shape = image_shape(tuple(dims[axis] for axis in (0, rank - 1, *range(1, rank - 1))))
    else:
        shape = image_shape(dims)
    text = legal_name(info.name.strip("/"))
    node = Input(name=net.builder.fresh(text), inputs=(), source=what, shape=shape, low=low, high=high)
    return value_of(net.builder.add(node), dims, order)


def _sizes(info: ValueInfoProto) -> Dims:
    return tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)


def _puts_channels_first(node: NodeProto, rank: int) -> bool:
    return node.op_type == "Transpose" and attributes(node).get("perm") == [0, rank - 1, *range(1, rank - 1)]


class _Walk:
    """All values by name, as far as the nodes have been visited; ``None`` for what an unsupported node would make."""

    def __init__(self, model: ModelProto, net: Net, source: str, known: dict[str, Value]) -> None:
        self.net = net
        self.source = source
        self.version = opset(model)
        self.constants = constants(model)
        self.folded: dict[str, Constant] = {}
        self.values: dict[str, Value | None] = dict(known)
        self.unsupported = Unsupported(source)
        self.shapes = {info.name: _sizes(info) for info in model.graph.value_info}
        self.read = {name for node in model.graph.node for name in node.input} | {one.name for one in model.graph.output}

    def visit(self, node: NodeProto) -> None:
        results = fold_node(node, self.constants, self._dims(node), self.version)
        if results is not None:
            self.constants |= results
            self.folded |= results
            check_folded(self.folded, self.source)
            return
        made: Sequence[Tensor | None]
        try:
            made = self._apply(node)
        except Refusal as refusal:
            self.unsupported.add(describe(node), refusal.what, refusal.nearest, self._shape(node))
            made = ()
        for index, name in enumerate(node.output):
            tensor = made[index] if index < len(made) else None
            if name and (tensor is None or isinstance(tensor, Value)):
                self.values[name] = tensor if tensor is not None else self._stand_in(name)

    def _apply(self, node: NodeProto) -> Sequence[Tensor | None]:
        if node.input and all(name in self.constants or not name for name in node.input):
            raise Refusal("it computes a constant, but cannot be folded", "simplify the model before the export")
        handler = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if handler is None:
            raise Refusal("this operator is not supported", NEAREST.get(node.op_type, "replace it, or cut the network there"))
        inputs = [self.values.get(name, self.constants.get(name)) for name in node.input]
        if any(name in self.values and self.values[name] is None for name in node.input):
            return ()
        used = [name for name in node.output if name in self.read]
        op = Op(
            kind=node.op_type,
            label=_label(node),
            source=f"{self.source}: {describe(node)}",
            inputs=tuple(inputs),
            attributes=attributes(node),
            outputs=max((at + 1 for at, name in enumerate(node.output) if name in used), default=0),
            version=self.version,
        )
        if node.op_type == "Split":
            op = replace(op, outputs=len(node.output))
        result = handler(self.net, op)
        return [result] if not isinstance(result, Sequence) else result

    def _stand_in(self, name: str) -> Value | None:
        """A value in place of what an unsupported node makes, so that the nodes behind it are looked at too."""
        dims = self.shapes.get(name)
        return self.net.stand_in(name, dims) if self.unsupported.lines and dims else None

    def output(self, name: str) -> tuple[str, Softmax | None]:
        """The tensor of an output, in the order in which it leaves, and its head."""
        value = self.values.get(name)
        source = f"{self.source}: output {quote(name)}"
        if value is None:
            raise CompileError(source, "does not depend on the input", "remove it from the outputs")
        return self.net.output(Op("output", legal_name(name.strip("/")), source, (value,), {}, 1, self.version), value)

    def _dims(self, node: NodeProto) -> dict[str, Dims]:
        values = ((name, self.values.get(name)) for name in node.input)
        return {name: value.dims for name, value in values if value is not None}

    def _shape(self, node: NodeProto) -> Dims | None:
        """The shape of a node's first input, or output, where it is known."""
        for name in (*node.input, *node.output):
            value = self.values.get(name)
            if value is not None:
                return value.dims
            if self.shapes.get(name):
                return self.shapes[name]
        return None


def _label(node: NodeProto) -> str:
    """A short name for what a node makes: its own last part, that of its output, or its operator's."""
    text = node.name or next(iter(node.output), "")
    text = text.strip("/").removesuffix("_output_0").replace("::", "_")
    return legal_name(text) if text and legal_name(text).lower() not in RESERVED else legal_name(node.op_type.lower())
