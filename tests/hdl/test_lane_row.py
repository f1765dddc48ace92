"""Lane row: every sum, in its order, in its cycle."""

from __future__ import annotations

import random

import pytest

from convfold.hdl.lane_row import LaneRowParams
from tests.hdl.bench import run_clocked

CASES = [
    # pes, taps, x_bits, x_signed, w_bits, fewest steps, cycles from sum to sum
    (1, 1, 8, False, 8, 1, 1),
    (1, 9, 8, True, 8, 1, 1),
    (3, 1, 8, True, 4, 3, 1),
    (4, 3, 5, False, 8, 4, 1),
    (2, 2, 16, True, 16, 2, 1),
    (1, 1, 8, False, 0, 1, 1),
    (4, 1, 8, True, 0, 4, 1),
    (2, 6, 8, False, 0, 2, 1),
    (1, 1, 8, True, 8, 3, 3),
    (2, 1, 8, True, 8, 4, 2),
    (4, 2, 8, False, 3, 12, 3),
    (3, 1, 8, False, 0, 15, 5),
]


@pytest.mark.parametrize(("pes", "taps", "x_bits", "x_signed", "w_bits", "least", "word_cycles"), CASES)
def test_sums_and_latency(
    pes: int, taps: int, x_bits: int, x_signed: bool, w_bits: int, least: int, word_cycles: int
) -> None:
    """Passes of random length, with pauses between and without: sums come from last + ``latency`` on, in step."""
    depth = 7
    x_range = range(-(1 << x_bits - 1), 1 << x_bits - 1) if x_signed else range(1 << x_bits)
    w_range = range(-(1 << w_bits - 1), 1 << w_bits - 1) if w_bits else range(1, 2)
    bound = (least + 3) * taps * max(abs(x_range[0]), x_range[-1]) * max(abs(w_range[0]), 1)
    params = LaneRowParams(pes, taps, x_bits, x_signed, w_bits, bound.bit_length() + 1, depth, word_cycles=word_cycles)
    words = [[[random.choice(w_range) for _ in range(taps)] for _ in range(depth)] for _ in range(pes)]
    steps: list[tuple[list[int], int, bool, bool] | None] = []
    for n in range(40):
        steps += [None] * random.choice((0, 0, 0, 1, 2))
        length = least + random.choice((0, 0, 3))
        for k in range(length):
            extreme = random.choice((x_range[0], x_range[-1]))
            samples = [extreme if n < 5 else random.choice(x_range) for _ in range(pes * taps)]
            steps.append((samples, random.randrange(depth), k == 0, k == length - 1))
    dut = params.create(words)
    values = []
    for cycle in range(len(steps) + params.latency + pes * word_cycles + 8):
        ahead = steps[cycle] if cycle < len(steps) else None
        now = cycle - params.address_lead
        step = steps[now] if 0 <= now < len(steps) else None
        noise = [random.choice(x_range) for _ in range(pes * taps)]
        samples, _, first, last = step or (noise, 0, random.random() < 0.5, random.random() < 0.5)
        values.append((ahead[1] if ahead else random.randrange(depth), *samples, step is not None, first, last))
    inputs = [dut.i_address, *(dut.i_taps[n] for n in range(pes * taps)), dut.i_valid, dut.i_first, dut.i_last]
    seen = run_clocked(dut, inputs, values, [dut.o_valid, dut.o])
    last_steps = [cycle + params.address_lead for cycle, step in enumerate(steps) if step and step[3]]
    due = [cycle + params.latency + n * word_cycles for cycle in last_steps for n in range(pes)]
    assert [cycle for cycle, (valid, _) in enumerate(seen) if valid] == due
    assert [value for valid, value in seen if valid] == list(params.reference([step for step in steps if step], words))
    assert params.ii == 1


def test_the_reference_by_hand() -> None:
    params = LaneRowParams(2, 2, 8, True, 8, 20, 2)
    words = [[[1, 2], [3, 4]], [[5, 6], [-7, 8]]]
    steps = [([10, 1, 2, 3], 0, True, False), ([0, -1, 1, 0], 1, False, True), ([1, 1, 0, 2], 1, True, True)]
    assert list(params.reference(steps, words)) == [10 + 18 - 7, 12 - 4, 16, 7]
    adding = LaneRowParams(2, 2, 8, True, 0, 20, 2)
    assert list(adding.reference(steps, words)) == [5 + 1, 11 - 1, 2, 2]


def test_words_for_every_element() -> None:
    with pytest.raises(ValueError, match=r"^words must be given for 2 elements, not 1$"):
        LaneRowParams(2, 1, 8, True, 8, 20, 1).create([[[1]]])
