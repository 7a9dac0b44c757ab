"""Curves, costs and two budgets in, what these could be at equal distortion out, as table and figure."""

from lpvit.allocation.frontier import frontier
from lpvit.report.figures import plot_frontier
from lpvit.report.looks import save_figure
from lpvit.stages.inputs import allocation_inputs
from lpvit.stages.stage import stage
from lpvit.store.schemas import ALLOCATION, FRONTIER, read_parquet, write_parquet

with stage(snakemake):
    trade = frontier(*allocation_inputs(snakemake))
    write_parquet(trade, snakemake.output.frontier, FRONTIER)
    allocation = read_parquet(snakemake.input.allocation, ALLOCATION)
    save_figure(plot_frontier(trade, allocation), snakemake.output.svg, snakemake.output.png)
