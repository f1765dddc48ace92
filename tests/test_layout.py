"""Which way imports run, what no file may hold, and that the distribution names every folder and file."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "convfold": "convfold",
    "compiler": "convfold.compiler",
    "hdl": "convfold.hdl",
    "sim": "convfold.sim",
    "templates": "convfold.templates",
}
AROUND = ("bench", "docs", "examples", "tests")

# What a module may import of ours, by the longest prefix of its name. The front door may import everything.
ALLOWED = {
    "convfold.hdl": ("convfold.hdl",),
    "convfold.compiler": ("convfold.compiler", "convfold.hdl"),
    "convfold.sim": ("convfold.compiler", "convfold.hdl", "convfold.sim"),
    "convfold.templates": (),
    "convfold": ("convfold",),
}

UNSAFE_MODULES = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "yaml"}
UNSAFE_BUILTINS = {"__import__", "eval", "exec"}
# Spelt in parts, so that this file passes its own rule.
SILENCERS = re.compile(
    r"#.*?\b(" + "no" + r"qa\b|" + "type" + r":\s*ignore|(?:ruff|mypy|pyright|flake8|pylint):)", re.IGNORECASE
)


def python_files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path), filename=str(path))


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def module_name(path: Path, folder: str, package: str) -> str:
    parts = path.relative_to(ROOT / folder).with_suffix("").parts
    return ".".join([package, *(part for part in parts if part != "__init__")])


def modules_of(folder: str, package: str) -> dict[str, Path]:
    return {module_name(path, folder, package): path for path in python_files(folder)}


MODULES = {name: path for folder in FOLDERS for name, path in modules_of(folder, FOLDERS[folder]).items()}
PROGRAMS = {name: path for folder in AROUND for name, path in modules_of(folder, folder).items()}
EVERY = MODULES | PROGRAMS


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imported(module: str, path: Path, tree: ast.Module, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, with the line. ``from a import b`` is ``a.b`` if that is known."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                child = f"{origin}.{alias.name}"
                yield node.lineno, child if child in known else origin


def of_ours(module: str, path: Path) -> list[tuple[int, str]]:
    found = imported(module, path, tree_of(path), frozenset(MODULES))
    return [(line, name) for line, name in found if is_in(name, "convfold")]


def forbidden(module: str, name: str) -> bool:
    folder = max((prefix for prefix in ALLOWED if is_in(module, prefix)), key=len)
    return not any(is_in(name, package) for package in ALLOWED[folder])


def unsafe(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Imports and calls that can run what a file holds, and star imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in UNSAFE_MODULES:
                    yield node.lineno, f"imports {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in UNSAFE_MODULES and not node.level:
                yield node.lineno, f"imports {node.module}"
            if any(alias.name == "*" for alias in node.names):
                yield node.lineno, "imports a star"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, reason) for reason in unsafe_call(node))


def unsafe_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    options = {keyword.arg: keyword.value for keyword in call.keywords}

    def says(option: str, value: bool) -> bool:
        given = options.get(option)
        return isinstance(given, ast.Constant) and given.value is value

    if name in UNSAFE_BUILTINS:
        yield f"calls {name}"
    if "allow_pickle" in options and not says("allow_pickle", False):
        yield f"{name} with allow_pickle"
    if name in ("np.load", "numpy.load") and len(call.args) > 2:
        yield f"{name} with allow_pickle"
    if name == "torch.load" and not says("weights_only", True):
        yield "torch.load without weights_only=True"
    if name.endswith("read_pickle"):
        yield f"calls {name}"


def silencers(text: str) -> Iterator[int]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and SILENCERS.search(token.string):
            yield token.start[0]


def test_imports_run_one_way() -> None:
    wrong = [
        f"{where(path, line)}: {module} imports {name}"
        for module, path in MODULES.items()
        for line, name in of_ours(module, path)
        if forbidden(module, name)
    ]
    assert wrong == []


def test_our_modules_are_imported_by_their_one_name() -> None:
    """``import compiler`` works in the checkout by accident, and would load a second copy of everything."""
    by_folder = set(FOLDERS) - {"convfold"}
    wrong = [
        f"{where(path, line)}: {name}"
        for module, path in EVERY.items()
        for line, name in imported(module, path, tree_of(path), frozenset())
        if name.split(".")[0] in by_folder
    ]
    assert wrong == []


def loaded_by(name: str) -> list[str]:
    """What Python loads for a module of ours: its packages, and all that it imports, with their packages.

    The front door's own ``__init__.py`` is left out: it is above all.
    """
    path = MODULES.get(name)
    found = [target for _, target in imported(name, path, tree_of(path), frozenset(MODULES))] if path else []
    parts = [target.split(".") for target in [name, *found]]
    steps = [".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)]
    return [step for step in steps if step != "convfold"]


def test_the_golden_model_never_sees_the_hardware() -> None:
    """Nothing that ``sim/golden`` imports, however indirectly, is or imports ``hdl`` or amaranth."""
    waiting = [name for name in MODULES if is_in(name, "convfold.sim.golden")]
    assert waiting
    importer: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        for target in loaded_by(name):
            if target not in importer:
                importer[target] = name
                waiting.append(target)
    wrong = [
        f"{importer[name]} imports {name}"
        for name in importer
        if is_in(name, "convfold.hdl") or is_in(name, "amaranth")
    ]
    assert wrong == []


def test_nothing_runs_what_a_file_holds_and_no_star_is_imported() -> None:
    wrong = [
        f"{where(path, line)}: {reason}" for path in EVERY.values() for line, reason in unsafe(tree_of(path))
    ]
    assert wrong == []


def test_no_rule_is_silenced() -> None:
    wrong = [where(path, line) for path in EVERY.values() for line in silencers(text_of(path))]
    wrong += [
        where(path, number)
        for path in sorted((ROOT / "templates").rglob("*.py.j2"))
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if SILENCERS.search(line)
    ]
    assert wrong == []


def test_the_distribution_names_every_package() -> None:
    settings = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["setuptools"]
    assert settings["package-dir"] == {package: folder for folder, package in FOLDERS.items()}
    packages = [name for name, path in MODULES.items() if path.name == "__init__.py"]
    assert sorted(settings["packages"]) == sorted(packages)
    homes = {path.parent for path in MODULES.values()}
    assert [str(home) for home in sorted(homes) if not (home / "__init__.py").is_file()] == []


def test_the_distribution_holds_every_file() -> None:
    """A template or Verilog file that no pattern of ``package-data`` matches is missing from the wheel."""
    settings = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["setuptools"]
    left_out = []
    for folder, top in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_dir() or path.suffix == ".py" or "__pycache__" in path.parts:
                continue
            package = ".".join([top, *path.parent.relative_to(ROOT / folder).parts])
            if not any(fnmatch(path.name, pattern) for pattern in settings["package-data"].get(package, [])):
                left_out.append(str(path.relative_to(ROOT)))
    assert left_out == []


# The rules above hold nothing if they find nothing: each must find what it is for.


@pytest.mark.parametrize(
    ("module", "text", "name"),
    [
        ("convfold.hdl.conv", "from convfold.compiler.graph import Graph", "convfold.compiler.graph"),
        ("convfold.hdl.conv", "from ..compiler import graph", "convfold.compiler.graph"),
        ("convfold.hdl.conv", "def f():\n    import convfold.sim.golden", "convfold.sim.golden"),
        ("convfold.compiler.graph", "from ..sim import golden", "convfold.sim.golden"),
        ("convfold.compiler.graph", "from convfold import sim", "convfold.sim"),
        ("convfold.compiler.graph", "from .. import __version__", "convfold"),
        ("convfold.compiler.passes.fold", "from ... import sim", "convfold.sim"),
        ("convfold.sim.golden", "from convfold.cli import main", "convfold.cli"),
        ("convfold.templates", "import convfold.compiler", "convfold.compiler"),
    ],
)
def test_a_wrong_import_is_found(module: str, text: str, name: str) -> None:
    known = frozenset({"convfold.sim", "convfold.sim.golden", "convfold.compiler.graph"})
    assert [target for _, target in imported(module, Path("any.py"), ast.parse(text), known)] == [name]
    assert forbidden(module, name)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("convfold.hdl.conv", "convfold.hdl.requantizer"),
        ("convfold.compiler.plan", "convfold.hdl.conv"),
        ("convfold.sim.cosim", "convfold.compiler.emit"),
        ("convfold.cli", "convfold.sim.cosim"),
    ],
)
def test_a_right_import_is_allowed(module: str, name: str) -> None:
    assert not forbidden(module, name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import pickle", "imports pickle"),
        ("from yaml import load", "imports yaml"),
        ("from amaranth import *", "imports a star"),
        ("eval(text)", "calls eval"),
        ("exec(text)", "calls exec"),
        ("np.load(path, allow_pickle=True)", "np.load with allow_pickle"),
        ("np.load(path, None, True)", "np.load with allow_pickle"),
        ("np.load(path, allow_pickle=anything)", "np.load with allow_pickle"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("pd.read_pickle(path)", "calls pd.read_pickle"),
    ],
)
def test_an_unsafe_line_is_found(text: str, reason: str) -> None:
    assert list(unsafe(ast.parse(text))) == [(1, reason)]


@pytest.mark.parametrize(
    "text",
    [
        "np.load(path)",
        "np.load(path, allow_pickle=False)",
        "torch.load(path, weights_only=True)",
        "model.eval()",
    ],
)
def test_a_safe_line_is_not_found(text: str) -> None:
    assert list(unsafe(ast.parse(text))) == []


@pytest.mark.parametrize("comment", ["no" + "qa", "no" + "qa: E501", "type" + ": ignore[misc]", "mypy: any"])
def test_a_silenced_rule_is_found(comment: str) -> None:
    assert list(silencers(f"value = 1  # {comment}\n")) == [1]
    assert list(silencers(f'value = "# {comment}"\n')) == []
