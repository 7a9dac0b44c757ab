"""A model's name and the dataset's images in, the dense model and what its layers cost out."""

from pathlib import Path

import torch

from lpvit.data.preprocessing import Preprocessing
from lpvit.models.architecture import Architecture, save_model
from lpvit.models.checkpoints import load_weights, read_checkpoint
from lpvit.models.cost import measure_costs
from lpvit.models.settings import Model
from lpvit.stages.stage import stage
from lpvit.store.provenance import fingerprint
from lpvit.store.schemas import COSTS, HISTORY, IMAGES, empty_frame, read_parquet, write_parquet
from lpvit.training.settings import Recipe
from lpvit.training.splits import SplitLoaders
from lpvit.training.train import train

with stage(snakemake) as compute:
    settings = Model.model_validate(snakemake.params.model)
    images = read_parquet(snakemake.input.images, IMAGES)
    architecture = Architecture(settings.timm, images["label"].nunique(), settings.options, settings.data_config)
    model = architecture.build(pretrained=settings.weights == "pretrained", seed=settings.seed)
    history = empty_frame(HISTORY)
    if settings.checkpoint is not None:
        load_weights(model, read_checkpoint(settings.checkpoint), settings.checkpoint)
    state = model.state_dict()
    if snakemake.params.recipe is not None:
        recipe = Recipe.model_validate(snakemake.params.recipe)
        state, history = train(
            architecture.build(state, drop_path=recipe.drop_path),
            recipe,
            SplitLoaders(images, snakemake.params.dataset, Preprocessing.from_model(model), recipe, compute),
            device=torch.device(compute.device),
            threads=compute.threads,
            processes=compute.processes,
            resume_file=Path(snakemake.params.resume),
            fingerprint=fingerprint(dict(snakemake.params.items()), *snakemake.input),
        )
    save_model(architecture, state, snakemake.output.dense, "dense")
    write_parquet(measure_costs(model), snakemake.output.costs, COSTS)
    write_parquet(history, snakemake.output.history, HISTORY)
    Path(snakemake.params.resume).unlink(missing_ok=True)
