"""Keep masks in, picture of the block patterns of a few layers out."""

from lpvit.report.figures import plot_blocks
from lpvit.report.looks import save_figure
from lpvit.stages.stage import stage
from lpvit.store.schemas import COSTS, read_parquet
from lpvit.structures.blocks.masks import load_masks

with stage(snakemake):
    keep_masks, _ = load_masks(snakemake.input.masks)
    costs = read_parquet(snakemake.input.costs, COSTS)
    arrays = {layer: keep_mask.numpy() for layer, keep_mask in keep_masks.items()}
    save_figure(plot_blocks(arrays, costs), *snakemake.output)
