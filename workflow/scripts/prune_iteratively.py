"""The dense model's scores and curves in, those of the model after all pruning rounds but the last out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.pruning.rounds import before_last_round
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.inputs import allocation_inputs, structure_asked
from lpvit.stages.stage import stage
from lpvit.store.schemas import BLOCKS, CURVES
from lpvit.store.tables import write_parquet

with stage(snakemake) as compute:
    dense, structure = read_calibrated(snakemake, compute), structure_asked(snakemake)
    tables, budget = allocation_inputs(snakemake)
    tables = before_last_round(dense.model, dense.images, structure, tables, budget, compute.device)
    write_parquet(tables.blocks, snakemake.output.blocks, BLOCKS)
    write_parquet(tables.curves, snakemake.output.curves, CURVES)
