"""A dense model, its options and images in, what came of several shares of the MACs out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.pruning.outcome import outcome_table, reachable_shares, search
from lpvit.pruning.prune import Measured
from lpvit.stages.calibrated import read_calibrated
from lpvit.stages.inputs import allocation_inputs, structure_asked
from lpvit.stages.outcome import measure_of_stage
from lpvit.stages.stage import stage
from lpvit.store.schemas import OUTCOMES
from lpvit.store.tables import write_parquet

with stage(snakemake) as compute:
    dense, structure = read_calibrated(snakemake, compute), structure_asked(snakemake)
    tables, budget = allocation_inputs(snakemake)
    statistics = structure.load_statistics(snakemake.input.statistics) if structure.compresses_by_statistics else None
    measured = Measured(dense.model, dense.images, structure, tables, statistics, compute.device)
    measure = measure_of_stage(snakemake, budget, dense, compute)
    candidates = search(budget, reachable_shares(tables, budget), measured.compress, measure)
    write_parquet(outcome_table(candidates, budget), snakemake.output.outcomes, OUTCOMES)
