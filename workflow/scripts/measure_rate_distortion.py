"""Block statistics in, scores of the blocks and one rate-distortion curve per layer out."""

from lpvit.artifacts import load
from lpvit.config import Pruning
from lpvit.data import evaluation_loader
from lpvit.models import load_model, matrix_layers, prunable_layers
from lpvit.rate_distortion import empirical_curves, gauss_newton_curves, taylor_curves
from lpvit.schemas import BLOCKS, CURVES, SAMPLES, read_parquet, write_parquet
from lpvit.stage import stage
from lpvit.statistics import block_table

with stage(snakemake) as compute:
    pruning = Pruning.model_validate(snakemake.params.pruning)
    statistics = load(snakemake.input.statistics, "statistics")
    blocks = block_table(statistics, pruning.saliency)
    if pruning.distortion == "taylor":
        curves = taylor_curves(statistics, blocks, pruning.order, pruning.points)
    elif pruning.distortion == "gauss_newton":
        curves = gauss_newton_curves(statistics, blocks, pruning.form, pruning.points)
    write_parquet(blocks, snakemake.output.blocks, BLOCKS)
    write_parquet(curves, snakemake.output.curves, CURVES)
