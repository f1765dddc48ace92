"""Float networks of other people in integers: accuracy before and after, on labelled samples that calibrated nothing.

    python bench/accuracy.py [--only NAME]

Needs the folder of real models (``CONVFOLD_MODELS``) and the extras ``onnx``, ``tflite`` and ``keras``; the PyTorch rows need
``torch``. Every fifth CIFAR image, and the first 200 MNIST images, calibrate; all others are classified. Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from convfold.compiler.calibrate import Method
from convfold.compiler.evaluate import accuracy, evaluate
from convfold.compiler.graph import Graph
from convfold.compiler.importers import import_model
from convfold.compiler.numbers import IntArray, RealArray
from convfold.compiler.passes import fold
from convfold.compiler.quantize import QuantizeOptions, quantize
from convfold.sim import golden
from tests.mnist import read_images
from tests.models import find_models

Case = tuple[str, Graph, RealArray, RealArray, IntArray]
"""Name, network, images that calibrate, images that are classified and their labels."""

MNIST = 4000
CHUNK = 250


def cases(models: Path) -> Iterator[Case]:
    digits, numbers = read_images(models, 0, MNIST)
    yield (
        *("cntk_mnist, ONNX", import_model(models / "cntk_mnist" / "model.onnx", (0.0, 255.0))),
        *(digits[:200], digits[200:], numbers[200:]),
    )
    with np.load(models / "data_cifar10" / "cifar10_test_1k_jpeg.npz") as data:
        pixels, labels = data["x_uint8"].astype(np.float64), data["y"].astype(np.int64)
    chosen = np.arange(len(pixels)) % 5 == 0
    split = pixels[chosen], pixels[~chosen], labels[~chosen]
    resnet8 = models / "mlperf_resnet8" / "pretrainedResnet"
    yield "ResNet-8, Keras", import_model(resnet8.with_suffix(".h5"), (0.0, 255.0)), *split
    yield "ResNet-8, TFLite float", import_model(resnet8.with_suffix(".tflite"), (0.0, 255.0)), *split
    if importlib.util.find_spec("torch") is None:
        return
    from convfold.compiler.importers.torch import import_module
    from tests.compiler.importers.test_torch import F, cifar, lenet, resnet20, torch

    images = torch.from_numpy(digits.astype(np.float32) / 255.0).permute(0, 3, 1, 2)
    larger = F.interpolate(images, (32, 32), mode="bilinear").permute(0, 2, 3, 1).double().numpy()
    graph = import_module(lenet(models), (1, 32, 32), (0.0, 1.0))
    yield "LeNet-5, PyTorch", graph, larger[:200], larger[200:], numbers[200:]
    x, y = cifar(models)
    graph = import_module(resnet20(models), (3, 32, 32), (-2.2, 2.7))
    yield "ResNet-20, PyTorch", graph, x[chosen], x[~chosen], y[~chosen]


def classified(graph: Graph, images: RealArray) -> RealArray:
    """The outputs of a real or an integer network, in parts."""
    parts = [images[first : first + CHUNK] for first in range(0, len(images), CHUNK)]
    output = graph.outputs[0]
    if graph.input.format is None:
        return np.concatenate([evaluate(graph, part)[output] for part in parts])
    form = graph.input.format
    return np.concatenate([golden.run(graph, form.quantize(part))[output] for part in parts]).astype(np.float64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows with this in their name")
    options = parser.parse_args()
    models = find_models()
    if models is None:
        raise SystemExit("no folder of models: set CONVFOLD_MODELS to it")
    methods = get_args(Method)
    heads = ["network", "samples", "float", *(f"int8, {method}" for method in methods)]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, network, calibration, images, labels in cases(models):
        if options.only not in name:
            continue
        folded = fold(network)
        shares = [accuracy(classified(network, images), labels)]
        for method in methods:
            integers = quantize(folded, QuantizeOptions(method=method), calibration)
            shares.append(accuracy(classified(integers, images), labels))
        print(f"| {name} | {len(labels):,} | {' | '.join(f'{share:.2%}' for share in shares)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
