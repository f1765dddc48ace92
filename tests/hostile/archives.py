"""Zip archives that unpack to more, or to something else, than they say."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tests.hostile.files import Maker, Makers


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def bombs(members: Mapping[str, bytes], victim: str) -> Makers:
    """Archives whose member ``victim`` is not what it says."""
    whole = members[victim]

    def packed(method: int, size: int) -> Maker:
        return lambda folder: zipped({**members, victim: bytes(size)}, method)

    def many(folder: Path) -> bytes:
        return zipped({**members, **{f"x{n}": b"" for n in range(20_000)}})

    def nested(folder: Path) -> bytes:
        inner = zipped({"x": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
        return zipped({name: inner for name in members})

    def twice(folder: Path) -> bytes:
        return zipped({**members, victim + "#": whole}).replace(victim.encode() + b"#", victim.encode() + b"\0")

    def lying(size: int, method: int = zipfile.ZIP_DEFLATED, content: int = 1 << 25) -> Maker:
        return lambda folder: _sizes(zipped({**members, victim: bytes(content)}, method), victim, size)

    def overlapping(folder: Path) -> bytes:
        data = bytearray(zipped({**members, **{f"x{n}": b"" for n in range(9)}}))
        end = data.rindex(b"PK\5\6")
        at = struct.unpack_from("<I", data, end + 16)[0]
        first = struct.unpack_from("<I", data, at + 42)[0]
        while data[at : at + 4] == b"PK\1\2":
            struct.pack_into("<I", data, at + 42, first)
            at += 46 + sum(struct.unpack_from("<3H", data, at + 28))
        return bytes(data)

    def encrypted(folder: Path) -> bytes:
        data = bytearray(zipped(members))
        at = data.index(b"PK\1\2")
        while data[at : at + 4] == b"PK\1\2":
            data[at + 8] |= 1
            at += 46 + sum(struct.unpack_from("<3H", data, at + 28))
        return bytes(data)

    def dictionary(folder: Path) -> bytes:
        """A member packed by LZMA that asks for a dictionary of 4 GiB."""
        data = bytearray(zipped({**members, victim: whole}, zipfile.ZIP_LZMA))
        start = data.index(victim.encode()) + len(victim)
        struct.pack_into("<I", data, start + 5, 0xFFFFFFFF)
        return bytes(data)

    return {
        "no members": lambda folder: zipped({}),
        "other members": lambda folder: zipped({"x": b"x"}),
        "a bomb": packed(zipfile.ZIP_DEFLATED, 1 << 25),
        "a bomb of bzip2": packed(zipfile.ZIP_BZIP2, 1 << 24),
        "a bomb of LZMA": packed(zipfile.ZIP_LZMA, 1 << 24),
        "20,000 members": many,
        "a zip in a zip": nested,
        "a member twice": twice,
        "a bomb that says it is small": lying(1000),
        "a bomb of bzip2 that says it is small": lying(1000, zipfile.ZIP_BZIP2, 1 << 24),
        "a bomb of LZMA that says it is small": lying(1000, zipfile.ZIP_LZMA, 1 << 24),
        "a member that says it is 4 GiB": lying(0xFFFFFFF0, zipfile.ZIP_STORED, 100),
        "overlapping members": overlapping,
        "encrypted members": encrypted,
        "an LZMA dictionary of 4 GiB": dictionary,
    }


def _sizes(data: bytes, name: str, size: int) -> bytes:
    """The archive with another unpacked size of a member, in its directory and in front of it."""
    spoilt, key = bytearray(data), name.encode()
    for mark, sizes, text in ((b"PK\3\4", 22, 30), (b"PK\1\2", 24, 46)):
        at = data.find(mark)
        while at >= 0:
            if data[at + text : at + text + len(key)] == key:
                struct.pack_into("<I", spoilt, at + sizes, size)
            at = data.find(mark, at + 4)
    return bytes(spoilt)
