"""Two budgets at once, with one multiplier each. Pure NumPy.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

import math
from collections.abc import Sequence

import numpy as np

from lpvit.allocation.hull import lagrangian_priorities
from lpvit.allocation.priority import prune_by_priority
from lpvit.allocation.problem import Layer, Requirement

BRACKET = 1e-9  # of the weight of two budgets


def lagrangian_of_two(layers: Sequence[Layer], first: Requirement, second: Requirement) -> list[int]:
    """`lagrangian` with one multiplier for each budget: minimises ``distortion + mu_1 * cost_1 + mu_2 * cost_2``.

    The ratio of the multipliers is the weight of the two costs in a combined one, whose own budget is then met. Where
    the second cost alone (weight 0) or the first alone (weight 1) meets both budgets, the multiplier of the other is
    zero (complementary slackness). Else bisection brackets the weight at which both bind. The two sides of the bracket
    have the same combined cost, and so have the allocations between them, where both budgets are met.
    """

    def pruned_at(weight: float) -> list[int]:
        combined = combine(first, second, weight)
        return prune_by_priority(layers, lagrangian_priorities(layers, combined), combined)

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
    return _give_back(layers, [first, second], _meet(layers, combine(first, second, high), [first, second], between))


def combine(first: Requirement, second: Requirement, weight: float) -> Requirement:
    """One requirement for two: the mean of their costs, each as a share of its total."""
    scales = weight / first.total, (1 - weight) / second.total
    pairs = zip(first.removed, second.removed, strict=True)
    removed = tuple(scales[0] * of_first + scales[1] * of_second for of_first, of_second in pairs)
    required = scales[0] * first.required + scales[1] * second.required
    return Requirement("combined", math.nan, 1, required, removed)


def _meet(
    layers: Sequence[Layer], combined: Requirement, requirements: Sequence[Requirement], pruned: Sequence[int]
) -> list[int]:
    """Prunes more of an allocation, in the order of a combined cost, until a requirement is met."""
    priorities = lagrangian_priorities(layers, combined)
    for priority, count in zip(priorities, pruned, strict=True):
        priority[:count] = -np.inf
    least = prune_by_priority(layers, priorities, *requirements)
    return [max(pair) for pair in zip(least, pruned, strict=True)]


def _give_back(layers: Sequence[Layer], requirements: Sequence[Requirement], pruned: Sequence[int]) -> list[int]:
    """Restores blocks, largest reduction of the distortion first, while all requirements remain met."""
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
