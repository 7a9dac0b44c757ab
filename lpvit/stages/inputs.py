"""What several stages of the workflow read alike."""

from typing import Any

from lpvit.allocation.latency import read_latency
from lpvit.allocation.settings import Budget
from lpvit.models.settings import Energy
from lpvit.store.schemas import BLOCKS, COSTS, CURVES, read_parquet


def allocation_inputs(snakemake: Any) -> dict[str, Any]:
    """What an allocation goes by: arguments of `allocate`, `frontier` and `before_last_step`.

    Args:
        snakemake: The object that Snakemake gives to the script of a rule with these inputs and params.
    """
    table, block_shape = snakemake.input.latency, snakemake.params.pruning["block_shape"]
    return {
        "curves": read_parquet(snakemake.input.curves, CURVES),
        "blocks": read_parquet(snakemake.input.blocks, BLOCKS),
        "costs": read_parquet(snakemake.input.costs, COSTS),
        "budget": Budget.model_validate(snakemake.params.budget),
        "energy": Energy.model_validate(snakemake.params.energy),
        "latency": read_latency(table, tuple(block_shape)) if table else None,
    }
