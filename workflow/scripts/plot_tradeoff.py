"""Summary in, picture of accuracy against MACs out."""

from lpvit.report import plot_tradeoff, read_summary, save_figure
from lpvit.stage import stage

with stage(snakemake):
    save_figure(plot_tradeoff(read_summary(snakemake.input.summary)), snakemake.output.figure)
