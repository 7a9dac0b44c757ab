"""Adapts the calibration images of a user.

N = images of a batch.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError, one_line
from lpvit.training.tasks.classification import Classification
from lpvit.training.tasks.task import Task

Size = tuple[int, ...]  # (channels, height, width)
Batch = tuple[Tensor, Tensor]

_REMEDY = "; give a DataLoader or a list of batches"


@dataclass
class UserBatches:
    """The batches of the user's loader: images (N, channels, height, width), without labels.

    Every pass must give the same number of images, and a pass that `first` has begun loses none.

    Attributes:
        loader: The user's.
        dtype: Of the model; images are converted to it.
        size: Of the images seen so far.
        count: Images of the first whole pass.
    """

    loader: Iterable[Any]
    dtype: torch.dtype
    size: Size | None = field(default=None, init=False)
    count: int | None = field(default=None, init=False)
    _begun: Iterator[Batch] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.loader, Iterable) or isinstance(self.loader, Iterator):
            raise LpvitError(
                f"loader: found {type(self.loader).__name__}, which can be read at most once; give a DataLoader or a "
                "list of batches, as it is read several times"
            )

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # a TypeError if it has no length, as for any object

    def __iter__(self) -> Iterator[Batch]:
        batches, self._begun = self._begun or self._converted(), None
        count = 0
        for images, labels in batches:
            count += len(images)
            yield images, labels
        if self.count is None:
            self.count = count
        if count != self.count or not count:
            raise LpvitError(
                f"loader: yields {self.count} images in its first pass and {count} in a later one; give a DataLoader "
                "or a list of batches, as it is read several times"
            )

    def first(self) -> Tensor:
        """Images of the first batch; the next pass goes on from there."""
        begun = self._converted()
        for images, labels in begun:
            self._begun = chain([(images, labels)], begun)
            return images
        raise LpvitError("loader: yields no images")

    def _converted(self) -> Iterator[Batch]:
        for batch in self.loader:
            images = images_of(batch)
            self.size = self.size or tuple(images.shape[1:])
            if tuple(images.shape[1:]) != self.size:
                sizes = " and of ".join("x".join(map(str, size)) for size in (self.size, images.shape[1:]))
                raise LpvitError(f"loader: yields images of {sizes}; resize them to one size")
            yield images.to(self.dtype), images.new_empty(0)


class Sized(Protocol):
    """Batches that know the size of their images, once they have been read."""

    size: Size | None


@contextmanager
def accepted_by(model: nn.Module, batches: Sized) -> Iterator[None]:
    """Within it, a model that fails on images which it does not accept is a user error.

    Raises:
        LpvitError: Something failed, and the model fails on a black image of the same size, too.
    """
    try:
        yield
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if batches.size is None or _accepts(model, batches.size):
            raise
        size = "x".join(map(str, batches.size))
        raise LpvitError(f"loader: the model does not accept its images of {size} ({one_line(error)})") from None


@torch.no_grad()
def _accepts(model: nn.Module, size: Size) -> bool:
    weight = next(model.parameters(), torch.empty(0))
    try:
        model.eval()(weight.new_zeros(1, *size))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return True


@dataclass
class LabelledBatches:
    """The batches of the user's loader, as a training reads them; as many in every pass as its length.

    Attributes:
        loader: The user's.
        dtype: Of the model; images are converted to it.
        batch_size: Images of every batch but the last, or None for any.
        task: Says what is read beside the images.
        size: Of the images seen last, (channels, height, width).
    """

    loader: Iterable[Any]
    dtype: torch.dtype
    batch_size: int | None = None
    task: Task = field(default_factory=Classification)
    size: Size | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.loader, Iterable) and hasattr(self.loader, "__len__")):
            raise LpvitError(
                f"loader: found {type(self.loader).__name__}; give a DataLoader or a list of batches, as it needs a "
                "length and is read several times"
            )

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # checked above

    def first_images(self) -> Tensor:
        """Images of the first batch.

        Raises:
            LpvitError: There is none.
        """
        for batch in self.loader:
            return images_of(batch).to(self.dtype)
        raise LpvitError("loader: yields no images")

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the loader decides the order of an epoch."""

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        batches = 0
        for batches, batch in enumerate(self.loader, start=1):
            if batches > len(self):
                raise LpvitError(f"loader: has the length {len(self)} and yields more batches in a pass{_REMEDY}")
            images = images_of(batch)
            labels = self.task.labels(batch, images)
            self._require_batch_size(len(images), is_last=batches == len(self))
            self.size = tuple(images.shape[1:])
            yield images.to(self.dtype), labels
        if batches < len(self):
            raise LpvitError(f"loader: has the length {len(self)} and yields {batches} batches in a pass{_REMEDY}")

    def _require_batch_size(self, found: int, is_last: bool) -> None:
        expected = self.batch_size or found
        if found > expected or (found < expected and not is_last):
            raise LpvitError(f"recipe: batch_size {expected}, the loader gives a batch of {found}; make them equal")


def images_of(batch: Any) -> Tensor:
    """The images of a user's batch, (N, channels, height, width).

    Raises:
        LpvitError: It has none, or they are not normalised.
    """
    images = _first(batch)
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point() or images.is_meta:
        raise LpvitError(
            f"loader: found {_describe(batch)}, expected normalised images (N, channels, height, width), alone or with "
            "labels"
        )
    if not len(images):
        raise LpvitError("loader: yields a batch without images; omit empty batches")
    return images.clone() if images.is_inference() else images


def _first(batch: Any) -> Any:
    """The images of a batch, if they are alone, first, or under a name that datasets give them."""
    if isinstance(batch, Mapping):
        return next((batch[name] for name in ("pixel_values", "images", "image") if name in batch), batch)
    return batch[0] if isinstance(batch, tuple | list) and batch else batch


def _describe(batch: Any) -> str:
    first = _first(batch)
    if isinstance(first, Tensor):
        place = " on the meta device" * first.is_meta
        return f"a tensor of shape {tuple(first.shape)} and dtype {first.dtype}{place}"
    return f"a {type(first).__name__}"
