"""Loader `memory`: small sets, decoded once and kept in memory; timm's transforms in this process.

N = images of a batch; C, H, W = channels, height and width of the model's input.
"""

from collections.abc import Iterator
from multiprocessing.pool import ThreadPool

import torch
from PIL import Image
from torch import Tensor

from lpvit.data.decoding import read_image
from lpvit.data.loading import ImageFiles, Loader
from lpvit.data.transforms import create_transform, seed_transforms, undisturbed_generators
from lpvit.progress import bar


class ImageLoader(Loader):
    """Yields the same batches as the loader `timm`.

    Raises:
        LpvitError: An image cannot be decoded.
    """

    def __post_init__(self) -> None:
        self._transform = create_transform(self.preprocessing, self.augmentation)
        self._images = _read_images(self.files, self.preprocessing.input_size[0], self.threads)
        self._labels = torch.tensor(self.files.table["label"].to_numpy(), dtype=torch.int64)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.plan:
            with undisturbed_generators():
                images = torch.stack([self._transform_seeded(*draw) for draw in batch])
            labels = self._labels[[draw.image for draw in batch]]
            yield images.to(self.device), labels.to(self.device)

    def _transform_seeded(self, image: int, seed: int) -> Tensor:
        seed_transforms(seed)
        return self._transform(self._images[image])


def _read_images(files: ImageFiles, channels: int, threads: int) -> list[Image.Image]:
    paths = files.table["path"].tolist()
    with ThreadPool(threads) as pool:
        images = pool.imap(lambda path: read_image(files.root, path, channels), paths, chunksize=16)
        return list(bar(images, "reading images", "image", total=len(paths), shown=files.root is not None))
