"""The least sum of the curves among all allocations. Pure NumPy.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

import logging
import math
from collections.abc import Sequence

from lpvit.allocation.bounded_search import TooManyPairsError, proved_optimum
from lpvit.allocation.hull import lagrangian_priorities
from lpvit.allocation.knapsack import Curve, largest_block, least_distortion
from lpvit.allocation.priority import prune_by_priority
from lpvit.allocation.problem import Layer, Requirement

_logger = logging.getLogger(__name__)


def optimum(layers: Sequence[Layer], requirement: Requirement) -> list[int]:
    """Least sum of the curves among all allocations that meet the budget to one block; curves need not be convex.

    A knapsack over cells of cost gives a solution, and a search of what the Lagrangian bound does not exclude the
    optimum. Where that would take too long, the result is the solution of the knapsack, with a warning.
    """
    curves = [
        Curve(removed[: layer.limit + 1], layer.distortion_by_count, layer.blocks_pruned)
        for layer, removed in zip(layers, requirement.removed, strict=True)
    ]
    required = math.ceil(requirement.required)
    start = prune_by_priority(layers, lagrangian_priorities(layers, requirement), requirement)
    if not (largest := largest_block(curves)):
        return start
    found = least_distortion(curves, required, start)
    try:
        return proved_optimum(curves, required, required + largest - 1, found)
    except TooManyPairsError:
        _logger.warning("exact: not proved to be the optimum of the budget; this is the best allocation found")
        return found
