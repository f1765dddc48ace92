"""convfold: fold a trained conv net, then fold it into a small FPGA."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("convfold")

__all__ = ["__version__"]
