"""Converts tables to layers and to requirements that are checked to be reachable. Pure NumPy and pandas.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lpvit.allocation.latency import milliseconds, of_structure
from lpvit.allocation.priority import blocks_always_kept
from lpvit.allocation.problem import Integers, Layer, Requirement, as_fraction
from lpvit.allocation.ranking import in_pruning_order
from lpvit.allocation.settings import Budget
from lpvit.costs.energy import HOROWITZ, energy_per_weight, fixed_energy
from lpvit.costs.settings import Energy
from lpvit.errors import LpvitError

FLOAT32 = 4  # bytes
MILLIONTHS = 10**6  # of a byte: blocks without effect on the bytes are ordered by one each
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
        latency: Measured times, schema ``LATENCY``, of the structures of the blocks; for a budget in latency.
    """

    curves: pd.DataFrame
    blocks: pd.DataFrame
    costs: pd.DataFrame
    energy: Energy = HOROWITZ
    latency: pd.DataFrame | None = None


def problem_of(tables: LayerTables, budget: Budget) -> tuple[list[Layer], list[Requirement]]:
    """The prunable layers, and one or two requirements that can be met."""
    layers = _prunable_layers(tables, budget)
    requirements = [
        requirement(quantity, target, layers, tables.costs, tables.energy, tables.latency)
        for quantity, target in budget.targets.items()
    ]
    for each in requirements:
        _check_reachable(layers, each, budget)
    return layers, requirements


def _prunable_layers(tables: LayerTables, budget: Budget) -> list[Layer]:
    curve_of = {str(name): curve for name, curve in tables.curves.groupby("layer")}
    layers = layers_of(tables.blocks, tables.costs, budget)
    if not {layer.name for layer in layers} == curve_of.keys() == set(tables.blocks["layer"]):
        raise ValueError("curves, blocks and costs do not have the same layers")
    for layer in layers:
        _check_finite(layer.name, "distortion", curve_of[layer.name]["distortion"])
        _check_finite(layer.name, "saliency", layer.saliency)
        _check_finite(layer.name, "squared_norm", layer.squared_norm)
    return [_with_curve(layer, curve_of[layer.name]) for layer in layers]


def _with_curve(layer: Layer, curve: pd.DataFrame) -> Layer:
    sparsity, pruned, distortion = (curve[name].to_numpy() for name in ("sparsity", "blocks_pruned", "distortion"))
    return replace(layer, sparsity=sparsity, blocks_pruned=pruned, distortion=distortion)


def layers_of(blocks: pd.DataFrame, costs: pd.DataFrame, budget: Budget) -> list[Layer]:
    """The prunable layers with their blocks in pruning order and without a curve.

    Args:
        blocks: Schema ``BLOCKS``.
        costs: Of all layers, schema ``COSTS``.
        budget: Says how much of a layer is always kept.
    """
    in_order = {str(name): in_pruning_order(block) for name, block in blocks.groupby("layer", sort=False)}
    prunable = costs[costs["layer"].isin(in_order)].to_dict("records")
    kept_at_least = _floors([in_order[cost["layer"]] for cost in prunable], budget)
    nothing = np.empty(0)
    return [
        Layer(
            name=cost["layer"],
            out_features=cost["out_features"],
            in_features=cost["in_features"],
            tokens=cost["tokens"],
            saliency=block["saliency"].to_numpy(),
            squared_norm=block["squared_norm"].to_numpy(),
            weights=block["weights"].to_numpy(np.int64),
            bytes=block["bytes"].to_numpy(np.int64),
            structures=block["structure"].to_numpy(str),
            limit=len(block) - kept,
            sparsity=nothing,
            blocks_pruned=nothing.astype(np.int64),
            distortion=nothing,
        )
        for cost, kept in zip(prunable, kept_at_least, strict=True)
        for block in [in_order[cost["layer"]]]
    ]


def _floors(blocks: Sequence[pd.DataFrame], budget: Budget) -> list[int]:
    """Minimum number of blocks that every layer keeps, given its blocks in pruning order."""
    floors = [_always_kept(block, budget.min_keep_ratio) for block in blocks]
    return budget.allocator.raise_floors(floors, list(map(len, blocks)))


def _always_kept(block: pd.DataFrame, min_keep_ratio: float) -> int:
    """Blocks of a layer that are always kept: of steps between options, those that hold a share of its weights."""
    if (block["structure"] == "blocks").all():
        return blocks_always_kept(len(block), min_keep_ratio)
    last_to_first = block["weights"].to_numpy(np.int64)[::-1].cumsum()
    least = math.ceil(as_fraction(min_keep_ratio) * int(last_to_first[-1]))
    return 1 + int(np.searchsorted(last_to_first, least))


def _check_finite(layer: str, name: str, values: "NDArray[np.float64] | pd.Series[float]") -> None:
    if not np.isfinite(values).all():
        raise LpvitError(
            f"layer '{layer}': {name} is not finite; check the dense model, its weights or outputs overflow"
        )


def _check_reachable(layers: Sequence[Layer], requirement: Requirement, budget: Budget) -> None:
    most = requirement.gone(layer.limit for layer in layers)
    if most >= requirement.required:
        return
    raise unreachable(requirement, most, budget)


def unreachable(requirement: Requirement, most: float, budget: Budget) -> LpvitError:
    """What to say of a budget that asks to remove more than can be removed."""
    quantity, reachable = requirement.quantity, requirement.as_stated(most)
    if quantity == "sparsity":  # rounded so that the number in the message can be met
        found, change = f"at most {math.floor(reachable * 1e4) / 1e4:.4f} can be pruned", "lower"
    else:
        found, change = f"at least {math.ceil(reachable * 1e4) / 1e4:.4f} must be kept", "raise"
    allocator = budget.allocator
    floors = ", ".join([f"min_keep_ratio {budget.min_keep_ratio:g}", *allocator.floors])
    return LpvitError(
        f"budget: {quantity} {requirement.target:g} is impossible, {found} ('{allocator.name}' with {floors}); "
        f"{change} '{quantity}', lower 'min_keep_ratio' or prune more 'layers'"
    )


def requirement(
    quantity: str,
    target: float,
    layers: Sequence[Layer],
    costs: pd.DataFrame,
    energy: Energy,
    latency: pd.DataFrame | None,
) -> Requirement:
    """A budget's target as costs of the blocks of every layer.

    Args:
        quantity: Key of the budget in the config.
        target: Share to keep; of ``sparsity``, to remove.
        layers: Prunable layers.
        costs: Of all layers, schema ``COSTS``.
        energy: Constants of the energy model.
        latency: Measured times, schema ``LATENCY``, for a budget in latency.

    Raises:
        LpvitError: A layer has not been timed.
    """
    padding = 0
    if quantity == "macs":
        removed, total = [layer.weights_removed * layer.tokens for layer in layers], int(costs["macs"].sum())
    elif quantity == "sparsity":
        removed = [layer.weights_removed for layer in layers]
        total = sum(int(of_layer[-1]) for of_layer in removed)
    elif quantity == "parameters":
        removed, total = [layer.weights_removed for layer in layers], int(costs["parameters"].sum())
    elif quantity == "bytes":
        saved = [_bytes_saved(layer) for layer in layers]
        removed = [MILLIONTHS * (of_layer - of_layer[0]) + np.arange(len(of_layer)) for of_layer in saved]
        padding = -MILLIONTHS * sum(int(of_layer[0]) for of_layer in saved)
        total = MILLIONTHS * FLOAT32 * int(costs["parameters"].sum())
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
    required = math.ceil(share * total) if quantity == "sparsity" else total + padding - math.floor(share * total)
    return Requirement(quantity, target, total, required, tuple(removed), padding)


def _femtojoules_per_weight(tokens: int, energy: Energy) -> int:
    return round(FEMTO * energy_per_weight(tokens, energy))


def _dense_femtojoules(costs: pd.DataFrame, energy: Energy) -> int:
    shapes = costs[["out_features", "in_features", "tokens"]].itertuples(index=False, name=None)
    return sum(
        round(FEMTO * fixed_energy(rows, columns, tokens, energy))
        + rows * columns * _femtojoules_per_weight(tokens, energy)
        for rows, columns, tokens in shapes
    )


def _bytes_saved(layer: Layer) -> Integers:
    """Bytes that a saved layer saves at least when its first 0 .. B blocks are pruned, shape (B + 1,), rising.

    They are negative where padding costs more than the pruned blocks save.
    """
    stored = np.append(layer.bytes[::-1].cumsum()[::-1], 0)
    saved = FLOAT32 * int(layer.weights_removed[-1]) - stored
    rising: Integers = np.minimum.accumulate(saved[::-1])[::-1]
    return rising


def _femtoseconds(layer: Layer, latency: pd.DataFrame) -> Integers:
    """Time of a layer when its first 0 .. B blocks are pruned, shape (B + 1,), non-increasing.

    A slower option counts with the time of a faster one before it, which replaces it (`replaced_by_faster`).
    """
    sparsity = layer.weights_removed / layer.weights_removed[-1]
    shape, time = (layer.out_features, layer.in_features, layer.tokens), np.empty(len(sparsity))
    behind = np.append(layer.structures[:1], layer.structures)
    for structure in dict.fromkeys(layer.structures):
        is_there = behind == structure
        time[is_there] = milliseconds(of_structure(latency, structure), *shape, sparsity[is_there])
    femtoseconds: Integers = np.rint(FEMTOSECONDS * np.minimum.accumulate(time)).astype(np.int64)
    return femtoseconds


def replaced_by_faster(
    layers: Sequence[Layer], requirements: Sequence[Requirement], pruned: Sequence[int]
) -> list[int]:
    """An allocation without options that are no faster than one before them, in layers of several structures.

    Args:
        layers: Prunable layers.
        requirements: Only a budget in latency, alone, changes anything.
        pruned: Blocks pruned in every layer.
    """
    (first, *others), settled = requirements, list(pruned)
    if first.quantity != "latency" or others:
        return settled
    for number, (layer, removed) in enumerate(zip(layers, first.removed, strict=True)):
        if len(set(layer.structures)) > 1:
            while settled[number] and removed[settled[number]] - removed[settled[number] - 1] == 1:
                settled[number] -= 1
    return settled
