"""Scores of blocks: the least salient are pruned first.

R, C = rows and columns of a grid of blocks.
"""

from typing import Literal

import numpy as np
import pandas as pd
from torch import Tensor

from lpvit.curves.statistics import Statistics, mean_squared_products


def block_table(statistics: Statistics, saliency: Literal["taylor", "l1", "gauss_newton"]) -> pd.DataFrame:
    """Scores of all blocks.

    Args:
        statistics: From `collect_statistics`; for ``taylor`` with an averaged gradient, for ``gauss_newton`` with the
            ``block_products`` of every layer.
        saliency: LPViT's mean abs(g w) over the weights of a block (``taylor``), their mean abs(w) (``l1``), or the
            mean squared block product, which predicts the distortion of zeroing the block alone (``gauss_newton``).

    Returns:
        Schema ``BLOCKS``; layers as in the statistics, blocks of a layer row by row.
    """
    return pd.concat(
        [_layer_table(layer, tables, _saliency(tables, saliency)) for layer, tables in statistics.items()],
        ignore_index=True,
    )


def _saliency(tables: dict[str, Tensor], saliency: Literal["taylor", "l1", "gauss_newton"]) -> Tensor:
    if saliency == "gauss_newton":
        return mean_squared_products(tables["block_products"]).view_as(tables["weights"])
    return tables[{"taylor": "absolute_product_sum", "l1": "absolute_weight_sum"}[saliency]] / tables["weights"]


def _layer_table(layer: str, tables: dict[str, Tensor], saliency: Tensor) -> pd.DataFrame:
    rows, columns = np.indices(saliency.shape, dtype=np.int32)
    return pd.DataFrame(
        {
            "layer": layer,
            "row": rows.ravel(),
            "column": columns.ravel(),
            "weights": tables["weights"].numpy().ravel().astype(np.int32),
            "saliency": saliency.numpy().ravel(),
            "squared_norm": tables["squared_weight_sum"].numpy().ravel(),
        }
    )
