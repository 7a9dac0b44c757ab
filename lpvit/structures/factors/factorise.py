"""A model with low-rank factors in the place of layers: measured, allocated to a budget, truncated and refitted.

O, I = output and input features of a layer; T = its tokens of an image.
"""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.costs.cost import measure_costs
from lpvit.models.analysis.layers import LayerSpec, matrix_layers, prunable_layers
from lpvit.models.analysis.network import Network, analyse, attention_branches
from lpvit.models.analysis.passes import Batches
from lpvit.moments.moments import LayerMoments, collect_moments
from lpvit.moments.parts import Parts
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
from lpvit.structures.factors.options import OUTPUT_DAMPING, options, parts_of_layers
from lpvit.structures.factors.ranks import Form, allocated_ranks
from lpvit.structures.factors.settings import Factors

RIDGES = (1.0, 0.3, 0.1, 0.03, 1e-2, 1e-3)
LEAST_TOKEN_WEIGHT = 0.01  # of a token that the logits do not feel, where the mean is 1

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What the calibration images say of a dense model, and what every budget goes by.

    Attributes:
        layers: That may become factors, in order of execution.
        moments: Of these layers.
        parts: Their weights as rank-one parts, the most important first.
        tables: Units, curves and costs, for `lpvit.allocation.allocate.allocate`.
    """

    layers: Sequence[LayerSpec]
    moments: Mapping[str, LayerMoments]
    parts: Mapping[str, Parts]
    tables: LayerTables


def factorise(
    model: nn.Module, loader: Batches, budget: Budget, settings: Factors, device: torch.device | str = "cpu"
) -> nn.Module:
    """A model under a budget, whose layers are low-rank where that costs less.

    Args:
        model: Dense; moved to the device, otherwise left as it is.
        loader: Calibration images; their labels are not read.
        budget: What may stay, and who decides where.
        settings: How layers become factors.
        device: Where to compute.

    Raises:
        LpvitError: A layer cannot be replaced, the budget cannot be met, or something is not finite.
    """
    measured = measure(model, loader, settings, device)
    ranks = allocated_ranks(allocate(measured.tables, budget), settings.rank_multiple)
    return factorised(model, loader, measured, ranks, settings, device)


def measure(model: nn.Module, loader: Batches, settings: Factors, device: torch.device | str) -> Measured:
    """Moments, parts and curves of a dense model, in two passes over the images.

    Raises:
        LpvitError: A layer cannot be replaced, or something is not finite.
    """
    layers = prunable_layers(matrix_layers(model), settings.layers)
    names, weighted = [layer.name for layer in layers], settings.metric == "two_sided"
    moments = collect_moments(model, loader, names, settings.probes, device, weighted=weighted)
    _log_if_few_tokens(layers, moments)
    parts = parts_of_layers(model, moments, settings.metric)
    units, curves = options(model, loader, layers, parts, settings, device)
    return Measured(layers, moments, parts, LayerTables(curves, units, measure_costs(model)))


@torch.no_grad()
def factorised(
    model: nn.Module,
    loader: Batches,
    measured: Measured,
    ranks: Mapping[str, int],
    settings: Factors,
    device: torch.device | str,
) -> nn.Module:
    """A copy of the model with layers at the given ranks, truncated and, if the settings say so, refitted.

    Raises:
        LpvitError: A rank does not fit its layer, or the refit finds activations that are not finite or do not
            determine a layer.
    """
    compressed = deepcopy(model.to(device))
    if settings.refit == "none":
        for layer, rank in ranks.items():
            low = truncated(measured.parts[layer], rank, matrix_layer(model, layer).bias)
            replace(compressed, layer, low, settings.form)
        return compressed
    network = analyse(model)
    branches = network.branches | attention_branches(network)
    places = [
        Place(layer.name, slice(None), _token_weights(measured.moments[layer.name]))
        for layer in measured.layers
        if layer.name in ranks
    ]
    errors = []
    for sums in sums_in_order(model, compressed, places, loader, device=device, branches=branches):
        low, *shares = _fitted(model, sums, measured.moments[sums.layer], ranks[sums.layer])
        replace(compressed, sums.layer, low, settings.form)
        errors.append(shares)
    log_errors(errors)
    if settings.refine_steps:
        targets = _block_targets(compressed, network, measured)
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


def _block_targets(compressed: nn.Module, network: Network, measured: Measured) -> dict[str, BlockTarget]:
    """The factors of every transformer block, and what the logits feel of its output."""
    targets = {}
    for layer, branch in network.branches.items():
        if layer in measured.moments:
            moments = measured.moments[layer]
            inside = compressed.get_submodule(branch.block).modules()
            factors = [module for module in inside if isinstance(module, tuple(CLASSES.values()))]
            parameters = [parameter for module in factors for parameter in module.parameters()]
            if parameters:
                root = torch.linalg.cholesky(_output_metric(moments, branch.scale.to(moments.output_sensitivity)))
                targets[branch.block] = BlockTarget(parameters, root, _token_weights(moments))
    return targets


def _output_metric(moments: LayerMoments, scale: Tensor) -> Tensor:
    """Sensitivity of the logits to the outputs times their scale (O,), damped, (O, O)."""
    scale = scale.where(scale != 0, 1.0)
    return damped(moments.output_sensitivity / scale.outer(scale), OUTPUT_DAMPING)


def _token_weights(moments: LayerMoments) -> Tensor:
    """What the logits feel of each place among the tokens, (T,), with a mean of 1."""
    relative = moments.token_sensitivity / moments.token_sensitivity.mean().clamp_min(1e-300)
    return LEAST_TOKEN_WEIGHT + (1 - LEAST_TOKEN_WEIGHT) * relative


def _log_if_few_tokens(layers: Sequence[LayerSpec], moments: Mapping[str, LayerMoments]) -> None:
    """Says from how many images on the inputs of all layers can be spanned, where there are fewer images."""
    images = moments[layers[0].name].images
    widest = max(layers, key=lambda layer: (layer.in_features + 1) / layer.tokens)
    needed = -(-(widest.in_features + 1) // widest.tokens)
    if images < needed:
        _logger.warning(
            "%s: %d calibration images do not span its %d inputs, so that damping and ridge decide; from %d images on "
            "they need not",
            *(widest.name, images, widest.in_features, needed),
        )
