"""Weights without their pruned blocks: block compressed sparse rows (BSR) with rectangular blocks and ragged edges.

O, I = output and input features of a layer; r, c = rows and columns of a block; R, C = rows and columns of its grid of
blocks; B = blocks that stay.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from lpvit.blocks import BlockGrid

PARTS = ("values", "crow_indices", "col_indices")  # what `compress` returns, by the names in files


def compress(weight: Tensor, keep_mask: Tensor, block_shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks that stay, and where they stand.

    Args:
        weight: (O, I).
        keep_mask: (R, C), bool, True where the block stays.
        block_shape: (r, c).

    Returns:
        ``values`` (B, r, c), in the dtype of the weight, block-row by block-row, blocks at ragged edges filled up with
        zeros; ``crow_indices`` (R + 1,), int32, the number of blocks before each block-row, and at the end of all;
        ``col_indices`` (B,), int32, the column of each block in the grid.
    """
    grid = BlockGrid((weight.shape[0], weight.shape[1]), block_shape)
    below, right = grid.rows * block_shape[0] - grid.shape[0], grid.columns * block_shape[1] - grid.shape[1]
    whole = pad(weight, (0, right, 0, below))
    tiles = whole.reshape(grid.rows, block_shape[0], grid.columns, block_shape[1]).transpose(1, 2)
    crow_indices = pad(keep_mask.sum(dim=1).cumsum(dim=0), (1, 0)).to(torch.int32)
    return tiles[keep_mask], crow_indices, keep_mask.nonzero()[:, 1].to(torch.int32)


def decompress(values: Tensor, crow_indices: Tensor, col_indices: Tensor, grid: BlockGrid) -> Tensor:
    """The weight (O, I) that `compress` was given, exactly zero where no block stands.

    Args:
        values: (B, r, c).
        crow_indices: (R + 1,), int32.
        col_indices: (B,), int32.
        grid: The blocks of the weight.

    Raises:
        ValueError: Values and indices do not describe blocks of this grid.
    """
    keep_mask = indexed_keep_mask(crow_indices, col_indices, grid)
    (height, width), (rows, columns) = grid.block_shape, keep_mask.shape
    if values.shape != (len(col_indices), height, width):
        raise ValueError(f"values are {tuple(values.shape)}, expected {(len(col_indices), height, width)}")
    tiles = values.new_zeros(rows, columns, height, width)
    tiles[keep_mask] = values
    matrix = tiles.transpose(1, 2).reshape(rows * height, columns * width)
    return matrix[: grid.shape[0], : grid.shape[1]].contiguous()


def indexed_keep_mask(crow_indices: Tensor, col_indices: Tensor, grid: BlockGrid) -> Tensor:
    """The keep mask (R, C), bool, that the indices of `compress` spell.

    Raises:
        ValueError: The indices do not describe blocks of this grid, block-row by block-row.
    """
    rising = crow_indices.shape == (grid.rows + 1,) and crow_indices[0] == 0 and (crow_indices.diff() >= 0).all()
    if not rising or crow_indices[-1] != len(col_indices) or ((col_indices < 0) | (col_indices >= grid.columns)).any():
        raise ValueError(f"indices do not describe blocks of a grid of {grid.rows}x{grid.columns}")
    rows = torch.arange(grid.rows, device=col_indices.device).repeat_interleave(crow_indices.diff())
    keep_mask = torch.zeros(grid.rows, grid.columns, dtype=torch.bool, device=col_indices.device)
    keep_mask[rows, col_indices.long()] = True
    if not torch.equal(keep_mask.nonzero()[:, 1], col_indices.long()):
        raise ValueError("blocks are repeated or out of order")
    return keep_mask
