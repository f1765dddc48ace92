"""Drive a component of several inputs and outputs, each under its own stall profile, and hold it to its timing rule."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import Value

from convfold.hdl.pipe import PipeTiming
from tests.hdl.bench import PROFILES, simulate


@dataclass(slots=True)
class Traffic:
    """One port: when each beat was offered and when taken, and the packed payloads."""

    offered: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    payloads: list[int] = field(default_factory=list)


Run = dict[str, Traffic]


@dataclass(slots=True)
class PortBench:
    """One run from reset: ``beats`` into the inputs, ``counts`` out of the outputs. The first beat is offered in cycle 1.

    Checks at every output that a beat stays until it is taken; an output without a count is never taken from, the
    others not in the first ``blocked`` cycles. With ``patience`` the run ends, without a complaint, when so many cycles pass
    in which no beat moves; otherwise it fails with "k of n" at the limit, or if a beat too many comes.
    """

    dut: Any
    beats: Mapping[str, Sequence[int]]
    counts: Mapping[str, int]
    profile: str = "none"
    seed: int = 1
    limit: int = 20_000
    patience: int | None = None
    blocked: int = 0
    run: Run = field(default_factory=dict)

    async def __call__(self, ctx: Any) -> None:
        rng = random.Random(self.seed)
        gaps = 0.5 if self.profile in ("input gaps", "both") else 0.0
        stalls = 0.5 if self.profile in ("output stalls", "both") else 0.0
        self.run = {name: Traffic() for name in (*self.beats, *self.counts)}
        held: dict[str, int] = {}
        quiet = after = 0
        await ctx.tick()
        cycle = 1
        while after < 20:
            seen = [f"{len(self.run[name].taken)} of {count} at {name}" for name, count in self.counts.items()]
            assert cycle < self.limit, f"{self.profile}: {', '.join(seen)}"
            for name, beats in self.beats.items():
                port, traffic = getattr(self.dut, name), self.run[name]
                sent = len(traffic.taken)
                if len(traffic.offered) == sent < len(beats) and rng.random() >= gaps:
                    ctx.set(Value.cast(port.payload), beats[sent])
                    traffic.offered.append(cycle)
                ctx.set(port.valid, len(traffic.offered) > sent)
            for name in self.counts:
                ctx.set(getattr(self.dut, name).ready, cycle >= self.blocked and rng.random() >= stalls)
            moved = False
            for name in self.run:
                port, traffic = getattr(self.dut, name), self.run[name]
                valid, ready = bool(ctx.get(port.valid)), bool(ctx.get(port.ready))
                payload = int(ctx.get(Value.cast(port.payload)))
                if name in self.counts:
                    assert name not in held or (valid and held[name] == payload), f"{name}: beat must be held until it is taken"
                    if valid and name not in held:
                        traffic.offered.append(cycle)
                        held[name] = payload
                if valid and ready:
                    traffic.taken.append(cycle)
                    traffic.payloads.append(payload)
                    held.pop(name, None)
                    moved = True
            quiet = 0 if moved else quiet + 1
            if self.patience is not None and quiet == self.patience:
                return
            done = all(len(self.run[name].taken) >= count for name, count in self.counts.items())
            after += done and self.patience is None
            await ctx.tick()
            cycle += 1
        assert {name: len(self.run[name].taken) for name in self.counts} == dict(self.counts)


def run_ports(
    dut: Any, beats: Mapping[str, Sequence[int]], counts: Mapping[str, int], profiles: Sequence[str] = PROFILES
) -> dict[str, Run]:
    """The runs of a component under each profile."""
    benches = [PortBench(dut, beats, counts, profile) for profile in profiles]
    simulate(dut, *benches)
    return {bench.profile: bench.run for bench in benches}


def check_timing(timing: PipeTiming, inputs: Sequence[Traffic], output: Traffic) -> None:
    """Every beat was taken and offered in the cycle that `PipeTiming` says, and in no other."""
    for port in inputs:
        assert port.taken == inputs[0].taken
    check_order(timing, [max(times) for times in zip(*(port.offered for port in inputs), strict=True)], inputs[0].taken, output)


def check_order(timing: PipeTiming, offered: Sequence[int], taken: Sequence[int], output: Traffic) -> None:
    """`check_timing` for beats that are taken one after the other, from wherever they come."""
    takes: list[int] = []
    for n, time in enumerate(offered):
        place = n // timing.beats - timing.depth_words
        free = output.taken[place] + timing.return_cycles if place >= 0 else 0
        takes.append(max(time, takes[-1] + 1 if n else 0, free))
    assert list(taken) == takes
    offers: list[int] = []
    for n, time in enumerate(takes[timing.beats - 1 :: timing.beats]):
        offers.append(max(time + timing.latency, output.taken[n - 1] + 1 if n else 0))
    assert output.offered == offers


def check_full_rate(timing: PipeTiming, run: Run, inputs: Sequence[str] = ("i",)) -> None:
    """Without a stall a beat is taken every cycle, and each output beat comes ``latency`` cycles after its last."""
    for name in inputs:
        taken = run[name].taken
        assert taken == list(range(taken[0], taken[0] + len(taken)))
        assert run["o"].taken == [time + timing.latency for time in taken[timing.beats - 1 :: timing.beats]]


def fill(dut: Any, beats: Mapping[str, Sequence[int]], patience: int = 60) -> int:
    """How many beats are taken at every input while none is taken from the outputs."""
    bench = PortBench(dut, beats, {}, patience=patience)
    simulate(dut, bench)
    (count,) = {len(traffic.taken) for traffic in bench.run.values()}
    return count
