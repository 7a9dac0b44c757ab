"""A dense model, a pruned one and its masks in, their speed and energy on this machine out."""

from lpvit.benchmark import benchmark
from lpvit.config import Benchmark
from lpvit.masks import load_masks
from lpvit.models import load_model
from lpvit.schemas import CHOICES, ENERGY, SPEED, write_parquet
from lpvit.stage import stage

with stage(snakemake) as compute:
    name = snakemake.params.stage
    dense, dense_state = load_model(snakemake.input.dense, "dense")
    pruned, pruned_state = load_model(snakemake.input.model, name)
    keep_masks, block_shape = load_masks(snakemake.input.masks)
    measured = benchmark(
        dense.build(dense_state),
        pruned.build(pruned_state),
        keep_masks,
        block_shape,
        Benchmark.model_validate(snakemake.params.benchmark),
        compute.device,
    )
    write_parquet(measured.speed.assign(stage=name), snakemake.output.speed, SPEED)
    write_parquet(measured.choices, snakemake.output.choices, CHOICES)
    write_parquet(measured.energy, snakemake.output.energy, ENERGY)
