"""Replaces the layers of a pruned model by kernels that skip its pruned blocks."""

import logging
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lpvit.api.arguments import require_count
from lpvit.api.pruned import Pruned, require_pruned
from lpvit.errors import LpvitError
from lpvit.inference.sparsify import sparsify_layers
from lpvit.measure.precision import warn_if_slower
from lpvit.models.sources.families import call_modules
from lpvit.precisions import PRECISIONS, SPARSE, dtype_of
from lpvit.sparse.operator import path_for

_logger = logging.getLogger(__name__)


def sparsify(pruned: Pruned, batch_size: int = 8, precision: str | None = None) -> nn.Module:
    """Returns a copy of a pruned model for inference on its device, with block-sparse layers where they are faster.

    All forms of every layer are timed, with torch's number of threads. The attribute ``lpvit_choices`` of the
    model has what was chosen for each and why (`lpvit.inference.choice.Choice`); its ``repr`` names the kernels.
    Without a kernel on this machine all layers stay dense, and a warning says why; likewise of a precision that is
    slower here.

    Args:
        pruned: From `lpvit.prune` or `lpvit.load`; not modified.
        batch_size: Images per pass to optimise for; any number can be used later.
        precision: ``float32``, ``bfloat16`` or ``int8``: of the products in its masked layers. In int8, everything else
            is in bfloat16 if the device has a kernel for it, else in float32. The model then accepts images of any
            floating dtype and returns float32. By default everything is in the dtype of the model, images and outputs
            too.

    Returns:
        In evaluation mode, without gradients.

    Raises:
        LpvitError: The precision is unknown, or the batch size no positive number.
    """
    require_count("batch_size", batch_size)
    model = call_modules(deepcopy(require_pruned(pruned).model).eval().requires_grad_(False))
    if precision is not None:
        if precision not in SPARSE:
            raise LpvitError(f"precision: no '{precision}'; there are {', '.join(SPARSE)}")
        model = in_precision(model, precision)
    choices = sparsify_layers(model, pruned.keep_masks, pruned.block_shape, batch_size, precision=precision)
    model.lpvit_choices = tuple(choices)  # type: ignore[assignment]
    return model


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """The model, cast to the dtype of its other layers; it accepts any floating dtype and returns float32."""
    device = next(model.parameters()).device
    model = model.to(dtype := _dtype_of_others(precision, device))
    warn_if_slower(dtype, device, f"precision '{precision}'")
    model.register_forward_pre_hook(_take_any_dtype, with_kwargs=True)
    model.register_forward_hook(_give_float32)
    return model


def _dtype_of_others(precision: str, device: torch.device) -> torch.dtype:
    if PRECISIONS[precision].floating:
        return dtype_of(precision)
    path = path_for(device, torch.bfloat16)
    if path.reason:
        _logger.info("int8: everything except the masked layers is in float32: %s", path.reason)
    return torch.float32 if path.reason else torch.bfloat16


def _take_any_dtype(
    model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    dtype = next(model.parameters()).dtype
    return _cast(arguments, dtype), _cast(named, dtype)


def _give_float32(model: nn.Module, arguments: tuple[Any, ...], found: Any) -> Any:
    return _cast(found, torch.float32)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """With floating tensors in a dtype, in whatever tuples, dicts or ``ModelOutput`` they are."""

    def cast(part: Any) -> Any:
        return part.to(dtype) if isinstance(part, Tensor) and part.is_floating_point() else part

    return tree_map(cast, value)
