"""Networks for the tests of the passes: a builder, and random chains of linear layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from convfold.compiler.graph import (
    BatchNorm,
    Clip,
    Conv2D,
    Dense,
    Graph,
    Input,
    MaxPool,
    Node,
    Padding,
    Pair,
    Pca,
    Shape,
    infer_shapes,
    window_size,
)
from convfold.compiler.numbers import RealArray

NONE = ((0, 0), (0, 0))
SAME = ((1, 1), (1, 1))


@dataclass
class Net:
    """A graph in the making: each method adds a layer with random weights behind ``tail``, the new tail."""

    shape: Shape
    seed: int = 0
    low: float = 0.0
    high: float = 1.0
    tail: str = "image"
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, RealArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.nodes.append(
            Input(name="image", inputs=(), source="image", shape=self.shape, low=self.low, high=self.high)
        )

    @property
    def out_shape(self) -> Shape:
        return infer_shapes(tuple(self.nodes), self.weights)[self.tail]

    def graph(self, *outputs: str) -> Graph:
        return Graph(
            name="net", nodes=tuple(self.nodes), outputs=outputs or (self.tail,), weights=self.weights
        )

    def behind(self, name: str) -> Net:
        """The next layer reads this tensor: a branch."""
        self.tail = name
        return self

    def conv(
        self,
        name: str,
        outputs: int,
        kernel: Pair = (3, 3),
        stride: Pair = (1, 1),
        padding: Padding = NONE,
        bias: bool = True,
    ) -> Net:
        w_ohwi = self.rng.normal(size=(outputs, *kernel, self.out_shape[2]))
        self.weights |= {
            f"{name}.w": w_ohwi[None, None],
            f"{name}.b": self.rng.normal(size=(1, 1, outputs)) * bias,
        }
        return self._add(Conv2D(name=name, inputs=(self.tail,), source=name, stride=stride, padding=padding))

    def dense(self, name: str, outputs: int) -> Net:
        w_oi = self.rng.normal(size=(outputs, math.prod(self.out_shape)))
        self.weights |= {f"{name}.w": w_oi, f"{name}.b": self.rng.normal(size=outputs)}
        return self._add(Dense(name=name, inputs=(self.tail,), source=name))

    def norm(self, name: str) -> Net:
        channels = self.out_shape[2]
        self.weights |= {
            f"{name}.{part}": self.rng.normal(size=channels) for part in ("gamma", "beta", "mean")
        }
        self.weights[f"{name}.var"] = self.rng.uniform(0.1, 2.0, size=channels)
        return self._add(BatchNorm(name=name, inputs=(self.tail,), source=name))

    def pca(self, name: str, rank: int) -> Net:
        channels = self.out_shape[2]
        size = max(channels, rank)
        q_rc = np.linalg.qr(self.rng.normal(size=(size, size)))[0][:rank, :channels]
        self.weights |= {f"{name}.components": q_rc, f"{name}.mean": self.rng.normal(size=channels)}
        return self._add(Pca(name=name, inputs=(self.tail,), source=name))

    def relu(self, name: str, low: float = 0.0, high: float = math.inf) -> Net:
        return self._add(Clip(name=name, inputs=(self.tail,), source=name, low=low, high=high))

    def pool(self, name: str, kernel: Pair = (2, 2), stride: Pair = (2, 2), padding: Padding = NONE) -> Net:
        return self._add(
            MaxPool(
                name=name, inputs=(self.tail,), source=name, kernel=kernel, stride=stride, padding=padding
            )
        )

    def _add(self, node: Node) -> Net:
        self.nodes.append(node)
        self.tail = node.name
        return self


def random_chain(seed: int) -> Graph:
    """Two to four convolutions of any geometry, norms and projections anywhere, perhaps a dense end."""
    rng = np.random.default_rng(seed)

    def pick(*choices: int) -> int:
        return int(rng.choice(choices))

    shape = (pick(1, 2, 3, 5, 6, 7), pick(1, 2, 4, 5, 6), pick(1, 2, 3))
    net = Net(shape, seed=seed, low=-1.0, high=1.0)

    def maybe_pointwise(stage: str) -> None:
        for n in range(2):
            match pick(0, 0, 0, 1, 2):
                case 1:
                    net.norm(f"norm_{stage}{n}")
                case 2:
                    net.pca(f"pca_{stage}{n}", max(1, net.out_shape[2] + pick(-1, -1, 0, 1)))

    maybe_pointwise("0")
    for n in range(1, pick(2, 2, 3, 4) + 1):
        kernel, stride, padding = zip(*(_random_axis(rng, size) for size in net.out_shape[:2]), strict=True)
        net.conv(f"conv_{n}", pick(1, 2, 3), kernel, stride, padding, bias=bool(pick(0, 1, 1)))
        maybe_pointwise(str(n))
    if pick(0, 0, 0, 1):
        net.dense("dense", pick(1, 2, 3))
        maybe_pointwise("d")
    return net.graph()


def _random_axis(rng: np.random.Generator, size: int) -> tuple[int, int, Pair]:
    """Kernel 1 to 5, stride 1 to 3, each side's padding below the kernel, whatever leaves 1 to 9 samples."""
    while True:
        kernel, stride = int(rng.choice((1, 2, 3, 3, 4, 5))), int(rng.choice((1, 1, 2, 3)))
        padding = int(rng.integers(kernel)), int(rng.integers(kernel))
        if size + sum(padding) >= kernel and window_size(size, kernel, stride, padding) <= 9:
            return kernel, stride, padding
