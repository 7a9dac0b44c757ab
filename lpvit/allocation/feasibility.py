"""Checks from layer shapes alone whether a budget can be met, with the costs of the allocation. Pure NumPy and pandas.

How much can be removed may depend on what is not known yet: which blocks at ragged edges are the salient ones, and
which structure a layer takes. So there are two bounds, and a budget between them is possible, but not certain.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from lpvit.allocation.problem import Requirement
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import layers_of, requirement, unreachable
from lpvit.costs.energy import HOROWITZ
from lpvit.costs.settings import Energy

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shapes:
    """Shapes of a model's layers.

    Attributes:
        costs: All layers, schema ``COSTS``.
        pieces: Alternatives of what the prunable layers can lose, schema ``BLOCKS``; NaN where a saliency is not known.
        energy: Constants of the energy model, for a budget in energy.
        latency: Measured times, schema ``LATENCY``, of the structures of the pieces; None if not measured
            yet; a latency budget is then not checked.
    """

    costs: pd.DataFrame
    pieces: Sequence[pd.DataFrame]
    energy: Energy = HOROWITZ
    latency: pd.DataFrame | None = None


def require_reachable(shapes: Shapes, budget: Budget) -> None:
    """Checks that a budget can be met with the minimum that every layer keeps.

    Raises:
        LpvitError: It cannot, whatever is measured; the message states the least.
    """
    for quantity, target in budget.targets.items():
        if quantity == "latency" and shapes.latency is None:
            continue
        asked, surely, at_most = bounds(shapes, quantity, target, budget)
        if at_most < asked.required:
            raise unreachable(asked, at_most, budget)
        if surely < asked.required:
            _logger.warning(
                "budget: %s %g may turn out to be impossible: what is measured decides how much can be reached, from "
                "%.4f to %.4f",
                *(quantity, target, asked.as_stated(at_most), asked.as_stated(surely)),
            )


def bounds(shapes: Shapes, quantity: str, target: float, budget: Budget) -> tuple[Requirement, float, float]:
    """A target as costs, and the cost that can be removed for certain and at most.

    Raises:
        LpvitError: A layer has not been timed.
    """
    assert shapes.pieces, "a model without prunable layers has no budget"
    surely: dict[str, float] = {}
    at_most: dict[str, float] = {}
    for blocks in _orders(shapes.pieces):
        layers = layers_of(blocks, shapes.costs, budget)
        asked = requirement(quantity, target, layers, shapes.costs, shapes.energy, shapes.latency)
        for layer, removed in zip(layers, asked.removed, strict=True):
            most = float(removed[layer.limit])
            surely[layer.name] = min(surely.get(layer.name, most), most)
            at_most[layer.name] = max(at_most.get(layer.name, most), most)
    return asked, sum(surely.values()), sum(at_most.values())


def _orders(pieces: Sequence[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Every alternative, in the pruning orders that remove least and most where the order is not known."""
    for table in pieces:
        yield table.assign(saliency=table["saliency"].fillna(table["weights"].astype(float)))
        if table["saliency"].isna().any():
            yield table.assign(saliency=table["saliency"].fillna(-table["weights"].astype(float)))
