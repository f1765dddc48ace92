"""Carry chains of ECP5 as nextpnr takes them: without the cells that it adds to both their ends.

nextpnr 0.11 puts two LUTs before a chain to feed in its first carry, even where that is a constant, and two behind it to
feed out its last one, even where nobody reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

__all__ = ["trim_carries"]

FLOATING = "x"
_INPUTS = "ABCD"


def trim_carries(document: dict[str, Any]) -> None:
    """Free the ends of all carry chains in a netlist (yosys's JSON), in place.

    A last carry that nobody reads is left open. Where the first carry is a constant, and the carry out of the first position
    then depends on two of its inputs at most, that position becomes the source of this carry, whatever enters it; its sum
    moves to a table of its own.
    """
    for module in document["modules"].values():
        readers = _readers(module)
        chains = [(name, cell) for name, cell in module["cells"].items() if cell["type"] == "CCU2C"]
        for name, cell in chains:
            if not readers[cell["connections"]["COUT"][0]]:
                cell["connections"]["COUT"] = [FLOATING]
            if cell["connections"]["CIN"][0] in ("0", "1"):
                _start(module, name, cell, readers)


def _readers(module: dict[str, Any]) -> Counter[int | str]:
    """How many cells and output ports read each net."""
    ends = [port["bits"] for port in module["ports"].values() if port["direction"] != "input"]
    for cell in module["cells"].values():
        directions = cell["port_directions"]
        ends += [bits for port, bits in cell["connections"].items() if directions[port] != "output"]
    return Counter(bit for bits in ends for bit in bits)


def _start(module: dict[str, Any], name: str, cell: dict[str, Any], readers: Counter[int | str]) -> None:
    """Make the carry of a chain's first position depend on its inputs alone, if that is possible."""
    wires, parameters = cell["connections"], cell["parameters"]
    if parameters["INJECT1_0"] != "NO":
        return
    init, first = int(parameters["INIT0"], 2), int(wires["CIN"][0])
    known = {n: int(wires[f"{pin}0"][0]) for n, pin in enumerate(_INPUTS) if wires[f"{pin}0"][0] in ("0", "1")}
    carries = {place: first if init >> place & 1 else init >> (place & 3) & 1 for place in _places(known)}
    needed = [n for n in range(4) if any(carries[place] != carries.get(place ^ 1 << n, carries[place]) for place in carries)]
    if len(needed) > 2:
        return
    if readers[wires["S0"][0]]:
        module["cells"][f"{name}$sum"] = {
            "hide_name": 1,
            "type": "LUT4",
            "parameters": {"INIT": f"{init ^ (0xFFFF if first else 0):016b}"},
            "attributes": {},
            "port_directions": {**dict.fromkeys(_INPUTS, "input"), "Z": "output"},
            "connections": {pin: wires[f"{pin}0"] for pin in _INPUTS} | {"Z": wires["S0"]},
        }
    # The carry that leaves is INIT0[3:0] of A and B, for with C and D high nothing passes.
    table = 0
    for place, carry in carries.items():
        table |= carry << sum((place >> n & 1) << position for position, n in enumerate(needed))
    if len(needed) < 2:
        table |= table << 2
    if not needed:
        table |= table << 1
    sources = [wires[f"{_INPUTS[n]}0"] for n in needed] + [["1"]] * (4 - len(needed))
    wires |= {f"{pin}0": source for pin, source in zip(_INPUTS, sources, strict=True)}
    wires |= {"CIN": [FLOATING], "S0": [FLOATING]}
    parameters["INIT0"] = f"{table:016b}"


def _places(known: dict[int, int]) -> Iterator[int]:
    """The places in a table that its inputs can reach, given the constant ones."""
    return (place for place in range(16) if all(place >> n & 1 == level for n, level in known.items()))
