"""Block-sparse layers in place of the pruned linear layers of a timm model, where they are faster."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from timm.layers import Mlp
from torch import Tensor, nn

from lpvit.measure.timing import time_in_turns
from lpvit.models.blocks import KeepMasks
from lpvit.models.layers import matrix_layers
from lpvit.sparse.linear import BlockSparseLinear
from lpvit.sparse.operator import path_of
from lpvit.weights.masks import expand_keep_masks, zero_pruned

_logger = logging.getLogger(__name__)

_measured: dict[tuple[object, ...], tuple[float, float]] = {}  # what was timed -> seconds of dense, of sparse


@dataclass(frozen=True)
class LayerChoice:
    """What `sparsify_layers` made of one masked layer.

    Attributes:
        layer: Name in the model.
        sparse: Whether it is block-sparse now; else it is dense, with zeros.
        sparsity: Share of its blocks that is pruned.
        dense_seconds: Median time of the dense layer, None where nothing was timed.
        sparse_seconds: Median time of the sparse layer, None where nothing was timed.
        reason: Why it stayed dense; empty if it is sparse.
    """

    layer: str
    sparse: bool
    sparsity: float
    dense_seconds: float | None = None
    sparse_seconds: float | None = None
    reason: str = ""


@torch.no_grad()
def sparsify_layers(
    model: nn.Module,
    keep_masks: KeepMasks,
    block_shape: tuple[int, int],
    batch_size: int = 8,
    only_faster: bool = True,
) -> list[LayerChoice]:
    """Makes the masked linear layers of a timm model block-sparse, in place, for inference.

    A GELU (erf) that directly follows ``fc1`` in timm's ``Mlp`` becomes part of the layer. Convolutions (patch
    embedding) stay dense. So do layers that are not faster when both forms are timed here, with the model's device,
    dtype and number of threads. Layers of equal shape and sparsity are timed once.

    Args:
        model: Dense or masked; the pruned weights become zero.
        keep_masks: One keep mask (R, C) per layer.
        block_shape: (r, c).
        batch_size: Images per pass that the choice is made for.
        only_faster: False makes every linear layer sparse, untimed.

    Returns:
        One choice per masked layer; those that stayed dense are logged too.

    Raises:
        LpvitError: A mask does not fit its layer.
    """
    zero_pruned(dict(model.named_parameters()), expand_keep_masks(model, keep_masks, block_shape))
    tokens = {layer.name: layer.tokens * batch_size for layer in matrix_layers(model)}
    choices = [
        _replace(model, layer, keep_mask, block_shape, tokens[layer] if only_faster else None)
        for layer, keep_mask in keep_masks.items()
    ]
    for choice in choices:
        if not choice.sparse:
            _logger.info("%s: stays dense at sparsity %.2f: %s", choice.layer, choice.sparsity, choice.reason)
    return choices


def _replace(
    model: nn.Module, layer: str, keep_mask: Tensor, block_shape: tuple[int, int], tokens: int | None
) -> LayerChoice:
    """Swaps one layer; ``tokens`` is the number that both forms are timed with, None for a swap without timing."""
    sparsity = 1 - keep_mask.float().mean().item()
    dense = model.get_submodule(layer)
    if not isinstance(dense, nn.Linear):
        return LayerChoice(layer, False, sparsity, reason=f"{type(dense).__name__} has no block-sparse form")
    activation = _gelu_after(model, layer)
    sparse = BlockSparseLinear.from_linear(dense, keep_mask, block_shape, gelu=activation is not None)
    seconds: tuple[float, float] | tuple[None, None] = (None, None)
    if tokens is not None:
        path = path_of(sparse.values)
        if path.reason:
            return LayerChoice(layer, False, sparsity, reason=path.reason)
        seconds = _timed(nn.Sequential(dense, *([activation] if activation else [])), sparse, tokens)
        if seconds[1] >= seconds[0]:
            reason = f"{1e3 * seconds[1]:.3f} ms sparse, {1e3 * seconds[0]:.3f} ms dense"
            return LayerChoice(layer, False, sparsity, *seconds, reason)
    model.set_submodule(layer, sparse)
    if activation is not None:
        model.set_submodule(f"{_parent(layer)}.act", nn.Identity())
    return LayerChoice(layer, True, sparsity, *seconds)


def _gelu_after(model: nn.Module, layer: str) -> nn.GELU | None:
    """The exact GELU that alone follows a layer: that of timm's Mlp after ``fc1``."""
    parent = model.get_submodule(_parent(layer))
    if type(parent) is not Mlp or layer.rpartition(".")[2] != "fc1":
        return None
    activation = parent.act
    return activation if isinstance(activation, nn.GELU) and activation.approximate == "none" else None


def _parent(layer: str) -> str:
    return layer.rpartition(".")[0]


def _timed(dense: nn.Module, sparse: BlockSparseLinear, tokens: int) -> tuple[float, float]:
    """Median seconds of the dense and of the sparse form, taking turns on one random input; measured once per key."""
    values = sparse.values
    key = (sparse.grid, len(values), sparse.gelu, tokens, values.dtype, values.device, torch.get_num_threads())
    if key not in _measured:
        inputs = torch.randn(tokens, sparse.in_features, device=values.device).to(values.dtype)
        forms = {"dense": lambda: dense(inputs), "sparse": lambda: sparse(inputs)}
        times = time_in_turns(forms, device=values.device, seconds=0)
        _measured[key] = (float(np.median(times["dense"])), float(np.median(times["sparse"])))
    return _measured[key]
