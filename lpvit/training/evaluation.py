"""Accuracy of a model on labelled images.

N = images of a batch; K = classes.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from lpvit.data.labels import class_numbers
from lpvit.errors import LpvitError
from lpvit.measure.intervals import paired, wilson
from lpvit.models.heads import Logits, require_classifier
from lpvit.progress import bar

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """What `evaluate` measures.

    Attributes:
        images: Images evaluated.
        top1: Images whose label has the largest logit, in %.
        top5: Images whose label is among the min(5, K) largest logits, in %.
        loss: Mean cross-entropy, in nat.
    """

    main: ClassVar[str] = "top1"
    images: int
    top1: float
    top5: float
    loss: float

    def __str__(self) -> str:
        return f"top-1 {self.top1:.2f} %"

    @classmethod
    def from_sums(cls, sums: Tensor) -> "Accuracy":
        """From the sums of `evaluation_sums`, added over all shards of the images.

        Raises:
            LpvitError: No image was evaluated.
        """
        images, top1, top5, loss = sums.tolist()
        if images == 0:
            raise LpvitError("evaluation: the split holds no images; check the dataset's 'root' and 'validation'")
        return cls(int(images), 100 * top1 / images, 100 * top5 / images, loss / images)


def evaluate(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device | str) -> Accuracy:
    """Measures a model on all images of a loader, in the precision of its weights.

    Args:
        model: Moved to the device and left in evaluation mode.
        loader: Batches of images (N, C, H, W), normalised, and labels (N,), integers from 0.
        device: Where to compute.

    Raises:
        LpvitError: The loader yields no image, or other labels (`lpvit.data.labels`), or a logit is not finite.
    """
    counted = _Counted(loader)
    accuracy = Accuracy.from_sums(evaluation_sums(model, counted, device))
    if not math.isfinite(accuracy.loss):
        raise LpvitError("evaluation: logits are NaN or infinite; check the weights and the mean and std of the images")
    _logger.info("top-1 %.2f %% of %d images", accuracy.top1, accuracy.images)
    low, high = wilson(accuracy.top1, accuracy.images)
    if low <= (guess := 100 * max(counted.labels.values()) / accuracy.images):
        _logger.warning(
            "top-1 %.1f %% of %d images (95 %% interval %.1f to %.1f) is no better than a guess of the most frequent "
            "class (%.1f %%): the model knows nothing of these classes, or their order is another",
            *(accuracy.top1, accuracy.images, low, high, guess),
        )
    return accuracy


class _Counted:
    """Batches of a loader, with the labels counted that have been read."""

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.loader, self.labels = loader, Counter[int]()

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # a TypeError if it has no length, as for any object

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            self.labels.update(labels.flatten().tolist())
            yield images, labels


def evaluation_sums(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device | str, progress: bool = True
) -> Tensor:
    """Sums over a loader, which may be the shard of one process, or empty.

    Args:
        model: Moved to the device and left in evaluation mode.
        loader: As for `evaluate`.
        device: Where to compute.
        progress: Show a bar on a terminal.

    Returns:
        Images, top-1 hits, top-5 hits, cross-entropy in nat; shape (4,), float64, on the device.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for logits, labels in _classified(model, loader, device, progress):
        sums += _batch_sums(logits, labels)
    return sums


def _classified(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device | str, progress: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (N, K) and class numbers (N,) of every batch, on the device."""
    require_classifier(model)
    dtype = next((weight.dtype for weight in model.to(device).eval().parameters()), None)
    of_output = Logits(model)
    for images, labels in bar(loader, "evaluation", "batch", leave=False, shown=progress):
        with torch.inference_mode():  # not around the loader, whose tensors may be reused in training
            logits = of_output(model(images.to(device=device, dtype=dtype)))
            numbers = class_numbers(labels.to(device), len(logits), logits.shape[-1])
        yield logits, numbers


def over_processes(sums: Tensor) -> Tensor:
    """The sums over all processes of a training."""
    if distributed.is_initialized():
        distributed.all_reduce(sums)
    return sums


def _batch_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """The four sums over a batch; logits (N, K), labels (N,)."""
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = functional.cross_entropy(logits.double(), labels, reduction="sum")
    return torch.stack([loss.new_tensor(len(labels)), hits[:, 0].sum(), hits.sum(), loss])


def correct_images(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device | str) -> Tensor:
    """Which images a model gets right: whether the largest logit is that of the label, (images,), bool.

    Args:
        model: Moved to the device and left in evaluation mode.
        loader: As for `evaluate`, in the same order for models that are compared.
        device: Where to compute.

    Raises:
        LpvitError: The loader yields no image, or other labels (`lpvit.data.labels`).
    """
    right = [(logits.argmax(dim=1) == labels).cpu() for logits, labels in _classified(model, loader, device)]
    if not right:
        raise LpvitError("evaluation: there are no images")
    return torch.cat(right)


def points_lost(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """Points of accuracy that a model has less than another on the same images, with a paired 95 % interval.

    Args:
        before: From `correct_images`, (N,).
        after: Likewise.

    Returns:
        Points lost, and the ends of the interval; negative where accuracy rose.
    """
    gained, low, high = paired(before.numpy(), after.numpy())
    return -gained, -high, -low
