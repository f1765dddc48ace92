"""Files that mean harm: what any of them may be, and the names that they may hold.

A `Maker` writes whatever it needs into an empty folder, and gives the file to read, or its bytes. Most files must be refused;
those of `HARMLESS` may also be read, for a damaged weight is a weight. Code in a model would make the file `TRAP` if it ran.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAP = "trap"
Maker = Callable[[Path], "bytes | Path"]
Makers = dict[str, Maker]

FLIPS, CUTS = 10, 4
"""Files of each kind with random bits flipped, and cut short."""

HARMLESS = (
    *("bits", "name", "ones in the middle", "beta huge", "weight scale huge", "zero point of another type", "half a number"),
)
"""Words in the names of those that may be read: what is damaged or strange there may be a weight, a gap or a name."""

HOSTILE_NAMES = (
    *("", " ", "\n", "x #", 'x"', "x'", "x\\", "x;", "x*/", "//x", "/*x", "`x", "$x", "x\0", "x\x1b[2J", "x\rx", "x\tx"),
    *("endmodule", "reg", "begin", "module x; endmodule", "x\nendmodule\nmodule y", "\\x ", "x[3:0]", "x.y", "1x", "-x", "x-y"),
    *("lambda", "class", "None", "import os", "__import__('os')", "x'''", 'x"""', "x\\n", "{{7*7}}", "{%x%}", "{#x#}"),
    *("${7*7}", "`id`"),
    *("%s%s%s%n", "{0}", "{0.__class__}", "../../x", "/etc/passwd", "..", ".", "C:\\x", "~", "con"),
    *("<script>alert(1)</script>", "clk", "rst", "s_axis_tdata"),
    *("&amp;", "<!--", "]]>", "é", "\uff58", "\u202ex", "\u200b", "\U0001d569", "🙂", "x" * 10_000, "X", "x", "x_2"),
)
"""Names that mean something to Verilog, Python, HTML, templates, shells, terminals or file systems."""


def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def normal(*shape: int) -> NDArray[np.float32]:
    return rng().normal(size=shape).astype(np.float32)


def damaged(data: bytes) -> Makers:
    """Cuts, garbage and random bits of a sound file."""
    makers: Makers = {
        "empty": lambda folder: b"",
        "one byte": lambda folder: data[:1],
        "zeros": lambda folder: bytes(len(data)),
        "garbage": lambda folder: rng().bytes(4096),
        "garbage behind the first bytes": lambda folder: data[:16] + rng().bytes(len(data)),
        "ones in the middle": lambda folder: data[: len(data) // 3] + b"\xff" * 64 + data[len(data) // 3 + 64 :],
    }
    for n in range(CUTS):
        makers[f"cut to {n + 1} of {CUTS + 1}"] = partial(_cut, data, len(data) * (n + 1) // (CUTS + 1))
    for seed in range(FLIPS):
        makers[f"bits {seed}"] = partial(_flipped, data, seed)
    return makers


def _cut(data: bytes, length: int, folder: Path) -> bytes:
    return data[:length]


def _flipped(data: bytes, seed: int, folder: Path) -> bytes:
    random = np.random.default_rng(seed)
    spoilt = bytearray(data)
    for _ in range(1 + seed % 4):
        spoilt[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    return bytes(spoilt)


def no_files(suffix: str) -> Makers:
    """What is no plain file, or much too large; sparse, so that it takes no room."""

    def missing(folder: Path) -> Path:
        return folder / f"missing{suffix}"

    def directory(folder: Path) -> Path:
        path = folder / f"net{suffix}"
        path.mkdir()
        return path

    def pipe(folder: Path) -> Path:
        path = folder / f"net{suffix}"
        os.mkfifo(path)
        return path

    def device(folder: Path) -> Path:
        path = folder / f"net{suffix}"
        path.symlink_to("/dev/zero")
        return path

    def circle(folder: Path) -> Path:
        path = folder / f"net{suffix}"
        path.symlink_to(path)
        return path

    def huge(folder: Path) -> Path:
        path = folder / f"net{suffix}"
        with path.open("wb") as stream:
            stream.truncate(1 << 40)
        return path

    def null(folder: Path) -> Path:
        return folder / f"n\0t{suffix}"

    def long(folder: Path) -> Path:
        return folder / ("n" * 5000 + suffix)

    return {
        "missing": missing,
        "a folder": directory,
        "a pipe": pipe,
        "a device": device,
        "a link to itself": circle,
        "a tebibyte": huge,
        "a NUL in its name": null,
        "a name of 5,000 letters": long,
    }


def pickled(folder: Path) -> bytes:
    """A pickle that makes the trap when it is loaded."""
    return b"\x80\x02cposix\nsystem\nX" + struct.pack("<I", len(_command(folder))) + _command(folder) + b"\x85R."


def _command(folder: Path) -> bytes:
    return f"touch {folder / TRAP}".encode()


def spoilt(values: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    """With another number in the first place."""
    values.flat[0] = value
    return values
