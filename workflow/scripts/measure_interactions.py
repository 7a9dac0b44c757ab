"""Block products and masks in, shared distortion of pairs of layers out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.stages.stage import stage
from lpvit.store.schemas import INTERACTIONS
from lpvit.store.tables import write_parquet
from lpvit.structures.blocks.calibration import load_statistics
from lpvit.structures.blocks.interactions import layer_interactions
from lpvit.structures.blocks.masks import load_masks

with stage(snakemake):
    statistics = load_statistics(snakemake.input.statistics)
    keep_masks, _ = load_masks(snakemake.input.masks)
    products = {layer: tables["block_products"] for layer, tables in statistics.items()}
    write_parquet(layer_interactions(products, keep_masks), snakemake.output.interactions, INTERACTIONS)
