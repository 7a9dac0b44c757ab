"""Block-sparse linear layers in int8: quantisation, and the operator ``lpvit::block_sparse_linear_int8``.

A weight is ``a v`` with v in -127 ... 127 and a scale a for each output. Inputs are quantised at run time per token:
``x = s (q - z)`` with q in 0 ... 255 and a zero point z, so 0, the smallest and the largest input are represented. Sums
of ``q v`` are exact.

B = leading dimensions, any number; I, O = input and output features; r, c = rows and columns of a block;
R, C = rows and columns of the grid; K = kept blocks; g = ceil(c / 4), groups of columns multiplied by one instruction.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from lpvit.quantisation.layers import quantise_tokens
from lpvit.quantisation.rounding import LARGEST
from lpvit.sparse.operator import FUSED_OPERATIONS, LIBRARY, FusedOperations, define, implement, log_once, path_of
from lpvit.sparse.storage import decompress
from lpvit.structures.blocks.grid import BlockGrid

TOGETHER = 4  # columns
MOST_INPUTS = 2**15  # whose intermediate sums fit int32 for any values

_ARGUMENTS = (
    "(Tensor inputs, Tensor values, Tensor scales, Tensor row_sums, Tensor crow_indices, Tensor col_indices, "
    f"Tensor? bias, int out_features, int block_columns, bool gelu, {FUSED_OPERATIONS})"
)


def quantise_weight(weight: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rounds to the nearest integer multiples of a scale per output.

    Args:
        weight: Shape (O, I).
        scales: Shape (O,); by default those that map the largest weight of an output to 127.

    Returns:
        Values (O, I), int8, and scales (O,), float32.
    """
    if scales is None:
        scales = weight.float().abs().amax(dim=1) / LARGEST
    scales = scales.float()
    multiples = weight.float() / torch.where(scales > 0, scales, 1.0)[:, None]
    return multiples.round().clamp(-LARGEST, LARGEST).to(torch.int8), scales


def pack(values: Tensor) -> Tensor:
    """Groups the columns of blocks (K, r, c): (K, r, g, 4), padded with zeros."""
    padding = -values.shape[2] % TOGETHER
    padded = F.pad(values, (0, padding))
    return padded.reshape(*values.shape[:2], padded.shape[2] // TOGETHER, TOGETHER)


def unpack(values: Tensor, block_columns: int) -> Tensor:
    """Inverse of `pack`: blocks (K, r, c)."""
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
    """What the operator takes beside the inputs and `FusedOperations`.

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


def block_sparse_linear_int8(inputs: Tensor, layer: QuantisedLayer, fused: FusedOperations) -> Tensor:
    """Inputs (B, I), float32 or bfloat16, through a quantised layer: (B, O), in the dtype of the inputs."""
    outputs: Tensor = torch.ops.lpvit.block_sparse_linear_int8(inputs, *layer, *fused)
    return outputs


def _parted(arguments: Sequence[Any]) -> tuple[QuantisedLayer, FusedOperations]:
    count = len(QuantisedLayer._fields)
    return QuantisedLayer(*arguments[:count]), FusedOperations(*arguments[count:])


def _masked_dense_linear(inputs: Tensor, *arguments: Any) -> Tensor:
    layer, fused = _parted(arguments)
    log_once(path_of(layer.values).reason)
    shape = (layer.out_features, inputs.shape[-1])
    grid = BlockGrid(shape, (layer.values.shape[1], layer.block_columns))
    values = unpack(layer.values, layer.block_columns)
    weight = decompress(values, layer.crow_indices, layer.col_indices, grid)
    quantised, scale, zero_point = quantise_tokens(fused.before(inputs))
    sums = F.linear(quantised.double(), weight.double()) - zero_point.double() * layer.row_sums  # whole numbers, exact
    outputs = sums.float() * scale * layer.scales
    outputs = outputs if layer.bias is None else outputs + layer.bias
    return fused.after(F.gelu(outputs) if layer.gelu else outputs).to(inputs.dtype)


def _linear_without_kernel(inputs: Tensor, values: Tensor, *others: Any) -> Tensor:
    """Called by torch where no kernel is registered; on a CPU, possibly at the first use."""
    kernel_was_registered = path_of(values).reason == "" and values.device.type == "cpu"
    name = "block_sparse_linear_int8" if kernel_was_registered else "masked_dense_linear_int8"
    outputs: Tensor = getattr(torch.ops.lpvit, name)(inputs, values, *others)
    return outputs


def _linear_on_gpu(inputs: Tensor, *arguments: Any) -> Tensor:
    layer, fused = _parted(arguments)
    if path_of(layer.values).reason:
        outputs: Tensor = torch.ops.lpvit.masked_dense_linear_int8(inputs, *arguments)
        return outputs
    from lpvit.sparse import triton_kernel, triton_quantise

    flat = fused.before(inputs).reshape(inputs.shape[:-1].numel(), inputs.shape[-1])
    quantised, scales, zero_points = triton_quantise.quantise_tokens(flat)
    meaning = triton_kernel.Scales(scales, zero_points, layer.scales, layer.row_sums)
    blocks = unpack(layer.values, layer.block_columns).contiguous()  # no copy, except of padded blocks
    dtype = inputs.dtype if fused.residual is None else torch.float32
    indices = layer.crow_indices, layer.col_indices
    product = triton_kernel.block_sparse_linear_int8(
        quantised, blocks, *indices, layer.bias, meaning, dtype, layer.gelu
    )
    return fused.after(product.view(*inputs.shape[:-1], layer.out_features)).to(inputs.dtype)


def _shape_only(inputs: Tensor, values: Tensor, scales: Tensor, *_: object) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], len(scales))


define(f"block_sparse_linear_int8{_ARGUMENTS} -> Tensor", tags=(torch.Tag.needs_exact_strides,))
define(f"masked_dense_linear_int8{_ARGUMENTS} -> Tensor")
implement("masked_dense_linear_int8", _masked_dense_linear, "CompositeExplicitAutograd")
implement("block_sparse_linear_int8", _linear_without_kernel, "CompositeExplicitAutograd")
implement("block_sparse_linear_int8", _linear_on_gpu, "CUDA")
for _name in ("block_sparse_linear_int8", "masked_dense_linear_int8"):
    torch.library.register_fake(f"lpvit::{_name}", _shape_only, lib=LIBRARY)
