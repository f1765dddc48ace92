"""Type errors on purpose, through the mapped folders. `make lint` fails unless mypy reports every one."""

from __future__ import annotations

import convfold
from convfold.compiler.errors import CompileError
from convfold.hdl.queue import QueueParams


def front_door() -> int:
    return convfold.__version__  # planted


def compiler(error: CompileError) -> int:
    return error.message  # planted


def argument() -> CompileError:
    return CompileError("net.toml", 3)  # planted


def hdl(params: QueueParams) -> str:
    return params.depth_words  # planted
