"""The bench that every emitted accelerator runs: AXI4-Stream drivers, stall profiles, comparison with ``==``.

It knows only ``manifest.json`` and ``vectors.npz`` of the build folder. All outputs of an accelerator's edge are registers, so
one look at the falling edge of the clock shows what the next rising edge will do: a beat moves where ``tvalid`` and ``tready``
are both high.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from convfold.hdl.axi_stream import AxiStreamParams

__all__ = ["PROFILES", "Bench", "Profile"]

RESULTS = "CONVFOLD_RESULTS"
"""Name of the environment variable with the file that collects what each test saw, one JSON object a line."""

INTERVAL_FRAMES = 6
"""Frames sent to measure the interval: the manifest states the longest from one to the next."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How often, in parts of one, each side pauses; pauses come in runs so that queues fill and drain."""

    name: str
    input_pause: float
    output_pause: float


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("none", 0.0, 0.0),
        Profile("input gaps", 0.4, 0.0),
        Profile("output stalls", 0.0, 0.4),
        Profile("both", 0.4, 0.4),
    )
}


@dataclass(slots=True)
class Transfer:
    """Cycle, data and ``tlast`` of every beat that moved."""

    in_cycles: list[int] = field(default_factory=list)
    cycles: list[int] = field(default_factory=list)
    data: list[int] = field(default_factory=list)
    last: list[bool] = field(default_factory=list)


class Bench:
    """One accelerator under test, reset and clocked."""

    def __init__(self, dut: Any, folder: Path, frames: int | None) -> None:
        self.dut = dut
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        with np.load(folder / "vectors.npz", allow_pickle=False) as vectors:
            count = len(vectors["inputs"]) if frames is None else frames
            self.inputs = np.resize(vectors["inputs"], (count, *vectors["inputs"].shape[1:]))
            self.outputs = np.resize(vectors["outputs"], (count, *vectors["outputs"].shape[1:]))
        self.edge_in = _edge(self.manifest["input"])
        self.edge_out = _edge(self.manifest["outputs"][0])
        self.seed = int(os.environ.get("COCOTB_RANDOM_SEED", "1"))
        self.began = time.monotonic()

    @classmethod
    async def start(cls, dut: Any, folder: Path, frames: int | None = None) -> Bench:
        """Load the vectors, start the clock, reset for four cycles."""
        bench = cls(dut, folder, frames)
        dut.s_axis_tvalid.value = 0
        dut.s_axis_tdata.value = 0
        dut.s_axis_tlast.value = 0
        dut.m_axis_tready.value = 0
        dut.rst.value = 1
        Clock(dut.clk, 10, unit="ns").start()
        for _ in range(4):
            await FallingEdge(dut.clk)
        dut.rst.value = 0
        await FallingEdge(dut.clk)
        return bench

    # ------------------------------------------------------------------------------------------------------------- tests

    async def measure(self) -> None:
        """Latency of one frame alone and interval between frames, both equal to the manifest's."""
        alone = await self.transfer(self.beats_in(self.inputs[:1]), self.edge_out.frame_beats)
        latency = alone.cycles[-1] - alone.in_cycles[0]
        many = np.resize(self.inputs, (INTERVAL_FRAMES, *self.inputs.shape[1:]))
        run = await self.transfer(self.beats_in(many), INTERVAL_FRAMES * self.edge_out.frame_beats)
        ends = run.cycles[self.edge_out.frame_beats - 1 :: self.edge_out.frame_beats]
        interval = max(after - before for before, after in pairwise(ends))
        self.note("measure", latency_cycles=latency, interval_cycles=interval)
        assert latency == self.manifest["latency_cycles"], f"latency {latency}, manifest {self.manifest['latency_cycles']}"
        assert interval == self.manifest["interval_cycles"], (
            f"interval {interval}, manifest {self.manifest['interval_cycles']}"
        )

    async def compare(self, profile: Profile) -> None:
        """Every frame back to back under a stall profile; every output beat equals golden's."""
        expected = self.beats_out(self.outputs)
        run = await self.transfer(self.beats_in(self.inputs), len(expected), profile)
        wrong = [n for n, beat in enumerate(zip(run.data, run.last, strict=True)) if beat != expected[n]]
        self.note(
            "compare",
            name=profile.name,
            frames=len(self.outputs),
            beats=len(expected),
            mismatches=len(wrong),
            cycles=run.cycles[-1] + 1,
            seconds=round(time.monotonic() - self.began, 2),
        )
        assert int(self.dut.error.value) == 0, "error is set although every frame has its right length"
        if wrong:
            n = wrong[0]
            frame, beat = divmod(n, self.edge_out.frame_beats)
            raise AssertionError(
                f"{len(wrong)} of {len(expected)} beats differ; the first is beat {beat} of frame {frame}: "
                f"(tdata, tlast) = ({run.data[n]:#x}, {run.last[n]}) instead of ({expected[n][0]:#x}, {expected[n][1]})"
            )

    async def recover(self) -> None:
        """``error`` tells of a frame that ends early or late, and the next frame is right."""
        size, out = self.edge_in.frame_beats, self.edge_out.frame_beats
        frame, expected = self.beats_in(self.inputs[:1]), self.beats_out(self.outputs[:1])
        run = await self.transfer(frame, out)
        assert int(self.dut.error.value) == 0, "error is set although the frame has its right length"
        assert list(zip(run.data, run.last, strict=True)) == expected, "a whole frame differs"
        if size > 1:
            run = await self.transfer([*frame[: size // 2 - 1], (0, True), *frame], 2 * out)
            assert int(self.dut.error.value) == 1, "error is not set by a frame that ends early"
            assert list(zip(run.data, run.last, strict=True))[out:] == expected, "the frame after a short one differs"
        run = await self.transfer([*((data, False) for data, _ in frame), (0, False), (0, True), *frame], 2 * out)
        assert int(self.dut.error.value) == 1, "error is not set by a frame that ends late"
        assert list(zip(run.data, run.last, strict=True)) == expected * 2, "a frame that ends late, or the next, differs"

    # ----------------------------------------------------------------------------------------------------------- streams

    def beats_in(self, frames: np.ndarray) -> list[tuple[int, bool]]:
        return [beat for frame in frames for beat in self.edge_in.reference(frame.tolist())]

    def beats_out(self, frames: np.ndarray) -> list[tuple[int, bool]]:
        return [beat for frame in frames for beat in self.edge_out.reference(frame.tolist())]

    async def transfer(
        self, beats: Sequence[tuple[int, bool]], count: int, profile: Profile = PROFILES["none"]
    ) -> Transfer:
        """Send ``beats`` and take ``count`` output beats; checks that a waiting beat is held still.

        Fails if nothing comes out for far longer than the manifest's latency.
        """
        dut, run = self.dut, Transfer()
        clk, tready, tvalid, tdata, tlast = dut.clk, dut.s_axis_tready, dut.m_axis_tvalid, dut.m_axis_tdata, dut.m_axis_tlast
        rng = random.Random(f"{self.seed} {profile.name}")
        source, sink = _pauses(rng, profile.input_pause), _pauses(rng, profile.output_pause)
        patience = 8 * (self.manifest["latency_cycles"] + self.manifest["interval_cycles"]) + 1000
        position, offered, held, cycle, quiet = 0, False, None, 0, 0
        while len(run.data) < count:
            # What stands at the ports now is what the coming rising edge sees.
            if not offered and position < len(beats) and not next(source):
                dut.s_axis_tdata.value, dut.s_axis_tlast.value = beats[position][0], int(beats[position][1])
                dut.s_axis_tvalid.value = 1
                offered = True
            ready = not next(sink)
            dut.m_axis_tready.value = int(ready)
            moves_in = offered and tready.value == 1
            beat = None
            if tvalid.value == 1:
                beat = (int(tdata.value), tlast.value == 1)
                assert held is None or beat == held, f"output beat {len(run.data)} changed while it waited"
                held = None if ready else beat
            else:
                assert held is None, f"output beat {len(run.data)} was withdrawn while it waited"
            if beat is not None and ready:
                run.data.append(beat[0])
                run.last.append(beat[1])
                run.cycles.append(cycle)
                quiet = 0
            if moves_in:
                run.in_cycles.append(cycle)
                position += 1
                quiet = 0
            await FallingEdge(clk)
            if moves_in:
                offered = False
                dut.s_axis_tvalid.value = 0
            cycle += 1
            quiet += 1
            assert quiet < patience, f"{len(run.data)} of {count} outputs, then nothing for {patience} cycles"
        dut.m_axis_tready.value = 0
        return run

    def note(self, test: str, **seen: object) -> None:
        """Leave what a test saw for `convfold.sim.cosimulate`."""
        if RESULTS in os.environ:
            with Path(os.environ[RESULTS]).open("a", encoding="utf-8") as results:
                results.write(json.dumps({"test": test, **seen}) + "\n")
        cocotb.log.info("%s %s", test, seen)


def _edge(port: Mapping[str, Any]) -> AxiStreamParams:
    height, width, channels = port["shape"]
    return AxiStreamParams(height * width, channels, port["lanes"], port["bits"], port["signed"])


def _pauses(rng: random.Random, share: float) -> Any:
    """Endless booleans, true in ``share`` of the cycles, in runs of 1 to 12 cycles, now and then of 200."""
    while True:
        if share == 0:
            yield False
            continue
        run = rng.randint(1, 12) if rng.random() < 0.97 else 200
        for _ in range(run):
            yield True
        for _ in range(max(1, round(run * (1 - share) / share))):
            yield False
