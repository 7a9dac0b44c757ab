"""Images in, a class-balanced draw from the training split out."""

from lpvit.config import Calibration
from lpvit.data import sample_calibration
from lpvit.schemas import IMAGES, SAMPLES, read_parquet, write_parquet
from lpvit.stage import stage

with stage(snakemake):
    calibration = Calibration.model_validate(snakemake.params.calibration)
    samples = sample_calibration(read_parquet(snakemake.input.images, IMAGES), calibration.images, calibration.seed)
    write_parquet(samples, snakemake.output.samples, SAMPLES)
