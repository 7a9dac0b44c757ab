"""The knapsack against enumeration of all choices, and beyond its resolution against itself on finer cells."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpvit.allocation import knapsack
from lpvit.allocation.knapsack import Curve, least_distortion


def curve(cost, distortion, points=None):
    """A curve from the cost of every block and the distortion of 0 .. L blocks pruned."""
    removed = np.append(0, np.cumsum(cost, dtype=np.int64))
    return Curve(removed, np.asarray(distortion, float), np.arange(len(removed)) if points is None else points)


def removed(curves, counts):
    return sum(int(curve.removed[count]) for curve, count in zip(curves, counts, strict=True))


def distortion(curves, counts):
    return sum(float(curve.distortion[count]) for curve, count in zip(curves, counts, strict=True))


def first_in_budget(curves, required):
    """Some choice that meets the budget to one block: layer after layer until enough is gone."""
    counts = [0] * len(curves)
    for layer, of_layer in enumerate(curves):
        while counts[layer] < len(of_layer.removed) - 1 and removed(curves, counts) < required:
            counts[layer] += 1
    return counts


costs = st.lists(st.integers(1, 9), min_size=1, max_size=5)
layer = costs.flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(0, 99), min_size=len(c), max_size=len(c))))


@given(layers=st.lists(layer, min_size=1, max_size=4), share=st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_the_outcome_is_the_best_of_all_choices_that_meet_the_budget_to_one_block(layers, share):
    """Any costs and any curves, falling ones too."""
    curves = [curve(cost, [0, *values]) for cost, values in layers]
    required = int(share * sum(sum(cost) for cost, _ in layers))
    largest = max(max(cost) for cost, _ in layers)

    found = least_distortion(curves, required, first_in_budget(curves, required))

    choices = itertools.product(*(range(len(cost) + 1) for cost, _ in layers))
    allowed = [choice for choice in choices if required <= removed(curves, choice) < required + largest]
    assert tuple(found) in allowed
    assert distortion(curves, found) == min(distortion(curves, choice) for choice in allowed)


def test_nothing_required_of_rising_curves_prunes_nothing():
    assert least_distortion([curve([1] * 4, range(5)), curve([1] * 4, np.arange(5) ** 2)], 0, [0, 0]) == [0, 0]


def test_layers_that_may_not_be_pruned_stay_whole():
    assert least_distortion([curve([], [0]), curve([1, 1], range(3))], 2, [0, 2]) == [0, 2]
    assert least_distortion([curve([], [0])], 0, [0]) == [0]


def test_the_best_choice_may_lie_above_the_lower_hull():
    # Of a the hull goes from 0 past 3 blocks to 6, so that it would take b's first at 2; a's point at 2 is best for 2.
    curves = [curve([1] * 6, [0, 9, 3.5, 9, 9, 9, 6]), curve([1] * 6, [0, 2, 4, 6, 8, 10, 12])]
    assert least_distortion(curves, 2, [0, 2]) == [2, 0]


def random_curves(seed, ragged):
    rng = np.random.default_rng(seed)
    curves = []
    for i in range(8):
        blocks = 400 if i % 3 else 150
        cost = np.full(blocks, 1024 * (1 + i % 2))
        if ragged:
            cost[rng.integers(blocks, size=9)] //= 3
        share = np.linspace(0, 1, 41)
        rising = np.cumsum(np.append(0, rng.gamma(0.5, size=40) * share[1:] ** 2))
        bumpy = rising + rng.normal(0, 0.05, 41) * (share > 0)
        points = np.round(share * blocks).astype(np.int64)
        curves.append(curve(cost, np.interp(np.arange(blocks + 1), points, bumpy), points))
    return curves


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_beyond_its_resolution_it_meets_the_budget_and_stays_close_to_the_optimum(monkeypatch, seed, ragged):
    curves = random_curves(seed, ragged)
    required = sum(int(of_layer.removed[-1]) for of_layer in curves) // 2
    start = first_in_budget(curves, required)
    best = distortion(curves, least_distortion(curves, required, start))
    monkeypatch.setattr(knapsack, "CELLS", 1000)  # four blocks a cell
    found = least_distortion(curves, required, start)
    assert required <= removed(curves, found) < required + 2048
    assert distortion(curves, found) == pytest.approx(best, rel=0.01)


def test_the_outcome_is_never_worse_than_the_start(monkeypatch):
    curves = random_curves(0, ragged=False)
    required = sum(int(of_layer.removed[-1]) for of_layer in curves) // 2
    best = least_distortion(curves, required, first_in_budget(curves, required))
    monkeypatch.setattr(knapsack, "CELLS", 10)
    assert least_distortion(curves, required, best) == best


def test_fifty_layers_with_half_a_million_blocks_take_less_than_a_second():
    rng = np.random.default_rng(0)
    points = np.round(np.linspace(0, 1, 101) * 9024).astype(np.int64)
    rising = [np.cumsum(np.append(0, rng.gamma(0.5, size=100))) for _ in range(50)]
    curves = [curve([197 * 1024] * 9024, np.interp(np.arange(9025), points, values), points) for values in rising]
    required = 25 * 9024 * 197 * 1024
    started = time.process_time()
    found = least_distortion(curves, required, [4512] * 50)
    assert time.process_time() - started < 1
    assert required <= removed(curves, found) < required + 197 * 1024
