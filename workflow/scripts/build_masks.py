"""Scores and an allocation in, keep masks and the pruned model out."""

from lpvit.masks import build_keep_masks, expand_keep_masks, save_masks, verify_pruned, zero_pruned
from lpvit.models import load_model, save_model
from lpvit.schemas import ALLOCATION, BLOCKS, read_parquet
from lpvit.stage import stage

with stage(snakemake):
    block_shape = tuple(snakemake.params.pruning["block_shape"])
    architecture, state = load_model(snakemake.input.dense, "dense")
    keep_masks = build_keep_masks(
        read_parquet(snakemake.input.blocks, BLOCKS), read_parquet(snakemake.input.allocation, ALLOCATION)
    )
    expanded = expand_keep_masks(architecture.build(state), keep_masks, block_shape)
    zero_pruned(state, expanded)
    verify_pruned(state, expanded)
    save_masks(keep_masks, block_shape, snakemake.output.masks)
    save_model(architecture, state, snakemake.output.pruned, "pruned")
