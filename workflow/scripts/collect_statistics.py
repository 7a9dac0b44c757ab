"""A dense model and calibration images in, statistics of every prunable layer out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.stage import stage
from lpvit.store.artifacts import save
from lpvit.structures.calibration import collect_statistics

with stage(snakemake) as compute:
    dense = read_calibrated(snakemake, compute)
    params = snakemake.params
    statistics = collect_statistics(params.structure, dense.model, dense.images, params.needed, compute.device)
    save(statistics, snakemake.output.statistics, "statistics")
