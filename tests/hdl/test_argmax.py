"""ArgMax: the first of equals, wherever in lanes and beats they are, and the pace."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from convfold.hdl.argmax import ArgMaxParams
from tests.hdl.bench import PROFILES, pack
from tests.hdl.port_bench import check_full_rate, check_timing, fill, run_ports

CASES = {
    "one lane": ArgMaxParams(5, 1, 2, True, 3),
    "a short beat": ArgMaxParams(10, 4, 3, True, 4),
    "unsigned, a short beat": ArgMaxParams(5, 3, 2, False, 8),
    "all at once": ArgMaxParams(5, 5, 2, True, 3),
    "full beats": ArgMaxParams(12, 6, 8, True, 4),
    "more lanes than channels": ArgMaxParams(3, 4, 2, True, 2),
    "a single channel": ArgMaxParams(1, 1, 8, True, 2),
    "many": ArgMaxParams(300, 8, 16, True, 9),
}


def sent_beats(params: ArgMaxParams, pixels: list[list[int]]) -> list[int]:
    """Fillers are as great as a sample can be: they must not be looked at."""
    greatest = (1 << (params.bits - params.signed)) - 1
    width = params.beats * params.lanes
    padded = [[*line, *[greatest] * (width - len(line))] for line in pixels]
    return [pack(line[n : n + params.lanes], params.bits) for line in padded for n in range(0, width, params.lanes)]


@pytest.mark.parametrize("name", CASES)
def test_numbers_and_the_timing_rule(name: str) -> None:
    params = CASES[name]
    least = -(1 << (params.bits - 1)) if params.signed else 0
    rng = np.random.default_rng(10)
    pixels = rng.integers(least, least + (1 << params.bits), (60, params.channels))
    pixels[3] = least
    pixels[7:20] = np.minimum(pixels[7:20], least + 1)
    expected = np.argmax(pixels, axis=1).tolist()
    runs = run_ports(params.create(), {"i": sent_beats(params, pixels.tolist())}, {"o": len(expected)})
    for profile in PROFILES:
        assert runs[profile]["o"].payloads == expected, profile
        check_timing(params.timing, [runs[profile]["i"]], runs[profile]["o"])
    check_full_rate(params.timing, runs["none"])
    assert (params.latency, params.ii) == (5 + params.tree_levels, 1)
    assert list(params.reference(pixels.tolist())) == [[number] for number in expected]


@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
def test_every_pixel_of_four_channels_of_two_bits(lanes: int) -> None:
    pixels = [list(line) for line in product(range(-2, 2), repeat=4)]
    params = ArgMaxParams(4, lanes, 2, True, 2)
    run = run_ports(params.create(), {"i": sent_beats(params, pixels)}, {"o": len(pixels)}, ("none",))["none"]
    assert run["o"].payloads == np.argmax(pixels, axis=1).tolist()


@pytest.mark.parametrize("name", ["one lane", "all at once", "a short beat"])
def test_its_capacity(name: str) -> None:
    params = CASES[name]
    assert fill(params.create(), {"i": [0] * 90}) == params.timing.depth_words * params.beats


def test_too_few_output_bits_are_refused() -> None:
    assert replace(CASES["one lane"], channels=8).out_bits == 3
    with pytest.raises(ValueError, match=r"^out_bits must hold 8, not 3$"):
        replace(CASES["one lane"], channels=9)
