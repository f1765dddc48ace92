"""The chip edge: AXI4-Stream in and out, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amaranth.hdl import Const, Module, Mux, Shape, Signal, Value, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .register_slice import RegisterSliceParams
from .streams import beat_stream, beats

__all__ = ["AxiStreamIn", "AxiStreamOut", "AxiStreamParams"]


@dataclass(frozen=True, slots=True)
class AxiStreamParams:
    """Frames of ``pixels · ceil(channels / lanes)`` beats; ``tlast`` marks the last.

    Each lane fills whole bytes of ``tdata``, lane 0 lowest, sign- or zero-extended. Lanes beyond the last channel of a pixel
    are ignored on the way in and zero on the way out.

    *Timing* ``latency`` 1 cycle each way, ``ii`` 1 cycle; ``tvalid``, ``tdata`` and ``tready`` are registered.
    *Source* Arm IHI 0051B, "AMBA AXI-Stream Protocol Specification".
    """

    pixels: int
    channels: int
    lanes: int
    bits: int
    signed: bool

    @property
    def beats_a_pixel(self) -> int:
        return beats(self.channels, self.lanes)

    @property
    def frame_beats(self) -> int:
        return self.pixels * self.beats_a_pixel

    @property
    def lane_bits(self) -> int:
        return -(-self.bits // 8) * 8

    @property
    def tdata_bits(self) -> int:
        return self.lanes * self.lane_bits

    @property
    def latency(self) -> int:
        return 1

    @property
    def ii(self) -> int:
        return 1

    def pack(self, lanes: Sequence[int]) -> int:
        """``tdata`` of one beat; missing lanes are zero."""
        mask = (1 << self.lane_bits) - 1
        return sum((value & mask) << (n * self.lane_bits) for n, value in enumerate(lanes))

    def reference(self, frame_hwc: Sequence[Sequence[Sequence[int]]]) -> Iterator[tuple[int, bool]]:
        """``(tdata, tlast)`` of every beat of a frame."""
        pixels = [pixel for row in frame_hwc for pixel in row]
        for index, pixel in enumerate(pixels):
            for n in range(0, self.channels, self.lanes):
                last = index == len(pixels) - 1 and n + self.lanes >= self.channels
                yield self.pack(pixel[n : n + self.lanes]), last

    def create_in(self) -> AxiStreamIn:
        return AxiStreamIn(self)

    def create_out(self) -> AxiStreamOut:
        return AxiStreamOut(self)


def _closes(beat: Signal, beats: int) -> Value:
    """Whether the beat after this one is the last of so many."""
    return Const(1) if beats == 1 else beat == beats - 2


class AxiStreamIn(wiring.Component):
    """Takes ``tdata/tvalid/tready/tlast`` and offers `o`.

    A frame that ends early is filled up with zeros, one that ends late is cut. Either way ``o_error`` is set two cycles after
    the beat with which that is plain, and stays set until reset, and the frame after the next ``tlast`` is whole again: the
    engine behind never sees a frame of the wrong length.
    """

    o: stream.Interface

    def __init__(self, params: AxiStreamParams) -> None:
        self.params = params
        super().__init__(
            {
                "i_tdata": In(params.tdata_bits),
                "i_tvalid": In(1),
                "i_tlast": In(1),
                "o_tready": Out(1),
                "o": Out(beat_stream(params.bits, params.signed, params.lanes)),
                "o_error": Out(1),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        layout = data.StructLayout({"tdata": unsigned(p.tdata_bits), "tlast": unsigned(1)})
        m.submodules.edge = edge = RegisterSliceParams(layout).create()
        m.d.comb += [
            edge.i.payload.tdata.eq(self.i_tdata),
            edge.i.payload.tlast.eq(self.i_tlast),
            edge.i.valid.eq(self.i_tvalid),
            self.o_tready.eq(edge.i.ready),
        ]
        beat = Signal(range(p.frame_beats))
        filling = Signal()  # the frame ended early: make up its missing beats
        cutting = Signal()  # the frame ended late: swallow beats up to its tlast
        at_end = Signal(init=p.frame_beats == 1)  # beat == p.frame_beats - 1
        wrong = Signal()
        m.d.comb += [
            self.o.valid.eq(filling | (edge.o.valid & ~cutting)),
            edge.o.ready.eq(cutting | (self.o.ready & ~filling)),
        ]
        for n in range(p.lanes):
            field = edge.o.payload.tdata[n * p.lane_bits : n * p.lane_bits + p.bits]
            m.d.comb += self.o.payload[n].eq(Mux(filling, 0, field))
        take = self.o.valid & self.o.ready
        with m.If(take):
            m.d.sync += [beat.eq(Mux(at_end, 0, beat + 1)), at_end.eq(_closes(beat, p.frame_beats))]
            with m.If(filling):
                m.d.sync += filling.eq(~at_end)
            with m.Elif(edge.o.payload.tlast & ~at_end):
                m.d.sync += filling.eq(1)
            with m.Elif(~edge.o.payload.tlast & at_end):
                m.d.sync += cutting.eq(1)
        m.d.sync += wrong.eq(take & ~filling & (edge.o.payload.tlast ^ at_end))
        with m.If(wrong):
            m.d.sync += self.o_error.eq(1)
        with m.If(cutting & edge.o.valid & edge.o.payload.tlast):
            m.d.sync += cutting.eq(0)
        return m


class AxiStreamOut(wiring.Component):
    """Sends `i` out as ``tdata/tvalid/tready/tlast``."""

    i: stream.Interface

    def __init__(self, params: AxiStreamParams) -> None:
        self.params = params
        super().__init__(
            {
                "i": In(beat_stream(params.bits, params.signed, params.lanes)),
                "o_tdata": Out(params.tdata_bits),
                "o_tvalid": Out(1),
                "o_tlast": Out(1),
                "i_tready": In(1),
            }
        )

    def elaborate(self, _platform: object) -> Module:
        m = Module()
        p = self.params
        layout = data.StructLayout({"tdata": unsigned(p.tdata_bits), "tlast": unsigned(1)})
        m.submodules.edge = edge = RegisterSliceParams(layout).create()
        beat = Signal(range(p.frame_beats))
        in_pixel = Signal(range(p.beats_a_pixel))
        at_end = Signal(init=p.frame_beats == 1)  # beat == p.frame_beats - 1
        closes_pixel = in_pixel == p.beats_a_pixel - 1
        used = p.channels - (p.beats_a_pixel - 1) * p.lanes  # lanes in use in a pixel's last beat
        for n in range(p.lanes):
            lane = Signal(Shape(p.lane_bits, p.signed), name=f"lane_{n}")
            filler = closes_pixel if n >= used else 0
            m.d.comb += lane.eq(Mux(filler, 0, self.i.payload[n]))
            m.d.comb += edge.i.payload.tdata[n * p.lane_bits : (n + 1) * p.lane_bits].eq(lane)
        m.d.comb += [
            edge.i.payload.tlast.eq(at_end),
            edge.i.valid.eq(self.i.valid),
            self.i.ready.eq(edge.i.ready),
            self.o_tdata.eq(edge.o.payload.tdata),
            self.o_tvalid.eq(edge.o.valid),
            self.o_tlast.eq(edge.o.payload.tlast),
            edge.o.ready.eq(self.i_tready),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                beat.eq(Mux(at_end, 0, beat + 1)),
                at_end.eq(_closes(beat, p.frame_beats)),
                in_pixel.eq(Mux(closes_pixel, 0, in_pixel + 1)),
            ]
        return m
