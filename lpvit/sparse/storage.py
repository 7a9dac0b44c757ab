"""Compressed block rows (BSR): the kept blocks of a weight matrix, and their positions.

O, I = output and input features; r, c = rows and columns of a block; R, C = rows and columns of the grid;
K = kept blocks.
"""

import torch
from torch import Tensor

from lpvit.errors import LpvitError
from lpvit.structures.blocks.grid import BlockGrid


def compress(weight: Tensor, keep_mask: Tensor, block_shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The kept blocks of a weight matrix, by rows of blocks.

    Args:
        weight: Shape (O, I).
        keep_mask: Shape (R, C), bool, True where the block is kept.
        block_shape: (r, c).

    Returns:
        ``values`` (K, r, c), in the dtype of the weight, blocks at ragged edges padded with zeros; ``crow_indices``
        (R + 1,), int32: the blocks of row i are those from ``crow_indices[i]`` to ``crow_indices[i + 1]``;
        ``col_indices`` (K,), int32, rising within a row.

    Raises:
        LpvitError: The mask is not one boolean per block.
    """
    grid = BlockGrid((weight.shape[0], weight.shape[1]), block_shape)
    if keep_mask.shape != (grid.rows, grid.columns) or keep_mask.dtype != torch.bool:
        raise LpvitError(
            f"keep mask: {keep_mask.dtype} of {tuple(keep_mask.shape)} for a layer of {grid.shape[0]}x{grid.shape[1]}; "
            f"blocks of {block_shape[0]}x{block_shape[1]} need torch.bool of {(grid.rows, grid.columns)}"
        )
    keep_mask = keep_mask.to(weight.device)
    right, below = grid.columns * block_shape[1] - grid.shape[1], grid.rows * block_shape[0] - grid.shape[0]
    padded = torch.nn.functional.pad(weight, (0, right, 0, below))
    blocks = padded.view(grid.rows, block_shape[0], grid.columns, block_shape[1]).transpose(1, 2)
    return blocks[keep_mask], *block_indices(keep_mask)


def block_indices(keep_mask: Tensor) -> tuple[Tensor, Tensor]:
    """``crow_indices`` and ``col_indices`` of a keep mask (R, C), as `compress` returns them."""
    crow_indices = torch.zeros(len(keep_mask) + 1, dtype=torch.int32, device=keep_mask.device)
    crow_indices[1:] = keep_mask.sum(dim=1).cumsum(dim=0)
    return crow_indices, keep_mask.nonzero()[:, 1].int()


def decompress(values: Tensor, crow_indices: Tensor, col_indices: Tensor, grid: BlockGrid) -> Tensor:
    """Inverse of `compress`: the weight matrix (O, I), zero in pruned blocks."""
    (height, width), (out_features, in_features) = grid.block_shape, grid.shape
    rows = torch.arange(grid.rows, device=values.device)
    row_indices = rows.repeat_interleave(crow_indices.diff(), output_size=len(values))
    blocks = values.new_zeros(grid.rows, grid.columns, height, width)
    blocks[row_indices, col_indices] = values
    whole = blocks.transpose(1, 2).reshape(grid.rows * height, grid.columns * width)
    return whole[:out_features, :in_features].contiguous()


def indexed_keep_mask(crow_indices: Tensor, col_indices: Tensor, kept: int, grid: BlockGrid) -> Tensor:
    """The keep mask of indices from a file. They are checked, because the kernels do not.

    Args:
        crow_indices: Shape (R + 1,).
        col_indices: Shape (K,).
        kept: K, blocks stored.
        grid: The blocks of the weight.

    Returns:
        Shape (R, C), bool.

    Raises:
        LpvitError: They do not describe ``kept`` blocks of the grid with columns rising within each row.
    """
    if crow_indices.shape != (grid.rows + 1,) or crow_indices[0] != 0 or (crow_indices.diff() < 0).any():
        raise LpvitError(f"crow_indices: not the bounds of {grid.rows} rows of blocks; the weights are damaged")
    if not crow_indices[-1] == kept == len(col_indices):
        raise LpvitError(f"crow_indices: end at block {int(crow_indices[-1])} of {kept}; the weights are damaged")
    rows = torch.arange(grid.rows, device=crow_indices.device).repeat_interleave(crow_indices.diff())
    places = rows * grid.columns + col_indices
    inside = ((col_indices >= 0) & (col_indices < grid.columns)).all()
    if not (inside and (places.diff() > 0).all()):
        raise LpvitError(f"col_indices: not rising within rows of {grid.columns} blocks; the weights are damaged")
    keep_mask = torch.zeros(grid.rows, grid.columns, dtype=torch.bool, device=crow_indices.device)
    keep_mask.view(-1)[places] = True
    return keep_mask
