"""From Verilog to a bitstream in one call, with a wrapper round the top where pins are short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convfold.compiler.targets import Target
from convfold.compiler.tools.nextpnr import (
    Nextpnr,
    Placer,
    RouteResult,
    find_nextpnr,
    pack_bitstream,
    place_and_route,
)
from convfold.compiler.tools.wrapper import WrapperCost, make_wrapper, pin_count, read_ports, wrapper_cost
from convfold.compiler.tools.yosys import Synthesis, Yosys, find_yosys, synthesize

WRAPPER = "pin_wrapper"


@dataclass(frozen=True, slots=True)
class Implementation:
    """A placed and routed design.

    ``wrapper`` is what the shift registers round the top cost at most when its ports outnumber the package's
    pins; they are included in the counts of ``route``. ``None`` means the top stands on the pins itself.
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
    placer: Placer = "heap",
    bitstream: bool = True,
    yosys: Yosys | None = None,
    nextpnr: Nextpnr | None = None,
    progress: Callable[[str], None] | None = None,
) -> Implementation:
    """Synthesize, place and route ``top`` in the folder ``cwd``; ``progress`` hears of each step.

    A top with more port bits than the package has pins is wrapped, unless ``constraints`` (an LPF or PCF
    file) says where its ports go. Without constraints nextpnr takes any pads, on ECP5 even ones that are not
    bonded out: such a bitstream proves that the design fits and how fast it is, but is not for a board.

    Raises:
        CompileError: the target is not a device.
        ToolError: a tool is missing or fails, or the design does not fit.
    """
    nextpnr = find_nextpnr(target) if nextpnr is None else nextpnr
    yosys = find_yosys() if yosys is None else yosys
    tell = progress or (lambda step: None)
    ports = read_ports(yosys, source, top, cwd)
    wrapped = constraints is None and target.pins is not None and pin_count(ports) > target.pins
    sources = [source]
    if wrapped:
        tell(f"wrap: {pin_count(ports)} port bits, {target.pins} pins")
        sources.append(cwd / f"{WRAPPER}.v")
        sources[-1].write_text(make_wrapper(ports, top, name=WRAPPER), encoding="utf-8")
    tell(f"synthesize: {yosys.version}")
    synthesis = synthesize(yosys, sources, target, WRAPPER if wrapped else top, cwd)
    tell(f"place and route: {nextpnr.version}")
    route = place_and_route(
        nextpnr,
        synthesis.netlist,
        target,
        cwd,
        freq_mhz=freq_mhz,
        seed=seed,
        speed=speed,
        constraints=constraints,
        placer=placer,
    )
    packed = None
    if bitstream:
        tell("pack")
        packed = pack_bitstream(nextpnr, route, cwd)
    return Implementation(
        synthesis=synthesis,
        route=route,
        wrapper=wrapper_cost(ports) if wrapped else None,
        bitstream=packed,
        versions=(yosys.version, nextpnr.version),
    )
