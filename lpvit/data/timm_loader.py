"""Loader `timm`: whatever Pillow reads, through timm's transforms, in worker processes.

N = images of a batch; C, H, W = channels, height and width of the model's input.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lpvit.data.decoding import read_image
from lpvit.data.epochs import Draw, EpochPlan
from lpvit.data.preprocessing import Augmentation, Preprocessing
from lpvit.data.transforms import create_transform, seed_transforms
from lpvit.errors import LpvitError


class TimmLoader:
    """Decodes and transforms in ``threads`` worker processes; the batches do not depend on their number."""

    def __init__(
        self,
        images: pd.DataFrame,
        root: Path | None,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None,
        plan: EpochPlan,
        threads: int,
        device: torch.device,
    ) -> None:
        self._plan = plan
        self._device = device
        self._batches = DataLoader(
            _Samples(images, root, preprocessing, augmentation),
            batch_sampler=plan,  # the plan's items carry the seed of each image along
            num_workers=threads,
            pin_memory=device.type == "cuda",
            persistent_workers=True,
        )

    def __len__(self) -> int:
        return len(self._plan)

    def set_epoch(self, epoch: int) -> None:
        self._plan.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (N, C, H, W), float32, normalised, and labels (N,), int64.

        Raises:
            LpvitError: An image cannot be decoded.
        """
        try:
            for images, labels in self._batches:
                yield images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)
        except LpvitError as error:  # torch wraps the message in the traceback of the worker
            raise LpvitError(str(error).splitlines()[-1].removeprefix("lpvit.errors.LpvitError: ")) from None


class _Samples(Dataset[tuple[Tensor, int]]):
    def __init__(
        self,
        images: pd.DataFrame,
        root: Path | None,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None,
    ) -> None:
        self._paths = images["path"].tolist()
        self._labels = images["label"].tolist()
        self._root = root
        self._channels = preprocessing.input_size[0]
        self._transform = create_transform(preprocessing, augmentation)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        image = read_image(self._root, self._paths[draw.image], self._channels)
        seed_transforms(draw.seed)
        return self._transform(image), self._labels[draw.image]
