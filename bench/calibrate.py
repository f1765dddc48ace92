"""The fit behind the estimate: parts of small networks are synthesized and packed, and least squares laid through the counts.

    python bench/calibrate.py [--family ecp5] [--check | --route]

Writes ``compiler/estimate_<family>.json``: what each feature of `convfold.compiler.features` costs, and how far off the
formulas are, kind by kind. ``--check`` leaves the fit as it is, prints its error on networks that it was not made from, and
writes the mean beside it; ``--route`` fits the clock to the routes that are published in docs.

All counts are nextpnr's after packing. They are kept in ``build/calibrate`` under the hash of what was counted, so a second
run takes seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parent.parent))

import convfold
from convfold.compiler.emit import Emission, emit
from convfold.compiler.errors import CompileError
from convfold.compiler.estimate import Resources, estimate, fit_path, part_resources
from convfold.compiler.features import BRAM, DSP, features, parts
from convfold.compiler.graph import Graph
from convfold.compiler.plan import Plan, make_plan
from convfold.compiler.quantize import QuantizeOptions, quantize
from convfold.compiler.targets import Target, get_target
from convfold.compiler.tools.errors import ToolError
from convfold.compiler.tools.nextpnr import find_nextpnr, pack
from convfold.compiler.tools.yosys import find_yosys, synthesize_modules
from convfold.hdl.lane_row import LaneRowParams
from convfold.hdl.mac_row import MacRowParams
from tests.compiler.passes.nets import SAME, Net
from tests.models import INT8, find_models
from tests.networks import random_case
from tests.tflite_nets import random_network

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "calibrate"
HARD = (DSP, BRAM)
SMALL = {"ecp5": "ecp5-25k", "ice40": "ice40-up5k"}
"""Where parts are counted: it is all the same, but a small device is soon loaded."""
MOST_IN_A_NETWORK, MOST_OF_A_KIND, MOST_MULTIPLIERS = 2, 20, 24
"""Parts of one kind that are counted, and how large they may be: a hundred multipliers take a minute."""

Row = Mapping[str, float]


# ------------------------------------------------------------------------------------------------------------ the networks


@dataclass(frozen=True, slots=True)
class Case:
    """A network on a device at a rate."""

    name: str
    make: Callable[[], Graph | Path]
    target: str
    fps: float
    bits: int = 8
    weight_bits: int = 8
    dsps: int | None = None

    @property
    def device(self) -> Target:
        """The target, with fewer hard multipliers where fabric ones are wanted; that of iCE40 is too small but for this."""
        target = get_target(self.target)
        brams = 200 if target.family == "ice40" else target.brams
        return replace(target, brams=brams, dsps=target.dsps if self.dsps is None else self.dsps)


def _vgg() -> Net:
    net = Net((16, 16, 3), 1).conv("a", 16, padding=SAME).relu("ra").pool("pa")
    return net.conv("b", 32, padding=SAME).relu("rb").pool("pb").dense("c", 10)


def _edges() -> Net:
    return Net((12, 12, 1), 2).conv("a", 6, (5, 5)).relu("ra").conv("b", 10, (3, 3), (2, 2)).relu("rb").dense("c", 5)


def _separable() -> Net:
    net = Net((20, 10, 1), 3).conv("a", 24, (5, 3), (2, 2)).relu("ra").conv("b", 24, padding=SAME, groups=24).relu("rb")
    return net.conv("c", 24, (1, 1)).relu("rc").global_average("d").dense("e", 6)


def _residual() -> Net:
    net = Net((14, 14, 8), 4, low=-1.0).conv("a", 12, padding=SAME).relu("ra").conv("b", 8, padding=SAME).add("sum", "image")
    return net.relu("rs").conv("c", 16, (1, 1), (2, 2)).relu("rc").average("d", (2, 2), (2, 2)).dense("e", 4)


def _movers() -> Net:
    net = Net((12, 12, 4), 6, low=-1.0).pad("pad").conv("a", 8).relu("ra").space_to_depth("s2d").pointwise("t", "sigmoid")
    net.conv("b", 16, (1, 1)).depth_to_space("d2s").upsample("up").crop("crop").slice("slice", 0, 2)
    return net.multiply("m", "slice").conv("c", 6, (3, 3), (3, 3)).shuffle("mix", 3).concat("cat", "mix").argmax("best")


def _tflite(seed: int) -> Path:
    """An int8 network of another tool, with its own rounding."""
    path = WORK / f"random{seed}.tflite"
    rng = np.random.default_rng(seed)
    path.write_bytes(random_network(rng, int(rng.integers(3, 7)))[0])
    return path


def training(family: str) -> Iterator[Case]:
    """What the fit is made from."""
    target, slow, fast = {"ecp5": ("ecp5-85k", 6_000, 25_000), "ice40": ("ice40-up5k", 100, 500)}[family]
    yield Case("vgg smallest", lambda: _vgg().graph(), target, 1)
    yield Case("vgg", lambda: _vgg().graph(), target, slow)
    yield Case("vgg, 4 bits", lambda: _vgg().graph(), target, slow, 4, 4)
    yield Case("residual, few DSPs", lambda: _residual().graph(), target, slow, dsps=12 if family == "ecp5" else 4)
    yield Case("edges, 5 bits", lambda: _edges().graph(), target, slow, 6, 5, dsps=0)
    yield Case("separable", lambda: _separable().graph(), target, fast, dsps=3 if family == "ecp5" else 1)
    for seed in range(200, 202):
        yield Case(f"tflite {seed}", partial(_tflite, seed), target, 20_000 if seed % 2 else 1)
    yield Case("movers", lambda: _movers().graph(), target, slow)
    yield Case("edges", lambda: _edges().graph(), target, fast)
    yield Case("vgg, fast", lambda: _vgg().graph(), target, fast)


def held_out(family: str) -> Iterator[Case]:
    """Networks that the fit has never seen."""
    target = {"ecp5": "ecp5-85k", "ice40": "ice40-hx8k"}[family]
    rates, rate = ((1, 20_000, 50_000), 50_000) if family == "ecp5" else ((1, 2_000), 5_000)
    for fps in rates:
        yield Case(f"digits, {fps:,} frames/s", lambda: ROOT / "examples" / "digits" / "digits.toml", target, fps)
    for seed in (3, 7, 16):
        case = random_case(seed, most_macs=20_000)
        folder = WORK / case.network.name
        folder.mkdir(parents=True, exist_ok=True)
        path = case.network.write(folder)
        yield Case(f"random {seed}", partial(Path, path), target, rate, case.bits, case.weight_bits)
    models = find_models() if family == "ecp5" else None
    if models is not None:
        yield Case("keyword DS-CNN, 1,000 frames/s", lambda: models / INT8["kws"].model, target, 1_000)
        yield Case("ResNet-8, 1,000 frames/s", lambda: models / INT8["resnet8"].model, target, 1_000)


def compiled_plan(case: Case) -> tuple[Plan, str, str]:
    """The plan, its top module, and the Verilog."""
    source = case.make()
    if isinstance(source, Path):
        widths = QuantizeOptions(case.bits, case.weight_bits)
        options = None if widths == QuantizeOptions() else widths
        made = convfold.compile(source, case.target, fps=case.fps, quantize_options=options)
        plan, network = made.plan, made.network
    else:
        network = source
        plan = make_plan(quantize(source, QuantizeOptions(case.bits, case.weight_bits)), case.device, case.fps)
    files = emit(Emission(plan, network, Path(case.name), "0" * 64))
    return plan, json.loads(files["manifest.json"])["top"], files["accelerator.v"].decode()


# ------------------------------------------------------------------------------------------------------------ the counting


class Counts:
    """Synthesizes and packs, and remembers."""

    def __init__(self, target: Target) -> None:
        self.target, self.yosys, self.nextpnr = target, find_yosys(), find_nextpnr(target)
        self.path = WORK / f"counts-{target.family}.json"
        self.known: dict[str, list[int]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def of(self, verilog: str, module: str) -> Resources:
        """What a module of a file takes alone."""
        text = extract(verilog, module)
        key = hashlib.sha256(f"{self.yosys.version} {self.nextpnr.version}\n{text}".encode()).hexdigest()
        if key not in self.known:
            source = WORK / f"{self.target.family}_part.v"
            source.write_text(text, encoding="utf-8")
            done = synthesize_modules(self.yosys, {module: source}, self.target, WORK)[module]
            self.known[key] = list(asdict(pack(self.nextpnr, done.netlist, self.target, WORK)).values())
            self.path.write_text(json.dumps(self.known, indent=0))
            done.netlist.unlink()
        return Resources(*self.known[key])


MODELS = "\n`ifndef SYNTHESIS\n"
"""Behind it are the models of vendor cells."""


def extract(verilog: str, top: str) -> str:
    """A module and all that it is made of."""
    bodies = dict(re.findall(r"^module (\w+)\b(.*?^endmodule\n)", verilog.partition(MODELS)[0], re.MULTILINE | re.DOTALL))
    wanted, found = [top], []
    while wanted:
        module = wanted.pop(0)
        if module in bodies and module not in found:
            found.append(module)
            wanted += re.findall(r"^  (\w+) .*\($", bodies[module], re.MULTILINE)
    return "".join(f"module {module}{bodies[module]}" for module in found)


@dataclass(frozen=True, slots=True)
class Sample:
    """A part, what it is made of, and what it takes."""

    kind: str
    name: str
    row: Row
    hard: tuple[int, int]
    counted: Resources


def modules(plan: Plan, top: str) -> Iterator[tuple[str, Any]]:
    """The modules of a pipeline that have parameters, and these."""
    yield f"{top}_edge_in", plan.pipeline.edge_in
    for component in plan.pipeline.components:
        for suffix, params in parts(component.params):
            yield f"{top}_{component.name}{suffix}", params


def row_of(params: Any, family: str) -> Row:
    row: defaultdict[str, float] = defaultdict(float)
    for name, amount in features(params, family):
        row[name] += amount
    return {name: amount for name, amount in row.items() if amount and name not in HARD}


def multipliers(params: Any) -> int:
    return params.pes * params.taps if isinstance(params, MacRowParams | LaneRowParams) else getattr(params, "multipliers", 0)


def samples(family: str) -> Iterator[Sample]:
    """Every part of the training networks, but no two alike, and no more than enough of a kind."""
    WORK.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    number = Counter[str]()
    counts = Counts(get_target(SMALL[family]))
    for case in training(family):
        try:
            plan, top, verilog = compiled_plan(case)
        except CompileError as error:
            print(f"{case.name}: {error.message}", file=sys.stderr)
            continue
        fresh, here = {}, Counter[str]()
        for module, params in modules(plan, top):
            kind = type(params).__name__
            if f"module {module}(" not in verilog or multipliers(params) > MOST_MULTIPLIERS:
                continue
            if repr(params) not in seen and here[kind] < MOST_IN_A_NETWORK and number[kind] < MOST_OF_A_KIND:
                seen.add(repr(params))
                here[kind] += 1
                number[kind] += 1
                fresh[module] = params
        print(f"{case.name}: {len(fresh)} parts", file=sys.stderr, flush=True)
        for module, params in fresh.items():
            try:
                found = counts.of(verilog, module)
            except ToolError as error:
                print(f"{module}: {error}", file=sys.stderr)
                continue
            guess = part_resources(params, family)
            hard = (guess.dsps, guess.brams)
            yield Sample(type(params).__name__, f"{case.name} {module}", row_of(params, family), hard, found)


# ----------------------------------------------------------------------------------------------------------------- the fit


def nonnegative_least_squares(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ``x >= 0`` with the least ``|a·x - b|``.

    *Source* C. L. Lawson, R. J. Hanson, "Solving Least Squares Problems" (1974), chapter 23.
    """
    free = np.zeros(a.shape[1], bool)
    x = np.zeros(a.shape[1])
    scale = np.linalg.norm(a, axis=0)
    tolerance = 1e-9 * float(np.abs(a.T @ b).max())
    while True:
        gradient = np.where(free, -np.inf, (a.T @ (b - a @ x)) / np.maximum(scale, 1e-30))
        best = int(np.argmax(gradient))
        if free.all() or gradient[best] <= tolerance:
            return x
        free[best] = True
        while True:
            trial = np.zeros_like(x)
            trial[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            if trial[free].min() > 0:
                x = trial
                break
            falling = free & (trial <= 0)
            step = float(np.min(x[falling] / np.maximum(x[falling] - trial[falling], 1e-30)))
            x = x + step * (trial - x)
            free &= x > 1e-12
            x[~free] = 0


# What a reading of the hardware says that one of each feature costs, look-up tables and flip-flops: an adder takes one table
# a bit, a register one flip-flop a bit, and so on. The fit departs from it as far as the counts say so; without it, features
# that mostly come together would share what they cost in ways that hold for the parts alone that were counted.
EXPECTED = {
    "adapter.counters": (3, 1), "add.address": (0, 1), "add.sum": (1, 1), "argmax": (15, 10),
    "argmax.counters": (2, 2), "argmax.places": (1, 2), "argmax.values": (3, 2), "behavioural": (0, 0),
    "behavioural.area": (1.5, 0), "behavioural.ends": (1, 2), "buffer": (20, 8), "buffer.counters": (10, 4),
    "buffer.data": (0, 2), "concat": (10, 3), "concat.data": (1, 0), "credits.counters": (3, 1),
    "distributed": (4, 0), "distributed.flip-flops": (0.5, 1), "distributed.rows": (1, 0), "ecp5_fabric": (0, 0),
    "ecp5_fabric.area": (1.2, 1.2), "ecp5_fabric.ends": (0, 0), "edge": (10, 5), "edge.counter": (2, 1),
    "fork.branches": (3, 1), "gather": (8, 2), "gather.data": (1, 1), "gather.held": (0, 1), "global": (5, 3),
    "global.counters": (3, 1), "global.data": (0, 1), "lane": (5, 0),
    "lane.choice": (1, 0), "lane.elements": (3, 1), "lookup.address": (0, 1), "multiplier.wait": (0, 1),
    "pages": (1, 0), "pages.write": (1, 0), "pair.carries": (1, 1), "pipe": (5, 1), "pipe.delay": (0, 1), "pool.data": (2, 1),
    "product.operands": (1, 1), "product.result": (0, 1), "queue": (10, 3), "queue.counters": (6, 3),
    "queue.data": (0, 1), "reorder": (20, 8), "reorder.addresses": (3, 1), "reorder.counters": (4, 1),
    "reorder.data": (0, 1), "requantizer": (30, 10), "requantizer.delay": (0, 1), "requantizer.low": (0, 1),
    "requantizer.multiples": (1, 1), "requantizer.offsets": (0, 1), "requantizer.out": (3, 1),
    "requantizer.picked": (1, 0), "requantizer.product": (1, 1), "requantizer.rounded": (1, 1),
    "requantizer.shifted": (0, 1), "requantizer.slots": (3, 2), "requantizer.split": (5, 1),
    "requantizer.steps": (5, 5), "requantizer.sum": (1, 1), "requantizer.tree": (1, 0),
    "requantizer.tree.registers": (0, 1), "row": (5, 0), "row.addresses": (0, 1), "row.choice": (1, 0),
    "row.delays": (0, 1), "row.drain": (0, 1), "row.elements": (3, 0), "row.flags": (0, 1), "row.hops": (0, 1),
    "row.pace": (2, 1), "scale": (10, 3), "scale.out": (3, 1), "scale.product": (1, 0), "scale.registers": (0, 1),
    "scale.sum": (1, 1), "slice": (5, 2), "slice.data": (1, 2), "spread": (8, 2), "spread.data": (1, 1),
    "spread.held": (0, 0), "stage": (10, 5), "stage.address": (2, 1), "stage.delay": (0, 3), "store.data": (0, 2),
    "sum": (1, 1), "table.address": (0, 1), "table.data": (0, 1), "table.rows": (0.3, 0), "table.short": (1, 0),
    "table.words": (0.9, 0), "ties.bits": (1, 0), "ties.even": (10, 3), "ties.float32": (25, 10), "ties.out": (2, 2),
    "tree": (1, 0), "tree.registers": (0, 1), "trim": (15, 5), "trim.counters": (3, 1), "window": (20, 10),
    "window.addresses": (1, 1), "window.columns": (1, 1), "window.counters": (2, 1), "window.delays": (0, 1),
    "window.group": (1, 1), "window.inside": (1, 0), "window.masked": (0.5, 0), "window.pixels": (6, 3),
    "window.place": (1.5, 1), "window.samples": (0, 1), "window.slots": (1.5, 1), "window.steps": (0.7, 0),
    "window.table": (1, 0), "window.turned": (0, 1), "window.turns": (0.7, 0), "window.written": (0, 1),
}  # fmt: skip
PULL = 0.2
"""How strongly: at 0 and at 10 networks that were left out of the fit are estimated twice as badly."""

LEAST = 60
"""Errors of parts below this count are taken in parts of it, not of what there is."""


def fit(rows: Sequence[Row], counted: Sequence[int], expected: Row) -> dict[str, float]:
    """What each feature costs: least squares of the relative errors, and of the relative distance from ``expected``."""
    names = sorted({name for row in rows for name in row})
    weight = 1 / np.maximum(np.array(counted, float), LEAST)
    a = np.array([[row.get(name, 0.0) for name in names] for row in rows]) * weight[:, None]
    pull = np.sqrt(PULL) * np.linalg.norm(a, axis=0)
    target = np.concatenate([counted * weight, pull * [expected[name] for name in names]])
    found = nonnegative_least_squares(np.vstack([a, np.diag(pull)]), target)
    return {**expected, **{name: round(float(value), 3) for name, value in zip(names, found, strict=True)}}


def calibrate(family: str) -> None:
    """Fit, write, and print what is left, kind by kind."""
    found = list(samples(family))
    for sample in found:
        hard = (sample.counted.dsps, sample.counted.brams)
        if sample.hard != hard:
            print(f"{sample.name}: {sample.hard} DSP and BRAM estimated, {hard} counted", file=sys.stderr)
    document: dict[str, Any] = {}
    for n, resource in enumerate(("luts", "ffs")):
        counted = [getattr(sample.counted, resource) for sample in found]
        expected = {name: costs[n] for name, costs in EXPECTED.items()}
        document[resource] = fit([sample.row for sample in found], counted, expected)
        kinds: defaultdict[str, list[float]] = defaultdict(list)
        for sample, count in zip(found, counted, strict=True):
            kinds[sample.kind].append(predicted(document[resource], sample.row) / max(count, 1) - 1)
        document[f"{resource}_parts"] = {kind: summary(errors) for kind, errors in sorted(kinds.items())}
    amend(family, **document)
    print(json.dumps(document, indent=1))


def predicted(costs: Row, row: Row) -> float:
    return sum(costs.get(name, 0.0) * amount for name, amount in row.items())


def summary(errors: Sequence[float]) -> dict[str, float]:
    percent = 100 * np.array(errors)
    return {
        "parts": len(errors),
        "mean_percent": round(float(percent.mean()), 1),
        "mean_absolute_percent": round(float(np.abs(percent).mean()), 1),
        "greatest_percent": round(float(percent[np.argmax(np.abs(percent))]), 1),
    }


def check(family: str) -> None:
    """Print the estimate of whole networks beside their counts, and write down the mean error."""
    counts = Counts(get_target(SMALL[family]))
    errors: defaultdict[str, list[float]] = defaultdict(list)
    print("| network | LUT estimated | counted | error | FF estimated | counted | error | DSP | BRAM |\n" + "|---" * 9 + "|")
    for case in held_out(family):
        plan, top, verilog = compiled_plan(case)
        counted, guess = counts.of(verilog, top), estimate(plan.pipeline, plan.target)
        cells = [case.name]
        for kind in ("luts", "ffs"):
            have, want = getattr(guess, kind), getattr(counted, kind)
            errors[kind].append(100 * (have / want - 1))
            cells += [f"{have:,}", f"{want:,}", f"{errors[kind][-1]:+.1f} %"]
        for have, want in ((guess.dsps, counted.dsps), (guess.brams, counted.brams)):
            cells.append(f"{have}" if have == want else f"{have}, counted {want}")
        print("| " + " | ".join(cells) + " |", flush=True)
    amend(family, error={kind: round(float(np.mean(np.abs(found))), 1) for kind, found in errors.items()})
    for kind, found in errors.items():
        print(f"{kind}: mean error {np.mean(np.abs(found)):.1f} %, greatest {max(found, key=abs):+.1f} %")


# ----------------------------------------------------------------------------------------------------------------- the clock


@dataclass(frozen=True, slots=True)
class Route:
    """What was placed and routed: a network on a device, its look-up tables and its clock."""

    name: str
    device: str
    luts: int
    mhz: float

    @property
    def ns(self) -> float:
        return 1e3 / self.mhz


def published_routes(family: str) -> Iterator[Route]:
    """The routes that ``bench/run.py --route --publish`` has left in docs."""
    for name, result in json.loads((ROOT / "docs" / "bench.json").read_text(encoding="utf-8")).items():
        target, found = result["compile"]["target"], result.get("route")
        if found and get_target(target).family == family:
            yield Route(name, target, found["luts"], found["fmax_mhz"])


def line_through(routes: Sequence[Route]) -> tuple[float, float]:
    """``(a, b)``, neither negative, of the cycle ``a + b·√LUTs`` ns."""
    columns = np.array([[1.0, math.sqrt(route.luts)] for route in routes])
    a, b = nonnegative_least_squares(columns, np.array([route.ns for route in routes]))
    return float(a), float(b)


def route(family: str) -> None:
    """Fit the clock, for each device of iCE40 alone; each route's error is that of the line through the others."""
    routes = list(published_routes(family))
    alike: dict[str, list[Route]] = defaultdict(list)  # all devices of ECP5 are one fabric
    for one in routes:
        alike["ecp5" if family == "ecp5" else one.device].append(one)
    clock, errors, found = {}, [], {}
    for device, here in alike.items():
        clock[device] = [round(number, 5) for number in line_through(here)]
        for left_out in here:
            others = [one for one in here if one is not left_out]
            found[left_out.name] = {"luts": left_out.luts, "mhz": round(left_out.mhz, 1)}
            if len(others) > 1:
                a, b = line_through(others)
                guess = 1e3 / (a + b * math.sqrt(left_out.luts))
                errors.append(100 * abs(guess / left_out.mhz - 1))
                found[left_out.name]["estimate_by_others"] = round(guess, 1)
            print(left_out.name, found[left_out.name], flush=True)
    error = {"mhz": round(float(np.mean(errors)), 1)} if errors else {}
    amend(family, clock=clock, routes=found, error=error)


def amend(family: str, **entries: Any) -> None:
    """Change a fit; errors join those that are there."""
    path = fit_path(family)
    document = json.loads(path.read_text(encoding="utf-8"))
    error = document.get("error", {}) | entries.pop("error", {})
    path.write_text(json.dumps(document | entries | {"error": error}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("ecp5", "ice40"), action="append")
    parser.add_argument("--check", action="store_true", help="compare with networks that the fit was not made from")
    parser.add_argument("--route", action="store_true", help="fit the clock to the routes in docs")
    options = parser.parse_args()
    for family in options.family or ("ecp5", "ice40"):
        (check if options.check else route if options.route else calibrate)(family)


if __name__ == "__main__":
    main()
