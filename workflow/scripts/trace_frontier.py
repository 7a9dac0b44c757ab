"""Curves, costs and two budgets in, what these could be at equal distortion out, as table and figure."""

from lpvit.allocation import frontier
from lpvit.config import Budget, Energy
from lpvit.latency import read_latency
from lpvit.report import plot_frontier, save_figure
from lpvit.schemas import ALLOCATION, BLOCKS, COSTS, CURVES, FRONTIER, read_parquet, write_parquet
from lpvit.stage import stage

with stage(snakemake):
    table = snakemake.input.latency
    trade = frontier(
        read_parquet(snakemake.input.curves, CURVES),
        read_parquet(snakemake.input.blocks, BLOCKS),
        read_parquet(snakemake.input.costs, COSTS),
        Budget.model_validate(snakemake.params.budget),
        Energy.model_validate(snakemake.params.energy),
        read_latency(table, tuple(snakemake.params.pruning["block_shape"])) if table else None,
    )
    write_parquet(trade, snakemake.output.frontier, FRONTIER)
    allocation = read_parquet(snakemake.input.allocation, ALLOCATION)
    save_figure(plot_frontier(trade, allocation), snakemake.output.figure)
