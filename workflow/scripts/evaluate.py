"""A model and the validation images in, its accuracy out."""

import pandas as pd

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.data.classes import require_same_order
from lpvit.data.index import class_names, count_skipped, usable_images
from lpvit.data.loading import evaluation_loader
from lpvit.models.architecture import load_model
from lpvit.stages.stage import stage
from lpvit.store.schemas import ACCURACY, IMAGES
from lpvit.store.tables import read_parquet, write_parquet
from lpvit.training.evaluation import evaluate

with stage(snakemake) as compute:
    name, images = snakemake.params.stage, read_parquet(snakemake.input.images, IMAGES)
    architecture, state = load_model(snakemake.input.model, name)
    require_same_order(architecture.classes, class_names(images), snakemake.input.model)
    model = architecture.build(state)
    validation = usable_images(images, "validation")
    loader = evaluation_loader(validation, snakemake.params.dataset, model, compute.evaluation_batch_size, compute)
    accuracy = pd.DataFrame([evaluate(model, loader, compute.device)])
    skipped = count_skipped(images, "validation")
    write_parquet(accuracy.assign(stage=name, images_skipped=skipped), snakemake.output.accuracy, ACCURACY)
