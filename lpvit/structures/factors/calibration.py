"""Second moments of layers, as statistics."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.analysis.passes import Batches
from lpvit.moments.moments import collect_moments
from lpvit.structures.calibration import Statistics
from lpvit.structures.factors.tokens import log_if_few_tokens


def collect(model: nn.Module, images: Batches, needed: Mapping[str, Any], device: torch.device | str) -> Statistics:
    """See `lpvit.moments.moments.collect_moments`; a line says where too few images were given."""
    layers = prunable_layers(matrix_layers(model), needed["layers"])
    names = [layer.name for layer in layers]
    moments = collect_moments(model, images, names, needed["probes"], device, weighted=needed["weighted"])
    log_if_few_tokens(layers, moments)
    return {
        layer: {name: torch.as_tensor(value).cpu() for name, value in vars(of_layer).items()}
        for layer, of_layer in moments.items()
    }
