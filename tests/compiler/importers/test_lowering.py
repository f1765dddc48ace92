"""A transposed convolution as built from other operators, against its definition in loops."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convfold.compiler.errors import CompileError
from convfold.compiler.evaluate import evaluate
from convfold.compiler.graph import Conv2D, Crop, DepthToSpace, Graph, Input, Node, Pair
from convfold.compiler.importers.lowering import transposed_conv, transposed_outputs, transposed_weights
from convfold.compiler.numbers import RealArray

Case = tuple[int, int, int, int, int, int, int]


def axis() -> st.SearchStrategy[Case]:
    """Size, kernel, stride, dilation, padding in front and behind, output padding."""
    whole = st.integers
    return st.tuples(whole(1, 5), whole(1, 5), whole(1, 4), whole(1, 3), whole(0, 3), whole(0, 3), whole(0, 3))


def definition(x_hwc: RealArray, w_ohwi: RealArray, b_o: RealArray, rows: Case, cols: Case, groups: int) -> RealArray:
    """``y[s·i + d·u − p, o] = b[o] + Σ w[o, u, c] · x[i, c]``, sample by sample."""
    (height, kh, sh, dh, ph, _, _), (width, kw, sw, dw, pw, _, _) = rows, cols
    outputs, _, _, read = w_ohwi.shape
    size = [transposed_outputs(s, k, (p, q), t, d, o) for s, k, t, d, p, q, o in (rows, cols)]
    y_hwo = np.zeros((*size, outputs)) + b_o
    for i, j, u, v, o in product(range(height), range(width), range(kh), range(kw), range(outputs)):
        row, col = sh * i + dh * u - ph, sw * j + dw * v - pw
        first = o // (outputs // groups) * read
        if 0 <= row < size[0] and 0 <= col < size[1]:
            y_hwo[row, col, o] += w_ohwi[o, u, v] @ x_hwc[i, j, first : first + read]
    return y_hwo


def built(x_hwc: RealArray, w_ohwi: RealArray, b_o: RealArray, rows: Case, cols: Case, groups: int) -> RealArray:
    """The same by `transposed_conv` and the nodes it names."""
    size = [transposed_outputs(s, k, (p, q), t, d, o) for s, k, t, d, p, q, o in (rows, cols)]
    made = transposed_conv(
        w_ohwi,
        b_o,
        (rows[0], cols[0]),
        (size[0], size[1]),
        padding=(rows[4], cols[4]),
        stride=(rows[2], cols[2]),
        dilation=(rows[3], cols[3]),
    )
    shape = (rows[0], cols[0], x_hwc.shape[2])
    nodes: list[Node] = [
        Input(name="input", inputs=(), source="t", shape=shape, low=0, high=1),
        Crop(name="crop", inputs=("input",), source="t", cropping=made.cropping),
        Conv2D(name="conv", inputs=("crop",), source="t", padding=made.padding, groups=groups),
        DepthToSpace(name="blocks", inputs=("conv",), source="t", block=made.block, order="CRD"),
        Crop(name="trim", inputs=("blocks",), source="t", cropping=made.trim),
    ]
    weights = {"conv.w": made.w_ohwi[None, None], "conv.b": made.b_o[None, None]}
    graph = Graph("net", tuple(nodes), ("trim",), weights)
    (y_hwc,) = evaluate(graph, x_hwc[None])["trim"]
    return np.asarray(y_hwc)


@given(rows=axis(), cols=axis(), groups=st.sampled_from((1, 2)), seed=st.integers(0, 99))
def test_equals_the_definition(rows: Case, cols: Case, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_hwc = rng.integers(-9, 10, (rows[0], cols[0], 2 * groups)).astype(np.float64)
    w_ohwi = rng.integers(-9, 10, (3 * groups, rows[1], cols[1], 2)).astype(np.float64)
    b_o = rng.integers(-9, 10, 3 * groups).astype(np.float64)
    if min(transposed_outputs(s, k, (p, q), t, d, o) for s, k, t, d, p, q, o in (rows, cols)) < 1:
        return
    try:
        y_hwo = built(x_hwc, w_ohwi, b_o, rows, cols, groups)
    except CompileError as error:  # the padding cut away all that reads the input
        assert "nothing is left" in error.message
        return
    assert np.array_equal(y_hwo, definition(x_hwc, w_ohwi, b_o, rows, cols, groups))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "outputs", "taps", "trim"),
    [
        (2, 2, 0, 16, 1, (0, 0)),  # one tap a phase
        (4, 2, 1, 16, 2, (1, 1)),  # starting one sample early saves a third tap
        (3, 2, 1, 15, 2, (0, 1)),
        (3, 1, 1, 8, 3, (0, 0)),
    ],
)
def test_is_as_small_as_it_can_be(kernel: int, stride: int, padding: int, outputs: int, taps: int, trim: Pair) -> None:
    w_ohwi = np.ones((1, kernel, kernel, 1))
    made = transposed_conv(w_ohwi, np.zeros(1), (8, 8), (outputs,) * 2, (padding,) * 2, (stride,) * 2)
    assert made.w_ohwi.shape == (stride * stride, taps, taps, 1)
    assert made.trim == (trim, trim)
    assert made.cropping == ((0, 0), (0, 0))


def test_integers_stay_integers() -> None:
    w_ohwi = np.arange(9, dtype=np.int64).reshape(1, 3, 3, 1)
    made = transposed_conv(w_ohwi, np.array([5]), (4, 4), (8, 8), (1, 1), (2, 2))
    assert made.w_ohwi.dtype == np.int64
    assert sorted(made.w_ohwi[made.w_ohwi != 0]) == list(range(1, 9))  # every tap once
    assert made.b_o.tolist() == [5] * 4


def test_weights_of_groups_are_put_in_order() -> None:
    w_iohw = np.arange(4 * 3, dtype=np.float64).reshape(4, 3, 1, 1)  # channels 0, 1 are the first group
    w_ohwi = transposed_weights(w_iohw, 2)
    assert w_ohwi.shape == (6, 1, 1, 2)
    assert w_ohwi[4, 0, 0].tolist() == [w_iohw[2, 1, 0, 0], w_iohw[3, 1, 0, 0]]
