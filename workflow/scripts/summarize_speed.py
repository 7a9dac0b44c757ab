"""Speed, energy and metrics of all benchmarked models and times of their layers in, tables out."""

import pandas as pd

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.report.tables.speed import speed_markdown, speed_summary, speed_up_by_sparsity
from lpvit.report.tables.summary import gather
from lpvit.stages.stage import stage
from lpvit.store.artifacts import write_text
from lpvit.store.schemas import CHOICES, COSTS, ENERGY, LATENCY, METRICS, SPEED
from lpvit.store.tables import read_parquet

with stage(snakemake):
    inputs, outputs, models = snakemake.input, snakemake.output, snakemake.params.benchmarked
    energy = gather(inputs.energy, models, ENERGY)
    metrics = pd.concat([gather(inputs.dense, models, METRICS), gather(inputs.final, models, METRICS)])
    table = speed_summary(gather(inputs.speed, models, SPEED), metrics, energy)
    write_text(table.to_csv(index=False), outputs.csv)
    write_text(gather(inputs.choices, models, CHOICES).to_csv(index=False), outputs.choices)
    write_text(speed_markdown(table, energy), outputs.markdown)
    layers = [
        speed_up_by_sparsity(read_parquet(latency, LATENCY), read_parquet(costs, COSTS)).assign(**names)
        for latency, costs, names in zip(inputs.latency, inputs.costs, snakemake.params.timed, strict=True)
    ]
    none = pd.DataFrame(columns=["block", "sparsity", "speed_up", "dataset", "model"])  # where no layers lose blocks
    write_text(pd.concat(layers or [none]).to_csv(index=False), outputs.speed_up)
