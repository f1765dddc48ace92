"""Softmax against what tflite-micro computed, and against the real function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convfold.sim.softmax import softmax, softmax_int8

# Made by the interpreter of tflite-micro: input scale, beta, input, output.
VECTORS = [
    (0.3463008403778076, 0.10000000149011612, [3, 33, -55, 122, -115, -57], [-124, -117, -127, 112, -128, -128]),
    (
        *(0.01209745928645134, 0.5),
        [25, 109, -18, -1, 53, 105, -79, -125],
        [-96, -75, -103, -101, -90, -76, -111, -115],
    ),
    (0.004207354970276356, 1.0, [21, 69, -55, -59, 68, 46, 58], [-92, -84, -102, -102, -84, -88, -86]),
    (0.01905863732099533, 0.10000000149011612, [59, -33, 99, 95, -28, 53], [-84, -91, -81, -81, -91, -85]),
    (0.6421860456466675, 1.0, [23, -15, -37, -15, 41, -53], [-128, -128, -128, -128, 127, -128]),
    (0.004283288028091192, 0.5, [-16, -12, 75, 97, -89], [-80, -80, -70, -67, -87]),
    (
        *(0.316295862197876, 0.5),
        [-107, -45, -123, 27, 55, 53, 116, 12],
        [-128, -128, -128, -128, -128, -128, 127, -128],
    ),
    (0.021634936332702637, 0.10000000149011612, [96, -11, 115, 57], [-60, -74, -57, -65]),
    (0.004278059583157301, 0.10000000149011612, [-108, -15, 87, 93], [-67, -65, -62, -62]),
    (0.308645635843277, 1.0, [72, -91, -36, -117, -48], [127, -128, -128, -128, -128]),
]


@pytest.mark.parametrize(("scale", "beta", "x_raw", "expected"), VECTORS)
def test_integers_are_those_of_tflite_micro(scale: float, beta: float, x_raw: list[int], expected: list[int]) -> None:
    assert softmax_int8(np.array(x_raw), scale, beta).tolist() == expected


def test_the_last_axis_is_that_of_the_channels() -> None:
    scale, beta, x_raw, expected = VECTORS[0]
    stacked = np.array([x_raw, x_raw[::-1]]).reshape(2, 1, 1, -1)
    assert softmax_int8(stacked, scale, beta).tolist() == [[[expected]], [[expected[::-1]]]]


@given(
    st.lists(st.integers(-128, 127), min_size=1, max_size=20),
    st.floats(0.001, 4.0),
    st.sampled_from([0.1, 1.0, 2.0]),
)
def test_integers_are_near_the_real_function(x_raw: list[int], scale: float, beta: float) -> None:
    """Within one step of 1/256 and half a step of rounding; what is left out is below e**-16 each."""
    real = softmax(np.array(x_raw) * scale, beta)
    assert abs(real.sum() - 1) < 1e-12
    integers = softmax_int8(np.array(x_raw), scale, beta)
    assert np.all((integers >= -128) & (integers <= 127))
    assert np.all(np.abs((integers + 128) / 256 - real) <= 1.5 / 256)


def test_reals_do_not_overflow() -> None:
    assert softmax(np.array([1e4, 0.0, -1e4])).tolist() == [1.0, 0.0, 0.0]
    assert softmax(np.array([[0.0, np.log(3.0)]]), beta=1.0)[0, 1] == pytest.approx(0.75, rel=1e-15)


@pytest.mark.parametrize(
    ("network", "data", "count"),
    [
        ("mlperf_resnet8/pretrainedResnet_quant", "data_cifar10/cifar10_test_1k_jpeg", 50),
        ("mlperf_kws_dscnn/kws_ref_model", "data_kws/speech_commands_v002_testset_mfcc_int8", 200),
        ("tflm_micro_speech/micro_speech_quantized", "tflm_micro_speech/micro_speech_test_1640", 400),
    ],
)
def test_real_networks_end_as_in_tflite_micro(models_dir: Path, network: str, data: str, count: int) -> None:
    """The whole way: import, golden model, softmax."""
    pytest.importorskip("tflite")
    from convfold.compiler.importers.tflite import read_tflite
    from convfold.sim import golden

    graph = read_tflite(models_dir / f"{network}.tflite")
    ((name, head),) = graph.heads
    with np.load(models_dir / f"{data}.npz") as arrays:
        x_raw = arrays["x_int8"] if "x_int8" in arrays else arrays["x_uint8"].astype(np.int64) - 128
        expected = arrays["tflm_out_int8"][:count]
    scores = golden.run(graph, x_raw[:count].reshape(-1, *graph.input.shape))[name]
    result = softmax_int8(scores, graph.format_of(name).scale, head.beta)
    assert np.array_equal(result.reshape(expected.shape), expected)
