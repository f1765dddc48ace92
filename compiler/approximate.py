"""One layer in the place of two with a rectifier between them: a student, fitted to data, and only if the user asks for it.

Across a live rectifier nothing exact exists. A single convolution that sees all that the pair sees can still come near it on
real data, where the rectifier may be almost always open or almost always shut. The student is fitted in two steps: least
squares to what the pair answers, in closed form; then, where a rectifier stands behind the pair, steps that see it::

    w ← w + (XᵀX)⁻¹·Xᵀ·(active ∘ (y − clip(X·w)))

``XᵀX`` over all samples bounds that over the active ones from above, so no step overshoots, and every step is one product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from .errors import CompileError
from .evaluate import evaluate
from .graph import BorderClasses, Clip, Conv2D, Decision, Dense, Graph, node_macs
from .lossy import Budget, Evidence, patches, solve, spread_error
from .numbers import RealArray
from .passes import Options
from .passes.algebra import ConvMap, compose, outline
from .passes.fold_cascades import fold_cascades
from .passes.merge import merge
from .passes.options import DEFAULT
from .passes.rewrite import Fold, apply_folds, sole_consumer

MAX_TAPS = 1 << 11
"""Taps of a student: its normal equations have the square of this many numbers."""

MAX_VALUES = 1 << 25
"""Values of unrolled patches that a student is fitted to (256 MiB); further images are left out."""

STEPS = 40
"""Steps through the rectifier behind the pair."""

RULE = "approximate"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two layers with a clip between them that nobody else reads, and perhaps one behind."""

    first: Conv2D | Dense
    clip: Clip
    second: Conv2D | Dense
    behind: Clip | None

    @property
    def name(self) -> str:
        """The tensor that the student has to answer."""
        return self.second.name if self.behind is None else self.behind.name


def approximate(graph: Graph, budget: Budget, evidence: Evidence, options: Options = DEFAULT) -> Graph:
    """The folded graph with students where the budget holds, each with a decision; refused ones have theirs too.

    Errors and accuracy are those against the graph as it came in, however many students there are.

    *Raises* ``CompileError`` without images to fit on, or without labels for a budget of accuracy.
    """
    if budget.macs is not None:
        raise ValueError(f"a student's budget must be an error or an accuracy drop, not {budget}")
    if evidence.fit is None or evidence.judge is None:
        raise CompileError("--approximate", "fits layers to data, and there is none", "give images with --calibration")
    if budget.accuracy_drop is not None and evidence.labels is None:
        raise CompileError("--accuracy-drop", "needs labelled images", "give them with --test")
    teacher, tried = graph, set[tuple[str, str]]()
    while pair := next((pair for pair in _pairs(graph) if (pair.first.name, pair.second.name) not in tried), None):
        tried.add((pair.first.name, pair.second.name))
        graph = _try(teacher, graph, pair, budget, evidence, options)
    return graph


def _pairs(graph: Graph) -> Iterator[Pair]:
    for first in graph.nodes:
        if isinstance(first, Conv2D | Dense) and isinstance(clip := sole_consumer(graph, first.name), Clip):
            second = sole_consumer(graph, clip.name)
            if isinstance(second, Conv2D | Dense):
                behind = sole_consumer(graph, second.name)
                yield Pair(first, clip, second, behind if isinstance(behind, Clip) else None)


def _try(teacher: Graph, graph: Graph, pair: Pair, budget: Budget, evidence: Evidence, options: Options) -> Graph:
    """The graph with a student in the place of a pair, or with a decision that says why not."""
    geometry = compose(outline(graph, pair.first), outline(graph, pair.second))
    before = node_macs(graph, pair.first) + node_macs(graph, pair.second)
    taps = geometry.kernel[0] * geometry.kernel[1] * graph.shapes[pair.first.inputs[0]][2]
    if pair.second.fold == "forbid":
        reason = f"'{pair.second.name}' must not be merged with what is in front of it"
        return _refuse(graph, pair, reason, before, before, None)
    if taps > MAX_TAPS:
        reason = f"a student of {taps:,} taps has more than the {MAX_TAPS:,} that are fitted"
        return _refuse(graph, pair, reason, before, before, None)
    student = _fit(teacher, graph, pair, geometry, evidence)
    made = apply_folds(graph, [student])
    after = node_macs(made, made.node(pair.second.name))
    error = _error(teacher, made, pair, evidence)
    reason = f"a {_kernel(geometry)} student takes {after:,} multiplies in place of {before:,} and has an error of"
    reason += f" {100 * error:.3g} % of the spread of '{pair.name}' on images not fitted"
    loss, limit = error, budget.error
    if budget.accuracy_drop is not None:
        loss, limit = _drop(teacher, made, evidence), budget.accuracy_drop
        reason += f", and costs {loss:.3g} points of accuracy"
    if after >= before:
        return _refuse(graph, pair, f"{reason}: that saves nothing", before, after, error)
    if limit is None or loss > limit:
        return _refuse(graph, pair, f"{reason}: more than {budget} allows", before, after, error)
    decision = replace(made.decisions[-1], reason=f"{reason}: within {budget}", error=error)
    return fold_cascades(replace(made, decisions=(*graph.decisions, decision)), options)


def _drop(teacher: Graph, made: Graph, evidence: Evidence) -> float:
    """The points of accuracy that a student costs."""
    one, other = evidence.accuracy(teacher), evidence.accuracy(made)
    if one is None or other is None:
        raise ValueError("accuracy must be measured on labelled images")
    return round(100 * (one - other), 9)


def _refuse(graph: Graph, pair: Pair, reason: str, before: int, after: int, error: float | None) -> Graph:
    layers = (pair.first.name, pair.clip.name, pair.second.name)
    return replace(graph, decisions=(*graph.decisions, Decision(RULE, layers, False, reason, before, after, error)))


def _error(teacher: Graph, made: Graph, pair: Pair, evidence: Evidence) -> float:
    if evidence.judge is None:
        raise ValueError("errors must be measured on images")
    one, other = (evaluate(graph, evidence.judge, (pair.name,))[pair.name] for graph in (teacher, made))
    return spread_error(one, other)


def _kernel(geometry: ConvMap) -> str:
    return f"{geometry.kernel[0]}×{geometry.kernel[1]}"


# ------------------------------------------------------------------------------------------------------------- fitting


def _fit(teacher: Graph, graph: Graph, pair: Pair, geometry: ConvMap, evidence: Evidence) -> Fold:
    """The student that answers the fitted images best: least squares, then through the clip behind."""
    if evidence.fit is None:
        raise ValueError("a student must have images to be fitted to")
    entrance = pair.first.inputs[0]
    in_shape, out_shape = graph.shapes[entrance], graph.shapes[pair.second.name]
    values = math.prod(out_shape[:2]) * math.prod(geometry.kernel) * in_shape[2]
    images = evidence.fit[: max(1, MAX_VALUES // values)]
    x_bhwc = evaluate(graph, images, (entrance,))[entrance]
    wanted = evaluate(teacher, images, {pair.second.name, pair.name})
    z_no, y_no = (wanted[name].reshape(-1, out_shape[2]) for name in (pair.second.name, pair.name))
    x_nk = patches(x_bhwc, geometry.kernel, geometry.stride, geometry.padding)
    x_nk = np.column_stack([x_nk, np.ones(len(x_nk))])
    inverse = solve(x_nk.T @ x_nk, np.eye(x_nk.shape[1]))
    w_ko = inverse @ (x_nk.T @ z_no)
    if pair.behind is not None:
        w_ko = _refine(x_nk, inverse, (w_ko, inverse @ (x_nk.T @ y_no)), y_no, pair.behind)
    w_ohwi = w_ko[:-1].T.reshape(out_shape[2], *geometry.kernel, in_shape[2])
    conv = replace(
        geometry,
        w_rcohwi=w_ohwi[None, None],
        b_rco=w_ko[None, None, -1],
        classes=BorderClasses(),
        in_shape=in_shape,
        out_shape=out_shape,
    )
    fold = merge(RULE, (pair.first, pair.second), conv, "")
    return replace(fold, layers=(pair.first, pair.clip, pair.second))


def _refine(
    x_nk: RealArray, inverse: RealArray, starts: Iterable[RealArray], y_no: RealArray, behind: Clip
) -> RealArray:
    """For each output the weights that come nearest to ``y`` through the clip, of all steps from all starts."""
    best_o = np.full(y_no.shape[1], np.inf)
    best_ko = np.zeros((x_nk.shape[1], y_no.shape[1]))
    for w_ko in starts:
        for _ in range(STEPS):
            a_no = x_nk @ w_ko
            rest_no = y_no - np.clip(a_no, behind.low, behind.high)
            squares_o = np.square(rest_no).sum(axis=0)
            better = squares_o < best_o
            best_o, best_ko = np.where(better, squares_o, best_o), np.where(better, w_ko, best_ko)
            active_no = (behind.low < a_no) & (a_no < behind.high)
            w_ko = w_ko + inverse @ (x_nk.T @ np.where(active_no, rest_no, 0.0))
    return best_ko
