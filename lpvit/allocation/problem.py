"""What budgets ask of layers: how much must go, and how much of it goes with every block. Pure NumPy and pandas.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lpvit.allocation.latency import milliseconds
from lpvit.models.energy import HOROWITZ, energy_per_weight, fixed_energy
from lpvit.models.settings import Energy

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WHOLE_MODEL = ("macs", "energy")  # budgets that count all layers with a weight matrix; others, the prunable ones
FEMTO = 1e15  # femtojoules in a joule
FEMTOSECONDS = 1e12  # in a millisecond


@dataclass(frozen=True)
class LayerTables:
    """What an allocation goes by.

    Attributes:
        curves: Rate-distortion curves of the prunable layers, schema ``CURVES``.
        blocks: Blocks of the same layers, schema ``BLOCKS``.
        costs: All layers of the model, schema ``COSTS``; those without blocks stay dense and count.
        energy: Constants of the energy model, for a budget in energy.
        latency: Measured times, schema ``LATENCY``, of one block shape; for a budget in latency.
    """

    curves: pd.DataFrame
    blocks: pd.DataFrame
    costs: pd.DataFrame
    energy: Energy = HOROWITZ
    latency: pd.DataFrame | None = None


@dataclass(frozen=True)
class Layer:
    """A prunable layer as the allocators see it.

    Attributes:
        name: Of the layer in the timm model.
        out_features: Rows of the weight matrix.
        in_features: Columns of the weight matrix.
        tokens: Vectors that the layer multiplies for an image.
        saliency: Score of every block in pruning order, shape (B,), non-decreasing.
        squared_norm: Sum of squared weights of every block in pruning order, shape (B,).
        weights: Weights of every block in pruning order, shape (B,).
        limit: L, blocks that may be pruned.
        sparsity: Share of blocks asked to be pruned at every point of the curve, shape (P,), rising.
        blocks_pruned: The same in blocks, shape (P,), from 0 to B.
        distortion: At every point of the curve, shape (P,), in squared logits per image.
    """

    name: str
    out_features: int
    in_features: int
    tokens: int
    saliency: Floats
    squared_norm: Floats
    weights: Integers
    limit: int
    sparsity: Floats
    blocks_pruned: Integers
    distortion: Floats

    @property
    def blocks(self) -> int:
        return len(self.weights)

    @cached_property
    def weights_removed(self) -> Integers:
        """Weights that are gone when the first 0 .. B blocks are pruned, shape (B + 1,)."""
        return np.append(0, np.cumsum(self.weights))

    @cached_property
    def distortion_by_count(self) -> Floats:
        """Distortion when the first 0 .. L blocks are pruned, shape (L + 1,): the curve, linear between its points."""
        return np.interp(np.arange(self.limit + 1), self.blocks_pruned, self.distortion)


@dataclass(frozen=True)
class Requirement:
    """A budget as costs, in whole MACs, weights, femtojoules or femtoseconds; of two combined, as a share.

    Attributes:
        quantity: Key of the budget in the config.
        target: Share of ``total`` to keep; of ``sparsity``, to remove.
        total: Cost of what the budget is a share of.
        required: Cost that must go.
        removed: For every layer, the cost that is gone when its first 0 .. B blocks are pruned, shape (B + 1,),
            strictly rising from 0.
    """

    quantity: str
    target: float
    total: int
    required: float
    removed: tuple[NDArray[Any], ...]

    def gone(self, pruned: Iterable[int]) -> float:
        """Cost that is gone, given the blocks pruned in every layer."""
        return sum(float(removed[count]) for removed, count in zip(self.removed, pruned, strict=True))

    def is_met(self, pruned: Iterable[int]) -> bool:
        return self.gone(pruned) >= self.required

    def as_stated(self, gone: float) -> float:
        """In the terms of the budget: share kept, or share removed of a sparsity."""
        return gone / self.total if self.quantity == "sparsity" else (self.total - gone) / self.total


def requirement(quantity: str, target: float, layers: Sequence[Layer], tables: LayerTables) -> Requirement:
    """A budget's target as costs of the blocks of every layer.

    Args:
        quantity: Key of the budget in the config.
        target: Share to keep; of ``sparsity``, to remove.
        layers: Prunable layers.
        tables: Costs of all layers, and what the quantity is counted with.

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
        # One more for each block, so that blocks without an effect on the time still have an order.
        removed = [time[0] - time + np.arange(len(time)) for time in times]
        total = sum(int(time[0]) for time in times)
    share = as_fraction(target)
    required = math.ceil(share * total) if quantity == "sparsity" else total - math.floor(share * total)
    return Requirement(quantity, target, total, required, tuple(removed))


def as_fraction(share: float) -> Fraction:
    """The number that was meant, not the binary one next to it: 7 % of 100 blocks are 7, not 8."""
    return Fraction(share).limit_denominator(10**9)


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
