"""The devices convfold compiles for, and what each of them holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from convfold.compiler.errors import CompileError

Family = Literal["ecp5", "ice40", "generic"]


@dataclass(frozen=True, slots=True)
class Target:
    """One device in one package, with the clock the planner aims at.

    Counts are ``None`` where there is no limit (plain Verilog for any device). ``luts`` counts 4-input
    look-up tables, ``brams`` the smallest separately addressed block memories of ``bram_bits`` bits, ``pins``
    the user pins of the package. ``nextpnr_args`` select the device; the speed grade is an argument of its
    own because one netlist can be timed for several.
    """

    name: str
    family: Family
    device: str
    package: str
    speed: str
    plan_mhz: float
    luts: int | None
    ffs: int | None
    dsps: int | None
    brams: int | None
    bram_bits: int
    pins: int | None
    nextpnr_args: tuple[str, ...]

    def resources(self) -> Mapping[str, int | None]:
        """The countable limits by name: ``luts``, ``ffs``, ``dsps``, ``brams``."""
        return MappingProxyType({"luts": self.luts, "ffs": self.ffs, "dsps": self.dsps, "brams": self.brams})


def _ecp5(name: str, device: str, flag: str, luts: int, dsps: int, brams: int, pins: int) -> Target:
    return Target(
        name=name,
        family="ecp5",
        device=device,
        package="CABGA381",
        speed="6",  # the slowest grade: whatever meets the clock here meets it on every board
        # In grade 6 a small conv stage routes at 121 MHz with multipliers in look-up tables and at 167 MHz
        # with hard ones; layers of 144 to 288 multipliers at 113 to 129.
        plan_mhz=100.0,
        luts=luts,
        ffs=luts,  # a slice is two look-up tables and two flip-flops
        dsps=dsps,  # MULT18X18D; yosys and nextpnr know no way to use one as two 9x9 multipliers
        brams=brams,
        bram_bits=18432,  # DP16KD, parity bits included
        pins=pins,
        nextpnr_args=(flag, "--package", "CABGA381"),
    )


_TABLE = (
    _ecp5("ecp5-25k", "LFE5U-25F", "--25k", luts=24288, dsps=28, brams=56, pins=197),
    _ecp5("ecp5-45k", "LFE5U-45F", "--45k", luts=43848, dsps=72, brams=108, pins=203),
    _ecp5("ecp5-85k", "LFE5U-85F", "--85k", luts=83640, dsps=156, brams=208, pins=205),
    Target(
        name="ice40-up5k",
        family="ice40",
        device="iCE40UP5K",
        package="sg48",
        speed="",
        # A setting of the chip's own oscillator (48, 24, 12 or 6 MHz), so it needs nothing on the board. Conv
        # stages route at 45 and 53 MHz on a chip that is less than half full: 48 is out of reach, 24 has a
        # margin.
        plan_mhz=24.0,
        luts=5280,
        ffs=5280,
        dsps=8,  # SB_MAC16
        brams=30,
        bram_bits=4096,  # SB_RAM40_4K
        pins=39,
        nextpnr_args=("--up5k", "--package", "sg48"),
    ),
    Target(
        name="ice40-hx8k",
        family="ice40",
        device="iCE40HX8K",
        package="ct256",
        speed="",
        # Conv stages with their multipliers in look-up tables route at 100 to 118 MHz on a half full chip; a
        # full one is slower.
        plan_mhz=50.0,
        luts=7680,
        ffs=7680,
        dsps=0,
        brams=32,
        bram_bits=4096,
        pins=206,
        nextpnr_args=("--hx8k", "--package", "ct256"),
    ),
    Target(
        name="generic",
        family="generic",
        device="",
        package="",
        speed="",
        plan_mhz=100.0,  # only turns cycles into seconds; nothing is placed
        luts=None,
        ffs=None,
        dsps=None,
        brams=None,
        bram_bits=18432,
        pins=None,
        nextpnr_args=(),
    ),
)

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in _TABLE})


def get_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        CompileError: there is none; the hint lists the names.
    """
    target = TARGETS.get(name)
    if target is None:
        raise CompileError("target", f"there is no target {name!r}", f"choose one of: {', '.join(TARGETS)}")
    return target
