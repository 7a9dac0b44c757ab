"""Trade-off of two budgets at equal distortion. Pure NumPy and pandas.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lpvit.allocation import allocators
from lpvit.allocation.hull import lagrangian_priorities
from lpvit.allocation.priority import block_costs, blocks_per_layer, pruning_order, total_distortion
from lpvit.allocation.problem import Layer, Requirement
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables, problem_of
from lpvit.allocation.two_budgets import combine


def frontier(
    tables: LayerTables,
    budget: Budget,
    *,
    levels: Sequence[float] = (0.5, 1.0, 2.0),
    points: int = 21,
) -> pd.DataFrame:
    """Computes the trade-off of two budgets at equal distortion.

    At each weight, blocks are pruned in the order of `lagrangian` until the distortion of a level is reached.

    Args:
        tables: Curves, blocks and costs of the model's layers.
        budget: Two targets.
        levels: Distortions, as shares of that of the allocation that meets both budgets.
        points: Weights from 0 to 1.

    Returns:
        Schema ``FRONTIER``, by level and weight.

    Raises:
        LpvitError: As in `allocate`.
    """
    layers, requirements = problem_of(tables, budget)
    first, second = requirements
    allocator: allocators.Allocator = budget.allocator
    distortion = total_distortion(layers, allocator.blocks_pruned(layers, requirements))
    rows = []
    for level in levels:
        for weight in np.linspace(0, 1, points).tolist():
            pruned = _prune_until_distorted(layers, combine(first, second, weight), level * distortion)
            rows.append(
                {
                    "level": level,
                    "weight": weight,
                    "distortion": total_distortion(layers, pruned),
                    "first": first.as_stated(first.gone(pruned)),
                    "second": second.as_stated(second.gone(pruned)),
                }
            )
    return pd.DataFrame(rows)


def _prune_until_distorted(layers: Sequence[Layer], requirement: Requirement, distortion: float) -> list[int]:
    """Blocks pruned in every layer in the order of `lagrangian`, up to a given sum of the convex hulls."""
    priorities = lagrangian_priorities(layers, requirement)
    owners, order = pruning_order(layers, priorities)
    rise = np.concatenate(priorities) * block_costs(layers, requirement)
    count = int(np.searchsorted(np.cumsum(rise[order]), distortion, side="right"))
    return blocks_per_layer(layers, owners[order[:count]])
