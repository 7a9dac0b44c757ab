"""Measured milliseconds of layers as a cost: reading a latency table. No torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lpvit.allocation.settings import FACTORS
from lpvit.errors import LpvitError
from lpvit.store.schemas import LATENCY
from lpvit.store.tables import read_parquet

_LAYER = ["out_features", "in_features", "tokens"]
_BLOCK = ["block_rows", "block_columns"]


def read_latency(paths: Sequence[str | Path], shapes: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """The rows of latency tables for what a structure can make of a layer.

    Args:
        paths: Tables of schema ``LATENCY``.
        shapes: Rows and columns of blocks, or ``FACTORS``.

    Raises:
        LpvitError: A table cannot be read, or none has a row of one of the shapes.
    """
    table = pd.concat([read_parquet(path, LATENCY) for path in paths], ignore_index=True)
    found = list(dict.fromkeys(table[_BLOCK].itertuples(index=False, name=None)))
    for shape in shapes:
        if shape not in found:
            raise LpvitError(
                f"{', '.join(map(str, paths))}: nothing measured with {_named(shape)}, but with "
                f"{', '.join(map(_named, sorted(found))) or 'none'}; measure it or choose another 'block_shape'"
            )
    rows: pd.DataFrame = table[[tuple(row) in shapes for row in table[_BLOCK].itertuples(index=False, name=None)]]
    return rows


def of_structure(table: pd.DataFrame, structure: str) -> pd.DataFrame:
    """The rows of a latency table for one structure, ``blocks`` or ``factors``."""
    is_factors = (table[_BLOCK].to_numpy() == FACTORS).all(axis=1)
    rows: pd.DataFrame = table[is_factors == (structure == "factors")]
    return rows


def _named(shape: tuple[int, int]) -> str:
    return "low-rank factors" if shape == FACTORS else f"blocks of {shape[0]}x{shape[1]}"


def milliseconds(
    table: pd.DataFrame, out_features: int, in_features: int, tokens: int, sparsity: ArrayLike
) -> NDArray[np.float64]:
    """Time of a layer for an image, linear between the measured sparsities and constant beyond the last.

    It never increases with the sparsity: pruned blocks may be stored as zeros, and a layer whose block-sparse kernel is
    slower than its dense product stays dense.

    Args:
        table: Schema ``LATENCY``, of one structure; repeats are averaged by the median.
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
