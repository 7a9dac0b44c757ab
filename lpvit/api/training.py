"""Fine-tuning and evaluation with the user's own loaders, with the functions of the workflow.

N = images of a batch.
"""

import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn

from lpvit.api.arguments import require_type
from lpvit.api.batches import LabelledBatches, accepted_by
from lpvit.api.classes import require_classes_by
from lpvit.api.pruned import Pruned, require_pruned
from lpvit.data.loading import Loader
from lpvit.data.transforms import undisturbed_generators
from lpvit.errors import LpvitError
from lpvit.models.analysis.network import require_weights
from lpvit.models.outputs import reading_of
from lpvit.models.preparation import adopt_input_size
from lpvit.quantisation.layers import int8_layers
from lpvit.training.evaluation import Accuracy
from lpvit.training.features import Agreement
from lpvit.training.job import Training
from lpvit.training.loss import Teacher, require_fit
from lpvit.training.probing import Probe, probe_features
from lpvit.training.settings import Recipe
from lpvit.training.tasks import task_of
from lpvit.training.tasks.classification import Classification
from lpvit.training.tasks.following import Following
from lpvit.training.tasks.multi_label import MultiLabelScore
from lpvit.training.tasks.outputs import outputs_of
from lpvit.training.tasks.own import MeanLoss
from lpvit.training.tasks.regression import RegressionScore
from lpvit.training.tasks.task import Score, Task
from lpvit.training.train import train

TaskName = Literal["classification", "multi_label", "regression"]
OwnFunction = Callable[[Any, Any], Tensor]  # model output, batch -> loss

_OF_SINGLE_IMAGES = (
    *("crop_scale", "crop_ratio", "horizontal_flip", "color_jitter", "rand_augment"),
    "repeated_augmentation",
)


@overload
def evaluate(model: nn.Module | Pruned, loader: Iterable[Any]) -> Accuracy: ...
@overload
def evaluate(model: nn.Module | Pruned, loader: Iterable[Any], *, reference: nn.Module) -> Agreement: ...
@overload
def evaluate(model: nn.Module | Pruned, loader: Iterable[Any], *, task: Literal["multi_label"]) -> MultiLabelScore: ...
@overload
def evaluate(model: nn.Module | Pruned, loader: Iterable[Any], *, task: Literal["regression"]) -> RegressionScore: ...
@overload
def evaluate(model: nn.Module | Pruned, loader: Iterable[Any], *, task: OwnFunction) -> MeanLoss: ...
def evaluate(
    model: nn.Module | Pruned,
    loader: Iterable[Any],
    *,
    reference: nn.Module | None = None,
    task: TaskName | OwnFunction = "classification",
) -> Score:
    """Accuracy on labelled images, what another task measures, or agreement with a reference; on the model's device.

    Args:
        model: Dense, pruned, sparsified or compiled; left in evaluation mode.
        loader: Batches that start with images (N, channels, height, width), normalised for the model, and labels (N,):
            integers from 0; (N, 1) is the same.
        reference: Usually the dense model. Outputs, logits or features, are compared with its; no labels are needed.
            Moved to the model's device and left in evaluation mode.
        task: ``multi_label`` (labels (N, classes) of 0 and 1), ``regression`` (numbers (N, K)), or your own function of
            the model's output and the batch, which returns a loss.

    Returns:
        `lpvit.Accuracy`; with ``reference`` an `lpvit.Agreement`; else images, loss and a figure of the task.

    Raises:
        LpvitError: The loader yields something else, no image, or images that the model does not accept; the model
            gives features and there is no reference; or outputs are not finite.
    """
    module = _module("model", model)
    weight = next(module.parameters(), torch.empty(0))
    if reference is None:
        asked = task_of(task)
    else:
        if task != "classification":
            raise LpvitError("task: has no meaning with a reference, whose outputs are all that is compared; omit one")
        asked = Following(_module("reference", reference))
    asked.require(module)
    if isinstance(asked, Classification):
        require_classes_by(loader, module)
    batches = LabelledBatches(loader, weight.dtype, task=asked)
    with accepted_by(module, batches), accepted_by(reference or module, batches):
        return asked.evaluate(module, batches, weight.device)


@undisturbed_generators(on_gpus=True)
def probe(model: nn.Module | Pruned, loader: Iterable[Any], validation: Iterable[Any]) -> Probe:
    """How well features classify: nearest neighbours, and a linear classifier on the frozen model.

    Args:
        model: Whose pooled features, or whatever ``output=`` of `lpvit.prune` named, are used; left in evaluation mode.
        loader: Images with labels, as for `evaluate`, that the classifiers learn from.
        validation: Images with labels that are classified.

    Raises:
        LpvitError: A loader yields something else, or no image.
    """
    module = _module("model", model)
    weight = next(module.parameters(), torch.empty(0))
    parts = []
    for given in (loader, validation):
        batches = LabelledBatches(given, weight.dtype)
        with accepted_by(module, batches):
            parts.append(outputs_of(module, batches, weight.device))
    return probe_features(*parts[0], *parts[1])


def _module(name: str, model: nn.Module | Pruned) -> nn.Module:
    module = require_pruned(model).model if isinstance(model, Pruned) else model
    require_type(name, module, nn.Module, "a model, or the result of lpvit.prune")
    require_weights(module)
    return module


@undisturbed_generators(on_gpus=True)
def finetune(
    pruned: Pruned,
    loader: Iterable[Any],
    validation: Iterable[Any],
    *,
    recipe: Recipe,
    teacher: nn.Module | None = None,
    held_out: Iterable[Any] | None = None,
    task: TaskName | OwnFunction = "classification",
) -> Pruned:
    """Trains a pruned model with fixed masks, on its device.

    Args:
        pruned: Not modified, a copy is trained.
        loader: Training images with labels, as for `evaluate`; with any shuffling and augmentation of single
            images, whose keys in a recipe are refused; mixup, cutmix and erasing are applied here.
        validation: Images with labels, evaluated after every epoch.
        recipe: Hyperparameters; its ``batch_size`` is that of the loader.
        teacher: For a recipe with ``distillation``: the dense model, or another with the same classes. With
            ``distillation="features"`` its outputs are followed: no loader needs labels, and agreement is measured.
        held_out: Images with labels, in neither of the loaders, that choose the epoch.
        task: What labels are, as for `evaluate`.

    Returns:
        With the weights of the last epoch, or of the best one on ``held_out``, averaged if the recipe has an
        ``ema_decay``; pruned weights are still exactly zero.

    Raises:
        LpvitError: Recipe, loader, teacher and model do not fit each other, or the loss is not finite.
    """
    _check(pruned, recipe, teacher)
    dtype = next(pruned.model.parameters()).dtype
    images = LabelledBatches(loader, dtype, recipe.batch_size)
    taught = None if teacher is None else _taught(teacher, images.first_images(), pruned.model)
    images.task = asked = _asked(pruned.model, recipe, taught, task)
    if isinstance(asked, Classification):
        require_classes_by(loader, pruned.model)
        require_classes_by(validation, pruned.model)
    validated = LabelledBatches(validation, dtype, task=asked)
    chosen_by = None if held_out is None else LabelledBatches(held_out, dtype, task=asked)
    job = replace(_job(pruned, recipe, images, validated, chosen_by), teacher=taught, task=asked)
    model = deepcopy(pruned.model)
    with accepted_by(pruned.model, images), accepted_by(pruned.model, validated):
        model.load_state_dict(_trained(job))
    return replace(pruned, model=model.eval())


def _job(
    pruned: Pruned,
    recipe: Recipe,
    images: LabelledBatches,
    validated: LabelledBatches,
    chosen_by: LabelledBatches | None,
) -> Training:
    loaders = cast(Loader, images), cast(Loader, validated)
    return Training(
        pruned.model,
        recipe,
        lambda *_: loaders,
        resume_file=Path("resume.pt"),
        fingerprint="",
        device=next(pruned.model.parameters()).device,
        threads=torch.get_num_threads(),
        checkpoint_minutes=float("inf"),
        keep_masks=pruned.keep_masks,
        block_shape=pruned.block_shape,
        make_held_out=None if chosen_by is None else lambda *_: cast(Loader, chosen_by),
    )


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
        if not any(True for _ in teacher.parameters()):
            raise LpvitError(f"teacher: found {type(teacher).__name__}, which has no weights; give the dense model")
    if recipe.teacher not in (None, "dense") or (recipe.teacher is None) != (teacher is None):
        raise LpvitError(
            "teacher: give a model together with a recipe that has distillation='soft', 'hard' or 'features' "
            "and teacher='dense', and only then"
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


def _asked(model: nn.Module, recipe: Recipe, teacher: nn.Module | None, task: TaskName | OwnFunction) -> Task:
    """The task of a training, which model, recipe and teacher fit."""
    asked = task_of(task)
    if teacher is not None and recipe.distillation != "features":
        require_fit(model, teacher)
    elif teacher is not None:
        if not isinstance(asked, Classification):
            raise LpvitError("task: has no meaning with distillation 'features', which needs no labels; omit one")
        asked = Following(Teacher(model, teacher, "outputs"))
    asked.require(model)
    asked.require_recipe(recipe)
    return asked


def _taught(teacher: nn.Module, images: Tensor, student: nn.Module) -> nn.Module:
    """A copy with the image size of the loader if it supports it; otherwise images are resized to its own size."""
    copy = deepcopy(teacher).to(next(student.parameters()).device)
    if not hasattr(copy, "lpvit_reading"):
        copy.lpvit_reading = reading_of(student)  # type: ignore[assignment]
    with suppress(LpvitError):
        adopt_input_size(copy, images)
        return copy
    if not hasattr(teacher, "pretrained_cfg"):
        raise LpvitError(f"teacher: {type(teacher).__name__} does not accept the images of the loader")
    return deepcopy(teacher)
