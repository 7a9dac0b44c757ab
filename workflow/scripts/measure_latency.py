"""The layers of a model in, their milliseconds on this machine at every sparsity out."""

import torch

from lpvit.inference.layer_latency import measure_latency
from lpvit.stages.stage import stage
from lpvit.store.schemas import COSTS, LATENCY
from lpvit.store.tables import read_parquet, write_parquet

with stage(snakemake) as compute:
    settings = snakemake.params.benchmark
    latency = measure_latency(
        read_parquet(snakemake.input.costs, COSTS),
        tuple(snakemake.params.block_shape),
        batch_size=settings["layer_batch_size"],
        dtype=getattr(torch, settings["dtype"]),
        device=compute.device,
    )
    write_parquet(latency, snakemake.output.latency, LATENCY)
