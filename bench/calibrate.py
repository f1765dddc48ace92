"""The fit behind the estimate: parts of small networks are synthesized and packed, and least squares laid through the counts.

    python bench/calibrate.py [--family ecp5] [--check]

Writes ``compiler/estimate_<family>.json``: what each feature of `convfold.compiler.features` costs, and how far off the
formulas are, kind by kind. ``--check`` leaves the fit as it is, prints its error on networks that it was not made from, and
writes the mean beside it.

All counts are nextpnr's after packing. They are kept in ``build/calibrate`` under the hash of what was counted, so a second
run takes seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import convfold
from convfold.compiler.emit import Emission, emit
from convfold.compiler.errors import CompileError
from convfold.compiler.estimate import Resources, estimate, fit_path, hard_cells
from convfold.compiler.features import BRAM, DSP, features, parts
from convfold.compiler.graph import Graph
from convfold.compiler.plan import Plan, make_plan
from convfold.compiler.quantize import QuantizeOptions, quantize
from convfold.compiler.targets import Target, get_target
from convfold.compiler.tools.nextpnr import find_nextpnr, pack
from convfold.compiler.tools.yosys import find_yosys, synthesize_modules
from convfold.hdl.lane_row import LaneRowParams
from convfold.hdl.mac_row import MacRowParams
from tests.compiler.passes.nets import SAME, Net
from tests.models import INT8, find_models
from tests.networks import random_case
from tests.tflite_nets import random_network

WORK = ROOT / "build" / "calibrate"
HARD = (DSP, BRAM)
MOST_OF_A_KIND, MOST_MULTIPLIERS = 24, 32
"""Parts of one kind that are counted, and how large they may be: a hundred multipliers take a minute."""

Row = Mapping[str, float]


# ------------------------------------------------------------------------------------------------------------ the networks


@dataclass(frozen=True, slots=True)
class Case:
    """A network on a device at a rate; ``options`` are the widths."""

    name: str
    make: Callable[[], Graph | Path]
    target: str
    fps: float | None
    bits: int = 8
    weight_bits: int = 8


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


def _wide() -> Net:
    return Net((8, 8, 32), 5).conv("a", 48, padding=SAME).relu("ra").conv("b", 20, (1, 1)).relu("rb").conv("c", 9, (2, 2))


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
    nets = {"vgg": _vgg, "edges": _edges, "separable": _separable, "residual": _residual, "wide": _wide, "movers": _movers}
    targets = {"ecp5": ("ecp5-85k", (None, 6_000, 25_000)), "ice40": ("ice40-hx8k", (None, 2_000))}
    target, rates = targets[family]
    for name, make in nets.items():
        for fps in rates:
            yield Case(f"{name}-{fps or 'smallest'}", lambda make=make: make().graph(), target, fps)
    yield Case("vgg-4", lambda: _vgg().graph(), target, rates[1], 4, 4)
    yield Case("edges-6", lambda: _edges().graph(), target, rates[1], 6, 5)
    for seed in range(200, 212):
        yield Case(f"tflite-{seed}", lambda seed=seed: _tflite(seed), target, 20_000 if seed % 2 else None)


def held_out(family: str) -> Iterator[Case]:
    """Networks that the fit has never seen."""
    digits = ROOT / "examples" / "digits"
    targets = {"ecp5": "ecp5-85k", "ice40": "ice40-hx8k"}
    rates = {"ecp5": (None, 20_000, 50_000, 100_000), "ice40": (None, 2_000)}
    for fps in rates[family]:
        yield Case(f"digits {fps or 'smallest'}", lambda: digits / "digits.toml", targets[family], fps)
    for seed in (3, 7, 16, 21, 34):
        case = random_case(seed, most_macs=20_000)
        case.network.write(WORK)
        path = WORK / f"{case.network.name}.json"
        yield Case(f"random {seed}", lambda path=path: path, targets[family], 50_000, case.bits, case.weight_bits)
    models = find_models() if family == "ecp5" else None
    if models is not None:
        for fps in (1_000, 3_000):
            yield Case(f"keyword DS-CNN {fps}", lambda: models / INT8["kws"].model, targets[family], fps)
            yield Case(f"ResNet-8 {fps}", lambda: models / INT8["resnet8"].model, targets[family], fps)


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
        plan = make_plan(quantize(source, QuantizeOptions(case.bits, case.weight_bits)), get_target(case.target), case.fps)
    files = emit(Emission(plan, network, Path(case.name), "0" * 64))
    return plan, json.loads(files["manifest.json"])["top"], files["accelerator.v"].decode()


# ------------------------------------------------------------------------------------------------------------ the counting


class Counts:
    """Synthesizes and packs, and remembers."""

    def __init__(self, target: Target) -> None:
        self.target, self.yosys, self.nextpnr = target, find_yosys(), find_nextpnr(target)
        self.path = WORK / f"counts-{target.family}.json"
        self.known: dict[str, list[int]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def of(self, verilog: str, modules: Sequence[str]) -> list[Resources]:
        """What modules of a file take, each alone."""
        texts = {module: extract(verilog, module) for module in modules}
        tools = f"{self.yosys.version} {self.nextpnr.version}"
        keys = [hashlib.sha256(f"{tools}\n{texts[module]}".encode()).hexdigest() for module in modules]
        missing = {module: key for key, module in zip(keys, modules, strict=True) if key not in self.known}
        sources = {module: WORK / f"{module}.v" for module in missing}
        for module, path in sources.items():
            path.write_text(texts[module], encoding="utf-8")
        if missing:
            for module, synthesis in synthesize_modules(self.yosys, sources, self.target, WORK).items():
                packed = pack(self.nextpnr, synthesis.netlist, self.target, WORK)
                self.known[missing[module]] = list(asdict(packed).values())
                synthesis.netlist.unlink()
                sources[module].unlink()
            self.path.write_text(json.dumps(self.known, indent=0))
        return [Resources(*self.known[key]) for key in keys]


def extract(verilog: str, top: str) -> str:
    """A module and all that it is made of."""
    bodies = dict(re.findall(r"^module (\w+)(\(.*?^endmodule\n)", verilog, re.MULTILINE | re.DOTALL))
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
    number: Counter[str] = Counter()
    counts = Counts(get_target("ecp5-85k" if family == "ecp5" else "ice40-hx8k"))
    for case in training(family):
        try:
            plan, top, verilog = compiled_plan(case)
        except CompileError as error:
            print(f"{case.name}: {error.message}", file=sys.stderr)
            continue
        fresh = {}
        for module, params in modules(plan, top):
            kind = type(params).__name__
            if f"module {module}(" not in verilog or multipliers(params) > MOST_MULTIPLIERS:
                continue
            if repr(params) not in seen and number[kind] < MOST_OF_A_KIND:
                seen.add(repr(params))
                number[kind] += 1
                fresh[module] = params
        print(f"{case.name}: {len(fresh)} parts", file=sys.stderr, flush=True)
        for (module, params), found in zip(fresh.items(), counts.of(verilog, list(fresh)), strict=True):
            row, hard = row_of(params, family), hard_cells(params, family)
            yield Sample(type(params).__name__, f"{case.name} {module}", row, hard, found)


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


def fit(rows: Sequence[Row], counted: Sequence[int]) -> dict[str, float]:
    """What each feature costs: the least squares of the relative errors, small parts counting less."""
    names = sorted({name for row in rows for name in row})
    a = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    b = np.array(counted, float)
    weight = 1 / np.maximum(b, LEAST)
    found = nonnegative_least_squares(a * weight[:, None], b * weight)
    return {name: round(float(value), 4) for name, value in zip(names, found, strict=True) if value > 0}


LEAST = 60
"""Errors of parts below this count are taken in parts of it, not of what there is."""


def calibrate(family: str) -> None:
    """Fit, write, and print what is left, kind by kind."""
    found = list(samples(family))
    for sample in found:
        counted = (sample.counted.dsps, sample.counted.brams)
        if sample.hard != counted:
            print(f"{sample.name}: {sample.hard} DSP and BRAM estimated, {counted} counted", file=sys.stderr)
    document: dict[str, Any] = {}
    for resource in ("luts", "ffs"):
        counted = [getattr(sample.counted, resource) for sample in found]
        document[resource] = fit([sample.row for sample in found], counted)
        kinds: defaultdict[str, list[float]] = defaultdict(list)
        for sample, count in zip(found, counted, strict=True):
            kinds[sample.kind].append(predicted(document[resource], sample.row) / max(count, 1) - 1)
        document[f"{resource}_parts"] = {kind: summary(errors) for kind, errors in sorted(kinds.items())}
    fit_path(family).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
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
    counts = Counts(get_target("ecp5-85k" if family == "ecp5" else "ice40-hx8k"))
    errors: defaultdict[str, list[float]] = defaultdict(list)
    print("| network | LUT estimated | counted | error | FF estimated | counted | error | DSP | BRAM |\n" + "|---" * 9 + "|")
    for case in held_out(family):
        plan, top, verilog = compiled_plan(case)
        (counted,), guess = counts.of(verilog, [top]), estimate(plan.pipeline, plan.target)
        cells = [case.name]
        for kind in ("luts", "ffs"):
            have, want = getattr(guess, kind), getattr(counted, kind)
            errors[kind].append(100 * (have / want - 1))
            cells += [f"{have:,}", f"{want:,}", f"{errors[kind][-1]:+.1f} %"]
        for have, want in ((guess.dsps, counted.dsps), (guess.brams, counted.brams)):
            cells.append(f"{have}" if have == want else f"{have}, counted {want}")
        print("| " + " | ".join(cells) + " |", flush=True)
    document = json.loads(fit_path(family).read_text(encoding="utf-8"))
    document["error"] = {kind: round(float(np.mean(np.abs(found))), 1) for kind, found in errors.items()}
    fit_path(family).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for kind, found in errors.items():
        print(f"{kind}: mean error {np.mean(np.abs(found)):.1f} %, greatest {max(found, key=abs):+.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("ecp5", "ice40"), action="append")
    parser.add_argument("--check", action="store_true", help="compare with networks that the fit was not made from")
    options = parser.parse_args()
    for family in options.family or ("ecp5", "ice40"):
        check(family) if options.check else calibrate(family)


if __name__ == "__main__":
    main()
