"""Linear layers that store and multiply only the blocks that pruning kept.

O, I = output and input features; r, c = rows and columns of a block; R, C = rows and columns of the grid;
K = kept blocks; g = ceil(c / 4).
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from lpvit.errors import LpvitError
from lpvit.precisions import SPARSE, dtype_of
from lpvit.sparse.int8 import (
    MOST_INPUTS,
    QuantisedLayer,
    block_sparse_linear_int8,
    pack,
    quantise_weight,
    sums_of_rows,
    unpack,
)
from lpvit.sparse.operator import FusedOperations, SparseLayer, block_sparse_linear, path_of
from lpvit.sparse.storage import compress, decompress, indexed_keep_mask
from lpvit.structures.blocks.grid import BlockGrid


class BlockSparseLinear(nn.Module):
    """``y = x W^T + b``, optionally through GELU (erf), for inference; pruned blocks of W are not stored.

    Attributes:
        values: Kept blocks, shape (K, r, c).
        crow_indices: Bounds of the block-rows, shape (R + 1,), int32.
        col_indices: Block-columns of the kept blocks, shape (K,), int32.
        bias: Shape (O,), or None.
        norm_weight: Of a LayerNorm before the layer (`take_norm`), shape (I,), float32, or None.
        norm_bias: Likewise.
    """

    values: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    _exact: tuple[str, ...] = ("norm_weight", "norm_bias")  # not changed by a cast of the model

    def __init__(
        self,
        shape: tuple[int, int],
        values: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        bias: Tensor | None = None,
        gelu: bool = False,
    ) -> None:
        """Takes the storage from `lpvit.sparse.storage.compress`, for a weight of ``shape`` (O, I)."""
        super().__init__()
        self.out_features, self.in_features = shape
        self.gelu = gelu
        self.register_buffer("values", values)
        self.register_buffer("crow_indices", crow_indices)
        self.register_buffer("col_indices", col_indices)
        self.register_buffer("bias", bias)
        self.register_buffer("norm_weight", None)
        self.register_buffer("norm_bias", None)
        self.norm_epsilon = 0.0
        self._lay_out_values()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        keep_mask: Tensor,
        block_shape: tuple[int, int],
        gelu: bool = False,
        precision: str | None = None,
        scales: Tensor | None = None,
    ) -> "BlockSparseLinear":
        """The sparse form of a linear layer.

        Args:
            linear: Its weights and bias are copied.
            keep_mask: Shape (R, C), bool, True where the block is kept.
            block_shape: (r, c).
            gelu: Whether to fuse a following GELU.
            precision: Of `lpvit.precisions.SPARSE`; by default that of the weights.
            scales: For int8, of each output, shape (O,); by default the largest kept weight over 127.

        Raises:
            LpvitError: The mask does not fit the layer, or there is no such precision.
        """
        grid = BlockGrid((linear.out_features, linear.in_features), block_shape)
        if keep_mask.shape != (grid.rows, grid.columns) or keep_mask.dtype != torch.bool:
            raise LpvitError(
                f"keep mask: {keep_mask.dtype} of {tuple(keep_mask.shape)} for a layer of {grid.shape[0]}x"
                f"{grid.shape[1]}; blocks of {block_shape[0]}x{block_shape[1]} need torch.bool of {grid.rows}x"
                f"{grid.columns}"
            )
        if precision not in (None, *SPARSE):
            raise LpvitError(f"precision: no '{precision}'; there are {', '.join(SPARSE)}")
        weight, keep_mask = linear.weight.detach(), keep_mask.to(linear.weight.device)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        if precision == "int8":
            values, scales = quantise_weight(weight * grid.expand(keep_mask), scales)
            blocks, rows, columns = compress(values, keep_mask, block_shape)
            return Int8BlockSparseLinear(grid.shape, blocks, scales, rows, columns, bias, gelu)
        dtype = weight.dtype if precision is None else dtype_of(precision)
        bias = None if bias is None else bias.to(dtype)
        return BlockSparseLinear(grid.shape, *compress(weight.to(dtype), keep_mask, block_shape), bias, gelu)

    @property
    def block_shape(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[2]

    @property
    def grid(self) -> BlockGrid:
        return BlockGrid((self.out_features, self.in_features), self.block_shape)

    @property
    def sparsity(self) -> float:
        """Share of pruned blocks."""
        return 1 - len(self.values) / self.grid.count

    def dense_weight(self) -> Tensor:
        """The weight as a matrix (O, I), zero in pruned blocks."""
        return decompress(self.values, self.crow_indices, self.col_indices, self.grid)

    def take_norm(self, norm: nn.LayerNorm) -> None:
        """Fuses a LayerNorm of the inputs into the layer (prologue)."""
        self.norm_weight = norm.weight.detach().float()
        bias = torch.zeros_like(self.norm_weight) if norm.bias is None else norm.bias
        self.norm_bias, self.norm_epsilon = bias.detach().float(), norm.eps

    def take_scale(self, factors: Tensor) -> None:
        """Fuses factors of the outputs, shape (O,), into the layer, such as LayerScale (epilogue)."""
        of_blocks = F.pad(factors.detach(), (0, -self.out_features % self.block_shape[0])).view(-1, self.block_shape[0])
        rows = torch.arange(self.grid.rows, device=factors.device).repeat_interleave(self.crow_indices.diff())
        self.values = self.values * of_blocks[rows][:, :, None]
        self.bias = None if self.bias is None else self.bias * factors.detach()
        self._lay_out_values()

    def forward(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., I) -> (..., O), in the dtype of the weights, also under ``torch.autocast``.

        Args:
            inputs: Shape (..., I).
            residual: Added to the outputs, shape (..., O).

        Raises:
            LpvitError: A gradient would be needed, or the inputs do not fit the layer.
        """
        if torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(self.values.dtype)
        self._check(inputs, (self.values.dtype,))
        indices = (self.crow_indices, self.col_indices)
        layer = SparseLayer(self.values, *indices, self.bias, self.out_features, self.gelu)
        return block_sparse_linear(inputs, layer, self._fused_operations(inputs, residual))

    def _fused_operations(self, inputs: Tensor, residual: Tensor | None) -> FusedOperations:
        residual = None if residual is None else residual.to(inputs.dtype)
        return FusedOperations(self.norm_weight, self.norm_bias, self.norm_epsilon, residual)

    def _check(self, inputs: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
        if torch.is_grad_enabled() and (inputs.requires_grad or self.values.requires_grad):
            raise LpvitError(
                "BlockSparseLinear: has no gradients; run it under torch.no_grad(), or train the masked dense model"
            )
        if inputs.shape[-1] != self.in_features or inputs.dtype not in dtypes:
            raise LpvitError(
                f"BlockSparseLinear: inputs of {inputs.shape[-1]} features in {inputs.dtype} for a layer of "
                f"{self.in_features} in {' or '.join(map(str, dtypes))}; convert the inputs, or the model with "
                ".to(dtype)"
            )

    def extra_repr(self) -> str:
        path = path_of(self.values)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"gelu={self.gelu}, dtype={str(self.values.dtype).removeprefix('torch.')}, "
            f"block_shape={self.block_shape[0]}x{self.block_shape[1]}, sparsity={self.sparsity:.3f}, "
            f"path={path.name}{f' ({path.reason})' if path.reason else ''}"
            f"{', after LayerNorm' if self.norm_weight is not None else ''}"
        )

    def _lay_out_values(self) -> None:
        """Converts the values to the memory order of the kernel of their device."""
        if self.values.device.type == "cpu":
            self.values = self.values.transpose(1, 2).contiguous().transpose(1, 2)
        else:
            self.values = self.values.contiguous()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: getattr(self, name) for name in self._exact}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._lay_out_values()
        for name, tensor in exact.items():  # which a cast of the model would have rounded
            setattr(self, name, None if tensor is None else tensor.to(self.values.device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        indexed_keep_mask(self.crow_indices, self.col_indices, len(self.values), self.grid)
        self._lay_out_values()


class Int8BlockSparseLinear(BlockSparseLinear):
    """The layer with int8 weights, and one scale per output; it quantises its inputs per token.

    Inputs and outputs are float32 or bfloat16; ``.to(dtype)`` does not change it.

    Attributes:
        values: Kept blocks, shape (K, r, g, 4), int8: groups of four columns, padded with zeros.
        scales: Shape (O,), float32; a weight is its value times the scale of its output.
        row_sums: Sum of each output's values, shape (O,), int32; follows from them.
        bias: Shape (O,), float32, or None.
    """

    scales: Tensor
    row_sums: Tensor
    _exact = ("scales", "bias", "norm_weight", "norm_bias")

    def __init__(
        self,
        shape: tuple[int, int],
        values: Tensor,
        scales: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        bias: Tensor | None = None,
        gelu: bool = False,
    ) -> None:
        """Takes blocks (K, r, c) of integers, for a weight of ``shape`` (O, I)."""
        if shape[1] > MOST_INPUTS:
            raise LpvitError(
                f"BlockSparseLinear: {shape[1]} input features in int8; sums may overflow beyond {MOST_INPUTS}"
            )
        self._block_columns = values.shape[2]
        bias = None if bias is None else bias.float()
        super().__init__(shape, pack(values), crow_indices, col_indices, bias, gelu)
        self.register_buffer("scales", scales.float())

    def take_scale(self, factors: Tensor) -> None:
        """Fuses factors of the outputs, shape (O,), into the layer, such as LayerScale (epilogue)."""
        factors = factors.detach().float()
        self.scales = self.scales * factors
        self.bias = None if self.bias is None else self.bias * factors

    @property
    def block_shape(self) -> tuple[int, int]:
        return self.values.shape[1], self._block_columns

    def dense_weight(self) -> Tensor:
        """The weight as a matrix (O, I), zero in pruned blocks."""
        values = decompress(unpack(self.values, self._block_columns), self.crow_indices, self.col_indices, self.grid)
        return values * self.scales[:, None]

    def forward(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., I) -> (..., O), in the dtype of the inputs, added to a residual (..., O) if there is one.

        Raises:
            LpvitError: As `BlockSparseLinear`.
        """
        self._check(inputs, (torch.float32, torch.bfloat16))
        layer = QuantisedLayer(
            *(self.values, self.scales, self.row_sums, self.crow_indices, self.col_indices, self.bias),
            out_features=self.out_features,
            block_columns=self._block_columns,
            gelu=self.gelu,
        )
        return block_sparse_linear_int8(inputs, layer, self._fused_operations(inputs, residual))

    def _lay_out_values(self) -> None:
        super()._lay_out_values()
        sums = sums_of_rows(self.values, self.crow_indices, self.out_features)
        self.register_buffer("row_sums", sums, persistent=False)
