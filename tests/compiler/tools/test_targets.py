"""The table of devices."""

from __future__ import annotations

import re

import pytest

from convfold.compiler.errors import CompileError
from convfold.compiler.targets import TARGETS, get_target


def test_the_table_has_the_documented_targets() -> None:
    assert list(TARGETS) == ["ecp5-25k", "ecp5-45k", "ecp5-85k", "ice40-up5k", "ice40-hx8k", "generic"]
    assert all(name == target.name for name, target in TARGETS.items())


def test_resources_of_the_large_ecp5() -> None:
    target = get_target("ecp5-85k")
    assert dict(target.resources()) == {"luts": 83640, "ffs": 83640, "dsps": 156, "brams": 208}
    assert target.brams is not None
    assert target.brams * target.bram_bits // 8 // 1024 == 468  # kB


def test_the_generic_target_has_no_limits() -> None:
    target = get_target("generic")
    assert set(target.resources().values()) == {None}
    assert target.pins is None


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_target_can_be_planned_for(name: str) -> None:
    target = get_target(name)
    assert target.plan_mhz > 0
    assert target.bram_bits > 0
    assert bool(target.nextpnr_args) == (target.family != "generic")


def test_an_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(CompileError, match=r"^target: there is no target 'ecp5-12k'\n") as caught:
        get_target("ecp5-12k")
    assert re.fullmatch(r"choose one of: ecp5-25k, ecp5-45k, .*, generic", caught.value.hint)
