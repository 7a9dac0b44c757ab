"""Block statistics in, scores of the blocks and one rate-distortion curve per layer out."""

from lpvit.artifacts import load
from lpvit.config import Pruning
from lpvit.data import evaluation_loader
from lpvit.models import load_model, matrix_layers, prunable_layers
from lpvit.rate_distortion import empirical_curves, predicted_curves
from lpvit.schemas import BLOCKS, CURVES, SAMPLES, read_parquet, write_parquet
from lpvit.stage import stage
from lpvit.statistics import block_table

with stage(snakemake) as compute:
    pruning = Pruning.model_validate(snakemake.params.pruning)
    statistics = load(snakemake.input.statistics, "statistics")
    blocks = block_table(statistics, pruning.saliency)
    if pruning.distortion != "empirical":
        curves = predicted_curves(statistics, blocks, pruning)
    else:
        architecture, state = load_model(snakemake.input.dense, "dense")
        model = architecture.build(state).to(compute.device)
        samples = read_parquet(snakemake.input.samples, SAMPLES)
        loader = evaluation_loader(samples, snakemake.params.dataset, model, pruning.batch_size, compute)
        layers = prunable_layers(matrix_layers(model), pruning.layers)
        curves = empirical_curves(
            model,
            loader,
            layers,
            blocks,
            pruning.block_shape,
            points=pruning.points,
            device=compute.device,
        )
    write_parquet(blocks, snakemake.output.blocks, BLOCKS)
    write_parquet(curves, snakemake.output.curves, CURVES)
