"""Why a plan is as it is: what limits it, what the next step up would cost, and the front of speed against area.

All but the plan itself are the solver's numbers, sums of estimates without the timetable.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .estimate import Resources
from .plan import NAMES, Plan
from .solver import KINDS, amount

__all__ = ["Point", "Step", "front", "front_record", "next_step", "plan_record", "plan_texts"]

FASTER = 1.1
"""The next step up is at least so many times as fast."""
POINTS = 10
"""A front has about so many points."""
LAST_STEPS = 3
"""So often the gap behind its last point is halved."""
SHORT = {"luts": "LUT", "ffs": "FF", "dsps": "DSP", "brams": "BRAM"}


@dataclass(frozen=True, slots=True)
class Point:
    """A pipeline as the solver would choose it: cycles a frame, frames a second at the planning clock, and what it takes."""

    interval_cycles: int
    frames_per_second: float
    resources: Resources


@dataclass(frozen=True, slots=True)
class Step:
    """The next faster pipeline, what it takes more than the plan, and the kinds of which it would take more than allowed."""

    point: Point
    more: Resources
    lacking: tuple[str, ...]


def next_step(plan: Plan) -> Step | None:
    """The smallest pipeline that is a step faster, as soon as was asked for, or what comes nearest to fitting; ``None`` where
    nothing is faster."""
    planner, counted, wish = plan.planner, plan.counted, plan.wish
    pace = _pace(plan, plan.interval_cycles / FASTER)
    if pace is None or counted is None:
        return None
    beside = plan.resources + counted.resources * -1
    latency = None if wish.latency is None else wish.latency - (plan.latency_cycles - counted.latency)
    found = planner.solve("area", pace, latency, beside) or planner.solve("share", pace, latency, beside)
    if found is None:
        return None
    point = _point(plan, found.solution.interval, found.solution.resources + beside)
    lacking = tuple(kind for kind, limit in planner.limits.items() if amount(point.resources, kind) > limit)
    return Step(point, point.resources + plan.resources * -1, lacking)


def front(plan: Plan) -> tuple[Point, ...]:
    """The smallest pipelines for speeds from the least to the highest that fits, the slowest first; larger is always faster.

    Their latencies may be any.
    """
    planner = plan.planner
    beside = Resources() if plan.counted is None else plan.resources + plan.counted.resources * -1
    points: list[Point] = []

    def add(interval: float) -> bool:
        """The smallest pipeline of an interval, if there is one."""
        pace = _pace(plan, interval)
        found = None if pace is None else planner.solve("area", pace, rest=beside)
        if found is None:
            return False
        point = _point(plan, found.solution.interval, found.solution.resources + beside)
        while points and planner.area(points[-1].resources) >= planner.area(point.resources):
            points.pop()
        if not points or points[-1].interval_cycles > point.interval_cycles:
            points.append(point)
        return True

    slowest = planner.foldings.slowest
    fits = nothing = slowest
    quickest = max(1, min(plan.interval_cycles, planner.plain_interval()) * 3 // 4)
    for n in range(POINTS):
        nothing = round(slowest * (quickest / slowest) ** (n / (POINTS - 1)))
        if not add(nothing):
            break
        fits = nothing
    for _ in range(LAST_STEPS):
        middle = math.isqrt(fits * nothing)
        fits, nothing = (middle, nothing) if add(middle) else (fits, middle)
    return tuple(points)


def _pace(plan: Plan, cycles: float) -> int | None:
    """The greatest number of cycles that the slowest layer may take, up to so many."""
    paces = plan.planner.foldings.paces
    place = bisect_right(paces, cycles)
    return paces[place - 1] if place else None


def _point(plan: Plan, interval: int, resources: Resources) -> Point:
    return Point(interval, round(plan.target.plan_mhz * 1e6 / interval, 1), resources)


# --------------------------------------------------------------------------------------------------------------- manifest


def plan_record(plan: Plan) -> dict[str, Any]:
    """What the manifest says of a plan: what was asked for, what may be used, and the next step up."""
    step = next_step(plan)
    return {
        "fps": plan.wish.fps,
        "latency_us": plan.wish.latency_us,
        "most_interval_cycles": plan.wish.interval,
        "most_latency_cycles": plan.wish.latency,
        "fill": plan.planner.fill,
        "limits": plan.planner.limits,
        "next": None if step is None else _record(step.point) | {"more": asdict(step.more), "lacking": list(step.lacking)},
    }


def front_record(points: Sequence[Point]) -> list[dict[str, Any]]:
    return [_record(point) for point in points]


def _record(point: Point) -> dict[str, Any]:
    return {
        "interval_cycles": point.interval_cycles,
        "frames_per_second": point.frames_per_second,
        **asdict(point.resources),
    }


def plan_texts(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A plan explained: what each text is about, and the text."""
    record, estimate, step = manifest["plan"], manifest["estimate"], manifest["plan"]["next"]
    slowest = max(manifest["layers"], key=lambda layer: layer["cycles"])
    yield "slowest", f"'{slowest['name']}', {slowest['cycles']:,} cycles of {manifest['interval_cycles']:,} a frame"
    asked = [
        f"{option} {record[key]:,g} ({record[most]:,} cycles)"
        for option, key, most in (
            ("--fps", "fps", "most_interval_cycles"),
            ("--latency", "latency_us", "most_latency_cycles"),
        )
        if record[key] is not None
    ]
    lacking = step["lacking"] if step else []
    shares = {kind: estimate[kind] / limit for kind, limit in record["limits"].items() if limit}
    full = {kind: f"{estimate[kind]:,} of {record['limits'][kind]:,} {NAMES[kind]}" for kind in shares}
    if asked:
        fullest = max(shares, key=lambda kind: shares[kind], default=None)
        yield "bound by", f"{' and '.join(asked)}" + (f"; fullest: {full[fullest]}" if fullest else "")
    elif lacking:
        yield "bound by", f"{' and '.join(full[kind] for kind in lacking)} (--fill {record['fill']:g})"
    if step is None:
        yield "next step", "none: nothing is faster"
        return
    rate = f"{step['frames_per_second']:,.0f} frames/s ({step['interval_cycles']:,} cycles a frame)"
    if lacking:
        limits = record["limits"]
        needs = ", and ".join(f"{step[kind]:,} {NAMES[kind]}, where {limits[kind]:,} may be used" for kind in lacking)
        yield "next step", f"{rate} would take {needs}"
    else:
        more = ", ".join(f"{step['more'][kind]:+,} {SHORT[kind]}".replace("-", "−") for kind in KINDS if step["more"][kind])
        yield "next step", f"{rate} for {more or 'no more cells'}"
