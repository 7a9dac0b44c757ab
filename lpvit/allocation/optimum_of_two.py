"""The least sum of the curves under two budgets at once. NumPy and SciPy.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
C = choices (layer, number of pruned blocks), over all layers.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lpvit.allocation.priority import total_distortion
from lpvit.allocation.problem import Floats, Integers, Layer, Requirement
from lpvit.allocation.two_budgets import lagrangian_of_two

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NODES = 10_000  # of branch and bound; a time limit would make the result depend on the machine
TOLERANCE = 1e-6  # of the solver: relative violation of a budget that is allowed

_logger = logging.getLogger(__name__)


def optimum_of_two(layers: Sequence[Layer], first: Requirement, second: Requirement) -> list[int]:
    """Least sum of the curves among all allocations that meet both budgets; curves need not be convex.

    Given the solution of `lagrangian`, the Lagrangian bound of the relaxed problem excludes most choices; branch and
    bound (HiGHS) decides among the others. If it reaches ``NODES``, the result is that of `lagrangian`, with a warning.
    """
    known = lagrangian_of_two(layers, first, second)
    choices = _choices(layers, (first, second))
    left = _not_ruled_out(choices, total_distortion(layers, known))
    for margin in (0.0, TOLERANCE):
        if (found := _branch_and_bound(left, len(layers), margin)) is None:
            break
        if first.is_met(found) and second.is_met(found):
            return min(known, found, key=lambda pruned: total_distortion(layers, pruned))
    _logger.warning("exact: not proved to be the optimum of the two budgets; this is the solution of 'lagrangian'")
    return known


@dataclass(frozen=True)
class _Choices:
    """Ways to prune single layers; an allocation takes one of each layer.

    Attributes:
        layer: Number of the layer, shape (C,).
        pruned: Blocks of it that are pruned, shape (C,).
        distortion: Shape (C,).
        removed: Cost removed, of either budget, as a share of its total, shape (2, C).
        required: Shares to remove, shape (2,).
    """

    layer: Integers
    pruned: Integers
    distortion: Floats
    removed: Floats
    required: Floats

    def where(self, chosen: NDArray[np.bool_]) -> "_Choices":
        columns = self.layer[chosen], self.pruned[chosen], self.distortion[chosen], self.removed[:, chosen]
        return _Choices(*columns, self.required)

    @property
    def of_layers(self) -> "csr_array":
        """1 where a choice is one of a layer, shape (layers, C)."""
        from scipy.sparse import csr_array  # here, because a single budget needs no SciPy

        return csr_array((np.ones(len(self.layer)), (self.layer, np.arange(len(self.layer)))))


def _choices(layers: Sequence[Layer], requirements: Sequence[Requirement]) -> _Choices:
    removed = [
        np.concatenate([of_layer[: layer.limit + 1] for layer, of_layer in zip(layers, each.removed, strict=True)])
        for each in requirements
    ]
    totals = np.array([each.total for each in requirements], dtype=np.float64)
    distortion = np.concatenate([layer.distortion_by_count for layer in layers])
    return _Choices(
        layer=np.repeat(np.arange(len(layers)), [layer.limit + 1 for layer in layers]),
        pruned=np.concatenate([np.arange(layer.limit + 1) for layer in layers]),
        distortion=distortion,
        removed=np.stack(removed) / totals[:, None],
        required=np.array([float(each.required) for each in requirements]) / totals,
    )


def _not_ruled_out(choices: _Choices, reached: float) -> _Choices:
    """Choices that an allocation with distortion ``reached`` or less may contain, by the Lagrangian bound."""
    multipliers = _multipliers(choices)
    paid = choices.distortion - multipliers @ choices.removed
    least = np.full(choices.layer[-1] + 1, np.inf)
    np.minimum.at(least, choices.layer, paid)
    bound = least.sum() + multipliers @ choices.required
    spare = reached - bound + TOLERANCE * abs(reached)
    return choices.where(paid - least[choices.layer] <= spare)


def _multipliers(choices: _Choices) -> Floats:
    """Of both budgets, shape (2,): duals of the linear relaxation."""
    from scipy.optimize import linprog

    relaxed = linprog(
        choices.distortion,
        A_ub=-choices.removed,
        b_ub=-choices.required,
        A_eq=choices.of_layers,
        b_eq=np.ones(choices.layer[-1] + 1),
    )
    multipliers: Floats = np.maximum(0.0, -relaxed.ineqlin.marginals)
    return multipliers


def _branch_and_bound(choices: _Choices, layers: int, margin: float) -> list[int] | None:
    """Blocks pruned in every layer; None where the solver ends without a proof."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    scale = np.ptp(choices.distortion) or 1.0
    solved = milp(
        choices.distortion / scale,
        integrality=np.ones(len(choices.layer)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(choices.of_layers, 1, 1),
            LinearConstraint(choices.removed, choices.required + margin, np.inf),
        ],
        options={"mip_rel_gap": 0, "node_limit": NODES},
    )
    if solved.status != 0:
        return None
    chosen = solved.x > 0.5
    pruned = np.zeros(layers, dtype=np.int64)
    pruned[choices.layer[chosen]] = choices.pruned[chosen]
    return [int(count) for count in pruned]
