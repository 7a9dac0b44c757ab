"""Measured milliseconds of single layers, dense, block-sparse and as factors: the latency table of a machine."""

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.allocation.settings import FACTORS
from lpvit.measure.timing import calm_clock, random_inputs, time_in_turns
from lpvit.progress import bar
from lpvit.sparse import BlockSparseLinear
from lpvit.store.schemas import LATENCY
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.factors.layers import FactorisedLinear

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SECONDS = 0.1  # per layer and sparsity, and the same for its dense form
RANKS = 8
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
    """Times linear layers of every shape of a model, dense and compressed, interleaved: with random blocks or factors.

    Patch embeddings are convolutions and have no block-sparse form, so they are not timed; nor are layers smaller than
    a block. The table also has the times of block-sparse layers that are slower;
    `lpvit.allocation.latency.milliseconds` counts such a layer as dense.

    Args:
        costs: Layers of the model, schema ``COSTS``.
        block_shape: Rows and columns of a block; ``FACTORS`` for low-rank factors.
        batch_size: Images per pass.
        dtype: Of weights and activations.
        device: Where to run.
        sparsities: Shares of the blocks to prune, or of the weights that factors save.
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
    for out_features, in_features, tokens in bar(shapes, f"latency {block_shape[0]}x{block_shape[1]}", "shape"):
        dense = nn.Linear(in_features, out_features).to(device, dtype)
        inputs = random_inputs(batch_size, tokens, in_features).to(device, dtype)
        if block_shape == FACTORS:
            layers = _factorised(dense, sparsities)
        else:
            layers = _block_sparse(dense, BlockGrid((out_features, in_features), block_shape), sparsities)
        for sparsity, milliseconds in _milliseconds(dense, layers, inputs, seconds).items():
            place = (out_features, in_features, tokens, *block_shape, sparsity)
            rows.append((*place, milliseconds / batch_size))
    return pd.DataFrame(rows, columns=[column.name for column in LATENCY.columns])


def _milliseconds(
    dense: nn.Module, layers: Mapping[float, nn.Module], inputs: Tensor, seconds: float
) -> dict[float, float]:
    """Sparsity -> time of a pass, 0 for the dense layer.

    Each block-sparse layer is interleaved with the dense one only. Among several block-sparse layers, their common code
    would stay in the caches, unlike in a model, and that of the dense layer would not.
    """
    timed = partial(time_in_turns, device=inputs.device, seconds=seconds, clock=calm_clock(inputs.device))
    if not layers:  # too small for any rank to save something
        alone = timed({"dense": partial(dense, inputs)})
        return {0.0: 1e3 * float(np.median(alone["dense"]))}
    pairs = {
        sparsity: timed({"dense": partial(dense, inputs), "sparse": partial(layer, inputs)})
        for sparsity, layer in layers.items()
    }
    of_dense = 1e3 * float(np.median(np.concatenate([times["dense"] for times in pairs.values()])))
    shares = {sparsity: float(np.median(times["sparse"] / times["dense"])) for sparsity, times in pairs.items()}
    return {0.0: of_dense, **{sparsity: of_dense * share for sparsity, share in shares.items()}}


def _factorised(dense: nn.Linear, sparsities: Iterable[float]) -> dict[float, nn.Module]:
    """Share of the weights saved -> the layer as factors, of ranks in multiples of ``RANKS`` where there are such."""
    sides, full = dense.in_features + dense.out_features, dense.in_features * dense.out_features
    layers: dict[float, nn.Module] = {}
    for sparsity in sparsities:
        rank = (1 - sparsity) * full / sides
        rank = max(1, int(rank)) if rank < RANKS else RANKS * round(rank / RANKS)
        if rank * sides < full:
            layers[1 - rank * sides / full] = FactorisedLinear.like(dense, rank)
    return layers


def _block_sparse(dense: nn.Linear, grid: BlockGrid, sparsities: Iterable[float]) -> dict[float, nn.Module]:
    """Share of the weights pruned -> the layer without random blocks, for the shares possible with its blocks."""
    layers: dict[float, nn.Module] = {}
    for pruned in sorted({round(sparsity * grid.count) for sparsity in sparsities} - {0}):
        keep_mask = _random_keep_mask(grid, pruned)
        sparsity = float(grid.sizes()[~keep_mask].sum()) / (grid.shape[0] * grid.shape[1])
        layers[sparsity] = BlockSparseLinear.from_linear(dense, keep_mask, grid.block_shape)
    return layers


def _random_keep_mask(grid: BlockGrid, pruned: int) -> Tensor:
    """Shape (R, C), bool, False for pruned blocks; deterministic."""
    order = torch.randperm(grid.count, generator=torch.Generator().manual_seed(0))
    return (order >= pruned).view(grid.rows, grid.columns)
