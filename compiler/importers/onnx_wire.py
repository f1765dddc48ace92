"""How much memory an ONNX file takes once it is parsed, told before it is: two bytes can make an empty node of a hundred.

The bytes are walked field by field, as protobuf writes them, through those messages that may be large: the model, its graph,
nodes, attributes and tensors. Numbers in tensors are bulk; all else is structure, and there must not be much of it.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_FIELDS = 1 << 17
"""Fields that are walked."""

MAX_STRUCTURE = 1 << 22
"""Bytes that are not numbers. Parsed, they take some fifty times as much at worst."""

LARGE = 1 << 12
"""Bytes from which a node or an attribute is looked into; a smaller one is structure as a whole."""

CONTAINERS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor"},
}
"""The fields of each message that are walked in turn."""

NUMBERS = (4, 9, 10)
PACKED = (5, 7, 11)
"""The fields of a tensor that hold its numbers: as they are, and packed, when one byte can make eight."""

MAX_PACKED = 1 << 24


class Bloated(ValueError):
    """A file that would not be read in bounded memory, or whose fields do not fit into it."""


def check_wire(data: bytes) -> None:
    """*Raises* ``Bloated`` when the file has more fields or structure than any model of use."""
    fields = structure = packed = 0
    pending = [("model", 0, len(data))]
    while pending:
        kind, at, end = pending.pop()
        while at < end:
            fields += 1
            start = at
            tag, at = _varint(data, at, end)
            number, wire = tag >> 3, tag & 7
            size = 0
            if wire == 0:
                _, at = _varint(data, at, end)
            elif wire == 2:
                size, at = _varint(data, at, end)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise Bloated("a field is of no known kind")
            body, at = at, at + size
            if at > end:
                raise Bloated("it is cut short, or damaged")
            inner = CONTAINERS.get(kind, {}).get(number)
            if wire == 2 and inner and (size > LARGE or inner in ("graph", "tensor")):
                pending.append((inner, body, at))
                structure += body - start
            elif wire == 2 and kind == "tensor" and number in PACKED:
                packed += size
            elif not (wire == 2 and kind == "tensor" and number in NUMBERS):
                structure += at - start
            if fields > MAX_FIELDS or structure > MAX_STRUCTURE:
                raise Bloated(f"it has more than {MAX_FIELDS} fields, or {MAX_STRUCTURE} bytes beside its weights")
            if packed > MAX_PACKED:
                raise Bloated(f"it has more than {MAX_PACKED} bytes of packed integers: store them as raw data")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise Bloated("it is cut short, or damaged")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise Bloated("a number is too long")
