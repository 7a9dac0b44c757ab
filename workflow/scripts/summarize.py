"""Metrics of all evaluated models in, one table out."""

from lpvit.report.tables import gather, summary, to_markdown
from lpvit.stages.stage import stage
from lpvit.store.artifacts import write_text
from lpvit.store.schemas import METRICS

with stage(snakemake):
    table = summary(gather(snakemake.input.metrics, snakemake.params.evaluations, METRICS))
    write_text(table.to_csv(index=False), snakemake.output.csv)
    write_text(to_markdown(table), snakemake.output.markdown)
