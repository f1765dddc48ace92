"""Border walk: the class of every pixel, frame after frame."""

from __future__ import annotations

import random

import numpy as np
import pytest

from convfold.hdl.border import BorderWalkParams
from tests.hdl.bench import run_clocked

CASES = [
    BorderWalkParams(1, 1),
    BorderWalkParams(4, 5),
    BorderWalkParams(4, 5, rows=(0, 1, 3), cols=(0, 1, 4)),
    BorderWalkParams(3, 4, rows=(0, 1, 2), scale=7),
    BorderWalkParams(4, 3, cols=(0, 2), scale=36),
    BorderWalkParams(5, 1, rows=(0, 4), scale=3),
    BorderWalkParams(2, 6, rows=(0, 1), cols=(0, 1, 2, 3, 4, 5), scale=2),
]


@pytest.mark.parametrize("params", CASES, ids=str)
def test_the_walk(params: BorderWalkParams) -> None:
    """Three frames, moving on at random: ``o`` always belongs to the current pixel."""
    classes = list(params.reference())
    dut = params.create()
    moves = [random.random() < 0.6 for _ in range(8 * len(classes))]
    moves += [True] * max(3 * len(classes) - sum(moves), 0)
    seen = run_clocked(dut, [dut.i_next], [(move,) for move in moves], [dut.o])
    pixels = np.cumsum([False, *moves[:-1]])
    assert [o for (o,) in seen] == [classes[pixel % len(classes)] for pixel in pixels]


def test_the_reference_by_hand() -> None:
    params = BorderWalkParams(3, 4, rows=(0, 2), cols=(0, 1, 3), scale=10)
    assert list(params.reference()) == [0, 10, 10, 20, 0, 10, 10, 20, 30, 40, 40, 50]
    assert params.count == 6


@pytest.mark.parametrize("rows", [(1,), (0, 2, 1), (0, 1, 1), (0, 3)])
def test_what_is_refused(rows: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^class starts must rise from 0 and stay below 3, not \("):
        BorderWalkParams(3, 4, rows=rows)
    with pytest.raises(ValueError, match=r"^class starts must rise from 0 and stay below 3, not \("):
        BorderWalkParams(4, 3, cols=rows)
