"""A model with low-rank factors in the place of layers: measured, allocated to a budget, truncated and refitted.

O, I = output and input features of a layer; J = I, or I + 1 with a bias; r = rank.
"""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.costs.cost import measure_costs
from lpvit.models.analysis.layers import LayerSpec, matrix_layers, prunable_layers
from lpvit.models.analysis.network import attention_branches, understand
from lpvit.models.analysis.passes import Batches
from lpvit.moments.moments import LayerMoments, collect_moments
from lpvit.refitting.reconstruction import (
    log_errors,
    matrix_layer,
    named_if_singular,
    sums_in_order,
    weight_with_bias,
)
from lpvit.refitting.reduced_rank import fit_reduced_rank
from lpvit.refitting.truncation import Decomposition, damped
from lpvit.structures.factors.layers import CLASSES, Factors
from lpvit.structures.factors.options import OUTPUT_DAMPING, decompositions, options
from lpvit.structures.factors.ranks import allocated_ranks
from lpvit.structures.factors.settings import Factors as Settings

RIDGES = (1.0, 0.3, 0.1, 0.03, 1e-2, 1e-3)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What the calibration images say of a dense model, and what every budget goes by.

    Attributes:
        layers: That may become factors, in order of execution.
        moments: Of these layers.
        decomposed: Their weights as rank-one parts, and the mean input that the bias makes up for.
        tables: Units, curves and costs, for `lpvit.allocation.allocate.allocate`.
    """

    layers: Sequence[LayerSpec]
    moments: Mapping[str, LayerMoments]
    decomposed: Mapping[str, tuple[Decomposition, Tensor]]
    tables: LayerTables


def factorise(
    model: nn.Module, loader: Batches, budget: Budget, settings: Settings, device: torch.device | str = "cpu"
) -> nn.Module:
    """A model under a budget, whose layers are low-rank where that costs less.

    Args:
        model: Dense; moved to the device, otherwise left as it is.
        loader: Calibration images, without need of labels.
        budget: What may stay, and who decides where.
        settings: How layers become factors.
        device: Where to compute.

    Raises:
        LpvitError: A layer cannot be replaced, the budget cannot be met, or something is not finite.
    """
    measured = measure(model, loader, settings, device)
    ranks = allocated_ranks(allocate(measured.tables, budget), settings.rank_multiple)
    return factorised(model, loader, measured, ranks, settings, device)


def measure(model: nn.Module, loader: Batches, settings: Settings, device: torch.device | str) -> Measured:
    """Moments, parts and curves of a dense model, in two passes over the images.

    Raises:
        LpvitError: A layer cannot be replaced, or something is not finite.
    """
    layers = prunable_layers(matrix_layers(model), settings.layers)
    moments = collect_moments(model, loader, [layer.name for layer in layers], settings.probes, device)
    _log_if_few_tokens(layers, moments)
    decomposed = decompositions(model, moments, settings)
    units, curves = options(model, loader, layers, decomposed, settings, device)
    return Measured(layers, moments, decomposed, LayerTables(curves, units, measure_costs(model)))


@torch.no_grad()
def factorised(
    model: nn.Module,
    loader: Batches,
    measured: Measured,
    ranks: Mapping[str, int],
    settings: Settings,
    device: torch.device | str,
) -> nn.Module:
    """A copy of the model with layers at the given ranks, truncated and, if the settings say so, refitted.

    Raises:
        LpvitError: A rank does not fit its layer, or the refit finds activations that are not finite or determine
            nothing.
    """
    model.to(device)
    compressed = deepcopy(model)
    if settings.refit == "none":
        for layer, rank in ranks.items():
            parts, mean = measured.decomposed[layer]
            _replace(compressed, layer, _truncated(matrix_layer(model, layer), parts, mean, rank), settings)
        return compressed
    return _refitted(model, compressed, loader, measured, ranks, settings, device)


def _refitted(model, compressed, loader, measured, ranks, settings, device):  # type: ignore[no-untyped-def]
    network, errors = understand(model), []
    branches = network.branches | attention_branches(network)
    places = [(layer.name, slice(None)) for layer in measured.layers if layer.name in ranks]
    for sums in sums_in_order(model, compressed, places, loader, device=device, branches=branches):
        module = matrix_layer(model, sums.layer)
        sensitivity = measured.moments[sums.layer].output_sensitivity / (sums.scale * sums.scale.T)
        with named_if_singular(sums.layer):
            low, *shares = fit_reduced_rank(
                sums.fitted,
                sums.held_out,
                sums.scale * weight_with_bias(module),
                ranks[sums.layer],
                damped(sensitivity, OUTPUT_DAMPING),
                RIDGES,
                module.bias is not None,
            )
        bias = None if low.bias is None else low.bias / sums.scale[:, 0]
        _replace(compressed, sums.layer, Factors(low.expand / sums.scale, low.reduce, bias), settings)
        errors.append(shares)
    log_errors(errors)
    return compressed


def _truncated(module, parts: Decomposition, mean: Tensor, rank: int) -> Factors:  # type: ignore[no-untyped-def]
    """The first parts of a layer; its bias takes what the others make of the mean input."""
    expand, reduce = parts.left[:, :rank], parts.right[:rank]
    if module.bias is None:
        return Factors(expand, reduce, None)
    lost = parts.left[:, rank:] @ (parts.right[rank:] @ mean)
    return Factors(expand, reduce, module.bias.to(lost) + lost)


def _replace(model: nn.Module, layer: str, factors: Factors, settings: Settings) -> None:
    module = CLASSES[settings.form].like(matrix_layer(model, layer), factors.rank)
    module.store(factors)
    model.set_submodule(layer, module)


def _log_if_few_tokens(layers: Sequence[LayerSpec], moments: Mapping[str, LayerMoments]) -> None:
    """Says from how many images on the inputs of all layers can be spanned, where the images are fewer."""
    needed = {layer.name: -(-(layer.in_features + 1) // layer.tokens) for layer in layers}
    worst = max(needed, key=needed.__getitem__)
    images = next(iter(moments.values())).images
    if images < needed[worst]:
        _logger.warning(
            "%s: %d calibration images do not span its %d inputs, so that damping and ridge decide; from %d images on "
            "they need not",
            *(worst, images, next(layer.in_features for layer in layers if layer.name == worst), needed[worst]),
        )
