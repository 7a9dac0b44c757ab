from collections.abc import Sequence
from typing import Literal

from lpvit.allocation.allocators import Allocator
from lpvit.allocation.hull import lagrangian_priorities
from lpvit.allocation.priority import prune_by_priority
from lpvit.allocation.problem import Layer, Requirement
from lpvit.allocation.two_budgets import lagrangian_of_two


class Lagrangian(Allocator):
    """Least distortion on convex curves: one Lagrange multiplier for all layers (Shoham and Gersho, 1988)."""

    name: Literal["lagrangian"] = "lagrangian"

    def blocks_pruned(self, layers: Sequence[Layer], requirements: Sequence[Requirement]) -> list[int]:
        if len(requirements) == 2:
            return lagrangian_of_two(layers, *requirements)
        (only,) = requirements
        return prune_by_priority(layers, lagrangian_priorities(layers, only), only)
