"""Loader `memory`: small sets, decoded once and held; timm's transforms in this process.

N = images of a batch; C, H, W = channels, height and width of the model's input.
"""

from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lpvit.data.decoding import read_image
from lpvit.data.epochs import EpochPlan
from lpvit.data.preprocessing import Augmentation, Preprocessing
from lpvit.data.transforms import create_transform, seed_transforms, undisturbed_generators


class MemoryLoader:
    """Gives the same batches as `lpvit.data.timm_loader.TimmLoader`.

    Raises:
        LpvitError: An image cannot be decoded.
    """

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
        self._transform = create_transform(preprocessing, augmentation)
        self._images = _read_images(root, images["path"].tolist(), preprocessing.input_size[0], threads)
        self._labels = torch.tensor(images["label"].to_numpy(), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._plan)

    def set_epoch(self, epoch: int) -> None:
        self._plan.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (N, C, H, W), float32, normalised, and labels (N,), int64."""
        for batch in self._plan:
            with undisturbed_generators():
                images = torch.stack([self._transform_seeded(*draw) for draw in batch])
            labels = self._labels[[draw.image for draw in batch]]
            yield images.to(self._device), labels.to(self._device)

    def _transform_seeded(self, image: int, seed: int) -> Tensor:
        seed_transforms(seed)
        return self._transform(self._images[image])


def _read_images(root: Path | None, paths: list[str], channels: int, threads: int) -> list[Image.Image]:
    with ThreadPool(threads) as pool:
        images = pool.imap(lambda path: read_image(root, path, channels), paths, chunksize=16)
        return list(tqdm(images, total=len(paths), desc="reading images", unit="image", disable=root is None))
