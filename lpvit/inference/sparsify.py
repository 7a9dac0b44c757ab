"""Replaces the pruned linear layers of a timm model by block-sparse ones, in the fastest form."""

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from timm.layers import Mlp
from torch import Tensor, nn

from lpvit.inference.attention_fusion import fuse_attention
from lpvit.inference.choice import Choice, slower
from lpvit.inference.layer_fusion import fuse_prologues_and_epilogues
from lpvit.measure.timing import calm_clock, random_inputs, time_in_turns
from lpvit.models.additions import addition
from lpvit.models.analysis.layers import matrix_layers, weight_matrix
from lpvit.precisions import name_of
from lpvit.quantisation.layers import QuantisedLinear, int8_layers
from lpvit.sparse.linear import BlockSparseLinear
from lpvit.sparse.operator import log_once, path_of
from lpvit.structures.blocks.grid import BlockGrid, KeepMasks
from lpvit.structures.blocks.masks import expand_keep_masks, zero_pruned
from lpvit.structures.factors.layers import FactorisedLinear

_logger = logging.getLogger(__name__)

_WHOLE = 32  # rows and columns of the blocks of int8 layers that lose none

_measured: dict[tuple[object, ...], dict[str, float]] = {}  # what was timed -> form -> seconds


@torch.no_grad()
def sparsify_layers(
    model: nn.Module,
    keep_masks: KeepMasks,
    block_shape: tuple[int, int],
    batch_size: int = 8,
    only_faster: bool = True,
    precision: str | None = None,
) -> list[Choice]:
    """Makes the masked linear layers of a timm model block-sparse, in place, for inference.

    A GELU (erf) that directly follows ``fc1`` in timm's ``Mlp`` becomes part of the layer. Convolutions (patch
    embedding) stay dense. So do layers that are not faster when both forms are timed here, with the model's device,
    dtype and number of threads. Layers of equal shape and sparsity are timed once. With ``precision`` int8, a layer may
    become block-sparse in int8 or in the model's dtype, whichever is faster. Quantised layers without a mask, such as
    factors, are multiplied by the same kernels, since torch only emulates them. Then attention becomes that of
    `lpvit.inference.attention_fusion`, of the same precisions, and the operations before and after layers are fused
    into them (`lpvit.inference.layer_fusion`).

    Args:
        model: Dense or masked; the pruned weights become zero.
        keep_masks: One keep mask (R, C) per layer.
        block_shape: (r, c).
        batch_size: Images per pass that the choice is made for.
        only_faster: False makes every linear layer sparse, untimed, in ``precision``.
        precision: Lowest precision that a layer may multiply in: int8; by default that of the model.

    Returns:
        One choice per masked or quantised layer and per attention; those not replaced are logged too.

    Raises:
        LpvitError: A mask does not fit its layer.
    """
    zero_pruned(dict(model.named_parameters()), expand_keep_masks(model, keep_masks, block_shape))
    tokens = {layer.name: layer.tokens for layer in matrix_layers(model)}
    masks = {layer: (keep_mask, block_shape) for layer, keep_mask in keep_masks.items()}
    choices = []
    for layer, (keep_mask, blocks) in (masks | _whole_masks(model, keep_masks)).items():
        forms = _forms(model, layer, keep_mask, blocks, precision)
        choices.append(_replace(model, layer, forms, tokens[layer] * batch_size, only_faster))
    choices += fuse_attention(model, tokens, batch_size, only_faster, int8=precision == "int8")
    fuse_prologues_and_epilogues(model)
    for choice in choices:
        if not choice.by_kernel:
            pruned = "" if choice.sparsity is None else f", {choice.sparsity:.0%} pruned,"
            _logger.info("%s%s is not replaced: %s", choice.module, pruned, choice.reason)
    return choices


def _whole_masks(model: nn.Module, keep_masks: KeepMasks) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    """Masks that keep everything, with their block shape, for the int8 layers that have none."""
    masks = {}
    for layer in int8_layers(model):
        if layer in keep_masks:
            continue
        shape = weight_matrix(model.get_submodule(layer)).shape
        grid = BlockGrid((shape[0], shape[1]), (min(shape[0], _WHOLE), min(shape[1], _WHOLE)))
        masks[layer] = torch.ones(grid.rows, grid.columns, dtype=torch.bool), grid.block_shape
    return masks


def _forms(
    model: nn.Module, layer: str, keep_mask: Tensor, block_shape: tuple[int, int], precision: str | None
) -> list[BlockSparseLinear]:
    """The block-sparse forms that a layer may take, the requested one first; empty for a convolution."""
    dense = model.get_submodule(layer)
    if not isinstance(dense, nn.Linear) or addition(dense):
        return []
    gelu = _gelu_after(model, layer) is not None
    if isinstance(dense, QuantisedLinear):  # with the integers of a quantised model
        scaled = (dense.dense(), keep_mask, block_shape, gelu, "int8", dense.scales)
        return [BlockSparseLinear.from_linear(*scaled)]
    precisions = [precision, None] if precision == "int8" else [precision]
    return [BlockSparseLinear.from_linear(dense, keep_mask, block_shape, gelu, form) for form in precisions]


def _replace(model: nn.Module, layer: str, forms: list[BlockSparseLinear], tokens: int, only_faster: bool) -> Choice:
    """Replaces a layer by the fastest of its forms, or by the first of them untimed."""
    dense = model.get_submodule(layer)
    weight: Tensor = dense.weight  # type: ignore[assignment]
    if not forms:
        sparsity = 1 - weight.count_nonzero().item() / weight.numel()
        added = addition(dense)
        reason = f"it has {added}" if added else f"{type(dense).__name__} has no block-sparse form"
        return Choice(layer, "layer", False, name_of(weight.dtype), sparsity, reason=reason)
    activation, sparse = _gelu_after(model, layer), forms[0]
    seconds = kernel_seconds = None
    if only_faster:
        with_kernel = [form for form in forms if not path_of(form.values).reason]
        reason = path_of(sparse.values).reason
        if not with_kernel:
            log_once(reason, "no kernel, pruned layers stay dense and take as long as before")
        if with_kernel:
            times = _timed(nn.Sequential(dense, *([activation] if activation else [])), with_kernel, tokens)
            sparse = min(with_kernel, key=lambda form: times[_form(form)])
            seconds, kernel_seconds = times["dense"], times[_form(sparse)]
            reason = slower(seconds, kernel_seconds)
        if seconds is None or kernel_seconds is None or kernel_seconds >= seconds:
            precision = name_of(weight.dtype)
            return Choice(layer, "layer", False, precision, sparse.sparsity, seconds, kernel_seconds, reason)
    model.set_submodule(layer, sparse)
    if activation is not None:
        model.set_submodule(f"{_parent(_whole(model, layer))}.act", nn.Identity())
    return Choice(layer, "layer", True, _form(sparse), sparse.sparsity, seconds, kernel_seconds)


def _gelu_after(model: nn.Module, layer: str) -> nn.GELU | None:
    """The exact GELU that directly follows a layer: that of timm's Mlp after ``fc1`` or its second factor."""
    layer = _whole(model, layer)
    parent = model.get_submodule(_parent(layer))
    if type(parent) is not Mlp or layer.rpartition(".")[2] != "fc1" or addition(model.get_submodule(layer)):
        return None
    activation = parent.act
    if not isinstance(activation, nn.GELU) or activation.approximate != "none" or addition(parent, activation):
        return None
    return activation


def _whole(model: nn.Module, layer: str) -> str:
    """The factorised layer of which a layer is the second product; otherwise the layer itself."""
    parent = _parent(layer)
    is_second = layer.endswith(".expand") and type(model.get_submodule(parent)) is FactorisedLinear
    return parent if is_second else layer


def _parent(layer: str) -> str:
    return layer.rpartition(".")[0]


def _form(sparse: BlockSparseLinear) -> str:
    return name_of(sparse.values.dtype)


def _timed(dense: nn.Sequential, forms: Sequence[BlockSparseLinear], tokens: int) -> dict[str, float]:
    """Median seconds of the dense and of each sparse form, interleaved on one random input; measured once per key."""
    weight: Tensor = dense[0].weight  # type: ignore[assignment]
    first = forms[0]
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    kinds = (weight.dtype, weight.device, torch.get_num_threads(), *map(_form, forms))
    key = (first.grid, len(first.values), first.gelu, tokens, *kinds)
    if key not in _measured:
        inputs = random_inputs(tokens, first.in_features).to(weight.device, dtype)
        setups = {_form(sparse): partial(sparse, inputs) for sparse in forms} | {"dense": partial(dense, inputs)}
        times = time_in_turns(setups, device=weight.device, seconds=0, clock=calm_clock(weight.device))
        _measured[key] = {form: float(np.median(seconds)) for form, seconds in times.items()}
    return _measured[key]
