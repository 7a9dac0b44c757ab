"""Speed, energy and metrics of all benchmarked models in, tables and accuracy against latency out."""

from collections.abc import Iterable

import pandas as pd

from lpvit.report.figures import save_figure
from lpvit.report.speed import NAMES, plot_latency, speed_markdown, speed_summary
from lpvit.stages.stage import stage
from lpvit.store.artifacts import replace_atomically
from lpvit.store.schemas import CHOICES, ENERGY, METRICS, SPEED, Schema, read_parquet


def gather(files: Iterable[str], schema: Schema) -> pd.DataFrame:
    """The tables of all experiments as one, with the names of each before its rows."""
    tables = {
        tuple(entry[name] for name in NAMES): read_parquet(file, schema)
        for file, entry in zip(files, snakemake.params.benchmarked, strict=True)
    }
    return pd.concat(tables, names=NAMES).reset_index(NAMES).reset_index(drop=True)


with stage(snakemake):
    inputs, outputs = snakemake.input, snakemake.output
    energy = gather(inputs.energy, ENERGY)
    metrics = pd.concat([gather(inputs.dense, METRICS), gather(inputs.final, METRICS)])
    table = speed_summary(gather(inputs.speed, SPEED), metrics, energy)
    for frame, file in ((table, outputs.csv), (gather(inputs.choices, CHOICES), outputs.choices)):
        with replace_atomically(file) as partial:
            frame.to_csv(partial, index=False)
    with replace_atomically(outputs.markdown) as partial:
        partial.write_text(speed_markdown(table, energy))
    save_figure(plot_latency(table), outputs.figure)
