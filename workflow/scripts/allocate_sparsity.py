"""Curves and costs in, one keep ratio per layer out."""

from lpvit.allocation import allocate
from lpvit.config import Budget
from lpvit.schemas import ALLOCATION, BLOCKS, COSTS, CURVES, read_parquet, write_parquet
from lpvit.stage import stage

with stage(snakemake):
    allocation = allocate(
        read_parquet(snakemake.input.curves, CURVES),
        read_parquet(snakemake.input.blocks, BLOCKS),
        read_parquet(snakemake.input.costs, COSTS),
        Budget.model_validate(snakemake.params.budget),
    )
    write_parquet(allocation, snakemake.output.allocation, ALLOCATION)
