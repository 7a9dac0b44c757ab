"""Metrics of all evaluated models in, one table out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.report.tables.summary import gather, left_out, summary, to_markdown
from lpvit.stages.stage import stage
from lpvit.store.artifacts import write_text
from lpvit.store.schemas import METRICS

with stage(snakemake):
    rows = gather(snakemake.input.metrics, snakemake.params.evaluations, METRICS)
    table = summary(rows)
    write_text(table.to_csv(index=False), snakemake.output.csv)
    write_text(to_markdown(table) + left_out(rows), snakemake.output.markdown)
