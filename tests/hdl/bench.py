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
    benches = [
        StreamBench(dut if ports is None else ports, beats, count, profile, limit, seed, watch, never, 50 if n == 0 else 5)
        for n, profile in enumerate(profiles)
    ]
    simulate(dut, *benches)
    return {bench.profile: bench.run for bench in benches}


@dataclass(slots=True)
class StreamBench:
    """One run of `run_profiles`; it looks for beats too many in the ``after`` cycles after the last."""

    ports: Any
    beats: Sequence[int]
    count: int
    profile: str = "none"
    limit: int = 20_000
    seed: int = 1
    watch: Value | None = None
    never: Value | None = None
    after: int = 50
    run: Run = field(default_factory=Run)

    async def __call__(self, ctx: Any) -> None:
        rng = random.Random(self.seed)
        gaps = 0.5 if self.profile in ("input gaps", "both") else 0.0
        stalls = 0.5 if self.profile in ("output stalls", "both") else 0.0
        run, i, o = self.run, self.ports.i, self.ports.o
        i_payload, o_payload = Value.cast(i.payload), Value.cast(o.payload)
        left = list(reversed(self.beats))
        offered = False
        held = None
        cycle = 0
        after = self.after
        while after:
            seen = f"{self.profile}: {len(run.payloads)} of {self.count} outputs after {cycle} cycles"
            assert cycle < self.limit, seen
            if left and not offered and rng.random() >= gaps:
                ctx.set(i_payload, left[-1])
                offered = True
            ctx.set(i.valid, offered)
            ready = rng.random() >= stalls
            ctx.set(o.ready, ready)
            valid = bool(ctx.get(o.valid))
            payload = int(ctx.get(o_payload))
            assert held is None or (valid and held == payload), f"{seen}: a beat must be held until it is taken"
            assert self.never is None or not ctx.get(self.never), f"{seen}: what must never be is"
            if offered and ctx.get(i.ready):
                run.sent.append(cycle)
                left.pop()
                offered = False
            held = payload if valid and not ready else None
            if valid and ready:
                run.payloads.append(payload)
                run.cycles.append(cycle)
            if self.watch is not None and ctx.get(self.watch):
                run.watched.append(cycle)
            after -= len(run.payloads) >= self.count
            await ctx.tick()
            cycle += 1
        assert len(run.payloads) == self.count, f"{self.profile}: {len(run.payloads)} outputs instead of {self.count}"


def run_blocked(dut: Any, queue: Any, beats: Sequence[int], count: int, patience: int) -> tuple[int, list[int]]:
    """Take nothing until ``patience`` cycles pass in which ``queue`` is given nothing, then everything.

    Returns how many words the queue was given before the first was taken, and all ``count`` payloads. The queue must
    have room for each.
    """
    stored: list[int] = []
    payloads: list[int] = []

    async def bench(ctx: Any) -> None:
        left = list(reversed(beats))
        quiet = cycle = 0
        while len(payloads) < count:
            assert cycle < 20_000, f"{len(payloads)} of {count} outputs after {cycle} cycles"
            ctx.set(dut.i.valid, bool(left))
            if left:
                ctx.set(Value.cast(dut.i.payload), left[-1])
                if ctx.get(dut.i.ready):
                    left.pop()
            quiet += 1
            if ctx.get(queue.i.valid):
                assert ctx.get(queue.i.ready), f"no room in cycle {cycle}"
                stored.append(cycle)
                quiet = 0
            if stored and quiet == patience and not ctx.get(dut.o.ready):
                ctx.set(dut.o.ready, 1)
                stored.append(-1)
            if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                payloads.append(int(ctx.get(Value.cast(dut.o.payload))))
            await ctx.tick()
            cycle += 1

    simulate(dut, bench)
    return stored.index(-1), payloads


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
