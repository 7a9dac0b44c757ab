"""What the calibration images say about the layers of a model, for a structure.

Apart from the structures themselves, so that their other code does not count as that of the statistics.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lpvit.models.analysis.passes import Batches

Statistics = dict[str, dict[str, Tensor]]  # layer -> name of a statistic -> tensor


def collect_statistics(
    structure: str, model: nn.Module, images: Batches, needed: Mapping[str, Any], device: torch.device | str
) -> Statistics:
    """Statistics of the layers of a model.

    Args:
        structure: Name of the package of the structure, whose ``calibration.collect`` is called.
        model: Dense or pruned; moved to the device.
        images: Calibration images.
        needed: The settings ``statistics_needed`` of the structure.
        device: Where to compute.

    Raises:
        LpvitError: Something is not finite, or a layer does not fit the structure.
    """
    module = import_module(f"lpvit.structures.{structure}.calibration")
    statistics: Statistics = module.collect(model, images, needed, device)
    return statistics
