r"""Gradual magnitude pruning: blocks are pruned during training (Zhu and Gupta, 2017, To prune, or not to prune).

A layer with final sparsity s has, at progress p of the pruning phase, the sparsity

.. math:: s (1 - (1 - p)^3)

with the blocks of the smallest mean abs(w) pruned first. With blocks of 1 x 1 these are single weights.
"""

import torch
from torch import Tensor, nn

from lpvit.models.analysis.layers import weight_matrix
from lpvit.structures.blocks.grid import BlockGrid, KeepMasks

UPDATES = 100  # of the masks, over the pruning phase


class GradualPruning:
    """Masks that follow the weights of a model.

    Args:
        model: The weights are read from it.
        final: Keep masks at the end, (R, C) for each layer, of which only the number of blocks is used.
        block_shape: Rows and columns of a block.
        steps: Optimiser steps of the pruning phase, fewer than those of the training; 0 prunes at the start.
    """

    def __init__(self, model: nn.Module, final: KeepMasks, block_shape: tuple[int, int], steps: int) -> None:
        self.model, self.final, self.block_shape, self.steps = model, final, block_shape, steps

    def is_due(self, step: int) -> bool:
        """Whether the masks change before this step."""
        return step == self.steps or (step < self.steps and step % max(1, self.steps // UPDATES) == 0)

    @torch.no_grad()
    def keep_masks(self, step: int) -> dict[str, Tensor]:
        """The masks from this step on."""
        left = (1 - step / self.steps) ** 3 if step < self.steps else 0.0
        masks = {}
        for layer, final in self.final.items():
            pruned = round((~final).sum().item() * (1 - left))
            magnitudes = self._magnitudes(layer).flatten()
            mask = torch.ones_like(magnitudes, dtype=torch.bool)
            mask[magnitudes.argsort(stable=True)[:pruned]] = False
            masks[layer] = mask.view(final.shape).cpu()
        return masks

    def _magnitudes(self, layer: str) -> Tensor:
        """Mean abs(w) of every block, (R, C)."""
        weight = weight_matrix(self.model.get_submodule(layer))
        grid = BlockGrid((weight.shape[0], weight.shape[1]), self.block_shape)
        return grid.reduce(weight.abs().double()) / grid.reduce(torch.ones_like(weight, dtype=torch.float64))
