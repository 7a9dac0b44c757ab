"""Pruning in rounds, each with scores and curves of the model of the last round.

A curve of the dense model is accurate at low sparsity only: it does not include how refitting the remaining weights
compensates for the pruned ones. In rounds, every curve is used over a short range only, as in gradual magnitude pruning
(Zhu and Gupta, 2017), here with refitting instead of training.
"""

import logging
from dataclasses import replace

import torch
from torch import nn

from lpvit.allocation.allocate import allocate
from lpvit.allocation.settings import Budget
from lpvit.allocation.tables import LayerTables
from lpvit.models.analysis.passes import Batches
from lpvit.progress import labelled
from lpvit.structures.calibration import Statistics, collect_statistics
from lpvit.structures.structure import Options, Structure

_logger = logging.getLogger(__name__)


def measure(
    model: nn.Module, images: Batches, structure: Structure, device: torch.device | str
) -> tuple[Options, Statistics | None]:
    """Measures the options of the layers of a model for an allocation.

    Args:
        model: Dense, or pruned: pruned parts have no cost; moved to the device.
        images: Calibration images.
        structure: What may be removed.
        device: Where to compute.

    Returns:
        The options, and the statistics behind them if `Structure.compress` needs them.

    Raises:
        LpvitError: A layer does not fit the structure, or something is not finite.
    """
    statistics = collect_statistics(structure.name, model, images, structure.statistics_needed, device)
    options = structure.options(statistics, model, images, device)
    return options, statistics if structure.compresses_by_statistics else None


def before_last_round(
    model: nn.Module,
    images: Batches,
    structure: Structure,
    tables: LayerTables,
    budget: Budget,
    device: torch.device | str,
) -> LayerTables:
    """Runs all rounds of a budget but the last, and measures the options of the model that they leave.

    Every round prunes the dense model again, by the options of the model of the last round. Parts that were pruned
    there have no distortion, so they are pruned again unless the allocator prunes less of their layer.

    Args:
        model: Dense; moved to the device, otherwise not modified.
        images: Calibration images.
        structure: What is removed; one that compresses by statistics takes a single round.
        tables: Of the dense model's layers.
        budget: Number of rounds, and whether weights are refitted in each.
        device: Where to compute.

    Returns:
        With the options of the model after these rounds; unchanged for a single round.

    Raises:
        LpvitError: As `lpvit.allocation.allocate`, `measure` and `Structure.compress`.
    """
    if budget.steps > 1:
        allocate(tables, budget)  # raises before the first round if the budget cannot be met
    for number, interim in enumerate(budget.on_the_way, start=1):
        choice = structure.choose(tables.blocks, allocate(tables, interim))
        with labelled(f"round {number} of {budget.steps}"):
            pruned = structure.compress(model, choice, None, images if budget.refits else None, device).model
            options, _ = measure(pruned, images, structure, device)
        tables = replace(tables, blocks=options.blocks, curves=options.curves)
        targets = ", ".join(f"{quantity} {target:.3f}" for quantity, target in interim.targets.items())
        _logger.info("round %d of %d: %s", number, budget.steps, targets)
    return tables
