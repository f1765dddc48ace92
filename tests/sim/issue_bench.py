"""Counts the cycles in which the slowest layer of a build feeds its multipliers, over frames back to back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge

from convfold.sim.bench import Bench

FRAMES = 4


@cocotb.test()
async def the_slowest_layer_is_busy(dut: Any) -> None:
    bench = await Bench.start(dut, Path(os.environ["BUILD"]), FRAMES)
    slowest = max(bench.manifest["layers"], key=lambda layer: int(layer["cycles"]))
    issue = getattr(dut, slowest["name"]).o_issue
    busy: list[bool] = []

    async def watch() -> None:
        while True:
            await FallingEdge(dut.clk)
            busy.append(issue.value == 1)

    watching = cocotb.start_soon(watch())
    await bench.transfer(bench.beats_in(bench.inputs), FRAMES)
    watching.cancel()
    first = busy.index(True)
    last = len(busy) - busy[::-1].index(True)
    steps = sum(busy)
    assert steps == FRAMES * slowest["cycles"], f"{steps} steps for {FRAMES} frames of {slowest['cycles']}"
    share = steps / (last - first)
    cocotb.log.info("%s is busy in %.1f %% of its cycles", slowest["name"], 100 * share)
    assert share >= 0.95, f"{slowest['name']} is busy in {share:.1%} of the cycles"
