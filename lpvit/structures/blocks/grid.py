"""Geometry of blocks: a weight matrix, and the grid of tiles over it.

O, I = output and input features of a layer; r, c = rows and columns of a block; R, C = rows and columns of the grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lpvit.errors import LpvitError

KeepMasks = Mapping[str, Tensor]  # layer -> (R, C), bool, True where the block is kept


@dataclass(frozen=True)
class BlockGrid:
    """Tiles of ``block_shape`` over a matrix of ``shape``; the last row and column of tiles may be smaller.

    Attributes:
        shape: (O, I).
        block_shape: (r, c).
    """

    shape: tuple[int, int]
    block_shape: tuple[int, int]

    def __post_init__(self) -> None:
        if any(block > side for block, side in zip(self.block_shape, self.shape, strict=True)):
            raise LpvitError(
                f"block_shape: {self.block_shape[0]}x{self.block_shape[1]} is larger than a layer of "
                f"{self.shape[0]}x{self.shape[1]}; choose a smaller block or leave this layer out of 'layers'"
            )

    @property
    def rows(self) -> int:
        return -(-self.shape[0] // self.block_shape[0])

    @property
    def columns(self) -> int:
        return -(-self.shape[1] // self.block_shape[1])

    @property
    def count(self) -> int:
        return self.rows * self.columns

    def sizes(self) -> Tensor:
        """Weights in every block, shape (R, C), int64; they sum to O * I."""
        heights = _spans(self.shape[0], self.block_shape[0])
        widths = _spans(self.shape[1], self.block_shape[1])
        return heights[:, None] * widths[None, :]

    def reduce(self, matrix: Tensor) -> Tensor:
        """Sums matrices within blocks: (..., O, I) -> (..., R, C), in the dtype of the matrix."""
        right = self.columns * self.block_shape[1] - self.shape[1]
        below = self.rows * self.block_shape[0] - self.shape[0]
        if right or below:
            matrix = torch.nn.functional.pad(matrix, (0, right, 0, below))
        others = matrix.shape[:-2]
        strips = matrix.reshape(*others, self.rows, self.block_shape[0], -1).sum(dim=-2)  # along rows first: faster
        return strips.view(*others, self.rows, self.columns, self.block_shape[1]).sum(dim=-1)

    def expand(self, per_block: Tensor) -> Tensor:
        """Repeats a value per block over its weights: (R, C) -> (O, I)."""
        tall = per_block.repeat_interleave(self.block_shape[0], dim=0)[: self.shape[0]]
        return tall.repeat_interleave(self.block_shape[1], dim=1)[:, : self.shape[1]]


def _spans(length: int, step: int) -> Tensor:
    return torch.tensor([min(step, length - start) for start in range(0, length, step)])
