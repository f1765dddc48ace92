"""The build folder: readable Amaranth, Verilog, constraints, bench and the manifest."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import re
import runpy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from convfold.hdl.axi_stream import AxiStreamParams
from convfold.hdl.buffer import BufferParams
from convfold.hdl.concat import ConcatParams
from convfold.hdl.conv import ConvParams
from convfold.hdl.depthwise import DepthwiseParams
from convfold.hdl.fork import ForkParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.streams import beats

from .engines import WIRES, Stage
from .estimate import load_fit, routed_mhz, stage_resources
from .graph import (
    Certificate,
    Decision,
    Graph,
    MaxPool,
    Node,
    QAdd,
    QAveragePool,
    QConv2D,
    QMultiply,
    QTable,
    Shape,
    Softmax,
    node_macs,
)
from .numbers import Format, IntArray
from .plan import Plan
from .schedule import SOURCE, Component
from .targets import get_target
from .tools.flow import WRAPPER
from .tools.yosys import find_yosys, rtlil_to_verilog
from .tradeoff import plan_record

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Emission", "emit", "npz_bytes", "render", "verilog"]

VERSION = metadata.version("convfold")
_LINE = 120
"""The longest line of an emitted file."""
_NAME_COLUMN = 20
"""Longer names stand on a line of their own."""
_WIRES = ("tdata", "tvalid", "tready", "tlast")
_PORT = re.compile(rf"clk|rst|error|(?:s|m\d*)_axis_(?:{'|'.join(_WIRES)})", re.IGNORECASE)
"""The names of an accelerator's ports."""
_CELLS = re.compile(rf"DP16KD|MULT18X18D|carry_(?:row|accumulate)|{WRAPPER}|(?:SB|TRELLIS|ICESTORM)(?:_\w*)?")


@dataclass(frozen=True, slots=True)
class Emission:
    """All that a build folder is made from.

    ``network`` is the graph as the user wrote it, ``plan.graph`` the integers; ``extra`` joins the manifest.
    """

    plan: Plan
    network: Graph
    source: Path
    source_sha256: str
    extra: Mapping[str, Any] = field(default_factory=dict)


def render(template: str, **fields: object) -> str:
    """A template of `convfold.templates`, filled in; a field that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("convfold.templates", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=select_autoescape(("html.j2",)),
    )
    return environment.get_template(template).render(**fields)


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as an ``.npz``; the same arrays always give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})
    return buffer.getvalue()


def emit(emission: Emission) -> dict[str, bytes]:
    """The files of the build folder by name; the front door adds vectors and the report."""
    files = {
        "accelerator.py": accelerator_source(emission).encode(),
        "weights.npz": npz_bytes(_narrow(constants(emission.plan))),
        "test_accelerator.py": bench_source(emission).encode(),
    }
    files |= {name: text.encode() for name, text in _constraints(emission).items()}
    files["accelerator.v"] = _verilog_of(files, emission.plan.target.name).encode()
    files["manifest.json"] = (json.dumps(manifest(emission), indent=1, ensure_ascii=False) + "\n").encode()
    return files


# ----------------------------------------------------------------------------------------------------------- accelerator


def constants(plan: Plan) -> dict[str, IntArray]:
    """The integers that the engines are created with, ``LAYER.part``."""
    return {f"{stage.node.name}.{part}": array for stage in plan.stages for part, array in stage.arrays.items()}


def accelerator_source(emission: Emission) -> str:
    """``accelerator.py``: the Amaranth top with every parameter spelt out."""
    plan = emission.plan
    pipeline = plan.pipeline
    stages = {stage.node.name: stage for stage in plan.stages}
    ports = output_ports(plan)
    names, instances = _instances(plan)
    source, sinks = names.fresh("edge_in"), [names.fresh(port.replace("m", "edge_out", 1)[:-5]) for port in ports]
    instances[SOURCE] = source
    components = [
        {
            "comment": _comment(plan.graph, component, stages.get(component.name)),
            "code": _create(component, instances[component.name], stages.get(component.name)),
            "connections": [
                _connection(_access(instances, port), f"{_attribute(instances[component.name])}.{into}")
                for port, into in zip(component.inputs, _inputs(component), strict=True)
            ],
        }
        for component in pipeline.components
    ]
    used = {AxiStreamParams}.union(*(_classes(component.params) for component in pipeline.components))
    outputs = [
        {
            "port": port,
            "bits": edge.tdata_bits,
            "sink": _attribute(sink),
            "create": _submodule(sink, edge, ".create_out()"),
            "connect": _connection(_access(instances, stream), f"{_attribute(sink)}.i"),
        }
        for port, sink, (stream, edge) in zip(ports, sinks, pipeline.outputs, strict=True)
    ]
    return render(
        "accelerator.py.j2",
        name=plan.graph.name,
        top=_top(plan.graph),
        target=plan.target.name,
        version=VERSION,
        source=_plain(emission.source.name),
        sha256=emission.source_sha256,
        weighted=any(stage.arrays for stage in plan.stages),
        diagram=[*_diagram(plan)],
        latency=plan.latency_cycles,
        interval=plan.interval_cycles,
        imports=sorted(f"from {cls.__module__} import {cls.__name__}" for cls in used),
        in_bits=pipeline.edge_in.tdata_bits,
        entry={"create": _submodule(source, pipeline.edge_in, ".create_in()"), "source": _attribute(source)},
        components=components,
        outputs=outputs,
    )


def output_ports(plan: Plan) -> list[str]:
    """The names of the output streams: ``m_axis``, or ``m0_axis``, ``m1_axis``, … of several."""
    count = len(plan.pipeline.outputs)
    return ["m_axis"] if count == 1 else [f"m{n}_axis" for n in range(count)]


def _instances(plan: Plan) -> tuple[_Names, dict[str, str]]:
    """The submodule of each component: its own name, unless a port of the top is called so; and the names now taken."""
    every = [component.name for component in plan.pipeline.components]
    names = _Names(*every)
    return names, {name: names.fresh(name) if _PORT.fullmatch(name) else name for name in every}


def _access(instances: Mapping[str, str], port: str) -> str:
    """The stream that a component, or a fork's branch, offers."""
    name, _, branch = port.partition(".")
    return f"{_attribute(instances[name])}.o{branch}"


def _connection(before: str, after: str) -> str:
    """The statement that connects two streams."""
    line = f"wiring.connect(m, {before}, {after})"
    if len(line) <= _LINE - 8:
        return line
    return f"wiring.connect(\n            m,\n            {before},\n            {after},\n        )"


def _inputs(component: Component) -> list[str]:
    """The names of a component's input streams."""
    return ["i"] if len(component.inputs) == 1 else [f"i{n}" for n in range(len(component.inputs))]


def _create(component: Component, instance: str, stage: Stage | None) -> str:
    """The statement that makes a component."""
    arrays = [f'weights["{component.name}.{part}"]' for part in stage.arrays] if stage else []
    if isinstance(component.params, DepthwiseParams) and component.params.uniform:
        arrays.insert(0, "None")  # a pooling has no weights
    code = _submodule(instance, component.params, f".create({', '.join(arrays)})")
    if arrays and max(map(len, code.splitlines())) > _LINE:
        lines = "".join(f"\n            {array}," for array in arrays)
        code = _submodule(instance, component.params, f".create({lines}\n        )")
    return code


def _comment(graph: Graph, component: Component, stage: Stage | None) -> str:
    """What a component is for, in one line."""
    match component.params:
        case LaneAdapterParams(channels=channels, in_lanes=before, out_lanes=after):
            return f"{channels} channels: {before} a beat to {after} a beat"
        case ForkParams(outputs=count):
            return f"{count} branches"
        case BufferParams(depth_words=depth):
            return f"Waits for the other branch: {depth} beats at most"
    if stage is None:
        raise TypeError(f"component must be a layer's or of the wiring, not {component!r}")
    return stage_text(graph, stage)


class _Names:
    """Names for what the network has no name for, clear of the names it has."""

    def __init__(self, *taken: str) -> None:
        self.taken = {name.lower() for name in taken}

    def fresh(self, name: str) -> str:
        while name.lower() in self.taken or _PORT.fullmatch(name):
            name += "_"
        self.taken.add(name.lower())
        return name


def _classes(params: DataclassInstance) -> set[type]:
    nested = [getattr(params, entry.name) for entry in dataclasses.fields(params)]
    return {type(params)}.union(*(_classes(value) for value in nested if _is_params(value)))


def _is_params(value: object) -> TypeGuard[DataclassInstance]:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _top(graph: Graph) -> str:
    """The top module: called after the network, unless a port, a cell of a chip or the frame for synthesis is called so."""
    return f"{graph.name}_top" if _PORT.fullmatch(graph.name) or _CELLS.fullmatch(graph.name) else graph.name


def _plain(name: str) -> str:
    """The name of a file as it may stand in a docstring: nobody has checked it."""
    text = re.sub(r"[^A-Za-z0-9_.+ -]", "?", name)
    return text if len(text) <= 40 else f"{text[:24]}...{text[-13:]}"


def _attribute(name: str) -> str:
    """A submodule. A name that Python would mangle, or Amaranth's own, is given as a string."""
    return f'm.submodules["{name}"]' if name.startswith("_") else f"m.submodules.{name}"


def _submodule(name: str, params: DataclassInstance, create: str) -> str:
    """The statement that makes a submodule."""
    begin, end = f"{_attribute(name)} = ", create.partition("\n")[0]
    return f"{begin}{call_text(params, 8, _LINE - 8 - len(begin) - len(end))}{create}"


def call_text(params: DataclassInstance, indent: int, room: int) -> str:
    """A parameters object as the call that makes it, one argument a line where ``room`` is too little for one line.

    Arguments that are what they would be anyway are left out.
    """
    name = type(params).__name__
    arguments = []
    for entry in dataclasses.fields(params):
        value = getattr(params, entry.name)
        if value == entry.default:
            continue
        room_here = _LINE - indent - 4 - len(f"{entry.name}=,")
        text = call_text(value, indent + 4, room_here) if _is_params(value) else repr(value).replace("'", '"')
        arguments.append(f"{entry.name}={text}")
    line = f"{name}({', '.join(arguments)})"
    if "\n" not in line and len(line) <= min(room, 90):
        return line
    pad = " " * (indent + 4)
    return "\n".join([f"{name}(", *(f"{pad}{argument}," for argument in arguments), " " * indent + ")"])


def stage_text(graph: Graph, stage: Stage) -> str:
    """A layer in one line."""
    node = stage.node
    before = " + ".join(_shape(graph.shapes[name]) for name in node.inputs)
    window = stage.window
    kernel = f"{window.kernel[0]}×{window.kernel[1]}" if window else ""
    match node:
        case MaxPool():
            what = f"max over {kernel}"
        case QAveragePool():
            what = f"mean over {'×'.join(map(str, node.kernel))}"
        case QTable():
            what = f"{node.function.replace('_', ' ')}, by table"
        case QConv2D():
            kind = "depthwise convolution" if isinstance(stage.core, DepthwiseParams) else "convolution"
            what = "dense" if node.kind == "dense" else f"{kind} {kernel}"
            what += f", {node.classes.count} border classes" if node.classes.count > 1 else ""
        case _:
            what = node.op.removeprefix("q").replace("_", " ")
    if stage.multipliers:
        what += f", {stage.multipliers} multiplier{'s' * (stage.multipliers > 1)}"
    return f"{before} → {_shape(graph.shapes[node.name])}: {what}, {stage.cycles} cycles a frame"


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _diagram(plan: Plan) -> Iterator[str]:
    lines = [("input", f"{_shape(plan.graph.input.shape)}, {plan.graph.input.format}")]
    lines += [(stage.node.name, stage_text(plan.graph, stage)) for stage in plan.stages]
    width = max(len(name) for name, _ in lines if len(name) <= _NAME_COLUMN)
    for name, text in lines:
        if len(name) > _NAME_COLUMN:
            yield f"    {name}"
            name = ""
        yield f"    {name:{width}}  {text}"


# --------------------------------------------------------------------------------------------------------------- verilog


_MODELLED_CELLS = {"ecp5": ("MULT18X18D", "DP16KD"), "ice40": ("SB_MAC16",)}
"""Cells that the engines instantiate; their models are in ``<family>_cells.v``."""


def verilog(rtlil_text: str, target: str) -> str:
    """Verilog-2005 of an accelerator, with its carry chains and with models of its cells, which synthesis does not see."""
    yosys = find_yosys()
    with tempfile.TemporaryDirectory() as folder:
        text = rtlil_to_verilog(yosys, rtlil_text, Path(folder))
    family = get_target(target).family
    cells = _MODELLED_CELLS.get(family, ())
    if "carry_row" in text or "carry_accumulate" in text:
        text += f"\n{_hdl_file('ecp5_carries.v')}"
    if any(cell in text for cell in cells):
        text += f"\n`ifndef SYNTHESIS\n{_hdl_file(f'{family}_cells.v')}`endif\n"
    return text


def _hdl_file(name: str) -> str:
    return resources.files("convfold.hdl").joinpath(name).read_text(encoding="utf-8")


def _verilog_of(files: Mapping[str, bytes], target: str) -> str:
    """Run the emitted ``accelerator.py`` itself, so that it and the Verilog cannot differ."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("accelerator.py", "weights.npz"):
            Path(folder, name).write_bytes(files[name])
        with _no_collection():
            made = runpy.run_path(str(Path(folder, "accelerator.py")))
            text = made["convert"]()
        return verilog(text, target)


@contextmanager
def _no_collection() -> Iterator[None]:
    """A netlist is some hundred thousand objects that all live: looking for garbage among them takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# ----------------------------------------------------------------------------------------------------- bench, constraints


def bench_source(emission: Emission) -> str:
    """``test_accelerator.py``: the cocotb bench."""
    texts = {
        "none": "Every frame, back to back, without stalls.",
        "input gaps": "Every frame, with pauses at the input.",
        "output stalls": "Every frame, with pauses at the output.",
        "both": "Every frame, with pauses on both sides.",
    }
    profiles = [
        {"name": name, "function": name.replace("none", "no stalls").replace(" ", "_"), "text": text}
        for name, text in texts.items()
    ]
    return render("test_accelerator.py.j2", name=emission.plan.graph.name, version=VERSION, profiles=profiles)


def _constraints(emission: Emission) -> dict[str, str]:
    target = emission.plan.target
    if target.family == "ecp5":
        return {
            "constraints.lpf": (
                f"# {emission.plan.graph.name} on {target.device}: add a LOCATE COMP line for each pin of your board.\n"
                f'FREQUENCY PORT "clk" {target.plan_mhz:g} MHZ;\n'
            )
        }
    if target.family == "ice40":
        return {
            "constraints.pcf": (
                f"# {emission.plan.graph.name} on {target.device}: add 'set_io <port> <pin>' for each pin of your board.\n"
            )
        }
    return {}


# -------------------------------------------------------------------------------------------------------------- manifest


def manifest(emission: Emission) -> dict[str, Any]:
    """``manifest.json``: the contract for every outside tool."""
    plan = emission.plan
    graph = plan.graph
    _, instances = _instances(plan)
    proofs = tuple(dict.fromkeys(d.certificate for d in graph.decisions if d.certificate is not None))
    return {
        "name": graph.name,
        "top": _top(graph),
        "clock": "clk",
        "reset": "rst",
        "target": plan.target.name,
        "versions": {"convfold": VERSION, "amaranth": metadata.version("amaranth"), "yosys": find_yosys().version},
        "source": emission.source.name,
        "source_sha256": emission.source_sha256,
        "input": _port(graph, graph.input.name, "s_axis", plan.pipeline.edge_in),
        "outputs": [
            _port(graph, tensor, port, edge)
            for tensor, port, (_, edge) in zip(graph.outputs, output_ports(plan), plan.pipeline.outputs, strict=True)
        ],
        "labels": list(graph.labels),
        "latency_cycles": plan.latency_cycles,
        "interval_cycles": plan.interval_cycles,
        "plan_mhz": plan.target.plan_mhz,
        "frames_per_second": round(plan.target.plan_mhz * 1e6 / plan.interval_cycles, 1),
        "network": [
            {
                "name": node.name,
                "op": _operator(node),
                "source": node.source,
                "out_shape": list(emission.network.shapes[node.name]),
                "macs": node_macs(emission.network, node),
            }
            for node in emission.network.nodes
        ],
        "layers": [_layer(plan, stage) | {"instance": instances[stage.node.name]} for stage in plan.stages],
        "queues": [
            {"name": part.name, "depth": part.params.depth_words, "lanes": part.params.lanes, "bits": part.params.bits}
            for part in plan.pipeline.components
            if isinstance(part.params, BufferParams)
        ],
        "decisions": [_decision(decision, proofs) for decision in graph.decisions],
        "certificates": [dataclasses.asdict(proof) for proof in proofs],
        "estimate": dataclasses.asdict(plan.resources),
        "plan": plan_record(plan),
        "estimate_error": dict(load_fit(plan.target.family).error),
        "estimate_mhz": _rounded(routed_mhz(plan.resources.luts, plan.target)),
        **emission.extra,
    }


def _decision(decision: Decision, proofs: Sequence[Certificate]) -> dict[str, Any]:
    """A decision with the number of its certificate, if it has one."""
    proof = decision.certificate
    return dataclasses.asdict(decision) | {"certificate": None if proof is None else proofs.index(proof)}


def _port(graph: Graph, tensor: str, port: str, edge: AxiStreamParams) -> dict[str, Any]:
    form = graph.format_of(tensor)
    head = dict(graph.heads).get(tensor)
    host = {} if head is None else {"head": _head(head)}
    return host | {
        "name": tensor,
        "port": port,
        "shape": list(graph.shapes[tensor]),
        "bits": form.bits,
        "signed": form.signed,
        "lanes": edge.lanes,
        "scale": form.scale,
        "zero_point": form.zero_point,
    }


def _head(head: Softmax) -> dict[str, Any]:
    """What the host computes from an output."""
    return {"op": "softmax", "beta": head.beta, "format": None if head.format is None else _format(head.format)}


def _format(form: Format) -> dict[str, Any]:
    return dataclasses.asdict(form)


def _maker(graph: Graph, tensor: str) -> str:
    """The layer that makes a tensor, or the input: what only counts samples anew has no engine."""
    node = graph.node(tensor)
    while isinstance(node, WIRES):
        node = graph.node(node.inputs[0])
    return node.name


def _operator(node: Node) -> str:
    """The operator in the user's words."""
    return node.kind if isinstance(node, QConv2D) else node.function if isinstance(node, QTable) else node.op.removeprefix("q")


def _layer(plan: Plan, stage: Stage) -> dict[str, Any]:
    graph, node, window, core = plan.graph, stage.node, stage.window, stage.core
    need = stage_resources(stage.engine, plan.target)
    layer = {
        "name": node.name,
        "source": node.source,
        "op": _operator(node),
        "inputs": [_maker(graph, name) for name in node.inputs],
        "in_shape": list(graph.shapes[node.inputs[0]]),
        "out_shape": list(graph.shapes[node.name]),
        "macs": node_macs(graph, node),
        "multipliers": stage.multipliers,
        "cycles": stage.cycles,
        "steps": _steps(graph, stage),
        "windowed": window is not None,
        "share": round(stage.cycles / plan.interval_cycles, 4),
        "estimate": dataclasses.asdict(need) | {"mhz": _rounded(routed_mhz(need.luts, plan.target))},
        "lanes": stage.in_lanes,
        "latency": stage.engine.latency,
        "in_format": _format(graph.format_of(node.inputs[0])),
        "out_format": _format(graph.format_of(node.name)),
    }
    if window is not None:
        layer |= {
            "kernel": list(window.kernel),
            "stride": list(window.stride),
            "padding": [list(pair) for pair in window.padding],
            "parallel": list(window.parallel),
            "ring_rows": window.rows,
        }
    if isinstance(node, QConv2D | QAveragePool | QAdd | QMultiply):
        layer |= {"low": node.low, "high": node.high}
    if isinstance(core, ConvParams | DepthwiseParams | MaxPoolParams):
        layer["queue_words"] = core.queue.depth_words
    if isinstance(node, QConv2D) and isinstance(core, ConvParams | DepthwiseParams):
        layer |= {
            "rows": core.rows,
            "pes": core.pes,
            "taps": core.window.taps,
            "multiplier": core.multiplier,
            "hard_multipliers": core.hard,
            "weight_bits": node.weight_bits,
            "acc_bits": core.acc_bits,
            "rounding": node.rounding,
            "multiplier_bits": core.multiplier_bits,
            "border_classes": node.classes.count,
            "weights": int(graph.weights[f"{node.name}.w"].size),
        }
    return layer


def _rounded(mhz: float | None) -> float | None:
    return None if mhz is None else round(mhz, 1)


def _steps(graph: Graph, stage: Stage) -> int:
    """Cycles a frame in which an engine works if nothing makes it wait: its window's steps, or its beats out."""
    if stage.window is not None:
        return stage.window.out_height * stage.window.out_width * stage.window.ii
    height, width, channels = graph.shapes[stage.node.name]
    pixel_beats = len(stage.core.order) if isinstance(stage.core, ConcatParams) else beats(channels, stage.out_lanes)
    return height * width * pixel_beats


def _narrow(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Integers in the smallest signed type that holds them."""
    return {name: array.astype(np.min_scalar_type(_widest(array)), copy=False) for name, array in weights.items()}


def _widest(array: np.ndarray) -> int:
    return min(int(array.min()), -int(array.max()) - 1)


