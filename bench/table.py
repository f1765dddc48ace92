"""The table and the picture of `bench/run.py`, from what was measured and what others have published."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import GROUPS, Anchor, Case

__all__ = ["draw", "page", "table"]

HEAD = (
    "who",
    "device",
    "inferences/s",
    "latency µs",
    "cycles/frame",
    "latency cycles",
    "multipliers busy",
    "MAC/cycle",
    "Fmax MHz",
    "LUT (est.)",
    "FF (est.)",
    "DSP (est.)",
    "BRAM (est.)",
    "number is",
)
DEVICES = {
    "ecp5-25k": "ECP5-25F",
    "ecp5-85k": "ECP5-85F",
    "ice40-up5k": "iCE40 UP5K",
    "ice40-hx8k": "iCE40 HX8K",
}
OURS, THEIRS, INK, SOFT = "#2b5fc7", "#b4bcc6", "#17202a", "#55606b"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: the cells behind ``who`` and ``device`` as text, the two that are drawn as numbers."""

    who: str
    device: str
    rate: float | None
    latency_us: float | None
    cells: tuple[str, ...]
    ours: bool


def our_row(case: Case, result: Mapping[str, Any]) -> Row:
    """A rate and a latency need both: cycles simulated bit-exactly, and a routed clock."""
    made, simulated, routed = result["compile"], result.get("simulation"), result.get("route")
    rate = latency = None
    cells = ["not simulated"] * 4
    if simulated:
        interval = simulated["interval_cycles"]
        busy = f"{simulated['busy']:.1%}"
        cells = [f"{interval:,}", f"{simulated['latency_cycles']:,}", busy, f"{made['macs'] / interval:.1f}"]
        if routed:
            rate = routed["fmax_mhz"] * 1e6 / interval
            latency = simulated["latency_cycles"] / routed["fmax_mhz"]
    cells.append(f"{routed['fmax_mhz']:.1f}" if routed else "not routed")
    for kind in ("luts", "ffs", "dsps", "brams"):
        cells.append(f"{routed[kind]:,} ({made['estimate'][kind]:,})" if routed else f"({made['estimate'][kind]:,})")
    return Row(case.title, DEVICES[made["target"]], rate, latency, (*cells, "measured"), True)


def anchor_row(anchor: Anchor) -> Row:
    cells = ("", "", "", _text(anchor.macs_per_cycle), _text(anchor.fmax_mhz), _text(anchor.luts), "", "", "")
    return Row(anchor.name, anchor.device, anchor.rate, anchor.latency_us, (*cells, f"published: {anchor.remark}"), False)


def rows(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, bool, list[Row]]]:
    """The title of each group, whether it is drawn, and its rows, ours first."""
    for group in GROUPS:
        ours = [our_row(case, results[case.name]) for case in group.cases if case.name in results]
        if ours:
            yield group.title, group.plotted, [*ours, *map(anchor_row, group.anchors)]


def _text(number: float | None) -> str:
    return "" if number is None else f"{number:,}"


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a table a group."""
    lines = []
    for title, _plotted, group in rows(results):
        lines += [f"### {title}", "", f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
        for row in group:
            rate = "" if row.rate is None else f"{row.rate:,.0f}"
            latency = "" if row.latency_us is None else f"{row.latency_us:,.1f}"
            who = f"**{row.who}**" if row.ours else row.who
            lines.append(f"| {' | '.join((who, row.device, rate, latency, *row.cells))} |")
        lines.append("")
    return "\n".join(lines)


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """``docs/benchmarks.md``."""
    return f"""\
# Benchmarks

![Inferences a second and single-stream latency, measured and published](bench.png)

*Measured* is ours: cycles of the simulated Verilog, every output beat equal to the golden model's, over the clock that nextpnr
reports after routing (ECP5 in its slowest speed grade, 6). Inferences/s are frames back to back; latency is a frame alone, from
its first beat in to its last beat out. *Multipliers busy* is the share of cycles in which a multiplier is fed, over all
multipliers of all layers, frames back to back. In brackets: the estimate that `convfold compile` prints. *Published* is
quoted; the rates of MLPerf Tiny are those of a single stream, one over the latency.

    make bench BENCH_ARGS="--route --publish"      # this page; hours, so rather case by case:
    python bench/run.py --only resnet8 --route --seeds 4

A number is kept with the hash of the Verilog it was measured on, and dropped when the sources give other Verilog.

{table(results)}"""


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A row of the picture a task: rates on the left, latencies on the right, both on logarithmic scales."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    tasks = [
        (title, [row for row in group if row.ours or row.rate is not None])
        for title, plotted, group in rows(results)
        if plotted
    ]
    if not tasks:
        return
    heights = [len(group) + 1.6 for _title, group in tasks]
    figure, axes = plt.subplots(
        len(tasks), 2, figsize=(12, 0.36 * sum(heights) + 0.6), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for (title, group), (left, right) in zip(tasks, axes, strict=True):
        group = sorted(group, key=lambda row: row.rate or 0)
        names = [f"{row.who}  ·  {row.device}" for row in group]
        _bars(left, names, [row.rate for row in group], group, "{:,.0f} /s")
        _bars(right, [""] * len(group), [row.latency_us for row in group], group, "{:,.0f} µs")
        left.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes[-1][0].set_xlabel("inferences a second: more is better", color=SOFT)
    axes[-1][1].set_xlabel("single-stream latency, µs: less is better", color=SOFT)
    handles = [Patch(color=colour) for colour in (OURS, THEIRS)]
    names = ["measured: bit-exact cycles over the routed clock", "published"]
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _bars(axis: Any, names: Sequence[str], values: Sequence[float | None], group: Sequence[Row], text: str) -> None:
    """Horizontal bars from one decade below the least value; where there is none, the reason."""
    known = [value for value in values if value is not None]
    least = 10 ** math.floor(math.log10(min(known)) - 0.3) if known else 1.0
    most = 10 * max(known) if known else 10.0
    axis.set_xscale("log")
    axis.set_xlim(least, most)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_yticks(range(len(names)), names)
    for place, (value, row) in enumerate(zip(values, group, strict=True)):
        if value is not None:
            axis.barh(place, value - least, left=least, color=OURS if row.ours else THEIRS, height=0.7)
        label = text.format(value) if value is not None else "not routed" if row.ours else "not published"
        start, colour = (value or least) * 1.06, INK if value is not None else SOFT
        axis.text(start, place, label, va="center", fontsize=9, color=colour, fontweight="bold" if row.ours else None)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", colors=SOFT, labelsize=8)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.grid(axis="x", color="#e6e9ec", zorder=0)
    axis.set_axisbelow(True)
