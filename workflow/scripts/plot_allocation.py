"""Allocation in, picture of the keep ratios out."""

from lpvit.report.figures import plot_allocation
from lpvit.report.looks import save_figure
from lpvit.stages.stage import stage
from lpvit.store.schemas import ALLOCATION, COSTS, read_parquet

with stage(snakemake):
    allocation = read_parquet(snakemake.input.allocation, ALLOCATION)
    costs = read_parquet(snakemake.input.costs, COSTS)
    save_figure(plot_allocation(allocation, costs), *snakemake.output)
