"""Train the digits example in plain NumPy and write its weights and data files.

The net is the one in `digits.toml`; the table `LAYERS` below lists the same layers in the same order.

1. All layers are trained together, with `project` as a free linear map from 24 to 8 channels.
2. `project` becomes the PCA of `blend`'s responses on the training images, one sample a pixel.
3. `edges`, `blend` and `project` are frozen, and training goes on for the layers behind them.
4. `norm` gets the mean and variance of the whole training split, and everything is written.

*Shapes*: images and maps are `(n, H, W, C)`, conv weights `(out, kh, kw, in)`, dense weights `(out, in)`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

Array = NDArray[np.floating]
Labels = NDArray[np.int64]
Params = dict[str, Array]
Pull = Callable[[Array, Params], Array]
"""Takes the loss gradient of a layer's output, stores those of its weights, returns that of its input."""
Op = Callable[[Params, str, Array], tuple[Array, Pull]]

FOLDER = Path(__file__).parent
SEED = 0
TEST_SHARE = 0.25
CALIBRATION_IMAGES = 128
BATCH = 64
EPOCHS_TOGETHER = 40
EPOCHS_BEHIND_PCA = 30
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 2e-2
EPSILON = 1e-5  # as `epsilon` of layer norm in digits.toml


# ---------------------------------------------------------------- layers


def patches(x_nhwc: Array, kernel: int) -> Array:
    """Every pixel's zero-padded neighbourhood as a row: `(n, H, W, kernel·kernel·C)`, channels fastest."""
    edge = kernel // 2
    padded = np.pad(x_nhwc, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    windows = sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(*x_nhwc.shape[:3], -1)


def conv2d(params: Params, name: str, x_nhwc: Array) -> tuple[Array, Pull]:
    """Correlation, stride 1, padding "same"."""
    w_ohwi = params[f"{name}.w"]
    out, kernel = w_ohwi.shape[:2]
    columns = patches(x_nhwc, kernel)

    def pull(dy: Array, gradients: Params) -> Array:
        rows = dy.reshape(-1, out)
        gradients[f"{name}.w"] = (rows.T @ columns.reshape(len(rows), -1)).reshape(w_ohwi.shape)
        gradients[f"{name}.b"] = rows.sum(axis=0)
        turned_ihwo = w_ohwi[:, ::-1, ::-1].transpose(3, 1, 2, 0)
        return patches(dy, kernel) @ turned_ihwo.reshape(len(turned_ihwo), -1).T

    return columns @ w_ohwi.reshape(out, -1).T + params[f"{name}.b"], pull


def pca(params: Params, name: str, x_nhwc: Array) -> tuple[Array, Pull]:
    """`components · (x − mean)` at every pixel."""
    components = params[f"{name}.components"]
    centred = x_nhwc - params[f"{name}.mean"]

    def pull(dy: Array, gradients: Params) -> Array:
        dx = dy @ components
        rows = dy.reshape(-1, len(components))
        gradients[f"{name}.components"] = rows.T @ centred.reshape(len(rows), -1)
        gradients[f"{name}.mean"] = -dx.sum(axis=(0, 1, 2))
        return dx

    return centred @ components.T, pull


def relu(params: Params, name: str, x: Array) -> tuple[Array, Pull]:
    """`max(x, 0)`."""
    return np.maximum(x, 0), lambda dy, gradients: np.where(x > 0, dy, 0)


def batch_norm(params: Params, name: str, x_nhwc: Array) -> tuple[Array, Pull]:
    """`gamma · (x − mean) / sqrt(var + epsilon) + beta` with the batch's own mean and variance.

    They are left in `params`, so a pass over the whole training split sets those used at inference.
    """
    gamma, beta = params[f"{name}.gamma"], params[f"{name}.beta"]
    axes = (0, 1, 2)
    params[f"{name}.mean"], params[f"{name}.var"] = x_nhwc.mean(axis=axes), x_nhwc.var(axis=axes)
    deviation = np.sqrt(params[f"{name}.var"] + EPSILON)
    unit = (x_nhwc - params[f"{name}.mean"]) / deviation

    def pull(dy: Array, gradients: Params) -> Array:
        gradients[f"{name}.gamma"] = (dy * unit).sum(axis=axes)
        gradients[f"{name}.beta"] = dy.sum(axis=axes)
        dx: Array = gamma / deviation * (dy - dy.mean(axis=axes) - unit * (dy * unit).mean(axis=axes))
        return dx

    return gamma * unit + beta, pull


def batch_norm_inference(params: Params, name: str, x_nhwc: Array) -> tuple[Array, Pull]:
    """The same map with the stored mean and variance."""
    gamma, beta, mean, var = (params[f"{name}.{part}"] for part in ("gamma", "beta", "mean", "var"))
    scale = gamma / np.sqrt(var + EPSILON)
    return (x_nhwc - mean) * scale + beta, lambda dy, gradients: dy * scale


def max_pool(params: Params, name: str, x_nhwc: Array) -> tuple[Array, Pull]:
    """The largest of each 2x2 block, stride 2."""
    n, height, width, channels = x_nhwc.shape
    blocks = x_nhwc.reshape(n, height // 2, 2, width // 2, 2, channels)
    y = blocks.max(axis=(2, 4), keepdims=True)

    def pull(dy: Array, gradients: Params) -> Array:
        # A tie passes the gradient to all its pixels: behind a rectifier ties are zeros, which block it.
        return np.where(blocks == y, dy[:, :, None, :, None], 0).reshape(x_nhwc.shape)

    return y[:, :, 0, :, 0], pull


def dense(params: Params, name: str, x_nhwc: Array) -> tuple[Array, Pull]:
    """`w · x + b` on the map flattened in (H, W, C) order."""
    w_oi = params[f"{name}.w"]
    flat = x_nhwc.reshape(len(x_nhwc), -1)

    def pull(dy: Array, gradients: Params) -> Array:
        gradients[f"{name}.w"], gradients[f"{name}.b"] = dy.T @ flat, dy.sum(axis=0)
        return (dy @ w_oi).reshape(x_nhwc.shape)

    return flat @ w_oi.T + params[f"{name}.b"], pull


LAYERS: tuple[tuple[str, Op], ...] = (
    ("edges", conv2d),
    ("blend", conv2d),
    ("project", pca),
    ("relu1", relu),
    ("mix", conv2d),
    ("norm", batch_norm),
    ("relu2", relu),
    ("pool", max_pool),
    ("classify", dense),
)
BEHIND = LAYERS[3:]  # the layers behind the PCA
INFERENCE = tuple((name, batch_norm_inference if op is batch_norm else op) for name, op in LAYERS)


def initial_params(rng: np.random.Generator) -> Params:
    """Uniform weights in ±sqrt(3 / fan in), biases in ±0.1, identity batch norm."""
    shapes = {
        "edges.w": (8, 3, 3, 1),
        "blend.w": (24, 3, 3, 8),
        "project.components": (8, 24),
        "mix.w": (16, 3, 3, 8),
        "classify.w": (10, 4 * 4 * 16),
    }
    params: Params = {}
    for key, shape in shapes.items():
        limit = np.sqrt(3 / np.prod(shape[1:]))
        params[key] = rng.uniform(-limit, limit, shape)
        if key.endswith(".w"):
            params[key.replace(".w", ".b")] = rng.uniform(-0.1, 0.1, shape[0])
    params["project.mean"] = np.zeros(24)
    params |= {"norm.gamma": np.ones(16), "norm.beta": np.zeros(16)}  # mean and var come from the data
    return {key: value.astype(np.float32) for key, value in params.items()}


# ---------------------------------------------------------------- training


def forward(layers: Sequence[tuple[str, Op]], params: Params, x: Array) -> tuple[Array, list[Pull]]:
    """The output of `layers` on `x`, and each layer's gradient rule in order."""
    pulls = []
    for name, op in layers:
        x, pull = op(params, name, x)
        pulls.append(pull)
    return x, pulls


def cross_entropy_gradient(scores: Array, labels: Labels) -> Array:
    """The gradient of the mean softmax cross entropy with respect to the scores."""
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    gradient: Array = exponents / exponents.sum(axis=1, keepdims=True)
    gradient[np.arange(len(labels)), labels] -= 1
    return gradient / len(labels)


def shifted(x_nhwc: Array, rng: np.random.Generator) -> Array:
    """Each image moved by -1, 0 or 1 pixel along each axis, zeros moving in."""
    n, height, width, _ = x_nhwc.shape
    padded = np.pad(x_nhwc, ((0, 0), (1, 1), (1, 1), (0, 0)))
    down, right = rng.integers(0, 3, (2, n, 1))
    rows, columns = np.arange(height) + down, np.arange(width) + right
    moved: Array = padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved


def batches(x: Array, y: Labels, rng: np.random.Generator) -> Iterator[tuple[Array, Labels]]:
    """One epoch of shuffled, shifted batches; a last short batch is left out."""
    order = rng.permutation(len(x))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        yield shifted(x[chosen], rng), y[chosen]


def train(
    params: Params,
    trained: Sequence[tuple[str, Op]],
    x: Array,
    y: Labels,
    epochs: int,
    rng: np.random.Generator,
) -> None:
    """Fit the layers `trained`, the last ones of the net, in place: AdamW with a cosine learning rate."""
    frozen = LAYERS[: len(LAYERS) - len(trained)]
    steps = epochs * (len(x) // BATCH)
    first: Params = {}
    second: Params = {}
    step = 0
    for _ in range(epochs):
        for x_batch, y_batch in batches(x, y, rng):
            step += 1
            rate = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            features, _ = forward(frozen, params, x_batch)
            scores, pulls = forward(trained, params, features)
            gradients: Params = {}
            gradient = cross_entropy_gradient(scores, y_batch)
            for pull in reversed(pulls):
                gradient = pull(gradient, gradients)
            for key, g in gradients.items():
                first[key] = 0.9 * first.get(key, 0) + 0.1 * g
                second[key] = 0.99 * second.get(key, 0) + 0.01 * g * g
                direction = first[key] / (1 - 0.9**step) / (np.sqrt(second[key] / (1 - 0.99**step)) + 1e-8)
                decay = WEIGHT_DECAY * params[key] if key.endswith((".w", ".components")) else 0
                params[key] = (params[key] - rate * (direction + decay)).astype(np.float32)


def fit_pca(params: Params, x: Array) -> float:
    """Set `project` to the PCA of `blend`'s responses to `x`; return the share of variance it keeps."""
    responses, _ = forward(LAYERS[:2], params, x.astype(np.float64))
    fitted = PCA(n_components=8, svd_solver="full").fit(responses.reshape(-1, responses.shape[-1]))
    params["project.components"] = fitted.components_.astype(np.float32)
    params["project.mean"] = fitted.mean_.astype(np.float32)
    return float(fitted.explained_variance_ratio_.sum())


def set_statistics(params: Params, x: Array) -> None:
    """Set `norm` to the mean and variance of `mix`'s responses to `x`."""
    forward(LAYERS, params, x.astype(np.float64))
    for key in ("norm.mean", "norm.var"):
        params[key] = params[key].astype(np.float32)


def accuracy(params: Params, x: Array, y: Labels) -> float:
    """The share of images whose largest score is their label's, in float64 from the written weights."""
    scores, _ = forward(INFERENCE, params, x.astype(np.float64))
    return float((scores.argmax(axis=1) == y).mean())


# ---------------------------------------------------------------- files


def load_split() -> tuple[Array, Array, Labels, Labels]:
    """Training images, test images, training labels, test labels; pixels 0..16 become 0..1, exactly."""
    digits = load_digits()
    x_nhwc = (digits.images / 16).astype(np.float32)[..., None]
    x_train, x_test, y_train, y_test = train_test_split(
        x_nhwc, digits.target, test_size=TEST_SHARE, stratify=digits.target, random_state=SEED
    )
    return x_train, x_test, y_train, y_test


def main() -> None:
    """Train, print the accuracies, write `digits.npz`, `calibration.npz` and `test.npz`."""
    x_train, x_test, y_train, y_test = load_split()
    rng = np.random.default_rng(SEED)
    params = initial_params(rng)
    train(params, LAYERS, x_train, y_train, EPOCHS_TOGETHER, rng)
    kept = fit_pca(params, x_train)
    print(f"pca keeps {kept:.2%} of the variance of blend's responses")
    train(params, BEHIND, x_train, y_train, EPOCHS_BEHIND_PCA, rng)
    set_statistics(params, x_train)
    print(f"train accuracy {accuracy(params, x_train, y_train):.2%} of {len(y_train)} images")
    print(f"test accuracy {accuracy(params, x_test, y_test):.2%} of {len(y_test)} images")

    x_calibration, _ = train_test_split(
        x_train, train_size=CALIBRATION_IMAGES, stratify=y_train, random_state=SEED
    )
    # NumPy dates every member of an .npz 1980-01-01, so equal arrays give equal files.
    np.savez_compressed(FOLDER / "digits.npz", allow_pickle=False, **params)
    np.savez_compressed(FOLDER / "calibration.npz", x=x_calibration)
    np.savez_compressed(FOLDER / "test.npz", x=x_test, y=y_test.astype(np.uint8))


if __name__ == "__main__":
    with threadpool_limits(1):  # one thread adds in one order, so every run gives the same bytes
        main()
