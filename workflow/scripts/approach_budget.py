"""The dense model's scores and curves in, those of what the steps towards the budget leave of it out."""

from lpvit.pruning.steps import before_last_step
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.inputs import allocation_inputs
from lpvit.stages.stage import stage
from lpvit.store.schemas import BLOCKS, CURVES, write_parquet

with stage(snakemake) as compute:
    dense = read_calibrated(snakemake, compute)
    tables, budget = allocation_inputs(snakemake)
    tables = before_last_step(dense.model, dense.loader, dense.pruning, tables, budget, compute.device)
    write_parquet(tables.blocks, snakemake.output.blocks, BLOCKS)
    write_parquet(tables.curves, snakemake.output.curves, CURVES)
