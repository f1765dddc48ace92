"""The pointwise functions, by name: what a `Pointwise` node computes and what a table of integers is made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from .numbers import RealArray

__all__ = ["FUNCTIONS", "IMAGES", "TURNS", "apply_function"]

Function = Callable[..., RealArray]


def _sigmoid(x: RealArray) -> RealArray:
    return np.asarray(np.where(x >= 0, 1.0, np.exp(-np.abs(x))) / (1.0 + np.exp(-np.abs(x))))


FUNCTIONS: Mapping[str, tuple[tuple[str, ...], Function]] = {
    "leaky_relu": (("alpha",), lambda x, alpha: np.where(x < 0, alpha * x, x)),
    "hard_swish": ((), lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0),
    "hard_sigmoid": (("alpha", "beta"), lambda x, alpha, beta: np.clip(alpha * x + beta, 0.0, 1.0)),
    "sigmoid": ((), _sigmoid),
    "tanh": ((), np.tanh),
    "swish": ((), lambda x: x * _sigmoid(x)),
    "elu": (("alpha",), lambda x, alpha: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x)),
    "selu": (("alpha", "gamma"), lambda x, alpha, gamma: gamma * np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x)),
    "gelu": ((), lambda x: 0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0)))),
    "softplus": ((), lambda x: np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))),
    "softsign": ((), lambda x: x / (1.0 + np.abs(x))),
    "erf": ((), np.vectorize(math.erf, otypes=[np.float64])),
    "exp": ((), np.exp),
    "abs": ((), np.abs),
    "square": ((), np.square),
    "sqrt": ((), np.sqrt),
    "log": ((), np.log),
    "round": ((), np.rint),
}
"""Each with the names of its parameters, in order."""

TURNS: Mapping[str, float] = {
    "leaky_relu": 0.0,
    "hard_swish": -1.5,
    "swish": -1.2784645427610738,
    "elu": 0.0,
    "selu": 0.0,
    "gelu": -0.7517915241141344,
    "abs": 0.0,
    "square": 0.0,
}
"""Where a function may turn round: on either side of that it only rises or only falls. The others never turn."""

IMAGES: Mapping[str, tuple[float, float]] = {
    "hard_sigmoid": (0.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softplus": (0.0, math.inf),
    "softsign": (-1.0, 1.0),
    "exp": (0.0, math.inf),
    "abs": (0.0, math.inf),
    "square": (0.0, math.inf),
    "sqrt": (0.0, math.inf),
}
"""What a function never leaves, in float64 either."""


def apply_function(name: str, x_real: RealArray, parameters: tuple[float, ...]) -> RealArray:
    """The function ``name`` of every sample, in float64."""
    names, function = FUNCTIONS[name]
    if len(names) != len(parameters):
        raise ValueError(f"{name} takes {len(names)} parameters, not {parameters!r}")
    with np.errstate(all="ignore"):  # what is not defined is NaN or infinite, and those who use it check for that
        return np.asarray(function(np.asarray(x_real, dtype=np.float64), *parameters), dtype=np.float64)
