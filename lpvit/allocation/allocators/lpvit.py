"""The paper's allocator. Pure NumPy.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from lpvit.allocation.priority import PriorityAllocator
from lpvit.allocation.problem import Floats, Layer, Requirement
from lpvit.costs.energy import power_term
from lpvit.settings import Fraction


def _unquoted(value: Any) -> Any:
    """The original word where YAML parses a bare `off` or `on` as a boolean."""
    return {False: "off", True: "on"}[value] if isinstance(value, bool) else value


class SlopeRule(PriorityAllocator):
    """LPViT's rule: every layer takes the point of its curve whose slope is nearest to one Lagrange multiplier.

    With the power term the multiplier of a layer becomes ``lambda - beta * dL_power/dsparsity``; pruning lowers power,
    so this raises it, most for layers with much power. Bisection brackets lambda to floating-point precision. Layers
    that differ between the two sides of the bracket are interpolated in proportion until the budget is met.
    """

    name: Literal["lpvit"] = "lpvit"
    smoothing: Fraction = Field(
        0.5, description="weight of the newest point in the exponential smoothing of curves; 1 is none"
    )
    stencil_step: int = Field(4, gt=0, description="distance of the five stencil points, in curve points")
    power_beta: Annotated[Literal["off", "auto"] | Annotated[float, Field(ge=0)], BeforeValidator(_unquoted)] = Field(
        "off", description="weight of the power term: `off`, `auto` or a number"
    )

    def priorities(self, layers: Sequence[Layer], requirement: Requirement) -> list[Floats]:
        slopes = [
            curve_slopes(smooth(layer.distortion, self.smoothing), layer.sparsity, self.stencil_step)
            for layer in layers
        ]
        power_slopes = [-power_term(layer.blocks, layer.in_features) for layer in layers]
        beta = _power_weight(self.power_beta, slopes, power_slopes)
        combined = [slope + beta * power for slope, power in zip(slopes, power_slopes, strict=True)]

        def pruned_at(multiplier: float) -> list[int]:
            points = [int(np.argmin(np.abs(slope - multiplier))) for slope in combined]
            return [
                min(int(layer.blocks_pruned[point]), layer.limit) for layer, point in zip(layers, points, strict=True)
            ]

        lowest, highest = min(map(np.min, combined)), max(map(np.max, combined))
        before, after = _bracket(layers, pruned_at, requirement, float(lowest), float(highest))
        return [_between(low, high, layer.limit) for layer, low, high in zip(layers, before, after, strict=True)]


def smooth(values: Floats, newest_weight: float) -> Floats:
    """Exponential smoothing with bias correction: each point is a mean over itself and those before it.

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
    end the far pair is moved inwards; next to an end one central difference is used, and at an end a one-sided one.

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


def _power_weight(
    power_beta: Literal["off", "auto"] | float, slopes: Sequence[Floats], power_slopes: Sequence[float]
) -> float:
    """beta; `auto` is the mean largest slope of the distortion curves over that of the power curves, both unsigned."""
    if power_beta == "off":
        return 0.0
    if power_beta == "auto":
        return float(np.mean([np.max(slope) for slope in slopes]) / np.mean(np.abs(power_slopes)))
    return power_beta


def _bracket(
    layers: Sequence[Layer],
    pruned_at: Callable[[float], list[int]],
    requirement: Requirement,
    low: float,
    high: float,
) -> tuple[list[int], list[int]]:
    """Two neighbouring allocations in blocks pruned: the first does not meet the budget, the second does.

    Below the least slope of all curves nothing is pruned; above the largest, everything that may be. For non-convex
    curves this is an addition to the rule of the nearest slope; without it some budgets could not be met.

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
    """Priorities that take a layer from ``low`` to ``high`` blocks pruned as the priority goes from 0 to 1."""
    steps = np.arange(1, limit + 1)
    if low < high:
        return (steps - low) / (high - low)
    return np.where(steps <= high, 0.0, np.inf)
