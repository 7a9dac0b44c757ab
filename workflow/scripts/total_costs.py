"""A model, its masks and its accuracy in; its costs out: in total, with the accuracy, and by layer."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.costs.cost import layer_table, measure_costs, model_metrics, narrow_dtypes
from lpvit.costs.settings import Energy
from lpvit.stages.edited import read_edited
from lpvit.stages.stage import stage
from lpvit.store.schemas import ACCURACY, LAYERS, METRICS
from lpvit.store.tables import read_parquet, write_parquet
from lpvit.structures.blocks.masks import kept_blocks, load_masks

with stage(snakemake):
    name, energy = snakemake.params.stage, Energy.model_validate(snakemake.params.energy)
    architecture, state = read_edited(snakemake.input.model, name)
    keep_masks, block_shape = load_masks(snakemake.input.masks) if snakemake.input.masks else ({}, None)
    model = architecture.build(state)
    costs = measure_costs(model)
    layers = layer_table(name, costs, kept_blocks(costs, keep_masks, block_shape), energy, narrow_dtypes(model))
    accuracy = read_parquet(snakemake.input.accuracy, ACCURACY)
    write_parquet(layers, snakemake.output.layers, LAYERS)
    write_parquet(accuracy.merge(model_metrics(layers, costs, model), on="stage"), snakemake.output.metrics, METRICS)
