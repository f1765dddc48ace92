"""The solver against all combinations."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from convfold.compiler.estimate import Resources
from convfold.compiler.solver import KINDS, Edge, Layer, Option, Pick, Problem, Solution, amount, evaluate, solve

SEEDS = range(12)


def random_problem(seed: int) -> Problem:
    """A chain of three layers, or a layer with two readers that meet; every block saves as much, whatever the option."""
    rng = np.random.default_rng(seed)

    def cells(most: int) -> Resources:
        luts, ffs = (int(count) for count in rng.integers(1, most, 2))
        return Resources(luts, ffs, brams=int(rng.integers(0, 4)))

    def layer(name: str, *, reads_input: bool) -> Layer:
        options = []
        block = Resources(luts=-int(rng.integers(2, 8)), ffs=-int(rng.integers(0, 6)), dsps=1)
        for _ in range(int(rng.integers(2, 5))):
            blocks = int(rng.integers(0, 4))
            taken = cells(100) + Resources(luts=8 * blocks, ffs=6 * blocks)
            before, after = (int(width) for width in rng.choice([1, 2, 3], 2))
            fill, delay = (int(count) for count in rng.integers(0, 30, 2))
            tables = int(rng.integers(0, 3)) if seed % 3 == 0 else 0
            saved = Resources(luts=-int(rng.integers(20, 30)), brams=1)
            taken += Resources(luts=-tables * saved.luts)
            options.append(Option(int(rng.integers(5, 60)), before, after, blocks, block, taken, fill, delay, tables, saved))
        come, rest = np.sort(rng.uniform(size=3)), np.sort(rng.uniform(size=2))
        needs = tuple(zip(come.tolist(), [1.0, rest[1].item(), rest[0].item()], strict=True))
        return Layer(name, tuple(options), needs, reads_input)

    def edge(source: str, sink: str) -> Edge:
        pairs = [(before, after) for before, after in product((1, 2, 3), repeat=2) if before != after]
        joints = {pair: (int(rng.integers(1, 60)), cells(30)) for pair in pairs}
        return Edge(source, sink, joints)

    links = [("a", "b"), ("b", "c")] if seed % 2 else [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    names = sorted({name for link in links for name in link})
    return Problem(
        layers=tuple(layer(name, reads_input=name == "a") for name in names),
        edges=tuple(edge(*link) for link in links),
        outputs=(names[-1],),
        limits={"luts": 320, "ffs": 320, "dsps": 4, "brams": 9},
        weights={"luts": 7, "ffs": 5, "dsps": 11, "brams": 90},
        interval=45,
    )


def all_solutions(problem: Problem) -> list[Solution]:
    ways = [
        [
            Pick(n, blocks, tables)
            for n, option in enumerate(layer.options)
            for blocks in range(option.blocks + 1)
            for tables in range(option.tables + 1)
        ]
        for layer in problem.layers
    ]
    return [evaluate(problem, picks) for picks in product(*ways)]


def holds(problem: Problem, solution: Solution) -> bool:
    return (
        all(amount(solution.resources, kind) <= limit for kind, limit in problem.limits.items())
        and (problem.interval is None or solution.interval <= problem.interval)
        and (problem.latency is None or solution.latency <= problem.latency)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_smaller(seed: int) -> None:
    problem = random_problem(seed)
    able = [solution for solution in all_solutions(problem) if holds(problem, solution)]
    found = solve(problem, "area", gap=0)
    assert (found is None) == (not able)
    if found is not None:
        assert holds(problem, found)
        assert problem.area(found.resources) == min(problem.area(solution.resources) for solution in able)
        assert found == evaluate(problem, found.picks)
    any_found = solve(problem, "any")
    assert (any_found is None) == (not able) and (any_found is None or holds(problem, any_found))


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_smaller_within_a_latency(seed: int) -> None:
    """As long as there is enough of everything: options are then compared by their area alone."""
    problem = replace(random_problem(seed), limits={})
    everything = [solution for solution in all_solutions(problem) if holds(problem, solution)]
    times = sorted(solution.latency for solution in everything)
    for latency in (times[0] - 1, times[0], times[len(times) // 3]) if times else (50,):
        timed = replace(problem, latency=latency)
        able = [problem.area(solution.resources) for solution in everything if holds(timed, solution)]
        found = solve(timed, "area", gap=0)
        assert (found is None) == (not able)
        assert found is None or (holds(timed, found) and problem.area(found.resources) == min(able))
    weighed = replace(problem, latency_weight=40)
    found = solve(weighed, "area", gap=0)
    if found is not None:
        assert _weight(weighed, found) == min(_weight(weighed, solution) for solution in everything)


def _weight(problem: Problem, solution: Solution) -> int:
    return problem.area(solution.resources) + problem.latency_weight * solution.latency


@pytest.mark.parametrize("seed", SEEDS)
def test_the_least_share_tells_what_lacks(seed: int) -> None:
    """Of the resource that is used most of all as little as possible, to one part in a thousand."""
    problem = replace(random_problem(seed), limits={"luts": 100, "ffs": 80, "brams": 3})

    def share(solution: Solution) -> float:
        return max(amount(solution.resources, kind) / limit for kind, limit in problem.limits.items())

    fast = [solution for solution in all_solutions(problem) if solution.interval <= 45]
    found = solve(problem, "share", gap=0)
    assert (found is None) == (not fast)
    assert found is None or share(found) <= min(map(share, fast)) + 0.001


def test_the_same_problem_has_the_same_solution() -> None:
    assert [solve(random_problem(seed), "area") for seed in SEEDS] == [solve(random_problem(seed), "area") for seed in SEEDS]


def test_blocks_go_to_the_greatest_layers() -> None:
    block = Resources(luts=-10, dsps=1)
    layers = tuple(
        Layer(name, (Option(10, 1, 1, count, block, Resources(luts=100 + 10 * count)),), reads_input=name == "a")
        for name, count in (("a", 2), ("b", 5))
    )
    problem = Problem(layers, (Edge("a", "b", {}),), ("b",), {"dsps": 6}, {"luts": 1})
    found = solve(problem, "area")
    assert found is not None
    assert [pick.blocks for pick in found.picks] == [1, 5]
    assert found.resources == Resources(luts=210, dsps=6)


def test_a_latency_by_hand() -> None:
    """A source of 100 cycles, a sink that waits for a quarter of it and has half of its own 60 to do after its last beat."""
    none = Resources()
    source = Layer("a", (Option(100, 1, 1, 0, none, none, 80, 3),), ((0.5, 1.0), (1.0, 0.125)), reads_input=True)
    sinks = {
        "late": Layer("late", (Option(60, 1, 1, 0, none, none, delay_cycles=7),), ((0.25, 1.0), (1.0, 0.5))),
        "later": Layer("later", (Option(60, 1, 1, 0, none, none, delay_cycles=7),), ((0.25, 1.0), (0.75, 0.95), (1.0, 0.5))),
        "slow": Layer("slow", (Option(120, 1, 1, 0, none, none, delay_cycles=7),), ((0.25, 1.0), (1.0, 0.25))),
    }
    # a: its first at 40 + 3, its last at 40 + 100 + 3; a quarter of it has come at 68, three quarters at 118
    times = {"late": 143 + 30 + 7, "later": 118 + 57 + 7, "slow": 68 + 120 + 7}
    for name, sink in sinks.items():
        found = evaluate(Problem((source, sink), (Edge("a", name, {}),), (name,), {}, {}), [Pick(0, 0), Pick(0, 0)])
        assert (found.interval, found.latency) == (max(100, sink.options[0].cycles), times[name])
        assert all(amount(found.resources, kind) == 0 for kind in KINDS)
