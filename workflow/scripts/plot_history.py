"""History of a training in, its picture out."""

from lpvit.report import plot_history, save_figure
from lpvit.schemas import HISTORY, read_parquet
from lpvit.stage import stage

with stage(snakemake):
    save_figure(plot_history(read_parquet(snakemake.input.history, HISTORY)), snakemake.output.figure)
