"""Drive a component in Amaranth's simulator, its streams under stall profiles."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import Value
from amaranth.sim import Simulator

PROFILES = ("none", "input gaps", "output stalls", "both")

Bench = Callable[[Any], Awaitable[None]]


@dataclass(slots=True)
class Run:
    """What was seen: the cycle and the packed payload of every beat, and every cycle in which ``watch`` was high."""

    sent: list[int] = field(default_factory=list)
    cycles: list[int] = field(default_factory=list)
    payloads: list[int] = field(default_factory=list)
    watched: list[int] = field(default_factory=list)


def pack(values: Sequence[int], bits: int) -> int:
    """Lanes to a payload, lane 0 in the low bits."""
    return sum((int(value) & ((1 << bits) - 1)) << (n * bits) for n, value in enumerate(values))


def unpack(payload: int, bits: int, signed: bool, lanes: int) -> list[int]:
    values = [payload >> (n * bits) & ((1 << bits) - 1) for n in range(lanes)]
    return [value - (1 << bits) if signed and value >> (bits - 1) else value for value in values]


def simulate(design: Any, bench: Bench) -> None:
    """Run a test bench to its end."""
    simulator = Simulator(design)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def look_inside(dut: Any) -> Any:
    """The submodules of a component that is simulated next, by name."""
    module = dut.elaborate(None)
    dut.elaborate = lambda _platform: module
    return module.submodules


def run_stream(
    dut: Any,
    beats: Sequence[int],
    count: int,
    profile: str = "none",
    *,
    limit: int = 20_000,
    seed: int = 1,
    watch: Value | None = None,
    never: Value | None = None,
) -> Run:
    """Send ``beats`` into ``dut.i`` and take ``count`` beats from ``dut.o``.

    Checks the stream rules at the output: while ``valid`` is high and ``ready`` low, neither ``valid`` nor payload
    changes. Fails with "k of n outputs" at the cycle limit, if a beat too many comes in the cycles after the last,
    and if ``never`` is high in any cycle.
    """
    rng = random.Random(seed)
    gaps = 0.5 if profile in ("input gaps", "both") else 0.0
    stalls = 0.5 if profile in ("output stalls", "both") else 0.0
    run = Run()

    async def bench(ctx: Any) -> None:
        left = list(reversed(beats))
        offered = False
        held = None
        cycle = 0
        extra = 50
        i_payload, o_payload = Value.cast(dut.i.payload), Value.cast(dut.o.payload)
        while extra:
            if cycle == limit:
                raise AssertionError(f"{len(run.payloads)} of {count} outputs after {limit} cycles")
            if left and not offered and rng.random() >= gaps:
                ctx.set(i_payload, left[-1])
                offered = True
            ctx.set(dut.i.valid, offered)
            ready = rng.random() >= stalls
            ctx.set(dut.o.ready, ready)
            valid = bool(ctx.get(dut.o.valid))
            payload = int(ctx.get(o_payload))
            assert held is None or (valid and held == payload), "payload must be held until it is taken"
            assert never is None or not ctx.get(never), f"what must never be is, in cycle {cycle}"
            if offered and ctx.get(dut.i.ready):
                run.sent.append(cycle)
                left.pop()
                offered = False
            held = payload if valid and not ready else None
            if valid and ready:
                run.payloads.append(payload)
                run.cycles.append(cycle)
            if watch is not None and ctx.get(watch):
                run.watched.append(cycle)
            extra -= len(run.payloads) >= count
            await ctx.tick()
            cycle += 1

    simulate(dut, bench)
    assert len(run.payloads) == count, f"{len(run.payloads)} outputs instead of {count}"
    return run


def run_clocked(
    design: Any, inputs: Sequence[Any], values: Iterable[Sequence[int]], outputs: Sequence[Any]
) -> list[tuple[int, ...]]:
    """Set the ports ``inputs`` to new values every cycle, and tell what ``outputs`` were at the end of each."""
    seen: list[tuple[int, ...]] = []

    async def bench(ctx: Any) -> None:
        for line in values:
            for port, value in zip(inputs, line, strict=True):
                ctx.set(port, value)
            seen.append(tuple(int(ctx.get(port)) for port in outputs))
            await ctx.tick()

    simulate(design, bench)
    return seen


def measured_lags(expected: Sequence[int], seen: Sequence[int], most: int = 12) -> list[int]:
    """Every lag by which ``seen`` repeats ``expected``; one that holds by chance is not to be feared of long lists."""
    return [lag for lag in range(most) if list(seen[lag:]) == list(expected[: len(expected) - lag])]
