"""Requantizer: at every pace against the formula, on corners, ties and saturation."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from convfold.compiler.rounding import FloatRequantizer, TfliteRequantizer
from convfold.hdl.border import BorderWalkParams
from convfold.hdl.requantizer import MULTIPLIER_BITS, TABLE_CYCLES, Requantizer, RequantizerParams
from tests.hdl.bench import run_clocked

MULTIPLIERS = (0, 1, 2, 3, 1 << 8, 1 << 15, 1 << 16, (1 << 16) + 1, 98_765, (1 << MULTIPLIER_BITS) - 1)
IIS = (1, 2, 3, 4, 5, 6, 8, 11, 12, 25)
"""Every form: all digits in one step; as many steps as cycles; fewer; sums that wait 3, 2, 1 and 0 cycles for constants."""
FEW_IIS = (1, 2, 3, 4, 6, 25)
ONE_PIXEL = BorderWalkParams(1, 1)


def requantizer(
    shift: int,
    acc_bits: int = 20,
    out_bits: int = 8,
    out_signed: bool = True,
    zero_point: int = 0,
    ii: int = 1,
    slots: int = len(MULTIPLIERS),
    words: int = len(MULTIPLIERS),
    walk: BorderWalkParams = ONE_PIXEL,
    low: int | None = None,
    high: int | None = None,
) -> RequantizerParams:
    least, most = (-(1 << out_bits - 1), (1 << out_bits - 1) - 1) if out_signed else (0, (1 << out_bits) - 1)
    return RequantizerParams(
        slots=slots,
        words=words,
        walk=walk,
        acc_bits=acc_bits,
        out_bits=out_bits,
        out_signed=out_signed,
        shift=shift,
        low=least if low is None else low,
        high=most if high is None else high,
        zero_point=zero_point,
        ii=ii,
    )


def by_definition(params: RequantizerParams, acc: int, bias: int, multiplier: int) -> int:
    """Round half up, exactly; then the zero point; then the limits."""
    real = Fraction((acc + bias) * multiplier, 1 << params.shift)
    rounded = (real + Fraction(1, 2)).__floor__() + params.zero_point
    return max(params.low, min(params.high, rounded))


def sums_of(params: RequantizerParams, multipliers: Sequence[int], count: int) -> list[list[int]]:
    """For each multiplier: the extremes, values at and beside ties, at and beside the limits, and random ones."""
    least, most = -(1 << params.acc_bits - 1), (1 << params.acc_bits - 1) - 1
    lists = []
    for multiplier in multipliers:
        values = [least, least + 1, -1, 0, 1, most]
        for target in (params.low - params.zero_point, params.high - params.zero_point, 0, -1, 1, 2):
            tie = (((2 * target + 1) << params.shift) // 2) // max(multiplier, 1)
            values += [tie - 1, tie, tie + 1]
        values = [value for value in values if least <= value <= most]
        values += [random.randint(least, most) for _ in range(count)]
        lists.append(values)
    longest = max(len(values) for values in lists)
    return [values + [0] * (longest - len(values)) for values in lists]


def feed(dut: Requantizer, sums: Sequence[int]) -> list[tuple[int, int]]:
    """``(cycle, result)`` for sums as early and as fast as allowed, with other values between them."""
    params = dut.params
    values = [(0, 0)] * TABLE_CYCLES
    for acc in sums:
        values.append((1, acc))
        values += [(0, random.getrandbits(params.acc_bits) - (1 << params.acc_bits - 1))] * (params.ii - 1)
    values += [(0, 0)] * (params.latency + 5)
    seen = run_clocked(dut, [dut.i_valid, dut.i], values, [dut.o_valid, dut.o])
    return [(cycle, value) for cycle, (valid, value) in enumerate(seen) if valid]


def due(params: RequantizerParams, n: int) -> int:
    """When the result of sum ``n`` comes."""
    return TABLE_CYCLES + n * params.ii + params.latency


def check(params: RequantizerParams, multipliers: Sequence[int], biases: Sequence[Sequence[int]], sums: list[int]) -> None:
    """Feed sums as fast as allowed: results are those of the definition, each ``latency`` cycles after its sum."""
    expected = []
    classes = list(params.walk.reference())
    for n, acc in enumerate(sums):
        pixel, slot = divmod(n, params.slots)
        if slot < params.words:
            bias, multiplier = biases[classes[pixel % len(classes)]][slot], multipliers[slot]
            assert -(1 << params.acc_bits - 1) <= acc + bias < 1 << params.acc_bits - 1
            result = by_definition(params, acc, bias, multiplier)
            assert params.reference(acc, bias, multiplier) == result
            expected.append((due(params, n), result))
    assert feed(params.create(multipliers, biases), sums) == expected


def interleaved(lists: list[list[int]]) -> list[int]:
    return [value for line in zip(*lists, strict=True) for value in line]


@pytest.mark.parametrize(
    ("acc_bits", "ties", "latencies"),
    [
        (4, "none", {1: 10, 2: 10, 3: 9, 4: 8}),
        (8, "none", {1: 11, 2: 11, 3: 10, 4: 9, 5: 10, 9: 10}),
        (20, "none", {1: 12, 2: 12, 3: 11, 4: 11, 5: 11, 6: 12, 8: 12, 10: 12, 11: 16, 25: 16}),
        (40, "none", {1: 13, 2: 13, 3: 12, 4: 12, 7: 14, 11: 17, 20: 17, 21: 26}),
        (20, "even", {1: 14, 5: 13}),
    ],
)
def test_latency(acc_bits: int, ties: str, latencies: dict[int, int]) -> None:
    """Counted by hand; the other tests hold the hardware to it."""
    tie_bits = 0 if ties == "none" else 3
    for ii, latency in latencies.items():
        params = replace(requantizer(17, acc_bits=acc_bits, ii=ii), ties=ties, tie_bits=tie_bits)
        assert (params.ii, params.latency) == (ii, latency)


@pytest.mark.parametrize("shift", sorted({*range(1, 41, 3), 2, 15, 17, 18}))
def test_shifts(shift: int) -> None:
    """Each at two paces."""
    for ii, multipliers in ((1, MULTIPLIERS), (IIS[shift % len(IIS)], (1, 1 << 16, 98_765, (1 << MULTIPLIER_BITS) - 1))):
        count = len(multipliers)
        params = requantizer(shift, slots=count, words=count, ii=ii, zero_point=random.choice((0, -3, 17)))
        check(params, multipliers, [[0] * count], interleaved(sums_of(params, multipliers, 2)))


@pytest.mark.parametrize(
    ("other", "params"),
    list(enumerate([
        requantizer(16, acc_bits=8, out_bits=2),
        requantizer(20, acc_bits=8, out_bits=16),
        requantizer(14, acc_bits=26, out_bits=16, zero_point=-32_000),
        requantizer(30, acc_bits=40, out_bits=8, out_signed=False, zero_point=255),
        requantizer(18, out_signed=False, zero_point=3),
        requantizer(18, low=0, high=5),
        requantizer(18, low=-7, high=-7),
        requantizer(17, out_bits=4, zero_point=-8, low=-8, high=3),
        requantizer(3, acc_bits=4, out_bits=3, out_signed=False, low=1, high=6),
    ], 1)),
    ids=str,
)  # fmt: skip
def test_formats_and_limits(params: RequantizerParams, other: int) -> None:
    """Each at two paces, all of them in all."""
    multipliers = (0, 1, 1 << 16, 98_765)
    for ii in (1, IIS[other]):
        params = replace(params, ii=ii, slots=4, words=4)
        check(params, multipliers, [[0] * 4], interleaved(sums_of(params, multipliers, 6)))


@pytest.mark.parametrize("ii", FEW_IIS)
def test_biases_of_border_classes_and_fillers(ii: int) -> None:
    """Three words in four slots over two frames: fillers vanish, and every class has its bias."""
    walk = BorderWalkParams(3, 4, rows=(0, 1), cols=(0, 1, 3))
    params = requantizer(17, acc_bits=24, ii=ii, slots=4, words=3, walk=walk)
    biases = [[random.randint(-(1 << 20), 1 << 20) for _ in range(3)] for _ in range(walk.count)]
    sums = [random.randint(-(1 << 20), 1 << 20) >> random.randint(0, 20) for _ in range(2 * 12 * 4)]
    check(params, [1, 77, 131_071], biases, sums)


def test_fillers_only_at_the_end_of_a_pixel() -> None:
    params = requantizer(4, slots=6, words=1)
    check(params, [9], [[5]], [random.randint(-500, 500) for _ in range(30)])


@pytest.mark.parametrize("ii", FEW_IIS)
def test_pauses_do_not_matter(ii: int) -> None:
    params = requantizer(10, slots=2, words=2, ii=ii)
    dut = params.create([5, 700], [[3, -4]])
    sums = [random.randint(-999, 999) for _ in range(20)]
    values = [(0, 0)] * TABLE_CYCLES
    for acc in sums:
        values += [(1, acc), *[(0, 12_345)] * (params.ii - 1 + random.randrange(4))]
    values += [(0, 0)] * (params.latency + 3)
    seen = run_clocked(dut, [dut.i_valid, dut.i], values, [dut.o_valid, dut.o])
    expected = [by_definition(params, acc, (3, -4)[n % 2], (5, 700)[n % 2]) for n, acc in enumerate(sums)]
    assert [value for valid, value in seen if valid] == expected


def check_split(
    params: RequantizerParams,
    constants: Sequence[Sequence[Sequence[int]]],
    sums: Sequence[int],
    expected: Sequence[int] | None = None,
) -> None:
    """``constants[class][word]`` are ``(m, bias, positive, negative)``; feed sums as fast as allowed, as `check` does."""
    m, biases, positive, negative = ([[word[n] for word in line] for line in constants] for n in range(4))
    tables = [table if params.by_class else table[0] for table in (m, positive, negative)]
    dut = params.create(tables[0], biases, *tables[1:])
    classes = list(params.walk.reference())
    results = []
    for n, acc in enumerate(sums):
        pixel, slot = divmod(n, params.slots)
        if slot < params.words:
            class_ = classes[pixel % len(classes)]
            word = 0 if params.uniform else slot
            factor, _, up, down = constants[class_ if params.by_class else 0][word]
            bias = constants[class_][word][1]
            total = acc + bias
            real = Fraction(total * factor + (up if total >= 0 else down), 1 << params.shift)
            result = max(params.low, min(params.high, real.__floor__() + params.zero_point))
            assert params.reference(acc, bias, factor, up, down) == result
            results.append((due(params, n), result))
    assert expected is None or [result for _, result in results] == list(expected)
    assert feed(dut, sums) == results


WIDTHS = [(1, 0), (1, 9), (2, 3), (3, 3), (10, 12), (16, 2), (23, 23), (24, 45), (31, 40)]


@pytest.mark.parametrize(("multiplier_bits", "shift"), WIDTHS)
def test_multipliers_and_offsets_of_any_width(multiplier_bits: int, shift: int) -> None:
    """Each of three forms at another pace."""
    most = (1 << multiplier_bits) - 1
    for n, (split, offset_bits) in enumerate(((False, 0), (True, 1), (True, shift + 2))):
        if not split and shift == 0:
            continue
        ii = IIS[(WIDTHS.index((multiplier_bits, shift)) + 3 * n) % len(IIS)]
        params = replace(
            requantizer(1, slots=5, words=4, ii=ii, zero_point=-3),
            shift=shift, multiplier_bits=multiplier_bits, split=split, offset_bits=offset_bits,
        )  # fmt: skip
        multipliers = [most, 0, most - most // 3, random.randint(0, most)]
        sums = interleaved([*sums_of(params, multipliers, 3), [77] * 99][:4])
        sums = [acc for n in range(0, len(sums), 4) for acc in (*sums[n : n + 4], 1234)]
        if not split:
            check(params, multipliers, [[0] * 4], sums)
            continue
        bound, half = 1 << offset_bits - 1, 1 << shift >> 1
        offsets = [(-bound, bound - 1), (bound - 1, -bound), (0, -1), (random.randrange(-bound, bound), bound // 2)]
        offsets = [(half + positive, half + negative) for positive, negative in offsets]
        check_split(params, [[(m, 5, *pair) for m, pair in zip(multipliers, offsets, strict=True)]], [a // 2 for a in sums])


@pytest.mark.parametrize(
    ("uniform", "ii"), [(False, 1), (True, 1), (True, 2), (False, 3), (True, 4), (False, 6), (True, 25)]
)
def test_constants_of_border_classes(uniform: bool, ii: int) -> None:
    """Every class has its own multiplier and offsets, of every word or of all words."""
    walk = BorderWalkParams(3, 4, rows=(0, 2), cols=(0, 1, 3))
    params = requantizer(9, acc_bits=18, ii=ii, slots=4, words=3, walk=walk)
    params = replace(params, multiplier_bits=8, split=True, offset_bits=11, by_class=True, uniform=uniform)
    ranges = [(0, 256), (-1000, 1000), (-768, 1280), (-768, 1280)]
    constants = [[[random.randrange(*r) for r in ranges] for _ in range(params.class_words)] for _ in range(walk.count)]
    assert params.factor_table.depth_words == walk.count * params.class_words == len(constants) * len(constants[0])
    check_split(params, constants, [random.randint(-60_000, 60_000) >> random.randint(0, 15) for _ in range(2 * 12 * 4)])


def test_the_rounding_of_tflite() -> None:
    """Its two roundings come down to offsets of either sign: at zero, at every kind of tie and at the ends."""
    for exponent, ii in zip(range(1, 13), itertools.cycle(IIS), strict=False):
        m = [random.randrange(1 << 30, 1 << 31) for _ in range(2)] + [1 << 30, (1 << 31) - 1]
        params = requantizer(31 + exponent, acc_bits=24, zero_point=-7, slots=4, words=4, ii=ii)
        params = replace(params, multiplier_bits=31, split=True, offset_bits=exponent + 32)
        positive, negative = (1 << exponent + 30) + (1 << 30), (1 << exponent + 30) - (1 << 30)
        lists = sums_of(replace(params, shift=31 + exponent), m, 20 if ii == 1 else 0)
        sums = [acc for line in zip(*lists, strict=True) for acc in line]
        requantize = TfliteRequantizer(np.array(m), np.full(4, -exponent))
        expected = np.clip(requantize(np.array(sums).reshape(-1, 4)) - 7, -128, 127).reshape(-1).tolist()
        check_split(params, [[(factor, 0, positive, negative) for factor in m]], sums, expected)


@pytest.mark.parametrize("ii", [1, 3, 25])
@pytest.mark.parametrize(("constants", "width"), [((None, None), 7 + 12), ((None, -77), 7 + 6), ((99_999, 3), 7), ((0, 0), 7)])
def test_offsets_in_tables_and_in_common(constants: tuple[int | None, int | None], width: int, ii: int) -> None:
    """Tables hold every 1024th offset, from one half; what all channels have in common is in no table."""
    tables = [[-30 << 10, 33 << 10, 7 << 10], [1 << 10, 2 << 10, 19 << 10]][: constants.count(None)]
    params = replace(
        requantizer(12, slots=3, words=3, ii=ii, zero_point=2), multiplier_bits=7, split=True,
        positive=constants[0], negative=constants[1], offset_shift=10, offset_bits=6 if tables else 0,
    )  # fmt: skip
    assert params.factor_table.width_bits == width
    m = [127, 3, 64]
    dut = params.create(m, [[0] * 3], *tables)
    sums = [random.randint(-20_000, 20_000) >> random.randint(0, 14) for _ in range(60)]
    expected = []
    for n, acc in enumerate(sums):
        given = constants[acc < 0]
        offset = tables[acc < 0][n % 3] if given is None else given
        expected.append(max(-128, min(127, (acc * m[n % 3] + offset) // 4096 + 2)))
        assert params.reference(acc, 0, m[n % 3], *(table[n % 3] for table in tables)) == expected[-1]
    assert feed(dut, sums) == [(due(params, n), result) for n, result in enumerate(expected)]


@pytest.mark.parametrize(
    ("ii", "split", "zero_point"),
    [(1, False, 0), (1, True, -128), (2, True, 9), (3, False, -128), (5, True, 0), (12, False, 9)],
)
def test_the_rounding_of_onnxruntime(ii: int, split: bool, zero_point: int) -> None:
    """Products of float32, half to even: on both sides of every step of a few channels, and on ties."""
    scales = [2.0**-9, 2.0**-10 / 3, random.uniform(0.0005, 0.002)] + [random.uniform(0.0005, 0.002)] * (ii < 3)
    requantize = FloatRequantizer(np.array(scales), np.float32)
    m = [int(np.ldexp(np.float64(np.float32(scale)), 35)) for scale in scales]
    params = requantizer(35, acc_bits=21, zero_point=zero_point, ii=ii, slots=len(m), words=len(m))
    plain = replace(params, multiplier_bits=30, split=split, offset_bits=36 if split else 0)
    params = replace(plain, ties="float32", tie_bits=24)
    assert params.latency == plain.latency + 2 and params.ii == plain.ii
    ties = [2 * k + 1 << 34 for k in range(-128 - zero_point, 128 - zero_point)]
    steps = [[tie // factor + up for tie in ties for up in (0, 1)] for factor in m]
    sums = [acc for line in zip(*steps, strict=True) for acc in line]
    if ii > 2:
        first = random.randrange(len(sums) // 3) * 3
        sums = (sums + sums)[first : first + 150]
    expected = np.clip(requantize(np.array(sums).reshape(-1, len(m))) + zero_point, -128, 127).reshape(-1).tolist()
    half = [1 << 34] * len(m)
    dut = params.create(m, [[0] * len(m)], *([half, half] if split else []))
    offsets = [1 << 34] * 2 if split else []
    assert [params.reference(acc, 0, m[n % len(m)], *offsets) for n, acc in enumerate(sums)] == expected
    assert [plain.reference(acc, 0, m[n % len(m)], *offsets) for n, acc in enumerate(sums)] != expected
    assert feed(dut, sums) == [(due(params, n), result) for n, result in enumerate(expected)]


@pytest.mark.parametrize("ii", [1, 3, 8])
def test_ties_to_even(ii: int) -> None:
    for tie_bits in (5, 2):
        params = requantizer(5, slots=1, words=1, zero_point=1, ii=ii)
        params = replace(params, multiplier_bits=4, ties="even", tie_bits=tie_bits)
        sums = list(range(-60, 60))
        m = 1 if tie_bits == 5 else 8
        expected = (np.rint(np.array(sums) * m / 32).astype(int) + 1).tolist()
        assert feed(params.create([m], [[0]]), sums) == [(due(params, n), result) for n, result in enumerate(expected)]


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        (([1, 2], [[0, 0]]), r"^positive and negative must be given if in tables, and only then$"),
        (([1, 2], [[0, 0]], [0, 0]), r"^positive and negative must be given if in tables, and only then$"),
        (([1], [[0, 0]], [0, 0], [0, 0]), r"^multipliers must be 2 integers from 0 to 7, not \[1\]$"),
        (([1, 8], [[0, 0]], [0, 0], [0, 0]), r"^multipliers must be 2 integers from 0 to 7, not \[1, 8\]$"),
        (([1, 7], [[0, 0]], [24, 8], [8, 8]), r"^positive must be 2 integers from 8 to 23, not \[24, 8\]$"),
        (([1, 7], [[0, 0]], [23, 8], [8, 7]), r"^negative must be 2 integers from 8 to 23, not \[8, 7\]$"),
    ],
)
def test_what_constants_are_refused(constants: tuple[Any, ...], message: str) -> None:
    params = replace(requantizer(5, slots=2, words=2), multiplier_bits=3, split=True, offset_bits=4)
    with pytest.raises(ValueError, match=message):
        params.create(*constants)


def test_offsets_between_those_of_a_table_are_refused() -> None:
    params = replace(requantizer(5, slots=2, words=2), multiplier_bits=3, split=True, offset_bits=4, offset_shift=2, negative=1)
    with pytest.raises(ValueError, match=r"^positive must be 2 integers every 4 from -16 to 44, not \[28, 2\]$"):
        params.create([1, 2], [[0, 0]], [28, 2])
    with pytest.raises(ValueError, match=r"^positive and negative must be given if in tables, and only then$"):
        params.create([1, 2], [[0, 0]], [28, 4], [1, 1])


def test_offsets_only_where_split() -> None:
    with pytest.raises(ValueError, match=r"^positive and negative must be given if in tables, and only then$"):
        requantizer(5, slots=1, words=1).create([1], [[0]], [0], [0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": 0}, r"^words must be 1 to 10, not 0$"),
        ({"words": 11}, r"^words must be 1 to 10, not 11$"),
        ({"shift": 0}, r"^shift must be at least 1, not 0$"),
        ({"shift": -1, "split": True, "offset_bits": 1}, r"^shift must be at least 0, not -1$"),
        ({"multiplier_bits": 0}, r"^multiplier_bits must be 1 to 40, not 0$"),
        ({"multiplier_bits": 41}, r"^multiplier_bits must be 1 to 40, not 41$"),
        ({"split": True}, r"^offset_bits must be positive if offsets are in tables and 0 if not, not 0$"),
        ({"split": True, "positive": 1, "negative": 1, "offset_bits": 3},
         r"^offset_bits must be positive if offsets are in tables and 0 if not, not 3$"),
        ({"negative": 1}, r"^positive and negative must be None unless split, not \(None, 1\)$"),
        ({"split": True, "positive": 1, "offset_bits": 3}, r"^positive must be None if negative is, not 1$"),
        ({"tie_bits": 2}, r"^tie_bits must be 0 without ties, not 2$"),
        ({"ties": "even", "tie_bits": 6}, r"^bits must be 1 to 5, not 6$"),
        ({"ties": "away", "tie_bits": 1}, r"^kind must be one of \('even', 'float32'\), not 'away'$"),
        ({"offset_bits": 4}, r"^offset_bits must be positive if offsets are in tables and 0 if not, not 4$"),
        ({"low": 4, "high": 3}, r"^low must not exceed high, not \(4, 3\)$"),
    ],
)  # fmt: skip
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    params = requantizer(5)
    with pytest.raises(ValueError, match=message):
        replace(params, **change)
