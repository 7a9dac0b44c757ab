"""What is called impossible before a measurement is impossible, and what can be reached is not refused."""

import itertools
import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lpvit.allocation.allocate import allocate
from lpvit.allocation.feasibility import Shapes, bounds, require_reachable
from lpvit.allocation.settings import TARGETS, Budget
from lpvit.allocation.tables import LayerTables
from lpvit.errors import LpvitError
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.scores import unscored_table
from lpvit.structures.factors.ranks import units_of

WIDTH, BLOCK = 36, (32, 32)  # four blocks: of 1024, 128, 128 and 16 weights
QUANTITIES = [quantity for quantity in TARGETS if quantity != "latency"]


def costs_of(*shapes: tuple[int, int]) -> pd.DataFrame:
    rows = [
        {"layer": f"layer{number}", "role": "fc1", "out_features": height, "in_features": width, "tokens": 5}
        | {"macs": 5 * height * width, "parameters": height * (width + 1)}
        for number, (height, width) in enumerate(shapes)
    ]
    return pd.DataFrame(rows)


def blocks_of(costs: pd.DataFrame) -> pd.DataFrame:
    shapes = costs[["layer", "out_features", "in_features"]].itertuples(index=False, name=None)
    tables = [unscored_table(layer, BlockGrid((height, width), BLOCK)) for layer, height, width in shapes]
    return pd.concat(tables, ignore_index=True)


def scored(blocks: pd.DataFrame, saliency: Any) -> LayerTables:
    """Tables of one layer with a linear curve and a given order."""
    count = len(blocks)
    curve = {"layer": "layer0", "sparsity": np.linspace(0, 1, count + 1), "blocks_pruned": np.arange(count + 1)}
    curves = pd.DataFrame(curve | {"weights_pruned": 0, "distortion": np.arange(count + 1.0)})
    scores = blocks.assign(saliency=np.asarray(saliency, dtype=float), squared_norm=1.0)
    return LayerTables(curves, scores, costs_of((WIDTH, WIDTH)))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_bounds_are_those_of_the_best_and_the_worst_order_of_ragged_blocks(quantity: str) -> None:
    costs = costs_of((WIDTH, WIDTH))
    blocks = blocks_of(costs)
    reached, target = [], {quantity: 0.9989 if quantity == "sparsity" else 1e-6}
    budget = Budget(**target, min_keep_ratio=0.001)
    for order in itertools.permutations(range(len(blocks))):
        with pytest.raises(LpvitError, match="is impossible") as refusal:
            allocate(scored(blocks, order), budget)
        reached.append(float(str(refusal.value).split("at most " if quantity == "sparsity" else "at least ")[1][:6]))
    asked, surely, at_most = bounds(Shapes(costs, [blocks]), quantity, *target.values(), budget)
    best, worst = asked.as_stated(at_most), asked.as_stated(surely)
    if quantity == "sparsity":
        best, worst = -best, -worst
        reached = [-value for value in reached]
    assert min(reached) == pytest.approx(best, abs=2e-4)
    assert max(reached) == pytest.approx(worst, abs=2e-4)


def test_a_budget_that_some_order_meets_passes_with_a_warning_and_one_that_none_meets_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    costs = costs_of((WIDTH, WIDTH), (48, WIDTH))
    shapes = Shapes(costs, [blocks_of(costs)])
    asked, surely, at_most = bounds(shapes, "macs", 0.5, Budget(macs=0.5))
    best, worst = asked.as_stated(at_most), asked.as_stated(surely)
    assert best < 0.03
    assert worst > 0.5
    with caplog.at_level(logging.WARNING):
        require_reachable(shapes, Budget(macs=min(1.0, worst + 1e-6)))
        assert not caplog.records
        require_reachable(shapes, Budget(macs=(best + worst) / 2))
    assert "may turn out to be impossible" in caplog.text
    with pytest.raises(LpvitError, match=r"^budget: macs .* is impossible, at least"):
        require_reachable(shapes, Budget(macs=best / 2))


def test_a_layer_may_take_the_structure_that_gives_up_more() -> None:
    costs = costs_of((64, 48), (WIDTH, WIDTH))
    shapes = costs[["layer", "out_features", "in_features"]].itertuples(index=False, name=None)
    factors = pd.concat([units_of(layer, (height, width), 8, "plain") for layer, height, width in shapes])
    alternatives = [blocks_of(costs), factors.reset_index(drop=True)]
    budget = Budget(parameters=0.5)
    both, first, second = (
        bounds(Shapes(costs, pieces), "parameters", 0.5, budget)
        for pieces in (alternatives, alternatives[:1], alternatives[1:])
    )
    assert both[2] >= max(first[2], second[2])
    assert both[1] <= min(first[1], second[1])


def test_ranks_have_one_order_so_that_nothing_is_left_open() -> None:
    costs = costs_of((64, 48))
    units = units_of("layer0", (64, 48), 8, "plain")
    asked, surely, at_most = bounds(Shapes(costs, [units]), "macs", 0.5, Budget(macs=0.5))
    assert surely == at_most
    assert asked.as_stated(at_most) == pytest.approx(8 * (64 + 48) / (64 * 48))
