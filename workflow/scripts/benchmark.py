"""A dense model, a pruned one and its masks in, their speed and energy on this machine out."""

from lpvit.benchmark.settings import Benchmark
from lpvit.benchmark.speed import benchmark
from lpvit.models.architecture import load_model
from lpvit.stages.edited import read_edited
from lpvit.stages.rivals import read_rivals
from lpvit.stages.stage import stage
from lpvit.store.schemas import CHOICES, ENERGY, SPEED
from lpvit.store.tables import write_parquet
from lpvit.structures.blocks.masks import load_masks

with stage(snakemake) as compute:
    name = snakemake.params.stage
    dense, dense_state = load_model(snakemake.input.dense, "dense")
    pruned, pruned_state = read_edited(snakemake.input.model, name)
    keep_masks, block_shape = load_masks(snakemake.input.masks)
    measured = benchmark(
        dense.build(dense_state),
        pruned.build(pruned_state),
        keep_masks,
        block_shape,
        Benchmark.model_validate(snakemake.params.benchmark),
        compute.device,
        read_rivals(snakemake, compute, dense.build()),
    )
    write_parquet(measured.speed.assign(stage=name), snakemake.output.speed, SPEED)
    write_parquet(measured.choices, snakemake.output.choices, CHOICES)
    write_parquet(measured.energy, snakemake.output.energy, ENERGY)
