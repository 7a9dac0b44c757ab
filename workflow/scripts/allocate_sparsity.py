"""Curves and costs in, one keep ratio per layer out."""

from lpvit.allocation import allocate
from lpvit.config import Budget, Energy
from lpvit.latency import read_latency
from lpvit.schemas import ALLOCATION, BLOCKS, COSTS, CURVES, read_parquet, write_parquet
from lpvit.stage import stage

with stage(snakemake):
    table = snakemake.input.latency
    allocation = allocate(
        read_parquet(snakemake.input.curves, CURVES),
        read_parquet(snakemake.input.blocks, BLOCKS),
        read_parquet(snakemake.input.costs, COSTS),
        Budget.model_validate(snakemake.params.budget),
        Energy.model_validate(snakemake.params.energy),
        read_latency(table, tuple(snakemake.params.pruning["block_shape"])) if table else None,
    )
    write_parquet(allocation, snakemake.output.allocation, ALLOCATION)
