"""Operators that no node stands for, in terms of those that do: pure functions on shapes and arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph import Padding, Pair

MAX_TRANSPOSED_STRIDE = 1 << 10
"""The greatest stride that an importer should accept: every phase is looked at."""


@dataclass(frozen=True, slots=True, eq=False)
class TransposedConv:
    """A transposed convolution as: crop the input, pad and convolve, write blocks of pixels, trim the output.

    In order: `Crop` by ``cropping`` (nothing when all zero), `Conv2D` of ``w_ohwi``, ``b_o``, ``padding``, the same groups
    and stride 1, `DepthToSpace` of ``block`` in order ``CRD`` (nothing when ``(1, 1)``), `Crop` by ``trim`` (likewise).
    """

    cropping: Padding
    w_ohwi: NDArray[Any]
    b_o: NDArray[Any]
    padding: Padding
    block: Pair
    trim: Padding


def transposed_conv(
    w_ohwi: NDArray[Any],
    b_o: NDArray[Any],
    size: Pair,
    outputs: Pair,
    padding: Pair,
    stride: Pair,
    dilation: Pair = (1, 1),
) -> TransposedConv:
    """What to build for ``y[s·i + d·u − p, o] = b[o] + Σ w[o, u, c] · x[i, c]``, along both axes.

    Output ``y[s·q + r]`` reads ``x[q − j]`` by the tap ``u`` for which ``d·u = s·j + r + p``. So each phase ``r`` is an
    ordinary convolution of ``x``, all phases read the same few neighbours, and they are the channels of one convolution that
    `DepthToSpace` lays out. Channel ``o``, phase ``r`` is output ``o·block + r``, so groups stay together.

    *Parameters*: ``size`` of the input map, ``outputs`` that are wanted (any: ``output_padding`` only makes them more),
    ``padding`` at top and left. The arrays keep their type: integers stay integers.
    *Shapes*: ``w_ohwi (O, kh, kw, I)`` where ``I`` counts the channels of one group; the result has ``O·sh·sw`` outputs.
    """
    rows, cols = (_axis(w_ohwi.shape[1 + a], size[a], outputs[a], padding[a], stride[a], dilation[a]) for a in (0, 1))
    made, _, _, read = w_ohwi.shape
    phases = np.zeros((made, *stride, rows.taps, cols.taps, read), dtype=w_ohwi.dtype)
    for u, (r, tap_r) in enumerate(rows.places):
        for v, (c, tap_c) in enumerate(cols.places):
            phases[:, r, c, tap_r, tap_c] = w_ohwi[:, u, v]
    return TransposedConv(
        cropping=(rows.cropping, cols.cropping),
        w_ohwi=phases.reshape(-1, rows.taps, cols.taps, read),
        b_o=np.repeat(b_o, stride[0] * stride[1]),
        padding=(rows.padding, cols.padding),
        block=stride,
        trim=(rows.trim, cols.trim),
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: for each tap of the transposed kernel its phase and its place in the ``taps`` of the convolution."""

    places: tuple[Pair, ...]
    taps: int
    padding: Pair
    cropping: Pair
    trim: Pair


def _axis(kernel: int, size: int, outputs: int, padding: int, stride: int, dilation: int) -> _Axis:
    """The fewest taps: blocks may start up to ``stride − 1`` samples before the first that is wanted."""
    choices = [_phases(kernel, size, outputs, padding, stride, dilation, early) for early in range(stride)]
    return min(choices, key=lambda axis: (axis.taps, sum(axis.trim)))


def _phases(kernel: int, size: int, outputs: int, padding: int, stride: int, dilation: int, early: int) -> _Axis:
    offsets = [dilation * u - padding + early for u in range(kernel)]
    steps = [offset // stride for offset in offsets]  # j: tap u reads x[q − j]
    least, most = min(steps), max(steps)
    blocks = -(-(outputs + early) // stride)
    front, back = most, blocks - size - least
    return _Axis(
        places=tuple((offset % stride, most - j) for offset, j in zip(offsets, steps, strict=True)),
        taps=most - least + 1,
        padding=(max(front, 0), max(back, 0)),
        cropping=(max(-front, 0), max(-back, 0)),
        trim=(early, blocks * stride - outputs - early),
    )


def phases_size(weights: Sequence[int], stride: Pair, dilation: Pair = (1, 1)) -> int:
    """The most numbers that `transposed_conv` makes of weights whose last two sizes are ``(kh, kw)``.

    Importers ask before they build: a file that lies about a stride makes any number.
    """
    taps = (stride[a] * ((weights[a - 2] - 1) * dilation[a] // stride[a] + 2) for a in (0, 1))
    return math.prod(weights[:-2]) * math.prod(taps)


def transposed_outputs(size: int, kernel: int, padding: Pair, stride: int, dilation: int = 1, output_padding: int = 0) -> int:
    """How many samples a transposed convolution makes of ``size``."""
    return (size - 1) * stride + (kernel - 1) * dilation + 1 - sum(padding) + output_padding


def transposed_weights(w_iohw: NDArray[Any], groups: int) -> NDArray[Any]:
    """The weights of a transposed convolution as ``(O, kh, kw, I)``, from ``(channels, O / groups, kh, kw)``: ONNX, PyTorch."""
    channels, made, kh, kw = w_iohw.shape
    parted = w_iohw.reshape(groups, channels // groups, made, kh, kw)
    return parted.transpose(0, 2, 3, 4, 1).reshape(groups * made, kh, kw, channels // groups)
