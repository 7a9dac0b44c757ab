"""Evaluation of a model on the validation images: accuracy, or without classes agreement with the dense model.

N = images; K = numbers that a model gives for an image.
"""

import logging
from dataclasses import asdict
from typing import Any

import pandas as pd
from torch import nn

from lpvit.data.classes import require_same_order
from lpvit.data.index import class_names, count_skipped, usable_images
from lpvit.data.loading import Loader, evaluation_loader
from lpvit.models.architecture import load_model
from lpvit.settings import Compute
from lpvit.store.schemas import ACCURACY, IMAGES
from lpvit.store.tables import read_parquet
from lpvit.training.evaluation import evaluate
from lpvit.training.features import agreement
from lpvit.training.probing import Probe, probe_features
from lpvit.training.tasks.outputs import outputs_of

_logger = logging.getLogger(__name__)


def evaluation_of_stage(snakemake: Any, compute: Compute) -> pd.DataFrame:
    """Evaluates the input ``model``; of images without classes beside the input ``dense``, and on those of ``probe``.

    Args:
        snakemake: The object that Snakemake gives to the script of the rule, with the inputs ``images``, ``model``,
            ``dense`` and ``probe``, the last two empty where images have classes, and the params ``stage``,
            ``dataset`` and ``probe``.
        compute: From `lpvit.stages.stage.stage`.

    Returns:
        Schema ``ACCURACY``, one row.

    Raises:
        LpvitError: The model knows other classes than the dataset, or as the evaluation.
    """
    inputs, params = snakemake.input, snakemake.params
    images = read_parquet(inputs.images, IMAGES)
    architecture, state = load_model(inputs.model, params.stage)
    model = architecture.build(state)
    loader = _loader(usable_images(images, "validation"), params.dataset, model, compute)
    found: dict[str, Any] = {"stage": params.stage, "images_skipped": count_skipped(images, "validation")}
    if names := class_names(images):
        require_same_order(architecture.classes, names, inputs.model)
        found |= asdict(evaluate(model, loader, compute.device))
    else:
        dense, weights = load_model(inputs.dense, "dense")
        near = agreement(model, dense.build(weights), loader, compute.device)
        _logger.info("%s, relative error %.4f, of %d images", near, near.relative_error, near.images)
        found |= asdict(near)
    if inputs.probe:
        probe = probed(model, read_parquet(inputs.probe, IMAGES), params.probe, compute)
        _logger.info("linear probe %.2f %%, neighbours %.2f %%", probe.linear, probe.knn)
        found |= {"probe_images": probe.images, "knn": probe.knn, "linear": probe.linear}
    return pd.DataFrame([found]).reindex(columns=[column.name for column in ACCURACY.columns])


def probed(model: nn.Module, images: pd.DataFrame, dataset: dict[str, Any], compute: Compute) -> Probe:
    """How well the outputs of a model classify the validation images of a dataset, after a look at its training images.

    Args:
        model: Its outputs are (N, K).
        images: Of the dataset, schema ``IMAGES``.
        dataset: Its ``root`` and ``loader``.
        compute: From `lpvit.stages.stage.stage`.
    """
    parts = (
        outputs_of(model, _loader(usable_images(images, split), dataset, model, compute), compute.device)
        for split in ("train", "validation")
    )
    (features, labels), (others, their_labels) = parts
    return probe_features(features, labels, others, their_labels)


def _loader(images: pd.DataFrame, dataset: dict[str, Any], model: nn.Module, compute: Compute) -> Loader:
    return evaluation_loader(images, dataset, model, compute.evaluation_batch_size, compute)
