"""Border classes: which set of constants the current output pixel uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .streams import add_mod

__all__ = ["BorderWalk", "BorderWalkParams"]


@dataclass(frozen=True, slots=True)
class BorderWalkParams:
    """Walks over ``height × width`` pixels in raster order and tells each one's class, times ``scale``.

    Row class ``n`` begins at ``rows[n]``, column classes likewise; the class is ``row class · len(cols) + column class``.

    *Timing* ``o`` belongs to the current pixel; ``i_next`` moves on with the next cycle.
    """

    height: int
    width: int
    rows: tuple[int, ...] = (0,)
    cols: tuple[int, ...] = (0,)
    scale: int = 1

    def __post_init__(self) -> None:
        for starts, size in ((self.rows, self.height), (self.cols, self.width)):
            if starts[0] != 0 or list(starts) != sorted(set(starts)) or starts[-1] >= size:
                raise ValueError(f"class starts must rise from 0 and stay below {size}, not {starts!r}")

    @property
    def count(self) -> int:
        return len(self.rows) * len(self.cols)

    def reference(self) -> Iterator[int]:
        """The value of ``o`` at each pixel of a frame."""
        for i in range(self.height):
            for j in range(self.width):
                row = sum(start <= i for start in self.rows) - 1
                col = sum(start <= j for start in self.cols) - 1
                yield (row * len(self.cols) + col) * self.scale

    def create(self) -> BorderWalk:
        return BorderWalk(self)


class BorderWalk(wiring.Component):
    """See `BorderWalkParams`."""

    def __init__(self, params: BorderWalkParams) -> None:
        self.params = params
        super().__init__({"i_next": In(1), "o": Out(range((params.count - 1) * params.scale + 1))})

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        row = Signal(range(p.height))
        col = Signal(range(p.width))
        row_class = Signal(range(len(p.rows)))
        col_class = Signal(range(len(p.cols)))
        row_ends = [*(start - 1 for start in p.rows[1:]), p.height - 1]
        col_ends = [*(start - 1 for start in p.cols[1:]), p.width - 1]
        with m.If(self.i_next):
            m.d.sync += col.eq(add_mod(col, 1, p.width))
            with m.Switch(col):
                with m.Case(*col_ends):
                    m.d.sync += col_class.eq(add_mod(col_class, 1, len(p.cols)))
            with m.If(col == p.width - 1):
                m.d.sync += row.eq(add_mod(row, 1, p.height))
                with m.Switch(row):
                    with m.Case(*row_ends):
                        m.d.sync += row_class.eq(add_mod(row_class, 1, len(p.rows)))
        with m.Switch(row_class):
            for r in range(len(p.rows)):
                with m.Case(r), m.Switch(col_class):
                    for c in range(len(p.cols)):
                        with m.Case(c):
                            m.d.comb += self.o.eq((r * len(p.cols) + c) * p.scale)
        return m
