"""Speed, energy and metrics of all benchmarked models in, tables and accuracy against latency out."""

import pandas as pd

from lpvit.report.looks import save_figure
from lpvit.report.speed import speed_markdown, speed_summary
from lpvit.report.tables import gather
from lpvit.report.tradeoff import plot_latency
from lpvit.stages.stage import stage
from lpvit.store.artifacts import write_text
from lpvit.store.schemas import CHOICES, ENERGY, METRICS, SPEED

with stage(snakemake):
    inputs, outputs, models = snakemake.input, snakemake.output, snakemake.params.benchmarked
    energy = gather(inputs.energy, models, ENERGY)
    metrics = pd.concat([gather(inputs.dense, models, METRICS), gather(inputs.final, models, METRICS)])
    table = speed_summary(gather(inputs.speed, models, SPEED), metrics, energy)
    write_text(table.to_csv(index=False), outputs.csv)
    write_text(gather(inputs.choices, models, CHOICES).to_csv(index=False), outputs.choices)
    write_text(speed_markdown(table, energy), outputs.markdown)
    save_figure(plot_latency(table, snakemake.params.series), outputs.svg, outputs.png)
