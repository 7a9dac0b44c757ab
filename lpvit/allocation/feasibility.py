"""Checks from layer shapes alone whether a budget can be met. Pure NumPy and pandas."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lpvit.allocation.latency import milliseconds
from lpvit.allocation.priority import blocks_always_kept
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import WHOLE_MODEL
from lpvit.costs.energy import HOROWITZ, layer_energy
from lpvit.costs.settings import Energy
from lpvit.errors import LpvitError


@dataclass(frozen=True)
class Shapes:
    """Shapes of a model's layers.

    Attributes:
        costs: All layers, schema ``COSTS``.
        blocks: Prunable layer -> number of its blocks.
        energy: Constants of the energy model, for a budget in energy.
        latency: Measured times, schema ``LATENCY``, of the block shape; None if not measured
            yet; a latency budget is then not checked.
    """

    costs: pd.DataFrame
    blocks: Mapping[str, int]
    energy: Energy = HOROWITZ
    latency: pd.DataFrame | None = None


def require_reachable(shapes: Shapes, budget: Budget) -> None:
    """Checks that a budget can be met with the minimum that every layer keeps.

    Raises:
        LpvitError: It cannot; the message states the minimum.
    """
    for quantity, target in budget.targets.items():
        if quantity == "latency" and shapes.latency is None:
            continue
        dense, least = dense_and_least(shapes, quantity, budget)
        if quantity == "sparsity" and target > 1 - least / dense:
            found, change = f"{1 - least / dense:.3f} is reached", "lower"
        elif quantity != "sparsity" and target < least / dense:
            found, change = f"{least / dense:.3f} stays", "raise"
        else:
            continue
        raise LpvitError(
            f"budget: {quantity} {target:g} is impossible: {found} at min_keep_ratio {budget.min_keep_ratio:g}; "
            f"{change} '{quantity}', lower 'min_keep_ratio' or add roles to 'layers'"
        )


def dense_and_least(shapes: Shapes, quantity: str, budget: Budget) -> tuple[float, float]:
    """Cost of the layers that a quantity counts, dense and at the minimum number of blocks."""
    layers: list[dict[str, Any]] = shapes.costs.to_dict("records")  # type: ignore[assignment]
    counted = [layer for layer in layers if quantity in WHOLE_MODEL or layer["layer"] in shapes.blocks]
    floors = {name: blocks_always_kept(count, budget.min_keep_ratio) / count for name, count in shapes.blocks.items()}
    dense = sum(_cost(quantity, layer, 1.0, shapes) for layer in counted)
    return dense, sum(_cost(quantity, layer, floors.get(layer["layer"], 1.0), shapes) for layer in counted)


def _cost(quantity: str, layer: Mapping[str, Any], keep_ratio: float, shapes: Shapes) -> float:
    """Cost of a layer in the quantity of a budget, with a share of its weights."""
    shape, tokens = (layer["out_features"], layer["in_features"]), layer["tokens"]
    weights = keep_ratio * math.prod(shape)
    if quantity == "energy":
        return layer_energy(*shape, tokens, weights, shapes.energy)
    if quantity == "latency":
        assert shapes.latency is not None, "a budget in milliseconds needs a latency table"
        return float(milliseconds(shapes.latency, *shape, tokens, 1 - keep_ratio))
    return float(weights * tokens) if quantity == "macs" else weights
