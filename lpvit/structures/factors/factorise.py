"""A model with low-rank factors in the place of layers: truncated, or refitted and refined.

O, I = output and input features of a layer; T = its tokens of an image.
"""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lpvit.models.additions import replace_module
from lpvit.models.analysis.network import Network, analyse
from lpvit.models.analysis.passes import Batches
from lpvit.moments.moments import LayerMoments
from lpvit.refitting.layer_fits import FittedLayer, fit_layers
from lpvit.refitting.reconstruction import (
    LayerSums,
    Place,
    matrix_layer,
    named_if_singular,
    weight_with_bias,
)
from lpvit.refitting.reduced_rank import fit_reduced_rank
from lpvit.refitting.refinement import BlockTarget, refine
from lpvit.refitting.truncation import LowRank, damped, truncated
from lpvit.structures.factors.layers import CLASSES, FactorisedLinear, PivotedLinear
from lpvit.structures.factors.options import OUTPUT_DAMPING, input_metric, parts_of_layers
from lpvit.structures.factors.settings import Factors

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
    for layer, rank in ranks.items():
        replace_module(compressed, layer, CLASSES[settings.form].like(matrix_layer(model, layer), rank))
    if loader is None:
        parts = parts_of_layers(model, {layer: moments[layer] for layer in ranks}, settings.metric)
        for layer, rank in ranks.items():
            low = truncated(parts[layer], rank, matrix_layer(model, layer).bias)
            _store(low, moments[layer], compressed.get_submodule(layer))
        return compressed
    fit_layers(model, compressed, factor_fits(model, moments, ranks), loader, device)
    if settings.refine_steps:
        targets = _block_targets(compressed, analyse(model), moments)
        refine(model, compressed, targets, loader, settings.refine_steps, device)
    return compressed


@dataclass(frozen=True)
class FactorFit:
    """A layer at low rank, fitted by reduced-rank regression.

    Attributes:
        place: The layer, with its tokens weighted by what the logits feel of them.
        start: Its dense weight, (O, J), float64.
        bias: Whether the last column is a bias.
        moments: Of the layer.
        rank: Of the factors.
    """

    place: Place
    start: Tensor
    bias: bool
    moments: LayerMoments
    rank: int

    def __call__(self, sums: LayerSums, ridges: Sequence[float] | None = None) -> FittedLayer:
        metric, start = _output_metric(self.moments, sums.scale[:, 0]), sums.scale * self.start
        with named_if_singular(sums.layer):
            low, *shares = fit_reduced_rank(
                sums.fitted, sums.held_out, start, self.rank, metric, ridges or RIDGES, self.bias
            )
        bias = None if low.bias is None else low.bias / sums.scale[:, 0]
        unscaled = LowRank(low.expand / sums.scale, low.reduce, bias)
        return FittedLayer(unscaled.weight, shares, partial(_store, unscaled, self.moments))


def factor_fits(model: nn.Module, moments: Mapping[str, LayerMoments], ranks: Mapping[str, int]) -> list[FactorFit]:
    """Fits of the layers that get a rank, in the order of the moments.

    Args:
        model: Dense, on the device of the moments.
        moments: Of at least these layers.
        ranks: Layer -> rank.
    """
    fits = []
    for layer, of_layer in moments.items():
        if layer in ranks:
            module = matrix_layer(model, layer)
            place = Place(layer, slice(None), _token_weights(of_layer))
            fits.append(FactorFit(place, weight_with_bias(module), module.bias is not None, of_layer, ranks[layer]))
    return fits


def _store(low: LowRank, moments: LayerMoments, module: nn.Module) -> None:
    assert isinstance(module, FactorisedLinear | PivotedLinear)
    module.store(low.balanced(input_metric(moments).to(low.reduce)))


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
