"""What the stages that show calibration images to the dense model read alike."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from lpvit.data.loading import evaluation_loader
from lpvit.models.analysis.passes import Batches
from lpvit.models.architecture import Architecture, load_model
from lpvit.settings import Compute
from lpvit.store.schemas import SAMPLES, read_parquet
from lpvit.structures.blocks.settings import Pruning


@dataclass(frozen=True)
class Calibrated:
    """The dense model, on its device, and its calibration images.

    Attributes:
        model: In evaluation mode.
        architecture: Builds it again.
        loader: Batches of images, normalised, and labels; as many as `pruning` asks for.
        pruning: Settings of the stage; those that the rule leaves out are defaults.
    """

    model: nn.Module
    architecture: Architecture
    loader: Batches
    pruning: Pruning


def read_calibrated(snakemake: Any, compute: Compute) -> Calibrated:
    """Reads the inputs ``dense`` and ``samples`` by the params ``dataset`` and ``pruning``.

    Args:
        snakemake: The object that Snakemake gives to the script of a rule with these inputs and params.
        compute: From `lpvit.stages.stage.stage`.
    """
    pruning = Pruning.model_validate(snakemake.params.pruning)
    architecture, state = load_model(snakemake.input.dense, "dense")
    model = architecture.build(state).to(compute.device)
    samples = read_parquet(snakemake.input.samples, SAMPLES)
    loader = evaluation_loader(samples, snakemake.params.dataset, model, pruning.batch_size, compute)
    return Calibrated(model, architecture, loader, pruning)
