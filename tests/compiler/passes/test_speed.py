"""Folding is quick and small: in seconds of the processor, for other tests run beside these."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from convfold.compiler.graph import Graph
from convfold.compiler.passes import fold
from tests.compiler.passes.nets import SAME, Net

PAIR = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from convfold.compiler.passes import Options, fold
from tests.compiler.passes.nets import NONE, SAME, Net
padding = SAME if sys.argv[1] == "padded" else NONE
graph = Net((8, 8, 512)).conv("a", 512, padding=padding).conv("b", 512, padding=padding).graph()
folded = fold(graph, Options(force=True))
print(folded.weights["b.w"].shape, folded.decisions[-1].error < 1e-9)
"""


def resnet() -> Graph:
    """ResNet-8 for 32×32 pixels: 78 thousand weights."""
    net = Net((32, 32, 3)).conv("first", 16, padding=SAME).norm("norm").relu("relu")
    start = net.tail
    for n, (channels, step) in enumerate(((16, 1), (32, 2), (64, 2))):
        padding = SAME if step == 1 else ((0, 1), (0, 1))
        net.behind(start).conv(f"a{n}", channels, stride=(step, step), padding=padding).norm(f"norm_a{n}").relu(f"r{n}")
        end = net.conv(f"b{n}", channels, padding=SAME).norm(f"norm_b{n}").tail
        net.behind(start)
        if step > 1:
            net.conv(f"short{n}", channels, (1, 1), (step, step))
        start = net.add(f"sum{n}", end).relu(f"relu{n}").tail
    return net.global_average("pool").dense("scores", 10).graph()


def test_a_resnet_folds_in_a_second() -> None:
    graph = resnet()
    assert 77_000 < sum(array.size for array in graph.weights.values()) < 80_000
    start = time.process_time()
    folded = fold(graph)
    assert time.process_time() - start < 1.0
    assert {node.op for node in folded.nodes} == {"input", "conv2d", "clip", "add", "average_pool", "dense"}


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
@pytest.mark.parametrize(("padding", "shape"), [("none", (1, 1, 512, 5, 5, 512)), ("padded", (3, 3, 512, 5, 5, 512))])
def test_a_wide_pair_folds_in_a_minute_and_4_gigabytes(padding: str, shape: tuple[int, ...]) -> None:
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    env = os.environ | threads | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    start = os.times().children_user
    run = subprocess.run([sys.executable, "-P", "-c", PAIR, padding], env=env, capture_output=True, text=True)
    assert run.stdout == f"{shape} True\n", run.stderr
    assert os.times().children_user - start < 60
