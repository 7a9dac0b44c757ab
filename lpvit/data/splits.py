"""The loaders of a training: both splits of a dataset, shared by the processes that train."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from lpvit.config import Recipe
from lpvit.data import Augmentation, Loader, Preprocessing, make_loader, usable_images


@dataclass(frozen=True)
class SplitLoaders:
    """Makes the loaders of one process; can be pickled, so that every process makes its own.

    Attributes:
        images: Both splits, schema ``IMAGES``.
        root: Folder that the paths are relative to; None for the digits set.
        preprocessing: Of the model.
        recipe: Batch size over all processes, augmentation, repeats and seed.
        loader: Name of the loader.
        threads: CPU threads, over all processes.
        evaluation_batch_size: Images per batch of the validation split.
    """

    images: pd.DataFrame
    root: str | Path | None
    preprocessing: Preprocessing
    recipe: Recipe
    loader: Literal["dali", "memory", "timm"]
    threads: int
    evaluation_batch_size: int

    def __call__(self, rank: int, processes: int, device: torch.device) -> tuple[Loader, Loader]:
        """The parts of the training and validation split that process ``rank`` of ``processes`` reads."""
        threads = max(1, self.threads // processes)
        training = make_loader(
            usable_images(self.images, "train"),
            self.root,
            self.preprocessing,
            loader=self.loader,
            batch_size=self.recipe.batch_size // processes,
            threads=threads,
            device=device,
            augmentation=Augmentation.from_recipe(self.recipe),
            seed=self.recipe.seed,
            rank=rank,
            world_size=processes,
            repeats=self.recipe.repeated_augmentation,
        )
        validation = make_loader(
            usable_images(self.images, "validation"),
            self.root,
            self.preprocessing,
            loader=self.loader,
            batch_size=self.evaluation_batch_size,
            threads=threads,
            device=device,
            rank=rank,
            world_size=processes,
        )
        return training, validation
