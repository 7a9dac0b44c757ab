"""The dense model's scores and curves in, those of what the steps towards the budget leave of it out."""

from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.inputs import allocation_inputs
from lpvit.stages.stage import stage
from lpvit.store.schemas import BLOCKS, CURVES, write_parquet
from lpvit.weights.steps import before_last_step

with stage(snakemake) as compute:
    dense = read_calibrated(snakemake, compute)
    blocks, curves = before_last_step(
        *(dense.model, dense.loader, dense.pruning), **allocation_inputs(snakemake), device=compute.device
    )
    write_parquet(blocks, snakemake.output.blocks, BLOCKS)
    write_parquet(curves, snakemake.output.curves, CURVES)
