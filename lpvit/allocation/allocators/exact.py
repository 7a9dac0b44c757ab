"""Least distortion for the budget on any curves: a search over all allocations."""

from collections.abc import Sequence

from lpvit.allocation.optimum import optimum
from lpvit.allocation.optimum_of_two import optimum_of_two
from lpvit.allocation.problem import Layer, Requirement


def blocks_pruned(layers: Sequence[Layer], requirements: Sequence[Requirement]) -> list[int]:
    if len(requirements) == 2:
        return optimum_of_two(layers, *requirements)
    (only,) = requirements
    return optimum(layers, only)
