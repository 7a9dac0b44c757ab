"""A dense model and calibration images in, block statistics of every prunable layer out."""

from lpvit.models.analysis.layers import matrix_layers, prunable_layers
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.stage import stage
from lpvit.store.artifacts import save
from lpvit.structures.blocks.products import statistics_with_products

with stage(snakemake) as compute:
    dense = read_calibrated(snakemake, compute)
    layers = prunable_layers(matrix_layers(dense.model), dense.pruning.layers)
    statistics = statistics_with_products(
        *(dense.model, dense.loader, layers, dense.pruning.block_shape, snakemake.params.probes, compute.device),
        averaged=snakemake.params.averaged,
    )
    save(statistics, snakemake.output.statistics, "statistics")
