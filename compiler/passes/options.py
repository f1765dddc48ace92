"""What the user may choose about folding, and what a layer costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

FoldMode = Literal["exact", "interior", "off"]


@dataclass(frozen=True, slots=True)
class Size:
    """What a layer needs: multiplies a frame, bits of one kernel, of its further border classes, of its line buffer."""

    multiplies: int
    weight_bits: int = 0
    class_bits: int = 0
    line_bits: int = 0

    @property
    def stored_bits(self) -> int:
        return self.weight_bits + self.class_bits + self.line_bits

    def __add__(self, other: Size) -> Size:
        return Size(
            self.multiplies + other.multiplies,
            self.weight_bits + other.weight_bits,
            self.class_bits + other.class_bits,
            self.line_bits + other.line_bits,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """What each part of a `Size` is worth, in multiplies a frame: a chain is cut into the groups of least total.

    The default weighs 36 stored bits as one multiply a frame. An ECP5 has some 36 kbit of block RAM beside each of its
    multipliers, and one of those does a thousand multiplies in a frame of a thousand cycles. For frames of ``n`` cycles
    it is ``Cost.of_interval(n)``: who has time to share multipliers has to count bits.
    """

    multiplies: float = 1.0
    weight_bits: float = 1 / 36
    class_bits: float = 1 / 36
    line_bits: float = 1 / 36

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number from 0 on, not {getattr(self, name)!r}")

    @classmethod
    def of_interval(cls, cycles: int) -> Cost:
        """The cost where a frame takes ``cycles`` cycles."""
        bit = cycles / 36_000
        return cls(1.0, bit, bit, bit)

    def of(self, size: Size) -> float:
        return (
            self.multiplies * size.multiplies
            + self.weight_bits * size.weight_bits
            + self.class_bits * size.class_bits
            + self.line_bits * size.line_bits
        )


@dataclass(frozen=True, slots=True)
class Options:
    """How layers with weights are merged. (A batch norm is always folded: it is no layer in hardware.)

    ``fold`` is ``exact`` (border classes wherever zero padding stands between two convolutions), ``interior``
    (one kernel everywhere: the border differs, and the difference is measured) or ``off`` (every layer as it
    was written). ``force`` merges even where that costs more. A layer's own ``fold = "forbid"`` is above it.
    """

    fold: FoldMode = "exact"
    force: bool = False
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        if self.fold not in get_args(FoldMode):
            raise ValueError(f"fold must be one of {', '.join(get_args(FoldMode))}, not {self.fold!r}")


DEFAULT = Options()
