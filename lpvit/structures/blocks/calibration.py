"""Statistics of the blocks of layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import InstanceOf
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.models.analysis.layers import LayerSpec, matrix_layers, prunable_layers, weight_matrix
from lpvit.models.analysis.passes import Batches
from lpvit.store.artifacts import load
from lpvit.structures.blocks.grid import BlockGrid
from lpvit.structures.blocks.statistics import Statistic
from lpvit.structures.calibration import Statistics


@dataclass(frozen=True)
class StatisticInputs:
    """Inputs of the `lpvit.structures.blocks.statistics`.

    Attributes:
        model: Moved to the device, otherwise not modified.
        images: Calibration images.
        layers: Layers to describe.
        block_shape: Rows and columns of a block.
        device: Where to compute.
    """

    model: nn.Module
    images: Batches
    layers: Sequence[LayerSpec]
    block_shape: tuple[int, int]
    device: torch.device | str

    @cached_property
    def grids(self) -> dict[str, BlockGrid]:
        """Layer -> its blocks.

        Raises:
            LpvitError: A block is larger than a layer.
        """
        return {layer.name: BlockGrid(layer.shape, self.block_shape) for layer in self.layers}

    def weight(self, layer: str) -> Tensor:
        """The weight matrix of a layer, (O, I)."""
        return weight_matrix(self.model.get_submodule(layer)).detach()


def collect(model: nn.Module, images: Batches, needed: Mapping[str, Any], device: torch.device | str) -> Statistics:
    """Statistics for ``statistics_needed`` of the settings; see `lpvit.structures.calibration.collect_statistics`."""
    layers = prunable_layers(matrix_layers(model), needed["layers"])
    statistics = [Statistic.registry[each["name"]].model_validate(each) for each in needed["statistics"]]
    return block_statistics(StatisticInputs(model, images, layers, tuple(needed["block_shape"]), device), statistics)


def block_statistics(inputs: StatisticInputs, statistics: Iterable[Statistic]) -> Statistics:
    """The tables of all these statistics, by layer.

    Raises:
        LpvitError: A block is larger than a layer, or something is not finite.
    """
    tables: Statistics = {layer: {} for layer in inputs.grids}  # before any image is read
    inputs.model.to(inputs.device)
    for statistic in statistics:
        for layer, of_layer in statistic.collect(inputs).items():
            tables[layer] |= of_layer
    return tables


def load_statistics(path: str | Path) -> Statistics:
    """Reads the statistics of blocks that a stage has saved.

    Raises:
        LpvitError: As `lpvit.store.artifacts.load`, or the tables of a layer are inconsistent.
    """
    statistics: Statistics = load(path, "statistics", dict[str, dict[str, InstanceOf[Tensor]]])
    require_one_grid(statistics, path)
    return statistics


def require_one_grid(statistics: Statistics, path: str | Path) -> None:
    """Checks statistics that were read from a file.

    Raises:
        LpvitError: The tables of a layer are inconsistent.
    """
    for layer, tables in statistics.items():
        grid = tables.get("weights", torch.empty(0)).shape
        if len(grid) != 2 or 0 in grid or not all(_fits(table, grid) for table in tables.values()):
            raise LpvitError(f"{path}: the tables of '{layer}' are not of one grid of blocks; delete it and rerun")


def _fits(table: Tensor, grid: torch.Size) -> bool:
    """Whether a table has a number per block of a grid (R, C), or per sample and block, (S, R * C)."""
    return table.shape == grid or (table.ndim == 2 and table.shape[1] == grid.numel())
