"""ONNX's own node tests: passed or refused by name, never wrong, never a crash. ``bench/onnx_nodes.py`` prints them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bench.onnx_nodes import CORE, Verdict, cases, error_of, judge, judge_all
from convfold.compiler.importers.onnx_operators import OPERATORS


@cache
def verdicts() -> list[Verdict]:
    return judge_all([*CORE, *OPERATORS])


def count(state: str, core: bool) -> int:
    return Counter(verdict.state for verdict in verdicts() if verdict.operator in CORE or not core)[state]


def test_none_is_wrong() -> None:
    assert [verdict for verdict in verdicts() if verdict.state not in ("passed", "refused")] == []


def test_enough_of_the_core_pass() -> None:
    assert count("passed", core=True) >= 104
    assert count("passed", core=True) + count("refused", core=True) >= 166


def test_enough_of_all_pass() -> None:
    assert count("passed", core=False) >= 194


def test_every_refusal_says_why() -> None:
    for verdict in verdicts():
        assert verdict.state != "refused" or len(verdict.reason) > 20, verdict


@pytest.mark.parametrize("operator", sorted(set(CORE) - {"QLinearConv", "Pad"}))
def test_every_core_operator_passes_in_some_form(operator: str) -> None:
    assert any(verdict.operator == operator and verdict.state == "passed" for verdict in verdicts())


def test_a_wrong_result_is_found(tmp_path: Path) -> None:
    """The comparison can fail: the same case with one expected sample changed by 1e-4."""
    case = next(case for case in cases(["Conv"]))
    assert judge(case, tmp_path).state == "passed"
    case.outputs[0].flat[0] += 1e-4 * np.abs(case.outputs[0]).max()
    assert judge(case, tmp_path).state == "wrong"


def test_errors_are_relative_and_infinities_equal() -> None:
    result = np.array([1.0, -np.inf]).reshape(1, 1, 1, 2)
    assert error_of(result, np.array([[1.0, -np.inf]])) == 0.0
    assert error_of(result, np.array([[1.0, 5.0]])) == np.inf
    assert error_of(result, np.array([[1.0]])) == np.inf
