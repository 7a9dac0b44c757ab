"""Least distortion on convex curves: one Lagrange multiplier for all layers (Shoham and Gersho, 1988)."""

from collections.abc import Sequence

from lpvit.allocation.hull import lagrangian_priorities
from lpvit.allocation.priority import prune_by_priority
from lpvit.allocation.problem import Layer, Requirement
from lpvit.allocation.two_budgets import lagrangian_of_two


def blocks_pruned(layers: Sequence[Layer], requirements: Sequence[Requirement]) -> list[int]:
    if len(requirements) == 2:
        return lagrangian_of_two(layers, *requirements)
    (only,) = requirements
    return prune_by_priority(layers, lagrangian_priorities(layers, only), only)
