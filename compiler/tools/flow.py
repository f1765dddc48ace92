"""From Verilog to a bitstream in one call, with a wrapper round the top where pins are short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convfold.compiler.targets import Target
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.nextpnr import (
    Nextpnr,
    RouteOptions,
    RouteResult,
    SeedRun,
    find_nextpnr,
    pack_bitstream,
    place_and_route_seeds,
)
from convfold.compiler.tools.wrapper import WrapperCost, make_wrapper, pin_count, read_ports, wrapper_cost
from convfold.compiler.tools.yosys import Synthesis, Yosys, find_yosys, synthesize

WRAPPER = "pin_wrapper"


@dataclass(frozen=True, slots=True)
class Implementation:
    """A placed and routed design.

    ``route`` is the fastest of all ``seeds``. ``wrapper`` is what the shift registers round the top cost at
    most when its ports outnumber the package's pins; they are included in the counts of ``route``. ``None``
    means the top stands on the pins itself.
    """

    synthesis: Synthesis
    route: RouteResult
    seeds: tuple[SeedRun, ...]
    wrapper: WrapperCost | None
    bitstream: Path | None
    versions: tuple[str, ...]


def implement(
    source: Path,
    target: Target,
    top: str,
    cwd: Path,
    options: RouteOptions | None = None,
    *,
    seeds: Sequence[int] = (1,),
    jobs: int = 1,
    bitstream: bool = True,
    yosys: Yosys | None = None,
    nextpnr: Nextpnr | None = None,
    progress: Callable[[str], None] = lambda step: None,
    told: Callable[[SeedRun], None] = lambda run: None,
) -> Implementation:
    """Synthesize, place and route ``top`` in the folder ``cwd``, and keep the fastest of all seeds.

    ``jobs`` seeds are placed and routed at a time; ``progress`` hears of each step, ``told`` of each seed. One that fails does
    no harm while another succeeds.

    A top with more port bits than the package has pins is wrapped, unless the options' constraints (an LPF or PCF
    file) say where its ports go. Without constraints nextpnr takes any pads, on ECP5 even ones that are not
    bonded out: such a bitstream proves that the design fits and how fast it is, but is not for a board.

    Raises:
        CompileError: the target is not a device.
        ToolError: a tool is missing or fails, or no seed fits and ends in time.
    """
    options = options or RouteOptions()
    nextpnr = find_nextpnr(target) if nextpnr is None else nextpnr
    yosys = find_yosys() if yosys is None else yosys
    ports = read_ports(yosys, source, top, cwd)
    wrapped = options.constraints is None and target.pins is not None and pin_count(ports) > target.pins
    sources = [source]
    if wrapped:
        progress(f"wrap: {pin_count(ports)} port bits, {target.pins} pins")
        sources.append(cwd / f"{WRAPPER}.v")
        sources[-1].write_text(make_wrapper(ports, top, name=WRAPPER), encoding="utf-8")
    progress(f"synthesize: {yosys.version}")
    synthesis = synthesize(yosys, sources, target, WRAPPER if wrapped else top, cwd)
    progress(f"place and route: {nextpnr.version}")
    runs = place_and_route_seeds(nextpnr, synthesis.netlist, target, cwd, options, seeds=seeds, jobs=jobs, told=told)
    route = _fastest(runs)
    packed = None
    if bitstream:
        progress("pack")
        packed = pack_bitstream(nextpnr, route, cwd)
    return Implementation(
        synthesis=synthesis,
        route=route,
        seeds=runs,
        wrapper=wrapper_cost(ports) if wrapped else None,
        bitstream=packed,
        versions=(yosys.version, nextpnr.version),
    )


def _fastest(runs: Sequence[SeedRun]) -> RouteResult:
    """The best route; those of the other seeds, tens of megabytes each, are deleted."""
    failures = [run.result for run in runs if isinstance(run.result, ToolError)]
    routes = [run.result for run in runs if isinstance(run.result, RouteResult)]
    if not routes:
        first = failures[0]
        if len(failures) == 1:
            raise first
        raise ToolError(first.tool, f"all {len(failures)} seeds failed; the first {first.message}", first.log, first.hint)
    best = max(routes, key=lambda route: route.slowest_mhz)
    for route in routes:
        if route is not best:
            route.routed.unlink()
    return best
