"""A pruned model and its masks in, the model trained with fixed masks out."""

from dataclasses import replace

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.models.architecture import load_model, save_model
from lpvit.stages.stage import stage
from lpvit.stages.training import history_table, read_training
from lpvit.store.schemas import HISTORY
from lpvit.store.tables import write_parquet
from lpvit.structures.blocks.edit import with_keep_masks
from lpvit.structures.blocks.masks import load_masks, save_masks
from lpvit.training.settings import Recipe
from lpvit.training.train import train

with stage(snakemake) as compute:
    architecture, pruned = load_model(snakemake.input.pruned, "pruned")
    keep_masks, block_shape = load_masks(snakemake.input.masks)
    if Recipe.model_validate(snakemake.params.recipe).pruned_over:  # blocks are pruned during training
        dense = load_model(snakemake.input.dense, "dense")[1]
        pruned |= {name: value for name, value in dense.items() if name in pruned}  # not of layers as factors
    training = read_training(snakemake, compute, architecture, pruned)
    trained = train(replace(training, keep_masks=keep_masks, block_shape=block_shape))
    edits = with_keep_masks(architecture.edits, trained.keep_masks, block_shape)
    save_model(architecture.with_edits(edits), trained.state, snakemake.output.finetuned, "finetuned")
    save_masks(trained.keep_masks, block_shape, snakemake.output.masks)
    write_parquet(history_table(trained.history), snakemake.output.history, HISTORY)
    training.resume_file.unlink(missing_ok=True)
