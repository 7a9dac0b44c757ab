"""Numbers for each image.

N = images; K = numbers.
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
class RegressionScore:
    """What `lpvit.evaluate` measures with ``task="regression"``.

    Attributes:
        images: Images evaluated.
        r2: Explained share of the variance of the labels, over all numbers: 1 - squared errors / squared deviations.
        loss: Mean squared error.
    """

    main: ClassVar[str] = "r2"
    images: int
    r2: float
    loss: float

    def __str__(self) -> str:
        return f"R2 {self.r2:.4f}"


class Regression(Task):
    """Squared error."""

    def criterion(self, model: nn.Module, recipe: Recipe, teacher: nn.Module | None) -> nn.Module:
        return OutputLoss(model, squared_error)

    def measure(
        self, model: nn.Module, loader: Batches, device: torch.device | str, shown: bool = True
    ) -> RegressionScore:
        found, labels = outputs_of(model, loader, device, shown)
        loss = float(squared_error(found.double(), labels))
        labels = labels.double().view_as(found)
        variance = float((labels - labels.mean(dim=0)).square().mean())
        return RegressionScore(len(found), 1 - loss / variance if variance else float("nan"), loss)

    def __str__(self) -> str:
        return "regression"


def squared_error(found: Tensor, labels: Tensor) -> Tensor:
    """The mean over images and numbers.

    Args:
        found: (N, K).
        labels: (N, K), or (N,) for a single number.

    Raises:
        LpvitError: The labels have another shape.
    """
    if labels.shape not in (found.shape, found.squeeze(1).shape):
        raise LpvitError(f"labels: found shape {tuple(labels.shape)}, expected {tuple(found.shape)}")
    return functional.mse_loss(found, labels.to(found.dtype).view_as(found))
