"""Fixtures for all tests: fixed seeds, and the folder of real models."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tests.models import find_models

# The same examples on every run, no time limit on a loaded machine, nothing written to the work tree.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

# Read by the simulator's own process.
os.environ.setdefault("COCOTB_RANDOM_SEED", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that read real models, so that ``-m "not models"`` leaves them out."""
    for item in items:
        if isinstance(item, pytest.Function) and "models_dir" in item.fixturenames:
            item.add_marker("models")


def _seed(request: pytest.FixtureRequest) -> int:
    """A number that depends on the test's name alone: neither on the order of tests nor on the worker."""
    return zlib.crc32(request.node.nodeid.encode())


@pytest.fixture(autouse=True)
def _fixed_seed(request: pytest.FixtureRequest) -> None:
    random.seed(_seed(request))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """The random numbers of a test."""
    return np.random.default_rng(_seed(request))


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder of real models and data; the test is skipped where there is none."""
    folder = find_models()
    if folder is None:
        pytest.skip("no real models: set CONVFOLD_MODELS to their folder")
    return folder
