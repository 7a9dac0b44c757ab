"""Block statistics in, scores of the blocks and one rate-distortion curve per layer out."""

from lpvit.data.loading import evaluation_loader
from lpvit.models.architecture import load_model
from lpvit.stages.stage import stage
from lpvit.store.schemas import BLOCKS, CURVES, SAMPLES, read_parquet, write_parquet
from lpvit.structures.blocks.rate_distortion import rate_distortion_curves
from lpvit.structures.blocks.scores import block_table
from lpvit.structures.blocks.settings import Pruning
from lpvit.structures.blocks.statistics import load_statistics

with stage(snakemake) as compute:
    pruning = Pruning.model_validate(snakemake.params.pruning)
    statistics = load_statistics(snakemake.input.statistics)
    blocks = block_table(statistics, pruning.saliency)
    model = loader = None
    if pruning.measures_images:
        architecture, state = load_model(snakemake.input.dense, "dense")
        model = architecture.build(state)
        samples = read_parquet(snakemake.input.samples, SAMPLES)
        loader = evaluation_loader(samples, snakemake.params.dataset, model, pruning.batch_size, compute)
    curves = rate_distortion_curves(statistics, blocks, pruning, model, loader, compute.device)
    write_parquet(blocks, snakemake.output.blocks, BLOCKS)
    write_parquet(curves, snakemake.output.curves, CURVES)
