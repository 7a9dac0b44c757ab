"""Block products and masks in, what pairs of layers share of their distortion out."""

from lpvit.artifacts import load
from lpvit.interactions import layer_interactions
from lpvit.masks import load_masks
from lpvit.schemas import INTERACTIONS, write_parquet
from lpvit.stage import stage

with stage(snakemake):
    statistics = load(snakemake.input.statistics, "statistics")
    keep_masks, _ = load_masks(snakemake.input.masks)
    products = {layer: tables["block_products"] for layer, tables in statistics.items()}
    write_parquet(layer_interactions(products, keep_masks), snakemake.output.interactions, INTERACTIONS)
