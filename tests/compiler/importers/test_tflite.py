"""TensorFlow Lite files against the interpreter of tflite-micro, byte for byte; broken and hostile ones against the rules."""

from __future__ import annotations

import re
import struct
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import Conv2D, Graph, Input, QConv2D, Softmax
from convfold.compiler.importers import import_model
from convfold.compiler.importers import tflite_kernels as kernels
from convfold.compiler.importers.common import DEFAULT_RANGE
from convfold.compiler.importers.tflite import import_tflite, read_tflite
from convfold.compiler.numbers import Format
from convfold.sim import golden
from tests.models import HELLO_WORLD, INT8, classify, goldens
from tests.tflite_nets import OPERATORS, REAL_OPERATORS, random_frames, random_network
from tests.tflite_writer import File, Tensor, Writer, float32
from tests.tflm import Reference

pytest.importorskip("tflite_micro", reason="tflite-micro defines what int8 networks compute")

FULL = Format(8, True, 1.0)


def saved(folder: Path, data: bytes, name: str = "net.tflite") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def compare(path: Path, x_raw: NDArray[np.integer]) -> int:
    """Every tensor of every frame equals the interpreter's; how many bytes were compared."""
    graph, names = import_tflite(path)
    reference = Reference(path.read_bytes(), keep=True)
    tensors = golden.trace(graph, x_raw.reshape(-1, *graph.input.shape))
    compared = 0
    for number, frame in enumerate(x_raw):
        for index, expected in reference.tensors(frame, names).items():
            found = tensors[names[index]][number].ravel()
            assert np.array_equal(found, expected.ravel()), f"{names[index]}: {graph.node(names[index]).source}"
            compared += found.size
    return compared


# --------------------------------------------------------------------------------------------------- other people's


@pytest.mark.parametrize("name", INT8)
def test_a_real_network_equals_tflite_micro(name: str, models_dir: Path) -> None:
    """The first outputs, and every tensor of two frames; ``bench/exact.py`` runs all there are."""
    samples = INT8[name]
    path, frames = models_dir / samples.model, samples.frames(models_dir)[:100]
    graph = read_tflite(path)
    outputs = golden.run(graph, frames.reshape(-1, *graph.input.shape))
    assert np.array_equal(classify(graph, outputs[graph.outputs[0]]), samples.expected(models_dir)[:100])
    assert compare(path, frames[:2]) > 10_000


def test_hello_world_equals_tflite_micro_on_every_input(models_dir: Path) -> None:
    assert compare(models_dir / HELLO_WORLD, np.arange(-128, 128).reshape(-1, 1)) == 256 * 34


def test_published_vectors(models_dir: Path) -> None:
    graphs = {name: read_tflite(models_dir / samples.model) for name, samples in INT8.items()}
    cases = list(goldens(models_dir))
    for name, net, frame, expected in cases:
        outputs = golden.run(graphs[net], frame.reshape(1, *graphs[net].input.shape))
        assert np.array_equal(classify(graphs[net], outputs[graphs[net].outputs[0]])[0], expected), name
    assert len(cases) == 22


def test_a_real_network_reads_as_it_is_drawn(models_dir: Path) -> None:
    graph = import_model(models_dir / INT8["resnet8"].model)
    kinds = [node.op for node in graph.nodes]
    assert [kinds.count(kind) for kind in ("qconv2d", "qadd", "qaverage_pool", "flatten")] == [10, 3, 1, 0]
    assert graph.heads == ((graph.outputs[0], Softmax(1.0, Format(8, True, 1 / 256, -128))),)
    first = graph.nodes[1]
    assert isinstance(first, QConv2D)
    assert (first.low, first.high, first.format.zero_point) == (-128, 127, -128)
    assert graph.weights[f"{first.name}.m"].min() >= 1 << 30


def test_float_and_int8_versions_agree(models_dir: Path) -> None:
    """The float file gives the interpreter's reals, and the class of the int8 file for nearly every frame."""
    samples, count = INT8["resnet8"], 40
    frames = samples.frames(models_dir)[:count] + samples.offset
    path = models_dir / "mlperf_resnet8" / "pretrainedResnet.tflite"
    graph = read_tflite(path, (0.0, 255.0))
    logits = evaluate(graph, frames.astype(np.float64))[graph.outputs[0]].reshape(count, -1)
    reference = Reference(path.read_bytes())
    powers = np.exp(logits[0] - logits[0].max())
    assert np.abs(reference.run(frames[0]).ravel() - powers / powers.sum()).max() < 1e-5
    assert (logits.argmax(1) == samples.expected(models_dir)[:count].argmax(1)).mean() >= 0.9


def test_int8_weights_of_a_float_network_are_dequantized(models_dir: Path) -> None:
    path = models_dir / "mlperf_kws_dscnn" / "kws_ref_model_float32.tflite"
    graph = read_tflite(path, (-250.0, 130.0))
    frames = np.load(models_dir / "data_kws" / "speech_commands_testset_mfcc_f32_978.npz", allow_pickle=False)
    logits = evaluate(graph, frames["x"][:100].astype(np.float64))[graph.outputs[0]].reshape(100, -1)
    assert (logits.argmax(1) == frames["y"][:100]).mean() > 0.85


# ---------------------------------------------------------------------------------------------------- each operator


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_equals_tflite_micro(operator: str, tmp_path: Path) -> None:
    compared = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        data, outputs = random_network(rng, 2, [operator])
        if outputs:
            path = saved(tmp_path, data)
            compared += compare(path, random_frames(rng, 2, import_tflite(path)[0].input.shape))
    assert compared > 500


def test_random_networks_equal_tflite_micro(tmp_path: Path) -> None:
    for seed in range(60):
        rng = np.random.default_rng([1, seed])
        path = saved(tmp_path, random_network(rng, 10)[0])
        assert compare(path, random_frames(rng, 2, import_tflite(path)[0].input.shape)) > 0


@pytest.mark.parametrize("operator", REAL_OPERATORS)
def test_a_real_operator_equals_tflite_micro(operator: str, tmp_path: Path) -> None:
    """Within the rounding of single precision."""
    compared = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        data, outputs = random_network(rng, 2, [operator], real=True)
        if not outputs:
            continue
        graph, names = import_tflite(saved(tmp_path, data))
        x = rng.uniform(-1, 1, (1, *graph.input.shape)).astype(np.float32)
        found = evaluate(graph, x.astype(np.float64), keep=graph.shapes)
        for index, tensor in Reference(data, keep=True).tensors(x, names).items():
            expected = tensor.ravel().astype(np.float64)
            assert np.abs(found[names[index]].ravel() - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
            compared += expected.size
    assert compared > 100


@pytest.mark.parametrize("kind", ["RELU", "RELU6", "LEAKY_RELU", "HARD_SWISH", "LOGISTIC", "TANH", "QUANTIZE"])
def test_every_entry_of_a_table_equals_tflite_micro(kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """All 256 samples, for scales from fine to so coarse that a single step saturates."""
    for scale in (2.0 ** rng.uniform(-12, 7, 40)).astype(np.float32):
        writer = Writer()
        x = writer.tensor((1, 16, 16, 1), float(scale), int(rng.integers(-128, 128)))
        form = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}.get(kind)
        coarser = float32(float(scale) * rng.uniform(1, 3)), int(rng.integers(-128, 128))
        source = writer.tensors[x]
        same = source.scales[0], source.zero_points[0]
        y = writer.tensor((1, 16, 16, 1), *(form or (same if kind == "RELU6" else coarser)))
        options = {"Alpha": float(rng.uniform(-2, 2))} if kind == "LEAKY_RELU" else {}
        writer.operator(kind, [x], [y], **options)
        assert compare(saved(tmp_path, writer.write([x], [y])), np.arange(-128, 128).reshape(1, 16, 16, 1)) == 512


@pytest.mark.parametrize("kind", ["FULLY_CONNECTED", "CONV_2D"])
def test_the_precision_of_a_layers_scales_is_tflite_micros(kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Biases of 2**30 for which a product of scales in single and one in double precision give different bytes."""
    x_scale, w_scale = (float32(scale) for scale in rng.uniform(0.01, 0.02, 2))
    y_scale = float32(x_scale * w_scale * 2.0**23)
    single = float(np.float32(x_scale) * np.float32(w_scale)) / y_scale
    pair = [kernels.quantize_multiplier(ratio) for ratio in (single, x_scale * w_scale / y_scale)]
    near = (np.arange(100, 127)[:, None] * 2**23 + 2**22 + np.arange(-100, 100)).ravel()
    first, second = (kernels.rescaled(near, multiplier) for multiplier in pair)
    biases = near[first != second]
    assert 10 < len(biases)

    writer = Writer()
    shape = (1, 1, 1, 1) if kind == "CONV_2D" else (1, 1)
    x, y = writer.tensor(shape, x_scale), writer.tensor((*shape[:-1], len(biases)), y_scale)
    w = writer.constant(np.ones((len(biases), *shape[1:])), "INT8", [w_scale])
    b = writer.constant(biases, "INT32", [float32(x_scale * w_scale)])
    steps = {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1} if kind == "CONV_2D" else {}
    writer.operator(kind, [x, w, b], [y], FusedActivationFunction=0, **steps)
    assert compare(saved(tmp_path, writer.write([x], [y])), np.zeros((1, *shape[1:]), dtype=np.int64)) > len(biases)


@pytest.mark.parametrize(
    ("kind", "x_scale", "y_scale", "options"),
    [
        ("LEAKY_RELU", 0.016369616612792015, 0.009061751887202263, {"Alpha": 0.484375}),
        ("HARD_SWISH", 0.03405245020985603, 0.03294548764824867, {}),
        ("RELU6", 6 / 25.5, 6 / 25.5, {}),
    ],
)
def test_the_precision_of_a_functions_scales_is_tflite_micros(
    kind: str, x_scale: float, y_scale: float, options: dict[str, float], tmp_path: Path
) -> None:
    """Scales at which single and double precision give different bytes."""
    writer = Writer()
    x, y = writer.tensor((1, 256), float32(x_scale)), writer.tensor((1, 256), float32(y_scale))
    writer.operator(kind, [x], [y], **options)
    assert compare(saved(tmp_path, writer.write([x], [y])), np.arange(-128, 128)[None]) == 512


def test_the_precision_of_a_differences_scales_is_tflite_micros(tmp_path: Path) -> None:
    """All pairs of samples, at scales for which single and double precision differ in some."""
    writer = Writer()
    x, y = writer.tensor((1, 256, 256, 2), 0.017015649005770683), writer.tensor((1, 256, 256, 1), 0.014066270552575588)
    parts = [writer.tensor((1, 256, 256, 1), 0.017015649005770683) for _ in range(2)]
    writer.operator("SPLIT", [writer.constant([3], "INT32"), x], parts, NumSplits=2)
    writer.operator("SUB", parts, [y], FusedActivationFunction=0)
    steps = np.arange(-128, 128)
    frame = np.stack(np.meshgrid(steps, steps), axis=-1)[None]
    assert compare(saved(tmp_path, writer.write([x], [y])), frame) == 5 * 256 * 256


def test_softmax_at_the_end_is_the_hosts(tmp_path: Path, rng: np.random.Generator) -> None:
    writer = Writer()
    x, logits = writer.tensor((1, 9), 0.1), writer.tensor((1, 9), 0.12, 7)
    y = writer.tensor((1, 9), 1 / 256, -128)
    writer.operator("QUANTIZE", [x], [logits])
    writer.operator("SOFTMAX", [logits], [y], Beta=1.0)
    path = saved(tmp_path, writer.write([x], [y]))
    graph, frames = read_tflite(path), rng.integers(-128, 128, (50, 1, 1, 9))
    reference = Reference(path.read_bytes())
    found = classify(graph, golden.run(graph, frames)[graph.outputs[0]])
    assert np.array_equal(found, np.stack([reference.run(frame).ravel() for frame in frames]))


def test_argmax_at_the_end(tmp_path: Path, rng: np.random.Generator) -> None:
    writer = Writer()
    x, y = writer.tensor((1, 4, 5, 7), 0.1), writer.tensor((1, 4, 5), kind="INT32")
    writer.operator("ARG_MAX", [x, writer.constant([3], "INT32")], [y])
    path = saved(tmp_path, writer.write([x], [y]))
    assert compare(path, rng.integers(-3, 3, (5, 4, 5, 7))) == 5 * 4 * 5 * 8


def test_float_ends_of_an_integer_network_are_left_out(tmp_path: Path) -> None:
    """QUANTIZE in front and DEQUANTIZE behind: the engine takes and gives the integers."""
    writer = Writer()
    x, first = writer.tensor((1, 6), kind="FLOAT32", name="x"), writer.tensor((1, 6), 0.5, 3)
    second, y = writer.tensor((1, 6), 0.5, 3), writer.tensor((1, 6), kind="FLOAT32")
    writer.operator("QUANTIZE", [x], [first])
    writer.operator("RELU6", [first], [second])
    writer.operator("DEQUANTIZE", [second], [y])
    graph = read_tflite(saved(tmp_path, writer.write([x], [y])))
    assert str(graph) == "x: 1×1×6 = input(int8 × 0.5 zero 3)\nt2: 1×1×6 = qtable(x, relu6, int8 × 0.5 zero 3)\nreturn t2"
    assert (graph.input.low, graph.input.high) == (-65.5, 62.0)


def test_a_uint8_input_is_requantized(tmp_path: Path) -> None:
    writer = Writer()
    x, y = writer.tensor((1, 256), 0.5, 128, "UINT8"), writer.tensor((1, 256), 0.5, 0)
    writer.operator("QUANTIZE", [x], [y])
    assert compare(saved(tmp_path, writer.write([x], [y])), np.arange(256)[None]) == 512


def test_shapes_that_are_computed_are_passed_over(tmp_path: Path) -> None:
    """SHAPE, STRIDED_SLICE, PACK and RESHAPE: how converters write a flattening with a free batch."""
    writer = Writer()
    x, y = writer.tensor((1, 2, 3, 4)), writer.tensor((1, 24))
    shape, size = writer.tensor((4,), kind="INT32"), writer.tensor((2,), kind="INT32")
    writer.operator("SHAPE", [x], [shape])
    writer.operator("PACK", [shape, writer.constant([24], "INT32")], [size])
    writer.operator("RESHAPE", [x, size], [y])
    graph = read_tflite(saved(tmp_path, writer.write([x], [y])))
    assert [node.op for node in graph.nodes] == ["input", "flatten"]


def test_one_dimensional_maps_are_columns(tmp_path: Path, rng: np.random.Generator) -> None:
    writer = Writer()
    x, padded, mean = writer.tensor((1, 10, 4), 0.1, 5), writer.tensor((1, 13, 4), 0.1, 5), writer.tensor((1, 4), 0.07)
    writer.operator("PAD", [x, writer.constant(np.array([[0, 0], [1, 2], [0, 0]]), "INT32")], [padded])
    writer.operator("MEAN", [padded, writer.constant([1], "INT32")], [mean], KeepDims=0)
    path = saved(tmp_path, writer.write([x], [mean]))
    assert import_tflite(path)[0].shapes["t1"] == (13, 1, 4)
    assert compare(path, rng.integers(-128, 128, (3, 10, 4))) == 3 * (40 + 52 + 4)


def test_padding_of_zeros_is_merged_into_the_convolution(tmp_path: Path) -> None:
    writer = small_convolution()
    x, padded = writer.tensor((1, 4, 4, 2), 0.5, 3), writer.operators[0].inputs[0]
    pads = writer.constant(np.array([[0, 0], [1, 0], [0, 2], [0, 0]]), "INT32")
    writer.operator("PAD", [x, pads], [padded])
    writer.operators.reverse()
    path = saved(tmp_path, writer.write([x], [writer.operators[1].outputs[0]]))
    graph = read_tflite(path)
    (node,) = (node for node in graph.nodes if isinstance(node, QConv2D))
    assert (len(graph.nodes), node.padding) == (2, ((1, 0), (0, 2)))


# ----------------------------------------------------------------------------------------------------------- kernels


def test_multipliers() -> None:
    assert kernels.quantize_multiplier(0.5) == (1 << 30, 0)
    assert kernels.quantize_multiplier(1.0) == (1 << 30, 1)
    assert kernels.quantize_multiplier(float(np.nextafter(1.0, 0.0))) == (1 << 30, 1)  # rounds up to 2**31
    assert kernels.quantize_multiplier(2.0**-32) == (1 << 30, -31)
    assert kernels.quantize_multiplier(2.0**-33) == (0, 0)
    assert kernels.quantize_multiplier(-0.75) == (-(3 << 29), 0)
    assert kernels.mean_multiplier(0.5, 8) == (1 << 30, -3)
    with pytest.raises(kernels.Unrepresentable, match=r"^its scales overflow$"):
        kernels.quantize_multiplier(float("inf"))


def test_activation_limits_round_away_from_zero() -> None:
    form = Format(8, True, 0.8, -100)
    assert kernels.activation_limits(kernels.NONE, form) == (-128, 127)
    assert kernels.activation_limits(kernels.RELU, form) == (-100, 127)
    assert kernels.activation_limits(kernels.RELU6, form) == (-100, -92)  # 6 / 0.8 is 7.5
    assert kernels.activation_limits(kernels.RELU_N1_TO_1, form) == (-101, -99)


# ---------------------------------------------------------------------------------------------------------- refusals


def small_convolution() -> Writer:
    """Of 5×6×2 samples, tensor 0, to 3×4×3, tensor 3."""
    writer = Writer()
    x = writer.tensor((1, 5, 6, 2), 0.5, 3)
    w = writer.constant(np.arange(54).reshape(3, 3, 3, 2) - 27, "INT8", [0.1, 0.2, 0.3])
    b = writer.constant([1, -2, 3], "INT32", [0.05, 0.1, 0.15])
    y = writer.tensor((1, 3, 4, 3), 20.0, -5)
    one = {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    writer.operator("CONV_2D", [x, w, b], [y], Padding=1, FusedActivationFunction=1, **one)
    return writer


def refuse(folder: Path, writer: Writer, pattern: str, outputs: tuple[int, ...] = (3,)) -> None:
    path = saved(folder, writer.write([0], outputs))
    with pytest.raises(CompileError, match=pattern):
        read_tflite(path)


def test_the_small_convolution_is_sound(tmp_path: Path, rng: np.random.Generator) -> None:
    path = saved(tmp_path, small_convolution().write([0], [3]))
    assert compare(path, rng.integers(-128, 128, (5, 5, 6, 2))) == 5 * (60 + 36)


def test_all_unsupported_operators_are_listed(tmp_path: Path) -> None:
    writer = small_convolution()
    first, second = writer.tensor((1, 3, 4, 3), name="first"), writer.tensor((1, 3, 4, 3), name="second")
    third = writer.tensor((1, 6, 8, 3), name="third")
    writer.operator("ELU", [3], [first])
    writer.operator("RELU", [first], [second])  # behind a refused one: not listed
    writer.operator("RESIZE_BILINEAR", [3, writer.constant([6, 8], "INT32")], [third])
    path = saved(tmp_path, writer.write([0], [second, third]))
    with pytest.raises(CompileError) as caught:
        read_tflite(path)
    bilinear, unknown = "RESIZE_BILINEAR", "is not supported in int8 networks"
    assert str(caught.value).splitlines() == [
        "net.tflite: 2 nodes cannot be imported:",
        f"  - net.tflite: operator 1 ELU 'first' (1×3×4×3): ELU {unknown}; use LEAKY_RELU",
        f"  - net.tflite: operator 3 {bilinear} 'third' (1×6×8×3): {bilinear} {unknown}; use RESIZE_NEAREST_NEIGHBOR",
        "  fix: change each node as said behind it, and export again",
    ]


def test_sixteen_bit_activations_are_refused(tmp_path: Path) -> None:
    writer = Writer()
    x, y = writer.tensor((1, 4), kind="INT16"), writer.tensor((1, 4), kind="INT16")
    writer.operator("RELU", [x], [y])
    refuse(tmp_path, writer, r"t0 is INT16; quantize all activations to int8", (y,))


def test_uint8_inside_a_network_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    x, y = writer.tensor((1, 4), kind="UINT8"), writer.tensor((1, 4), kind="UINT8")
    writer.operator("RELU", [x], [y])
    refuse(tmp_path, writer, r"it computes in uint8; convert the network to int8", (y,))


def test_an_index_is_no_operand_of_a_float_network(tmp_path: Path) -> None:
    writer = Writer()
    x, y, z = writer.tensor((1, 4), kind="FLOAT32"), writer.tensor((1, 1), kind="INT32"), writer.tensor((1, 1), kind="INT32")
    writer.operator("ARG_MAX", [x, writer.constant([1], "INT32")], [y])
    writer.operator("ABS", [y], [z])
    refuse(tmp_path, writer, r"its input 0 is INT32; use float32 tensors", (z,))


def test_batches_are_refused(tmp_path: Path) -> None:
    writer = Writer()
    x, y = writer.tensor((2, 4)), writer.tensor((2, 4))
    writer.operator("RELU", [x], [y])
    refuse(tmp_path, writer, r"its batch is 2; export the network with batch 1", (y,))


def test_a_softmax_inside_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    x, y, z = writer.tensor((1, 4)), writer.tensor((1, 4), 1 / 256, -128), writer.tensor((1, 4))
    writer.operator("SOFTMAX", [x], [y], Beta=1.0)
    writer.operator("RELU", [y], [z])
    refuse(tmp_path, writer, r"it reads the result of a softmax", (z,))


def test_a_concatenation_of_two_formats_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    x, y, z = writer.tensor((1, 4)), writer.tensor((1, 4), 0.5), writer.tensor((1, 8), 0.5)
    writer.operator("QUANTIZE", [x], [y])
    writer.operator("CONCATENATION", [x, y], [z], Axis=1)
    refuse(tmp_path, writer, r"its input 0 is int8 × 1 and its result int8 × 0\.5; insert a QUANTIZE", (z,))


def test_an_accumulator_of_more_than_32_bits_is_refused(tmp_path: Path) -> None:
    writer = small_convolution()
    writer.tensors[2].data = struct.pack("<3i", 0, (1 << 31) - 1, 0)
    refuse(tmp_path, writer, r"its accumulators overflow 32 bits")


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, small_convolution().write([0], [3]))
    monkeypatch.setitem(sys.modules, "tflite", None)
    with pytest.raises(CompileError) as caught:
        read_tflite(path)
    assert caught.value.hint == "pip install 'convfold[tflite]'"


def test_a_float_network_has_the_range_that_is_given(tmp_path: Path) -> None:
    writer = Writer()
    x, y = writer.tensor((1, 4), kind="FLOAT32"), writer.tensor((1, 4), kind="FLOAT32")
    writer.operator("TANH", [x], [y])
    path = saved(tmp_path, writer.write([x], [y]))

    def limits(graph: Graph) -> tuple[float, float]:
        return graph.input.low, graph.input.high

    assert limits(read_tflite(path)) == DEFAULT_RANGE
    assert limits(import_model(path, (0.0, 3.0))) == (0.0, 3.0)


def test_float16_weights_are_read(tmp_path: Path) -> None:
    """Their DEQUANTIZE is folded."""
    writer = Writer()
    x, y, w = (writer.tensor((1, 2), kind="FLOAT32") for _ in range(3))
    writer.tensors[w].shape = (2, 2)
    writer.operator("DEQUANTIZE", [writer.constant(np.array([[1.0, 2.0], [3.0, 0.5]]), "FLOAT16")], [w])
    writer.operator("FULLY_CONNECTED", [x, w, -1], [y])
    graph = read_tflite(saved(tmp_path, writer.write([x], [y])))
    assert evaluate(graph, np.array([[[[1.0, 10.0]]]]))[graph.outputs[0]].tolist() == [[[[21.0, 8.0]]]]
    assert not any(isinstance(node, Conv2D) for node in graph.nodes)


# ----------------------------------------------------------------------------------------------------- broken files


def broken(name: str) -> Writer:
    """The small convolution with one thing wrong."""
    writer = small_convolution()
    x, w, b, y = writer.tensors
    match name:
        case "a result of another shape":
            y.shape = (1, 4, 3, 3)
        case "a negative size":
            x.shape = (1, 5, -6, 2)
        case "a size of zero":
            x.shape = (1, 5, 0, 2)
        case "a huge size":
            x.shape = (1, 1 << 30, 1 << 30, 2)
        case "nine axes":
            x.shape = (1,) * 9
        case "weights that are too short":
            w.data = (w.data or b"")[:-1]
        case "weights that are too long":
            w.data = (w.data or b"") + b"\0"
        case "weights of another shape":
            w.shape = (3, 3, 6)
        case "weights that fit no group":
            w.shape = (2, 3, 3, 3)
        case "a bias of another size":
            b.shape, b.data = (2,), b"\0" * 8
        case "a bias of another type":
            b.kind = "FLOAT32"
        case "weights of another type":
            w.kind, w.shape = "INT16", (3, 3, 3, 1)
        case "a scale that is no number":
            x.scales = (float("nan"),)
        case "a scale of zero":
            y.scales = (0.0,)
        case "a negative scale":
            w.scales = (0.1, -0.2, 0.3)
        case "an infinite scale":
            w.scales = (float("inf"),)
        case "no scale":
            y.scales = ()
        case "two scales of an activation":
            x.scales, x.zero_points = (0.5, 0.5), (0, 0)
        case "two scales of three outputs":
            w.scales = (0.1, 0.2)
        case "scales along another axis":
            w.axis = 1
        case "a zero point out of range":
            x.zero_points = (128,)
        case "weights with a zero point":
            w.zero_points = (0, 1, 0)
        case "a stride of zero":
            writer.operators[0].options = {**writer.operators[0].options, "StrideH": 0}
        case "an unknown padding":
            writer.operators[0].options = {**writer.operators[0].options, "Padding": 7}
        case "an unknown activation":
            writer.operators[0].options = {**writer.operators[0].options, "FusedActivationFunction": 9}
        case "a missing input":
            writer.operators[0].inputs = (0,)
        case "an input that is left out":
            writer.operators[0].inputs = (-1, 1, 2)
        case "a tensor that does not exist":
            writer.operators[0].inputs = (0, 1, 77)
        case "no result":
            writer.operators[0].outputs = ()
        case "a constant as the input":
            writer.operators[0].inputs = (1, 1, 2)
        case "an activation as the weights":
            writer.operators[0].inputs = (0, 0, 2)
        case "a tensor that is made twice":
            writer.operators.append(writer.operators[0])
        case "a cycle":
            writer.operators[0].inputs = (3, 1, 2)
        case "a constant that is made":
            writer.operators[0].outputs = (1,)
    return writer


BROKEN = {
    "a result of another shape": r"makes 3×4×3, but its result is declared as 4×3×3",
    "a negative size": r"must have sizes from 1 and at most \d+ elements, not \[1, 5, -6, 2\]",
    "a size of zero": r"must have sizes from 1 and at most \d+ elements, not \[1, 5, 0, 2\]",
    "a huge size": r"must have sizes from 1 and at most \d+ elements, not \[1, 1073741824",
    "nine axes": r"is a broken TensorFlow Lite file",
    "weights that are too short": r"must have 54 bytes, not 53",
    "weights that are too long": r"must have 54 bytes, not 55",
    "weights of another shape": r"its filter of shape \(3, 3, 6\) does not fit an input of 2 channels",
    "weights that fit no group": r"its filter of shape \(2, 3, 3, 3\) does not fit an input of 2 channels",
    "a bias of another size": r"its bias must have 3 numbers, not 2",
    "a bias of another type": r"its input 2 is FLOAT32, not INT32",
    "weights of another type": r"its input 1 is INT16, not INT8",
    "a scale that is no number": r"scale must be finite and positive, not nan",
    "a scale of zero": r"scale must be finite and positive, not 0\.0",
    "a negative scale": r"must have scales, all finite and positive",
    "an infinite scale": r"must have scales, all finite and positive",
    "no scale": r"must have one scale and one zero point",
    "two scales of an activation": r"must have one scale and one zero point",
    "two scales of three outputs": r"its weights must have one scale, or 3 along axis 0",
    "scales along another axis": r"its weights must have one scale, or 3 along axis 0",
    "a zero point out of range": r"zero_point must be -128 to 127, not 128",
    "weights with a zero point": r"its weights have a zero point; quantize weights symmetrically",
    "a stride of zero": r"StrideH and StrideW must be 1 to 1048576, not 0 and 1",
    "an unknown padding": r"Padding must be SAME or VALID, not 7",
    "an unknown activation": r"its fused activation is number 9; use RELU, RELU6 or none",
    "a missing input": r"input 1 is missing",
    "an input that is left out": r"input 0 is missing",
    "a tensor that does not exist": r"is a broken TensorFlow Lite file",
    "no result": r"output t3 is made by no operator",
    "a constant as the input": r"its input 0 is a constant; fold constants before the export",
    "an activation as the weights": r"its input 1 is not a constant; make it a constant of the model",
    "a tensor that is made twice": r"makes t3, which another operator makes",
    "a cycle": r"input 0, t3, is not made before it is used",
    "a constant that is made": r"output t3 is made by no operator",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_network_is_refused(name: str, tmp_path: Path) -> None:
    refuse(tmp_path, broken(name), BROKEN[name])


def test_another_file_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"TFL3", b"\x1c\0\0\0TFL2" + b"\0" * 100, b"PK\x03\x04" * 10):
        with pytest.raises(CompileError, match=r"is not a TensorFlow Lite model: bytes 4 to 7 must be 'TFL3'"):
            read_tflite(saved(tmp_path, data))
    with pytest.raises(CompileError, match=r"^missing\.tflite: is not a file"):
        read_tflite(tmp_path / "missing.tflite")


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    data = small_convolution().write([0], [3])
    for size in range(0, len(data), 13):
        with pytest.raises(CompileError, match=r"^net\.tflite: "):
            read_tflite(saved(tmp_path, data[:size]))


def test_flipped_bits_give_a_graph_or_a_typed_error(tmp_path: Path, rng: np.random.Generator) -> None:
    sound = 0
    networks = [small_convolution().write([0], [3]), *(random_network(np.random.default_rng(n), 4)[0] for n in range(4))]
    for trial in range(400):
        data = bytearray(networks[trial % len(networks)])
        for _ in range(int(rng.integers(1, 3))):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        sound += imports(saved(tmp_path, bytes(data)))
    assert 40 < sound < 360


def test_wild_numbers_give_a_graph_or_a_typed_error(tmp_path: Path) -> None:
    """Every number of 32 bits in the file, replaced by those that hurt."""
    data = small_convolution().write([0], [3])
    for at in range(0, len(data) - 3, 4):
        for number in (0x7FFFFFFF, 0xFFFFFFFF):
            imports(saved(tmp_path, data[:at] + number.to_bytes(4, "little") + data[at + 4 :]))


def imports(path: Path) -> bool:
    """Whether a file can be imported; any error but the typed one leaves."""
    start = time.process_time()
    try:
        read_tflite(path)
    except CompileError as error:
        assert re.match(r"net\.tflite|network 'net'", str(error))
        return False
    finally:
        assert time.process_time() - start < 2
    return True


def test_tables_that_are_shared_cannot_exhaust_memory(tmp_path: Path) -> None:
    """Sixteen thousand tensors that are one table, with a long vector of scales: small in the file alone."""

    class OneTensor(File):
        shared = 0

        def tensor(self, tensor: Tensor, buffer: int) -> int:
            self.shared = self.shared or super().tensor(tensor, buffer)
            return self.shared

    writer = Writer()
    for _ in range(16_000):
        writer.tensor((1, 4), name="n" * 10)
    writer.tensors[0].scales = (0.5,) * 16_000
    data = OneTensor(writer).write([0], [1])
    assert len(data) < 200_000
    with pytest.raises(CompileError, match=r"its tables hold more than 1048576 numbers and letters"):
        read_tflite(saved(tmp_path, data))


def test_arrays_of_all_operators_are_bounded(tmp_path: Path) -> None:
    """A mean over a map of 2**28 samples would be a kernel of as many ones."""
    writer = Writer()
    x, y = writer.tensor((1, 1 << 14, 1 << 14, 1)), writer.tensor((1, 1, 1, 1))
    writer.operator("MEAN", [x, writer.constant([1, 2], "INT32")], [y], KeepDims=1)
    refuse(tmp_path, writer, r"the network's arrays hold more than 8388608 numbers", (y,))


def test_names_are_made_legal(tmp_path: Path) -> None:
    writer = Writer()
    names = ["module", "a b;c", "a/b", 'x"; $finish; //', "A_b", "é" * 200, ""]
    tensors = [writer.tensor((1, 4), name=name) for name in names]
    for one, other in pairwise(tensors):
        writer.operator("QUANTIZE", [one], [other])
    graph = read_tflite(saved(tmp_path, writer.write(tensors[:1], tensors[-1:]), "1 bad-name.tflite"))
    assert isinstance(graph.nodes[0], Input)
    assert [node.name for node in graph.nodes[:5]] == ["module_", "a_b", "a_b_2", "x_", "A_b_3"]
    assert graph.name == "_1_bad_name"
