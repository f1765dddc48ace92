"""MAC row: every sum, in its order, in its cycle."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from convfold.hdl.mac_row import MacRowParams
from tests.hdl.bench import run_clocked


@dataclass(frozen=True, slots=True)
class Case:
    """A row, how many steps its passes have at least, and how often a pass is kept waiting."""

    pes: int
    taps: int
    x_bits: int
    x_signed: bool
    w_bits: int
    steps: int
    gaps: float = 0.3
    word_cycles: int = 1
    together: int = 1


CASES = [
    Case(1, 1, 8, False, 8, 1),
    Case(1, 1, 8, True, 8, 5),
    Case(2, 2, 8, False, 8, 2, gaps=0.0),
    Case(4, 1, 4, True, 3, 4, gaps=0.0),
    Case(4, 3, 8, True, 8, 5),
    Case(3, 5, 2, False, 2, 3),
    Case(2, 9, 7, True, 4, 2, gaps=0.0),
    Case(1, 4, 16, False, 16, 1, gaps=0.0),
    Case(5, 2, 16, True, 2, 5),
    Case(1, 1, 8, False, 8, 2, gaps=0.0, word_cycles=2),
    Case(2, 1, 8, False, 8, 4, gaps=0.0, word_cycles=2),
    Case(5, 2, 8, True, 3, 10, gaps=0.0, word_cycles=2),
    Case(5, 1, 8, True, 3, 10, word_cycles=2),
    Case(3, 1, 8, False, 8, 9, gaps=0.1, word_cycles=3),
    Case(2, 2, 4, False, 4, 14, gaps=0.0, word_cycles=7),
    Case(1, 2, 8, False, 8, 1, gaps=0.0, together=2),
    Case(2, 3, 8, True, 4, 2, gaps=0.0, together=2),
    Case(3, 2, 8, False, 4, 3, gaps=0.0, together=2),
    Case(6, 1, 4, False, 3, 6, together=2),
    Case(2, 1, 8, False, 8, 4, gaps=0.0, word_cycles=2, together=2),
    Case(5, 2, 8, True, 3, 10, gaps=0.0, word_cycles=2, together=2),
    Case(6, 1, 8, False, 3, 12, gaps=0.0, word_cycles=2, together=2),
    Case(7, 1, 4, False, 4, 35, gaps=0.1, word_cycles=5, together=2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_latency_and_ii(case: Case) -> None:
    """Passes of random length: the sums of a pass come from its last step + ``latency`` on, ``word_cycles`` apart."""
    depth = 11
    x_range = range(-(1 << case.x_bits - 1), 1 << case.x_bits - 1) if case.x_signed else range(1 << case.x_bits)
    w_range = range(-(1 << case.w_bits - 1), 1 << case.w_bits - 1)
    most_steps = case.steps + 3
    bound = most_steps * case.taps * max(abs(x_range[0]), x_range[-1]) * -w_range[0]
    params = MacRowParams(
        pes=case.pes,
        taps=case.taps,
        x_bits=case.x_bits,
        x_signed=case.x_signed,
        w_bits=case.w_bits,
        acc_bits=bound.bit_length() + 1,
        depth_words=depth,
        word_cycles=case.word_cycles,
        together=case.together,
    )
    words = [[[random.choice(w_range) for _ in range(case.taps)] for _ in range(depth)] for _ in range(case.pes)]
    words[0][0] = [w_range[0]] * case.taps

    # One entry a cycle: no step, or (samples, address, first, last); the first pass has the greatest sum of all.
    steps: list[tuple[list[int], int, bool, bool] | None] = []
    for a_pass in range(30):
        length = most_steps if a_pass == 0 else random.randint(case.steps, most_steps)
        while random.random() < case.gaps:
            steps.append(None)
        for n in range(length):
            samples = [x_range[0] if case.x_signed else x_range[-1]] * case.taps
            if a_pass:
                samples = [random.choice(x_range) for _ in range(case.taps)]
            steps.append((samples, random.randrange(depth) if a_pass else 0, n == 0, n == length - 1))

    dut = params.create(words)
    values = []
    for cycle in range(len(steps) + params.latency + params.pes * case.word_cycles + 4):
        ahead = steps[cycle] if cycle < len(steps) else None
        now = cycle - params.address_lead
        step = steps[now] if 0 <= now < len(steps) else None
        noise = [random.choice(x_range) for _ in range(case.taps)]
        samples, _, first, last = step or (noise, 0, random.random() < 0.5, random.random() < 0.5)
        address = ahead[1] if ahead else random.randrange(depth)
        values.append((address, *samples, step is not None, first, last))
    inputs = [dut.i_address, *(dut.i_taps[n] for n in range(case.taps)), dut.i_valid, dut.i_first, dut.i_last]
    seen = run_clocked(dut, inputs, values, [dut.o_valid, dut.o])

    sums = list(params.reference([step for step in steps if step], words))
    last_steps = [cycle + params.address_lead for cycle, step in enumerate(steps) if step and step[3]]
    due = [cycle + params.latency + n * case.word_cycles for cycle in last_steps for n in range(case.pes)]
    assert [cycle for cycle, (valid, _) in enumerate(seen) if valid] == due
    assert [value for valid, value in seen if valid] == sums
    assert params.ii == 1
    assert abs(sums[case.pes - 1]) == bound


def test_the_reference_by_hand() -> None:
    params = MacRowParams(pes=2, taps=2, x_bits=8, x_signed=True, w_bits=8, acc_bits=20, depth_words=2)
    words = [[[1, 2], [3, 4]], [[5, 6], [-7, 8]]]
    steps = [([10, 1], 0, True, False), ([0, -1], 1, False, True), ([1, 1], 1, True, True)]
    assert list(params.reference(steps, words)) == [56 - 8, 12 - 4, 1, 7]


def test_words_for_every_element() -> None:
    params = MacRowParams(pes=2, taps=1, x_bits=8, x_signed=True, w_bits=8, acc_bits=20, depth_words=1)
    with pytest.raises(ValueError, match=r"^words must be given for 2 elements, not 1$"):
        params.create([[[1]]])
