"""A rate-distortion curve of one layer: the distortion at evenly spaced sparsities."""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpvit.allocation.ranking import in_pruning_order


def blocks_pruned_at(count: int, points: int) -> NDArray[np.int64]:
    """Nearest integers, halves up, to alpha * B at alpha = 0, 1/(points - 1), ..., 1: shape (points,)."""
    steps = points - 1
    return (2 * np.arange(points, dtype=np.int64) * count + steps) // (2 * steps)


def sampled_curve(blocks_of_layer: pd.DataFrame, points: int, distortion: Tensor) -> pd.DataFrame:
    """A curve in schema ``CURVES``, from the distortion of pruning n blocks for n = 0 ... B, shape (B + 1,)."""
    blocks_pruned = blocks_pruned_at(len(blocks_of_layer), points)
    weights_pruned = np.append(0, in_pruning_order(blocks_of_layer)["weights"].to_numpy(np.int64).cumsum())
    return pd.DataFrame(
        {
            "layer": blocks_of_layer["layer"].iloc[0],
            "sparsity": np.linspace(0, 1, points),
            "blocks_pruned": blocks_pruned,
            "weights_pruned": weights_pruned[blocks_pruned],
            "distortion": distortion.numpy()[blocks_pruned],
        }
    )


def pruning_ranks(blocks_of_layer: pd.DataFrame) -> Tensor:
    """Position of every block in the pruning order.

    Args:
        blocks_of_layer: Scores of one layer, schema ``BLOCKS``.

    Returns:
        Shape (R, C), int64, 0 for the block that is pruned first; with n blocks pruned, those of rank >= n are kept.
    """
    ordered = in_pruning_order(blocks_of_layer)
    rows, columns = ordered["row"].to_numpy(), ordered["column"].to_numpy()
    ranks = np.empty((rows.max() + 1, columns.max() + 1), dtype=np.int64)
    ranks[rows, columns] = np.arange(len(ordered))
    return torch.from_numpy(ranks)
