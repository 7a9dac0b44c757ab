"""From tables to layers and requirements, which are proved to be reachable. Pure NumPy and pandas.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lpvit.allocation.problem import Layer, LayerTables, Requirement, as_fraction, requirement
from lpvit.allocation.settings import Budget
from lpvit.curves.ranking import in_pruning_order
from lpvit.errors import LpvitError

UNIFORM_PLUS_LAST_KEEP_RATIO = 0.2


def problem_of(tables: LayerTables, budget: Budget) -> tuple[list[Layer], list[Requirement]]:
    """The prunable layers, and one or two requirements that can be met."""
    layers = _prunable_layers(tables, budget)
    requirements = [requirement(quantity, target, layers, tables) for quantity, target in budget.targets.items()]
    for each in requirements:
        _check_reachable(layers, each, budget)
    return layers, requirements


def _prunable_layers(tables: LayerTables, budget: Budget) -> list[Layer]:
    curve_of = {str(name): curve for name, curve in tables.curves.groupby("layer")}
    blocks_of = {str(name): block for name, block in tables.blocks.groupby("layer")}
    prunable = tables.costs[tables.costs["layer"].isin(blocks_of)].to_dict("records")
    if not {cost["layer"] for cost in prunable} == curve_of.keys() == blocks_of.keys():
        raise ValueError("curves, blocks and costs do not speak of the same layers")
    kept_at_least = _floors([len(blocks_of[cost["layer"]]) for cost in prunable], budget)
    layers = []
    for cost, kept in zip(prunable, kept_at_least, strict=True):
        name = cost["layer"]
        curve, block = curve_of[name], in_pruning_order(blocks_of[name])
        _check_finite(name, curve["distortion"], block["saliency"], block["squared_norm"])
        layers.append(
            Layer(
                name=name,
                out_features=cost["out_features"],
                in_features=cost["in_features"],
                tokens=cost["tokens"],
                saliency=block["saliency"].to_numpy(),
                squared_norm=block["squared_norm"].to_numpy(),
                weights=block["weights"].to_numpy(np.int64),
                limit=len(block) - kept,
                sparsity=curve["sparsity"].to_numpy(),
                blocks_pruned=curve["blocks_pruned"].to_numpy(),
                distortion=curve["distortion"].to_numpy(),
            )
        )
    return layers


def _floors(blocks: Sequence[int], budget: Budget) -> list[int]:
    """Blocks that every layer keeps at least, given how many each has; Uniform+ raises the first and the last."""
    floors = [blocks_always_kept(count, budget.min_keep_ratio) for count in blocks]
    if budget.allocator == "uniform_plus":
        floors[-1] = max(floors[-1], blocks_always_kept(blocks[-1], UNIFORM_PLUS_LAST_KEEP_RATIO))
        floors[0] = blocks[0]
    return floors


def blocks_always_kept(blocks: int, min_keep_ratio: float) -> int:
    """Blocks of a layer that no budget may take: ``min_keep_ratio`` of them, rounded up, and at least one."""
    return max(1, math.ceil(as_fraction(min_keep_ratio) * blocks))


def _check_finite(layer: str, *columns: pd.Series) -> None:
    for column in columns:
        if not np.isfinite(column).all():
            raise LpvitError(
                f"layer '{layer}': {column.name} is not finite; check the dense model, its weights or outputs overflow"
            )


def _check_reachable(layers: Sequence[Layer], requirement: Requirement, budget: Budget) -> None:
    most = requirement.gone(layer.limit for layer in layers)
    if most >= requirement.required:
        return
    quantity, reachable = requirement.quantity, requirement.as_stated(most)
    if quantity == "sparsity":  # rounded so that the number in the message can be met
        found, change = f"at most {math.floor(reachable * 1e4) / 1e4:.4f} can go", "lower"
    else:
        found, change = f"at least {math.ceil(reachable * 1e4) / 1e4:.4f} stay", "raise"
    floors = f"min_keep_ratio {budget.min_keep_ratio:g}"
    if budget.allocator == "uniform_plus":
        floors += f", the first layer dense and {UNIFORM_PLUS_LAST_KEEP_RATIO:g} of the last one kept"
    raise LpvitError(
        f"budget: {quantity} {requirement.target:g} is impossible, {found} ('{budget.allocator}' with {floors}); "
        f"{change} '{quantity}', lower 'min_keep_ratio' or prune more 'layers'"
    )
