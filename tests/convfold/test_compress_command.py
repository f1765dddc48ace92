"""``convfold compress`` and ``convfold compile --approximate`` from outside: files, exit status, messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

import convfold
from convfold.cli import main
from convfold.compiler.evaluate import accuracy, evaluate
from convfold.compiler.graph import graph_macs
from convfold.compiler.spec import load_spec

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
NET, CALIBRATION, TEST = (str(DIGITS / name) for name in ("digits.toml", "calibration.npz", "test.npz"))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compress") / "small"
    options = ("--accuracy-drop", "0.5", "--calibration", CALIBRATION, "--test", TEST, "-o", str(folder))
    result = call("compress", NET, *options)
    assert result.exit_code == 0, result.output
    return folder


def test_it_writes_a_network_that_loads_and_holds_the_budget(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "compress.json",
        "digits_compressed.npz",
        "digits_compressed.toml",
        "report.html",
    ]
    with np.load(TEST, allow_pickle=False) as arrays:
        x, y = arrays["x"].astype(np.float64), arrays["y"].astype(np.int64)
    graphs = load_spec(Path(NET)), load_spec(folder / "digits_compressed.toml")
    before, after = (accuracy(evaluate(graph, x)[graph.outputs[0]], y) for graph in graphs)
    assert 100 * (before - after) <= 0.5
    record = json.loads((folder / "compress.json").read_text("utf-8"))
    assert record["after"]["macs"] == graph_macs(graphs[1]) < 0.85 * record["before"]["macs"]
    assert record["after"]["accuracy"] == after
    first = (folder / "digits_compressed.toml").read_text("utf-8").splitlines()[0]
    assert first.startswith("# digits.toml compressed by convfold within --accuracy-drop 0.5: ")


class Page(HTMLParser):
    """Counts tags, and fails on one that is closed where none is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_draws_every_curve(folder: Path) -> None:
    text = (folder / "report.html").read_text("utf-8")
    page = Page(text)
    assert not page.open
    assert "script" not in page.tags and "http" not in text.replace("http-equiv", "")
    record = json.loads((folder / "compress.json").read_text("utf-8"))
    plots = text.split("<svg")[1:]
    assert len(plots) == 2 + 3 * len(record["layers"])
    offers = sum(len(layer["curve"]) for layer in record["layers"])
    drawn = [ElementTree.fromstring("<svg" + plot.partition("</svg>")[0] + "</svg>") for plot in plots]
    dots = [list(plot.iter("circle")) for plot in drawn]
    assert [len(some) for some in dots[:2]] == [len(record["curve"])] * 2
    assert sum(map(len, dots[2:])) == 3 * offers
    assert [sum(dot.get("class") == "chosen" for dot in some) for some in dots[:2]] == [1, 1]
    for plot in drawn:
        _, _, width, height = map(float, str(plot.get("viewBox")).split())
        for dot in plot.iter("circle"):
            assert 0 < float(str(dot.get("cx"))) < width and 0 < float(str(dot.get("cy"))) < height


def test_json_and_a_second_run_give_the_same(tmp_path: Path) -> None:
    options = ("--error", "0.2", "--calibration", CALIBRATION, "--json", "-o", str(tmp_path / "small"))
    one = call("compress", NET, *options)
    files = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    other = call("compress", NET, *options)
    assert json.loads(one.stdout) == json.loads(other.stdout)
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    found = json.loads(one.stdout)
    assert found["spec"] == str(tmp_path / "small" / "digits_compressed.toml")
    assert [decision["taken"] for decision in found["decisions"]] == [False, True, True]


def test_the_table_marks_what_was_chosen(tmp_path: Path) -> None:
    result = call("compress", NET, "--macs", "60000", "-o", str(tmp_path / "small"))
    assert result.exit_code == 0
    assert sum("←" in line for line in result.stdout.splitlines()) == 1
    assert "multiplies 89,088 a frame became " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message", "fix"),
    [
        ((), "options: a lossy step needs one budget, and none is given", "say how much may be lost"),
        (("--error", "0.1", "--macs", "9"), "a lossy step needs one budget, and 2 are given", "say how much"),
        (("--error", "nan"), "a budget must be a number from 0 on, not nan", "for example --error 0.1"),
        (("--accuracy-drop", "inf"), "a budget must be a number from 0 on, not inf", "for example"),
        (("--accuracy-drop", "1"), "--accuracy-drop: needs labelled images", "give them with --test"),
        (("--macs", "5"), "--macs 5: cannot be reached: rank 1 wherever it pays leaves ", "ask for "),
        (("--error", "1", "--calibration", TEST + "x"), "is not a file", "check the name"),
    ],
)
def test_bad_input_exits_with_2(arguments: tuple[str, ...], message: str, fix: str, tmp_path: Path) -> None:
    result = call("compress", NET, *arguments, "-o", str(tmp_path / "small"))
    assert result.exit_code == 2
    assert message in result.stderr and f"fix: {fix}" in result.stderr
    assert not (tmp_path / "small").exists()


def test_it_does_not_write_over_anything_else(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    result = call("compress", NET, "--macs", "60000", "-o", str(tmp_path))
    assert result.exit_code == 2 and "exists and holds no compressed network" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--error", "0.1"), "a budget is given, but nothing that may lose anything"),
        (("--approximate",), "a lossy step needs one budget, and none is given"),
        (("--approximate", "--error", "0.1"), "--approximate: fits layers to data, and there is none"),
        (("--approximate", "--accuracy-drop", "1", "--calibration", CALIBRATION), "--accuracy-drop: needs labelled images"),
    ],
)
def test_approximating_needs_its_budget_and_its_data(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = call("compile", NET, *arguments, "-o", str(tmp_path / "build"))
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "build").exists()


def test_nothing_is_approximated_unless_asked_for_and_then_within_the_budget() -> None:
    from convfold.compiler.lossy import Budget

    exact = convfold.compile(NET, calibration=CALIBRATION, test=TEST)
    assert not any(decision.rule == "approximate" for decision in exact.folded.decisions)
    refused = convfold.compile(NET, calibration=CALIBRATION, test=TEST, approximate=Budget(accuracy_drop=1.0))
    assert str(refused.folded) == str(exact.folded)
    (decision,) = (decision for decision in refused.folded.decisions if decision.rule == "approximate")
    assert not decision.taken and "more than --accuracy-drop 1 allows" in decision.reason
    taken = convfold.compile(NET, calibration=CALIBRATION, test=TEST, approximate=Budget(accuracy_drop=20.0))
    assert len(taken.folded.nodes) == len(exact.folded.nodes) - 2
    assert graph_macs(taken.folded) < graph_macs(exact.folded)
