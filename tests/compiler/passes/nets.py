"""Networks for the tests of the passes: a builder, and random chains of linear layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from convfold.compiler.graph import (
    Add,
    ArgMax,
    AveragePool,
    BatchNorm,
    ChannelShuffle,
    Clip,
    Concat,
    Conv2D,
    Crop,
    Dense,
    DepthOrder,
    DepthToSpace,
    Dropout,
    Flatten,
    FoldRule,
    Graph,
    Input,
    MaxPool,
    Multiply,
    Node,
    Pad,
    Padding,
    Pair,
    Pca,
    Pointwise,
    Prelu,
    Reshape,
    ScaleBias,
    Shape,
    Slice,
    SpaceToDepth,
    Upsample,
    infer_shapes,
    window_extent,
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
        dilation: Pair = (1, 1),
        groups: int = 1,
        fold: FoldRule = "auto",
    ) -> Net:
        w_ohwi = self.rng.normal(size=(outputs, *kernel, self.out_shape[2] // groups))
        self.weights |= {
            f"{name}.w": w_ohwi[None, None],
            f"{name}.b": self.rng.normal(size=(1, 1, outputs)) * bias,
        }
        return self._add(
            Conv2D(
                name=name,
                inputs=(self.tail,),
                source=name,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                fold=fold,
            )
        )

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

    def scale(self, name: str) -> Net:
        self.weights |= {f"{name}.{part}": self.rng.normal(size=self.out_shape[2]) for part in ("scale", "bias")}
        return self._add(ScaleBias(name=name, inputs=(self.tail,), source=name))

    def pca(self, name: str, rank: int, whiten: bool = False) -> Net:
        channels = self.out_shape[2]
        size = max(channels, rank)
        q_rc = np.linalg.qr(self.rng.normal(size=(size, size)))[0][:rank, :channels]
        self.weights |= {f"{name}.components": q_rc, f"{name}.mean": self.rng.normal(size=channels)}
        if whiten:
            self.weights[f"{name}.explained_variance"] = self.rng.uniform(0.1, 2.0, size=rank)
        return self._add(Pca(name=name, inputs=(self.tail,), source=name, whiten=whiten))

    def average(
        self, name: str, kernel: Pair = (2, 2), stride: Pair = (2, 2), padding: Padding = NONE, count: bool = False
    ) -> Net:
        pool = AveragePool(
            name=name,
            inputs=(self.tail,),
            source=name,
            kernel=kernel,
            stride=stride,
            padding=padding,
            count_include_pad=count,
        )
        return self._add(pool)

    def global_average(self, name: str) -> Net:
        return self.average(name, self.out_shape[:2], (1, 1))

    def add(self, name: str, *inputs: str) -> Net:
        """The sum of the tail and other tensors."""
        return self._add(Add(name=name, inputs=(self.tail, *inputs), source=name))

    def concat(self, name: str, *inputs: str) -> Net:
        """The tail and other tensors, stacked."""
        return self._add(Concat(name=name, inputs=(self.tail, *inputs), source=name))

    def slice(self, name: str, start: int, stop: int) -> Net:
        return self._add(Slice(name=name, inputs=(self.tail,), source=name, start=start, stop=stop))

    def shuffle(self, name: str, groups: int) -> Net:
        return self._add(ChannelShuffle(name=name, inputs=(self.tail,), source=name, groups=groups))

    def depth_to_space(self, name: str, block: Pair = (2, 2), order: DepthOrder = "DCR") -> Net:
        return self._add(DepthToSpace(name=name, inputs=(self.tail,), source=name, block=block, order=order))

    def space_to_depth(self, name: str, block: Pair = (2, 2), order: DepthOrder = "DCR") -> Net:
        return self._add(SpaceToDepth(name=name, inputs=(self.tail,), source=name, block=block, order=order))

    def pad(self, name: str, padding: Padding = SAME, value: float = 0.0) -> Net:
        return self._add(Pad(name=name, inputs=(self.tail,), source=name, padding=padding, value=value))

    def crop(self, name: str, cropping: Padding = SAME) -> Net:
        return self._add(Crop(name=name, inputs=(self.tail,), source=name, cropping=cropping))

    def reshape(self, name: str, shape: Shape) -> Net:
        return self._add(Reshape(name=name, inputs=(self.tail,), source=name, shape=shape))

    def pointwise(self, name: str, function: str, *parameters: float) -> Net:
        node = Pointwise(name=name, inputs=(self.tail,), source=name, function=function, parameters=parameters)
        return self._add(node)

    def prelu(self, name: str) -> Net:
        self.weights[f"{name}.slope"] = self.rng.uniform(-0.5, 0.5, self.out_shape[2])
        return self._add(Prelu(name=name, inputs=(self.tail,), source=name))

    def multiply(self, name: str, other: str) -> Net:
        """The product of the tail and another tensor."""
        return self._add(Multiply(name=name, inputs=(self.tail, other), source=name))

    def argmax(self, name: str) -> Net:
        return self._add(ArgMax(name=name, inputs=(self.tail,), source=name))

    def upsample(self, name: str, factor: Pair = (2, 2)) -> Net:
        return self._add(Upsample(name=name, inputs=(self.tail,), source=name, factor=factor))

    def dropout(self, name: str) -> Net:
        return self._add(Dropout(name=name, inputs=(self.tail,), source=name))

    def flatten(self, name: str) -> Net:
        return self._add(Flatten(name=name, inputs=(self.tail,), source=name))

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
        kernel, stride, padding, _ = zip(*(_random_axis(rng, size) for size in net.out_shape[:2]), strict=True)
        net.conv(f"conv_{n}", pick(1, 2, 3), kernel, stride, padding, bias=bool(pick(0, 1, 1)))
        maybe_pointwise(str(n))
    if pick(0, 0, 0, 1):
        net.dense("dense", pick(1, 2, 3))
        maybe_pointwise("d")
    return net.graph()


def _random_axis(rng: np.random.Generator, size: int, dilated: bool = False) -> tuple[int, int, Pair, int]:
    """Kernel 1 to 5, stride 1 to 3, each side's padding below the kernel, dilation, whatever leaves 1 to 9 samples."""
    while True:
        kernel, stride = int(rng.choice((1, 2, 3, 3, 4, 5))), int(rng.choice((1, 1, 2, 3)))
        padding = int(rng.integers(kernel)), int(rng.integers(kernel))
        dilation = int(rng.choice((1, 1, 2, 3))) if dilated else 1
        extent = window_extent(kernel, dilation)
        if size + sum(padding) >= extent and window_size(size, extent, stride, padding) <= 9:
            return kernel, stride, padding, dilation


def random_convolutions(seed: int) -> Graph:
    """One to seven convolutions, thin and wide, padded or not."""
    rng = np.random.default_rng(seed)
    net = Net((int(rng.integers(3, 13)), int(rng.integers(3, 13)), int(rng.integers(1, 5))), seed)
    for n in range(int(rng.integers(1, 8))):
        kernel, stride, padding = zip(*(_random_axis(rng, size)[:3] for size in net.out_shape[:2]), strict=True)
        net.conv(f"conv_{n}", int(rng.choice((1, 1, 2, 3, 8))), kernel, stride, padding)
    return net.graph()


def random_linear(seed: int) -> Graph:
    """Chains and branches of every linear operator, of any geometry; it is always one layer in the end."""
    return _RandomNet(seed).build()


class _RandomNet:
    """Segments behind one another: runs of single operators, and branches that meet again."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        shape = (self.pick(1, 3, 4, 5, 6, 7), self.pick(1, 2, 4, 5, 6), self.pick(1, 2, 3, 4))
        self.net = Net(shape, seed=seed, low=-1.0, high=1.0)
        self.count = 0

    def pick(self, *choices: int) -> int:
        return int(self.rng.choice(choices))

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}_{self.count}"

    def build(self) -> Graph:
        for _ in range(self.pick(1, 2, 2, 3)):
            if self.pick(0, 1):
                self.branches((self.pick(1, 1, 1, 2), self.pick(1, 1, 1, 2)))
            else:
                self.run()
        if len(self.net.nodes) == 1:
            self.conv()
        match self.pick(0, 0, 1, 2):
            case 1:
                self.net.dense(self.name("dense"), self.pick(1, 2, 3))
            case 2:
                self.net.dropout(self.name("drop")).flatten(self.name("flat"))
                self.net.dense(self.name("dense"), self.pick(1, 2, 3))
        return self.net.graph()

    def run(self) -> None:
        for _ in range(self.pick(1, 2, 3)):
            self.step()

    def step(self) -> None:
        """One operator of any kind that suits the tail; blocks are read again at once, in steps of a block."""
        net, channels = self.net, self.net.out_shape[2]
        match self.pick(*range(11), 0, 0, 0):
            case 0:
                self.conv()
            case 1:
                net.norm(self.name("norm"))
            case 2:
                net.scale(self.name("scale"))
            case 3:
                net.pca(self.name("pca"), max(1, channels + self.pick(-1, 0, 1)), whiten=bool(self.pick(0, 1)))
            case 4:
                self.average()
            case 5:
                start = self.pick(*range(channels))
                net.slice(self.name("slice"), start, self.pick(*range(start + 1, channels + 1)))
            case 6:
                net.shuffle(self.name("shuffle"), self.divisor(channels))
            case 7:
                net.dropout(self.name("drop"))
            case 8:
                block = self.pick(1, 2), self.pick(1, 2)
                if channels % (block[0] * block[1]) or max(net.out_shape[:2]) > 5:
                    return
                order: DepthOrder = "DCR" if self.pick(0, 1) else "CRD"
                self.read_blocks(net.depth_to_space(self.name("depth"), block, order), block)
            case 9:
                if max(net.out_shape[:2]) <= 5:
                    factor = self.pick(1, 2, 3), self.pick(1, 2)
                    self.read_blocks(net.upsample(self.name("up"), factor), factor)
            case 10:
                if self.pick(0, 0, 0, 1):
                    net.global_average(self.name("global"))

    def read_blocks(self, net: Net, block: Pair) -> None:
        if self.pick(0, 1):
            net.scale(self.name("scale"))
        kernel, padding = zip(*((self.pick(1, 2, 3), (self.pick(0, 1), self.pick(0, 1))) for _ in block), strict=True)
        kernel = tuple(min(k, size) for k, size in zip(kernel, net.out_shape[:2], strict=True))
        padding = tuple((min(a, k - 1), min(b, k - 1)) for (a, b), k in zip(padding, kernel, strict=True))
        stride = block[0] * self.pick(1, 1, 2), block[1]
        if self.pick(0, 1):
            net.conv(self.name("conv"), self.pick(1, 2, 3), kernel, stride, padding)
        else:
            net.average(self.name("average"), kernel, stride, padding, bool(self.pick(0, 1)))

    def conv(self, outputs: int | None = None) -> None:
        kernel, stride, padding, dilation = zip(
            *(_random_axis(self.rng, size, dilated=True) for size in self.net.out_shape[:2]), strict=True
        )
        groups = self.divisor(self.net.out_shape[2])
        outputs = outputs or groups * self.pick(1, 1, 2)
        groups = math.gcd(groups, outputs)
        bias = bool(self.pick(0, 1, 1))
        self.net.conv(self.name("conv"), outputs, kernel, stride, padding, bias, dilation, groups)

    def average(self) -> None:
        kernel, stride, padding, _ = zip(
            *(_random_axis(self.rng, size) for size in self.net.out_shape[:2]), strict=True
        )
        self.net.average(self.name("average"), kernel, stride, padding, bool(self.pick(0, 1)))

    def divisor(self, channels: int) -> int:
        return self.pick(*(n for n in range(1, channels + 1) if channels % n == 0))

    def branches(self, steps: Pair, *, nested: bool = False) -> None:
        """A stack or a sum of branches of one size: kernels with padding to match, averages, the identity."""
        net, start, shape = self.net, self.net.tail, self.net.out_shape
        stack = bool(self.pick(0, 1))
        ends: list[str] = []
        outputs = shape[2] if self.pick(0, 1) else self.pick(1, 2, 3)
        for _ in range(self.pick(2, 2, 3)):
            net.behind(start)
            if self.pick(0, 1):
                net.norm(self.name("norm"))
            self.same_size(steps, shape)
            if not nested and self.pick(0, 0, 1):
                self.branches((1, 1), nested=True)
            for _ in range(self.pick(0, 1, 2)):
                self.pixelwise()
            if not stack and net.out_shape[2] != outputs:
                net.conv(self.name("conv"), outputs, (1, 1))
            if net.tail in (start, *ends):
                net.dropout(self.name("drop"))
            ends.append(net.tail)
        net.behind(ends[0])
        (net.concat if stack else net.add)(self.name("stack" if stack else "sum"), *ends[1:])

    def same_size(self, steps: Pair, shape: Shape) -> None:
        """A layer with ``⌈in / stride⌉`` outputs, whatever its kernel; or none."""
        kernel = self.pick(1, 2, 3, 5), self.pick(1, 2, 3)
        total = [max(0, (-(-n // s) - 1) * s + k - n) for n, s, k in zip(shape, steps, kernel, strict=False)]
        (top, bottom), (left, right) = ((t // 2, t - t // 2) for t in total)
        kernel = max(kernel[0], top + 1, bottom + 1), max(kernel[1], left + 1, right + 1)
        padding = (top, bottom), (left, right)
        match self.pick(0, 0, 1, 2):
            case 0:
                self.net.conv(self.name("conv"), self.pick(1, 2, 3), kernel, steps, padding)
            case 1:
                self.net.average(self.name("average"), kernel, steps, padding, bool(self.pick(0, 1)))
            case 2 if steps != (1, 1):
                self.net.conv(self.name("conv"), 2, (1, 1), steps)

    def pixelwise(self) -> None:
        match self.pick(0, 1, 2, 3):
            case 0:
                self.net.norm(self.name("norm"))
            case 1:
                self.net.scale(self.name("scale"))
            case 2:
                self.net.pca(self.name("pca"), self.pick(1, 2))
            case 3:
                self.net.shuffle(self.name("shuffle"), self.divisor(self.net.out_shape[2]))


def random_graph(seed: int, *, tables: bool = True) -> Graph:
    """Any operator behind any tensor: branches, residuals, several outputs; at most a few hundred samples a tensor.

    Without ``tables`` nothing is bent but by limits, so that any format will do.
    """
    return _RandomGraph(seed, tables).build()


FUNCTIONS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("leaky_relu", (0.1,)),
    ("hard_swish", ()),
    ("hard_sigmoid", (0.2, 0.5)),
    ("sigmoid", ()),
    ("tanh", ()),
    ("swish", ()),
    ("elu", (1.0,)),
    ("selu", (1.6732632, 1.050701)),
    ("gelu", ()),
    ("softplus", ()),
    ("softsign", ()),
    ("abs", ()),
    ("square", ()),
)


class _RandomGraph:
    """Each step adds a few nodes behind a tensor picked among those made so far."""

    def __init__(self, seed: int, tables: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.tables = tables
        shape = (self.pick(2, 4, 5, 6), self.pick(1, 2, 4, 6), self.pick(1, 2, 3, 4))
        self.net = Net(shape, seed=seed, low=self.pick(0, 0, -1), high=1.0)
        self.count = 0

    def pick(self, *choices: int) -> int:
        return int(self.rng.choice(choices))

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}_{self.count}"

    def build(self) -> Graph:
        net = self.net
        for _ in range(self.pick(2, 4, 6, 8)):
            if self.pick(0, 0, 1):
                net.behind(net.nodes[int(self.rng.integers(len(net.nodes)))].name)
            self.step()
        if len(net.nodes) == 1:
            self.conv()
        read = {name for node in net.nodes for name in node.inputs}
        ends = [node.name for node in net.nodes[1:] if node.name not in read]
        inner = [node.name for node in net.nodes[1:] if node.name in read]
        return net.graph(*ends, *(inner[:1] if self.pick(0, 0, 0, 1) else []))

    def step(self) -> None:
        net = self.net
        height, width, channels = net.out_shape
        if isinstance(net.nodes[-1], ArgMax) or net.tail.startswith("argmax"):
            net.behind("image")
            height, width, channels = net.out_shape
        match self.pick(*range(20)):
            case 0 | 1 | 2:
                self.conv()
            case 3:
                self.residual()
            case 4:
                self.stack()
            case 5:
                net.relu(self.name("relu"))
            case 6:
                net.relu(self.name("clip"), -0.4, 0.7)
            case 7:
                kernel = min(height, self.pick(1, 2, 3)), min(width, self.pick(1, 2, 3))
                padding = (self.pick(0, kernel[0] - 1), 0), (0, self.pick(0, kernel[1] - 1))
                if self.pick(0, 1):
                    net.pool(self.name("pool"), kernel, (self.pick(1, 2), 1), padding)
                else:
                    net.average(self.name("mean"), kernel, (self.pick(1, 2), 1), padding, bool(self.pick(0, 1)))
            case 8 if channels > 1:
                start = self.pick(*range(channels - 1))
                net.slice(self.name("slice"), start, self.pick(*range(start + 1, channels + 1)))
            case 9:
                net.shuffle(self.name("shuffle"), self.divisor(channels))
            case 10 if channels % 2 == 0 and max(height, width) <= 6:
                net.depth_to_space(self.name("depth"), (2, 1), "DCR" if self.pick(0, 1) else "CRD")
            case 11 if height % 2 == 0 and channels <= 8:
                net.space_to_depth(self.name("space"), (2, 1), "DCR" if self.pick(0, 1) else "CRD")
            case 12 if max(height, width) <= 6:
                net.upsample(self.name("up"), (self.pick(1, 2), 2))
            case 13:
                net.pad(self.name("pad"), ((1, 0), (self.pick(0, 1), 1)), self.pick(0, 0, 1, -1) / 2)
            case 14 if height > 2:
                net.crop(self.name("crop"), ((1, self.pick(0, 1)), (0, 0)))
            case 15:
                self.pixelwise()
            case 16 if self.tables:
                function, parameters = FUNCTIONS[self.pick(*range(len(FUNCTIONS)))]
                net.pointwise(self.name(function), function, *parameters)
            case 17 if self.tables:
                gated = net.tail
                net.pointwise(self.name("gate"), "sigmoid").multiply(self.name("product"), gated)
            case 18:
                if self.pick(0, 0, 1):
                    net.argmax(self.name("argmax"))
                else:
                    net.reshape(self.name("reshape"), (width, height, channels))
            case 19 if self.pick(0, 1):
                net.dropout(self.name("drop")).dense(self.name("dense"), self.pick(1, 3))
            case _:
                self.conv()

    def pixelwise(self) -> None:
        match self.pick(0, 1, 2, 3):
            case 0:
                self.net.norm(self.name("norm"))
            case 1:
                self.net.scale(self.name("scale"))
            case 2:
                self.net.pca(self.name("pca"), self.pick(1, 2))
            case 3 if self.tables:
                self.net.prelu(self.name("prelu"))

    def conv(self, outputs: int | None = None, *, same: bool = False) -> None:
        net, channels = self.net, self.net.out_shape[2]
        groups = self.divisor(channels) if outputs is None else 1
        outputs = outputs or groups * self.pick(1, 2)
        name = self.name("conv")
        if same:
            net.conv(name, outputs, (3, 3), padding=SAME)
        else:
            kernel, stride, padding, dilation = zip(
                *(_random_axis(self.rng, size, dilated=True) for size in net.out_shape[:2]), strict=True
            )
            net.conv(name, outputs, kernel, stride, padding, True, dilation, groups)
        net.weights[f"{name}.w"] = net.weights[f"{name}.w"] / math.sqrt(math.prod(net.weights[f"{name}.w"].shape[3:]))

    def residual(self) -> None:
        net, start = self.net, self.net.tail
        self.conv(net.out_shape[2], same=True)
        if self.pick(0, 1):
            net.relu(self.name("relu"))
        others = [start]
        if self.pick(0, 0, 1):
            tail = net.tail
            self.net.behind(start)
            self.conv(net.out_shape[2], same=True)
            others.append(tail)
        net.add(self.name("sum"), *others)
        if self.pick(0, 1):
            net.relu(self.name("relu"))

    def stack(self) -> None:
        net, start = self.net, self.net.tail
        ends = []
        for _ in range(self.pick(2, 2, 3)):
            net.behind(start)
            self.conv(self.pick(1, 2, 3), same=True)
            if self.pick(0, 1):
                net.relu(self.name("relu"))
            ends.append(net.tail)
        net.behind(ends[0]).concat(self.name("stack"), *ends[1:], *([start] if self.pick(0, 1) else []))

    def divisor(self, channels: int) -> int:
        return self.pick(*(n for n in range(1, channels + 1) if channels % n == 0))
