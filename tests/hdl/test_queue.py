"""Queue: order, rate, capacity for every small depth."""

from __future__ import annotations

import random
from typing import Any

import pytest
from amaranth.hdl import signed

from convfold.hdl.queue import QueueParams
from tests.hdl.bench import PROFILES, run_stream, simulate

DEPTHS = (2, 3, 4, 5, 8, 13)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("depth", DEPTHS)
def test_beats_keep_their_order(depth: int, profile: str) -> None:
    beats = [random.randrange(256) for _ in range(100)]
    assert run_stream(QueueParams(8, depth).create(), beats, len(beats), profile).payloads == beats


@pytest.mark.parametrize("depth", DEPTHS)
def test_latency_and_ii(depth: int) -> None:
    params = QueueParams(8, depth)
    run = run_stream(params.create(), list(range(40)), 40)
    assert {out - sent for sent, out in zip(run.sent, run.cycles, strict=True)} == {params.latency}
    assert run.cycles == list(range(run.cycles[0], run.cycles[0] + 40 * params.ii, params.ii))


@pytest.mark.parametrize("depth", DEPTHS)
def test_it_holds_exactly_its_depth(depth: int) -> None:
    dut = QueueParams(signed(5), depth).create()

    async def bench(ctx: Any) -> None:
        ctx.set(dut.i.valid, 1)
        for _ in range(3):
            accepted = 0
            for _ in range(2 * depth + 6):
                accepted += ctx.get(dut.i.ready)
                await ctx.tick()
            assert accepted == depth
            ctx.set(dut.i.valid, 0)
            ctx.set(dut.o.ready, 1)
            for n in range(depth + 3):
                assert ctx.get(dut.o.valid) == (n < depth)
                await ctx.tick()
            ctx.set(dut.i.valid, 1)
            ctx.set(dut.o.ready, 0)

    simulate(dut, bench)


def test_a_queue_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^depth_words must be at least 2, not 1$"):
        QueueParams(8, 1)
