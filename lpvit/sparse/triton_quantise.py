"""Quantises the inputs of int8 layers on a GPU, in Triton, like `quantise_tokens`.

M = tokens; I = input features.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# (Triton is untyped, and so are its kernels)

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpvit.quantisation import layers as quantised

SHIFT = tl.constexpr(128)  # from 0 ... 255 to int8
LEVELS = tl.constexpr(float(quantised.LEVELS))
SMALLEST_RANGE = tl.constexpr(quantised.SMALLEST_RANGE)
TO_WHOLE = tl.constexpr(1.5 * 2**23)  # added and subtracted, rounds to integers, halves to even
FEATURES_OF_A_WARP = 512


def quantise_tokens(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantises to eight bits with one scale and zero point per token, bit for bit as on a CPU.

    Args:
        inputs: Shape (M, I), float32, bfloat16 or float16.

    Returns:
        q - 128, shape (M, I), int8; scale s, shape (M,), float32; z - 128, shape (M,), int32: an input is about
        s (q - z), and s is NaN for a token with an input that is not finite.
    """
    inputs = inputs.contiguous()
    (tokens, features), device = inputs.shape, inputs.device
    values = torch.empty_like(inputs, dtype=torch.int8)
    scales = torch.empty(tokens, dtype=torch.float32, device=device)
    zero_points = torch.empty(tokens, dtype=torch.int32, device=device)
    if inputs.numel():
        width = triton.next_power_of_2(features)
        with torch.cuda.device(inputs.get_device()):
            _quantise[(tokens,)](
                *(inputs, values, scales, zero_points, features),
                width=width,
                num_warps=min(8, max(1, width // FEATURES_OF_A_WARP)),
                enable_fp_fusion=False,  # products are rounded before they are rounded to integers
            )
    return values, scales, zero_points


@triton.jit
def _quantise(inputs, values, scales, zero_points, features, width: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, width)
    is_feature = feature < features
    x = tl.load(inputs + token * features + feature, mask=is_feature, other=0.0).to(tl.float32)
    low, high = tl.minimum(tl.min(x, 0), 0.0), tl.maximum(tl.max(x, 0), 0.0)
    extent = high - low
    reciprocal = tl.where(extent > SMALLEST_RANGE, tl.div_rn(LEVELS, extent), 0.0)
    zero_point = (-low * reciprocal + TO_WHOLE) - TO_WHOLE
    whole = tl.minimum((x * reciprocal + TO_WHOLE) - TO_WHOLE + zero_point, LEVELS)
    tl.store(values + token * features + feature, (whole.to(tl.int32) - SHIFT).to(tl.int8), mask=is_feature)
    tl.store(scales + token, tl.div_rn(extent, LEVELS) + tl.sum(0 * x, 0))
    tl.store(zero_points + token, zero_point.to(tl.int32) - SHIFT)
