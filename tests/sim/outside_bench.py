"""A bench that knows nothing of convfold: only ``manifest.json``, ``frames.json`` and the ports of ``accelerator.v``.

It drives the accelerator with the AXI4-Stream source and sink of cocotbext-axi, and compares with the outputs it was given.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiStreamBus, AxiStreamFrame, AxiStreamSink, AxiStreamSource

HERE = Path(os.environ["OUTSIDE_BUILD"])


def to_bytes(frame: list[list[list[int]]], port: dict[str, Any]) -> bytes:
    """A frame in raster order, channels fastest; every lane fills whole bytes, every pixel whole beats."""
    size = (port["bits"] + 7) // 8
    fill = -len(frame[0][0]) % port["lanes"]
    pixels = [[*pixel, *[0] * fill] for row in frame for pixel in row]
    return b"".join(
        (value & (1 << 8 * size) - 1).to_bytes(size, "little") for value in itertools.chain.from_iterable(pixels)
    )


@cocotb.test()
async def frames_through_axi_stream(dut: Any) -> None:
    """Every frame, twice: at full speed, and with random pauses on both sides."""
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    frames = json.loads((HERE / "frames.json").read_text(encoding="utf-8"))
    clock, reset = getattr(dut, manifest["clock"]), getattr(dut, manifest["reset"])
    source_port, sink_port = manifest["input"], manifest["outputs"][0]
    byte_lanes = [(port["bits"] + 7) // 8 * port["lanes"] for port in (source_port, sink_port)]
    Clock(clock, 10, unit="ns").start()
    source = AxiStreamSource(AxiStreamBus.from_prefix(dut, source_port["port"]), clock, reset, byte_lanes=byte_lanes[0])
    sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, sink_port["port"]), clock, reset, byte_lanes=byte_lanes[1])
    reset.value = 1
    await ClockCycles(clock, 4)
    reset.value = 0
    await ClockCycles(clock, 2)
    rng = random.Random(7)
    for pauses in (False, True):
        if pauses:
            source.set_pause_generator(rng.random() < 0.3 for _ in itertools.count())
            sink.set_pause_generator(rng.random() < 0.3 for _ in itertools.count())
        for frame in frames["inputs"]:
            source.send_nowait(AxiStreamFrame(to_bytes(frame, source_port)))
        for number, frame in enumerate(frames["outputs"]):
            got = await sink.recv()
            assert bytes(got.tdata) == to_bytes(frame, sink_port), f"frame {number} differs"
    assert int(dut.error.value) == 0
