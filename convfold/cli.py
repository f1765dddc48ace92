"""The command line: ``convfold compile | explain | simulate | synth | report | compress``.

Exit status 0 is success, 1 a check that failed, 2 a bad input or a missing tool.
"""

from __future__ import annotations

import json
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

import click
from click.core import ParameterSource
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from convfold import __version__
from convfold.compiler.errors import CompileError
from convfold.compiler.targets import TARGETS
from convfold.compiler.tools.errors import ToolError

if TYPE_CHECKING:
    from convfold.compiler.tools.nextpnr import SeedRun

P = ParamSpec("P")

FAILED_CHECK, BAD_INPUT = 1, 2

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

# What the commands read from a manifest; the report checks the rest.
MANIFEST_KEYS = {"name", "top", "target", "input", "outputs", "layers", "estimate", "latency_cycles", "interval_cycles"}


class FiniteRange(click.FloatRange):
    """A number within limits: ``nan`` and ``inf`` are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def _reports_errors(command: Callable[P, int]) -> Callable[P, None]:
    """Turn the two errors a user can meet into a message and an exit status."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _stops_tools():
                status = command(*args, **kwargs)
        except CompileError as error:
            err.print(f"[bold red]error:[/] {escape(error.source)}: {escape(error.message)}")
            if error.hint:
                err.print(f"  fix: {escape(error.hint)}")
            status = BAD_INPUT
        except ToolError as error:
            err.print(f"[bold red]error:[/] {escape(str(error))}")
            status = BAD_INPUT
        sys.exit(status)

    return run


@contextmanager
def _stops_tools() -> Iterator[None]:
    """While it lasts, a signal that would end us at once raises `SystemExit`, so that tools which run are ended too."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody handle signals
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _steps(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show each step while it runs, and how long it took; nothing when ``quiet``."""
    if quiet:
        yield lambda step: None
        return
    running: list[tuple[str, float]] = []

    def finish() -> None:
        if running:
            name, began = running.pop()
            err.print(f"  {escape(name):<44} {time.monotonic() - began:6.1f} s")

    with err.status("") as status:

        def begin(step: str) -> None:
            finish()
            running.append((step, time.monotonic()))
            status.update(escape(step))

        yield begin
        finish()


def _read_build(folder: Path) -> dict[str, Any]:
    """The manifest of a build folder."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = "is no build folder: it has no readable manifest.json"
        raise CompileError(str(folder), message, "run convfold compile") from error
    if not isinstance(manifest, dict) or not manifest.keys() >= MANIFEST_KEYS:
        raise CompileError(str(path), "is not a manifest of convfold's", "run convfold compile again")
    return manifest


def _update_build(folder: Path, **entries: object) -> dict[str, Any]:
    """Add results to the manifest and render the report again."""
    from convfold.compiler.report import report_html

    manifest = _read_build(folder) | entries
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(report_html(manifest), encoding="utf-8")
    return manifest


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="convfold")
def main() -> None:
    """Compile a trained conv net into a streaming accelerator for small FPGAs."""


# --------------------------------------------------------------------------------------------------------------- compile

net_argument = click.argument("net", type=click.Path(path_type=Path))
build_argument = click.argument("build", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print what a script needs, as JSON.")
fold_option = click.option(
    "--fold",
    "fold_mode",
    type=click.Choice(["exact", "interior", "off"]),
    default="exact",
    show_default=True,
    help="exact: border classes where padding stands between; interior: one kernel, the border differs; off.",
)
force_option = click.option("--force-fold", is_flag=True, help="Merge layers even where that takes more multiplies.")
calibration_option = click.option(
    "--calibration", type=click.Path(path_type=Path), help="Images (.npz with x) that set the ranges of all tensors."
)

range_option = click.option(
    "--input-range",
    type=(float, float),
    metavar="LOW HIGH",
    help="Limits of the real inputs, for float models of other tools [default: -1 1].",
)
error_option = click.option("--error", type=click.FloatRange(0), help="Budget: error of a layer's responses, of their spread.")
drop_option = click.option("--accuracy-drop", type=click.FloatRange(0), help="Budget: points of accuracy on --test.")


@main.command("compile")
@net_argument
@click.option("--target", default="generic", show_default=True, help=f"One of {', '.join(TARGETS)}.")
@click.option("--fps", type=FiniteRange(0, min_open=True), help="Frames a second, with the least area.")
@click.option(
    "--latency",
    type=FiniteRange(0, min_open=True),
    metavar="US",
    help="Microseconds from first beat in to last beat out, with the least area. Like --fps at the target's planning clock; "
    "without either the fastest that fits the device, or on generic the smallest.",
)
@click.option(
    "--fill",
    type=FiniteRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    help="Share of the device's LUTs, flip-flops and block RAMs that may be used.",
)
@calibration_option
@click.option("--test", type=click.Path(path_type=Path), help="Labelled images (.npz with x, y) for accuracy and simulation.")
@fold_option
@force_option
@click.option("--bits", type=click.IntRange(2, 16), default=8, show_default=True, help="Bits of activations.")
@click.option("--weight-bits", type=click.IntRange(2, 16), default=8, show_default=True, help="Bits of weights.")
@click.option(
    "--calibrate",
    "method",
    type=click.Choice(["min-max", "percentile", "mean-square"]),
    default="min-max",
    show_default=True,
    help="How calibration images set a range.",
)
@click.option("--percentile", type=FiniteRange(50, 100, min_open=True), default=99.99, show_default=True)
@click.option("--approximate", is_flag=True, help="Fit one layer to each pair with a rectifier between, within a budget.")
@error_option
@drop_option
@range_option
@click.option("--head", type=click.Choice(["argmax"]), help="argmax: send the number of the greatest output instead of all.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Build folder [default: build/NAME].")
@json_option
@_reports_errors
def compile_(
    net: Path,
    target: str,
    fps: float | None,
    latency: float | None,
    fill: float,
    calibration: Path | None,
    test: Path | None,
    fold_mode: Literal["exact", "interior", "off"],
    force_fold: bool,
    bits: int,
    weight_bits: int,
    method: Literal["min-max", "percentile", "mean-square"],
    percentile: float,
    approximate: bool,
    error: float | None,
    accuracy_drop: float | None,
    input_range: tuple[float, float] | None,
    head: str | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Compile the network NET (.toml, .json, .tflite, .onnx, .keras, .h5, .pt2) into a build folder."""
    from convfold.api import compile as compile_network
    from convfold.compiler.importers import is_quantized
    from convfold.compiler.passes import Options
    from convfold.compiler.quantize import QuantizeOptions
    from convfold.compiler.tradeoff import front
    from convfold.compression import read_budget

    if not approximate and (error is not None or accuracy_drop is not None):
        raise CompileError("options", "a budget is given, but nothing that may lose anything", "add --approximate")
    with _steps(as_json) as progress:
        compiled = compile_network(
            net,
            target,
            fps=fps,
            latency_us=latency,
            fill=fill,
            calibration=calibration,
            test=test,
            fold_options=Options(fold=fold_mode, force=force_fold),
            quantize_options=QuantizeOptions(bits, weight_bits, method, percentile),
            approximate=read_budget(error, accuracy_drop) if approximate else None,
            input_range=input_range,
            head=head,
            progress=progress,
        )
        progress("front of speed against area")
        compiled = replace(compiled, front=front(compiled.plan))
        progress("emit")
        compiled = replace(compiled, command=_command())
        folder = compiled.write(output or Path("build") / compiled.network.name)
    manifest = _read_build(folder)
    if calibration is None and not is_quantized(compiled.network):
        err.print(
            "[bold yellow]warning:[/] no --calibration: ranges are bounds proven from the input range, wider than real images "
            "need, and that costs accuracy"
        )
    if as_json:
        click.echo(json.dumps({"build": str(folder)} | manifest))
        return 0
    _print_plan(folder, manifest)
    return 0


def _command() -> str:
    """This command line without folders, so that the same input gives the same build wherever it is compiled."""
    words = ["convfold", "compile"]
    context = click.get_current_context()
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source is not ParameterSource.COMMANDLINE or option.name in ("output", "as_json"):
            continue
        value = context.params[option.name or ""]
        if isinstance(option, click.Option):
            words.append(option.opts[0])
        for one in value if isinstance(value, tuple) else () if value is True else (value,):
            words.append(one.name if isinstance(one, Path) else f"{one:.15g}" if isinstance(one, float) else str(one))
    return shlex.join(words)


_LONGEST_NAME = 24
_FITTED = (("luts", "LUT"), ("ffs", "FF"), ("mhz", "MHz"))


def _short(name: str) -> str:
    """A name of another tool may be longer than a line: its ends tell most."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME // 2 - 1]}…{name[-_LONGEST_NAME // 2 :]}"


def _print_plan(folder: Path, manifest: Mapping[str, Any]) -> None:
    from convfold.compiler.tradeoff import plan_texts

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("layer", "op", "output"):
        table.add_column(name, no_wrap=True)
    for name in ("multiplies", "multipliers", "cycles", "share", "LUT", "FF", "DSP", "BRAM", "MHz"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in manifest["layers"]:
        kernel = "×".join(map(str, layer.get("kernel", ())))
        table.add_row(
            escape(_short(layer["name"])),
            layer["op"] if layer["op"] == "dense" else f"{layer['op']} {kernel}".strip(),
            "×".join(map(str, layer["out_shape"])),
            f"{layer['macs']:,}",
            str(layer["multipliers"] or ""),
            f"{layer['cycles']:,}",
            f"{layer['share']:.0%}",
            *(f"{layer['estimate'][kind]:,}" for kind in ("luts", "ffs", "dsps", "brams")),
            f"{layer['estimate']['mhz']:.0f}" if layer["estimate"]["mhz"] else "",
        )
    whole = Measurement.get(out, out.options.update(max_width=1_000), table).maximum
    Console(highlight=False, width=max(out.width, whole)).print(table)  # a terminal may wrap it, but no number is cut
    before = sum(layer["macs"] for layer in manifest["network"])
    after = sum(layer["macs"] for layer in manifest["layers"])
    need, error = manifest["estimate"], manifest["estimate_error"]
    out.print()
    if manifest["decisions"]:  # a model that came in integers is not folded
        out.print(f"folding    {before:,} multiplies a frame became {after:,}")
    if manifest["accuracy"]:
        found = manifest["accuracy"]
        shares = f"integer {found['integer']:.2%} on {found['samples']} test images"
        if "float" in found:
            shares = f"float {found['float']:.2%}, {shares}; folded and unfolded differ by {found['folding_difference']:.1e}"
        out.print(f"accuracy   {shares}")
    out.print(
        f"speed      {manifest['interval_cycles']:,} cycles a frame, {manifest['latency_cycles']:,} from first beat to last: "
        f"{manifest['frames_per_second']:,.0f} frames/s at {manifest['plan_mhz']:g} MHz"
    )
    out.print(
        f"estimate   {need['luts']:,} LUT, {need['ffs']:,} FF, {need['dsps']} DSP, {need['brams']} BRAM on {manifest['target']}"
    )
    if manifest["target"] != "generic":
        if manifest["estimate_mhz"]:
            rate = manifest["estimate_mhz"] * 1e6 / manifest["interval_cycles"]
            out.print(f"           some {manifest['estimate_mhz']:.0f} MHz once routed, which would be {rate:,.0f} frames/s")
        errors = "by formulas that are not fitted yet"
        if error:
            errors = "mean errors: " + ", ".join(f"{name} {error[key]:.0f} %" for key, name in _FITTED if key in error)
        out.print(f"           {errors}")
    for label, text in plan_texts(manifest):
        out.print(f"{label:<10} {escape(text)}")
    out.print(f"build      {escape(str(folder))}")


# --------------------------------------------------------------------------------------------------------------- explain


@main.command()
@net_argument
@click.option("--calibration", type=click.Path(path_type=Path), help="Images (.npz with x) on which each claim is checked.")
@fold_option
@force_option
@range_option
@json_option
@_reports_errors
def explain(
    net: Path,
    calibration: Path | None,
    fold_mode: Literal["exact", "interior", "off"],
    force_fold: bool,
    input_range: tuple[float, float] | None,
    as_json: bool,
) -> int:
    """Say what is folded in NET, what is not and why, each claim checked numerically."""
    from dataclasses import asdict

    from convfold.compiler.explain import compare, summarize
    from convfold.compiler.explain import explain as explain_graphs
    from convfold.compiler.importers import import_model, is_quantized
    from convfold.compiler.passes import Options, fold
    from convfold.data import load_samples

    before = import_model(net, input_range)
    if is_quantized(before):
        message = "comes in integers of its own; the algebra works on real numbers, so nothing is folded"
        raise CompileError(net.name, message, "explain the float model that it was made from")
    after = fold(before, Options(fold=fold_mode, force=force_fold))
    images = None if calibration is None else load_samples(calibration, before).images
    entries = explain_graphs(before, after, images)
    summary, whole = summarize(before, after), compare(before, after, images)
    if as_json:
        click.echo(json.dumps({"summary": summary, "check": whole, "decisions": [asdict(entry) for entry in entries]}))
        return 0
    out.print(f"[bold]{escape(summary)}[/]\n{escape(whole)}\n")
    for entry in entries:
        out.print(escape(str(entry)) + "\n")
    return 0


# -------------------------------------------------------------------------------------------------------------- compress

@main.command()
@net_argument
@error_option
@drop_option
@click.option("--macs", type=click.IntRange(0), help="Budget: multiplies a frame, of the whole network.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Images (.npz with x) whose responses set the splits.")
@click.option("--test", type=click.Path(path_type=Path), help="Labelled images (.npz with x, y) that measure accuracy.")
@fold_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder [default: build/NAME_compressed].")
@json_option
@_reports_errors
def compress(
    net: Path,
    error: float | None,
    accuracy_drop: float | None,
    macs: int | None,
    calibration: Path | None,
    test: Path | None,
    fold_mode: Literal["exact", "interior", "off"],
    output: Path | None,
    as_json: bool,
) -> int:
    """Split layers of NET into low-rank pairs within one budget, and write the smaller network as a new specification."""
    from convfold.compiler.passes import Options
    from convfold.compression import compress as compress_network

    with _steps(as_json) as progress:
        compression = compress_network(
            net,
            error=error,
            accuracy_drop=accuracy_drop,
            macs=macs,
            calibration=calibration,
            test=test,
            fold_options=Options(fold=fold_mode),
            progress=progress,
        )
    folder = output or Path("build") / compression.found.graph.name
    spec = compression.write(folder)
    found = compression.record
    if as_json:
        click.echo(json.dumps({"spec": str(spec)} | found))
        return 0
    _print_compressed(found)
    out.print(f"network    {escape(str(spec))}\nreport     {escape(str(folder / 'report.html'))}")
    return 0


def _print_compressed(found: Mapping[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("multiplies", "accuracy", "output error"):
        table.add_column(name, justify="right")
    table.add_column("split")
    for point in found["curve"]:
        splits = ", ".join(f"{name} {split['scheme']} {split['rank']}" for name, split in point["splits"].items())
        cells = (
            f"{point['macs']:,}",
            "" if point["accuracy"] is None else f"{point['accuracy']:.2%}",
            "" if point["output_error"] is None else f"{point['output_error']:.3f}",
            escape(splits or "nothing") + (" ←" if point == found["after"] else ""),
        )
        table.add_row(*cells, style="bold" if point == found["after"] else None)
    out.print(table)
    out.print()
    for decision in found["decisions"]:
        verdict = "split" if decision["taken"] else "whole"
        out.print(escape(f"{verdict}      {decision['layers'][0]}: {decision['reason']}"))
    before, after = found["before"], found["after"]
    out.print(f"\nmultiplies {before['macs']:,} a frame became {after['macs']:,}")
    if after["accuracy"] is not None:
        out.print(f"accuracy   {before['accuracy']:.2%} became {after['accuracy']:.2%}, in floating point")


# -------------------------------------------------------------------------------------------------------------- simulate


@main.command()
@build_argument
@click.option("--frames", type=click.IntRange(1), help="Frames for each stall profile [default: all in vectors.npz].")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the stalls.")
@click.option("--waves", is_flag=True, help="Keep a waveform.")
@click.option("--simulator", type=click.Choice(["verilator", "icarus"]), help="[default: verilator, else icarus]")
@click.option("--fast", is_flag=True, help="Compiled C++ moves the beats instead of cocotb: the same tests, for large nets.")
@json_option
@_reports_errors
def simulate(
    build: Path, frames: int | None, seed: int, waves: bool, simulator: str | None, fast: bool, as_json: bool
) -> int:
    """Run the Verilog of BUILD against the golden model: real images, stall profiles, every beat compared."""
    from convfold.sim.cosimulate import cosimulate

    if fast and (waves or simulator == "icarus"):
        raise CompileError("options", "--fast is for Verilator, and keeps no waves", "leave --fast out")
    manifest = _read_build(build)
    with _steps(as_json) as progress:
        progress("build and simulate")
        found = cosimulate(build, frames=frames, seed=seed, waves=waves, simulator=simulator, fast=fast)
    _update_build(build, simulation=found.record)
    if as_json:
        click.echo(json.dumps(found.record))
        return 0 if found.passed else FAILED_CHECK
    for profile in found.record["profiles"]:
        out.print(
            f"{profile['name']:<14} {profile['frames']:>4} frames  {profile['beats']:>6} beats  "
            f"{profile['mismatches']} mismatches  {profile['cycles']:,} cycles"
        )
    for name in ("latency", "interval"):
        out.print(f"{name:<14} {_cycles(found.record, name)} measured, {manifest[f'{name}_cycles']:,} promised")
    if found.run.waves is not None:
        out.print(f"waves          {escape(str(found.run.waves))}")
    verdict = "[bold green]passed[/]" if found.passed else "[bold red]failed[/]"
    out.print(f"{verdict}: {escape(found.summary())} ({found.record['simulator']})")
    return 0 if found.passed else FAILED_CHECK


def _cycles(record: Mapping[str, Any], name: str) -> str:
    """A measured number; there is none where the test that measures did not come to its end."""
    cycles = record[f"{name}_cycles"]
    return "not" if cycles is None else f"{cycles:,} cycles"


# ----------------------------------------------------------------------------------------------------------------- synth


@main.command()
@build_argument
@click.option("--freq", type=FiniteRange(0, min_open=True), help="Clock to aim for, MHz [default: planning clock].")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the placer: the first one.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Seeds to try; the fastest result is kept.")
@click.option("--jobs", type=click.IntRange(1), help="Seeds at a time; a full chip takes 2 GB each [default: processors].")
@click.option("--timeout", type=FiniteRange(0, min_open=True), help="Seconds after which a seed is given up [default: none].")
@click.option("--speed", type=click.Choice(["6", "7", "8"]), help="ECP5 speed grade [default: 6].")
@click.option("--placer", type=click.Choice(["heap", "static", "sa"]), default="heap", show_default=True)
@click.option("--router", type=click.Choice(["router1", "router2"]), default="router1", show_default=True)
@json_option
@_reports_errors
def synth(
    build: Path,
    freq: float | None,
    seed: int,
    seeds: int,
    jobs: int | None,
    timeout: float | None,
    speed: str | None,
    placer: Literal["heap", "static", "sa"],
    router: Literal["router1", "router2"],
    as_json: bool,
) -> int:
    """Synthesize, place and route BUILD: utilisation, clock, bitstream."""
    from convfold.compiler.synth import synthesize_build
    from convfold.compiler.tools.nextpnr import RouteOptions

    manifest = _read_build(build)
    options = RouteOptions(freq_mhz=freq, speed=speed, placer=placer, router=router, timeout_s=timeout)
    numbers = range(seed, seed + seeds)
    with _steps(as_json) as progress:
        found = synthesize_build(
            build, manifest, options, seeds=numbers, jobs=jobs, progress=progress, told=_seed_teller(as_json or seeds == 1)
        )
    manifest = _update_build(build, synthesis=found)
    if as_json:
        click.echo(json.dumps(found))
        return 0 if found["met"] else FAILED_CHECK
    for name, label in (("luts", "LUT"), ("ffs", "FF"), ("dsps", "DSP"), ("brams", "BRAM")):
        have = found["available"][name]
        share = f"{found[name] / have:5.1%}" if have else "  -  "
        out.print(f"{label:<10} {found[name]:>7,} of {have:>7,}  {share}   estimated {manifest['estimate'][name]:,}")
    rate = found["fmax_mhz"] * 1e6 / manifest["interval_cycles"]
    latency = manifest["latency_cycles"] / found["fmax_mhz"]
    out.print(f"clock      {found['fmax_mhz']:.1f} MHz: {rate:,.0f} frames/s, {latency:,.1f} µs latency")
    if seeds > 1:
        clocks = sorted((run["fmax_mhz"] for run in found["seeds"] if run["fmax_mhz"] is not None), reverse=True)
        failed = f"; {seeds - len(clocks)} failed" if len(clocks) < seeds else ""
        out.print(f"seeds      {', '.join(f'{mhz:.1f}' for mhz in clocks)} MHz{failed}; kept seed {found['seed']}")
    out.print(f"bitstream  {escape(str(build / found['bitstream']))}")
    if not found["met"]:
        err.print(
            f"[bold red]missed:[/] {found['freq_mhz']:g} MHz were asked for, {found['fmax_mhz']:.1f} reached, "
            f"{found['freq_mhz'] - found['fmax_mhz']:.1f} MHz short"
        )
    return 0 if found["met"] else FAILED_CHECK


def _seed_teller(quiet: bool) -> Callable[[SeedRun], None]:
    """Prints what came of each seed as it ends."""

    def tell(run: SeedRun) -> None:
        found = run.result
        what = f"failed: {found.message}" if isinstance(found, ToolError) else f"{found.slowest_mhz:.1f} MHz"
        err.print(f"  seed {run.seed:<4} {escape(what)}, {run.seconds:.0f} s")

    return (lambda run: None) if quiet else tell


# ---------------------------------------------------------------------------------------------------------------- report


@main.command()
@build_argument
@_reports_errors
def report(build: Path) -> int:
    """Render BUILD/report.html again, and sum BUILD up."""
    manifest = _update_build(build)
    out.print(f"[bold]{escape(manifest['name'])}[/] on {manifest['target']}")
    for line in _summary(build, manifest):
        out.print(line)
    out.print(f"report     {escape(str((build / 'report.html').resolve()))}")
    return 0


def _summary(build: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is known of a build so far, a line a command that found it out."""
    if found := manifest.get("accuracy"):
        of_float = f"float {found['float']:.2%}, " if "float" in found else ""
        shares = f"{of_float}{manifest['input']['bits']}-bit integers {found['integer']:.2%}"
        yield f"accuracy   {shares} on {found['samples']} test images"
    if found := manifest.get("simulation"):
        beats = sum(profile["beats"] for profile in found["profiles"])
        wrong = sum(profile["mismatches"] for profile in found["profiles"])
        verdict = "passed" if found["passed"] else "[bold red]failed[/]"
        yield (
            f"simulation {verdict}: {found['frames']} frames under {len(found['profiles'])} stall profiles, "
            f"{wrong} of {beats:,} beats differ; latency {_cycles(found, 'latency')}, "
            f"interval {_cycles(found, 'interval')} measured"
        )
    if found := manifest.get("synthesis"):
        used = ", ".join(
            f"{found[kind]:,} {name}" + (f" ({found[kind] / have:.0%})" if (have := found["available"][kind]) else "")
            for kind, name in (("luts", "LUT"), ("ffs", "FF"), ("dsps", "DSP"), ("brams", "BRAM"))
        )
        rate = found["fmax_mhz"] * 1e6 / manifest["interval_cycles"]
        yield f"chip       {used}"
        yield f"clock      {found['fmax_mhz']:.1f} MHz: {rate:,.0f} frames/s"
        yield f"bitstream  {escape(str(build / found['bitstream']))}"
