"""The ladder of ranks: what steps cost, and how an allocation of them is read."""

from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpvit.structures.factors.ranks import Form, allocated_ranks, ladder, products, weights_of_units

sides = st.integers(1, 60)
forms = st.sampled_from(["plain", "pivoted"])


def test_a_ladder_by_hand() -> None:
    assert ladder((8, 8), 2, "plain") == [2, 0]  # rank 4 would cost 4 * 16 = 8 * 8
    assert ladder((8, 8), 2, "pivoted") == [6, 4, 2, 0]
    assert ladder((8, 8), 3, "pivoted") == [6, 3, 0]
    assert weights_of_units((8, 8), 2, "plain").tolist() == [64 - 32, 32]
    assert weights_of_units((8, 8), 2, "pivoted").tolist() == [64 - 60, 60 - 48, 48 - 28, 28]


@given(sides, sides, st.integers(1, 9), forms)
def test_every_rank_costs_less_than_dense_and_the_next_would_not(
    outputs: int, inputs: int, multiple: int, form: Form
) -> None:
    ranks = ladder((outputs, inputs), multiple, form)
    costs = [products(rank, (outputs, inputs), form) for rank in ranks]
    assert all(above - below == multiple for above, below in pairwise(ranks))
    assert ranks[-1] == 0
    assert all(cost < outputs * inputs for cost in costs)
    beyond = ranks[0] + multiple
    assert beyond > min(outputs, inputs) or products(beyond, (outputs, inputs), form) >= outputs * inputs


@given(sides, sides, st.integers(1, 9), forms)
def test_steps_take_away_all_weights_and_each_some(outputs: int, inputs: int, multiple: int, form: Form) -> None:
    weights = weights_of_units((outputs, inputs), multiple, form)
    assert weights.sum() == outputs * inputs
    assert (weights > 0).all()


@pytest.mark.parametrize(("kept", "rank"), [(4, None), (3, 6), (2, 4), (1, 2)])
def test_units_that_stay_say_the_rank(kept: int, rank: int | None) -> None:
    allocation = pd.DataFrame({"layer": ["a"], "blocks": [4], "blocks_kept": [kept]})  # of (8, 8), pivoted, by twos
    assert allocated_ranks(allocation, 2) == ({} if rank is None else {"a": rank})
