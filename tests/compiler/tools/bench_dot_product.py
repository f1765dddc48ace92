"""The cocotb bench of the tool tests. ``EXPECT_SHIFT`` in the environment makes it expect wrong sums."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

DEPTH = 64
WEIGHTS = [(index * 37 + 11) % 255 - 127 for index in range(DEPTH)]


@cocotb.test()
async def sums_are_exact(dut: Any) -> None:
    """Three frames against the sum computed here, under random gaps."""
    Clock(dut.clk, 10, unit="ns").start()
    dut.rst.value, dut.s_axis_tvalid.value, dut.m_axis_tready.value = 1, 0, 0
    for _ in range(3):
        await FallingEdge(dut.clk)
    dut.rst.value = 0
    for frame in range(3):
        pixels = [random.randint(-128, 127) for _ in range(DEPTH)]
        for number, pixel in enumerate(pixels):
            while random.random() < 0.2 or not int(dut.s_axis_tready.value):
                dut.s_axis_tvalid.value = 0
                await FallingEdge(dut.clk)
            dut.s_axis_tdata.value, dut.s_axis_tvalid.value = pixel & 255, 1
            dut.s_axis_tlast.value = int(number == DEPTH - 1)
            await FallingEdge(dut.clk)
        dut.s_axis_tvalid.value, dut.m_axis_tready.value = 0, 1
        for _ in range(20):
            if int(dut.m_axis_tvalid.value):
                break
            await FallingEdge(dut.clk)
        expected = sum(weight * pixel for weight, pixel in zip(WEIGHTS, pixels, strict=True))
        expected += int(os.environ.get("EXPECT_SHIFT", "0"))
        seen = dut.m_axis_tdata.value.to_signed()
        assert seen == expected, f"frame {frame}: {seen} is not {expected}"
        await FallingEdge(dut.clk)
        dut.m_axis_tready.value = 0
    assert not int(dut.error.value)


@cocotb.test()
async def names_are_kept(dut: Any) -> None:
    """Instances and signals are found under the names the design gave them."""
    assert len(dut.index) == 6
    assert len(dut.multiplier.o) == 16
