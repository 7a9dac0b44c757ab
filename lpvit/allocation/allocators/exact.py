from collections.abc import Sequence
from typing import Literal

from lpvit.allocation.allocators import Allocator
from lpvit.allocation.optimum import optimum
from lpvit.allocation.optimum_of_two import optimum_of_two
from lpvit.allocation.problem import Layer, Requirement


class Exact(Allocator):
    """Least distortion for the budget on any curves: a search over all allocations."""

    name: Literal["exact"] = "exact"

    def blocks_pruned(self, layers: Sequence[Layer], requirements: Sequence[Requirement]) -> list[int]:
        if len(requirements) == 2:
            return optimum_of_two(layers, *requirements)
        (only,) = requirements
        return optimum(layers, only)
