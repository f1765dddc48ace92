"""A frame of shift registers that brings a wide top down to four pins, for designs whose ports outnumber the package's.

The chip a user builds connects the accelerator's streams to logic of his own, not to pins. To measure it alone, its
inputs hang on one long shift register and its outputs are folded into a signature register, so that no logic is
optimised away and every path ends at a register, as it would inside a larger design.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convfold.compiler.tools.yosys import Yosys, read_command

SERIAL_PORTS = ("serial_in", "serial_out")


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a top module."""

    name: str
    width: int
    direction: Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class WrapperCost:
    """What the frame itself takes; subtract it from a report to get the design alone.

    The flip-flops are exact. The look-up tables are: one a bit of the signature register.
    """

    luts: int
    ffs: int


def pin_count(ports: Iterable[Port]) -> int:
    """The pins a design takes with its ports bare."""
    return sum(port.width for port in ports)


def wrapper_cost(ports: Sequence[Port], *, clock: str = "clk", reset: str = "rst") -> WrapperCost:
    """The cost of ``make_wrapper`` for the same ports."""
    inputs, outputs = _driven(ports, clock, reset), _observed(ports)
    return WrapperCost(luts=pin_count(outputs), ffs=pin_count(inputs) + 2 * pin_count(outputs))


def make_wrapper(
    ports: Sequence[Port], top: str, *, name: str = "pin_wrapper", clock: str = "clk", reset: str = "rst"
) -> str:
    """Verilog-2005 of a module ``name`` with the ports ``clock``, ``reset``, ``serial_in``, ``serial_out``.

    Inputs of ``top`` are the stages of a shift register fed by ``serial_in``. Outputs are registered, then folded
    each cycle into a rotating signature whose last bit is ``serial_out``. A clock or reset ``top`` has not is left
    unconnected.

    Raises:
        ValueError: the clock is missing or a port name needs escaping.
    """
    names = [port.name for port in ports]
    for port in ports:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*", port.name):
            raise ValueError(f"port name must be a plain Verilog identifier, not {port.name!r}")
    if clock not in names:
        raise ValueError(f"the ports of {top} must include the clock, not only {', '.join(names)}")
    inputs, outputs = _driven(ports, clock, reset), _observed(ports)
    connections = [f"    .{port}({port})" for port in (clock, reset) if port in names]
    connections += _slices(inputs, "stimulus") + _slices(outputs, "response")
    stages, observed = pin_count(inputs), pin_count(outputs)
    lines = [
        f"module {name}({clock}, {reset}, serial_in, serial_out);",
        f"  input {clock};",
        f"  input {reset};",
        "  input serial_in;",
        "  output serial_out;",
    ]
    body = []
    if inputs:
        shifted = f"{{stimulus[{stages - 2}:0], serial_in}}" if stages > 1 else "serial_in"
        lines.append(f"  reg {_range(stages)}stimulus = {stages}'d0;")
        body.append(f"    stimulus <= {shifted};")
    if outputs:
        rotated = f"{{signature[{observed - 2}:0], signature[{observed - 1}]}}" if observed > 1 else "signature"
        lines.append(f"  wire {_range(observed)}response;")
        lines.append(f"  reg {_range(observed)}captured = {observed}'d0;")
        lines.append(f"  reg {_range(observed)}signature = {observed}'d0;")
        lines.append(f"  assign serial_out = {'signature[' + str(observed - 1) + ']' if observed > 1 else 'signature'};")
        body.append("    captured <= response;")
        body.append(f"    signature <= {rotated} ^ captured;")
    else:
        lines.append("  assign serial_out = 1'b0;")
    lines += [f"  always @(posedge {clock}) begin", *body, "  end"]
    lines += [f"  {top} wrapped (", ",\n".join(connections), "  );", "endmodule"]
    return "\n".join(lines) + "\n"


def read_ports(yosys: Yosys, source: Path, top: str, cwd: Path, log: str = "ports.log") -> tuple[Port, ...]:
    """The ports of module ``top`` in a Verilog or RTLIL file, in order.

    Raises:
        ToolError: Yosys cannot read the file or there is no such module.
    """
    script = f"{read_command(source, cwd)}\nselect -module {top}\nportlist\n"
    text = yosys.run(script, cwd, log).read_text(encoding="utf-8")
    found = re.findall(r"^(input|output) \[(\d+):(\d+)\] (\S+)$", text, re.MULTILINE)
    return tuple(
        Port(name, abs(int(high) - int(low)) + 1, "input" if direction == "input" else "output")
        for direction, high, low, name in found
    )


def _driven(ports: Sequence[Port], clock: str, reset: str) -> list[Port]:
    return [port for port in ports if port.direction == "input" and port.name not in (clock, reset)]


def _observed(ports: Sequence[Port]) -> list[Port]:
    return [port for port in ports if port.direction == "output"]


def _range(width: int) -> str:
    return f"[{width - 1}:0] " if width > 1 else ""


def _slices(ports: Sequence[Port], bus: str) -> list[str]:
    """Connections of ``ports`` to consecutive bits of ``bus``, the first port at the bottom."""
    total, low, connections = pin_count(ports), 0, []
    for port in ports:
        high = low + port.width - 1
        part = bus if total == 1 else f"{bus}[{low}]" if port.width == 1 else f"{bus}[{high}:{low}]"
        connections.append(f"    .{port.name}({part})")
        low = high + 1
    return connections
