"""Arrays from an ``.npz`` that nobody vouches for: its sizes are known and allowed before anything is unpacked."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CompileError, quote
from .files import one_line, read_bytes

MAX_NPZ_BYTES = 1 << 28
MAX_ARRAYS = 1 << 12
MAX_NPZ_ELEMENTS = 1 << 25
"""Elements of all arrays of an ``.npz`` together: 256 MiB as float64."""

MAX_RATIO = 200
RATIO_FREE_BYTES = 1 << 20
"""An array may shrink by more than ``MAX_RATIO`` only up to this size. Trained weights hardly shrink."""


def read_npz(path: Path, source: str) -> dict[str, NDArray[Any]]:
    """Every array of an ``.npz`` file, each of plain integers or floating-point numbers.

    Nothing is unpickled, and nothing is unpacked before its size is known and allowed.

    *Raises* ``CompileError`` from ``source`` for anything else.
    """
    data = read_bytes(path, source, MAX_NPZ_BYTES)
    file = quote(path.name)
    if data.count(b"PK\1\2") > MAX_ARRAYS:  # the mark of an entry in the directory, counted before it is read
        raise CompileError(source, f"{file} must not hold more than {MAX_ARRAYS} arrays", "split the network")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except Exception as error:  # whatever a damaged file does to zipfile
        message = f"{file} is not an .npz file: {one_line(error)}"
        raise CompileError(source, message, "save it with numpy.savez") from error
    members = archive.infolist()
    if sum(member.file_size for member in members) > MAX_NPZ_BYTES:
        message = f"{file} must not hold more than {MAX_NPZ_BYTES} bytes unpacked"
        raise CompileError(source, message, "save the weights as float32")
    arrays: dict[str, NDArray[Any]] = {}
    elements = 0
    for member in members:
        name = member.filename.removesuffix(".npy")
        try:
            if name in arrays:
                raise ValueError("it is there twice")
            arrays[name] = _read_array(archive, member)
            elements += arrays[name].size
            if elements > MAX_NPZ_ELEMENTS:
                raise ValueError(f"with it the file holds more than {MAX_NPZ_ELEMENTS} numbers")
        except Exception as error:  # whatever a damaged file does to zipfile, zlib and numpy
            message = f"array {quote(name)} in {file} cannot be read: {one_line(error)}"
            raise CompileError(source, message, "save plain arrays with numpy.savez") from error
    return arrays


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    if not member.filename.endswith(".npy"):
        raise ValueError("it is not an array")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed in a way that numpy does not use")
    if member.file_size > max(RATIO_FREE_BYTES, MAX_RATIO * member.compress_size):
        raise ValueError(f"it is packed more than {MAX_RATIO} times")
    with archive.open(member) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of headers that Python 2 wrote, and reads them
        version = np.lib.format.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"format {version[0]}.{version[1]} holds named fields, not numbers")
        shape, fortran, dtype = HEADERS[version](stream)
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            raise ValueError(f"it holds {quote(str(dtype))}, not integers or float64 numbers at most")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != member.file_size - stream.tell():
            raise ValueError(f"shape {quote(shape)} does not match its {member.file_size} bytes")
        data = stream.read(size)
        if len(data) < size or stream.read(1):
            raise ValueError("it is cut short")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
