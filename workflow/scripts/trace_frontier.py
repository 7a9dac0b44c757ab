"""Curves, costs and two budgets in, their trade-off at equal distortion out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.allocation.frontier import frontier
from lpvit.stages.inputs import allocation_inputs
from lpvit.stages.stage import stage
from lpvit.store.schemas import FRONTIER
from lpvit.store.tables import write_parquet

with stage(snakemake):
    write_parquet(frontier(*allocation_inputs(snakemake)), snakemake.output.frontier, FRONTIER)
