"""The page about a compressed network: its curves, what was split, and what was not and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .emit import render
from .plots import Plot, plot

__all__ = ["compress_html"]

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LayerPart:
    """What is said of one layer."""

    name: str
    verdict: str
    taken: bool
    reason: str
    plots: tuple[Plot, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """All that the page says."""

    title: str
    budget: str
    summary: str
    plots: tuple[Plot, ...]
    points: tuple[tuple[str, ...], ...]
    chosen: int
    layers: tuple[LayerPart, ...]


def compress_html(record: Record) -> str:
    """The page as HTML, from the record alone: no scripts, no network, the same bytes for the same record."""
    before, after, curve = record["before"], record["after"], record["curve"]
    taken = {decision["layers"][0]: decision for decision in record["decisions"]}
    page = Page(
        title=record["name"],
        budget=record["budget"],
        summary=_summary(before, after),
        plots=tuple(_network_plots(curve, after)),
        points=tuple(_row(point, before) for point in curve),
        chosen=curve.index(after) + 1,
        layers=tuple(_layer(layer, taken[layer["name"]], after) for layer in record["layers"]),
    )
    return render("compress.html.j2", page=page)


def _summary(before: Record, after: Record) -> str:
    text = f"{before['macs']:,} multiplies a frame became {after['macs']:,} ({_change(before['macs'], after['macs'])})"
    if after["accuracy"] is not None:
        points = 100 * (after["accuracy"] - before["accuracy"])
        text += f"; accuracy {before['accuracy']:.2%} became {after['accuracy']:.2%} ({points:+.2f} points)"
    if after["output_error"] is not None:
        text += f"; the outputs differ by {after['output_error']:.3g} of their spread"
    return text.replace("-", "−")


def _change(before: int, after: int) -> str:
    return f"{100 * (after - before) / before:+.0f} %" if before else "as before"


def _row(point: Record, before: Record) -> tuple[str, ...]:
    splits = ", ".join(f"{name} {split['scheme']} {split['rank']}" for name, split in point["splits"].items())
    return (
        f"{point['macs']:,}",
        _change(before["macs"], point["macs"]).replace("-", "−"),
        "–" if point["accuracy"] is None else f"{point['accuracy']:.2%}",
        "–" if point["output_error"] is None else f"{point['output_error']:.3g}",
        splits or "nothing split",
    )


def _layer(layer: Record, decision: Record, after: Record) -> LayerPart:
    split = after["splits"].get(layer["name"])
    verdict = f"{split['scheme']} split, rank {split['rank']}" if split else "left whole"
    reason = decision["reason"]
    plots = _layer_plots(layer, split) if layer["curve"] else ()
    return LayerPart(layer["name"], verdict, decision["taken"], f"{reason[:1].upper()}{reason[1:]}.", tuple(plots))


# --------------------------------------------------------------------------------------------------------------- plots


def _network_plots(curve: Sequence[Record], after: Record) -> Iterator[Plot]:
    for key, name, limit in (("accuracy", "accuracy", 1.0), ("output_error", "error of the outputs", None)):
        if all(point[key] is not None for point in curve):
            lines = [("network", "k0", [(p["macs"], p[key], _point_title(p), p == after) for p in curve])]
            yield plot(f"The whole network: {name} against multiplies", "multiplies a frame", name, lines, limit)


def _layer_plots(layer: Record, chosen: Record | None) -> Iterator[Plot]:
    for key, name, limit in (
        ("error", "error of the responses", None),
        ("accuracy", "accuracy, this layer alone split", 1.0),
        ("macs", "multiplies a frame, whole network", None),
    ):
        lines = []
        for kind, scheme in (("k0", "channel"), ("k1", "spatial")):
            offers = [offer for offer in layer["curve"] if offer["scheme"] == scheme and offer[key] is not None]
            dots = [(o["rank"], o[key], _offer_title(o), _is_chosen(o, chosen)) for o in offers]
            lines += [(scheme, kind, dots)] if dots else []
        if lines:
            yield plot(f"{layer['name']}: {name}", "rank", name, lines, limit)


def _is_chosen(offer: Record, chosen: Record | None) -> bool:
    return chosen is not None and (offer["scheme"], offer["rank"]) == (chosen["scheme"], chosen["rank"])


def _point_title(point: Record) -> str:
    return f"{point['macs']:,} multiplies: " + (_row(point, point)[4])


def _offer_title(offer: Record) -> str:
    return f"{offer['scheme']} rank {offer['rank']}: {offer['macs']:,} multiplies, error {offer['error']:.3g}"
