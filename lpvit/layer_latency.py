"""Measured milliseconds of single layers, dense and block-sparse: the latency table of a machine."""

import logging
from collections.abc import Callable, Iterable
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lpvit.blocks import BlockGrid
from lpvit.schemas import LATENCY
from lpvit.sparse import BlockSparseLinear
from lpvit.timing import median_interval, time_in_turns

logger = logging.getLogger(__name__)

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SECONDS = 0.2  # for a layer at a sparsity
_SHAPE = ["out_features", "in_features", "tokens"]


@torch.no_grad()
def measure_latency(
    costs: pd.DataFrame,
    block_shape: tuple[int, int],
    *,
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device | str,
    sparsities: Iterable[float] = SPARSITIES,
    seconds: float = SECONDS,
) -> pd.DataFrame:
    """Times linear layers of every shape of a model, dense and with random blocks pruned, all taking turns.

    Patch embeddings are convolutions and have no block-sparse form, so they are not timed; nor are layers smaller than
    a block. Where the block-sparse layer is the slower one its time stands in the table all the same;
    `lpvit.latency.milliseconds` counts such a layer as dense.

    Args:
        costs: Layers of the model, schema ``COSTS``.
        block_shape: Rows and columns of a block.
        batch_size: Images per pass.
        dtype: Of weights and activations.
        device: Where to run.
        sparsities: Shares of the blocks to prune.
        seconds: For each layer and sparsity.

    Returns:
        Schema ``LATENCY``, with the shares of the weights that were pruned.
    """
    linear = costs[costs["role"] != "patch_embed"]
    shapes = [
        (rows, columns, tokens)
        for rows, columns, tokens in linear[_SHAPE].drop_duplicates().itertuples(index=False, name=None)
        if rows >= block_shape[0] and columns >= block_shape[1]
    ]
    rows = []
    for out_features, in_features, tokens in tqdm(shapes, desc=f"latency {block_shape[0]}x{block_shape[1]}"):
        grid = BlockGrid((out_features, in_features), block_shape)
        layers = _layers(grid, sparsities, dtype, device)
        inputs = torch.randn(batch_size, tokens, in_features, device=device).to(dtype)
        functions: dict[str, Callable[[], object]] = {
            str(sparsity): partial(layer, inputs) for sparsity, layer in layers.items()
        }
        times = time_in_turns(functions, device=device, seconds=seconds)
        for sparsity in layers:
            median = median_interval(times[str(sparsity)]).median
            place = (out_features, in_features, tokens, *block_shape, sparsity)
            rows.append((*place, 1e3 * median / batch_size))
    return pd.DataFrame(rows, columns=[column.name for column in LATENCY.columns])


def _layers(
    grid: BlockGrid, sparsities: Iterable[float], dtype: torch.dtype, device: torch.device | str
) -> dict[float, nn.Module]:
    """Share of the weights pruned -> layer; 0 is the dense one."""
    dense = nn.Linear(grid.shape[1], grid.shape[0]).to(device, dtype)
    layers: dict[float, nn.Module] = {0.0: dense}
    for pruned in sorted({round(sparsity * grid.count) for sparsity in sparsities} - {0}):
        keep_mask = _random_keep_mask(grid, pruned)
        sparsity = float(grid.sizes()[~keep_mask].sum()) / (grid.shape[0] * grid.shape[1])
        layers[sparsity] = BlockSparseLinear.from_linear(dense, keep_mask, grid.block_shape)
    return layers


def _random_keep_mask(grid: BlockGrid, pruned: int) -> Tensor:
    """Shape (R, C), bool, False for as many blocks as are pruned; always the same ones."""
    order = torch.randperm(grid.count, generator=torch.Generator().manual_seed(0))
    return (order >= pruned).view(grid.rows, grid.columns)
