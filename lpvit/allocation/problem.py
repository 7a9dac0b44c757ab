"""Layers and requirements of an allocation: cost to remove, and cost removed by every block. Pure NumPy.

B = blocks of a layer in pruning order (least salient first), of which the first L may be pruned at all;
P = points of its rate-distortion curve.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Layer:
    """A prunable layer as the allocators see it.

    Attributes:
        name: Of the layer in the timm model.
        out_features: Rows of the weight matrix.
        in_features: Columns of the weight matrix.
        tokens: Vectors that the layer multiplies for an image.
        saliency: Score of every block in pruning order, shape (B,), non-decreasing.
        squared_norm: Sum of squared weights of every block in pruning order, shape (B,).
        weights: Weights of every block in pruning order, shape (B,).
        bytes: Of every block in a saved model, in pruning order, shape (B,).
        structures: Of the layer without the first 1 .. B blocks, shape (B,).
        limit: L, blocks that may be pruned.
        sparsity: Requested share of pruned blocks at every point of the curve, shape (P,), rising.
        blocks_pruned: The same in blocks, shape (P,), from 0 to B.
        distortion: At every point of the curve, shape (P,), in squared logits per image.
    """

    name: str
    out_features: int
    in_features: int
    tokens: int
    saliency: Floats
    squared_norm: Floats
    weights: Integers
    bytes: Integers
    structures: NDArray[np.str_]
    limit: int
    sparsity: Floats
    blocks_pruned: Integers
    distortion: Floats

    @property
    def blocks(self) -> int:
        return len(self.weights)

    @cached_property
    def weights_removed(self) -> Integers:
        """Weights removed when the first 0 .. B blocks are pruned, shape (B + 1,)."""
        return np.append(0, np.cumsum(self.weights))

    @cached_property
    def distortion_by_count(self) -> Floats:
        """Distortion when the first 0 .. L blocks are pruned, shape (L + 1,): the curve, linear between its points."""
        return np.interp(np.arange(self.limit + 1), self.blocks_pruned, self.distortion)


@dataclass(frozen=True)
class Requirement:
    """A budget as costs, in whole units; of two combined, as a share.

    Attributes:
        quantity: Key of the budget in the config.
        target: Share of ``total`` to keep; of ``sparsity``, to remove.
        total: Cost that the budget is a share of.
        required: Cost to remove.
        removed: For every layer, the cost removed when its first 0 .. B blocks are pruned, shape (B + 1,),
            strictly rising from 0.
        padding: What the layers cost beyond ``total`` when nothing is pruned.
    """

    quantity: str
    target: float
    total: int
    required: float
    removed: tuple[NDArray[Any], ...]
    padding: int = 0

    def gone(self, pruned: Iterable[int]) -> float:
        """Cost removed, given the blocks pruned in every layer."""
        return sum(float(removed[count]) for removed, count in zip(self.removed, pruned, strict=True))

    def is_met(self, pruned: Iterable[int]) -> bool:
        return self.gone(pruned) >= self.required

    def as_stated(self, gone: float) -> float:
        """In the terms of the budget: share kept, or share removed of a sparsity."""
        return gone / self.total if self.quantity == "sparsity" else (self.total + self.padding - gone) / self.total


def as_fraction(share: float) -> Fraction:
    """Rounds away floating-point error: 7 % of 100 blocks are 7, not 8."""
    return Fraction(share).limit_denominator(10**9)
