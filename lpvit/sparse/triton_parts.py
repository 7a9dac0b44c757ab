"""Parts of the block-sparse kernel on a GPU (`lpvit.sparse.triton_kernel`): iteration over blocks, and epilogue."""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# (Triton is untyped, and so are its kernels)

import triton
import triton.language as tl

STRIP = tl.constexpr(8)  # tiles of tokens whose inputs share the cache
WIDEN = tl.constexpr(triton.knobs.runtime.interpret)  # the interpreter computes products of bfloat16 and int8 wrongly


@triton.jit
def tile_of_program(tokens, out_features, block_rows: tl.constexpr, tile_m: tl.constexpr):
    """First token and block row. In strips of token tiles, whose inputs stay in the cache; within a strip, by rows."""
    strip_size = STRIP * tl.cdiv(out_features, block_rows)
    strip = tl.program_id(0) // strip_size * STRIP
    height = tl.minimum(tl.cdiv(tokens, tile_m) - strip, STRIP)
    within = tl.program_id(0) % strip_size
    return (strip + within % height) * tile_m, within // height


@triton.jit
def _product(x, weight, sums, turned: tl.constexpr, precision: tl.constexpr):
    left, right = (weight, x) if turned else (x, weight)
    if WIDEN:
        product = tl.dot(left.to(tl.float32), right.to(tl.float32).T, input_precision=precision)
        return sums + product.to(sums.dtype)
    return tl.dot(left, right.T, sums, input_precision=precision, out_dtype=sums.dtype)


@triton.jit
def sums_of_boxes(
    sums,
    input_boxes,
    weight_boxes,
    first_token,
    first_block,
    length,
    col_indices,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    turned: tl.constexpr,
    precision: tl.constexpr,
    tile_k: tl.constexpr,
):
    block_column = tl.load(col_indices, mask=length > 0, other=0)
    for start in range(0, length, tile_k):
        within = start % block_columns
        x = input_boxes.load([first_token, block_column * block_columns + within])
        weight = weight_boxes.load([(first_block + start // block_columns) * block_rows, within])
        # Read one iteration early: an index read in its own iteration would take half of the pipeline's stages.
        following = start + tile_k
        block_column = tl.load(col_indices + following // block_columns, mask=following < length, other=0)
        sums = _product(x, weight, sums, turned, precision)
    return sums


@triton.jit
def _kept_columns(start, length, col_indices, block_columns: tl.constexpr, tile_k: tl.constexpr, run: tl.constexpr):
    """Of an iteration: positions along the kept axis, their blocks, and their columns of the weight."""
    place = start + tl.arange(0, tile_k)
    if block_columns % tile_k == 0:  # one block or a part of it: one index is enough
        block = start // block_columns
        block_column = tl.load(col_indices + block, mask=start < length, other=0)
        column = block_column * block_columns + start % block_columns + tl.arange(0, tile_k)
        column = tl.max_contiguous(tl.multiple_of(column, tile_k), tile_k)  # Triton 3.6 does not infer it
    else:
        block = place // block_columns
        block_column = tl.load(col_indices + block, mask=place < length, other=0)
        column = block_column * block_columns + place % block_columns
        column = tl.max_contiguous(tl.multiple_of(column, run), run)  # so that loads are wide
    return place, block, column


@triton.jit
def sums_by_address(
    sums,
    input_rows,
    weight_rows,
    in_features,
    length,
    col_indices,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    run: tl.constexpr,
    ragged: tl.constexpr,
    turned: tl.constexpr,
    precision: tl.constexpr,
    tile_k: tl.constexpr,
):
    place, block, column = _kept_columns(0, length, col_indices, block_columns, tile_k, run)
    for start in range(0, length, tile_k):
        kept = place < length
        x = tl.load(input_rows + column, mask=kept & (column < in_features) if ragged else kept, other=0)
        weight = tl.load(weight_rows + (block * ((block_rows - 1) * block_columns) + place), mask=kept, other=0)
        place, block, column = _kept_columns(start + tile_k, length, col_indices, block_columns, tile_k, run)
        sums = _product(x, weight, sums, turned, precision)
    return sums


@triton.jit
def gelu_of(x):
    """To 5e-7: the normal distribution's lower tail as 2 to the power of a polynomial, without erf's branches."""
    a = tl.minimum(tl.abs(x), 8.0)
    power = -0.4599926471710205 + a * (-0.051827166229486465 + a * (0.007084459997713566 - 0.0004732939414680004 * a))
    tail = tl.exp2(-1.000037670135498 + a * (-1.1507877111434937 + a * power))
    return 0.5 * (x + tl.abs(x)) - a * tail


@triton.jit
def meanings(sums, token_scales, zero_points, output_scales, row_sums, is_token, is_feature):
    """Scales integer sums; all arguments are addresses, of the tile's tokens or outputs."""
    zero_point = tl.load(zero_points, mask=is_token, other=0)
    sums -= zero_point[:, None] * tl.load(row_sums, mask=is_feature, other=0)
    token_scale = tl.load(token_scales, mask=is_token, other=0.0)
    return sums.to(tl.float32) * token_scale[:, None] * tl.load(output_scales, mask=is_feature, other=0.0)
