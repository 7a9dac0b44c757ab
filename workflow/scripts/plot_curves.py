"""Rate-distortion curves in, their picture out."""

from lpvit.report import plot_curves, save_figure
from lpvit.schemas import COSTS, CURVES, read_parquet
from lpvit.stage import stage

with stage(snakemake):
    curves = read_parquet(snakemake.input.curves, CURVES)
    costs = read_parquet(snakemake.input.costs, COSTS)
    save_figure(plot_curves(curves, costs), snakemake.output.figure)
