"""Converts tables to layers and to requirements that are checked to be reachable. Pure NumPy and pandas.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lpvit.allocation.latency import milliseconds
from lpvit.allocation.priority import blocks_always_kept
from lpvit.allocation.problem import Integers, Layer, Requirement, as_fraction
from lpvit.allocation.ranking import in_pruning_order
from lpvit.allocation.settings import Budget
from lpvit.costs.energy import HOROWITZ, energy_per_weight, fixed_energy
from lpvit.costs.settings import Energy
from lpvit.errors import LpvitError

WHOLE_MODEL = ("macs", "energy")  # budgets that count all layers with a weight matrix; others, the prunable ones
FEMTO = 1e15  # femtojoules in a joule
FEMTOSECONDS = 1e12  # in a millisecond


@dataclass(frozen=True)
class LayerTables:
    """The inputs of an allocation.

    Attributes:
        curves: Rate-distortion curves of the prunable layers, schema ``CURVES``.
        blocks: Blocks of the same layers, schema ``BLOCKS``.
        costs: All layers of the model, schema ``COSTS``; layers without blocks stay dense and are counted.
        energy: Constants of the energy model, for a budget in energy.
        latency: Measured times, schema ``LATENCY``, of one block shape; for a budget in latency.
    """

    curves: pd.DataFrame
    blocks: pd.DataFrame
    costs: pd.DataFrame
    energy: Energy = HOROWITZ
    latency: pd.DataFrame | None = None


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
        raise ValueError("curves, blocks and costs do not have the same layers")
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
    """Minimum number of blocks that every layer keeps, given its number of blocks."""
    floors = [blocks_always_kept(count, budget.min_keep_ratio) for count in blocks]
    return budget.allocator.raise_floors(floors, blocks)


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
        found, change = f"at most {math.floor(reachable * 1e4) / 1e4:.4f} can be pruned", "lower"
    else:
        found, change = f"at least {math.ceil(reachable * 1e4) / 1e4:.4f} must be kept", "raise"
    allocator = budget.allocator
    floors = ", ".join([f"min_keep_ratio {budget.min_keep_ratio:g}", *allocator.floors])
    raise LpvitError(
        f"budget: {quantity} {requirement.target:g} is impossible, {found} ('{allocator.name}' with {floors}); "
        f"{change} '{quantity}', lower 'min_keep_ratio' or prune more 'layers'"
    )


def requirement(quantity: str, target: float, layers: Sequence[Layer], tables: LayerTables) -> Requirement:
    """A budget's target as costs of the blocks of every layer.

    Args:
        quantity: Key of the budget in the config.
        target: Share to keep; of ``sparsity``, to remove.
        layers: Prunable layers.
        tables: Costs of all layers, and the constants or times of the quantity.

    Raises:
        LpvitError: A layer has not been timed.
    """
    costs, energy, latency = tables.costs, tables.energy, tables.latency
    if quantity == "macs":
        removed, total = [layer.weights_removed * layer.tokens for layer in layers], int(costs["macs"].sum())
    elif quantity == "sparsity":
        removed = [layer.weights_removed for layer in layers]
        total = sum(int(of_layer[-1]) for of_layer in removed)
    elif quantity == "energy":
        removed = [layer.weights_removed * _femtojoules_per_weight(layer.tokens, energy) for layer in layers]
        total = _dense_femtojoules(costs, energy)
    else:
        assert latency is not None, "a budget in milliseconds needs a latency table"
        times = [_femtoseconds(layer, latency) for layer in layers]
        # One femtosecond per block, so that blocks without effect on the time are still ordered.
        removed = [time[0] - time + np.arange(len(time)) for time in times]
        total = sum(int(time[0]) for time in times)
    share = as_fraction(target)
    required = math.ceil(share * total) if quantity == "sparsity" else total - math.floor(share * total)
    return Requirement(quantity, target, total, required, tuple(removed))


def _femtojoules_per_weight(tokens: int, energy: Energy) -> int:
    return round(FEMTO * energy_per_weight(tokens, energy))


def _dense_femtojoules(costs: pd.DataFrame, energy: Energy) -> int:
    shapes = costs[["out_features", "in_features", "tokens"]].itertuples(index=False, name=None)
    return sum(
        round(FEMTO * fixed_energy(rows, columns, tokens, energy))
        + rows * columns * _femtojoules_per_weight(tokens, energy)
        for rows, columns, tokens in shapes
    )


def _femtoseconds(layer: Layer, latency: pd.DataFrame) -> Integers:
    """Time of a layer when its first 0 .. B blocks are pruned, shape (B + 1,), non-increasing."""
    sparsity = layer.weights_removed / layer.weights_removed[-1]
    time = milliseconds(latency, layer.out_features, layer.in_features, layer.tokens, sparsity)
    return np.rint(FEMTOSECONDS * time).astype(np.int64)
