"""Synthesize a build folder and record what came out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .targets import get_target
from .tools.errors import ToolError
from .tools.flow import implement
from .tools.nextpnr import RouteOptions, SeedRun, find_nextpnr

__all__ = ["synthesize_build"]


def synthesize_build(
    folder: Path,
    manifest: Mapping[str, Any],
    options: RouteOptions | None = None,
    *,
    seeds: Sequence[int] = (1,),
    jobs: int | None = None,
    progress: Callable[[str], None] = lambda step: None,
    told: Callable[[SeedRun], None] = lambda run: None,
) -> dict[str, Any]:
    """The ``synthesis`` entry of the manifest; the bitstream is put into the folder.

    The design is placed and routed once for each of ``seeds``, in ``jobs`` processes at a time (by default one a processor),
    and the fastest is kept; ``told`` hears of each. A seed that fails is recorded, unless all do.

    Utilisation is that of the whole chip, the wrapper of shift registers included where pins are short.

    *Raises* ``CompileError`` for a target that is no device, ``ToolError`` where a tool is missing or fails, or all seeds fail.
    """
    options = options or RouteOptions()
    target = get_target(manifest["target"])
    nextpnr = find_nextpnr(target)
    work = folder / "synthesis"
    work.mkdir(exist_ok=True)
    began = time.monotonic()
    done = implement(
        folder / "accelerator.v",
        target,
        manifest["top"],
        work,
        options,
        seeds=seeds,
        jobs=jobs or os.cpu_count() or 1,
        nextpnr=nextpnr,
        progress=progress,
        told=told,
    )
    route = done.route
    bitstream = None
    if done.bitstream is not None:
        bitstream = f"{manifest['name']}{done.bitstream.suffix}"
        shutil.copyfile(done.bitstream, folder / bitstream)
    kinds = {"luts": route.luts, "ffs": route.ffs, "dsps": route.dsps, "brams": route.brams}
    return {
        **{name: usage.used for name, usage in kinds.items()},
        "available": {name: usage.available for name, usage in kinds.items()},
        "fmax_mhz": round(route.slowest_mhz, 2),
        "clocks": {name: round(mhz, 2) for name, mhz in route.fmax_mhz.items()},
        "freq_mhz": route.requested_mhz,
        "met": route.achieved,
        "speed": route.speed,
        "seed": route.seed,
        "seeds": [_outcome(run) for run in done.seeds],
        "placer": options.placer,
        "router": options.router,
        "bitstream": bitstream,
        "critical_path": [
            {"from": step.start, "to": step.end, "ns": round(step.delay_ns, 3), "kind": step.kind, "net": step.net}
            for step in route.critical_path
        ],
        "wrapper": None if done.wrapper is None else asdict(done.wrapper),
        "versions": list(done.versions),
        "seconds": round(time.monotonic() - began, 1),
    }


def _outcome(run: SeedRun) -> dict[str, Any]:
    """A seed as the manifest records it: ``fmax_mhz`` is ``None`` where it failed, and ``error`` says why."""
    if isinstance(run.result, ToolError):
        return {"seed": run.seed, "seconds": run.seconds, "fmax_mhz": None, "error": run.result.message}
    return {"seed": run.seed, "seconds": run.seconds, "fmax_mhz": round(run.result.slowest_mhz, 2), "error": None}
