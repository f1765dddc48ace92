"""Drive a component's streams in Amaranth's simulator, under stall profiles."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from amaranth.hdl import Value
from amaranth.sim import Simulator

PROFILES = ("none", "input gaps", "output stalls", "both")


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


def run_stream(
    dut: object,
    beats: Sequence[int],
    count: int,
    profile: str = "none",
    *,
    limit: int = 20_000,
    seed: int = 1,
    watch: Value | None = None,
) -> Run:
    """Send ``beats`` into ``dut.i`` and take ``count`` beats from ``dut.o``.

    Checks the stream rules at the output: while ``valid`` is high and ``ready`` low, neither ``valid`` nor payload changes.
    Fails with "k of n outputs" at the cycle limit, and if a beat too many comes in the cycles after the last.
    """
    rng = random.Random(seed)
    gaps = 0.5 if profile in ("input gaps", "both") else 0.0
    stalls = 0.5 if profile in ("output stalls", "both") else 0.0
    run = Run()

    async def bench(ctx: object) -> None:
        left = list(beats)
        offered = False
        held = None
        cycle = 0
        extra = 50
        i_payload, o_payload = Value.cast(dut.i.payload), Value.cast(dut.o.payload)
        while extra:
            if cycle == limit:
                raise AssertionError(f"{len(run.payloads)} of {count} outputs after {limit} cycles")
            if left and not offered and rng.random() >= gaps:
                ctx.set(i_payload, left[0])
                offered = True
            ctx.set(dut.i.valid, offered)
            ready = rng.random() >= stalls
            ctx.set(dut.o.ready, ready)
            valid = ctx.get(dut.o.valid)
            payload = ctx.get(o_payload) if valid else None
            assert held is None or held == payload, "payload must be held until it is taken"
            if offered and ctx.get(dut.i.ready):
                run.sent.append(cycle)
                left.pop(0)
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

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert len(run.payloads) == count, f"{len(run.payloads)} outputs instead of {count}"
    return run
