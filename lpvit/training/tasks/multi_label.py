"""Several classes for each image.

N = images; K = classes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lpvit.errors import LpvitError
from lpvit.training.settings import Recipe
from lpvit.training.tasks.outputs import OutputLoss, outputs_of
from lpvit.training.tasks.task import Batches, Task


@dataclass(frozen=True)
class MultiLabelScore:
    """What `lpvit.evaluate` measures with ``task="multi_label"``.

    Attributes:
        images: Images evaluated.
        mean_average_precision: Mean over the classes that occur, in %.
        loss: Binary cross-entropy, the mean over images and classes, in nat.
    """

    main: ClassVar[str] = "mean_average_precision"
    images: int
    mean_average_precision: float
    loss: float

    def __str__(self) -> str:
        return f"mean average precision {self.mean_average_precision:.2f} %"


class MultiLabel(Task):
    """Binary cross-entropy; mean average precision."""

    def criterion(self, model: nn.Module, recipe: Recipe, teacher: nn.Module | None) -> nn.Module:
        return OutputLoss(model, binary_cross_entropy)

    def measure(
        self, model: nn.Module, loader: Batches, device: torch.device | str, shown: bool = True
    ) -> MultiLabelScore:
        logits, labels = outputs_of(model, loader, device, shown)
        loss = binary_cross_entropy(logits.double(), labels)
        return MultiLabelScore(len(logits), 100 * mean_average_precision(logits, labels), float(loss))

    def __str__(self) -> str:
        return "several labels per image"


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over images and classes, in nat.

    Args:
        logits: (N, K).
        labels: (N, K), between 0 and 1.

    Raises:
        LpvitError: The labels have another form.
    """
    if labels.shape != logits.shape:
        raise LpvitError(f"labels: found shape {tuple(labels.shape)}, expected {tuple(logits.shape)} of 0 and 1")
    labels = labels.to(logits.dtype)
    if not ((labels >= 0) & (labels <= 1)).all():
        raise LpvitError("labels: several labels per image are numbers from 0 to 1, others were found")
    return functional.binary_cross_entropy_with_logits(logits, labels)


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    r"""The mean over classes of the precision at every positive image, with equal scores counted together.

    Args:
        scores: (N, K).
        labels: (N, K); positive above a half. Classes without a positive image are left out.

    Raises:
        LpvitError: No image is positive.
    """
    precisions = []
    for of_class, is_positive in zip(scores.double().T, labels.T > 0.5, strict=True):
        if not is_positive.any():
            continue
        ordered, order = of_class.sort(descending=True)
        counts = torch.searchsorted(-ordered, -ordered, right=True)  # images with a score that is not lower
        precision = is_positive[order].cumsum(0)[counts - 1] / counts
        precisions.append(precision[is_positive[order]].mean())
    if not precisions:
        raise LpvitError("labels: no image has any class; mean average precision needs some")
    return float(torch.stack(precisions).mean())
