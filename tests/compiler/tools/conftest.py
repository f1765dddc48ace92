"""One Yosys and one printed design for all tool tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from convfold.compiler.tools.yosys import Yosys, find_yosys, rtlil_to_verilog
from tests.compiler.tools.designs import dot_product_rtlil


@pytest.fixture(scope="session")
def yosys() -> Yosys:
    return find_yosys()


@pytest.fixture(scope="session")
def fabric_verilog(yosys: Yosys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dot product with its multiplier in look-up tables."""
    folder = tmp_path_factory.mktemp("fabric")
    path = folder / "fabric.v"
    path.write_text(rtlil_to_verilog(yosys, dot_product_rtlil(), folder), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def hard_verilog(yosys: Yosys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dot product on an ECP5 multiplier."""
    folder = tmp_path_factory.mktemp("hard")
    path = folder / "hard.v"
    path.write_text(rtlil_to_verilog(yosys, dot_product_rtlil(hard=True), folder), encoding="utf-8")
    return path
