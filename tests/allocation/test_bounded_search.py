"""The exact allocation of one budget against enumeration, and against branch and bound (HiGHS) on larger problems."""

import itertools
import logging

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from test_knapsack import curve, distortion, first_in_budget, removed

from lpvit.allocation import bounded_search, knapsack
from lpvit.allocation import optimum as optimum_module
from lpvit.allocation.bounded_search import proved_optimum
from lpvit.allocation.knapsack import largest_block, least_distortion
from lpvit.allocation.optimum import optimum
from lpvit.allocation.problem import Layer, Requirement


def by_branch_and_bound(curves, fewest, most):
    """Costs must be small integers, so that the solver's tolerance is far below one of them."""
    sizes = [len(each.removed) for each in curves]
    of_layer = np.repeat(np.eye(len(curves)), sizes, axis=1)
    values = np.concatenate([each.distortion for each in curves])
    costs = np.concatenate([each.removed for each in curves])
    solved = milp(
        values,
        integrality=np.ones(len(values)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(of_layer, 1, 1), LinearConstraint(costs[None], fewest, most)],
        options={"mip_rel_gap": 0},
    )
    assert solved.status == 0
    return [int(np.argmax(part)) for part in np.split(solved.x, np.cumsum(sizes)[:-1])]


@pytest.mark.parametrize("rising", [True, False])
def test_of_hundreds_of_small_problems_the_outcome_is_the_best_of_all_choices(rising):
    rng = np.random.default_rng(0)
    improved = 0
    for _ in range(300):
        curves = []
        for _ in range(rng.integers(1, 5)):
            steps = rng.integers(0 if rising else -9, 20, size=rng.integers(1, 6))
            curves.append(curve(rng.integers(1, 9, len(steps)), np.append(0, np.cumsum(steps))))
        fewest = int(rng.uniform(0, 1) * sum(int(each.removed[-1]) for each in curves))
        most = fewest + largest_block(curves) - 1
        known = first_in_budget(curves, fewest)

        found = proved_optimum(curves, fewest, most, known)

        choices = itertools.product(*(range(len(each.removed)) for each in curves))
        best = min(distortion(curves, c) for c in choices if fewest <= removed(curves, c) <= most)
        assert fewest <= removed(curves, found) <= most
        assert distortion(curves, found) == best
        improved += distortion(curves, known) > best
    assert improved > 100


def random_vit(seed, noise, ragged):
    """Layers of a ViT of depth 3 and its head, whose costs are far more than `CELLS` in units."""
    rng = np.random.default_rng(seed)
    curves = []
    for blocks, tokens in [(64, 196), *[(48, 197), (16, 197), (64, 197), (64, 197)] * 3, (9, 1)]:
        cost = np.full(blocks, 16 * tokens)
        cost[rng.integers(blocks, size=blocks // 4 if ragged else 0)] -= 5 * tokens
        points = np.round(np.linspace(0, 1, 9) * blocks).astype(np.int64)
        rising = np.cumsum(np.append(0, rng.gamma(0.5, size=8) * np.linspace(0, 1, 9)[1:] ** 2))
        values = rising + rng.normal(0, noise, 9) * (points > 0)
        curves.append(curve(cost, np.interp(np.arange(blocks + 1), points, values), points))
    return curves


@pytest.mark.parametrize(("noise", "ragged"), [(0, False), (0.03, False), (0.03, True)])
@pytest.mark.parametrize("seed", range(2))
def test_beyond_the_resolution_of_the_knapsack_it_equals_branch_and_bound(monkeypatch, seed, noise, ragged):
    curves = random_vit(seed, noise, ragged)
    fewest = sum(int(each.removed[-1]) for each in curves) // 2
    most = fewest + largest_block(curves) - 1
    monkeypatch.setattr(knapsack, "CELLS", 100)
    known = least_distortion(curves, fewest, first_in_budget(curves, fewest))

    found = proved_optimum(curves, fewest, most, known)

    expected = by_branch_and_bound(curves, fewest, most)
    assert fewest <= removed(curves, expected) <= most
    assert fewest <= removed(curves, found) <= most
    assert distortion(curves, found) == pytest.approx(distortion(curves, expected), rel=1e-12, abs=1e-12)
    assert distortion(curves, found) < distortion(curves, known)


def test_where_a_proof_would_take_too_long_a_warning_says_so_and_the_budget_is_met(monkeypatch, caplog):
    curves = random_vit(0, 0.03, True)
    nothing = np.empty(0)
    layers = [
        Layer("", 1, 1, 1, nothing, nothing, *[np.diff(each.removed)] * 2, nothing.astype(str), len(each.removed) - 1,
              nothing, np.arange(len(each.removed)), each.distortion)
        for each in curves
    ]  # fmt: skip
    total = sum(int(each.removed[-1]) for each in curves)
    requirement = Requirement("macs", 0.5, total, total / 2, tuple(each.removed for each in curves))
    best = distortion(curves, optimum(layers, requirement))
    assert caplog.records == []
    monkeypatch.setattr(bounded_search, "PAIRS", 10)
    monkeypatch.setattr(optimum_module, "least_distortion", lambda curves, required, start: start)
    with caplog.at_level(logging.WARNING):
        found = optimum(layers, requirement)
    assert "not proved to be the optimum" in caplog.text
    assert requirement.is_met(found)
    assert distortion(curves, found) > best
