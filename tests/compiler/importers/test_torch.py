"""PyTorch networks against PyTorch itself, on real models and on small ones; hostile archives of every kind."""

from __future__ import annotations

import io
import json
import math
import re
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import (
    AveragePool,
    ChannelShuffle,
    DepthToSpace,
    Dropout,
    Flatten,
    Graph,
    Pointwise,
    Reshape,
    Softmax,
    SpaceToDepth,
)
from convfold.compiler.importers.torch import import_module, read_torch
from convfold.compiler.numbers import RealArray
from tests.mnist import read_images

torch = pytest.importorskip("torch", reason="needs torch")
nn, F = torch.nn, torch.nn.functional
Module: Any = nn.Module

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch says of itself

TOLERANCE = 1e-5
"""torch computes in float32, the graph in float64."""


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def forward(module: Any, x_bhwc: RealArray) -> RealArray:
    """What a module makes of a batch, in the order (B, H, W, C)."""
    with torch.no_grad():
        y = module.eval()(torch.from_numpy(np.moveaxis(x_bhwc, -1, 1)).float()).double().numpy()
    return np.moveaxis(y, 1, -1)


def computed(graph: Graph, x_bhwc: RealArray) -> RealArray:
    (output,) = graph.outputs
    y = evaluate(graph, x_bhwc)[output]
    if graph.heads:
        y = np.exp(y - y.max(axis=-1, keepdims=True))
        y /= y.sum(axis=-1, keepdims=True)
    return y


def assert_equal(module: Any, graph: Graph, x_bhwc: RealArray) -> None:
    wanted = forward(module, x_bhwc)
    y = computed(graph, x_bhwc).reshape(wanted.shape)
    assert np.abs(y - wanted).max() <= TOLERANCE * max(1.0, np.abs(wanted).max())


def settled(module: Any) -> Any:
    """The module with statistics, slopes and biases that matter."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 2.0, generator=generator)
                nn.init.normal_(part.bias, generator=generator)
        if isinstance(part, nn.PReLU):
            nn.init.uniform_(part.weight, -0.5, 0.5, generator=generator)
    return module.eval()


# ---------------------------------------------------------------------------------------------------- real models


class LeNet(Module):
    def __init__(self) -> None:
        super().__init__()
        self.convnet = nn.Sequential()
        for name, channels in (("c1", (1, 6)), ("c3", (6, 16)), ("c5", (16, 120))):
            self.convnet.add_module(name, nn.Conv2d(*channels, 5))
            self.convnet.add_module(f"relu_{name}", nn.ReLU())
            if name != "c5":
                self.convnet.add_module(f"pool_{name}", nn.MaxPool2d(2, 2))
        self.fc = nn.Sequential()
        self.fc.add_module("f6", nn.Linear(120, 84))
        self.fc.add_module("relu6", nn.ReLU())
        self.fc.add_module("f7", nn.Linear(84, 10))

    def forward(self, x: Any) -> Any:
        return self.fc(self.convnet(x).view(x.size(0), -1))


class Block(Module):
    """Two convolutions, and a shortcut without weights: every other pixel, and zeros for the new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.more = (outputs - inputs) // 2

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more)) if self.more else x
        return F.relu(y)


class ResNet20(Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


def lenet(models_dir: Path) -> Any:
    module = LeNet()
    state = torch.load(models_dir / "torch_lenet5" / "lenet5_mnist.pth", map_location="cpu", weights_only=True)
    module.load_state_dict(state)
    return module.eval()


def resnet20(models_dir: Path) -> Any:
    module = ResNet20()
    state = torch.load(models_dir / "torch_resnet20" / "resnet20-12fca82f.th", map_location="cpu", weights_only=True)
    module.load_state_dict({name.removeprefix("module."): array for name, array in state["state_dict"].items()})
    return module.eval()


def cifar(models_dir: Path) -> tuple[RealArray, RealArray]:
    """The images as resnet20 wants them, and their labels."""
    data = np.load(models_dir / "data_cifar10" / "cifar10_test_1k_jpeg.npz")
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return (data["x_uint8"] / 255.0 - mean) / deviation, data["y"]


def test_lenet(models_dir: Path) -> None:
    images, labels = read_images(models_dir, 0, 200)
    x = torch.from_numpy(images.astype(np.float32) / 255.0).permute(0, 3, 1, 2)
    x_bhwc = F.interpolate(x, (32, 32), mode="bilinear").permute(0, 2, 3, 1).double().numpy()
    module = lenet(models_dir)
    graph = import_module(module, (1, 32, 32), (0.0, 1.0))
    assert_equal(module, graph, x_bhwc[:20])
    right = (computed(graph, x_bhwc).reshape(len(x), 10).argmax(axis=1) == labels).mean()
    assert right >= 0.985  # 99.08 % on all 10,000


def test_resnet20(models_dir: Path) -> None:
    x_bhwc, labels = cifar(models_dir)
    module = resnet20(models_dir)
    graph = import_module(module, (3, 32, 32), (-2.2, 2.7))
    assert_equal(module, graph, x_bhwc[:10])
    right = (computed(graph, x_bhwc[::10]).reshape(100, 10).argmax(axis=1) == labels[::10]).mean()  # sorted
    assert right >= 0.75  # 79.5 % on all 1,000


# ------------------------------------------------------------------------------------------------------ operators


class Function(Module):
    """A module from a function, with parts that have weights."""

    def __init__(self, function: Callable[..., Any], *parts: Any) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Any) -> Any:
        return self.function(x, *self.parts)


def squeeze_excite(x: Any, down: Any, up: Any) -> Any:
    return x * torch.sigmoid(up(F.relu(down(x.mean((2, 3), keepdim=True)))))


def shuffled(x: Any) -> Any:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def stale_view(x: Any) -> Any:
    y = x * 1.5
    view = y.view(1, 4, 48)
    y.mul_(2.0)
    return view + 1.0


def in_place(x: Any, conv: Any) -> Any:
    y = conv(x)
    y += 1.0
    y.relu_()
    return y * y


SHAPE = (4, 8, 6)
"""Channels, rows and columns of most small modules' inputs."""

MODULES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), dilation=(1, 2), groups=2),
            nn.BatchNorm2d(6, affine=False),
            nn.Conv2d(6, 6, 3, padding="same", padding_mode="zeros", groups=6, bias=False),
            nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2),
            nn.ConvTranspose2d(4, 2, (2, 3), (1, 2), dilation=(2, 1)),
        ),
        SHAPE,
    ),
    "clips": (nn.Sequential(nn.ReLU6(), nn.Hardtanh(-0.5, 0.75), nn.LeakyReLU(0.2), nn.PReLU(4)), SHAPE),
    "curves": (
        nn.Sequential(
            *(nn.ELU(1.5), nn.SELU(), nn.GELU(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid()),
            *(nn.Softplus(), nn.PReLU(), nn.Dropout(), nn.Dropout2d()),
        ),
        SHAPE,
    ),
    "pools": (
        nn.Sequential(
            nn.MaxPool2d(3, 1, 1),
            nn.AvgPool2d(3, 2, 1, ceil_mode=True),
            nn.AvgPool2d(2, 1, count_include_pad=False),
            nn.AdaptiveAvgPool2d((2, 1)),
        ),
        SHAPE,
    ),
    "ceiled": (nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.AdaptiveMaxPool2d(1), nn.Flatten()), SHAPE),
    "dense": (nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 3, bias=False)), SHAPE),
    "head": (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 3), nn.Softmax(dim=1)), SHAPE),
    "one dimension": (
        nn.Sequential(
            nn.Conv1d(4, 6, 3, 2, 1), nn.ReLU(), nn.MaxPool1d(2), nn.AvgPool1d(2, 1), nn.ConvTranspose1d(6, 2, 4, 2, 1)
        ),
        (4, 16),
    ),
    "vector": (nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)), (5,)),
    "squeeze and excite": (Function(squeeze_excite, nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)), SHAPE),
    "arithmetic": (
        Function(lambda x: torch.add(2.0 - x / 4.0, x - 0.5, alpha=3.0) * torch.tensor((1.0, -2.0, 3.0, 0.5)).view(4, 1, 1)),
        SHAPE,
    ),
    "joins": (Function(lambda x: torch.cat((x[:, 1:3], -x, x.abs()), 1) - torch.cat((x, x, x[:, :2]), 1).square()), SHAPE),
    "parts": (Function(lambda x: x.chunk(3, 1)[1] * x.split((1, 2, 1), 1)[1] + x.narrow(1, 1, 2) + x[:, :1]), SHAPE),
    "moves": (Function(lambda x: F.pad(x[:, :, 1:7:2, 1:-1], (1, 0, 2, 1, 0, 0), value=0.5)), SHAPE),
    "steps": (Function(lambda x: F.pad(x[:, :, ::2, ::3], (0, 0, 0, 0, 1, 2))), SHAPE),
    "pixel shuffle": (nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(1, 2, 3), nn.PixelUnshuffle(2)), SHAPE),
    "channel shuffle": (nn.Sequential(nn.ChannelShuffle(2), nn.Conv2d(4, 4, 1), Function(shuffled)), SHAPE),
    "nearest": (nn.Sequential(nn.Upsample(scale_factor=2), nn.Upsample((32, 36), mode="nearest-exact")), SHAPE),
    "channels last": (Function(lambda x, dense: dense(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.Linear(4, 3)), SHAPE),
    "in place": (Function(in_place, nn.Conv2d(4, 3, 1)), SHAPE),
    "weight norm": (Function(lambda x, conv: F.conv2d(x, conv.weight * 2.0 - 0.5), nn.Conv2d(4, 3, 1)), SHAPE),
    "double": (nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU()).double(), SHAPE),
}


@pytest.mark.parametrize("name", MODULES)
def test_small_modules(name: str, rng: np.random.Generator) -> None:
    module, shape = MODULES[name]
    graph = import_module(settled(module), shape, (-2.0, 2.0))
    x_bhwc = rng.uniform(-2.0, 2.0, (3, *shape[1:], shape[0]))
    wanted = forward(settled(module).float(), x_bhwc)
    x_bhwc = x_bhwc.reshape(3, *graph.input.shape)
    y = computed(graph, x_bhwc).reshape(wanted.shape)
    assert np.abs(y - wanted).max() <= TOLERANCE * max(1.0, np.abs(wanted).max())


def test_the_graph_is_the_shortest() -> None:
    """Moves of samples are absorbed where they can be, and heads leave the graph."""
    shuffle = import_module(MODULES["channel shuffle"][0], SHAPE)
    assert sum(isinstance(node, ChannelShuffle) for node in shuffle.nodes) == 2
    pixels = import_module(MODULES["pixel shuffle"][0], SHAPE)
    assert [type(node) for node in pixels.nodes if isinstance(node, DepthToSpace | SpaceToDepth)] == [
        DepthToSpace,
        SpaceToDepth,
    ]
    last = import_module(MODULES["channels last"][0], SHAPE)
    assert [node.op for node in last.nodes] == ["input", "conv2d", "scale_bias"]
    steps = import_module(MODULES["steps"][0], SHAPE)
    assert [node.op for node in steps.nodes] == ["input", "max_pool", "conv2d"]
    assert dict(import_module(MODULES["head"][0], SHAPE).heads).popitem()[1] == Softmax()
    swish = import_module(nn.Sequential(nn.SiLU()), SHAPE)
    assert [node.function for node in swish.nodes if isinstance(node, Pointwise)] == ["swish"]
    dense = import_module(MODULES["dense"][0], SHAPE)
    assert not any(isinstance(node, Flatten | Reshape | Dropout | AveragePool) for node in dense.nodes)


def test_a_module_is_left_as_it_is() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    module.train()
    before = {name: array.clone() for name, array in module.state_dict().items()}
    graph = import_module(module, (1, 8, 8), name="edges")
    assert module.training and graph.name == "edges"
    assert all(torch.equal(array, before[name]) for name, array in module.state_dict().items())
    assert [node.name for node in graph.nodes[1:]] == ["layer0", "layer1"]


def test_a_file_is_what_the_module_is(tmp_path: Path) -> None:
    module = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)))
    program = torch.export.export(module, (torch.zeros(1, 3, 8, 8),))
    core = program.run_decompositions()
    graph = import_module(module, (3, 8, 8), (0.0, 1.0))
    for at, one in enumerate((program, core)):
        path = tmp_path / f"net{at}.pt2"
        torch.export.save(one, path)
        read = read_torch(path, (0.0, 1.0))
        assert (read.input.low, read.input.high) == (0.0, 1.0) and read.name == f"net{at}"
        x_bhwc = np.random.default_rng(0).uniform(0.0, 1.0, (2, 8, 8, 3))
        assert np.array_equal(computed(read, x_bhwc), computed(graph, x_bhwc))


# -------------------------------------------------------------------------------------------------------- refusals


def test_all_that_is_unsupported_is_listed_at_once() -> None:
    module = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.Mish(), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.LogSoftmax(1)
    )
    with pytest.raises(CompileError) as caught:
        import_module(module, SHAPE)
    text = str(caught.value)
    assert text.startswith("Sequential: 4 nodes cannot be imported:\n")
    for line in (
        r"group_norm \(aten\.group_norm\.default\) \(1×4×8×6\): this operator is not supported; train with BatchNorm2d",
        r"mish \(aten\.mish\.default\) .*use hardswish",
        r"\[3, 3\] does not divide its \[8, 6\]; use an output size that divides, or 1",
        r"log_softmax.*; use softmax: the host computes it",
    ):
        assert re.search(line, text), (line, text)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "softmax inside": (lambda x: torch.softmax(x, 1) * 2.0, "let softmax be the last operation"),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "use nearest, by a whole factor"),
    "reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "pad with zeros"),
    "tanh gelu": (lambda x: F.gelu(x, approximate="tanh"), "use approximate = none"),
    "floor": (lambda x: torch.div(x, 2.0, rounding_mode="floor"), "divide without rounding"),
    "transposed map": (lambda x: x.transpose(1, 2) + 1.0, "leave transpositions out"),
    "two values": (lambda x: x / (x.abs() + 1.0), "divide by a constant"),
    "dynamic weights": (lambda x: F.conv2d(x, x.view(1, 4, 8, 6)), "use constant weights"),
    "whole numbers": (lambda x: x.to(torch.int32), "leave the conversion out"),
    "stale view": (stale_view, "use operators that are not in place"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    function, hint = REFUSED[name]
    with pytest.raises(CompileError) as caught:
        import_module(Function(function), SHAPE)
    assert hint in str(caught.value)


def test_what_cannot_be_exported() -> None:
    with pytest.raises(CompileError, match=r"^Function: torch\.export fails: "):
        import_module(Function(lambda x: x if x.sum() > 0 else -x), SHAPE)
    with pytest.raises(CompileError, match=r"^Linear: input_shape must be \(C, H, W\), \(C, L\) or \(C,\), not \(1, 2, 3, 4\)"):
        import_module(nn.Linear(4, 4), (1, 2, 3, 4))
    with pytest.raises(CompileError, match=r"^Linear: the input range must rise"):
        import_module(nn.Linear(4, 4), (4,), (1.0, 0.0))
    with pytest.raises(CompileError, match=r"must hold numbers up to .*nan"):
        module = nn.Linear(4, 4)
        module.weight.data[1, 2] = math.nan
        import_module(module, (4,))


# -------------------------------------------------------------------------------------------------- hostile files


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="session")
def sound() -> dict[str, bytes]:
    """The members of a sound archive."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
        torch.export.save(torch.export.export(module, (torch.zeros(1, 1, 4, 4),)), stream)
    with zipfile.ZipFile(stream) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


MODEL = "archive/models/model.json"
WEIGHTS = "archive/data/weights/model_weights_config.json"


def edited(member: str, *path: str | int, value: Any) -> Callable[[dict[str, bytes], Path], bytes]:
    """The archive with one value of its JSON replaced; ``...`` removes it."""

    def make(sound: dict[str, bytes], trap: Path) -> bytes:
        root = json.loads(sound[member])
        at = root
        for step in path[:-1]:
            at = at[step]
        if value is ...:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        return zipped({**sound, member: json.dumps(root).encode()})

    return make


def node(at: int, *path: str | int, value: Any) -> Callable[[dict[str, bytes], Path], bytes]:
    return edited(MODEL, "graph_module", "graph", "nodes", at, *path, value=value)


def weight(name: str, *path: str | int, value: Any) -> Callable[[dict[str, bytes], Path], bytes]:
    return edited(WEIGHTS, "config", name, *path, value=value)


def saved(value: Callable[[Path], Any], legacy: bool = False) -> Callable[[dict[str, bytes], Path], bytes]:
    def make(sound: dict[str, bytes], trap: Path) -> bytes:
        stream = io.BytesIO()
        torch.save(value(trap), stream, _use_new_zipfile_serialization=not legacy)
        return stream.getvalue()

    return make


def pickled_weight(sound: dict[str, bytes], trap: Path) -> bytes:
    config = json.loads(sound[WEIGHTS])
    config["config"]["0.weight"]["use_pickle"] = True
    trapped = saved(Trap)(sound, trap)
    return zipped({**sound, WEIGHTS: json.dumps(config).encode(), "archive/data/weights/weight_0": trapped})


def script(sound: dict[str, bytes], trap: Path) -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), stream)
    return stream.getvalue()


EVIL = {"expr_str": "__import__('os').system('touch evil')", "hint": None}

HOSTILE: dict[str, tuple[Callable[[dict[str, bytes], Path], bytes], str]] = {
    "empty": (lambda sound, trap: b"", "is no archive of torch.export"),
    "garbage": (lambda sound, trap: bytes(range(256)) * 9, "is no archive of torch.export"),
    "zip garbage": (lambda sound, trap: b"PK\x03\x04" + bytes(range(256)) * 9, "is no sound zip archive"),
    "truncated": (lambda sound, trap: zipped(sound)[:200], "is no sound zip archive"),
    "other zip": (lambda sound, trap: zipped({"a.txt": b"a"}), "is no archive of torch.export"),
    "bomb": (lambda sound, trap: zipped({**sound, "archive/x": bytes(1 << 25)}, zipfile.ZIP_DEFLATED), "would unpack to"),
    "json bomb": (lambda sound, trap: zipped({**sound, MODEL: b"[" * (1 << 23) + b"]"}), "must not exceed"),
    "deep json": (lambda sound, trap: zipped({**sound, MODEL: b"[" * 100_000}), "is no JSON"),
    "broken json": (lambda sound, trap: zipped({**sound, MODEL: b"{"}), "is no JSON"),
    "json list": (lambda sound, trap: zipped({**sound, MODEL: b"[]"}), "must be a mapping"),
    "many members": (lambda sound, trap: zipped({**sound, **{f"a/{n}": b"" for n in range(1 << 14)}}), "must not exceed"),
    "state dict": (saved(lambda trap: nn.Linear(2, 2).state_dict()), "holds pickled weights, but no network"),
    "old state dict": (saved(lambda trap: nn.Linear(2, 2).state_dict(), True), "holds pickled weights, but no network"),
    "evil pickle": (saved(Trap), "holds pickled weights, but no network"),
    "old evil pickle": (saved(Trap, True), "holds pickled weights, but no network"),
    "script": (script, "is a TorchScript archive"),
    "pickled weight": (pickled_weight, "is pickled, which is never read"),
    "old archive": (lambda sound, trap: zipped({"serialized_exported_program.json": b"{}", "version": b"8"}), "before 2.9"),
    "schema": (edited(MODEL, "schema_version", "major", value=9), "is of schema 9"),
    "no nodes": (edited(MODEL, "graph_module", "graph", "nodes", value=None), "must have a list"),
    "no signature": (edited(MODEL, "graph_module", "signature", value=...), "must be a mapping"),
    "no inputs": (edited(MODEL, "graph_module", "signature", "input_specs", value=[]), "must have one input, not 0"),
    "output": (edited(MODEL, "graph_module", "signature", "output_specs", value=[{"a": {}}]), "changes its own state"),
    "symbolic input": (
        edited(MODEL, "graph_module", "graph", "tensor_values", "input", "sizes", 0, value={"as_expr": EVIL}),
        "fixed shape",
    ),
    "batch": (
        edited(MODEL, "graph_module", "graph", "tensor_values", "input", "sizes", 0, value={"as_int": 4}),
        "(1, C, H, W)",
    ),
    "huge input": (
        edited(MODEL, "graph_module", "graph", "tensor_values", "input", "sizes", 2, value={"as_int": 1 << 39}),
        "elements",
    ),
    "input type": (edited(MODEL, "graph_module", "graph", "tensor_values", "input", "dtype", value=5), "float numbers"),
    "evil target": (node(0, "target", value="torch.ops.aten.__import__('os').system"), "is not supported"),
    "os.system": (node(1, "target", value="os.system"), "is not supported"),
    "name": (node(1, "target", value="\x1b[31m\n" * 50), "is not supported"),
    "evil stride": (node(0, "inputs", 0, value={"name": "stride", "arg": {"as_sym_ints": [{"as_expr": EVIL}]}}), "input"),
    "missing tensor": (node(0, "inputs", 0, "arg", value={"as_tensor": {"name": "nowhere"}}), "which nothing makes"),
    "no arguments": (node(0, "inputs", value=[]), "cannot be folded"),
    "argument kind": (node(0, "inputs", 0, "arg", value={"as_tensor": 3}), "must be a mapping"),
    "two kinds": (node(0, "inputs", 0, "arg", value={"as_int": 3, "as_float": 2}), "must be of one kind"),
    "constant weights": (node(0, "inputs", 1, "arg", value={"as_float": "NaN"}), "must be a number"),
    "number for tensor": (node(0, "inputs", 1, "arg", value={"as_int": 3}), "dimensions"),
    "string for tensor": (node(0, "inputs", 1, "arg", value={"as_string": "w"}), "must be a tensor"),
    "long weight": (weight("0.weight", "tensor_meta", "sizes", 0, value={"as_int": 1 << 20}), "do not fit into its"),
    "huge weight": (weight("0.weight", "tensor_meta", "sizes", 0, value={"as_int": 1 << 39}), "elements"),
    "spread weight": (
        weight(
            "0.weight",
            "tensor_meta",
            value={
                "dtype": 7,
                "sizes": [{"as_int": 1 << 27}],
                "strides": [{"as_int": 0}],
                "storage_offset": {"as_int": 0},
            },
        ),
        "there are more than",
    ),
    "offset": (weight("0.weight", "tensor_meta", "storage_offset", value={"as_int": 1 << 38}), "do not fit into its"),
    "negative stride": (weight("0.weight", "tensor_meta", "strides", 0, value={"as_int": -9}), "plain sizes and strides"),
    "complex weight": (weight("0.weight", "tensor_meta", "dtype", value=9), "must hold real numbers"),
    "climbing weight": (weight("0.weight", "path_name", value="../../../../etc/passwd"), "must contain"),
    "no weight": (edited(WEIGHTS, "config", "0.weight", value=...), "holds no numbers for parameter"),
    "short weight": (lambda sound, trap: zipped({**sound, "archive/data/weights/weight_0": b"\0"}), "do not fit into its"),
    "not a number": (
        lambda sound, trap: zipped({**sound, "archive/data/weights/weight_0": b"\xff" * 72}),
        "must hold numbers up to",
    ),
    "wrong shape": (weight("3.weight", "tensor_meta", "sizes", value=[{"as_int": 8}, {"as_int": 3}]), "do not fit"),
    "stride of zero": (node(0, "inputs", value=...), "must have inputs and outputs"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, sound: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, text = HOSTILE[name]
    path, trap = tmp_path / "net.pt2", tmp_path / "evil"
    path.write_bytes(make(sound, trap))
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    with pytest.raises(CompileError) as caught:
        read_torch(path)
    assert time.process_time() - start < 2.0
    assert text in str(caught.value), str(caught.value)
    assert str(caught.value).replace("\n", "").isprintable()
    assert [one.name for one in tmp_path.iterdir()] == ["net.pt2"]


def cuts(sound: bytes) -> Iterator[bytes]:
    """Sound archives with some bytes changed or cut."""
    rng = np.random.default_rng(7)
    for _ in range(60):
        data = bytearray(sound)
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(0, 256)
        yield bytes(data[: rng.integers(len(data) // 2, len(data) + 1)] if rng.random() < 0.3 else data)


def test_changed_bytes(sound: dict[str, bytes], tmp_path: Path) -> None:
    """Either the archive is still a network, or it is refused: nothing else happens."""
    path = tmp_path / "net.pt2"
    small = {MODEL: sound[MODEL], **{name: data for name, data in sound.items() if "weights/" in name}}
    for data in cuts(zipped(small)):
        path.write_bytes(data)
        try:
            assert isinstance(read_torch(path), Graph)
        except CompileError as error:
            assert str(error).startswith("net.pt2: ")
