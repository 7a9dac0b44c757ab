"""Augmentation of whole batches: erasing, mixing and label smoothing, built from timm.

N = images of a batch; C, H, W = channels, height and width; K = classes.
"""

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
        classes: K.
        device: Of the batches.
    """

    def __init__(self, recipe: Recipe, classes: int, device: torch.device) -> None:
        self.classes, self.smoothing = classes, recipe.label_smoothing
        self.erase = self.mixup = None
        if recipe.random_erasing:
            self.erase = RandomErasing(recipe.random_erasing, mode="pixel", device=device)
        if recipe.mixup or recipe.cutmix:
            self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=self.smoothing, num_classes=classes)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) and labels (N,) to new images and targets: probabilities (N, K), float32.

        Raises:
            LpvitError: The labels have another form (`lpvit.data.labels`).
        """
        labels = class_numbers(labels, len(images), self.classes)
        if self.erase or self.mixup:
            images = images.clone()  # timm's parts write in place, and the loader may keep its tensors
        if self.erase:
            self.erase(images)
        targets = mixup_target(labels, self.classes, smoothing=self.smoothing)
        if self.mixup:
            even = len(images) // 2 * 2  # images are mixed in pairs; the last of an odd batch is unchanged
            _, targets[:even] = self.mixup(images[:even], labels[:even])
        return images, targets
