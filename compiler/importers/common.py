"""What every importer needs: a file read with a cap, checked numbers, legal names, and one list of all that is unsupported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CompileError, quote
from ..fields import LARGEST
from ..files import printable, read_bytes
from ..graph import Array, Graph, Node, Padding, Pair, Shape, Softmax, node_shape
from ..numbers import RealArray
from ..verify import MAX_ELEMENTS, MAX_NAME, SPEC, legal_name, verify

MAX_MODEL_BYTES = 1 << 27
"""Bytes of a model file, and of all external data of one model."""

MAX_NODES = 1 << 13
"""Nodes of a model. Nothing near it fits a chip."""

MAX_WEIGHTS = 1 << 25
"""Numbers in all weights together: 256 MiB as float64."""

DEFAULT_RANGE = (-1.0, 1.0)
"""The limits of the real inputs where nobody tells."""

MAX_LISTED = 40
"""Unsupported nodes that one error lists."""


# ------------------------------------------------------------------------------------------------------ packages


@contextmanager
def extra(name: str, source: str) -> Iterator[None]:
    """Import optional packages inside; one that is missing is a ``CompileError`` with the line that installs it."""
    try:
        yield
    except ImportError as error:
        missing = f"the package {error.name!r}" if error.name else "a package"
        message = f"reading this file needs {missing}, which is not installed"
        raise CompileError(source, message, f"pip install 'convfold[{name}]'") from error


# --------------------------------------------------------------------------------------------------------- files


def read_file(path: Path, most: int = MAX_MODEL_BYTES) -> bytes:
    """A whole file, if it is a plain one and not larger than ``most`` bytes.

    *Raises* ``CompileError`` for anything else.
    """
    return read_bytes(path, printable(path.name), most, subject="")


# ------------------------------------------------------------------------------------------------------- numbers


def finite(source: str, what: str, array: NDArray[Any]) -> RealArray:
    """An array as float64, every number finite and at most `LARGEST` in magnitude.

    *Raises* ``CompileError`` from ``source`` for any other number, and for an array of something else.
    """
    if array.dtype.kind not in "iufb":
        raise CompileError(source, f"{what} must hold real numbers, not {array.dtype}", "save it as float32")
    with np.errstate(invalid="ignore"):  # a signalling NaN warns, and is refused below
        values = np.asarray(array, dtype=np.float64)
    legal = np.abs(values) <= LARGEST
    if not legal.all():
        at = np.unravel_index(int(np.argmin(legal)), values.shape)
        where = f" at [{', '.join(map(str, at))}]" if at else ""
        message = f"{what} must hold numbers up to {LARGEST:g}, not {values[at]:g}{where}"
        raise CompileError(source, message, "train again, or replace the value")
    return values


def checked_size(source: str, what: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The same shape, if every size is at least 1 and there are not too many elements.

    *Raises* ``CompileError`` from ``source`` otherwise.
    """
    if not all(1 <= size <= MAX_ELEMENTS for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        message = f"{what} must have sizes from 1 and at most {MAX_ELEMENTS} elements, not {quote(list(shape))}"
        raise CompileError(source, message, "check the shapes in the file")
    return tuple(shape)


def checked_range(source: str, limits: tuple[float, float] | None) -> tuple[float, float]:
    """The limits of the real inputs, finite and rising; `DEFAULT_RANGE` for none.

    *Raises* ``CompileError`` from ``source`` otherwise.
    """
    low, high = DEFAULT_RANGE if limits is None else limits
    if not (-LARGEST <= low < high <= LARGEST):
        message = f"the input range must rise, within ±{LARGEST:g}, not {[low, high]}"
        raise CompileError(source, message, "for example 0 to 1")
    return low, high


def ceil_padding(size: int, extent: int, stride: int, padding: Pair) -> Pair:
    """The padding with which windows that begin inside count too: what ``ceil_mode`` adds at the bottom and right."""
    front, back = padding
    windows = -(-(size + front + back - extent) // stride) + 1
    if (windows - 1) * stride >= size + front:
        windows -= 1
    return front, max(back, (windows - 1) * stride + extent - size - front)


def spatial(value: Sequence[int]) -> tuple[int, int]:
    """A pair of numbers for rows and columns, from one for rows alone (a 1-D network is ``L×1``)."""
    rows, cols = value if len(value) == 2 else (value[0], 1)
    return rows, cols


def nonzero(padding: Padding) -> bool:
    return any(map(any, padding))


# --------------------------------------------------------------------------------------------------- unsupported


@dataclass(slots=True)
class Unsupported:
    """Collects every node that cannot be imported; `close` refuses them all in one error."""

    source: str
    lines: list[str] = field(default_factory=list)
    hints: dict[str, None] = field(default_factory=dict)

    def add(self, where: str, what: str, nearest: str, shape: Sequence[int | str] | None = None) -> None:
        """``where`` is the node, ``what`` is wrong with it, ``nearest`` the nearest thing that works."""
        size = f" ({'×'.join(map(str, shape))})" if shape is not None else ""
        line = f"{where}{size}: {what}"
        self.lines.append(f"{line}; {nearest}" if nearest else line)
        if nearest:
            self.hints.setdefault(nearest)

    def close(self) -> None:
        """*Raises* ``CompileError`` when there is anything unsupported."""
        if not self.lines:
            return
        count = len(self.lines)
        shown = [f"\n  - {line}" for line in self.lines[:MAX_LISTED]]
        rest = f"\n  - and {count - MAX_LISTED} more" if count > MAX_LISTED else ""
        noun = "1 node" if count == 1 else f"{count} nodes"
        hint = next(iter(self.hints)) if len(self.hints) == 1 else "change each node as said behind it, and export again"
        raise CompileError(self.source, f"{noun} cannot be imported:{''.join(shown)}{rest}", hint)


# ------------------------------------------------------------------------------------------------------- builder


class Builder:
    """A graph in the making: nodes in order, their shapes and arrays, names legal and unlike each other."""

    def __init__(self, name: str) -> None:
        self.name = legal_name(name)
        self.nodes: list[Node] = []
        self.weights: dict[str, Array] = {}
        self.shapes: dict[str, Shape] = {}
        self.made: dict[str, Node] = {}
        self.taken: dict[str, int] = {}

    def fresh(self, text: str) -> str:
        """A legal name near to ``text``, unlike all others even without regard to case. It is then taken."""
        first = legal_name(text or "tensor")
        name, number = first, self.taken.get(first.lower(), 0)
        while name.lower() in self.taken:
            number += 1
            end = f"_{number + 1}"
            name = legal_name(f"{first[: MAX_NAME - len(end)]}{end}")
        self.taken[first.lower()] = number
        self.taken.setdefault(name.lower(), 0)
        return name

    def add(self, node: Node, **arrays: Array) -> str:
        """Append a node with its arrays; its name, which must come from `fresh`.

        *Raises* ``CompileError`` when the node does not fit its inputs.
        """
        parts = {f"{node.name}.{part}": array for part, array in arrays.items()}
        shape = node_shape(node, tuple(self.shapes[name] for name in node.inputs), {**parts})
        checked_size(node.source, "the output", shape)
        self.nodes.append(node)
        self.made[node.name] = node
        self.weights |= parts
        self.shapes[node.name] = shape
        return node.name

    def graph(
        self,
        outputs: Sequence[str],
        heads: Mapping[str, Softmax] | None = None,
        labels: tuple[str, ...] = (),
    ) -> Graph:
        """The graph of all nodes that lead to an output, verified.

        *Raises* ``CompileError`` for whatever is wrong with it.
        """
        needed = set(outputs)
        for node in reversed(self.nodes):
            if node.name in needed:
                needed |= set(node.inputs)
        nodes = tuple(node for node in self.nodes if node.name in needed or not node.inputs)
        weights = {key: array for key, array in self.weights.items() if key.rpartition(".")[0] in needed}
        graph = Graph(self.name, nodes, tuple(dict.fromkeys(outputs)), weights, labels, heads=tuple((heads or {}).items()))
        return verify(graph, SPEC)
