"""How many blocks of every layer stay under a budget, or under two at once. Pure NumPy and pandas.

Every allocator but `exact`, which searches, is a rule that gives each block a priority. Within a layer, blocks are
pruned by rising saliency and priorities never fall along that order; over the whole model, blocks are pruned by rising
priority until the budget is met. So every allocator meets every budget to one block.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lpvit.allocation.knapsack import Curve, least_distortion
from lpvit.allocation.problem import Floats, Layer, Requirement, as_fraction, requirement
from lpvit.allocation.settings import Budget
from lpvit.curves.ranking import in_pruning_order
from lpvit.errors import LpvitError
from lpvit.models.energy import HOROWITZ, power_term
from lpvit.models.settings import Energy

logger = logging.getLogger(__name__)

UNIFORM_PLUS_LAST_KEEP_RATIO = 0.2
BRACKET = 1e-9  # of the weight of two budgets
MULTIPLIERS = 1e-4, 1e2  # between which `exact` seeks that of the other of two budgets, see `_exact_at`
STEPS = 10  # of this bisection


def allocate(
    curves: pd.DataFrame,
    blocks: pd.DataFrame,
    costs: pd.DataFrame,
    budget: Budget,
    energy: Energy = HOROWITZ,
    latency: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Gives every prunable layer its number of blocks under a budget, or under two.

    Args:
        curves: Rate-distortion curves of the prunable layers, schema ``CURVES``.
        blocks: Blocks of the same layers, schema ``BLOCKS``.
        costs: All layers of the model, schema ``COSTS``; those without blocks stay dense and count.
        budget: Targets and allocator.
        energy: Constants of the energy model, for a budget in energy.
        latency: Measured times, schema ``LATENCY``, of one block shape; for a budget in latency.

    Returns:
        Schema ``ALLOCATION``, in the order of ``costs``.

    Raises:
        LpvitError: The budget cannot be met, a layer has not been timed, or a distortion or a score is not finite.
    """
    layers, requirements = _problem(curves, blocks, costs, budget, energy, latency)
    pruned = _blocks_pruned(layers, budget, requirements)
    reached = _reached(requirements, pruned)
    rows = [
        {
            "layer": layer.name,
            "blocks": layer.blocks,
            "blocks_kept": layer.blocks - count,
            "keep_ratio": (layer.blocks - count) / layer.blocks,
            "macs_dense": int(layer.weights_removed[-1]) * layer.tokens,
            "macs_kept": int(layer.weights_removed[-1] - layer.weights_removed[count]) * layer.tokens,
            **reached,
        }
        for layer, count in zip(layers, pruned, strict=True)
    ]
    for each in requirements:
        achieved = each.as_stated(each.gone(pruned))
        logger.info("%s: %s target %.6g, achieved %.6g", budget.allocator, each.quantity, each.target, achieved)
    return pd.DataFrame(rows)


def frontier(
    curves: pd.DataFrame,
    blocks: pd.DataFrame,
    costs: pd.DataFrame,
    budget: Budget,
    energy: Energy = HOROWITZ,
    latency: pd.DataFrame | None = None,
    *,
    levels: Sequence[float] = (0.5, 1.0, 2.0),
    points: int = 21,
) -> pd.DataFrame:
    """What two budgets could be at equal distortion: the trade of one for the other.

    At each weight of the two, blocks leave as `lagrangian` takes them until the distortion of a level is reached.

    Args:
        curves: As in `allocate`, like what follows.
        blocks: Blocks of the same layers.
        costs: All layers of the model.
        budget: Two targets.
        energy: Constants of the energy model.
        latency: Measured times.
        levels: Distortions, as shares of that of the allocation that meets both budgets.
        points: Weights from 0 to 1.

    Returns:
        Schema ``FRONTIER``, by level and weight.

    Raises:
        LpvitError: As in `allocate`.
    """
    layers, requirements = _problem(curves, blocks, costs, budget, energy, latency)
    first, second = requirements
    distortion = _total_distortion(layers, _blocks_pruned(layers, budget, requirements))
    rows = []
    for level in levels:
        for weight in np.linspace(0, 1, points).tolist():
            pruned = _prune_until_distorted(layers, _combined(first, second, weight), level * distortion)
            rows.append(
                {
                    "level": level,
                    "weight": weight,
                    "distortion": _total_distortion(layers, pruned),
                    "first": first.as_stated(first.gone(pruned)),
                    "second": second.as_stated(second.gone(pruned)),
                }
            )
    return pd.DataFrame(rows)


def blocks_always_kept(blocks: int, min_keep_ratio: float) -> int:
    """Blocks of a layer that no budget may take: ``min_keep_ratio`` of them, rounded up, and at least one."""
    return max(1, math.ceil(as_fraction(min_keep_ratio) * blocks))


# --- from tables to layers and requirements --------------------------------------------------------------------------


def _problem(
    curves: pd.DataFrame,
    blocks: pd.DataFrame,
    costs: pd.DataFrame,
    budget: Budget,
    energy: Energy,
    latency: pd.DataFrame | None,
) -> tuple[list[Layer], list[Requirement]]:
    """The prunable layers, and one or two requirements that can be met."""
    layers = _prunable_layers(curves, blocks, costs, budget)
    requirements = [
        requirement(quantity, target, layers, costs, energy, latency) for quantity, target in budget.targets.items()
    ]
    for each in requirements:
        _check_reachable(layers, each, budget)
    return layers, requirements


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


def _reached(requirements: Sequence[Requirement], pruned: Sequence[int]) -> dict[str, Any]:
    """Columns of ``ALLOCATION`` that are the same for all layers."""
    first, *others = (
        {"budget": each.quantity, "target": each.target, "achieved": each.as_stated(each.gone(pruned))}
        for each in requirements
    )
    second = others[0] if others else {"budget": None, "target": math.nan, "achieved": math.nan}
    return {**first, **{f"second_{name}": value for name, value in second.items()}}


# --- the budget ------------------------------------------------------------------------------------------------------


def _blocks_pruned(layers: Sequence[Layer], budget: Budget, requirements: Sequence[Requirement]) -> list[int]:
    """What the allocator decides: blocks pruned in every layer, which together meet all requirements."""
    if len(requirements) == 2:
        first, second = requirements
        return (_exact_of_two if budget.allocator == "exact" else _lagrangian_of_two)(layers, first, second)
    (only,) = requirements
    if budget.allocator == "exact":
        return _exact(layers, only)
    return _prune_by_priority(layers, _priorities(layers, budget, only), only)


def _priorities(layers: Sequence[Layer], budget: Budget, requirement: Requirement) -> list[Floats]:
    """The rule of the allocator: priorities of the first L blocks of every layer, shape (L,), non-decreasing."""
    if budget.allocator == "lagrangian":
        return _lagrangian_priorities(layers, requirement)
    if budget.allocator == "lpvit":
        return _lpvit_priorities(layers, budget, requirement)
    return [_PRIORITY[budget.allocator](layer) for layer in layers]


def _prune_by_priority(layers: Sequence[Layer], priorities: Sequence[Floats], *requirements: Requirement) -> list[int]:
    """Blocks pruned in every layer when blocks go by rising priority until all requirements are met.

    Args:
        layers: Prunable layers.
        priorities: Of the first L blocks of every layer, shape (L,), non-decreasing.
        requirements: One or more.
    """
    owners, order = _order(layers, priorities)
    counts = [
        np.searchsorted(np.cumsum(_block_costs(layers, each)[order]), each.required) + 1
        for each in requirements
        if each.required > 0
    ]
    return _per_layer(layers, owners[order[: max(counts, default=0)]])


def _order(layers: Sequence[Layer], priorities: Sequence[Floats]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of the layer that each block belongs to, and the blocks by rising priority; ties: earlier layers first."""
    owners = np.repeat(np.arange(len(layers)), [layer.limit for layer in layers])
    return owners, np.argsort(np.concatenate(priorities), kind="stable")


def _block_costs(layers: Sequence[Layer], requirement: Requirement) -> NDArray[Any]:
    """Cost that goes with each block that may be pruned, layer after layer."""
    return np.concatenate(
        [np.diff(removed[: layer.limit + 1]) for layer, removed in zip(layers, requirement.removed, strict=True)]
    )


def _per_layer(layers: Sequence[Layer], owners: NDArray[np.int64]) -> list[int]:
    return [int(pruned) for pruned in np.bincount(owners, minlength=len(layers))]


def _total_distortion(layers: Sequence[Layer], pruned: Sequence[int]) -> float:
    return float(sum(layer.distortion_by_count[count] for layer, count in zip(layers, pruned, strict=True)))


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


def _lagrangian_priorities(layers: Sequence[Layer], requirement: Requirement) -> list[Floats]:
    """Slope, in distortion per cost, of the lower convex hull of every curve over every block.

    Pruning by rising slope minimises ``sum of distortion + lagrange_multiplier * cost kept`` at every multiplier
    (Shoham and Gersho, 1988).
    """
    return [_hull_slopes(layer, removed) for layer, removed in zip(layers, requirement.removed, strict=True)]


def _hull_slopes(layer: Layer, removed: NDArray[Any]) -> Floats:
    """Of the first L blocks, shape (L,). The curve ends at the limit, and is linear between its points."""
    x, first = np.unique(layer.blocks_pruned, return_index=True)  # a small layer has fewer blocks than points
    y = layer.distortion[first]
    inside = x < layer.limit
    pruned, distortion = np.append(x[inside], layer.limit), np.append(y[inside], np.interp(layer.limit, x, y))
    vertices, slopes = lower_hull(removed[pruned], distortion)
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


def _exact(layers: Sequence[Layer], requirement: Requirement) -> list[int]:
    """Least sum of the curves among all allocations that meet the budget to one block; curves need not be convex."""
    start = _prune_by_priority(layers, _lagrangian_priorities(layers, requirement), requirement)
    return _knapsack(layers, requirement, [layer.distortion_by_count for layer in layers], start)


def _knapsack(
    layers: Sequence[Layer], requirement: Requirement, distortions: Sequence[Floats], start: Sequence[int]
) -> list[int]:
    curves = [
        Curve(removed[: layer.limit + 1], distortion, layer.blocks_pruned)
        for layer, removed, distortion in zip(layers, requirement.removed, distortions, strict=True)
    ]
    return least_distortion(curves, math.ceil(requirement.required), start)


_PRIORITY: dict[str, Callable[[Layer], Floats]] = {
    "uniform": _uniform_priority,
    "uniform_plus": _uniform_priority,
    "global": _global_priority,
    "lamp": _lamp_priority,
    "erk": _erk_priority,
}


# --- lpvit -----------------------------------------------------------------------------------------------------------


def _lpvit_priorities(layers: Sequence[Layer], budget: Budget, requirement: Requirement) -> list[Floats]:
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
    before, after = _bracket(layers, pruned_at, requirement, float(lowest), float(highest))
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
    layers: Sequence[Layer],
    pruned_at: Callable[[float], list[int]],
    requirement: Requirement,
    low: float,
    high: float,
) -> tuple[list[int], list[int]]:
    """Two neighbouring allocations in blocks pruned: the first is short of the budget, the second meets it.

    Below the least slope of all, nothing is pruned; above the largest, all that may be. The rule of the nearest slope
    does not say so of curves that are not convex, but without it such curves would put budgets out of reach.

    Args:
        layers: Prunable layers.
        pruned_at: Blocks pruned in every layer at a Lagrange multiplier.
        requirement: Budget to meet.
        low: Least slope.
        high: Largest slope.
    """
    before, after = pruned_at(low), pruned_at(high)
    if requirement.is_met(before):
        return [0] * len(layers), before
    if not requirement.is_met(after):
        return after, [layer.limit for layer in layers]
    while low < (middle := (low + high) / 2) < high:
        pruned = pruned_at(middle)
        if requirement.is_met(pruned):
            high, after = middle, pruned
        else:
            low, before = middle, pruned
    return before, after


def _between(low: int, high: int, limit: int) -> Floats:
    """Priorities under which a layer has gone from ``low`` to ``high`` blocks pruned as priority goes from 0 to 1."""
    steps = np.arange(1, limit + 1)
    if low < high:
        return (steps - low) / (high - low)
    return np.where(steps <= high, 0.0, np.inf)


# --- two budgets -----------------------------------------------------------------------------------------------------


def _lagrangian_of_two(layers: Sequence[Layer], first: Requirement, second: Requirement) -> list[int]:
    """`lagrangian` with one multiplier for each budget: minimises ``distortion + mu_1 * cost_1 + mu_2 * cost_2``.

    The ratio of the multipliers is the weight of the two costs in a combined one, whose own budget is then met. Where
    the second cost alone (weight 0) or the first alone (weight 1) meets both budgets, the multiplier of the other is
    zero (complementary slackness). Else bisection brackets the weight at which both bind. The two sides of the bracket
    have the same combined cost, and so has what lies between them, where both budgets are met.
    """

    def pruned_at(weight: float) -> list[int]:
        combined = _combined(first, second, weight)
        return _prune_by_priority(layers, _lagrangian_priorities(layers, combined), combined)

    if second.is_met(after := pruned_at(1.0)):
        return after
    if first.is_met(before := pruned_at(0.0)):
        return before
    low, high = 0.0, 1.0
    while high - low > BRACKET:
        middle = (low + high) / 2
        if first.is_met(pruned := pruned_at(middle)):
            high, after = middle, pruned
        else:
            low, before = middle, pruned
    short, over = first.gone(before), first.gone(after)
    share = (first.required - short) / (over - short)
    between = [math.ceil(low + share * (high - low)) for low, high in zip(before, after, strict=True)]
    return _give_back(layers, [first, second], _meet(layers, _combined(first, second, high), [first, second], between))


def _combined(first: Requirement, second: Requirement, weight: float) -> Requirement:
    """One requirement for two: the mean of their costs, each as a share of its total."""
    scales = weight / first.total, (1 - weight) / second.total
    pairs = zip(first.removed, second.removed, strict=True)
    removed = tuple(scales[0] * of_first + scales[1] * of_second for of_first, of_second in pairs)
    required = scales[0] * first.required + scales[1] * second.required
    return Requirement("combined", math.nan, 1, required, removed)


def _meet(
    layers: Sequence[Layer], combined: Requirement, requirements: Sequence[Requirement], pruned: Sequence[int]
) -> list[int]:
    """Prunes on from an allocation, in the order of a combined cost, as far as a requirement is not met."""
    priorities = _lagrangian_priorities(layers, combined)
    for priority, count in zip(priorities, pruned, strict=True):
        priority[:count] = -np.inf
    least = _prune_by_priority(layers, priorities, *requirements)
    return [max(pair) for pair in zip(least, pruned, strict=True)]


def _give_back(layers: Sequence[Layer], requirements: Sequence[Requirement], pruned: Sequence[int]) -> list[int]:
    """Restores blocks, those that lower the distortion most first, as long as all requirements stay met."""
    counts = list(pruned)
    while True:
        best = None
        for number, layer in enumerate(layers):
            fewer = [count - (i == number) for i, count in enumerate(counts)]
            if counts[number] and all(each.is_met(fewer) for each in requirements):
                saved = layer.distortion_by_count[counts[number]] - layer.distortion_by_count[fewer[number]]
                best = max(best or (-math.inf, fewer), (saved, fewer))
        if best is None:
            return counts
        counts = best[1]


def _exact_of_two(layers: Sequence[Layer], first: Requirement, second: Requirement) -> list[int]:
    """`exact` in one budget, with a multiplier for the other.

    Where one budget alone meets both, its optimum is that of both. Else bisection seeks the least multiplier at which
    the other is met too. The outcome is never worse than that of `lagrangian`; but since one number stands for a whole
    budget, a gap to the optimum may remain (the duality gap, below the distortion of a few blocks on convex curves).
    """
    candidates = [start := _lagrangian_of_two(layers, first, second)]
    for one, other in ((first, second), (second, first)):
        if other.is_met(alone := _exact(layers, one)):
            return min(start, alone, key=lambda pruned: _total_distortion(layers, pruned))
    for one, other in ((first, second), (second, first)):
        low, high = MULTIPLIERS
        for _ in range(STEPS):
            pruned = _exact_at(layers, one, other, multiplier := math.sqrt(low * high), start)
            if other.is_met(pruned):
                high = multiplier
                candidates.append(pruned)
            else:
                low = multiplier
    return min(candidates, key=lambda pruned: _total_distortion(layers, pruned))


def _exact_at(
    layers: Sequence[Layer], one: Requirement, other: Requirement, multiplier: float, start: Sequence[int]
) -> list[int]:
    """Meets one budget, at a multiplier of the other: the ranges of all curves for a share of its total."""
    price = multiplier * sum(float(np.ptp(layer.distortion)) for layer in layers) / other.total
    paid = [
        layer.distortion_by_count - price * removed[: layer.limit + 1]
        for layer, removed in zip(layers, other.removed, strict=True)
    ]
    return _knapsack(layers, one, paid, start)


def _prune_until_distorted(layers: Sequence[Layer], requirement: Requirement, distortion: float) -> list[int]:
    """Blocks pruned in every layer when they go as `lagrangian` takes them, up to a sum of the convex hulls."""
    priorities = _lagrangian_priorities(layers, requirement)
    owners, order = _order(layers, priorities)
    rise = np.concatenate(priorities) * _block_costs(layers, requirement)
    count = int(np.searchsorted(np.cumsum(rise[order]), distortion, side="right"))
    return _per_layer(layers, owners[order[:count]])
