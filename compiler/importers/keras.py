"""Keras files: `read_keras`, for ``.keras`` archives and for ``.h5`` files.

A model is read from its configuration by an allow-list of layers. Keras is not needed, and nothing in the file is run.
"""

from __future__ import annotations

from pathlib import Path

from ..files import printable
from ..graph import Graph
from ..verify import legal_name
from .common import checked_range, extra


def read_keras(path: Path, input_range: tuple[float, float] | None = None) -> Graph:
    """The graph of a ``.keras`` or ``.h5`` file that holds a Sequential or Functional model.

    ``input_range`` are the limits of the real inputs, by default -1 to 1. A final softmax becomes a head of its output.

    *Raises* ``CompileError`` for anything that is wrong with the file, and for layers that cannot be imported: one error lists
    them all.
    """
    source = printable(path.name)
    with extra("keras", source):
        from .keras_file import read_keras_file
        from .keras_model import import_keras
    limits = checked_range(source, input_range)
    return import_keras(read_keras_file(path), legal_name(path.stem), limits)
