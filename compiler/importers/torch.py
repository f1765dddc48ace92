"""PyTorch networks: `import_module` for a live module, `read_torch` for an exported program (``.pt2``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CompileError, quote
from ..files import one_line, printable
from ..graph import Graph
from ..verify import MAX_ELEMENTS, legal_name
from .common import checked_range, extra, read_file
from .torch_file import read_program
from .torch_program import import_program

if TYPE_CHECKING:
    from torch import nn


def read_torch(path: Path, input_range: tuple[float, float] | None = None) -> Graph:
    """The graph of a ``.pt2`` file, which ``torch.export.save`` of PyTorch 2.9 or later made for a batch of 1.

    ``input_range`` are the limits of the real inputs, by default -1 to 1. Nothing in the file is run, and PyTorch is not
    needed.

    *Raises* ``CompileError`` for anything that is wrong with the file, for files that hold weights alone or code, and for
    operators that cannot be imported: one error lists them all.
    """
    source = printable(path.name)
    limits = checked_range(source, input_range)
    return import_program(read_program(source, read_file(path)), legal_name(path.stem), limits)


def import_module(
    module: nn.Module, input_shape: Sequence[int], input_range: tuple[float, float] | None = None, name: str | None = None
) -> Graph:
    """The graph of a module in evaluation mode, for one input of ``input_shape``: ``(C, H, W)``, ``(C, L)`` or ``(C,)``.

    The module is left as it is: a copy of it is exported. ``name`` is the network's, by default that of the module's class.

    *Raises* ``CompileError`` where it cannot be exported, and for operators that cannot be imported: one error lists them all.
    """
    title = name or type(module).__name__
    source = printable(title)
    limits = checked_range(source, input_range)
    shape = tuple(input_shape)
    if not 1 <= len(shape) <= 3 or not all(type(size) is int and 1 <= size <= MAX_ELEMENTS for size in shape):
        raise CompileError(source, f"input_shape must be (C, H, W), (C, L) or (C,), not {quote(shape)}", "leave the batch out")
    with extra("torch", source):
        from .torch_export import exported
    try:
        data = exported(module, shape)
    except Exception as error:  # the module is the user's code, and may raise anything
        hint = "let the module run on one tensor of that shape, without branches that depend on the samples"
        raise CompileError(source, f"torch.export fails: {type(error).__name__}: {one_line(error)}", hint) from error
    return import_program(read_program(source, data), legal_name(title), limits)
