"""A model with low-rank factors in the place of layers: truncated, or refitted and refined.

O, I = output and input features of a layer; T = its tokens of an image.
"""

import logging
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from lpvit.models.analysis.network import Network, analyse, attention_branches
from lpvit.models.analysis.passes import Batches
from lpvit.moments.moments import LayerMoments
from lpvit.refitting.reconstruction import (
    LayerSums,
    Place,
    log_errors,
    matrix_layer,
    named_if_singular,
    sums_in_order,
    weight_with_bias,
)
from lpvit.refitting.reduced_rank import fit_reduced_rank
from lpvit.refitting.refinement import BlockTarget, refine
from lpvit.refitting.truncation import LowRank, damped, truncated
from lpvit.structures.factors.layers import CLASSES
from lpvit.structures.factors.options import OUTPUT_DAMPING, parts_of_layers
from lpvit.structures.factors.settings import Factors, Form

RIDGES = (1.0, 0.3, 0.1, 0.03, 1e-2, 1e-3)
LEAST_TOKEN_WEIGHT = 0.01  # of a token that the logits do not feel, where the mean is 1

_logger = logging.getLogger(__name__)


@torch.no_grad()
def factorised(
    model: nn.Module,
    loader: Batches | None,
    moments: Mapping[str, LayerMoments],
    ranks: Mapping[str, int],
    settings: Factors,
    device: torch.device | str,
) -> nn.Module:
    """A copy of a dense model with some layers at low rank, on the device.

    Args:
        model: Dense; moved to the device, otherwise not modified.
        loader: Calibration images, to which factors are refitted; None leaves them as truncated.
        moments: Of at least these layers, in order of execution.
        ranks: Layer -> rank; the others stay dense.
        settings: How layers become factors.
        device: Where to compute.

    Raises:
        LpvitError: A rank does not fit its layer, or the refit finds activations that are not finite or do not
            determine a layer.
    """
    compressed = deepcopy(model.to(device))
    if loader is None:
        parts = parts_of_layers(model, {layer: moments[layer] for layer in ranks}, settings.metric)
        for layer, rank in ranks.items():
            replace(compressed, layer, truncated(parts[layer], rank, matrix_layer(model, layer).bias), settings.form)
        return compressed
    network = analyse(model)
    branches = network.branches | attention_branches(network)
    places = [
        Place(layer, slice(None), _token_weights(of_layer)) for layer, of_layer in moments.items() if layer in ranks
    ]
    errors = []
    for sums in sums_in_order(model, compressed, places, loader, device=device, branches=branches):
        low, *shares = _fitted(model, sums, moments[sums.layer], ranks[sums.layer])
        replace(compressed, sums.layer, low, settings.form)
        errors.append(shares)
    log_errors(errors)
    if settings.refine_steps:
        targets = _block_targets(compressed, network, moments)
        refine(model, compressed, targets, loader, settings.refine_steps, device)
    return compressed


def replace(model: nn.Module, layer: str, low: LowRank, form: Form) -> None:
    """Puts factors in the place of a layer."""
    module = CLASSES[form].like(matrix_layer(model, layer), low.rank)
    module.store(low.balanced())
    model.set_submodule(layer, module)


def _fitted(model: nn.Module, sums: LayerSums, moments: LayerMoments, rank: int) -> tuple[LowRank, float, float]:
    """Factors of a layer for its sums, and the relative errors that `fit_reduced_rank` gives."""
    module = matrix_layer(model, sums.layer)
    with named_if_singular(sums.layer):
        low, before, after = fit_reduced_rank(
            sums.fitted,
            sums.held_out,
            sums.scale * weight_with_bias(module),
            rank,
            _output_metric(moments, sums.scale[:, 0]),
            RIDGES,
            module.bias is not None,
        )
    bias = None if low.bias is None else low.bias / sums.scale[:, 0]
    return LowRank(low.expand / sums.scale, low.reduce, bias), before, after


def _block_targets(
    compressed: nn.Module, network: Network, moments: Mapping[str, LayerMoments]
) -> dict[str, BlockTarget]:
    """The factors of every transformer block, and what the logits feel of its output."""
    targets = {}
    for layer, branch in network.branches.items():
        if layer in moments:
            of_layer = moments[layer]
            inside = compressed.get_submodule(branch.block).modules()
            factors = [module for module in inside if isinstance(module, tuple(CLASSES.values()))]
            parameters = [parameter for module in factors for parameter in module.parameters()]
            if parameters:
                root = torch.linalg.cholesky(_output_metric(of_layer, branch.scale.to(of_layer.output_sensitivity)))
                targets[branch.block] = BlockTarget(parameters, root, _token_weights(of_layer))
    return targets


def _output_metric(moments: LayerMoments, scale: Tensor) -> Tensor:
    """Sensitivity of the logits to the outputs times their scale (O,), damped, (O, O)."""
    scale = scale.where(scale != 0, 1.0)
    return damped(moments.output_sensitivity / scale.outer(scale), OUTPUT_DAMPING)


def _token_weights(moments: LayerMoments) -> Tensor:
    """What the logits feel of each place among the tokens, (T,), with a mean of 1."""
    relative = moments.token_sensitivity / moments.token_sensitivity.mean().clamp_min(1e-300)
    return LEAST_TOKEN_WEIGHT + (1 - LEAST_TOKEN_WEIGHT) * relative
