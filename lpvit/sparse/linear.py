"""A linear layer that stores and multiplies only the blocks that pruning kept."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.blocks import BlockGrid
from lpvit.sparse.operator import block_sparse_linear, path_of
from lpvit.sparse.storage import compress, decompress, indexed_keep_mask


class BlockSparseLinear(nn.Module):
    """``y = x W^T + b``, optionally through GELU (erf), for inference; W has pruned blocks that are not stored.

    O, I = output and input features; r, c = rows and columns of a block; R = rows of the grid; K = kept blocks.

    Attributes:
        values: Kept blocks, shape (K, r, c).
        crow_indices: Bounds of the block-rows, shape (R + 1,), int32.
        col_indices: Block-columns of the kept blocks, shape (K,), int32.
        bias: Shape (O,), or None.
    """

    values: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    bias: Tensor | None

    def __init__(
        self,
        shape: tuple[int, int],
        values: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        bias: Tensor | None = None,
        gelu: bool = False,
    ) -> None:
        """Takes storage as `lpvit.sparse.storage.compress` makes it, for a weight of ``shape`` (O, I)."""
        super().__init__()
        self.out_features, self.in_features = shape
        self.gelu = gelu
        self.register_buffer("values", values)
        self.register_buffer("crow_indices", crow_indices)
        self.register_buffer("col_indices", col_indices)
        self.register_buffer("bias", bias)
        self._lay_out_values()

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, keep_mask: Tensor, block_shape: tuple[int, int], gelu: bool = False
    ) -> Self:
        """The sparse form of a linear layer.

        Args:
            linear: Its weights and bias are copied.
            keep_mask: Shape (R, C), bool, True where the block stays.
            block_shape: (r, c).
            gelu: Whether a GELU that follows is computed too.

        Raises:
            LpvitError: The mask does not fit the layer.
        """
        grid = BlockGrid((linear.out_features, linear.in_features), block_shape)
        if keep_mask.shape != (grid.rows, grid.columns) or keep_mask.dtype != torch.bool:
            raise LpvitError(
                f"keep mask: {keep_mask.dtype} of {tuple(keep_mask.shape)} for a layer of {grid.shape[0]}x"
                f"{grid.shape[1]}; blocks of {block_shape[0]}x{block_shape[1]} need torch.bool of {grid.rows}x"
                f"{grid.columns}"
            )
        storage = compress(linear.weight.detach(), keep_mask.to(linear.weight.device), block_shape)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(grid.shape, *storage, bias, gelu)

    @property
    def grid(self) -> BlockGrid:
        return BlockGrid((self.out_features, self.in_features), (self.values.shape[1], self.values.shape[2]))

    @property
    def sparsity(self) -> float:
        """Share of the blocks that is pruned."""
        return 1 - len(self.values) / self.grid.count

    def dense_weight(self) -> Tensor:
        """The weight as a matrix (O, I), zero where it is pruned."""
        return decompress(self.values, self.crow_indices, self.col_indices, self.grid)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., I) -> (..., O), in the dtype of the weights.

        Raises:
            LpvitError: A gradient would be needed, or the inputs do not fit the layer.
        """
        values, bias = self.values, self.bias
        if torch.is_grad_enabled() and (inputs.requires_grad or values.requires_grad):
            raise LpvitError(
                "BlockSparseLinear: has no gradients; run it under torch.no_grad(), or train the masked dense model"
            )
        if inputs.shape[-1] != self.in_features or inputs.dtype != values.dtype:
            raise LpvitError(
                f"BlockSparseLinear: inputs of {inputs.shape[-1]} features in {inputs.dtype} for a layer of "
                f"{self.in_features} in {values.dtype}; convert the inputs, or the model with .to(dtype)"
            )
        return block_sparse_linear(
            inputs, values, self.crow_indices, self.col_indices, bias, self.out_features, self.gelu
        )

    def extra_repr(self) -> str:
        path = path_of(self.values)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"gelu={self.gelu}, block_shape={self.values.shape[1]}x{self.values.shape[2]}, "
            f"sparsity={self.sparsity:.3f}, path={path.name}{f' ({path.reason})' if path.reason else ''}"
        )

    def _lay_out_values(self) -> None:
        """Puts the values in the memory order that the kernel of their device reads."""
        if self.values.device.type == "cpu":
            self.values = self.values.transpose(1, 2).contiguous().transpose(1, 2)
        else:
            self.values = self.values.contiguous()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._lay_out_values()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        indexed_keep_mask(self.crow_indices, self.col_indices, len(self.values), self.grid)
        self._lay_out_values()
