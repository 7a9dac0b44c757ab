"""Possible ranks of a layer, their costs, and their encoding as units of an allocation. Imports no torch.

The ladder of a layer (O, I) is: dense, then the ranks of lower cost, largest first, in multiples of ``rank_multiple``,
and finally 0. A *unit* is the part removed between two rungs, so that allocators treat ranks like blocks.
"""

from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lpvit.structures.factors.settings import Form

FLOAT32 = 4  # bytes


def products(rank: int, shape: tuple[int, int], form: Form) -> int:
    """Multiply-adds per token, and weights, of a layer (O, I) at a rank: r (I + O), or pivoted r (I + O - r)."""
    return rank * (sum(shape) - (rank if form == "pivoted" else 0))


def ladder(shape: tuple[int, int], rank_multiple: int, form: Form) -> list[int]:
    """The ranks below dense, falling to 0; a layer for which factors never cost less has only 0."""
    out_features, in_features = shape
    ranks = range(rank_multiple, min(shape) + (form == "plain"), rank_multiple)
    cheaper = [rank for rank in ranks if products(rank, shape, form) < out_features * in_features]
    return [*reversed(cheaper), 0]


def weights_of_units(shape: tuple[int, int], rank_multiple: int, form: Form) -> NDArray[np.int64]:
    """Weights removed by every unit, (units,); they sum to O * I."""
    kept = [shape[0] * shape[1], *(products(rank, shape, form) for rank in ladder(shape, rank_multiple, form))]
    return np.array([before - after for before, after in pairwise(kept)], dtype=np.int64)


def units_of(layer: str, shape: tuple[int, int], rank_multiple: int, form: Form) -> pd.DataFrame:
    """The units of a layer in schema ``BLOCKS``, before anything is measured: in order, but norms are NaN."""
    weights = weights_of_units(shape, rank_multiple, form)
    count = len(weights)
    return pd.DataFrame(
        {
            "layer": layer,
            "structure": "factors",
            "row": np.zeros(count, dtype=np.int32),
            "column": np.arange(count, dtype=np.int32),
            "weights": weights.astype(np.int32),
            "bytes": FLOAT32 * weights,
            "saliency": np.arange(count, dtype=np.float64),
            "squared_norm": np.full(count, np.nan),
        }
    )


def allocated_ranks(allocation: pd.DataFrame, rank_multiple: int) -> dict[str, int]:
    """Layer -> rank, for layers that are not dense.

    Args:
        allocation: Schema ``ALLOCATION``, of the units of `lpvit.structures.factors.options`.
        rank_multiple: Of these units.
    """
    reduced = allocation[allocation["blocks_kept"] < allocation["blocks"]]
    return {
        str(layer): rank_multiple * int(kept)
        for layer, kept in zip(reduced["layer"], reduced["blocks_kept"], strict=True)
    }
