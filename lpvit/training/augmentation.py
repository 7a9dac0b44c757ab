"""Augmentation of whole batches: erasing, mixing and label smoothing, built from timm.

N = images of a batch; C, H, W = channels, height and width; K = classes.
"""

from typing import Any

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from lpvit.data.labels import class_numbers
from lpvit.training.settings import Recipe


class BatchAugmentation:
    """Random erasing, then mixup or cutmix, of whole batches on their device, and label smoothing.

    Args:
        recipe: Its ``random_erasing``, ``mixup``, ``cutmix`` and ``label_smoothing``.
        classes: K; None where labels are no class numbers: then they stay as they are, and no loss may need them if
            images are mixed.
        device: Of the batches.
    """

    def __init__(self, recipe: Recipe, classes: int | None, device: torch.device) -> None:
        self.classes, self.smoothing = classes, recipe.label_smoothing
        self.erase = self.mixup = None
        if recipe.random_erasing:
            self.erase = RandomErasing(recipe.random_erasing, mode="pixel", device=device)
        if recipe.mixup or recipe.cutmix:
            self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=self.smoothing, num_classes=classes or 1)

    def __call__(self, images: Tensor, labels: Any) -> tuple[Tensor, Any]:
        """Images (N, C, H, W) and labels (N,) to new images and targets: of classes probabilities (N, K), float32.

        Raises:
            LpvitError: The labels have another form (`lpvit.data.labels`).
        """
        if self.classes is None:
            numbers = torch.zeros(len(images), dtype=torch.long, device=images.device)
        else:
            numbers = class_numbers(labels, len(images), self.classes)
        if self.erase or self.mixup:
            images = images.clone()  # timm's parts write in place, and the loader may keep its tensors
        if self.erase:
            self.erase(images)
        targets = mixup_target(numbers, self.classes or 1, smoothing=self.smoothing)
        if self.mixup:
            even = len(images) // 2 * 2  # images are mixed in pairs; the last of an odd batch is unchanged
            _, targets[:even] = self.mixup(images[:even], numbers[:even])
        return images, labels if self.classes is None else targets
