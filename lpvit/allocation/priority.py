"""Pruning by priority: the block of least priority in the whole model first, until budgets are met. Pure NumPy.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lpvit.allocation.allocators import Allocator
from lpvit.allocation.problem import Floats, Layer, Requirement, as_fraction


class PriorityAllocator(Allocator):
    """Prunes blocks by rising priority, over the whole model, until a budget is met to one block."""

    meets_two_budgets: ClassVar[bool] = False

    @abstractmethod
    def priorities(self, layers: Sequence[Layer], requirement: Requirement) -> list[Floats]:
        """A priority for each of the first L blocks of every layer, shape (L,), non-decreasing."""

    def blocks_pruned(self, layers: Sequence[Layer], requirements: Sequence[Requirement]) -> list[int]:
        (only,) = requirements
        return prune_by_priority(layers, self.priorities(layers, only), only)


def prune_by_priority(layers: Sequence[Layer], priorities: Sequence[Floats], *requirements: Requirement) -> list[int]:
    """Blocks pruned in every layer when blocks are pruned by rising priority until all requirements are met.

    Args:
        layers: Prunable layers.
        priorities: Of the first L blocks of every layer, shape (L,), non-decreasing.
        requirements: One or more.
    """
    owners, order = pruning_order(layers, priorities)
    counts = [
        np.searchsorted(np.cumsum(block_costs(layers, each)[order]), each.required) + 1
        for each in requirements
        if each.required > 0
    ]
    return blocks_per_layer(layers, owners[order[: max(counts, default=0)]])


def pruning_order(layers: Sequence[Layer], priorities: Sequence[Floats]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of the layer that each block belongs to, and the blocks by rising priority; ties: earlier layers first."""
    owners = np.repeat(np.arange(len(layers)), [layer.limit for layer in layers])
    return owners, np.argsort(np.concatenate(priorities), kind="stable")


def block_costs(layers: Sequence[Layer], requirement: Requirement) -> NDArray[Any]:
    """Cost removed by each block that may be pruned, layer after layer."""
    return np.concatenate(
        [np.diff(removed[: layer.limit + 1]) for layer, removed in zip(layers, requirement.removed, strict=True)]
    )


def blocks_per_layer(layers: Sequence[Layer], owners: NDArray[np.int64]) -> list[int]:
    return [int(pruned) for pruned in np.bincount(owners, minlength=len(layers))]


def total_distortion(layers: Sequence[Layer], pruned: Sequence[int]) -> float:
    return float(sum(layer.distortion_by_count[count] for layer, count in zip(layers, pruned, strict=True)))


def proportional_priority(layer: Layer, density: float) -> Floats:
    """Priorities under which layers keep ``min(1, scale * density)`` of their blocks, for one falling scale.

    Of B blocks, the one with k more salient ones is pruned when ``scale * density`` falls below (k + 1/2) / B. Layers
    at 1 stay dense while the scale of the others falls, which is the redistribution of ERK.
    """
    more_salient = np.arange(layer.blocks, dtype=np.float64)[::-1][: layer.limit]
    return -(more_salient + 0.5) / (layer.blocks * density)


def blocks_always_kept(blocks: int, min_keep_ratio: float) -> int:
    """Blocks of a layer that are always kept: ``min_keep_ratio`` of them, rounded up, and at least one."""
    return max(1, math.ceil(as_fraction(min_keep_ratio) * blocks))
