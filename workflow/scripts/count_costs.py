"""The dense model in, costs of its layers with schemes out."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.costs.cost import measure_costs
from lpvit.models.architecture import extended, load_model
from lpvit.schemes.edit import schemes_added
from lpvit.stages.stage import stage
from lpvit.store.schemas import COSTS
from lpvit.store.tables import write_parquet

with stage(snakemake):
    schemes = schemes_added(snakemake.params.schemes)
    architecture, state = extended(*load_model(snakemake.input.dense, "dense"), schemes)
    write_parquet(measure_costs(architecture.build(state)), snakemake.output.costs, COSTS)
