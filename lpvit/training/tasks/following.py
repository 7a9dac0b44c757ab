"""The outputs of a reference: no labels.

N = images of a batch.
"""

import torch
from torch import Tensor, nn

from lpvit.training.features import Agreement, FeatureLoss, agreement
from lpvit.training.settings import Recipe
from lpvit.training.tasks.task import Batches, Task


class Following(Task):
    """A model gives what another gives, such as the dense one; measured by their agreement.

    Args:
        reference: Frozen here, in evaluation mode.
    """

    unfit = ("label_smoothing",)

    def __init__(self, reference: nn.Module) -> None:
        self.reference = reference

    def labels(self, batch: object, images: Tensor) -> Tensor:
        """None, of a batch with or without; zeros."""
        return images.new_zeros(len(images), dtype=torch.long)

    def criterion(self, model: nn.Module, recipe: Recipe, teacher: nn.Module | None) -> nn.Module:
        return FeatureLoss(model, teacher, recipe.features_loss)

    def measure(self, model: nn.Module, loader: Batches, device: torch.device | str, shown: bool = True) -> Agreement:
        return agreement(model, self.reference, loader, device, shown)

    def __str__(self) -> str:
        return "images without labels"
