"""The whole config in, one row per experiment out: what it will prune."""

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.config.config import parse_config
from lpvit.stages.plan import plan_experiments
from lpvit.stages.stage import stage
from lpvit.store.schemas import PLAN
from lpvit.store.tables import write_parquet

with stage(snakemake):
    write_parquet(plan_experiments(parse_config(snakemake.params.settings)), snakemake.output.plan, PLAN)
