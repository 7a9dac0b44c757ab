"""The whole config in, one line per experiment out: what it will prune, if it can work at all."""

from pathlib import Path

from lpvit.config import parse_config
from lpvit.plan import plan_experiments
from lpvit.schemas import IMAGES, PLAN, read_parquet, write_parquet
from lpvit.stage import stage

with stage(snakemake):
    images = {Path(file).parent.name: read_parquet(file, IMAGES) for file in snakemake.input.images}
    plan = plan_experiments(parse_config(snakemake.params.settings), images)
    write_parquet(plan, snakemake.output.plan, PLAN)
