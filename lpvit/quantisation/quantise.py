"""Quantises a pruned model for inference: its layers to int8, or the whole model to bfloat16.

O, I = output and input features of a layer; J = I, or I + 1 with a bias.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.analysis.passes import Batches
from lpvit.models.edits import apply_edit
from lpvit.precisions import PRECISIONS, dtype_of
from lpvit.quantisation.edit import Int8Layers
from lpvit.quantisation.layers import QuantisedLinear, int8_layers
from lpvit.quantisation.settings import Quantisation
from lpvit.refitting.reconstruction import Fit, fit_in_order, weight_with_bias
from lpvit.structures.blocks.grid import BlockGrid, KeepMasks
from lpvit.structures.blocks.masks import expand_keep_masks, verify_pruned


@torch.no_grad()
def quantise_model(
    model: nn.Module,
    keep_masks: KeepMasks,
    block_shape: tuple[int, int],
    loader: Batches | None,
    quantisation: Quantisation,
    device: torch.device | str,
) -> nn.Module:
    """A quantised copy of a pruned model, fine-tuned or not, on the CPU.

    With error feedback every layer is first fitted to the outputs of the given model, from its quantised inputs in the
    model quantised so far (`lpvit.refitting.reconstruction`), and then rounded (`lpvit.quantisation.rounding`). So it
    compensates for the errors of earlier layers.

    Args:
        model: Its pruned weights are zero; moved to the device, otherwise not modified.
        keep_masks: Kept blocks; a layer without a mask keeps all.
        block_shape: Rows and columns of a block.
        loader: Calibration images; None where `quantisation` needs none.
        quantisation: Precision, layers and rounding.
        device: Where to compute.

    Raises:
        LpvitError: A layer is quantised already or is no linear one, or the calibration images are missing, or not
            finite in some layer.
    """
    if int8_layers(model):
        raise LpvitError("model: is quantised already; quantise the model that it was made from")
    if quantisation.looks_at_images and loader is None:
        raise LpvitError("quantisation: error feedback needs calibration images; give them, or 'rounding: nearest'")
    if PRECISIONS[quantisation.precision].floating:
        return deepcopy(model).cpu().to(dtype_of(quantisation.precision))
    layers = _layers(model, quantisation)
    quantised = apply_edit(deepcopy(model.to(device)), Int8Layers(layers=tuple(layers)))
    fits = [_fit(model.get_submodule(layer), layer, keep_masks.get(layer), block_shape) for layer in layers]
    if loader is not None and quantisation.looks_at_images:
        fit_in_order(model, quantised, fits, loader, device=device)
    else:
        _round_to_nearest(quantised, fits)
    verify_pruned(quantised.state_dict(), expand_keep_masks(quantised, keep_masks, block_shape))
    return quantised.cpu()


def _round_to_nearest(quantised: nn.Module, fits: Sequence[Fit]) -> None:
    """Identity Gram matrices: inputs of every layer taken as independent and of equal size."""
    for fit in fits:
        layer = quantised.get_submodule(fit.layer)
        assert isinstance(layer, QuantisedLinear)
        layer.store_rounded(fit.start, torch.eye(fit.start.shape[1]).to(fit.start), fit.keep, feedback=False)


def _layers(model: nn.Module, quantisation: Quantisation) -> list[str]:
    """Names of the layers to quantise to int8, in order of execution."""
    layers = [layer.name for layer in prunable_layers(matrix_layers(model), quantisation.layers)]
    for layer in layers:
        if not isinstance(model.get_submodule(layer), nn.Linear):
            kind = type(model.get_submodule(layer)).__name__
            raise LpvitError(f"quantisation.layers: '{layer}' is a {kind}, only linear layers multiply in int8")
    return layers


def _fit(module: nn.Module, layer: str, keep_mask: Tensor | None, block_shape: tuple[int, int]) -> Fit:
    assert isinstance(module, nn.Linear)
    keep = torch.ones_like(module.weight, dtype=torch.bool)
    if keep_mask is not None:
        keep = BlockGrid((keep.shape[0], keep.shape[1]), block_shape).expand(keep_mask.to(keep.device))
    return Fit(layer, slice(None), weight_with_bias(module), keep)
