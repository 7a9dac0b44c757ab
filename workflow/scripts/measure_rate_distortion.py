"""Statistics of the layers in, scores of the removable parts and one rate-distortion curve per layer out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.inputs import structure_asked
from lpvit.stages.stage import stage
from lpvit.store.schemas import BLOCKS, CURVES
from lpvit.store.tables import write_parquet

with stage(snakemake) as compute:
    structure, model, images = structure_asked(snakemake), None, None
    statistics = structure.load_statistics(snakemake.input.statistics)
    if structure.measures_images:
        dense = read_calibrated(snakemake, compute)
        model, images = dense.model, dense.images
    options = structure.options(statistics, model, images, compute.device)
    write_parquet(options.blocks, snakemake.output.blocks, BLOCKS)
    write_parquet(options.curves, snakemake.output.curves, CURVES)
