"""Images in, a class-balanced sample of the training split out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.data.calibration import sample_calibration
from lpvit.data.settings import Calibration
from lpvit.stages.stage import stage
from lpvit.store.schemas import IMAGES, SAMPLES
from lpvit.store.tables import read_parquet, write_parquet

with stage(snakemake):
    calibration = Calibration.model_validate(snakemake.params.calibration)
    samples = sample_calibration(read_parquet(snakemake.input.images, IMAGES), calibration.images, calibration.seed)
    write_parquet(samples, snakemake.output.samples, SAMPLES)
