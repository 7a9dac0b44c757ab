"""The least sum of the curves among all allocations. Pure NumPy.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

import math
from collections.abc import Sequence

from lpvit.allocation.hull import lagrangian_priorities
from lpvit.allocation.knapsack import Curve, least_distortion
from lpvit.allocation.priority import prune_by_priority
from lpvit.allocation.problem import Floats, Layer, Requirement


def optimum(layers: Sequence[Layer], requirement: Requirement) -> list[int]:
    """Least sum of the curves among all allocations that meet the budget to one block; curves need not be convex."""
    start = prune_by_priority(layers, lagrangian_priorities(layers, requirement), requirement)
    return knapsack_under(layers, requirement, [layer.distortion_by_count for layer in layers], start)


def knapsack_under(
    layers: Sequence[Layer], requirement: Requirement, distortions: Sequence[Floats], start: Sequence[int]
) -> list[int]:
    curves = [
        Curve(removed[: layer.limit + 1], distortion, layer.blocks_pruned)
        for layer, removed, distortion in zip(layers, requirement.removed, distortions, strict=True)
    ]
    return least_distortion(curves, math.ceil(requirement.required), start)
