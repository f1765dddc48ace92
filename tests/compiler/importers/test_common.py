"""What all importers share: caps, checked numbers, names, and the list of all that is unsupported."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from convfold.compiler.errors import CompileError
from convfold.compiler.files import printable
from convfold.compiler.graph import Clip, Input, same_padding
from convfold.compiler.importers.common import (
    MAX_LISTED,
    Builder,
    Unsupported,
    checked_range,
    checked_size,
    extra,
    finite,
    read_file,
)


def refusal(call: object, *arguments: object) -> CompileError:
    assert callable(call)
    with pytest.raises(CompileError) as caught:
        call(*arguments)
    return caught.value


def test_a_missing_package_is_named_with_the_line_that_installs_it() -> None:
    with pytest.raises(CompileError) as caught, extra("onnx", "net.onnx"):
        raise ImportError("No module named 'onnx'", name="onnx")
    assert str(caught.value) == (
        "net.onnx: reading this file needs the package 'onnx', which is not installed\n  fix: pip install 'convfold[onnx]'"
    )


def test_unsupported_nodes_are_listed_all_at_once() -> None:
    found = Unsupported("net.onnx")
    found.close()  # nothing yet
    found.add("Sin 'a'", "this operator is not supported", "use Tanh", (1, 3, 8, 8))
    found.add("Cos 'b'", "this operator is not supported", "")
    assert str(refusal(found.close)) == (
        "net.onnx: 2 nodes cannot be imported:\n"
        "  - Sin 'a' (1×3×8×8): this operator is not supported; use Tanh\n"
        "  - Cos 'b': this operator is not supported\n"
        "  fix: use Tanh"
    )


def test_a_long_list_is_cut() -> None:
    found = Unsupported("net.onnx")
    for number in range(MAX_LISTED + 3):
        found.add(f"node {number}", "no", f"hint {number % 2}")
    error = refusal(found.close)
    assert error.message.count("\n") == MAX_LISTED + 1
    assert error.message.endswith("\n  - and 3 more")
    assert error.hint == "change each node as said behind it, and export again"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e31])
def test_numbers_are_finite_and_not_huge(value: float) -> None:
    error = refusal(finite, "net", "weights", np.array([[1.0, value]]))
    assert str(error).startswith("net: weights must hold numbers up to 1e+30, not ")
    assert "at [0, 1]" in error.message


def test_numbers_are_numbers() -> None:
    assert "must hold real numbers, not <U1" in refusal(finite, "net", "weights", np.array(["a"])).message
    assert "not complex128" in refusal(finite, "net", "weights", np.array([1j])).message
    assert finite("net", "weights", np.array([1, 2], np.int8)).dtype == np.float64


@pytest.mark.parametrize("shape", [(0,), (-1, 4), (1 << 20, 1 << 20), (1 << 62, 4)])
def test_sizes_are_positive_and_bounded(shape: tuple[int, ...]) -> None:
    assert "must have sizes from 1" in refusal(checked_size, "net", "input", shape).message


@pytest.mark.parametrize("limits", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_an_input_range_rises(limits: tuple[float, float]) -> None:
    assert refusal(checked_range, "net", limits).message.startswith("the input range must rise")


def test_files_are_plain_and_small(tmp_path: Path) -> None:
    path = tmp_path / "net.bin"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    assert refusal(read_file, path, 4).message == "must not exceed 4 bytes, but has 5"
    assert refusal(read_file, tmp_path).message == "is not a file"
    assert refusal(read_file, tmp_path / "none").message == "is not a file"


def test_names_are_legal_and_differ_in_more_than_case() -> None:
    builder = Builder("1 net;")
    assert builder.name == "_1_net_"
    texts = ["conv", "Conv", "conv", "", "x #", "module", "a" * 99, "a" * 99]
    names = [builder.fresh(text) for text in texts]
    assert names == ["conv", "Conv_2", "conv_3", "tensor", "x__", "module_", "a" * 64, "a" * 62 + "_2"]


def test_what_leads_to_no_output_is_dropped() -> None:
    builder = Builder("net")
    builder.add(Input(name="x", inputs=(), source="x", shape=(1, 1, 2), low=0.0, high=1.0))
    builder.add(Clip(name="dead", inputs=("x",), source="dead"))
    builder.add(Clip(name="y", inputs=("x",), source="y"))
    assert [node.name for node in builder.graph(["y", "y"]).nodes] == ["x", "y"]


def test_an_odd_sample_of_padding_stands_behind_or_in_front() -> None:
    assert same_padding(5, 2, 1) == (0, 1)
    assert same_padding(5, 2, 1, upper=False) == (1, 0)
    assert same_padding(6, 3, 2) == (0, 1)
    assert same_padding(9, 1, 3) == (0, 0)


def test_names_in_errors_can_be_printed() -> None:
    assert printable("net.onnx") == "net.onnx"
    assert printable("a\x1b[31m") == "'a\\x1b[31m'"
    assert len(printable("a" * 1000)) < 80
