"""A frame of shift registers for tops whose ports outnumber the pins: it brings them down to four.

The chip a user builds connects the accelerator's streams to logic of his own, not to pins. To measure it
alone, its inputs hang on one long shift register and its outputs are folded into a signature register, so
that no logic is optimised away and every path ends at a register, as it would inside a larger design.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convfold.compiler.tools.yosys import Yosys, read_command


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a top module."""

    name: str
    width: int
    direction: Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class WrapperCost:
    """What the frame itself takes at most; less where outputs are equal or constant."""

    luts: int
    ffs: int


def pin_count(ports: Iterable[Port]) -> int:
    """The pins a design takes with its ports bare."""
    return sum(port.width for port in ports)


def wrapper_cost(ports: Sequence[Port], *, clock: str = "clk", reset: str = "rst") -> WrapperCost:
    """One table and two flip-flops for each output bit of the top, one flip-flop for each input bit."""
    inputs, outputs = _driven(ports, clock, reset), _observed(ports)
    return WrapperCost(luts=pin_count(outputs), ffs=pin_count(inputs) + 2 * pin_count(outputs))


def make_wrapper(
    ports: Sequence[Port],
    top: str,
    *,
    name: str = "pin_wrapper",
    clock: str = "clk",
    reset: str = "rst",
) -> str:
    """Verilog-2005 of a module ``name`` with the ports ``clock``, ``reset``, ``serial_in``, ``serial_out``.

    Inputs of ``top`` are the stages of a shift register fed by ``serial_in``. Outputs are registered, then
    folded each cycle into a rotating signature whose last bit is ``serial_out``.

    Raises:
        ValueError: the clock is missing, there is no output, or a port name would need escaping.
    """
    names = [port.name for port in ports]
    for port in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*", port):
            raise ValueError(f"port name must be a plain Verilog identifier, not {port!r}")
    if clock not in names:
        raise ValueError(f"ports of {top} must include the clock {clock!r}, not only {', '.join(names)}")
    inputs, outputs = _driven(ports, clock, reset), _observed(ports)
    if not outputs:
        raise ValueError(f"ports of {top} must include an output")
    connections = [f".{port}({port})" for port in (clock, reset) if port in names]
    connections += _slices(inputs, "stimulus") + _slices(outputs, "response")
    return _WRAPPER.format(
        name=name,
        top=top,
        clock=clock,
        reset=reset,
        last_in=max(pin_count(inputs), 1) - 1,
        last_out=pin_count(outputs) - 1,
        connections=",\n    ".join(connections),
    )


_WRAPPER = """\
module {name}({clock}, {reset}, serial_in, serial_out);
  input {clock};
  input {reset};
  input serial_in;
  output serial_out;
  reg [{last_in}:0] stimulus = 0;
  wire [{last_out}:0] response;
  reg [{last_out}:0] captured = 0;
  reg [{last_out}:0] signature = 0;
  assign serial_out = signature[{last_out}];
  always @(posedge {clock}) begin
    stimulus <= (stimulus << 1) | serial_in;
    captured <= response;
    signature <= (signature << 1) ^ (signature >> {last_out}) ^ captured;
  end
  {top} wrapped (
    {connections}
  );
endmodule
"""


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


def _slices(ports: Sequence[Port], bus: str) -> list[str]:
    """Connections of ``ports`` to consecutive bits of ``bus``, the first port at the bottom."""
    low, connections = 0, []
    for port in ports:
        connections.append(f".{port.name}({bus}[{low + port.width - 1}:{low}])")
        low += port.width
    return connections
