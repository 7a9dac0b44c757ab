"""Metrics of all evaluated models in, one table out."""

import pandas as pd

from lpvit.report.tables import summary, to_markdown
from lpvit.stages.stage import stage
from lpvit.store.artifacts import replace_atomically
from lpvit.store.schemas import METRICS, read_parquet

NAMES = ("experiment", "dataset", "model")

with stage(snakemake):
    rows = [
        read_parquet(file, METRICS).assign(**{name: evaluation[name] for name in NAMES})
        for file, evaluation in zip(snakemake.input.metrics, snakemake.params.evaluations, strict=True)
    ]
    table = summary(pd.concat(rows))
    with replace_atomically(snakemake.output.csv) as partial:
        table.to_csv(partial, index=False)
    with replace_atomically(snakemake.output.markdown) as partial:
        partial.write_text(to_markdown(table))
