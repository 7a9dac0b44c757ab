"""A loss that the user writes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lpvit.errors import LpvitError
from lpvit.progress import bar
from lpvit.training.settings import Recipe
from lpvit.training.tasks.task import Batches, Task


@dataclass(frozen=True)
class MeanLoss:
    """What `lpvit.evaluate` measures with a loss of the user.

    Attributes:
        images: Images evaluated.
        loss: Mean over the images of the loss of their batch.
    """

    main: ClassVar[str] = "loss"
    images: int
    loss: float

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}"


class OwnLoss(Task):
    """A function of what the model returns and of the batch that the loader gave, on the model's device."""

    unfit = ("mixup", "cutmix", "label_smoothing", "random_erasing", "accumulation")

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    def labels(self, batch: Any, images: Tensor) -> Any:
        return batch

    def criterion(self, model: nn.Module, recipe: Recipe, teacher: nn.Module | None) -> nn.Module:
        return _Criterion(self._loss)

    @torch.inference_mode()
    def measure(self, model: nn.Module, loader: Batches, device: torch.device | str, shown: bool = True) -> MeanLoss:
        dtype = next((weight.dtype for weight in model.to(device).eval().parameters()), None)
        total, count = 0.0, 0
        for images, batch in bar(loader, "evaluation", "batch", leave=False, shown=shown):
            loss = self._loss(model(images.to(device=device, dtype=dtype)), on_device(batch, device))
            total, count = total + float(loss) * len(images), count + len(images)
        if not count:
            raise LpvitError("evaluation: there are no images")
        return MeanLoss(count, total / count)

    def _loss(self, output: Any, batch: Any) -> Tensor:
        loss = self.function(output, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise LpvitError(f"task: the loss function returns {found}, expected one number as a tensor")
        return loss.squeeze()

    def __str__(self) -> str:
        return "a loss of your own"


class _Criterion(nn.Module):
    def __init__(self, function: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor, output: Any, batch: Any) -> Tensor:
        return self.function(output, batch)


def on_device(batch: Any, device: torch.device | str) -> Any:
    """A batch with its tensors on a device, in whatever tuples, lists and dicts they are."""
    return tree_map(lambda part: part.to(device) if isinstance(part, Tensor) else part, batch)
