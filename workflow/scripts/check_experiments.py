"""The whole config in, one line per experiment out: what it will prune, if it can work at all."""

from pathlib import Path

from lpvit.config.config import parse_config
from lpvit.stages.plan import plan_experiments
from lpvit.stages.stage import stage
from lpvit.store.schemas import IMAGES, PLAN, read_parquet, write_parquet

with stage(snakemake):
    images = {Path(file).parent.name: read_parquet(file, IMAGES) for file in snakemake.input.images}
    plan = plan_experiments(parse_config(snakemake.params.settings), images)
    write_parquet(plan, snakemake.output.plan, PLAN)
