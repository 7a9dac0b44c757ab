"""Fine-tuning and evaluation with the user's own loaders, with the functions of the workflow.

N = images of a batch.
"""

import tempfile
from collections.abc import Iterable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lpvit.api.batches import LabelledBatches
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
    return measure(module, LabelledBatches(loader, weight.dtype), weight.device)


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
    require_pruned(pruned)
    _check(recipe, teacher)
    if int8_layers(pruned.model):
        raise LpvitError("model: is quantised, which has no gradients; fine-tune the pruned model and quantise that")
    weight = _weight(pruned.model)
    loaders = [cast(Loader, LabelledBatches(each, weight.dtype)) for each in (loader, validation)]
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


def _weight(model: nn.Module) -> Tensor:
    return next(model.parameters())
