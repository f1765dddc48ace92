"""convfold: fold a trained conv net, then fold it into a small FPGA.

    import convfold
    convfold.compile("net.toml", target="ecp5-25k", fps=1000).write("build/net")
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convfold.accelerator import Accelerator
    from convfold.api import Compiled, compile
    from convfold.compiler.errors import CompileError
    from convfold.compression import Compression, compress

__version__ = version("convfold")

__all__ = ["Accelerator", "CompileError", "Compiled", "Compression", "__version__", "compile", "compress"]

_HOMES = {
    "Accelerator": "convfold.accelerator",
    "CompileError": "convfold.compiler.errors",
    "Compiled": "convfold.api",
    "Compression": "convfold.compression",
    "compile": "convfold.api",
    "compress": "convfold.compression",
}


def __getattr__(name: str) -> Any:
    """Import the compiler when it is first asked for: the golden model alone stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'convfold' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
