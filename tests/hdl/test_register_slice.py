"""Register slice: order, rate, capacity, and that no combinational path passes through it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from convfold.hdl.register_slice import RegisterSliceParams
from tests.hdl.bench import PROFILES, run_stream, simulate

PARAMS = RegisterSliceParams(8)


@pytest.mark.parametrize("profile", PROFILES)
def test_beats_keep_their_order(profile: str) -> None:
    beats = [random.randrange(256) for _ in range(200)]
    assert run_stream(PARAMS.create(), beats, len(beats), profile).payloads == beats


def test_latency_and_ii() -> None:
    run = run_stream(PARAMS.create(), list(range(50)), 50)
    assert {out - sent for sent, out in zip(run.sent, run.cycles, strict=True)} == {PARAMS.latency}
    assert run.cycles == list(range(run.cycles[0], run.cycles[0] + 50 * PARAMS.ii, PARAMS.ii))


def test_it_holds_two_beats() -> None:
    dut = PARAMS.create()

    async def bench(ctx: Any) -> None:
        ctx.set(dut.i.valid, 1)
        accepted = []
        for n in range(6):
            ctx.set(dut.i.payload, n)
            if ctx.get(dut.i.ready):
                accepted.append(n)
            await ctx.tick()
        assert accepted == [0, 1]
        ctx.set(dut.i.valid, 0)
        ctx.set(dut.o.ready, 1)
        taken = []
        for _ in range(6):
            if ctx.get(dut.o.valid):
                taken.append(ctx.get(dut.o.payload))
            await ctx.tick()
        assert taken == [0, 1]

    simulate(dut, bench)


def test_neither_valid_nor_ready_passes_through() -> None:
    dut = PARAMS.create()

    async def bench(ctx: Any) -> None:
        for _ in range(100):
            seen = []
            for outside in range(4):
                ctx.set(dut.i.valid, outside & 1)
                ctx.set(dut.o.ready, outside >> 1)
                seen.append((ctx.get(dut.i.ready), ctx.get(dut.o.valid), ctx.get(dut.o.payload)))
            assert len(set(seen)) == 1
            ctx.set(dut.i.valid, random.getrandbits(1))
            ctx.set(dut.i.payload, random.randrange(256))
            ctx.set(dut.o.ready, random.getrandbits(1))
            await ctx.tick()

    simulate(dut, bench)
