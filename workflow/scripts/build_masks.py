"""Scores and an allocation in, keep masks and the pruned model out: fitted to the dense one, with schemes, if asked."""

from lpvit.data.loading import evaluation_loader
from lpvit.models.architecture import load_model, save_model, with_schemes
from lpvit.stages.stage import stage
from lpvit.store.schemas import ALLOCATION, BLOCKS, SAMPLES, read_parquet
from lpvit.structures.blocks.masks import build_keep_masks, save_masks
from lpvit.structures.blocks.weights import pruned_weights

with stage(snakemake) as compute:
    block_shape = tuple(snakemake.params.pruning["block_shape"])
    architecture, state = load_model(snakemake.input.dense, "dense")
    model = architecture.build(state)
    keep_masks = build_keep_masks(
        read_parquet(snakemake.input.blocks, BLOCKS), read_parquet(snakemake.input.allocation, ALLOCATION)
    )
    loader = None
    if (reconstruction := snakemake.params.reconstruction) is not None:
        samples = read_parquet(snakemake.input.samples, SAMPLES)
        loader = evaluation_loader(samples, reconstruction, model, reconstruction["batch_size"], compute)
    pruned = pruned_weights(model, keep_masks, block_shape, loader, compute.device)
    save_masks(keep_masks, block_shape, snakemake.output.masks)
    save_model(*with_schemes(architecture, pruned, snakemake.params.schemes), snakemake.output.pruned, "pruned")
