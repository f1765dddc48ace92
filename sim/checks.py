"""What is checked of every emitted accelerator, whoever drives its ports: stall profiles, comparison with ``==``.

It knows only ``manifest.json`` and ``vectors.npz`` of the build folder. `convfold.sim.bench` drives the ports from cocotb,
`convfold.sim.driver` from compiled C++; both move the same beats in the same cycles.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .monitor import LayerCounts, port_edge

__all__ = ["PROFILES", "TESTS", "Checks", "Profile", "Transfer", "pauses"]

INTERVAL_FRAMES = 6
"""Frames sent to measure the interval: the manifest states the longest from one to the next."""

RUNS = 1024
"""Runs of pauses drawn from the seed; then they repeat."""


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

Runs = Sequence[tuple[int, int]]
"""Cycles of a pause and of what follows, one pair after the other and then from the start; none at all is no pause."""


def draw_runs(rng: random.Random, share: float) -> Runs:
    """Pauses in ``share`` of the cycles, in runs of 1 to 12 cycles, now and then of 200."""
    if share == 0:
        return []
    lengths = [rng.randint(1, 12) if rng.random() < 0.97 else 200 for _ in range(RUNS)]
    return [(length, max(1, round(length * (1 - share) / share))) for length in lengths]


def pauses(runs: Runs) -> Iterator[bool]:
    """Endless booleans, true in a pause."""
    if not runs:
        runs = [(0, 1)]
    for pause, on in cycle(runs):
        for _ in range(pause):
            yield True
        for _ in range(on):
            yield False


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
    """The cycles in which input beats moved, what left through each output, and then ``error`` and the layers' counters."""

    outputs: list[Output]
    in_cycles: list[int] = field(default_factory=list)
    error: bool = False
    counts: list[LayerCounts] = field(default_factory=list)

    @property
    def last_cycle(self) -> int:
        return max(output.cycles[-1] for output in self.outputs)


Beats = list[tuple[int, bool]]


class Checks:
    """One accelerator under test. Whoever drives it gives `transfer`, and `note` what to do with what a test saw."""

    def __init__(self, folder: Path, frames: int | None, seed: int) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.ports = [output["port"] for output in self.manifest["outputs"]]
        with np.load(folder / "vectors.npz", allow_pickle=False) as vectors:
            count = len(vectors["inputs"]) if frames is None else frames
            self.inputs = _repeated(vectors["inputs"], count)
            self.outputs = [_repeated(vectors[name], count) for name in _output_names(self.manifest)]
        self.edge_in = port_edge(self.manifest["input"])
        self.edges_out = [port_edge(output) for output in self.manifest["outputs"]]
        self.seed = seed
        self.began = time.monotonic()

    # ------------------------------------------------------------------------------------------------------ the driver's

    async def exchange(
        self, beats: Beats, counts: Sequence[int], source: Runs, sinks: Sequence[Runs], patience: int, linger: int
    ) -> Transfer:
        """Send all ``beats`` and take ``counts`` beats of each output; ``source`` and ``sinks`` say who pauses when.

        *Raises* ``AssertionError`` when a waiting beat changes, when nothing moves for more than ``patience`` cycles, and when
        a beat comes within ``linger`` cycles after the last.
        """
        raise NotImplementedError

    def note(self, test: str, **seen: object) -> None:
        """Keep what a test saw for `convfold.sim.cosimulate`."""
        raise NotImplementedError

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
        layers = [asdict(layer) for layer in run.counts]
        self.note("measure", latency_cycles=latency, interval_cycles=interval, layers=layers)
        for name, found in (("latency", latency), ("interval", interval)):
            promised = self.manifest[f"{name}_cycles"]
            _check(found == promised, f"{name} {found}, manifest {promised}")

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
            issue_rates={layer.name: round(layer.issue_rate, 6) for layer in run.counts},
            seconds=round(time.monotonic() - self.began, 2),
        )
        _check(not run.error, "error is set although every frame has its right length")
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
        _check(not run.error, "error is set although the frame has its right length")
        _check([output.beats for output in run.outputs] == expected, "a whole frame differs")
        if size > 1:
            run = await self.transfer([*frame[: size // 2 - 1], (0, True), *frame], 2)
            _check(run.error, "error is not set by a frame that ends early")
            after = [output.beats[len(beats) :] for output, beats in zip(run.outputs, expected, strict=True)]
            _check(after == expected, "the frame after a short one differs")
        run = await self.transfer([*((data, False) for data, _ in frame), (0, False), (0, True), *frame], 2)
        _check(run.error, "error is not set by a frame that ends late")
        both = [beats * 2 for beats in expected]
        _check([output.beats for output in run.outputs] == both, "a frame that ends late, or the next, differs")

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
        rng = random.Random(f"{self.seed} {profile.name}")
        source = draw_runs(rng, profile.input_pause)
        sinks = [draw_runs(rng, profile.output_pause) for _ in self.ports]
        counts = [frames * edge.frame_beats for edge in self.edges_out]
        patience = 8 * (self.manifest["latency_cycles"] + self.manifest["interval_cycles"]) + 1000
        return await self.exchange(beats, counts, source, sinks, patience, linger)


def _check(good: bool, message: str) -> None:
    """An assertion that optimized Python makes too."""
    if not good:
        raise AssertionError(message)


def _compare(profile: Profile) -> Callable[[Checks], Coroutine[Any, Any, None]]:
    return lambda checks: checks.compare(profile)


TESTS: Mapping[str, Callable[[Checks], Coroutine[Any, Any, None]]] = {
    "latency_and_interval": Checks.measure,
    **{name.replace("none", "no stalls").replace(" ", "_"): _compare(profile) for name, profile in PROFILES.items()},
    "frames_of_wrong_length": Checks.recover,
}
"""What the emitted bench runs, by the names that it has there; each begins with a reset."""


def _repeated(frames: np.ndarray, count: int) -> np.ndarray:
    return np.resize(frames, (count, *frames.shape[1:]))


def _output_names(manifest: Mapping[str, Any]) -> list[str]:
    """The arrays of ``vectors.npz`` with what each output must be."""
    count = len(manifest["outputs"])
    return ["outputs"] if count == 1 else [f"outputs{n}" for n in range(count)]
