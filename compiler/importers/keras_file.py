"""Keras files as plain data: the configuration from JSON, and weights by name, of a shape known before they are read.

Keras itself is never asked: its configurations may hold code. ``.keras`` is a zip archive of ``config.json`` and
``model.weights.h5``, ``.h5`` is one HDF5 file whose attribute ``model_config`` is the same JSON, and whose weights have names.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import CompileError, quote
from ..files import one_line, printable
from ..numbers import RealArray
from .archive import MAX_JSON_BYTES, MAX_NUMBERS, open_archive, read_json
from .common import MAX_NODES, finite, read_file

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
"""Under which names the layers of a model stand in ``model.weights.h5``, in the order of age."""

MAX_DEPTH = 12
"""Groups within groups."""

BROKEN = "save the model again"
HDF5_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, NotImplementedError, OverflowError, SystemError)
"""What h5py makes of a broken file."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer's weights stand: the names of the models around it and its own, and their groups in a ``.keras`` file."""

    names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class KerasFile:
    """A model's configuration, the major version of the Keras that wrote it, and its weights."""

    source: str
    config: Mapping[str, Any]
    version: int
    root: h5py.Group
    named: bool
    numbers: int = field(default=0)

    def weights(self, source: str, place: Place, shapes: Mapping[str, Sequence[int]]) -> dict[str, RealArray]:
        """All weights of a layer by name, in the order in which Keras holds them.

        *Raises* ``CompileError`` from ``source`` where one is missing, has another shape, or is no plain array of finite
        numbers.
        """
        if not shapes:
            return {}
        try:
            found = self._named(source, place, shapes) if self.named else self._numbered(source, place, shapes)
            return {part: self._read(source, part, found[part], tuple(shape)) for part, shape in shapes.items()}
        except HDF5_ERRORS as error:
            raise CompileError(source, f"its weights cannot be read: {one_line(error)}", BROKEN) from error

    def _numbered(self, source: str, place: Place, shapes: Mapping[str, Sequence[int]]) -> dict[str, h5py.Dataset]:
        """``layers/dense/vars/0``: groups are named after classes, weights counted."""
        group = self.root
        for name in place.groups:
            container = next((one for one in CONTAINERS if one in group), CONTAINERS[0])
            group = _member(source, _member(source, group, container, h5py.Group), name, h5py.Group)
        variables = _member(source, group, "vars", h5py.Group)
        stated = _text(variables, "name")
        if stated is not None and stated != place.names[-1]:
            message = f"the weights in its place are those of {quote(stated)}"
            raise CompileError(source, message, BROKEN)
        if len(variables) != len(shapes):
            message = f"must have {len(shapes)} weights ({', '.join(shapes)}), but the file holds {len(variables)}"
            raise CompileError(source, message, "save the model as it is when it runs: float, without adapters")
        return {part: _member(source, variables, str(at), h5py.Dataset) for at, part in enumerate(shapes)}

    def _named(self, source: str, place: Place, shapes: Mapping[str, Sequence[int]]) -> dict[str, h5py.Dataset]:
        """``dense/dense/kernel:0``: all weights of the outermost layer are in its group, under paths that end in theirs.

        Paths tell the models around a layer, or only some of them: that which fits best is meant.
        """
        group = self.root
        for name in place.names[0].split("/"):
            group = _member(source, group, name, h5py.Group)
        names = [name for place_name in place.names for name in place_name.split("/")]
        found: dict[str, list[tuple[tuple[int, int], h5py.Dataset]]] = {part: [] for part in shapes}
        for path, dataset in _datasets(source, group):
            *owner, part = path.removesuffix(":0").split("/")
            agreed = _agreed(owner, names)
            if part in found and (agreed or len(place.names) == 1):
                found[part].append(((agreed, agreed - len(owner)), dataset))
        chosen = {}
        for part, choices in found.items():
            most = max((fit for fit, _ in choices), default=(0, 0))
            best = [dataset for fit, dataset in choices if fit == most]
            if len(best) != 1:
                message = f"the file holds {'two weights' if best else 'no weight'} {quote(part)} for it"
                raise CompileError(source, message, "give every layer a name of its own, and save the model again")
            chosen[part] = best[0]
        return chosen

    def _read(self, source: str, part: str, dataset: h5py.Dataset, shape: tuple[int, ...]) -> RealArray:
        if dataset.shape != shape:
            raise CompileError(source, f"{part} must have shape {list(shape)}, not {quote(dataset.shape)}", BROKEN)
        self.numbers += math.prod(shape)
        chunk = math.prod(dataset.chunks or (0,))
        if self.numbers > MAX_NUMBERS or chunk > max(4 * math.prod(shape), 1 << 16):
            raise CompileError(source, f"{part}: there are too many weights", f"keep to {MAX_NUMBERS} numbers")
        if dataset.is_virtual or dataset.external or dataset.compression not in (None, "gzip", "lzf"):
            raise CompileError(source, f"{part} lies in another file, or needs a filter of its own", BROKEN)
        if dataset.dtype.kind not in "fiu" or dataset.dtype.itemsize > 8:
            raise CompileError(source, f"{part} must hold real numbers, not {quote(dataset.dtype.str)}", "save it as float32")
        return finite(source, part, np.asarray(dataset[()]))


def read_keras_file(path: Path) -> KerasFile:
    """The configuration and the weights of a ``.keras`` or ``.h5`` file.

    *Raises* ``CompileError`` for anything that is wrong with the file.
    """
    source = printable(path.name)
    data = read_file(path)
    if data[:4] == b"PK\x03\x04":
        return _zipped(source, data)
    if data[:8] != b"\x89HDF\r\n\x1a\n":
        raise CompileError(source, "is neither a zip archive nor an HDF5 file", "save it by model.save('name.keras')")
    return _plain(source, data)


def _zipped(source: str, data: bytes) -> KerasFile:
    archive = open_archive(source, data)
    if "model.weights.json" in archive.sizes:
        raise CompileError(source, "its weights are spread over several files", "save them in one file")
    config = archive.json("config.json")
    metadata = archive.json("metadata.json") if "metadata.json" in archive.sizes else {}
    version = _version(metadata.get("keras_version") if isinstance(metadata, Mapping) else None)
    return KerasFile(source, _mapping(source, config), version, _root(source, archive.read("model.weights.h5")), named=False)


def _plain(source: str, data: bytes) -> KerasFile:
    root = _root(source, data)
    try:
        text, version = _text(root, "model_config"), _text(root, "keras_version")
        if text is None:
            raise CompileError(
                source, "holds weights, but no network (model_config)", "save the whole model: model.save('name.keras')"
            )
        group = _member(source, root, "model_weights", h5py.Group)
    except HDF5_ERRORS as error:
        raise CompileError(source, f"is no sound HDF5 file: {one_line(error)}", BROKEN) from error
    return KerasFile(source, _mapping(source, read_json(source, "model_config", text)), _version(version), group, named=True)


def _root(source: str, data: bytes) -> h5py.Group:
    try:
        return h5py.File(io.BytesIO(data), "r")["/"]
    except HDF5_ERRORS as error:
        raise CompileError(source, f"is no sound HDF5 file: {one_line(error)}", BROKEN) from error


def _mapping(source: str, config: object) -> Mapping[str, Any]:
    if not isinstance(config, Mapping):
        raise CompileError(source, f"the configuration must be a mapping, not {quote(config)}", BROKEN)
    return config


def _version(text: object) -> int:
    """The major version; that of today where none is said."""
    major = text.partition(".")[0] if isinstance(text, str) else ""
    return int(major) if major.isascii() and major.isdecimal() and len(major) < 4 else 3


def _text(group: h5py.Group, name: str) -> str | None:
    """A text attribute, if there is one of a single, bounded string."""
    if name not in group.attrs:
        return None
    attribute = group.attrs.get_id(name)
    if attribute.shape != () or attribute.get_storage_size() > MAX_JSON_BYTES or attribute.dtype.kind not in "OS":
        return None
    value = group.attrs[name]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str) else None


def _member(source: str, group: h5py.Group, name: str, kind: type) -> Any:
    """A member that is in this very file: links, soft or to other files, are not followed."""
    link = group.get(name, getlink=True)
    if link is None:
        raise CompileError(source, f"the file holds no weights {quote(name)} in {quote(group.name)}", BROKEN)
    if not isinstance(link, h5py.HardLink):
        raise CompileError(source, f"{quote(name)} in {quote(group.name)} is a link", "save the model without links")
    member = group[name]
    if not isinstance(member, kind):
        raise CompileError(source, f"{quote(name)} in {quote(group.name)} is no {kind.__name__.lower()}", BROKEN)
    return member


def _agreed(a: Sequence[str], b: Sequence[str]) -> int:
    """How many of the last parts of two paths are the same."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(a), len(b)))


def _datasets(source: str, group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """All datasets below a group, with their paths; a group that contains itself ends at `MAX_DEPTH`."""
    stack = [("", group, 0)]
    seen = 0
    while stack:
        prefix, group, depth = stack.pop()
        for name in group:
            seen += 1
            if seen > MAX_NODES or depth > MAX_DEPTH:
                raise CompileError(source, "its weights are too many, or nested too deep", BROKEN)
            member = _member(source, group, name, object)
            if isinstance(member, h5py.Group):
                stack.append((f"{prefix}{name}/", member, depth + 1))
            elif isinstance(member, h5py.Dataset):
                yield f"{prefix}{name}", member
