"""Fold padding into the convolution or pool that reads it."""

from __future__ import annotations

from dataclasses import replace

from ..bounds import find_bounds
from ..graph import AveragePool, Conv2D, Graph, MaxPool, Pad, Padding
from ..numbers import RealArray
from .options import DEFAULT, Options
from .rewrite import Fold, apply_folds, merged_source, sole_consumer

Window = Conv2D | AveragePool | MaxPool
NONE: Padding = ((0, 0), (0, 0))


def fold_pad(graph: Graph, options: Options = DEFAULT) -> Graph:
    """A convolution of a map padded with zeros is one with more padding.

    *Before*::

        border: 10×10×2 = pad(image, ((1, 1), (1, 1)), value 0)
        edges: 8×8×4 = conv2d(border, 3×3)

    *After*::

        edges: 8×8×4 = conv2d(image, 3×3, padding ((1, 1), (1, 1)))

    An average takes over padding with zeros where they count, and a max pool padding with a value that none of its samples
    is proven to be below: in both if a window never holds padding alone.

    *Requires* a real graph. *Leaves* padding with other values, and padding that others read too. Does nothing when folding
    is off.
    """
    if options.fold == "off":
        return graph
    folds = []
    least: dict[str, RealArray] | None = None
    for pad in graph.nodes:
        window = sole_consumer(graph, pad.name)
        if not isinstance(pad, Pad) or not isinstance(window, Window):
            continue
        if isinstance(window, MaxPool) and least is None:
            least = {name: box.low_hwc for name, box in find_bounds(graph, ()).items()}
        merged = _merged(pad, window, bool(least and (least[pad.inputs[0]] >= pad.value).all()))
        if merged is not None:
            layers = (pad, window)
            merged = replace(merged, inputs=pad.inputs, source=merged_source(layers))
            parts = () if not isinstance(window, Conv2D) else ("w", "b")
            arrays = {f"{window.name}.{part}": graph.weights[f"{window.name}.{part}"] for part in parts}
            folds.append(Fold("pad", layers, (merged,), arrays, "what reads a padded map may pad it by itself"))
    return fold_pad(apply_folds(graph, folds), options) if folds else graph


def _merged(pad: Pad, window: Window, lowest: bool) -> Window | None:
    """The reader with the padding as its own, where that is exact."""
    (top, bottom), (left, right) = (
        (outer[0] + inner[0], outer[1] + inner[1])
        for outer, inner in zip(pad.padding, window.padding, strict=True)
    )
    padding = (top, bottom), (left, right)
    if isinstance(window, Conv2D):
        return replace(window, padding=padding) if pad.value == 0 and window.fold != "forbid" else None
    if any(max(pads) >= size for pads, size in zip(padding, window.kernel, strict=True)):
        return None  # some window would hold padding alone
    if isinstance(window, MaxPool):
        return replace(window, padding=padding) if lowest else None
    counts = window.count_include_pad or window.padding == NONE
    return replace(window, padding=padding, count_include_pad=True) if counts and pad.value == 0 else None
