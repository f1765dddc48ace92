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

torch = pytest.importorskip("torch", reason="needs torch")
nn, F = torch.nn, torch.nn.functional

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


class LeNet(nn.Module):  # type: ignore[misc,name-defined]
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


class Block(nn.Module):  # type: ignore[misc,name-defined]
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


class ResNet20(nn.Module):  # type: ignore[misc,name-defined]
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
    images, labels = mnist_test(models_dir)
    x = torch.from_numpy(images.astype(np.float32) / 255.0).reshape(-1, 1, 28, 28)[:2000]
    x_bhwc = F.interpolate(x, (32, 32), mode="bilinear").permute(0, 2, 3, 1).double().numpy()
    module = lenet(models_dir)
    graph = import_module(module, (1, 32, 32), (0.0, 1.0))
    assert_equal(module, graph, x_bhwc[:50])
    right = (computed(graph, x_bhwc).reshape(len(x), 10).argmax(axis=1) == labels[: len(x)]).mean()
    assert right >= 0.98


def test_resnet20(models_dir: Path) -> None:
    x_bhwc, labels = cifar(models_dir)
    module = resnet20(models_dir)
    graph = import_module(module, (3, 32, 32), (-2.2, 2.7))
    assert_equal(module, graph, x_bhwc[:20])
    right = (computed(graph, x_bhwc[:200]).reshape(200, 10).argmax(axis=1) == labels[:200]).mean()
    assert right >= 0.75
