"""Somebody else's bench: it knows ``manifest.json`` and the ports of ``accelerator.v``, and nothing of convfold.

The environment variable ``OUTSIDE`` names a JSON file with the build folder, frames of raw integers ``(N, H, W, C)`` and
the frames expected back. Source and sink are cocotbext-axi's.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiStreamBus, AxiStreamFrame, AxiStreamSink, AxiStreamSource

TASK = json.loads(Path(os.environ["OUTSIDE"]).read_text(encoding="utf-8"))
MANIFEST = json.loads(Path(TASK["build"], "manifest.json").read_text(encoding="utf-8"))
INPUT = MANIFEST["input"]
(OUTPUT,) = MANIFEST["outputs"]


def bytes_a_lane(port: dict[str, Any]) -> int:
    return -(-int(port["bits"]) // 8)


def pack(frame: Any, port: dict[str, Any]) -> bytes:
    """Raster order, channels fastest, ``lanes`` channels a beat; a pixel's last beat is filled up with zeros."""
    size, lanes = bytes_a_lane(port), int(port["lanes"])
    data = bytearray()
    for row in frame:
        for pixel in row:
            for value in pixel:
                data += int(value).to_bytes(size, "little", signed=port["signed"])
            data += bytes(-len(pixel) % lanes * size)
    return bytes(data)


def unpack(data: bytes, port: dict[str, Any]) -> list[list[list[int]]]:
    """The frame back from its bytes; what fills a beat must be zero."""
    size, lanes = bytes_a_lane(port), int(port["lanes"])
    height, width, channels = port["shape"]
    values = [
        int.from_bytes(data[n : n + size], "little", signed=port["signed"]) for n in range(0, len(data), size)
    ]
    a_pixel = -(-channels // lanes) * lanes
    assert len(values) == height * width * a_pixel, f"a frame of {len(values)} values"
    pixels = [values[n : n + a_pixel] for n in range(0, len(values), a_pixel)]
    assert not any(value for pixel in pixels for value in pixel[channels:]), "filled up with something"
    return [[pixel[:channels] for pixel in pixels[n : n + width]] for n in range(0, len(pixels), width)]


def bus(dut: Any, port: dict[str, Any]) -> AxiStreamBus:
    return AxiStreamBus.from_prefix(dut, port["port"])


def pauses(seed: int) -> Any:
    rng = random.Random(seed)
    while True:
        yield rng.random() < 0.3


async def run(dut: Any, *, stalls: bool) -> None:
    clock, reset = getattr(dut, MANIFEST["clock"]), getattr(dut, MANIFEST["reset"])
    Clock(clock, 10, unit="ns").start()
    source = AxiStreamSource(bus(dut, INPUT), clock, reset, byte_lanes=INPUT["lanes"] * bytes_a_lane(INPUT))
    sink = AxiStreamSink(bus(dut, OUTPUT), clock, reset, byte_lanes=OUTPUT["lanes"] * bytes_a_lane(OUTPUT))
    reset.value = 1
    for _ in range(4):
        await RisingEdge(clock)
    reset.value = 0
    if stalls:
        source.set_pause_generator(pauses(1))
        sink.set_pause_generator(pauses(2))
    for frame in TASK["inputs"]:
        await source.send(AxiStreamFrame(pack(frame, INPUT)))
    for number, expected in enumerate(TASK["outputs"]):
        received = await sink.recv()
        assert unpack(bytes(received.tdata), OUTPUT) == expected, f"frame {number} differs"
    assert sink.empty(), "more frames than were sent"
    assert dut.error.value == 0


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def frames_back_to_back(dut: Any) -> None:
    await run(dut, stalls=False)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def frames_with_pauses_on_both_sides(dut: Any) -> None:
    await run(dut, stalls=True)
