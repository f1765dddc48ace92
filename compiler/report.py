"""``report.html``: a build on one page, from its manifest alone.

`report_html` reads the manifest into the frozen objects below, where every number is already a text or a length, and
the template prints them. Simulation and synthesis add their results to the manifest later; until then the page says
which command does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from .emit import render
from .errors import CompileError, quote
from .explain import EXACT_ERROR, KEEPS_LAYERS
from .plots import Plot, plot
from .targets import TARGETS
from .tradeoff import plan_texts

__all__ = ["Report", "read_report", "report_html"]

MANIFEST = "manifest.json"
RESOURCES = {"luts": "LUTs", "ffs": "flip-flops", "dsps": "multipliers (DSP)", "brams": "block RAMs"}
COLOURS = 6
"""Engine layers are told apart by this many colours, in turn."""

_RULES = {
    "approximate": "approximated by one layer with its neighbours",
    "batch_norm": "batch norm folded into the weights",
    "pca": "projection folded into the weights",
    "scale_bias": "scale and bias folded into the weights",
    "cascade": "merged with its neighbours",
    "branches": "branches merged into one kernel",
    "identity": "dropped, for it changes nothing",
    "lower": "rewritten as a convolution",
    "hoist": "order of pool and limits exchanged",
    "drop_clip": "proven to change nothing",
    "loosen_clip": "a limit proven never to act is gone",
    "prune": "constant or unread channels pruned",
}
_CARD, _ARROW, _EDGE = 148, 66, 96
"""Widths in the drawing of the pipeline: a layer, the arrow in front of it, input and output."""
_ROW = 4
"""So many layers stand in one row with narrow ends."""
_STRIP = 1000
"""Length of the strips that compare multiplies and the hops of the critical path."""


def report_html(manifest: Mapping[str, Any]) -> str:
    """The page as HTML: no scripts, no network, the same bytes for the same manifest.

    *Raises* ``CompileError`` for a manifest that lacks something or holds something else than it should.
    """
    return render("report.html.j2", page=read_report(manifest))


# --------------------------------------------------------------------------------------------- what the template prints


@dataclass(frozen=True, slots=True)
class Step:
    """One of the commands that make a build; ``state`` is "good", "bad" or "open"."""

    name: str
    text: str
    state: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of the numbers at the top."""

    label: str
    value: str
    unit: str
    details: tuple[str, ...]
    state: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """One drawing of the pipeline: an arrow that carries ``shape``, and the box it leads to, ``x`` to the right."""

    kind: str
    label: str
    width: int
    x: int
    box: int
    shape: str
    name: str
    lines: tuple[str, ...]
    share: str = ""
    bar: float = 0.0
    bottleneck: bool = False


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One line of the table of layers; a cell of several lines is a tuple."""

    name: str
    op: str
    source: str
    shapes: tuple[str, ...]
    window: tuple[str, ...]
    formats: tuple[str, ...]
    macs: str
    parallel: tuple[str, ...]
    taps: str
    multipliers: tuple[str, ...]
    weights: tuple[str, ...]
    cycles: str
    share: str
    bar: float
    queue_words: str
    ring_rows: str
    bottleneck: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a strip; ``label`` is empty where it would not fit."""

    x: float
    width: float
    middle: float
    label: str
    title: str
    colour: str


@dataclass(frozen=True, slots=True)
class Strip:
    """A row of segments with its own name and sum."""

    name: str
    total: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Engine:
    """The engine layer that a run of ``span`` written layers went into."""

    span: int
    name: str
    text: str
    macs: str
    colour: str


@dataclass(frozen=True, slots=True)
class WrittenRow:
    """One layer as written, and what became of it; ``engine`` stands at the first of a run."""

    name: str
    op: str
    shape: str
    macs: str
    fate: str
    engine: Engine | None


@dataclass(frozen=True, slots=True)
class DecisionText:
    """A decision in words; ``warning`` is set where a fold is not exact."""

    title: str
    reason: str
    details: tuple[str, ...]
    warning: str


@dataclass(frozen=True, slots=True)
class Table:
    """Plain cells; the first of a row is its heading, the others are numbers unless ``words``; ``bad`` rows stand out."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: bool = False
    bad: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Gauge:
    """A quantity against a limit, on a scale of 100: ``bar`` is what is, ``tick`` what was expected or asked for."""

    name: str
    cells: tuple[str, ...]
    share: str
    bar: float | None
    tick: float | None
    state: str


@dataclass(frozen=True, slots=True)
class WaitRow:
    """What a layer did: a bar of parts, and the share of each kind in words."""

    name: str
    segments: tuple[Segment, ...]
    shares: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Waits:
    """Where the pipeline waits: ``kinds`` are colour and name of each kind of cycle."""

    summary: str
    kinds: tuple[tuple[str, str], ...]
    rows: tuple[WaitRow, ...]


@dataclass(frozen=True, slots=True)
class Simulation:
    """What the simulator found."""

    passed: bool
    summary: str
    profiles: Table
    timing: Table
    failures: Table | None
    waits: Waits | None


@dataclass(frozen=True, slots=True)
class Synthesis:
    """What place and route found."""

    met: bool
    summary: str
    clocks: tuple[Gauge, ...]
    path: Strip | None
    hops: Table
    facts: Table


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page says."""

    title: str
    subtitle: str
    steps: tuple[Step, ...]
    verdicts: tuple[Verdict, ...]
    cards: tuple[Card, ...]
    pace: str
    layers: tuple[LayerRow, ...]
    strips: tuple[Strip, ...]
    folding: str
    written: tuple[WrittenRow, ...]
    macs_before: str
    macs_after: str
    taken: tuple[DecisionText, ...]
    refused: tuple[DecisionText, ...]
    accuracy: Table | None
    edges: Table
    queues: Table | None
    resources: tuple[Gauge, ...]
    resources_note: str
    plan: tuple[str, ...]
    front: Plot | None
    speeds: Table | None
    simulation: Simulation | None
    synthesis: Synthesis | None
    synthesis_hint: str
    versions: Table
    commands: tuple[str, ...]


# ------------------------------------------------------------------------------------------------- reading the manifest


@dataclass(frozen=True, slots=True)
class Record:
    """An object of the manifest that knows where it stands, so that what is missing or wrong is named."""

    values: Mapping[str, Any]
    where: str = ""

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def text(self, key: str) -> str:
        value: str = self._value(key, "a text", lambda value: isinstance(value, str))
        return value

    def flag(self, key: str) -> bool:
        value: bool = self._value(key, "true or false", lambda value: isinstance(value, bool))
        return value

    def integer(self, key: str) -> int:
        value: int = self._value(key, "an integer", _is_integer)
        return value

    def count(self, key: str) -> int:
        value: int = self._value(key, "an integer of at least 0", lambda value: _is_integer(value) and value >= 0)
        return value

    def positive(self, key: str) -> int:
        value: int = self._value(key, "an integer of at least 1", lambda value: _is_integer(value) and value > 0)
        return value

    def number(self, key: str) -> float:
        rule = "a finite number of at least 0"
        value: float = self._value(key, rule, lambda value: _is_number(value) and value >= 0)
        return value

    def texts(self, key: str) -> list[str]:
        value: list[str] = self._value(key, "a list of texts", _list_of(lambda value: isinstance(value, str)))
        return value

    def integers(self, key: str) -> list[int]:
        value: list[int] = self._value(key, "a list of integers", _list_of(_is_integer))
        return value

    def pairs(self, key: str) -> list[list[int]]:
        value: list[list[int]] = self._value(key, "a list of lists of integers", _list_of(_list_of(_is_integer)))
        return value

    def record(self, key: str) -> Record:
        values = self._value(key, "an object", lambda value: isinstance(value, Mapping))
        return Record(values, self._path(key))

    def records(self, key: str) -> list[Record]:
        values = self._value(key, "a list of objects", _list_of(lambda value: isinstance(value, Mapping)))
        return [Record(entry, f"{self._path(key)}[{n}]") for n, entry in enumerate(values)]

    def _path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def _value(self, key: str, rule: str, good: Callable[[Any], bool]) -> Any:
        if key not in self.values:
            raise CompileError(MANIFEST, f"{self._path(key)} is missing", "compile the network again")
        if not good(self.values[key]):
            message = f"{self._path(key)} must be {rule}, not {quote(self.values[key])}"
            raise CompileError(MANIFEST, message, "compile the network again")
        return self.values[key]


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _list_of(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(good(entry) for entry in value)


# ------------------------------------------------------------------------------------------------------------- the page


def read_report(manifest: Mapping[str, Any]) -> Report:
    """The page's content.

    *Raises* ``CompileError`` for a manifest that lacks something or holds something else than it should.
    """
    build = Record(manifest)
    layers = build.records("layers")
    if not layers:
        raise CompileError(MANIFEST, "layers is empty", "compile the network again")
    written = _written(build, layers)
    before = sum(node.count("macs") for node in build.records("network"))
    after = sum(layer.count("macs") for layer in layers)
    taken, refused = _decisions(build)
    synthesis = build.record("synthesis") if build.has("synthesis") else None
    simulation = build.record("simulation") if build.has("simulation") else None
    resources = _resources(build, synthesis)
    return Report(
        title=build.text("name"),
        subtitle=_subtitle(build),
        steps=_steps(simulation, synthesis),
        verdicts=tuple(_verdicts(build, simulation, synthesis, before, after)),
        cards=tuple(_cards(build, layers)),
        pace=_pace(build, layers),
        layers=tuple(_layer_row(layer, _is_bottleneck(layer, layers)) for layer in layers),
        strips=_strips(build, layers, max(before, after)),
        folding=f"{_count(before)} → {_count(after)} ({_change(before, after)})",
        written=written,
        macs_before=_count(before),
        macs_after=_count(after),
        taken=taken,
        refused=refused,
        accuracy=_accuracy(build.record("accuracy")) if build.has("accuracy") else None,
        edges=_edges(build),
        queues=_queues(build) if build.records("queues") else None,
        resources=resources,
        resources_note=_resources_note(build, synthesis),
        plan=_plan(manifest) if build.has("plan") else (),
        front=_front(build) if build.has("pareto") else None,
        speeds=_speeds(build) if build.has("pareto") else None,
        simulation=_simulation(build, simulation) if simulation else None,
        synthesis=_synthesis(synthesis) if synthesis else None,
        synthesis_hint=_synthesis_hint(build),
        versions=_versions(build, simulation, synthesis),
        commands=_commands(build, simulation, synthesis),
    )


def _subtitle(build: Record) -> str:
    outputs = ", ".join(_shape(output.integers("shape")) for output in build.records("outputs"))
    target = build.text("target")
    chip = TARGETS.get(target)
    device = f" ({chip.device}, {chip.package})" if chip and chip.device else ""
    return f"{_shape(build.record('input').integers('shape'))} in, {outputs} out, for {target}{device}"


def _steps(simulation: Record | None, synthesis: Record | None) -> tuple[Step, ...]:
    steps = [Step("compile", "done", "good")]
    if simulation is None:
        steps.append(Step("simulate", "not yet", "open"))
    else:
        passed = simulation.flag("passed")
        steps.append(Step("simulate", "passed" if passed else "failed", "good" if passed else "bad"))
    if synthesis is None:
        steps.append(Step("synth", "not yet", "open"))
    else:
        met = synthesis.flag("met")
        steps.append(Step("synth", "timing met" if met else "timing missed", "good" if met else "bad"))
    return tuple(steps)


# ------------------------------------------------------------------------------------------------------------- verdicts


def _verdicts(
    build: Record, simulation: Record | None, synthesis: Record | None, before: int, after: int
) -> Iterator[Verdict]:
    latency, interval = build.positive("latency_cycles"), build.positive("interval_cycles")
    mhz = synthesis.number("fmax_mhz") if synthesis else build.number("plan_mhz")
    planned = f"{_rate(build.number('frames_per_second'))} at the planned {build.number('plan_mhz'):g} MHz"
    pace = f"a frame every {_count(interval)} cycles"
    if synthesis:
        clock = f"at {mhz:.4g} MHz, as routed"
        yield Verdict("Throughput", _rate(mhz * 1e6 / interval), "frames/s", (clock, planned, pace))
    else:
        clock = f"at the planned {mhz:g} MHz"
        yield Verdict("Throughput", _rate(build.number("frames_per_second")), "frames/s", (clock, pace))

    value, unit = _duration(latency / (mhz * 1e6)) if mhz else ("–", "")
    yield Verdict("Latency", value, unit, (f"{_count(latency)} cycles, first beat in to last beat out", clock))

    if build.has("accuracy"):
        accuracy = build.record("accuracy")
        known = accuracy.has("float")
        of_float = f"{_percent(accuracy.number('float'), 2)} in floating point" if known else "the integers of the file itself"
        samples = f"on {_count(accuracy.count('samples'))} labelled samples"
        yield Verdict("Accuracy", _percent(accuracy.number("integer"), 2), "as built", (of_float, samples))
    else:
        yield Verdict("Accuracy", "–", "", ("not measured: no labelled data given",), "open")

    written = (f"{_count(before)} as written", f"{_count(after)} as built")
    yield Verdict("Multiplies a frame", _change(before, after) if after != before else "as written", "", written)
    yield _fit(build, synthesis)
    yield _proof(simulation)


def _fit(build: Record, synthesis: Record | None) -> Verdict:
    have = _available(build, synthesis)
    need = synthesis or build.record("estimate")
    origin = "placed and routed" if synthesis else "estimated"
    shares = {key: need.count(key) / limit for key, limit in have.items() if limit}
    if not shares:
        return Verdict("Size", _count(need.count("luts")), "LUTs", (origin, "no device chosen"))
    fullest = max(shares, key=lambda key: shares[key])
    over = [key for key, limit in have.items() if limit is not None and need.count(key) > limit]
    rest = ", ".join(f"{RESOURCES[key]} {_percent(share)}" for key, share in shares.items() if key != fullest)
    details = (f"of the {RESOURCES[fullest]} of {build.text('target')}, {origin}", rest)
    label, state = ("Does not fit", "bad") if over else ("Fits", "good")
    return Verdict(label, _percent(shares[fullest]), "", details, state)


def _proof(simulation: Record | None) -> Verdict:
    if simulation is None:
        return Verdict("Simulation", "–", "", ("not simulated yet",), "open")
    profiles = simulation.records("profiles")
    wrong = sum(profile.count("mismatches") for profile in profiles)
    beats = sum(profile.count("beats") for profile in profiles)
    details = (
        f"{_count(beats)} beats compared with the golden model",
        f"{_plural(simulation.count('frames'), 'frame')}, {_plural(len(profiles), 'stall profile')}",
    )
    if simulation.flag("passed"):
        return Verdict("Simulation", "bit-exact", "", details, "good")
    return Verdict("Simulation", _count(wrong) if wrong else "failed", "mismatches" if wrong else "", details, "bad")


# ------------------------------------------------------------------------------------------------------------- pipeline


def _is_bottleneck(layer: Record, layers: Sequence[Record]) -> bool:
    return layer.count("cycles") == max(other.count("cycles") for other in layers)


def _cards(build: Record, layers: Sequence[Record]) -> Iterator[Card]:
    one_row = len(layers) <= _ROW
    edge = _EDGE if one_row else _CARD
    start = 0 if one_row else _ARROW  # further rows begin with an arrow; the boxes then stand below one another
    source = build.record("input")
    lines = (_shape(source.integers("shape")), _kind(source))
    name = _short(source.text("name"), 10 if one_row else 16)
    yield Card("edge", f"Input {source.text('name')}: {', '.join(lines)}", start + edge, start, edge - 2, "", name, lines)
    before = [source.text("name"), *(layer.text("name") for layer in layers)]
    numbers = {name: n for n, name in enumerate(before)}  # boxes have numbers where an arrow alone would not tell
    branched = any(layer.texts("inputs") != [previous] for previous, layer in zip(before, layers, strict=False))
    for previous, layer in zip(before, layers, strict=False):
        hot = _is_bottleneck(layer, layers)
        inputs, joined = layer.texts("inputs"), ""
        if inputs != [previous]:
            joined = "from " + " + ".join(str(numbers.get(name) or "input") for name in inputs)
        number = f"{numbers[layer.text('name')]} " if branched else ""
        share, cycles = layer.number("share"), _count(layer.count("cycles"))
        kernel = f" {_shape(layer.integers('kernel'))}" if layer.has("kernel") else ""
        count = layer.count("multipliers")
        multipliers = _plural(count, "multiplier") if count else "no multipliers"
        label = (
            f"{layer.text('name')}: {_op(layer)}{kernel} on {_shape(layer.integers('in_shape'))}"
            f"{f' from {_listed(inputs)}' if joined else ''}, {multipliers}, "
            f"{cycles} cycles, {_percent(share)} of the interval{', the bottleneck' if hot else ''}"
        )
        yield Card(
            kind="layer",
            label=label,
            width=_ARROW + _CARD,
            x=_ARROW,
            box=_CARD - 2,
            shape=_shape(layer.integers("in_shape")),
            name=number + _short(layer.text("name"), 15 - len(number)),
            lines=(f"{_op(layer)}{kernel}", joined or multipliers),
            share=f"{cycles} cycles, {_percent(share)}",
            bar=round(min(share, 1.0) * (_CARD - 24), 1),
            bottleneck=hot,
        )
    for output in build.records("outputs"):
        lines = (_shape(output.integers("shape")), _kind(output))
        shape = _shape(output.integers("shape"))
        label = f"Output {output.text('name')}: {', '.join(lines)}"
        yield Card("edge", label, _ARROW + edge, _ARROW, edge - 2, shape, "output", lines)


def _pace(build: Record, layers: Sequence[Record]) -> str:
    interval = build.positive("interval_cycles")
    slowest = max(layer.count("cycles") for layer in layers)
    names = [layer.text("name") for layer in layers if layer.count("cycles") == slowest]
    listed = _listed(names) if len(names) <= 4 else f"{len(names)} layers of equal length, first {_listed(names[:1])},"
    verb = "set" if names[1:] else "sets"
    if slowest == interval:
        return f"{listed} {verb} the pace: {_count(slowest)} cycles a frame."
    busiest = "are the busiest" if names[1:] else "is the busiest"
    return f"{listed} {busiest}: {_count(slowest)} of the {_count(interval)} cycles between two frames."


def _layer_row(layer: Record, bottleneck: bool) -> LayerRow:
    window, parallel, taps, multipliers, weights = ["–"], ["–"], "–", ["–"], ["–"]
    if layer.has("kernel"):
        window = [f"{_shape(layer.integers('kernel'))} / {_shape(layer.integers('stride'))}", *_padding(layer)]
    if layer.has("rows"):
        rows, pes = layer.positive("rows"), layer.positive("pes")
        parallel, taps = [_count(rows * pes), f"{rows} × {pes}"], _count(layer.positive("taps"))
        multipliers = [_count(layer.count("multipliers")), layer.text("multiplier")]
        weights = [_count(layer.count("weights")), f"{layer.count('weight_bits')} bits, acc {layer.count('acc_bits')}"]
        if layer.count("border_classes") > 1:
            weights.append(f"{layer.count('border_classes')} border classes")
    share = layer.number("share")
    return LayerRow(
        name=layer.text("name"),
        op=_op(layer),
        source=layer.text("source"),
        shapes=(_shape(layer.integers("in_shape")), _shape(layer.integers("out_shape"))),
        window=tuple(window),
        formats=(_format(layer.record("in_format")), _format(layer.record("out_format"))),
        macs=_count(layer.count("macs")),
        parallel=tuple(parallel),
        taps=taps,
        multipliers=tuple(multipliers),
        weights=tuple(weights),
        cycles=_count(layer.count("cycles")),
        share=_percent(share),
        bar=round(100 * min(share, 1.0), 1),
        queue_words=_count(layer.count("queue_words")) if layer.has("queue_words") else "–",
        ring_rows=_count(layer.count("ring_rows")) if layer.has("ring_rows") else "–",
        bottleneck=bottleneck,
    )


def _padding(layer: Record) -> list[str]:
    pads = layer.pairs("padding")
    sides = [side for pair in pads for side in pair]
    if not any(sides):
        return []
    if len(set(sides)) == 1:
        return [f"padding {sides[0]}"]
    return ["padding " + ", ".join("+".join(map(str, pair)) for pair in pads)]


# -------------------------------------------------------------------------------------------------------------- folding


def _homes(build: Record, layers: Sequence[Record]) -> list[int | None]:
    """For each written layer the number of the engine layer it is in.

    An engine layer names in ``source`` all it was made from. A limit without such a mention is the clamp of the last
    layer with weights before it, unless a rule took it out.
    """
    parts = {part: n for n, layer in reversed([*enumerate(layers)]) for part in layer.text("source").split(" + ")}
    removed = {
        name
        for decision in build.records("decisions")
        if decision.flag("taken") and decision.text("rule") not in ("hoist", "loosen_clip", "prune", "quantize")
        for name in decision.texts("layers")
    }
    homes: list[int | None] = []
    clamp: int | None = None
    for node in build.records("network"):
        home = parts.get(node.text("source"))
        if home is None and node.text("op") == "clip" and node.text("name") not in removed:
            home = clamp
        elif home is not None and layers[home].has("rows"):
            clamp = home
        homes.append(home)
    return homes


def _written(build: Record, layers: Sequence[Record]) -> tuple[WrittenRow, ...]:
    fates = _fates(build)
    nodes = [
        (node, home)
        for node, home in zip(build.records("network"), _homes(build, layers), strict=True)
        if node.text("op") != "input"
    ]
    rows = []
    for home, run in groupby(nodes, key=lambda entry: entry[1]):
        members = [node for node, _home in run]
        for n, node in enumerate(members):
            engine = None if n else _engine(layers, home, len(members))
            fate = _fate(node, fates.get(node.text("name"), ()), layers[home] if home is not None else None)
            rows.append(
                WrittenRow(
                    name=node.text("name"),
                    op=_op(node),
                    shape=_shape(node.integers("out_shape")),
                    macs=_count(node.count("macs")),
                    fate=fate,
                    engine=engine,
                )
            )
    return tuple(rows)


def _fates(build: Record) -> dict[str, tuple[str, ...]]:
    """The rules that changed each written layer; later decisions call a merged layer by the name of its last part."""
    made_of: dict[str, list[str]] = {}
    rules: dict[str, tuple[str, ...]] = {}
    for decision in build.records("decisions"):
        rule = decision.text("rule")
        if not decision.flag("taken") or rule == "quantize":
            continue
        names = [part for layer in decision.texts("layers") for part in made_of.get(layer, [layer])]
        for name in names:
            if rule not in rules.get(name, ()):
                rules[name] = (*rules.get(name, ()), rule)
        if rule not in KEEPS_LAYERS:
            made_of[decision.texts("layers")[-1]] = names
    return rules


def _fate(node: Record, rules: Sequence[str], layer: Record | None) -> str:
    texts = [_RULES.get(rule, rule.replace("_", " ")) for rule in rules]
    clamped = layer is not None and layer.has("low") and layer.has("high")  # a clip by table has no clamp
    if node.text("op") == "clip" and layer is not None and clamped:
        texts.append(f"the clamp of its requantizer, {layer.integer('low')} … {layer.integer('high')}")
    return "; ".join(texts) or ("as written" if layer is not None else "left out")


def _engine(layers: Sequence[Record], home: int | None, span: int) -> Engine:
    if home is None:
        return Engine(span, "–", "", "–", "none")
    layer = layers[home]
    kernel = f" {_shape(layer.integers('kernel'))}" if layer.has("kernel") else ""
    text = f"{_op(layer)}{kernel}, {_shape(layer.integers('out_shape'))}"
    return Engine(span, layer.text("name"), text, _count(layer.count("macs")), _colour(home))


def _strips(build: Record, layers: Sequence[Record], longest: int) -> tuple[Strip, ...]:
    nodes = [
        (node.text("name"), node.count("macs"), "none" if home is None else _colour(home))
        for node, home in zip(build.records("network"), _homes(build, layers), strict=True)
    ]
    made = [(layer.text("name"), layer.count("macs"), _colour(n)) for n, layer in enumerate(layers)]
    strips = []
    for name, parts in (("As written", nodes), ("As built", made)):
        told = [(part, amount, colour, f"{_count(amount)} multiplies") for part, amount, colour in parts]
        strips.append(Strip(name, _count(sum(amount for _part, amount, _shade in parts)), _segments(told, longest)))
    return tuple(strips)


def _segments(parts: Sequence[tuple[str, float, str, str]], longest: float) -> tuple[Segment, ...]:
    """Parts ``(label, amount, colour, amount as text)`` side by side, where ``longest`` takes the whole strip."""
    segments = []
    reached = 0.0
    for label, amount, colour, text in parts:
        if amount <= 0:
            continue
        x, width = _STRIP * reached / longest, _STRIP * amount / longest
        reached += amount
        segments.append(
            Segment(
                x=round(x, 1),
                width=round(max(width - 1.5, 0.5), 1),
                middle=round(x + width / 2, 1),
                label=label if len(label) * 7.5 + 12 < width else "",
                title=f"{label}: {text}",
                colour=colour,
            )
        )
    return tuple(segments)


def _colour(number: int) -> str:
    return f"c{number % COLOURS}"


# ------------------------------------------------------------------------------------------------------------ decisions


def _decisions(build: Record) -> tuple[tuple[DecisionText, ...], tuple[DecisionText, ...]]:
    """What was done and what was refused. Explanations belong to the first decisions; the rest speak for themselves."""
    decisions = build.records("decisions")
    explanations = build.texts("explanations") if build.has("explanations") else []
    if len(explanations) > len(decisions):
        message = f"{len(explanations)} explanations belong to {len(decisions)} decisions"
        raise CompileError(MANIFEST, message, "compile the network again")
    told = [*explanations, *[""] * (len(decisions) - len(explanations))]
    texts = [
        (decision.flag("taken"), _decision(decision, text)) for decision, text in zip(decisions, told, strict=True)
    ]
    return tuple(text for taken, text in texts if taken), tuple(text for taken, text in texts if not taken)


def _decision(decision: Record, explanation: str) -> DecisionText:
    error = decision.number("error") if decision.has("error") else 0.0
    warning = f"not exact: differs by up to {100 * error:.3g} %" if error > EXACT_ERROR else ""
    if explanation:
        title, *details = [line.strip() for line in explanation.splitlines()]
        return DecisionText(title.removesuffix("."), details[0] if details else "", tuple(details[1:]), warning)
    layers, reason = decision.texts("layers"), decision.text("reason")
    listed = _listed(layers) if len(layers) <= 4 else f"{len(layers)} layers"
    title = f"Quantized {listed}" if decision.text("rule") == "quantize" else f"{_op(decision, 'rule').capitalize()}: {listed}"
    before, after = decision.count("macs_before"), decision.count("macs_after")
    change = f"Multiplies a frame: {_count(before)} → {_count(after)} ({_change(before, after)})."
    return DecisionText(title, f"{reason[:1].upper()}{reason[1:]}.", (change,) if before != after else (), warning)


# -------------------------------------------------------------------------------------------------------------- numbers


def _accuracy(accuracy: Record) -> Table:
    samples = accuracy.count("samples")
    rows = []
    known = accuracy.has("float")  # a model that came in integers has no other accuracy
    for key, name in (("float", "floating point, as written"), ("integer", "integers, as built")):
        if known or key == "integer":
            share = accuracy.number(key)
            rows.append((name, _percent(share, 2), f"{_count(round(share * samples))} of {_count(samples)}"))
    if known:
        points = round(100 * (accuracy.number("integer") - accuracy.number("float")), 2)
        rows.append(("lost by quantization", f"{-points or 0.0:.2f} points".replace("-", "−"), ""))
        folding = f"{accuracy.number('folding_difference'):.1e}"
        rows.append(("changed by folding alone", folding, "of the greatest output"))
    return Table("Accuracy on labelled data", ("", "Right", "Samples"), tuple(rows))


def _edges(build: Record) -> Table:
    rows = []
    for end in (build.record("input"), *build.records("outputs")):
        beats = math.ceil(math.prod(end.integers("shape")) / end.positive("lanes"))
        rows.append(
            (
                end.text("port"),
                end.text("name"),
                _shape(end.integers("shape")),
                _format(end),
                str(end.positive("lanes")),
                _count(beats),
            )
        )
    columns = ("Port", "Tensor", "H×W×C", "Format", "Values a beat", "Beats a frame")
    return Table("AXI4-Stream ports: raster order, channels fastest", columns, tuple(rows))


def _queues(build: Record) -> Table:
    rows = []
    for queue in build.records("queues"):
        depth, width = queue.positive("depth"), queue.positive("lanes") * queue.positive("bits")
        rows.append((queue.text("name"), _count(depth), str(width), _count(depth * width)))
    columns = ("Queue", "Beats", "Bits a beat", "Bits")
    return Table("Queues where branches meet: as deep as the timetable shows that they get", columns, tuple(rows))


# ------------------------------------------------------------------------------------------------------------ resources


def _available(build: Record, synthesis: Record | None) -> dict[str, int | None]:
    """What the device has: as place and route counted, or as the target's table says."""
    if synthesis is not None:
        have = synthesis.record("available")
        return {key: have.count(key) for key in RESOURCES}
    chip = TARGETS.get(build.text("target"))
    return dict.fromkeys(RESOURCES, None) if chip is None else dict(chip.resources())


def _resources(build: Record, synthesis: Record | None) -> tuple[Gauge, ...]:
    estimate, have = build.record("estimate"), _available(build, synthesis)
    gauges = []
    for key, name in RESOURCES.items():
        limit = have[key]
        used = synthesis.count(key) if synthesis else None
        best = estimate.count(key) if used is None else used
        counts = (estimate.count(key), used, limit)
        cells = tuple("–" if number is None else _count(number) for number in counts)
        over = limit is not None and best > limit
        gauges.append(
            Gauge(
                name=name,
                cells=cells,
                share=_percent(best / limit) if limit else "–",
                bar=round(min(100.0, 100 * best / limit), 1) if limit else None,
                tick=round(min(100.0, 100 * estimate.count(key) / limit), 1) if limit and used is not None else None,
                state="bad" if over else "good" if used is not None else "open",
            )
        )
    return tuple(gauges)


def _resources_note(build: Record, synthesis: Record | None) -> str:
    if synthesis is not None:
        return "The bar is what was placed and routed; the mark on it is the estimate made before."
    if any(_available(build, None).values()):
        return "The bar is the estimate; nothing has been placed yet."
    return f"Target '{build.text('target')}' is no device, so there is no limit to compare with."


def _plan(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """What the plan is up against and what a faster one would take."""
    return tuple(f"{label.capitalize()}: {text}." for label, text in plan_texts(manifest))


def _front(build: Record) -> Plot:
    """The least look-up tables for each speed, and this build."""
    speeds = [(point, False) for point in build.records("pareto")]
    own = Record({**build.record("estimate").values, "frames_per_second": build.number("frames_per_second")})

    def dot(point: Record, chosen: bool) -> tuple[float, float, str, bool]:
        rate, luts = point.number("frames_per_second"), point.count("luts")
        return rate, luts, f"{_rate(rate)} frames/s: {_count(luts)} LUTs", chosen

    latency = build.record("plan").values["latency_us"]
    name = "this build" if latency is None else f"this build, within {latency:g} µs"
    lines = [("least", "k0", [dot(*speed) for speed in speeds]), (name, "k1", [dot(own, True)])]
    return plot("Speed against LUTs, by estimate", "frames a second at the planning clock", "LUTs", lines, None)


def _speeds(build: Record) -> Table:
    rows = tuple(
        (
            _rate(point.number("frames_per_second")),
            _count(point.positive("interval_cycles")),
            *(_count(point.count(kind)) for kind in RESOURCES),
        )
        for point in build.records("pareto")
    )
    columns = ("Frames/s", "Cycles a frame", *RESOURCES.values())
    return Table("The least area for each speed, by estimate", columns, rows)


def _synthesis_hint(build: Record) -> str:
    chip = TARGETS.get(build.text("target"))
    return "compile --target ecp5-25k" if chip is not None and chip.family == "generic" else ""


def _synthesis(synthesis: Record) -> Synthesis:
    asked, fmax, met = synthesis.number("freq_mhz"), synthesis.number("fmax_mhz"), synthesis.flag("met")
    relation = "meets" if met else "misses"
    clocks = synthesis.record("clocks")
    path = synthesis.records("critical_path")
    rows, parts, reached = [], [], 0.0
    for hop in path:
        ns, kind = hop.number("ns"), hop.text("kind") if hop.has("kind") else "hop"
        reached += ns
        rows.append((kind, hop.text("from"), hop.text("to"), f"{ns:.2f}", f"{reached:.2f}"))
        parts.append((kind, ns, _PATH_COLOURS.get(kind, "none"), f"{ns:.2f} ns"))
    return Synthesis(
        met=met,
        summary=f"Routed for {fmax:.4g} MHz, which {relation} the {asked:g} MHz asked for.",
        clocks=_clocks({name: clocks.number(name) for name in clocks.values}, asked),
        path=Strip("Critical path", f"{reached:.2f} ns", _segments(parts, reached)) if reached else None,
        hops=Table("Critical path, hop by hop", ("", "From", "To", "ns", "Sum"), tuple(rows)),
        facts=_facts(synthesis),
    )


_PATH_COLOURS = {"clk-to-q": "c4", "logic": "c0", "routing": "c1", "setup": "c3"}


def _clocks(clocks: Mapping[str, float], asked: float) -> tuple[Gauge, ...]:
    scale = 100 / (1.15 * max(asked, *clocks.values(), 1.0))
    return tuple(
        Gauge(
            name=name,
            cells=(f"{mhz:.4g} MHz", f"{asked:g} MHz"),
            share=f"{100 * (mhz - asked) / asked:+.0f} %".replace("-", "−") if asked else "–",
            bar=round(mhz * scale, 1),
            tick=round(asked * scale, 1),
            state="good" if mhz >= asked else "bad",
        )
        for name, mhz in clocks.items()
    )


def _facts(synthesis: Record) -> Table:
    rows = [
        ("Speed grade", synthesis.text("speed") or "–"),
        ("Seed", str(synthesis.integer("seed"))),
        ("All seeds", ", ".join(_seed(run) for run in synthesis.records("seeds"))),
        ("Placer, router", f"{synthesis.text('placer')}, {synthesis.text('router')}"),
        ("Bitstream", synthesis.text("bitstream") if synthesis.has("bitstream") else "none"),
        ("Time taken", f"{synthesis.number('seconds'):.1f} s"),
    ]
    if synthesis.has("wrapper"):
        wrapper = synthesis.record("wrapper")
        cost = ", ".join(f"{wrapper.count(key)} {RESOURCES.get(key, key)}" for key in wrapper.values)
        rows.append(("Pin wrapper", f"more port bits than pins: shift registers round the top, at most {cost}"))
    return Table("Place and route", ("", ""), tuple(rows), words=True)


def _seed(run: Record) -> str:
    return f"{run.integer('seed')}: " + (f"{run.number('fmax_mhz'):.4g} MHz" if run.has("fmax_mhz") else "failed")


# ----------------------------------------------------------------------------------------------------------- simulation


def _simulation(build: Record, simulation: Record) -> Simulation:
    profiles = simulation.records("profiles")
    rows = tuple(
        (
            profile.text("name"),
            _count(profile.count("frames")),
            _count(profile.count("beats")),
            _count(profile.count("mismatches")),
            _count(profile.count("cycles")),
            f"{profile.number('seconds'):.1f}",
        )
        for profile in profiles
    )
    wrong = tuple(n for n, profile in enumerate(profiles) if profile.count("mismatches"))
    pairs = [
        (name, build.count(key), simulation.count(key) if simulation.has(key) else None) for name, key in _CYCLES.items()
    ]
    measured = tuple(
        (name, _count(want), "–", "not measured")
        if got is None
        else (name, _count(want), _count(got), "equal" if want == got else "different")
        for name, want, got in pairs
    )
    differing = tuple(n for n, (_name, want, got) in enumerate(pairs) if want != got)
    tests = simulation.record("tests") if simulation.has("tests") else Record({})
    failed = tuple((name, tests.text(name)) for name in tests.values if tests.text(name) != "passed")
    passed = simulation.flag("passed")
    verdict = "Every beat equals the golden model's" if passed else "The simulation failed"
    return Simulation(
        passed=passed,
        summary=f"{verdict}: {_plural(simulation.count('frames'), 'frame')} in {simulation.text('simulator')}.",
        profiles=Table("By stall profile", _PROFILE_COLUMNS, rows, bad=wrong),
        timing=Table("Cycles without stalls", ("", "Planned", "Measured", ""), measured, bad=differing),
        failures=Table("Failed tests", ("", ""), failed, words=True) if failed else None,
        waits=_waits(build, simulation.records("layers")) if simulation.has("layers") else None,
    )


_WAITS = {
    "busy": "busy",
    "input": "waits for input",
    "room": "waits for room at its output",
    "idle": "idle between frames",
}


def _waits(build: Record, layers: Sequence[Record]) -> Waits | None:
    """The bars of all layers; none if a layer ended too few frames to tell."""
    rows = []
    fed = 0.0
    multipliers = {layer.text("name"): layer.count("multipliers") for layer in build.records("layers")}
    for layer in layers:
        cycles = {kind: layer.count(kind) for kind in _WAITS}
        every = sum(cycles.values())
        if not every:
            return None
        name = layer.text("name")
        fed += multipliers.get(name, 0) * cycles["busy"] / every
        told = [(label, cycles[kind], kind, _percent(cycles[kind] / every)) for kind, label in _WAITS.items()]
        shares = tuple(_percent(count / every) if count else "–" for count in cycles.values())
        rows.append(WaitRow(name, _segments(told, every), shares))
    if not rows:
        return None
    every = sum(multipliers.values())
    frames = max(layer.count("frames") for layer in layers)
    summary = f"Frames back to back, without stalls, over the last {_plural(frames, 'frame')} of each layer."
    if every:
        summary += f" All {_plural(every, 'multiplier')} together are fed in {_percent(fed / every, 1)} of the cycles."
    return Waits(summary, tuple(_WAITS.items()), tuple(rows))


_PROFILE_COLUMNS = ("Stalls", "Frames", "Beats", "Mismatches", "Cycles", "Seconds")
_CYCLES = {"latency": "latency_cycles", "interval": "interval_cycles"}


# ----------------------------------------------------------------------------------------------------------- provenance


def _versions(build: Record, simulation: Record | None, synthesis: Record | None) -> Table:
    versions = build.record("versions")
    rows = [
        ("Source", build.text("source")),
        ("SHA-256", build.text("source_sha256")),
        *((name, versions.text(name)) for name in versions.values),
    ]
    if simulation is not None:
        rows.append(("simulator", simulation.text("simulator")))
    if synthesis is not None:
        rows.append(("synthesis", ", ".join(synthesis.texts("versions"))))
    return Table("Made from", ("", ""), tuple(rows), words=True)


def _commands(build: Record, simulation: Record | None, synthesis: Record | None) -> tuple[str, ...]:
    """What to type for this page; the results' own options are spelt out."""
    first = f"convfold compile {build.text('source')} --target {build.text('target')} -o BUILD"
    command = build.text("command") if build.has("command") else first
    simulate, synth = ["convfold simulate BUILD"], ["convfold synth BUILD"]
    if simulation is not None and (profiles := simulation.records("profiles")):
        simulate.append(f"--frames {max(profile.count('frames') for profile in profiles)}")
    if simulation is not None and simulation.has("seed"):
        simulate.append(f"--seed {simulation.integer('seed')}")
    if synthesis is not None:
        synth.append(f"--freq {synthesis.number('freq_mhz'):g} --seed {synthesis.integer('seed')}")
        synth.append(f"--placer {synthesis.text('placer')} --router {synthesis.text('router')}")
        if synthesis.text("speed"):
            synth.append(f"--speed {synthesis.text('speed')}")
    return command, " ".join(simulate), " ".join(synth), "convfold report BUILD"


# ---------------------------------------------------------------------------------------------------------------- texts


def _count(number: int) -> str:
    return f"{number:,}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)


def _rate(number: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _percent(share: float, digits: int | None = None) -> str:
    if digits is None:
        digits = 0 if share >= 0.0995 or not share else 1
    return f"{100 * share:.{digits}f} %"


def _change(before: int, after: int) -> str:
    """The change in percent."""
    if not before:
        return "as before" if not after else "from none"
    return f"{100 * (after - before) / before:+.0f} %".replace("-", "−")


def _duration(seconds: float) -> tuple[str, str]:
    """Three digits and the unit."""
    units = ((1, "s"), (1e3, "ms"), (1e6, "µs"), (1e9, "ns"))
    factor, unit = next((unit for unit in units if seconds * unit[0] >= 1), units[-1])
    return _rate(seconds * factor), unit


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _op(record: Record, key: str = "op") -> str:
    return record.text(key).replace("_", " ")


def _kind(form: Record) -> str:
    return f"{'int' if form.flag('signed') else 'uint'}{form.positive('bits')}"


def _format(form: Record) -> str:
    zero = f" zero {form.integer('zero_point')}" if form.integer("zero_point") else ""
    return f"{_kind(form)} × {form.number('scale'):.3g}{zero}"


def _short(name: str, length: int) -> str:
    """A name without its middle: what tells layers apart stands at either end."""
    return name if len(name) <= length else f"{name[: length // 2]}…{name[1 - length // 2 :]}"
