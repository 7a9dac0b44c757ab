"""Checks a whole config against its data and models in seconds, before hours of work."""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from torch import nn

from lpvit.allocation.feasibility import Shapes, bounds, require_reachable
from lpvit.allocation.latency import read_latency
from lpvit.allocation.settings import Budget
from lpvit.config.config import Config, Experiment
from lpvit.costs.cost import measure_costs
from lpvit.data.decoding import unknown_range
from lpvit.data.encoded import first_without_jpeg
from lpvit.data.index import class_names, list_images, usable_images
from lpvit.data.settings import Dataset
from lpvit.errors import LpvitError
from lpvit.lazy import is_installed
from lpvit.models.analysis.trace import IMAGES, random_images
from lpvit.models.architecture import Architecture
from lpvit.models.heads import is_classifier
from lpvit.models.labels import require_labels_of_weights
from lpvit.models.settings import Model
from lpvit.models.sources.checkpoints import read_checkpoint
from lpvit.models.sources.checkpoints import require_same_architecture as require_same
from lpvit.models.sources.dense import configured_source
from lpvit.models.sources.pretrained import require_fetchable
from lpvit.models.sources.timm import create_model, nearest_model
from lpvit.models.unpacking.edit import unpack
from lpvit.schemes.edit import add_scheme
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.structure import ModelStructure, structure_of
from lpvit.training.loss import require_fit
from lpvit.training.settings import Recipe

LOOKED_AT = 100  # images whose kind of pixels is checked, evenly spaced
LARGEST_BLOCK_PRODUCTS = 8 * 2**30  # bytes


def plan_experiments(settings: Config) -> pd.DataFrame:
    """Checks every experiment and reports what it will prune. Images are listed, not decoded.

    Args:
        settings: The whole config.

    Returns:
        Schema ``PLAN``, one row per experiment.

    Raises:
        LpvitError: Experiments cannot work: one line per reason, with their names, the key at fault and the remedy.
    """
    rows, problems = [], _Problems()
    listed = functools.cache(lambda name: _list_dataset(settings.datasets[name]))
    for name, experiment in settings.experiments.items():
        model, calibration = settings.models[experiment.model], settings.calibrations[experiment.calibration]
        images = None
        with problems.of(name):
            images = listed(experiment.dataset)
        with problems.of(name):
            if (probe := settings.datasets[experiment.dataset].probe) is not None:
                listed(probe)
        with problems.of(name):
            _check_calibration(calibration.images, settings.budgets[experiment.budget], images)
        with problems.of(name):
            _check_weights(model)
        classes = None if images is None else len(class_names(images))
        with problems.of(name):
            if images is not None:
                require_labels_of_weights(model, class_names(images))
            built = _check_model(model, classes)
            for recipe in filter(None, (experiment.recipe, model.recipe)):
                with problems.of(name):
                    _check_teacher(settings.recipes[recipe], built, classes)
            row = _check_pruning(built, experiment, settings)
            rows.append({"experiment": name, "classes": classes, **row})
    problems.raise_any()
    return pd.DataFrame(rows)


class _Problems:
    """Why experiments cannot work: every reason once, with the names of the affected experiments."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    @contextmanager
    def of(self, experiment: str) -> Iterator[None]:
        try:
            yield
        except LpvitError as error:
            for line in str(error).splitlines():
                self._found.setdefault(line, []).append(experiment)

    def raise_any(self) -> None:
        if self._found:
            lines = [f"experiments.{', '.join(dict.fromkeys(names))}: {line}" for line, names in self._found.items()]
            raise LpvitError("\n".join(lines))


def _list_dataset(dataset: Dataset) -> pd.DataFrame:
    """Schema ``IMAGES``; no image has a problem yet."""
    if dataset.loader == "dali" and not is_installed("nvidia.dali"):
        raise LpvitError(
            "loader 'dali': nvidia-dali is not installed; pip install 'lpvit[dali]', or use 'loader: timm'"
        )
    images = list_images(dataset)
    if dataset.loader == "dali" and (other := first_without_jpeg(dataset.folder, images["path"].tolist())):
        raise LpvitError(f"loader 'dali': reads JPEG files, {other} is none; use 'loader: timm' or 'memory'")
    for path in images["path"][:: max(1, len(images) // LOOKED_AT)] if dataset.on_bad_image == "error" else ():
        if problem := unknown_range(dataset.folder / path):
            raise LpvitError(f"{dataset.folder / path}: {problem}; replace such images, or set 'on_bad_image: skip'")
    if len(names := class_names(images)) == 1:
        raise LpvitError(f"dataset: {dataset.root} has one class, '{names[0]}'; models need two")
    return images


def _check_calibration(count: int, budget: Budget, images: pd.DataFrame | None) -> None:
    available = math.inf if images is None else len(usable_images(images, "train"))
    if count > available:
        raise LpvitError(f"calibration: {count} images asked for, the training split has {available}; lower 'images'")
    if budget.points_lost is not None and count + budget.held_out > available:
        raise LpvitError(
            f"budget: {budget.held_out} held-out images asked for, the training split has {available - count} beside "
            "the calibration's; lower 'held_out'"
        )


def _check_weights(model: Model) -> None:
    if model.weights == "pretrained" and model.timm is not None and timm.is_model(model.timm.partition(".")[0]):
        try:
            require_fetchable(model.timm)
        except LpvitError as error:
            raise LpvitError(f"models: {error} with 'weights: checkpoint' and 'checkpoint: path'") from None


def _check_teacher(recipe: Recipe, student: nn.Module, classes: int | None) -> None:
    if recipe.teacher in (None, "dense"):
        return
    teacher = str(recipe.teacher)
    if not timm.is_model(teacher.partition(".")[0]):
        hint = nearest_model(teacher) or "; give a timm name or 'dense'"
        raise LpvitError(f"teacher: timm knows no model '{teacher}'{hint}")
    if recipe.teacher_checkpoint is None:
        try:
            require_fetchable(teacher)
        except LpvitError as error:
            raise LpvitError(f"teacher: {error} as 'teacher_checkpoint'") from None
    elif not recipe.teacher_checkpoint.is_file():
        raise LpvitError(f"teacher_checkpoint: {recipe.teacher_checkpoint} not found")
    _check_what_it_teaches(teacher, recipe.teacher_checkpoint, student, classes)


def _check_what_it_teaches(teacher: str, checkpoint: Path | None, student: nn.Module, classes: int | None) -> None:
    with torch.device("meta"):
        built = create_model(teacher, student.num_classes)  # type: ignore[arg-type]
    require_fit(student, built)
    if classes is None:
        return
    expected = classes or student.num_classes
    known = timm.get_pretrained_cfg(teacher).num_classes
    if checkpoint is not None:
        require_same(built, read_checkpoint(checkpoint, built), checkpoint)
    elif expected and known != expected:
        whose = "dataset" if classes else "model"
        raise LpvitError(
            f"teacher: timm's '{teacher}' knows {known} classes, the {whose} has {expected}, so its head is random; "
            "give its weights for these classes as 'teacher_checkpoint'"
        )


def _check_model(model: Model, classes: int | None) -> nn.Module:
    """The model, on the meta device.

    Args:
        model: Of the config.
        classes: Of the dataset, 0 without; None where its images are not known, and nothing is compared with them.
    """
    source = configured_source(model, 1000 if classes is None else classes or None)
    with torch.device("meta"):
        built = Architecture(source=source).build()
        known = source.known_classes
        if classes and model.weights == "pretrained" and model.recipe is None and known not in (classes, None):
            raise LpvitError(
                f"models: {model.source}'s '{model.name}' knows {known} classes, the dataset has {classes}, so its "
                "head is random; give the model a 'recipe' to train it"
            )
        if classes == 0 and model.weights == "pretrained" and model.num_classes not in (0, None, known):
            raise LpvitError(
                f"models: {model.source}'s '{model.name}' knows {known} classes, so a head of 'num_classes' is random; "
                "leave it out, or set it to 0 for no head"
            )
        if classes != 0 and is_classifier(built) is False:
            raise LpvitError(
                f"models: {model.source}'s '{model.name}' has no classes, the dataset has; compress it on images "
                "without classes ('source: unlabelled'), whose 'probe' may be this dataset"
            )
        if classes is not None and model.checkpoint is not None:
            require_same(built, read_checkpoint(model.checkpoint, built), model.checkpoint)
        return unpack(built, random_images(built, IMAGES))


def _check_pruning(model: nn.Module, experiment: Experiment, settings: Config) -> dict[str, Any]:
    """What an experiment will prune of a model on the meta device."""
    budget, pruning = settings.budgets[experiment.budget], settings.prunings[experiment.pruning]
    if budget.by_outcome and experiment.schemes:
        raise LpvitError(f"schemes: a budget in '{budget.outcome[0]}' is measured without schemes; leave them out")
    with torch.device("meta"):
        for scheme in experiment.schemes:
            add_scheme(model, settings.schemes[scheme])
    costs = measure_costs(model)
    structure = structure_of(pruning)
    macs, target = int(costs["macs"].sum()), next(iter(budget.stated.values()))
    if isinstance(structure, ModelStructure):
        structure.require_reachable(model, target)
        return {"dense_macs": macs, "prunable_macs": macs, "least_macs": 0, "target": target}
    table, pieces = budget.latency_table, structure.pieces(model)
    latency = None if table is None else read_latency([table], pruning.timed_shapes)
    shapes = Shapes(costs, pieces, settings.energy, latency)
    require_reachable(shapes, budget)
    for blocks in (part for part in pruning.parts.values() if isinstance(part, Blocks)):
        samples = settings.calibrations[experiment.calibration].images * blocks.probes_used
        _check_block_products(int((pieces[0]["structure"] == "blocks").sum()), samples)
    _, _, at_most = bounds(shapes, "macs", 1.0, budget)
    prunable = int(costs.loc[costs["layer"].isin(pieces[0]["layer"]), "macs"].sum())
    return {"dense_macs": macs, "prunable_macs": prunable, "least_macs": macs - int(at_most), "target": target}


def _check_block_products(blocks: int, samples: int) -> None:
    size = 4 * samples * blocks
    if size > LARGEST_BLOCK_PRODUCTS:
        raise LpvitError(
            f"pruning: 'gauss_newton' needs {size / 2**30:.1f} GiB for its block products, more than "
            f"{LARGEST_BLOCK_PRODUCTS / 2**30:g}; lower 'probes' or the calibration's 'images', or choose larger blocks"
        )
