"""A dense model and calibration images in, block statistics of every prunable layer out."""

from lpvit.artifacts import save
from lpvit.config import Pruning
from lpvit.data import evaluation_loader
from lpvit.gauss_newton import statistics_with_products
from lpvit.models import load_model, matrix_layers, prunable_layers
from lpvit.schemas import SAMPLES, read_parquet
from lpvit.stage import stage

with stage(snakemake) as compute:
    pruning = Pruning.model_validate(snakemake.params.pruning)
    architecture, state = load_model(snakemake.input.dense, "dense")
    model = architecture.build(state).to(compute.device)
    samples = read_parquet(snakemake.input.samples, SAMPLES)
    loader = evaluation_loader(samples, snakemake.params.dataset, model, pruning.batch_size, compute)
    layers = prunable_layers(matrix_layers(model), pruning.layers)
    statistics = statistics_with_products(
        *(model, loader, layers, pruning.block_shape, snakemake.params.probes, compute.device),
        averaged=snakemake.params.averaged,
    )
    save(statistics, snakemake.output.statistics, "statistics")
