"""Names shared by every component: beats of lanes, and delays.

Every stream is `amaranth.lib.stream`: raster order, channels fastest, lane 0 in the low bits. A pixel of ``channels`` values
takes ``ceil(channels / lanes)`` beats; the lanes left over in its last beat carry no meaning.
"""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Shape, Signal, Value, ValueLike
from amaranth.lib import data, stream

__all__ = ["add_mod", "beat_layout", "beat_stream", "beats", "delay"]


def beat_layout(bits: int, signed: bool, lanes: int) -> data.ArrayLayout:
    """The payload of one beat: ``lanes`` integers of ``bits`` bits."""
    return data.ArrayLayout(Shape(bits, signed), lanes)


def beat_stream(bits: int, signed: bool, lanes: int) -> stream.Signature:
    return stream.Signature(beat_layout(bits, signed, lanes))


def beats(channels: int, lanes: int) -> int:
    """Beats a pixel."""
    return -(-channels // lanes)


def delay(m: Module, value: ValueLike, cycles: int, name: str, *, reset_less: bool = False) -> Value:
    """``value`` as it was ``cycles`` cycles ago."""
    value = Value.cast(value)
    for n in range(cycles):
        later = Signal(value.shape(), name=f"{name}_{n + 1}", reset_less=reset_less)
        m.d.sync += later.eq(value)
        value = later
    return value


def add_mod(value: Value, step: int, modulus: int) -> Value:
    """``(value + step) mod modulus`` for ``0 <= value < modulus``; the step is a constant of either sign."""
    step %= modulus
    if step == 0:
        return value
    return Mux(value >= modulus - step, value - (modulus - step), value + step)
