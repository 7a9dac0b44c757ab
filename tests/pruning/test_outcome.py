"""Budgets by outcome: the search, its measures, and the library call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import dense_model, photographs
from torch import Tensor, nn

import lpvit
from lpvit.allocation.settings import Budget
from lpvit.pruning.outcome import Estimate, best, outcome_table, search
from lpvit.structures.structure import Compressed
from lpvit.training.evaluation import correct_images, points_lost

SHARES = [share / 20 for share in range(18, 1, -1)]


def compress(budget: Budget) -> Compressed:
    assert budget.macs is not None
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, budget.macs)
    return Compressed(model, {}, None)


def measure_of(outcome: Callable[[float], float]) -> Callable[[Compressed], Estimate]:
    def measure(compressed: Compressed) -> Estimate:
        value = outcome(round(float(compressed.model.weight.detach()), 4))  # type: ignore[operator]
        return Estimate(value, value - 1, value + 1)

    return measure


@pytest.mark.parametrize("target", [0.5, 2.0, 12.0, 79.0])
def test_the_fewest_macs_that_lose_no_more_are_found(target: float) -> None:
    found = search(Budget(points_lost=target), SHARES, compress, measure_of(lambda share: 100 * (0.9 - share)))
    expected = min(share for share in SHARES if 100 * (0.9 - share) <= target)
    assert best(found, "points_lost").macs == pytest.approx(expected)
    assert len(found) <= 5  # of 17


@pytest.mark.parametrize("target", [3.0, 7.7, 20.0])
def test_the_most_macs_that_take_no_longer_are_found(target: float) -> None:
    found = search(Budget(milliseconds=target), SHARES, compress, measure_of(lambda share: 20 * share))
    expected = max(share for share in SHARES if 20 * share <= target)
    assert best(found, "milliseconds").macs == pytest.approx(expected)
    assert len(found) <= 5


def test_the_table_has_every_model_that_was_tried_and_one_that_is_chosen() -> None:
    budget = Budget(points_lost=10)
    table = outcome_table(search(budget, SHARES, compress, measure_of(lambda share: 100 * (0.9 - share))), budget)
    assert table["macs"].is_monotonic_decreasing
    (chosen,) = table[table["chosen"]].to_dict("records")
    assert chosen["macs"] == table.loc[table["meets"], "macs"].min()


def test_an_outcome_that_nothing_reaches_says_what_can_be_had() -> None:
    with pytest.raises(lpvit.LpvitError, match=r"points_lost 1 is impossible: at 90% of the MACs it is 5.00 \(4.00 to"):
        search(Budget(points_lost=1), SHARES, compress, measure_of(lambda share: 95 - 100 * share))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"points_lost": 1, "macs": 0.5}, "'points_lost' is a budget alone, found also macs"),
        ({"points_lost": 1, "milliseconds": 5}, "'points_lost' is a budget alone, found also"),
        ({"points_lost": 1, "steps": 4}, "'points_lost' takes one round, found steps 4"),
        ({"points_lost": 0}, "points_lost"),
        ({"milliseconds": -1}, "milliseconds"),
    ],
)
def test_an_outcome_stands_alone(values: dict[str, Any], message: str) -> None:
    with pytest.raises(lpvit.LpvitError, match=message):
        Budget(**values)


def test_the_paired_interval_contains_the_loss_as_often_as_it_says() -> None:
    """Simulated: the second model loses 6 % of the images and wins 2 %."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        draw = torch.rand(500, generator=generator)
        before = torch.ones(500, dtype=torch.bool)
        before[draw < 0.02] = False
        after = before.clone()
        after[draw < 0.02] = True
        after[draw > 0.94] = False
        _, low, high = points_lost(before, after)
        covered += low <= 4 <= high
    assert 0.93 <= covered / 400 <= 0.99


def test_the_points_lost_are_the_difference_of_the_accuracies() -> None:
    before, after = torch.tensor([1, 1, 0, 1]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    value, low, high = points_lost(before, after)
    assert value == 25
    assert low < 0 < high


@pytest.fixture(scope="module")
def held_out() -> list[tuple[Tensor, Tensor]]:
    """Labels that the dense model gives: it loses nothing at first, and all that is lost is by pruning."""
    images = photographs("vit", 96)[64:]
    with torch.no_grad():
        return [(batch, dense_model("vit")(batch).argmax(dim=1)) for batch in images.split(16)]


@pytest.mark.parametrize("pruning", [lpvit.Blocks(block_shape=(4, 4)), lpvit.Factors(rank_multiple=2)])
def test_a_model_is_pruned_to_the_points_it_may_lose(
    pruning: lpvit.Blocks | lpvit.Factors, held_out: list[tuple[Tensor, Tensor]]
) -> None:
    budget = lpvit.Budget(points_lost=10, reconstruction="least_squares")
    images = photographs("vit", 64).split(16)
    pruned = lpvit.prune(dense_model("vit"), images, budget=budget, pruning=pruning, held_out=held_out)
    assert lpvit.evaluate(pruned, held_out).top1 >= 90
    assert pruned.outcomes is not None
    (macs,) = pruned.outcomes.loc[pruned.outcomes["chosen"], "macs"]
    assert pruned.report.loc["(model)", "keep_ratio"] <= macs
    assert "budget: points_lost 10" in repr(pruned)


def test_labels_of_held_out_images_may_have_a_column(held_out: list[tuple[Tensor, Tensor]]) -> None:
    column = [(images, labels[:, None]) for images, labels in held_out]
    model = dense_model("vit")
    assert correct_images(model, column, "cpu").shape == (32,)
    assert torch.equal(correct_images(model, column, "cpu"), correct_images(model, held_out, "cpu"))


def test_points_lost_need_images_with_labels() -> None:
    with pytest.raises(lpvit.LpvitError, match="held_out: missing; a budget in 'points_lost' needs"):
        lpvit.prune(dense_model("vit"), [photographs("vit", 8)], budget=lpvit.Budget(points_lost=1))


def test_a_model_is_pruned_to_the_milliseconds_it_may_take() -> None:
    budget = lpvit.Budget(milliseconds=1e4)
    pruned = lpvit.prune(dense_model("vit"), [photographs("vit", 16)], budget=budget)
    assert pruned.outcomes is not None
    assert pruned.outcomes.loc[pruned.outcomes["chosen"], "macs"].item() == pruned.outcomes["macs"].max() >= 0.85
