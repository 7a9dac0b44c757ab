"""Order, shards, repeats and batches of an epoch, the same for every loader."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lpvit.errors import LpvitError

_ORDER, _IMAGES, _STREAM = 1, 2, 3  # independent random streams; none is 0, which NumPy ignores


class Draw(NamedTuple):
    """An image of an epoch.

    Attributes:
        image: Its row.
        seed: Of its random augmentation.
    """

    image: int
    seed: int


@dataclass
class EpochPlan:
    """Batches of one process.

    Training shuffles by (seed, epoch), gives every process equally many images, and drops the last incomplete batch
    unless it is the only one. Evaluation keeps the order and every image.

    Repeated augmentation (Hoffer et al., 2020) follows DeiT: every shuffled image is repeated ``repeats`` times in a
    row, images go to the processes in turn, and the epoch ends after as many draws as the dataset has images, so that
    it covers 1 / ``repeats`` of them.

    Attributes:
        images: Number of images.
        batch_size: Images per batch of this process.
        training: Shuffle and keep batches full, or neither.
        seed: Of order and augmentation.
        rank: Of this process.
        world_size: Number of processes.
        repeats: Repetitions of an image in an epoch (training only).
        epoch: Set by the training loop before each pass.

    Raises:
        LpvitError: Training with fewer images than processes.
    """

    images: int
    batch_size: int
    training: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    repeats: int = 1
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.training and self.images < self.world_size:
            raise LpvitError(f"training: {self.images} images for {self.world_size} processes; use fewer processes")

    def __len__(self) -> int:
        return math.ceil(self._length() / self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        """Batches of draws; an image's seed depends on its place in the epoch, not on the batch or the process."""
        order, seeds = self.order(), self._seeds()
        for start in range(0, len(order), self.batch_size):
            batch = slice(start, start + self.batch_size)
            yield [Draw(*draw) for draw in zip(order[batch].tolist(), seeds[batch].tolist(), strict=True)]

    def order(self) -> np.ndarray:
        """Rows of this process's images, int64, in the order of the epoch."""
        if not self.training:
            return self._shard(np.arange(self.images))
        shuffled = self._generator(_ORDER).permutation(self.images)
        return self._shard(np.repeat(shuffled, self.repeats)[: self.images])

    def stream_seed(self) -> int:
        """A seed for a generator that serves this process for the whole epoch, 0 to 2^31 - 1."""
        return int(self._generator(_STREAM, self.rank).integers(2**31))

    def _seeds(self) -> np.ndarray:
        return self._shard(self._generator(_IMAGES).integers(2**32, size=self.images))

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch, *purpose))

    def _shard(self, epoch: np.ndarray) -> np.ndarray:
        return epoch[self.rank :: self.world_size][: self._length()]

    def _length(self) -> int:
        if not self.training:
            return len(range(self.rank, self.images, self.world_size))
        share = self.images // self.world_size
        return share - share % self.batch_size if share >= self.batch_size else share
