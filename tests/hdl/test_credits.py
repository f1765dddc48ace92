"""Credits: a grant keeps its promise."""

from __future__ import annotations

import random

from convfold.hdl.credits import Credits
from tests.hdl.bench import run_clocked


def test_credits() -> None:
    """A model of what is promised: a grant follows the places left after every earlier start."""
    for depth, words, passes, tail in [(4, 1, 1, 1), (7, 3, 2, 1), (6, 2, 3, 2), (8, 4, 1, 4)]:
        dut = Credits(depth, words, passes, tail)
        rng = random.Random(depth)
        places, promised, started, stored = depth, False, 0, 0
        values, grants, back = [], [], 0
        for _ in range(300):
            start = promised and rng.random() < 0.7
            taken = stored > 0 and rng.random() < 0.5
            values.append((start, taken))
            grants.append(promised)
            spent = (tail if started % passes == passes - 1 else words) if start else 0
            promised = places >= spent + words
            places += back - spent
            back = taken  # a place counts a cycle after its word was taken
            stored += spent - taken
            started += start
            assert 0 <= places <= depth
        seen = run_clocked(dut, [dut.i_start, dut.i_taken], values, [dut.o_grant])
        assert [bool(grant) for (grant,) in seen] == grants
