"""Weights of a block-pruned model: unchanged, or refitted by least squares."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lpvit.models.analysis.layers import MatrixLayer, matrix_layers
from lpvit.models.analysis.passes import Batches
from lpvit.refitting.layer_fits import FittedLayer
from lpvit.refitting.least_squares import fit_layer
from lpvit.refitting.reconstruction import (
    RIDGES,
    Choice,
    Fit,
    LayerSums,
    Place,
    fit_in_order,
    matrix_layer,
    named_if_singular,
    store_weight,
    weight_with_bias,
)
from lpvit.structures.blocks.centring import Means, move_biases
from lpvit.structures.blocks.grid import KeepMasks
from lpvit.structures.blocks.masks import expand_keep_masks, verify_pruned, zero_pruned

_ALL = torch.tensor(True)


def pruned_weights(
    model: nn.Module,
    keep_masks: KeepMasks,
    block_shape: tuple[int, int],
    loader: Batches | None,
    device: torch.device | str,
    means: Means | None = None,
) -> dict[str, Tensor]:
    """Weights of the pruned model: the kept ones are unchanged or, given calibration images, reconstructed.

    Args:
        model: Dense model; moved to the device for a reconstruction, otherwise not modified.
        keep_masks: Kept blocks.
        block_shape: Rows and columns of a block.
        loader: Calibration images; None keeps the remaining weights unchanged.
        device: Where to reconstruct.
        means: Of the layers' inputs, from `lpvit.structures.blocks.centring.input_means`: biases then give what the
            weights that go gave on average. A reconstruction fits the biases by itself.

    Returns:
        The state dict, on the CPU; pruned weights are exactly zero.

    Raises:
        LpvitError: As `reconstruct`.
    """
    expanded = {name: keep.cpu() for name, keep in expand_keep_masks(model, keep_masks, block_shape).items()}
    if loader is None:
        state = {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}
        move_biases(state, expanded, means or {})
        zero_pruned(state, expanded)
    else:
        state = reconstruct(model, keep_masks, block_shape, loader, device=device)
    verify_pruned(state, expanded)
    return state


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    keep_masks: KeepMasks,
    block_shape: tuple[int, int],
    loader: Batches,
    *,
    ridges: Sequence[float] = RIDGES,
    device: torch.device | str,
    choose: Choice | None = None,
) -> dict[str, Tensor]:
    """Weights of the pruned model, fitted layer by layer in order of execution.

    See `lpvit.refitting.reconstruction.fit_in_order`. A layer that keeps all blocks is not changed.

    Args:
        model: Dense model; moved to the device, otherwise not modified.
        keep_masks: Kept blocks.
        block_shape: Rows and columns of a block.
        loader: Calibration images.
        ridges: Strengths to choose from, as in `fit_rows`; the first of equals.
        device: Where to compute.
        choose: As in `fit_in_order`.

    Returns:
        The state dict, on the CPU; pruned weights are exactly zero.

    Raises:
        LpvitError: The activations of a layer are not finite, or do not determine its weights; the layer is named.
    """
    pruned, expanded = _zeroed_copy(model.to(device), keep_masks, block_shape)
    fits = [
        Fit(name, slice(None), weight_with_bias(matrix_layer(model, name)), expanded[f"{name}.weight"].flatten(1))
        for name in (layer.name for layer in matrix_layers(model))
        if not keep_masks.get(name, _ALL).all()
    ]
    return fit_in_order(model, pruned, fits, loader, ridges=ridges, device=device, choose=choose)


@dataclass(frozen=True)
class BlockFit:
    """The remaining blocks of a layer, fitted by least squares.

    Attributes:
        place: The layer.
        start: Its dense weight, (O, J), float64.
        keep: Weights that may differ from 0, (O, I), bool.
    """

    place: Place
    start: Tensor
    keep: Tensor

    def __call__(self, sums: LayerSums, ridges: Sequence[float] | None = None) -> FittedLayer:
        start = sums.scale * self.start
        with named_if_singular(sums.layer):
            fitted, *shares = fit_layer(sums.fitted, sums.held_out, start, self.keep, ridges or RIDGES)
        weight = fitted / sums.scale
        return FittedLayer(weight, shares, partial(_store, weight))


def block_fits(model: nn.Module, keep_masks: KeepMasks, block_shape: tuple[int, int]) -> list[BlockFit]:
    """Fits of the layers of a dense model that lose blocks, in the order of the masks."""
    expanded = expand_keep_masks(model, keep_masks, block_shape)
    return [
        BlockFit(
            Place(layer, slice(None)),
            weight_with_bias(matrix_layer(model, layer)).detach(),
            expanded[f"{layer}.weight"].flatten(1),
        )
        for layer, keep_mask in keep_masks.items()
        if not keep_mask.all()
    ]


def _store(weight: Tensor, module: nn.Module) -> None:
    assert isinstance(module, MatrixLayer)
    store_weight(module, weight)


def _zeroed_copy(
    model: nn.Module, keep_masks: KeepMasks, block_shape: tuple[int, int]
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model without its pruned weights, and the masks of kept weights."""
    pruned = deepcopy(model)
    expanded = expand_keep_masks(pruned, keep_masks, block_shape)
    zero_pruned(pruned.state_dict(), expanded)
    return pruned, expanded
