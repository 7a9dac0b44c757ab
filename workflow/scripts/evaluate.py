"""A model and the validation images in, accuracy and costs out: in all, and by layer."""

from dataclasses import asdict

import torch

from lpvit.costs.cost import layer_table, measure_costs, model_metrics, narrow_dtypes
from lpvit.costs.settings import Energy
from lpvit.data.index import count_skipped, usable_images
from lpvit.data.loading import evaluation_loader
from lpvit.models.architecture import load_model
from lpvit.stages.stage import stage
from lpvit.store.schemas import IMAGES, LAYERS, METRICS, read_parquet, write_parquet
from lpvit.structures.blocks.masks import kept_blocks, load_masks
from lpvit.training.evaluation import evaluate

with stage(snakemake) as compute:
    name, energy = snakemake.params.stage, Energy.model_validate(snakemake.params.energy)
    architecture, state = load_model(snakemake.input.model, name)
    keep_masks, block_shape = load_masks(snakemake.input.masks) if snakemake.input.masks else ({}, None)
    model, images = architecture.build(state), read_parquet(snakemake.input.images, IMAGES)
    costs = measure_costs(model)
    layers = layer_table(name, costs, kept_blocks(costs, keep_masks, block_shape), energy, narrow_dtypes(model))
    validation, skipped = usable_images(images, "validation"), count_skipped(images, "validation")
    loader = evaluation_loader(validation, snakemake.params.dataset, model, compute.evaluation_batch_size, compute)
    accuracy = evaluate(model, loader, torch.device(compute.device))
    metrics = model_metrics(layers, costs, model).assign(**asdict(accuracy), images_skipped=skipped)
    write_parquet(layers, snakemake.output.layers, LAYERS)
    write_parquet(metrics, snakemake.output.metrics, METRICS)
