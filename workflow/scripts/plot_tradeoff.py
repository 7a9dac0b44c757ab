"""Summary in, picture of accuracy against MACs out."""

from lpvit.report.figures import plot_tradeoff, save_figure
from lpvit.report.tables import read_summary
from lpvit.stages.stage import stage

with stage(snakemake):
    save_figure(plot_tradeoff(read_summary(snakemake.input.summary)), snakemake.output.figure)
