"""The operator ``lpvit::attention``, also in int8: attention of short sequences, one head at a time in the cache.

N = images, or windows of them; T = tokens; H = heads; d = features of a head; W = masks.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from lpvit.errors import LpvitError
from lpvit.precisions import has_kernel, name_of
from lpvit.sparse.build import cpu_kernel
from lpvit.sparse.operator import LIBRARY, Path, define, implement, log_once, path_for

_ARGUMENTS = "(Tensor queries, Tensor keys, Tensor values, Tensor? bias, Tensor? mask, float scale)"
for _name in ("attention", "attention_int8"):
    define(f"{_name}{_ARGUMENTS} -> Tensor", tags=(torch.Tag.needs_exact_strides,))
define(f"dense_attention{_ARGUMENTS} -> Tensor")


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    int8: bool = False,
) -> Tensor:
    """``softmax(scale * queries keys^T + bias + mask) values``, for each head, in the dtype of the queries.

    The kernel reads strided tensors without a copy, such as the three parts of one layer's output, if the features of a
    head are contiguous. The relative error of its exponentials is at most 2.2e-7, its sums are in float32; in bfloat16,
    softmax is rounded before the product with the values. A query whose scores are all minus infinity gives 0.

    In int8, queries are quantised like the inputs of a layer, keys (minus their mean, to which softmax is invariant)
    and features of the values symmetrically with one scale each, and softmax to 255 steps of its largest weight; sums
    are exact in int32.

    Args:
        queries: Shape (N, T, H, d).
        keys: Likewise.
        values: Likewise.
        scale: Positive.
        bias: Shape (H, T, T), or None.
        mask: Shape (W, T, T), additive, or None; N is a multiple of W, and image n has mask n modulo W.
        int8: Whether to multiply in int8, if there is a kernel for it.

    Returns:
        Shape (N, T, H d).

    Raises:
        LpvitError: A gradient would be needed.
    """
    if torch.is_grad_enabled() and any(numbers.requires_grad for numbers in (queries, keys, values)):
        raise LpvitError("attention: has no gradients; run it under torch.no_grad(), or train the masked dense model")
    tensors = (None if numbers is None else numbers.to(queries.dtype) for numbers in (keys, values, bias, mask))
    operator = torch.ops.lpvit.attention_int8 if int8 else torch.ops.lpvit.attention
    outputs: Tensor = operator(queries, *tensors, scale)
    return outputs


def attention_path(device: torch.device, dtype: torch.dtype, *, int8: bool = False) -> Path:
    """The implementation for tensors of this device and dtype; builds the CPU kernels if it is one of them.

    Args:
        device: Of queries, keys and values.
        dtype: Of these.
        int8: Whether to multiply in int8.
    """
    if device.type != "cpu" or not (dtype.is_floating_point and has_kernel(dtype, device.type)):
        return Path("dense", f"no kernel for {name_of(dtype)} on '{device.type}'")
    path = path_for(device, torch.int8 if int8 else dtype)
    if path.reason:
        return Path("dense", path.reason)
    return path if not int8 or cpu_kernel().int8_attention else Path("dense", f"{path.name} has none in int8")


def _dense_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, mask: Tensor | None, scale: float
) -> Tensor:
    log_once(attention_path(queries.device, queries.dtype).reason, "attention is torch's")
    added = bias
    if mask is not None:
        masks = mask.repeat(len(queries) // len(mask), 1, 1)[:, None]
        added = masks if bias is None else masks + bias
    queries, keys, values = (numbers.transpose(1, 2) for numbers in (queries, keys, values))
    outputs = F.scaled_dot_product_attention(queries, keys, values, attn_mask=added, scale=scale)
    return outputs.transpose(1, 2).flatten(2).contiguous()


def _attention_without_kernel(queries: Tensor, *others: Tensor | float | None, int8: bool = False) -> Tensor:
    """Called by torch where no kernel is registered; on a CPU, possibly at the first use."""
    kernel_was_registered = attention_path(queries.device, queries.dtype).reason == ""
    registered = torch.ops.lpvit.attention_int8 if int8 else torch.ops.lpvit.attention
    operator = registered if kernel_was_registered else torch.ops.lpvit.dense_attention
    outputs: Tensor = operator(queries, *others)
    return outputs


def _shape_only(queries: Tensor, *_: object) -> Tensor:
    return queries.new_empty(*queries.shape[:2], queries.shape[2] * queries.shape[3])


implement("dense_attention", _dense_attention, "CompositeExplicitAutograd")
implement("attention", _attention_without_kernel, "CompositeExplicitAutograd")
implement("attention_int8", partial(_attention_without_kernel, int8=True), "CompositeExplicitAutograd")
for _name in ("attention", "attention_int8", "dense_attention"):
    torch.library.register_fake(f"lpvit::{_name}", _shape_only, lib=LIBRARY)
