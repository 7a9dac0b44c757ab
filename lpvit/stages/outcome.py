"""What a budget by outcome measures of a compressed model, in the pipeline."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from lpvit.allocation.settings import Budget
from lpvit.api.outcome import outcome_measure
from lpvit.data.calibration import sample_calibration
from lpvit.data.loading import evaluation_loader
from lpvit.errors import LpvitError
from lpvit.models.analysis.passes import Batches
from lpvit.pruning.outcome import Estimate
from lpvit.settings import Compute
from lpvit.stages.calibrated import Calibrated
from lpvit.store.schemas import IMAGES, SAMPLES
from lpvit.store.tables import read_parquet
from lpvit.structures.structure import Compressed


def measure_of_stage(
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
    assert dense.images is not None, "an input of the rule"
    image = next(iter(dense.images))[0][:1].to(compute.device)
    return outcome_measure(budget, dense.model, image, partial(_held_out_batches, snakemake, budget, dense, compute))


def _held_out_batches(snakemake: Any, budget: Budget, dense: Calibrated, compute: Compute) -> Batches:
    params = snakemake.params
    images, samples = read_parquet(snakemake.input.images, IMAGES), read_parquet(snakemake.input.samples, SAMPLES)
    held_out = held_out_images(images, samples, budget.held_out, params.calibration["seed"])
    return evaluation_loader(held_out, params.dataset, dense.model, params.batch_size, compute)


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
