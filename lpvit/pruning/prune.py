"""Prunes a model to a budget: measure, allocate, choose, refit, once per round."""

import torch
from torch import nn

from lpvit.allocation.allocate import allocate
from lpvit.allocation.feasibility import Shapes, require_reachable
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.models.analysis.passes import Batches
from lpvit.pruning.rounds import before_last_round, measure
from lpvit.structures.structure import Compressed, ModelStructure, Structure


def prune(
    model: nn.Module,
    images: Batches,
    structure: Structure | ModelStructure,
    budget: Budget,
    shapes: Shapes,
    device: torch.device | str,
) -> Compressed:
    """Prunes a model to a budget.

    Args:
        model: Dense; moved to the device, otherwise not modified.
        images: Calibration images.
        structure: What is removed, and its measures.
        budget: Target, allocator, number of rounds, and whether weights are refitted.
        shapes: Costs of the model's layers, in the quantity of the budget.
        device: Where to compute.

    Returns:
        The compressed model, on the CPU.

    Raises:
        LpvitError: The budget cannot be met, or something is not finite.
    """
    if isinstance(structure, ModelStructure):
        assert budget.macs is not None, "its settings require it (`StructureSettings.require_budget`)"
        structure.require_reachable(model, budget.macs)
        return structure.compress_to(model.to(device), images, budget.macs, refit=budget.refits)
    require_reachable(shapes, budget)  # before the expensive part
    options, statistics = measure(model, images, structure, device)
    tables = LayerTables(options.curves, options.blocks, shapes.costs, shapes.energy, shapes.latency)
    tables = before_last_round(model, images, structure, tables, budget, device)
    choice = structure.choose(tables.blocks, allocate(tables, budget))
    return structure.compress(model, choice, statistics, images if budget.refits else None, device)
