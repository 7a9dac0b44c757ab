"""Inputs that several stages of the workflow share."""

from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from lpvit.allocation.latency import read_latency
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.costs.settings import Energy
from lpvit.store.schemas import BLOCKS, COSTS, CURVES, OUTCOMES
from lpvit.store.tables import read_parquet
from lpvit.structures.settings import AnyStructure, StructureSettings
from lpvit.structures.structure import ModelStructure, Structure, structure_of


def structure_asked(snakemake: Any) -> Structure:
    """The structure that the param ``pruning`` asks for, which offers options layer by layer."""
    pruning: StructureSettings = TypeAdapter(AnyStructure).validate_python(snakemake.params.pruning)
    structure = structure_of(pruning)
    assert not isinstance(structure, ModelStructure), "no rule asks for the options of its layers"
    return structure


def allocation_inputs(snakemake: Any) -> tuple[LayerTables, Budget]:
    """Reads the inputs of an allocation.

    Args:
        snakemake: The object that Snakemake gives to the script of a rule with these inputs and params; with an input
            ``outcomes``, the budget is the share of the MACs chosen there.
    """
    pruning: StructureSettings = TypeAdapter(AnyStructure).validate_python(snakemake.params.pruning)
    timed = [snakemake.input.latency] if isinstance(snakemake.input.latency, str) else list(snakemake.input.latency)
    tables = LayerTables(
        curves=read_parquet(snakemake.input.curves, CURVES),
        blocks=read_parquet(snakemake.input.blocks, BLOCKS),
        costs=read_parquet(snakemake.input.costs, COSTS),
        energy=Energy.model_validate(snakemake.params.energy),
        latency=read_latency(timed, pruning.timed_shapes) if timed else None,
    )
    budget = Budget.model_validate(snakemake.params.budget)
    found = snakemake.input.get("outcomes")
    return tables, budget.at(chosen_share(read_parquet(found, OUTCOMES))) if found else budget


def chosen_share(outcomes: pd.DataFrame) -> float:
    """The share of the MACs that met a budget by outcome best, of a table of schema ``OUTCOMES``."""
    (share,) = outcomes.loc[outcomes["chosen"], "macs"]
    return float(share)
