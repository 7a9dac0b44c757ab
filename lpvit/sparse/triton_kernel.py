"""Block-sparse linear layer on a GPU, in Triton: a product over kept blocks only, with bias and GELU fused.

M = tokens; I, O = input and output features; r, c = rows and columns of a block; R = ceil(O / r) block rows.

A program computes a tile of M by one whole block row. The kept blocks of that row form one dense axis of ``kept * c``
weights, processed ``tile_k`` per iteration: a part of a wide block, or several narrow ones, so that tensor cores get
full tiles for any c. The other side of the tiles is r: 64 and more is fast; below that, inputs are read too often for
their arithmetic.

An iteration within one block may copy two boxes, of inputs and of weights, with Hopper's tensor memory accelerator; all
else is gathered by addresses. The product may be transposed: with the weights on the left, a few blocks are multiplied
with many tokens in one instruction, and the shared memory is read less often.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# (Triton is untyped, and so are its kernels)

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lpvit.errors import LpvitError

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    from lpvit.sparse.triton_parts import gelu_of, meanings, sums_by_address, sums_of_boxes, tile_of_program
except ImportError as error:
    raise LpvitError(f"triton: cannot be imported ({error}); it is made for Linux, use another kernel here") from error

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETED = triton.knobs.runtime.interpret
LEAST_TILE = 16  # of tl.dot, in every direction
LEAST_TURNED = 64  # rows that Hopper's tensor cores take on the left side
LEAST_BOXED = 128  # tokens of a tile from which box copies, where available, are always faster
MOST_SUMS = 128  # sums a thread can hold, of its 255 registers
MOST_UNROLLED = 2048  # unrolled multiply-adds of a thread per iteration, without tensor cores
LINE = 16  # alignment in bytes of the rows of a box


class Scales(NamedTuple):
    """Scales of int8 numbers: an input is s (q - z), a weight a v.

    Attributes:
        tokens: s, shape (M,), float32.
        zero_points: z, shape (M,), int32.
        outputs: a, shape (O,), float32.
        row_sums: Sum of v for each output, shape (O,), int32.
    """

    tokens: Tensor
    zero_points: Tensor
    outputs: Tensor
    row_sums: Tensor


def block_sparse_linear(
    inputs: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    bias: Tensor | None,
    out_features: int,
    gelu: bool,
) -> Tensor:
    """``inputs @ weight.T + bias``, optionally followed by GELU, for a weight with pruned blocks.

    Sums are in float32. Inputs of float32 are rounded to TF32 only where torch's own matrix products would be
    (``torch.backends.cuda.matmul.fp32_precision``). The first call with a new shape times a few tilings; Triton caches
    the choice on disk.

    Args:
        inputs: Shape (M, I); float16, bfloat16 or float32, on a GPU (on a CPU under Triton's interpreter).
        values: Kept blocks by rows, shape (kept, r, c), in the dtype of the inputs; zero where a block of the last row
            or column reaches past the weight matrix.
        crow_indices: Start of each block row in ``values``, shape (R + 1,), int32.
        col_indices: Block column of every kept block, shape (kept,), int32.
        bias: Shape (O,), or None.
        out_features: O.
        gelu: Whether to apply GELU, x / 2 * (1 + erf(x / sqrt(2))), to 5e-7.

    Returns:
        Shape (M, O), in the dtype of the inputs.

    Raises:
        LpvitError: The device or the dtype is not one of the above.
    """
    _require_runnable(inputs)
    if inputs.dtype not in DTYPES or values.dtype != inputs.dtype:
        raise LpvitError(
            f"Triton kernel: inputs are {inputs.dtype}, weights {values.dtype}; make both float16, bfloat16 or float32"
        )
    outputs = inputs.new_empty(len(inputs), out_features)
    return _launch(inputs, values, (crow_indices, col_indices), bias, (None,) * 4, outputs, gelu)


def block_sparse_linear_int8(
    inputs: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    bias: Tensor | None,
    scales: Scales,
    dtype: torch.dtype,
    gelu: bool,
) -> Tensor:
    """`block_sparse_linear` of integers, with exact sums.

    Args:
        inputs: Shape (M, I), int8, from `lpvit.sparse.triton_quantise.quantise_tokens`.
        values: Shape (kept, r, c), int8.
        crow_indices: Shape (R + 1,), int32.
        col_indices: Shape (kept,), int32.
        bias: Shape (O,), float32, or None.
        scales: Of inputs and weights.
        dtype: Of the outputs.
        gelu: Whether to apply GELU.

    Returns:
        Shape (M, O), in ``dtype``.

    Raises:
        LpvitError: The inputs are not on a GPU.
    """
    _require_runnable(inputs)
    outputs = inputs.new_empty(len(inputs), len(scales.outputs), dtype=dtype)
    return _launch(inputs, values, (crow_indices, col_indices), bias, scales, outputs, gelu)


def _require_runnable(inputs: Tensor) -> None:
    if not (inputs.is_cuda or INTERPRETED):
        raise LpvitError(f"Triton kernel: inputs are on '{inputs.device}'; move model and inputs to a GPU")


def _launch(
    inputs: Tensor,
    values: Tensor,
    indices: tuple[Tensor, Tensor],
    bias: Tensor | None,
    scales: "Scales | tuple[None, ...]",
    outputs: Tensor,
    gelu: bool,
) -> Tensor:
    if outputs.numel() == 0:
        return outputs
    (tokens, in_features), out_features = inputs.shape, outputs.shape[1]
    constants = _constants(inputs.dtype, in_features, (values.shape[1], values.shape[2]), gelu)
    sizes = tokens, max(LEAST_TILE, triton.next_power_of_2(tokens)), in_features, out_features
    count = len(indices[0]) - 1
    with torch.cuda.device(inputs.get_device()):
        _kernel[lambda tiling: (triton.cdiv(tokens, tiling["tile_m"]) * count,)](
            *(inputs.contiguous(), values.contiguous(), *indices, bias, *scales, outputs, *sizes),
            **constants,
            enable_fp_fusion=True,
        )
    return outputs


def _constants(dtype: torch.dtype, in_features: int, block_shape: tuple[int, int], gelu: bool) -> dict[str, Any]:
    """Compile-time constants of the kernel besides dtypes and tiling."""
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
    """Input precision of tensor cores; only float32 is converted."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _tilings() -> list[triton.Config]:
    """Candidates: (tile_m, tile_k, warps, stages) for copies by address, by boxes, by boxes transposed."""
    by_address = [
        (16, 32, 4, 3),  # fits on any GPU with Triton
        (16, 64, 4, 4),
        (32, 64, 4, 4),
        (64, 32, 4, 4),
        (64, 64, 4, 4),
        (64, 128, 4, 3),
        (128, 32, 4, 5),
        (128, 64, 4, 4),
        (128, 64, 8, 3),
        (128, 128, 8, 3),
        (256, 32, 8, 4),
        (256, 64, 8, 3),
    ]
    # On an H100 in bfloat16 the best of these is within 3 % of the best of 28.
    by_boxes = [(64, 64, 4, 4), (128, 32, 4, 5), (128, 64, 4, 3), (128, 128, 8, 3)]
    turned = [(128, 64, 4, 2), (128, 128, 4, 3), (256, 64, 8, 2), (256, 64, 8, 3)]
    if INTERPRETED:
        by_address, by_boxes, turned = [(32, 32, 4, 1)], [], []
    return [
        _tiling(*sizes, boxes=boxes, turned=is_turned)
        for candidates, boxes, is_turned in ((by_address, False, False), (by_boxes, True, False), (turned, True, True))
        for sizes in candidates
    ]


def _tiling(tile_m: int, tile_k: int, warps: int, stages: int, boxes: bool, turned: bool) -> triton.Config:
    constants = {"tile_m": tile_m, "tile_k": tile_k, "boxes": boxes, "turned": turned}
    return triton.Config(constants, num_warps=warps, num_stages=stages)


def _worth_timing(tilings: list[triton.Config], arguments: dict[str, Any], **meta: Any) -> list[triton.Config]:
    """Excludes tilings that exceed the shared memory, spill registers, or are mostly padding for so few tokens."""
    inputs, bucket, tile_n = arguments["inputs"], arguments["tokens_bucket"], meta["tile_n"]
    device = torch.cuda.get_device_properties(inputs.device)
    without_tensor_cores = inputs.dtype == torch.float32 and meta["precision"] == "ieee"

    def is_worth(tiling: triton.Config) -> bool:
        tile_m, tile_k, threads = tiling.kwargs["tile_m"], tiling.kwargs["tile_k"], 32 * tiling.num_warps
        if without_tensor_cores and tile_m * tile_n * tile_k > MOST_UNROLLED * threads:
            return False
        can_box = device.major >= 9 and _have_boxes({**arguments, **meta, **tiling.kwargs, "boxes": True})
        if tiling.kwargs["boxes"] != can_box and (tiling.kwargs["boxes"] or tile_m >= LEAST_BOXED):
            return False
        if tiling.kwargs["turned"] and tile_n < LEAST_TURNED:
            return False
        staged = tiling.num_stages * (tile_m + tile_n) * tile_k * inputs.element_size()
        fits = staged <= device.shared_memory_per_block_optin
        return bool(fits and tile_m <= bucket and tile_m * tile_n <= MOST_SUMS * threads)

    return [tiling for tiling in tilings if is_worth(tiling)]


def _have_boxes(arguments: dict[str, Any]) -> bool:
    """Whether an iteration is one box of the inputs and one of the weights that the hardware can copy."""
    inputs, values, size = arguments["inputs"], arguments["values"], arguments["inputs"].element_size()
    aligned = (inputs.data_ptr(), values.data_ptr(), inputs.shape[1] * size, values.shape[2] * size)
    return bool(
        arguments["boxes"]
        and size <= 2  # float32 is used for exactness
        and arguments["block_rows"] == arguments["tile_n"]
        and arguments["block_columns"] % arguments["tile_k"] == 0
        and len(values) > 0
        and all(number % LINE == 0 for number in aligned)
    )


def _input_boxes(arguments: dict[str, Any]) -> TensorDescriptor | None:
    box = [arguments["tile_m"], arguments["tile_k"]]
    return TensorDescriptor.from_tensor(arguments["inputs"], box) if _have_boxes(arguments) else None


def _weight_boxes(arguments: dict[str, Any]) -> TensorDescriptor | None:
    box = [arguments["tile_n"], arguments["tile_k"]]
    return TensorDescriptor.from_tensor(arguments["values"].flatten(0, 1), box) if _have_boxes(arguments) else None


@triton.autotune(
    configs=_tilings(),
    key=["tokens_bucket", "in_features", "out_features", "block_rows", "block_columns", "gelu", "precision"],
    prune_configs_by={"early_config_prune": _worth_timing},
    do_bench=lambda call, quantiles: triton.testing.do_bench(call, warmup=5, rep=25, quantiles=quantiles),
    cache_results=True,
)
@triton.heuristics({"input_boxes": _input_boxes, "weight_boxes": _weight_boxes})
@triton.jit(do_not_specialize=["tokens", "tokens_bucket"])
def _kernel(
    inputs,
    values,
    crow_indices,
    col_indices,
    bias,
    token_scales,
    zero_points,
    output_scales,
    row_sums,
    outputs,
    tokens,
    tokens_bucket,
    in_features,
    out_features,
    input_boxes,
    weight_boxes,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    tile_n: tl.constexpr,
    run: tl.constexpr,
    ragged: tl.constexpr,
    gelu: tl.constexpr,
    precision: tl.constexpr,
    tile_m: tl.constexpr,
    tile_k: tl.constexpr,
    boxes: tl.constexpr,
    turned: tl.constexpr,
):
    first_token, block_row = tile_of_program(tokens, out_features, block_rows, tile_m)
    first_block = tl.load(crow_indices + block_row)
    length = (tl.load(crow_indices + block_row + 1) - first_block) * block_columns
    col_indices += first_block

    whole: tl.constexpr = tl.int32 if inputs.dtype.element_ty == tl.int8 else tl.float32
    sums = tl.zeros((tile_n, tile_m) if turned else (tile_m, tile_n), dtype=whole)
    token, row = tl.arange(0, tile_m), tl.arange(0, tile_n)
    if input_boxes is not None:
        sums = sums_of_boxes(
            *(sums, input_boxes, weight_boxes, first_token, first_block, length, col_indices),
            *(block_rows, block_columns, turned, precision, tile_k),
        )
    else:
        # Only the first address of a tile needs 64 bits. Rows past the end read the last one again, which needs no
        # mask, and they are not stored.
        inputs += first_token.to(tl.int64) * in_features
        values += first_block.to(tl.int64) * block_rows * block_columns
        input_rows = inputs + tl.minimum(token, tokens - first_token - 1)[:, None] * in_features
        weight_rows = values + tl.minimum(row, block_rows - 1)[:, None] * block_columns
        sums = sums_by_address(
            *(sums, input_rows, weight_rows, in_features, length, col_indices),
            *(block_rows, block_columns, run, ragged, turned, precision, tile_k),
        )
    sums = sums.T if turned else sums

    feature = block_row * block_rows + row
    is_token, is_feature = token < tokens - first_token, (row < block_rows) & (feature < out_features)
    if row_sums is not None:
        of_tokens = token_scales + first_token + token, zero_points + first_token + token
        sums = meanings(sums, *of_tokens, output_scales + feature, row_sums + feature, is_token, is_feature)
    if bias is not None:
        sums += tl.load(bias + feature, mask=is_feature, other=0.0).to(tl.float32)
    if gelu:
        sums = gelu_of(sums)
    outputs += first_token.to(tl.int64) * out_features
    places = outputs + (token[:, None] * out_features + feature)
    tl.store(places, sums.to(outputs.dtype.element_ty), mask=is_token[:, None] & is_feature)
