"""Blocks of weight matrices as a structure."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lpvit.models.analysis.layers import LayerSpec, matrix_layers, prunable_layers
from lpvit.models.analysis.passes import Batches
from lpvit.structures.blocks.calibration import load_statistics, require_one_grid
from lpvit.structures.blocks.edit import record_keep_masks
from lpvit.structures.blocks.grid import BlockGrid, KeepMasks
from lpvit.structures.blocks.masks import build_keep_masks, keep_masks_without
from lpvit.structures.blocks.rate_distortion import rate_distortion_curves
from lpvit.structures.blocks.scores import block_table, unscored_table
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.weights import BlockFit, block_fits, pruned_weights
from lpvit.structures.calibration import Statistics
from lpvit.structures.structure import Compressed, Options


@dataclass(frozen=True)
class BlockStructure:
    """Blocks are scored, the least salient are pruned, and the remaining weights are refitted by least squares.

    Attributes:
        settings: How blocks are scored and curves measured.
    """

    settings: Blocks

    @property
    def measures_images(self) -> bool:
        return self.settings.measures_images

    @property
    def compresses_by_statistics(self) -> bool:
        return self.settings.compresses_by_statistics

    def layers(self, model: nn.Module) -> list[LayerSpec]:
        return prunable_layers(matrix_layers(model), self.settings.layers)

    def pieces(self, model: nn.Module) -> list[pd.DataFrame]:
        grids = {layer.name: BlockGrid(layer.shape, self.settings.block_shape) for layer in self.layers(model)}
        return [pd.concat([unscored_table(*of_layer) for of_layer in grids.items()], ignore_index=True)]

    @property
    def name(self) -> str:
        return self.settings.structure

    @property
    def statistics_needed(self) -> Mapping[str, Any]:
        return self.settings.statistics_needed

    @staticmethod
    def load_statistics(path: str | Path) -> Statistics:
        return load_statistics(path)

    @staticmethod
    def require_consistent(statistics: Statistics, path: str | Path) -> None:
        require_one_grid(statistics, path)

    def options(
        self, statistics: Statistics, model: nn.Module | None, images: Batches | None, device: torch.device | str
    ) -> Options:
        blocks = block_table(statistics, self.settings.saliency)
        return Options(blocks, rate_distortion_curves(statistics, blocks, self.settings, model, images, device))

    def choose(self, blocks: pd.DataFrame, allocation: pd.DataFrame) -> dict[str, Tensor]:
        return build_keep_masks(blocks, allocation)

    def choice_of(self, removed: Mapping[str, int], statistics: Statistics) -> dict[str, Tensor]:
        blocks = block_table({layer: statistics[layer] for layer in removed}, self.settings.saliency)
        return keep_masks_without(blocks, removed)

    def fits(
        self, model: nn.Module, choice: KeepMasks, statistics: Statistics, device: torch.device | str
    ) -> list[BlockFit]:
        return block_fits(model.to(device), choice, self.settings.block_shape)

    def compress(
        self,
        model: nn.Module,
        choice: KeepMasks,
        statistics: Statistics | None,
        images: Batches | None,
        device: torch.device | str,
    ) -> Compressed:
        pruned = deepcopy(model).cpu()
        pruned.load_state_dict(pruned_weights(model, choice, self.settings.block_shape, images, device))
        record_keep_masks(pruned, choice, self.settings.block_shape)
        return Compressed(pruned, choice, self.settings.block_shape)


STRUCTURE = BlockStructure
