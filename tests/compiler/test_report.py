from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from convfold.compiler.emit import Emission
from convfold.compiler.emit import manifest as manifest_of
from convfold.compiler.errors import CompileError
from convfold.compiler.explain import explain
from convfold.compiler.passes import Options, fold
from convfold.compiler.plan import make_plan
from convfold.compiler.quantize import quantize
from convfold.compiler.report import Report, read_report, report_html
from convfold.compiler.spec import load_spec
from convfold.compiler.targets import get_target

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.toml"

Manifest = dict[str, Any]


def form(signed: bool = False) -> Manifest:
    return {"bits": 8, "signed": signed, "scale": 0.0123, "zero_point": 0}


def port(name: str, port_name: str, shape: list[int]) -> Manifest:
    return {"name": name, "port": port_name, "shape": shape, "lanes": 2, **form()}


def waits(name: str, busy: int, inputs: int, room: int, idle: int) -> Manifest:
    return {"name": name, "frames": 4, "busy": busy, "input": inputs, "room": room, "idle": idle}


def node(name: str, op: str, source: str, macs: int = 0) -> Manifest:
    return {"name": name, "op": op, "source": source, "out_shape": [8, 8, 4], "macs": macs}


def pool_layer(name: str, source: str, cycles: int, before: str) -> Manifest:
    return {
        "name": name,
        "source": source,
        "op": "max_pool",
        "inputs": [before],
        "in_shape": [8, 8, 4],
        "out_shape": [4, 4, 4],
        "macs": 0,
        "multipliers": 0,
        "cycles": cycles,
        "share": cycles / 1600,
        "kernel": [2, 2],
        "stride": [2, 2],
        "padding": [[0, 0], [0, 0]],
        "ring_rows": 4,
        "queue_words": 12,
        "in_format": form(),
        "out_format": form(),
    }


def conv_layer(name: str, source: str, cycles: int, before: str) -> Manifest:
    return pool_layer(name, source, cycles, before) | {
        "op": "conv2d",
        "macs": 9216,
        "multipliers": 24,
        "padding": [[1, 1], [1, 1]],
        "rows": 2,
        "pes": 4,
        "taps": 3,
        "multiplier": "ecp5",
        "weight_bits": 6,
        "acc_bits": 21,
        "border_classes": 9,
        "weights": 1234,
        "low": 0,
        "high": 255,
    }


def decision(rule: str, layers: list[str], taken: bool = True, error: float | None = None) -> Manifest:
    record = {"rule": rule, "layers": layers, "taken": taken, "reason": f"the reason for {rule}"}
    return record | {"macs_before": 13312, "macs_after": 9216 if taken else 13312, "error": error}


def minimal() -> Manifest:
    """What ``emit`` always writes: two convolutions with a norm and a rectifier, and a pool."""
    return {
        "name": "shapes",
        "target": "ecp5-25k",
        "versions": {"convfold": "0.1.0", "yosys": "pyosys 0.70"},
        "source": "shapes.toml",
        "source_sha256": "5eed" * 16,
        "input": port("image", "s_axis", [8, 8, 1]),
        "outputs": [port("pool", "m_axis", [4, 4, 4])],
        "latency_cycles": 4321,
        "interval_cycles": 1600,
        "plan_mhz": 100.0,
        "frames_per_second": 62500.0,
        "network": [
            node("image", "input", "shapes.toml: [network] input"),
            node("edges", "conv2d", "layer 1", 9216),
            node("norm", "batch_norm", "layer 2", 4096),
            node("relu", "clip", "layer 3"),
            node("pool", "max_pool", "layer 4"),
        ],
        "layers": [
            conv_layer("norm", "layer 1 + layer 2", 1600, "image"),
            pool_layer("pool", "layer 4", 800, "norm"),
        ],
        "queues": [{"name": "norm_queue0", "depth": 12, "lanes": 2, "bits": 8}],
        "decisions": [
            decision("batch_norm", ["edges", "norm"], error=1e-16),
            decision("cascade", ["norm", "pool"], taken=False),
            decision("quantize", ["norm"]),
        ],
        "estimate": {"luts": 5000, "ffs": 4000, "dsps": 14, "brams": 3},
    }


def full() -> Manifest:
    return minimal() | {
        "accuracy": {"samples": 400, "float": 0.99, "integer": 0.985, "folding_difference": 3.4e-16},
        "explanations": [
            "Folded 'norm' into 'edges'.\n  W' is s·W.\n  Multiplies a frame: 13,312 → 9,216.",
            "Kept 'norm' and 'pool' apart.\n  It bends.",
        ],
        "command": "convfold compile shapes.toml --target ecp5-25k --fps 60000 -o build/shapes",
        "simulation": {
            "simulator": "verilator 5.048",
            "frames": 16,
            "profiles": [
                {"name": "none", "frames": 16, "beats": 512, "mismatches": 0, "cycles": 28321, "seconds": 2.25},
                {"name": "both", "frames": 16, "beats": 512, "mismatches": 0, "cycles": 60007, "seconds": 4.5},
            ],
            "latency_cycles": 4321,
            "interval_cycles": 1600,
            "seed": 3,
            "layers": [waits("norm", 6400, 0, 0, 0), waits("pool", 400, 4000, 800, 1200)],
            "tests": {"no_stalls": "passed"},
            "passed": True,
        },
        "synthesis": {
            "luts": 6072,
            "ffs": 4200,
            "dsps": 14,
            "brams": 4,
            "available": {"luts": 24288, "ffs": 24288, "dsps": 28, "brams": 56},
            "fmax_mhz": 112.5,
            "clocks": {"clk": 112.5},
            "freq_mhz": 100.0,
            "met": True,
            "speed": "6",
            "seed": 7,
            "seeds": [
                {"seed": 7, "seconds": 21.5, "fmax_mhz": 112.5, "error": None},
                {"seed": 8, "seconds": 3.5, "fmax_mhz": None, "error": "no"},
            ],
            "placer": "heap",
            "router": "router1",
            "bitstream": "bitstream.bit",
            "critical_path": [
                {"from": "a.CLK", "to": "a.Q", "ns": 0.5, "kind": "clk-to-q"},
                {"from": "a.Q", "to": "b.D", "ns": 7.75},
            ],
            "wrapper": {"luts": 80, "ffs": 240},
            "versions": ["pyosys 0.70", "nextpnr-ecp5 0.11"],
            "seconds": 33.0,
        },
    }


class Page(HTMLParser):
    """Tags in balance, ids, links, and the text a reader sees."""

    VOID = frozenset({"meta", "link", "br", "rect", "path", "line"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.tags.append(tag)
        for key, value in attrs:
            assert not key.startswith("on")
            if key == "id":
                self.ids.append(value or "")
            if key in ("href", "src"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.pieces))


def page(manifest: Manifest) -> str:
    return Page(report_html(manifest)).text


def rows_of(report: Report) -> dict[str, tuple[str, str | None]]:
    """What became of each written layer, and the engine layer where a run begins."""
    return {row.name: (row.fate, row.engine.name if row.engine else None) for row in report.written}


def verdicts(manifest: Manifest) -> dict[str, tuple[str, str, str]]:
    return {entry.label: (entry.value, entry.unit, entry.state) for entry in read_report(manifest).verdicts}


# ---------------------------------------------------------------------------------------------------------------- page


@pytest.mark.parametrize("manifest", [minimal(), full()], ids=["minimal", "full"])
def test_page_is_sound_and_needs_nothing_from_elsewhere(manifest: Manifest) -> None:
    before = copy.deepcopy(manifest)
    html = report_html(manifest)
    assert html == report_html(json.loads(json.dumps(manifest)))
    assert manifest == before
    parsed = Page(html)
    assert parsed.open == []
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert {link for link in parsed.links if link != "data:,"} == {f"#{name}" for name in parsed.ids}
    for word in ("http://", "https://", "<script", "@import", "url(", "{{", "{%", "None", "Undefined"):
        assert word not in html


def test_missing_results_say_which_command_brings_them() -> None:
    text = page(minimal())
    for command in ("convfold simulate BUILD", "convfold synth BUILD", "convfold compile … --test labelled.npz"):
        assert f"{command} " in text
    assert "Not simulated yet" in text and "Not placed yet" in text and "has not been measured" in text
    text = page(full())
    assert "Not simulated yet" not in text and "Not placed yet" not in text and "has not been measured" not in text


def test_null_results_are_missing_results() -> None:
    empty = {"accuracy": None, "simulation": None, "synthesis": None}
    assert report_html(minimal() | empty) == report_html(minimal())


def test_generic_target_cannot_be_placed() -> None:
    text = page(minimal() | {"target": "generic"})
    assert "this target is no device" in text
    assert "Target 'generic' is no device" in text


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7*7 }}"


def texts_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the texts of a manifest are."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from texts_in(entry, (*path, key))
    elif isinstance(value, list):
        for n, entry in enumerate(value):
            yield from texts_in(entry, (*path, n))


def put(manifest: Manifest, path: tuple[str | int, ...], value: Any) -> Manifest:
    changed = copy.deepcopy(manifest)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def test_hostile_texts_stay_texts() -> None:
    manifest = full()
    for n, path in enumerate(texts_in(full())):
        manifest = put(manifest, path, f"{HOSTILE} {n}")
    html = report_html(manifest)
    assert "<script" not in html and "<img" not in html
    assert Page(html).open == []
    assert set(Page(html).tags) <= set(Page(report_html(full())).tags)
    assert Page(html).text.count(HOSTILE) > 30


def test_hostile_keys_stay_texts() -> None:
    manifest = full()
    manifest["versions"][HOSTILE] = "1"
    manifest["synthesis"]["clocks"][HOSTILE] = 1.0
    manifest["synthesis"]["wrapper"][HOSTILE] = 1
    html = report_html(manifest)
    assert "<script" not in html and "<img" not in html
    assert Page(html).text.count("alert(1)") == 3


# ------------------------------------------------------------------------------------------------- faults in the manifest

# Kept for tools; the page has no use for it. What follows may be absent, alone or with all that belongs to it.
UNREAD = {"network[0].out_shape", "synthesis.seeds[].seconds", "synthesis.seeds[].error"}
OPTIONAL = {"accuracy", "simulation", "synthesis", "synthesis.wrapper", "synthesis.bitstream", "command", "explanations"}
OPTIONAL |= {"accuracy.float"}
OPTIONAL |= {"decisions[].error", "synthesis.seeds[].fmax_mhz", "synthesis.critical_path[].kind"}
OPTIONAL |= {f"simulation.{key}" for key in ("latency_cycles", "interval_cycles", "seed", "tests", "layers")}
GROUPS = {"layers[].kernel", "layers[].rows", "layers[].ring_rows", "layers[].queue_words", "layers[].low", "layers[].high"}
FREE = re.compile(r"(versions|simulation\.tests|synthesis\.(clocks|wrapper))\.\w+")


def keys_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the keys of a manifest are."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield (*path, key)
            yield from keys_in(entry, (*path, key))
    elif isinstance(value, list):
        for n, entry in enumerate(value):
            yield from keys_in(entry, (*path, n))


def dotted(path: tuple[str | int, ...]) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


def required(path: tuple[str | int, ...]) -> bool:
    name = re.sub(r"\[\d+\]", "[]", dotted(path))
    return dotted(path) not in UNREAD and name not in UNREAD | OPTIONAL | GROUPS and not FREE.fullmatch(name)


def without(manifest: Manifest, path: tuple[str | int, ...]) -> Manifest:
    changed = copy.deepcopy(manifest)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return changed


@pytest.mark.parametrize("path", [path for path in keys_in(full()) if required(path)], ids=dotted)
def test_missing_key_is_named(path: tuple[str | int, ...]) -> None:
    manifest = full()
    if path[0] == "decisions":
        del manifest["explanations"]  # a decision that is explained speaks through its explanation
    pattern = rf"^manifest\.json: {re.escape(dotted(path))} is missing\n  fix: compile the network again$"
    with pytest.raises(CompileError, match=pattern):
        read_report(without(manifest, path))


@pytest.mark.parametrize("path", [path for path in keys_in(full()) if not required(path)], ids=dotted)
def test_page_does_without_the_rest(path: tuple[str | int, ...]) -> None:
    assert Page(report_html(without(full(), path))).open == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("latency_cycles",), 0, "latency_cycles must be an integer of at least 1, not 0"),
        (("latency_cycles",), True, "latency_cycles must be an integer of at least 1, not True"),
        (("plan_mhz",), float("nan"), "plan_mhz must be a finite number of at least 0, not nan"),
        (("layers", 1, "cycles"), -1, "layers[1].cycles must be an integer of at least 0, not -1"),
        (("layers", 0, "low"), 0.5, "layers[0].low must be an integer, not 0.5"),
        (("layers", 0, "kernel"), [3, "3"], "layers[0].kernel must be a list of integers, not [3, '3']"),
        (("layers", 0, "padding"), [1, 1], "layers[0].padding must be a list of lists of integers, not [1, 1]"),
        (("layers",), {}, "layers must be a list of objects, not {}"),
        (("input",), [], "input must be an object, not []"),
        (("name",), 7, "name must be a text, not 7"),
        (("simulation", "passed"), "yes", "simulation.passed must be true or false, not 'yes'"),
        (("synthesis", "versions"), "0.70", "synthesis.versions must be a list of texts, not '0.70'"),
        (("layers",), [], "layers is empty"),
        (("explanations",), ["a."] * 4, "4 explanations belong to 3 decisions"),
    ],
)
def test_wrong_value_is_named(path: tuple[str | int, ...], value: Any, message: str) -> None:
    pattern = rf"^manifest\.json: {re.escape(message)}\n  fix: compile the network again$"
    with pytest.raises(CompileError, match=pattern):
        read_report(put(full(), path, value))


# -------------------------------------------------------------------------------------------------------------- content


def test_verdicts_before_anything_has_run() -> None:
    assert verdicts(minimal()) == {
        "Throughput": ("62,500", "frames/s", ""),
        "Latency": ("43.2", "µs", ""),
        "Accuracy": ("–", "", "open"),
        "Multiplies a frame": ("−31 %", "", ""),
        "Fits": ("50 %", "", "good"),
        "Simulation": ("–", "", "open"),
    }


def test_verdicts_after_simulation_and_synthesis() -> None:
    assert verdicts(full()) == {
        "Throughput": ("70,312", "frames/s", ""),  # 112.5 MHz / 1600
        "Latency": ("38.4", "µs", ""),  # 4321 / 112.5 MHz
        "Accuracy": ("98.50 %", "as built", ""),
        "Multiplies a frame": ("−31 %", "", ""),
        "Fits": ("50 %", "", "good"),
        "Simulation": ("bit-exact", "", "good"),
    }


def test_verdicts_that_are_bad_news() -> None:
    manifest = put(full(), ("synthesis", "luts"), 25000)
    manifest["synthesis"]["met"] = manifest["simulation"]["passed"] = False
    manifest["simulation"]["profiles"][1]["mismatches"] = 3
    found = verdicts(manifest)
    assert found["Does not fit"] == ("103 %", "", "bad")
    assert found["Simulation"] == ("3", "mismatches", "bad")
    report = read_report(manifest)
    assert [(step.name, step.text, step.state) for step in report.steps] == [
        ("compile", "done", "good"),
        ("simulate", "failed", "bad"),
        ("synth", "timing missed", "bad"),
    ]
    assert report.simulation is not None and report.simulation.profiles.bad == (1,)
    assert report.synthesis is not None
    assert report.synthesis.summary == "Routed for 112.5 MHz, which misses the 100 MHz asked for."


def test_simulation_that_stopped_early_says_where() -> None:
    manifest = full()
    failed = {"passed": False, "profiles": [], "latency_cycles": None, "interval_cycles": None}
    manifest["simulation"] |= failed | {"tests": {"no_stalls": "passed", "both": "beat 7: 3, not 4"}}
    found = read_report(manifest).simulation
    assert found is not None and found.failures is not None
    assert found.timing.rows[0] == ("latency", "4,321", "–", "not measured")
    assert found.timing.bad == (0, 1)
    assert found.failures.rows == (("both", "beat 7: 3, not 4"),)
    assert verdicts(manifest)["Simulation"] == ("failed", "", "bad")
    assert "Failed tests both beat 7: 3, not 4" in page(manifest)


def test_where_the_pipeline_waits() -> None:
    """Bars as long as the shares; all multipliers together; none of it where a layer ended too few frames to tell."""
    manifest = full()
    found = read_report(manifest).simulation
    assert found is not None and found.waits is not None
    first, second = found.waits.rows
    assert (first.name, first.shares) == ("norm", ("100 %", "–", "–", "–"))
    assert (second.name, second.shares) == ("pool", ("6.2 %", "62 %", "12 %", "19 %"))
    assert [(part.colour, part.x) for part in second.segments] == [
        ("busy", 0.0),
        ("input", 62.5),
        ("room", 687.5),
        ("idle", 812.5),
    ]
    assert second.segments[1].title == "waits for input: 62 %"
    assert "fed in 100.0 % of the cycles." in found.waits.summary
    manifest["simulation"]["layers"][0] |= {"busy": 3200, "room": 3200}
    assert "fed in 50.0 % of the cycles." in page(manifest)
    manifest["simulation"]["layers"][1] = waits("pool", 0, 0, 0, 0)
    assert "Where the pipeline waits" not in page(manifest)


def test_commands_repeat_the_results() -> None:
    assert read_report(minimal()).commands == (
        "convfold compile shapes.toml --target ecp5-25k -o BUILD",
        "convfold simulate BUILD",
        "convfold synth BUILD",
        "convfold report BUILD",
    )
    assert read_report(full()).commands[1:3] == (
        "convfold simulate BUILD --frames 16 --seed 3",
        "convfold synth BUILD --freq 100 --seed 7 --placer heap --router router1 --speed 6",
    )


@pytest.mark.parametrize(
    ("latency", "value", "unit"),
    [(7, "70", "ns"), (100, "1", "µs"), (99_900, "999", "µs"), (1_234_000, "12.3", "ms"), (10**9, "10", "s")],
)
def test_latency_has_a_unit_that_suits_it(latency: int, value: str, unit: str) -> None:
    assert verdicts(minimal() | {"latency_cycles": latency})["Latency"][:2] == (value, unit)


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        (("latency_cycles",), 98765, "98,765 cycles"),
        (("interval_cycles",), 45678, "a frame every 45,678 cycles"),
        (("frames_per_second",), 33333.3, "33,333 at the planned 100 MHz"),
        (("layers", 0, "queue_words"), 777, "777"),
        (("layers", 0, "ring_rows"), 313, "313"),
        (("layers", 0, "acc_bits"), 37, "6 bits, acc 37"),
        (("layers", 0, "border_classes"), 25, "25 border classes"),
        (("layers", 0, "multiplier"), "ice40", "ice40"),
        (("layers", 1, "cycles"), 1599, "1,599"),
        (("layers", 0, "out_format", "zero_point"), -3, "uint8 × 0.0123 zero -3"),
        (("layers", 0, "padding"), [[1, 2], [0, 1]], "padding 1+2, 0+1"),
        (("network", 1, "macs"), 7654321, "7,654,321"),
        (("decisions", 2, "reason"), "ranges were told", "Ranges were told."),
        (("accuracy", "float"), 0.9175, "91.75 % 367 of 400"),
        (("accuracy", "folding_difference"), 2.5e-12, "2.5e-12"),
        (("estimate", "brams"), 29, "block RAMs 29 4 56"),
        (("synthesis", "dsps"), 21, "multipliers (DSP) 14 21 28 75 %"),
        (("synthesis", "clocks"), {"clk": 80.0}, "80 MHz 100 MHz −20 %"),
        (("synthesis", "seed"), 4711, "Seed 4711"),
        (("synthesis", "seeds", 0, "fmax_mhz"), 99.5, "All seeds 7: 99.5 MHz, 8: failed"),
        (("synthesis", "placer"), "static", "static, router1"),
        (("synthesis", "bitstream"), None, "Bitstream none"),
        (("synthesis", "critical_path", 1, "ns"), 8.875, "8.88 9.38"),
        (("synthesis", "wrapper"), {"luts": 11}, "at most 11 LUTs"),
        (("simulation", "profiles", 0, "cycles"), 123456, "none 16 512 0 123,456 2.2"),
        (("simulation", "interval_cycles"), 1601, "interval 1,600 1,601 different"),
        (("source_sha256",), "f00d" * 16, "f00d" * 16),
        (("versions", "yosys"), "yosys 9.99", "yosys 9.99"),
        (("command",), "convfold compile other.toml", "convfold compile other.toml"),
    ],
)
def test_numbers_are_the_manifests(path: tuple[str | int, ...], value: Any, shown: str) -> None:
    assert shown not in page(full())
    assert shown in page(put(full(), path, value))


def test_bottleneck_is_named_and_drawn() -> None:
    report = read_report(minimal())
    assert report.pace == "'norm' sets the pace: 1,600 cycles a frame."
    assert [layer.bottleneck for layer in report.layers] == [True, False]
    assert [card.bottleneck for card in report.cards] == [False, True, False, False]
    report = read_report(put(minimal(), ("layers", 1, "cycles"), 1600))
    assert report.pace == "'norm' and 'pool' set the pace: 1,600 cycles a frame."
    report = read_report(minimal() | {"interval_cycles": 2000})
    assert report.pace == "'norm' is the busiest: 1,600 of the 2,000 cycles between two frames."


def test_parallelism_of_a_layer() -> None:
    conv, pool = read_report(minimal()).layers
    assert (conv.parallel, conv.taps, conv.multipliers) == (("8", "2 × 4"), "3", ("24", "ecp5"))
    assert (pool.parallel, pool.taps, pool.multipliers) == (("–",), "–", ("–",))


@pytest.mark.parametrize("count", [1, 4, 5, 30])
def test_pipeline_holds_every_layer(count: int) -> None:
    names = ["image", *(f"stage_with_a_long_name_{n}" for n in range(count))]
    layers = [conv_layer(name, f"layer {n}", 100 + n, names[n]) for n, name in enumerate(names[1:])]
    report = read_report(minimal() | {"layers": layers})
    assert len(report.cards) == count + 2
    assert report.cards[-2].name == f"stage_w…{names[-1][-6:]}"
    assert all(card.label.startswith(f"stage_with_a_long_name_{n}: ") for n, card in enumerate(report.cards[1:-1]))
    assert {card.width for card in report.cards[1:-1]} == {214}
    assert Page(report_html(minimal() | {"layers": layers})).open == []


# -------------------------------------------------------------------------------------------------------------- folding


def test_what_became_of_each_layer() -> None:
    assert rows_of(read_report(minimal())) == {
        "edges": ("batch norm folded into the weights", "norm"),
        "norm": ("batch norm folded into the weights", None),
        "relu": ("the clamp of its requantizer, 0 … 255", None),
        "pool": ("as written", "pool"),
    }


def test_rectifier_behind_a_pool_is_the_clamp_of_the_layer_before() -> None:
    manifest = minimal()
    manifest["network"] = [manifest["network"][n] for n in (0, 1, 2, 4, 3)]
    manifest["layers"][1]["name"] = "relu"
    manifest["decisions"].append(decision("hoist", ["pool", "relu"]))
    exchanged = "order of pool and limits exchanged"
    rows = rows_of(read_report(manifest))
    assert rows["pool"] == (exchanged, "relu")
    assert rows["relu"] == (f"{exchanged}; the clamp of its requantizer, 0 … 255", "norm")


def test_rectifier_that_a_rule_removed_is_in_no_layer() -> None:
    manifest = minimal()
    manifest["decisions"].append(decision("proven_identity", ["relu"]))
    assert rows_of(read_report(manifest))["relu"] == ("proven identity", "–")


def test_layers_of_a_merged_layer_are_found_through_all_decisions() -> None:
    manifest = minimal()
    manifest["network"].insert(1, node("before", "conv2d", "layer 0", 100))
    manifest["layers"][0]["source"] = "layer 0 + layer 1 + layer 2"
    manifest["decisions"].append(decision("cascade", ["before", "norm"]))
    rows = rows_of(read_report(manifest))
    assert rows["before"] == ("merged with its neighbours", "norm")
    assert rows["edges"] == ("batch norm folded into the weights; merged with its neighbours", None)


def test_strips_are_on_one_scale() -> None:
    written, built = read_report(minimal()).strips
    assert [(part.title, part.colour) for part in written.segments] == [
        ("edges: 9,216 multiplies", "c0"),
        ("norm: 4,096 multiplies", "c0"),
    ]
    assert written.segments[-1].x + written.segments[-1].width == pytest.approx(1000, abs=2)
    assert built.segments[0].width == pytest.approx(1000 * 9216 / 13312, abs=2)
    assert (written.total, built.total) == ("13,312", "9,216")


# ------------------------------------------------------------------------------------------------------------ decisions


def test_decisions_are_told_by_their_explanations() -> None:
    manifest = full()
    report = read_report(manifest)
    assert [item.title for item in report.taken] == ["Folded 'norm' into 'edges'", "Quantized 'norm'"]
    assert (report.taken[0].reason, report.taken[0].details) == ("W' is s·W.", ("Multiplies a frame: 13,312 → 9,216.",))
    assert [(item.title, item.reason) for item in report.refused] == [("Kept 'norm' and 'pool' apart", "It bends.")]


def test_decisions_without_explanations_speak_for_themselves() -> None:
    first, quantized = read_report(minimal()).taken
    assert first.title == "Batch norm: 'edges' and 'norm'"
    assert first.reason == "The reason for batch_norm."
    assert first.details == ("Multiplies a frame: 13,312 → 9,216 (−31 %).",)
    assert quantized.title == "Quantized 'norm'"


def test_only_an_inexact_fold_has_a_warning() -> None:
    manifest = full()
    assert [item.warning for item in read_report(manifest).taken] == ["", ""]
    manifest["decisions"][0]["error"] = 0.0234
    assert read_report(manifest).taken[0].warning == "not exact: differs by up to 2.34 %"


# ------------------------------------------------------------------------------------------------------ a real manifest


@pytest.fixture(scope="module")
def digits() -> Mapping[str, Any]:
    network = load_spec(DIGITS)
    folded = fold(network, Options())
    plan = make_plan(quantize(folded), get_target("generic"), None)
    extra = {"explanations": [str(entry) for entry in explain(network, folded)]}
    made = manifest_of(Emission(plan, network, DIGITS, "0" * 64, extra))
    result: dict[str, Any] = json.loads(json.dumps(made))
    return result


def test_manifest_of_digits(digits: Mapping[str, Any]) -> None:
    report = read_report(digits)
    assert rows_of(report) == {
        "edges": ("merged with its neighbours", "project"),
        "blend": ("projection folded into the weights; merged with its neighbours", None),
        "project": ("projection folded into the weights; merged with its neighbours", None),
        "relu1": ("the clamp of its requantizer, 0 … 255", None),
        "mix": ("batch norm folded into the weights", "norm"),
        "norm": ("batch norm folded into the weights", None),
        "relu2": ("the clamp of its requantizer, 0 … 255", None),
        "pool": ("as written", "pool"),
        "classify": ("as written", "classify"),
    }
    assert report.folding == "204,800 → 89,088 (−56 %)"
    assert [item.title for item in report.taken][-2:] == [
        "Merged 'edges' and 'blend + project' into one layer",
        "Quantized 'project', 'norm' and 'classify'",
    ]
    assert len(report.refused) == 2
    assert Page(report_html(digits)).open == []


def test_branches_are_told_by_number() -> None:
    """Where an arrow alone would mislead, boxes have numbers and say where their inputs come from."""
    manifest = minimal()
    manifest["layers"][1]["inputs"] = ["norm", "image"]
    page = report_html(manifest)
    for text in ("1 norm", "2 pool", "from 1 + input", "Queues where branches meet", "norm_queue0"):
        assert text in page
    assert "from 1" not in report_html(minimal())


def test_a_clip_that_became_a_table_has_no_clamp() -> None:
    manifest = minimal()
    del manifest["layers"][0]["low"]
    assert rows_of(read_report(manifest))["relu"] == ("as written", None)
