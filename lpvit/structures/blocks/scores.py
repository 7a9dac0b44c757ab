"""Scores of blocks: the least salient are pruned first.

R, C = rows and columns of a grid of blocks.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lpvit.structures.blocks import saliencies
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.calibration import Statistics

FLOAT32 = 4  # bytes


def block_table(statistics: Statistics, saliency: saliencies.Saliency) -> pd.DataFrame:
    """Scores of all blocks.

    Args:
        statistics: From `lpvit.structures.blocks.calibration.collect`, with what the saliency needs.
        saliency: One of the `lpvit.structures.blocks.saliencies`.

    Returns:
        Schema ``BLOCKS``; layers as in the statistics, blocks of a layer row by row.
    """
    return pd.concat(
        [_layer_table(layer, tables, saliency.scores(tables)) for layer, tables in statistics.items()],
        ignore_index=True,
    )


def unscored_table(layer: str, grid: BlockGrid) -> pd.DataFrame:
    """The blocks of a layer before anything is measured: scores and norms are NaN."""
    sizes = grid.sizes()
    unknown = torch.full_like(sizes, torch.nan, dtype=torch.float64)
    return _layer_table(layer, {"weights": sizes, "squared_weight_sum": unknown}, unknown)


def _layer_table(layer: str, tables: dict[str, Tensor], saliency: Tensor) -> pd.DataFrame:
    rows, columns = np.indices(saliency.shape, dtype=np.int32)
    weights = tables["weights"].numpy().ravel().astype(np.int32)
    return pd.DataFrame(
        {
            "layer": layer,
            "structure": "blocks",
            "row": rows.ravel(),
            "column": columns.ravel(),
            "weights": weights,
            "bytes": np.full(len(weights), FLOAT32 * int(weights.max()), dtype=np.int64),  # stored in one shape
            "saliency": saliency.numpy().ravel(),
            "squared_norm": tables["squared_weight_sum"].numpy().ravel(),
        }
    )
