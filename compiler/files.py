"""Files that nobody vouches for: read whole, if they are plain and not too large; and their errors on one line."""

from __future__ import annotations

from pathlib import Path

from .errors import CompileError, quote


def read_bytes(path: Path, source: str, most: int, subject: str | None = None) -> bytes:
    """A whole file, if it is a plain one and not larger than ``most`` bytes; ``subject`` begins an error, instead of its name.

    *Raises* ``CompileError`` from ``source`` for anything else.
    """
    begin = f"{quote(path.name)} " if subject is None else subject
    try:
        if not path.is_file():
            raise CompileError(source, f"{begin}is not a file", "check the name and the folder")
        size = path.stat().st_size
        if size > most:
            raise CompileError(source, f"{begin}must not exceed {most} bytes, but has {size}", "make the file smaller")
        with path.open("rb") as stream:
            return stream.read(size)
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        raise CompileError(source, f"{begin}cannot be read: {one_line(error)}", "check the file") from error


def printable(name: str) -> str:
    """The name of a file as it is, if that can be printed and is short; else quoted."""
    return name if name.isprintable() and 0 < len(name) <= 60 else quote(name)


def one_line(error: BaseException) -> str:
    """An exception's own words, on one printable line."""
    words = error.strerror if isinstance(error, OSError) else str(error)
    text = " ".join((words or type(error).__name__).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text[:160])
