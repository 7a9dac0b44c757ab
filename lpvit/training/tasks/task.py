"""The interface of a task.

N = images of a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lpvit.errors import LpvitError
from lpvit.training.settings import Recipe

Batches = Iterable[tuple[Tensor, Any]]  # images (N, C, H, W), and what the task reads beside them


class Score(Protocol):
    """What an evaluation gives; its text names the figure that matters most."""

    main: ClassVar[str]  # the field of that figure, in the history of a training

    @property
    def images(self) -> int:
        """Images evaluated."""

    @property
    def loss(self) -> float:
        """Mean loss of an image."""


class Task(ABC):
    """How labels are read from a batch, the loss of a training, and what an evaluation measures.

    Attributes:
        unfit: Keys of a recipe that need the labels of another task.
    """

    unfit: ClassVar[tuple[str, ...]] = ("mixup", "cutmix", "label_smoothing")

    def labels(self, batch: Any, images: Tensor) -> Any:
        """What a batch of the user's loader has beside its images: here a tensor.

        Raises:
            LpvitError: There is none.
        """
        labels = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        if not isinstance(labels, Tensor):
            found = "a batch without labels" if labels is None else f"labels as a {type(labels).__name__}"
            raise LpvitError(f"loader: found {found}, expected images (N, C, H, W) and labels (N,), a tensor")
        return labels

    def classes(self, model: nn.Module) -> int | None:
        """How many, if labels are class numbers, which the augmentation of batches turns into probabilities."""
        return None

    def require(self, model: nn.Module) -> None:  # noqa: B027 - most tasks take any model
        """Checks that a model is one for the task.

        Raises:
            LpvitError: It is not.
        """

    def require_recipe(self, recipe: Recipe) -> None:
        """Checks that a recipe is one for the task.

        Raises:
            LpvitError: It is not.
        """
        for key in self.unfit:
            if getattr(recipe, key) != Recipe.model_fields[key].default:
                raise LpvitError(f"recipe: {key} does not go with {self}; omit it")
        if recipe.distillation in ("soft", "hard"):
            raise LpvitError(
                f"recipe: distillation '{recipe.distillation}' is of classes and does not go with {self}; omit it, or "
                "use 'features'"
            )

    @abstractmethod
    def criterion(self, model: nn.Module, recipe: Recipe, teacher: nn.Module | None) -> nn.Module:
        """The loss of a batch: a module of images, what the model returned, and labels; a mean over the images.

        Raises:
            LpvitError: The teacher does not fit the model.
        """

    @abstractmethod
    def measure(self, model: nn.Module, loader: Batches, device: torch.device | str, shown: bool = True) -> Score:
        """Evaluates a model, moved to the device and left in evaluation mode; with a bar if shown.

        Raises:
            LpvitError: There is no image, or labels have another form.
        """

    def evaluate(self, model: nn.Module, loader: Batches, device: torch.device | str) -> Score:
        """As `measure`, with warnings about what is found."""
        return self.measure(model, loader, device)

    @abstractmethod
    def __str__(self) -> str:
        """The task in a message."""
