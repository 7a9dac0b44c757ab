"""Inputs of the stages that run the dense model on calibration images."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from lpvit.data.loading import evaluation_loader
from lpvit.models.analysis.passes import Batches
from lpvit.models.architecture import Architecture, load_model
from lpvit.settings import Compute
from lpvit.store.schemas import SAMPLES
from lpvit.store.tables import read_parquet


@dataclass(frozen=True)
class Calibrated:
    """The dense model and its calibration images.

    Attributes:
        model: In evaluation mode, on the CPU.
        architecture: Builds it again.
        images: Batches of normalised images, and labels; None where the rule has no input ``samples``.
    """

    model: nn.Module
    architecture: Architecture
    images: Batches | None


def read_calibrated(snakemake: Any, compute: Compute) -> Calibrated:
    """Reads the inputs ``dense`` and ``samples``, the images by the params ``dataset`` and ``batch_size``.

    Args:
        snakemake: The object that Snakemake gives to the script of a rule with these inputs and params; a rule that may
            do without images leaves out ``samples``.
        compute: From `lpvit.stages.stage.stage`.
    """
    architecture, state = load_model(snakemake.input.dense, "dense")
    model = architecture.build(state)
    if not snakemake.input.samples:
        return Calibrated(model, architecture, None)
    samples, params = read_parquet(snakemake.input.samples, SAMPLES), snakemake.params
    images = evaluation_loader(samples, params.dataset, model, params.batch_size, compute)
    return Calibrated(model, architecture, images)
