"""The loaders of a training: both splits of a dataset, sharded over the processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from lpvit.data.epochs import EpochPlan
from lpvit.data.index import part_for_validation, usable_images
from lpvit.data.loading import Loader, image_files, make_loader
from lpvit.data.preprocessing import Augmentation, Preprocessing
from lpvit.settings import Compute
from lpvit.training.settings import Recipe


@dataclass(frozen=True)
class SplitLoaders:
    """Creates the loaders of one process; can be pickled, so that every process creates its own.

    Attributes:
        images: Both splits, schema ``IMAGES``.
        dataset: ``root`` and ``loader`` of the config's dataset.
        preprocessing: Of the model.
        recipe: Batch size over all processes, augmentation, repeats and seed.
        compute: Threads over all processes, and images per batch of the validation split.
    """

    images: pd.DataFrame
    dataset: Mapping[str, Any]
    preprocessing: Preprocessing
    recipe: Recipe
    compute: Compute

    def __call__(self, rank: int, processes: int, device: torch.device) -> tuple[Loader, Loader]:
        """The shards of the training and validation split of process ``rank`` of ``processes``."""
        threads = max(1, self.compute.threads // processes)
        return self._training(rank, processes, threads, device), self._validation(rank, processes, threads, device)

    def held_out(self, rank: int, processes: int, device: torch.device) -> Loader:
        """The shard of the images that choose the epoch; they are not trained on."""
        threads = max(1, self.compute.threads // processes)
        return self._evaluation(self._parted()[1], rank, processes, threads, device)

    def _parted(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The images to train on, and those held out by the recipe's `choose_by`."""
        return held_out_of(usable_images(self.images, "train"), self.recipe.choose_by)

    def _training(self, rank: int, processes: int, threads: int, device: torch.device) -> Loader:
        images, _ = self._parted()
        plan = EpochPlan(
            len(images),
            self.recipe.batch_size // processes,
            training=True,
            seed=self.recipe.seed,
            rank=rank,
            world_size=processes,
            repeats=self.recipe.repeated_augmentation,
        )
        files, augmentation = image_files(images, self.dataset, self.compute.scratch), augmentation_of(self.recipe)
        return make_loader(files, self.preprocessing, plan, threads, device, augmentation)

    def _validation(self, rank: int, processes: int, threads: int, device: torch.device) -> Loader:
        return self._evaluation(usable_images(self.images, "validation"), rank, processes, threads, device)

    def _evaluation(
        self, images: pd.DataFrame, rank: int, processes: int, threads: int, device: torch.device
    ) -> Loader:
        plan = EpochPlan(len(images), self.compute.evaluation_batch_size, rank=rank, world_size=processes)
        files = image_files(images, self.dataset, self.compute.scratch)
        return make_loader(files, self.preprocessing, plan, threads, device)


def held_out_of(images: pd.DataFrame, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits training images, the same way every time: those to train on, and a share of every class.

    Args:
        images: Columns ``path`` and ``label``.
        share: Held out; at least one image of a class if above 0.

    Raises:
        LpvitError: A class has no second image.
    """
    if not share:
        return images, images.iloc[:0]
    chosen: set[str] = set()
    for label, of_class in images.groupby("label"):
        chosen |= part_for_validation(of_class["path"].tolist(), share, str(label))
    held_out = images["path"].isin(chosen)
    return images[~held_out].reset_index(drop=True), images[held_out].reset_index(drop=True)


def augmentation_of(recipe: Recipe) -> Augmentation:
    """The augmentation of single images in a recipe.

    Raises:
        LpvitError: The RandAugment policy cannot be read.
    """
    return Augmentation(
        crop_scale=recipe.crop_scale,
        crop_ratio=recipe.crop_ratio,
        horizontal_flip=recipe.horizontal_flip,
        color_jitter=recipe.color_jitter,
        rand_augment=recipe.rand_augment,
    )
