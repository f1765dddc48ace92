"""Random quantized ONNX networks: the golden model against onnxruntime, every number of every output.

    python bench/random_graphs.py --count 1000 [--first SEED] [--frames N]

Prints how many networks are equal, refused and different, and how often each operator was among the equal ones. A network that
differs is cut down to the fewest nodes that still do, and printed with its seed; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import onnx
from onnx import shape_inference, utils

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from convfold.compiler.errors import CompileError
from convfold.compiler.importers.onnx_quantized import read_quantized
from tests.onnx_random import Comparison, compare, random_model


def checked(model: onnx.ModelProto, name: str, frames: int) -> Comparison:
    return compare(model, read_quantized(model, name), frames)


def shrunk(model: onnx.ModelProto, frames: int) -> onnx.ModelProto:
    """The network up to the first integer tensor that differs."""
    inferred = shape_inference.infer_shapes(model)
    for node in model.graph.node:
        for output in node.output:
            extractor = utils.Extractor(inferred)
            try:
                part = extractor.extract_model(["image"], [output])
                if checked(part, "part", frames).different:
                    return part
            except Exception:  # a tensor inside a fused pattern stands for nothing of ours
                continue
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--frames", type=int, default=3)
    options = parser.parse_args()
    equal: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    numbers, networks, different = 0, 0, 0
    for seed in range(options.first, options.first + options.count):
        model = random_model(seed)
        try:
            result = checked(model, f"seed {seed}", options.frames)
        except CompileError as error:
            refused[error.message.partition("\n  - ")[2] or error.message] += 1
            continue
        numbers += result.numbers
        if result.different:
            different += 1
            print(f"seed {seed}: {result.different} of {result.numbers} numbers differ; the least part that does:")
            print(onnx.printer.to_text(shrunk(model, options.frames).graph))
            continue
        networks += 1
        equal.update(set(result.operators))
    print(f"{networks} networks equal ({numbers} numbers), {different} different, {sum(refused.values())} refused")
    for operator, count in sorted(equal.items()):
        print(f"  {operator}: in {count} networks")
    for reason, count in refused.most_common():
        print(f"  refused {count}: {reason}")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
