"""Narrow: every requantizer as the one form that the hardware has, with the narrowest multiplier, proven equal.

A requantizer ``f`` never decreases, so within its limits it is a few hundred steps: the least accumulators ``T_k`` with
``f(acc) >= k``. The hardware computes ``h(acc) = (acc·m + offset) >> shift``, which reaches ``k`` at ``T_k`` and not
before exactly if ``k·2**shift - m·T_k <= offset < k·2**shift - m·(T_k - 1)``. In units of ``2**shift`` these are half-planes
of ``(slope, offset)``, whatever the shift: a convex set. So if a slope near its middle is known, then for any shift the
multipliers on both sides of it are the only ones to try. The ties of floating point only move the half-planes a little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import CompileError, InternalError, quote
from .graph import BorderClasses, Graph, Pair, QAdd, QAveragePool, QConv2D, QMultiply
from .numbers import IntArray, Range, RealArray, bits_for_range, round_half_up
from .rounding import (
    FloatRequantizer,
    NativeRequantizer,
    Requantizer,
    add_requantizer,
    mean_requantizer,
    requantizer_of,
)

__all__ = ["AddForm", "AverageForm", "Form", "Rounding", "add_form", "average_form", "conv_form", "multiply_form", "narrow"]

MOST_MULTIPLIER_BITS = 40
_REACH_BITS = 62
"""Products and offsets stay within this many bits, so that 64 bits hold their sum."""
_TABLE_COST = 8
_EVEN_BITS = range(1, 25)
_FLOAT32_BITS = (24, 25, 23, 22, 21, 20)
"""A float32 has 24; a window a little wider or narrower may let fewer products in that are half a unit from a tie."""
_KINDS = ("half", "split")
_TABLE_BITS = 8
_MOST_TABLE_SHIFT, _MOST_TIE_SHIFT = 26, 12
_RELAXATIONS = 60
_FAR = 1 << _REACH_BITS
"""Stands for no limit."""
_BISECTIONS = 56
_NO_LIMIT = 2.0**40
_NOISE = 2.0**-30
"""More than the rounding errors of float64 in a room, less than a room that matters."""
_NO_FORM_HINT = "quantize with scales that are not so far apart, or to fewer bits"


Ties = Literal["none", "even", "float32"]


@dataclass(frozen=True, slots=True)
class Rounding:
    """What happens to ``h`` near a tie: where the bits that are shifted out, ``r``, are close to an end of their range.

    - ``none``: nothing. Halves go up, or wherever the offsets send them.
    - ``even``: where the ``bits`` highest of ``r`` are all zero, an odd ``h`` goes down. (Not all bits of ``r``: a third of
      something is never exact.)
    - ``float32``: the real number is first rounded to ``bits`` significant bits. What is within half a unit of that from a
      tie becomes the tie, and goes to the even side: an odd ``h`` goes down where ``bits - j`` bits of ``r`` are all zero, and
      up where they are all one. ``2**j`` is the power of two next below the tie, which is ``h - 1/2`` or ``h + 1/2``.

    ``zero_point``: as much of the output's zero point is in ``h`` already, for ties that are even with it.

    *Source* of the name: IEEE 754-2019, binary32, roundTiesToEven.
    """

    ties: Ties = "none"
    bits: int = 0
    zero_point: int = 0

    @property
    def least_shift(self) -> int:
        return self.bits + (self.ties == "float32")

    def reach(self, k: IntArray, shift: int) -> IntArray:
        """The least total, offset included but for the zero point, that is rounded to ``k``."""
        odd = (k + self.zero_point) & 1
        if self.ties == "even":
            return (k << shift) + (odd << (shift - self.bits))
        if self.ties == "float32":
            return (k << shift) + ((2 * odd - 1) << (shift - self.bits + _exponent(2 * (k + self.zero_point) - 1)))
        return k << shift

    def __call__(self, total: IntArray, shift: int) -> IntArray:
        """Totals to steps, in 64 bits."""
        h: IntArray = total >> shift
        if self.ties == "even":
            h &= ~np.asarray((total >> (shift - self.bits)) & ((1 << self.bits) - 1) == 0).astype(np.int64)
        elif self.ties == "float32":
            up = (total >> (shift - 1)) & 1
            distance = np.where(up, -1 - total, total) & ((1 << shift) - 1)
            exponent = np.minimum(_exponent(2 * h - 1 + 2 * up), self.bits - 1)
            near = distance >> (shift - self.bits + exponent) == 0
            h += (h & 1) * near * (2 * up - 1)
        return h - self.zero_point


def _exponent(twice: IntArray) -> IntArray:
    """Of the power of two next below half of ``|twice|``."""
    return np.frexp(np.abs(twice).astype(np.float64))[1].astype(np.int64) - 2


HALF_UP = Rounding()


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """``h(acc) = rounding((acc·m + (acc >= 0 ? positive : negative)) >> shift)``; then zero point and limits are applied.

    All arrays have one shape, that of the channels. Offsets that are not all ``2**(shift-1)`` are ``split``. Those that all
    channels have in common are ``constants``; of the others, less ``2**(shift-1)``, the lowest ``offset_shift`` bits are all 0,
    and the rest takes ``offset_bits``, signed.
    """

    m: IntArray
    positive: IntArray
    negative: IntArray
    shift: int
    rounding: Rounding = HALF_UP

    @property
    def multiplier_bits(self) -> int:
        return max(1, int(self.m.max()).bit_length())

    @property
    def split(self) -> bool:
        half = 1 << (self.shift - 1)
        return not (np.all(self.positive == half) and np.all(self.negative == half))

    @property
    def constants(self) -> tuple[int | None, int | None]:
        """The offset of positive sums, if common to all channels like that of negative ones; and that of negative ones."""
        if not self.split or np.ptp(self.negative):
            return None, None
        return None if np.ptp(self.positive) else int(self.positive.flat[0]), int(self.negative.flat[0])

    @property
    def tables(self) -> list[IntArray]:
        """The offsets that are not constant."""
        both = zip((self.positive, self.negative), self.constants, strict=True)
        return [offsets for offsets, constant in both if self.split and constant is None]

    @property
    def _distances(self) -> list[IntArray]:
        """Of the offsets in tables from one half."""
        return [offsets - (1 << self.shift >> 1) for offsets in self.tables]

    @property
    def offset_shift(self) -> int:
        ones = int(np.bitwise_or.reduce(np.array(self._distances, dtype=np.int64), axis=None))
        return (ones & -ones).bit_length() - 1 if ones else 0

    @property
    def offset_bits(self) -> int:
        if not self.tables:
            return 0
        words = np.array(self._distances) >> self.offset_shift
        return bits_for_range(min(int(words.min()), -1), int(words.max()))[0]

    def __call__(self, acc: IntArray) -> IntArray:
        """The form itself, in 64 bits, on ``acc (..., C)``."""
        return self.rounding(acc * self.m + np.where(acc >= 0, self.positive, self.negative), self.shift)


@dataclass(frozen=True, slots=True, eq=False)
class AverageForm:
    """An average pool as a convolution of ones, padded with the input's zero point: ``form(b + Σ x_raw)`` plus zero point.

    ``b`` and the arrays of ``form`` are ``(R, C, 1)``: ``classes`` are the windows that count alike. ``range`` holds every sum,
    with and without ``b``.
    """

    classes: BorderClasses
    b: IntArray
    form: Form
    range: Range


@dataclass(frozen=True, slots=True, eq=False)
class AddForm:
    """``form(table_a[a_raw - least] + table_b[b_raw - least])`` plus zero point, within the limits."""

    table_a: IntArray
    table_b: IntArray
    form: Form


# --------------------------------------------------------------------------------------------------- of every operator


def conv_form(graph: Graph, node: QConv2D) -> Form:
    """The form of a convolution, arrays ``(O,)``; the ranges are those of each channel's own weights.

    *Raises* ``CompileError`` when there is none.
    """
    source = graph.format_of(node.inputs[0])
    w_rcohwi, b_rco = graph.integers(f"{node.name}.w"), graph.integers(f"{node.name}.b")
    at_low, at_high = w_rcohwi * source.min_raw, w_rcohwi * source.max_raw
    least_rco = np.minimum(at_low, at_high).sum(axis=(3, 4, 5)) + b_rco
    most_rco = np.maximum(at_low, at_high).sum(axis=(3, 4, 5)) + b_rco
    return _form_of(node, requantizer_of(graph, node), least_rco.min(axis=(0, 1)), most_rco.max(axis=(0, 1)))


def multiply_form(graph: Graph, node: QMultiply) -> Form:
    """The form of a product ``(a - za)(b - zb)``, arrays ``(1,)``.

    *Raises* ``CompileError`` when there is none.
    """
    a, b = (graph.format_of(name) for name in node.inputs)
    corners = np.multiply.outer(*(np.array([x.min_raw, x.max_raw]) - x.zero_point for x in (a, b)))
    return _form_of(node, requantizer_of(graph, node), corners.min(keepdims=True)[0], corners.max(keepdims=True)[0])


def average_form(graph: Graph, node: QAveragePool) -> AverageForm:
    """The form of an average pool.

    Sums are taken less the zero point, so that half up stays half up. Only tflite's ties depend on the sign of the raw sum:
    there the raw samples are summed, and the zero point is in the offsets.

    *Raises* ``CompileError`` when there is none.
    """
    source = graph.format_of(node.inputs[0])
    classes, counts_rc1 = _window_classes(graph, node)
    taps = node.kernel[0] * node.kernel[1]
    raw = node.rounding == "tflite"
    b_rc1 = (counts_rc1 - taps if raw else np.full_like(counts_rc1, -taps)) * source.zero_point
    reads = np.array([source.min_raw, source.max_raw]) - (0 if raw else source.zero_point)
    least, most = (counts_rc1.ravel() * read for read in reads)
    shift_y = source.zero_point if raw else 0
    form = narrow(
        mean_requantizer(node, counts_rc1.ravel()),
        least,
        most,
        node.low - node.format.zero_point + shift_y,
        node.high - node.format.zero_point + shift_y,
        node.source,
    )
    zero = shift_y << form.shift
    m, positive, negative = (
        array.reshape(counts_rc1.shape) for array in (form.m, form.positive - zero, form.negative - zero)
    )
    sums = Range(min(taps * source.min_raw, 0), max(taps * source.max_raw, 0))
    with_b = Range(min(sums.low, sums.low + int(b_rc1.min())), max(sums.high, sums.high + int(b_rc1.max())))
    return AverageForm(classes, b_rc1, replace(form, m=m, positive=positive, negative=negative), with_b)


def _window_classes(graph: Graph, node: QAveragePool) -> tuple[BorderClasses, IntArray]:
    """Where the number of samples that a window counts changes, and those numbers, ``(R, C, 1)``."""
    starts, counts = [], []
    for axis, size in enumerate(graph.shapes[node.inputs[0]][:2]):
        first = np.arange(graph.shapes[node.name][axis]) * node.stride[axis] - node.padding[axis][0]
        inside = np.minimum(first + node.kernel[axis], size) - np.maximum(first, 0)
        counted = np.full_like(inside, node.kernel[axis]) if node.count_include_pad else inside
        begins = np.flatnonzero(np.diff(counted, prepend=-1))
        starts.append(tuple(begins.tolist()))
        counts.append(counted[begins])
    return BorderClasses(*starts), np.multiply.outer(*counts)[:, :, None]


def add_form(graph: Graph, node: QAdd) -> AddForm:
    """The form of a sum: both operands in units of about ``2**-shift`` of the output, with the least shift that is exact.

    The multiplier is 1, for the ratios are in the tables; and so are the roundings, where they can be (`_solve_tables`).
    Proven on every pair of samples.

    *Raises* ``CompileError`` for more than 8 bits, and when no shift is exact.
    """
    sides = [graph.format_of(name) for name in node.inputs]
    if max(side.bits for side in sides) > _TABLE_BITS:
        bits = "- and ".join(str(side.bits) for side in sides)
        hint = f"quantize both tensors to at most {_TABLE_BITS} bits"
        raise CompileError(node.source, f"a sum of {bits}-bit tensors has no tables that small", hint)
    a, b = (np.arange(side.min_raw, side.max_raw + 1) - side.zero_point for side in sides)
    limits = node.low - node.format.zero_point, node.high - node.format.zero_point
    y_ab = np.clip(add_requantizer(graph, node)(a[:, None], b[None, :]), *limits)
    p, q = _add_ratios(node)
    zeros = {0, node.format.zero_point if node.rounding == "float32" else 0}
    found = _shortest_tables(a.astype(np.float64) * p, b.astype(np.float64) * q, y_ab, limits, sorted(zeros, key=abs))
    if found is None:
        raise CompileError(node.source, "no tables of the hardware's adder round as this sum does", _NO_FORM_HINT)
    if not np.array_equal(np.clip(found.form((found.table_a[:, None] + found.table_b)[..., None])[..., 0], *limits), y_ab):
        raise InternalError("narrow", quote(node.name), "a sum's tables differ from its definition")
    return found


def _shortest_tables(
    real_a: RealArray, real_b: RealArray, y_ab: IntArray, limits: Pair, zeros: Sequence[int]
) -> AddForm | None:
    """Half up if possible, which is possible with any greater shift, too; else half to even or, last, ties away from zero.

    Ties may be even with any of ``zeros``.
    """
    least, most = 1, _MOST_TABLE_SHIFT
    found = _solve_tables(real_a, real_b, y_ab, limits, most)
    while found is not None and least < most:
        middle = (least + most) // 2
        other = _solve_tables(real_a, real_b, y_ab, limits, middle)
        found, least, most = (found, middle + 1, most) if other is None else (other, least, middle)
    if found is not None:
        return found
    evens = (
        (shift, Rounding("even", bits, zero))
        for shift in range(1, _MOST_TIE_SHIFT)
        for bits in range(max(1, shift - 2), shift + 1)
        for zero in zeros
    )
    others = chain(
        (_solve_tables(real_a, real_b, y_ab, limits, shift, rounding) for shift, rounding in evens),
        (_solve_tables(real_a, real_b, y_ab, limits, shift, split=True) for shift in range(1, _MOST_TABLE_SHIFT + 1)),
    )
    return next((form for form in others if form is not None), None)


def _solve_tables(
    real_a: RealArray,
    real_b: RealArray,
    y_ab: IntArray,
    limits: Pair,
    shift: int,
    rounding: Rounding = HALF_UP,
    *,
    split: bool = False,
) -> AddForm | None:
    """Tables ``A`` and ``B`` with ``least <= A[a] + B[b] <= most`` for all pairs: limits of differences, of ``A`` and ``-B``.

    From the rounded operands on, each entry comes down to its tightest limit until none is broken: the shortest paths of
    Bellman and Ford, which find tables wherever there are any, given time.
    """
    half = 1 << (shift - 1)
    positive = real_a[:, None] + real_b >= 0
    offset_ab = np.where(positive, half, half - split)
    least_ab = np.where(y_ab > limits[0], rounding.reach(y_ab, shift) - offset_ab, -_FAR)
    most_ab = np.where(y_ab < limits[1], rounding.reach(y_ab + 1, shift) - 1 - offset_ab, _FAR)
    if split:
        least_ab = np.where(positive, np.maximum(least_ab, 0), least_ab)
        most_ab = np.where(positive, most_ab, np.minimum(most_ab, -1))
    a, minus_b = (round_half_up(np.ldexp(real, shift)).astype(np.int64) for real in (real_a, -real_b))
    for _ in range(_RELAXATIONS):
        lower_b = np.minimum(minus_b, (a[:, None] - least_ab).min(axis=0))
        lower_a = np.minimum(a, (lower_b + most_ab).min(axis=1))
        if np.array_equal(lower_a, a) and np.array_equal(lower_b, minus_b):
            return AddForm(a, -minus_b, _form(np.array([1]), [np.array([half]), np.array([half - split])], shift, rounding))
        a, minus_b = lower_a, lower_b
    return None


def _add_ratios(node: QAdd) -> tuple[float, float]:
    """Steps of the sum a step of each operand."""
    match node.rounding:
        case "native":
            (m0, _), (m1, _) = node.multipliers
            return math.ldexp(m0, -node.shift), math.ldexp(m1, -node.shift)
        case "tflite":
            (m0, s0), (m1, s1), (m2, s2) = node.multipliers
            last = math.ldexp(m2, s2 - 31 + node.shift)
            return math.ldexp(m0, s0 - 31) * last, math.ldexp(m1, s1 - 31) * last
    p, q = node.ratios
    return p, q


# ------------------------------------------------------------------------------------------------------------- search


def _form_of(node: QConv2D | QMultiply, requantizer: Requantizer, least: IntArray, most: IntArray) -> Form:
    zero_point = node.format.zero_point
    return narrow(requantizer, least, most, node.low - zero_point, node.high - zero_point, node.source)


def narrow(requantizer: Requantizer, least: IntArray, most: IntArray, low: int, high: int, source: str) -> Form:
    """The form equal to ``requantizer`` within ``low … high``, for accumulators ``least[c] … most[c]``; arrays ``(C,)``.

    Half up or offsets of their own for each sign, each with its least shift, whichever is cheaper; where neither will do, those
    of floating point with a rounding that knows ties. Native requantizers have the form already.

    *Raises* ``CompileError`` naming the channel when there is no form.
    """
    if isinstance(requantizer, NativeRequantizer):
        half = np.full_like(requantizer.m_o, 1 << (requantizer.shift - 1))
        return Form(requantizer.m_o, half, half, requantizer.shift)
    steps = _Steps.of(requantizer, least, most, low, high)
    attempts = [_search(steps, requantizer.slope_o, kind) for kind in _KINDS]
    found = [form for form, _ in attempts if form is not None]
    for kind in _KINDS:
        if not found:
            others = (_search(steps, requantizer.slope_o, kind, rounding)[0] for rounding in _roundings(requantizer))
            found = [form for form in others if form is not None]
    if not found:
        failed = attempts[-1][1]
        message = f"no multiplier of up to {MOST_MULTIPLIER_BITS} bits rounds its channel {failed} as the model does"
        raise CompileError(source, message, _NO_FORM_HINT)
    form = min(found, key=_cost)
    _prove(form, requantizer, steps, source)
    return form


def _roundings(requantizer: Requantizer) -> Iterator[Rounding]:
    """Those that know ties, which are even with or without the zero point, if this one has such ties."""
    if not isinstance(requantizer, FloatRequantizer):
        return
    for zero_point in sorted({0, requantizer.zero_point}, key=abs):
        yield from (Rounding("even", bits, zero_point) for bits in _EVEN_BITS)
        if requantizer.dtype is np.float32:
            yield from (Rounding("float32", bits, zero_point) for bits in _FLOAT32_BITS)


def _cost(form: Form) -> int:
    """In bits of the multiplier: each is half an adder, and a table of offsets is a few adders' worth of memory."""
    return form.multiplier_bits + form.rounding.bits + form.split + _TABLE_COST * len(form.tables)


@dataclass(frozen=True, eq=False)
class _Steps:
    """Where a requantizer reaches each ``k`` of ``k_k1 (K, 1)``: the least such accumulators ``t_kc (K, C)``.

    They are ``most + 1`` where none does, and ``least`` where all do.
    """

    least_c: IntArray
    most_c: IntArray
    limits: Pair
    k_k1: IntArray
    t_kc: IntArray

    @cached_property
    def climbs(self) -> NDArray[np.bool_]:
        """Where ``h`` must have reached ``k`` at ``T_k``: not behind the range's end."""
        return (self.t_kc <= self.most_c) & (self.least_c <= self.most_c)

    @cached_property
    def waits(self) -> NDArray[np.bool_]:
        """Where ``h`` must not have reached ``k`` at ``T_k - 1``: not before the range's start."""
        return (self.t_kc > self.least_c) & (self.least_c <= self.most_c)

    @staticmethod
    def of(requantizer: Requantizer, least: IntArray, most: IntArray, low: int, high: int) -> _Steps:
        first = min(max(low + 1, int(requantizer(least).min())), high)
        last = max(min(high, int(requantizer(most).max()) + 1), first)
        k_k1 = np.arange(first, last + 1)[:, None]
        below = np.broadcast_to(least, (len(k_k1), len(least)))
        reached = np.broadcast_to(most + 1, below.shape)
        while np.any(below < reached):
            middle = (below + reached) >> 1
            up = requantizer(np.minimum(middle, most)) >= k_k1
            searched = below < reached
            reached = np.where(searched & up, middle, reached)
            below = np.where(searched & ~up, middle + 1, below)
        return _Steps(least, most, (low, high), k_k1, reached)

    def part(self, least: int | None, most: int | None) -> _Steps:
        """Those of the accumulators within ``least … most`` only."""
        least_c = self.least_c if least is None else np.maximum(self.least_c, least)
        most_c = self.most_c if most is None else np.minimum(self.most_c, most)
        return replace(self, least_c=least_c, most_c=most_c, t_kc=np.clip(self.t_kc, least_c, most_c + 1))


def _search(steps: _Steps, slope_c: RealArray, kind: str, rounding: Rounding = HALF_UP) -> tuple[Form | None, int]:
    """The form of a kind with the least shift; else ``None`` and the channel that has none."""
    parts = [steps.part(0, None), steps.part(None, -1)] if kind == "split" else [steps]
    slope_c, room_c = _good_slope(parts, slope_c, rounding, free=kind != "half")
    if np.any(room_c < -_NOISE):
        return None, int(room_c.argmin())
    least, most = max(1, rounding.least_shift), _most_shift(steps, slope_c)
    form, failed = _try_shift(parts, slope_c, max(least, most), kind, rounding)
    while form is not None and least < most:
        middle = (least + most) // 2
        other, _ = _try_shift(parts, slope_c, middle, kind, rounding)
        if other is None:
            least = middle + 1
        else:
            form, most = other, middle
    return form, failed


def _most_shift(steps: _Steps, slope_c: RealArray) -> int:
    """The greatest shift for which multipliers, products and steps stay within their bits."""
    reach_c = np.maximum(np.maximum(-steps.least_c, steps.most_c), 1)
    steepest = math.frexp(max(float(slope_c.max()), 2.0**-_REACH_BITS))[1]
    longest = math.frexp(max(float((slope_c * reach_c).max()), float(np.abs(steps.k_k1).max()), 1.0))[1]
    return max(1, min(MOST_MULTIPLIER_BITS - steepest, _REACH_BITS - 2 - longest))


def _good_slope(parts: Sequence[_Steps], slope_c: RealArray, rounding: Rounding, *, free: bool) -> tuple[RealArray, RealArray]:
    """A slope near ``slope_c`` for each channel that leaves room for its offsets, and that room; below 0 if there is none.

    The room is the least of concave functions, so bisection by its derivative finds its greatest. Offsets are a half, or
    ``free``.
    """
    middle_c, step_c = slope_c, slope_c / 2
    room_c, rise_c = _room(parts, middle_c, rounding, free=free)
    for _ in range(_BISECTIONS):
        lost = room_c + np.abs(rise_c) * 2 * step_c < -_NOISE  # a concave function stays below its tangents
        found = (room_c > _NOISE) | (rise_c == 0)
        if np.all(found) or np.any(lost):
            break
        middle_c = middle_c + np.where(found, 0, np.sign(rise_c) * step_c)
        room_c, rise_c = _room(parts, middle_c, rounding, free=free)
        step_c = step_c / 2
    return middle_c, room_c


def _room(parts: Sequence[_Steps], slope_c: RealArray, rounding: Rounding, *, free: bool) -> tuple[RealArray, RealArray]:
    """How far apart the limits of the offset are, and the derivative of that in the slope."""
    rooms, rises = [], []
    channels, unit = np.arange(len(slope_c)), rounding.least_shift
    for part in parts:
        reach = np.ldexp(rounding.reach(part.k_k1, unit).astype(np.float64), -unit)
        totals = reach - slope_c * part.t_kc
        at_floor = np.where(part.climbs, totals, -np.inf).argmax(axis=0)
        at_ceiling = np.where(part.waits, totals + slope_c, np.inf).argmin(axis=0)
        floored, ceiled = part.climbs[at_floor, channels], part.waits[at_ceiling, channels]
        floor = np.where(floored, totals[at_floor, channels], -_NO_LIMIT)
        ceiling = np.where(ceiled, totals[at_ceiling, channels] + slope_c, _NO_LIMIT)
        floor_rise = np.where(floored, -part.t_kc[at_floor, channels], 0)
        ceiling_rise = np.where(ceiled, 1 - part.t_kc[at_ceiling, channels], 0)
        if free:
            rooms.append(ceiling - floor)
            rises.append(ceiling_rise - floor_rise)
        else:
            rooms += [0.5 - floor, ceiling - 0.5]
            rises += [-floor_rise, ceiling_rise]
    narrowest = np.argmin(rooms, axis=0)[None]
    return np.take_along_axis(np.array(rooms), narrowest, 0)[0], np.take_along_axis(np.array(rises), narrowest, 0)[0]


def _try_shift(
    parts: Sequence[_Steps], slope_c: RealArray, shift: int, kind: str, rounding: Rounding
) -> tuple[Form | None, int]:
    """The form with this shift; else ``None`` and a channel that has none."""
    half = 1 << (shift - 1)
    below_c = np.floor(np.ldexp(slope_c, shift)).astype(np.int64)
    above_c = below_c + 1
    good_below, good_above = (
        _offsets_exist(parts, m_c, shift, kind, rounding) & (m_c < 1 << MOST_MULTIPLIER_BITS) for m_c in (below_c, above_c)
    )
    if not np.all(good_below | good_above):
        return None, int(np.argmin(good_below | good_above))
    m_c = np.where(good_below, below_c, above_c)
    if kind == "half":
        offsets = [np.full_like(m_c, half)]
    else:
        offsets = _choose([_offset_limits(part, m_c, shift, rounding) for part in parts], half)
    return _form(m_c, offsets, shift, rounding), 0


def _form(m_c: IntArray, offsets: Sequence[IntArray], shift: int, rounding: Rounding) -> Form:
    """``offsets`` of positive and of negative accumulators, or of both, without the zero point that the rounding knows."""
    zero = rounding.zero_point << shift
    return Form(m_c, offsets[0] + zero, offsets[-1] + zero, shift, rounding)


def _offsets_exist(
    parts: Sequence[_Steps], m_c: IntArray, shift: int, kind: str, rounding: Rounding
) -> NDArray[np.bool_]:
    good = np.ones(m_c.shape, dtype=np.bool_)
    half = 1 << (shift - 1)
    for part in parts:
        least_c, most_c = _offset_limits(part, m_c, shift, rounding)
        good &= (least_c <= half) & (half <= most_c) if kind == "half" else least_c <= most_c
    return good


def _offset_limits(part: _Steps, m_c: IntArray, shift: int, rounding: Rounding) -> tuple[IntArray, IntArray]:
    """The least and the greatest offset for which ``h`` climbs every step where it should."""
    reach = rounding.reach(part.k_k1, shift) - m_c * part.t_kc
    least_c = np.where(part.climbs, reach, -_FAR).max(axis=0)
    most_c = np.where(part.waits, reach + m_c - 1, _FAR).min(axis=0)
    return least_c, most_c


def _choose(limits: Sequence[tuple[IntArray, IntArray]], half: int) -> list[IntArray]:
    """One offset for all channels, if there is one; else for each that nearest to a half with the most zeros at its end."""
    apart = [(least_c, most_c) for least_c, most_c in limits if least_c.max() > most_c.min()]
    zeros = half.bit_length()
    while not all(np.all(-(-least_c >> zeros) << zeros <= most_c) for least_c, most_c in apart):
        zeros -= 1
    offsets = []
    for least_c, most_c in limits:
        if least_c.max() <= most_c.min():
            offsets.append(np.full_like(least_c, np.clip(half, least_c.max(), most_c.min())))
        else:
            offsets.append(np.clip(half >> zeros, -(-least_c >> zeros), most_c >> zeros) << zeros)
    return offsets


def _prove(form: Form, requantizer: Requantizer, steps: _Steps, source: str) -> None:
    """Neither side decreases, but where the sign changes: equal on both sides of each step and there, they are equal."""
    signs = np.broadcast_to(np.array([[-1], [0]]), (2, len(steps.least_c)))
    acc = np.concatenate([steps.t_kc, steps.t_kc - 1, signs, steps.least_c[None], steps.most_c[None]])
    acc = np.clip(acc, steps.least_c, steps.most_c)
    same = np.clip(form(acc), *steps.limits) == np.clip(requantizer(acc), *steps.limits)
    if not np.all(same):
        channel = int(np.argmin(same.all(axis=0)))
        raise InternalError("narrow", source, f"the multiplier of channel {channel} differs from its definition")
