"""A pruned model and its masks in, the model trained with frozen masks out."""

from pathlib import Path

import torch

from lpvit.data.preprocessing import Preprocessing
from lpvit.models.architecture import load_model, save_model
from lpvit.stages.stage import stage
from lpvit.store.provenance import fingerprint
from lpvit.store.schemas import HISTORY, IMAGES, read_parquet, write_parquet
from lpvit.training.settings import Recipe
from lpvit.training.splits import SplitLoaders
from lpvit.training.teacher import load_teacher
from lpvit.training.train import train
from lpvit.weights.masks import load_masks

with stage(snakemake) as compute:
    recipe = Recipe.model_validate(snakemake.params.recipe)
    architecture, pruned = load_model(snakemake.input.pruned, "pruned")
    keep_masks, block_shape = load_masks(snakemake.input.masks)
    model = architecture.build(pruned, drop_path=recipe.drop_path)
    images = read_parquet(snakemake.input.images, IMAGES)
    state, history = train(
        model,
        recipe,
        SplitLoaders(images, snakemake.params.dataset, Preprocessing.from_model(model), recipe, compute),
        keep_masks=keep_masks,
        block_shape=block_shape,
        teacher=load_teacher(recipe, architecture.num_classes, snakemake.input.dense),
        device=torch.device(compute.device),
        threads=compute.threads,
        processes=compute.processes,
        resume_file=Path(snakemake.params.resume),
        fingerprint=fingerprint(dict(snakemake.params.items()), *snakemake.input),
    )
    save_model(architecture, state, snakemake.output.finetuned, "finetuned")
    write_parquet(history, snakemake.output.history, HISTORY)
    Path(snakemake.params.resume).unlink(missing_ok=True)
