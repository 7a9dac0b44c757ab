"""History of a training in, its picture out."""

from lpvit.report.figures import plot_history
from lpvit.report.looks import save_figure
from lpvit.stages.stage import stage
from lpvit.store.schemas import HISTORY, METRICS, read_parquet

with stage(snakemake):
    history = read_parquet(snakemake.input.history, HISTORY)
    before = read_parquet(snakemake.input.before, METRICS) if snakemake.input.before else None
    save_figure(plot_history(history, before), *snakemake.output)
