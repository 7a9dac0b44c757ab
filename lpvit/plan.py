"""A whole config checked against its data and models in seconds: what would otherwise fail after hours of work."""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import timm
import torch

from lpvit.allocation import blocks_always_kept
from lpvit.blocks import BlockGrid
from lpvit.config import Budget, Config, Dataset, Model, Recipe
from lpvit.data import usable_images
from lpvit.errors import LpvitError
from lpvit.models import LayerSpec, create_model, matrix_layers, prunable_layers, read_checkpoint
from lpvit.models import require_same_architecture as require_same

LARGEST_BLOCK_PRODUCTS = 8 * 2**30  # bytes


def plan_experiments(settings: Config, images: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Checks every experiment and says what it will prune.

    Args:
        settings: The whole config.
        images: Name of a dataset -> its images, schema ``IMAGES``.

    Returns:
        Schema ``PLAN``, one row per experiment.

    Raises:
        LpvitError: An experiment cannot work: its name, the key at fault and what to do.
    """
    rows = []
    for name, experiment in settings.experiments.items():
        budget = settings.budgets[experiment.budget]
        try:
            _check_dataset(settings.datasets[experiment.dataset])
            classes = images[experiment.dataset]["label"].nunique()
            calibration = settings.calibrations[experiment.calibration]
            _check_calibration(calibration.images, images[experiment.dataset])
            layers = _check_model(settings.models[experiment.model], classes)
            for recipe in filter(None, (experiment.recipe, settings.models[experiment.model].recipe)):
                _check_teacher(settings.recipes[recipe])
            pruning = settings.prunings[experiment.pruning]
            prunable = prunable_layers(layers, pruning.layers)
            row = _check_budget(layers, prunable, pruning.block_shape, budget)
            _check_block_products(prunable, pruning.block_shape, calibration.images * pruning.probes_used)
        except LpvitError as error:
            raise LpvitError(f"experiments.{name}: {error}") from None
        rows.append({"experiment": name, "classes": classes, **row})
    return pd.DataFrame(rows)


def _check_dataset(dataset: Dataset) -> None:
    if dataset.loader == "dali" and importlib.util.find_spec("nvidia.dali") is None:
        raise LpvitError(
            "loader 'dali': nvidia-dali is not installed; pip install 'lpvit[dali]', or use 'loader: timm'"
        )


def _check_calibration(count: int, images: pd.DataFrame) -> None:
    available = len(usable_images(images, "train"))
    if count > available:
        raise LpvitError(f"calibration: {count} images asked for, the training split has {available}; lower 'images'")


def _check_model(model: Model, classes: int) -> list[LayerSpec]:
    with torch.device("meta"):
        built = create_model(model.timm, classes, model.options, model.data_config)
        layers = matrix_layers(built)
    known = built.pretrained_cfg.get("num_classes")  # type: ignore[union-attr, operator]
    if model.weights == "pretrained" and model.recipe is None and known != classes:
        raise LpvitError(
            f"models: timm's '{model.timm}' knows {known} classes, the dataset has {classes}, so its head is random; "
            "give the model a 'recipe' that trains it on"
        )
    if model.checkpoint is not None:
        require_same(built, read_checkpoint(model.checkpoint), model.checkpoint)
    return layers


def _check_teacher(recipe: Recipe) -> None:
    if recipe.teacher not in (None, "dense") and not timm.is_model(str(recipe.teacher).partition(".")[0]):
        raise LpvitError(f"teacher: timm knows no model '{recipe.teacher}'; give a timm name or 'dense'")
    if recipe.teacher_checkpoint is not None and not Path(recipe.teacher_checkpoint).is_file():
        raise LpvitError(f"teacher_checkpoint: {recipe.teacher_checkpoint} not found")


def _check_budget(
    layers: list[LayerSpec], prunable: list[LayerSpec], block_shape: tuple[int, int], budget: Budget
) -> dict[str, float]:
    floors = [_least_keep_ratio(layer, block_shape, budget.min_keep_ratio) for layer in prunable]
    dense = sum(layer.macs for layer in layers)
    prunable_macs = sum(layer.macs for layer in prunable)
    least = dense - prunable_macs + sum(layer.macs * floor for layer, floor in zip(prunable, floors, strict=True))
    if budget.macs is not None and budget.macs < least / dense:
        raise LpvitError(
            f"budget: macs {budget.macs:g} is impossible: {least / dense:.3f} of the MACs stay even at min_keep_ratio "
            f"{budget.min_keep_ratio:g}; raise 'macs', lower 'min_keep_ratio' or add roles to 'layers'"
        )
    weights = [layer.out_features * layer.in_features for layer in prunable]
    most = 1 - sum(w * floor for w, floor in zip(weights, floors, strict=True)) / sum(weights)
    if budget.sparsity is not None and budget.sparsity > most:
        raise LpvitError(
            f"budget: sparsity {budget.sparsity:g} is impossible: {most:.3f} is reached at min_keep_ratio "
            f"{budget.min_keep_ratio:g}; lower 'sparsity' or 'min_keep_ratio'"
        )
    target = budget.macs if budget.macs is not None else budget.sparsity
    return {
        "dense_macs": dense,
        "prunable_macs": prunable_macs,
        "least_macs": math.ceil(least),
        "target": float(target or 0),
    }


def _check_block_products(prunable: list[LayerSpec], block_shape: tuple[int, int], samples: int) -> None:
    size = 4 * samples * sum(BlockGrid(layer.shape, block_shape).count for layer in prunable)
    if size > LARGEST_BLOCK_PRODUCTS:
        raise LpvitError(
            f"pruning: 'gauss_newton' needs {size / 2**30:.1f} GiB for its block products, more than "
            f"{LARGEST_BLOCK_PRODUCTS / 2**30:g}; lower 'probes' or the calibration's 'images', or choose larger blocks"
        )


def _least_keep_ratio(layer: LayerSpec, block_shape: tuple[int, int], min_keep_ratio: float) -> float:
    blocks = BlockGrid(layer.shape, block_shape).count
    return blocks_always_kept(blocks, min_keep_ratio) / blocks
