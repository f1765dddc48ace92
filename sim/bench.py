"""The bench that every emitted accelerator runs: AXI4-Stream drivers, stall profiles, comparison with ``==``.

It knows only ``manifest.json`` and ``vectors.npz`` of the build folder. Several outputs stall each in its own cycles. All
outputs of an accelerator's edge are registers, so one look at the falling edge of the clock shows what the next rising edge
will do: a beat moves where ``tvalid`` and ``tready`` are both high.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
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
class Output:
    """Cycle, data and ``tlast`` of every beat that left through one port."""

    cycles: list[int] = field(default_factory=list)
    data: list[int] = field(default_factory=list)
    last: list[bool] = field(default_factory=list)

    @property
    def beats(self) -> list[tuple[int, bool]]:
        return list(zip(self.data, self.last, strict=True))


@dataclass(slots=True)
class Transfer:
    """The cycles in which input beats moved, and what left through each output."""

    outputs: list[Output]
    in_cycles: list[int] = field(default_factory=list)

    @property
    def last_cycle(self) -> int:
        return max(output.cycles[-1] for output in self.outputs)


Beats = list[tuple[int, bool]]


class Bench:
    """One accelerator under test, reset and clocked."""

    def __init__(self, dut: Any, folder: Path, frames: int | None) -> None:
        self.dut = dut
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.ports = [output["port"] for output in self.manifest["outputs"]]
        with np.load(folder / "vectors.npz", allow_pickle=False) as vectors:
            count = len(vectors["inputs"]) if frames is None else frames
            self.inputs = _repeated(vectors["inputs"], count)
            self.outputs = [_repeated(vectors[name], count) for name in _output_names(self.manifest)]
        self.edge_in = _edge(self.manifest["input"])
        self.edges_out = [_edge(output) for output in self.manifest["outputs"]]
        self.seed = int(os.environ.get("COCOTB_RANDOM_SEED", "1"))
        self.began = time.monotonic()

    @classmethod
    async def start(cls, dut: Any, folder: Path, frames: int | None = None) -> Bench:
        """Load the vectors, start the clock, reset for four cycles."""
        bench = cls(dut, folder, frames)
        dut.s_axis_tvalid.value = 0
        dut.s_axis_tdata.value = 0
        dut.s_axis_tlast.value = 0
        for port in bench.ports:
            getattr(dut, f"{port}_tready").value = 0
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
        alone = await self.transfer(self.beats_in(self.inputs[:1]), 1)
        latency = alone.last_cycle - alone.in_cycles[0]
        run = await self.transfer(self.beats_in(_repeated(self.inputs, INTERVAL_FRAMES)), INTERVAL_FRAMES)
        sizes = [edge.frame_beats for edge in self.edges_out]
        ends = [
            max(output.cycles[(n + 1) * size - 1] for output, size in zip(run.outputs, sizes, strict=True))
            for n in range(INTERVAL_FRAMES)
        ]
        interval = max(after - before for before, after in pairwise(ends))
        self.note("measure", latency_cycles=latency, interval_cycles=interval)
        assert latency == self.manifest["latency_cycles"], f"latency {latency}, manifest {self.manifest['latency_cycles']}"
        assert interval == self.manifest["interval_cycles"], (
            f"interval {interval}, manifest {self.manifest['interval_cycles']}"
        )

    async def compare(self, profile: Profile) -> None:
        """Every frame back to back under a stall profile; every output beat equals golden's, and none comes after the last."""
        run = await self.transfer(self.beats_in(self.inputs), len(self.inputs), profile, linger=self.manifest["latency_cycles"])
        expected = self.beats_out(self.outputs)
        wrong = [
            (n, beat)
            for n, (output, beats) in enumerate(zip(run.outputs, expected, strict=True))
            for beat, pair in enumerate(zip(output.beats, beats, strict=True))
            if pair[0] != pair[1]
        ]
        self.note(
            "compare",
            name=profile.name,
            frames=len(self.inputs),
            beats=sum(map(len, expected)),
            mismatches=len(wrong),
            cycles=run.last_cycle + 1,
            seconds=round(time.monotonic() - self.began, 2),
        )
        assert int(self.dut.error.value) == 0, "error is set although every frame has its right length"
        if wrong:
            n, position = wrong[0]
            frame, beat = divmod(position, self.edges_out[n].frame_beats)
            (data, last), (right, right_last) = run.outputs[n].beats[position], expected[n][position]
            raise AssertionError(
                f"{len(wrong)} of {sum(map(len, expected))} beats differ; the first is beat {beat} of frame {frame} of "
                f"{self.ports[n]}: (tdata, tlast) = ({data:#x}, {last}) instead of ({right:#x}, {right_last})"
            )

    async def recover(self) -> None:
        """``error`` tells of a frame that ends early or late, and the next frame is right."""
        size = self.edge_in.frame_beats
        frame, expected = self.beats_in(self.inputs[:1]), self.beats_out([output[:1] for output in self.outputs])
        run = await self.transfer(frame, 1)
        assert int(self.dut.error.value) == 0, "error is set although the frame has its right length"
        assert [output.beats for output in run.outputs] == expected, "a whole frame differs"
        if size > 1:
            run = await self.transfer([*frame[: size // 2 - 1], (0, True), *frame], 2)
            assert int(self.dut.error.value) == 1, "error is not set by a frame that ends early"
            after = [output.beats[len(beats) :] for output, beats in zip(run.outputs, expected, strict=True)]
            assert after == expected, "the frame after a short one differs"
        run = await self.transfer([*((data, False) for data, _ in frame), (0, False), (0, True), *frame], 2)
        assert int(self.dut.error.value) == 1, "error is not set by a frame that ends late"
        both = [beats * 2 for beats in expected]
        assert [output.beats for output in run.outputs] == both, "a frame that ends late, or the next, differs"

    # ----------------------------------------------------------------------------------------------------------- streams

    def beats_in(self, frames: np.ndarray) -> Beats:
        return [beat for frame in frames for beat in self.edge_in.reference(frame.tolist())]

    def beats_out(self, outputs: Sequence[np.ndarray]) -> list[Beats]:
        """The beats of each output."""
        return [
            [beat for frame in frames for beat in edge.reference(frame.tolist())]
            for edge, frames in zip(self.edges_out, outputs, strict=True)
        ]

    async def transfer(self, beats: Beats, frames: int, profile: Profile = PROFILES["none"], linger: int = 0) -> Transfer:
        """Send ``beats`` and take ``frames`` frames of every output; checks that a waiting beat is held still.

        Fails if nothing comes out for far longer than the manifest's latency, and if anything comes within ``linger`` cycles
        after the last frame.
        """
        dut, run = self.dut, Transfer([Output() for _ in self.ports])
        clk, tready = dut.clk, dut.s_axis_tready
        rng = random.Random(f"{self.seed} {profile.name}")
        source = _pauses(rng, profile.input_pause)
        sinks = [
            _Sink(dut, port, seen, frames * edge.frame_beats, _pauses(rng, profile.output_pause))
            for port, seen, edge in zip(self.ports, run.outputs, self.edges_out, strict=True)
        ]
        patience = 8 * (self.manifest["latency_cycles"] + self.manifest["interval_cycles"]) + 1000
        position, offered, cycle, quiet = 0, False, 0, 0
        while any(sink.missing for sink in sinks):
            # What stands at the ports now is what the coming rising edge sees.
            if not offered and position < len(beats) and not next(source):
                dut.s_axis_tdata.value, dut.s_axis_tlast.value = beats[position][0], int(beats[position][1])
                dut.s_axis_tvalid.value = 1
                offered = True
            moves_in = offered and tready.value == 1
            moves_out = [sink.look(cycle) for sink in sinks]
            if moves_in:
                run.in_cycles.append(cycle)
                position += 1
            quiet = 0 if moves_in or any(moves_out) else quiet + 1
            await FallingEdge(clk)
            if moves_in:
                offered = False
                dut.s_axis_tvalid.value = 0
            cycle += 1
            if quiet > patience:
                counts = ", ".join(f"{len(sink.seen.data)} of {sink.count}" for sink in sinks)
                raise AssertionError(f"{counts} outputs, then nothing for {patience} cycles")
        for _ in range(linger):
            for sink in sinks:
                assert sink.tvalid.value == 0, f"{sink.port} has a beat too many"
            await FallingEdge(clk)
        return run

    def note(self, test: str, **seen: object) -> None:
        """Leave what a test saw for `convfold.sim.cosimulate`."""
        if RESULTS in os.environ:
            with Path(os.environ[RESULTS]).open("a", encoding="utf-8") as results:
                results.write(json.dumps({"test": test, **seen}) + "\n")
        cocotb.log.info("%s %s", test, seen)


class _Sink:
    """Takes the beats of one output port, with pauses."""

    def __init__(self, dut: Any, port: str, seen: Output, count: int, pauses: Iterator[bool]) -> None:
        self.port, self.seen, self.count, self.pauses = port, seen, count, pauses
        self.tvalid, self.tready, self.tdata, self.tlast = (
            getattr(dut, f"{port}_{wire}") for wire in ("tvalid", "tready", "tdata", "tlast")
        )
        self.held: tuple[int, bool] | None = None

    @property
    def missing(self) -> bool:
        return len(self.seen.data) < self.count

    def look(self, cycle: int) -> bool:
        """Decide on ``tready`` for the coming edge; whether a beat moves then."""
        ready = self.missing and not next(self.pauses)
        self.tready.value = int(ready)
        if self.tvalid.value != 1:
            assert self.held is None, f"beat {len(self.seen.data)} of {self.port} was withdrawn while it waited"
            return False
        beat = (int(self.tdata.value), self.tlast.value == 1)
        assert self.held is None or beat == self.held, f"beat {len(self.seen.data)} of {self.port} changed while it waited"
        self.held = None if ready else beat
        if ready:
            self.seen.data.append(beat[0])
            self.seen.last.append(beat[1])
            self.seen.cycles.append(cycle)
        return ready


def _repeated(frames: np.ndarray, count: int) -> np.ndarray:
    return np.resize(frames, (count, *frames.shape[1:]))


def _output_names(manifest: Mapping[str, Any]) -> list[str]:
    """The arrays of ``vectors.npz`` with what each output must be."""
    count = len(manifest["outputs"])
    return ["outputs"] if count == 1 else [f"outputs{n}" for n in range(count)]


def _edge(port: Mapping[str, Any]) -> AxiStreamParams:
    height, width, channels = port["shape"]
    return AxiStreamParams(height * width, channels, port["lanes"], port["bits"], port["signed"])


def _pauses(rng: random.Random, share: float) -> Iterator[bool]:
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
