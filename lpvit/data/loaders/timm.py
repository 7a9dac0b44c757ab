"""Loader `timm`: all formats that Pillow reads, through timm's transforms, in worker processes.

N = images of a batch; C, H, W = channels, height and width of the model's input.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lpvit.data.decoding import read_image
from lpvit.data.epochs import Draw
from lpvit.data.loading import ImageFiles, Loader
from lpvit.data.preprocessing import Augmentation, Preprocessing
from lpvit.data.transforms import create_transform, seed_transforms
from lpvit.errors import LpvitError


class ImageLoader(Loader):
    """Decodes and transforms in ``threads`` worker processes; the batches do not depend on their number."""

    def __post_init__(self) -> None:
        self._batches = DataLoader(
            _Samples(self.files, self.preprocessing, self.augmentation),
            batch_sampler=self.plan,  # the plan's items carry the seed of each image along
            num_workers=self.threads,
            pin_memory=self.device.type == "cuda",
            persistent_workers=True,
            generator=torch.Generator(),  # of seeds that no worker uses; else each pass would draw from the global one
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            for images, labels in self._batches:
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        except LpvitError as error:  # torch wraps the message in the traceback of the worker
            error.__traceback__ = None  # its frames would keep the workers until a garbage collection, which waits 5 s
            raise LpvitError(str(error).splitlines()[-1].removeprefix("lpvit.errors.LpvitError: ")) from None


class _Samples(Dataset[tuple[Tensor, int]]):
    def __init__(self, files: ImageFiles, preprocessing: Preprocessing, augmentation: Augmentation | None) -> None:
        self._paths = files.table["path"].tolist()
        self._labels = files.table["label"].tolist()
        self._root = files.root
        self._channels = preprocessing.input_size[0]
        self._transform = create_transform(preprocessing, augmentation)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        image = read_image(self._root, self._paths[draw.image], self._channels)
        seed_transforms(draw.seed)
        return self._transform(image), self._labels[draw.image]
