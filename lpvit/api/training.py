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

from lpvit.api.arguments import require_type
from lpvit.api.batches import LabelledBatches, accepted_by
from lpvit.api.pruned import Pruned, require_pruned
from lpvit.data.loading import Loader
from lpvit.data.transforms import undisturbed_generators
from lpvit.errors import LpvitError
from lpvit.models.analysis.network import require_weights
from lpvit.models.preparation import adopt_input_size
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
        model: Dense, pruned, sparsified or compiled; left in evaluation mode.
        loader: Batches that start with images (N, channels, height, width), normalised for the model, and labels (N,):
            integers from 0; (N, 1) is the same.

    Raises:
        LpvitError: The loader yields something else, no image, or images that the model does not accept; or logits are
            not finite.
    """
    module = require_pruned(model).model if isinstance(model, Pruned) else model
    require_type("model", module, nn.Module, "a model, or the result of lpvit.prune")
    require_weights(module)
    weight = next(module.parameters(), torch.empty(0))
    batches = LabelledBatches(loader, weight.dtype)
    with accepted_by(module, batches):
        return measure(module, batches, weight.device)


@undisturbed_generators(on_gpus=True)
def finetune(
    pruned: Pruned,
    loader: Iterable[Any],
    validation: Iterable[Any],
    *,
    recipe: Recipe,
    teacher: nn.Module | None = None,
    held_out: Iterable[Any] | None = None,
) -> Pruned:
    """Trains a pruned model with fixed masks, on its device.

    Args:
        pruned: Not modified, a copy is trained.
        loader: Training images with labels, as for `evaluate`; with any shuffling and augmentation of single
            images, whose keys in a recipe are refused; mixup, cutmix and erasing are applied here.
        validation: Images with labels, evaluated after every epoch.
        recipe: Hyperparameters; its ``batch_size`` is that of the loader.
        teacher: For a recipe with ``distillation``: the dense model, or another with the same classes.
        held_out: Images with labels, in neither of the loaders, that choose the epoch.

    Returns:
        With the weights of the last epoch, or of the best one on ``held_out``, averaged if the recipe has an
        ``ema_decay``; pruned weights are still exactly zero.

    Raises:
        LpvitError: Recipe, loader, teacher and model do not fit each other, or the loss is not finite.
    """
    _check(pruned, recipe, teacher)
    weight = next(pruned.model.parameters())
    images = LabelledBatches(loader, weight.dtype, recipe.batch_size)
    validated = LabelledBatches(validation, weight.dtype)
    loaders = cast(Loader, images), cast(Loader, validated)
    chosen_by = None if held_out is None else cast(Loader, LabelledBatches(held_out, weight.dtype))
    job = Training(
        pruned.model,
        recipe,
        lambda *_: loaders,
        resume_file=Path("resume.pt"),
        fingerprint="",
        device=weight.device,
        threads=torch.get_num_threads(),
        checkpoint_minutes=float("inf"),
        keep_masks=pruned.keep_masks,
        block_shape=pruned.block_shape,
        make_held_out=None if chosen_by is None else lambda *_: chosen_by,
        teacher=None if teacher is None else _taught(teacher, loaders[0]),
    )
    model = deepcopy(pruned.model)
    with accepted_by(pruned.model, images), accepted_by(pruned.model, validated):
        model.load_state_dict(_trained(job))
    return replace(pruned, model=model.eval())


def _trained(job: Training) -> dict[str, Tensor]:
    """The weights after a training that keeps its checkpoints in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.enable_grad():
        return train(replace(job, resume_file=Path(folder, "resume.pt"))).state


def _check(pruned: Pruned, recipe: Recipe, teacher: nn.Module | None) -> None:
    require_pruned(pruned)
    require_type("recipe", recipe, Recipe, "an lpvit.Recipe")
    require_type("teacher", teacher, nn.Module | None, "a model or None")
    if teacher is not None:
        require_weights(teacher)
        if not hasattr(teacher, "num_classes") or not hasattr(teacher, "pretrained_cfg"):
            raise LpvitError(f"teacher: found {type(teacher).__name__}, expected a model of timm")
    if recipe.teacher not in (None, "dense") or (recipe.teacher is None) != (teacher is None):
        raise LpvitError(
            "teacher: give a model together with a recipe that has distillation='soft' or 'hard' and teacher='dense', "
            "and only then"
        )
    for key in _OF_SINGLE_IMAGES:
        if getattr(recipe, key) != Recipe.model_fields[key].default:
            raise LpvitError(f"recipe: {key} acts on single images, which your loader makes; do it there, omit the key")
    if recipe.choose_by:
        raise LpvitError("recipe: choose_by splits the images of a config; give other images as held_out instead")
    if recipe.pruned_over:
        raise LpvitError("recipe: pruned_over starts with the dense model, this one is pruned; omit it")
    if int8_layers(pruned.model):
        raise LpvitError("model: is quantised, which has no gradients; fine-tune the pruned model and quantise that")


def _taught(teacher: nn.Module, loader: Loader) -> nn.Module:
    """A copy with the image size of the loader if it supports it; otherwise images are resized to its own size."""
    copy = deepcopy(teacher)
    with suppress(LpvitError):
        adopt_input_size(copy, next(iter(loader))[0])
        return copy
    return teacher
