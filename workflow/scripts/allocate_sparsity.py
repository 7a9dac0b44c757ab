"""Curves and costs in, one keep ratio per layer out."""

from lpvit.allocation import allocate
from lpvit.inputs import allocation_inputs
from lpvit.schemas import ALLOCATION, write_parquet
from lpvit.stage import stage

with stage(snakemake):
    allocation = allocate(**allocation_inputs(snakemake))
    write_parquet(allocation, snakemake.output.allocation, ALLOCATION)
