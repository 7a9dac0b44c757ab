"""Statistics of several structures side by side."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lpvit.models.analysis.passes import Batches
from lpvit.structures.calibration import Statistics, collect_statistics


def collect(model: nn.Module, images: Batches, needed: Mapping[str, Any], device: torch.device | str) -> Statistics:
    """Statistics of every part (part -> what it needs); the name of a table is ``<part>.<its name there>``."""
    merged: Statistics = {}
    for part, needed_there in needed.items():
        for layer, tables in collect_statistics(part, model, images, needed_there, device).items():
            merged.setdefault(layer, {}).update({f"{part}.{name}": table for name, table in tables.items()})
    return merged


def statistics_of(part: str, statistics: Statistics) -> Statistics:
    """Those of one part."""
    prefix = f"{part}."
    return {
        layer: {name.removeprefix(prefix): table for name, table in tables.items() if name.startswith(prefix)}
        for layer, tables in statistics.items()
    }
