"""Latency tables in, picture of the speed-up of layers against their sparsity out."""

import pandas as pd

from lpvit.report.looks import save_figure
from lpvit.report.speed import plot_speed_up, speed_up_by_sparsity
from lpvit.stages.stage import stage
from lpvit.store.schemas import COSTS, LATENCY, read_parquet

with stage(snakemake):
    inputs = zip(snakemake.input.latency, snakemake.input.costs, snakemake.params.models, strict=True)
    curves = [
        speed_up_by_sparsity(read_parquet(latency, LATENCY), read_parquet(costs, COSTS)).assign(**names)
        for latency, costs, names in inputs
    ]
    save_figure(plot_speed_up(pd.concat(curves)), *snakemake.output)
