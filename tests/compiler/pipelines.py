"""Pipelines to time: random graphs of small components, and their simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator

from convfold.compiler.schedule import SOURCE, Component, StageParams
from convfold.hdl.add import AddParams
from convfold.hdl.argmax import ArgMaxParams
from convfold.hdl.axi_stream import AxiStreamParams
from convfold.hdl.border import BorderWalkParams
from convfold.hdl.buffer import BufferParams
from convfold.hdl.concat import ConcatParams
from convfold.hdl.conv import ConvParams
from convfold.hdl.crop import CropParams
from convfold.hdl.dense import DenseParams
from convfold.hdl.depthwise import DepthwiseParams
from convfold.hdl.fork import ForkParams
from convfold.hdl.global_pool import GlobalPoolParams
from convfold.hdl.lanes import LaneAdapterParams
from convfold.hdl.lookup import LookupParams
from convfold.hdl.max_pool import MaxPoolParams
from convfold.hdl.pad import PadParams
from convfold.hdl.product import ProductParams
from convfold.hdl.reorder import ReorderParams
from convfold.hdl.requantizer import RequantizerParams
from convfold.hdl.streams import beats
from convfold.hdl.window import WindowParams

BITS = 4
DEEP_WORDS = 100


# -------------------------------------------------------------------------------------------------------------- hardware


@dataclass(slots=True)
class Seen:
    """Cycles, counted from the first beat in: of every beat in, of those of each output, and of the steps of each window."""

    sent: list[int] = field(default_factory=list)
    received: list[list[int]] = field(default_factory=list)
    steps: dict[str, list[int]] = field(default_factory=dict)


def hardware(params: StageParams) -> Any:
    """The component, its weights and tables all zero: times do not depend on them."""
    anything: Any = params
    match params:
        case ConvParams() | DepthwiseParams() | DenseParams():
            core = params.conv if isinstance(params, DenseParams) else params
            classes = len(core.class_rows), len(core.class_cols)
            inputs = 1 if isinstance(core, DepthwiseParams) else core.window.channels // core.window.groups
            shape = (*classes, core.filters, *core.window.kernel, inputs)
            w, b, m = (np.zeros(size, np.int64) for size in (shape, shape[:3], core.filters))
            return params.create(w, b, m)
        case GlobalPoolParams():
            return params.create(0, 0)
        case LookupParams():
            return params.create(np.zeros((params.tables, 1 << params.in_bits), np.int64))
        case AddParams():
            return params.create(np.zeros(1 << params.a_bits, np.int64), np.zeros(1 << params.b_bits, np.int64))
    return anything.create()


def simulate(
    edge_in: AxiStreamParams,
    components: Sequence[Component],
    outputs: Sequence[tuple[str, AxiStreamParams]],
    frames: int,
    limit: int,
    stalls: random.Random | None = None,
) -> Seen:
    """Frames through the whole pipeline, for ``limit`` cycles or until all is out.

    They come back to back and all sides are always ready, unless ``stalls`` draws pauses, short ones and long ones.
    """
    m = Module()
    m.submodules.source = source = edge_in.create_in()
    ports = {SOURCE: source.o}
    engines = {}
    for component in components:
        m.submodules[component.name] = made = hardware(component.params)
        names = ["i"] if hasattr(made, "i") else [f"i{n}" for n in range(len(component.inputs))]
        for name, tensor in zip(names, component.inputs, strict=True):
            wiring.connect(m, ports.pop(tensor), getattr(made, name))
        if isinstance(component.params, ForkParams):
            ports |= {f"{component.name}.{n}": getattr(made, f"o{n}") for n in range(component.params.outputs)}
        else:
            ports[component.name] = made.o
        if hasattr(made, "o_issue"):
            engines[component.name] = made
    sinks = []
    for n, (tensor, edge) in enumerate(outputs):
        m.submodules[f"sink{n}"] = sink = edge.create_out()
        wiring.connect(m, ports.pop(tensor), sink.i)
        sinks.append(sink)
    assert not ports
    seen = Seen(received=[[] for _ in outputs], steps={name: [] for name in engines})

    async def bench(ctx: Any) -> None:
        await ctx.tick()
        inputs = frames * edge_in.frame_beats
        wanted = [frames * edge.frame_beats for _tensor, edge in outputs]
        go = [True] * (1 + len(sinks))
        for cycle in range(limit):
            if stalls:
                go = [stalls.random() < (0.98 if goes else 0.1) for goes in go]
            position = len(seen.sent)
            ctx.set(source.i_tlast, (position + 1) % edge_in.frame_beats == 0)
            ctx.set(source.i_tvalid, go[0] and position < inputs)
            if go[0] and position < inputs and ctx.get(source.o_tready):
                seen.sent.append(cycle)
            for sink, received, ready in zip(sinks, seen.received, go[1:], strict=True):
                ctx.set(sink.i_tready, ready)
                if ready and ctx.get(sink.o_tvalid):
                    received.append(cycle)
            for name, engine in engines.items():
                if ctx.get(engine.o_issue):
                    seen.steps[name].append(cycle)
            if list(map(len, seen.received)) == wanted:
                return
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return seen


# --------------------------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True, slots=True)
class Tensor:
    """What leaves a port."""

    port: str
    height: int
    width: int
    channels: int
    lanes: int

    @property
    def beats(self) -> int:
        """A frame."""
        return self.height * self.width * beats(self.channels, self.lanes)

    @property
    def edge(self) -> AxiStreamParams:
        return AxiStreamParams(self.height * self.width, self.channels, self.lanes, BITS, False)


@dataclass(slots=True)
class Draft:
    """A pipeline in the making. Everything that is not said is drawn."""

    rng: random.Random
    components: list[Component] = field(default_factory=list)
    outputs: list[tuple[str, AxiStreamParams]] = field(default_factory=list)

    def add(self, params: StageParams, *inputs: Tensor) -> str:
        name = f"{type(params).__name__.removesuffix('Params').lower()}{len(self.components)}"
        self.components.append(Component(name, params, tuple(tensor.port for tensor in inputs)))
        return name

    def in_lanes(self, tensor: Tensor, lanes: int) -> Tensor:
        """The same tensor in beats of another width."""
        common = math.gcd(tensor.lanes, lanes)
        widths = [tensor.lanes] + [common] * (common not in (tensor.lanes, lanes)) + [lanes]
        for before, after in pairwise(widths):
            if before != after:
                port = self.add(LaneAdapterParams(tensor.channels, BITS, False, before, after), tensor)
                tensor = replace(tensor, port=port, lanes=after)
        return tensor

    def _window(self, tensor: Tensor, *, same: bool, channelwise: bool) -> WindowParams:
        """Any window on a tensor; ``same`` keeps its height and width."""
        rng = self.rng
        while True:
            kernel = rng.randint(1, 3), rng.randint(1, 3)
            stride = (1, 1) if same else (rng.randint(1, 2), rng.randint(1, 2))
            parallel = rng.choice([(1, 1), (kernel[0], 1), kernel])
            dilation = (1 if parallel[0] > 1 else rng.randint(1, 2), 1 if parallel[1] > 1 else rng.randint(1, 2))
            most = [(size - 1) * apart for size, apart in zip(kernel, dilation, strict=True)]
            tops = [rng.randint(0, size) for size in most]
            ends = [size - top if same else rng.randint(0, size) for size, top in zip(most, tops, strict=True)]
            try:
                window = WindowParams(
                    height=tensor.height,
                    width=tensor.width,
                    channels=tensor.channels,
                    lanes=rng.randint(1, tensor.channels),
                    bits=BITS,
                    signed=False,
                    kernel=kernel,
                    stride=stride,
                    padding=((tops[0], ends[0]), (tops[1], ends[1])),
                    rows=tensor.height * parallel[0],
                    parallel=parallel,
                    channelwise=channelwise,
                    dilation=dilation,
                )
            except ValueError:
                continue  # the kernel does not fit
            return replace(window, rows=rng.choice([window.min_rows, window.full_rows, window.full_rows]))

    def _after(self, window: WindowParams, port: str, channels: int, lanes: int) -> Tensor:
        return Tensor(port, window.out_height, window.out_width, channels, lanes)

    def conv(self, tensor: Tensor, *, same: bool = False, filters: int | None = None) -> Tensor:
        rng = self.rng
        window = self._window(tensor, same=same, channelwise=False)
        filters = filters or rng.randint(1, 5)
        rows = rng.randint(1, filters)
        words = beats(filters, rows)
        pes = rng.randint(1, min(window.steps, words))
        window = replace(window, replays=beats(words, pes))
        if window.channels == filters and window.channels % (2 * window.lanes) == 0 and filters % (2 * rows * pes) == 0:
            window = replace(window, groups=2)
            pes = min(pes, window.steps)
            window = replace(window, replays=beats(words, pes))
        engine = ConvParams(window, filters, rows, pes, 4, 12, BITS, False, 12, 0, 15)
        port = self.add(engine, self.in_lanes(tensor, window.lanes))
        return self._after(window, port, filters, rows)

    def depthwise(self, tensor: Tensor, *, same: bool = False) -> Tensor:
        window = self._window(tensor, same=same, channelwise=True)
        rows = self.rng.choice([n for n in range(1, window.lanes + 1) if window.lanes % n == 0])
        if window.lanes // rows > window.steps:
            rows = window.lanes
        port = self.add(DepthwiseParams(window, rows, 4, 12, BITS, False, 12, 0, 15), self.in_lanes(tensor, window.lanes))
        return self._after(window, port, tensor.channels, rows)

    def max_pool(self, tensor: Tensor, *, same: bool = False) -> Tensor:
        window = replace(self._window(tensor, same=same, channelwise=True), parallel=(1, 1))
        port = self.add(MaxPoolParams(replace(window, rows=window.full_rows)), self.in_lanes(tensor, window.lanes))
        return self._after(window, port, tensor.channels, window.lanes)

    def dense(self, tensor: Tensor) -> Tensor:
        size = tensor.height, tensor.width
        window = WindowParams(
            *size, tensor.channels, tensor.lanes, BITS, False, size, (1, 1), ((0, 0), (0, 0)), rows=2 * size[0], replays=3
        )
        port = self.add(DenseParams(ConvParams(window, 3, 1, 1, 4, 12, BITS, False, 12, 0, 15)), tensor)
        return self._after(window, port, 3, 1)

    def global_pool(self, tensor: Tensor) -> Tensor:
        lanes = self.rng.choice([n for n in range(1, tensor.channels + 1) if tensor.channels % n == 0])
        words, pixels = tensor.channels // lanes, tensor.height * tensor.width
        requantizer = RequantizerParams(
            words, words, BorderWalkParams(1, 1), 12, BITS, False, 12, 0, 15, ii=self.rng.randint(1, 4), uniform=True
        )
        params = GlobalPoolParams(pixels, tensor.channels, lanes, BITS, False, requantizer)
        return Tensor(self.add(params, self.in_lanes(tensor, lanes)), 1, 1, tensor.channels, lanes)

    def lookup(self, tensor: Tensor) -> Tensor:
        params = LookupParams(tensor.channels, tensor.lanes, BITS, False, BITS, False)
        return replace(tensor, port=self.add(params, tensor))

    def buffer(self, tensor: Tensor) -> Tensor:
        return replace(tensor, port=self.add(BufferParams(BITS, False, tensor.lanes, DEEP_WORDS), tensor))

    def crop(self, tensor: Tensor) -> Tensor:
        rng = self.rng
        tops = rng.randint(0, (tensor.height - 1) // 2), rng.randint(0, (tensor.width - 1) // 2)
        ends = rng.randint(0, (tensor.height - 1) // 2), rng.randint(0, (tensor.width - 1) // 2)
        start = rng.randrange(0, tensor.channels - tensor.lanes + 1, tensor.lanes)
        stop = rng.randint(start + tensor.lanes, tensor.channels)
        sizes = tensor.height, tensor.width, tensor.channels, tensor.lanes
        params = CropParams(*sizes, BITS, False, ((tops[0], ends[0]), (tops[1], ends[1])), start, stop)
        return Tensor(self.add(params, tensor), params.out_height, params.out_width, stop - start, tensor.lanes)

    def pad(self, tensor: Tensor) -> Tensor:
        top, bottom, left, right = (self.rng.randint(0, 2) for _ in range(4))
        sizes = tensor.height, tensor.width, tensor.channels, tensor.lanes
        params = PadParams(*sizes, BITS, False, ((top, bottom), (left, right)), 1)
        return Tensor(self.add(params, tensor), params.out_height, params.out_width, tensor.channels, tensor.lanes)

    def reorder(self, tensor: Tensor) -> Tensor:
        rng, height, width, channels = self.rng, tensor.height, tensor.width, tensor.channels
        kinds = ["upsample", "shuffle", "space_to_depth"] + ["depth_to_space"] * (2 * (channels % 4 == 0))
        kind = rng.choice(kinds)
        if kind != "upsample":
            tensor = self.in_lanes(tensor, 1)
        size = {"height": height, "width": width, "channels": channels, "lanes": tensor.lanes, "bits": BITS, "signed": False}
        order = rng.choice(["DCR", "CRD"])
        match kind:
            case "upsample":
                factor = rng.randint(1, 2), rng.randint(1, 2)
                params = ReorderParams.for_upsample(**size, factor=factor)
                shape = height * factor[0], width * factor[1], channels
            case "shuffle":
                params = ReorderParams.for_channel_shuffle(**size, groups=rng.choice([1, channels]))
                shape = height, width, channels
            case "space_to_depth":
                block = (1 + (height % 2 == 0), 1 + (width % 2 == 0))
                params = ReorderParams.for_space_to_depth(**size, block=block, order=order)
                shape = height // block[0], width // block[1], channels * block[0] * block[1]
            case _:
                params = ReorderParams.for_depth_to_space(**size, block=(2, 2), order=order)
                shape = height * 2, width * 2, channels // 4
        return Tensor(self.add(params, tensor), *shape, tensor.lanes)

    def fork(self, tensor: Tensor, branches: int) -> list[Tensor]:
        name = self.add(ForkParams(BITS, False, tensor.lanes, branches), tensor)
        return [replace(tensor, port=f"{name}.{n}") for n in range(branches)]

    def end(self, tensor: Tensor) -> None:
        """Let a tensor leave the chip, perhaps as the number of its greatest channel."""
        if self.rng.random() < 0.3:
            port = self.add(ArgMaxParams(tensor.channels, tensor.lanes, BITS, False, BITS), tensor)
            tensor = Tensor(port, tensor.height, tensor.width, 1, 1)
        self.outputs.append((tensor.port, tensor.edge))

    def line(self, tensor: Tensor) -> Tensor:
        """Any layer behind a tensor."""
        kinds: list[Callable[[Tensor], Tensor]] = [
            self.conv, self.conv, self.depthwise, self.max_pool, self.lookup, self.buffer, self.crop, self.pad, self.reorder,
        ]  # fmt: skip
        return self.rng.choice(kinds)(tensor)

    def join(self, tensor: Tensor) -> Tensor:
        """Branches that part and meet again, each with a queue at its end; a third may leave the chip."""
        rng = self.rng
        one, other, *more = self.fork(tensor, rng.choice([2, 2, 3]))
        for extra in more:
            self.end(extra)
        concat = rng.random() < 0.4
        filters = None if concat else tensor.channels
        for _ in range(rng.randint(1, 2)):
            one = rng.choice([partial(self.conv, filters=filters, same=True), partial(self.max_pool, same=True)])(one)
        match rng.choice(["nothing", "lookup", "depthwise"]):
            case "lookup":
                other = self.lookup(other)
            case "depthwise":
                other = self.depthwise(other, same=True)
        lanes = 1 if concat else rng.choice([one.lanes, other.lanes])
        pair = [self.buffer(self.in_lanes(side, lanes)) for side in rng.sample([one, other], 2)]
        channels = tensor.channels
        scale: dict[str, Any] = {"m": 1, "positive": 0, "negative": 0, "shift": 0, "low": 0, "high": 15, "zero_point": 0}
        params: AddParams | ProductParams | ConcatParams
        if concat:
            params = ConcatParams((pair[0].channels, pair[1].channels), lanes, BITS, False)
            channels = pair[0].channels + pair[1].channels
        elif rng.random() < 0.5:
            params = AddParams(lanes, BITS, False, BITS, False, 6, **scale, out_bits=BITS, out_signed=False)
        else:
            params = ProductParams(lanes, BITS, False, 0, BITS, False, 0, **scale, out_bits=BITS, out_signed=False)
        return replace(pair[0], port=self.add(params, *pair), channels=channels)


def random_pipeline(seed: int, most_beats: int = 24) -> tuple[AxiStreamParams, Draft]:
    """A random graph; frames of at most ``most_beats`` beats anywhere."""
    for salt in range(100):
        rng = random.Random(1000 * seed + salt)
        draft = Draft(rng)
        channels = rng.randint(1, 4)
        first = Tensor(SOURCE, rng.randint(1, 4), rng.randint(1, 4), channels, rng.randint(1, channels))
        tensor, sizes = first, [first.beats]
        for step in (draft.line, draft.join, draft.line, rng.choice([draft.join, draft.line])):
            tensor = step(tensor)
            sizes.append(tensor.beats)
        ending = rng.random()
        if ending < 0.2:
            tensor = draft.dense(tensor)
        elif ending < 0.4 and tensor.height * tensor.width >= GlobalPoolParams.LEAST_PIXELS:
            tensor = draft.global_pool(tensor)
        draft.end(tensor)
        if max(sizes) <= most_beats:
            return first.edge, draft
    raise AssertionError(f"no pipeline for seed {seed}")
