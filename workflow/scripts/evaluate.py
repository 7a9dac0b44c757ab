"""A model and the validation images in, its accuracy out; without classes its agreement with the dense model."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.stages.evaluation import evaluation_of_stage
from lpvit.stages.stage import stage
from lpvit.store.schemas import ACCURACY
from lpvit.store.tables import write_parquet

with stage(snakemake) as compute:
    write_parquet(evaluation_of_stage(snakemake, compute), snakemake.output.accuracy, ACCURACY)
