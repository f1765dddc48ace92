"""From Verilog to a bitstream in one call: synthesis, a pin wrapper where the package is too small, routing, packing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convfold.compiler.targets import Target
from convfold.compiler.tools.nextpnr import Nextpnr, RouteResult, find_nextpnr, pack_bitstream, place_and_route
from convfold.compiler.tools.wrapper import WrapperCost, make_wrapper, pin_count, read_ports, wrapper_cost
from convfold.compiler.tools.yosys import Synthesis, Yosys, find_yosys, synthesize

WRAPPER = "pin_wrapper"


@dataclass(frozen=True, slots=True)
class Implementation:
    """A placed and routed design.

    ``wrapper`` is what the shift registers round the top cost when its ports outnumber the package's pins; they are
    included in the counts of ``route``. ``None`` means the top stands on the pins itself.
    """

    synthesis: Synthesis
    route: RouteResult
    wrapper: WrapperCost | None
    bitstream: Path | None
    versions: tuple[str, ...]


def implement(
    source: Path,
    target: Target,
    top: str,
    cwd: Path,
    *,
    freq_mhz: float | None = None,
    seed: int = 1,
    speed: str | None = None,
    constraints: Path | None = None,
    bitstream: bool = True,
    yosys: Yosys | None = None,
    nextpnr: Nextpnr | None = None,
    progress: Callable[[str], None] | None = None,
) -> Implementation:
    """Synthesize, place and route ``top`` in the folder ``cwd``; ``progress`` is told of each step as it begins.

    Raises:
        CompileError: the target is not a device.
        ToolError: a tool is missing or fails, or the design does not fit.
    """
    nextpnr = find_nextpnr(target) if nextpnr is None else nextpnr
    yosys = find_yosys() if yosys is None else yosys
    tell = progress or (lambda step: None)
    ports = read_ports(yosys, source, top, cwd)
    sources, wrapper = [source], None
    if target.pins is not None and pin_count(ports) > target.pins:
        tell(f"wrap: {pin_count(ports)} port bits, {target.pins} pins")
        wrapper = wrapper_cost(ports)
        wrapper_source = cwd / f"{WRAPPER}.v"
        wrapper_source.write_text(make_wrapper(ports, top, name=WRAPPER), encoding="utf-8")
        sources.append(wrapper_source)
    tell(f"synthesize: {yosys.version}")
    synthesis = synthesize(yosys, sources, target, WRAPPER if wrapper else top, cwd)
    tell(f"place and route: {nextpnr.version}")
    route = place_and_route(
        nextpnr, synthesis.netlist, target, cwd, freq_mhz=freq_mhz, seed=seed, speed=speed, constraints=constraints
    )
    packed = None
    if bitstream:
        tell("pack")
        packed = pack_bitstream(nextpnr, route, cwd)
    return Implementation(synthesis, route, wrapper, packed, (yosys.version, nextpnr.version))
