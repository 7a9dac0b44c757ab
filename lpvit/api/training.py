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

from lpvit.api.batches import images_of
from lpvit.api.prune import adopt_input_size
from lpvit.api.pruned import Pruned, require_pruned
from lpvit.data.loading import Loader
from lpvit.data.transforms import undisturbed_generators
from lpvit.errors import LpvitError
from lpvit.models.analysis.network import require_plain_module
from lpvit.quantisation.layers import int8_layers
from lpvit.training.evaluation import Accuracy
from lpvit.training.evaluation import evaluate as measure
from lpvit.training.job import Training
from lpvit.training.settings import Recipe
from lpvit.training.train import train

_OF_SINGLE_IMAGES = (
    *("crop_scale", "crop_ratio", "horizontal_flip", "color_jitter", "rand_augment"),
    "repeated_augmentation",
)


def evaluate(model: nn.Module | Pruned, loader: Iterable[Any]) -> Accuracy:
    """Accuracy on labelled images, on the model's device.

    Args:
        model: Dense, pruned or sparsified; left in evaluation mode.
        loader: Batches that start with images (N, channels, height, width), normalised for the model, and labels (N,):
            integers from 0; (N, 1) is the same.

    Raises:
        LpvitError: The loader yields something else, or no image.
    """
    module = require_pruned(model).model if isinstance(model, Pruned) else model
    require_plain_module(module)
    weight = _weight(module)
    return measure(module, _Labelled(loader, weight.dtype), weight.device)


@undisturbed_generators(on_gpus=True)
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
        loader: Training images with labels, as for `evaluate`; with any shuffling and augmentation of single
            images; a recipe with keys for these (crops, flips, RandAugment) is refused. Those for batches (mixup,
            cutmix, erasing) are applied here.
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
    require_pruned(pruned)
    _check(recipe, teacher)
    if int8_layers(pruned.model):
        raise LpvitError("model: is quantised, which has no gradients; fine-tune the pruned model and quantise that")
    weight = _weight(pruned.model)
    training = cast(Loader, _Labelled(loader, weight.dtype, recipe.batch_size))
    evaluated = cast(Loader, _Labelled(validation, weight.dtype))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.enable_grad():
        job = Training(
            pruned.model,
            recipe,
            lambda *_: (training, evaluated),
            resume_file=Path(folder, "resume.pt"),
            fingerprint="",
            device=weight.device,
            threads=torch.get_num_threads(),
            checkpoint_minutes=float("inf"),
            keep_masks=pruned.keep_masks,
            block_shape=pruned.block_shape,
            teacher=None if teacher is None else _taught(teacher, training),
        )
        state = train(job).state
    model = deepcopy(pruned.model)
    model.load_state_dict(state)
    return replace(pruned, model=model.eval())


def _check(recipe: Recipe, teacher: nn.Module | None) -> None:
    if recipe.teacher not in (None, "dense") or (recipe.teacher is None) != (teacher is None):
        raise LpvitError(
            "teacher: give a model together with a recipe that has distillation='soft' or 'hard' and teacher='dense', "
            "and only then"
        )
    for key in _OF_SINGLE_IMAGES:
        if getattr(recipe, key) != Recipe.model_fields[key].default:
            raise LpvitError(f"recipe: {key} acts on single images, which your loader makes; do it there, omit the key")
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
    """The batches of the user's loader, as a training reads them; all but the last of ``batch_size``, if given."""

    loader: Iterable[Any]
    dtype: torch.dtype
    batch_size: int | None = None

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
        for number, batch in enumerate(self.loader, start=1):
            images = images_of(batch)
            if self.batch_size is not None and (
                len(images) > self.batch_size or (len(images) < self.batch_size and number < len(self))
            ):
                raise LpvitError(
                    f"recipe: batch_size {self.batch_size}, the loader gives a batch of {len(images)}; make them equal"
                )
            labels = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
            if not isinstance(labels, Tensor):
                found = "a batch without labels" if labels is None else f"labels as a {type(labels).__name__}"
                raise LpvitError(f"loader: found {found}, expected images (N, C, H, W) and labels (N,), a tensor")
            yield images.to(self.dtype), labels


def _weight(model: nn.Module) -> Tensor:
    return next(model.parameters())
