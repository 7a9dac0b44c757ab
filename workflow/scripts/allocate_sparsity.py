"""Curves and costs in, one keep ratio per layer out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.allocation.allocate import allocate
from lpvit.stages.inputs import allocation_inputs
from lpvit.stages.stage import stage
from lpvit.store.schemas import ALLOCATION
from lpvit.store.tables import write_parquet

with stage(snakemake):
    allocation = allocate(*allocation_inputs(snakemake))
    write_parquet(allocation, snakemake.output.allocation, ALLOCATION)
