"""How many blocks of every layer stay under a budget. Pure NumPy and pandas.

Every allocator but `exact`, which searches, is a rule that gives each block a priority. Within a layer, blocks are
pruned by rising saliency and priorities never fall along that order; over the whole model, blocks are pruned by rising
priority until the budget is met. So every allocator meets every budget to one block.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lpvit.config import Budget
from lpvit.energy import power_term
from lpvit.errors import LpvitError
from lpvit.knapsack import Curve, least_distortion
from lpvit.ranking import in_pruning_order

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

UNIFORM_PLUS_LAST_KEEP_RATIO = 0.2


@dataclass(frozen=True)
class Layer:
    """A prunable layer as the allocators see it.

    Attributes:
        name: Of the layer in the timm model.
        out_features: Rows of the weight matrix.
        in_features: Columns of the weight matrix.
        saliency: Score of every block in pruning order, shape (B,), non-decreasing.
        squared_norm: Sum of squared weights of every block in pruning order, shape (B,).
        macs: Multiply-accumulates for an image of every block in pruning order, shape (B,).
        cost: What pruning a block contributes to the budget, in pruning order, shape (B,): MACs or weights.
        limit: L, blocks that may be pruned.
        sparsity: Share of blocks asked to be pruned at every point of the curve, shape (P,), rising.
        blocks_pruned: The same in blocks, shape (P,), from 0 to B.
        distortion: At every point of the curve, shape (P,), in squared logits per image.
    """

    name: str
    out_features: int
    in_features: int
    saliency: Floats
    squared_norm: Floats
    macs: Integers
    cost: Integers
    limit: int
    sparsity: Floats
    blocks_pruned: Integers
    distortion: Floats

    @property
    def blocks(self) -> int:
        return len(self.cost)

    @cached_property
    def cost_removed(self) -> Integers:
        """Cost that is gone when the first 0 .. B blocks are pruned, shape (B + 1,)."""
        return np.append(0, np.cumsum(self.cost))

    @cached_property
    def distortion_by_count(self) -> Floats:
        """Distortion when the first 0 .. L blocks are pruned, shape (L + 1,): the curve, linear between its points."""
        return np.interp(np.arange(self.limit + 1), self.blocks_pruned, self.distortion)


def allocate(curves: pd.DataFrame, blocks: pd.DataFrame, costs: pd.DataFrame, budget: Budget) -> pd.DataFrame:
    """Gives every prunable layer its number of blocks under a budget.

    Args:
        curves: Rate-distortion curves of the prunable layers, schema ``CURVES``.
        blocks: Blocks of the same layers, schema ``BLOCKS``.
        costs: All layers of the model, schema ``COSTS``; those without blocks stay dense and count.
        budget: Target and allocator.

    Returns:
        Schema ``ALLOCATION``, in the order of ``costs``.

    Raises:
        LpvitError: The budget cannot be met, or a distortion or a score is not finite.
    """
    layers = _prunable_layers(curves, blocks, costs, budget)
    total, required = _requirement(layers, costs, budget)
    _check_reachable(layers, total, required, budget)
    pruned = _blocks_pruned(layers, budget, required)
    removed = _cost_removed(layers, pruned)
    target, achieved = _as_stated(budget, removed, total)
    logger.info("%s: target %.6g, achieved %.6g", budget.allocator, target, achieved)
    rows = [
        {
            "layer": layer.name,
            "blocks": layer.blocks,
            "blocks_kept": layer.blocks - count,
            "keep_ratio": (layer.blocks - count) / layer.blocks,
            "macs_dense": int(layer.macs.sum()),
            "macs_kept": int(layer.macs[count:].sum()),
            "target": target,
            "achieved": achieved,
        }
        for layer, count in zip(layers, pruned, strict=True)
    ]
    return pd.DataFrame(rows)


def blocks_always_kept(blocks: int, min_keep_ratio: float) -> int:
    """Blocks of a layer that no budget may take: ``min_keep_ratio`` of them, rounded up, and at least one."""
    return max(1, math.ceil(_fraction(min_keep_ratio) * blocks))


# --- from tables to layers -------------------------------------------------------------------------------------------


def _prunable_layers(curves: pd.DataFrame, blocks: pd.DataFrame, costs: pd.DataFrame, budget: Budget) -> list[Layer]:
    curve_of = {str(name): curve for name, curve in curves.groupby("layer")}
    blocks_of = {str(name): block for name, block in blocks.groupby("layer")}
    prunable = costs[costs["layer"].isin(blocks_of)].to_dict("records")
    if not {cost["layer"] for cost in prunable} == curve_of.keys() == blocks_of.keys():
        raise ValueError("curves, blocks and costs do not speak of the same layers")
    kept_at_least = _floors([len(blocks_of[cost["layer"]]) for cost in prunable], budget)
    layers = []
    for cost, kept in zip(prunable, kept_at_least, strict=True):
        name = cost["layer"]
        curve, block = curve_of[name], in_pruning_order(blocks_of[name])
        _check_finite(name, curve["distortion"], block["saliency"], block["squared_norm"])
        weights = block["weights"].to_numpy(np.int64)
        macs = weights * cost["tokens"]
        layers.append(
            Layer(
                name=name,
                out_features=cost["out_features"],
                in_features=cost["in_features"],
                saliency=block["saliency"].to_numpy(),
                squared_norm=block["squared_norm"].to_numpy(),
                macs=macs,
                cost=weights if budget.macs is None else macs,
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


def _check_finite(layer: str, *columns: pd.Series) -> None:
    for column in columns:
        if not np.isfinite(column).all():
            raise LpvitError(
                f"layer '{layer}': {column.name} is not finite; check the dense model, its weights or outputs overflow"
            )


# --- the budget ------------------------------------------------------------------------------------------------------


def _requirement(layers: Sequence[Layer], costs: pd.DataFrame, budget: Budget) -> tuple[int, int]:
    """What the budget is a share of, and how much of it must go: MACs of the model, or weights of prunable layers."""
    if budget.macs is not None:
        total = int(costs["macs"].sum())
        return total, total - math.floor(_fraction(budget.macs) * total)
    assert budget.sparsity is not None
    total = sum(int(layer.cost.sum()) for layer in layers)
    return total, math.ceil(_fraction(budget.sparsity) * total)


def _as_stated(budget: Budget, removed: int, total: int) -> tuple[float, float]:
    """Target and achieved in the terms of the budget: share of MACs kept, or share of weights removed."""
    if budget.macs is not None:
        return budget.macs, (total - removed) / total
    assert budget.sparsity is not None
    return budget.sparsity, removed / total


def _check_reachable(layers: Sequence[Layer], total: int, required: int, budget: Budget) -> None:
    most = _cost_removed(layers, [layer.limit for layer in layers])
    if most >= required:
        return
    target, reachable = _as_stated(budget, most, total)
    if budget.macs is not None:  # rounded so that the number in the message can be met
        found = f"macs {target:g} is impossible, at least {math.ceil(reachable * 1e4) / 1e4:.4f} stay"
        change = "raise 'macs'"
    else:
        found = f"sparsity {target:g} is impossible, at most {math.floor(reachable * 1e4) / 1e4:.4f} can go"
        change = "lower 'sparsity'"
    floors = f"min_keep_ratio {budget.min_keep_ratio:g}"
    if budget.allocator == "uniform_plus":
        floors += f", the first layer dense and {UNIFORM_PLUS_LAST_KEEP_RATIO:g} of the last one kept"
    raise LpvitError(
        f"budget: {found} ('{budget.allocator}' with {floors}); {change}, lower 'min_keep_ratio' or prune more 'layers'"
    )


def _cost_removed(layers: Sequence[Layer], pruned: Iterable[int]) -> int:
    return sum(int(layer.cost_removed[count]) for layer, count in zip(layers, pruned, strict=True))


def _fraction(share: float) -> Fraction:
    """The number that was meant, not the binary one next to it: 7 % of 100 blocks are 7, not 8."""
    return Fraction(share).limit_denominator(10**9)


def _blocks_pruned(layers: Sequence[Layer], budget: Budget, required: int) -> list[int]:
    """What the allocator decides: blocks pruned in every layer, which together remove what is required."""
    if budget.allocator == "exact":
        return _exact(layers, required)
    return _prune_by_priority(layers, _priorities(layers, budget, required), required)


def _priorities(layers: Sequence[Layer], budget: Budget, required: int) -> list[Floats]:
    """The rule of the allocator: priorities of the first L blocks of every layer, shape (L,), non-decreasing."""
    if budget.allocator == "lpvit":
        return _lpvit_priorities(layers, budget, required)
    return [_PRIORITY[budget.allocator](layer) for layer in layers]


def _prune_by_priority(layers: Sequence[Layer], priorities: Sequence[Floats], required: int) -> list[int]:
    """Blocks pruned in every layer when blocks go by rising priority until ``required`` is gone.

    Args:
        layers: Prunable layers.
        priorities: Of the first L blocks of every layer, shape (L,), non-decreasing.
        required: Cost that must go.
    """
    owners = np.repeat(np.arange(len(layers)), [layer.limit for layer in layers])
    cost = np.concatenate([layer.cost[: layer.limit] for layer in layers])
    order = np.argsort(np.concatenate(priorities), kind="stable")  # ties: earlier layers first
    count = int(np.searchsorted(np.cumsum(cost[order]), required)) + 1 if required > 0 else 0
    return [int(pruned) for pruned in np.bincount(owners[order[:count]], minlength=len(layers))]


# --- rules that look at one layer at a time --------------------------------------------------------------------------


def _uniform_priority(layer: Layer) -> Floats:
    """The same sparsity in every layer.

    Uniform+ is this with two floors: the first layer stays dense and the last keeps a fifth (Gale et al., 2019, The
    State of Sparsity, section 4). Here these are the first and the last *prunable* layer.
    """
    return _proportional_priority(layer, density=1.0)


def _erk_priority(layer: Layer) -> Floats:
    """Keep ratio proportional to (O + I) / (O * I), at most 1 (Erdos-Renyi-Kernel; Evci et al., 2020, RigL)."""
    sides, weights = layer.out_features + layer.in_features, layer.out_features * layer.in_features
    return _proportional_priority(layer, density=sides / weights)


def _proportional_priority(layer: Layer, density: float) -> Floats:
    """Priorities under which layers keep ``min(1, scale * density)`` of their blocks, for one falling scale.

    Of B blocks, the one that has k more salient ones leaves when ``scale * density`` falls below (k + 1/2) / B. Layers
    at 1 stay dense while the scale of the others falls, which is the redistribution that ERK asks for.
    """
    more_salient = np.arange(layer.blocks, dtype=np.float64)[::-1][: layer.limit]
    return -(more_salient + 0.5) / (layer.blocks * density)


def _global_priority(layer: Layer) -> Floats:
    """One threshold on the saliency of blocks over all layers."""
    return layer.saliency[: layer.limit]


def _lamp_priority(layer: Layer) -> Floats:
    """One threshold on LAMP scores: squared norm over the sum of those not smaller (Lee et al., 2021, equation 1).

    The scores decide how many blocks of a layer go; which ones is for the saliency to say, as for all allocators.
    """
    norms = np.sort(layer.squared_norm)
    not_smaller = np.cumsum(norms[::-1])[::-1]
    scores = np.divide(norms, not_smaller, out=np.zeros_like(norms), where=not_smaller > 0)
    return scores[: layer.limit]


def _lagrangian_priority(layer: Layer) -> Floats:
    """Slope, in distortion per cost, of the lower convex hull of the curve over every block.

    Pruning by rising slope minimises ``sum of distortion + lagrange_multiplier * cost kept`` at every multiplier
    (Shoham and Gersho, 1988). The curve ends at the limit, and is linear between its points.
    """
    x, first = np.unique(layer.blocks_pruned, return_index=True)  # a small layer has fewer blocks than points
    y = layer.distortion[first]
    inside = x < layer.limit
    pruned, distortion = np.append(x[inside], layer.limit), np.append(y[inside], np.interp(layer.limit, x, y))
    vertices, slopes = lower_hull(layer.cost_removed[pruned], distortion)
    return np.repeat(slopes, np.diff(pruned[vertices]))


def lower_hull(x: NDArray[Any], y: Floats) -> tuple[list[int], list[float]]:
    """Vertices of the lower convex hull of points by rising x, and the slopes between them, which rise strictly.

    Args:
        x: Shape (P,), strictly rising.
        y: Shape (P,).
    """
    vertices: list[int] = []
    slopes: list[float] = []
    for point in range(len(x)):
        while vertices:
            slope = float((y[point] - y[vertices[-1]]) / (x[point] - x[vertices[-1]]))
            if not slopes or slopes[-1] < slope:
                slopes.append(slope)
                break
            vertices.pop()
            slopes.pop()
        vertices.append(point)
    return vertices, slopes


def _exact(layers: Sequence[Layer], required: int) -> list[int]:
    """Least sum of the curves among all allocations that meet the budget to one block; curves need not be convex."""
    curves = [
        Curve(layer.cost_removed[: layer.limit + 1], layer.distortion_by_count, layer.blocks_pruned) for layer in layers
    ]
    start = _prune_by_priority(layers, [_lagrangian_priority(layer) for layer in layers], required)
    return least_distortion(curves, required, start)


_PRIORITY: dict[str, Callable[[Layer], Floats]] = {
    "lagrangian": _lagrangian_priority,
    "uniform": _uniform_priority,
    "uniform_plus": _uniform_priority,
    "global": _global_priority,
    "lamp": _lamp_priority,
    "erk": _erk_priority,
}


# --- lpvit -----------------------------------------------------------------------------------------------------------


def _lpvit_priorities(layers: Sequence[Layer], budget: Budget, required: int) -> list[Floats]:
    """LPViT's rule: every layer takes the point of its curve whose slope is nearest to one Lagrange multiplier.

    With the power term the multiplier of a layer becomes ``lambda - beta * dL_power/dsparsity``; pruning lowers power,
    so this raises it, most for layers of much power. Bisection brackets lambda as closely as floats allow. Between the
    two sides, where layers jump from one point to another, these move in proportion until the budget is met.
    """
    slopes = [
        curve_slopes(smooth(layer.distortion, budget.smoothing), layer.sparsity, budget.stencil_step)
        for layer in layers
    ]
    power_slopes = [-power_term(layer.blocks, layer.in_features) for layer in layers]
    beta = _power_weight(budget, slopes, power_slopes)
    combined = [slope + beta * power for slope, power in zip(slopes, power_slopes, strict=True)]

    def pruned_at(multiplier: float) -> list[int]:
        points = [int(np.argmin(np.abs(slope - multiplier))) for slope in combined]
        return [min(int(layer.blocks_pruned[point]), layer.limit) for layer, point in zip(layers, points, strict=True)]

    lowest, highest = min(map(np.min, combined)), max(map(np.max, combined))
    before, after = _bracket(layers, pruned_at, required, float(lowest), float(highest))
    return [_between(low, high, layer.limit) for layer, low, high in zip(layers, before, after, strict=True)]


def smooth(values: Floats, newest_weight: float) -> Floats:
    """Exponential smoothing, corrected for its start: each point is a mean over itself and those before it.

    ``s_i = sum_j a (1-a)^(i-j) y_j / sum_j a (1-a)^(i-j)`` over j = 0 .. i.

    Args:
        values: y, shape (P,).
        newest_weight: a, in (0, 1]; 1 changes nothing.
    """
    smoothed, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        total = (1 - newest_weight) * total + newest_weight * value
        weight = (1 - newest_weight) * weight + newest_weight
        smoothed[i] = total / weight
    return smoothed


def curve_slopes(values: Floats, positions: Floats, step: int) -> Floats:
    """Slope at every point by a five-point stencil: the point, two neighbours at ``step`` and two half-way to them.

    Central differences over the near and the far pair, D(a) and D(b), are combined so that the error of second order
    vanishes: ``(b^2 D(a) - a^2 D(b)) / (b^2 - a^2)``; for b = 2a this is the textbook formula. Within ``step`` of an
    end the far pair moves in; next to an end one central difference remains, and at an end a one-sided one.

    Args:
        values: Shape (P,), P >= 2.
        positions: Shape (P,), evenly spaced.
        step: In points.

    Returns:
        Shape (P,), in units of values per unit of position.
    """
    last = len(values) - 1

    def difference(low: int, high: int) -> float:
        return float((values[high] - values[low]) / (positions[high] - positions[low]))

    def slope(i: int) -> float:
        far = min(step, i, last - i)
        near = far // 2
        if far < 2:
            return difference(max(i - 1, 0), min(i + 1, last))
        inner, outer = difference(i - near, i + near), difference(i - far, i + far)
        return (far**2 * inner - near**2 * outer) / (far**2 - near**2)

    return np.array([slope(i) for i in range(len(values))])


def _power_weight(budget: Budget, slopes: Sequence[Floats], power_slopes: Sequence[float]) -> float:
    """beta; `auto` is the mean largest slope of the distortion curves over that of the power curves, both unsigned."""
    if budget.power_beta == "off":
        return 0.0
    if budget.power_beta == "auto":
        return float(np.mean([np.max(slope) for slope in slopes]) / np.mean(np.abs(power_slopes)))
    return budget.power_beta


def _bracket(
    layers: Sequence[Layer], pruned_at: Callable[[float], list[int]], required: int, low: float, high: float
) -> tuple[list[int], list[int]]:
    """Two neighbouring allocations in blocks pruned: the first is short of the budget, the second meets it.

    Below the least slope of all, nothing is pruned; above the largest, all that may be. The rule of the nearest slope
    does not say so of curves that are not convex, but without it such curves would put budgets out of reach.

    Args:
        layers: Prunable layers.
        pruned_at: Blocks pruned in every layer at a Lagrange multiplier.
        required: Cost that must go.
        low: Least slope.
        high: Largest slope.
    """
    before, after = pruned_at(low), pruned_at(high)
    if _cost_removed(layers, before) >= required:
        return [0] * len(layers), before
    if _cost_removed(layers, after) < required:
        return after, [layer.limit for layer in layers]
    while low < (middle := (low + high) / 2) < high:
        pruned = pruned_at(middle)
        if _cost_removed(layers, pruned) < required:
            low, before = middle, pruned
        else:
            high, after = middle, pruned
    return before, after


def _between(low: int, high: int, limit: int) -> Floats:
    """Priorities under which a layer has gone from ``low`` to ``high`` blocks pruned as priority goes from 0 to 1."""
    steps = np.arange(1, limit + 1)
    if low < high:
        return (steps - low) / (high - low)
    return np.where(steps <= high, 0.0, np.inf)
