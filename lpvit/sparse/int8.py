"""Block-sparse linear layers in int8: quantisation, and the operator ``lpvit::block_sparse_linear_int8``.

A weight is ``a v`` with v in -127 ... 127 and a scale a for each output. Inputs are quantised when the layer runs,
token by token: ``x = s (q - z)`` with q in 0 ... 255 and a zero point z, so that 0, the least and the greatest input
are met. Sums of ``q v`` are exact.

B = leading dimensions, any number; I, O = input and output features; r, c = rows and columns of a block;
R, C = rows and columns of the grid; K = kept blocks; g = ceil(c / 4), groups of columns that are multiplied at once.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from lpvit.models.blocks import BlockGrid
from lpvit.models.quantised import LARGEST, quantise_tokens
from lpvit.sparse.operator import LIBRARY, define, implement, log_once, path_of
from lpvit.sparse.storage import decompress

TOGETHER = 4  # columns
MOST_INPUTS = 2**15  # whose sums surely fit int32 on the way

_ARGUMENTS = (
    "(Tensor inputs, Tensor values, Tensor scales, Tensor row_sums, Tensor crow_indices, Tensor col_indices, "
    "Tensor? bias, int out_features, int block_columns, bool gelu, Tensor? norm_weight=None, Tensor? norm_bias=None, "
    "float norm_epsilon=0.0, Tensor? residual=None)"
)


def quantise_weight(weight: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nearest whole multiples of a scale for each output.

    Args:
        weight: Shape (O, I).
        scales: Shape (O,); by default those that make the largest weight of an output 127.

    Returns:
        Values (O, I), int8, and scales (O,), float32.
    """
    if scales is None:
        scales = weight.float().abs().amax(dim=1) / LARGEST
    scales = scales.float()
    multiples = weight.float() / torch.where(scales > 0, scales, 1.0)[:, None]
    return multiples.round().clamp(-LARGEST, LARGEST).to(torch.int8), scales


def pack(values: Tensor) -> Tensor:
    """Puts the columns of blocks (K, r, c) into groups: (K, r, g, 4), padded with zeros."""
    padding = -values.shape[2] % TOGETHER
    padded = F.pad(values, (0, padding))
    return padded.reshape(*values.shape[:2], padded.shape[2] // TOGETHER, TOGETHER)


def unpack(values: Tensor, block_columns: int) -> Tensor:
    """What `pack` took: blocks (K, r, c)."""
    return values.flatten(2)[:, :, :block_columns]


def sums_of_rows(values: Tensor, crow_indices: Tensor, out_features: int) -> Tensor:
    """Sum of every output's weight values.

    Args:
        values: Shape (K, r, g, 4), int8.
        crow_indices: Shape (R + 1,).
        out_features: O.

    Returns:
        Shape (O,), int32.
    """
    rows = torch.arange(len(crow_indices) - 1, device=values.device)
    of_blocks = rows.repeat_interleave(crow_indices.diff(), output_size=len(values))
    sums = values.new_zeros(len(rows), values.shape[1], dtype=torch.int64)
    sums.index_add_(0, of_blocks, values.sum((2, 3)))
    return sums.flatten()[:out_features].int()


class QuantisedLayer(NamedTuple):
    """What the operator takes beside the inputs.

    Attributes:
        values: Shape (K, r, g, 4), int8; read without a copy if the memory order is (K, g, r, 4).
        scales: Shape (O,), float32.
        row_sums: Shape (O,), int32, from `sums_of_rows`.
        crow_indices: Shape (R + 1,), int32.
        col_indices: Shape (K,), int32.
        bias: Shape (O,), float32, or None.
        out_features: O.
        block_columns: c.
        gelu: Whether GELU (erf) follows.
        norm_weight: Shape (I,), float32: inputs go through LayerNorm before they are quantised; or None.
        norm_bias: Shape (I,), float32, or None.
        norm_epsilon: That LayerNorm adds to the variance.
    """

    values: Tensor
    scales: Tensor
    row_sums: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    bias: Tensor | None
    out_features: int
    block_columns: int
    gelu: bool
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    norm_epsilon: float = 0.0


def block_sparse_linear_int8(inputs: Tensor, layer: QuantisedLayer, residual: Tensor | None = None) -> Tensor:
    """Inputs through a quantised layer.

    Args:
        inputs: Shape (B, I), float32 or bfloat16.
        layer: What they meet.
        residual: Added to the outputs before they are rounded, shape (B, O), in the dtype of the inputs.

    Returns:
        Shape (B, O), in the dtype of the inputs.
    """
    outputs: Tensor = torch.ops.lpvit.block_sparse_linear_int8(inputs, *layer, residual)
    return outputs


def _masked_dense_linear(inputs: Tensor, *arguments: Any) -> Tensor:
    layer = QuantisedLayer(*arguments[: len(QuantisedLayer._fields)])
    residual: Tensor | None = arguments[len(layer)] if len(arguments) > len(layer) else None
    log_once(path_of(layer.values).reason)
    dtype, shape = inputs.dtype, (layer.out_features, inputs.shape[-1])
    if layer.norm_weight is not None:
        inputs = F.layer_norm(inputs.float(), shape[1:], layer.norm_weight, layer.norm_bias, layer.norm_epsilon)
    grid = BlockGrid(shape, (layer.values.shape[1], layer.block_columns))
    values = unpack(layer.values, layer.block_columns)
    weight = decompress(values, layer.crow_indices, layer.col_indices, grid)
    quantised, scale, zero_point = quantise_tokens(inputs)
    sums = F.linear(quantised.double(), weight.double()) - zero_point.double() * layer.row_sums  # whole numbers, exact
    outputs = sums.float() * scale * layer.scales
    outputs = outputs if layer.bias is None else outputs + layer.bias
    outputs = F.gelu(outputs) if layer.gelu else outputs
    return (outputs if residual is None else outputs + residual).to(dtype)


def _linear_without_kernel(inputs: Tensor, values: Tensor, *others: Tensor | float | bool | None) -> Tensor:
    """What torch calls where no kernel is registered: on a CPU, that may be the first use of it."""
    kernel_was_registered = path_of(values).reason == "" and values.device.type == "cpu"
    name = "block_sparse_linear_int8" if kernel_was_registered else "masked_dense_linear_int8"
    outputs: Tensor = getattr(torch.ops.lpvit, name)(inputs, values, *others)
    return outputs


def _shape_only(inputs: Tensor, values: Tensor, scales: Tensor, *_: object) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], len(scales))


define(f"block_sparse_linear_int8{_ARGUMENTS} -> Tensor", tags=(torch.Tag.needs_exact_strides,))
define(f"masked_dense_linear_int8{_ARGUMENTS} -> Tensor")
implement("masked_dense_linear_int8", _masked_dense_linear, "CompositeExplicitAutograd")
implement("block_sparse_linear_int8", _linear_without_kernel, "CompositeExplicitAutograd")
for _name in ("block_sparse_linear_int8", "masked_dense_linear_int8"):
    torch.library.register_fake(f"lpvit::{_name}", _shape_only, lib=LIBRARY)
