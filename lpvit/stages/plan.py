"""A whole config checked against its data and models in seconds: what would otherwise fail after hours of work."""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import timm
import torch
from torch import nn

from lpvit.allocation.latency import milliseconds, read_latency
from lpvit.allocation.priority import blocks_always_kept
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import WHOLE_MODEL
from lpvit.config.config import Config
from lpvit.data.index import usable_images
from lpvit.data.settings import Dataset
from lpvit.errors import LpvitError
from lpvit.models.architecture import create_model
from lpvit.models.blocks import BlockGrid
from lpvit.models.checkpoints import read_checkpoint
from lpvit.models.checkpoints import require_same_architecture as require_same
from lpvit.models.energy import layer_energy
from lpvit.models.layers import LayerSpec, matrix_layers, prunable_layers
from lpvit.models.scheme import add_scheme
from lpvit.models.settings import Energy, Model
from lpvit.training.settings import Recipe
from lpvit.weights.narrowing import require_narrowable

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
            model = _check_model(settings.models[experiment.model], classes)
            for recipe in filter(None, (experiment.recipe, settings.models[experiment.model].recipe)):
                _check_teacher(settings.recipes[recipe])
            pruning = settings.prunings[experiment.pruning]
            if budget.structure == "width":
                require_narrowable(model)
            with torch.device("meta"):
                for scheme in experiment.schemes:
                    add_scheme(model, settings.schemes[scheme])
            layers = matrix_layers(model)
            if budget.structure == "width":
                row = _check_width(layers, budget)
            else:
                prunable = prunable_layers(layers, pruning.layers)
                row = _check_budget(layers, prunable, pruning.block_shape, budget, settings.energy)
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


def _check_model(model: Model, classes: int) -> nn.Module:
    """The model, on the meta device."""
    with torch.device("meta"):
        built = create_model(model.timm, classes, model.options, model.data_config)
    known = built.pretrained_cfg.get("num_classes")  # type: ignore[union-attr, operator]
    if model.weights == "pretrained" and model.recipe is None and known != classes:
        raise LpvitError(
            f"models: timm's '{model.timm}' knows {known} classes, the dataset has {classes}, so its head is random; "
            "give the model a 'recipe' that trains it on"
        )
    if model.checkpoint is not None:
        require_same(built, read_checkpoint(model.checkpoint), model.checkpoint)
    return built


def _check_teacher(recipe: Recipe) -> None:
    if recipe.teacher not in (None, "dense") and not timm.is_model(str(recipe.teacher).partition(".")[0]):
        raise LpvitError(f"teacher: timm knows no model '{recipe.teacher}'; give a timm name or 'dense'")
    if recipe.teacher_checkpoint is not None and not Path(recipe.teacher_checkpoint).is_file():
        raise LpvitError(f"teacher_checkpoint: {recipe.teacher_checkpoint} not found")


def _check_width(layers: list[LayerSpec], budget: Budget) -> dict[str, float]:
    macs = sum(layer.macs for layer in layers)
    return {"dense_macs": macs, "prunable_macs": macs, "least_macs": 0, "target": budget.targets["macs"]}


def _check_budget(
    layers: list[LayerSpec],
    prunable: list[LayerSpec],
    block_shape: tuple[int, int],
    budget: Budget,
    energy: Energy,
) -> dict[str, float]:
    floors = {layer.name: _least_keep_ratio(layer, block_shape, budget.min_keep_ratio) for layer in prunable}
    latency = None if budget.latency_table is None else read_latency(budget.latency_table, block_shape)

    def dense_and_least(quantity: str) -> tuple[float, float]:
        counted = layers if quantity in WHOLE_MODEL else prunable
        dense = sum(_cost(quantity, layer, 1.0, energy, latency) for layer in counted)
        return dense, sum(_cost(quantity, layer, floors.get(layer.name, 1.0), energy, latency) for layer in counted)

    for quantity, target in budget.targets.items():
        if quantity == "latency" and latency is None:  # to be measured yet
            continue
        dense, least = dense_and_least(quantity)
        if quantity == "sparsity" and target > 1 - least / dense:
            found, change = f"{1 - least / dense:.3f} is reached", "lower"
        elif quantity != "sparsity" and target < least / dense:
            found, change = f"{least / dense:.3f} stays", "raise"
        else:
            continue
        raise LpvitError(
            f"budget: {quantity} {target:g} is impossible: {found} at min_keep_ratio {budget.min_keep_ratio:g}; "
            f"{change} '{quantity}', lower 'min_keep_ratio' or add roles to 'layers'"
        )
    dense, least = dense_and_least("macs")
    return {
        "dense_macs": int(dense),
        "prunable_macs": sum(layer.macs for layer in prunable),
        "least_macs": math.ceil(least),
        "target": next(iter(budget.targets.values())),
    }


def _cost(quantity: str, layer: LayerSpec, keep_ratio: float, energy: Energy, latency: pd.DataFrame | None) -> float:
    """What a layer costs of the quantity that a budget names, with a share of its weights."""
    weights = keep_ratio * math.prod(layer.shape)
    if quantity == "energy":
        return layer_energy(*layer.shape, layer.tokens, weights, energy)
    if quantity == "latency":
        assert latency is not None, "a budget in milliseconds needs a latency table"
        return float(milliseconds(latency, *layer.shape, layer.tokens, 1 - keep_ratio))
    return weights * (layer.tokens if quantity == "macs" else 1)


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
