"""Block-sparse linear layer on a GPU, in Triton: a product over kept blocks only, with bias and GELU fused.

M = tokens; I, O = input and output features; r, c = rows and columns of a block; R = ceil(O / r) block rows.

A program computes a tile of M by one whole block row. The kept blocks of that row, side by side, form one dense axis of
``kept * c`` weights, over which it steps ``tile_k`` at a time: a step is a part of a wide block, or gathers several
narrow ones, so that tensor cores get full tiles whatever c is. The other side of their tiles is r: 64 and more is fast,
below that the inputs are read too often for what is computed with them.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# (Triton has no types, nor has what it compiles)

from typing import Any

import torch
from torch import Tensor

from lpvit.errors import LpvitError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise LpvitError(f"triton: cannot be imported ({error}); it is made for Linux, use another kernel here") from error

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETED = triton.knobs.runtime.interpret
WIDEN = tl.constexpr(INTERPRETED)  # the interpreter multiplies bfloat16 as if it were integers
STRIP = tl.constexpr(8)  # tiles of tokens whose inputs share the cache
SQRT_HALF = tl.constexpr(0.5**0.5)
LEAST_TILE = 16  # of tl.dot, in every direction
MOST_SUMS = 128  # float32 sums a thread can hold, of its 255 registers
MOST_UNROLLED = 2048  # multiply-adds a thread has unrolled in a step, without tensor cores


def block_sparse_linear(
    inputs: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    bias: Tensor | None,
    out_features: int,
    gelu: bool,
) -> Tensor:
    """``inputs @ weight.T + bias``, with GELU on top if asked, for a weight of which only some blocks are kept.

    Sums are in float32. Inputs of float32 are rounded to TF32 only where torch's own matrix products would be
    (``torch.backends.cuda.matmul.fp32_precision``). The first call with a new shape times a few tilings; Triton caches
    the choice on disk.

    Args:
        inputs: Shape (M, I); float16, bfloat16 or float32, on a GPU (on a CPU under Triton's interpreter).
        values: Kept blocks by rows, shape (kept, r, c), in the dtype of the inputs; zero where a block of the last row
            or column reaches past the weight matrix.
        crow_indices: Where each block row begins in ``values``, shape (R + 1,), int32.
        col_indices: Block column of every kept block, shape (kept,), int32.
        bias: Shape (O,), or None.
        out_features: O.
        gelu: Whether to apply the exact GELU, x / 2 * (1 + erf(x / sqrt(2))).

    Returns:
        Shape (M, O), in the dtype of the inputs.

    Raises:
        LpvitError: The device or the dtype is not one of the above.
    """
    _require_runnable(inputs, values)
    tokens, in_features = inputs.shape
    outputs = inputs.new_empty(tokens, out_features)
    if outputs.numel() == 0:
        return outputs
    constants = _constants(inputs.dtype, in_features, (values.shape[1], values.shape[2]), gelu)
    sizes = tokens, max(LEAST_TILE, triton.next_power_of_2(tokens)), in_features, out_features
    count = len(crow_indices) - 1
    with torch.cuda.device(inputs.get_device()):
        _kernel[lambda tiling: (triton.cdiv(tokens, tiling["tile_m"]) * count,)](
            *(inputs.contiguous(), values.contiguous(), crow_indices, col_indices, bias, outputs, *sizes),
            **constants,
            enable_fp_fusion=True,
        )
    return outputs


def _require_runnable(inputs: Tensor, values: Tensor) -> None:
    if not (inputs.is_cuda or INTERPRETED):
        raise LpvitError(f"Triton kernel: inputs are on '{inputs.device}'; move model and inputs to a GPU")
    if inputs.dtype not in DTYPES or values.dtype != inputs.dtype:
        raise LpvitError(
            f"Triton kernel: inputs are {inputs.dtype}, weights {values.dtype}; make both float16, bfloat16 or float32"
        )


def _constants(dtype: torch.dtype, in_features: int, block_shape: tuple[int, int], gelu: bool) -> dict[str, Any]:
    """What the kernel is compiled for, beside dtypes and tiling."""
    block_rows, block_columns = block_shape
    return {
        "block_rows": block_rows,
        "block_columns": block_columns,
        "tile_n": max(LEAST_TILE, triton.next_power_of_2(block_rows)),
        "run": block_columns & -block_columns,  # largest power of two in c: so many columns are adjacent and aligned
        "ragged": in_features % block_columns != 0,
        "gelu": gelu,
        "precision": _precision(dtype),
    }


def _precision(dtype: torch.dtype) -> str:
    """Of the operands of tensor cores; only float32 is not taken as it is."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _tilings() -> list[triton.Config]:
    """Candidates: (tile_m, tile_k, warps, stages)."""
    candidates = [
        (16, 32, 4, 3),  # fits wherever Triton runs
        (16, 64, 4, 4),
        (32, 64, 4, 4),
        (64, 32, 4, 4),
        (64, 64, 4, 4),
        (64, 128, 4, 3),
        (128, 32, 4, 5),
        (128, 64, 4, 3),
        (128, 64, 4, 4),
        (128, 64, 8, 3),
        (128, 64, 8, 4),
        (128, 128, 8, 3),
        (256, 32, 8, 4),
        (256, 64, 8, 3),
        (256, 64, 8, 4),
    ]
    return [
        triton.Config({"tile_m": tile_m, "tile_k": tile_k}, num_warps=warps, num_stages=stages)
        for tile_m, tile_k, warps, stages in ([(32, 32, 4, 1)] if INTERPRETED else candidates)
    ]


def _worth_timing(tilings: list[triton.Config], arguments: dict[str, Any], **meta: Any) -> list[triton.Config]:
    """Leaves out what does not fit the shared memory, spills registers, or is mostly padding for so few tokens."""
    inputs, bucket, tile_n = arguments["inputs"], arguments["tokens_bucket"], meta["tile_n"]
    memory = torch.cuda.get_device_properties(inputs.device).shared_memory_per_block_optin
    without_tensor_cores = inputs.dtype == torch.float32 and meta["precision"] == "ieee"

    def is_worth(tiling: triton.Config) -> bool:
        tile_m, tile_k, threads = tiling.kwargs["tile_m"], tiling.kwargs["tile_k"], 32 * tiling.num_warps
        if without_tensor_cores and tile_m * tile_n * tile_k > MOST_UNROLLED * threads:
            return False
        staged = tiling.num_stages * (tile_m + tile_n) * tile_k * inputs.element_size()
        return bool(staged <= memory and tile_m <= bucket and tile_m * tile_n <= MOST_SUMS * threads)

    return [tiling for tiling in tilings if is_worth(tiling)]


@triton.jit
def _kept_columns(start, length, col_indices, block_columns: tl.constexpr, tile_k: tl.constexpr, run: tl.constexpr):
    """Of a step: places along the kept axis, the block each lies in, and the columns of the weight they stand for."""
    place = start + tl.arange(0, tile_k)
    if block_columns % tile_k == 0:  # one block or a part of it: one index will do
        block = start // block_columns
        block_column = tl.load(col_indices + block, mask=start < length, other=0)
        column = block_column * block_columns + start % block_columns + tl.arange(0, tile_k)
    else:
        block = place // block_columns
        block_column = tl.load(col_indices + block, mask=place < length, other=0)
        column = block_column * block_columns + place % block_columns
        column = tl.max_contiguous(tl.multiple_of(column, run), run)  # so that loads are wide
    return place, block, column


@triton.autotune(
    configs=_tilings(),
    key=["tokens_bucket", "in_features", "out_features", "block_rows", "block_columns", "precision"],
    prune_configs_by={"early_config_prune": _worth_timing},
    cache_results=True,
)
@triton.jit(do_not_specialize=["tokens", "tokens_bucket"])
def _kernel(
    inputs,
    values,
    crow_indices,
    col_indices,
    bias,
    outputs,
    tokens,
    tokens_bucket,
    in_features,
    out_features,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    tile_n: tl.constexpr,
    run: tl.constexpr,
    ragged: tl.constexpr,
    gelu: tl.constexpr,
    precision: tl.constexpr,
    tile_m: tl.constexpr,
    tile_k: tl.constexpr,
):
    # Programs go strip by strip of tiles of tokens, whose inputs stay in the cache; within a strip by block rows.
    strip_size = STRIP * tl.cdiv(out_features, block_rows)
    strip = tl.program_id(0) // strip_size * STRIP
    height = tl.minimum(tl.cdiv(tokens, tile_m) - strip, STRIP)
    within = tl.program_id(0) % strip_size
    first_token = (strip + within % height) * tile_m
    block_row = within // height
    first_block = tl.load(crow_indices + block_row)
    length = (tl.load(crow_indices + block_row + 1) - first_block) * block_columns

    # Only the first address of a tile needs 64 bits.
    inputs += first_token.to(tl.int64) * in_features
    outputs += first_token.to(tl.int64) * out_features
    values += first_block.to(tl.int64) * block_rows * block_columns
    col_indices += first_block

    # Rows past the end read the last one again: that needs no mask, and they are not stored.
    token = tl.arange(0, tile_m)
    row = tl.arange(0, tile_n)
    input_rows = inputs + tl.minimum(token, tokens - first_token - 1)[:, None] * in_features
    weight_rows = values + tl.minimum(row, block_rows - 1)[:, None] * block_columns

    sums = tl.zeros((tile_m, tile_n), dtype=tl.float32)
    place, block, column = _kept_columns(0, length, col_indices, block_columns, tile_k, run)
    for start in range(0, length, tile_k):
        kept = place < length
        x = tl.load(input_rows + column, mask=kept & (column < in_features) if ragged else kept, other=0.0)
        weight = tl.load(weight_rows + (block * ((block_rows - 1) * block_columns) + place), mask=kept, other=0.0)
        # Carried over from the step before: an index read in its own step would take half of the pipeline's stages.
        place, block, column = _kept_columns(start + tile_k, length, col_indices, block_columns, tile_k, run)
        if WIDEN:
            x, weight = x.to(tl.float32), weight.to(tl.float32)
        sums = tl.dot(x, weight.T, sums, input_precision=precision)

    feature = block_row * block_rows + row
    stored = (row < block_rows) & (feature < out_features)
    if bias is not None:
        sums += tl.load(bias + feature, mask=stored, other=0.0).to(tl.float32)
    if gelu:
        sums = 0.5 * sums * (1 + tl.erf(sums * SQRT_HALF))
    tl.store(
        outputs + (token[:, None] * out_features + feature),
        sums.to(outputs.dtype.element_ty),
        mask=(token < tokens - first_token)[:, None] & stored,
    )
