"""What a budget by outcome measures of a compressed model, in the pipeline."""

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pandas as pd

from lpvit.allocation.settings import Budget
from lpvit.data.calibration import sample_calibration
from lpvit.data.loading import evaluation_loader
from lpvit.errors import LpvitError
from lpvit.inference.model_latency import milliseconds_per_image
from lpvit.pruning.outcome import Estimate
from lpvit.settings import Compute
from lpvit.stages.calibrated import Calibrated
from lpvit.store.schemas import IMAGES, SAMPLES
from lpvit.store.tables import read_parquet
from lpvit.structures.structure import Compressed
from lpvit.training.evaluation import correct_images, points_lost


def outcome_measure(
    snakemake: Any, budget: Budget, dense: Calibrated, compute: Compute
) -> Callable[[Compressed], Estimate]:
    """The measure of a budget in points lost, on held-out images, or in milliseconds.

    Args:
        snakemake: The object that Snakemake gives to the script of a rule with inputs ``images`` and ``samples`` and
            params ``dataset``, ``batch_size`` and ``calibration``.
        budget: With an outcome.
        dense: The dense model and its calibration images.
        compute: From `lpvit.stages.stage.stage`.

    Raises:
        LpvitError: Too few images of the training split are left.
    """
    params = snakemake.params
    if budget.milliseconds is not None:
        assert dense.images is not None, "an input of the rule"
        image = next(iter(dense.images))[0][:1].to(compute.device)
        return lambda compressed: Estimate(*astuple(milliseconds_per_image(compressed, image)))
    images, samples = read_parquet(snakemake.input.images, IMAGES), read_parquet(snakemake.input.samples, SAMPLES)
    held_out = held_out_images(images, samples, budget.held_out, params.calibration["seed"])
    loader = evaluation_loader(held_out, params.dataset, dense.model, params.batch_size, compute)
    right = correct_images(dense.model, loader, compute.device)
    return lambda compressed: Estimate(*points_lost(right, correct_images(compressed.model, loader, compute.device)))


def held_out_images(images: pd.DataFrame, samples: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """A class-balanced sample of the training images that are not among those of the calibration.

    Args:
        images: Schema ``IMAGES``.
        samples: Of the calibration, schema ``SAMPLES``.
        count: Images to draw.
        seed: Of the draw.

    Returns:
        Schema ``SAMPLES``.

    Raises:
        LpvitError: Fewer are left.
    """
    left = images[~((images["split"] == "train") & images["path"].isin(samples["path"]))]
    available = int(((left["split"] == "train") & left["problem"].isna()).sum())
    if available < count:
        raise LpvitError(
            f"budget: held_out {count} images asked for, {available} are left in the training split beside the "
            "calibration's; lower 'held_out' or the calibration's 'images'"
        )
    return sample_calibration(left, count, seed)
