"""Inputs that several stages of the workflow share."""

from typing import Any

from lpvit.allocation.latency import read_latency
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.costs.settings import Energy
from lpvit.store.schemas import BLOCKS, COSTS, CURVES, read_parquet
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.blocks.structure import BlockStructure
from lpvit.structures.structure import Structure


def structure_asked(snakemake: Any) -> Structure:
    """The structure that the param ``pruning`` asks for."""
    return BlockStructure(Blocks.model_validate(snakemake.params.pruning))


def allocation_inputs(snakemake: Any) -> tuple[LayerTables, Budget]:
    """Reads the inputs of an allocation.

    Args:
        snakemake: The object that Snakemake gives to the script of a rule with these inputs and params.
    """
    table, block_shape = snakemake.input.latency, snakemake.params.pruning["block_shape"]
    tables = LayerTables(
        curves=read_parquet(snakemake.input.curves, CURVES),
        blocks=read_parquet(snakemake.input.blocks, BLOCKS),
        costs=read_parquet(snakemake.input.costs, COSTS),
        energy=Energy.model_validate(snakemake.params.energy),
        latency=read_latency(table, tuple(block_shape)) if table else None,
    )
    return tables, Budget.model_validate(snakemake.params.budget)
