"""The fields of a specification: one `Kind` says what each must be, and a `Table` reads them one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Generic, NoReturn, TypeVar, get_args

from .errors import CompileError, quote
from .graph import BorderClasses, DepthOrder, FoldRule, Padding, Pair, Shape, same_padding
from .numbers import MAX_BITS, MIN_BITS
from .verify import MAX_ELEMENTS, MAX_NAME, MAX_STEP, name_fault

T = TypeVar("T")
Default = TypeVar("Default")

MAX_LAYERS = 1 << 10

MAX_CHOICES = 64
"""Names that an error offers to choose from."""

MAX_CLASSES = 1 << 10
"""Border classes of a convolution along one axis."""

LARGEST = 1e30
"""The greatest magnitude of a number in the files. Products of many layers then stay far inside float64."""

# ---------------------------------------------------------------------------------------------------------------- kinds

Convert = Callable[[Any], T | None]
"""From a value of the file to what it means; ``None`` for a value that is refused."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """What a field must be: the rule in words, an example, and the conversion."""

    rule: str
    example: str
    convert: Convert[T]


def _integer(low: int, high: int) -> Convert[int]:
    return lambda value: value if type(value) is int and low <= value <= high else None  # True is no integer


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None


def _fraction(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= 1 else None


def _positive(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _label(value: object) -> str | None:
    return value if isinstance(value, str) and value.isprintable() and 1 <= len(value) <= MAX_NAME else None


def _choice(words: tuple[T, ...]) -> Convert[T]:
    return lambda value: next((word for word in words if word == value), None)


def _table(value: object) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _pair(item: Convert[T]) -> Convert[tuple[T, T]]:
    def convert(value: object) -> tuple[T, T] | None:
        if not (isinstance(value, list) and len(value) == 2):
            return None
        first, second = map(item, value)
        return None if first is None or second is None else (first, second)

    return convert


def _list(item: Convert[T], most: float = math.inf) -> Convert[tuple[T, ...]]:
    def convert(value: object) -> tuple[T, ...] | None:
        if not (isinstance(value, list) and 1 <= len(value) <= most):
            return None
        items = tuple(converted for one in value if (converted := item(one)) is not None)
        return items if len(items) == len(value) else None

    return convert


def _distinct(item: Convert[str]) -> Convert[tuple[str, ...]]:
    def convert(value: object) -> tuple[str, ...] | None:
        items = _list(item)(value)
        return items if items and len(set(items)) == len(items) else None

    return convert


def _shape(value: object) -> Shape | None:
    match _list(_integer(1, MAX_ELEMENTS), 3)(value):
        case (height, width, channels):
            return height, width, channels
    return None


def _range(value: object) -> tuple[float, float] | None:
    limits = _pair(_number)(value)
    return limits if limits and limits[1] - limits[0] >= 1 / LARGEST else None


def _limit(value: object) -> float | None:
    return float(value) if value in (math.inf, -math.inf) else _number(value)


def _steps(value: object) -> Pair | None:
    return _pair(_integer(1, MAX_STEP))([value, value] if isinstance(value, int) else value)


Padder = Callable[[Shape, Pair, Pair], Padding]
"""What a padding comes to, from the input's shape, the kernel and the stride."""


def no_padding(shape: Shape, kernel: Pair, stride: Pair) -> Padding:
    return (0, 0), (0, 0)


def _same(shape: Shape, kernel: Pair, stride: Pair) -> Padding:
    rows, cols = map(same_padding, shape[:2], kernel, stride)
    return rows, cols


PADDINGS: Mapping[str, Padder] = {"valid": no_padding, "same": _same}


def _classes(value: object) -> BorderClasses | None:
    """Where classes start; that they rise within the output is a rule of the graph."""
    if not (isinstance(value, dict) and value.keys() == {"rows", "cols"}):
        return None
    starts = _list(_integer(0, MAX_STEP), MAX_CLASSES)
    rows, cols = starts(value["rows"]), starts(value["cols"])
    return BorderClasses(rows, cols) if rows and cols else None


_sides = _pair(_pair(_integer(0, MAX_STEP)))


def _padding(value: object) -> Padder | None:
    if isinstance(value, str):
        return PADDINGS.get(value)
    pads = _sides(value)
    return (lambda shape, kernel, stride: pads) if pads else None


TABLE = Kind("a table", '{ name = "net", weights = "net.npz" }', _table)
INPUT_TABLE = Kind("a table", "{ shape = [32, 32, 3], range = [0.0, 1.0] }", _table)
TABLES = Kind(
    f"1 to {MAX_LAYERS} tables, each under its own [[layer]]",
    '[{ name = "first", op = "relu" }]',
    _list(_table, MAX_LAYERS),
)
TEXT = Kind("a string", '"a"', _string)
NAMES = Kind("a list of different layer names", '["a"]', _distinct(_string))
LABELS = Kind(
    f"a list of different printable strings of 1 to {MAX_NAME} characters",
    '["cat", "dog"]',
    _distinct(_label),
)
SHAPE = Kind(f"[height, width, channels], integers from 1 to {MAX_ELEMENTS}", "[32, 32, 3]", _shape)
RANGE = Kind(f"[low, high], numbers up to {LARGEST:g}, low below high", "[0.0, 1.0]", _range)
STEPS = Kind(f"an integer from 1 to {MAX_STEP}, or [vertical, horizontal]", "[2, 2]", _steps)
PADDING = Kind(
    f'"same", "valid" or [[top, bottom], [left, right]], integers from 0 to {MAX_STEP}', '"same"', _padding
)
SIDES = Kind(f"[[top, bottom], [left, right]], integers from 0 to {MAX_STEP}", "[[1, 1], [1, 1]]", _sides)
PAIR = Kind(f"[vertical, horizontal], integers from 0 to {MAX_STEP}", "[1, 1]", _pair(_integer(0, MAX_STEP)))
SCALE = Kind(f"a number above 0 and up to {LARGEST:g}", "1.0", _positive)
NUMBER = Kind(f"a number up to {LARGEST:g}", "0.1", _number)
CLASSES = Kind(
    f"a table of 1 to {MAX_CLASSES} rows and cols where border classes start",
    "{ rows = [0, 1, 7], cols = [0, 1, 7] }",
    _classes,
)
BITS = Kind(f"an integer from {MIN_BITS} to {MAX_BITS}", "8", _integer(MIN_BITS, MAX_BITS))
LIMIT = Kind(f"a number up to {LARGEST:g}, or inf", "6.0", _limit)
FLAG = Kind("true or false", "true", lambda value: value if isinstance(value, bool) else None)
CHANNEL = Kind(f"an integer from 0 to {MAX_ELEMENTS}", "0", _integer(0, MAX_ELEMENTS))
COUNT = Kind(f"an integer from 1 to {MAX_ELEMENTS}", "2", _integer(1, MAX_ELEMENTS))
FOLD: Kind[FoldRule] = Kind('"auto", "force" or "forbid"', '"forbid"', _choice(get_args(FoldRule)))
ORDER: Kind[DepthOrder] = Kind('"DCR" or "CRD"', '"DCR"', _choice(get_args(DepthOrder)))
EPSILON = Kind("a number from 0 to 1", "1e-5", _fraction)


# --------------------------------------------------------------------------------------------------------------- tables


class Table:
    """A table of the file, read field by field; `close` refuses the fields that nobody asked for."""

    def __init__(self, fields: dict[str, Any], source: str) -> None:
        self.fields = fields
        self.source = source
        self.known: list[str] = []

    def fail(self, message: str, hint: str) -> NoReturn:
        raise CompileError(self.source, message, hint)

    def read(self, key: str, kind: Kind[T], default: Default) -> T | Default:
        self.known.append(key)
        if key not in self.fields:
            return default
        value = kind.convert(self.fields[key])
        if value is None:
            found = quote(self.fields[key])
            self.fail(f"{key} must be {kind.rule}, not {found}", f"for example {key} = {kind.example}")
        return value

    def require(self, key: str, kind: Kind[T]) -> T:
        value = self.read(key, kind, None)
        if value is None:
            typo = nearest(key, set(self.fields).difference(self.known))
            hint = f"rename {quote(typo)} to {key!r}" if typo else f"add {key} = {kind.example}"
            self.fail(f"{key} is missing", hint)
        return value

    def legal_name(self) -> str:
        """The field ``name``, fit for generated code."""
        name = self.require("name", TEXT)
        if fault := name_fault(name):
            self.fail(*fault)
        return name

    def close(self) -> None:
        for key in self.fields:
            if key not in self.known:
                self.fail(f"field {quote(key)} is not known here", suggest(key, self.known))


def nearest(word: str, options: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(word, sorted(options), 1)), None)


def suggest(word: str, options: Iterable[str]) -> str:
    options = sorted(options)
    close = nearest(word, options)
    some = ", ".join(map(quote, options[:MAX_CHOICES])) + (", …" if len(options) > MAX_CHOICES else "")
    return f"did you mean {quote(close)}?" if close else f"choose from {some}"
