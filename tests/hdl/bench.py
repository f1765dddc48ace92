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


def simulate(design: Any, *benches: Bench) -> None:
    """Run test benches to their ends, one after the other, each from the initial state."""
    turn = iter(benches)

    async def next_bench(ctx: Any) -> None:
        await next(turn)(ctx)

    simulator = Simulator(design)
    simulator.add_clock(1e-6)
    simulator.add_testbench(next_bench)
    for n in range(len(benches)):
        if n:
            simulator.reset()
        simulator.run()


def look_inside(dut: Any) -> Any:
    """The submodules of a component that is simulated next, by name."""
    module = dut.elaborate(None)
    dut.elaborate = lambda _platform: module
    return module.submodules


def run_stream(dut: Any, beats: Sequence[int], count: int, profile: str = "none", **options: Any) -> Run:
    """`run_profiles` for one profile."""
    return run_profiles(dut, beats, count, (profile,), **options)[profile]


def run_profiles(
    dut: Any,
    beats: Sequence[int],
    count: int,
    profiles: Sequence[str] = PROFILES,
    *,
    limit: int = 20_000,
    seed: int = 1,
    watch: Value | None = None,
    never: Value | None = None,
    ports: Any = None,
) -> dict[str, Run]:
    """Send ``beats`` into ``dut.i`` and take ``count`` beats from ``dut.o``, once for each profile, from reset.

    Checks the stream rules at the output: while ``valid`` is high and ``ready`` low, neither ``valid`` nor payload
    changes. Fails with "k of n outputs" at the cycle limit, if a beat too many comes in the cycles after the last (50
    in the first profile), and if ``never`` is high in any cycle. ``ports`` has ``i`` and ``o`` where ``dut`` has not.
    """
    ports = dut if ports is None else ports
    runs = {profile: Run() for profile in profiles}

    def bench_for(profile: str) -> Bench:
        async def bench(ctx: Any) -> None:
            after = 50 if profile == profiles[0] else 5
            await _run(ctx, ports, beats, count, profile, limit, seed, watch, never, after, runs[profile])

        return bench

    simulate(dut, *(bench_for(profile) for profile in profiles))
    for profile, run in runs.items():
        assert len(run.payloads) == count, f"{profile}: {len(run.payloads)} outputs instead of {count}"
    return runs


async def _run(
    ctx: Any,
    ports: Any,
    beats: Sequence[int],
    count: int,
    profile: str,
    limit: int,
    seed: int,
    watch: Value | None,
    never: Value | None,
    after: int,
    run: Run,
) -> None:
    rng = random.Random(seed)
    gaps = 0.5 if profile in ("input gaps", "both") else 0.0
    stalls = 0.5 if profile in ("output stalls", "both") else 0.0
    left = list(reversed(beats))
    offered = False
    held = None
    cycle = 0
    i_payload, o_payload = Value.cast(ports.i.payload), Value.cast(ports.o.payload)
    while after:
        if cycle == limit:
            raise AssertionError(f"{profile}: {len(run.payloads)} of {count} outputs after {limit} cycles")
        if left and not offered and rng.random() >= gaps:
            ctx.set(i_payload, left[-1])
            offered = True
        ctx.set(ports.i.valid, offered)
        ready = rng.random() >= stalls
        ctx.set(ports.o.ready, ready)
        valid = bool(ctx.get(ports.o.valid))
        payload = int(ctx.get(o_payload))
        assert held is None or (valid and held == payload), f"{profile}: payload must be held until it is taken"
        assert never is None or not ctx.get(never), f"{profile}: what must never be is, in cycle {cycle}"
        if offered and ctx.get(ports.i.ready):
            run.sent.append(cycle)
            left.pop()
            offered = False
        held = payload if valid and not ready else None
        if valid and ready:
            run.payloads.append(payload)
            run.cycles.append(cycle)
        if watch is not None and ctx.get(watch):
            run.watched.append(cycle)
        after -= len(run.payloads) >= count
        await ctx.tick()
        cycle += 1


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
