"""Inputs of the benchmark of other engines."""

from typing import Any

from torch import nn

from lpvit.benchmark.engines import NO_RIVALS, Rivals, require_engines
from lpvit.benchmark.settings import Benchmark
from lpvit.data.index import class_names, usable_images
from lpvit.data.loading import evaluation_loader
from lpvit.settings import Compute
from lpvit.store.schemas import IMAGES, SAMPLES
from lpvit.store.tables import read_parquet

BATCH_SIZE = 32


def read_rivals(snakemake: Any, compute: Compute, model: nn.Module) -> Rivals:
    """The engines of the param ``benchmark`` with calibration and validation images; without engines nothing is read.

    Args:
        snakemake: The object that Snakemake gives to the script of a rule with these params, and with the inputs
            ``samples`` and ``images`` where there are engines.
        compute: From `lpvit.stages.stage.stage`.
        model: Whose preprocessing the images get.

    Raises:
        LpvitError: A package of an engine is not installed.
    """
    settings = Benchmark.model_validate(snakemake.params.benchmark)
    if not settings.engines:
        return NO_RIVALS
    require_engines(settings.engines)
    images = read_parquet(snakemake.input.images, IMAGES)
    validation = usable_images(images, "validation")
    validation = validation.iloc[:: max(1, len(validation) // settings.engine_images)].head(settings.engine_images)
    samples = read_parquet(snakemake.input.samples, SAMPLES)
    loaders = [
        evaluation_loader(images, snakemake.params.dataset, model, BATCH_SIZE, compute)
        for images in (samples, validation)
    ]
    calibration, evaluated = ([(batch.cpu(), labels.cpu()) for batch, labels in loader] for loader in loaders)
    labelled = evaluated if class_names(images) else []
    return Rivals(settings.engines, [batch for batch, _ in calibration], labelled)
