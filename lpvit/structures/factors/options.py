"""Cost and distortion of every rank of every layer, as tables for the allocators.

O, I = output and input features of a layer; R = min(O, I).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lpvit.models.analysis.layers import LayerSpec, weight_matrix
from lpvit.models.analysis.passes import Batches
from lpvit.moments.moments import LayerMoments
from lpvit.moments.parts import Parts, distortion_of_tails, part_moments
from lpvit.refitting.reconstruction import named_if_singular
from lpvit.refitting.truncation import damped, decompose, rounding_noise
from lpvit.structures.factors.ranks import ladder, units_of
from lpvit.structures.factors.settings import Factors, Metric

OUTPUT_DAMPING = 1e-2  # identity added to the metric of the outputs, as a share of its mean diagonal
INPUT_DAMPING = 1e-4  # the same of the inputs
CURVE_IMAGES = 256  # that curves are measured on at least, of all that the moments are of


def parts_of_layers(model: nn.Module, moments: Mapping[str, LayerMoments], metric: Metric) -> dict[str, Parts]:
    """The weight of every layer as rank-one parts, the most important first in a metric.

    Raises:
        LpvitError: The inputs of a layer do not vary.
    """
    found = {}
    for layer, of_layer in moments.items():
        weight = weight_matrix(model.get_submodule(layer)).detach().to(of_layer.output_sensitivity)
        outputs, inputs, mean = _metrics(of_layer, metric)
        with named_if_singular(layer):
            decomposed = decompose(weight, outputs, inputs)
        found[layer] = Parts(decomposed.left, decomposed.right, mean)
    return found


def input_metric(moments: LayerMoments) -> Tensor:
    """Covariance of the inputs, damped so that it is positive definite, (I, I)."""
    return damped(moments.input_covariance, INPUT_DAMPING, rounding_noise(moments.input_mean))


def _metrics(moments: LayerMoments, metric: Metric) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Metrics of outputs (O, O) and inputs (I, I), None for the identity, and the mean input (I,)."""
    sensitivity = damped(moments.output_sensitivity, OUTPUT_DAMPING)
    if metric == "two_sided":
        return sensitivity, input_metric(moments), moments.input_mean
    if metric == "activations":
        return None, input_metric(moments), moments.input_mean
    no_mean = torch.zeros_like(moments.input_mean)
    return (sensitivity.diagonal().diag() if metric == "fisher" else None), None, no_mean


def options(
    model: nn.Module,
    loader: Batches,
    layers: Sequence[LayerSpec],
    parts: Mapping[str, Parts],
    settings: Factors,
    device: torch.device | str,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves over the ladder of every layer, from exact products of the parts that each rank omits.

    Args:
        model: Dense model; moved to the device, otherwise not modified.
        loader: Calibration images.
        layers: Layers to describe.
        parts: From `parts_of_layers`.
        settings: Ranks, form and probes.
        device: Where to compute.

    Returns:
        The units (schema ``BLOCKS``; in one row, in pruning order) and the curves (schema ``CURVES``),
        for `lpvit.allocation.allocate.allocate`, as for blocks.

    Raises:
        LpvitError: As `lpvit.moments.parts.part_moments`.
    """
    found = part_moments(model, loader, parts, settings.probes, device)
    tables = [_tables(layer, parts[layer.name], distortion_of_tails(found[layer.name]), settings) for layer in layers]
    units, curves = (pd.concat(frames, ignore_index=True) for frames in zip(*tables, strict=True))
    return units, curves


def _tables(layer: LayerSpec, parts: Parts, by_rank: Tensor, settings: Factors) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Units and curve of a layer, from the distortion at every rank, (R + 1,)."""
    ranks = ladder(layer.shape, settings.rank_multiple, settings.form)
    distortion = np.append(0.0, by_rank.cpu().numpy()[ranks])
    units = units_of(layer.name, layer.shape, settings.rank_multiple, settings.form).assign(
        saliency=np.maximum.accumulate(distortion[1:]),
        squared_norm=np.maximum(np.diff(_lost_norms(parts, ranks), prepend=0.0), 0.0),
    )
    count = len(units)
    curve = pd.DataFrame(
        {
            "layer": layer.name,
            "sparsity": np.linspace(0, 1, count + 1),
            "blocks_pruned": np.arange(count + 1),
            "weights_pruned": np.append(0, units["weights"].to_numpy(np.int64).cumsum()),
            "distortion": distortion,
        }
    )
    return units, curve


def _lost_norms(parts: Parts, ranks: Sequence[int]) -> NDArray[np.float64]:
    """Squared norm of the weights without their first r parts, for every rank."""
    grams = (parts.left.T @ parts.left) * (parts.right @ parts.right.T)
    norms: NDArray[np.float64] = distortion_of_tails(grams).cpu().numpy()[list(ranks)]
    return norms
