"""Plots for reports: curves on common axes, as lengths and texts that a template prints (``plot.html.j2``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Dot", "Line", "Plot", "Points", "Tick", "plot"]

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 30, 12, 40
"""The drawing and its margins, in pixels."""

Axis = tuple[float, float]
Points = list[tuple[float, float, str, bool]]


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A measured point; ``title`` is what it says when it is pointed at."""

    x: float
    y: float
    title: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A curve: its dots, and the path through them; ``kind`` gives its colour."""

    name: str
    kind: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """One drawing."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM
    top: int = TOP


def plot(
    title: str, x_label: str, y_label: str, lines: Sequence[tuple[str, str, Points]], limit: float | None
) -> Plot:
    """Curves on common axes: name, kind, points ``(x, y, title, chosen)``; ``limit`` is the top of the scale, if it has one."""
    xs = [x for _, _, points in lines for x, _, _, _ in points]
    ys = [y for _, _, points in lines for _, y, _, _ in points]
    x_axis, y_axis = _ticks(max(xs)), _ticks(limit or max(ys))
    place_x = _scale((0.0, x_axis[-1]), (LEFT, WIDTH - RIGHT))
    place_y = _scale((0.0, y_axis[-1]), (HEIGHT - BOTTOM, TOP))
    drawn = []
    for name, kind, points in lines:
        dots = tuple(Dot(place_x(x), place_y(y), text, chosen) for x, y, text, chosen in points)
        path = "M" + "L".join(f"{dot.x:g} {dot.y:g}" for dot in dots)
        drawn.append(Line(name, kind, path, dots))
    return Plot(
        title,
        x_label,
        y_label,
        tuple(drawn),
        tuple(Tick(place_x(value), f"{value:,g}") for value in x_axis),
        tuple(Tick(place_y(value), f"{value:,g}") for value in y_axis),
    )


def _scale(of: Axis, to: Axis) -> Callable[[float], float]:
    return lambda value: round(to[0] + (to[1] - to[0]) * (value - of[0]) / ((of[1] - of[0]) or 1.0), 1)


def _ticks(high: float) -> list[float]:
    """Round numbers from 0 to at least ``high``, three to six of them."""
    power = 10.0 ** math.floor(math.log10(high or 1.0))
    step = next(factor * power for factor in (0.2, 0.5, 1.0, 2.0) if (high or 1.0) <= 5 * factor * power)
    return [round(n * step, 12) for n in range(math.ceil((high or 1.0) / step - 1e-9) + 1)]
