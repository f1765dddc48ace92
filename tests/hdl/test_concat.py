"""Concat: whose turn it is, beat by beat, and the pace."""

from __future__ import annotations

import numpy as np
import pytest

from convfold.hdl.concat import ConcatParams
from tests.hdl.bench import PROFILES, pack, unpack
from tests.hdl.port_bench import Run, check_order, run_ports

CASES = {
    "two": ConcatParams((4, 2), 2, 8, True),
    "a beat each": ConcatParams((2, 2), 2, 5, False),
    "three, the last one short": ConcatParams((2, 6, 3), 2, 4, True),
    "one lane": ConcatParams((3, 1, 2), 1, 8, False),
    "the last one narrower than a beat": ConcatParams((4, 3), 4, 3, True),
}
PIXELS = 25


def merged(params: ConcatParams, run: Run, what: str) -> list[int]:
    """The times of all input beats, in the order of the output."""
    places = [iter(getattr(run[f"i{n}"], what)) for n in range(len(params.channels))]
    return [next(places[n]) for _ in range(PIXELS) for n in params.order]


@pytest.mark.parametrize("name", CASES)
def test_pixels_and_the_timing_rule(name: str) -> None:
    params = CASES[name]
    least = -(1 << (params.bits - 1)) if params.signed else 0
    rng = np.random.default_rng(9)
    inputs = [rng.integers(least, least + (1 << params.bits), (PIXELS, count)) for count in params.channels]
    lanes = params.lanes
    sent = {
        f"i{k}": [pack(line[n : n + lanes], params.bits) for line in pixels.tolist() for n in range(0, len(line), lanes)]
        for k, pixels in enumerate(inputs)
    }
    y = np.concatenate(inputs, axis=1)
    expected = [line[n : n + lanes] for line in y.tolist() for n in range(0, len(line), lanes)]
    runs = run_ports(params.create(), sent, {"o": len(expected)})
    for profile in PROFILES:
        run = runs[profile]
        seen = [unpack(payload, params.bits, params.signed, lanes) for payload in run["o"].payloads]
        assert [line[: len(part)] for line, part in zip(seen, expected, strict=True)] == expected, profile
        check_order(params.timing, merged(params, run, "offered"), merged(params, run, "taken"), run["o"])
    taken = merged(params, runs["none"], "taken")
    assert taken == list(range(1, 1 + len(expected) * params.ii, params.ii))
    assert runs["none"]["o"].taken == [time + params.latency for time in taken]
    assert list(params.reference(*(pixels.tolist() for pixels in inputs))) == expected


def test_order() -> None:
    assert CASES["three, the last one short"].order == (0, 1, 1, 1, 2, 2)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^channels must be of two inputs or more, not \(4,\)$"):
        ConcatParams((4,), 2, 8, True)
    message = r"^channels of all inputs but the last must be multiples of 2, not \(4, 3, 2\)$"
    with pytest.raises(ValueError, match=message):
        ConcatParams((4, 3, 2), 2, 8, True)
