"""Summary in, picture of accuracy against MACs out."""

from lpvit.report.looks import save_figure
from lpvit.report.tables import read_summary
from lpvit.report.tradeoff import plot_tradeoff
from lpvit.stages.stage import stage

with stage(snakemake):
    summary = read_summary(snakemake.input.summary)
    save_figure(plot_tradeoff(summary, snakemake.params.series), *snakemake.output)
