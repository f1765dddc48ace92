"""Exported PyTorch programs as graphs: walk the calls once, fold what is constant, hand the rest to its operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CompileError, quote
from ..files import printable
from ..graph import Graph, Input, Softmax
from ..verify import legal_name
from .common import Builder, Unsupported, checked_size
from .onnx_layout import Dims, Refusal, Value, image_order, value_of
from .onnx_net import Constant, Net, Op, Tensor, image_shape
from .torch_file import Call, Name, Program
from .torch_operators import FLOATS, FOLDS, NEAREST, OPERATORS, VERSION, VIEWS, Site

CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size")
"""Calls that only check."""


def import_program(program: Program, name: str, limits: tuple[float, float]) -> Graph:
    """The real graph of an exported program; ``name`` is the network's.

    Maps are NCHW in the program and (H, W, C) here: no transposition is left, one that the stream cannot absorb is refused. An
    output keeps the order of the stream. A final softmax becomes a head of its output.

    *Raises* ``CompileError``, for unsupported calls one that lists them all.
    """
    walk = _Walk(program, Net(Builder(name)), Unsupported(program.source))
    walk.values[program.input] = walk.input(limits)
    for call in program.calls:
        walk.visit(call)
    walk.unsupported.close()
    outputs: dict[str, Softmax | None] = {}
    for output in program.outputs:
        tensor, head = walk.output(output)
        outputs[tensor] = head
    return walk.net.builder.graph(list(outputs), {tensor: head for tensor, head in outputs.items() if head})


@dataclass(slots=True, eq=False)
class _Walk:
    """All values by name, as far as calls have been visited; ``None`` for what an unsupported call would make.

    ``memory`` says of a name in whose memory its samples may be, ``stale`` holds names whose samples were changed since.
    """

    program: Program
    net: Net
    unsupported: Unsupported
    values: dict[str, Tensor | None] = field(default_factory=dict)
    memory: dict[str, str] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)

    def input(self, limits: tuple[float, float]) -> Value:
        what = f"{self.program.source}: input {quote(self.program.input)}"
        dims = self.program.shapes.get(self.program.input)
        if dims is None or not 2 <= len(dims) <= 4 or dims[0] != 1:
            size = "no fixed shape" if dims is None else f"shape {list(dims)}"
            raise CompileError(what, f"has {size}", "export the module for one input (1, C, H, W), (1, C, L) or (1, C)")
        if self.program.types.get(self.program.input) not in FLOATS:
            raise CompileError(what, "must hold float numbers", "export the module with a float input")
        checked_size(what, "it", dims)
        name = self.net.builder.fresh(legal_name(self.program.input))
        node = Input(name=name, inputs=(), source=what, shape=image_shape(dims), low=limits[0], high=limits[1])
        return value_of(self.net.builder.add(node), dims, image_order(len(dims)))

    # ------------------------------------------------------------------------------------------------------- calls

    def visit(self, call: Call) -> None:
        library, _, name = call.target.partition(".")
        kind, _, _ = name.partition(".")
        if kind in CHECKS:
            return
        plain = kind.removesuffix("_") if not kind.startswith("__") else kind
        try:
            made: Any = self._apply(call, plain if library == "aten" else "")
        except Refusal as refusal:
            nearest = NEAREST.get(plain, refusal.nearest)
            self.unsupported.add(self._where(call), refusal.what, nearest, self._shape(call))
            made = None
        self._keep(call, made)
        self._share(call, plain, in_place=kind != plain)

    def _apply(self, call: Call, kind: str) -> Tensor | Sequence[Tensor] | None:
        arguments = {name: self._found(argument) for name, argument in call.arguments.items()}
        flat = [one for item in arguments.values() for one in (item if isinstance(item, tuple) else (item,))]
        handler = OPERATORS.get(kind)
        if not any(isinstance(one, Value | _Missing) for one in flat):
            return self._folded(call, kind, arguments)
        if handler is None:
            raise Refusal("this operator is not supported", NEAREST.get(kind, "replace it, or cut the network there"))
        if any(isinstance(one, _Missing) for one in flat):
            return None
        shape = next((self.program.shapes.get(name) for name in call.results if isinstance(name, str)), None)
        return handler(Site(self.net, legal_name(call.label), self._where(call), arguments, shape))

    def _folded(self, call: Call, kind: str, arguments: dict[str, Any]) -> Constant:
        if kind not in FOLDS:
            raise Refusal("its inputs are constant, but it cannot be folded", "make the constant when the module is built")
        try:
            with np.errstate(all="ignore"):  # weights are checked where they are used
                made = FOLDS[kind](arguments)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            raise CompileError(self._where(call), "its constants do not fit together", "export the module again") from error
        if not isinstance(made, np.ndarray):
            raise CompileError(self._where(call), "it makes no tensor", "export the module again")
        checked_size(self._where(call), "its result", made.shape)
        return made

    def _found(self, argument: Any) -> Any:
        """An argument, names replaced by what they stand for."""
        if isinstance(argument, tuple):
            return tuple(self._found(item) for item in argument)
        if not isinstance(argument, Name):
            return argument
        name = argument.name
        if name in self.stale:
            what = f"it reads {quote(name)}, which was changed in place under another name"
            raise Refusal(what, "use operators that are not in place")
        if name not in self.values and name in self.program.places:
            return self.program.array(name)
        if name not in self.values:
            raise CompileError(self.program.source, f"reads {quote(name)}, which nothing makes", "export the module again")
        found = self.values[name]
        return _Missing() if found is None else found

    def _keep(self, call: Call, made: Tensor | Sequence[Tensor] | None) -> None:
        """Note the results under their names: one value, or a list of them; further results are never made."""
        for at, names in enumerate(call.results):
            if isinstance(names, tuple):
                parts = made if isinstance(made, Sequence) and len(made) == len(names) else (None,) * len(names)
                for name, part in zip(names, parts, strict=True):
                    self.values[name] = part if part is not None else self._stand_in(name)
            elif names is not None:
                single = made if at == 0 and isinstance(made, Value | np.ndarray) else None
                self.values[names] = single if single is not None else self._stand_in(names)

    def _share(self, call: Call, kind: str, in_place: bool) -> None:
        """Note who shares memory with whom, and after a change in place, who is out of date."""
        first = next(iter(call.arguments.values()), None)
        if not isinstance(first, Name) or not (in_place or kind in VIEWS):
            return
        root = self.memory.get(first.name, first.name)
        if in_place:
            self.stale |= {name for name, other in self.memory.items() if other == root} | {root}
        names = [name for item in call.results for name in (item if isinstance(item, tuple) else (item,)) if name is not None]
        for name in names:
            self.memory[name] = root
        if in_place and names:
            self.values[first.name] = self.values[names[0]]
            self.stale -= {first.name, *names}

    # -------------------------------------------------------------------------------------------------------- errors

    def _where(self, call: Call) -> str:
        name = next((name for name in call.results if isinstance(name, str)), "")
        return f"{self.program.source}: {printable(name or call.label)} ({printable(call.target)})"

    def _shape(self, call: Call) -> Dims | None:
        names = [item.name for item in call.arguments.values() if isinstance(item, Name)]
        names += [name for name in call.results if isinstance(name, str)]
        return next((shape for shape in map(self.program.shapes.get, names) if shape is not None), None)

    def _stand_in(self, name: str) -> Value | None:
        """A value in place of what an unsupported call makes, so that the calls behind it are looked at too."""
        dims = self.program.shapes.get(name)
        return self.net.stand_in(name, dims) if self.unsupported.lines and dims else None

    # ------------------------------------------------------------------------------------------------------- outputs

    def output(self, name: str) -> tuple[str, Softmax | None]:
        """The tensor of an output, in the order in which it leaves, and its head."""
        value = self.values.get(name)
        source = f"{self.program.source}: output {quote(name)}"
        if not isinstance(value, Value) or name in self.stale:
            raise CompileError(source, "does not depend on the input", "remove it from the outputs")
        return self.net.output(Op("output", legal_name(name), source, (value,), {}, 1, VERSION), value)


@dataclass(frozen=True, slots=True)
class _Missing:
    """What an unsupported call would have made."""
