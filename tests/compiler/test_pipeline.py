"""The depths of queues, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from convfold.compiler.pipeline import _room


@pytest.mark.parametrize(
    ("arrivals", "whole", "room"),
    [
        # The early branch has all its six beats when the first of the late one comes.
        (([0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15]), (1, 1), [6, 1]),
        # It has five when the late one's first comes, and the sixth comes when one has been taken.
        (([0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9]), (1, 1), [5, 1]),
        # Which branch is late may change: each waits for the other once.
        (([0, 1, 8, 9], [4, 5, 6, 7]), (1, 1), [2, 2]),
        # Three inputs, all at once.
        (([0, 5], [1, 5], [2, 5]), (1, 1, 1), [1, 1, 1]),
        # A stack of two beats and one: the pixel is whole at 3, and at 7.
        (([0, 1, 4, 5], [3, 7]), (2, 1), [2, 1]),
        (([2, 3, 6, 7], [0, 1]), (2, 1), [2, 2]),
    ],
)
def test_what_comes_before_the_latest_has_room(
    arrivals: tuple[list[int], ...], whole: tuple[int, ...], room: list[int]
) -> None:
    assert _room([np.array(times) for times in arrivals], whole) == room
