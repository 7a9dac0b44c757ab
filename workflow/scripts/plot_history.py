"""History of a training in, its picture out."""

from lpvit.report.figures import plot_history, save_figure
from lpvit.stages.stage import stage
from lpvit.store.schemas import HISTORY, read_parquet

with stage(snakemake):
    save_figure(plot_history(read_parquet(snakemake.input.history, HISTORY)), snakemake.output.figure)
