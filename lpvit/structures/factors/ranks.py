"""Ranks that a layer may have, what each costs, and how an allocation of units says which it gets. Imports no torch.

A layer (O, I) goes down a ladder: dense, then the ranks that cost less, largest first, in steps of ``rank_multiple``,
and at last 0. A *unit* is what a step takes away, so that allocators treat ranks as they treat blocks.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Form = Literal["plain", "pivoted"]


def products(rank: int, shape: tuple[int, int], form: Form) -> int:
    """Multiply-adds a token, and weights, of a layer (O, I) at a rank: r (I + O), or pivoted r (I + O - r)."""
    return rank * (sum(shape) - (rank if form == "pivoted" else 0))


def ladder(shape: tuple[int, int], rank_multiple: int, form: Form) -> list[int]:
    """The ranks below dense, falling to 0; a layer for which factors never cost less has only that."""
    out_features, in_features = shape
    ranks = range(rank_multiple, min(shape) + (form == "plain"), rank_multiple)
    cheaper = [rank for rank in ranks if products(rank, shape, form) < out_features * in_features]
    return [*reversed(cheaper), 0]


def weights_of_units(shape: tuple[int, int], rank_multiple: int, form: Form) -> NDArray[np.int64]:
    """Weights that go with every step down the ladder, (units,); they sum to O * I."""
    kept = [shape[0] * shape[1], *(products(rank, shape, form) for rank in ladder(shape, rank_multiple, form))]
    return np.array([before - after for before, after in pairwise(kept)], dtype=np.int64)


def allocated_ranks(allocation: pd.DataFrame, rank_multiple: int) -> dict[str, int]:
    """Layer -> rank, of the layers that do not stay dense.

    Args:
        allocation: Schema ``ALLOCATION``, of the units of `lpvit.structures.factors.options`.
        rank_multiple: Of these units.
    """
    reduced = allocation[allocation["blocks_kept"] < allocation["blocks"]]
    return {
        str(layer): rank_multiple * int(kept)
        for layer, kept in zip(reduced["layer"], reduced["blocks_kept"], strict=True)
    }


def kept_weights(ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, int]], form: Form) -> dict[str, int]:
    """Layer -> weights of every layer, dense where it has no rank."""
    return {
        layer: products(ranks[layer], shape, form) if layer in ranks else shape[0] * shape[1]
        for layer, shape in shapes.items()
    }
