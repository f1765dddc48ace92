"""Where a pipeline waits: counters round an accelerator, in simulation only.

The monitor is a module of its own with the accelerator inside. It looks at signals that are there anyway, so nothing of it is
in what is synthesized. In each cycle a layer does one of four things: it is *busy* (a layer with a window feeds its
multipliers; another hands on a beat), or it waits for *room* at its output, or for *input* of a frame it has begun, or it is
*idle* between two frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convfold.compiler.emit import VERSION, render
from convfold.hdl.axi_stream import AxiStreamParams

__all__ = ["LayerCounts", "count_bits", "monitor_name", "monitor_verilog", "port_edge", "read_counts"]

SETTLED_FRAMES = 3
"""Frames of each layer that do not count: the pipeline fills."""

FIELDS = ("frames", "busy", "input", "room", "idle", "steps", "span")
_BITS = 32


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """Cycles of one layer, by what it did, over the last ``frames`` whole frames; in all, ``steps`` since reset over ``span``.

    ``span`` runs from the first step to the last, both included.
    """

    name: str
    frames: int
    busy: int
    input: int
    room: int
    idle: int
    steps: int
    span: int

    @property
    def issue_rate(self) -> float:
        """The share of cycles with a step, from the first step to the last."""
        return self.steps / self.span if self.span else 0.0


def monitor_name(manifest: Mapping[str, Any]) -> str:
    """The module's name: no module of the accelerator is called so, for theirs begin with that of its top."""
    return "watch" if manifest["top"].startswith("monitor") else "monitor"


def monitor_verilog(manifest: Mapping[str, Any]) -> str:
    """The monitor round the accelerator of a build: its ports, and ``counts``."""
    layer_bits = _BITS * len(FIELDS)
    return render(
        "monitor.v.j2",
        name=monitor_name(manifest),
        top=manifest["top"],
        version=VERSION,
        in_bits=port_edge(manifest["input"]).tdata_bits,
        outputs=[{"port": output["port"], "bits": port_edge(output).tdata_bits} for output in manifest["outputs"]],
        layers=[_layer(layer) for layer in manifest["layers"]],
        fields=FIELDS,
        layer_bits=layer_bits,
        count_bits=count_bits(manifest),
        settled=SETTLED_FRAMES,
    )


def count_bits(manifest: Mapping[str, Any]) -> int:
    """The width of ``counts``."""
    return _BITS * len(FIELDS) * len(manifest["layers"])


def read_counts(manifest: Mapping[str, Any], counts: int) -> list[LayerCounts]:
    """The counters of all layers from the value of ``counts``."""
    return [
        LayerCounts(
            layer["name"],
            *(counts >> _BITS * (len(FIELDS) * n + field) & (1 << _BITS) - 1 for field in range(len(FIELDS))),
        )
        for n, layer in enumerate(manifest["layers"])
    ]


def _layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's steps a frame, and the signals that tell what it does."""
    part = f"dut.\\{layer['instance']} "
    if layer["windowed"]:
        busy, blocked = f"{part}.o_issue", f"~{part}.\\credits .o_grant"
    else:
        busy, blocked = f"{part}.o__valid & {part}.o__ready", f"{part}.o__valid"
    return {"name": layer["name"], "steps": layer["steps"], "busy": busy, "blocked": blocked}


def port_edge(port: Mapping[str, Any]) -> AxiStreamParams:
    """The stream of a port of the manifest."""
    height, width, channels = port["shape"]
    return AxiStreamParams(height * width, channels, port["lanes"], port["bits"], port["signed"])
