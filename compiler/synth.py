"""Synthesize a build folder and record what came out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .targets import get_target
from .tools.flow import implement
from .tools.nextpnr import find_nextpnr

__all__ = ["synthesize_build"]


def synthesize_build(
    folder: Path,
    manifest: Mapping[str, Any],
    *,
    freq_mhz: float | None = None,
    seed: int = 1,
    speed: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """The ``synthesis`` entry of the manifest; the bitstream is put into the folder.

    Utilisation is that of the whole chip, the wrapper of shift registers included where pins are short.

    *Raises* ``CompileError`` for a target that is no device, ``ToolError`` where a tool is missing or fails.
    """
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
        freq_mhz=freq_mhz,
        seed=seed,
        speed=speed,
        nextpnr=nextpnr,
        progress=progress,
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
        "seed": seed,
        "bitstream": bitstream,
        "critical_path": [
            {"from": step.start, "to": step.end, "ns": round(step.delay_ns, 3), "kind": step.kind, "net": step.net}
            for step in route.critical_path
        ],
        "wrapper": None if done.wrapper is None else asdict(done.wrapper),
        "versions": list(done.versions),
        "seconds": round(time.monotonic() - began, 1),
    }
