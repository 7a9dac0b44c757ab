"""The dense model in, what its layers cost once schemes are added to it out."""

import lpvit.stages.preloaded  # noqa: F401 - goes on in a process that has imported torch
from lpvit.costs.cost import measure_costs
from lpvit.models.architecture import load_model, with_schemes
from lpvit.schemes import kinds as _  # noqa: F401 - this stage depends on all of them
from lpvit.stages.stage import stage
from lpvit.store.schemas import COSTS, write_parquet

with stage(snakemake):
    architecture, state = with_schemes(*load_model(snakemake.input.dense, "dense"), snakemake.params.schemes)
    write_parquet(measure_costs(architecture.build(state)), snakemake.output.costs, COSTS)
