"""Adapts the calibration images of a user.

N = images of a batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lpvit.errors import LpvitError


@dataclass(frozen=True)
class UserBatches:
    """The batches of the user's loader: images (N, channels, height, width), without labels.

    Attributes:
        loader: The user's.
        dtype: Of the model; images are converted to it.
    """

    loader: Iterable[Any]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if not isinstance(self.loader, Iterable) or iter(self.loader) is self.loader:
            raise LpvitError(
                f"loader: found {type(self.loader).__name__}, which can be read at most once; give a DataLoader or a "
                "list of batches, as it is read several times"
            )

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # a TypeError if it has no length, as for any object

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            images = images_of(batch)
            yield images.to(self.dtype), images.new_empty(0)

    def first(self) -> Tensor:
        """Images of the first batch."""
        for images, _ in self:
            return images
        raise LpvitError("loader: yields no images")


@dataclass(frozen=True)
class LabelledBatches:
    """The batches of the user's loader, as a training reads them."""

    loader: Iterable[Any]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if (
            not isinstance(self.loader, Iterable)
            or iter(self.loader) is self.loader
            or not hasattr(self.loader, "__len__")
        ):
            raise LpvitError(
                f"loader: found {type(self.loader).__name__}; give a DataLoader or a list of batches, as it needs a "
                "length and is read several times"
            )

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # checked above

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the loader decides the order of an epoch."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            images = images_of(batch)
            labels = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
            if not isinstance(labels, Tensor):
                found = "a batch without labels" if labels is None else f"labels as a {type(labels).__name__}"
                raise LpvitError(f"loader: found {found}, expected images (N, C, H, W) and labels (N,), a tensor")
            yield images.to(self.dtype), labels


def images_of(batch: Any) -> Tensor:
    """The images of a user's batch, (N, channels, height, width).

    Raises:
        LpvitError: It has none, or they are not normalised.
    """
    images = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        raise LpvitError(
            f"loader: found {_describe(batch)}, expected normalised images (N, channels, height, width), alone or with "
            "labels"
        )
    if not len(images):
        raise LpvitError("loader: yields a batch without images; omit empty batches")
    return images.clone() if images.is_inference() else images


def _describe(batch: Any) -> str:
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(first, Tensor):
        return f"a tensor of shape {tuple(first.shape)} and dtype {first.dtype}"
    return f"a {type(first).__name__}"
