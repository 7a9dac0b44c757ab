"""Scores and an allocation in, keep masks and the pruned model out, its weights fitted to the dense one's if asked."""

from lpvit.data import evaluation_loader
from lpvit.masks import build_keep_masks, expand_keep_masks, save_masks, verify_pruned, zero_pruned
from lpvit.models import load_model, save_model
from lpvit.reconstruction import reconstruct
from lpvit.schemas import ALLOCATION, BLOCKS, SAMPLES, read_parquet
from lpvit.stage import stage

with stage(snakemake) as compute:
    block_shape = tuple(snakemake.params.pruning["block_shape"])
    architecture, state = load_model(snakemake.input.dense, "dense")
    model = architecture.build(state)
    keep_masks = build_keep_masks(
        read_parquet(snakemake.input.blocks, BLOCKS), read_parquet(snakemake.input.allocation, ALLOCATION)
    )
    expanded = expand_keep_masks(model, keep_masks, block_shape)
    if (reconstruction := snakemake.params.reconstruction) is None:
        zero_pruned(state, expanded)
    else:
        samples = read_parquet(snakemake.input.samples, SAMPLES)
        loader = evaluation_loader(samples, reconstruction, model, reconstruction["batch_size"], compute)
        state = reconstruct(model, keep_masks, block_shape, loader, device=compute.device)
    verify_pruned(state, expanded)
    save_masks(keep_masks, block_shape, snakemake.output.masks)
    save_model(architecture, state, snakemake.output.pruned, "pruned")
