"""What the user may choose about folding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

FoldMode = Literal["exact", "interior", "off"]


@dataclass(frozen=True, slots=True)
class Options:
    """How layers with weights are merged. (A batch norm is always folded: it is no layer in hardware.)

    ``fold`` is ``exact`` (border classes wherever zero padding stands between two convolutions), ``interior``
    (one kernel everywhere: the border differs, and the difference is measured) or ``off`` (every layer as it
    was written). ``force`` merges even where that takes more multiplies.
    """

    fold: FoldMode = "exact"
    force: bool = False

    def __post_init__(self) -> None:
        if self.fold not in get_args(FoldMode):
            raise ValueError(f"fold must be one of {', '.join(get_args(FoldMode))}, not {self.fold!r}")


DEFAULT = Options()
