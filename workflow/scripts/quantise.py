"""A pruned or fine-tuned model, its masks and calibration images in, the model in another precision out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.data.loading import evaluation_loader
from lpvit.models.architecture import Architecture, save_model
from lpvit.quantisation.quantise import quantise_model
from lpvit.quantisation.settings import Quantisation
from lpvit.stages.edited import read_edited
from lpvit.stages.stage import stage
from lpvit.store.schemas import SAMPLES
from lpvit.store.tables import read_parquet
from lpvit.structures.blocks.masks import load_masks

with stage(snakemake) as compute:
    before, after = snakemake.params.stages
    architecture, state = read_edited(snakemake.input.model, before)
    model, loader = architecture.build(state), None
    if (images := snakemake.params.images) is not None:
        samples = read_parquet(snakemake.input.samples, SAMPLES)
        loader = evaluation_loader(samples, images, model, images["batch_size"], compute)
    quantisation = Quantisation.model_validate(snakemake.params.quantisation)
    quantised = quantise_model(model, *load_masks(snakemake.input.masks), loader, quantisation, compute.device)
    save_model(Architecture.of(quantised), quantised.state_dict(), snakemake.output.quantised, after)
