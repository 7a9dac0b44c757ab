"""Fine-tuning and evaluation with the user's own loaders, with the functions of the workflow.

N = images of a batch.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lpvit.api.pruned import Pruned
from lpvit.data.loading import Loader
from lpvit.errors import LpvitError
from lpvit.models.analysis.network import require_plain_module
from lpvit.models.preparation import adopt_input_size
from lpvit.quantisation.layers import int8_layers
from lpvit.training.evaluation import Accuracy
from lpvit.training.evaluation import evaluate as measure
from lpvit.training.job import Training
from lpvit.training.settings import Recipe
from lpvit.training.train import train


def evaluate(model: nn.Module | Pruned, loader: Iterable[Any]) -> Accuracy:
    """Accuracy on labelled images, on the model's device.

    Args:
        model: Dense, pruned or sparsified; left in evaluation mode.
        loader: Batches that start with images (N, channels, height, width), normalised for the model, and labels (N,).

    Raises:
        LpvitError: The loader yields something else, or no image.
    """
    module = model.model if isinstance(model, Pruned) else model
    require_plain_module(module)
    weight = _weight(module)
    return measure(module, _Labelled(loader, weight.dtype), weight.device)


def finetune(
    pruned: Pruned,
    loader: Iterable[Any],
    validation: Iterable[Any],
    *,
    recipe: Recipe,
    teacher: nn.Module | None = None,
) -> Pruned:
    """Trains a pruned model with fixed masks, on its device.

    Args:
        pruned: Not modified, a copy is trained.
        loader: Training images with labels, as for `evaluate`; with any shuffling and augmentation. The keys of a
            recipe for single images (crops, flips, RandAugment) are up to the loader, those for batches (mixup, cutmix,
            erasing) are applied here.
        validation: Images with labels, evaluated after every epoch.
        recipe: Hyperparameters; its ``batch_size`` is that of the loader.
        teacher: For a recipe with ``distillation`` (and ``teacher="dense"``): the dense model, or another with the
            same classes.

    Returns:
        With the weights of the last epoch, averaged if the recipe has an ``ema_decay``; pruned weights are still
        exactly zero.

    Raises:
        LpvitError: Recipe, loader, teacher and model do not fit each other, or the loss is not finite.
    """
    _check(recipe, teacher)
    if int8_layers(pruned.model):
        raise LpvitError("model: is quantised, which has no gradients; fine-tune the pruned model and quantise that")
    weight = _weight(pruned.model)
    loaders = [cast(Loader, _Labelled(each, weight.dtype)) for each in (loader, validation)]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.enable_grad():
        job = Training(
            pruned.model,
            recipe,
            lambda *_: (loaders[0], loaders[1]),
            resume_file=Path(folder, "resume.pt"),
            fingerprint="",
            device=weight.device,
            threads=torch.get_num_threads(),
            checkpoint_minutes=float("inf"),
            keep_masks=pruned.keep_masks,
            block_shape=pruned.block_shape,
            teacher=None if teacher is None else _taught(teacher, loaders[0]),
        )
        state = train(job).state
    model = deepcopy(pruned.model)
    model.load_state_dict(state)
    return replace(pruned, model=model.eval())


def _check(recipe: Recipe, teacher: nn.Module | None) -> None:
    if (recipe.teacher is None) != (teacher is None):
        raise LpvitError(
            "teacher: give a model together with a recipe that has distillation='soft' or 'hard' and teacher='dense', "
            "and only then"
        )
    if recipe.pruned_over:
        raise LpvitError("recipe: pruned_over starts with the dense model, this one is pruned; omit it")


def _taught(teacher: nn.Module, loader: Loader) -> nn.Module:
    """A copy with the image size of the loader if it supports it; otherwise images are resized to its own size."""
    copy = deepcopy(teacher)
    with suppress(LpvitError):
        adopt_input_size(copy, next(iter(loader))[0])
        return copy
    return teacher


@dataclass(frozen=True)
class _Labelled:
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
            images, labels, *_ = batch if isinstance(batch, tuple | list) and len(batch) > 1 else (batch, None)
            if not isinstance(images, Tensor) or images.dim() != 4 or not isinstance(labels, Tensor):
                found = ", ".join(_kind(part) for part in (batch if isinstance(batch, tuple | list) else [batch]))
                raise LpvitError(f"loader: found a batch of {found}; expected images (N, C, H, W) and labels (N,)")
            yield images.to(self.dtype), labels.long()


def _kind(part: object) -> str:
    return f"a tensor of shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"a {type(part).__name__}"


def _weight(model: nn.Module) -> Tensor:
    return next(model.parameters())
