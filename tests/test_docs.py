"""The pages run: what a ``python`` block prints is the ``text`` block behind it, to the letter.

All blocks of a page share their names, from top to bottom, as one program in an empty folder beside the examples.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convfold.compiler.layers import OPERATORS
from convfold.compiler.spec import load_spec

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "docs" / "benchmarks.md"
"""Written by ``make bench`` and holds no program."""
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page != MEASURED)]

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
END_OF_BLOCK = "\x1e"


@dataclass(frozen=True)
class Block:
    """A ``python`` block: the line it starts on, its lines, and what the page says it prints."""

    line: int
    code: tuple[str, ...]
    output: str


def blocks(page: str) -> Iterator[Block]:
    fenced = list(FENCED.finditer(page))
    for found, behind in zip(fenced, [*fenced[1:], None], strict=True):
        if found[1] != "python":
            continue
        line = page.count("\n", 0, found.start(2)) + 1
        direct = behind is not None and behind[1] == "text" and not page[found.end() : behind.start()].strip()
        yield Block(line, tuple(found[2].splitlines()), behind[2] if behind is not None and direct else "")


def program(page: str) -> str:
    """The blocks as one program, each line where it stands on the page: an error then names the page's line."""
    lines = [""] * (page.count("\n") + 1)
    for block in blocks(page):
        stop = block.line - 1 + len(block.code)
        lines[block.line - 1 : stop] = block.code
        lines[stop] = f"print({END_OF_BLOCK!r}, end='')"
    return "\n".join(lines)


def run(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[int, str]:
    """What each block prints, by its line."""
    script = folder / "page.py"
    script.write_text(program(page), encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")
    outputs = capsys.readouterr().out.split(END_OF_BLOCK)
    return dict(zip((block.line for block in blocks(page)), outputs[:-1], strict=True))


@pytest.mark.parametrize("page", PAGES, ids=[path.name for path in PAGES])
def test_a_page_prints_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page.read_text(encoding="utf-8")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    said = {block.line: block.output for block in blocks(text)}
    assert said
    assert run(text, tmp_path, capsys) == said


PAGE = """\
```python
two = 1 + 1
```
Words.
```text
no output
```
```python
print(two)
```

```text
{}
```
"""


@pytest.mark.parametrize("right", [True, False])
def test_a_wrong_page_is_found(right: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.format(2 if right else 3)
    said = {block.line: block.output for block in blocks(page)}
    assert said == {2: "", 9: "2\n" if right else "3\n"}
    assert (run(page, tmp_path, capsys) == said) is right


def test_an_error_names_the_line_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NameError) as caught:
        run(PAGE.replace("print(two)", "print(three)"), tmp_path, capsys)
    assert caught.traceback[-1].lineno + 1 == 9


IMPORTING = (ROOT / "docs" / "importing.md").read_text(encoding="utf-8")
OPERATOR_ROW = re.compile(r"^\| (`[^|]*) \| ([^|]*)\|([^|]*)\|$", re.MULTILINE)
NAMED = re.compile(r"`(\w+)`")


def test_the_table_of_operators_is_that_of_the_specification() -> None:
    table = IMPORTING.partition("## Our own specification")[2].partition("\n## ")[0]
    said = {name: set(NAMED.findall(row[3])) for row in OPERATOR_ROW.finditer(table) for name in NAMED.findall(row[1])}
    assert said == {name: set(operator.parts) for name, operator in OPERATORS.items()}


def test_the_specification_shown_is_one(tmp_path: Path) -> None:
    (spec,) = (found[2] for found in FENCED.finditer(IMPORTING) if found[1] == "toml")
    shapes = {"edges.w": (8, 3, 3, 3), "edges.b": (8,), "scores.w": (2, 2048), "scores.b": (2,)}
    arrays: dict[str, Any] = {name: np.ones(shape) for name, shape in shapes.items()}
    np.savez(tmp_path / "tiny.npz", **arrays)
    (tmp_path / "tiny.toml").write_text(spec, encoding="utf-8")
    assert load_spec(tmp_path / "tiny.toml").labels == ("cat", "dog")
