"""Statistics of the blocks of layers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.models.analysis.passes import Batches
from lpvit.structures.blocks.products import statistics_with_products
from lpvit.structures.calibration import Statistics


def collect(model: nn.Module, images: Batches, needed: Mapping[str, Any], device: torch.device | str) -> Statistics:
    """See `lpvit.structures.blocks.products.statistics_with_products`."""
    layers, block_shape = prunable_layers(matrix_layers(model), needed["layers"]), tuple(needed["block_shape"])
    return statistics_with_products(
        model, images, layers, block_shape, needed["probes"], device, averaged=needed["averaged"]
    )
