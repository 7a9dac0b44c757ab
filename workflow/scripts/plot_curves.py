"""Rate-distortion curves in, their picture out."""

from lpvit.report.figures import plot_curves
from lpvit.report.looks import save_figure
from lpvit.stages.stage import stage
from lpvit.store.schemas import COSTS, CURVES, read_parquet

with stage(snakemake):
    curves = read_parquet(snakemake.input.curves, CURVES)
    costs = read_parquet(snakemake.input.costs, COSTS)
    save_figure(plot_curves(curves, costs, snakemake.params.unit), *snakemake.output)
