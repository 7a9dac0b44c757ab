"""Measured milliseconds of layers as a cost: reading a latency table. No torch."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lpvit.errors import LpvitError
from lpvit.store.schemas import LATENCY
from lpvit.store.tables import read_parquet

_LAYER = ["out_features", "in_features", "tokens"]
_BLOCK = ["block_rows", "block_columns"]


def read_latency(path: str | Path, block_shape: tuple[int, int]) -> pd.DataFrame:
    """The rows of a latency table for one block shape.

    Args:
        path: Table of schema ``LATENCY``.
        block_shape: Rows and columns of a block.

    Raises:
        LpvitError: The table cannot be read, or has no row with this block shape.
    """
    table = read_parquet(path, LATENCY)
    rows: pd.DataFrame = table[(table[_BLOCK].to_numpy() == block_shape).all(axis=1)]
    if rows.empty:
        known = sorted({f"{height}x{width}" for height, width in table[_BLOCK].itertuples(index=False)})
        raise LpvitError(
            f"{path}: nothing measured with blocks of {block_shape[0]}x{block_shape[1]}, but with "
            f"{', '.join(known) or 'none'}; measure it or choose another 'block_shape'"
        )
    return rows


def milliseconds(
    table: pd.DataFrame, out_features: int, in_features: int, tokens: int, sparsity: ArrayLike
) -> NDArray[np.float64]:
    """Time of a layer for an image, linear between the measured sparsities and constant beyond the last.

    It never increases with the sparsity: pruned blocks may be stored as zeros, and a layer whose block-sparse kernel is
    slower than its dense product stays dense.

    Args:
        table: Schema ``LATENCY``, of one block shape; repeats are averaged by the median.
        out_features: Rows of the weight matrix.
        in_features: Columns of the weight matrix.
        tokens: Vectors that the layer multiplies for an image.
        sparsity: Share of the weights that is pruned, any shape.

    Returns:
        In ms per image, in the shape of ``sparsity``, non-increasing in it.

    Raises:
        LpvitError: The table has no such layer, not its dense time, or a time that is not positive.
    """
    measured = table[(table[_LAYER].to_numpy() == (out_features, in_features, tokens)).all(axis=1)]
    points = measured.groupby("sparsity")["milliseconds"].median()
    layer = f"layer of {out_features}x{in_features} with {tokens} tokens"
    if 0.0 not in points.index:
        missing = "the dense time (sparsity 0) is missing" if len(points) else "not measured"
        raise LpvitError(f"latency_table: {layer}: {missing}; measure it or leave it out of 'layers'")
    if not (points > 0).all():
        raise LpvitError(f"latency_table: {layer}: {points.min():g} ms found, not a positive time; measure it again")
    times: NDArray[np.float64] = np.minimum.accumulate(points.to_numpy())
    return np.asarray(np.interp(np.asarray(sparsity), points.index.to_numpy(), times), np.float64)
