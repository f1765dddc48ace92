"""Zip archives of models, of which nothing is unpacked before its size is known: members by name, capped."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CompileError, quote
from ..files import one_line
from .common import MAX_MODEL_BYTES, MAX_WEIGHTS

MAX_NUMBERS = MAX_WEIGHTS >> 1
"""Numbers in all weights of one archive, 128 MiB as float64: they are in memory beside the archive, and are copied."""

MAX_MEMBERS = 1 << 14
"""Files in one archive."""

MAX_RATIO = 100
"""How many times larger than in the archive a file may be, beyond `FREE_BYTES`."""

FREE_BYTES = 1 << 20

MAX_JSON_BYTES = 1 << 22
"""A network's structure in JSON: in memory it takes up to thirty times as much."""

BROKEN = "save the model again"


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """An archive whose every member has been found small enough; ``source`` is the file's name in errors."""

    source: str
    zip: zipfile.ZipFile
    sizes: Mapping[str, int]

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        *Raises* ``CompileError`` where there is no such member, or where it is broken.
        """
        if name not in self.sizes:
            raise CompileError(self.source, f"must contain {quote(name)}", BROKEN)
        try:
            return self.zip.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
            raise CompileError(self.source, f"{quote(name)} cannot be read: {one_line(error)}", BROKEN) from error

    def json(self, name: str) -> Any:
        """A member that is JSON. *Raises* as `read`, and for anything else than JSON."""
        return read_json(self.source, name, self.read(name))


def open_archive(source: str, data: bytes) -> Archive:
    """The archive in ``data``.

    *Raises* ``CompileError`` for what is no zip archive, and for one that would unpack to too much.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError, IndexError, struct.error) as error:
        raise CompileError(source, f"is no sound zip archive: {one_line(error)}", BROKEN) from error
    sizes: dict[str, int] = {}
    for member in members:
        if member.filename in sizes or member.flag_bits & 1:
            raise CompileError(source, f"{quote(member.filename)} is there twice, or encrypted", BROKEN)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others take memory as they like
            raise CompileError(source, f"{quote(member.filename)} is packed in a way that is not used for models", BROKEN)
        sizes[member.filename] = member.file_size
        if member.file_size > max(FREE_BYTES, MAX_RATIO * member.compress_size):
            raise CompileError(source, f"{quote(member.filename)} would unpack to {member.file_size} bytes", BROKEN)
    if len(members) > MAX_MEMBERS or sum(sizes.values()) > MAX_MODEL_BYTES:
        message = f"must not exceed {MAX_MEMBERS} files and {MAX_MODEL_BYTES} bytes"
        raise CompileError(source, f"{message}, but has {len(members)} and {sum(sizes.values())}", "make the model smaller")
    return Archive(source, archive, sizes)


def read_json(source: str, what: str, data: bytes | str) -> Any:
    """A JSON text. *Raises* ``CompileError`` for a large one, and for anything else."""
    if len(data) > MAX_JSON_BYTES:
        raise CompileError(source, f"{quote(what)} must not exceed {MAX_JSON_BYTES} bytes", "make the model smaller")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CompileError(source, f"{quote(what)} is no JSON: {one_line(error)}", BROKEN) from error
