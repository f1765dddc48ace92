"""The bench that every emitted accelerator runs: AXI4-Stream drivers in cocotb for the checks of `convfold.sim.checks`.

All outputs of an accelerator's edge are registers, so one look at the falling edge of the clock shows what the next rising edge
will do: a beat moves where ``tvalid`` and ``tready`` are both high.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from .checks import PROFILES, Beats, Checks, Output, Profile, Runs, Transfer, pauses
from .monitor import read_counts

__all__ = ["PROFILES", "Bench", "Profile"]

RESULTS = "CONVFOLD_RESULTS"
"""Name of the environment variable with the file that collects what each test saw, one JSON object a line."""


class Bench(Checks):
    """One accelerator under test, reset and clocked."""

    def __init__(self, dut: Any, folder: Path, frames: int | None) -> None:
        super().__init__(folder, frames, int(os.environ.get("COCOTB_RANDOM_SEED", "1")))
        self.dut = dut

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

    async def exchange(
        self, beats: Beats, counts: Sequence[int], source: Runs, sinks: Sequence[Runs], patience: int, linger: int
    ) -> Transfer:
        dut, run = self.dut, Transfer([Output() for _ in self.ports])
        clk, tready = dut.clk, dut.s_axis_tready
        waits = pauses(source)
        takers = [
            _Sink(dut, port, seen, count, runs)
            for port, seen, count, runs in zip(self.ports, run.outputs, counts, sinks, strict=True)
        ]
        position, offered, cycle, quiet = 0, False, 0, 0
        while position < len(beats) or any(sink.missing for sink in takers):
            # What stands at the ports now is what the coming rising edge sees.
            if not offered and position < len(beats) and not next(waits):
                dut.s_axis_tdata.value, dut.s_axis_tlast.value = beats[position][0], int(beats[position][1])
                dut.s_axis_tvalid.value = 1
                offered = True
            moves_in = offered and tready.value == 1
            moves_out = [sink.look(cycle) for sink in takers]
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
                taken = ", ".join(f"{len(sink.seen.data)} of {sink.count}" for sink in takers)
                raise AssertionError(f"{taken} outputs, then nothing for {patience} cycles")
        for _ in range(linger):
            for sink in takers:
                assert sink.tvalid.value == 0, f"{sink.port} has a beat too many"
            await FallingEdge(clk)
        run.error = dut.error.value == 1
        monitored = getattr(dut, "counts", None)  # none where a bench of the user's own looks at the accelerator itself
        if monitored is not None:
            run.counts = read_counts(self.manifest, int(monitored.value))
        return run

    def note(self, test: str, **seen: object) -> None:
        if RESULTS in os.environ:
            with Path(os.environ[RESULTS]).open("a", encoding="utf-8") as results:
                results.write(json.dumps({"test": test, **seen}) + "\n")
        cocotb.log.info("%s %s", test, seen)


class _Sink:
    """Takes the beats of one output port, with pauses."""

    def __init__(self, dut: Any, port: str, seen: Output, count: int, runs: Runs) -> None:
        self.port, self.seen, self.count, self.pauses = port, seen, count, pauses(runs)
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
