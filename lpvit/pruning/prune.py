"""Prunes a model to a budget: measure, allocate, choose, refit, once per round."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from lpvit.allocation.allocate import allocate
from lpvit.allocation.feasibility import Shapes, require_reachable
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.models.analysis.passes import Batches
from lpvit.pruning.outcome import Candidate, Estimate, reachable_shares, search
from lpvit.pruning.rounds import before_last_round, measure
from lpvit.structures.calibration import Statistics
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
    measured = _measured(model, images, structure, shapes, device)
    tables = before_last_round(model, images, structure, measured.tables, budget, device)
    return replace(measured, tables=tables).compress(budget)


def prune_to_outcome(
    model: nn.Module,
    images: Batches,
    structure: Structure,
    budget: Budget,
    shapes: Shapes,
    measure_outcome: Callable[[Compressed], Estimate],
    device: torch.device | str,
) -> list[Candidate]:
    """Prunes a model to several shares of its MACs and measures each, until the best for a budget's outcome is known.

    Args:
        model: Dense; moved to the device, otherwise not modified.
        images: Calibration images.
        structure: What is removed, and its measures.
        budget: With an outcome.
        shapes: Costs of the model's layers.
        measure_outcome: Of a compressed model, in the unit of the budget.
        device: Where to compute.

    Returns:
        As `lpvit.pruning.outcome.search`.

    Raises:
        LpvitError: No share meets the budget, or something is not finite.
    """
    measured = _measured(model, images, structure, shapes, device)
    return search(budget, reachable_shares(measured.tables, budget), measured.compress, measure_outcome)


@dataclass(frozen=True)
class Measured:
    """A dense model with the options of its layers, for any number of budgets.

    Attributes:
        model: Not modified.
        images: Calibration images.
        structure: What is removed.
        tables: Options and costs of the layers.
        statistics: Of the layers, where the structure compresses by them.
        device: Where to compute.
    """

    model: nn.Module
    images: Batches
    structure: Structure
    tables: LayerTables
    statistics: Statistics | None
    device: torch.device | str

    def compress(self, budget: Budget) -> Compressed:
        """Allocates a budget and compresses the model accordingly."""
        choice = self.structure.choose(self.tables.blocks, allocate(self.tables, budget))
        images = self.images if budget.refits else None
        return self.structure.compress(self.model, choice, self.statistics, images, self.device)


def _measured(
    model: nn.Module, images: Batches, structure: Structure, shapes: Shapes, device: torch.device | str
) -> Measured:
    options, statistics = measure(model, images, structure, device)
    tables = LayerTables(options.curves, options.blocks, shapes.costs, shapes.energy, shapes.latency)
    return Measured(model, images, structure, tables, statistics, device)
