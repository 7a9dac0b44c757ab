r"""Gradual magnitude pruning: blocks go while a model is trained (Zhu and Gupta, 2017, To prune, or not to prune).

Of a layer that is to lose a share s of its blocks, at progress p of the time given the share

.. math:: s (1 - (1 - p)^3)

is gone, those of the least mean abs(w) first. With blocks of 1 x 1 these are single weights.
"""

import torch
from torch import Tensor, nn

from lpvit.models.analysis.layers import weight_matrix
from lpvit.structures.blocks.grid import BlockGrid, KeepMasks

UPDATES = 100  # of the masks, over the time given


class GradualPruning:
    """Masks that follow the weights of a model.

    Args:
        model: Whose weights are looked at.
        final: Keep masks at the end, (R, C) for each layer, of which only the number of blocks counts.
        block_shape: Rows and columns of a block.
        steps: Over which blocks go.
    """

    def __init__(self, model: nn.Module, final: KeepMasks, block_shape: tuple[int, int], steps: int) -> None:
        self.model, self.final, self.block_shape, self.steps = model, final, block_shape, max(1, steps)

    def is_due(self, step: int) -> bool:
        """Whether the masks change before this step."""
        return step == self.steps or (step < self.steps and step % max(1, self.steps // UPDATES) == 0)

    @torch.no_grad()
    def keep_masks(self, step: int) -> dict[str, Tensor]:
        """The masks from this step on."""
        left = (1 - min(1.0, step / self.steps)) ** 3
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
