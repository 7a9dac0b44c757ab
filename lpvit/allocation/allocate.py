"""Allocation: the number of kept blocks of every layer under one budget or two. Pure NumPy and pandas.

The rule is one of `lpvit.allocation.allocators`; each meets every budget to one block.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lpvit.allocation import allocators
from lpvit.allocation.problem import Requirement
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables, problem_of, replaced_by_faster

logger = logging.getLogger(__name__)


def allocate(tables: LayerTables, budget: Budget) -> pd.DataFrame:
    """Allocates the number of blocks of every prunable layer under one budget or two.

    Args:
        tables: Curves, blocks and costs of the model's layers.
        budget: Targets and allocator.

    Returns:
        Schema ``ALLOCATION``, in the order of ``costs``.

    Raises:
        LpvitError: The budget cannot be met, a layer has not been timed, or a distortion or a score is not finite.
    """
    layers, requirements = problem_of(tables, budget)
    allocator: allocators.Allocator = budget.allocator
    pruned = replaced_by_faster(layers, requirements, allocator.blocks_pruned(layers, requirements))
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
        logger.info("%s: %s target %.6g, achieved %.6g", allocator.name, each.quantity, each.target, achieved)
    return pd.DataFrame(rows)


def _reached(requirements: Sequence[Requirement], pruned: Sequence[int]) -> dict[str, Any]:
    """Columns of ``ALLOCATION`` that are the same for all layers."""
    first, *others = (
        {"budget": each.quantity, "target": each.target, "achieved": each.as_stated(each.gone(pruned))}
        for each in requirements
    )
    second = others[0] if others else {"budget": None, "target": math.nan, "achieved": math.nan}
    return {**first, **{f"second_{name}": value for name, value in second.items()}}
