"""Two products of one block: exact for every sample and every pair of weights, and in whole stages."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.back import rtlil

from convfold.hdl.mac_row import MacRowParams
from convfold.hdl.multiplier import MultiplierParams
from convfold.hdl.multiplier_pair import MultiplierPairParams
from tests.hdl.conv_cases import SAME, ConvCase, make_stage
from tests.hdl.test_ecp5_forms import Pairs, loop, stream_bench

SHAPES = [(8, False, 4), (8, True, 4), (8, True, 5), (8, False, 5), (4, True, 4), (3, False, 2), (1, False, 3), (6, True, 6)]
"""The widest that fit, and narrow ones."""


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_sample_times_every_pair_of_weights(shape: tuple[int, bool, int]) -> None:
    """The operand and the product of 18 and 36 bits are cut up here as the hardware's wires do."""
    a_bits, a_signed, b_bits = shape
    s = MultiplierPairParams(*shape).product_bits
    least = -(1 << a_bits - 1) if a_signed else 0
    x = np.arange(least, least + (1 << a_bits)).reshape(-1, 1, 1)
    most = (1 << b_bits - 1) - 1
    w = np.arange(-most, most + 1)
    w0, w1 = w.reshape(1, -1, 1), w.reshape(1, 1, -1)
    high = w1 - (w0 < 0)
    assert high.min() >= -most - 1
    both = high * (1 << s) + w0 % (1 << s)
    assert both.min() >= -(1 << 17)
    assert both.max() < 1 << 17
    product = x * both
    first = (product + (1 << s - 1)) % (1 << s) - (1 << s - 1)
    second = product >> s
    assert np.array_equal(first, np.broadcast_to(x * w0, product.shape))
    assert np.array_equal(second + (first < 0), np.broadcast_to(x * w1, product.shape))
    assert second.min() >= -(1 << s - 1)
    assert second.max() < 1 << s - 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_reference_is_that_of_two_products(shape: tuple[int, bool, int]) -> None:
    a_bits, a_signed, b_bits = shape
    params = MultiplierPairParams(*shape)
    most = (1 << b_bits - 1) - 1
    samples = (-(1 << a_bits - 1), -1, (1 << a_bits - 1) - 1) if a_signed else (0, 1, (1 << a_bits) - 1)
    for x in samples:
        for w0 in range(-most, most + 1):
            for w1 in (-most, -1, 0, 1, most):
                low, high, carry = params.reference(x, params.fields(w0, w1))
                assert (low, high + carry) == (x * w0, x * w1)


def test_what_fits() -> None:
    assert [bits for bits in range(1, 9) if MultiplierPairParams.fits(8, False, bits)] == [2, 3, 4, 5]
    assert [bits for bits in range(1, 9) if MultiplierPairParams.fits(8, True, bits)] == [2, 3, 4, 5]
    assert [bits for bits in range(1, 9) if MultiplierPairParams.fits(6, False, bits)] == [2, 3, 4, 5, 6]
    assert [bits for bits in range(1, 9) if MultiplierPairParams.fits(15, False, bits)] == []
    with pytest.raises(ValueError, match=r"^b_bits must be 2 to 5 for samples like these, not 6$"):
        MultiplierPairParams(8, False, 6)
    with pytest.raises(ValueError, match=r"^latency must be at least 2, not 1$"):
        MultiplierPairParams(8, False, 4, 1)


def test_products_as_those_of_plain_multipliers(tmp_path: Path) -> None:
    """Corners and random operands, a new set every cycle: the same products in the same cycle, for both latencies."""
    pairs = Pairs()
    checks, stimulus = [], []
    latencies = set()
    for a_bits, a_signed, b_bits in SHAPES:
        plain = MultiplierParams(a_bits, b_bits, a_signed=a_signed)
        params = MultiplierPairParams(a_bits, a_signed, b_bits, plain.latency)
        latencies.add(params.latency)
        prefix = f"{'s' if a_signed else 'u'}{a_bits}x{b_bits}"
        inputs = pairs.inputs(prefix, ("x", a_bits), ("w0", b_bits), ("w1", b_bits), ("field", b_bits))
        x = inputs["x"].as_signed() if a_signed else inputs["x"]
        pairs.module.submodules[f"{prefix}_pair"] = pair = params.create()
        pairs.module.d.comb += [pair.i_a.eq(x), pair.i_b[0].eq(inputs["w0"]), pair.i_b[1].eq(inputs["field"])]
        outs = (pair.o[0], pair.o[1] + pair.o_carry)
        for k, out in enumerate(outs):
            pairs.module.submodules[f"{prefix}_plain{k}"] = alone = plain.create()
            pairs.module.d.comb += [alone.i_a.eq(x), alone.i_b.eq(inputs[f"w{k}"])]
            pairs.module.d.comb += pairs.port(f"{prefix}_wrong{k}", 1, False).eq(out != alone.o)
            checks.append(f"{prefix}_wrong{k} !== 1'b0")
        lowest = 1 << b_bits - 1
        stimulus.append(f"{prefix}_x = ($random & 3) != 0 ? $random : {1 << a_bits - 1} - ($random & 1);")
        for k in range(2):
            stimulus.append(f"{prefix}_w{k} = ($random & 3) != 0 ? $random : {lowest} + 1 - 2 * ($random & 1);")
            stimulus.append(f"if ({prefix}_w{k} == {lowest}) {prefix}_w{k} = {lowest} + 1;")
        stimulus.append(f"{prefix}_field = {prefix}_w1 - {prefix}_w0[{b_bits - 1}];")
    pairs.compile(tmp_path, loop(5000, stimulus, checks, max(latencies))).check()
    assert latencies == {2, 3}


def row(pes: int, hard: int, **fields: Any) -> MacRowParams:
    params = MacRowParams(pes, 3, 8, False, 4, 20, 2, multiplier="ecp5", hard=hard, together=2)
    return replace(params, **fields)


def test_which_multipliers_share_a_block() -> None:
    """Tap by tap those of both elements; an odd one, and an element without a neighbour, have blocks of their own."""
    assert [row(2, hard).blocks for hard in range(7)] == [0, 1, 1, 2, 2, 3, 3]
    assert [row(3, hard).blocks for hard in range(10)] == [0, 1, 1, 2, 2, 3, 3, 4, 5, 6]
    assert [row(2, hard).pairs(0) for hard in range(7)] == [0, 0, 1, 1, 2, 2, 3]
    assert [row(5, 13).dot_of(e).hard for e in range(5)] == [3, 3, 3, 3, 1]
    assert row(2, 6, w_bits=8).blocks == row(2, 6, together=1).blocks == row(1, 3).blocks * 2 == 6
    with pytest.raises(ValueError, match=r"^together must be 1 or 2, not 3$"):
        row(2, 0, together=3)


def test_elements_of_a_hop_have_one_table() -> None:
    """In block RAM if that is asked for all of them."""
    params = replace(row(5, 0), memory="ecp5")
    tables = [[replace(params, block_roms=count).rom_of(hop) for hop in range(3)] for count in range(6)]
    assert [[rom.width_bits for rom in roms] for roms in tables] == [[24, 24, 12]] * 6
    assert [[rom.in_blocks for rom in roms].count(True) for roms in tables] == [0, 0, 1, 1, 2, 3]


def test_weights_of_pairs_are_symmetric() -> None:
    words = [[[0, -7, 7]] * 2, [[7, -7, -8]] * 2]
    rtlil.convert(row(2, 5).create(words))
    with pytest.raises(ValueError, match=r"^words of elements that share blocks must be at least -7, not -8$"):
        row(2, 6).create(words)


STAGES = {
    "two elements": ConvCase((4, 6, 4), 4, (3, 3), padding=SAME, lanes=2, pes=2, ring=None),
    "an odd number of taps and of elements": ConvCase(
        (4, 9, 2), 6, (3, 3), padding=SAME, pes=3, rows=2, parallel=(3, 1), ring=None, signed=True
    ),
    "a sum every cycle": ConvCase((3, 5, 6), 4, (1, 1), lanes=1, pes=4, ring=None),
    "slow": ConvCase((3, 8, 4), 5, (3, 3), padding=SAME, pes=5, requantizer_ii=3, lanes=2, ring=None),
    "one element": ConvCase((3, 5, 6), 3, (1, 1), lanes=3, ring=None),
}


@pytest.mark.parametrize("share", [1, 2, 3], ids=["all hard", "half", "a third"])
@pytest.mark.parametrize("name", STAGES)
def test_stages(name: str, share: int, tmp_path: Path) -> None:
    """Whole stages give what their definition says, with weights of 4 and of 5 bits, all in pairs or some."""
    stage = make_stage(replace(STAGES[name], kind="ecp5", weight_bits=6 - max(share, 2) + (share == 3)))
    w = stage.w_rcohwi
    w[w == w.min()] += w.min() == -(1 << stage.params.weight_bits - 1)
    params = replace(stage.params, hard=-(-stage.params.multipliers // share), together=2)
    stage = replace(stage, params=params, w_rcohwi=w)
    images = stage.random_frames(2)
    window = params.window
    stream_bench(
        stage.create(),
        stage.beats(images),
        window.lanes * window.bits,
        stage.output_beats(images),
        params.out_bits,
        params.rows,
        tmp_path,
    )
    text = (tmp_path / "stage.v").read_text(encoding="utf-8")
    rows = [params.mac_row_of(row) for row in range(params.rows)]
    assert Counter(text.split())["MULT18X18D"] == sum(row.blocks for row in rows) > 0
    if name != "one element":
        assert sum(row.blocks for row in rows) < params.hard
